"""Scores against MONAI and closed forms, intervals and tests that keep their promise, and the command line."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conftest import disc_slice
from evaluation import intervals, metrics, models, otsu
from evaluation.models import Scoring
from runtime.messages import InputError
from slices.data_folder import Data
from slices.reading import Slice
from slices.windows import percentile_window
from utils import SlidingWindow, overlap_metrics

CPU = torch.device("cpu")


def blobs(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((48, 40)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return smooth > np.quantile(smooth, 0.8)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(0, 1000), st.sampled_from([0.0, 1.0, 2.0, 3.5]))
def test_surface_dice_agrees_with_monai(a, b, tolerance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own imports warn
        from monai.metrics import compute_surface_dice

        prediction, truth = blobs(a), blobs(b)
        one_hot = [torch.from_numpy(np.stack([~m, m]))[None].float() for m in (prediction, truth)]
        expected = compute_surface_dice(*one_hot, [tolerance], include_background=False).item()
    assert metrics.surface_dice(prediction, truth, tolerance) == pytest.approx(expected, abs=1e-6)


def test_surface_dice_of_a_shifted_square():
    truth = np.zeros((40, 40), bool)
    truth[10:30, 10:30] = True
    assert metrics.surface_dice(np.roll(truth, 2, axis=1), truth, 2.0) == 1
    assert metrics.surface_dice(np.roll(truth, 3, axis=1), truth, 2.0) < 0.8
    empty = np.zeros_like(truth)
    assert metrics.surface_dice(empty, empty) == 1
    assert metrics.surface_dice(empty, truth) == 0


def test_otsu_is_chosen_on_the_slices_it_is_given():
    made = [disc_slice(i) for i in range(3)]
    labelled = [
        Slice(Path(f"{i}.tif"), percentile_window(image), truth)
        for i, (image, truth) in enumerate(made)
    ]
    fitted = otsu.fit_otsu(labelled)
    assert fitted.is_bright
    inverted = [Slice(s.path, 255 - s.image, s.mask) for s in labelled]
    assert otsu.fit_otsu(inverted) == otsu.Otsu(fitted.sigma, is_bright=False)
    dice = overlap_metrics(fitted.predict(labelled[0]), labelled[0].mask)["dice"]
    assert dice > 0.8


def table_of(scores: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": m, "stem": f"s{i}", **dict.fromkeys(metrics.METRICS, v)}
            for m, values in scores.items()
            for i, v in enumerate(values)
        ]
    )


def test_tables_hold_a_row_per_slice_and_method():
    truths = [np.eye(8, dtype=bool), np.zeros((8, 8), bool)]
    table = metrics.slice_table(
        {"a": truths, "b": [np.ones((8, 8), bool), truths[1]]}, truths, ["s1", "s2"]
    )
    assert table[["method", "stem"]].to_numpy().tolist() == [
        ["a", "s1"],
        ["a", "s2"],
        ["b", "s1"],
        ["b", "s2"],
    ]
    assert table["dice"].tolist() == [1, 1, pytest.approx(2 * 8 / 72), 1]
    assert table["fraction_truth"].tolist() == [0.125, 0, 0.125, 0]


def test_mean_and_interval():
    values = np.random.default_rng(0).normal(0.7, 0.1, 40)
    interval = intervals.mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(40)
    assert interval["mean"] == pytest.approx(values.mean())
    assert interval["low"] == pytest.approx(values.mean() - half, abs=0.01)
    assert interval["high"] == pytest.approx(values.mean() + half, abs=0.01)
    assert intervals.mean_interval([0.5]) == {"mean": 0.5, "low": None, "high": None}


def test_paired_comparison():
    rng = np.random.default_rng(1)
    base = rng.uniform(0.3, 0.9, 8)
    gain = rng.normal(0.05, 0.02, 8)
    result = intervals.compare(table_of({"control": base, "new": base + gain}), "new", "control")
    assert result["mean"] == pytest.approx(gain.mean())
    assert result["low"] > 0
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)  # all 2⁸ sign flips
    exact = np.mean(np.abs((signs * gain[:, None]).mean(axis=0)) >= abs(gain.mean()) - 1e-12)
    assert result["p"] == pytest.approx(exact)
    assert intervals.describe(result).endswith("slices): better.")
    same = intervals.compare(
        table_of({"control": base, "new": rng.permutation(base)}), "new", "control"
    )
    assert "no clear difference" in intervals.describe(same)
    worse = intervals.compare(table_of({"control": base + gain, "new": base}), "new", "control")
    assert "worse" in intervals.describe(worse)
    four = intervals.compare(
        table_of({"control": base[:4], "new": base[:4] + 0.1}), "new", "control"
    )
    assert four["low"] > 0
    assert "no clear difference" in intervals.describe(four)  # four slices cannot be significant
    single = intervals.compare(table_of({"control": [0.5], "new": [0.6]}), "new", "control")
    assert single["p"] is None
    assert "no interval" in intervals.describe(single)


def test_comparison_needs_the_same_slices():
    table = table_of({"control": [0.5, 0.6], "new": [0.6]})
    with pytest.raises(InputError, match="not measured on the same slices"):
        intervals.compare(table, "new", "control")
    with pytest.raises(InputError, match="not measured on the same slices"):
        intervals.compare(table, "absent", "control")


def test_summary():
    summary = intervals.summarise(table_of({"b": [0.5, 0.7], "a": [0.1, 0.1]}))
    assert list(summary) == ["b", "a"]
    assert summary["b"]["iou"]["mean"] == pytest.approx(0.6)


def test_sign_flip_test_is_calibrated():
    rng = np.random.default_rng(2)
    p = [
        intervals.compare(table_of({"c": np.zeros(7), "n": rng.normal(size=7)}), "n", "c")["p"]
        for _ in range(120)
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_command_line(tmp_path, command):
    for folder in ("pred", "truth"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        image, truth = disc_slice(i)
        tifffile.imwrite(
            tmp_path / "truth" / f"s_mask_{i}.tif", np.where(truth == 1, np.float32(-1e-4), image)
        )
        if i < 2:
            tifffile.imwrite(tmp_path / "pred" / f"s_{i}.tif", truth * np.uint8(255))
    options = ("--pred", tmp_path / "pred", "--truth", tmp_path / "truth")
    assert (
        "s_mask_0.tif: holds" in command("evaluate", *options)[2]
    )  # painted copies: their slices are not at hand
    options = (*options, "--mask-foreground", "dark")
    code, out, _ = command(
        "evaluate", *options, "--output", tmp_path / "new" / "t.csv", "--pixel-size", 0.02
    )
    assert code == 0
    assert "mean dice         1.0000" in out
    table = pd.read_csv(tmp_path / "new" / "t.csv")
    assert table["stem"].tolist() == ["s_0", "s_1"]
    assert table["particles_predicted"].tolist() == table["particles_truth"].tolist()
    tifffile.imwrite(tmp_path / "pred" / "s_2.tif", np.zeros((3, 4), np.uint8))
    assert "must be of one size" in command("evaluate", *options)[2]
    tifffile.imwrite(tmp_path / "pred" / "s_9.tif", np.zeros((3, 4), np.uint8))
    assert "s_9.tif: no mask" in command("evaluate", *options)[2]
    assert command("evaluate", "--pred", tmp_path / "none", "--truth", tmp_path)[0] == 2
    assert (
        command("evaluate", *options, "--output", tmp_path)[0] == 2
    )  # a folder where a file should be written
    assert "must be above 0" in command("evaluate", *options, "--pixel-size", -1)[2]


def test_only_the_region_that_was_predicted_is_scored(tmp_path, command):
    truth = np.zeros((60, 70), np.uint8)
    truth[10:20, 10:20] = truth[40:50, 50:60] = 255  # the second one lies outside
    predicted = np.where(np.arange(60)[:, None] < 30, truth, 0).astype(np.uint8)
    for folder, content in {"pred": predicted, "truth": truth}.items():
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "s_0.tif", content)
    options = ("evaluate", "--pred", tmp_path / "pred", "--truth", tmp_path / "truth")
    assert "mean dice         0.6667" in command(*options)[1]
    (tmp_path / "pred" / "prediction.json").write_text('{"settings": {"roi": [5, 35, 5, 45]}}')
    code, out, err = command(*options)
    assert code == 0, err
    assert "inside rows 5–35, columns 5–45" in out
    assert "mean dice         1.0000" in out


def test_unmatched_and_doubled_predictions_are_errors_whatever_the_folders_are_called(
    tmp_path, command, monkeypatch
):
    for folder in ("truth", "truth_pred"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            tifffile.imwrite(tmp_path / folder / f"s_{i}.tif", disc_slice(i)[1])
    monkeypatch.chdir(tmp_path / "truth")
    (tmp_path / "truth_pred" / "s_2.tif").unlink()
    options = ("--pred", "../truth_pred", "--truth", ".")
    assert command("evaluate", *options)[0] == 0  # more truth than predictions is fine
    for name in ("new_1.tif", "old_1.tif"):
        tifffile.imwrite(tmp_path / "truth_pred" / name, disc_slice(1)[1])
    (tmp_path / "truth_pred" / "s_1.tif").unlink()
    assert "s_1.tif: fits 2 images (new_1.tif, old_1.tif)" in command("evaluate", *options)[2]
    (tmp_path / "truth_pred" / "old_1.tif").unlink()
    (tmp_path / "truth_pred" / "new_1.tif").rename(tmp_path / "truth_pred" / "zzz_99.tif")
    monkeypatch.chdir(tmp_path)
    assert (
        "zzz_99.tif: no mask" in command("evaluate", "--pred", "truth_pred", "--truth", "truth")[2]
    )


def test_scores_over_thresholds():
    p, t = np.array([[0.2, 0.4, 0.6, 0.8]]), np.array([[0, 0, 0, 1]])
    table = metrics.threshold_scores([p, p], [t, t]).set_index("threshold")["dice"]
    assert table.index[[0, -1]].tolist() == [0.05, 0.95]
    assert table[0.05] == pytest.approx(0.4)
    assert table[0.7] == 1
    assert table[0.9] == 0


@pytest.mark.parametrize("threshold", [0.001, 0.2, 0.4, 0.5, 0.6, 0.999])
def test_stored_probabilities_give_the_mask_that_was_scored(threshold):
    steps = np.arange(256) / 255
    p = np.concatenate(
        [np.random.default_rng(0).random(100_000), steps, [threshold, np.nextafter(threshold, 0)]]
    )
    for probability in (p, p.astype(np.float32)):
        grey = models.to_grey(probability, threshold)
        assert grey.dtype == np.uint8
        assert ((grey / 255 >= threshold) == (probability >= threshold)).all()
        assert np.abs(grey / 255 - probability).max() < 1 / 255 + 1e-6
    assert (models.to_grey(steps, threshold) == np.arange(256)).all()


def only(train: Slice, test: Slice) -> Data:
    """Data of one slice to learn from and one to test."""
    return Data([train], [], [test], [])


def test_otsu_comes_from_the_training_slices_and_test_time_views_are_averaged_everywhere(tmp_path):
    made = [disc_slice(i, (64, 64)) for i in range(2)]
    train, test = (
        Slice(Path(f"s{i}"), percentile_window(image), truth)
        for i, (image, truth) in enumerate(made)
    )
    inverted = Slice(test.path, test.image, 1 - test.mask)
    details = models.evaluate_models(
        {}, only(train, inverted), tmp_path, Scoring(SlidingWindow(32), 0.5, "m"), CPU
    )
    assert details["otsu"]["bright"]
    assert pd.read_csv(tmp_path / "test_full.csv")["dice"].item() < 0.5

    class LeftHalf(torch.nn.Module):
        """Foreground on the left of every window, whatever the image shows."""

        def forward(self, x):
            return torch.linspace(20, -20, x.shape[-1]).expand_as(x)

    for tta, fraction in ((False, 0.5), (True, 1.0)):  # the mean over all views is 0.5 everywhere
        models.evaluate_models(
            {"m": LeftHalf()},
            only(train, test),
            tmp_path,
            Scoring(SlidingWindow(64, tta=tta), 0.499, "m"),
            CPU,
        )
        for file in ("test_full.csv", "test_patches.csv"):
            result = pd.read_csv(tmp_path / file).set_index("method").loc["m", "fraction_predicted"]
            assert result == pytest.approx(fraction, abs=0.02)


class Threshold(torch.nn.Module):
    """Foreground where the window is brighter than its own mean: what it says depends on the window."""

    def forward(self, x):
        return 20 * (x - x.mean(dim=(2, 3), keepdim=True))


def test_windows_of_any_size_are_scored_on_the_same_centre(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CENTRE", 32)
    image, truth = disc_slice(3, (96, 96))
    some = [Slice(Path("s"), percentile_window(image), truth)]
    for side in (32, 64):
        models.evaluate_models(
            {"m": Threshold()},
            only(some[0], some[0]),
            tmp_path,
            Scoring(SlidingWindow(side), 0.5, "m"),
            CPU,
        )
        rows = pd.read_csv(tmp_path / "test_patches.csv").set_index("method")
        window = some[0].image[48 - side // 2 : 48 + side // 2, 48 - side // 2 : 48 + side // 2]
        edge = side // 2 - 16
        result = (window > window.mean())[edge : edge + 32, edge : edge + 32]
        expected = metrics.slice_metrics(result, truth[32:64, 32:64])
        assert rows.loc["m", ["dice", "recall", "fraction_truth"]].tolist() == pytest.approx(
            [expected[k] for k in ("dice", "recall", "fraction_truth")]
        )
        assert rows.loc["Otsu", "fraction_truth"] == expected["fraction_truth"]


# --- volumes and uncertainty ----------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path) -> Path:
    """A predicted stack, its truth, and a map that is high where they differ."""
    truth = np.stack([disc_slice(i, (40, 50))[1] for i in range(3)])
    wrong = np.zeros_like(truth, bool)
    wrong[:, :4, :15] = True
    for name, array in (
        ("truth", truth * np.uint8(255)),
        ("pred", np.where(wrong, 1 - truth, truth) * np.uint8(255)),
        ("map", np.where(wrong, 0.3, 0.01).astype(np.float32)),
    ):
        tifffile.imwrite(tmp_path / f"{name}.tif", array, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path


def test_a_volume_against_its_truth(volume, command):
    code, out, err = command(
        "evaluate",
        "--pred",
        volume / "pred.tif",
        "--truth",
        volume / "truth.tif",
        "--uncertainty",
        volume / "map.tif",
        "--output",
        volume / "t.csv",
    )
    assert code == 0, err
    assert out.splitlines()[-1] == (
        "error rate 30.0 % in the most uncertain tenth, 0 % in the rest; that tenth holds 100 % of all errors"
    )
    table, (pred, truth) = (
        pd.read_csv(volume / "t.csv"),
        (tifffile.imread(volume / f"{n}.tif") for n in ("pred", "truth")),
    )
    assert table["stem"].tolist() == ["pred_0000", "pred_0001", "pred_0002"]
    for i, dice in enumerate(table["dice"]):
        assert dice == pytest.approx(metrics.slice_metrics(pred[i] > 0, truth[i] > 0)["dice"])


def test_pixels_without_sample_are_neither_certain_nor_right(volume, command):
    inside = np.zeros((3, 40, 50), np.uint8)
    inside[:, :, :25] = 255  # half of the pixels, and all that are wrong
    path = volume / "pred_inside.tif"
    tifffile.imwrite(path, inside, imagej=True, metadata={"axes": "ZYX"})
    options = ("--truth", volume / "truth.tif", "--uncertainty", volume / "map.tif")
    code, out, err = command("evaluate", "--pred", volume / "pred.tif", *options)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("error rate 60.0 % in the most uncertain tenth")


def test_maps_of_a_folder_belong_to_the_slices_of_their_name(volume, command):
    for name, kept in (("pred", (0, 2)), ("truth", (0, 1, 2)), ("map", (2, 0))):
        (volume / name).mkdir()
        stored = tifffile.imread(volume / f"{name}.tif")
        for i in kept:
            tifffile.imwrite(
                volume / name / f"s_{i}.tif", stored[i] * (1 if name != "map" or i else 0)
            )
    options = (
        "--pred",
        volume / "pred",
        "--truth",
        volume / "truth",
        "--uncertainty",
        volume / "map",
    )
    code, out, err = command("evaluate", *options)
    assert code == 0, err
    assert out.splitlines()[-1] == (  # in the first slice all is as certain
        "error rate 15.0 % in the most uncertain tenth, 1.67 % in the rest; that tenth holds 50 % of all errors"
    )
    (volume / "map" / "s_2.tif").unlink()
    code, _, err = command("evaluate", *options)
    assert code == 2
    assert f"{volume / 'map'}: has no map of {volume / 'pred' / 's_2.tif'}" in err


@pytest.mark.parametrize(
    ("pred", "truth", "more", "message"),
    [
        ("pred.tif", "short.tif", (), "pred.tif: has shape (3, 40, 50), short.tif (2, 40, 50)"),
        ("pred.tif", "none.tif", (), "none.tif: no such file"),
        ("grey.tif", "truth.tif", (), "grey.tif, slice 0: holds 3 values"),
        (
            "pred.tif",
            "truth.tif",
            ("--uncertainty", "short.tif"),
            "short.tif: has shape (2, 40, 50), pred.tif (3, 40, 50)",
        ),
        ("pred.tif", "truth.tif", ("--uncertainty", "none.tif"), "none.tif: no such file"),
        (
            "pred.tif",
            "truth.tif",
            ("--uncertainty", "nan.tif"),
            "nan.tif, slice 1: holds negative or infinite values",
        ),
        ("pred.tif", "truth.tif", ("--output", "."), ".: is a folder; --output names a .csv file"),
    ],
)
def test_volumes_that_cannot_be_compared(volume, command, monkeypatch, pred, truth, more, message):
    monkeypatch.chdir(volume)
    tifffile.imwrite("short.tif", np.zeros((2, 40, 50), np.uint8), photometric="minisblack")
    tifffile.imwrite(
        "grey.tif", np.arange(6000, dtype=np.uint8).reshape(3, 40, 50) % 3, photometric="minisblack"
    )
    unknown = tifffile.imread("map.tif")
    unknown[1, 3, 4] = np.nan
    tifffile.imwrite("nan.tif", unknown, photometric="minisblack")
    code, _, err = command("evaluate", "--pred", pred, "--truth", truth, *more)
    assert code == 2
    assert message in err.splitlines()[-1]


def test_a_folder_is_scored_beside_a_stack(tmp_path, command):
    truth = np.stack([disc_slice(i)[1] * np.uint8(255) for i in range(3)])
    tifffile.imwrite(tmp_path / "truth.tif", truth, photometric="minisblack")
    (tmp_path / "pred").mkdir()
    for i, one in enumerate(truth):
        tifffile.imwrite(tmp_path / "pred" / f"s_{i}.tif", one)
    for pred, true in (("pred", "truth.tif"), ("truth.tif", "pred")):
        code, out, err = command("evaluate", "--pred", tmp_path / pred, "--truth", tmp_path / true)
        assert code == 0, err
        assert "mean dice         1.0000" in out


def test_painted_truth_finds_its_slices(tmp_path, command):
    for folder in ("pred", "labeled/Original_masks", "labeled/Original_images"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(2):
        image, truth = disc_slice(i)
        tifffile.imwrite(tmp_path / "labeled" / "Original_images" / f"s_{i}.tif", image)
        tifffile.imwrite(
            tmp_path / "labeled" / "Original_masks" / f"s_mask_{i}.tif",
            np.where(truth == 1, np.float32(-1e-4), image),
        )
        tifffile.imwrite(tmp_path / "pred" / f"s_{i}.tif", truth * np.uint8(255))
    options = (
        "evaluate",
        "--pred",
        tmp_path / "pred",
        "--truth",
        tmp_path / "labeled" / "Original_masks",
    )
    code, out, err = command(*options)
    assert code == 0, err
    assert "mean dice         1.0000" in out
    (tmp_path / "labeled" / "Original_images").rename(tmp_path / "slices")
    assert command(*options)[0] == 2
    assert command(*options, "--images", tmp_path / "slices")[0] == 0
    code, _, err = command(*options, "--images", tmp_path / "missing")
    assert code == 2
    assert "missing: no slice found" in err


def test_a_painted_volume_finds_its_slices(tmp_path, command):
    grey, truth = (
        np.stack(parts) for parts in zip(*(disc_slice(i) for i in range(3)), strict=True)
    )
    grey = grey.astype(np.float32)
    for name, stack in {
        "grey": grey,
        "painted": np.where(truth == 1, np.float32(-1e-4), grey),
        "pred": truth * np.uint8(255),
    }.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    options = ("evaluate", "--pred", tmp_path / "pred.tif", "--truth", tmp_path / "painted.tif")
    assert command(*options)[0] == 2
    code, out, err = command(*options, "--images", tmp_path / "grey.tif")
    assert code == 0, err
    assert "mean dice         1.0000" in out
    tifffile.imwrite(tmp_path / "short.tif", grey[:2], photometric="minisblack")
    code, _, err = command(*options, "--images", tmp_path / "short.tif")
    assert code == 2
    assert "short.tif: has shape (2, " in err


def test_axes_in_another_order_are_refused(tmp_path, command):
    stack = np.zeros((3, 3, 40, 40), np.uint8)
    for name, axes in (("pred", "TZYX"), ("truth", "ZTYX")):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, ome=True, metadata={"axes": axes})
    code, _, err = command(
        "evaluate", "--pred", tmp_path / "pred.tif", "--truth", tmp_path / "truth.tif"
    )
    assert code == 2
    assert "pred.tif: has axes TZYX" in err
