"""How sizes of particles are distributed, and how two distributions differ."""

import numpy as np
import pandas as pd

from evaluation.uncertainty import area_under_curve

QUANTILES = {"D10": 0.1, "D50": 0.5, "D90": 0.9}
BOOTSTRAP_DRAWS = 1000
PERMUTATIONS = 2000


def whole_particles(table: pd.DataFrame) -> pd.DataFrame:
    """Return the particles that touch no border."""
    return table[~table["touches_border"]]


def size_column(table: pd.DataFrame) -> str:
    """Return the name of the size of particles: `volume`, or in slices `area`."""
    return "volume" if "volume" in table else "area"


def summarise_sizes(table: pd.DataFrame) -> dict[str, float | int]:
    """Return the number of particles and D10, D50, D90 by number and by size, of those that touch no border.

    With their weights. Half of the particles (by number), or of their area or volume, are in
    particles up to the diameter D50.
    """
    whole = whole_particles(table)
    size = size_column(table)
    summary = {"particles": len(table), "whole": len(whole)}
    weights_by = {"number": whole["weight"], size: whole["weight"] * whole[size]}
    for by, weights in weights_by.items():
        for name, share in QUANTILES.items():
            quantile = None
            if len(whole):
                quantile = weighted_quantile(whole["diameter"], weights, share)
            summary[f"{name}_{by}"] = quantile

    return summary


def weighted_quantile(values: pd.Series, weights: pd.Series, share: float) -> float:
    """Return the smallest value up to which values make up a share of all weights."""
    return float(np.quantile(values, share, weights=weights, method="inverted_cdf"))


def describe_sizes(table: pd.DataFrame, unit: str) -> str:
    """Return `summarise_sizes` in words; `unit` is that of the diameters."""
    summary = summarise_sizes(table)
    if not summary["whole"]:
        return f"{summary['particles']} particles, none of them wholly inside"
    size = size_column(table)
    return (
        f"{summary['particles']} particles, {summary['whole']} of them wholly inside; of these half "
        f"are up to {summary['D50_number']:.3g} {unit} large, and half of their {size} is in those up "
        f"to {summary[f'D50_{size}']:.3g} {unit}"
    )


def invented(table: pd.DataFrame) -> dict[str, float | int]:
    """Return how many particles do not exist, where the truth is known: less than half of them lies in it.

    And with an uncertainty the chance that an invented particle has a higher one than another (ROC
    AUC).
    """
    if "truth" not in table:
        return {}
    is_invented = (table["truth"] < 0.5).to_numpy()
    auc = None
    has_both_kinds = is_invented.any() and not is_invented.all()
    if "uncertainty" in table and has_both_kinds:
        auc = area_under_curve(table["uncertainty"].to_numpy(), is_invented)
    return {"invented": int(is_invented.sum()), "auc": auc}


# --- two distributions ----------------------------------------------------------------------------


def compare_sizes(one: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Return how the particles of `other` differ from those of `one`.

    Particles that touch the border are left out. Particles are taken as independent, and the two as
    different samples: where the same particles are seen twice, real differences are clearer than
    this says.

    Returns
    -------
    dict
        `ratio` of D50 by number with its 95 % bootstrap interval over particles, `low` and `high`,
        and `p` of the Kolmogorov–Smirnov test that both have one distribution, with weights. All
        None with fewer than two particles.
    """
    one = whole_particles(one)
    other = whole_particles(other)
    if min(len(one), len(other)) < 2:
        return {"ratio": None, "low": None, "high": None, "p": None}

    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(BOOTSTRAP_DRAWS):
        median_of_other = median_diameter(drawn_again(other, rng))
        median_of_one = median_diameter(drawn_again(one, rng))
        ratios.append(median_of_other / median_of_one)

    low, high = np.quantile(ratios, (0.025, 0.975))
    return {
        "ratio": median_diameter(other) / median_diameter(one),
        "low": float(low),
        "high": float(high),
        "p": kolmogorov_smirnov(values_and_weights(one), values_and_weights(other), rng),
    }


def median_diameter(table: pd.DataFrame) -> float:
    """Return D50 by number."""
    return weighted_quantile(table["diameter"], table["weight"], 0.5)


def drawn_again(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return as many particles, drawn with replacement."""
    return table.iloc[rng.integers(0, len(table), len(table))]


def values_and_weights(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return diameters and weights of particles, (N,) each."""
    return table["diameter"].to_numpy(), table["weight"].to_numpy()


def kolmogorov_smirnov(
    one: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    draws: int = PERMUTATIONS,
) -> float:
    """Return the p-value of the largest distance of two weighted cumulative distributions, by permutation.

    Parameters
    ----------
    one, other : (values, weights), (N,) ndarrays
    rng : numpy Generator
    draws : int
    """
    values = np.concatenate([one[0], other[0]])
    weights = np.concatenate([one[1], other[1]])
    order = np.argsort(values, kind="stable")
    # Of equal values the last one counts.
    is_last = np.append(np.diff(values[order]) > 0, True)

    def cumulative(chosen: np.ndarray) -> np.ndarray:
        return np.cumsum(np.where(chosen, weights, 0.0)[order]) / weights[chosen].sum()

    def distance(chosen: np.ndarray) -> float:
        difference = np.abs(cumulative(chosen) - cumulative(~chosen))
        return difference[is_last].max()

    is_one = np.arange(len(values)) < len(one[0])
    observed = distance(is_one)
    larger = 0
    for _ in range(draws):
        if distance(rng.permutation(is_one)) >= observed - 1e-12:
            larger += 1
    return (larger + 1) / (draws + 1)
