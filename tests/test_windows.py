"""Windows of grey values count the sample alone, and what lies outside is recognised whatever fills it."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.messages import InputError
from slices import windows
from slices.padding import find_flat_border, find_padding
from slices.windows import Grey, apply_window, grey_limits, mark_outside, percentile_window


@given(st.floats(1e-6, 1e6), st.floats(-5, 5))
def test_percentile_window_ignores_scale_and_offset(scale, offset):
    image = np.random.default_rng(1).normal(100, 5, (40, 40))
    window = percentile_window(image)
    moved = percentile_window((image + offset) * scale)
    assert np.abs(window.astype(int) - moved.astype(int)).max() <= 1  # rounding
    assert window.min() == 0
    assert window.max() == 255


def test_percentile_window_counts_non_zero_pixels_only():
    image = np.zeros((20, 20))
    image[5:15, 5:15] = np.linspace(10, 20, 100).reshape(10, 10)
    inside = image[5:15, 5:15]
    low, high = np.percentile(inside, [1, 99.5])
    expected = np.rint(np.clip((inside - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(percentile_window(image)[5:15, 5:15], expected)


@pytest.mark.parametrize("image", [np.zeros((5, 5)), np.full((5, 5), 3.0)])
def test_constant_image_is_an_error(image):
    with pytest.raises(InputError, match=r"name: is constant"):
        percentile_window(image, name="name")


# --- outside the sample ---------------------------------------------------------------------------------------


def scan(size: int = 120, low: float = -900, high: float = 4600) -> tuple[np.ndarray, np.ndarray]:
    """Grey values as a CT has them, float32, and where a round field of view ends."""
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(300, 400, (size, size)), low, high)
    image[0, 0], image[size // 2, size // 2] = low, high
    rows, columns = np.mgrid[:size, :size]
    outside = np.hypot(rows - (size - 1) / 2, columns - (size - 1) / 2) > 0.48 * size
    return np.rint(image).astype(np.float32), outside


PADDING = [0, -1000, -1024, -2000, -3024, -32768, 65535, 1e6, math.nan]


@pytest.mark.parametrize("value", PADDING)
def test_any_padding_around_a_circle_is_recognised_and_left_out(value):
    image, outside = scan()
    grey = mark_outside(np.where(outside, np.float32(value), image), "s")
    assert (
        np.count_nonzero(grey.outside != outside) <= 3
    )  # grey values of 0 may lie beside a padding of 0
    assert not (outside & ~grey.outside).any()
    low, high = grey_limits(grey, (1, 99.5))
    assert low == pytest.approx(np.percentile(image[~outside], 1), abs=40)
    assert high == pytest.approx(np.percentile(image[~outside], 99.5), abs=40)


@pytest.mark.parametrize("value", [-1000, -32768, math.nan])
def test_what_is_outside_mirrors_the_sample(value):
    image, outside = scan()
    window = apply_window(
        mark_outside(np.where(outside, np.float32(value), image), "s"), -900, 4600
    )
    assert abs(window[outside].mean() - window[~outside].mean()) < 5
    np.testing.assert_array_equal(window[~outside], apply_window(Grey(image), -900, 4600)[~outside])


@pytest.mark.parametrize(
    "corner", [np.s_[:30, :40], np.s_[90:, 80:], np.s_[:, :20], np.s_[100:, :]]
)
def test_a_single_corner_or_strip_is_enough_far_from_all_grey_values(corner):
    image, _ = scan()
    image[corner] = -32768
    grey = mark_outside(image, "s")
    assert grey.value == -32768
    np.testing.assert_array_equal(grey.outside, image == -32768)


def saturated(image: np.ndarray) -> np.ndarray:
    """A corner that gets brighter until a program has cut it off at 255."""
    rows, columns = np.mgrid[:120, :120]
    return np.rint(np.clip(image / 20 + 600 * np.exp(-np.hypot(rows, columns) / 40), 1, 255))


def dark_pores(image: np.ndarray) -> np.ndarray:
    """Pores cut off at 0, one of them in each corner."""
    rng = np.random.default_rng(1)
    image = np.clip(image, 1, 255)
    for row, column in [(0, 0), (0, 110), (110, 0), (110, 110), *rng.integers(10, 100, (20, 2))]:
        image[row : row + 10, column : column + 10] = 0
    return image


@pytest.mark.parametrize(
    "change", [np.abs, saturated, dark_pores, lambda image: np.clip(image, 0, 500)]
)
def test_grey_values_that_were_cut_off_are_no_padding(change):
    assert find_padding(change(scan()[0])) is None


def test_what_is_stated_goes_before_what_is_recognised():
    image, outside = scan()
    padded = np.where(outside, np.float32(-1000), image)
    assert mark_outside(padded, "s", "none").outside is None
    stated = mark_outside(padded, "s", -1000.0)
    np.testing.assert_array_equal(stated.outside, outside)
    assert mark_outside(image, "s", -5000.0).outside is None
    hole = padded.copy()
    hole[60, 60] = -1000  # inside the sample it is a grey value
    assert not mark_outside(hole, "s", -1000.0).outside[60, 60]
    assert not mark_outside(hole, "s").outside[60, 60]


def test_not_a_number_inside_the_sample_is_an_error_unless_stated():
    image, _ = scan()
    image[50, 50] = np.nan
    with pytest.raises(
        InputError, match=r"s: 1 of 14400 pixels are NaN or infinite, inside .*--outside nan"
    ):
        mark_outside(image, "s")
    dead = mark_outside(image, "s", math.nan)
    assert dead.outside is None
    assert dead.image[50, 50] in image[49:52, 49:52]  # the value of a neighbour
    image[50, 50] = np.inf
    with pytest.raises(InputError, match=r"s: 1 of 14400 pixels are NaN or infinite"):
        mark_outside(image, "s")


def test_several_values_of_padding_and_a_blurred_edge():
    image, outside = scan()
    strip = np.zeros_like(outside)
    strip[:, :20] = True
    grey = mark_outside(
        np.where(strip, np.float32(0), np.where(outside, np.float32(-32768), image)), "s"
    )
    assert (grey.outside == (outside | strip)).mean() > 0.999
    soft = np.where(outside, np.float32(-32768), image)
    edge = (cv2.dilate(outside.astype(np.uint8), np.ones((5, 5))) == 1) & ~outside
    soft[edge] = -16000  # as an interpolation mixes both
    low, _ = grey_limits(mark_outside(soft, "s"), (1, 99.5))
    assert low > -1000


def test_a_ring_of_padding_inside_other_padding_is_outside():
    image, outside = scan()
    rows, columns = np.mgrid[:120, :120]
    ring = outside & (
        np.abs(rows - 59.5) + np.abs(columns - 59.5) < 95
    )  # turned by 45 degrees, and padded again
    padded = np.where(outside, np.where(ring, np.float32(-1000), np.float32(0)), image)
    assert not ring[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert (mark_outside(padded, "s").outside == outside).mean() > 0.999


def test_padding_that_resampling_or_compression_has_changed_a_little():
    image, outside = scan()
    rng = np.random.default_rng(2)
    for value, noise in ((-2000, 1e-3), (-32768, 2.0), (9000, 0.5)):
        varying = value + noise * rng.standard_normal(image.shape).astype(np.float32)
        assert (
            mark_outside(np.where(outside, varying, image), "s").outside == outside
        ).mean() > 0.999
    for depth in (30, 80):  # air in the beam has noise, and is measured
        air = -2000 + depth * rng.standard_normal(image.shape).astype(np.float32)
        assert mark_outside(np.where(outside, air, image), "s").outside is None


def test_a_matrix_without_noise_is_no_padding():
    matrix = np.full((120, 120), 90, np.float32)
    for row, column in np.random.default_rng(0).integers(15, 105, (12, 2)):
        cv2.circle(matrix, (int(column), int(row)), 6, 200, -1)
    noise = np.random.default_rng(1).standard_normal(matrix.shape)
    for level in (0.01, 0.3, 3):
        assert mark_outside((matrix + level * noise).astype(np.float32), "s").outside is None


def test_air_or_metal_that_was_cut_off_is_no_padding_where_it_is_most_of_a_slice():
    powder, bright = np.zeros((120, 120), np.float32), np.full((120, 120), 90, np.float32)
    rng = np.random.default_rng(0)
    for row, column in rng.integers(20, 100, (12, 2)):
        cv2.circle(powder, (int(column), int(row)), 5, 120, -1)
    assert (
        find_padding(np.clip(powder + rng.normal(0, 8, powder.shape) * (powder > 0), 0, 255))
        is None
    )
    cv2.circle(bright, (5, 5), 20, 255, -1)  # grains, one of them in a corner
    cv2.circle(bright, (80, 60), 20, 255, -1)
    assert (
        find_padding(
            np.clip(np.rint(bright + rng.normal(0, 8, bright.shape)), 0, 255).astype(np.float32)
            * (bright < 255)
            + 255 * (bright == 255)
        )
        is None
    )


def test_zeros_count_where_something_else_is_outside():
    image, outside = scan()
    image[40:60, 40:60] = 0
    zeros = mark_outside(np.where(outside, np.float32(-32768), image), "s")
    assert np.count_nonzero(zeros.values() == 0) >= 400
    assert np.count_nonzero(mark_outside(image, "s").values() == 0) == 0
    assert np.count_nonzero(mark_outside(image, "s", "none").values() == 0) >= 400


def test_a_slice_all_outside_has_nothing_to_see():
    low, high = grey_limits(mark_outside(np.full((40, 40), np.nan, np.float32), "s"), (1, 99.5))
    assert low == high
    assert mark_outside(np.full((40, 40), -1000, np.float32), "s", -1000.0).outside.all()


def test_what_is_stated_has_to_be_a_value():
    assert windows.parse_outside("NONE") == "none"
    assert windows.parse_outside("-1e3") == -1000
    assert math.isnan(windows.parse_outside("nan"))
    for text in ("black", "inf", ""):
        with pytest.raises(InputError, match=f"--outside {text}"):
            windows.parse_outside(text)


# --- what is like padding, and what is like sample ---------------------------------------------------------------


@pytest.mark.parametrize("edge", [0.0, 7.0])
def test_a_frame_around_padding_hides_it_not(edge):
    image, outside = scan()
    padded = np.where(outside, np.float32(-1000), image)
    padded[[0, -1]] = edge
    padded[:, [0, -1]] = edge
    frame = np.ones_like(outside)
    frame[1:-1, 1:-1] = False
    assert (mark_outside(padded, "s").outside == (outside | frame)).mean() > 0.999


def test_what_was_cut_off_inside_the_sample_stays_sample():
    rng = np.random.default_rng(0)
    metal = np.zeros((192, 192), np.uint8)
    for centre in ((0, 0), (60, 80), (120, 150), (150, 40)):
        cv2.circle(metal, centre, 14, 1, -1)
    for most in (4095, 1.0):
        grey = np.minimum(1.0, 0.22 + 0.02 * rng.standard_normal(metal.shape) + metal) * most
        assert mark_outside(grey.astype(np.float32), "s").outside is None
    pores = np.zeros_like(metal)
    for centre in ((60, 80), (120, 140), (140, 60)):
        cv2.circle(pores, centre, 12, 1, -1)
    rows, columns = np.mgrid[:192, :192]
    outside = np.hypot(rows - 95.5, columns - 95.5) > 94
    clipped = np.maximum(-1000, 400 + 60 * rng.standard_normal(pores.shape) - 2400.0 * pores)
    grey = mark_outside(np.rint(np.where(outside, -1000, clipped)).astype(np.float32), "s")
    assert (grey.outside == outside).mean() > 0.999


def test_one_value_at_the_border_that_is_taken_for_sample_is_found():
    image = np.rint(np.random.default_rng(0).normal(100, 8, (192, 192)).clip(1, 254)).astype(
        np.float32
    )
    rows, columns = np.mgrid[:192, :192]
    for sample in (
        columns >= 16,
        np.hypot(rows - 192, columns - 192) <= 220,
        np.hypot(rows - 96, columns - 96) < 60,
    ):
        padded = np.where(sample, image, np.float32(0))
        assert mark_outside(padded, "s").outside is None
        value, share = find_flat_border(padded)
        assert value == 0
        assert share == pytest.approx((~sample).mean(), abs=0.01)
    assert find_flat_border(image) is None
    assert (
        find_flat_border(np.clip(image, 95, 105)) is None
    )  # values that were cut off lie everywhere
