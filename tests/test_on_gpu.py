"""What is to be measured on a GPU, on a CPU in miniature: it runs, and the most important results come first."""

import json
import subprocess
import sys

import pytest
import torch

import report
import train
from benchmarks import first_minutes, full_run, limits
from conftest import ROOT, TINY, as_options
from runtime import progress
from training import batches


@pytest.mark.slow
def test_the_whole_script_runs_in_miniature(tmp_path):
    dest = tmp_path / "dest"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "on_gpu.sh", dest, sys.executable, "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert {path.name for path in dest.iterdir()} == {
        "first_minutes.json",
        "classic.json",
        "best.json",
        "races.json",
        "log.txt",
    }
    first = json.loads((dest / "first_minutes.json").read_text())
    names = list(first)
    assert not [name for name, values in first.items() if "failed" in values]
    order = [
        next(i for i, name in enumerate(names) if name.startswith(kind))
        for kind in ("device", "beside the CPU", "ceilings", "step", "images", "candidate")
    ]
    assert order == sorted(order)  # most important first
    for name in ("classic", "best"):
        run = json.loads((dest / f"{name}.json").read_text())
        assert set(full_run.PHASES.values()) < set(run["phases"])
        for phase in full_run.PHASES.values():
            assert {"steps", "waiting for batches", "validation"} <= set(run["parts"][phase])
    assert not list(tmp_path.glob("runs")) + list(tmp_path.glob("checkpoints"))
    races = json.loads((dest / "races.json").read_text())
    assert {row["race"] for row in races["table"]} == {"Mean Teacher step alone", "image"}


def test_without_a_destination_the_script_says_how_it_is_called(tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "on_gpu.sh"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "bash benchmarks/on_gpu.sh DEST [PYTHON] [cpu]" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["file/dest"], "file/dest: cannot be written; choose another DEST"),
        (["dest", "no/python"], "no/python: no such program"),
        (["dest", "bare"], "bare: has no torch"),
        (["dest", sys.executable, "tpu"], "tpu: the third word is cpu, or left out"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(tmp_path, words, message):
    (tmp_path / "file").write_text("")
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    words = [str(bare) if word == "bare" else word for word in words]
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "on_gpu.sh", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "dest" / "log.txt").exists()


@pytest.mark.slow
def test_the_first_minutes_need_little_installed():
    """As on a machine without albumentations, zarr, imagecodecs and Accelerate."""
    code = (
        "import sys\n"
        "for name in ('albumentations', 'zarr', 'imagecodecs', 'accelerate', 'jinja2', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import benchmarks.first_minutes"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_measurement_that_fails_is_named_and_the_others_are_kept(tmp_path):
    results = first_minutes.Results(tmp_path / "r.json")

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory\nin two lines")

    results.attempt("one", lambda: {"ms": 1.5})
    results.attempt("two", fails)
    results.attempt("three", lambda: {"ms": 2.5})
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "one": {"ms": 1.5},
        "two": {"failed": "OutOfMemoryError: CUDA out of memory in two lines"},
        "three": {"ms": 2.5},
    }


def test_a_device_that_computes_something_else_is_seen(monkeypatch):
    bench = first_minutes.Bench(torch.device("cpu"), width=2, patch=32)
    same = first_minutes.parity(bench, "float32")
    assert set(same.values()) == {"0.0e+00"}
    real, calls = first_minutes.ema_update, []

    def update(teacher, student, alpha):
        calls.append(1)
        real(
            teacher, student, alpha if len(calls) == 1 else 0.51
        )  # the second one is that of the device

    monkeypatch.setattr(first_minutes, "ema_update", update)
    other = first_minutes.parity(bench, "float32")
    assert (other["losses"], other["gradient"]) == ("0.0e+00", "0.0e+00")
    assert float(other["average"]) > 1e-5


