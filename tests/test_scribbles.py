"""Strokes on label maps of which everything is known, and the demo data that is painted so."""

import json

import numpy as np
import pytest
import tifffile
from scipy import ndimage

import demo_data
from conftest import data_options
from phantoms.ellipsoids import Sizes, ellipsoid_depth, make_ellipsoids
from phantoms.nano_ct import PHASES, render, render_phases
from phantoms.scribbles import GATHERED, SPREAD, OutlineOf, random_pixel, scribble, share_out
from slices.data_folder import load_data
from slices.folder_check import check_data
from slices.options import IMAGES, MASKS, UNLABELLED, Reading


def regions() -> np.ndarray:
    """A large class, one of 40 000 pixels, one of 900 and one of 200."""
    labels = np.ones((500, 500), int)
    labels[50:250, 50:250] = 2
    labels[400:430, 400:430] = 3
    labels[300:304, :50] = 4
    return labels


# --- strokes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_as_much_is_painted_as_asked_for_and_of_large_classes_more(share):
    labels = regions()
    painted = scribble(labels, share, np.random.default_rng(0))
    assert painted.mean() == pytest.approx(share, rel=0.03)
    pixels = {value: np.count_nonzero(painted & (labels == value)) for value in (1, 2, 3, 4)}
    areas = {value: np.count_nonzero(labels == value) for value in pixels}
    for value in pixels:
        assert pixels[value] <= 0.5 * areas[value]
    # In proportion to the roots of their areas, but that nobody fills small things.
    if share == 0.01:
        assert pixels[1] / pixels[2] == pytest.approx(np.sqrt(areas[1] / areas[2]), rel=0.1)
    if share == 0.2:
        assert pixels[3] == pytest.approx(450, abs=30)
        assert pixels[4] == pytest.approx(100, abs=30)


