"""Batches: which slices in which order, whatever workers do, and what is said when one dies."""

import dataclasses
import faulthandler
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from conftest import ROOT, TINY, as_options, labelled
from conftest import EasyViews as Views
from runtime import command_line, loaders, progress
from runtime.loaders import LoaderOptions
from runtime.messages import InputError


def epoch_of(num_workers: int, seed: int = 0, start: int = 0, batches: int = 4) -> torch.Tensor:
    loader = loaders.make_loader(
        Views(labelled(), 32), LoaderOptions(2, [seed], num_workers), start
    )
    return torch.stack(
        [
            torch.cat([batch["weak"], batch["strong"], batch["mask"]])
            for batch, _ in zip(loader, range(batches), strict=False)
        ]
    )


def test_epochs_differ_and_a_seed_gives_them_again_with_and_without_workers():
    two = epoch_of(num_workers=2, batches=4)  # two passes over four slices, two slices a batch
    assert not torch.equal(two[:2], two[2:])
    assert (
        len({tuple(view.flatten().tolist()) for view in two[:, :2].flatten(0, 1)}) == 8
    )  # every weak view is new
    assert torch.equal(two, epoch_of(num_workers=2))
    assert torch.equal(two, epoch_of(num_workers=0))
    assert not torch.equal(two, epoch_of(num_workers=2, seed=1))
    assert torch.equal(two[2:], epoch_of(num_workers=0, start=2, batches=2))  # going on at batch 2


def test_draws_pass_over_every_slice():
    draws = iter(loaders.Draws(5, LoaderOptions(1, [0])))
    passes = [[next(draws)[0] for _ in range(5)] for _ in range(4)]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert len({tuple(p) for p in passes}) > 1


@pytest.mark.parametrize("start", [0, 5])
def test_the_slices_of_a_batch_are_known_without_making_it(start):
    made, views = [], Views(labelled(5), 32)
    views.__class__ = type(
        "Noting",
        (Views,),
        {"__getitem__": lambda self, key: made.append(key[0]) or Views.__getitem__(self, key)},
    )
    loader = loaders.make_loader(views, LoaderOptions(2, [3]), start)
    for number in range(start, start + 4):
        made.clear()
        next(loader)
        assert loaders.drawn(5, 2, [3], number) == made


