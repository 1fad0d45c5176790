"""Synthetic materials: their shapes are where the mathematics says, and scans have the faults that were asked for."""

import numpy as np
import pytest

import demo_data
from phantoms.data_set import DataSet, build_material, draw_slice
from phantoms.materials import MATERIALS, Agglomerates
from phantoms.scanner import Scanner, scan
from phantoms.shapes import Plane, Rods, make_balls, make_cells, make_field, make_rods, make_sheet
from runtime.command_line import run_command_line
from runtime.messages import InputError
from slices.data_folder import load_data
from slices.folder_check import check_data
from slices.options import DataOptions
from slices.splits import SplitOptions

SIDE = 96
SIZE = (60, SIDE, SIDE)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- shapes ---------------------------------------------------------------------------------------


def test_a_field_has_mean_0_variance_1_and_its_wavelength():
    field = make_field(generator(), 12).at(Plane(5, (400, 400)))
    assert abs(field.mean()) < 0.1
    assert field.std() == pytest.approx(1, abs=0.1)
    power = np.abs(np.fft.rfft(field, axis=1)) ** 2
    # In a plane, waves that climb along z look longer.
    frequency = (power.mean(0) @ np.fft.rfftfreq(400)) / power.mean(0).sum()
    assert 1 / 24 < frequency < 1 / 10


def test_planes_of_one_field_fit_together():
    field = make_field(generator(), 40)
    first, near, far = [field.at(Plane(z, (200, 200))) for z in (0, 1, 80)]
    assert np.corrcoef(first.ravel(), near.ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(first.ravel(), far.ravel())[0, 1]) < 0.4


def test_depth_in_a_cell_is_the_distance_to_its_nearest_face():
    cells = make_cells(generator(), SIZE, 20, curvature=0)
    plane = Plane(30, (SIDE, SIDE))
    owner, depth = cells.at(plane)
    for row, column in ((10, 10), (40, 77), (95, 3)):
        to_seeds = np.linalg.norm(cells.seeds - (30, row, column), axis=1)
        own = np.argmin(to_seeds)
        assert owner[row, column] == own
        # A face lies halfway between two seeds, whichever of them makes the nearest one.
        apart = np.linalg.norm(np.delete(cells.seeds, own, axis=0) - cells.seeds[own], axis=1)
        lead = np.delete(to_seeds, own) ** 2 - to_seeds[own] ** 2
        assert depth[row, column] == pytest.approx((lead / (2 * apart)).min(), abs=1e-3)


def test_a_ball_is_a_circle_in_a_plane():
    ball = Rods(np.array([[30.0, 48.3, 47.6]]), np.zeros((1, 3)), np.array([10.0]))
    owner, distance = ball.at(Plane(36, (SIDE, SIDE)))
    assert np.count_nonzero(distance < 0) == pytest.approx(np.pi * (100 - 36), rel=0.03)
    assert set(np.unique(owner)) == {-1, 0}
    assert ball.at(Plane(45, (SIDE, SIDE)))[1].min() > 0


def test_a_rod_is_as_long_and_thick_as_it_should_be():
    rod = Rods(np.array([[30.0, 48, 48]]), np.array([[0, 0, 20.0]]), np.array([4.0]))
    inside = rod.at(Plane(30, (SIDE, SIDE)))[1] < 0
    assert np.count_nonzero(inside.any(0)) == pytest.approx(2 * (20 + 4), abs=1)
    assert np.count_nonzero(inside.any(1)) == pytest.approx(2 * 4, abs=1)


def test_balls_keep_their_distance():
    balls = make_balls(generator(), SIZE, np.full(60, 6.0), overlap=0.0)
    apart = np.linalg.norm(balls.centres[:, None] - balls.centres, axis=2)
    assert len(balls.radii) > 20
    assert apart[np.triu_indices(len(apart), 1)].min() >= 12


def test_rods_follow_a_preferred_direction():
    rods = make_rods(generator(), SIZE, 50, (2, 3), (20, 30), along=(0, 0, 1), spread=0.05)
    directions = rods.halves / np.linalg.norm(rods.halves, axis=1, keepdims=True)
    assert np.abs(directions[:, 2]).min() > 0.95


def test_a_sheet_is_as_thick_as_its_opening_lets_it():
    sheet = make_sheet(generator(3), SIZE, 6, 0)
    distance = sheet.at(Plane(30, (SIDE, SIDE)))
    assert (distance < 0).any()
    # No point of it is farther inside than half of the largest thickness.
    assert distance.min() > -3.01


