"""Particles that the edge of a field of view cuts are no whole ones."""

import numpy as np
import pandas as pd
import pytest
import tifffile

from particles import measuring, sizes
from particles.field_of_view import circle, find_field
from particles.measuring import MeasuringOptions
from runtime.messages import InputError
from volumes.reading import open_volume
from volumes.volume import masks_of_volume

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
    table = measuring.measure_masks(volume, MeasuringOptions(in_slices=False, fov=fov))
    return np.sort(table.loc[~table["touches_border"], "diameter"]), table


@pytest.mark.parametrize("fov", ["circle", f"64.5,64.5,{FIELD}", "inside.png.tif"])
def test_what_the_edge_cuts_touches_a_border(spheres, fov):
    folder, _, whole = spheres
    result, table = diameters(folder, str(folder / fov) if fov.endswith("tif") else fov)
    assert len(result) == pytest.approx(whole, abs=3)
    assert result.min() == pytest.approx(2 * RADIUS, rel=0.03)
    assert table.attrs["fov"]
    wrong, _ = diameters(folder, "none")
    assert len(wrong) > 1.3 * whole
    assert wrong.min() < 1.8 * RADIUS  # halves, counted as particles


def test_foreground_that_ends_at_a_circle_is_said(spheres, capsys):
    diameters(spheres[0], "auto")
    assert "cut.tif: its foreground ends at a circle of 60 px" in capsys.readouterr().err


def test_weights_make_up_for_what_the_edge_cuts(spheres):
    """The share of discs with a centre inside that lie wholly inside is (1 − r/R)²."""
    field = circle((400, 400), 1, 199.5, 199.5, 190)
    for radius in (5, 40, 100):
        assert field.share_of_places(2 * radius, 2 * radius) == pytest.approx(
            (1 - radius / 190) ** 2, abs=0.015
        )


