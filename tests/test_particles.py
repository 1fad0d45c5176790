"""Particles against closed forms: discs, spheres, ellipsoids; and against the whole volume in memory."""

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.special import ellipe

from particles import command, components, measuring, shapes
from particles.measuring import MeasuringOptions
from runtime import messages


def ellipsoid(axes: tuple[float, ...], shift: float = 0.0, margin: int = 3) -> np.ndarray:
    """Voxels with their centre inside; centre of the figure off the grid by `shift`."""
    n = math.ceil(max(axes)) + margin
    grid = np.mgrid[(slice(-n, n + 1),) * len(axes)]
    return sum(((x - shift) / a) ** 2 for x, a in zip(grid, axes, strict=True)) < 1


def ellipsoid_surface(a: float, b: float, c: float) -> float:
    """By quadrature over the sphere."""
    t, p = np.meshgrid(np.linspace(0, np.pi, 600), np.linspace(0, 2 * np.pi, 600), indexing="ij")
    element = np.sqrt(
        (b * c * np.sin(t) ** 2 * np.cos(p)) ** 2
        + (a * c * np.sin(t) ** 2 * np.sin(p)) ** 2
        + (a * b * np.sin(t) * np.cos(t)) ** 2
    )
    return np.trapezoid(np.trapezoid(element, p[0], axis=1), t[:, 0])


# --- closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [4.4, 10, 25])
@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_a_sphere(radius, shift):
    pixel = 0.022
    (result,) = shapes.particle_table(ellipsoid((radius,) * 3, shift), pixel).to_dict("records")
    assert result["diameter"] == pytest.approx(2 * radius * pixel, rel=0.02)
    assert result["volume"] == pytest.approx(4 / 3 * np.pi * (radius * pixel) ** 3, rel=0.05)
    assert result["surface"] == pytest.approx(np.pi * result["diameter"] ** 2, rel=0.015)
    assert result["sphericity"] == pytest.approx(1, abs=0.015)
    assert result["aspect"] == pytest.approx(1, abs=0.02)
    assert result["solidity"] > 0.98
    assert not result["touches_border"]
    centre = math.ceil(radius) + 3 + shift
    assert [result[name] for name in measuring.PLACES] == pytest.approx([centre] * 3, abs=0.1)


@pytest.mark.parametrize("axes", [(8, 8, 24), (12, 20, 20), (6, 9, 15)])
def test_an_ellipsoid(axes):
    (result,) = shapes.particle_table(ellipsoid(axes, 0.2)).to_dict("records")
    assert result["aspect"] == pytest.approx(max(axes) / min(axes), rel=0.03)
    assert result["surface"] == pytest.approx(ellipsoid_surface(*axes), rel=0.02)
    sphere = (math.prod(axes)) ** (1 / 3)
    assert result["sphericity"] == pytest.approx(
        4 * np.pi * sphere**2 / ellipsoid_surface(*axes), rel=0.02
    )


@pytest.mark.parametrize("axes", [(12, 12), (8, 20)])
def test_a_disc_and_an_ellipse(axes):
    (result,) = shapes.particle_table(ellipsoid(axes, 0.2), 0.5).to_dict("records")
    area, perimeter = (
        np.pi * math.prod(axes),
        4 * max(axes) * ellipe(1 - (min(axes) / max(axes)) ** 2),
    )
    assert result["area"] == pytest.approx(area / 4, rel=0.02)
    assert result["diameter"] == pytest.approx(math.sqrt(math.prod(axes)), rel=0.01)
    assert result["perimeter"] == pytest.approx(perimeter / 2, rel=0.02)
    assert result["circularity"] == pytest.approx(4 * np.pi * area / perimeter**2, rel=0.03)
    assert result["aspect"] == pytest.approx(max(axes) / min(axes), rel=0.03)


def test_several_particles_of_a_slice():
    mask = np.zeros((200, 300), np.uint8)
    cv2.circle(mask, (60, 50), 20, 1, -1)
    rows, columns = np.mgrid[:200, :300]
    mask[((columns - 160) / 60) ** 2 + ((rows - 100) / 20) ** 2 <= 1] = 1
    mask[190:, 290:] = 1
    table = shapes.particle_table(mask, 0.5).sort_values("column").reset_index(drop=True)
    assert table["touches_border"].tolist() == [False, False, True]
    assert table["diameter"][0] == pytest.approx(20, rel=0.03)  # 2 · 20 px · 0.5
    assert table["area"][1] == pytest.approx(np.pi * 60 * 20 * 0.25, rel=0.03)
    assert table["aspect"][0] == pytest.approx(1, abs=0.02)
    assert table["aspect"][1] == pytest.approx(3, rel=0.03)
    assert table["area"][2] == pytest.approx(100 * 0.25)
    assert table.loc[0, ["row", "column"]].tolist() == pytest.approx(
        [50, 60]
    )  # pixels, whatever the unit
    assert len(shapes.particle_table(np.zeros((5, 5)))) == 0


