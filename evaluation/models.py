"""Score models on labelled slices: while they are trained, and at the end."""

import itertools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from config import FOREST, OTSU
from evaluation.class_metrics import (
    Truth,
    class_table,
    confusion_table,
    foreground_table,
    mean_class_overlap,
    mean_table,
)
from evaluation.forest import fit_forest
from evaluation.intervals import compare, summarise
from evaluation.metrics import threshold_scores
from evaluation.otsu import MOST_CLASSES, Otsu, fit_thresholds
from evaluation.phase_fractions import class_shares, fraction_table
from evaluation.uncertainty import calibration_error, class_entropy, reliability
from runtime.devices import resolve_precision
from runtime.files import write_csv, write_json, write_npz
from slices.classes import Classes
from slices.data_folder import Data
from slices.reading import Slice, center_patch
from utils import SlidingWindow, decide, predict_images, probability_of

CENTRE = 256  # px: side of the scored centre patch, whatever window a recipe looks through

# Pixels of labelled slices that are too many for a random forest: it would take many minutes.
FOREST_PIXELS = 40 * 10**6


# --- while models are trained ---------------------------------------------------------------------


def validate(
    model: torch.nn.Module,
    slices: list[Slice],
    device: torch.device,
    sliding_window: SlidingWindow,
    threshold: float,
    whole_images: bool = False,
    class_count: int = 2,
) -> dict[str, float | None]:
    """Return Dice and IoU of centre patches or of whole images; None without slices.

    Means over slices; but where the truth of one is empty, of the pixels of all slices together.
    The Dice of an empty slice is 0 or 1, by a single pixel, and would drown the others. Of several
    classes means over those but the background. Only pixels that are painted count: where a slice is
    painted in part, whole images are scored, because paint may lie anywhere.

    Parameters
    ----------
    model : module
    slices : list of Slice
    device : torch.device
    sliding_window : SlidingWindow
        Through which whole images are looked at; centre patches are one window.
    threshold : float
        Probability from which a pixel is foreground.
    whole_images : bool
    class_count : int
        With the background.
    """
    model.eval()
    if not slices:
        return {"dice": None, "iou": None}

    if whole_images or any(s.painted is not None for s in slices):
        images = [s.image for s in slices]
        probabilities = predict_images(model, images, device, sliding_window)
        parts = slices
    else:
        side = sliding_window.patch_size
        parts = [center_part(s, side) for s in slices]
        patches = np.stack([part.image for part in parts])
        probabilities = probability_of(model, patches, device, precision=sliding_window.precision)

    predictions = [decide(probability, threshold) for probability in probabilities]
    truths = [Truth(part.mask, part.counted) for part in parts]
    return mean_class_overlap(predictions, truths, class_count)


def center_part(s: Slice, side: int) -> Slice:
    """Return the centre patch of a slice, with its mask."""
    outside = None if s.outside is None else center_patch(s.outside, side)
    return Slice(s.path, center_patch(s.image, side), center_patch(s.mask, side), outside)


