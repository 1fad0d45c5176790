"""What is left to gain: errors by kind, the band along outlines, agreement of runs and of annotations."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ceiling
from conftest import labelled, run
from utils import overlap_metrics


def boxes(*places: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((60, 60), bool)
    for top, bottom, left, right in places:
        mask[top:bottom, left:right] = True
    return mask


def test_wrong_pixels_are_counted_once_by_kind():
    truth = boxes((5, 15, 5, 15), (30, 40, 5, 15), (30, 34, 40, 44))
    result = boxes((5, 15, 6, 16), (30, 40, 5, 9), (50, 55, 50, 55))
    budget = ceiling.error_budget(result, truth)
    area = truth.sum()
    assert budget == {"missed": (60 + 16) / area, "invented": 25 / area, "outline": 20 / area}
    assert sum(budget.values()) == pytest.approx((result ^ truth).sum() / area)
    assert ceiling.error_budget(truth, truth) == {"missed": 0, "invented": 0, "outline": 0}
    empty = ceiling.error_budget(boxes(), truth)
    assert (empty["missed"], empty["outline"]) == (1, 0)
    assert ceiling.error_budget(result, boxes())["invented"] == result.sum()


def test_half_found_particles_count_as_found():
    truth, half, less = boxes((10, 20, 10, 20)), boxes((10, 20, 10, 15)), boxes((10, 20, 10, 14))
    assert ceiling.error_budget(half, truth) == {"missed": 0, "invented": 0, "outline": 0.5}
    assert ceiling.error_budget(less, truth) == {"missed": 0.6, "invented": 0, "outline": 0}


def test_a_shifted_outline_costs_nothing_beyond_the_band():
    truth = boxes((10, 40, 10, 40))
    shifted = boxes((12, 42, 10, 40))
    assert overlap_metrics(shifted, truth)["dice"] == pytest.approx(28 / 30)
    assert ceiling.dice_without_band(shifted, truth, 2) == 1
    assert ceiling.dice_without_band(shifted, truth, 1) < 1
    assert ceiling.dice_without_band(boxes((10, 40, 10, 40), (50, 55, 50, 55)), truth) < 1


def test_agreement_is_of_runs_with_the_same_slices():
    a, b = boxes((0, 10, 0, 10)), boxes((0, 10, 5, 15))
    result = ceiling.agreement([{"x": a, "y": a}, {"x": b}, {"x": a, "z": b}])
    assert result.to_dict() == {"x": pytest.approx((0.5 + 1 + 0.5) / 3)}
    assert ceiling.agreement([{"x": a}, {"y": a}]).empty


def test_annotations_of_neighbours():
    slices = labelled(4)
    table = ceiling.neighbours([slices[0], slices[1], slices[3]])
    assert table["distance"].tolist() == [1, 2]
    assert table["dice"][0] == overlap_metrics(slices[0].mask, slices[1].mask)["dice"]


def test_command_line(tiny, command):
    for seed in (0, 1):
        run(dataclasses.replace(tiny, run=f"s{seed}", seed=seed))
    code, out, err = command("benchmarks.ceiling", "runs/s0", "runs/s1", "--output", "rows.csv")
    assert code == 0, err
    assert "Dice of two runs with each other" in out
    assert "Dice of neighbouring annotations" in out
    rows = pd.read_csv("rows.csv")
    scores = pd.read_csv("runs/s1/test_full.csv").set_index(["method", "stem"])["dice"]
    for row in rows[rows["run"] == "s1"].itertuples():
        assert row.dice == pytest.approx(scores[row.method, row.stem])
    assert rows["agreement"].between(0, 1).all()
    assert (rows.groupby("stem")["agreement"].nunique() == 1).all()  # one number for the pair
    Path("runs/s0/predictions.npz").unlink()
    assert "predictions.npz: missing" in command("benchmarks.ceiling", "runs/s0")[2]
