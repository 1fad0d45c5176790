"""Every form of slice is read as stored, or refused with a reason."""

import itertools

import numpy as np
import pytest
import tifffile

from conftest import disc_slice
from runtime.messages import InputError
from slices import reading
from slices.windows import percentile_window

TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32]
KINDS = [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"byteorder": ">"}]
IMAGEJ = [
    (dtype, {"imagej": True}) for dtype in (np.uint8, np.uint16, np.float32)
]  # all that ImageJ knows


@pytest.mark.parametrize(("dtype", "options"), [*itertools.product(TYPES, KINDS), *IMAGEJ])
def test_every_pixel_type_is_read_as_stored(tmp_path, dtype, options):
    array = np.random.default_rng(0).integers(0, 120, (9, 11)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    image = reading.read_image(tmp_path / "a.tif")
    assert image.dtype == (np.float64 if dtype in (np.uint32, np.int32) else np.float32)
    np.testing.assert_array_equal(image, array.astype(np.float32))


def test_physical_values_are_not_rescaled_by_their_size(tmp_path):
    image, _ = disc_slice(0)
    assert 0 < image.max() < 1e-3
    tifffile.imwrite(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(reading.read_image(tmp_path / "a.tif"), image)


def test_roi():
    image = np.arange(100).reshape(10, 10)
    np.testing.assert_array_equal(reading.crop_roi(image, (2, 5, 1, 9)), image[2:5, 1:9])
    same = np.zeros((3, 8))
    assert reading.crop_roi(same, (2, 5, 1, 9)) is same  # just the ROI's size: used as it is
    assert reading.crop_roi(image, None) is image
    with pytest.raises(InputError, match=r"scan: is 10×10 px, too small for the ROI"):
        reading.crop_roi(image, (2, 11, 1, 9), "scan")


@pytest.mark.parametrize("compression", ["zstd", pytest.param("lzma", marks=pytest.mark.slow)])
def test_masks_that_compress_well_are_no_bombs(tmp_path, compression):
    """289 million pixels in some ten thousand bytes."""
    mask = np.zeros((17_000, 17_000), np.uint8)
    mask[100:900, 100:900] = 1
    tifffile.imwrite(tmp_path / "a.tif", mask, compression=compression, photometric="minisblack")
    assert mask.size > 1200 * (tmp_path / "a.tif").stat().st_size
    assert reading.read_array(tmp_path / "a.tif").sum() == 800 * 800


def test_large_integers_keep_their_differences(tmp_path):
    array = (2**31 + np.arange(100, dtype=np.uint32)).reshape(10, 10)
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert len(np.unique(percentile_window(reading.read_image(tmp_path / "a.tif")))) > 90


def test_several_images_in_one_file(tmp_path):
    for size in (8, 8, 9):
        tifffile.imwrite(
            tmp_path / "a.tif", np.eye(size, dtype=np.uint8), append=(tmp_path / "a.tif").exists()
        )
    with pytest.raises(InputError, match=r"a\.tif: .*expected one"):
        reading.read_image(tmp_path / "a.tif")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        reading.read_image(tmp_path / "a.tif")


def test_windows_mirror_what_lies_outside():
    array = np.arange(5)[:, None] * 10 + np.arange(5)
    padded = np.pad(array, ((2, 0), (0, 3)), "reflect")
    np.testing.assert_array_equal(reading.cut_window(array, -2, 1, 7), padded[:, 1:8])
    np.testing.assert_array_equal(reading.center_patch(array, 3), array[1:4, 1:4])
    np.testing.assert_array_equal(reading.center_patch(np.full((1, 2), 7), 4), np.full((4, 4), 7))


def test_natural_order(tmp_path):
    for name in ("s10.tif", "s2.tif", "s1.TIF", ".hidden.tif", "notes.txt", "s2².tif"):
        (tmp_path / name).touch()
    assert [p.name for p in reading.list_files(tmp_path)] == [
        "s1.TIF",
        "s2.tif",
        "s2².tif",
        "s10.tif",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["scan", "scan (2)", "scan (3)", "scan (10)"],
        ["z_-10", "z_-2", "z_0", "z_1"],
        ["a-1", "a-2", "a-10"],
        ["s_01", "s_01-1", "s_02"],
        ["-1", "+0", "+2"],
    ],
)
def test_files_are_in_the_order_of_their_numbers(tmp_path, names):
    for name in reversed(names):
        (tmp_path / f"{name}.tif").touch()
    assert [path.stem for path in reading.list_files(tmp_path)] == names
