"""How sizes of particles are distributed, and how two distributions differ."""

import numpy as np
import pandas as pd

from evaluation.uncertainty import area_under_curve

QUANTILES = {"D10": 0.1, "D50": 0.5, "D90": 0.9}


def summarise_sizes(table: pd.DataFrame) -> dict[str, float | int]:
    """Number of particles and D10, D50, D90 by number and by size, of those that touch no border, with their weights.

    Half of the particles (by number), or of their area or volume, are in particles up to the diameter D50.
    """
    whole = table[~table["touches_border"]]
    size = "volume" if "volume" in table else "area"
    found = {"particles": len(table), "whole": len(whole)}
    for by, weights in (("number", whole["weight"]), (size, whole["weight"] * whole[size])):
        for name, quantile in QUANTILES.items():
            found[f"{name}_{by}"] = float(np.quantile(whole["diameter"], quantile, weights=weights,
                                                      method="inverted_cdf")) if len(whole) else None
    return found


def describe_sizes(table: pd.DataFrame, unit: str) -> str:
    """`summarise_sizes` in words; `unit` is that of the diameters."""
    found = summarise_sizes(table)
    if not found["whole"]:
        return f"{found['particles']} particles, none of them wholly inside"
    size = "volume" if "volume" in table else "area"
    return (f"{found['particles']} particles, {found['whole']} of them wholly inside; of these half are up to "
            f"{found['D50_number']:.3g} {unit} large, and half of their {size} is in those up to "
            f"{found[f'D50_{size}']:.3g} {unit}")


def invented(table: pd.DataFrame) -> dict[str, float | int]:
    """Where the truth is known: the number of particles of which less than half lies in it, and with an uncertainty
    the chance that an invented particle has a higher one than another (ROC AUC).
    """
    if "truth" not in table:
        return {}
    false = (table["truth"] < 0.5).to_numpy()
    if "uncertainty" not in table or false.all() or not false.any():
        return {"invented": int(false.sum()), "auc": None}
    return {"invented": int(false.sum()), "auc": area_under_curve(table["uncertainty"].to_numpy(), false)}


def compare_sizes(one: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """How the particles of `other` differ from those of `one`: ratio of D50 by number with its 95 % bootstrap interval
    over particles, and the p-value of the Kolmogorov–Smirnov test that both have one distribution, with weights.

    Particles that touch the border are left out. Particles are taken as independent, and the two as different samples:
    where the same particles are seen twice, real differences are clearer than this says.
    """
    whole = [table[~table["touches_border"]] for table in (one, other)]
    if min(map(len, whole)) < 2:
        return {"ratio": None, "low": None, "high": None, "p": None}
    rng, drawn = np.random.default_rng(seed), []

    def median(table: pd.DataFrame) -> float:
        return float(np.quantile(table["diameter"], 0.5, weights=table["weight"], method="inverted_cdf"))

    for _ in range(1000):
        drawn.append(np.divide(*(median(t.iloc[rng.integers(0, len(t), len(t))]) for t in whole[::-1])))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"ratio": median(whole[1]) / median(whole[0]), "low": float(low), "high": float(high),
            "p": kolmogorov_smirnov(*((t["diameter"].to_numpy(), t["weight"].to_numpy()) for t in whole), rng)}


def kolmogorov_smirnov(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray],
                       rng: np.random.Generator, draws: int = 2000) -> float:
    """p-value of the largest distance of two weighted cumulative distributions, by permutation of the particles.

    Parameters
    ----------
    one, other : (values, weights), (N,) ndarrays
    """
    values, weights = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    order = np.argsort(values, kind="stable")
    last = np.append(np.diff(values[order]) > 0, True)                  # of equal values
    first = np.arange(len(values)) < len(one[0])

    def distance(chosen: np.ndarray) -> float:
        shares = [np.cumsum(np.where(some, weights, 0.0)[order]) / weights[some].sum() for some in (chosen, ~chosen)]
        return np.abs(shares[0] - shares[1])[last].max()

    seen = distance(first)
    more = sum(distance(rng.permutation(first)) >= seen - 1e-12 for _ in range(draws))
    return (more + 1) / (draws + 1)