# --- at the end -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """How trained models are scored.

    Attributes
    ----------
    sliding_window : SlidingWindow
    threshold : float
        Probability from which a pixel is foreground.
    control : str
        Method that the others are compared with, slice by slice, where it is among the models.
    forest_seed : int or None
        Of the random forest that is scored, too; None: none is.
    classes : Classes or None
        Of label maps; None where masks are binary.
    """

    sliding_window: SlidingWindow
    threshold: float
    control: str
    forest_seed: int | None = None
    classes: Classes | None = None

    @property
    def class_count(self) -> int:
        """How many classes there are, with the background."""
        return 2 if self.classes is None else len(self.classes)


@dataclass(frozen=True)
class Predictions:
    """What methods make of the test slices: lists in the order of the slices, by method.

    Attributes
    ----------
    maps : dict of str to list of (H, W) float32 ndarrays
        Probabilities of foreground, of several classes those of the most probable one; 0 where
        there is no sample.
    full : dict of str to list of (H, W) ndarrays
        Of whole images the masks, bool, or of several classes the class of each pixel, uint8.
    patches : dict of str to list of (P, P) ndarrays
        The same of centre patches, predicted from one window.
    """

    maps: dict[str, list[np.ndarray]]
    full: dict[str, list[np.ndarray]]
    patches: dict[str, list[np.ndarray]]


def evaluate_models(
    models: Mapping[str, torch.nn.Module],
    data: Data,
    folder: Path,
    scoring: Scoring,
    device: torch.device,
) -> dict:
    """Score models and classical baselines on test slices, as centre patches and as stitched whole images.

    The baselines are smoothed Otsu and, where it is asked for, a random forest.

    A centre patch is predicted from one window; its inner `CENTRE` pixels are scored, so that
    recipes with different windows are scored on the same pixels.

    Writes `test_patches.csv`, `test_full.csv`, `summary.json` and, for the figures,
    `predictions.npz` (images, masks, probabilities as uint8), `calibration.csv` and
    `thresholds.csv` to `folder`. Of several classes the tables hold means over classes;
    `test_classes.csv` has whole images class by class, `confusion.csv` which class is taken for
    which, and `phase_fractions.csv` how much of the slices each class fills. There are no
    thresholds then.

    Parameters
    ----------
    models : dict of method name to model in eval mode
    data : Data
        Classical methods learn from its training slices; the threshold of the forest is chosen on
        its validation slices.
    folder : Path
    scoring : Scoring
    device : torch.device

    Returns
    -------
    dict
        The content of `summary.json`.
    """
    test = data.test
    predictions = Predictions({}, {}, {})
    baselines = predict_baselines(predictions, data, scoring)
    for method, model in models.items():
        predict_model(predictions, method, model, test, scoring, device)

    tables = make_tables(predictions, test, scoring)
    summary = {
        "threshold": scoring.threshold,
        "precision": resolve_precision(device, scoring.sliding_window.precision),
        "control": scoring.control,
        **baselines,
    }
    for kind, table in tables.items():
        write_csv(folder / f"test_{kind}.csv", table)
        summary[kind] = {
            "methods": summarise(table),
            "paired": compare_with_control(table, list(models), scoring.control),
        }

    if scoring.class_count > 2 and test:
        summary |= write_class_tables(folder, predictions, list(models), test, scoring)

    if models and test:
        calibration = judge_probabilities(predictions, list(models), test, scoring)
        write_csv(folder / "calibration.csv", calibration)
        summary["calibration"] = {
            method: calibration_error(rows)
            for method, rows in calibration.groupby("method", sort=False)
        }
        if scoring.class_count == 2:
            thresholds = judge_thresholds(predictions, list(models), test)
            write_csv(folder / "thresholds.csv", thresholds)

    write_predictions(folder / "predictions.npz", predictions, test, scoring)
    # Last: where it is, the others are.
    write_json(folder / "summary.json", summary)
    return summary


def patch_side(scoring: Scoring) -> int:
    """Return the side of the centre patch that is scored [px]."""
    return min(CENTRE, scoring.sliding_window.patch_size)


def predict_baselines(predictions: Predictions, data: Data, scoring: Scoring) -> dict[str, dict]:
    """Add what classical methods make of the test slices.

    Returns
    -------
    dict
        For `otsu` and, where there is one, `forest`: what was chosen for it, and its `seconds`.
    """
    chosen = {}
    if scoring.class_count <= MOST_CLASSES:
        chosen["otsu"] = predict_with_otsu(predictions, data, scoring)
    if scoring.forest_seed is None or not data.test:
        return chosen

    pixels = sum(s.image.size for s in data.labelled)
    if pixels > FOREST_PIXELS:
        print(
            f"{FOREST}: left out; it would take long for {pixels / 10**6:.0f} million labelled pixels",
            file=sys.stderr,
        )
        return chosen

    chosen["forest"] = predict_with_forest(predictions, data, scoring, scoring.forest_seed)
    return chosen


def predict_with_otsu(predictions: Predictions, data: Data, scoring: Scoring) -> dict:
    """Add what smoothed Otsu makes of the test slices; return its choices, and its seconds."""
    begun = time.monotonic()
    otsu = fit_thresholds(data.train, scoring.class_count)
    masks = [otsu.predict(s) for s in data.test]
    if isinstance(otsu, Otsu):
        maps = [mask.astype(np.float32) for mask in masks]
        choices: dict = {"sigma": otsu.sigma, "bright": otsu.is_bright}
    else:
        maps = [s.inside.astype(np.float32) for s in data.test]
        choices = {"sigma": otsu.sigma, "order": list(otsu.order)}

    add_baseline(predictions, OTSU, maps, masks, scoring)
    return {**choices, "seconds": round(time.monotonic() - begun, 1)}


def predict_with_forest(
    predictions: Predictions, data: Data, scoring: Scoring, seed: int
) -> dict[str, float]:
    """Add what a random forest makes of the test slices; return its threshold, and its seconds."""
    begun = time.monotonic()
    forest = fit_forest(data.train, data.val, seed, scoring.class_count)
    if scoring.class_count > 2:
        maps, labels = [], []
        for s in data.test:
            of_classes = forest.probabilities(s)
            maps.append(of_classes.max(axis=0))
            labels.append(decide(of_classes, forest.threshold))
        add_baseline(predictions, FOREST, maps, labels, scoring)
        return {"seconds": round(time.monotonic() - begun, 1)}

    probabilities = [forest.probability(s) for s in data.test]
    masks = []
    for probability, s in zip(probabilities, data.test, strict=True):
        masks.append((probability >= forest.threshold) & s.inside)

    maps = [move_threshold(p, forest.threshold, scoring.threshold) for p in probabilities]
    add_baseline(predictions, FOREST, maps, masks, scoring)
    return {"threshold": forest.threshold, "seconds": round(time.monotonic() - begun, 1)}


def add_baseline(
    predictions: Predictions,
    method: str,
    maps: list[np.ndarray],
    masks: list[np.ndarray],
    scoring: Scoring,
) -> None:
    """Add maps and masks of a method that looks at whole images."""
    side = patch_side(scoring)
    predictions.maps[method] = maps
    predictions.full[method] = masks
    predictions.patches[method] = [center_patch(mask, side) for mask in masks]


def move_threshold(probability: np.ndarray, own: float, wanted: float) -> np.ndarray:
    """Return a map that is at least `wanted` where a probability is at least `own`; it keeps 0, 1 and the order.

    So maps of methods with thresholds of their own can be stored and drawn beside the others.
    """
    below = probability * (wanted / own)
    above = 1 - (1 - probability) * ((1 - wanted) / (1 - own))
    # Rounding must not push a pixel at the threshold below it.
    moved = np.where(probability >= own, np.maximum(above, wanted), below)
    return moved.astype(np.float32)


def predict_model(
    predictions: Predictions,
    method: str,
    model: torch.nn.Module,
    test: list[Slice],
    scoring: Scoring,
    device: torch.device,
) -> None:
    """Add what a model makes of the test slices, whole and in their centre."""
    window = scoring.sliding_window
    images = [s.image for s in test]
    predictions.maps[method], predictions.full[method] = [], []
    for probability, s in zip(predict_images(model, images, device, window), test, strict=True):
        cleared = clear_outside(probability, s)
        most_probable = cleared if cleared.ndim == 2 else cleared.max(axis=0)
        predictions.maps[method].append(most_probable)
        predictions.full[method].append(decide(cleared, scoring.threshold))
    predictions.patches[method] = []
    if not test:
        return

    side = patch_side(scoring)
    windows = np.stack([center_patch(image, window.patch_size) for image in images])
    probabilities = probability_of(model, windows, device, window.tta, window.precision)
    for probability, s in zip(probabilities, test, strict=True):
        decision = center_patch(decide(probability, scoring.threshold), side)
        predictions.patches[method].append(decision * center_patch(s.inside, side))


def clear_outside(probability: np.ndarray, s: Slice) -> np.ndarray:
    """Return a map with 0 where there is no sample."""
    if s.outside is None:
        return probability
    return probability * ~s.outside


def truth_of(s: Slice, class_count: int) -> Truth:
    """Return what is known of a slice.

    Of binary masks what lies outside the sample counts as background, which nothing there is
    predicted to differ from. Of several classes it is no background: that is a class of its own.
    """
    is_known_everywhere = s.painted is None and (s.outside is None or class_count == 2)
    return Truth(s.mask, None if is_known_everywhere else s.counted)


def center_truth(truth: Truth, side: int) -> Truth:
    """Return what is known of the centre patch of a slice."""
    counted = None if truth.counted is None else center_patch(truth.counted, side)
    return Truth(center_patch(truth.classes, side), counted)


def make_tables(
    predictions: Predictions, test: list[Slice], scoring: Scoring
) -> dict[str, pd.DataFrame]:
    """Return the scores of all methods, slice by slice, of centre patches and of whole images."""
    stems = [s.stem for s in test]
    truths = [truth_of(s, scoring.class_count) for s in test]
    true_patches = [center_truth(truth, patch_side(scoring)) for truth in truths]

    # Where nothing is painted in the centre, there is nothing to score.
    has_paint = [patch.counted is None or bool(patch.counted.any()) for patch in true_patches]
    patches = {
        method: list(itertools.compress(of_method, has_paint))
        for method, of_method in predictions.patches.items()
    }
    true_patches = list(itertools.compress(true_patches, has_paint))
    stems_of_patches = list(itertools.compress(stems, has_paint))
    return {
        "patches": score_table(patches, true_patches, stems_of_patches, scoring.classes),
        "full": score_table(predictions.full, truths, stems, scoring.classes),
    }


def score_table(
    predictions: dict[str, list[np.ndarray]],
    truths: list[Truth],
    stems: list[str],
    classes: Classes | None,
) -> pd.DataFrame:
    """Return a row per method and slice: scores of foreground, or means over more than two classes."""
    if classes is None or classes.is_binary:
        return foreground_table(predictions, truths, stems)
    return mean_table(class_table(predictions, truths, stems, classes.names), classes.names)


def write_class_tables(
    folder: Path,
    predictions: Predictions,
    models: list[str],
    test: list[Slice],
    scoring: Scoring,
) -> dict:
    """Write what is known class by class, and return it for `summary.json`."""
    if scoring.classes is None:
        return {}
    names = scoring.classes.names
    truths = [truth_of(s, scoring.class_count) for s in test]
    scores = class_table(predictions.full, truths, [s.stem for s in test], names)
    write_csv(folder / "test_classes.csv", scores)
    write_csv(folder / "confusion.csv", confusion_table(predictions.full, truths, names))

    by_class: dict[str, dict] = {}
    for (method, name), rows in scores.groupby(["method", "class"], sort=False):
        known = rows.dropna(subset=["dice"])
        if len(known):
            of_class = summarise(known)[method]
            by_class.setdefault(method, {})[name] = of_class
    summary = {"classes": scoring.classes.record(), "by_class": by_class}
    if models:
        fractions = phase_fractions(predictions, models, test, names)
        write_csv(folder / "phase_fractions.csv", fractions)
        summary["phase_fractions"] = json.loads(fractions.to_json(orient="records"))
    return summary


def phase_fractions(
    predictions: Predictions, models: list[str], test: list[Slice], names: tuple[str, ...]
) -> pd.DataFrame:
    """Return how much of the test slices each class fills, as all models of a run have it, and as it is painted."""
    predicted = [
        [
            class_shares(labels, s.inside, len(names))
            for labels, s in zip(of_model, test, strict=True)
        ]
        for of_model in (predictions.full[method] for method in models)
    ]
    painted = [class_shares(s.mask, s.counted, len(names)) for s in test]
    return fraction_table(np.array(predicted), np.array(painted), names)


def compare_with_control(table: pd.DataFrame, methods: list[str], control: str) -> list[dict]:
    """Return the paired comparison of each method with the control; none without a control."""
    if control not in methods or table.empty:
        return []
    return [compare(table, method, control) for method in methods if method != control]


def judge_probabilities(
    predictions: Predictions, methods: list[str], test: list[Slice], scoring: Scoring
) -> pd.DataFrame:
    """Return the reliability diagram of each method, over the pixels that count.

    Of several classes it is that of the most probable one: how often that class is right.
    """
    calibration = []
    for method in methods:
        probabilities, outcomes = [], []
        for i, s in enumerate(test):
            counted = s.counted
            probabilities.append(predictions.maps[method][i][counted])
            outcome = s.mask.astype(bool)
            if scoring.class_count > 2:
                outcome = predictions.full[method][i] == s.mask
            outcomes.append(outcome[counted])
        calibration.append(reliability(probabilities, outcomes).assign(method=method))
    return pd.concat(calibration)


def judge_thresholds(
    predictions: Predictions, methods: list[str], test: list[Slice]
) -> pd.DataFrame:
    """Return the Dice by threshold of each method, over the pixels that count."""
    truths = [s.mask.astype(bool)[s.counted] for s in test]
    thresholds = []
    for method in methods:
        maps = zip(predictions.maps[method], test, strict=True)
        probabilities = [probability[s.counted] for probability, s in maps]
        thresholds.append(threshold_scores(probabilities, truths).assign(method=method))
    return pd.concat(thresholds)


def write_predictions(
    path: Path, predictions: Predictions, test: list[Slice], scoring: Scoring
) -> None:
    """Write images, masks and predictions of the test slices, for the figures.

    Of two classes these are probabilities, of more the class of each pixel. `painted_N` is there
    where a slice is painted only in part, `classes` and `colours` where masks are label maps.
    """
    arrays = {}
    for method, maps in predictions.maps.items():
        for i, probability in enumerate(maps):
            if scoring.class_count > 2:
                arrays[f"{method}_{i}"] = predictions.full[method][i]
            else:
                arrays[f"{method}_{i}"] = to_grey(probability, scoring.threshold)
    for i, s in enumerate(test):
        arrays[f"image_{i}"] = s.image
    for i, s in enumerate(test):
        arrays[f"truth_{i}"] = s.mask
        if s.painted is not None:
            arrays[f"painted_{i}"] = s.counted
    if scoring.classes is not None:
        arrays["classes"] = np.array(scoring.classes.names)
        arrays["colours"] = np.array(scoring.classes.shown_colours, np.uint8)
    write_npz(
        path,
        stems=np.array([s.stem for s in test]),
        methods=np.array(list(predictions.maps)),
        threshold=np.array(scoring.threshold),
        **arrays,
    )


def to_grey(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Return (H, W) uint8, 255 for 1, rounded such that `grey / 255 >= threshold` where the probability is."""
    grey = np.rint(255 * probability)
    darkest_foreground = np.argmax(np.arange(256) / 255 >= threshold)
    is_foreground = probability >= threshold
    foreground = np.maximum(grey, darkest_foreground)
    background = np.minimum(grey, darkest_foreground - 1)
    return np.where(is_foreground, foreground, background).astype(np.uint8)


