"""The random forest that stands beside every network: it learns from training slices, and is described plainly."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import labelled, run
from evaluation import models
from evaluation.forest import PixelForest, choose_threshold, fit_forest, forest_probabilities
from evaluation.models import Scoring, evaluate_models, move_threshold
from slices.data_folder import Data
from slices.reading import Slice
from utils import SlidingWindow, overlap_metrics
from viz.run_page import describe_results

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """A small forest is as good for a test, and there sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.forest.TREES", 20)
        yield


@pytest.fixture(scope="module")
def data() -> Data:
    slices = labelled(6)
    return Data(train=slices[:3], val=slices[3:4], test=slices[4:], unlabelled=[])


@pytest.fixture(scope="module")
def forest(data, few_trees) -> PixelForest:
    return fit_forest(data.train, data.val, seed=0)


def dice_of(forest: PixelForest, s: Slice) -> float:
    return overlap_metrics(forest.probability(s) >= forest.threshold, s.mask)["dice"]


def test_the_forest_finds_what_features_tell(data, forest):
    assert min(dice_of(forest, s) for s in data.test) > 0.8


def test_the_same_seed_gives_the_same_forest(data, forest):
    again, other = [fit_forest(data.train, [], seed) for seed in (0, 1)]
    image = data.test[0]
    assert (again.probability(image) == forest.probability(image)).all()
    assert (other.probability(image) != forest.probability(image)).any()


def test_the_threshold_is_chosen_on_validation_slices_only(data, forest):
    assert choose_threshold(forest.classifier, []) == 0.5

    # Where only what is quite sure is painted, a high threshold is the best one.
    probability = forest.probability(data.val[0])
    sure = dataclasses.replace(data.val[0], mask=(probability >= 0.9).astype(np.uint8))
    assert choose_threshold(forest.classifier, [sure]) == pytest.approx(0.9)
    empty = dataclasses.replace(data.val[0], mask=np.zeros_like(sure.mask))
    assert choose_threshold(forest.classifier, [empty]) == 0.5


def test_one_pixel_in_an_empty_slice_does_not_choose_the_threshold(data, monkeypatch):
    """What is likely to 0.6 is foreground; in a slice without any, one pixel seems likely."""
    truth, likely = np.zeros((20, 20), np.uint8), np.zeros((20, 20))
    truth[:10] = 1
    likely[:10] = 0.6
    likely[:4] = 0.97
    doubtful = np.zeros((20, 20))
    doubtful[3, 3] = 0.65
    maps = iter([1 - p, p] for p in (likely, doubtful))
    monkeypatch.setattr("evaluation.forest.forest_probabilities", lambda *_: next(maps))
    painted, empty = (
        dataclasses.replace(data.val[0], image=np.zeros((20, 20), np.uint8), mask=mask)
        for mask in (truth, np.zeros_like(truth))
    )
    assert choose_threshold(None, [painted, empty]) <= 0.6


def test_a_forest_that_saw_one_class_knows_no_other(data):
    none = [dataclasses.replace(s, mask=np.zeros_like(s.mask)) for s in data.train]
    forest = fit_forest(none, [], seed=0)
    assert not forest.probability(data.test[0]).any()


def test_padding_is_neither_learnt_from_nor_marked(data):
    s = data.train[0]
    outside = np.zeros(s.image.shape, bool)
    outside[:, :30] = True
    # What is painted in padding contradicts all the rest.
    mask = np.where(outside, 1 - s.mask, s.mask)
    forest = fit_forest([dataclasses.replace(s, mask=mask, outside=outside)], [], seed=0)
    assert dice_of(forest, data.test[0]) > 0.7
    assert not forest.probability(dataclasses.replace(s, outside=outside))[outside].any()


def test_a_slice_is_predicted_in_parts_as_at_once(data, forest, monkeypatch):
    at_once = forest_probabilities(forest.classifier, data.test[0])
    monkeypatch.setattr("evaluation.forest.PIXELS_AT_ONCE", 1000)
    assert (forest_probabilities(forest.classifier, data.test[0]) == at_once).all()


def test_a_threshold_is_moved_with_its_map():
    probability = np.linspace(0, 1, 101, dtype=np.float32)
    moved = move_threshold(probability, 0.3, 0.5)
    assert ((moved >= 0.5) == (probability >= 0.3)).all()
    assert (np.diff(moved) > 0).all()
    assert moved[0] == 0
    assert moved[-1] == 1


# --- in tables and on the page --------------------------------------------------------------------


class Nothing(torch.nn.Module):
    """A network that marks nothing."""

    def forward(self, x):
        return torch.full_like(x, -10)


def scored(data: Data, folder: Path, seed: int | None) -> dict:
    scoring = Scoring(SlidingWindow(32), 0.5, "control", seed)
    return evaluate_models({"supervised": Nothing()}, data, folder, scoring, CPU)


def test_the_forest_stands_in_the_tables_with_its_seconds(data, forest, tmp_path):
    summary = scored(data, tmp_path, seed=0)
    assert summary["forest"]["seconds"] > 0
    table = pd.read_csv(tmp_path / "test_full.csv").set_index(["method", "stem"])
    for s in data.test:
        assert table.loc[("random forest", s.stem), "dice"] == pytest.approx(dice_of(forest, s))
    without = scored(data, tmp_path, seed=None)
    assert "forest" not in without
    assert "random forest" not in pd.read_csv(tmp_path / "test_full.csv")["method"].unique()


def test_the_page_says_plainly_that_a_forest_is_as_good(data, tmp_path):
    scored(data, tmp_path, seed=0)
    assert any("random forest" in line and "as good" in line for line in describe_results(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["full"]["methods"]["supervised"]["dice"]["mean"] = 1.0
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert not any("as good" in line for line in describe_results(tmp_path))


def test_too_many_pixels_are_left_to_the_networks(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "FOREST_PIXELS", 100)
    assert "forest" not in scored(data, tmp_path, seed=0)
    assert "random forest: left out" in capsys.readouterr().err


def test_a_finished_run_may_add_the_forest_and_leave_it_out_again(tiny):
    run(tiny)
    weights = {path.name: path.read_bytes() for path in tiny.checkpoint_folder.iterdir()}
    for forest in (True, False):
        run(dataclasses.replace(tiny, forest=forest), resume=True)
        methods = set(pd.read_csv(tiny.run_folder / "test_full.csv")["method"])
        assert ("random forest" in methods) == forest
    assert weights == {path.name: path.read_bytes() for path in tiny.checkpoint_folder.iterdir()}
