"""Whose side is foreground: every form of mask is read by one rule, or refused with advice that works."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from conftest import SCALE, disc_slice
from runtime.messages import InputError
from slices import painted_copies
from slices.masks import masks_of_files, read_mask
from volumes.reading import open_volume
from volumes.volume import masks_of_volume

BINARY = {
    "bytes.tif": lambda truth: truth * np.uint8(255),
    "ones.tif": lambda truth: truth,
    "words.tif": lambda truth: truth.astype(np.uint16) * 65535,
    "floats.tif": lambda truth: truth.astype(np.float32),
    "odd_float.tif": lambda truth: truth * np.float32(14.2452545),
    "label_2.tif": lambda truth: 2 * truth.astype(np.int32),
    "grey.tif": lambda truth: truth * np.uint8(128),
    "minus_one.tif": lambda truth: -truth.astype(np.int16),
    "ilastik.tif": lambda truth: truth + np.uint8(1),
    "headless.tif": lambda truth: truth + np.uint8(254),
    "bytes.png": lambda truth: truth * np.uint8(255),
    "ones.png": lambda truth: truth,
    "bytes.bmp": lambda truth: truth * np.uint8(255),
    "ones.npy": lambda truth: truth,
    "bool.npy": lambda truth: truth.astype(bool),
    "channel.npy": lambda truth: truth[None],
}


def save(path: Path, array: np.ndarray, **options) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, **{"photometric": "minisblack", **options})
    else:
        cv2.imwrite(str(path), array)
    return path


def blobs(share: float, seed: int = 0, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """(H, W) uint8 of 0 and 1: foreground of this share, in round parts."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=size), (0, 0), 4)
    return (noise > np.quantile(noise, 1 - share)).astype(np.uint8)


# --- two values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "share"), [*itertools.product(BINARY, (0.2, 0.6))])
def test_of_two_values_the_higher_one_is_foreground_however_much_there_is(tmp_path, name, share):
    truth = blobs(share)
    path = save(tmp_path / name, BINARY[name](truth))
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, truth)
    low_is_foreground = name == "minus_one.tif"
    np.testing.assert_array_equal(read_mask(path, "dark" if low_is_foreground else "bright"), truth)
    np.testing.assert_array_equal(
        read_mask(path, "bright" if low_is_foreground else "dark"), 1 - truth
    )


def test_constant_masks_are_read_as_their_neighbours_are(tmp_path):
    truth = blobs(0.3)
    pairs = {"ilastik": (1, 2), "bytes": (0, 255)}
    for name, (low, high) in pairs.items():
        arrays = [
            np.full_like(truth, low),
            np.full_like(truth, high),
            np.where(truth, high, low).astype(np.uint8),
        ]
        files = [save(tmp_path / f"{name}_{i}.tif", array) for i, array in enumerate(arrays)]
        read = masks_of_files(files)
        assert [int(read[i].sum()) for i in range(3)] == [0, truth.size, truth.sum()]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            (0, 255),
            (1, 2),
            "second.tif: holds 1 and 2, of which 2 is foreground, but .*first.tif holds 0 and 255",
        ),
        ((254, 255), (0, 255), "second.tif: holds 0 and 255"),
        ((0, 255), (1, 1), "second.tif: every pixel is 1, but .*first.tif holds 0 and 255"),
        ((1, 2), (0, 0), "second.tif: every pixel is 0, but .*first.tif holds 1 and 2"),
    ],
)
def test_masks_of_a_folder_that_need_different_rules_are_refused(tmp_path, first, second, message):
    truth = blobs(0.3)
    files = [
        save(tmp_path / f"{name}.tif", np.where(truth, high, low).astype(np.uint8))
        for name, (low, high) in (("first", first), ("second", second))
    ]
    read = masks_of_files(files)
    np.testing.assert_array_equal(read[0], truth)
    with pytest.raises(InputError, match=message):
        read[1]


def test_other_numbers_in_other_files_are_no_one_foreground(tmp_path):
    truth = blobs(0.3)
    files = [
        save(tmp_path / f"{i}.tif", truth * np.uint8(value)) for i, value in enumerate((1, 255, 2))
    ]
    read = masks_of_files(files)
    for i in (0, 1):  # programs write one or the other
        np.testing.assert_array_equal(read[i], truth)
    with pytest.raises(
        InputError,
        match=r"2\.tif: holds 0 and 2, .*0.tif holds 0 and 1, .*or set --mask-foreground "
        "labels if every number above 0",
    ):
        read[2]
    np.testing.assert_array_equal(masks_of_files(files, "labels")[2], truth)
    stack = np.stack([truth, truth * 5]).astype(np.uint8)
    with pytest.raises(InputError, match="slice 1: holds 0 and 5"):
        masks_of_volume(open_volume(save(tmp_path / "stack.tif", stack)))[1]


