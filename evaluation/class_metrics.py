"""How well label maps agree with true ones, class by class, over the pixels that are painted.

A class is given by its place, counted from 0, which is the background: means over classes leave it
out, as nnU-Net does (Isensee et al., 2021, doi:10.1038/s41592-020-01008-z), so that with two classes
they are the scores of a binary mask.

Of the classes that a slice does not have: where its paint shows none of a class, that class has no
score there (NaN), and does not count in the mean of the slice. What is wrongly taken for it counts
all the same, as missing in the classes to which it belongs. Only where nothing but background is
painted do all classes count, each like an empty binary mask: 1 where nothing is taken for it, else 0.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from evaluation.metrics import (
    METRICS,
    SURFACE_TOLERANCE,
    mean_overlap,
    share_of_near_edges,
    slice_metrics,
)
from utils import overlap_metrics

FRACTIONS = ("fraction_predicted", "fraction_truth")


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a slice.

    Attributes
    ----------
    classes : (H, W) uint8 ndarray
        The class of each pixel.
    counted : (H, W) bool ndarray, or None
        Which pixels count: sample that is painted. None is all.
    """

    classes: np.ndarray
    counted: np.ndarray | None = None

    def of_class(self, labels: np.ndarray, index: int) -> np.ndarray:
        """Return where a (H, W) array of classes holds one, of the pixels that count: bool."""
        holds = labels == index
        return holds if self.counted is None else holds & self.counted

    @property
    def present(self) -> list[int]:
        """The classes that are painted, with the background."""
        labels = self.classes if self.counted is None else self.classes[self.counted]
        return np.unique(labels).tolist()


def scored_classes(truths: list[Truth], class_count: int) -> list[int]:
    """Return the classes that count in a mean: those but the background that are painted, or all if none is."""
    present = {index for truth in truths for index in truth.present} - {0}
    return sorted(present) or list(range(1, class_count))


def mean_class_overlap(
    predictions: list[np.ndarray], truths: list[Truth], class_count: int
) -> dict[str, float]:
    """Return Dice and IoU: of each class as `mean_overlap` has it, then the mean over classes.

    Parameters
    ----------
    predictions : list of (H, W) uint8 ndarrays
        The class of each pixel.
    truths : list of Truth
    class_count : int
        With the background.
    """
    scores = []
    for index in scored_classes(truths, class_count):
        masks = [t.of_class(p, index) for p, t in zip(predictions, truths, strict=True)]
        scores.append(mean_overlap(masks, [t.of_class(t.classes, index) for t in truths]))
    return {name: float(np.mean([score[name] for score in scores])) for name in ("dice", "iou")}


def class_scores(prediction: np.ndarray, truth: Truth, index: int) -> dict[str, float]:
    """Return all of `METRICS` and the two fractions of one class, over the pixels that count."""
    mask = truth.of_class(prediction, index)
    true_mask = truth.of_class(truth.classes, index)
    if truth.counted is None or truth.counted.all():
        return slice_metrics(mask, true_mask)

    pixels = max(1, np.count_nonzero(truth.counted))
    return {
        **overlap_metrics(mask, true_mask),
        "surface_dice": painted_surface_dice(mask, true_mask, truth.counted),
        "fraction_predicted": np.count_nonzero(mask) / pixels,
        "fraction_truth": np.count_nonzero(true_mask) / pixels,
    }


def painted_surface_dice(
    mask: np.ndarray,
    true_mask: np.ndarray,
    counted: np.ndarray,
    tolerance: float = SURFACE_TOLERANCE,
) -> float:
    """Return `metrics.surface_dice` of outlines that lie between two pixels that count.

    Where paint ends, no outline of a class is known.
    """
    edge = mask & ndimage.binary_dilation(counted & ~mask)
    true_edge = true_mask & ndimage.binary_dilation(counted & ~true_mask)
    return share_of_near_edges(edge, true_edge, tolerance)


# --- tables ---------------------------------------------------------------------------------------


def foreground_table(
    predictions: dict[str, list[np.ndarray]], truths: list[Truth], stems: list[str]
) -> pd.DataFrame:
    """Return a row per method and slice, where there are two classes: scores of the second one.

    Parameters
    ----------
    predictions : dict of method name to list of (H, W) bool ndarrays
        In the order of `truths`.
    truths : list of Truth
    stems : list of str
    """
    rows = []
    for method, masks in predictions.items():
        for stem, mask, truth in zip(stems, masks, truths, strict=True):
            rows.append({"method": method, "stem": stem, **class_scores(mask, truth, index=1)})
    return pd.DataFrame(rows, columns=["method", "stem", *METRICS, *FRACTIONS])


def class_table(
    predictions: dict[str, list[np.ndarray]],
    truths: list[Truth],
    stems: list[str],
    names: tuple[str, ...],
) -> pd.DataFrame:
    """Return a row per method, slice and class: `METRICS` and fractions of the pixels that count.

    Parameters
    ----------
    predictions : dict of method name to list of (H, W) uint8 ndarrays
        The class of each pixel, in the order of `truths`.
    truths : list of Truth
    stems : list of str
    names : tuple of str
        Of all classes.
    """
    rows = []
    for method, labels in predictions.items():
        for stem, prediction, truth in zip(stems, labels, truths, strict=True):
            scored = {*scored_classes([truth], len(names)), *truth.present}
            for index, name in enumerate(names):
                scores = class_scores(prediction, truth, index)
                if index not in scored:
                    scores |= dict.fromkeys(METRICS, np.nan)
                rows.append({"method": method, "stem": stem, "class": name, **scores})
    return pd.DataFrame(rows, columns=["method", "stem", "class", *METRICS, *FRACTIONS])


def mean_table(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Return a row per method and slice: means over its classes but the background, and fractions of foreground.

    Parameters
    ----------
    table : DataFrame
        Of `class_table`.
    names : tuple of str
        Of all classes, the background first.
    """
    foreground = table[table["class"] != names[0]]
    groups = foreground.groupby(["method", "stem"], sort=False)
    means = groups[list(METRICS)].mean()
    fractions = groups[list(FRACTIONS)].sum()
    return pd.concat([means, fractions], axis=1).reset_index()


def confusion_matrix(
    predictions: list[np.ndarray], truths: list[Truth], class_count: int
) -> np.ndarray:
    """Return how many pixels of each class (rows) are taken for each class (columns): (K, K) int."""
    counts = np.zeros((class_count, class_count), int)
    for prediction, truth in zip(predictions, truths, strict=True):
        counted = np.s_[:] if truth.counted is None else truth.counted
        pairs = truth.classes[counted].astype(int) * class_count + prediction[counted]
        counts += np.bincount(pairs.ravel(), minlength=class_count**2).reshape(counts.shape)
    return counts


def confusion_table(
    predictions: dict[str, list[np.ndarray]], truths: list[Truth], names: tuple[str, ...]
) -> pd.DataFrame:
    """Return the confusion matrix of each method: `method`, `truth`, `predicted`, `pixels`."""
    rows = []
    for method, labels in predictions.items():
        counts = confusion_matrix(labels, truths, len(names))
        for i, true_name in enumerate(names):
            for j, name in enumerate(names):
                rows.append(
                    {
                        "method": method,
                        "truth": true_name,
                        "predicted": name,
                        "pixels": counts[i, j],
                    }
                )
    return pd.DataFrame(rows, columns=["method", "truth", "predicted", "pixels"])
