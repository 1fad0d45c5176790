"""What scores of few slices say: confidence intervals over slices, and paired comparison of methods."""

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.metrics import METRICS
from runtime.messages import InputError

SIGNIFICANT = 0.05


def mean_interval(values: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    """Return the mean over slices with its 95 % percentile bootstrap interval (None for fewer than two values)."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    rng = np.random.default_rng(seed)
    result = stats.bootstrap((values,), np.mean, method="percentile", rng=rng)
    low, high = result.confidence_interval
    return {"mean": mean, "low": float(low), "high": float(high)}


def summarise(table: pd.DataFrame) -> dict[str, dict]:
    """Return {method: {metric: mean and interval}} in the order of the table's methods."""
    summary = {}
    for method, rows in table.groupby("method", sort=False):
        summary[method] = {metric: mean_interval(rows[metric].to_numpy()) for metric in METRICS}
    return summary


def compare(
    table: pd.DataFrame, method: str, control: str, metric: str = "dice", seed: int = 0
) -> dict:
    """Return the paired difference `method` − `control` over the same slices: mean, 95 % interval, sign-flip test.

    The p-value is two-sided and exact up to 13 slices; with n slices it cannot be below 2/2ⁿ.

    Raises
    ------
    InputError
        When the two do not cover the same slices.
    """
    scores = scores_by_slice(table, method, metric)
    control_scores = scores_by_slice(table, control, metric)
    if scores.empty or set(scores.index) != set(control_scores.index):
        raise InputError(
            f"{method} and {control} were not measured on the same slices; evaluate both again"
        )

    difference = (scores - control_scores.reindex(scores.index)).to_numpy()
    p = sign_flip_p(difference, seed) if len(difference) > 1 else None
    return {
        "method": method,
        "control": control,
        "metric": metric,
        "slices": len(difference),
        **mean_interval(difference, seed),
        "p": p,
    }


def scores_by_slice(table: pd.DataFrame, method: str, metric: str) -> pd.Series:
    """Return the scores of a method, by stem."""
    return table[table["method"] == method].set_index("stem")[metric]


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p of the mean of independent differences under random signs; NaN for a single one.

    Exact up to 13 of them; with n it cannot be below 2/2ⁿ.
    """
    if len(differences) < 2:
        return float("nan")
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def describe(comparison: dict) -> str:
    """Return a comparison in words.

    There is a verdict only where interval and test agree: an interval of few slices is narrow.
    """
    mean, low, high, p = (comparison[key] for key in ("mean", "low", "high", "p"))
    metric = comparison["metric"].replace("dice", "Dice")
    direction = "lower" if mean < 0 else "higher"
    text = (
        f"{comparison['method']}: {metric} {abs(mean):.3f} {direction} than that of "
        f"{comparison['control']}"
    )
    if low is None:
        return f"{text}; one slice, no interval."

    is_clear = p < SIGNIFICANT and low * high > 0
    verdict = "no clear difference"
    if is_clear:
        verdict = "better" if mean > 0 else "worse"
    interval = f"{low:+.3f} to {high:+.3f}".replace("-", "−")
    return (
        f"{text} (95 % interval {interval}, p = {p:.3f}, {comparison['slices']} slices): {verdict}."
    )