# --- where models are unsure ----------------------------------------------------------------------


def uncertainty_maps(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    slices: list[Slice],
    device: torch.device,
    sliding_window: SlidingWindow,
) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Return the mean probability of both models, and four maps of each slice that say how unsure it is.

    All are 0 where there is no sample. Of several classes the probabilities are (K, H, W).

    `total`, the deviation √(p (1 − p)) of a decision at the mean probability p, or of several
    classes the entropy as a share of the largest; `spread`, the deviation of p over models,
    symmetries and overlapping windows (models: Lakshminarayanan et al., 2017, arXiv:1612.01474;
    symmetries: Wang et al., 2019, doi:10.1016/j.neucom.2019.01.103); that of the teacher alone; and
    student − teacher, of several classes half the sum of the differences.

    Parameters
    ----------
    student, teacher : modules
    slices : list of Slice
    device : torch.device
    sliding_window : SlidingWindow
        With test-time augmentation.
    """

    def predict(*models: torch.nn.Module) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return mean and spread of each slice."""
        joint = torch.nn.ModuleList(models)
        images = [s.image for s in slices]
        predictions = predict_images(joint, images, device, sliding_window, with_spread=True)
        means, spreads = [], []
        for s, maps in zip(slices, predictions, strict=True):
            mean = maps[0] if len(maps) == 2 else maps[:-1]
            means.append(clear_outside(mean, s))
            spreads.append(clear_outside(maps[-1], s))
        return means, spreads

    of_student, _ = predict(student)
    of_teacher, spread_of_teacher = predict(teacher)
    means, spreads = predict(student, teacher)
    differences = []
    for one, other in zip(of_student, of_teacher, strict=True):
        difference = np.abs(one - other)
        differences.append(difference if difference.ndim == 2 else difference.sum(axis=0) / 2)
    maps = {
        "total": [total_uncertainty(mean) for mean in means],
        "spread": spreads,
        "spread, teacher alone": spread_of_teacher,
        "student − teacher": differences,
    }
    return means, maps


def total_uncertainty(probability: np.ndarray) -> np.ndarray:
    """Return how unsure a decision is: √(p (1 − p)) of (H, W), `class_entropy` of (K, H, W) probabilities."""
    if probability.ndim == 2:
        return np.sqrt(probability * (1 - probability))
    return class_entropy(probability)
