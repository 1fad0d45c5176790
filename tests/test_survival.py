"""Runs that are killed, told to stop, or find the disk full, and go on: the end is that of a run left in peace.

The quick part is one of everything; `make stress` runs many, and with real full disks.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, TINY, as_options, write_data

SERVER = """
import json, os, report, sys, torch, train
from runtime import command_line, files
import torch._dynamo                        # which an optimizer imports
from training import pixel_fit
torch.set_num_threads(1)
pixel_fit.STEPS = 20
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    number = os.fork()                      # a start without the seconds that imports take
    if not number:
        os.chdir(order["folder"])
        for stream in (1, 2):
            os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv = ["train.py", *order["options"]]
        try:
            if not order["page"]:
                report.write_report = str
            exec(order["first"])
            command_line.run_command_line(train.main)
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(stop.code)
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(99)
    print(number, flush=True)
"""
LONGER = {
    **TINY,
    "sup_epochs": 10,
    "ssl_epochs": 10,
    "steps_per_epoch": 3,
    "weight_average": 0.9,
    "cutmix_p": 0.5,
    "schedule": "one_cycle",
    "pixel_classifier": True,
    "run": "r",
}
KILL = "os.kill(os.getpid(), 9)"
MID_WRITE = {  # what a process does that dies at a bad moment; % is the number of calls before
    "written, not named": "real, left = files.to_disk, [%d]\n"
    f"def dies(path):\n left[0] -= 1\n real(path) if left[0] >= 0 else {KILL}\n"
    "files.to_disk = dies",
    "half written": "import pathlib\nreal, left = pathlib.Path.write_bytes, [%d]\n"
    "def dies(path, content):\n left[0] -= 1\n if left[0] < 0:\n"
    f"  real(path, content[:len(content) // 2])\n  {KILL}\n real(path, content)\n"
    "pathlib.Path.write_bytes = dies",
    "between two names": "real, left = os.replace, [%d]\n"
    f"def dies(a, b):\n real(a, b)\n left[0] -= 1\n left[0] < 0 and {KILL}\n"
    "os.replace = dies",
}
OFTEN = "from runtime import progress\nprogress.SAVE_SECONDS = -1.0\n"  # a state after every step
AFTER_SAVING = (
    f"{OFTEN}real, left = progress.save_state, [%d]\n"
    f"def dies(*a):\n real(*a)\n left[0] -= 1\n left[0] < 0 and {KILL}\n"
    "progress.save_state = dies"
)

AT_CLOSING = (
    "from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader\n"
    "real = Loader._shutdown_workers\n"
    "def told(self):\n os.kill(os.getpid(), 15)\n real(self)\n"
    "Loader._shutdown_workers = told\nsys.argv.append('--num-workers=2')"
)


class Trainer:
    """Starts `train.py` again and again."""

    def __init__(self, data: Path, **changes: object):
        self.options = as_options({**LONGER, "data": data, **changes})
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, folder: Path, first: str = "", page: bool = False) -> int:
        """Process number of a run that begins, or goes on, in `folder`; its `page`, at the end, takes seconds."""
        folder.mkdir(exist_ok=True)
        (folder / "log.txt").write_text("")
        return self._ask(
            {
                "folder": str(folder),
                "options": [*self.options, "--resume"],
                "first": first,
                "page": page,
            }
        )

    def wait(self, number: int) -> int:
        """The exit status of a process, negative for a signal."""
        return self._ask({"wait": number})

    def run(self, folder: Path, first: str = "", page: bool = False) -> int:
        """Start, and wait."""
        return self.wait(self.start(folder, first, page))

    def _ask(self, order: dict) -> int:
        print(json.dumps(order), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def close(self) -> None:
        self.server.communicate()


def without_clock(value):
    """What a JSON file holds, but for times and what this machine is."""
    if isinstance(value, list):
        return [without_clock(part) for part in value]
    if not isinstance(value, dict):
        return value
    clock = ("seconds", "environment")
    return {key: without_clock(part) for key, part in value.items() if key not in clock}


def end_state(folder: Path) -> dict[str, str]:
    """Hash of every file that a run leaves, but for the clock."""
    result, other = {}, (".lock", "environment.json", "report.html")
    for path in sorted(p for p in folder.glob("*/r/**/*") if p.is_file() and p.name not in other):
        content = path.read_bytes()
        if path.name in ("phases.json", "summary.json"):
            timeless = without_clock(json.loads(content))
            content = json.dumps(timeless).encode()
        result[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return result


@pytest.fixture(
    scope="module", params=[0, pytest.param(2, marks=pytest.mark.stress)], ids=["", "workers"]
)
def peace(request, tmp_path_factory):
    """What starts runs, what an undisturbed one leaves, and the seconds it takes."""
    root = tmp_path_factory.mktemp("peace")
    trainer = Trainer(write_data(root / "data"), num_workers=request.param)
    trainer.run(root / "imports", "raise SystemExit(0)")
    began = time.monotonic()
    assert trainer.run(root / "whole") == 0, (root / "whole" / "log.txt").read_text()
    yield trainer, end_state(root / "whole"), time.monotonic() - began
    trainer.close()


def finish(trainer: Trainer, folder: Path, whole: dict[str, str]) -> None:
    """Let the run end in peace, and compare."""
    assert trainer.run(folder) == 0, (folder / "log.txt").read_text()
    assert end_state(folder) == whole


def test_an_undisturbed_run_leaves_what_it_should(peace):
    _, whole, _ = peace
    assert {name.split("/")[0] for name in whole} == {"checkpoints", "runs"}
    assert not [name for name in whole if "last_" in name or name.endswith(".tmp")]
    assert len(whole) == 5 + 14


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(peace, tmp_path, workers):
    trainer, whole, _ = peace
    assert trainer.run(tmp_path / "a", f"sys.argv.append('--num-workers={workers}')") == 0
    result = end_state(tmp_path / "a")
    result.pop("runs/r/config.json")  # says how many
    assert result == {
        name: digest for name, digest in whole.items() if name != "runs/r/config.json"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.stress) for n in range(1, 10))]
)
def test_sigkill_at_random_moments(peace, tmp_path, seed):
    trainer, whole, seconds = peace
    chance, killed = random.Random(seed), 0
    for _ in range(40):
        number = trainer.start(tmp_path / "a", OFTEN * (seed % 2))
        time.sleep(chance.uniform(0.1, 0.5) * seconds)
        os.kill(number, signal.SIGKILL)
        killed += trainer.wait(number) == -signal.SIGKILL
        if killed >= 8 or (tmp_path / "a" / "runs" / "r" / "summary.json").exists():
            break
    assert killed
    finish(trainer, tmp_path / "a", whole)
    print(f"survived {killed} SIGKILLs")


@pytest.mark.parametrize(
    "how",
    [
        "half written",
        *(pytest.param(how, marks=pytest.mark.slow) for how in MID_WRITE if how != "half written"),
    ],
)
@pytest.mark.parametrize(
    "calls",
    [
        (5, 12, 3, 25),
        *(pytest.param(range(n, 60, 10), marks=pytest.mark.stress) for n in range(10)),
    ],
)
def test_sigkill_in_the_middle_of_writing(peace, tmp_path, how, calls):
    trainer, whole, _ = peace
    ended = [trainer.run(tmp_path / "a", MID_WRITE[how] % count) for count in calls]
    assert how == "half written" or ended[0] == -signal.SIGKILL  # of that way there are few
    assert set(ended) <= {-signal.SIGKILL, 0}
    finish(trainer, tmp_path / "a", whole)
    print(f"survived {ended.count(-signal.SIGKILL)} SIGKILLs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls", [[2, 6, 4, 0, 3], *(pytest.param([n] * 8, marks=pytest.mark.stress) for n in range(8))]
)
def test_sigkill_after_a_state_of_the_middle_of_an_epoch(peace, tmp_path, calls):
    """Which may be that of an epoch whose steps are done, and nothing else."""
    trainer, whole, _ = peace
    assert [trainer.run(tmp_path / "a", AFTER_SAVING % count) for count in calls] == [
        -signal.SIGKILL
    ] * len(calls)
    finish(trainer, tmp_path / "a", whole)
    print(f"survived {len(calls)} SIGKILLs")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.stress) for n in range(1, 6))]
)
def test_being_told_to_stop(peace, tmp_path, number, seed):
    trainer, whole, seconds = peace
    chance, codes = random.Random(seed), []
    for _ in range(3):
        process = trainer.start(tmp_path / "a")
        time.sleep(chance.uniform(0.15, 0.45) * seconds)
        os.kill(process, number)
        codes.append(trainer.wait(process))
        log = (tmp_path / "a" / "log.txt").read_text()
        if codes[-1] == 0:
            break
        assert "Traceback" not in log
        assert log.splitlines()[-1] == "stopped; what was finished is kept"
    assert codes[0] == (143 if number == signal.SIGTERM else 130)
    assert set(codes) <= {codes[0], 0}
    finish(trainer, tmp_path / "a", whole)
    print(f"survived {codes.count(codes[0])} {number.name}s")


@pytest.mark.slow
def test_being_told_to_stop_while_the_processes_of_a_loader_end(peace, tmp_path):
    """What is raised in a destructor, as they end in one, is printed with a traceback and forgotten."""
    assert peace[0].run(tmp_path / "a", AT_CLOSING) == 143
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "stopped; what was finished is kept"


@pytest.mark.slow
@pytest.mark.parametrize("limit", [90, 170, 350])
def test_files_that_cannot_grow(peace, tmp_path, limit):
    """As on a disk that is full: a write fails. `limit` [KiB] lets some files through and others not."""
    trainer, whole, _ = peace
    code = trainer.run(
        tmp_path / "a",
        f"{OFTEN}import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit * 1024},) * 2)",
    )
    log = (tmp_path / "a" / "log.txt").read_text()
    assert code == 2, log
    assert re.fullmatch(
        r"error: \S+: File too large; check path, rights, space", log.splitlines()[-1]
    )
    assert not list((tmp_path / "a").glob("*/r/.*.tmp"))
    finish(trainer, tmp_path / "a", whole)
    print("survived 1 limits")


@pytest.mark.stress
@pytest.mark.parametrize("size", [200, 500, 800, 1200, 1600])
def test_full_disks(peace, tmp_path, size):
    """A small file system of `size` KiB, which is made larger once it was full."""
    trainer, whole, _ = peace
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("may not mount a file system")
    try:
        assert trainer.run(disk / "a", OFTEN) == 2
        log = (disk / "a" / "log.txt").read_text()
        assert not log or "No space left on device" in log.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        finish(trainer, disk / "a", whole)
        print("survived 1 full disks")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_kill_while_the_page_is_made(peace, tmp_path):
    trainer, whole, _ = peace
    assert (
        trainer.run(tmp_path / "a", f"report.make_page = lambda *_: {KILL}", page=True)
        == -signal.SIGKILL
    )
    page = tmp_path / "a" / "runs" / "r" / "report.html"
    assert not page.exists()
    assert trainer.run(tmp_path / "a", page=True) == 0, (tmp_path / "a" / "log.txt").read_text()
    assert page.read_text().endswith("</html>")
    assert len(list((page.parent / "figures").glob("*.png"))) == 11
    assert {
        name: digest
        for name, digest in end_state(tmp_path / "a").items()
        if "/figures/" not in name
    } == whole


@pytest.mark.slow
def test_a_damaged_state_costs_an_epoch_not_the_run(peace, tmp_path):
    trainer, whole, _ = peace
    assert (
        trainer.run(tmp_path / "a", OFTEN + MID_WRITE["written, not named"] % 30) == -signal.SIGKILL
    )
    (state,) = (tmp_path / "a" / "checkpoints" / "r").glob("last_*[a-z].pt")
    state.write_bytes(state.read_bytes()[:-1000])
    finish(trainer, tmp_path / "a", whole)
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "cannot be resumed from (wrong checksum); going on from before it" in log


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_goes_on(peace, tmp_path):
    trainer, whole, _ = peace
    first = trainer.start(tmp_path / "a")
    while not (tmp_path / "a" / "runs" / "r" / "config.json").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGSTOP)
    (tmp_path / "a" / "log.txt").rename(tmp_path / "a" / "first.txt")
    assert trainer.run(tmp_path / "a") == 2
    error = rf"error: runs/r: process {first} on \S+ works on this run; wait for it, or choose another --run\n$"
    assert re.search(error, (tmp_path / "a" / "log.txt").read_text())
    beside = trainer.start(tmp_path / "b")  # in a folder of its own
    os.kill(first, signal.SIGCONT)
    assert [trainer.wait(first), trainer.wait(beside)] == [0, 0], (
        tmp_path / "a" / "first.txt"
    ).read_text()
    assert end_state(tmp_path / "a") == end_state(tmp_path / "b") == whole
