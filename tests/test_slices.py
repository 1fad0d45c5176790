"""Every form of slice and mask is read as stored, or refused with a reason."""

import itertools

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import slices
from conftest import SCALE, disc_slice
from utils import InputError


TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32]
KINDS = [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"byteorder": ">"}]
IMAGEJ = [(dtype, {"imagej": True}) for dtype in (np.uint8, np.uint16, np.float32)]  # all that ImageJ knows


@pytest.mark.parametrize(("dtype", "options"), [*itertools.product(TYPES, KINDS), *IMAGEJ])
def test_every_pixel_type_is_read_as_stored(tmp_path, dtype, options):
    array = np.random.default_rng(0).integers(0, 120, (9, 11)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    image = slices.read_image(tmp_path / "a.tif")
    assert image.dtype == (np.float64 if dtype in (np.uint32, np.int32) else np.float32)
    np.testing.assert_array_equal(image, array.astype(np.float32))


def test_physical_values_are_not_rescaled_by_their_size(tmp_path):
    image, _ = disc_slice(0)
    assert 0 < image.max() < 1e-3
    tifffile.imwrite(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(slices.read_image(tmp_path / "a.tif"), image)


@given(st.floats(1e-6, 1e6), st.floats(-5, 5))
def test_percentile_window_ignores_scale_and_offset(scale, offset):
    image = np.random.default_rng(1).normal(100, 5, (40, 40))
    window = slices.percentile_window(image)
    moved = slices.percentile_window((image + offset) * scale)
    assert np.abs(window.astype(int) - moved.astype(int)).max() <= 1  # rounding
    assert window.min() == 0
    assert window.max() == 255


def test_percentile_window_counts_non_zero_pixels_only():
    image = np.zeros((20, 20))
    image[5:15, 5:15] = np.linspace(10, 20, 100).reshape(10, 10)
    inside = image[5:15, 5:15]
    low, high = np.percentile(inside, [1, 99.5])
    expected = np.rint(np.clip((inside - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(slices.percentile_window(image)[5:15, 5:15], expected)


@pytest.mark.parametrize("image", [np.zeros((5, 5)), np.full((5, 5), 3.0)])
def test_constant_image_is_an_error(image):
    with pytest.raises(InputError, match=r"name: is constant"):
        slices.percentile_window(image, name="name")


def test_roi():
    image = np.arange(100).reshape(10, 10)
    np.testing.assert_array_equal(slices.crop_roi(image, (2, 5, 1, 9)), image[2:5, 1:9])
    same = np.zeros((3, 8))
    assert slices.crop_roi(same, (2, 5, 1, 9)) is same  # just the ROI's size: used as it is
    assert slices.crop_roi(image, None) is image
    with pytest.raises(InputError, match=r"scan: is 10×10 px, too small for the ROI"):
        slices.crop_roi(image, (2, 11, 1, 9), "scan")


MASKS = {
    "painted.tif": lambda image, truth: np.where(truth == 1, np.float32(-SCALE), image),
    "bytes.tif": lambda image, truth: truth * np.uint8(255),
    "ones.tif": lambda image, truth: truth,
    "words.tif": lambda image, truth: truth.astype(np.uint16) * 65535,
    "floats.tif": lambda image, truth: truth.astype(np.float32),
    "bytes.png": lambda image, truth: truth * np.uint8(255),
    "ones.png": lambda image, truth: truth,
    "ones.npy": lambda image, truth: truth,
    "bool.npy": lambda image, truth: truth.astype(bool),
    "channel.npy": lambda image, truth: truth[None],
}


@pytest.mark.parametrize("name", MASKS)
def test_every_form_of_mask(tmp_path, name):
    image, truth = disc_slice(3)
    array, path = MASKS[name](image, truth), tmp_path / name
    {".tif": tifffile.imwrite, ".png": lambda p, a: cv2.imwrite(str(p), a), ".npy": np.save}[path.suffix](path, array)
    mask = slices.read_mask(path)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, truth)
    forced = "dark" if name == "painted.tif" else "bright"
    np.testing.assert_array_equal(slices.read_mask(path, forced), truth)
    other = {"dark": "bright", "bright": "dark"}[forced]
    np.testing.assert_array_equal(slices.read_mask(path, other), 1 - truth)


def test_bright_paint_and_painted_streaks(tmp_path):
    image, truth = disc_slice(3)
    tifffile.imwrite(tmp_path / "bright.tif", np.where(truth == 1, np.float32(20 * SCALE), image))
    assert np.count_nonzero(slices.read_mask(tmp_path / "bright.tif") != truth) <= 2  # Otsu's histogram has 256 bins
    painted = np.where(truth == 1, np.float32(-SCALE), image)
    painted[:2] = 5 * SCALE  # a bright streak, painted over: background
    truth[:2] = 0
    tifffile.imwrite(tmp_path / "streak.tif", painted)
    np.testing.assert_array_equal(slices.read_mask(tmp_path / "streak.tif"), truth)


@pytest.mark.parametrize("array", [disc_slice(0)[0], np.repeat(np.uint8([[3, 7]]), 4, axis=0), np.full((4, 4), 9)])
def test_a_mask_that_does_not_tell_its_side_is_an_error(tmp_path, array):
    tifffile.imwrite(tmp_path / "m.tif", array)
    with pytest.raises(InputError, match=r"m.tif: .*(set --mask-foreground|every pixel is 9)"):
        slices.read_mask(tmp_path / "m.tif")


def test_outside_of_a_round_field_of_view_is_not_foreground(tmp_path):
    image, truth = disc_slice(3)
    rows, columns = np.mgrid[:64, :64]
    outside = np.hypot(rows - 32, columns - 32) > 30
    image[outside], truth[outside] = 0, 0
    tifffile.imwrite(tmp_path / "m.tif", np.where(truth == 1, np.float32(-SCALE), image))
    np.testing.assert_array_equal(slices.read_mask(tmp_path / "m.tif", image=image), truth)
    with pytest.raises(InputError, match="is 0 in all corners: paint, or outside the field of view"):
        slices.read_mask(tmp_path / "m.tif")                            # the slice, which would tell, is not there
    tifffile.imwrite(tmp_path / "unpainted.tif", image)
    with pytest.raises(InputError, match=r"do not tell which side|neither a binary mask"):
        slices.read_mask(tmp_path / "unpainted.tif", image=image)


def test_label_images_and_clipped_slices_are_no_painted_copies(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    for n in range(1, 9):
        labels[6 * n:6 * n + 4, 10:20] = n
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    clipped = np.clip(np.random.default_rng(0).normal(270, 30, (64, 64)), 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "clipped.tif", clipped)
    for name in ("labels.tif", "clipped.tif"):
        with pytest.raises(InputError, match=r"do not tell which side|neither a binary mask"):
            slices.read_mask(tmp_path / name)
    np.testing.assert_array_equal(slices.read_mask(tmp_path / "labels.tif", "bright") <= (labels > 0), True)


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
def test_masks_that_compress_well_are_no_bombs(tmp_path, compression):
    """289 million pixels in some ten thousand bytes."""
    mask = np.zeros((17_000, 17_000), np.uint8)
    mask[100:900, 100:900] = 1
    tifffile.imwrite(tmp_path / "a.tif", mask, compression=compression, photometric="minisblack")
    assert mask.size > 1200 * (tmp_path / "a.tif").stat().st_size
    assert slices.read_array(tmp_path / "a.tif").sum() == 800 * 800


def test_large_integers_keep_their_differences(tmp_path):
    array = (2**31 + np.arange(100, dtype=np.uint32)).reshape(10, 10)
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert len(np.unique(slices.percentile_window(slices.read_image(tmp_path / "a.tif")))) > 90


def test_several_images_in_one_file(tmp_path):
    for size in (8, 8, 9):
        tifffile.imwrite(tmp_path / "a.tif", np.eye(size, dtype=np.uint8), append=(tmp_path / "a.tif").exists())
    with pytest.raises(InputError, match=r"a\.tif: .*expected one"):
        slices.read_image(tmp_path / "a.tif")


def test_masks_of_no_number_type(tmp_path):
    for name, array in (("text", np.array([["a", "b"]])), ("complex", np.array([[1j, 2j]]))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=f"{name}.npy: holds NaN, infinite or other than real"):
            slices.read_mask(tmp_path / f"{name}.npy")


def test_empty_and_full_masks(tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((4, 4), np.uint8))
    np.save(tmp_path / "full.npy", np.full((4, 4), 255, np.uint8))
    assert slices.read_mask(tmp_path / "empty.npy").sum() == 0
    assert slices.read_mask(tmp_path / "full.npy").sum() == 16


def test_a_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.array([{"run": "me"}], dtype=object))
    with pytest.raises(InputError, match=r"m.npy: cannot be read"):
        slices.read_mask(tmp_path / "m.npy")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        slices.read_image(tmp_path / "a.tif")


def test_windows_mirror_what_lies_outside():
    array = np.arange(5)[:, None] * 10 + np.arange(5)
    padded = np.pad(array, ((2, 0), (0, 3)), "reflect")
    np.testing.assert_array_equal(slices.cut_window(array, -2, 1, 7), padded[:, 1:8])
    np.testing.assert_array_equal(slices.center_patch(array, 3), array[1:4, 1:4])
    np.testing.assert_array_equal(slices.center_patch(np.full((1, 2), 7), 4), np.full((4, 4), 7))


def test_natural_order(tmp_path):
    for name in ("s10.tif", "s2.tif", "s1.TIF", ".hidden.tif", "notes.txt", "s2².tif"):
        (tmp_path / name).touch()
    assert [p.name for p in slices.list_files(tmp_path)] == ["s1.TIF", "s2.tif", "s2².tif", "s10.tif"]
