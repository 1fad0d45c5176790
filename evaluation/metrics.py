"""How well a predicted mask agrees with the true one, slice by slice."""

import numpy as np
import pandas as pd
from scipy import ndimage

from utils import overlap_metrics

SURFACE_TOLERANCE = 2.0  # px: about how well two annotators agree on the rim of a faint particle

# The scores of a slice, with their headings on the page of a run.
METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "surface_dice": "surface Dice (2 px)",
}
THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def mean_overlap(masks: list[np.ndarray], truths: list[np.ndarray]) -> dict[str, float]:
    """Return Dice and IoU: means over slices, or of all pixels together where a truth is empty.

    The Dice of an empty slice is 0 or 1, by a single pixel.
    """
    if all(truth.any() for truth in truths):
        scores = [overlap_metrics(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
        return {name: float(np.mean([score[name] for score in scores])) for name in ("dice", "iou")}

    all_masks = np.concatenate([mask.ravel() for mask in masks])
    all_truths = np.concatenate([truth.ravel() for truth in truths])
    pooled = overlap_metrics(all_masks, all_truths)
    return {name: float(pooled[name]) for name in ("dice", "iou")}


def surface_dice(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float = SURFACE_TOLERANCE
) -> float:
    """Return the share of both outlines that lies within `tolerance` pixels of the other (normalised surface distance).

    Nikolov et al., 2018, arXiv:1809.04430; recommended beside Dice by Metrics Reloaded, Maier-Hein
    et al., 2024, doi:10.1038/s41592-023-02151-z. Unlike a Hausdorff distance it stays finite and
    informative for images of many particles of which some are missed. 1 when neither image has an
    outline, 0 when only one has.

    Parameters
    ----------
    prediction, truth : (H, W) bool or 0/1 ndarray
    tolerance : float
        Distance [px] that counts as agreement.
    """
    return share_of_near_edges(inner_edge(prediction), inner_edge(truth), tolerance)


def share_of_near_edges(edge: np.ndarray, true_edge: np.ndarray, tolerance: float) -> float:
    """Return the share of two edges, (H, W) bool, that lies within `tolerance` pixels of the other.

    1 when both are empty, 0 when only one is.
    """
    size = np.count_nonzero(edge)
    true_size = np.count_nonzero(true_edge)
    if size == 0 or true_size == 0:
        return 1.0 if size == true_size else 0.0
    near = count_near(edge, true_edge, tolerance) + count_near(true_edge, edge, tolerance)
    return near / (size + true_size)


def inner_edge(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that have a neighbour outside it: (H, W) bool."""
    mask = mask.astype(bool)
    return mask & ~ndimage.binary_erosion(mask)


def count_near(edge: np.ndarray, other: np.ndarray, tolerance: float) -> int:
    """Return how many pixels of an edge lie within `tolerance` pixels of another one."""
    distance = ndimage.distance_transform_edt(~other)
    return int(np.count_nonzero(distance[edge] <= tolerance))


def slice_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return all of `METRICS` and the two foreground fractions for one binary (H, W) prediction."""
    return {
        **overlap_metrics(prediction, truth),
        "surface_dice": surface_dice(prediction, truth),
        "fraction_predicted": float(np.mean(prediction)),
        "fraction_truth": float(np.mean(truth)),
    }


def slice_table(
    predictions: dict[str, list[np.ndarray]], truths: list[np.ndarray], stems: list[str]
) -> pd.DataFrame:
    """Return a row per method and slice: `method`, `stem`, `METRICS` and foreground fractions.

    Parameters
    ----------
    predictions : dict of method name to list of (H, W) bool ndarrays
        In the order of `truths`.
    truths : list of (H, W) bool ndarrays
    stems : list of str
    """
    rows = []
    for method, masks in predictions.items():
        for stem, mask, truth in zip(stems, masks, truths, strict=True):
            rows.append({"method": method, "stem": stem, **slice_metrics(mask, truth)})
    columns = ["method", "stem", *METRICS, "fraction_predicted", "fraction_truth"]
    return pd.DataFrame(rows, columns=columns)


def threshold_scores(probabilities: list[np.ndarray], truths: list[np.ndarray]) -> pd.DataFrame:
    """Return the mean Dice over slices for each `threshold` from 0.05 to 0.95."""
    rows = []
    for threshold in THRESHOLDS:
        scores = []
        for probability, truth in zip(probabilities, truths, strict=True):
            scores.append(overlap_metrics(probability >= threshold, truth)["dice"])
        rows.append({"threshold": threshold, "dice": np.mean(scores)})

    return pd.DataFrame(rows)
