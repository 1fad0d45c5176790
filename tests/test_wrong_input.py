"""What users and strangers feed: one line that names file and cure, exit 2, nothing half-written; or it is right.

The files are those of `wrong_files`; here they go through every command line and the functions of the notebook.
"""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import datasets
import slices
import train
from config import Config
from conftest import TINY, as_options, disc_slice, write_data
from model_unet import UNet
from splits import pair_files, split_problems
from utils import InputError, save_checkpoint
from volumes import open_volume
from wrong_files import IMAGES, MASKS, SPLITS, TRUTH, Attack, split_file, tiff

OPTIONS = {**TINY, "run": "r", "method": "supervised"}


@pytest.fixture
def refused(command, workplace, monkeypatch):
    """A command line must end with one line that says `what`, and leave nothing behind."""
    def check(what: str, module: str, *arguments: object, about: str = "") -> None:
        before = {p for p in workplace.rglob("*") if not p.is_dir()}
        code, _, err = command(module, *arguments)
        lines = [line for line in re.split(r"[\r\n]+", err) if line.strip() and not re.search(r"\d%\|", line)]
        assert code == 2, err
        assert len(lines) == 1, err
        assert lines[0].strip().startswith(f"error: {about}"), err
        assert re.search(what, lines[0]), err
        left = {p for p in workplace.rglob("*") if not p.is_dir()} - before
        assert not [p for p in left if p.name != ".lock"]
        assert not (workplace / "attacked").exists()
    return check


@pytest.fixture
def fine(command, monkeypatch):
    """A command line must succeed; training itself is left out."""
    monkeypatch.setattr(train, "run", lambda config, *_: train.read_slices(config) and None)

    def check(module: str, *arguments: object) -> str:
        code, out, err = command(module, *arguments)
        assert code == 0, err
        return out
    return check


# --- images ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", IMAGES)
def test_labelled_images(refused, fine, data_folder, command, case):
    write, said, _ = IMAGES[case]
    path = data_folder / datasets.IMAGES / "s_03.tif"
    path.unlink()
    write(path)
    shape = slices.read_image(path).shape if said is None else (64, 64)
    tiff(np.zeros(shape, np.uint8))(data_folder / datasets.MASKS / "s_mask_03.tif")
    options = as_options({**OPTIONS, "data": data_folder})
    code, out, err = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    assert code == 1                                        # the empty mask, or more
    assert "Traceback" not in err
    if said is None:
        fine("train", *options)
        assert not [line for line in out.splitlines() if line.startswith(f"{path}:")]
    else:
        refused(said, "train", *options)
        assert [line for line in out.splitlines() if re.search(said, line)] or "is not read" in out


@pytest.mark.parametrize("case", IMAGES)
def test_unlabelled_scans(refused, fine, data_folder, case):
    write, said, _ = IMAGES[case]
    path = data_folder / datasets.UNLABELLED / "scan_1.tif"
    path.unlink()
    write(path)
    options = as_options({**OPTIONS, "data": data_folder, "roi": None})
    if said is None or case.startswith("a folder"):
        fine("train", *options)
    else:
        refused(said, "train", *options, about=str(path))


@pytest.mark.parametrize("inside", [False, True], ids=["", "in a folder"])
@pytest.mark.parametrize("case", IMAGES)
def test_predicted_slices(refused, fine, workplace, checkpoint, case, inside):
    write, said_of_slices, said = IMAGES[case]
    folder = workplace / "scans"
    folder.mkdir()
    write(folder / "b.tif")
    if inside:
        tiff()(folder / "a.tif")
        said = "one grey slice" if case == "several pages" else None if case.startswith("a folder") else said
    source = folder if inside else folder / "b.tif"
    call = ("predict", source, "--checkpoint", checkpoint, "--device", "cpu", "--output", workplace / "out")
    if said is None:
        fine(*call)
        found = {p.name for p in (workplace / "out").glob("*.tif")}
        assert found == {p.name for p in folder.glob("*.tif") if p.is_file()}
        for name in found:
            mask = tifffile.imread(workplace / "out" / name)
            assert mask.dtype == np.uint8
            assert mask.shape == tifffile.imread(folder / name).shape
            assert {*np.unique(mask)} <= {0, 255}
    else:
        refused(said, *call, about=str(folder / "b.tif") if case != "a folder called .tif" else "")
        assert not (workplace / "out").exists()
        assert not (workplace / "out.part").exists()


