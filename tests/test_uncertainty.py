import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import train
import uncertainty
from config import make_config
from conftest import TINY, as_options, run
from utils import InputError


def test_entropy_of_known_probabilities():
    found = uncertainty.binary_entropy(np.array([0.0, 0.5, 1.0, 0.25]))
    np.testing.assert_allclose(found, [0, 1, 0, 0.8112781], atol=1e-6)


def test_uncertainty_of_a_slice():
    sure, unsure = np.zeros((10, 10)), np.zeros((10, 10))
    sure[:5], unsure[:5] = 1.0, 0.5
    calm = uncertainty.slice_uncertainty(sure, sure)
    assert calm == {"entropy": pytest.approx(0, abs=1e-6), "disagreement": 0.0, "fraction_predicted": 0.5}
    assert uncertainty.slice_uncertainty(unsure, unsure) == {
        "entropy": pytest.approx(0.5), "disagreement": 0.0, "fraction_predicted": 0.5}
    split = uncertainty.slice_uncertainty(sure, np.zeros((10, 10)))
    assert split["disagreement"] == 0.5                       # models that contradict each other are unsure together
    assert split["entropy"] == pytest.approx(0.5)
    twice = uncertainty.slice_uncertainty(np.tile(unsure, (1, 2)), np.tile(unsure, (1, 2)))
    assert twice["entropy"] == pytest.approx(0.5)             # the size of the slice does not count


def test_few_particles_alone_do_not_make_a_slice_uncertain():
    nothing, few, many = (np.full((100, 100), 0.001) for _ in range(3))
    few[:5, :20] = many[:40, :50] = 0.95                      # 1 and 20 % of the area, equally sure
    doubtful = np.where(many > 0.5, 0.6, 0.001)
    found = [uncertainty.slice_uncertainty(p, p)["entropy"] for p in (nothing, few, many, doubtful)]
    assert found == sorted(found)
    assert found[3] > 2 * found[2]


def test_ranking_of_a_run(tiny, command):
    run(tiny)
    data = train.read_slices(tiny)
    table = uncertainty.rank_unlabelled(tiny, data)
    assert sorted(table["stem"]) == sorted(s.stem for s in data.unlabelled)
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["entropy"].is_monotonic_decreasing
    assert all(str(s.path) in set(table["file"]) for s in data.unlabelled)
    stored = tiny.run_folder / "annotate_next.csv"
    pd.testing.assert_frame_equal(pd.read_csv(stored), table)
    assert table["entropy"].is_unique
    turned = uncertainty.rank_unlabelled(dataclasses.replace(tiny, tta=True), data)
    assert not np.allclose(turned["entropy"].sort_values(), table["entropy"].sort_values())


def test_training_ends_with_the_ranking(workplace, data_folder, command):
    code, out, err = command("train", "--run=a", f"--data={data_folder}", *as_options(TINY))
    assert code == 0, err
    assert re.search(r"annotate next: .*/unlabeled/scan_\d\.tif", out)
    assert len(pd.read_csv("runs/a/annotate_next.csv")) == 3


def test_labelled_slices_are_not_proposed(workplace, data_folder, command):
    shutil.rmtree(data_folder / "unlabeled")
    code, out, err = command("train", "--run=a", f"--data={data_folder}", *as_options(TINY))
    assert code == 0, err
    assert "annotate next" not in out
    code, out, err = command("train", "--run=b", f"--data={data_folder}", *as_options({**TINY, "labels": 2}))
    assert code == 0, err
    data = train.read_slices(make_config(**TINY, data=str(data_folder), labels=2))
    assert set(pd.read_csv("runs/b/annotate_next.csv")["stem"]) == {s.stem for s in data.unlabelled}
    assert not {s.stem for s in data.unlabelled} & {s.stem for s in [*data.train, *data.val, *data.test]}


def test_what_cannot_be_ranked(tiny, command):
    supervised = dataclasses.replace(tiny, method="supervised")
    run(supervised)
    with pytest.raises(InputError, match="train a semi-supervised method first"):
        uncertainty.rank_unlabelled(supervised, train.read_slices(supervised))
    with pytest.raises(InputError, match="no unlabelled slice"):
        uncertainty.rank_unlabelled(tiny, dataclasses.replace(train.read_slices(tiny), unlabelled=[]))
