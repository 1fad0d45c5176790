"""Outputs appear whole, never in the place of others, and belong to their input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

import predict
from conftest import ROOT, disc_slice
from runtime import files
from runtime.files import write_json
from volumes import outputs

KINDS = ("--probabilities", "--uncertainty")


@pytest.fixture
def grey() -> np.ndarray:
    """Nine slices, the first blank."""
    grey = np.stack([disc_slice(i, (40, 48))[0] for i in range(9)])
    grey[0] = 0
    return grey


def write_zarr(path: Path, grey: np.ndarray) -> Path:
    array = zarr.create_array(path, shape=grey.shape, chunks=(1, *grey.shape[1:]), dtype=grey.dtype)
    array[...] = grey
    return path


def write_family(folder: Path, family: str, grey: np.ndarray) -> Path:
    """The slices as a TIFF stack, a zarr array or a folder of files."""
    if family == "zarr":
        return write_zarr(folder / "in.zarr", grey)
    if family == "tif":
        tifffile.imwrite(folder / "in.tif", grey, photometric="minisblack")
        return folder / "in.tif"
    (folder / "in").mkdir()
    for i, one in enumerate(grey):
        tifffile.imwrite(folder / "in" / f"s{i}.tif", one)
    return folder / "in"


@pytest.fixture
def stack(tmp_path, grey) -> Path:
    tifffile.imwrite(tmp_path / "stack.tif", grey, photometric="minisblack")
    return tmp_path / "stack.tif"


@pytest.fixture
def apply(command, checkpoint, monkeypatch):
    """`predict.py` in blocks of two slices: (exit status, standard error)."""
    monkeypatch.setattr("volumes.blocks.BLOCK", 2)
    return lambda *arguments: command(
        "predict", *arguments, "--checkpoint", checkpoint, "--device", "cpu"
    )[::2]


def test_a_prediction_in_another_precision_is_another_one(apply, stack, tmp_path):
    out, settings = tmp_path / "m.tif", tmp_path / "m.tif.json"
    assert apply(stack, "--output", out)[0] == 0
    assert json.loads(settings.read_text())["settings"]["precision"] == "float32"
    code, err = apply(stack, "--output", out, "--precision", "bfloat16")
    assert code == 2
    assert (
        "m.tif: exists, and was not made from this input with these settings (precision was float32, is bf"
        in err
    )
    assert apply(stack, "--output", out, "--precision", "float32") == (0, "")


def test_an_interrupted_prediction_does_not_go_on_in_another_precision(
    apply, stack, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert apply(stack, "--output", tmp_path / "m.tif")[0] == 130
    code, err = apply(stack, "--output", tmp_path / "m.tif", "--precision", "bfloat16")
    assert code == 2
    assert (
        "was begun with other settings or input (precision was float32, is bfloat16); give what it was begun"
        in err
    )
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == 0


def test_what_an_earlier_version_began_goes_on_with_a_word(apply, stack, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert apply(stack, "--output", tmp_path / "m.tif")[0] == 130
    record = tmp_path / "m.tif.part" / "prediction.json"
    details = json.loads(record.read_text())
    del details["settings"]["precision"]
    record.write_text(json.dumps(details))
    code, err = apply(stack, "--output", tmp_path / "m.tif")
    assert code == 0
    assert "was begun by an earlier version, which does not say in what precision" in err
    assert "goes on in float32" in err
    assert json.loads((tmp_path / "m.tif.json").read_text())["settings"]["precision"] == "float32"


def test_what_an_earlier_version_finished_is_whole(apply, stack, tmp_path):
    """It did not say in what precision it predicted."""
    out, record = tmp_path / "m.tif", tmp_path / "m.tif.json"
    assert apply(stack, "--output", out)[0] == 0
    details = json.loads(record.read_text())
    del details["settings"]["precision"]
    record.write_text(json.dumps(details))
    before = out.stat().st_mtime_ns
    code, err = apply(stack, "--output", out)
    assert code == 0
    assert (
        "m.tif: was finished by an earlier version, which knew nothing of --precision; kept" in err
    )
    assert out.stat().st_mtime_ns == before
    assert apply(stack, "--output", out, "--threshold", 0.4)[0] == 2


def test_what_an_earlier_version_finished_is_no_answer_to_new_options(apply, stack, tmp_path):
    out, record = tmp_path / "m.tif", tmp_path / "m.tif.json"
    assert apply(stack, "--output", out)[0] == 0
    details = json.loads(record.read_text())
    del details["settings"]["outside"], details["settings"]["blank"]
    record.write_text(json.dumps(details))
    assert apply(stack, "--output", out)[0] == 0
    code, err = apply(stack, "--output", out, "--blank", "auto")
    assert code == 2
    assert "blank was not stated, is auto" in err


def test_what_a_version_with_other_windows_began_is_begun_anew(apply, stack, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert apply(stack, "--output", tmp_path / "m.tif")[0] == 130
    record = tmp_path / "m.tif.part" / "prediction.json"
    details = json.loads(record.read_text())
    del details["settings"]["outside"], details["settings"]["blank"]
    record.write_text(json.dumps(details))
    code, err = apply(stack, "--output", tmp_path / "m.tif")
    assert code == 2
    assert (
        "m.tif.part: was begun by an earlier version, which looked at slices in another way; delete it"
        in err
    )


def stop_after(monkeypatch, calls: int, name: str = "predict.predict_block") -> None:
    """Ctrl-C in the call after so many."""
    module, _, function = name.rpartition(".")
    real, done = (
        getattr(sys.modules[module] if module in sys.modules else __import__(module), function),
        [],
    )

    def stops(*arguments, **options):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(name, stops)


def test_another_volume_with_the_same_first_slice_is_another_volume(apply, stack, tmp_path, grey):
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == 0
    (tmp_path / "other").mkdir()
    tifffile.imwrite(
        tmp_path / "other" / "stack.tif", grey[[0, *range(8, 0, -1)]], photometric="minisblack"
    )
    code, err = apply(tmp_path / "other" / "stack.tif", "--output", tmp_path / "m.tif")
    assert code == 2
    assert "m.tif: exists, and was not made from this input" in err


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_slice_that_has_changed_is_noticed(
    apply, stack, tmp_path, grey, monkeypatch, interrupted
):
    if interrupted:
        stop_after(monkeypatch, 2)
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == (130 if interrupted else 0)
    monkeypatch.undo()
    grey[3] *= 1.5
    tifffile.imwrite(stack, grey, photometric="minisblack")
    code, err = apply(stack, "--output", tmp_path / "m.tif")
    assert code == 2
    assert (
        "begun with other settings or input" if interrupted else "not made from this input"
    ) in err


@pytest.mark.parametrize("name", ["m_probability.tif", "m.tif.json", "m_uncertainty.tif"])
def test_what_is_in_the_place_of_an_output_is_kept(apply, stack, tmp_path, name):
    (tmp_path / name).write_text("mine")
    code, err = apply(stack, "--output", tmp_path / "m.tif", *KINDS)
    assert code == 2
    assert name in err
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "m.tif.part").exists()


def test_an_output_that_went_missing_is_noticed(apply, stack, tmp_path):
    assert apply(stack, "--output", tmp_path / "m.tif", *KINDS)[0] == 0
    assert apply(stack, "--output", tmp_path / "m.tif", *KINDS)[0] == 0
    (tmp_path / "m_probability.tif").unlink()
    assert apply(stack, "--output", tmp_path / "m.tif", *KINDS)[0] == 2


@pytest.mark.parametrize("moves", range(5))
@pytest.mark.parametrize("family", ["tif", "zarr", "folder"])
def test_interrupted_between_the_moves(apply, tmp_path, grey, monkeypatch, moves, family):
    source = write_family(tmp_path, family, grey)
    suffix = f".{family}" if family != "folder" else ""
    assert apply(source, "--output", tmp_path / "a" / f"m{suffix}", *KINDS)[0] == 0
    out, replace, done = tmp_path / "b" / f"m{suffix}", os.replace, []

    def stops(made, path):
        if Path(path).parent in (out, out.parent):
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(path)
        replace(made, path)

    monkeypatch.setattr("volumes.outputs.os.replace", stops)
    code, _ = apply(source, "--output", out, *KINDS)
    assert code == (130 if moves < (1 if family == "folder" else 4) else 0)
    monkeypatch.undo()
    monkeypatch.setattr("volumes.blocks.BLOCK", 2)
    assert apply(source, "--output", out, *KINDS)[0] == 0
    for file in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    assert {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*")} == {
        p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*")
    }


def test_a_machine_that_is_taken_away(apply, stack, tmp_path, monkeypatch):
    """SIGTERM ends the call in order; the next one goes on."""
    assert apply(stack, "--output", tmp_path / "whole.tif")[0] == 0
    block, done = predict.predict_block, []

    def told(*arguments):
        if len(done) == 2:
            signal.raise_signal(signal.SIGTERM)
        done.append(1)
        return block(*arguments)

    monkeypatch.setattr(predict, "predict_block", told)
    code, err = apply(stack, "--output", tmp_path / "m.tif")
    assert (code, err.splitlines()[-1]) == (143, "stopped; what was finished is kept")
    assert not (tmp_path / "m.tif").exists()
    monkeypatch.setattr(predict, "predict_block", lambda *a: done.append(1) or block(*a))
    done.clear()
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == 0
    assert len(done) < 5  # of the five blocks, those that were left
    assert (tmp_path / "m.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_mistake_leaves_nothing_in_the_way(apply, stack, tmp_path):
    for options in (["--roi", "0,100,0,100"], ["--roi", "0,40,0,500"]):
        assert apply(stack, "--output", tmp_path / "m.tif", *options)[0] == 2
        assert not (tmp_path / "m.tif.part").exists()
    assert apply(stack, "--output", tmp_path / "m.tif", "--roi", "0,32,0,40")[0] == 0


def test_a_folder_of_something_else_is_kept(apply, stack, tmp_path, monkeypatch):
    part = tmp_path / "m.tif.part"
    part.mkdir()
    (part / "notes.txt").write_text("mine")
    code, err = apply(stack, "--output", tmp_path / "m.tif")
    assert code == 2
    assert "m.tif.part: holds notes.txt and does not say what it belongs to; delete it" in err
    assert (part / "notes.txt").read_text() == "mine"
    (part / "notes.txt").unlink()
    stop_after(monkeypatch, 2)
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == 130
    monkeypatch.undo()
    (part / "prediction.json").unlink()  # blocks of nobody knows what
    assert apply(stack, "--output", tmp_path / "m.tif", "--threshold", 0.1)[0] == 2
    (part / "prediction.json").write_text("")
    assert "does not say what it belongs to" in apply(stack, "--output", tmp_path / "m.tif")[1]
    (tmp_path / "n.tif.part").touch()
    assert "n.tif.part: is in the way" in apply(stack, "--output", tmp_path / "n.tif")[1]


@pytest.mark.parametrize("content", [b"", None])
def test_damaged_blocks(apply, stack, tmp_path, monkeypatch, content):
    monkeypatch.setattr(predict, "finish", lambda *_: [])
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == 0
    monkeypatch.undo()
    monkeypatch.setattr("volumes.blocks.BLOCK", 2)
    block = tmp_path / "m.tif.part" / "0000002.npz"
    stored = bytearray(block.read_bytes())
    stored[60:200] = b"\xff" * 140
    block.write_bytes(stored if content is None else content)
    code, err = apply(stack, "--output", tmp_path / "m.tif")
    assert code == 2
    assert f"{block}: is damaged" in err
    block.unlink()
    assert apply(stack, "--output", tmp_path / "m.tif")[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(files.fcntl is None, reason="no locks here")
def test_a_second_call_on_the_same_output_is_refused(apply, stack, checkpoint, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import time, predict; "
        "from volumes import blocks; blocks.BLOCK = 2; "
        "block = predict.predict_block; "
        "predict.predict_block = lambda *a: (time.sleep(1), block(*a))[1]; predict.main()"
    )
    out = tmp_path / "m.tif"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            stack,
            "--checkpoint",
            checkpoint,
            "--device",
            "cpu",
            "--output",
            out,
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        part = tmp_path / "m.tif.part"
        for _ in range(600):
            if list(part.glob("0*.npz")):
                break
            time.sleep(0.05)
        status, err = apply(stack, "--output", out)
        assert (status, "another process works on this output" in err) == (2, True)
        assert apply(stack, "--output", tmp_path / "n.tif")[0] == 0
        process.send_signal(signal.SIGKILL)
    assert apply(stack, "--output", out)[0] == 0  # the lock died with it
    assert out.read_bytes() == (tmp_path / "n.tif").read_bytes()


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("in.zarr", "m.tif", "m.tif: the input is a zarr"),
        ("stack.tif", "m.zarr", "m.zarr: the input is a TIFF"),
        ("in.zarr", "in.zarr/c/m", "would replace the input"),
        ("stack.tif", "empty.tif", "empty.tif: exists"),
        (
            "stack.tif",
            "m.png",
            "m.png: results are not written as .png; give a name that ends in .tif",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused_before_anything_is_computed(
    apply, stack, tmp_path, grey, monkeypatch, source, output, message
):
    write_zarr(tmp_path / "in.zarr", grey)
    (tmp_path / "empty.tif").mkdir()
    stop_after(monkeypatch, 0)
    monkeypatch.chdir(tmp_path)
    code, err = apply(source, "--output", output)
    assert code == 2
    assert message in err
    assert not list(tmp_path.rglob("*.part"))


def test_an_empty_folder_and_the_current_one_can_be_filled(apply, tmp_path, grey, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "here").mkdir()
    for i in range(3):
        tifffile.imwrite(tmp_path / "in" / f"a_0.{i}um.tif", grey[i + 1])
    monkeypatch.chdir(tmp_path / "here")
    assert apply("../in", "--output", ".")[0] == 0
    assert {p.name for p in (tmp_path / "here").iterdir()} == {
        "prediction.json",
        *(f"a_0.{i}um.tif" for i in range(3)),
    }


def test_names_with_dots_stay_whole():
    volume = outputs.Volume(Path("x/stack.tif"), "tiff", "ZYX", (1, 2, 3), [""], lambda _: None)
    result = outputs.targets(volume, Path("o/a_0.5um.ome.tif"), ["probability", "mask"])
    assert result == {
        "probability": Path("o/a_0.5um_probability.ome.tif"),
        "mask": Path("o/a_0.5um.ome.tif"),
    }


def test_what_is_removed_never_looks_like_a_whole(tmp_path, monkeypatch):
    part = tmp_path / "m.part"
    write_json(part / "prediction.json", {})
    monkeypatch.setattr(
        "volumes.outputs.shutil.rmtree", lambda *_, **__: None
    )  # killed before the first file is gone
    outputs.remove(part)
    assert not part.exists()


# --- Windows ----------------------------------------------------------------------------------------------------


def open_files_below(path: Path) -> list[str]:
    """Files that this process has open in a folder, or that file."""
    result = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target == str(path) or target.startswith(f"{path}/"):
            result.append(target)
    return result


@pytest.mark.parametrize("family", ["tif", "zarr", "folder"])
def test_nothing_is_renamed_or_removed_while_a_file_in_it_is_open(
    apply, tmp_path, grey, monkeypatch, family
):
    """Windows refuses that with WinError 5 (https://github.com/beeware/briefcase/issues/1780)."""

    def refusing(function):
        def call(path, *others, **options):
            for one in (path, *(other for other in others if isinstance(other, str | Path))):
                opened = open_files_below(Path(os.path.abspath(one)))
                if opened:
                    raise PermissionError(13, f"Access is denied [WinError 5]: {opened}", str(one))
            return function(path, *others, **options)

        return call

    for name in ("rename", "replace", "rmdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", refusing(shutil.rmtree))
    source = write_family(tmp_path, family, grey)
    suffix = f".{family}" if family != "folder" else ""
    for options in ((), ("--three-axes",)):
        out = tmp_path / f"m{len(options)}{suffix}"
        code, err = apply(source, "--output", out, *KINDS, *options)
        assert code == 0, err
        assert out.exists()
        assert not list(tmp_path.glob("*.part*"))