def test_slices_farther_apart_than_pixels_are_wide():
    squeezed = ellipsoid((6, 12, 12))
    labels = squeezed.astype(np.int32)
    result = shapes.measure(labels, (2.0, 1.0, 1.0), shapes.Place((0, 0, 0), labels.shape)).iloc[0]
    assert result["diameter"] == pytest.approx(24, rel=0.02)
    assert result["sphericity"] == pytest.approx(1, abs=0.03)
    assert result["aspect"] == pytest.approx(1, abs=0.05)


def test_a_hollow_and_a_bent_particle_are_less_solid():
    square = np.zeros((60, 60), bool)
    square[10:50, 10:50] = True
    angle = square.copy()
    angle[10:40, 20:50] = False
    solidity = [shapes.particle_table(mask)["solidity"][0] for mask in (square, angle)]
    assert solidity[0] > 0.97
    assert solidity[1] == pytest.approx(700 / (1600 - 450), rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (1, 3, 3), (2, 1)])
def test_particles_of_few_voxels_have_finite_shapes(shape):
    mask = np.pad(np.ones(shape, bool), 4)
    (result,) = shapes.particle_table(mask).to_dict("records")
    aspect = result.pop("aspect")
    assert np.isnan(aspect) or aspect >= 1
    assert np.isfinite(list(result.values())).all()
    assert result["voxels"] == math.prod(shape)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 9)])
def test_an_empty_mask_has_no_particles(shape):
    table = shapes.particle_table(np.zeros(shape, bool))
    assert len(table) == 0
    assert {"diameter", "touches_border", "weight"} <= set(table)


# --- touching particles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("distance", "parts"), [(1.7, 2), (1.0, 1)])
def test_two_balls_that_touch_are_split_and_a_slightly_waisted_one_is_not(
    dimensions, distance, parts
):
    radius, grid = 12, np.mgrid[(slice(0, 80),) + (slice(0, 40),) * (dimensions - 1)]
    centres = (20, 20 + distance * radius)
    mask = np.logical_or(
        *(
            sum((x - c) ** 2 for x, c in zip(grid, (c, 20, 20)[:dimensions], strict=True))
            < radius**2
            for c in centres
        )
    )
    table = shapes.particle_table(mask, 0.5, neck=1.0)
    assert len(table) == parts
    assert len(shapes.particle_table(mask, 0.5)) == 1
    if parts == 2:
        assert table["diameter"].to_numpy() == pytest.approx(radius, rel=0.05)


# --- a volume in slabs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("neck", [None, 0.5])
def test_a_volume_is_measured_as_if_it_were_in_memory(blobs, neck, monkeypatch):
    monkeypatch.setattr(components, "SLAB_VOXELS", 5 * 50 * 60)
    reads = []

    def read(i):
        reads.append(i)
        return blobs[i].astype(np.uint8) * 255

    values = np.random.default_rng(1).random(blobs.shape)
    result = pd.concat(
        measuring.measure_volume(
            read,
            blobs.shape,
            MeasuringOptions((0.5,) * 3, neck=neck, smallest=1),
            {"uncertainty": lambda i: values[i]},
        )
    )
    expected = shapes.particle_table(blobs, 0.5, neck)
    keys = ["slice", "row", "column"]
    result, expected = (t.sort_values(keys).reset_index(drop=True) for t in (result, expected))
    pd.testing.assert_frame_equal(result[expected.columns], expected, check_dtype=False)
    assert result["component"].nunique() == ndimage.label(blobs, np.ones((3, 3, 3)))[1]
    assert result["uncertainty"].between(0, 1).all()
    assert len(reads) < 3 * len(blobs)


def test_a_volume_that_takes_long_shows_how_far_it_is(blobs, monkeypatch, capsys):
    for name in ("QUIET_SECONDS", "PROGRESS_SECONDS"):
        monkeypatch.setattr(messages, name, 0.0)
    pd.concat(
        measuring.measure_volume(lambda i: blobs[i], blobs.shape, MeasuringOptions(smallest=1))
    )
    shown = capsys.readouterr().err
    for title in ("find particles", "measure particles"):
        assert len(set(re.findall(rf"{title}: +(\d+)%", shown))) > 5