def test_the_same_seed_gives_the_same_strokes_and_all_is_no_stroke():
    labels = regions()
    first, again, other = (scribble(labels, 0.02, np.random.default_rng(s)) for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert scribble(labels, 1.0, np.random.default_rng(0)).all()


def test_some_strokes_follow_outlines_and_none_crosses_one():
    labels = regions()
    labels[labels > 2] = 1
    painted = scribble(labels, 0.02, np.random.default_rng(0))
    for value in (1, 2):
        distance = ndimage.distance_transform_edt(labels == value)
        of_class = painted & (labels == value)
        near = (distance > 1) & (distance < 8)
        # Far more than would lie there by chance.
        by_chance = np.count_nonzero(near) / np.count_nonzero(labels == value)
        assert np.count_nonzero(of_class & near) > 2 * by_chance * np.count_nonzero(of_class)
        assert np.count_nonzero(of_class & (distance > 20)) > 0


def test_a_stroke_along_an_outline_keeps_its_distance():
    rows, columns = np.mgrid[:200, :200]
    disc = (rows - 100) ** 2 + (columns - 100) ** 2 < 60**2
    outline = OutlineOf(disc)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        start = random_pixel(outline.starts, disc.shape, rng)
        path = outline.follow(start, 20, rng)
        radius = np.hypot(*(path - 100).T)
        assert len(path) > 10
        assert np.ptp(radius) < 4
        assert 50 < radius.min()


def test_each_thing_gets_a_stroke_before_one_gets_another():
    # 49 squares: as the largest, of three pixels, and one that is as large as all others together.
    labels = np.ones((400, 400), int)
    for i in range(7):
        for k in range(7):
            side = 3 if (i + k) % 3 == 0 else 16
            labels[8 + 32 * i : 8 + 32 * i + side, 8 + 32 * k : 8 + 32 * k + side] = 2
    labels[240:380, 240:380] = 2
    things, count = ndimage.label(labels == 2)
    assert count == 50

    def things_with_paint(style):
        painted = scribble(labels, 0.06, np.random.default_rng(0), style)
        assert painted.mean() == pytest.approx(0.06, rel=0.03)
        return np.unique(things[painted & (labels == 2)]).size

    assert things_with_paint(SPREAD) == count
    assert things_with_paint(GATHERED) < count / 2


def test_what_one_cannot_take_the_others_get():
    equal = np.ones(3)
    parts = share_out(100.0, equal, np.array([10.0, 1000.0, 1000.0]))
    assert parts.tolist() == [10.0, 45.0, 45.0]
    assert share_out(90.0, np.array([2.0, 1.0]), np.array([999.0, 999.0])).tolist() == [60.0, 30.0]
    assert share_out(100.0, equal[:2], np.array([10.0, 20.0])).tolist() == [10.0, 20.0]
    assert share_out(0.0, equal[:1], np.array([10.0])).tolist() == [0.0]


# --- ellipsoids --------------------------------------------------------------------------------------


def test_ellipsoids_fill_their_share_and_keep_their_volume():
    sizes = Sizes(median=8, least=5, most=12, spread=0.3, elongation=0.3, filled=0.05)
    size = (60, 120, 120)
    ellipsoids = make_ellipsoids(np.random.default_rng(0), size, sizes)
    assert len(ellipsoids) > 10
    volumes = 4 / 3 * np.pi / np.abs(np.linalg.det(ellipsoids.axes))
    np.testing.assert_allclose(volumes, 4 / 3 * np.pi * ellipsoids.radii**3)
    inside = [(ellipsoid_depth(ellipsoids, z, size[1:], 10.0) < 0).mean() for z in range(60)]
    # Some overlap, and some reach out of the volume.
    assert 0.02 < np.mean(inside) < 0.05


def test_the_depth_of_a_ball_is_the_distance_to_its_surface():
    sizes = Sizes(median=9, least=9, most=9, spread=0.0, elongation=0.0, filled=1e-9)
    ball = make_ellipsoids(np.random.default_rng(1), (40, 60, 60), sizes)
    assert len(ball) == 1
    z, row, column = ball.centres[0]
    rows, columns = np.mgrid[:60, :60]
    expected = np.sqrt((rows - row) ** 2 + (columns - column) ** 2) - 9
    found = ellipsoid_depth(ball, z, (60, 60), 6.0)
    np.testing.assert_allclose(found, np.minimum(expected, 6.0), atol=1e-4)


# --- the demo ----------------------------------------------------------------------------------------


def test_phases_are_where_they_were_not_and_particles_are_the_same():
    image, labels = render_phases(0, 0, 30.0)
    plain = render(0, 0, 30.0)
    assert set(np.unique(labels)) == {1, 2, 3, 4}
    is_other = labels >= 3
    assert ((labels == 2) == (plain.truth & ~is_other)).all()
    far = labels[:200, :200] < 3
    difference = np.abs(image - plain.image)[:200, :200]
    # Only pores and inclusions, and the rim around them, have other grey values.
    assert difference[far].mean() < 0.1 * difference[~far].mean()
    mean = {value: image[labels == value].mean() for value in (1, 2, 3, 4)}
    assert mean[3] < mean[1] < mean[2] < mean[4]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "phases"
    demo_data.write_class_demo(folder, scans=1, labelled=6, share=0.03)
    return folder


def test_the_demo_of_classes_is_a_folder_of_label_maps(demo):
    check = check_data(demo, Reading())
    assert check.problems == []
    data = load_data(demo, data_options())
    assert data.classes.names == tuple(PHASES.values())
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 1, 1]
    assert all(s.painted is None for s in data.test)
    for s in [*data.train, *data.val]:
        assert s.painted.mean() == pytest.approx(0.03, rel=0.05)
    truth = tifffile.imread(demo_data.truth_folder_of(demo) / "time1_000.tif")
    assert set(np.unique(truth)) == {1, 2, 3, 4}
    assert tifffile.imread(demo / UNLABELLED / "time1_000.tif").shape == truth.shape


def test_scribbles_are_parts_of_the_whole_label_maps(demo, tmp_path):
    demo_data.write_class_demo(tmp_path / "whole", scans=0, labelled=6)
    for path in sorted((demo / MASKS).iterdir()):
        part = tifffile.imread(path)
        whole = tifffile.imread(tmp_path / "whole" / MASKS / path.name)
        assert (part == whole)[part > 0].all()
        assert (whole > 0).all()
        image = tifffile.imread(demo / IMAGES / path.name)
        assert (image == tifffile.imread(tmp_path / "whole" / IMAGES / path.name)).all()
    assert json.loads((demo / "demo.json").read_text())["painted"] == 0.03


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--scribbles", "0.1"), "--scribbles: are painted in label maps; give --classes"),
        (("--classes", "--scribbles", "0"), "--scribbles 0: must be above 0"),
        (("--classes", "--scribbles", "1.5"), "--scribbles 1.5: must be above 0"),
        (("--classes", "--strokes", "gathered"), "--strokes: has a meaning only with --scribbles"),
        (("--classes", "--material", "rods"), "--classes: is of the demo"),
    ],
)
def test_what_makes_no_sense_is_refused(command, tmp_path, options, what):
    code, _, err = command("demo_data", "--output", tmp_path / "new", *options)
    assert code == 2
    assert what in err
    assert not (tmp_path / "new").exists()