# --- the scanner ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disc() -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    return (np.hypot(rows, columns) < 0.35 * SIDE).astype(np.float32)


def scanned(disc: np.ndarray, **options: float) -> np.ndarray:
    scanner = Scanner(**{"photons": 1e9, "blur": 0.0, "angles": 150, **options})
    return scan(disc, scanner, generator(), generator(1).normal(size=SIDE))


def test_a_faultless_scan_gives_the_attenuation(disc):
    image = scanned(disc)
    middle = np.s_[40:56, 40:56]
    assert image[middle].mean() == pytest.approx(1, abs=0.03)
    assert image[middle].std() < 0.02
    assert (image[:3, :3] == 0).all()


def test_fewer_photons_are_more_noise(disc):
    noise = [scanned(disc, photons=photons)[40:56, 40:56].std() for photons in (1e3, 1e5)]
    assert noise[0] > 5 * noise[1]


def test_hardening_is_a_hollow_in_the_middle(disc):
    image = scanned(disc, hardening=0.3)
    radius = 0.35 * SIDE
    middle = image[44:52, 44:52].mean()
    near_rim = image[48, round(48 + 0.8 * radius)]
    assert middle < near_rim - 0.05


def test_rings_are_round(disc):
    difference = scanned(disc, rings=0.05) - scanned(disc)
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    radius = np.hypot(rows, columns).round().astype(int)
    is_seen = radius < 40
    counts = np.bincount(radius[is_seen])
    means = np.bincount(radius[is_seen], difference[is_seen]) / counts
    explained = means[radius[is_seen]]
    # Both halves of a ring come from detector pixels of their own.
    assert np.corrcoef(explained, difference[is_seen])[0, 1] > 0.6


# --- materials ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATERIALS)
def test_each_material_has_something_to_be_found(name):
    truth = build_material(DataSet(name, side=160)).at(Plane(60, (240, 240))).truth
    assert 0 < truth.mean() < 0.7


def test_the_same_seed_gives_the_same_slice():
    first, again, other = [draw_slice(DataSet("foam", seed, side=SIDE), 2) for seed in (0, 0, 1)]
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[1] != other[1]).any()


def test_a_folder_of_a_material_can_be_trained_on(tmp_path):
    folder = tmp_path / "rods"
    demo_data.write_material(folder, DataSet("rods", slices=4, side=160))
    assert check_data(folder).problems == []
    data = load_data(folder, DataOptions(SplitOptions("blocks", 0.25, 0.25)))
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 1, 1]
    _, truth = draw_slice(DataSet("rods", slices=4, side=160), 0)
    assert (data.test[0].mask == truth).all()
    with pytest.raises(InputError, match="exists already"):
        demo_data.write_material(folder, DataSet("rods", slices=4, side=160))


def test_a_small_volume_has_regions_too():
    """Whatever the first radius is that is drawn: one region at least is placed."""
    for seed in range(40):
        material = Agglomerates(np.random.default_rng(seed), (1, 64, 64))
        assert len(material.regions.radii) >= 1


def test_the_command_writes_beside_the_demo(workplace, command):
    options = ["--material", "rods", "--slices", "1", "--size", "64"]
    code, out, err = command("demo_data", *options)
    assert code == 0, err
    assert "data/rods: 1 labelled slices of 64²" in out
    assert (workplace / "data" / "rods" / "material.json").exists()
    assert not (workplace / "data" / "demo").exists()


@pytest.mark.slow
def test_what_lies_outside_a_round_field_of_view_is_no_sample(tmp_path):
    folder = tmp_path / "pores"
    demo_data.write_material(folder, DataSet("pores", slices=3, side=160))
    data = load_data(folder, DataOptions(SplitOptions("blocks", 0.0, 0.34)))
    assert data.train[0].inside.mean() == pytest.approx(np.pi / 4, abs=0.02)


@pytest.mark.parametrize(
    "options",
    [
        ["--material", "foam", "--size", "63"],
        ["--material", "foam", "--slices", "0"],
        ["--material", "foam", "--volume", "volume.tif"],
        ["--material", "marble"],
        ["--material", "foam", "--scans", "3"],
        ["--volume", "volume.tif", "--scans", "3"],
        ["--slices", "12"],
        ["--size", "768"],
    ],
)
def test_the_command_refuses_what_cannot_be(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo_data.py", "--output", str(tmp_path / "new"), *options])
    with pytest.raises(SystemExit) as stop:
        run_command_line(demo_data.main)
    assert stop.value.code == 2
    assert list(tmp_path.iterdir()) == []
