"""Two processes do what one does: the same batches, weights and scores; every slice once; a death is an error."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import train
from config import Config
from conftest import ROOT, TINY, as_options, disc_slice, labelled
from datasets import Views, view_options
from runtime.checkpoints import load_checkpoint
from runtime.loaders import Draws, LoaderOptions, make_loader
from runtime.messages import InputError
from runtime.progress import Kept, Progress
from runtime.team import Team, join_team
from training import pixel_fit, preparation


@contextmanager
def launch(
    script: str, *arguments: object, cwd: Path, first: str = ""
) -> Iterator[subprocess.Popen]:
    """`python SCRIPT.py ARGUMENTS…` in two processes, which end with the context; `first` is run before in each.

    What a test wants to know of one process, that process writes to a file: lines of two on one pipe get mixed.
    """
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); rank = os.environ['RANK']; {first}\n"
        f"import {script}; from runtime import command_line; command_line.run_command_line({script}.main)"
    )
    (cwd / "launched.py").write_text(code)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "--",
            cwd / "launched.py",
            *map(str, arguments),
        ],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # its processes end with it, after thirty seconds the hard way
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.stdout.close()
        process.wait()


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Until it holds; an error with the output where the process ends before, or it takes two minutes."""
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.02)


# --- sharing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_parts_of_a_batch_are_the_batch(size):
    views = Views(labelled(3), view_options(Config(patch_size=32)))
    whole = make_loader(views, LoaderOptions(4, [0]), 3)
    parts = [
        make_loader(views, LoaderOptions(4, [0], rank=rank, size=size), 3) for rank in range(size)
    ]
    for _ in range(5):
        batch, shared = next(whole), [next(part) for part in parts]
        for name, tensor in batch.items():
            torch.testing.assert_close(
                torch.cat([part[name] for part in shared]), tensor, rtol=0, atol=0
            )


def test_draws_of_one_process_are_as_before():
    assert [next(d) for d in [iter(Draws(5, LoaderOptions(1, [1]), 7))] for _ in range(9)] == [
        next(d) for d in [iter(Draws(5, LoaderOptions(4, [1]), 7))] for _ in range(9)
    ]


def test_alone():
    team = join_team(torch.device("cpu"))
    assert (team.rank, team.size, team.leads, team.share([1, 2, 3]), team.tell("x")) == (
        0,
        1,
        True,
        [1, 2, 3],
        "x",
    )
    model = torch.nn.Linear(2, 2)
    assert team.wrap(model) is model
    assert team.mean({"a": 1.0}) == {"a": 1.0}
    assert Team(1, 2).share(list(range(5))) == [1, 3]
    with pytest.raises(InputError, match="--batch-size 3: cannot be shared by 2 processes"):
        Team(1, 2).part_of_batch(3)


def test_a_part_of_one_sample_has_nothing_to_be_mixed_with(tiny, monkeypatch):
    """CutMix fills the box of a view from the next one of the same process: of one view, from itself."""
    monkeypatch.setattr(preparation, "join_team", lambda device: Team(0, 2))
    with pytest.raises(
        InputError, match=r"--batch-size 2: leaves one sample to each of 2 processes, .* 4 or more"
    ):
        train.prepare(dataclasses.replace(tiny, cutmix_p=0.5))
    monkeypatch.setattr(preparation, "open_folder", lambda *_: None)
    train.prepare(tiny)  # nothing is mixed
    train.prepare(dataclasses.replace(tiny, cutmix_p=0.5, batch_size=4))


def test_processes_are_not_launched_from_a_notebook_that_has_used_the_gpu(tiny, monkeypatch):
    launched = []
    monkeypatch.setattr(
        "accelerate.notebook_launcher",
        lambda *arguments, **options: launched.append((arguments, options)),
    )
    train.launch(tiny, 3)
    assert launched == [((train.run, (tiny, False, "", None)), {"num_processes": 3})]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(
        InputError, match=r"launch: this notebook has used the GPU already, .* restart the kernel"
    ):
        train.launch(tiny, 3)
    assert len(launched) == 1


# --- two processes --------------------------------------------------------------------------------------------

HASHES = """
import atexit, train, torch
from training import pixel_fit
pixel_fit.STEPS = 20
def tell():
    import hashlib
    average = KEPT[-1][1]
    weights = torch.cat([p.flatten() for p in average.parameters()])
    with open("teacher_" + rank, "w") as file:
        file.write(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
KEPT, build = [], train.build_models
def keep(*arguments):
    KEPT.append(build(*arguments))
    return KEPT[-1]
train.build_models = keep
atexit.register(tell)
"""


