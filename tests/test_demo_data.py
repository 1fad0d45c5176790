"""The synthetic data are as hard as promised, their truth is known, and the same seed gives the same bytes."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

import demo_data
from evaluation.otsu import fit_otsu
from slices.data_folder import load_data
from slices.folder_check import check_data
from slices.masks import read_mask
from slices.reading import ROI, Slice
from slices.windows import percentile_window
from utils import overlap_metrics

pytestmark = pytest.mark.slow  # the demo takes half a minute to make


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    demo_data.write_demo(folder, scans=2, labelled=6)
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_layout_and_types(demo):
    assert sorted(digest(demo)) == sorted(
        [
            "demo.json",
            "splits/split.json",
            "unlabeled/time1_000.tif",
            "unlabeled/time2_000.tif",
            *(f"labeled/Original_images/slice_{i:02d}.tif" for i in range(6)),
            *(f"labeled/Original_masks/slice_mask_{i:02d}.tif" for i in range(6)),
        ]
    )
    assert check_data(demo).problems == []
    image = tifffile.imread(demo / "labeled/Original_images/slice_00.tif")
    assert (image.shape, image.dtype) == ((768, 768), np.float32)
    assert 4e-5 <= image.min() < image.max() < 1e-3
    scan = tifffile.imread(demo / "unlabeled/time1_000.tif")
    assert scan.dtype == np.uint16
    assert scan.shape[0] > ROI[1]
    assert scan.shape[1] > ROI[3]


def test_training_sees_what_was_meant(demo):
    data = load_data(demo)
    assert [[s.stem for s in part] for part in (data.train, data.val, data.test)] == [
        [f"slice_0{i}" for i in (1, 2, 3, 4)],
        ["slice_05"],
        ["slice_00"],
    ]
    assert all(s.image.shape == (768, 768) for s in data.unlabelled)


def test_the_same_seed_gives_the_same_bytes(demo, tmp_path):
    demo_data.write_demo(tmp_path / "data", scans=2, labelled=6)
    assert digest(tmp_path) == digest(demo.parent)
    demo_data.write_demo(tmp_path / "other", scans=0, labelled=1, seed=1)
    name = "labeled/Original_images/slice_00.tif"
    assert digest(tmp_path / "other")[name] != digest(demo)[name]


def test_painted_masks_give_back_the_truth(demo):
    for index in (0, 3, 4):  # bright needles are painted over on 0 and 3
        truth = demo_data.render(0, 0, index * demo_data.SPACING).truth
        mask = read_mask(
            demo / f"labeled/Original_masks/slice_mask_{index:02d}.tif",
            "auto",
            demo / f"labeled/Original_images/slice_{index:02d}.tif",
        )
        np.testing.assert_array_equal(mask, truth[ROI[0] : ROI[1], ROI[2] : ROI[3]])


def test_truth_of_the_scans_lies_outside_the_tree_that_training_reads(demo):
    truth = demo_data.truth_folder_of(demo)
    assert demo not in truth.parents
    assert sorted(p.name for p in truth.iterdir()) == ["time1_000.png", "time2_000.png"]
    mask = cv2.imread(str(truth / "time2_000.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, demo_data.render(0, 2, 0.0).truth)


@pytest.fixture(scope="module")
def rendered() -> list[Slice]:
    views = [
        demo_data.render(0, time, z)
        for time, z in ((0, 0), (0, 10), (0, 110), (0, 210), (1, 100), (2, 100))
    ]
    inside = np.s_[ROI[0] : ROI[1], ROI[2] : ROI[3]]
    return [
        Slice(Path(f"{i}"), percentile_window(view.image[inside]), view.truth[inside])
        for i, view in enumerate(views)
    ]


def test_particles_fill_what_was_promised_and_touch_the_border(rendered):
    fractions = [s.mask.mean() for s in rendered]
    assert 0.08 <= np.mean(fractions) <= 0.14
    assert all(s.mask[[0, -1]].any() or s.mask[:, [0, -1]].any() for s in rendered)


def test_neighbouring_slices_are_near_copies_and_distant_ones_are_not(rendered):
    near = overlap_metrics(rendered[0].mask, rendered[1].mask)["dice"]
    far = overlap_metrics(rendered[0].mask, rendered[2].mask)["dice"]
    assert 0.6 < near < 0.9
    assert far < 0.3


def test_otsu_fails_even_at_its_best(rendered):
    otsu = fit_otsu(rendered)
    dice = [overlap_metrics(otsu.predict(s), s.mask)["dice"] for s in rendered]
    assert max(dice) < 0.5


def test_later_scans_have_less_contrast(rendered):
    contrast = [s.image[s.mask].mean() - s.image[~s.mask].mean() for s in rendered]
    assert np.mean(contrast[4:]) < 0.9 * np.mean(contrast[:4])


def test_command_line(tmp_path, command):
    code, _, err = command("demo_data", "--output", tmp_path, "--scans", 1)
    assert code == 2
    assert f"{tmp_path}: exists already" in err
    (tmp_path / "b_truth").mkdir()
    (tmp_path / "b_truth" / "mine.txt").touch()
    assert (
        "b_truth: exists already"
        in command("demo_data", "--output", tmp_path / "b", "--scans", 1)[2]
    )
    assert (tmp_path / "b_truth" / "mine.txt").exists()
    assert "must be 0 or more" in command("demo_data", "--output", tmp_path / "a", "--scans", -1)[2]


def test_command_line_writes(tmp_path, command, monkeypatch):
    monkeypatch.setattr(
        demo_data, "write_demo", lambda *a: (tmp_path / "called").write_text(repr(a))
    )
    code, out, _ = command("demo_data", "--output", tmp_path / "a", "--scans", 3, "--seed", 2)
    assert code == 0
    assert (tmp_path / "called").read_text() == repr((tmp_path / "a", 2, 3))
    assert "22 labelled slices, 3 scans" in out


# --- a volume -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("volume") / "v.tif"
    demo_data.write_volume(path, seed=3, slices=120, side=200)
    return path


def test_a_volume_is_an_imagej_stack_with_its_voxel_size(volume):
    with tifffile.TiffFile(volume) as file:
        assert file.is_imagej
        assert (file.series[0].axes, file.series[0].shape, file.series[0].dtype) == (
            "ZYX",
            (120, 200, 200),
            np.uint16,
        )
        assert file.imagej_metadata["spacing"] == demo_data.PIXEL_SIZE_UM
    grey, truth = tifffile.imread(volume), tifffile.imread(volume.with_name("v_truth.tif"))
    assert set(np.unique(truth)) == {0, 255}
    assert 0.03 < (truth > 0).mean() < 0.25
    assert grey[truth > 0].mean() > 1.05 * grey[truth == 0].mean()
    assert np.mean(truth[1:] == truth[:-1]) > 0.97  # neighbouring slices resemble each other


def test_true_particles_are_those_of_the_mask(volume):
    truth = tifffile.imread(volume.with_name("v_truth.tif"))
    table = pd.read_csv(volume.with_name("v_particles.csv"))
    whole = table[~table["touches_border"]]
    labels, _ = ndimage.label(truth, np.ones((3, 3, 3)))
    assert table["volume"].sum() == np.count_nonzero(truth)
    result = 0
    for particle in whole.itertuples():
        label = labels[round(particle.slice), round(particle.row), round(particle.column)]
        assert label > 0
        voxels = np.count_nonzero(labels == label)
        result += abs(voxels / particle.volume - 1) < 0.1  # the others touch a neighbour
    assert result >= 1
    assert result >= len(whole) / 3
    assert table["diameter"].to_numpy() == pytest.approx(
        (6 * table["volume"] / np.pi) ** (1 / 3), rel=1e-4
    )


def test_volumes_of_one_seed_are_the_same_bytes(volume, tmp_path, command):
    code, _, err = command(
        "demo_data", "--volume", tmp_path / "again.tif", "--seed", 3, "--slices", 120, "--size", 200
    )
    assert code == 0, err
    for name in (".tif", "_truth.tif", "_particles.csv"):
        assert (tmp_path / f"again{name}").read_bytes() == volume.with_name(f"v{name}").read_bytes()
    code, _, err = command("demo_data", "--volume", tmp_path / "again.tif")
    assert (code, err) == (
        2,
        f"error: {tmp_path / 'again.tif'}: exists already; choose another --volume, or delete it "
        "first\n",
    )
    assert command("demo_data", "--volume", tmp_path / "v.png")[0] == 2
