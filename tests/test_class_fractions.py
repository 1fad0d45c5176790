"""Paint of strokes shows rare classes too often: how much they fill is estimated, and the network knows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from conftest import TINY, run, write_label_maps
from evaluation.recommendation import recommend_model
from mean_teacher import among_painted, new_network
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.files import read_json, write_json
from slices.reading import Slice
from training import class_fractions
from training.class_fractions import (
    Fractions,
    estimate_fractions,
    find_fractions,
    painted_fractions,
    score_paint,
    weighted_overlap,
    without_offset,
)
from utils import SlidingWindow
from viz.run_page import describe_results

TRUE = np.array([0.85, 0.1, 0.05])
PAINTED = np.array([0.4, 0.3, 0.3])
SIDE = 400


def noisy_slice(seed: int) -> tuple[Slice, np.ndarray]:
    """A slice of three classes, of which each is painted so much; and the probabilities among painted pixels."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, (SIDE, SIDE), p=TRUE).astype(np.uint8)
    grey = rng.normal(classes * 3.0, 1.0)
    chance = 0.05 * PAINTED / TRUE
    painted = rng.random(classes.shape) < chance[classes]
    s = Slice(
        Path(f"{seed}.tif"), np.zeros((SIDE, SIDE), np.uint8), classes * painted, painted=painted
    )

    likelihood = np.exp(-0.5 * (grey - 3.0 * np.arange(3)[:, None, None]) ** 2)
    among_paint = likelihood * PAINTED[:, None, None]
    return s, among_paint / among_paint.sum(axis=0)


def estimated_on(made: list[tuple[Slice, np.ndarray]]) -> np.ndarray | None:
    """What is estimated from some slices and the probabilities of their pixels."""
    everywhere = np.concatenate([p.reshape(3, -1) for _, p in made], axis=1)
    painted = np.concatenate([p[:, s.counted] for s, p in made], axis=1)
    labels = np.concatenate([s.mask[s.counted] for s, _ in made])
    return estimate_fractions(everywhere, painted, labels)


def test_fractions_are_estimated_from_what_is_painted_otherwise():
    made = [noisy_slice(seed) for seed in range(3)]
    np.testing.assert_allclose(painted_fractions([s for s, _ in made], 3), PAINTED, atol=0.02)
    found = estimated_on(made)
    np.testing.assert_allclose(found, TRUE, atol=0.02)


def test_paint_of_the_first_class_may_be_anything():
    made = [noisy_slice(seed) for seed in range(3)]
    # Nobody painted any of it where it is dark.
    for s, p in made:
        s.painted[(s.mask == 0) & (p[0] > 0.9)] = False
    found = estimated_on(made)
    np.testing.assert_allclose(found, TRUE, atol=0.02)


def test_a_network_that_knows_nothing_changes_nothing():
    s, probabilities = noisy_slice(0)
    guessed = np.random.default_rng(1).dirichlet([1, 1, 1], probabilities[0].size).T
    found = estimated_on([(s, guessed.reshape(probabilities.shape))])
    np.testing.assert_allclose(found, painted_fractions([s], 3), atol=0.1)
    assert not Fractions(painted_fractions([s], 3), found).is_biased


def test_of_little_paint_nothing_is_estimated():
    s, probabilities = noisy_slice(0)
    s.painted[s.mask == 2] = False
    assert estimated_on([(s, probabilities)]) is None


@pytest.mark.parametrize("outputs", [3, 1])
def test_odds_change_by_the_fractions(outputs):
    count = max(2, outputs)
    painted = PAINTED[:count] / PAINTED[:count].sum()
    fractions = Fractions(painted, TRUE[:count] / TRUE[:count].sum())
    assert fractions.is_biased
    offset = fractions.offset(outputs)
    before = torch.log(torch.tensor(painted)).float()
    logits = before if outputs > 1 else before[1:] - before[:1]
    moved = logits + offset
    after = moved.softmax(0) if outputs > 1 else torch.cat([1 - moved.sigmoid(), moved.sigmoid()])
    np.testing.assert_allclose(after, fractions.estimated, rtol=1e-5)


def test_paint_that_is_about_fair_changes_nothing():
    fractions = Fractions(np.array([0.6, 0.4]), np.array([0.7, 0.3]))
    assert not fractions.is_biased
    assert fractions.offset(1).tolist() == [0]


def test_slices_that_are_painted_everywhere_say_what_they_hold():
    partial, _ = noisy_slice(0)
    whole = Slice(
        Path("w.tif"), partial.image, np.random.default_rng(1).choice(3, (SIDE, SIDE), p=TRUE)
    )
    network = new_network(Config(base_channels=2), 3, has_offset=True)
    window = SlidingWindow(64, 0.25)
    found = find_fractions(network, [partial], [partial, whole], 3, torch.device("cpu"), window)
    np.testing.assert_allclose(found.estimated, TRUE, atol=0.01)


def test_of_a_class_without_paint_nothing_is_corrected():
    partial, _ = noisy_slice(0)
    whole = Slice(Path("w.tif"), partial.image, np.eye(SIDE, dtype=np.uint8) + 1)
    partial.painted[partial.mask == 2] = False
    network = new_network(Config(base_channels=2), 3, has_offset=True)
    cpu, window = torch.device("cpu"), SlidingWindow(64, 0.25)
    assert find_fractions(network, [partial], [whole], 3, cpu, window) is None


