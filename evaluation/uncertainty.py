"""Where models are unsure, and whether they err there."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage, stats

SMALLEST = 20  # pixels: what is smaller is mostly noise
CODES = 2**15  # numbers from 0 on that float16 knows


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Return −p log₂ p − (1 − p) log₂(1 − p) [bit] of each probability of foreground; 0 where it is 0 or 1."""
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def class_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return −Σ pₖ log pₖ / log K of the probabilities of K classes, 0 to 1: (K, …) → (…) float64.

    1 is where all classes are as probable. Of two classes it is `binary_entropy`. Where all are 0,
    outside the sample, it is 0.
    """
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1)
    entropy = -(p * np.log(p)).sum(axis=0) / np.log(len(p))
    return entropy * (probabilities.max(axis=0) > 0)


def slice_uncertainty(
    student: np.ndarray, teacher: np.ndarray, threshold: float = 0.5
) -> dict[str, float]:
    """Return how unsure two models are about one slice.

    Entropy of an averaged prediction: Lakshminarayanan et al., 2017, arXiv:1612.01474; over
    test-time views: Wang et al., 2019, doi:10.1016/j.neucom.2019.01.103. It is not divided by the
    predicted foreground: that would rank slices by how little of it they have.

    Parameters
    ----------
    student, teacher : (H, W) or (N,) ndarrays in [0, 1]
        Foreground probabilities.
    threshold : float

    Returns
    -------
    dict
        `entropy` of their mean probability [bit per pixel] and `disagreement` (mean absolute
        difference) of all pixels; `fraction_predicted`.
    """
    mean = (student + teacher) / 2
    return {
        "entropy": float(binary_entropy(mean).mean()),
        "disagreement": float(np.abs(student - teacher).mean()),
        "fraction_predicted": float(np.mean(mean >= threshold)),
    }


def class_uncertainty(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """Return how unsure two models are about the classes in one slice; see `slice_uncertainty`.

    Parameters
    ----------
    student, teacher : (K, …) ndarrays in [0, 1]
        Probabilities of all classes, the background first.

    Returns
    -------
    dict
        `entropy` of their mean probabilities as a share of the largest one, `disagreement` (half the
        sum of absolute differences), and `fraction_predicted` of all classes but the background.
    """
    mean = (student + teacher) / 2
    return {
        "entropy": float(class_entropy(mean).mean()),
        "disagreement": float(np.abs(student - teacher).sum(axis=0).mean() / 2),
        "fraction_predicted": float(np.mean(mean.argmax(axis=0) > 0)),
    }


# --- can the probability be believed? -------------------------------------------------------------


def reliability(
    probabilities: list[np.ndarray], truths: list[np.ndarray], bins: int = 10
) -> pd.DataFrame:
    """Return a reliability diagram: how often a pixel of a certain probability is foreground.

    The expected calibration error is the mean of |observed − predicted| weighted with the pixels:
    Guo et al., 2017, arXiv:1706.04599, here for the probability of foreground.

    Parameters
    ----------
    probabilities, truths : lists of ndarrays
        In [0, 1], and bool or 0/1. All pixels of all slices count together.
    bins : int

    Returns
    -------
    DataFrame
        A row per bin of the probability: `low`, `high`, mean `predicted`, share `observed` and
        number of `pixels`. Empty bins have NaN.
    """
    p = np.concatenate([array.ravel() for array in probabilities])
    truth = np.concatenate([array.ravel() for array in truths])
    index = np.minimum((p * bins).astype(int), bins - 1)
    pixels = np.bincount(index, minlength=bins)
    predicted = np.bincount(index, p.astype(float), bins)
    observed = np.bincount(index, truth.astype(float), bins)

    divisor = np.where(pixels > 0, pixels, np.nan)
    return pd.DataFrame(
        {
            "low": np.arange(bins) / bins,
            "high": np.arange(1, bins + 1) / bins,
            "predicted": predicted / divisor,
            "observed": observed / divisor,
            "pixels": pixels,
        }
    )


def calibration_error(table: pd.DataFrame) -> float:
    """Return the expected calibration error of a table of `reliability`, 0 to 1."""
    filled = table[table["pixels"] > 0]
    deviation = (filled["observed"] - filled["predicted"]).abs()
    return float(np.average(deviation, weights=filled["pixels"]))


# --- are the uncertain pixels wrong? --------------------------------------------------------------


def count_errors(uncertainty: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return how many pixels have each uncertainty that float16 knows, and how many of these are wrong.

    Counts of several slices can be added, so that volumes of any size can be judged.

    Parameters
    ----------
    uncertainty : ndarray
        Not negative; rounded to float16, as it is stored.
    wrong : bool ndarray of the same shape

    Returns
    -------
    (2, 2¹⁵) int ndarray
    """
    # The bits of a float16 that is not negative, read as a whole number, rise with it.
    code = np.abs(uncertainty.astype(np.float16)).view(np.uint16)
    pixels = np.bincount(code.ravel(), minlength=CODES)
    errors = np.bincount(code[wrong].ravel(), minlength=CODES)
    return np.stack([pixels, errors])


