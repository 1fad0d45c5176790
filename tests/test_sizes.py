"""Distributions of sizes against what can be said without a program."""

import numpy as np
import pandas as pd
import pytest

from particles import sizes


def test_weighted_quantiles():
    table = pd.DataFrame(
        {
            "diameter": [1.0, 2.0, 3.0, 4.0, 100.0],
            "volume": [1.0, 1.0, 1.0, 7.0, 1e9],
            "weight": [1.0, 1.0, 1.0, 1.0, 1.0],
            "touches_border": [False] * 4 + [True],
        }
    )
    result = sizes.summarise_sizes(table)
    assert (result["particles"], result["whole"]) == (5, 4)
    assert result["D50_number"] == 2.0
    assert result["D50_volume"] == 4.0
    assert result["D90_number"] == 4.0


def test_two_samples_of_one_distribution_and_of_two():
    rng = np.random.default_rng(0)

    def sample(scale):
        return pd.DataFrame(
            {"diameter": scale * rng.lognormal(0, 0.3, 300), "weight": 1.0, "touches_border": False}
        )

    one = sample(1.0)
    same, larger = sizes.compare_sizes(one, sample(1.0)), sizes.compare_sizes(one, sample(1.2))
    assert same["low"] < 1 < same["high"]
    assert same["p"] > 0.05
    assert larger["low"] > 1
    assert larger["ratio"] == pytest.approx(1.2, rel=0.1)
    assert larger["p"] < 2e-3
    assert sizes.compare_sizes(one, one[:1])["ratio"] is None


def test_weighted_samples_of_one_population_do_not_differ():
    """Large values are seen less often in one of the samples, and weigh as much more."""
    rng, p = np.random.default_rng(0), []
    for _ in range(40):
        tables = []
        for seen in (1.0, 0.3):
            values = rng.lognormal(0, 0.5, 400)
            chance = np.where(values > 1, seen, 1.0)
            kept = rng.random(400) < chance
            tables.append((values[kept], 1 / chance[kept]))
        p.append(sizes.kolmogorov_smirnov(*tables, rng, 200))
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.array(p) < 0.05) < 0.2


def test_equal_values_are_one_step():
    rng = np.random.default_rng(0)
    ones = np.ones(30)
    assert (
        sizes.kolmogorov_smirnov(
            (np.repeat([1.0, 2], 15), ones), (np.tile([1.0, 2], 15), ones), rng
        )
        == 1.0
    )
