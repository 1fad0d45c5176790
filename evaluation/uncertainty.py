"""Where models are unsure, and whether they err there."""

import numpy as np
import pandas as pd
import torch
from scipy import ndimage, stats

from utils import predict_images

SMALLEST = 20  # pixels: what is smaller is mostly noise


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """−p log₂ p − (1 − p) log₂(1 − p) [bit] of each probability of foreground; 0 where it is 0 or 1."""
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def slice_uncertainty(student: np.ndarray, teacher: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """How unsure two models are about one slice.

    `entropy` of their mean probability [bit per pixel] and `disagreement` (mean absolute difference) of all pixels;
    `fraction_predicted`. Entropy of an averaged prediction: Lakshminarayanan et al., 2017, arXiv:1612.01474; over
    test-time views: Wang et al., 2019, doi:10.1016/j.neucom.2019.01.103. It is not divided by the predicted foreground:
    that would rank slices by how little of it they have.

    Parameters
    ----------
    student, teacher : (H, W) ndarrays in [0, 1]
        Foreground probabilities.
    """
    mean = (student + teacher) / 2
    return {"entropy": float(binary_entropy(mean).mean()), "disagreement": float(np.abs(student - teacher).mean()),
            "fraction_predicted": float(np.mean(mean >= threshold))}


# --- can the probability be believed? -------------------------------------------------------------------------

def reliability(probabilities: list[np.ndarray], truths: list[np.ndarray], bins: int = 10) -> pd.DataFrame:
    """Reliability diagram: a row per bin of the probability with `low`, `high`, mean `predicted`, share `observed`
    and number of `pixels`; all pixels of all slices together. Empty bins have NaN.

    The expected calibration error is the mean of |observed − predicted| weighted with the pixels: Guo et al., 2017,
    arXiv:1706.04599, here for the probability of foreground.

    Parameters
    ----------
    probabilities, truths : lists of (H, W) ndarrays
        In [0, 1], and bool or 0/1.
    """
    p, t = (np.concatenate([a.ravel() for a in arrays]) for arrays in (probabilities, truths))
    index = np.minimum((p * bins).astype(int), bins - 1)
    count, total, true = (np.bincount(index, w, bins) for w in (None, p.astype(float), t.astype(float)))
    some = np.where(count > 0, count, np.nan)
    return pd.DataFrame({"low": np.arange(bins) / bins, "high": np.arange(1, bins + 1) / bins,
                         "predicted": total / some, "observed": true / some, "pixels": count})


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error of a table of `reliability`, 0 to 1."""
    filled = table[table["pixels"] > 0]
    return float(np.average((filled["observed"] - filled["predicted"]).abs(), weights=filled["pixels"]))


# --- are the uncertain ones wrong? ----------------------------------------------------------------------------

def count_errors(uncertainty: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(2, 2¹⁵) int: how many pixels have each uncertainty that `float16` knows, and how many of these are wrong.

    Counts of several slices can be added, so that volumes of any size can be judged.

    Parameters
    ----------
    uncertainty : ndarray
        Not negative; rounded to `float16`, as it is stored.
    wrong : bool ndarray of the same shape
    """
    code = np.abs(uncertainty.astype(np.float16)).view(np.uint16)       # rises with the number it stands for
    return np.stack([np.bincount(some.ravel(), minlength=2**15) for some in (code, code[wrong])])


def error_rates(counts: np.ndarray, groups: int = 10) -> pd.DataFrame:
    """`pixels`, `errors` and `error_rate` of equal groups of pixels, the least uncertain ones first.

    Pixels of the same uncertainty are spread over groups in proportion. See `count_errors`.
    """
    pixels, errors = (np.concatenate([[0], np.cumsum(row)]) for row in counts)
    borders = np.linspace(0, pixels[-1], groups + 1)
    once = np.concatenate([[True], np.diff(pixels) > 0])                # uncertainties that occur
    found = np.diff(np.interp(borders, pixels[once], errors[once]))
    return pd.DataFrame({"pixels": np.diff(borders), "errors": found, "error_rate": found / np.diff(borders)},
                        index=pd.RangeIndex(1, groups + 1, name="group"))


def describe_error_rates(table: pd.DataFrame) -> str:
    """The most uncertain group against the others, in words; for ten groups."""
    last, rest = table.iloc[-1], table.iloc[:-1].sum()
    if not last["errors"] + rest["errors"]:
        return "no pixel is wrong"
    share, low = last["errors"] / (last["errors"] + rest["errors"]), rest["errors"] / rest["pixels"]
    return f"error rate {100 * last['error_rate']:.1f} % in the most uncertain tenth, {100 * low:.3g} % in the rest; " \
           f"that tenth holds {100 * share:.0f} % of all errors"


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that one of the `positive` has a higher score than one of the others (ROC AUC); NaN where a kind lacks.

    By ranks: Hanley & McNeil, 1982, doi:10.1148/radiology.143.1.7063747.
    """
    if positive.all() or not positive.any():
        return float("nan")
    return float(stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
                 / (np.count_nonzero(positive) * np.count_nonzero(~positive)))


def uncertainty_maps(student: torch.nn.Module, teacher: torch.nn.Module, images: list[np.ndarray], device: torch.device,
                     patch_size: int, overlap: float, precision: str = "auto",
                     ) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Mean probability of both models over eight symmetries, and four maps of each image that say how unsure it is.

    `total`, the deviation √(p (1 − p)) of a decision at the mean probability p; `spread`, the deviation of p over
    models, symmetries and overlapping windows (models: Lakshminarayanan et al., 2017, arXiv:1612.01474; symmetries:
    Wang et al., 2019, doi:10.1016/j.neucom.2019.01.103); that of the teacher alone; and student − teacher.

    Parameters
    ----------
    images : list of (H, W) uint8 ndarrays
    """
    found = [list(predict_images(torch.nn.ModuleList(some), images, device, patch_size, overlap, True, True, precision))
             for some in ((student,), (teacher,), (student, teacher))]
    means = [mean for mean, _ in found[2]]
    return means, {"total": [np.sqrt(mean * (1 - mean)) for mean in means],
                   "spread": [spread for _, spread in found[2]],
                   "spread, teacher alone": [spread for _, spread in found[1]],
                   "student − teacher": [abs(one - other) for (one, _), (other, _) in zip(*found[:2], strict=True)]}


def judge(maps: dict[str, list[np.ndarray]], predictions: list[np.ndarray], truths: list[np.ndarray],
          ) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """A row per kind of uncertainty, and its `error_rates`: are the most uncertain pixels wrong, and is a particle that
    does not exist more uncertain than one that does?

    Particles are 8-connected parts of a prediction of `SMALLEST` pixels or more; of one that is `invented` less than
    half is true, and `AUC` is the chance that its mean uncertainty is higher than that of another.

    Parameters
    ----------
    maps : dict of name to list of (H, W) ndarrays
    predictions, truths : lists of (H, W) bool ndarrays, at least one
    """
    rates, rows = {}, {}
    for name, some in maps.items():
        table = rates[name] = error_rates(sum(count_errors(doubt, p != t) for doubt, p, t in
                                              zip(some, predictions, truths, strict=True)))
        scores, invented = [], []
        for doubt, prediction, truth in zip(some, predictions, truths, strict=True):
            labels, _ = ndimage.label(prediction, np.ones((3, 3)))
            kept = np.flatnonzero(np.bincount(labels.ravel())[1:] >= SMALLEST) + 1
            scores.append(ndimage.mean(doubt, labels, kept))
            invented.append(np.asarray(ndimage.mean(truth, labels, kept)) < 0.5)
        invented = np.concatenate(invented)
        rows[name] = {"wrong in the most uncertain tenth": table["error_rate"].iloc[-1],
                      "wrong in the rest": table["errors"][:-1].sum() / table["pixels"][:-1].sum(),
                      "share of all errors": table["errors"].iloc[-1] / max(table["errors"].sum(), 1),
                      "particles": len(invented), "invented": int(invented.sum()),
                      "AUC": area_under_curve(np.concatenate(scores), invented)}
    return pd.DataFrame(rows).T, rates
