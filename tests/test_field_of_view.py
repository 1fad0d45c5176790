"""Particles that the edge of a field of view cuts are no whole ones."""

import numpy as np
import pandas as pd
import pytest
import tifffile

import particles
from field_of_view import circle, find_field
from utils import InputError
from volumes import masks_of_volume, open_volume

RADIUS, FIELD = 7, 60


@pytest.fixture(scope="module")
def spheres(tmp_path_factory):
    """A mask of equal spheres in a cylinder of radius `FIELD` whose wall cuts some, and in the whole box."""
    folder = tmp_path_factory.mktemp("spheres")
    shape, rng, centres = (60, 130, 130), np.random.default_rng(0), []
    while len(centres) < 150:
        centre = rng.uniform(0, shape)
        if all(np.sum((centre - other) ** 2) > (2 * RADIUS + 3) ** 2 for other in centres):
            centres.append(centre)
    z, y, x = np.indices(shape)
    mask = np.zeros(shape, np.uint8)
    for c in centres:
        mask |= ((z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 <= RADIUS**2).astype(np.uint8)
    inside = np.hypot(y[0] - 64.5, x[0] - 64.5) <= FIELD
    tifffile.imwrite(folder / "cut.tif", mask * inside * np.uint8(255), photometric="minisblack")
    tifffile.imwrite(folder / "inside.png.tif", inside * np.uint8(255), photometric="minisblack")
    middle = np.array([[abs(c[0] - 29.5), np.hypot(c[1] - 64.5, c[2] - 64.5)] for c in centres])
    whole = np.count_nonzero((middle[:, 0] < 29.5 - RADIUS) & (middle[:, 1] < FIELD - RADIUS))
    return folder, inside, whole


def diameters(folder, fov: str) -> tuple[np.ndarray, pd.DataFrame]:
    volume = open_volume(folder / "cut.tif")
    table = particles.measure_masks(volume, (1.0, 1.0, 1.0), False, fov=fov)
    return np.sort(table.loc[~table["touches_border"], "diameter"]), table


@pytest.mark.parametrize("fov", ["circle", f"64.5,64.5,{FIELD}", "inside.png.tif"])
def test_what_the_edge_cuts_touches_a_border(spheres, fov):
    folder, _, whole = spheres
    found, table = diameters(folder, str(folder / fov) if fov.endswith("tif") else fov)
    assert len(found) == pytest.approx(whole, abs=3)
    assert found.min() == pytest.approx(2 * RADIUS, rel=0.03)
    assert table.attrs["fov"]
    wrong, _ = diameters(folder, "none")
    assert len(wrong) > 1.3 * whole
    assert wrong.min() < 1.8 * RADIUS                           # halves, counted as particles


def test_foreground_that_ends_at_a_circle_is_said(spheres, capsys):
    diameters(spheres[0], "auto")
    assert "cut.tif: its foreground ends at a circle of 60 px" in capsys.readouterr().err


def test_weights_make_up_for_what_the_edge_cuts(spheres):
    """The share of discs with a centre inside that lie wholly inside is (1 − r/R)²."""
    field = circle((400, 400), 1, 199.5, 199.5, 190)
    for radius in (5, 40, 100):
        assert field.share_of_places(radius) == pytest.approx((1 - radius / 190) ** 2, abs=0.015)


def test_what_predict_wrote_beside_the_masks_is_the_field_of_view(tmp_path, spheres):
    folder, inside, _ = spheres
    (tmp_path / "mask.tif").write_bytes((folder / "cut.tif").read_bytes())
    depth = len(open_volume(tmp_path / "mask.tif"))
    stack = np.stack([inside * np.uint8(255)] * depth)
    tifffile.imwrite(tmp_path / "mask_inside.tif", stack, photometric="minisblack")
    volume = open_volume(tmp_path / "mask.tif")
    field = find_field("auto", volume, masks_of_volume(volume).__getitem__)
    np.testing.assert_array_equal(field.inside(3), inside)
    tifffile.imwrite(tmp_path / "mask_inside.tif", stack[:5], photometric="minisblack")
    with pytest.raises(InputError, match=r"mask_inside.tif: has shape"):
        find_field("auto", volume, masks_of_volume(volume).__getitem__)


def test_other_texts_are_refused(spheres):
    volume = open_volume(spheres[0] / "cut.tif")
    for text, message in (("square", "--fov square: expected"), ("900,900,5", "lies outside slices")):
        with pytest.raises(InputError, match=message):
            find_field(text, volume, masks_of_volume(volume).__getitem__)