def test_a_step_is_compared_with_its_floor():
    bench = first_minutes.Bench(
        torch.device("cpu"), width=2, patch=32, batches=(2,), steps=2, rounds=1
    )
    config = bench.config("best", batch_size=2)
    assert (config.patch_size, config.downsample) == (128, 4)
    slow, fast = (limits.Ceilings(rate, 1e15, 4) for rate in (1e9, 1e12))
    result = [
        first_minutes.time_step(bench, config, True, ceilings)["× floor"]
        for ceilings in (slow, fast)
    ]
    assert result[1] > 100 * result[0] > 0


def test_time_is_counted_once(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(full_run.time, "perf_counter", lambda: now[0])
    clock = full_run.Clock(tmp_path / "f.json", {"a": 1})

    def work(seconds):
        now[0] += seconds

    def phase():
        work(1)
        inner()
        work(2)
        next(items)

    inner = clock.timed(lambda: work(10), "validation")
    items = clock.timed_items(lambda: iter_of(work), "loading")()
    clock.timed_phase(phase, "supervised", "steps")()
    assert json.loads((tmp_path / "f.json").read_text()) == {
        "a": 1,
        "seconds": 18.0,
        "phases": {"supervised": 18.0},
        "parts": {"supervised": {"validation": 10.0, "loading": 5.0, "steps": 3.0}},
    }


def iter_of(work):
    while True:
        work(5)
        yield 1


@pytest.mark.parametrize("option", ["--lr", "--speed=3"])
def test_wrong_options_of_a_timed_run(command, tmp_path, option):
    code, _, err = command("benchmarks.full_run", "--output", tmp_path / "f.json", option)
    assert code == 2
    assert err.startswith(f"error: {option}: no such option")
    assert not (tmp_path / "f.json").exists()


@pytest.fixture
def unwatched(monkeypatch):
    """What a timed run replaces is put back."""
    watched = [(train, name) for name in (*full_run.PHASES, *full_run.REST)]
    watched += [(train, "train_pixel_classifier"), (train, "validate"), (report, "write_report")]
    watched += [(progress, "save_state"), (progress, "save_checkpoint"), (batches, "make_loader")]
    for where, name in watched:
        monkeypatch.setattr(where, name, getattr(where, name))


@pytest.mark.slow
def test_where_the_time_of_a_run_of_auto_goes(
    workplace, data_folder, few_steps, unwatched, command
):
    settings = {**TINY, "method": "auto", "data": data_folder, "run": "timed", "patch_size": 64}
    options = as_options(settings)
    code, _, err = command("benchmarks.full_run", "--output", "f.json", "--minutes", 0.01, *options)
    assert code == 0, err
    timed = json.loads((workplace / "f.json").read_text())
    assert {"finding the recipe", *full_run.PHASES.values(), "tables"} <= set(timed["phases"])
    assert timed["parts"]["supervised"]["pixel classifier"] > 0
    # The settings are those that were chosen.
    chosen = json.loads((workplace / "runs" / "timed" / "config.json").read_text())
    assert timed["settings"]["steps_per_epoch"] == chosen["steps_per_epoch"]


@pytest.mark.parametrize(
    "options", [["--minutes=1", "--method=best"], ["--profile=cpu", "--method=auto"]]
)
def test_minutes_and_profile_of_a_timed_run_are_of_different_methods(command, tmp_path, options):
    code, _, err = command("benchmarks.full_run", "--output", tmp_path / "f.json", *options)
    assert code == 2
    assert err.startswith(f"error: {options[0].partition('=')[0]}: has ")


def test_a_timed_run_that_is_refused_leaves_earlier_seconds(
    workplace, data_folder, few_steps, unwatched, command
):
    (workplace / "f.json").write_text("earlier")
    settings = {**TINY, "method": "auto", "data": data_folder, "run": "r", "patch_size": 64}
    (workplace / "checkpoints" / "r").mkdir(parents=True)
    (workplace / "checkpoints" / "r" / "best_supervised.safetensors").write_text("of another run")
    options = as_options(settings)
    code, _, err = command("benchmarks.full_run", "--output", "f.json", *options)
    assert code == 2, err
    assert "holds weights of another run" in err
    assert (workplace / "f.json").read_text() == "earlier"
