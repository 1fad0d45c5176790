"""Paint of strokes shows rare classes too often: how much they fill is estimated, and the network knows it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from config import Config
from conftest import TINY, run, write_label_maps
from mean_teacher import among_painted, new_network
from model_unet import UNet
from report import write_report
from runtime.checkpoints import load_checkpoint
from runtime.files import read_json, write_json
from runtime.messages import InputError
from runtime.progress import Progress
from slices.options import MASKS
from slices.reading import Slice
from training.class_fractions import (
    Fractions,
    PixelSample,
    describe_fractions,
    fractions_of_run,
    measure_fractions,
    painted_fractions,
    sample_pixels,
    score_alike,
    score_samples,
    share_rest,
    weighted_overlap,
    without_offset,
)
from utils import SlidingWindow
from viz.run_page import describe_results

TRUE = np.array([0.85, 0.1, 0.05])
PAINTED = np.array([0.4, 0.3, 0.3])
SIDE = 400
NAMES = ("matrix", "grain", "pore")


@dataclass
class Made:
    """A slice of three classes, of which each is painted so much, as a network sees it that knows them `apart` well."""

    seed: int
    apart: float = 3.0
    is_whole: bool = False

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.classes = rng.choice(3, (SIDE, SIDE), p=TRUE).astype(np.uint8)
        grey = rng.normal(self.classes * self.apart, 1.0)
        chance = 0.05 * PAINTED / TRUE
        self.is_painted = rng.random(self.classes.shape) < chance[self.classes]
        self.is_painted |= self.is_whole
        likelihood = np.exp(-0.5 * (grey - self.apart * np.arange(3)[:, None, None]) ** 2)
        among_paint = likelihood * PAINTED[:, None, None]
        self.probabilities = among_paint / among_paint.sum(axis=0)

    @property
    def slice(self) -> Slice:
        """What is read of it."""
        path, image = Path(f"{self.seed}.tif"), np.zeros((SIDE, SIDE), np.uint8)
        if self.is_whole:
            return Slice(path, image, self.classes)
        return Slice(path, image, self.classes * self.is_painted, painted=self.is_painted)

    @property
    def sample(self) -> PixelSample:
        """What a network says of all of its pixels."""
        return PixelSample(
            self.probabilities.reshape(3, -1),
            self.probabilities[:, self.is_painted],
            self.classes[self.is_painted].astype(int),
            SIDE**2,
            self.is_whole,
        )

    def true_dice(self, factors: np.ndarray) -> float:
        """Mean Dice of all pixels over the classes but the background, of the corrected network."""
        decided = (self.probabilities * factors[:, None, None]).argmax(0)
        scores = []
        for index in (1, 2):
            mask, truth = decided == index, self.classes == index
            scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        return float(np.mean(scores))


def samples_of(made: list[Made]) -> list[PixelSample]:
    """What a network says of some slices."""
    return [one.sample for one in made]


# --- how much each class fills --------------------------------------------------------------------


def test_fractions_are_estimated_from_what_is_painted_otherwise():
    made = [Made(seed) for seed in range(3)]
    painted = painted_fractions([one.slice for one in made], 3)
    np.testing.assert_allclose(painted, PAINTED, atol=0.02)
    found = measure_fractions(samples_of(made), painted)
    np.testing.assert_allclose(found.estimated, TRUE, atol=0.02)
    assert found.unknown == ()
    assert found.is_biased


def test_what_is_left_goes_to_classes_that_paint_does_not_show_too_often():
    painted = np.array([0.25, 0.25, 0.3, 0.2])
    found = share_rest(np.array([1.0, 0.6, 0.1, 0.05]), painted)
    np.testing.assert_allclose(found, [0.425, 0.425, 0.1, 0.05])
    # All bounds lie below the paint: then the first one, which comes nearest, is no bound.
    found = share_rest(np.array([0.2, 0.1, 0.1, 0.05]), painted)
    np.testing.assert_allclose(found, [0.75, 0.1, 0.1, 0.05])
    # Of the last one nothing is known.
    found = share_rest(np.array([1.0, 0.1, 0.1, np.nan]), painted)
    np.testing.assert_allclose(found, [0.6, 0.1, 0.1, np.nan])


def test_it_does_not_matter_which_class_is_the_first():
    made = [Made(seed) for seed in range(3)]
    order = [2, 0, 1]
    turned = []
    for sample in samples_of(made):
        labels = np.array([order.index(label) for label in range(3)])[sample.labels]
        turned.append(
            replace(
                sample,
                everywhere=sample.everywhere[order],
                painted=sample.painted[order],
                labels=labels,
            )
        )
    found = measure_fractions(turned, PAINTED[order])
    np.testing.assert_allclose(found.estimated, TRUE[order], atol=0.02)
    expected = measure_fractions(samples_of(made), PAINTED).estimated
    np.testing.assert_allclose(found.estimated, expected[order])


def test_a_class_that_no_training_slice_shows_is_no_background():
    whole = Made(0, is_whole=True)
    found = measure_fractions([whole.sample], np.array([0.5, 0.0, 0.5]))
    assert found.unknown == (1,)
    # Of the two that a network can know, as they are to each other.
    assert found.factors[0] / found.factors[2] == pytest.approx(TRUE[0] / TRUE[2], rel=0.05)


def test_paint_of_the_first_class_may_be_anything():
    made = [Made(seed) for seed in range(3)]
    # Nobody painted any of it where it is dark.
    for one in made:
        one.is_painted[(one.classes == 0) & (one.probabilities[0] > 0.9)] = False
    found = measure_fractions(samples_of(made), PAINTED)
    np.testing.assert_allclose(found.estimated, TRUE, atol=0.02)


def test_a_network_that_knows_nothing_changes_nothing():
    one = Made(0)
    guessed = np.random.default_rng(1).dirichlet([1, 1, 1], SIDE**2).T
    one.probabilities = guessed.reshape(one.probabilities.shape)
    found = measure_fractions([one.sample], PAINTED)
    np.testing.assert_allclose(found.estimated, PAINTED, atol=0.1)
    assert not found.is_biased
    assert found.factors.tolist() == [1, 1, 1]


def test_of_a_class_with_little_paint_nothing_is_told_but_of_the_others():
    one = Made(0)
    one.is_painted[one.classes == 2] = False
    found = measure_fractions([one.sample], PAINTED)
    assert found.unknown == (2,)
    assert found.estimated[2] == PAINTED[2]
    assert found.estimated[1] == pytest.approx(TRUE[1], abs=0.02)
    text = describe_fractions(found.record(NAMES))
    assert "grain 30.0 and 10" in text
    assert "how much of all pixels pore fills cannot be told" in text


def test_of_a_class_without_paint_nothing_is_learned():
    found = measure_fractions([Made(0).sample], np.array([0.6, 0.4, 0.0]))
    assert found.unknown == (2,)
    assert np.isfinite(found.factors).all()
    assert found.factors[2] == 1
    assert found.factors[1] == pytest.approx(0.25, rel=0.1)


def test_slices_that_are_painted_everywhere_say_what_they_hold():
    whole = Made(0, is_whole=True)
    # Whatever a network says of it.
    whole.probabilities = np.full_like(whole.probabilities, 1 / 3)
    found = measure_fractions([whole.sample], PAINTED)
    np.testing.assert_allclose(found.estimated, TRUE, atol=0.005)


def test_both_kinds_of_slices_count_by_their_pixels():
    whole, strokes = Made(0, is_whole=True), Made(1)
    # The whole one has none of the last class: that does not say that it is nowhere.
    whole.classes[whole.classes == 2] = 0
    found = measure_fractions([whole.sample, strokes.sample], PAINTED)
    assert found.estimated[2] == pytest.approx(TRUE[2] / 2, abs=0.01)
    assert found.estimated[1] == pytest.approx(TRUE[1], abs=0.015)
    assert measure_fractions([whole.sample], PAINTED).unknown == (2,)


def test_what_is_asked_of_a_network_is_what_it_says_without_its_offset():
    strokes = Made(0).slice
    strokes = Slice(
        strokes.path,
        np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), np.uint8),
        strokes.mask,
        painted=strokes.painted,
    )
    network = new_network(Config(base_channels=2), 3, has_offset=True)
    cpu, window = torch.device("cpu"), SlidingWindow(64, 0.25)
    (before,) = sample_pixels(network, [strokes], cpu, window)
    network.class_offset.copy_(torch.tensor([0.0, 3.0, -3.0]))
    (after,) = sample_pixels(network, [strokes], cpu, window)
    np.testing.assert_array_equal(before.everywhere, after.everywhere)
    assert before.pixels == SIDE**2
    assert not before.is_whole
    np.testing.assert_array_equal(before.labels, strokes.mask[strokes.painted])
    whole = np.asarray(before.everywhere).reshape(3, SIDE, SIDE)
    np.testing.assert_array_equal(before.painted, whole[:, strokes.painted])


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
    assert describe_fractions(fractions.record(("a", "b"))) == ""


def test_a_record_holds_all_of_them(tmp_path):
    fractions = Fractions(PAINTED, TRUE, (2,))
    phases = {"supervised": {"best": {}, "fractions": fractions.record(NAMES)}}
    assert fractions_of_run(tmp_path) is None
    write_json(tmp_path / "phases.json", phases)
    again = fractions_of_run(tmp_path)
    np.testing.assert_allclose(again.factors, fractions.factors, rtol=1e-4)
    assert again.unknown == (2,)
    phases["supervised"]["fractions"] = {"painted": 3}
    write_json(tmp_path / "phases.json", phases)
    with pytest.raises(InputError, match="its fractions are not what a run writes"):
        fractions_of_run(tmp_path)


# --- scores ---------------------------------------------------------------------------------------


def test_the_score_of_paint_is_that_of_all_pixels():
    made = [Made(seed) for seed in range(3)]
    fractions = Fractions(PAINTED, TRUE)
    found = score_samples(samples_of(made), fractions, 0.5)
    of_all = np.mean([one.true_dice(fractions.factors) for one in made])
    assert found["dice"] == pytest.approx(of_all, abs=0.01)
    # As the paint has it, the network that nobody corrected would seem far better than it is.
    over_paint = score_samples(samples_of(made), Fractions(PAINTED, PAINTED), 0.5)
    of_all = np.mean([one.true_dice(np.ones(3)) for one in made])
    assert over_paint["dice"] > of_all + 0.05


def test_a_worse_network_never_has_the_better_score():
    networks = {}
    for apart in (0.8, 1.2, 1.6, 2.0, 2.5):
        networks[str(apart)] = samples_of([Made(seed, apart) for seed in range(2)])
    found = score_alike(networks, PAINTED, 0.5)
    scores = [score["dice"] for score in found.values()]
    assert scores == sorted(scores)
    # By its own fractions, which are too large, the worst one would look much better.
    alone = score_alike({"0.8": networks["0.8"]}, PAINTED, 0.5)["0.8"]["dice"]
    assert alone > 1.3 * scores[0]


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


# --- networks and runs ----------------------------------------------------------------------------


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


def folder_of_strokes(root: Path) -> Path:
    """Label maps of which the matrix is hardly painted, but the grains are."""
    folder = write_label_maps(root, share=1.0)
    for path in sorted((folder / MASKS).iterdir()):
        labels = tifffile.imread(path)
        labels[(labels == 1) & (np.random.default_rng(0).random(labels.shape) > 0.1)] = 0
        tifffile.imwrite(path, labels)
    return folder


def test_a_run_says_what_it_corrected_and_all_its_networks_know(workplace, tmp_path):
    folder = folder_of_strokes(tmp_path / "d")
    config = Config(**{**TINY, "roi": None, "data": str(folder), "run": "r", "forest": False})
    run(config)
    phases = read_json(config.run_folder / "phases.json")
    assert [name for name, phase in phases.items() if "fractions" in phase] == ["supervised"]
    record = phases["supervised"]["fractions"]
    assert record["is_corrected"]
    assert record["estimated"]["matrix"] > record["painted"]["matrix"] + 0.05
    for name in ("supervised", "continued", "ssl_student", "ssl_teacher"):
        weights, details = load_checkpoint(config.checkpoint(name))
        expected = Fractions.from_record(record).offset(3)
        torch.testing.assert_close(weights["class_offset"], expected, rtol=1e-3, atol=1e-3)
        phase = next(phase for phase in phases.values() if name in phase["best"])
        assert details["val_dice"] == phase["best"][name]["val_dice"]
    text = "\n".join(describe_results(config.run_folder))
    assert "Strokes are no fair sample" in text
    assert f"matrix {100 * record['painted']['matrix']:.1f} and" in text


def test_a_run_that_was_stopped_ends_with_the_same_correction(workplace, tmp_path, monkeypatch):
    folder = folder_of_strokes(tmp_path / "d")
    settings = {**TINY, "roi": None, "data": str(folder), "forest": False, "warm_start": False}
    run(Config(**settings, run="whole"))

    # Killed where the phase has ended, and its corrected weights are not written.
    def stop(*_):
        raise KeyboardInterrupt

    parts = Config(**settings, run="parts")
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    run(parts, resume=True)
    for name in ("supervised", "continued", "ssl_student", "ssl_teacher"):
        weights, details = load_checkpoint(parts.checkpoint(name))
        expected, of_whole = load_checkpoint(Config(**settings, run="whole").checkpoint(name))
        assert weights["class_offset"].abs().max() > 0
        for key, tensor in expected.items():
            assert torch.equal(weights[key], tensor), key
        assert details["val_dice"] == of_whole["val_dice"]


def test_the_rim_of_masks_that_are_painted_everywhere_is_no_partial_paint(workplace, data_folder):
    config = Config(**{**TINY, "data": str(data_folder), "run": "r", "forest": False, "rim": 2})
    run(config)
    assert "fractions" not in read_json(config.run_folder / "phases.json")["supervised"]
    weights, _ = load_checkpoint(config.checkpoint("supervised"))
    assert "class_offset" not in weights
    assert write_report(config.run_folder).exists()


def test_a_run_on_slices_that_are_painted_everywhere_has_nothing_of_it(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d")
    config = Config(**{**TINY, "roi": None, "data": str(folder), "run": "r", "forest": False})
    run(config)
    assert not any(
        "fractions" in phase for phase in read_json(config.run_folder / "phases.json").values()
    )
    weights, _ = load_checkpoint(config.checkpoint("supervised"))
    assert "class_offset" not in weights