# --- how many processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(16, 1, 4), (8, 1, 4), (4, 1, 2), (1, 1, 1), (16, 4, 2)]
)
def test_a_gpu_gets_as_many_workers_as_the_cores_that_a_job_may_use_allow(
    monkeypatch, cores, processes, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(loaders, "QUOTA", Path("none"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loaders.choose_workers(-1, torch.device("cuda")) == expected
    assert loaders.choose_workers(-1, torch.device("cpu")) == 0
    assert loaders.choose_workers(7, torch.device("cuda")) == 7


@pytest.mark.parametrize("stated", ["0", "abc", "", "-2"])
def test_strange_sizes_of_a_job_count_as_one_process(monkeypatch, stated):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", stated)
    assert loaders.loaders_here() == 2
    assert loaders.shared_memory() >= 0


def test_shared_memory_that_cannot_be_written_gets_no_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(loaders, "SHM", tmp_path / "none")
    assert loaders.shared_memory() == 0
    assert next(loaders.make_loader(Views(labelled(), 32), LoaderOptions(2, [0], 2)))[
        "weak"
    ].shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_a_container_that_gets_a_share_of_all_cores_uses_no_more(
    monkeypatch, tmp_path, quota, expected
):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(loaders, "QUOTA", tmp_path / "cpu.max")
    assert loaders.usable_cores() == expected


@pytest.mark.parametrize(
    ("room", "expected"),
    [(10, (4, 2)), (9, (4, 1)), (6, (4, 1)), (5, (3, 1)), (4, (2, 1)), (3, (1, 1)), (2, (0, 0))],
)
def test_no_more_is_prefetched_than_shared_memory_holds(room, expected):
    workers, prefetch = loaders.fit_workers(4, 1000, room * 1000 + 500)
    assert (workers, prefetch) == expected
    assert workers == 0 or (workers * prefetch + 2) * 1000 <= room * 1000 + 500


def test_an_item_is_as_large_as_it_says():
    for views in (
        Views(labelled(), 32),
        Views(labelled(), 64, downsample=2, strong_views=2, has_weak_view=False),
    ):
        assert views.item_bytes == sum(tensor.nbytes for tensor in views[0, 0].values())


COUNTED = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from runtime import loaders
torch.set_num_threads(1)
started, real = [], loaders.DataLoader
def counted(*arguments, **options):
    started.append(options["num_workers"])
    return real(*arguments, **options)
loaders.DataLoader = counted
"""
TRAIN = """
import train
from runtime import command_line
try:
    command_line.run_command_line(train.main)
finally:
    print("workers", started[2:])                   # after those of the figure of the views
"""
LARGE_BATCHES = """
import itertools
from conftest import EasyViews as Views, labelled
views = Views(labelled(2, (1100, 1100)), 1024, geometry={{"rotation": 0.0}}, intensity={{"blur_p": 0.0}})
{change}
for batch in itertools.islice(loaders.make_loader(views, loaders.LoaderOptions(2, [0], 4)), 9):
    assert batch["weak"].shape == (2, 1, 1024, 1024)
print("workers", started)
"""


def in_small_shared_memory(
    code: str, *arguments: str, cwd: Path, **names: str
) -> subprocess.CompletedProcess:
    """Run Python code in a mount namespace of its own, whose /dev/shm has 64 MB as that of a container."""
    inside = 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"'
    code = (COUNTED + code).format(root=str(ROOT), **names)
    return subprocess.run(
        [
            "unshare",
            "-m",
            "bash",
            "-c",
            inside,
            "bash",
            sys.executable,
            "-W",
            "ignore",
            "-c",
            code,
            *arguments,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Where this process may make mount namespaces, and mount in them."""
    try:
        mounted = subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if mounted.returncode:
        pytest.skip("may not mount in a namespace of its own")


@pytest.mark.slow
def test_best_trains_with_four_workers_in_the_shared_memory_of_a_container(
    namespaces, data_folder, tmp_path
):
    options = {
        **TINY,
        "data": data_folder,
        "run": "small",
        "num_workers": 4,
        "sup_epochs": 1,
        "ssl_epochs": 1,
        "method": "best",
        "patch_size": 768,
        "downsample": 4,
        "tta": False,
        "batch_size": 4,
    }
    done = in_small_shared_memory(TRAIN, *as_options(options), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "workers [4, 4, 4, 4]" in done.stdout  # three phases, the last with two loaders
    assert "/dev/shm" not in done.stderr


@pytest.mark.slow
def test_batches_that_do_not_fit_into_shared_memory_get_fewer_workers(namespaces, tmp_path):
    """A batch is 6 MB; four workers would have eight of them ready."""
    done = in_small_shared_memory(LARGE_BATCHES, cwd=tmp_path, change="")
    assert done.returncode == 0, done.stderr
    assert "workers [2]" in done.stdout
    assert (
        "/dev/shm is too small for the batches of 4 loader processes: 2 of them are started"
        in done.stderr
    )


@pytest.mark.slow
def test_shared_memory_that_is_full_is_an_error_with_a_cure(namespaces, tmp_path):
    """Another program filled it just after somebody looked how much is free."""
    change = (
        "open('/dev/shm/of_others', 'wb').write(bytes(60 << 20))\n"
        "loaders.shared_memory = lambda: float('inf')"
    )
    done = in_small_shared_memory(LARGE_BATCHES, cwd=tmp_path, change=change)
    assert done.returncode == 1
    assert re.search(
        r"InputError: /dev/shm: the shared memory .* is full; take --num-workers 0", done.stderr
    )


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
    loader = loaders.make_loader(Trouble(fail), LoaderOptions(1, [0], workers))
    with pytest.raises(
        InputError, match=r"^s2\.tif: no views can be made of it \(MemoryError: no more\)$"
    ):
        list(itertools.islice(loader, 9))


@pytest.fixture
def often(monkeypatch):
    """Torch looks for dead workers more often than every five seconds."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.3)


def test_a_dead_worker_names_its_slice(often):
    loader = loaders.make_loader(
        Trouble(lambda: os.kill(os.getpid(), signal.SIGKILL)), LoaderOptions(1, [0], 2)
    )

    def use():
        for _ in itertools.islice(loader, 9):
            time.sleep(0.01)  # the death must not come up here, where anything may happen

    with pytest.raises(
        loaders.WorkerDied, match=r"s2\.tif: a process died while it made views of this slice"
    ):
        use()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
        FileNotFoundError(2, "No such file or directory"),
    ],
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_broken_pipe_tells_of_a_death_that_is_not_seen_yet(error):
    """A worker that dies in the act of handing over a batch."""
    watched = loaders.Watched(Views(labelled(), 32), 2)
    workers = [
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(wait,))
        for wait in (60, 0.3)
    ]
    for i, worker in enumerate(workers):
        worker.start()
        watched.at[2 * i : 2 * i + 2] = worker.pid, i + 1
    assert re.match(
        r"s2\.tif: a process died while it made views of this slice \(", str(watched.death(error))
    )
    workers[0].kill()
    workers[0].join()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_worker_that_a_bus_error_killed_found_no_shared_memory():
    watched = loaders.Watched(Views(labelled(), 32), 1)

    def touch_what_is_not_there():
        faulthandler.disable()  # of pytest: it would print where
        os.kill(os.getpid(), signal.SIGBUS)

    worker = multiprocessing.get_context("fork").Process(target=touch_what_is_not_there)
    worker.start()
    watched.remember_processes()
    watched.at[:2] = worker.pid, 3
    worker.join()
    result = watched.death(
        RuntimeError(f"DataLoader worker (pid(s) {worker.pid}) exited unexpectedly")
    )
    assert str(result).startswith(
        "/dev/shm: the shared memory in which loader processes hand over their batches is "
    )


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_thread_that_ended_because_a_worker_died_tells_of_its_death():
    """The thread that copies batches to pinned memory may see it before the loader does."""
    watched = loaders.Watched(Views(labelled(), 32), 1)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    worker.start()
    watched.at[:2] = worker.pid, 3
    worker.join()
    assert "s3.tif: a process died" in str(
        watched.death(RuntimeError("Pin memory thread exited unexpectedly"))
    )


def test_other_errors_stay_what_they_are():
    watched = loaders.Watched(Views(labelled(), 32), 2)
    assert watched.death(EOFError()) is None  # no worker has begun
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
    before = signal.signal(signal.SIGTERM, command_line.end_command)
    try:
        with pytest.raises(command_line.Terminated):
            train.train_supervised(config, data)
    finally:
        signal.signal(signal.SIGTERM, before)
        command_line._came.clear()
    assert list(Path("checkpoints/base").glob("last_supervised.pt"))
