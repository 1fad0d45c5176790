"""What users and strangers feed: one line that names file and cure, exit 2, nothing half-written; or it is right.

The files are those of `wrong_files`; here they go through every command line and the functions of the notebook.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

import train
from config import Config
from conftest import TINY, as_options, disc_slice
from runtime.messages import InputError
from slices import data_folder as folders
from slices import folder_check, reading
from volumes.reading import open_volume
from wrong_files import GREY, IMAGES, MASKS, SPLITS, TRUTH, tiff

OPTIONS = {**TINY, "run": "r", "method": "supervised"}


# --- images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", IMAGES)
def test_labelled_images(refused, fine, data_folder, command, case):
    write, said, _ = IMAGES[case]
    path = data_folder / folders.IMAGES / "s_03.tif"
    path.unlink()
    write(path)
    shape = reading.read_image(path).shape if said is None else (64, 64)
    tiff(np.zeros(shape, np.uint8))(data_folder / folders.MASKS / "s_mask_03.tif")
    options = as_options({**OPTIONS, "data": data_folder})
    code, out, err = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    assert code == 1  # the empty mask, or more
    assert "Traceback" not in err
    if said is None:
        fine("train", *options)
        assert not [line for line in out.splitlines() if line.startswith(f"{path}:")]
    else:
        refused(said, "train", *options)
        assert [line for line in out.splitlines() if re.search(said, line)] or "is not read" in out


BLANK = (
    "one pixel",
    "NaN everywhere",
    "constant",
    "black",
    "1-bit",
)  # of unlabelled scans no problem: left out


@pytest.mark.parametrize("case", IMAGES)
def test_unlabelled_scans(refused, fine, data_folder, case):
    write, said, _ = IMAGES[case]
    path = data_folder / folders.UNLABELLED / "scan_1.tif"
    path.unlink()
    write(path)
    options = as_options({**OPTIONS, "data": data_folder, "roi": None})
    if said is None or case.startswith("a folder") or case in BLANK:
        fine("train", *options)
    else:
        refused(said, "train", *options, details=str(path))


@pytest.mark.parametrize("inside", [False, True], ids=["", "in a folder"])
@pytest.mark.parametrize("case", IMAGES)
def test_predicted_slices(refused, fine, workplace, checkpoint, case, inside):
    write, _, said = IMAGES[case]
    folder = workplace / "scans"
    folder.mkdir()
    write(folder / "b.tif")
    if inside:
        tiff()(folder / "a.tif")
        said = (
            "one grey slice"
            if case == "several pages"
            else None
            if case.startswith("a folder")
            else said
        )
    source = folder if inside else folder / "b.tif"
    call = (
        "predict",
        source,
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--output",
        workplace / "out",
    )
    if said is None:
        fine(*call)
        result = {p.name for p in (workplace / "out").glob("*.tif")}
        assert result == {p.name for p in folder.glob("*.tif") if p.is_file()}
        for name in result:
            mask = tifffile.imread(workplace / "out" / name)
            assert mask.dtype == np.uint8
            assert mask.shape == open_volume(folder / name).shape
            assert {*np.unique(mask)} <= {0, 255}
    else:
        refused(
            said, *call, details=str(folder / "b.tif") if case != "a folder called .tif" else ""
        )
        assert not (workplace / "out").exists()
        assert not (workplace / "out.part").exists()


@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (*_, said) in IMAGES.items()
        if said and "folder" not in case and case != "too far apart"
    ],
)  # which are two values, and so a mask
def test_other_command_lines(refused, workplace, case):
    IMAGES[case][0](workplace / "b.tif")
    said = f"{IMAGES[case][2]}|other values|NaN|holds complex|grey values|colours|holds \\d+ values"
    refused(said, "evaluate", "particles", workplace / "b.tif", details=str(workplace / "b.tif"))
    if not re.match("a link|a pipe", case):
        tiff(TRUTH * 255)(workplace / "t.tif")
        refused(
            f"{said}|shape",
            "evaluate",
            "--pred",
            workplace / "b.tif",
            "--truth",
            workplace / "t.tif",
        )
    refused(
        f"{IMAGES[case][2]}|napari: not installed", "view", workplace / "b.tif"
    )  # which reads when it shows


# --- masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MASKS)
def test_masks(refused, fine, data_folder, command, case):
    suffix, write, said, noted = MASKS[case]
    tiff(GREY)(data_folder / folders.IMAGES / "s_00.tif")
    (data_folder / folders.MASKS / "s_mask_00.tif").unlink()
    path = data_folder / folders.MASKS / f"s_mask_00{suffix}"
    write(path)
    if not case.startswith("painted"):  # masks of one folder follow one rule
        for i in range(1, 8):
            tiff(disc_slice(i)[1] * 255)(data_folder / folders.MASKS / f"s_mask_{i:02d}.tif")
    code, out, _ = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    details = [line for line in out.splitlines() if line.startswith(f"{path}:")]
    assert code == bool(noted), out
    assert len(details) == bool(noted), out
    assert not noted or re.search(noted, details[0])
    options = as_options({**OPTIONS, "data": data_folder})
    if said is None:
        fine("train", *options)
    else:
        details = data_folder / folders.IMAGES / "s_00.tif" if case == "inverted" else path
        refused(said, "train", *options, details=str(details))


@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (_, _, said, _) in MASKS.items()
        if said and case not in ("1 and 2", "0 and 128", "inverted")
    ],
)  # beside others
@pytest.mark.parametrize("side", ["pred", "truth"])
def test_scored_masks(refused, workplace, case, side):
    suffix, write, said, _ = MASKS[case]
    for name in ("pred", "truth"):
        (workplace / name).mkdir()
        tiff(TRUTH * 255)(workplace / name / "s_1.tif")
    (workplace / side / "s_1.tif").unlink()
    write(workplace / side / f"s_1{suffix}")
    said = f"{said}|they must be of one size"
    refused(
        said,
        "evaluate",
        "--pred",
        workplace / "pred",
        "--truth",
        workplace / "truth",
        "--output",
        "t.csv",
    )


# --- names, links, rights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["with spaces 01.tif", "größe µm 01.tif", "断層 01.tif", "a;b,c\"d' 01.tif", "-rf 01.tif"],
)
def test_any_name_that_is_text(fine, command, data_folder, workplace, checkpoint, name):
    for folder in (folders.IMAGES, folders.MASKS):
        (old,) = (data_folder / folder).glob("*_01.tif")
        old.rename(old.with_name(name))
    code, out, _ = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    assert (code, out.splitlines()[0]) == (0, f"{data_folder}: no problem found")
    fine("train", *as_options({**OPTIONS, "data": data_folder}))
    fine(
        "predict",
        data_folder / folders.IMAGES,
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--output",
        "out",
    )
    fine("evaluate", "--pred", "out", "--truth", "out", "--output", "scores.csv")
    assert Path(name).stem.replace('"', '""') in (workplace / "scores.csv").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", [b"line\nbreak.tif", b"not\xfftext.tif", b"bell\x07.tif"])
def test_names_that_are_no_text(refused, data_folder, workplace, checkpoint, name):
    for folder in (folders.IMAGES, folders.UNLABELLED):
        path = os.fsencode(data_folder / folder) + b"/" + name
        shutil.copy(next((data_folder / folder).glob("*.tif")), path)
        said = "has line breaks or bytes that are no text in its name; rename it"
        refused(said, "train", *as_options({**OPTIONS, "data": data_folder}))
        refused(said, "datasets", "check", data_folder)
        refused(
            said, "predict", data_folder / folder, "--checkpoint", checkpoint, "--output", "out"
        )
        os.remove(path)


def test_rights(refused, data_folder, workplace, checkpoint, monkeypatch):
    path, real = data_folder / folders.IMAGES / "s_03.tif", tifffile.TiffFile

    def locked(name, *rest, **options):
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, *rest, **options)

    monkeypatch.setattr(tifffile, "TiffFile", locked)  # a superuser may read anything
    refused(
        "Permission denied",
        "train",
        *as_options({**OPTIONS, "data": data_folder}),
        details=str(path),
    )
    refused("Permission denied", "predict", path, "--checkpoint", checkpoint, "--output", "out")
    refused(
        "Permission denied", "predict", path.parent, "--checkpoint", checkpoint, "--output", "out"
    )


@pytest.mark.parametrize(
    "make", [lambda p: p.symlink_to(p.name), lambda p: p.symlink_to("gone"), lambda p: p.touch()]
)
def test_folders_that_are_none(refused, data_folder, make):
    """An empty list would do without the unlabelled, silently."""
    folder = data_folder / folders.UNLABELLED
    shutil.rmtree(folder)
    make(folder)
    refused(
        "is no folder", "train", *as_options({**OPTIONS, "data": data_folder}), details=str(folder)
    )
    refused("is no folder", "datasets", "check", data_folder, details=str(folder))


def test_folders_that_may_not_be_listed(refused, data_folder, monkeypatch):
    def locked(path):
        if path.name == "unlabeled":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", locked)  # a superuser may list anything
    refused("Permission denied", "train", *as_options({**OPTIONS, "data": data_folder}))


def test_outputs_that_cannot_be_written(refused, data_folder, workplace, checkpoint):
    (workplace / "file").write_text("mine")
    scan = data_folder / folders.IMAGES / "s_03.tif"
    for output in ("file/out", "/proc/out.tif"):
        refused(
            "check path, rights, space",
            "predict",
            scan,
            "--checkpoint",
            checkpoint,
            "--output",
            output,
        )
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
    (data_folder / folders.UNLABELLED / "scan_1.tif").rename(
        data_folder / folders.UNLABELLED / "s_01.tif"
    )
    options = as_options({**OPTIONS, "data": data_folder, "split": "auto"})
    refused(said, "train", *options, details=str(path))
    code, out, _ = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith(f"{path}:")]


def test_a_split_from_an_editor_that_marks_its_files(fine, data_folder):
    path = data_folder / "splits" / "split.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"train": ["s_00"]}), encoding="utf-8-sig")
    fine("train", *as_options({**OPTIONS, "data": data_folder, "split": "auto"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--learning-rate=1"],
            "unrecognized arguments: --learning-rate=1; python train.py --help lists the options",
        ),
        (["--lr=-1"], "--lr: -1.0 is not possible"),
        (["--lr=nan"], "--lr: nan is not possible"),
        (["--lr=1e999"], "--lr: inf is not possible"),
        (["--seed=" + "9" * 5000], "--seed: '999"),
        (["--run=../x"], "--run: '../x' is not possible"),
        (["--run="], "--run: '' is not possible"),
        (["--run=a\nb"], "--run: 'a.+nb' is not possible"),
        (["--patch-size=1000000000000"], "--patch-size"),
        (["--profile=huge"], "--profile: invalid choice"),
        (["--data"], "--data: expected one argument"),
        (["--data=\0"], "no such folder|null|embedded"),
        (["--verify"], "--verify: expected one argument"),
        (["--verify", "nowhere"], "has no meaning with --verify"),
        (["--base-channels=1000000"], "--base-channels"),
    ],
)
def test_settings(refused, data_folder, options, said):
    refused(said, "train", *as_options({**OPTIONS, "data": data_folder}), *options)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "config.json: cannot be read as JSON"),
        ("[]", "config.json: holds a list"),
        ('{"lr": "fast"}', "was made with other settings"),
        ('{"unknown": 1}', "was made with other settings"),
    ],
)
def test_a_run_whose_settings_are_damaged(refused, data_folder, workplace, content, said):
    (workplace / "runs" / "r").mkdir(parents=True)
    (workplace / "runs" / "r" / "config.json").write_text(content)
    refused(said, "train", *as_options({**OPTIONS, "data": data_folder}), "--resume")


# --- the functions of the notebook ----------------------------------------------------------------------------


def test_notebook_functions_raise_one_line(data_folder, workplace, checkpoint):
    path = data_folder / folders.IMAGES / "s_03.tif"
    IMAGES["cut off in the pixels"][0](path)
    config = Config(**{**OPTIONS, "data": str(data_folder)})
    assert [
        p
        for p in folder_check.check_data(data_folder, folders.Reading(config.roi)).problems
        if "cannot be read" in p
    ]
    for call in (
        lambda: train.prepare(config),
        lambda: folders.load_data(data_folder),
        lambda: open_volume(path).read(0),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: cannot be read [^\n]*$"):
            call()
