"""Scores class by class: two classes are a binary mask, and only painted pixels count."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.class_metrics import (
    Truth,
    class_scores,
    class_table,
    confusion_matrix,
    confusion_table,
    foreground_table,
    mean_class_overlap,
    mean_table,
    painted_surface_dice,
)
from evaluation.metrics import METRICS, mean_overlap, slice_metrics, surface_dice
from evaluation.models import truth_of
from evaluation.phase_fractions import class_shares, fraction_table
from slices.reading import Slice
from utils import overlap_metrics

NAMES = ("matrix", "grain", "pore")


def random_labels(count: int, seed: int, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, size).astype(np.uint8)


def half(size: tuple[int, int] = (40, 50)) -> np.ndarray:
    counted = np.zeros(size, bool)
    counted[:, : size[1] // 2] = True
    return counted


def test_two_classes_have_the_scores_of_a_binary_mask():
    truths = [random_labels(2, i) for i in range(3)]
    masks = [random_labels(2, 10 + i).astype(bool) for i in range(3)]
    expected = mean_overlap(masks, truths)
    assert mean_class_overlap(masks, [Truth(t) for t in truths], 2) == expected
    for mask, truth in zip(masks, truths, strict=True):
        assert class_scores(mask, Truth(truth), 1) == slice_metrics(mask, truth)


def test_pixels_that_do_not_count_change_no_score():
    truth, prediction = random_labels(3, 0), random_labels(3, 1)
    other, elsewhere = truth.copy(), prediction.copy()
    other[:, 25:], elsewhere[:, 25:] = 0, 2
    for index in range(3):
        found = class_scores(prediction, Truth(truth, half()), index)
        assert class_scores(elsewhere, Truth(other, half()), index) == found
        part = slice_metrics(prediction[:, :25] == index, truth[:, :25] == index)
        for name in ("dice", "iou", "precision", "recall", "fraction_predicted", "fraction_truth"):
            assert found[name] == pytest.approx(part[name])


def test_where_paint_ends_there_is_no_outline():
    """A square of which the right half is not painted has the outline of the left half alone."""
    truth = np.zeros((40, 50), bool)
    truth[10:30, 10:40] = True
    everything = np.ones(truth.shape, bool)
    assert painted_surface_dice(truth, truth, everything) == 1
    shifted = np.roll(truth, 3, axis=0)
    whole = painted_surface_dice(shifted, truth, everything)
    assert whole == pytest.approx(surface_dice(shifted, truth), abs=0.02)
    # Upper and lower side lie 3 px apart, which is more than 2; the left one agrees, and so would
    # the end of the paint.
    part = painted_surface_dice(shifted & half(), truth & half(), half())
    assert part < surface_dice(shifted & half(), truth & half())
    nothing = np.zeros_like(truth)
    assert painted_surface_dice(nothing, nothing, half()) == 1
    assert painted_surface_dice(nothing, truth & half(), half()) == 0


def test_a_class_that_a_slice_lacks_has_no_score_there_and_none_in_the_mean():
    truth = np.zeros((10, 10), np.uint8)
    truth[:5] = 1
    prediction = truth.copy()
    prediction[9] = 2
    table = class_table({"m": [prediction]}, [Truth(truth)], ["s"], NAMES).set_index("class")
    assert table.loc["grain", "dice"] == 1
    assert np.isnan(table.loc["pore", "dice"])
    assert table.loc["pore", "fraction_predicted"] == pytest.approx(0.1)
    assert table.loc["matrix", "recall"] == pytest.approx(0.8)
    means = mean_table(table.reset_index(), NAMES)
    assert means["dice"].tolist() == [1]
    assert means["fraction_predicted"].tolist() == [pytest.approx(0.6)]
    assert means["fraction_truth"].tolist() == [pytest.approx(0.5)]


def test_in_a_slice_of_background_alone_each_class_is_an_empty_mask():
    truth = np.zeros((10, 10), np.uint8)
    prediction = truth.copy()
    prediction[0, 0] = 2
    table = class_table({"m": [prediction]}, [Truth(truth)], ["s"], NAMES).set_index("class")
    assert table.loc["grain", "dice"] == 1
    assert table.loc["pore", "dice"] == 0
    assert mean_table(table.reset_index(), NAMES)["dice"].tolist() == [0.5]


def test_means_over_classes_leave_out_the_background_and_what_is_painted_nowhere():
    truths = [Truth(random_labels(2, 0)), Truth(2 * random_labels(2, 1))]
    predictions = [random_labels(3, 2), random_labels(3, 3)]
    # Each class lacks in one slice: their Dice is that of all pixels together.
    expected = []
    for index in (1, 2):
        of_class = [np.concatenate([p == index for p in predictions])]
        truth = np.concatenate([t.classes == index for t in truths])
        expected.append(overlap_metrics(of_class[0], truth)["dice"])
    found = mean_class_overlap(predictions, truths, 4)
    assert found["dice"] == pytest.approx(np.mean(expected))


def test_tables_have_a_row_for_each_method_slice_and_class():
    truths = [Truth(random_labels(3, i)) for i in range(2)]
    predictions = {name: [random_labels(3, 7), random_labels(3, 8)] for name in "ab"}
    table = class_table(predictions, truths, ["s", "t"], NAMES)
    assert len(table) == 2 * 2 * 3
    assert list(table) == [
        *("method", "stem", "class"),
        *METRICS,
        *("fraction_predicted", "fraction_truth"),
    ]
    means = mean_table(table, NAMES)
    assert means[["method", "stem"]].to_numpy().tolist() == [
        [*pair] for pair in ("as", "at", "bs", "bt")
    ]
    rows = table[(table["method"] == "a") & (table["stem"] == "s") & (table["class"] != "matrix")]
    assert means["iou"][0] == pytest.approx(rows["iou"].mean())
    assert class_table({}, [], [], NAMES).empty
    assert mean_table(class_table({}, [], [], NAMES), NAMES).empty
    assert foreground_table({"a": []}, [], []).empty


def test_the_confusion_matrix_has_rows_of_truth_and_counts_painted_pixels():
    truth, prediction = random_labels(3, 0), random_labels(3, 1)
    counts = confusion_matrix([prediction], [Truth(truth, half())], 3)
    assert counts.sum() == half().sum()
    expected = np.count_nonzero((truth == 1) & (prediction == 2) & half())
    assert counts[1, 2] == expected
    table = confusion_table({"m": [prediction]}, [Truth(truth, half())], NAMES)
    row = table[(table["truth"] == "grain") & (table["predicted"] == "pore")]
    assert row["pixels"].tolist() == [expected]


# --- fractions ---------------------------------------------------------------------------------------


def test_shares_are_those_of_the_pixels_that_are_asked_for():
    labels = np.array([[0, 1, 2, 2]], np.uint8)
    where = np.array([[True, True, False, True]])
    assert class_shares(labels, where, 4).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert np.isnan(class_shares(labels, ~where & where, 4)).all()


def test_fractions_have_an_interval_over_models_and_slices():
    rng = np.random.default_rng(0)
    share = 0.3 + 0.05 * rng.standard_normal((3, 12, 1))
    predicted = np.concatenate([1 - share, share], axis=2)
    painted = np.full((12, 2), np.nan)
    painted[0] = [0.6, 0.4]
    table = fraction_table(predicted, painted, ("matrix", "pore")).set_index("class")
    assert table.loc["pore", "predicted"] == pytest.approx(share.mean())
    assert table.loc["pore", "low"] < share.mean() < table.loc["pore", "high"]
    # About two standard errors of 12 slices, of which each has its mean over three models.
    width = table.loc["pore", "high"] - table.loc["pore", "low"]
    assert 0.02 < width < 0.1
    assert table.loc["pore", "painted"] == pytest.approx(0.4)
    assert table.loc["matrix", "high"] == pytest.approx(1 - table.loc["pore", "low"])
    again = fraction_table(predicted, painted, ("matrix", "pore")).set_index("class")
    pd.testing.assert_frame_equal(again, table)


def test_a_single_slice_of_a_single_model_has_no_interval():
    table = fraction_table(np.array([[[0.7, 0.3]]]), np.array([[0.6, 0.4]]), ("matrix", "pore"))
    assert table["low"].isna().all()
    assert table["predicted"].tolist() == [0.7, 0.3]


def test_what_lies_outside_the_sample_is_no_class_but_background_of_a_binary_mask():
    outside = np.zeros((8, 8), bool)
    outside[:, :3] = True
    s = Slice(Path("s.tif"), np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), outside)
    assert truth_of(s, class_count=2).counted is None
    np.testing.assert_array_equal(truth_of(s, class_count=3).counted, ~outside)
    table = confusion_table(
        {"a": [np.zeros((8, 8), np.uint8)]}, [truth_of(s, 3)], ("matrix", "grain", "pore")
    )
    assert table["pixels"].sum() == 40