def dice_of(decided: np.ndarray, classes: np.ndarray) -> float:
    """Mean Dice over the classes but the background."""
    scores = []
    for index in (1, 2):
        mask, truth = decided == index, classes == index
        scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    return float(np.mean(scores))


def test_the_score_of_paint_is_that_of_all_pixels(monkeypatch):
    made = [noisy_slice(seed) for seed in range(3)]
    slices = [s for s, _ in made]
    monkeypatch.setattr(class_fractions, "predict_images", lambda *_: iter([p for _, p in made]))
    network = new_network(Config(base_channels=2), 3, has_offset=True)
    cpu, window = torch.device("cpu"), SlidingWindow(64, 0.25)
    found = score_paint(network, slices, slices, 3, cpu, window, 0.5)

    of_all, over_paint = [], []
    for seed, (s, p) in enumerate(made):
        classes = np.random.default_rng(seed).choice(3, (SIDE, SIDE), p=TRUE)
        of_all.append(dice_of((p * (TRUE / PAINTED)[:, None, None]).argmax(0), classes))
        over_paint.append(dice_of(p.argmax(0)[s.counted], s.mask[s.counted]))
    assert found["dice"] == pytest.approx(np.mean(of_all), abs=0.01)
    assert np.mean(over_paint) > np.mean(of_all) + 0.05


def test_fair_paint_is_scored_as_it_is():
    labels, decided = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    found = weighted_overlap(decided, labels, np.ones(3))
    assert found["dice"] == pytest.approx((0.8 + 0) / 2)
    assert found["iou"] == pytest.approx((2 / 3 + 0) / 2)
    # Of the background three times as many pixels: so there is more that is wrongly taken for the first class.
    found = weighted_overlap(decided, labels, np.array([3.0, 1.0, 1.0]))
    assert found["dice"] == pytest.approx(4 / 7 / 2)
    # A class that no pixel has counts not.
    found = weighted_overlap(decided[:4], labels[:4], np.ones(3))
    assert found["dice"] == pytest.approx(0.8)


def test_the_loss_of_painted_pixels_does_not_know_the_offset():
    network = new_network(Config(base_channels=2), 3, has_offset=True)
    network.class_offset.copy_(torch.tensor([1.0, -2.0, 0.5]))
    image = torch.rand(2, 1, 64, 64)
    raw = without_offset(network)(image)
    logits = network.eval()(image)
    torch.testing.assert_close(
        logits - raw, network.class_offset[None, :, None, None].expand_as(raw)
    )
    torch.testing.assert_close(among_painted(network, logits), raw)
    assert network.class_offset[0] == 1
    again = UNet.from_weights(network.state_dict())
    torch.testing.assert_close(again(image), logits)


def test_networks_that_learned_from_all_pixels_have_no_offset():
    network = new_network(Config(base_channels=2), 3)
    assert "class_offset" not in network.state_dict()
    logits = torch.rand(1, 3, 2, 2)
    assert among_painted(network, logits) is logits


def test_a_run_on_partial_paint_says_what_it_corrected(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d", share=0.3)
    config = Config(**{**TINY, "roi": None, "data": str(folder), "run": "r", "forest": False})
    run(config)
    phases = read_json(config.run_folder / "phases.json")
    names = {name for phase in phases.values() for name in phase.get("fractions", {})}
    assert names <= {"supervised", "continued", "ssl_student", "ssl_teacher"}
    for name in ("supervised", "continued", "ssl_student", "ssl_teacher"):
        weights, details = load_checkpoint(config.checkpoint(name))
        assert "class_offset" in weights
        phase = next(phase for phase in phases.values() if name in phase["best"])
        assert details["val_dice"] == phase["best"][name]["val_dice"]


def test_binary_masks_without_their_rim_are_painted_in_part(workplace, data_folder):
    config = Config(**{**TINY, "data": str(data_folder), "run": "r", "forest": False, "rim": 2})
    run(config)
    found = read_json(config.run_folder / "phases.json")["supervised"]["fractions"]
    for fractions in found.values():
        assert list(fractions["painted"]) == ["background", "foreground"]


def test_the_page_says_what_was_corrected_in_the_recommended_model(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d", share=0.3)
    config = Config(**{**TINY, "roi": None, "data": str(folder), "run": "r", "forest": False})
    run(config)
    path = config.run_folder / "phases.json"
    phases = read_json(path)
    chosen = recommend_model(config.run_folder).name
    shares = {"matrix": 0.4, "grain": 0.6}
    for phase in phases.values():
        phase.pop("fractions", None)
        if chosen in phase["best"]:
            phase["fractions"] = {
                chosen: {
                    "painted": shares,
                    "estimated": {"matrix": 0.9, "grain": 0.1},
                    "is_corrected": True,
                }
            }
    write_json(path, phases)
    text = "\n".join(describe_results(config.run_folder))
    assert "matrix 40.0 and 90.0 %, grain 60.0 and 10.0 %" in text
    phases[next(name for name, phase in phases.items() if "fractions" in phase)]["fractions"][
        chosen
    ]["is_corrected"] = False
    write_json(path, phases)
    assert "no fair sample" not in "\n".join(describe_results(config.run_folder))


def test_a_run_on_slices_that_are_painted_everywhere_has_nothing_of_it(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d")
    config = Config(**{**TINY, "roi": None, "data": str(folder), "run": "r", "forest": False})
    run(config)
    assert not any(
        "fractions" in phase for phase in read_json(config.run_folder / "phases.json").values()
    )
    weights, _ = load_checkpoint(config.checkpoint("supervised"))
    assert "class_offset" not in weights