def test_small_and_too_large_components(blobs, monkeypatch):
    some = pd.concat(
        measuring.measure_volume(lambda i: blobs[i], blobs.shape, MeasuringOptions(smallest=200))
    )
    assert some["voxels"].min() >= 200
    monkeypatch.setattr(measuring, "BOX_VOXELS", 4000)
    coarse = pd.concat(
        measuring.measure_volume(lambda i: blobs[i], blobs.shape, MeasuringOptions(smallest=200))
    )
    assert coarse["volume"].sum() == some["volume"].sum()
    assert coarse["surface"].isna().any()
    assert not coarse["surface"].isna().all()


def rod(radius: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    y, x = np.mgrid[:80, :80] - 40.0
    along, across = (
        np.cos(angle) * (x - shift[1]) + np.sin(angle) * (y - shift[0]),
        np.cos(angle) * (y - shift[0]) - np.sin(angle) * (x - shift[1]),
    )
    return (abs(across) <= radius) & (abs(along) <= 30)


@pytest.mark.parametrize("radius", [1.5, 3, 8])
def test_straight_rods_are_not_split(radius):
    rng = np.random.default_rng(0)
    parts = [
        components.split_touching(
            rod(radius, rng.uniform(0, np.pi), rng.uniform(-1, 1, 2)), (1, 1), command.NECK
        ).max()
        for _ in range(40)
    ]
    assert np.mean(np.array(parts) > 1) <= 0.05


def test_parts_of_what_is_split_are_particles_of_their_own():
    mask = np.zeros((30, 60, 30), bool)
    z, y, x = np.mgrid[:30, :60, :30] - np.array([15, 15, 15])[:, None, None, None]
    mask |= z**2 + y**2 + x**2 < 10**2
    mask[14:17, 20:30, 14:17] = True  # a bridge to a speck
    mask[13:18, 28:31, 13:18] = True
    volume = measuring.Volume(
        Path("m.tif"), "tiff", "ZYX", mask.shape, [""] * 30, lambda i: mask[i]
    )
    table = measuring.measure_masks(volume, MeasuringOptions(neck=0.3, smallest=500))
    assert (table["voxels"] >= 500).all()
    assert table.attrs["fraction"] == pytest.approx(mask.mean())


def test_rings_and_bridges_have_all_of_their_outline():
    y, x = np.mgrid[:70, :90] - np.array([35, 35])[:, None, None]
    ring = (y**2 + x**2 < 20**2) & (y**2 + x**2 >= 15**2)
    (result,) = shapes.particle_table(ring).to_dict("records")
    assert result["perimeter"] == pytest.approx(2 * np.pi * 35, rel=0.05)
    assert result["solidity"] == pytest.approx(1 - (15 / 20) ** 2, rel=0.05)
    pair = (y**2 + x**2 < 14**2) | (y**2 + (x - 32) ** 2 < 14**2)
    pair[35, 35:67] = True
    (result,) = shapes.particle_table(pair).to_dict("records")
    assert result["perimeter"] > 0.95 * 2 * 2 * np.pi * 14
    assert result["solidity"] < 0.9


def test_planes_of_one_voxel_have_no_aspect():
    plane = np.zeros((30, 30, 30), bool)
    for i in range(15):
        plane[5 + i, 5:20, 5 + i] = True
    assert shapes.particle_table(plane)["aspect"].isna().all()


# --- distributions --------------------------------------------------------------------------------------------


def test_without_weights_large_particles_would_be_missing():
    """Discs of two sizes, equally frequent, placed at random: of the large ones fewer lie wholly inside."""
    rng, diameters = np.random.default_rng(0), []
    for _ in range(400):
        radius = int(rng.choice([3, 20]))
        row, column = rng.uniform(-25, 125, 2)
        y, x = np.mgrid[:100, :100]
        mask = (y - row) ** 2 + (x - column) ** 2 < radius**2
        if mask.any():
            diameters.append(shapes.particle_table(mask))
    table = pd.concat(diameters)
    whole = table[~table["touches_border"]]
    small = whole["diameter"] < 10
    assert small.mean() > 0.65
    assert whole["weight"][small].sum() / whole["weight"].sum() == pytest.approx(0.5, abs=0.07)


def test_nearest_neighbours():
    table = pd.DataFrame({"slice": [0, 0, 5], "row": [0.0, 3.0, 0.0], "column": [0.0, 4.0, 0.0]})
    assert measuring.nearest_distances(table, (2.0, 1.0, 1.0)).tolist() == [5.0, 5.0, 10.0]
    assert np.isnan(measuring.nearest_distances(table[:1], (1.0, 1.0, 1.0))).all()
