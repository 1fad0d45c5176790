"""The numbers of a fingerprint are those of shapes and noise that are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from slices.classes import classes_of
from slices.fingerprint import (
    FACTORS,
    area_under_curve,
    describe_fingerprint,
    finest,
    gaps_between_parts,
    noise_of,
    preferred_direction,
    take_fingerprint,
    take_fingerprints,
)
from slices.reading import Slice

SIDE = 200
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def painted(mask: np.ndarray, contrast: float = 60, noise: float = 10, seed: int = 0) -> Slice:
    """A slice with foreground brighter than the rest by `contrast`, under white noise."""
    rng = np.random.default_rng(seed)
    grey = 100 + contrast * mask + rng.normal(0, noise, mask.shape)
    image = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return Slice(Path(f"{seed}.tif"), image, mask.astype(np.uint8))


def disc(diameter: float, row: float = 100, column: float = 100) -> np.ndarray:
    return np.hypot(ROWS - row, COLUMNS - column) < diameter / 2


def strips(width: int, period: int) -> np.ndarray:
    return (COLUMNS + period // 2) % period < width


def test_a_strip_is_as_thick_as_it_is_wide():
    fingerprint = take_fingerprint([painted(strips(8, 40))])
    assert fingerprint.thickness == pytest.approx(8, rel=0.1)
    assert fingerprint.gap == 32
    assert fingerprint.foreground == pytest.approx(0.2)
    # Two long outlines in each period.
    assert fingerprint.outline == pytest.approx(2 / 40, rel=0.1)


def test_discs_have_their_diameter():
    mask = disc(20, 50, 50) | disc(20, 50, 150) | disc(60, 140, 100)
    fingerprint = take_fingerprint([painted(mask)])
    assert fingerprint.parts == 3
    assert fingerprint.diameter == pytest.approx(20, abs=0.5)
    assert fingerprint.smallest == pytest.approx(20, abs=0.5)
    assert fingerprint.largest == pytest.approx(52, abs=1)  # between 20 and 60
    one = take_fingerprint([painted(disc(60))])
    assert one.thickness == pytest.approx(40, rel=0.05)
    assert one.gap is None


def test_padding_is_no_gap():
    mask = np.zeros((1, 12), np.uint8)
    mask[0, [1, 5, 10]] = 1
    inside = np.ones((1, 12), bool)
    assert sorted(gaps_between_parts(mask, inside)) == [3, 4]
    inside[0, 3] = False
    assert sorted(gaps_between_parts(mask, inside)) == [4]


def test_contrast_is_counted_in_standard_deviations_of_the_noise():
    assert noise_of(painted(disc(100), noise=12)) == pytest.approx(12, rel=0.05)
    fingerprint = take_fingerprint([painted(disc(100), contrast=30, noise=15)])
    assert fingerprint.contrast_to_noise == pytest.approx(2, rel=0.1)


def test_the_area_under_the_curve_is_a_chance():
    classes = np.array([True, True, False, False])
    assert area_under_curve(np.array([3, 4, 1, 2]), classes) == 1
    assert area_under_curve(np.array([1, 2, 3, 4]), classes) == 1
    assert area_under_curve(np.array([1, 1, 1, 1]), classes) == 0.5
    assert area_under_curve(np.array([4, 1, 3, 2]), classes) == 0.5
    assert area_under_curve(np.array([4, 2, 3, 1]), classes) == 0.75
    assert area_under_curve(np.array([1, 2]), np.array([True, True])) == 0.5


def test_what_tells_foreground_is_found_at_its_scale():
    bright = take_fingerprint([painted(disc(120), contrast=20, noise=20)])
    grey = bright.separation["grey"]
    assert grey["0"] == pytest.approx(0.76, abs=0.02)  # Φ(1 / √2)
    assert grey["8"] > 0.97

    # As bright as its surroundings, but rougher.
    rough = painted(disc(120), contrast=0, noise=5)
    rng = np.random.default_rng(1)
    rough.image[rough.mask > 0] = rng.normal(100, 20, np.count_nonzero(rough.mask)).round()
    fingerprint = take_fingerprint([rough])
    assert max(fingerprint.separation["texture"].values()) > 0.95
    assert fingerprint.separation["grey"]["0"] < 0.55


@pytest.mark.parametrize(("angle", "mask"), [(90, strips(8, 20)), (0, strips(8, 20).T)])
def test_a_preferred_direction_is_found(angle, mask):
    fingerprint = take_fingerprint([painted(mask)])
    assert fingerprint.coherence > 0.8
    assert abs((fingerprint.direction - angle + 90) % 180 - 90) < 3


def test_discs_and_noise_have_no_direction():
    assert take_fingerprint([painted(disc(80))]).coherence < 0.1


def test_few_long_grains_have_a_direction_by_chance_only():
    """Four bars, of which three lie along rows, against a slice full of strips."""
    bars = [(20, 40), (70, 130), (150, 60)]
    grains = np.zeros((SIDE, SIDE), bool)
    for row, column in bars:
        grains[row : row + 8, column : column + 40] = True
    grains[110:150, 150:158] = True
    few = take_fingerprint([painted(grains, noise=2)])
    assert few.coherence > 0.15
    assert few.coherence < 2 * few.coherence_by_chance
    # The same grains on the next slices are no further evidence.
    again = take_fingerprint([painted(grains, noise=2, seed=seed) for seed in range(9)])
    assert again.coherence < 2 * again.coherence_by_chance
    full = take_fingerprint([painted(strips(8, 20), noise=2)])
    # All 16 parts of the slice agree.
    assert full.coherence == pytest.approx(4 * full.coherence_by_chance, rel=0.1)


def test_neighbours_are_compared():
    first, twin, stranger = painted(disc(80)), painted(disc(80), seed=1), painted(disc(80, 40, 40))
    assert take_fingerprint([first]).neighbours is None
    assert take_fingerprint([first, twin]).neighbours > 0.95
    assert take_fingerprint([first, stranger]).neighbours < 0.5


def test_blocks_keep_coarse_shapes_better_than_fine_ones():
    coarse, fine = [take_fingerprint([painted(mask)]) for mask in (disc(120), strips(3, 9))]
    assert coarse.kept["1"] == fine.kept["1"] == 1
    assert list(coarse.kept) == [str(factor) for factor in FACTORS]
    assert coarse.kept["8"] > 0.95
    assert fine.kept["4"] < 0.9
    # Empty masks do not hide what becomes of fine ones.
    empty = painted(np.zeros((SIDE, SIDE), bool))
    with_empty = take_fingerprint([painted(strips(3, 9)), empty, empty])
    assert with_empty.kept == fine.kept


def specks(side: int = 1) -> np.ndarray:
    """Squares of one or two pixels along a side, none of which fills a block of 2×2 pixels."""
    rows, columns = ROWS % 20, COLUMNS % 20
    return (rows >= 19 - side) & (rows < 19) & (columns >= 19 - side) & (columns < 19)


def test_fine_pores_do_not_hide_in_the_solid():
    solid = take_fingerprint([painted(~specks())])
    assert solid.kept["2"] < 0.5
    # What lies outside the sample is neither.
    whole = painted(disc(180))
    padded = Slice(whole.path, whole.image, whole.mask, ~disc(180))
    assert take_fingerprint([padded]).kept["8"] > 0.98


def test_small_parts_do_not_hide_behind_a_large_one():
    both = take_fingerprint([painted(disc(120) | specks(2))])
    assert both.kept["2"] > 0.98
    assert both.lost["1"] == 0
    assert both.lost["2"] > 0.9
    assert take_fingerprint([painted(disc(120))]).lost["2"] == 0
    assert "% of the parts" in describe_fingerprint(both)
    # A single pixel is a slip of the brush.
    assert take_fingerprint([painted(disc(120) | specks(1))]).lost["2"] == 0


def test_slices_without_foreground_have_a_fingerprint_too():
    fingerprint = take_fingerprint([painted(np.zeros((SIDE, SIDE), bool))])
    assert fingerprint.parts == 0
    assert fingerprint.diameter is fingerprint.thickness is fingerprint.gap is None
    assert fingerprint.contrast_to_noise is None
    assert set(fingerprint.separation["grey"].values()) == {0.5}
    assert set(fingerprint.kept.values()) == {1.0}
    assert "none" in describe_fingerprint(fingerprint)


def test_a_slice_that_is_foreground_all_over_shows_no_outline():
    full, half = painted(np.ones((SIDE, SIDE), bool)), painted(strips(8, 40))
    assert take_fingerprint([full]).thickness is None
    assert take_fingerprint([full, half]).thickness == pytest.approx(8, rel=0.1)


def test_only_the_sample_counts():
    mask = disc(60)
    whole = painted(mask)
    outside = np.hypot(ROWS - 100, COLUMNS - 100) > 70
    whole.image[outside] = 0
    cut = Slice(whole.path, whole.image, whole.mask, outside)
    fingerprint = take_fingerprint([cut])
    assert fingerprint.foreground == pytest.approx((30 / 70) ** 2, rel=0.02)
    assert fingerprint.contrast_to_noise == pytest.approx(6, rel=0.1)


def test_the_command_prints_a_table_and_writes_numbers(data_folder, tmp_path, command):
    file = tmp_path / "fingerprint.json"
    options = ["--roi", "8,72,8,72", "--output", file]
    code, out, _ = command("datasets", "fingerprint", data_folder, *options)
    assert code == 0
    written = json.loads(file.read_text())
    assert written["slices"] == 8
    assert f"{100 * written['foreground']:.1f} %" in out
    code, _, err = command("datasets", "check", data_folder, *options)
    assert code == 2
    assert "--output" in err


@pytest.mark.parametrize("name", ["slice.tif", "earlier.json"])
def test_the_command_overwrites_nothing(data_folder, tmp_path, command, name):
    (tmp_path / name).write_text("precious")
    code, _, err = command("datasets", "fingerprint", data_folder, "--output", tmp_path / name)
    assert code == 2
    assert "must end in .json" in err or "exists already" in err
    assert (tmp_path / name).read_text() == "precious"


def test_a_single_row_of_pixels_has_no_direction():
    assert preferred_direction([painted(ROWS[:1] > 5)]) == (0.0, 0.0, 0.0)


def test_whole_slices_without_a_class_say_nothing_of_its_sizes():
    """A thin crack that is painted in strokes keeps every pixel, whatever whole slices of grains allow."""
    grains = np.zeros((64, 64), np.uint8)
    grains[8:40, 8:40] = 1
    cracks = np.zeros((64, 64), np.uint8)
    cracks[50, 10:50] = 2
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    whole = [Slice(Path(f"w{i}.tif"), image, grains) for i in range(2)]
    strokes = Slice(Path("s.tif"), image, cracks, painted=(cracks > 0) | (image > 200))
    classes = classes_of({"1": "matrix", "2": "grain", "3": "crack"}, "classes.json")
    found = take_fingerprints([*whole, strokes], classes)
    assert found["grain"].kept["2"] > 0.9
    assert found["crack"].kept == {}
    assert finest(list(found.values())) is found["crack"]