def test_the_most_masks_of_a_large_folder_decide(tmp_path):
    truth = blobs(0.3)
    odd = save(tmp_path / "odd.tif", truth + np.uint8(1))
    files = [odd, *(save(tmp_path / f"{i}.tif", truth * np.uint8(255)) for i in range(30))]
    read = masks_of_files(files)
    for i in range(1, len(files)):
        np.testing.assert_array_equal(read[i], truth)
    with pytest.raises(InputError, match=r"odd\.tif: holds 1 and 2"):
        read[0]


def test_one_rule_for_folders_stacks_and_zarr(tmp_path):
    import zarr

    truth = np.stack([blobs(share, i) for i, share in enumerate((0.3, 0.6, 0.45))])
    stored = truth + np.uint8(1)
    save(tmp_path / "stack.tif", stored)
    zarr.create_array(tmp_path / "a.zarr", data=stored)
    (tmp_path / "folder").mkdir()
    for i, one in enumerate(stored):
        save(tmp_path / "folder" / f"s_{i}.tif", one)
    for name in ("stack.tif", "a.zarr", "folder"):
        volume = open_volume(tmp_path / name)
        read = masks_of_volume(volume)
        np.testing.assert_array_equal(np.stack([read[i] for i in range(3)]), truth)


def test_only_constant_masks(tmp_path):
    save(tmp_path / "empty.npy", np.zeros((4, 4), np.uint8))
    save(tmp_path / "full.npy", np.full((4, 4), 255, np.uint8))
    assert read_mask(tmp_path / "empty.npy").sum() == 0
    assert read_mask(tmp_path / "full.npy").sum() == 16
    both = masks_of_files([tmp_path / "empty.npy", tmp_path / "full.npy"])
    assert [int(both[i].sum()) for i in range(2)] == [0, 16]
    save(tmp_path / "nine.npy", np.full((4, 4), 9))
    with pytest.raises(InputError, match=r"nine.npy: every pixel is 9; an empty mask is all 0"):
        read_mask(tmp_path / "nine.npy")


# --- colours, palettes, inverted files -------------------------------------------------------------------------


def bgr(truth: np.ndarray, background: tuple, foreground: tuple) -> np.ndarray:
    return np.where(truth[..., None] == 1, np.uint8(foreground), np.uint8(background))


def test_two_colours_are_two_values(tmp_path):
    truth = blobs(0.6)
    cv2.imwrite(str(tmp_path / "white.png"), bgr(truth, (0, 0, 0), (255, 255, 255)))
    cv2.imwrite(str(tmp_path / "red.png"), bgr(truth, (0, 0, 0), (0, 0, 255)))
    opaque = np.full((*truth.shape, 1), 255, np.uint8)
    cv2.imwrite(
        str(tmp_path / "rgba.png"), np.dstack([bgr(truth, (0, 0, 0), (255, 255, 255)), opaque])
    )
    tifffile.imwrite(
        tmp_path / "rgb.tif", bgr(truth, (0, 0, 0), (255, 255, 255)), photometric="rgb"
    )
    for name in ("white.png", "red.png", "rgba.png", "rgb.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), truth, name)


def test_colours_that_do_not_tell_are_asked_for(tmp_path):
    truth = blobs(0.3)
    cv2.imwrite(str(tmp_path / "two.png"), bgr(truth, (255, 255, 255), (0, 0, 255)))  # red on white
    with pytest.raises(
        InputError, match=r"two.png: has the colours #ffffff, #ff0000, .*dark or bright"
    ):
        read_mask(tmp_path / "two.png")
    np.testing.assert_array_equal(
        read_mask(tmp_path / "two.png", "dark"), truth
    )  # as the message says
    many = bgr(truth, (0, 0, 0), (0, 0, 255))
    many[:40][truth[:40] == 1] = (0, 255, 0)
    cv2.imwrite(str(tmp_path / "many.png"), many)
    with pytest.raises(InputError, match=r"many.png: has 3 colours .*--mask-foreground labels"):
        read_mask(tmp_path / "many.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "many.png", "labels"), truth)


def test_bilevel_and_palette_tiffs_count_as_they_are_shown(tmp_path):
    truth = blobs(0.2)
    tifffile.imwrite(tmp_path / "bilevel.tif", truth == 0, photometric="miniswhite")
    tifffile.imwrite(
        tmp_path / "inverted.tif", np.uint8(255) - truth * np.uint8(255), photometric="miniswhite"
    )
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 0] = 65535  # number 0 is shown white, all others black
    tifffile.imwrite(tmp_path / "palette.tif", 1 - truth, photometric="palette", colormap=colours)
    for name in ("bilevel.tif", "inverted.tif", "palette.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), truth, name)
    stack = np.stack([truth == 0] * 2)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="miniswhite")
    np.testing.assert_array_equal(masks_of_volume(open_volume(tmp_path / "stack.tif"))[1], truth)


def test_one_bit_with_white_as_zero_is_said(tmp_path, capsys):
    truth = blobs(0.3)
    tifffile.imwrite(tmp_path / "m.tif", truth == 1)  # which tifffile stores so by itself
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), 1 - truth)
    assert "m.tif: is of one bit, with 0 as white" in capsys.readouterr().err
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", "labels"), truth)


