"""Particles from the command line: units, points in time, maps beside the masks, and errors."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile


def balls(radii: list[int]) -> np.ndarray:
    mask = np.zeros((40, 40 * len(radii), 40), np.uint8)
    for i, radius in enumerate(radii):
        z, y, x = np.mgrid[:40, : mask.shape[1], :40]
        mask[(z - 20.2) ** 2 + (y - 20.1 - 40 * i) ** 2 + (x - 20) ** 2 < radius**2] = 255
    return mask


@pytest.fixture
def masks(tmp_path) -> Path:
    details = {
        "imagej": True,
        "resolution": (50, 50),
        "metadata": {"axes": "ZYX", "spacing": 0.02, "unit": "micron"},
    }
    tifffile.imwrite(tmp_path / "early.tif", balls([5, 8, 12]), **details)
    tifffile.imwrite(tmp_path / "late.tif", balls([6, 9, 13]), **details)
    return tmp_path / "early.tif"


def test_a_volume_in_micrometres(masks, command, tmp_path):
    code, out, err = command("evaluate", "particles", masks, masks.with_name("late.tif"))
    assert code == 0, err
    folder = tmp_path / "early_particles"
    assert out.splitlines()[-1] == str(folder)
    table = pd.read_csv(folder / "early.csv")
    table = table.sort_values("row")
    assert table["diameter"].to_numpy() == pytest.approx([0.2, 0.32, 0.48], rel=0.02)
    assert table["nearest"].to_numpy() == pytest.approx([0.8] * 3, rel=0.01)
    summary = json.loads((folder / "summary.json").read_text())
    early = summary["masks"]["early"]
    assert (early["unit"], early["voxel"], early["particles"], early["in_slices"]) == (
        "µm",
        [0.02] * 3,
        3,
        False,
    )
    assert [early["D10_number"], early["D90_number"]] == pytest.approx([0.2, 0.48], rel=0.02)
    assert early["fraction"] == pytest.approx((tifffile.imread(masks) > 0).mean())
    (pair,) = summary["compared"]
    assert pair["ratio"] == pytest.approx(13 / 12, rel=0.02)
    assert (folder / "sizes.png").stat().st_size > 5000


def test_slices_pixels_and_given_sizes(masks, command, tmp_path):
    grey = tifffile.imread(masks)
    (tmp_path / "folder").mkdir()
    for i in range(18, 23):
        tifffile.imwrite(tmp_path / "folder" / f"s_{i}.tif", grey[i] // 255)
    for name, options, diameter in (("px", [], 16), ("um", ["--pixel-size", 0.5], 8)):
        code, _, err = command(
            "evaluate",
            "particles",
            tmp_path / "folder",
            "--in-slices",
            "--output",
            tmp_path / name,
            *options,
        )
        assert code == 0, err
        table = pd.read_csv(tmp_path / name / "folder.csv")
        assert table["slice"].tolist() == [i for i in range(5) for _ in range(3)]
        assert table["diameter"][table["slice"] == 2].iloc[1] == pytest.approx(diameter, rel=0.03)
        details = json.loads((tmp_path / name / "summary.json").read_text())["masks"]["folder"]
        assert (details["unit"], details["in_slices"]) == ({"px": "px", "um": "µm"}[name], True)


def test_points_in_time_are_volumes_of_their_own(masks, command, tmp_path):
    both = np.stack([tifffile.imread(masks), tifffile.imread(masks.with_name("late.tif"))])
    tifffile.imwrite(tmp_path / "both.tif", both, imagej=True, metadata={"axes": "TZYX"})
    code, _, err = command(
        "evaluate", "particles", tmp_path / "both.tif", "--output", tmp_path / "o"
    )
    assert code == 0, err
    table = pd.read_csv(tmp_path / "o" / "both.csv").sort_values(["time", "row"])
    assert table["time"].tolist() == [0] * 3 + [1] * 3
    assert table["diameter"].to_numpy() == pytest.approx([10, 16, 24, 12, 18, 26], rel=0.02)


def test_uncertainty_of_each_particle(masks, command, tmp_path):
    map_of = np.zeros((40, 120, 40), np.float16)
    map_of[:, 40:80] = 0.25
    tifffile.imwrite(tmp_path / "u.tif", map_of, photometric="minisblack")
    code, _, err = command(
        "evaluate",
        "particles",
        masks,
        "--uncertainty",
        tmp_path / "u.tif",
        "--output",
        tmp_path / "o",
    )
    assert code == 0, err
    assert pd.read_csv(tmp_path / "o" / "early.csv")["uncertainty"].tolist() == [0, 0.25, 0]


def test_invented_particles_where_the_truth_is_known(masks, command, tmp_path):
    truth = tifffile.imread(masks)
    truth[:, 80:] = 0  # the largest particle is an invention
    doubt = np.where(np.arange(120)[:, None] >= 80, 0.25, 0.125).astype(np.float16) * np.ones(
        (40, 120, 40), np.float16
    )
    for name, array in (("t", truth), ("u", doubt)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array, photometric="minisblack")
    for options in ([], ["--in-slices"]):
        code, _, err = command(
            "evaluate",
            "particles",
            masks,
            "--uncertainty",
            tmp_path / "u.tif",
            "--truth",
            tmp_path / "t.tif",
            "--output",
            tmp_path / "o",
            *options,
        )
        assert code == 0, err
        table = pd.read_csv(tmp_path / "o" / "early.csv")
        assert table["truth"].tolist() == [float(row < 80) for row in table["row"]]
        result = json.loads((tmp_path / "o" / "summary.json").read_text())["masks"]["early"]
        assert (result["invented"], result["auc"]) == ((table["row"] >= 80).sum(), 1.0)


def test_uncertain_particles_are_left_out(masks, command, tmp_path):
    doubt = np.where(np.arange(120)[:, None] >= 80, 0.48, 0.3).astype(np.float16) * np.ones(
        (40, 120, 40), np.float16
    )
    tifffile.imwrite(tmp_path / "u.tif", doubt, photometric="minisblack")
    code, _, err = command(
        "evaluate",
        "particles",
        masks,
        "--uncertainty",
        tmp_path / "u.tif",
        "--max-uncertainty",
        0.45,
        "--output",
        tmp_path / "o",
    )
    assert code == 0, err
    assert (pd.read_csv(tmp_path / "o" / "early.csv")["row"] < 80).tolist() == [True, True]
    details = json.loads((tmp_path / "o" / "summary.json").read_text())["masks"]["early"]
    assert (details["particles"], details["max_uncertainty"]) == (2, 0.45)


def test_masks_without_particles(command, tmp_path):
    tifffile.imwrite(
        tmp_path / "none.tif", np.zeros((4, 30, 30), np.uint8), photometric="minisblack"
    )
    for options in ([], ["--in-slices"], ["--split"]):
        code, _, err = command("evaluate", "particles", tmp_path / "none.tif", *options)
        assert code == 0, err
    summary = json.loads((tmp_path / "none_particles" / "summary.json").read_text())["masks"][
        "none"
    ]
    assert (summary["particles"], summary["D50_number"], summary["fraction"]) == (0, None, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such file or folder"),
        (["grey.tif"], "grey.tif, slice 0: holds 10 values"),
        (["early.tif", "--pixel-size", "0"], "--pixel-size 0: must be above 0"),
        (["early.tif", "--smallest", "-1"], "--smallest -1: must be above 0"),
        (
            ["early.tif", "grey.tif", "--uncertainty", "grey.tif"],
            "--uncertainty, --truth: belong to one of MASKS",
        ),
        (
            ["early.tif", "--uncertainty", "plain.tif"],
            "plain.tif: has shape (40, 40, 40), early.tif (40, 120, 40)",
        ),
        (["early.tif", "--max-uncertainty", "0.4"], "--max-uncertainty: needs the map"),
        (
            ["early.tif", "plain.tif"],
            "one of MASKS has a pixel size and another has none; give --pixel-size",
        ),
        (
            ["early.tif", "--max-uncertainty", "nan", "--uncertainty", "early.tif"],
            "--max-uncertainty nan: must be above 0",
        ),
        (["early.tif", "--pixel-size", "inf"], "--pixel-size inf: must be above 0 and below 10⁹"),
        (
            ["plain.tif", "--slice-distance", "0.5"],
            "plain.tif: says no pixel size; --slice-distance needs --pixel-size",
        ),
        (["early.tif", "one.tif"], "one of MASKS is a slice and another a volume"),
        (["early.tif", "--output", "plain.tif"], "plain.tif: is a file; --output names a folder"),
        (
            ["early.tif", "--uncertainty", "negative.tif"],
            "negative.tif, slice 9: holds negative or infinite values",
        ),
        (["late_time.ome.tif"], "late_time.ome.tif: has axes ZTYX; save time as the first one"),
        (["mixed"], "mixed/b.tif: is (8, 9) px, the first slice (8, 8)"),
    ],
)
def test_errors_name_the_file_and_the_cure(
    masks, command, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("grey.tif", np.arange(50).reshape(5, 2, 5) % 10, photometric="minisblack")
    tifffile.imwrite("plain.tif", balls([5]), photometric="minisblack")
    tifffile.imwrite("one.tif", balls([5])[20], resolution=(1e4 / 0.02,) * 2, resolutionunit=3)
    tifffile.imwrite(
        "negative.tif", np.full((40, 120, 40), -0.1, np.float32), photometric="minisblack"
    )
    tifffile.imwrite(
        "late_time.ome.tif", np.zeros((3, 2, 8, 9), np.uint8), ome=True, metadata={"axes": "ZTYX"}
    )
    (tmp_path / "mixed").mkdir()
    for name, width in (("a", 8), ("b", 9)):
        tifffile.imwrite(f"mixed/{name}.tif", np.zeros((8, width), np.uint8))
    code, _, err = command("evaluate", "particles", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".csv", ".json", ".png")]


def test_a_slice_distance_of_the_file_stays_where_the_pixel_size_is_given(command, tmp_path):
    tifffile.imwrite(
        tmp_path / "m.tif",
        balls([5]),
        imagej=True,
        resolution=(50, 50),
        metadata={"axes": "ZYX", "spacing": 0.04, "unit": "um"},
    )
    for options, voxel in (
        ([], [0.04, 0.02, 0.02]),
        (["--pixel-size", 0.1], [0.04, 0.1, 0.1]),
        (["--pixel-size", 0.1, "--slice-distance", 0.2], [0.2, 0.1, 0.1]),
    ):
        assert (
            command(
                "evaluate", "particles", tmp_path / "m.tif", *options, "--output", tmp_path / "o"
            )[0]
            == 0
        )
        assert (
            json.loads((tmp_path / "o" / "summary.json").read_text())["masks"]["m"]["voxel"]
            == voxel
        )


def test_masks_of_one_name_keep_tables_of_their_own(command, tmp_path, monkeypatch):
    files = ["a/mask.tif", "b/mask.tif", "s_0.5um.tif", "s_0.7um.tif"]
    for i, file in enumerate(files):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / file, balls([4 + i]), photometric="minisblack")
    monkeypatch.chdir(tmp_path)
    for some, names in ((files[:2], ["a_mask", "b_mask"]), (files[2:], ["s_0.5um", "s_0.7um"])):
        assert command("evaluate", "particles", *some, "--output", "o")[0] == 0
        assert list(json.loads(Path("o/summary.json").read_text())["masks"]) == names
        sizes = [pd.read_csv(f"o/{name}.csv")["diameter"][0] for name in names]
        assert sizes[0] < sizes[1]
    assert command("evaluate", "particles", "a/mask.tif", "a/mask.tif", "--output", "o")[0] == 0
    assert {"a_mask_1.csv", "a_mask_2.csv"} < {p.name for p in Path("o").iterdir()}
    (tmp_path / "here").mkdir()
    tifffile.imwrite(tmp_path / "here" / "one.tif", balls([5])[20])
    monkeypatch.chdir(tmp_path / "here")
    assert command("evaluate", "particles", ".")[0] == 0
    assert (tmp_path / "here_particles" / "here.csv").exists()


def test_slices_of_several_sizes_and_points_in_time(command, tmp_path):
    (tmp_path / "mixed").mkdir()
    for name, width in (("a", 50), ("b", 40)):
        tifffile.imwrite(tmp_path / "mixed" / f"{name}.tif", balls([5])[20][:, :width])
    assert command("evaluate", "particles", tmp_path / "mixed", "--in-slices")[0] == 0
    tifffile.imwrite(
        tmp_path / "t.tif",
        np.stack([balls([5]), balls([6])]),
        imagej=True,
        metadata={"axes": "TZYX"},
    )
    assert command("evaluate", "particles", tmp_path / "t.tif", "--in-slices")[0] == 0
    table = pd.read_csv(tmp_path / "t_particles" / "t.csv")
    assert table.groupby("time")["slice"].agg(["min", "max"]).to_numpy().tolist() == [
        [16, 24],
        [15, 25],
    ]


def test_components_too_large_to_be_looked_at_are_counted_and_kept(
    masks, command, tmp_path, monkeypatch
):
    monkeypatch.setattr("particles.measuring.BOX_VOXELS", 12**3)
    tifffile.imwrite(
        tmp_path / "u.tif", np.full((40, 120, 40), 0.5, np.float32), photometric="minisblack"
    )
    code, _, err = command(
        "evaluate",
        "particles",
        masks,
        "--split",
        "--uncertainty",
        tmp_path / "u.tif",
        "--max-uncertainty",
        0.4,
    )
    assert code == 0, err
    assert f"{masks}: 2 components are too large to be looked at" in err
    summary = json.loads((tmp_path / "early_particles" / "summary.json").read_text())["masks"][
        "early"
    ]
    assert (summary["too_large"], summary["particles"]) == (2, 2)  # the small one is uncertain


def test_nothing_to_measure_beside_a_map(command, tmp_path):
    for name in ("none", "u"):
        tifffile.imwrite(
            tmp_path / f"{name}.tif", np.zeros((4, 30, 30), np.uint8), photometric="minisblack"
        )
    code, _, err = command(
        "evaluate",
        "particles",
        tmp_path / "none.tif",
        "--uncertainty",
        tmp_path / "u.tif",
        "--max-uncertainty",
        0.45,
    )
    assert code == 0, err


def test_a_border_of_the_region_that_was_predicted_cuts_particles(command, tmp_path):
    """Masks of `predict.py --roi` are as large as the slices, and zero where nothing was looked for."""
    whole, roi = np.zeros((3, 80, 90), np.uint8), (10, 70, 20, 80)
    whole[:, 30:40, 40:50] = 255  # wholly inside
    whole[:, 55:70, 60:80] = 255  # cut by the lower right corner
    for name, content in {"cropped": whole[:, 10:70, 20:80], "kept": whole}.items():
        (tmp_path / name).mkdir()
        for i, one in enumerate(content):
            tifffile.imwrite(tmp_path / name / f"s_{i}.tif", one)
    (tmp_path / "kept" / "prediction.json").write_text(json.dumps({"settings": {"roi": roi}}))
    tables = {}
    for name in ("cropped", "kept"):
        code, _, err = command("evaluate", "particles", tmp_path / name, "--in-slices")
        assert code == 0, err
        tables[name] = pd.read_csv(tmp_path / f"{name}_particles" / f"{name}.csv")
    assert tables["kept"]["touches_border"].tolist() == [False, True] * 3
    assert tables["kept"]["row"].tolist() == [34.5, 62.0] * 3
    assert tables["kept"]["column"].tolist() == [44.5, 69.5] * 3
    places = ["row", "column"]
    pd.testing.assert_frame_equal(
        tables["kept"].drop(columns=places), tables["cropped"].drop(columns=places)
    )


def test_masks_of_any_name_have_a_figure(masks, command, tmp_path, recwarn):
    for name in ("a$_$b.tif", "_hidden.tif"):
        masks.with_name(name).write_bytes(masks.read_bytes())
    code, _, err = command(
        "evaluate", "particles", tmp_path / "a$_$b.tif", tmp_path / "_hidden.tif"
    )
    assert code == 0, err
    assert not [w for w in recwarn if "legend" in str(w.message)]