def strip_with(*boxes: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """A mask with some rectangles, and a field of view that is a strip of 50 rows."""
    inside = np.zeros((200, 200), np.uint8)
    inside[70:120] = 255
    mask = np.zeros_like(inside)
    for box in boxes:
        mask[box] = 255
    return mask, inside


def test_a_long_particle_in_a_strip_has_a_weight_of_its_own(tmp_path):
    squares = [np.s_[76:84, 10 * i : 10 * i + 8] for i in range(2, 14)]
    mask, inside = strip_with(np.s_[100:108, 30:150], *squares)
    tifffile.imwrite(tmp_path / "m.tif", mask)
    tifffile.imwrite(tmp_path / "fov.tif", inside)
    table = measuring.measure_masks(
        open_volume(tmp_path / "m.tif"),
        MeasuringOptions(in_slices=True, smallest=1, fov=str(tmp_path / "fov.tif")),
    )
    long = table["voxels"] > 500
    assert not table["touches_border"].any()
    assert table.loc[long, "weight"].item() < 5 * table.loc[~long, "weight"].mean()
    assert sizes.summarise_sizes(table)["D50_number"] < 10


def test_a_particle_that_fits_nowhere_else_counts_as_cut_and_is_said(tmp_path, capsys):
    mask, _ = strip_with()
    rows, columns = np.indices(mask.shape)
    ring = np.abs(np.hypot(rows - 100, columns - 100) - 70) < 4
    mask[ring & (columns < 100)] = 255
    tifffile.imwrite(tmp_path / "m.tif", mask)
    inside = np.where(
        np.abs(np.hypot(rows - 100, columns - 100) - 70) < 12, np.uint8(255), np.uint8(0)
    )
    tifffile.imwrite(tmp_path / "fov.tif", inside)
    table = measuring.measure_masks(
        open_volume(tmp_path / "m.tif"),
        MeasuringOptions(in_slices=True, fov=str(tmp_path / "fov.tif")),
    )
    assert table["touches_border"].all()
    assert "1 particles are so large that they fit hardly anywhere" in capsys.readouterr().err


def test_each_slice_by_itself_is_not_cut_by_its_neighbours(tmp_path):
    mask, inside = strip_with(np.s_[90:100, 90:100])
    stacks = {
        "m": np.stack([mask] * 3),
        "fov": np.stack([np.full_like(inside, 255), 0 * inside, inside]),
    }
    for name, stack in stacks.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    table = measuring.measure_masks(
        open_volume(tmp_path / "m.tif"),
        MeasuringOptions(in_slices=True, fov=str(tmp_path / "fov.tif")),
    )
    assert table["touches_border"].tolist() == [False, True, False]


def test_slices_of_several_sizes_have_fields_of_view_of_their_own(tmp_path):
    for folder in ("masks", "masks/inside"):
        (tmp_path / folder).mkdir()
    for i, size in enumerate((60, 80)):
        mask = np.zeros((size, size), np.uint8)
        mask[20:30, 20:30] = 255
        tifffile.imwrite(tmp_path / "masks" / f"s_{i}.tif", mask)
        tifffile.imwrite(tmp_path / "masks" / "inside" / f"s_{i}.tif", np.full_like(mask, 255))
    volume = open_volume(tmp_path / "masks")
    table = measuring.measure_masks(volume, MeasuringOptions(in_slices=True))
    assert len(table) == 2
    assert not table["touches_border"].any()
    for fov in ("circle", "30,30,20"):
        with pytest.raises(InputError, match=r"(60, 60)|(80, 80)"):
            measuring.measure_masks(volume, MeasuringOptions(in_slices=True, fov=fov))


def test_a_region_of_interest_is_one_of_the_field_of_view_too(tmp_path):
    mask, inside = strip_with(
        np.s_[76:84, 20:28], np.s_[70:78, 60:68]
    )  # the second one at the edge
    tifffile.imwrite(tmp_path / "m.tif", np.stack([mask] * 2), photometric="minisblack")
    tifffile.imwrite(tmp_path / "m_inside.tif", np.stack([inside] * 2), photometric="minisblack")
    table = measuring.measure_masks(
        open_volume(tmp_path / "m.tif"), MeasuringOptions(in_slices=True, roi=(60, 130, 10, 90))
    )
    assert (
        table["touches_border"].tolist()
        == (table["column"] > 40).tolist()
        == [True, False, True, False]
    )
    assert table.attrs["fraction"] == pytest.approx(128 / (50 * 80))


def test_what_predict_wrote_into_a_folder_is_the_field_of_view(tmp_path, spheres):
    folder, inside, _ = spheres
    (tmp_path / "out" / "inside").mkdir(parents=True)
    (tmp_path / "out" / "cut.tif").write_bytes((folder / "cut.tif").read_bytes())
    tifffile.imwrite(tmp_path / "out" / "inside" / "cut.tif", inside * np.uint8(255))
    volume = open_volume(tmp_path / "out" / "cut.tif")
    field = find_field("auto", volume, masks_of_volume(volume).__getitem__)
    np.testing.assert_array_equal(field.inside(0), inside)


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
    for text, message in (
        ("square", "--fov square: expected"),
        ("900,900,5", "lies outside slices"),
    ):
        with pytest.raises(InputError, match=message):
            find_field(text, volume, masks_of_volume(volume).__getitem__)


def test_one_ball_is_no_field_of_view(tmp_path, capsys):
    z, y, x = np.ogrid[:24, :96, :96]
    for name, row, column in (("diagonal", 30, 30), ("side", 48, 20), ("corner", 22, 70)):
        ball = ((z - 12) ** 2 + (y - row) ** 2 + (x - column) ** 2 <= 81).astype(
            np.uint8
        ) * np.uint8(255)
        tifffile.imwrite(tmp_path / f"{name}.tif", ball, photometric="minisblack")
        measuring.measure_masks(
            open_volume(tmp_path / f"{name}.tif"), MeasuringOptions(in_slices=False)
        )
        assert "ends at a circle" not in capsys.readouterr().err
