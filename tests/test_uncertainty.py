"""What uncertainty is, and whether it finds errors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import disc_slice
from evaluation import models, uncertainty
from model_unet import UNet
from slices.reading import Slice
from utils import SlidingWindow, predict_images


def test_entropy_of_known_probabilities():
    result = uncertainty.binary_entropy(np.array([0.0, 0.5, 1.0, 0.25]))
    np.testing.assert_allclose(result, [0, 1, 0, 0.8112781], atol=1e-6)


def test_uncertainty_of_a_slice():
    sure, unsure = np.zeros((10, 10)), np.zeros((10, 10))
    sure[:5], unsure[:5] = 1.0, 0.5
    calm = uncertainty.slice_uncertainty(sure, sure)
    assert calm == {
        "entropy": pytest.approx(0, abs=1e-6),
        "disagreement": 0.0,
        "fraction_predicted": 0.5,
    }
    assert uncertainty.slice_uncertainty(unsure, unsure) == {
        "entropy": pytest.approx(0.5),
        "disagreement": 0.0,
        "fraction_predicted": 0.5,
    }
    split = uncertainty.slice_uncertainty(sure, np.zeros((10, 10)))
    assert split["disagreement"] == 0.5  # models that contradict each other are unsure together
    assert split["entropy"] == pytest.approx(0.5)
    twice = uncertainty.slice_uncertainty(np.tile(unsure, (1, 2)), np.tile(unsure, (1, 2)))
    assert twice["entropy"] == pytest.approx(0.5)  # the size of the slice does not count


def test_few_particles_alone_do_not_make_a_slice_uncertain():
    nothing, few, many = (np.full((100, 100), 0.001) for _ in range(3))
    few[:5, :20] = many[:40, :50] = 0.95  # 1 and 20 % of the area, equally sure
    doubtful = np.where(many > 0.5, 0.6, 0.001)
    result = [
        uncertainty.slice_uncertainty(p, p)["entropy"] for p in (nothing, few, many, doubtful)
    ]
    assert result == sorted(result)
    assert result[3] > 2 * result[2]


def test_reliability_of_known_probabilities():
    p = [np.array([[0.05, 0.05, 0.05, 0.05]]), np.array([[0.95, 0.95, 1.0, 0.55]])]
    t = [np.array([[0, 0, 0, 1]]), np.array([[1, 1, 0, 1]])]
    table = uncertainty.reliability(p, t, bins=10)
    assert table["pixels"].tolist() == [4, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    filled = table[table["pixels"] > 0]
    np.testing.assert_allclose(filled["predicted"], [0.05, 0.55, 2.9 / 3])
    np.testing.assert_allclose(filled["observed"], [0.25, 1, 2 / 3])
    expected = (4 * 0.2 + 0.45 + 3 * (2.9 / 3 - 2 / 3)) / 8
    assert uncertainty.calibration_error(table) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    p = rng.random((1, 300, 300))
    assert (
        uncertainty.calibration_error(
            uncertainty.reliability(list(p), list(rng.random(p.shape) < p))
        )
        < 0.01
    )


# --- are the uncertain ones wrong? ----------------------------------------------------------------------------


def test_error_rates_of_known_maps():
    doubt = np.linspace(0, 0.5, 1000, dtype=np.float16).reshape(20, 50)
    wrong = np.zeros((20, 50), bool)
    wrong[-2:, ::2] = True  # half of the most uncertain tenth
    wrong[0, 0] = True
    counts = uncertainty.count_errors(doubt[:10], wrong[:10]) + uncertainty.count_errors(
        doubt[10:], wrong[10:]
    )
    table = uncertainty.error_rates(counts)
    assert table["pixels"].tolist() == [100] * 10
    assert table["errors"].tolist() == pytest.approx([1] + [0] * 8 + [50], abs=0.5)
    assert table["error_rate"].iloc[-1] == pytest.approx(0.5, abs=0.005)
    assert uncertainty.describe_error_rates(table) == (
        "error rate 50.0 % in the most uncertain tenth, 0.111 % in the rest; that tenth holds 98 % of all errors"
    )


def test_pixels_of_equal_uncertainty_are_spread_evenly():
    wrong = np.arange(1000) % 4 == 0
    table = uncertainty.error_rates(
        uncertainty.count_errors(np.full(1000, 0.25, np.float16), wrong)
    )
    np.testing.assert_allclose(table["error_rate"], 0.25)
    assert table["pixels"].sum() == 1000


def test_uncertainty_that_knows_nothing_and_everything():
    rng = np.random.default_rng(0)
    wrong = rng.random(200_000) < 0.05
    blind = uncertainty.error_rates(uncertainty.count_errors(rng.random(200_000), wrong))
    assert blind["error_rate"].std() < 0.005
    seeing = uncertainty.error_rates(uncertainty.count_errors(wrong * 0.3, wrong))
    assert seeing["errors"].tolist() == pytest.approx([0] * 9 + [wrong.sum()])


def test_no_error_at_all():
    table = uncertainty.error_rates(uncertainty.count_errors(np.zeros(10), np.zeros(10, bool)))
    assert uncertainty.describe_error_rates(table) == "no pixel is wrong"


def test_area_under_the_curve():
    assert (
        uncertainty.area_under_curve(np.array([0.1, 0.2, 0.9]), np.array([False, False, True]))
        == 1.0
    )
    assert uncertainty.area_under_curve(np.array([0.1, 0.1]), np.array([False, True])) == 0.5
    assert (
        uncertainty.area_under_curve(np.array([0.3, 0.1, 0.2]), np.array([False, True, True]))
        == 0.0
    )
    assert np.isnan(uncertainty.area_under_curve(np.array([0.3]), np.array([True])))


def test_maps_of_two_models():
    torch.manual_seed(0)
    student, teacher = (UNet(2).eval() for _ in range(2))
    images = [(disc_slice(i, (40, 50))[0] * 4e5).astype(np.uint8) for i in range(2)]
    slices = [Slice(Path(f"s_{i}.tif"), image) for i, image in enumerate(images)]
    window = torch.device("cpu"), SlidingWindow(32, tta=True)
    means, maps = models.uncertainty_maps(student, teacher, slices, *window)
    one, other = (
        next(predict_images(model, images[:1], *window, with_spread=True))
        for model in (student, teacher)
    )
    np.testing.assert_allclose(means[0], (one[0] + other[0]) / 2, atol=1e-6)
    np.testing.assert_allclose(maps["student − teacher"][0], abs(one[0] - other[0]), atol=1e-6)
    np.testing.assert_allclose(maps["spread, teacher alone"][0], other[1], atol=1e-6)
    square = (one[1] ** 2 + other[1] ** 2) / 2 + (one[0] - other[0]) ** 2 / 4
    np.testing.assert_allclose(maps["spread"][0] ** 2, square, atol=1e-5)
    np.testing.assert_allclose(maps["total"][1] ** 2, means[1] * (1 - means[1]), atol=1e-6)
    assert [len(some) for some in maps.values()] == [2] * 4
    assert models.uncertainty_maps(student, teacher, [], *window)[0] == []

    outside = np.zeros((40, 50), bool)
    outside[:10] = True
    padded = [Slice(slices[0].path, images[0], outside=outside)]
    padded_means, padded_maps = models.uncertainty_maps(student, teacher, padded, *window)
    for whole, part in (
        (means, padded_means),
        *zip(maps.values(), padded_maps.values(), strict=True),
    ):
        assert not part[0][outside].any()
        np.testing.assert_array_equal(part[0][~outside], whole[0][~outside])


def test_a_map_of_the_errors_is_right_and_its_opposite_wrong():
    truth = np.zeros((40, 50), bool)
    truth[5:15, 5:15] = True
    prediction = truth.copy()
    prediction[25:35, 25:30] = True  # invented
    prediction[0, 0] = True  # too small to be a particle
    wrong = prediction != truth
    table, rates = uncertainty.judge(
        {"right": [wrong * 0.4], "opposite": [~wrong * 0.4]},
        [prediction],
        [truth],
        [np.ones(truth.shape, bool)],
    )
    assert table["AUC"].tolist() == [1.0, 0.0]
    assert table["particles"].tolist() == [2, 2]
    assert table["invented"].tolist() == [1, 1]
    assert table["share of all errors"].tolist() == pytest.approx([1, 0])
    assert table["wrong in the most uncertain tenth"].tolist() == pytest.approx([51 / 200, 0])
    assert table["wrong in the rest"]["opposite"] == pytest.approx(51 / 1800)
    pd.testing.assert_frame_equal(
        rates["right"], uncertainty.error_rates(uncertainty.count_errors(wrong * 0.4, wrong))
    )


def test_pixels_without_sample_are_not_counted():
    truth = np.zeros((20, 20), bool)
    prediction = truth.copy()
    prediction[10:12] = True  # 40 wrong pixels, half of them in the sample
    inside = np.zeros(truth.shape, bool)
    inside[:, :10] = True
    maps = {"even": [np.full(truth.shape, 0.2)]}
    _, rates = uncertainty.judge(maps, [prediction], [truth], [inside])
    assert rates["even"]["pixels"].sum() == 200
    assert rates["even"]["errors"].sum() == 20