def error_rates(counts: np.ndarray, groups: int = 10) -> pd.DataFrame:
    """Return `pixels`, `errors` and `error_rate` of equal groups of pixels, the least uncertain ones first.

    Pixels of the same uncertainty are spread over groups in proportion. See `count_errors`.
    """
    pixels = np.concatenate([[0], np.cumsum(counts[0])])
    errors = np.concatenate([[0], np.cumsum(counts[1])])
    borders = np.linspace(0, pixels[-1], groups + 1)
    occurs = np.concatenate([[True], np.diff(pixels) > 0])
    errors_at_borders = np.interp(borders, pixels[occurs], errors[occurs])

    size = np.diff(borders)
    errors_in_group = np.diff(errors_at_borders)
    return pd.DataFrame(
        {"pixels": size, "errors": errors_in_group, "error_rate": errors_in_group / size},
        index=pd.RangeIndex(1, groups + 1, name="group"),
    )


def describe_error_rates(table: pd.DataFrame) -> str:
    """Return the most uncertain of ten groups against the others, in words."""
    most_uncertain = table.iloc[-1]
    rest = table.iloc[:-1].sum()
    errors = most_uncertain["errors"] + rest["errors"]
    if errors == 0:
        return "no pixel is wrong"
    share = most_uncertain["errors"] / errors
    rate_of_rest = rest["errors"] / rest["pixels"]
    return (
        f"error rate {100 * most_uncertain['error_rate']:.1f} % in the most uncertain tenth, "
        f"{100 * rate_of_rest:.3g} % in the rest; that tenth holds {100 * share:.0f} % of all errors"
    )


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the chance that one of the `positive` has a higher score than one of the others (ROC AUC).

    NaN where a kind lacks. By ranks: Hanley & McNeil, 1982, doi:10.1148/radiology.143.1.7063747.
    """
    if positive.all() or not positive.any():
        return float("nan")
    pairs = np.count_nonzero(positive) * np.count_nonzero(~positive)
    statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    return float(statistic / pairs)


@dataclass(frozen=True)
class PredictedParticles:
    """Particles of some predictions.

    Attributes
    ----------
    scores : (N,) ndarray
        Mean uncertainty of each.
    is_invented : (N,) bool ndarray
        Whether less than half of it is true.
    """

    scores: np.ndarray
    is_invented: np.ndarray


def judge(
    maps: dict[str, list[np.ndarray]],
    predictions: list[np.ndarray],
    truths: list[np.ndarray],
    insides: list[np.ndarray],
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return how well each kind of uncertainty tells errors, and its `error_rates`.

    Are the most uncertain pixels wrong, and is a particle that does not exist more uncertain than
    one that does? `AUC` is the chance that the mean uncertainty of an invented particle is higher
    than that of another.

    Parameters
    ----------
    maps : dict of name to list of (H, W) ndarrays
    predictions, truths : lists of (H, W) ndarrays, at least one
        Masks, bool, or the class of each pixel: then particles are those of all classes but the
        first, each of which touches no other of its own class.
    insides : list of (H, W) bool ndarrays
        Where each slice shows the sample, and is painted: other pixels are not counted.
    """
    rates = {}
    rows = {}
    for name, uncertainties in maps.items():
        counts = np.zeros((2, CODES), int)
        slices = zip(uncertainties, predictions, truths, insides, strict=True)
        for uncertainty, prediction, truth, inside in slices:
            wrong = prediction != truth
            counts += count_errors(uncertainty[inside], wrong[inside])
        table = error_rates(counts)
        particles = judge_particles(uncertainties, predictions, truths, insides)

        rates[name] = table
        errors = table["errors"]
        rows[name] = {
            "wrong in the most uncertain tenth": table["error_rate"].iloc[-1],
            "wrong in the rest": errors[:-1].sum() / table["pixels"][:-1].sum(),
            "share of all errors": errors.iloc[-1] / max(errors.sum(), 1),
            "particles": len(particles.scores),
            "invented": int(particles.is_invented.sum()),
            "AUC": area_under_curve(particles.scores, particles.is_invented),
        }

    return pd.DataFrame(rows).T, rates


def judge_particles(
    uncertainties: list[np.ndarray],
    predictions: list[np.ndarray],
    truths: list[np.ndarray],
    insides: list[np.ndarray],
) -> PredictedParticles:
    """Return the particles of some predictions: 8-connected parts of `SMALLEST` pixels or more, of one class each."""
    scores = [np.empty(0)]
    is_invented = [np.empty(0, bool)]
    slices = zip(uncertainties, predictions, truths, insides, strict=True)
    for uncertainty, prediction, truth, inside in slices:
        for index in range(1, int(prediction.max(initial=0)) + 1):
            # Whether a particle exists is known where its slice is painted.
            of_class = (prediction == index) & inside
            labels, _ = ndimage.label(of_class, np.ones((3, 3)))
            sizes = np.bincount(labels.ravel())[1:]
            large = np.flatnonzero(sizes >= SMALLEST) + 1
            scores.append(np.asarray(ndimage.mean(uncertainty, labels, large)))
            share_true = np.asarray(ndimage.mean(truth == index, labels, large))
            is_invented.append(share_true < 0.5)

    return PredictedParticles(np.concatenate(scores), np.concatenate(is_invented))