@pytest.mark.parametrize("case", [case for case, (*_, said) in IMAGES.items() if said and "folder" not in case])
def test_other_command_lines(refused, workplace, case):
    IMAGES[case][0](workplace / "b.tif")
    said = f"{IMAGES[case][2]}|other values|NaN|holds complex|grey values"
    refused(said, "evaluate", "particles", workplace / "b.tif", about=str(workplace / "b.tif"))
    if not re.match("a link|a pipe", case):
        tiff(TRUTH * 255)(workplace / "t.tif")
        refused(f"{said}|shape", "evaluate", "--pred", workplace / "b.tif", "--truth", workplace / "t.tif")
    refused(f"{IMAGES[case][2]}|napari: not installed", "view", workplace / "b.tif")     # which reads when it shows


# --- masks ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", MASKS)
def test_masks(refused, fine, data_folder, command, case):
    suffix, write, said, noted = MASKS[case]
    (data_folder / datasets.MASKS / "s_mask_00.tif").unlink()
    path = data_folder / datasets.MASKS / f"s_mask_00{suffix}"
    write(path)
    code, out, _ = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    about = [line for line in out.splitlines() if line.startswith(f"{path}:")]
    assert code == bool(noted), out
    assert len(about) == bool(noted), out
    assert not noted or re.search(noted, about[0])
    options = as_options({**OPTIONS, "data": data_folder})
    if said is None:
        fine("train", *options)
    else:
        refused(said, "train", *options, about=str(path))


@pytest.mark.parametrize("case", [case for case, (_, _, said, _) in MASKS.items() if said])
@pytest.mark.parametrize("side", ["pred", "truth"])
def test_scored_masks(refused, workplace, case, side):
    suffix, write, said, _ = MASKS[case]
    for name in ("pred", "truth"):
        (workplace / name).mkdir()
        tiff(TRUTH * 255)(workplace / name / "s_1.tif")
    (workplace / side / "s_1.tif").unlink()
    write(workplace / side / f"s_1{suffix}")
    said = f"{said}|they must be of one size"
    refused(said, "evaluate", "--pred", workplace / "pred", "--truth", workplace / "truth", "--output", "t.csv")


# --- names, links, rights -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "with spaces 01.tif", "größe µm 01.tif", "断層 01.tif", "a;b,c\"d' 01.tif", "-rf 01.tif"])
def test_any_name_that_is_text(fine, command, data_folder, workplace, checkpoint, name):
    for folder in (datasets.IMAGES, datasets.MASKS):
        (old,) = (data_folder / folder).glob("*_01.tif")
        old.rename(old.with_name(name))
    assert command("datasets", "check", data_folder, "--roi", "8,72,8,72")[:2] == (
        0, f"{data_folder}: no problem found\n")
    fine("train", *as_options({**OPTIONS, "data": data_folder}))
    fine("predict", data_folder / datasets.IMAGES, "--checkpoint", checkpoint, "--device", "cpu", "--output", "out")
    fine("evaluate", "--pred", "out", "--truth", "out", "--output", "scores.csv")
    assert Path(name).stem.replace('"', '""') in (workplace / "scores.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [b"line\nbreak.tif", b"not\xfftext.tif", b"bell\x07.tif"])
def test_names_that_are_no_text(refused, data_folder, workplace, checkpoint, name):
    for folder in (datasets.IMAGES, datasets.UNLABELLED):
        path = os.fsencode(data_folder / folder) + b"/" + name
        shutil.copy(next((data_folder / folder).glob("*.tif")), path)
        said = "has line breaks or bytes that are no text in its name; rename it"
        refused(said, "train", *as_options({**OPTIONS, "data": data_folder}))
        refused(said, "datasets", "check", data_folder)
        refused(said, "predict", data_folder / folder, "--checkpoint", checkpoint, "--output", "out")
        os.remove(path)


def test_rights(refused, data_folder, workplace, checkpoint, monkeypatch):
    path, real = data_folder / datasets.IMAGES / "s_03.tif", tifffile.TiffFile

    def locked(name, *rest, **options):
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, *rest, **options)
    monkeypatch.setattr(tifffile, "TiffFile", locked)       # a superuser may read anything
    refused("Permission denied", "train", *as_options({**OPTIONS, "data": data_folder}), about=str(path))
    refused("Permission denied", "predict", path, "--checkpoint", checkpoint, "--output", "out")
    refused("Permission denied", "predict", path.parent, "--checkpoint", checkpoint, "--output", "out")