@pytest.mark.parametrize(
    "method", ["mean_teacher", pytest.param("unimatch", marks=pytest.mark.slow)]
)
def test_training_in_two_processes(data_folder, workplace, command, method, monkeypatch):
    monkeypatch.setattr(pixel_fit, "STEPS", 20)
    settings = {
        **TINY,
        "data": data_folder,
        "method": method,
        "pixel_classifier": True,
        "batch_size": 4,
        "lr": 1e-5,
    }  # rounding turns few pixels
    code, _, err = command("train", *as_options({**settings, "run": "one"}))
    assert code == 0, err
    with launch(
        "train", *as_options({**settings, "run": "two"}), cwd=workplace, first=HASHES
    ) as process:
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    assert (workplace / "teacher_0").read_text() == (workplace / "teacher_1").read_text() != ""
    assert out.count("results: ") == 1
    for log in ("sup_metrics.csv", "ssl_metrics.csv"):
        one, two = (pd.read_csv(workplace / "runs" / run / log) for run in ("one", "two"))
        assert one.columns.equals(two.columns)
        if (
            method == "mean_teacher" or log == "sup_metrics.csv"
        ):  # each process draws its own dropped channels
            np.testing.assert_allclose(two, one, atol=2e-3)
    for weights in ("pixel_classifier", "supervised"):
        one, two = (
            load_checkpoint(workplace / "checkpoints" / run / f"best_{weights}.safetensors")[0]
            for run in ("one", "two")
        )
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_an_error(data_folder, workplace):
    settings = {**TINY, "data": data_folder, "batch_size": 3, "run": "odd"}
    with launch("train", *as_options(settings), cwd=workplace) as process:
        out = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert (
        "error: --batch-size 3: cannot be shared by 2 processes; choose a multiple of that" in out
    )
    assert not (workplace / "runs" / "odd").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_can_be_resumed(data_folder, workplace, command):
    settings = as_options(
        {
            **TINY,
            "data": data_folder,
            "method": "supervised",
            "batch_size": 4,
            "run": "r",
            "sup_epochs": 150,
        }
    )
    slow = (
        "from runtime import progress; progress.SAVE_SECONDS = 0.0; "
        "open('process_' + rank, 'w').write(f'{os.getpid()}\\n')"
    )
    log, number = workplace / "runs" / "r" / "sup_metrics.csv", workplace / "process_1"
    with launch("train", *settings, cwd=workplace, first=slow) as process:
        wait_for(process, lambda: log.exists() and len(log.read_text().splitlines()) > 5)
        os.kill(int(number.read_text()), signal.SIGKILL)
        out = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "SIGKILL" in out
    done = len(log.read_text().splitlines()) - 1
    assert 4 < done < 150
    shorter = [option for option in settings if not option.startswith("--sup-epochs")]
    assert command("train", *shorter, "--sup-epochs=150", "--resume")[0] == 0
    assert len(log.read_text().splitlines()) == 151


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_team_that_is_told_to_stop_saves_in_the_middle_of_an_epoch(
    data_folder, workplace, workers
):
    """The launcher signals every process of the job, those that make views as well, and does not wait for long."""
    settings = as_options(
        {
            **TINY,
            "data": data_folder,
            "method": "supervised",
            "batch_size": 4,
            "run": "r",
            "steps_per_epoch": 100_000,
            "num_workers": workers,
        }
    )
    told = (
        "import mean_teacher; real, count = mean_teacher.step_losses, []\n"
        "def counted(*a):\n count.append(1)\n len(count) == 20 and open('steps_' + rank, 'w').close()\n"
        " return real(*a)\nmean_teacher.step_losses = counted"
    )
    with launch("train", *settings, cwd=workplace, first=told) as process:
        wait_for(process, (workplace / "steps_0").exists)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        out = process.communicate(timeout=120)[0]
    assert process.returncode != 0, out
    assert time.monotonic() - began < 25  # after thirty seconds it would be killed
    assert "look at the slice" not in out
    state = Progress(Config(run="r"), Kept("supervised", workplace / "log.csv", {}, settings={}))
    state.restore(torch.device("cpu"), True, lambda: None)
    assert 19 <= state.step == len(state.losses) < 100_000, out


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--three-axes",)])
def test_every_slice_of_a_volume_is_predicted_once(checkpoint, tmp_path, command, more):
    grey = np.stack([disc_slice(i, (48, 64))[0] for i in range(11)])
    tifffile.imwrite(tmp_path / "stack.tif", grey, photometric="minisblack")
    options = (
        tmp_path / "stack.tif",
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--probabilities",
        *more,
        "--output",
    )
    assert command("predict", *options, tmp_path / "one.tif")[0] == 0
    told = (
        "import predict; from volumes import blocks; blocks.BLOCK = 2; block = predict.Blocks.write; "
        "note = open('told_' + rank, 'a', 1); "
        "predict.Blocks.write = lambda self, b, f: (note.write(f'{self.folder.name} {b.start} {len(b)}\\n'), "
        "block(self, b, f))"
    )
    with launch("predict", *options, tmp_path / "two.tif", cwd=tmp_path, first=told) as process:
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    lines = [(tmp_path / f"told_{rank}").read_text().splitlines() for rank in (0, 1)]
    for name, count in {
        "two.tif.part": 11,
        **({"rows": 48, "columns": 64} if more else {}),
    }.items():
        for rank in (0, 1):
            assert [line for line in lines[rank] if line.startswith(f"{name} ")] == [
                f"{name} {i} {min(2, count - i)}" for i in range(2 * rank, count, 4)
            ]
    probability = [tifffile.imread(tmp_path / f"{name}_probability.tif") for name in ("one", "two")]
    np.testing.assert_allclose(*probability, atol=1e-3)
    assert (
        np.mean(tifffile.imread(tmp_path / "one.tif") != tifffile.imread(tmp_path / "two.tif"))
        < 1e-3
    )