def test_imagej_counts_what_is_stored(tmp_path):
    """Its inverting look-up table is for the screen: the object of a binary image has the value 255."""
    truth = blobs(0.2)
    tifffile.imwrite(
        tmp_path / "fiji.tif", truth * np.uint8(255), imagej=True, photometric="miniswhite"
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "fiji.tif"), truth)


def test_colours_of_other_kinds(tmp_path):
    truth = blobs(0.3)
    shares = np.where(truth[..., None] == 1, np.float32([1, 0, 0]), np.float32([0, 0, 0]))
    for name, array in (("floats", shares), ("wide", (shares * 255).astype(np.int32))):
        tifffile.imwrite(tmp_path / f"{name}.tif", array, photometric="rgb")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.tif"), truth)
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.tif", "bright"), truth)
    tifffile.imwrite(
        tmp_path / "cmyk.tif",
        np.repeat(truth[..., None] * np.uint8(255), 4, 2),
        photometric="separated",
    )
    with pytest.raises(InputError, match=r"cmyk.tif: cannot be read \(its colours are SEPARATED"):
        read_mask(tmp_path / "cmyk.tif")


def test_transparent_parts_are_asked_for(tmp_path):
    truth = blobs(0.3)
    layer = np.dstack([np.zeros((*truth.shape, 3), np.uint8), truth * np.uint8(255)])
    cv2.imwrite(str(tmp_path / "layer.png"), layer)
    with pytest.raises(InputError, match=r"layer.png: has transparent parts; flatten it"):
        read_mask(tmp_path / "layer.png")


def test_a_palette_counts_in_stacks_as_in_files(tmp_path):
    truth = blobs(0.2)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 0] = 65535
    tifffile.imwrite(
        tmp_path / "stack.tif", np.stack([1 - truth] * 2), photometric="palette", colormap=colours
    )
    np.testing.assert_array_equal(masks_of_volume(open_volume(tmp_path / "stack.tif"))[1], truth)


@pytest.mark.parametrize("side", ["bright", "dark"])
def test_constant_masks_follow_a_stated_side_as_their_neighbours_do(tmp_path, side):
    truth = blobs(0.3)
    files = [
        save(tmp_path / f"{i}.tif", array + np.uint8(1))
        for i, array in enumerate((truth, np.zeros_like(truth), np.ones_like(truth)))
    ]
    read = masks_of_files(files, side)
    expected = [truth, np.zeros_like(truth), np.ones_like(truth)]
    for i, wanted in enumerate(expected):
        np.testing.assert_array_equal(read[i], wanted if side == "bright" else 1 - wanted)


def test_ones_alone_may_be_full_or_empty(tmp_path):
    path = save(tmp_path / "m.tif", np.ones((8, 8), np.uint8))
    with pytest.raises(InputError, match="every pixel is 1"):
        read_mask(path)
    assert read_mask(save(tmp_path / "b.npy", np.ones((8, 8), bool))).all()
    assert read_mask(path, "bright").all()