def test_outputs_that_cannot_be_written(refused, data_folder, workplace, checkpoint):
    (workplace / "file").write_text("mine")
    scan = data_folder / datasets.IMAGES / "s_03.tif"
    for output in ("file/out", "/proc/out.tif"):
        refused("check path, rights, space", "predict", scan, "--checkpoint", checkpoint, "--output", output)
    refused("check path, rights, space", "demo_data", "--output", "file/demo", "--scans", 1)
    (workplace / "runs").write_text("mine")
    refused("check path, rights, space", "train", *as_options({**OPTIONS, "data": data_folder}))
    assert (workplace / "file").read_text() == (workplace / "runs").read_text() == "mine"


# --- splits and settings --------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", SPLITS)
def test_splits(refused, data_folder, command, case):
    write, said = SPLITS[case]
    path = data_folder / "splits" / "split.json"
    path.parent.mkdir()
    write(path)
    (data_folder / datasets.UNLABELLED / "scan_1.tif").rename(data_folder / datasets.UNLABELLED / "s_01.tif")
    options = as_options({**OPTIONS, "data": data_folder, "split": "auto"})
    refused(said, "train", *options, about=str(path))
    code, out, _ = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith(f"{path}:")]


def test_a_split_from_an_editor_that_marks_its_files(fine, data_folder):
    path = data_folder / "splits" / "split.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"train": ["s_00"]}), encoding="utf-8-sig")
    fine("train", *as_options({**OPTIONS, "data": data_folder, "split": "auto"}))


@pytest.mark.parametrize(("options", "said"), [
    (["--learning-rate=1"], "unrecognized arguments: --learning-rate=1; python train.py --help lists the options"),
    (["--lr=-1"], "--lr: -1.0 is not possible"), (["--lr=nan"], "--lr: nan is not possible"),
    (["--lr=1e999"], "--lr: inf is not possible"), (["--seed=" + "9" * 5000], "--seed: '999"),
    (["--run=../x"], "--run: '../x' is not possible"), (["--run="], "--run: '' is not possible"),
    (["--run=a\nb"], "--run: 'a.+nb' is not possible"), (["--patch-size=1000000000000"], "--patch-size"),
    (["--profile=huge"], "--profile: invalid choice"), (["--data"], "--data: expected one argument"),
    (["--data=\0"], "no .tif slice|null|embedded"), (["--verify"], "--verify: expected one argument"),
    (["--verify", "nowhere"], "nowhere/config.json: cannot be read"),
    (["--base-channels=1000000"], "--base-channels")])
def test_settings(refused, data_folder, options, said):
    refused(said, "train", *as_options({**OPTIONS, "data": data_folder}), *options)


@pytest.mark.parametrize(("content", "said"), [
    ("{", "config.json: cannot be read as JSON"), ("[]", "config.json: holds a list"),
    ('{"lr": "fast"}', "was made with other settings"), ('{"unknown": 1}', "was made with other settings")])
def test_a_run_whose_settings_are_damaged(refused, data_folder, workplace, content, said):
    (workplace / "runs" / "r").mkdir(parents=True)
    (workplace / "runs" / "r" / "config.json").write_text(content)
    refused(said, "train", *as_options({**OPTIONS, "data": data_folder}), "--resume")


# --- checkpoints ----------------------------------------------------------------------------------------------

def stored(**changes: object) -> dict:
    """What a checkpoint says of itself."""
    return {"config": {**dataclasses.asdict(Config(patch_size=32)), **changes}}


def odd_weights(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**UNet(2).state_dict(), **changes}


