"""How much of a material each phase fills, with the interval that models and slices leave open."""

import numpy as np
import pandas as pd

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles


def class_shares(labels: np.ndarray, where: np.ndarray, class_count: int) -> np.ndarray:
    """Return the share of each class among some pixels: (K,); NaN where there are none.

    Parameters
    ----------
    labels : (H, W) uint8 ndarray
        The class of each pixel, by its place.
    where : (H, W) bool ndarray
    class_count : int
    """
    counts = np.bincount(labels[where], minlength=class_count).astype(float)
    total = counts.sum()
    return counts / total if total else np.full(class_count, np.nan)


def fraction_table(
    predicted: np.ndarray, painted: np.ndarray, names: tuple[str, ...], seed: int = 0
) -> pd.DataFrame:
    """Return the fraction of each class with its interval, beside the painted one.

    The 95 % interval is that of the percentile bootstrap in which models and slices are both drawn
    anew: it shows by how much the fraction would differ with other slices of the same kind, and
    between the models of a run. It does not show an error that all of these have in common.

    Parameters
    ----------
    predicted : (M, N, K) ndarray
        Shares of K classes in N whole slices, as M models predict them.
    painted : (N, K) ndarray
        The same of what is painted in these slices, which may be a part of them.
    names : tuple of str
    seed : int

    Returns
    -------
    DataFrame
        A row per class: `class`, `predicted`, `low`, `high` (NaN for a single model and slice) and
        `painted`.
    """
    models, slices, _ = predicted.shape
    rng = np.random.default_rng(seed)
    means = []
    if models * slices > 1:
        for _ in range(RESAMPLES):
            of_models = rng.integers(models, size=models)
            of_slices = rng.integers(slices, size=slices)
            means.append(predicted[of_models][:, of_slices].mean(axis=(0, 1)))

    rows = []
    for index, name in enumerate(names):
        low, high = np.nan, np.nan
        if means:
            low, high = np.percentile([mean[index] for mean in means], INTERVAL)
        rows.append(
            {
                "class": name,
                "predicted": predicted[..., index].mean(),
                "low": low,
                "high": high,
                "painted": np.nanmean(painted[:, index]),
            }
        )
    return pd.DataFrame(rows)
