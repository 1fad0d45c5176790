"""What to annotate next: typical slices first, none twice, none that cannot be ranked."""

import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import utils
from config import make_config
from conftest import TINY, as_options, run
from evaluation import annotate_next
from model_unet import UNet
from runtime.checkpoints import save_checkpoint
from runtime.devices import choose_device
from runtime.messages import InputError
from training import preparation
from utils import SlidingWindow, predict_image


def points(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


def rank(
    known: np.ndarray, features: np.ndarray, preferred: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    is_preferred = np.isin(np.arange(len(features)), preferred)
    ranking = annotate_next.rank_by_coverage(known, features, is_preferred)
    return ranking.order, ranking.coverage, ranking.coverage_alone


def test_coverage_takes_the_typical_before_the_outlying():
    order, coverage, alone = rank(points(0.0), points(0.1, 40, 9, 10, 10, 11))
    assert order[0] == 3  # the middle of the group, not the outlier
    assert order[1] == 1  # then the outlier: the group is covered
    assert order[-2:].tolist() == [0, 4]  # near-copies of annotated slices come last
    assert sorted(order) == list(range(6))
    assert coverage[-1] == pytest.approx(1)
    before, after = 0.1 + 40 + 9 + 10 + 10 + 11, 0.1 + 30 + 1 + 0 + 0 + 1
    assert coverage[0] == pytest.approx(1 - after / before)
    assert (np.diff(coverage) >= 0).all()
    assert alone[0] == pytest.approx(coverage[0])
    assert alone[-1] == alone[0]  # the copy would have done as well, had it been first
    assert alone[-2] == pytest.approx(0.1 * 6 / before)  # every slice comes 0.1 nearer


def test_coverage_is_greedy_facility_location():
    rng = np.random.default_rng(0)
    known, features = rng.normal(size=(2, 5)), rng.normal(size=(12, 5))
    order, coverage, alone = rank(known, features)
    known, features = known / features.std(0), features / features.std(0)

    def left(chosen):
        annotated = [*known, *features[list(chosen)]]
        return sum(min(np.linalg.norm(f - a) for a in annotated) for f in features)

    for n, chosen in enumerate(order):
        assert chosen == min(
            set(range(12)) - set(order[:n]),
            key=lambda candidate, n=n: left([*order[:n], candidate]),
        )
        assert coverage[n] == pytest.approx(1 - left(order[: n + 1]) / left([]))
        assert alone[n] == pytest.approx(1 - left([chosen]) / left([]))


def test_preferred_slices_come_first_and_stand_for_the_others():
    known, features = points(0.0), points(0.1, 40, 9, 10, 13, 11, 11)
    assert rank(known, features)[0][0] == 5
    order, coverage, _ = rank(known, features, (0, 1, 2))
    assert order[0] == 2  # nearest to the group, though 10 would be better
    assert set(order[:3]) == {0, 1, 2}
    assert order[3] == 5  # then the best of what is left
    assert coverage[-1] == pytest.approx(1)
    everything = [rank(known, features, preferred)[0].tolist() for preferred in ((), range(7))]
    assert everything[0] == everything[1]


def test_coverage_does_not_depend_on_the_scale_of_a_feature():
    rng = np.random.default_rng(1)
    known, features = rng.normal(size=(2, 4)), rng.normal(size=(9, 4))
    expected = rank(known, features)
    scales = np.array([1, 1e-9, 1e9, 7])
    result = rank(known * scales, features * scales)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_allclose(result[1], expected[1])
    constant = [
        np.column_stack([part, np.full(len(part), value)])
        for part, value in ((known, 3.0), (features, 5.0))
    ]
    np.testing.assert_array_equal(rank(*constant)[0], expected[0])


def test_coverage_of_copies():
    for known, value in ((2, 2), (2, 0), (0, 5)):  # nothing to choose from
        order, coverage, alone = rank(points(known), points(value, value, value))
        assert sorted(order) == [0, 1, 2]
        assert coverage.tolist() == [1, 1, 1]
        assert alone.tolist() == [0, 0, 0]
    order, coverage, alone = rank(points(0), points(5, 5, 5, 1))
    assert order[0] < 3
    assert order[1] == 3  # a copy of what is annotated teaches nothing
    assert coverage == pytest.approx([15 / 16, 1, 1, 1])


def test_collected_features_are_those_of_the_deepest_blocks():
    torch.manual_seed(0)
    model, images = UNet(2).eval(), torch.rand(3, 1, 64, 64)
    with annotate_next.collected_features(model) as passes, torch.no_grad():
        model(images)
        model(images[:1])
    with torch.no_grad():
        model(images)  # after it is closed, nothing is collected
        fine, coarse = model.encode(images)[-2:]
    assert [p.shape for p in passes] == [(3, 96), (1, 96)]
    expected = torch.cat(
        [fine.std((2, 3)), fine.mean((2, 3)), coarse.std((2, 3)), coarse.mean((2, 3))], 1
    )
    torch.testing.assert_close(passes[0], expected)
    torch.testing.assert_close(passes[1], expected[:1])
    with pytest.raises(KeyboardInterrupt), annotate_next.collected_features(model):
        raise KeyboardInterrupt
    assert not any(module._forward_hooks for module in model.modules())


def test_ranking_of_a_run(tiny, command):
    run(tiny)
    data = preparation.read_slices(tiny)
    table = annotate_next.rank_unlabelled(tiny, data)
    assert sorted(table["stem"]) == sorted(s.stem for s in data.unlabelled)
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["coverage"].is_monotonic_increasing
    assert table["coverage"].iloc[0] == pytest.approx(table["coverage_alone"].iloc[0])
    assert table["coverage"].iloc[0] > 0
    assert table["coverage"].iloc[-1] == pytest.approx(1)
    assert all(str(s.path) in set(table["file"]) for s in data.unlabelled)
    stored = tiny.run_folder / "annotate_next.csv"
    pd.testing.assert_frame_equal(pd.read_csv(stored), table)
    assert table["entropy"].is_unique
    turned = annotate_next.rank_unlabelled(dataclasses.replace(tiny, tta=True), data)
    entropies = [ranking.set_index("stem")["entropy"].sort_index() for ranking in (turned, table)]
    assert not np.allclose(*entropies)


def random_models(config) -> dict[str, UNet]:
    """Student and teacher of a run as different random networks, saved as its checkpoints."""
    models = {}
    for number, name in enumerate(annotate_next.MODELS):
        torch.manual_seed(number)
        models[name] = UNet(2).eval()
        save_checkpoint(config.checkpoint(name), models[name].state_dict(), {})
    config.run_folder.mkdir(parents=True)
    return models


def test_ranking_compares_training_slices_with_the_unlabelled_in_the_eyes_of_the_teacher(tiny):
    config, data = dataclasses.replace(tiny, tta=True), preparation.read_slices(tiny)
    teacher, described = random_models(config)["ssl_teacher"], []
    assert len(data.train) > 1
    for s in [*data.train, *data.unlabelled]:
        with annotate_next.collected_features(teacher) as passes:
            predict_image(
                teacher,
                s.image,
                choose_device("cpu"),
                SlidingWindow(config.patch_size, 0.25, tta=True),
            )
        described.append(torch.cat(passes).mean(0).numpy())
    table = annotate_next.rank_unlabelled(config, data)
    entropy = table.set_index("stem")["entropy"]
    assert (entropy.iloc[:2] <= entropy.iloc[2]).all()  # the certain half of three slices first
    certain = np.array([entropy[s.stem] <= entropy.median() for s in data.unlabelled])
    known, features = np.split(np.stack(described), [len(data.train)])
    ranking = annotate_next.rank_by_coverage(known, features, certain)
    assert table["stem"].tolist() == [data.unlabelled[i].stem for i in ranking.order]
    np.testing.assert_allclose(table["coverage"], ranking.coverage, rtol=1e-4)
    np.testing.assert_allclose(table["coverage_alone"], ranking.coverage_alone, rtol=1e-4)


def test_features_are_not_counted_twice_where_memory_runs_out(tiny, monkeypatch):
    """The first windows of an attempt that fails are seen again when fewer are tried."""
    config, data = dataclasses.replace(tiny, tta=True), preparation.read_slices(tiny)
    teacher, s, device = (
        random_models(config)["ssl_teacher"],
        data.unlabelled[0],
        choose_device("cpu"),
    )
    expected = annotate_next.describe_slice(config, teacher, s, device)

    monkeypatch.setattr(utils, "_fitting", {})
    failures = []

    def runs_out(_module, inputs, _output):
        if len(inputs[0]) > 2:
            failures.append(len(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    teacher.up4.register_forward_hook(runs_out)  # after the blocks whose features are collected
    probability, features = annotate_next.describe_slice(config, teacher, s, device)
    assert failures
    np.testing.assert_allclose(probability, expected[0], atol=1e-5)
    np.testing.assert_allclose(features, expected[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "block"), [("ssl_teacher", "bottleneck"), ("ssl_student", "refine")]
)
def test_models_without_numbers_rank_nothing(tiny, name, block):
    model = random_models(tiny)[name]
    getattr(model, block)[0].weight.data.fill_(np.nan)
    save_checkpoint(tiny.checkpoint(name), model.state_dict(), {})
    with pytest.raises(InputError, match=rf"best_{name}\.safetensors: its weights are not numbers"):
        annotate_next.rank_unlabelled(tiny, preparation.read_slices(tiny))
    assert not (tiny.run_folder / "annotate_next.csv").exists()


@pytest.mark.slow
def test_training_ends_with_the_ranking(workplace, data_folder, command):
    code, out, err = command("train", "--run=a", f"--data={data_folder}", *as_options(TINY))
    assert code == 0, err
    assert re.search(r"annotate next: .*/unlabeled/scan_\d\.tif", out)
    assert len(pd.read_csv("runs/a/annotate_next.csv")) == 3


@pytest.mark.slow
def test_labelled_slices_are_not_proposed(workplace, data_folder, command):
    shutil.rmtree(data_folder / "unlabeled")
    code, out, err = command("train", "--run=a", f"--data={data_folder}", *as_options(TINY))
    assert code == 0, err
    assert "annotate next" not in out
    code, out, err = command(
        "train", "--run=b", f"--data={data_folder}", *as_options({**TINY, "labels": 2})
    )
    assert code == 0, err
    data = preparation.read_slices(make_config(**TINY, data=str(data_folder), labels=2))
    assert set(pd.read_csv("runs/b/annotate_next.csv")["stem"]) == {s.stem for s in data.unlabelled}
    assert not {s.stem for s in data.unlabelled} & {
        s.stem for s in [*data.train, *data.val, *data.test]
    }


def test_what_cannot_be_ranked(tiny, command):
    supervised = dataclasses.replace(tiny, method="supervised")
    run(supervised)
    with pytest.raises(InputError, match="train a semi-supervised method first"):
        annotate_next.rank_unlabelled(supervised, preparation.read_slices(supervised))
    with pytest.raises(InputError, match="no unlabelled slice"):
        annotate_next.rank_unlabelled(
            tiny, dataclasses.replace(preparation.read_slices(tiny), unlabelled=[])
        )