CHECKPOINTS = {
    "missing": (lambda p: None, "no such checkpoint"),
    "a folder": (lambda p: p.mkdir(), "no such checkpoint"),
    "empty": (lambda p: p.touch(), "not a checkpoint of this project"),
    "a pickle that runs code": (lambda p: torch.save({"a": Attack()}, p), "not a checkpoint of this project"),
    "of another project": (lambda p: save_file({"a": torch.zeros(2)}, p), "not a checkpoint of this project"),
    "a header of 8 EB": (lambda p: p.write_bytes(b"\xff" * 7 + b"\x7f{}"), "not a checkpoint of this project"),
    "settings that are no object": (lambda p: save_file(UNet(2).state_dict(), p, {"about": "[]"}), "no object"),
    "no settings": (lambda p: save_checkpoint(p, UNet(2).state_dict(), {}), "says not how it was trained"),
    "a window that is no number": (lambda p: save_checkpoint(p, UNet(2).state_dict(), stored(patch_size="a")),
                                   "--patch-size: 'a' is not possible"),
    "a window that cannot be": (lambda p: save_checkpoint(p, UNet(2).state_dict(), stored(patch_size=33)),
                                "--patch-size 33: must be a multiple"),
    "percentiles the wrong way": (lambda p: save_checkpoint(p, UNet(2).state_dict(), stored(percentiles=[9, 1])),
                                  "--percentiles"),
    "layers missing": (lambda p: save_checkpoint(p, {"down1.0.weight": torch.zeros(2, 1, 3, 3)}, stored()),
                       "not the weights of this U-Net"),
    "layers of two widths": (lambda p: save_checkpoint(p, odd_weights(**{"down1.0.weight": torch.zeros(3, 1, 3, 3)}),
                                                       stored()), "not the weights of this U-Net"),
    "a reduction that cannot be": (lambda p: save_checkpoint(p, odd_weights(downsample=torch.tensor(10**9)), stored()),
                                   "not the weights of this U-Net"),
    "weights that are no numbers": (lambda p: save_checkpoint(p, odd_weights(**{"head.bias": torch.tensor([np.nan])}),
                                                              stored()), "its weights are not numbers"),
    "cut off": (lambda p: (save_checkpoint(p, UNet(2).state_dict(), stored()), p.write_bytes(p.read_bytes()[:-9])),
                "not a checkpoint of this project"),
    "a flipped bit": (lambda p: (save_checkpoint(p, UNet(2).state_dict(), stored()),
                                 p.write_bytes(p.read_bytes()[:-1] + b"?")), "was damaged since"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(refused, workplace, case):
    write, said = CHECKPOINTS[case]
    path = workplace / "best.safetensors"
    write(path)
    tiff()(workplace / "a.tif")
    refused(said, "predict", workplace / "a.tif", "--checkpoint", path, "--device", "cpu", "--output", "out",
            about=str(path))


def test_a_supervised_model_of_another_width(refused, tiny):
    data = train.prepare(tiny)
    train.train_supervised(tiny, data)
    save_checkpoint(tiny.checkpoint("supervised"), UNet(3).state_dict(), stored())
    with pytest.raises(InputError, match="best_supervised.safetensors: is not of width 2"):
        train.continue_supervised(tiny, data)


# --- zarr -----------------------------------------------------------------------------------------------------

def zarr_with(path: Path, change, **options: object) -> None:
    """A zarr array of version 2 whose metadata are changed."""
    zarr.create_array(path, data=np.stack([disc_slice(0)[0]] * 2), chunks=(1, 64, 64), zarr_format=2, **options)
    about = json.loads((path / ".zarray").read_text())
    change(about)
    (path / ".zarray").write_text(json.dumps(about))


ZARRS = {
    "pickles": (lambda p: zarr_with(p, lambda a: a.update(filters=[{"id": "pickle", "protocol": 5}])), "pickle"),
    "objects": (lambda p: zarr_with(p, lambda a: a.update(dtype="|O", filters=[{"id": "pickle"}], fill_value=None)),
                "pickle|cannot be read"),
    "text": (lambda p: zarr_with(p, lambda a: a.update(dtype="<U4", fill_value="")), "holds .* values|cannot be read"),
    "chunks of 16 GB": (lambda p: zarr_with(p, lambda a: a.update(chunks=[2**20, 64, 64])), "has chunks of"),
    "10¹² slices": (lambda p: zarr_with(p, lambda a: a.update(shape=[10**12, 64, 64])), "claims to have the shape"),
    "slices of 4 TB": (lambda p: zarr_with(p, lambda a: a.update(shape=[2, 10**6, 10**6])), "claims to have the"),
    "negative shape": (lambda p: zarr_with(p, lambda a: a.update(shape=[-2, 64, 64])), "cannot be read|has axes"),
    "no metadata": (lambda p: (p.mkdir(), (p / ".zarray").write_text("{")), "cannot be read as zarr"),
    "channels": (lambda p: zarr.create_array(p, data=np.zeros((3, 8, 8, 2), np.uint8), zarr_format=3,
                                             dimension_names=["z", "y", "x", "c"]), "one grey channel"),
    "a chunk cut off": (lambda p: (zarr_with(p, lambda a: None), (p / "1.0.0").write_bytes(b"\x02\x01")),
                        "slice 1: cannot be read"),
    "a group": (lambda p: zarr.create_group(p).create_array("a", shape=(2, 8, 8), dtype="u1"), "without OME-Zarr"),
}


@pytest.mark.parametrize("case", ZARRS)
def test_zarrs(refused, workplace, checkpoint, case):
    write, said = ZARRS[case]
    path = workplace / "v.zarr"
    write(path)
    call = ("predict", path, "--checkpoint", checkpoint, "--device", "cpu", "--output")
    refused(said, *call, workplace / "out.zarr", about=str(path))
    refused(f"{said}|other values", "evaluate", "particles", path, about=str(path))


# --- the functions of the notebook ----------------------------------------------------------------------------

def test_notebook_functions_raise_one_line(data_folder, workplace, checkpoint):
    path = data_folder / datasets.IMAGES / "s_03.tif"
    IMAGES["cut off in the pixels"][0](path)
    config = Config(**{**OPTIONS, "data": str(data_folder)})
    assert [p for p in datasets.check_data(data_folder, config.roi) if "cannot be read" in p]
    for call in (lambda: train.prepare(config), lambda: datasets.load_data(data_folder),
                 lambda: open_volume(path).read(0)):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: cannot be read [^\n]*$"):
            call()


# --- fuzzing --------------------------------------------------------------------------------------------------

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.fuzz
@FUZZ
@given(st.sampled_from([c for c, (_, said, _) in IMAGES.items() if said is None and c != "long and narrow"]
                       + [c for c, (_, _, said, _) in MASKS.items() if said is None]),
       st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8), st.floats(0, 1.5))
def test_damaged_bytes_are_read_or_refused(tmp_path, case, changes, kept):
    """Any change of any byte, any loss of the end: an array of two axes, or one line."""
    suffix, write = (".tif", IMAGES[case][0]) if case in IMAGES else MASKS[case][:2]
    path = tmp_path / f"a{suffix}"
    path.unlink(missing_ok=True)
    write(path)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[:int(kept * len(content))])
    for read in (slices.read_array, slices.read_image, slices.read_mask, lambda p: open_volume(p).read(0)):
        try:
            found = read(path)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert found.ndim == 2
            assert found.size


