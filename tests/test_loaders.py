"""Batches: which slices in which order, whatever workers do, and what is said when one dies."""

import dataclasses
import itertools
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import commands
import loaders
import progress
import train
from conftest import labelled
from datasets import Views
from utils import InputError


def epoch_of(num_workers: int, seed: int = 0, start: int = 0, batches: int = 4) -> torch.Tensor:
    loader = loaders.make_loader(Views(labelled(), 32), 2, [seed], start, num_workers)
    return torch.stack([torch.cat([batch["weak"], batch["strong"], batch["mask"]]) for batch, _ in
                        zip(loader, range(batches), strict=False)])


def test_epochs_differ_and_a_seed_gives_them_again_with_and_without_workers():
    two = epoch_of(num_workers=2, batches=4)        # two passes over four slices, two slices a batch
    assert not torch.equal(two[:2], two[2:])
    assert len({tuple(view.flatten().tolist()) for view in two[:, :2].flatten(0, 1)}) == 8  # every weak view is new
    assert torch.equal(two, epoch_of(num_workers=2))
    assert torch.equal(two, epoch_of(num_workers=0))
    assert not torch.equal(two, epoch_of(num_workers=2, seed=1))
    assert torch.equal(two[2:], epoch_of(num_workers=0, start=2, batches=2))  # going on at batch 2


def test_draws_pass_over_every_slice():
    draws = iter(loaders.Draws(5, [0]))
    passes = [[next(draws)[0] for _ in range(5)] for _ in range(4)]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert len({tuple(p) for p in passes}) > 1


@pytest.mark.parametrize("start", [0, 5])
def test_the_slices_of_a_batch_are_known_without_making_it(start):
    made, views = [], Views(labelled(5), 32)
    views.__class__ = type("Noting", (Views,), {
        "__getitem__": lambda self, key: made.append(key[0]) or Views.__getitem__(self, key)})
    loader = loaders.make_loader(views, 2, [3], start)
    for number in range(start, start + 4):
        made.clear()
        next(loader)
        assert loaders.drawn(5, 2, [3], number) == made


# --- what goes wrong --------------------------------------------------------------------------------------------

class Trouble(Views):
    """Something happens over slice 2."""

    def __init__(self, what):
        super().__init__(labelled(4), 32)
        self.what = what

    def __getitem__(self, key):
        if key[0] == 2:
            self.what()
        return super().__getitem__(key)


def fail() -> None:
    raise MemoryError("no more")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_slice(workers):
    loader = loaders.make_loader(Trouble(fail), 1, [0], num_workers=workers)
    with pytest.raises(InputError, match=r"^s2\.tif: no views can be made of it \(MemoryError: no more\)$"):
        list(itertools.islice(loader, 9))


@pytest.fixture
def often(monkeypatch):
    """Torch looks for dead workers more often than every five seconds."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.3)


def test_a_dead_worker_names_its_slice(often):
    loader = loaders.make_loader(Trouble(lambda: os.kill(os.getpid(), signal.SIGKILL)), 1, [0], num_workers=2)

    def use():
        for _ in itertools.islice(loader, 9):
            time.sleep(0.01)                                # the death must not come up here, where anything may happen
    with pytest.raises(loaders.WorkerDied, match=r"s2\.tif: a process died while it made views of this slice"):
        use()


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(),
                                   FileNotFoundError(2, "No such file or directory")])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_broken_pipe_tells_of_a_death_that_is_not_seen_yet(error):
    """A worker that dies in the act of handing over a batch."""
    watched = loaders.Watched(Views(labelled(), 32), 2)
    workers = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(wait,)) for wait in (60, 0.3)]
    for i, worker in enumerate(workers):
        worker.start()
        watched.at[2 * i:2 * i + 2] = worker.pid, i + 1
    assert re.match(r"s2\.tif: a process died while it made views of this slice \(", str(watched.death(error)))
    workers[0].kill()
    workers[0].join()


def test_other_errors_stay_what_they_are():
    watched = loaders.Watched(Views(labelled(), 32), 2)
    assert watched.death(EOFError()) is None                # no worker has begun
    watched.at[0] = 1
    assert watched.death(RuntimeError("mat1 and mat2")) is None


def test_a_job_that_is_told_to_stop_as_a_whole_stops_in_order(tiny, often, monkeypatch):
    """A batch system signals every process: workers die before the first one can act."""
    config = dataclasses.replace(tiny, num_workers=2, sup_epochs=100)
    data, append = train.prepare(config), progress.append_row

    def told(path, row):
        append(path, row)
        if row["epoch"] == 3:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(progress, "append_row", told)
    before = signal.signal(signal.SIGTERM, commands._end)
    try:
        with pytest.raises(commands.Terminated):
            train.train_supervised(config, data)
    finally:
        signal.signal(signal.SIGTERM, before)
        commands._came.clear()
    assert list(Path("checkpoints/base").glob("last_supervised.pt"))
