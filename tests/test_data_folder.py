"""What a data folder becomes: what cannot teach is refused, what says nothing is left out and said."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from scipy import ndimage

import train
from config import Config
from conftest import SCALE, TINY, data_options, disc_slice, view_options, write_data, write_split
from datasets import Views
from runtime.checkpoints import load_checkpoint
from runtime.files import read_json
from runtime.messages import InputError
from slices.copies import is_same_picture
from slices.data_folder import Data, load_data, training_window
from slices.folder_check import check_data
from slices.options import IMAGES, MASKS, UNLABELLED, Reading
from slices.reading import Slice
from training import preparation

READING = Reading((8, 72, 8, 72))


def load(folder: Path, **options) -> Data:
    return load_data(folder, data_options("blocks", 0.25, reading=READING, **options))


def paint(folder: Path, i: int, mask: np.ndarray) -> None:
    tifffile.imwrite(
        folder / MASKS / f"s_mask_{i:02d}.tif", mask * np.uint8(255), photometric="minisblack"
    )


def binary(folder: Path, empty: tuple[int, ...] = ()) -> Path:
    """Masks of 0 and 255 in the place of painted copies, some of them empty."""
    for i in range(8):
        paint(folder, i, disc_slice(i)[1] * (i not in empty))
    return folder


# --- what cannot teach, or tell --------------------------------------------------------------------------------


def test_empty_masks_alone_teach_nothing(data_folder):
    binary(data_folder, tuple(range(8)))
    with pytest.raises(InputError, match="the masks of all 4 training slices are empty"):
        load(data_folder)
    for i in range(8):
        paint(data_folder, i, np.ones((64, 64), np.uint8))
    with pytest.raises(InputError, match="the masks of all 4 training slices are full"):
        load(data_folder)


def test_empty_validation_masks_choose_nothing_and_say_so(data_folder):
    data = load(binary(data_folder, (6, 7)))
    assert not data.can_choose
    assert "s_06: is empty, as all 2 validation masks are" in data.notes[0]
    data = load(binary(data_folder, (6,)))
    assert data.can_choose
    assert data.notes == ()


@pytest.mark.parametrize("empty", [(6, 7), ()])
def test_the_last_weights_are_kept_where_validation_says_nothing(data_folder, workplace, empty):
    binary(data_folder, empty)
    config = Config(**{**TINY, "data": str(data_folder), "run": "r", "sup_epochs": 4})
    data = train.prepare(config)
    train.train_supervised(config, data)
    details = load_checkpoint(config.checkpoint("supervised"))[1]
    assert (details["val_dice"] is None) == bool(empty)
    assert details["epoch"] == 4 or not empty


def test_blank_scans_are_left_out_and_said(data_folder):
    for name, value in (("a_black", 0), ("b_grey", 7)):
        tifffile.imwrite(
            data_folder / UNLABELLED / f"{name}.tif", np.full((80, 80), value, np.uint16)
        )
    data = load(data_folder)
    assert [s.stem for s in data.unlabelled] == ["scan_0", "scan_1", "scan_2"]
    assert "a_black.tif: is blank, as 2 of 5 unlabelled slices are; left out" in data.notes[0]


def test_names_are_no_identity(data_folder):
    """Another scan whose files have the names of the labelled slices is no leak, and its pixels would be one."""
    for path in (data_folder / UNLABELLED).iterdir():
        path.rename(path.with_name(path.name.replace("scan_", "s_0")))
    assert [s.stem for s in load(data_folder).unlabelled] == ["s_00", "s_01", "s_02"]
    shutil.copy(data_folder / IMAGES / "s_00.tif", data_folder / UNLABELLED / "z.tif")
    with pytest.raises(
        InputError, match=r"z.tif: has the pixels of s_00, a validation or test slice"
    ):
        load(data_folder)


# --- masks of others ------------------------------------------------------------------------------------------


def test_masks_of_other_slices_are_refused_unless_they_are_trusted(tmp_path):
    folder = write_data(tmp_path / "d", size=(96, 96))
    for i in range(8):
        paint(folder, i, disc_slice((i + 3) % 8, (96, 96))[1])
    with pytest.raises(
        InputError, match=r"s_00.tif: masks hardly agree with their images.*--trust-pairs true"
    ):
        load_data(folder, data_options(reading=Reading(None)))
    data = load_data(folder, data_options(reading=Reading(None, trust_pairs=True)))
    assert "hardly agree" in data.notes[0]
    assert any("hardly agree" in line for line in check_data(folder, Reading(None)).problems)


def test_what_only_a_number_pairs_is_said(data_folder):
    for path in (data_folder / MASKS).iterdir():
        path.rename(path.with_name(path.name.replace("s_mask_", "painted by hand ")))
    (note,) = load(data_folder).notes
    assert "s_00.tif: takes painted by hand 00.tif for its mask because of the number alone" in note


# --- files of other kinds ---------------------------------------------------------------------------------------


def test_slices_may_be_png_and_bmp_and_systems_leave_files(data_folder):
    expected = [s.image for s in load(data_folder).train]
    for i, suffix in enumerate((".png", ".bmp", ".png", ".bmp")):
        image = tifffile.imread(data_folder / IMAGES / f"s_{i + 2:02d}.tif")
        grey = np.clip(np.rint(image / SCALE * 40), 0, 255).astype(np.uint8)
        cv2.imwrite(str(data_folder / IMAGES / f"s_{i + 2:02d}{suffix}"), grey)
        (data_folder / IMAGES / f"s_{i + 2:02d}.tif").unlink()
    for name in ("Thumbs.db", ".DS_Store", "._s_00.tif", "desktop.ini"):
        (data_folder / IMAGES / name).write_bytes(b"?")
    assert check_data(data_folder, READING).problems == []
    result = [s.image for s in load(data_folder).train]
    assert all(np.abs(a.astype(int) - b).mean() < 3 for a, b in zip(expected, result, strict=True))


def test_drawn_outlines_are_questioned(data_folder):
    assert not any("outlines" in line for line in check_data(binary(data_folder), READING).problems)
    for i in range(8):
        mask = disc_slice(i)[1]
        paint(data_folder, i, cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)))
    (said,) = (line for line in check_data(data_folder, READING).problems if "outlines" in line)
    assert (
        "s_mask_00.tif: its foreground is thin lines that enclose areas, as in 7 of 8 masks" in said
    )  # one is cut
    assert any("outlines" in note for note in load(data_folder).notes)


def test_check_says_the_rule_and_the_share_of_each_file(data_folder, command):
    binary(data_folder, (5,))
    lines = check_data(data_folder, READING).masks
    assert lines[0] == "masks: s_mask_00.tif holds 0 and 255, of which 255 is foreground"
    assert f"  s_mask_01.tif: {disc_slice(1)[1].mean():.1%} foreground" in lines
    assert "  s_mask_05.tif: 0.0% foreground" in lines
    tifffile.imwrite(data_folder / MASKS / "s_mask_03.tif", disc_slice(3)[1] + np.uint8(1))
    (line,) = [p for p in check_data(data_folder, READING).problems if "s_mask_03" in p]
    assert "holds 1 and 2, of which 2 is foreground, but" in line


def test_labels_by_option_train_and_check(data_folder, command):
    for i in range(8):
        _, labels = cv2.connectedComponents(disc_slice(i)[1])
        tifffile.imwrite(data_folder / MASKS / f"s_mask_{i:02d}.tif", labels.astype(np.uint16))
    options = ("--roi", "8,72,8,72", "--mask-foreground", "labels")
    code, out, err = command("datasets", "check", data_folder, *options)
    assert code == 0, out + err
    data = load_data(
        data_folder, data_options(reading=Reading((8, 72, 8, 72), mask_foreground="labels"))
    )
    np.testing.assert_array_equal(data.train[0].mask, disc_slice(int(data.train[0].stem[-2:]))[1])


# --- outside the sample -------------------------------------------------------------------------------------------


def circle(size: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - (size - 1) / 2, columns - (size - 1) / 2) > 0.48 * size


def padded(folder: Path, value: float) -> Path:
    """The data of `write_data` in whole numbers, with a round field of view in the labelled slices."""
    outside = circle()
    for i in range(8):
        image, truth = disc_slice(i)
        counts = np.rint(image / SCALE * 1000).astype(np.int32)
        tifffile.imwrite(
            folder / IMAGES / f"s_{i:02d}.tif", np.where(outside, np.int32(value), counts)
        )
        paint(folder, i, truth * ~outside)
    return folder


@pytest.mark.parametrize("value", [0, -1000, -32768, 65535])
def test_padding_is_left_out_whatever_its_value(data_folder, value):
    data = load(padded(data_folder, value))
    reference = load(padded(data_folder, 0))
    for s, same in zip(data.train, reference.train, strict=True):
        np.testing.assert_array_equal(s.outside, circle())
        np.testing.assert_array_equal(s.image, same.image)
        assert not s.mask[s.outside].any()
    views = Views(data.train, view_options(32, {"rotation": 30.0, "zoom": 1.2}))
    for i in range(8):
        item = views[i % 4, i]
        inside = item["inside"][0].numpy()
        assert item["mask"][0].numpy()[inside == 0].max(initial=0) == 0
        assert {*np.unique(inside)} <= {0, 255}


def test_paint_in_what_looks_like_padding_is_asked_about(data_folder, command):
    """Black pores around a packing, cut off at 0, are the foreground, and reach into all corners."""
    rows, columns = np.mgrid[:64, :64]
    pores = np.hypot(rows - 31.5, columns - 31.5) > 30
    for i in range(8):
        image, _ = disc_slice(i)
        image = np.where(pores, 0, np.maximum(np.rint(image * 1e7), 1))
        tifffile.imwrite(data_folder / IMAGES / f"s_{i:02d}.tif", image.astype(np.uint16))
        paint(data_folder, i, pores.astype(np.uint8))
    (data_folder / UNLABELLED).rename(data_folder / "away")
    message = r"s_mask_00.tif: \d+% of its foreground lies where every pixel of s_00.tif is 0, which looks like padding"
    with pytest.raises(InputError, match=message):
        load(data_folder)
    code, out, _ = command("datasets", "check", data_folder, "--roi", "none")
    assert code == 1
    assert "--outside 0, and the paint there is left out; if it is sample, --outside none" in out
    assert "mask is empty" not in out
    sample = load_data(
        data_folder, data_options("blocks", 0.25, reading=Reading((8, 72, 8, 72), outside="none"))
    )
    assert sample.train[0].mask.mean() == pytest.approx(pores.mean())


def test_items_of_unlabelled_slices_say_where_the_sample_is(data_folder):
    image, outside = disc_slice(0)[0], circle()
    slices = [
        Slice(Path("a.tif"), np.uint8(255 * image / image.max()), outside=outside),
        Slice(Path("b.tif"), np.uint8(255 * image / image.max())),
    ]
    views = Views(slices, view_options(16, strong_views=2))
    assert views[0, 0]["inside"].shape == (1, 16, 16)
    assert (views[1, 0]["inside"] == 255).all()
    assert views.item_bytes == sum(tensor.numel() for tensor in views[0, 0].values())
    assert np.mean([(views[0, seed]["inside"] == 255).float().mean() for seed in range(40)]) > 0.75
    assert "inside" not in Views(slices[1:], view_options(16))[0, 0]


def test_training_with_padding_leaves_it_out_of_every_phase(data_folder, workplace):
    padded(data_folder, -32768)
    config = Config(
        **{
            **TINY,
            "data": str(data_folder),
            "run": "r",
            "method": "unimatch",
            "cutmix_p": 1.0,
            "strong_views": 2,
            "feature_dropout": 0.5,
            "roi": None,
            "labels": 2,
        }
    )
    data = train.prepare(config)
    train.train_supervised(config, data)
    train.train_semi_supervised(config, data)
    summary = train.evaluate_run(config, data)
    assert 0 <= summary["full"]["methods"]["supervised"]["dice"]["mean"] <= 1
    pixels = json.loads((config.run_folder / "summary.json").read_text())
    assert pixels["full"] == summary["full"]
    window = load_checkpoint(config.checkpoint("supervised"))[1]["window"]
    assert window == training_window(data.train)
    assert window["low"] > -1000


def test_a_run_is_told_what_is_outside(data_folder):
    padded(data_folder, -1000)
    config = Config(**{**TINY, "data": str(data_folder), "roi": None, "trust_pairs": True})
    assert preparation.read_slices(config).train[0].outside is not None
    assert (
        preparation.read_slices(dataclasses.replace(config, outside="none")).train[0].outside
        is None
    )
    assert (
        preparation.read_slices(dataclasses.replace(config, outside="-1000")).train[0].outside
        is not None
    )


# --- a folder that moved --------------------------------------------------------------------------------------------


def test_a_run_goes_on_after_its_data_moved(data_folder, workplace):
    write_split(data_folder, train=["s_00", "s_01"], val=["s_02"], test=["s_03"])
    options = {**TINY, "run": "r", "split": "auto"}
    config = Config(**{**options, "data": str(data_folder)})
    train.train_supervised(config, train.prepare(config))
    data_folder.rename(workplace / "elsewhere")
    moved = Config(**{**options, "data": str(workplace / "elsewhere")})
    train.train_supervised(moved, train.prepare(moved, resume=True))
    assert read_json(moved.run_folder / "config.json")["data"] == str(workplace / "elsewhere")
    tifffile.imwrite(
        workplace / "elsewhere" / UNLABELLED / "scan_1.tif", disc_slice(30, (80, 80))[0]
    )
    with pytest.raises(InputError, match="slices, masks or split changed since"):
        train.prepare(moved, resume=True)


def test_small_particles_and_large_blocks_are_said(data_folder):
    data = load(data_folder)
    config = Config(**{**TINY, "patch_size": 128, "downsample": 4})
    (line,) = preparation.notes_on_blocks(config, data)
    assert "--downsample 3 shows them better" in line
    assert preparation.notes_on_blocks(Config(**{**TINY, "downsample": 1}), data) == []


def test_the_same_slice_with_fewer_bits_is_a_leak(data_folder):
    image = tifffile.imread(data_folder / IMAGES / "s_00.tif")
    eight_bit = np.clip(np.rint((image - image.min()) / np.ptp(image) * 255), 0, 255).astype(
        np.uint8
    )
    cv2.imwrite(str(data_folder / UNLABELLED / "other.png"), eight_bit)
    with pytest.raises(
        InputError, match=r"other.png: has the pixels of s_00, a validation or test slice"
    ):
        load(data_folder)
    (data_folder / UNLABELLED / "other.png").unlink()
    load(data_folder)
    for folder, name in ((IMAGES, "s_{}.tif"), (MASKS, "s_mask_{}.tif")):
        shutil.copy(
            data_folder / folder / name.format("00"), data_folder / folder / name.format("04")
        )
    with pytest.raises(
        InputError, match=r"s_00.tif: a test slice with the pixels of s_04, which is trained on"
    ):
        load(data_folder)


def test_slices_with_strong_edges_in_common_are_not_the_same(data_folder):
    rows, columns = np.mgrid[:128, :128]
    sample = 100.0 * (np.hypot(rows - 64, columns - 64) < 50)
    first, second = (
        np.uint8(50 + sample + np.random.default_rng(seed).normal(0, 2, sample.shape))
        for seed in (0, 1)
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.998
    assert not is_same_picture(first, second)
    assert is_same_picture(first, np.uint8(np.rint(first * 0.6 + 20)))


def test_neighbours_in_a_smoothed_volume_are_not_the_same():
    """A filter along z makes their noise alike, too."""
    noise = np.random.default_rng(0).normal(size=(24, 160, 160))
    for sigma in (1.5, 3):
        smooth = ndimage.gaussian_filter(noise, (sigma, 1, 1))
        rows, columns = np.mgrid[:160, :160]
        volume = 120 + 60 * (np.hypot(rows - 80, columns - 80) < 60) + 12 * smooth / smooth.std()
        first, second = np.uint8(np.rint(np.clip(volume[11:13], 0, 255)))
        assert not is_same_picture(first, second)
        assert is_same_picture(first, first // 4)


def test_only_what_is_likely_inverted_is_told_to_turn_round(data_folder):
    binary(data_folder)
    paint(data_folder, 3, np.uint8(disc_slice(3)[1] == 0))
    (said,) = (
        line
        for line in check_data(data_folder, READING).problems
        if "of the slice is foreground" in line
    )
    assert "s_mask_03.tif" in said
    assert "--mask-foreground" not in said  # it would turn the good ones round


def test_a_strip_that_counts_as_sample_is_said(data_folder):
    binary(data_folder)
    for i in range(8):
        image = np.rint(disc_slice(i)[0] * 1e7)
        image[:, :8] = 0  # slices were aligned, and moved to the right
        tifffile.imwrite(data_folder / IMAGES / f"s_{i:02d}.tif", image.astype(np.uint16))
    (said,) = (
        line for line in check_data(data_folder, READING).problems if "count as sample" in line
    )
    assert re.search(
        r"s_00.tif: 12% of it are exactly 0, at its border, as in 8 of \d+ slices.*--outside 0",
        said,
    )
    assert any("count as sample" in note for note in load(data_folder).notes)
    stated = load_data(
        data_folder, data_options("blocks", 0.25, reading=Reading((8, 72, 8, 72), outside=0.0))
    )
    assert stated.notes == ()
    assert stated.train[0].outside[:, :8].all()


def test_one_mask_for_several_slices_is_said(data_folder):
    binary(data_folder)
    paint(data_folder, 5, disc_slice(4)[1])
    message = "has the mask of"
    assert any(message in line for line in check_data(data_folder, READING).problems)
    assert any(
        message in note
        for note in load_data(
            data_folder,
            data_options("blocks", 0.25, reading=Reading((8, 72, 8, 72), trust_pairs=True)),
        ).notes
    )


def test_labelled_slices_in_no_part_of_a_split_are_said(data_folder):
    write_split(data_folder, train=["s_00", "s_01"], val=["s_02"], test=["s_03"])
    data = load_data(data_folder, data_options(reading=READING))
    assert any("4 labelled slices are in no part of the split" in note for note in data.notes)


@pytest.mark.parametrize("change", [np.fliplr, np.flipud, np.rot90, np.transpose])
def test_flipped_and_turned_copies_are_leaks(data_folder, change):
    image = tifffile.imread(data_folder / IMAGES / "s_00.tif")
    tifffile.imwrite(data_folder / UNLABELLED / "turned.tif", change(image))
    with pytest.raises(
        InputError, match=r"turned.tif: has the pixels of s_00, a validation or test slice"
    ):
        load(data_folder)