@pytest.mark.fuzz
@FUZZ
@given(st.binary(max_size=300), st.sampled_from([".tif", ".png", ".npy"]), st.sampled_from([
    b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", b"\x89PNG\r\n\x1a\n",
    b"\x93NUMPY\x01\0", b"\x93NUMPY\x02\0"]))
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix, start):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(start + content)
    try:
        assert slices.read_array(path).ndim == 2
    except InputError as error:
        assert str(path) in str(error)


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))


@pytest.mark.fuzz
@FUZZ
@given(st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), JSON | st.lists(st.sampled_from("abc"))))
def test_any_split_is_taken_or_refused(tmp_path, content):
    path = tmp_path / "split.json"
    split_file(content)(path)
    problems = split_problems(json.loads(path.read_text()), ["a", "b"], ["b"])
    if not problems:
        assert set(content) <= {"train", "val", "test"}
        stems = [stem for part in content.values() for stem in part]
        assert len(set(stems)) == len(stems)
        assert set(stems) <= {"a", "b"}
        assert "b" not in [*content.get("val", []), *content.get("test", [])]
        assert content["train"]


@pytest.mark.fuzz
@FUZZ
@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), max_size=5, unique=True),
       st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), max_size=5, unique=True))
def test_any_names_are_paired_or_reported(images, masks):
    images, masks = [Path("i") / f"{n}.tif" for n in images], [Path("m") / f"{n}.png" for n in masks]
    pairs, problems = pair_files(images, masks)
    assert set(pairs) <= set(images)
    assert len(problems) >= len(set(images) - set(pairs))
    for image, mask in pairs.items():
        assert mask in masks
        assert image.stem == mask.stem or slices.natural_key(image.stem)


def test_the_corpus_is_large():
    assert len(IMAGES) + len(MASKS) + len(SPLITS) + len(CHECKPOINTS) + len(ZARRS) >= 120
    assert write_data                                       # what all of them are put into
