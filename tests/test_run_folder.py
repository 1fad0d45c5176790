"""One process per run folder; how a run was made, whether that is still so, and states that can be damaged."""

import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from runtime import run_folder
from runtime.messages import InputError
from runtime.run_folder import RunFiles

CPU = torch.device("cpu")


def test_run_folder(tmp_path):
    folder, data = tmp_path / "runs" / "a", tmp_path / "s.tif"
    data.write_bytes(b"abc")
    run_folder.open_run(
        folder, RunFiles({"lr": 1.0, "device": "cpu"}, data={"s.tif": data}), CPU, resume=False
    )
    details = json.loads((folder / "environment.json").read_text())
    assert details["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert details["git_commit"] is None or len(details["git_commit"]) == 40
    assert details["data"] == {
        "s.tif": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    assert len(details["code"]) > 20
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        run_folder.open_run(folder, RunFiles({"lr": 1.0, "device": "cpu"}), CPU, resume=False)
    made = (folder / "environment.json").read_text()
    run_folder.open_run(
        folder, RunFiles({"lr": 1.0, "device": "cuda"}, free=("device",)), CPU, resume=True
    )
    assert (
        folder / "environment.json"
    ).read_text() == made  # who made the run, not who looked at it
    with pytest.raises(InputError, match=r"lr was 1.0, now 2.0"):
        run_folder.open_run(folder, RunFiles({"lr": 2.0, "device": "cpu"}), CPU, resume=True)
    assert json.loads((folder / "config.json").read_text())["lr"] == 1.0


def test_settings_that_were_edited_are_noticed(tmp_path):
    files = RunFiles({"lr": 1.0, "roi": None, "device": "cpu"}, free=("device",))
    run_folder.open_run(tmp_path, files, CPU, resume=False)
    path = tmp_path / "config.json"

    # Spaces, another order and free settings change nothing.
    path.write_text('{"device": "cuda", "roi":null, "lr":1.0}')
    assert not run_folder.are_settings_edited(tmp_path)
    run_folder.open_run(tmp_path, files, CPU, resume=True)

    path.write_text('{"lr": 2.0, "roi": null, "device": "cpu"}')
    assert run_folder.are_settings_edited(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: was edited since the run was begun"):
        run_folder.open_run(tmp_path, files, CPU, resume=True)
    (found,) = run_folder.differences(tmp_path, CPU, {}, {})
    assert found == f"{path}: has changed"


def test_another_machine_is_named_when_a_run_goes_on(tmp_path, capsys):
    run_folder.open_run(tmp_path, RunFiles({}), CPU, resume=False)
    details = json.loads((tmp_path / "environment.json").read_text())
    (tmp_path / "environment.json").write_text(
        json.dumps(
            {**details, "cpu_threads": 99, "packages": {**details["packages"], "numpy": "1.0"}}
        )
    )
    run_folder.open_run(tmp_path, RunFiles({}), CPU, resume=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "cpu_threads was 99, is" in lines[0]
    assert "numpy was 1.0, is" in lines[1]


def test_a_run_that_another_version_began_says_so_when_it_goes_on(tmp_path, capsys):
    run_folder.open_run(tmp_path, RunFiles({}), CPU, resume=False)
    run_folder.open_run(tmp_path, RunFiles({}), CPU, resume=True)
    assert capsys.readouterr().err == ""
    path = tmp_path / "environment.json"
    details = json.loads(path.read_text())
    path.write_text(
        json.dumps({**details, "code": {**details["code"], "views.py": "0", "report.py": "0"}})
    )
    run_folder.open_run(tmp_path, RunFiles({}), CPU, resume=True)
    err = capsys.readouterr().err
    assert (
        "was begun with another version of views.py; what is trained from here on may differ" in err
    )
    assert err.count("\n") == 1


def test_another_precision_is_named_when_a_run_goes_on(tmp_path, capsys):
    run_folder.open_run(tmp_path, RunFiles({"precision": "auto"}), CPU, resume=False)
    assert json.loads((tmp_path / "environment.json").read_text())["precision"] == "float32"
    run_folder.open_run(
        tmp_path, RunFiles({"precision": "bfloat16"}, free=("precision",)), CPU, resume=True
    )
    assert (
        "precision was float32, is bfloat16: more than the last digits" in capsys.readouterr().err
    )


# --- who works in it ------------------------------------------------------------------------------------------

OTHER = """
import sys, pathlib; from runtime import command_line, run_folder
command_line.run_command_line(lambda: run_folder.take(pathlib.Path(sys.argv[1])))
"""


def test_the_second_process_is_refused_until_the_first_has_ended(tmp_path):
    hold = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from runtime import run_folder; "
            "run_folder.take(pathlib.Path(sys.argv[1])); print('there', flush=True); "
            "sys.stdin.read()",
            str(tmp_path),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hold.stdout.readline() == "there\n"
    (tmp_path / ".state.pt.77.tmp").touch()
    with pytest.raises(
        InputError, match=f"process {hold.pid} on .* works on this run; wait for it"
    ):
        run_folder.take(tmp_path)
    assert (tmp_path / ".state.pt.77.tmp").exists()
    run_folder.take(tmp_path / "beside")  # other folders are free
    hold.kill()
    hold.communicate()
    run_folder.take(tmp_path)
    run_folder.take(tmp_path)  # as a notebook does that prepares its run again
    assert not (tmp_path / ".state.pt.77.tmp").exists()  # what the killed one left
    other = [sys.executable, "-c", OTHER, str(tmp_path)]
    result = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, (
        result.stderr
    )  # a child of the one that holds it, which waits for it
    between = f"import subprocess, sys; sys.exit(subprocess.run({other!r}).returncode)"
    assert (
        subprocess.run(
            [sys.executable, "-c", between], cwd=ROOT, stderr=subprocess.DEVNULL
        ).returncode
        == 2
    )
    run_folder.release(tmp_path)
    assert (
        subprocess.run(
            [sys.executable, "-c", between], cwd=ROOT, stderr=subprocess.DEVNULL
        ).returncode
        == 0
    )


@pytest.mark.slow
def test_a_lock_outlives_reading_the_folder(tmp_path):
    """Another open and close of the file, as a copy or an archive of the folder makes, must not free it."""
    run_folder.take(tmp_path)
    (tmp_path / ".lock").read_bytes()
    other = [sys.executable, "-c", OTHER, str(tmp_path)]
    between = f"import subprocess, sys; sys.exit(subprocess.run({other!r}).returncode)"
    assert (
        subprocess.run(
            [sys.executable, "-c", between], cwd=ROOT, stderr=subprocess.DEVNULL
        ).returncode
        == 2
    )


@pytest.mark.slow
def test_children_let_go_of_what_they_inherit(tmp_path):
    """A worker that outlives a killed parent by seconds must not keep the run from going on."""
    code = (
        "import os, sys, time, pathlib; from runtime import run_folder\n"
        "run_folder.take(pathlib.Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n run_folder.leave_to_parent()\n print('there', flush=True)\n time.sleep(60)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        assert parent.stdout.readline() == "there\n"
        parent.kill()
        parent.wait()
        run_folder.take(tmp_path)
        os.killpg(parent.pid, signal.SIGKILL)


def test_a_folder_that_was_deleted_can_be_taken_anew(tmp_path):
    run_folder.take(tmp_path / "a")
    (tmp_path / "a" / ".lock").unlink()
    run_folder.take(tmp_path / "a")
    assert (
        tmp_path / "a" / ".lock"
    ).read_text() == f"process {os.getpid()} on {run_folder.socket.gethostname()}"


# --- is it still so? ------------------------------------------------------------------------------------------


def test_differences(tmp_path):
    data, weights = {f"{n}.tif": tmp_path / f"{n}.tif" for n in "abcd"}, {"w": tmp_path / "w"}
    for path in (*list(data.values())[:3], weights["w"]):
        path.write_text("as it was")
    folder = tmp_path / "run"
    run_folder.open_run(
        folder,
        RunFiles({}, data={n: p for n, p in data.items() if n != "d.tif"}),
        CPU,
        resume=False,
    )
    (folder / "phases.json").write_text(
        json.dumps({"supervised": {"best": {}, "weights": run_folder.hashes(weights)}})
    )
    assert (
        run_folder.differences(
            folder, CPU, {n: p for n, p in data.items() if n != "d.tif"}, weights
        )
        == []
    )
    data["a.tif"].write_text("other")
    data["d.tif"].write_text("more")
    data["b.tif"].unlink()
    weights["w"].write_text("other")
    weights["unfinished"] = data["d.tif"]  # of a phase that has no hash yet
    assert run_folder.differences(folder, CPU, data, weights) == [
        f"{tmp_path}/a.tif: has changed",
        f"{tmp_path}/b.tif: is missing",
        f"{tmp_path}/d.tif: is new",
        f"{tmp_path}/w: has changed",
    ]
    (folder / "environment.json").write_text("{}")
    with pytest.raises(InputError, match="kept no hashes"):
        run_folder.differences(folder, CPU, data, weights)


# --- states ---------------------------------------------------------------------------------------------------


def saved(path, *values: float) -> None:
    for value in values:
        run_folder.save_state(
            path, {"m": linear(value)}, {"step": value, "losses": torch.ones(2, 3)}
        )


def linear(value: float) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, capsys):
    path, layer = tmp_path / "last.pt", linear(0)
    assert run_folder.restore_state(path, {"m": layer}) is None
    saved(path, 1, 2, 3)
    assert run_folder.restore_state(path, {"m": layer})["step"] == layer.weight.item() == 3
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:400] + b"?" + whole[401:], b"", b"PK\x03\x04 nonsense"):
        path.write_bytes(damaged)
        assert run_folder.restore_state(path, {"m": layer})["step"] == layer.weight.item() == 2
        assert (
            "last.pt: cannot be resumed from (wrong checksum); going on from before it"
            in capsys.readouterr().err
        )
    (tmp_path / "last.before.pt").write_bytes(b"")
    assert run_folder.restore_state(path, {"m": layer}) is None
    run_folder.forget_state(path)
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_something_else_is_an_error(tmp_path):
    saved(tmp_path / "last.pt", 1)
    with pytest.raises(InputError, match=r"last\.pt: is a state of something else .* delete it"):
        run_folder.restore_state(tmp_path / "last.pt", {"m": torch.nn.Linear(2, 2)})


class Attack:
    """Unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_state_is_run(tmp_path, capsys):
    import hashlib
    import io

    attack = tmp_path / "was_here"
    stream = io.BytesIO()
    torch.save({"state": Attack(attack)}, stream)
    for content in (stream.getvalue(), pickle.dumps(Attack(attack))):
        (tmp_path / "last.pt").write_bytes(hashlib.sha256(content).digest() + content)
        assert run_folder.restore_state(tmp_path / "last.pt", {"m": linear(0)}) is None
        assert "cannot be resumed from" in capsys.readouterr().err
        assert not attack.exists()
    pickle.loads(pickle.dumps(Attack(attack)))  # the attack would work
    assert attack.exists()


def test_a_full_disk_keeps_the_state_before(tmp_path, monkeypatch):
    path, layer = tmp_path / "last.pt", linear(0)
    saved(path, 1, 2)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saved(path, 3)
    monkeypatch.undo()
    assert run_folder.restore_state(path, {"m": layer})["step"] == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "kept", [3, {}, {"epoch": 1, "val_dice": "0.9"}, {"epoch": 1, "val_dice": 5}]
)
def test_scores_of_a_phase_that_no_run_writes_are_refused(tmp_path, kept):
    phases = {"supervised": {"best": {"supervised": kept}}}
    (tmp_path / "phases.json").write_text(json.dumps(phases))
    with pytest.raises(InputError, match="supervised is not what a run writes"):
        run_folder.read_phases(tmp_path)
    phases["supervised"]["best"]["supervised"] = {"epoch": 1, "val_dice": None}
    (tmp_path / "phases.json").write_text(json.dumps(phases))
    assert run_folder.read_phases(tmp_path) == phases
