"""Means, intervals and paired tests of the rows of a study, whose slices, trainings and regions are not independent."""

import numpy as np
import pandas as pd
from scipy import stats

from config import FOREST, OTSU
from training.phases import CONTROL

SHARED = (
    OTSU,
    "supervised",
    CONTROL,
)  # rows that runs with equal supervised phases have in common


def mean_of_folds(table: pd.DataFrame, column: str) -> float:
    """Mean over folds of the mean over their slices and seeds: each region of the sample counts as one."""
    return float(table.groupby("fold")[column].mean().mean())


def bootstrap(table: pd.DataFrame, column: str, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of `mean_of_folds` of a column with a value per slice, fold and seed; NaN for a single value.

    Folds are resampled, in each of them seeds, and slices, the same ones for all its seeds: what the slices of a
    training or the trainings of a fold share is no repeated evidence (bootstrap of nested and crossed factors: Owen,
    2007, doi:10.1214/07-AOAS122). A few folds are few draws: with three it covers about three quarters instead of
    95 % where folds differ more than seeds do, so read the test of `paired` beside it.
    """
    if len(table) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    folds = [
        part.pivot_table(
            index="seed", columns="stem", values=column
        ).to_numpy()  # (seeds, slices) each
        for _, part in table.groupby("fold")
    ]
    total = np.zeros(draws)
    for chosen in rng.integers(0, len(folds), (len(folds), draws)):
        for number, scores in enumerate(folds):
            seeds, slices = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in scores.shape)
            total += np.where(chosen == number, np.einsum("ds,st,dt->d", seeds, scores, slices), 0)
    low, high = np.quantile(total / len(folds), (0.025, 0.975))
    return float(low), float(high)


def paired(table: pd.DataFrame, metric: str = "dice", draws: int = 10_000) -> dict:
    """Mean difference to the control with its 95 % bootstrap interval, and a paired t-test.

    The test takes the mean gain of each fold as one value: seeds and slices of a fold share labelled slices and region,
    so they are no further evidence about another region. NaN for a single fold.

    Parameters
    ----------
    table : DataFrame
        Columns `stem`, `fold`, `seed`, `metric` and `control`: the score, and that of the control on the same slice.
    """
    table = table.assign(gain=table[metric] - table["control"])
    low, high = bootstrap(table, "gain", draws)
    folds = table.groupby("fold")["gain"].mean().to_numpy()
    p = stats.ttest_1samp(folds, 0).pvalue if len(folds) > 1 and np.ptp(folds) else float("nan")
    return {"gain": mean_of_folds(table, "gain"), "gain_low": low, "gain_high": high, "p": float(p)}


def summarise_study(table: pd.DataFrame, first: str, metric: str = "dice") -> pd.DataFrame:
    """A row per label budget, variant and role: mean score with its interval, and the comparison with the control.

    `gain` is against the control of the same run, `change` against the same role of the variant `first` (ablations),
    each with its interval and the p of `paired`.
    """
    rows = []
    control = (
        table[table["role"] == CONTROL]
        .set_index(["variant", "settings", "stem"])[metric]
        .rename("control")
    )
    same = ["labels", "fold", "seed", "stem", "role"]
    base = table[table["variant"] == first].set_index(same)[metric].rename("control")
    twins = table["role"].isin(SHARED) & table.duplicated(
        ["group", "role", "stem"]
    )  # shown with the first variant
    for (labels, variant, role), part in table[~twins].groupby(
        ["labels", "variant", "role"], sort=False
    ):
        low, high = bootstrap(part, metric)
        row = {
            "labels": labels,
            "variant": variant,
            "role": role,
            metric: mean_of_folds(part, metric),
            "low": low,
            "high": high,
            "slices": part["stem"].nunique(),
            "trainings": len(part.groupby(["fold", "seed"])),
        }
        if role not in (CONTROL, OTSU, FOREST):
            row |= paired(part.join(control, on=["variant", "settings", "stem"]), metric)
        both = part.join(base, on=same, how="inner")
        if variant != first and len(both):
            row |= {
                "change_p" if k == "p" else k.replace("gain", "change"): v
                for k, v in paired(both, metric).items()
            }
        rows.append(row)
    return pd.DataFrame(rows)
