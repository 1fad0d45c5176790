"""A data folder becomes slices by role, every fault in it is named, and crops contain what they should."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

import datasets
from conftest import data_options, labelled, view_options, write_data, write_split
from runtime import loaders
from runtime.loaders import LoaderOptions
from runtime.messages import InputError
from slices.data_folder import load_data
from slices.folder_check import check_data
from slices.options import IMAGES, MASKS, UNLABELLED, Reading
from slices.reading import Slice

ROI = (8, 72, 8, 72)


# --- loading --------------------------------------------------------------------------------------------------


def test_slices_are_held_once_as_bytes_and_epochs_leave_the_disk_alone(data_folder, monkeypatch):
    data = load_data(data_folder, data_options("blocks", 0.25, reading=Reading(ROI)))
    assert [len(part) for part in data.roles.values()] == [4, 2, 2, 3]
    assert all(
        s.image.dtype == np.uint8 and s.image.shape == (64, 64)
        for part in data.roles.values()
        for s in part
    )
    assert all(s.mask is None for s in data.unlabelled)
    views = [
        datasets.Views(data.train, view_options(32)),
        datasets.Views(data.train, view_options(32, {"rotation": 0.0})),
    ]
    assert views[0].slices[0] is views[1].slices[0] is data.train[0]
    for reader in ("imread", "TiffFile"):
        monkeypatch.setattr(
            tifffile, reader, lambda *a, **k: pytest.fail("an epoch touched the disk")
        )
    loader = loaders.make_loader(views[0], LoaderOptions(2, [0]))
    assert next(loader)["weak"].shape == (2, 1, 32, 32)


def test_fewer_labels_make_the_rest_unlabelled(data_folder):
    data = load_data(
        data_folder, data_options("blocks", 0.25, labels=2, reading=Reading(ROI), max_unlabelled=2)
    )
    assert [s.stem for s in data.train] == ["s_02", "s_05"]
    assert [s.stem for s in data.unlabelled] == ["s_03", "s_04", "scan_0", "scan_2"]
    one = load_data(data_folder, data_options("blocks", 0.25, labels=1, reading=Reading(ROI)))
    assert [s.stem for s in one.train] == ["s_04"]  # the middle of four, not an end
    with pytest.raises(InputError, match="--labels 5: there are 4 training slices"):
        load_data(data_folder, data_options("blocks", 0.25, labels=5, reading=Reading(ROI)))


def test_without_unlabelled_scans_the_training_images_serve(tmp_path):
    data = load_data(write_data(tmp_path / "d", scans=0), data_options(reading=Reading(None)))
    assert [s.stem for s in data.unlabelled] == [s.stem for s in data.train]
    assert all(s.mask is None for s in data.unlabelled)


def test_scans_as_large_as_a_labelled_slice_are_not_cropped(tmp_path):
    folder = write_data(tmp_path / "d", size=(96, 80))
    image = tifffile.imread(folder / "unlabeled" / "scan_1.tif")[:96, :80]
    tifffile.imwrite(folder / "unlabeled" / "scan_1.tif", image)
    shapes = [
        s.image.shape
        for s in load_data(folder, data_options(reading=Reading((0, 40, 0, 50)))).unlabelled
    ]
    assert shapes == [(40, 50), (96, 80), (40, 50)]
    assert check_data(folder, Reading((0, 112, 0, 96))).problems == []


def test_one_slice_is_enough_to_train(tmp_path):
    data = load_data(
        write_data(tmp_path / "d", count=1, scans=0), data_options(reading=Reading(None))
    )
    assert [len(part) for part in data.roles.values()] == [1, 0, 0, 1]


def test_errors_name_the_file(data_folder):
    tifffile.imwrite(
        data_folder / IMAGES / "s_00.tif", np.zeros((5, 6), np.uint8) + np.arange(6, dtype=np.uint8)
    )
    with pytest.raises(InputError, match=r"s_mask_00.tif: is 64×64 px, its image 5×6"):
        load_data(data_folder, data_options(reading=Reading(ROI)))
    with pytest.raises(InputError, match=r"nowhere: no such folder; `python demo_data.py"):
        load_data(data_folder / "nowhere")


def test_a_test_slice_among_the_unlabelled_is_refused_by_its_pixels(data_folder):
    image = tifffile.imread(data_folder / IMAGES / "s_00.tif")
    tifffile.imwrite(data_folder / UNLABELLED / "renamed.tif", image)
    with pytest.raises(InputError, match=r"renamed.tif: has the pixels of s_00"):
        load_data(data_folder, data_options("blocks", 0.25, reading=Reading(ROI)))


# --- crops -----------------------------------------------------------------------------------------


def test_foreground_aware_crops_contain_foreground_and_fall_back_without_it():
    mask = np.zeros((300, 200), np.uint8)
    mask[0, 0] = mask[299, 120] = mask[150, 199] = 1
    for seed in range(300):
        top, left = datasets.crop_corner(
            np.flatnonzero(mask), 64, mask.shape, np.random.default_rng(seed)
        )
        assert mask[top : top + 64, left : left + 64].any()
        assert 0 <= top <= 300 - 64
        assert 0 <= left <= 200 - 64
    corners = [
        datasets.crop_corner(np.empty(0), 64, mask.shape, np.random.default_rng(s))
        for s in range(300)
    ]
    assert np.ptp([c[0] for c in corners]) > 200  # anywhere
    assert datasets.crop_corner(np.empty(0), 64, (40, 64), np.random.default_rng(0)) == (-12, 0)


def test_as_many_crops_hold_foreground_as_are_asked_for():
    def foreground(share):
        views = datasets.Views(labelled(8, (256, 256)), view_options(32, foreground_crop=share))
        return np.mean([views[i % 8, i]["mask"].any() for i in range(160)])

    all_of_them, half, anywhere = foreground(1.0), foreground(0.5), foreground(0.0)
    assert all_of_them > 0.99 > anywhere + 0.3
    assert abs(half - (all_of_them + anywhere) / 2) < 0.1


def test_where_a_guide_says_where_foreground_is_all_crops_hold_it():
    image = np.zeros((256, 256), np.uint8)
    image[200, 40] = 255
    views = datasets.Views(
        [Slice(Path("a"), image)],
        view_options(32, {"rotation": 0.0}, foreground_crop=0.25),
        guides=[image > 0],
    )
    assert all(views[0, seed]["weak"].max() == 255 for seed in range(40))


def test_slices_smaller_than_a_patch_are_mirrored():
    item = datasets.Views(labelled(1, (20, 30)), view_options(64))[0, 0]
    assert item["weak"].shape == (1, 64, 64)
    assert item["weak"].float().std() > 0.05 * 255
    assert item["mask"].any()


# --- check ----------------------------------------------------------------------------------------------------


def test_a_sound_folder_has_no_problem(data_folder, command):
    write_split(data_folder, train=["s_00", "s_01"], val=["s_02"], test=["s_03"])
    assert check_data(data_folder, Reading(ROI)).problems == []
    code, out, _ = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    assert (code, out.splitlines()[0]) == (0, f"{data_folder}: no problem found")


def test_check_says_what_the_folder_was_taken_for(data_folder, command):
    for i in range(8):
        tifffile.imwrite(
            mask(data_folder, i),
            (np.arange(64 * 64).reshape(64, 64) < 205 * (i + 1)).astype(np.uint8),
        )

    def said():
        arguments = (
            "--roi",
            "8,72,8,72",
            "--trust-pairs",
            "true",
        )  # these masks have nothing to do with the slices
        return command("datasets", "check", data_folder, *arguments)[1].splitlines()[1]

    assert said() == (
        "8 labelled slices of 64×64 px, 5–40 % foreground: 6 to train on, 1 to choose the checkpoint, "
        "1 to test; 3 unlabelled, scan_0 cut to 64×64 of 80×80 px"
    )
    shutil.rmtree(data_folder / UNLABELLED)
    assert said().endswith("; none unlabelled (a method that needs some takes the training slices)")


def image(root, i=0):
    return root / IMAGES / f"s_{i:02d}.tif"


def mask(root, i=0):
    return root / MASKS / f"s_mask_{i:02d}.tif"


def rewrite(path, change):
    tifffile.imwrite(path, change(tifffile.imread(path)))


def with_value(value):
    def change(array):
        array[3, 4] = value
        return array

    return change


def copy(source, target):
    target.write_bytes(source.read_bytes())


FAULTS = {
    "missing mask": (lambda r: mask(r).unlink(), "s_00.tif: no mask"),
    "mask without image": (lambda r: image(r).unlink(), "s_mask_00.tif: no image"),
    "two masks for one image": (
        lambda r: copy(mask(r), r / MASKS / "s_label_00.tif"),
        "s_00.tif: 2 masks fit",
    ),
    "one mask for two images": (
        lambda r: (
            mask(r).rename(r / MASKS / "painted 0.tif"),
            copy(image(r, 1), r / IMAGES / "t_0.tif"),
        ),
        "painted 0.tif: fits 2 images",
    ),
    "size mismatch": (
        lambda r: rewrite(mask(r), lambda a: a[:-1]),
        "s_mask_00.tif: is 63×64 px, its image 64×64",
    ),
    "zero bytes": (lambda r: image(r).write_bytes(b""), "s_00.tif: cannot be read"),
    "truncated": (
        lambda r: image(r).write_bytes(image(r).read_bytes()[:9000]),
        "s_00.tif: cannot be read",
    ),
    "truncated header": (
        lambda r: image(r).write_bytes(image(r).read_bytes()[:6]),
        "s_00.tif: cannot be read",
    ),
    "text file": (lambda r: image(r).write_text("not a picture"), "s_00.tif: cannot be read"),
    "truncated mask": (
        lambda r: mask(r).write_bytes(mask(r).read_bytes()[:9000]),
        "s_mask_00.tif: cannot be read",
    ),
    "NaN": (lambda r: rewrite(image(r), with_value(np.nan)), "s_00.tif: 1 of 4096 pixels are NaN"),
    "infinite": (
        lambda r: rewrite(image(r), with_value(np.inf)),
        "s_00.tif: 1 of 4096 pixels are NaN or infinite",
    ),
    "constant image": (lambda r: rewrite(image(r), np.ones_like), "s_00.tif: is constant"),
    "empty mask": (
        lambda r: tifffile.imwrite(mask(r), np.zeros((64, 64), np.uint8)),
        "s_mask_00.tif: mask is empty",
    ),
    "full mask": (
        lambda r: tifffile.imwrite(mask(r), np.ones((64, 64), np.uint8)),
        "s_mask_00.tif: every pixel is 1, but .*copy of its slice",
    ),
    "grey mask": (lambda r: copy(image(r), mask(r)), "s_mask_00.tif: mask is empty"),
    "NaN in mask": (lambda r: rewrite(mask(r), with_value(np.nan)), "s_mask_00.tif: holds NaN"),
    "colour image": (
        lambda r: tifffile.imwrite(image(r), np.zeros((64, 64, 3), np.uint8), photometric="rgb"),
        "s_00.tif: is constant",
    ),
    "colours": (
        lambda r: tifffile.imwrite(
            image(r),
            np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8),
            photometric="rgb",
        ),
        r"s_00.tif: has shape \(64, 64, 3\) and is coloured",
    ),
    "several pages": (
        lambda r: rewrite(image(r), lambda a: np.stack([a] * 5)),
        r"s_00.tif: has shape \(5, 64, 64\)",
    ),
    "duplicate stems": (
        lambda r: copy(image(r), r / IMAGES / "s_00.tiff"),
        "s_00.tif: same stem as s_00.tiff",
    ),
    "duplicate pixels": (
        lambda r: copy(image(r), image(r, 1)),
        "s_00.tif: same pixels as s_01.tif",
    ),
    "in two parts": (
        lambda r: write_split(r, train=["s_00", "s_01"], test=["s_01"]),
        "s_01: stands in train and test",
    ),
    "unknown in split": (
        lambda r: write_split(r, train=["s_77"]),
        "s_77: in train, but no labelled slice",
    ),
    "split is no JSON": (
        lambda r: write_split(r).write_text("{"),
        "split.json: cannot be read as JSON",
    ),
    "test slice unlabelled": (
        lambda r: (
            write_split(r, train=["s_00"], test=["s_01"]),
            copy(image(r, 1), r / UNLABELLED / "s_01.tif"),
        ),
        "s_01.tif: same pixels as s_01.tif",
    ),
    "unlabelled copy of a slice": (
        lambda r: copy(image(r), r / UNLABELLED / "x.tif"),
        "s_00.tif: same pixels as x",
    ),
    "ROI does not fit": (
        lambda r: tifffile.imwrite(r / UNLABELLED / "scan_0.tif", np.eye(65)),
        "scan_0.tif: .*small",
    ),
    "file of another kind": (
        lambda r: (r / IMAGES / "s_09.jpg").touch(),
        r"s_09.jpg: is not read; only .tif, .tiff",
    ),
    "nothing labelled": (lambda r: [p.unlink() for p in (r / IMAGES).iterdir()], "no slice found"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_the_planted_fault(data_folder, command, fault):
    plant, message = FAULTS[fault]
    plant(data_folder)
    code, out, err = command("datasets", "check", data_folder, "--roi", "8,72,8,72")
    lines = out.splitlines()
    assert code == 1, err
    assert any(re.search(message, line) for line in lines), out
    assert all(": " in line for line in lines)
    assert len(lines) <= 20


def test_every_problem_is_listed(data_folder):
    rewrite(image(data_folder, 3), with_value(np.nan))
    mask(data_folder, 5).unlink()
    tifffile.imwrite(mask(data_folder, 6), np.zeros((64, 64), np.uint8))
    problems = check_data(data_folder, Reading(ROI)).problems
    assert [Path(p.split(": ")[0]).name for p in problems] == [
        "s_03.tif",
        "s_mask_06.tif",
        "s_05.tif",
    ]


def test_command_line_errors(command, tmp_path):
    assert command("datasets", "check", tmp_path / "none")[0] == 2
    for roi in ("1,2,3", "a,b,c,d", "5,1,0,4"):
        code, _, err = command("datasets", "check", tmp_path, "--roi", roi)
        assert code == 2
        assert err.startswith(f"error: --roi {roi}: ")
    assert datasets.parse_roi("none") is None
