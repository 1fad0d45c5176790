"""Score models on labelled slices: while they are trained, and at the end."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from config import FOREST, OTSU
from evaluation.forest import fit_forest
from evaluation.intervals import compare, summarise
from evaluation.metrics import mean_overlap, slice_table, threshold_scores
from evaluation.otsu import fit_otsu, predict_otsu
from evaluation.uncertainty import calibration_error, reliability
from runtime.devices import resolve_precision
from runtime.files import write_csv, write_json, write_npz
from slices.data_folder import Data
from slices.reading import Slice, center_patch
from utils import SlidingWindow, predict_images, probability_of

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
) -> dict[str, float | None]:
    """Return Dice and IoU of centre patches or of whole images; None without slices.

    Means over slices; but where the truth of one is empty, of the pixels of all slices together.
    The Dice of an empty slice is 0 or 1, by a single pixel, and would drown the others.

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
    """
    model.eval()
    if not slices:
        return {"dice": None, "iou": None}

    if whole_images:
        images = [s.image for s in slices]
        probabilities = predict_images(model, images, device, sliding_window)
        parts = slices
    else:
        side = sliding_window.patch_size
        parts = [center_part(s, side) for s in slices]
        patches = np.stack([part.image for part in parts])
        probabilities = probability_of(model, patches, device, precision=sliding_window.precision)

    masks = []
    for probability, part in zip(probabilities, parts, strict=True):
        mask = probability >= threshold
        if part.outside is not None:
            mask &= ~part.outside
        masks.append(mask)

    return mean_overlap(masks, [part.mask for part in parts])


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
    """

    sliding_window: SlidingWindow
    threshold: float
    control: str
    forest_seed: int | None = None


@dataclass(frozen=True)
class Predictions:
    """What methods make of the test slices: lists in the order of the slices, by method.

    Attributes
    ----------
    maps : dict of str to list of (H, W) float32 ndarrays
        Probabilities, 0 where there is no sample.
    full : dict of str to list of (H, W) bool ndarrays
        Masks of whole images.
    patches : dict of str to list of (P, P) bool ndarrays
        Masks of centre patches, predicted from one window.
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
    `thresholds.csv` to `folder`.

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

    if models and test:
        calibration, thresholds = judge_probabilities(predictions, list(models), test)
        write_csv(folder / "calibration.csv", calibration)
        write_csv(folder / "thresholds.csv", thresholds)
        summary["calibration"] = {
            method: calibration_error(rows)
            for method, rows in calibration.groupby("method", sort=False)
        }

    write_predictions(folder / "predictions.npz", predictions, test, scoring.threshold)
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
    chosen = {"otsu": predict_with_otsu(predictions, data, scoring)}
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
    sigma, bright = fit_otsu(data.train)
    masks = [predict_otsu(s, sigma, bright) for s in data.test]

    maps = [mask.astype(np.float32) for mask in masks]
    add_baseline(predictions, OTSU, maps, masks, scoring)
    seconds = round(time.monotonic() - begun, 1)
    return {"sigma": sigma, "bright": bright, "seconds": seconds}


def predict_with_forest(
    predictions: Predictions, data: Data, scoring: Scoring, seed: int
) -> dict[str, float]:
    """Add what a random forest makes of the test slices; return its threshold, and its seconds."""
    begun = time.monotonic()
    forest = fit_forest(data.train, data.val, seed)
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
    maps = []
    for probability, s in zip(predict_images(model, images, device, window), test, strict=True):
        maps.append(clear_outside(probability, s))
    predictions.maps[method] = maps
    predictions.full[method] = [probability >= scoring.threshold for probability in maps]
    predictions.patches[method] = []
    if not test:
        return

    side = patch_side(scoring)
    windows = np.stack([center_patch(image, window.patch_size) for image in images])
    probabilities = probability_of(model, windows, device, window.tta, window.precision)
    for probability, s in zip(probabilities, test, strict=True):
        mask = center_patch(probability, side) >= scoring.threshold
        predictions.patches[method].append(mask & center_patch(s.inside, side))


def clear_outside(probability: np.ndarray, s: Slice) -> np.ndarray:
    """Return a map with 0 where there is no sample."""
    if s.outside is None:
        return probability
    return probability * ~s.outside


def make_tables(
    predictions: Predictions, test: list[Slice], scoring: Scoring
) -> dict[str, pd.DataFrame]:
    """Return the scores of all methods, slice by slice, of centre patches and of whole images."""
    stems = [s.stem for s in test]
    truths = [s.mask.astype(bool) for s in test]
    side = patch_side(scoring)
    true_patches = [center_patch(truth, side) for truth in truths]
    return {
        "patches": slice_table(predictions.patches, true_patches, stems),
        "full": slice_table(predictions.full, truths, stems),
    }


def compare_with_control(table: pd.DataFrame, methods: list[str], control: str) -> list[dict]:
    """Return the paired comparison of each method with the control; none without a control."""
    if control not in methods or table.empty:
        return []
    return [compare(table, method, control) for method in methods if method != control]


def judge_probabilities(
    predictions: Predictions, methods: list[str], test: list[Slice]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return reliability diagram and Dice by threshold of each method, inside the sample."""
    inside = [s.inside for s in test]
    truths = [s.mask.astype(bool)[where] for s, where in zip(test, inside, strict=True)]
    calibration = []
    thresholds = []
    for method in methods:
        maps = predictions.maps[method]
        probabilities = [
            probability[where] for probability, where in zip(maps, inside, strict=True)
        ]
        calibration.append(reliability(probabilities, truths).assign(method=method))
        thresholds.append(threshold_scores(probabilities, truths).assign(method=method))

    return pd.concat(calibration), pd.concat(thresholds)


def write_predictions(
    path: Path, predictions: Predictions, test: list[Slice], threshold: float
) -> None:
    """Write images, masks and probabilities of the test slices, for the figures."""
    arrays = {}
    for method, maps in predictions.maps.items():
        for i, probability in enumerate(maps):
            arrays[f"{method}_{i}"] = to_grey(probability, threshold)
    for i, s in enumerate(test):
        arrays[f"image_{i}"] = s.image
    for i, s in enumerate(test):
        arrays[f"truth_{i}"] = s.mask
    write_npz(
        path,
        stems=np.array([s.stem for s in test]),
        methods=np.array(list(predictions.maps)),
        threshold=np.array(threshold),
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

    All are 0 where there is no sample.

    `total`, the deviation √(p (1 − p)) of a decision at the mean probability p; `spread`, the
    deviation of p over models, symmetries and overlapping windows (models: Lakshminarayanan et al.,
    2017, arXiv:1612.01474; symmetries: Wang et al., 2019, doi:10.1016/j.neucom.2019.01.103); that
    of the teacher alone; and student − teacher.

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
        for s, (mean, spread) in zip(slices, predictions, strict=True):
            means.append(clear_outside(mean, s))
            spreads.append(clear_outside(spread, s))
        return means, spreads

    of_student, _ = predict(student)
    of_teacher, spread_of_teacher = predict(teacher)
    means, spreads = predict(student, teacher)
    differences = [abs(one - other) for one, other in zip(of_student, of_teacher, strict=True)]
    maps = {
        "total": [np.sqrt(mean * (1 - mean)) for mean in means],
        "spread": spreads,
        "spread, teacher alone": spread_of_teacher,
        "student − teacher": differences,
    }
    return means, maps