def test_a_thumbnail_page_is_no_second_slice(tmp_path):
    truth = blobs(0.3)
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        file.write(truth * np.uint8(255), photometric="minisblack", metadata=None)
        file.write(
            truth[::4, ::4] * np.uint8(255), photometric="minisblack", subfiletype=1, metadata=None
        )
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), truth)
    np.testing.assert_array_equal(masks_of_volume(open_volume(tmp_path / "m.tif"))[0], truth)


# --- soft edges -----------------------------------------------------------------------------------------------


def soft(truth: np.ndarray) -> np.ndarray:
    doubled = cv2.resize(truth * np.uint8(255), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return cv2.resize(doubled, truth.shape[::-1], interpolation=cv2.INTER_AREA)


def jpeg(truth: np.ndarray, quality: int = 85) -> np.ndarray:
    _, coded = cv2.imencode(".jpg", truth * np.uint8(255), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("how", [soft, jpeg])
def test_soft_edges_are_cut_in_the_middle(tmp_path, how, share):
    truth = blobs(share)
    path = save(tmp_path / "m.png", how(truth))
    assert len(np.unique(how(truth))) > 5
    assert np.mean(read_mask(path) != truth) < 0.02
    image, _ = disc_slice(0, truth.shape)
    save(tmp_path / "image.tif", image)
    assert np.mean(read_mask(path, image=tmp_path / "image.tif") != truth) < 0.02


def test_void_rims_and_far_labels_are_no_soft_edges(tmp_path):
    truth = blobs(0.2)
    void = np.where((cv2.dilate(truth, np.ones((5, 5))) == 1) & (truth == 0), 255, truth).astype(
        np.uint8
    )
    labels = np.zeros((64, 64), np.uint16)
    for n, number in enumerate((12, 250, 251, 13, 255, 14)):
        labels[10 * n : 10 * n + 5, 10:20] = number
    many = np.zeros((200, 200), np.uint8)  # labels of a volume: some low, some high, more than few
    for n, number in enumerate([*range(1, 21), *range(236, 256)]):
        many[10 * (n // 2) : 10 * (n // 2) + 6, 100 * (n % 2) + 20 : 100 * (n % 2) + 40] = number
    for name, array in (
        ("void", void),
        ("labels", labels),
        ("many", many),
        ("classes", np.where(void == 255, 255, truth * np.uint8(240))),
    ):
        with pytest.raises(InputError, match=f"{name}.tif: holds .* values"):
            read_mask(save(tmp_path / f"{name}.tif", array))


def test_labels_are_no_soft_edges(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    for n in range(1, 9):
        labels[6 * n : 6 * n + 4, 10:20] = 20 * n
    for name, array in (
        ("spread", labels),
        ("far", np.where(labels == 20, 60, np.where(labels > 0, 255, 0))),
    ):
        path = save(tmp_path / f"{name}.tif", array.astype(np.uint8))
        with pytest.raises(InputError, match=f"{name}.tif: holds .* values"):
            read_mask(path)


# --- labels ---------------------------------------------------------------------------------------------------


def test_labels_are_read_where_they_are_stated_and_refused_where_not(tmp_path):
    labels = np.zeros((64, 64), np.int32)
    for n in range(1, 9):
        labels[6 * n : 6 * n + 4, 10:20] = n
    path = save(tmp_path / "labels.tif", labels)
    with pytest.raises(InputError, match=r"labels.tif: holds 9 values .*--mask-foreground labels"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, "labels"), labels > 0)
    volume = open_volume(save(tmp_path / "stack.tif", np.stack([labels.astype(np.uint16)] * 2)))
    np.testing.assert_array_equal(masks_of_volume(volume, "labels")[1], labels > 0)
    for name, array in (("halves", labels / 2), ("negative", labels - 1)):
        with pytest.raises(
            InputError, match=rf"{name}.tif: holds (other than whole|negative) numbers"
        ):
            read_mask(save(tmp_path / f"{name}.tif", array), "labels")


def test_labels_are_numbers_whatever_a_look_up_table_shows(tmp_path):
    truth = blobs(0.3)
    stepped = np.repeat(
        (np.arange(256) // 16 * 16 * 257).astype(np.uint16)[None], 3, 0
    )  # numbers to 15 are black
    tifffile.imwrite(
        tmp_path / "grey.tif", truth * np.uint8(3), photometric="palette", colormap=stepped
    )
    tifffile.imwrite(tmp_path / "white.tif", truth.astype(np.uint16) * 7, photometric="miniswhite")
    for name in ("grey.tif", "white.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, "labels"), truth)


def test_a_palette_of_eight_bit_is_no_black_one(tmp_path):
    truth = blobs(0.3)
    colours = np.zeros((3, 256), np.uint16)
    colours[0, 1] = 255
    tifffile.imwrite(tmp_path / "p.tif", truth, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_mask(tmp_path / "p.tif"), truth)


def test_three_values_are_three_classes(tmp_path):
    truth = blobs(0.3)
    border = truth - cv2.erode(truth, np.ones((3, 3), np.uint8))
    for name, levels in (("bytes", (0, 127, 255)), ("floats", (0.0, 0.5, 1.0))):
        file = save(
            tmp_path / f"{name}.tif",
            np.choose(truth + (truth & (1 - border)), levels).astype(
                np.uint8 if name == "bytes" else np.float32
            ),
        )
        with pytest.raises(InputError, match="holds 3 values"):
            read_mask(file)


def test_probabilities_that_are_sure_nowhere_are_no_mask(tmp_path):
    soft = cv2.GaussianBlur(blobs(0.3).astype(np.float32), (0, 0), 0.7)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "sure.tif", soft)), soft > 0.5)
    with pytest.raises(
        InputError, match=r"faint.tif: holds values from 0 to 0.35, as probabilities"
    ):
        read_mask(save(tmp_path / "faint.tif", soft * np.float32(0.35)))


def test_two_channels_are_no_opacity_unless_the_file_says_so(tmp_path):
    both = np.dstack([blobs(0.3) * np.uint8(255)] * 2)
    tifffile.imwrite(
        tmp_path / "p.tif",
        both,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unspecified"],
    )
    with pytest.raises(InputError, match="has two channels"):
        read_mask(tmp_path / "p.tif")


def test_sparse_labels_get_no_advice_that_makes_background_foreground(tmp_path):
    truth = blobs(0.2)
    sparse = np.zeros(truth.shape, np.uint8)
    sparse[::8] = truth[::8] + 1
    with pytest.raises(
        InputError, match=r"if 0 is background and every other number .* labels"
    ) as error:
        read_mask(save(tmp_path / "m.tif", sparse))
    assert "if 0 means not painted" in str(error.value)


# --- painted copies -------------------------------------------------------------------------------------------


def painted(tmp_path: Path, mask: np.ndarray, image: np.ndarray) -> tuple[Path, Path]:
    return save(tmp_path / "m.tif", mask), save(tmp_path / "image.tif", image)


def textured(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A slice of 16 bit and its truth."""
    image, truth = disc_slice(seed, (96, 96))
    return np.rint(image / SCALE * 8000).astype(np.uint16), truth


COPIES = {
    "as stored": lambda image: image,
    "8 bit": lambda image: np.clip(np.rint((image - 8000.0) / 130), 1, 254).astype(np.uint8),
    "floats": lambda image: (image / np.float32(65535)).astype(np.float32),
    "inverted": lambda image: np.clip(np.rint(255 - image / 170), 1, 254).astype(np.uint8),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("side", ["dark", "bright"])
def test_a_painted_copy_is_recognised_by_being_a_copy(tmp_path, copy, side):
    image, truth = textured()
    array = COPIES[copy](image).copy()
    paint = (
        0
        if side == "dark"
        else {"u": 255 if array.itemsize == 1 else 65535, "f": 2}[array.dtype.kind]
    )
    array[truth == 1] = paint
    file, slice_file = painted(tmp_path, array, image)
    np.testing.assert_array_equal(read_mask(file, image=slice_file), truth)
    np.testing.assert_array_equal(read_mask(file, side, image=slice_file), truth)
    other = "bright" if side == "dark" else "dark"
    np.testing.assert_array_equal(read_mask(file, other, image=slice_file), 1 - truth)


@pytest.mark.parametrize("padding", [np.nan, -3.4028235e38, -1e30, -32768.0])
def test_padding_far_from_all_grey_values_hides_no_copy(tmp_path, padding):
    image, truth = textured()
    rows, columns = np.indices(image.shape)
    outside = (
        np.hypot(rows - image.shape[0] / 2, columns - image.shape[1] / 2) > 0.48 * image.shape[0]
    )
    truth = truth * ~outside
    eight_bit = np.where(
        outside, np.uint8(0), np.clip(np.rint((image - 8000.0) / 130), 1, 254).astype(np.uint8)
    )
    eight_bit[truth == 1] = 255
    file, slice_file = painted(
        tmp_path, eight_bit, np.where(outside, np.float32(padding), image.astype(np.float32))
    )
    np.testing.assert_array_equal(read_mask(file, image=slice_file), truth)


def test_without_its_slice_a_painted_copy_is_asked_for(tmp_path):
    image, truth = textured()
    file, _ = painted(tmp_path, np.where(truth == 1, 0, image).astype(np.uint16), image)
    with pytest.raises(
        InputError, match=r"m.tif: holds .*no slice tells whether it is a copy.*dark or bright"
    ):
        read_mask(file)
    assert (
        np.mean(read_mask(file, "dark") != truth) < 0.002
    )  # Otsu's threshold lies near the darkest grey values


@pytest.mark.parametrize("value", [0, 65535])
def test_a_slice_cleared_around_a_region_is_asked_about(tmp_path, value):
    image, _ = textured()
    rows, columns = np.indices(image.shape)
    cleared = image.copy()
    around = np.hypot((rows - 48) / 44, (columns - 48) / 40) > 1
    cleared[around] = value
    file, slice_file = painted(tmp_path, cleared, image)
    assert 0.3 < around.mean() < 0.65
    with pytest.raises(InputError, match="paint, or what lies outside"):
        read_mask(file, image=slice_file)


def test_dark_pores_of_the_slice_are_not_painted(tmp_path):
    image, truth = textured()
    image[60:80, 60:80] = 3  # as dark as the paint, nearly
    truth[60:80, 60:80] = 0
    array = image.copy()
    array[truth == 1] = 0
    np.testing.assert_array_equal(read_mask(*painted_with(tmp_path, array, image)), truth)


def painted_with(tmp_path: Path, mask: np.ndarray, image: np.ndarray) -> tuple[Path, str, Path]:
    """Arguments of `read_mask`."""
    file, slice_file = painted(tmp_path, mask, image)
    return file, "auto", slice_file


def test_streaks_painted_over_on_the_other_side_are_background(tmp_path):
    image, truth = textured()
    array = image.copy()
    array[truth == 1] = 0
    array[:1, :20] = 65535
    truth[:1, :20] = 0
    np.testing.assert_array_equal(read_mask(*painted_with(tmp_path, array, image)), truth)
    array[:3] = 65535  # as much as the particles: which is foreground?
    with pytest.raises(
        InputError, match=r"m.tif: is a copy of its slice with .* painted dark and .* bright; set"
    ):
        read_mask(*painted_with(tmp_path, array, image))


def test_outside_of_a_round_field_of_view_is_not_foreground(tmp_path):
    image, truth = textured()
    rows, columns = np.mgrid[:96, :96]
    outside = np.hypot(rows - 47.5, columns - 47.5) > 46
    image[outside], truth[outside] = 0, 0
    np.testing.assert_array_equal(
        read_mask(*painted_with(tmp_path, np.where(truth == 1, 0, image).astype(np.uint16), image)),
        truth,
    )
    file, _ = painted(tmp_path, image, image)
    with pytest.raises(
        InputError, match="is 0 in all corners: paint, or outside the field of view"
    ):
        read_mask(file, "dark")  # the slice, which would tell, is not there


def test_an_unpainted_copy_is_an_empty_mask_beside_painted_ones(tmp_path):
    files, images, truths = [], [], []
    for i in range(3):
        image, truth = textured(i)
        images.append(save(tmp_path / f"image_{i}.tif", image))
        painted = np.where((truth == 1) & (i > 0), 0, image).astype(np.uint16)
        files.append(save(tmp_path / f"m_{i}.tif", painted))
        truths.append(np.zeros_like(truth) if i == 0 else truth)
    read = masks_of_files(files, "auto", images)
    np.testing.assert_array_equal(np.stack([read[i] for i in range(3)]), truths)


def test_a_slice_cut_out_of_black_is_asked_for(tmp_path):
    """Everything but the particles is 0: a copy in which the background was painted, or is outside."""
    image, truth = textured()
    arguments = painted_with(tmp_path, np.where(truth == 1, image, 0).astype(np.uint16), image)
    with pytest.raises(
        InputError, match=r"m.tif: is a copy of its slice in which \d+% hold 0: paint, or what lies"
    ):
        read_mask(*arguments)
    np.testing.assert_array_equal(read_mask(arguments[0], "bright", arguments[2]), truth)


def test_a_copy_may_be_painted_with_a_colour(tmp_path):
    image, truth = textured()
    grey = (image // 256).astype(np.uint8)
    picture = np.dstack([grey] * 3)
    picture[truth == 1] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / "m.png"), picture)
    save(tmp_path / "image.tif", image)
    np.testing.assert_array_equal(
        read_mask(tmp_path / "m.png", "auto", tmp_path / "image.tif"), truth
    )
    with pytest.raises(InputError, match=r"m.png: is grey with one colour, and no slice tells"):
        read_mask(tmp_path / "m.png")
    bar = np.dstack([truth * np.uint8(255)] * 3)  # a mask with a scale bar
    bar[90:93, 5:40] = (0, 0, 255)
    bar[0, 0] = 128
    cv2.imwrite(str(tmp_path / "bar.png"), bar)
    with pytest.raises(InputError, match=r"bar.png: is grey with one colour, and is no copy"):
        read_mask(tmp_path / "bar.png", "auto", tmp_path / "image.tif")


def test_a_mask_painted_on_another_slice_is_no_copy_of_this_one(tmp_path):
    image, truth = textured(3)
    other, _ = textured(4)
    with pytest.raises(InputError, match=r"m.tif: holds .* and is no copy of its slice"):
        read_mask(*painted_with(tmp_path, np.where(truth == 1, 0, other).astype(np.uint16), image))


def test_sides_of_painted_copies_are_the_same_in_a_folder(tmp_path):
    files, images = [], []
    for i, paint in enumerate((0, 65535)):
        image, truth = textured(i)
        images.append(save(tmp_path / f"image_{i}.tif", image))
        files.append(
            save(tmp_path / f"m_{i}.tif", np.where(truth == 1, paint, image).astype(np.uint16))
        )
    read = masks_of_files(files, "auto", images)
    read[0]
    with pytest.raises(
        InputError, match=r"m_1.tif: is a copy .* painted bright, but .*m_0.tif .* painted dark"
    ):
        read[1]


def test_a_copy_that_holds_the_paint_by_itself_is_asked_for(tmp_path):
    """A contrast that cuts half of the bright particles off at 255, which they are then painted with."""
    image, truth = textured()
    low, high = np.percentile(image, [1, 93])
    array = np.clip(np.rint((image - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    array[truth == 1] = 255
    with pytest.raises(InputError, match=r"m.tif: holds .* is no copy of its slice"):
        read_mask(*painted_with(tmp_path, array, image))


def test_two_values_of_paint_on_one_side_are_asked_for(tmp_path):
    image, truth = textured()
    array = image.copy()
    array[truth == 1] = 0
    array[:6] = 100
    with pytest.raises(
        InputError, match=r"m.tif: is a copy of its slice painted with several values on one side"
    ):
        read_mask(*painted_with(tmp_path, array, image))


@given(st.floats(0.05, 0.45), st.floats(1e-3, 1e3), st.floats(-100, 100), st.booleans())
def test_any_linear_map_makes_a_copy(share, slope, offset, dark):
    image, _ = disc_slice(1, (80, 80))
    image = image / SCALE
    truth = blobs(share, size=(80, 80))
    copy = slope * image + offset
    reach = copy.max() - copy.min()
    array = np.where(truth == 1, copy.min() - reach if dark else copy.max() + reach, copy)
    result = painted_copies.find_paint(array, image)
    np.testing.assert_array_equal((result.dark if dark else result.bright).where, truth)


# --- what is no mask ------------------------------------------------------------------------------------------


def test_noise_is_no_mask(tmp_path):
    clipped = np.clip(np.random.default_rng(0).normal(270, 30, (64, 64)), 0, 255).astype(np.uint8)
    for name, array in (("clipped", clipped), ("grey", disc_slice(0)[0])):
        with pytest.raises(InputError, match=rf"{name}.tif: holds .*set --mask-foreground"):
            read_mask(save(tmp_path / f"{name}.tif", array))


def test_masks_of_no_number_type(tmp_path):
    for name, array in (("text", np.array([["a", "b"]])), ("complex", np.array([[1j, 2j]]))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=f"{name}.npy: holds NaN, infinite or other than real"):
            read_mask(tmp_path / f"{name}.npy")


def test_a_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.array([{"run": "me"}], dtype=object))
    with pytest.raises(InputError, match=r"m.npy: cannot be read"):
        read_mask(tmp_path / "m.npy")
