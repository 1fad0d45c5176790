"""Features of pixels say what they are called, whichever way the image lies, and a U-Net may add what they tell."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from config import make_config
from conftest import labelled
from datasets import mask_planes
from model_unet import UNet
from pixel_classifier import (
    KINDS,
    REACH,
    SCALES,
    FilterBank,
    PixelClassifier,
    feature_count,
    logits_of,
    pixel_features,
)
from slices.reading import Slice
from training import pixel_fit
from training.pixel_fit import (
    CONFIDENCE,
    draw_pixels,
    first_answer,
    fit_pixel_classifier,
    fitted_network,
    take_classifier,
    with_confidence,
)
from utils import overlap_metrics


def named(features: torch.Tensor, scale: int) -> dict[str, torch.Tensor]:
    """Return the features of one scale by their kind, of the first image."""
    first = 1 + scale * len(KINDS)
    return dict(zip(KINDS, features[0, first : first + len(KINDS)], strict=True))


def test_a_plane_has_no_texture_edge_or_curvature():
    features = pixel_features(torch.full((1, 1, 64, 64), 0.3))
    assert features.shape == (1, feature_count(), 64, 64)
    for scale in range(SCALES):
        of_scale = named(features, scale)
        torch.testing.assert_close(of_scale.pop("mean"), torch.full((64, 64), 0.3))
        assert all(feature.abs().max() < 1e-3 for feature in of_scale.values())


def test_a_slope_is_the_gradient_in_whichever_direction():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for image in (0.01 * rows, 0.01 * columns, 0.006 * rows + 0.008 * columns):
        gradient = named(pixel_features(image[None, None]), 0)["gradient"]
        torch.testing.assert_close(gradient[8:-8, 8:-8], torch.full((48, 48), 0.01))


def test_a_bright_line_bends_downwards_across_and_not_along():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 32] = 1
    for lines in (image, image.mT):
        of_scale = named(pixel_features(lines), 0)
        assert of_scale["smallest curvature"][32, 32] < -0.4
        assert of_scale["largest curvature"][32, 32].abs() < 1e-6


def test_texture_is_the_deviation_of_grey_values():
    torch.manual_seed(0)
    image = 0.5 + 0.1 * torch.randn(1, 1, 256, 256)
    for scale in (2, 3, 4):
        deviation = named(pixel_features(image), scale)["deviation"]
        assert abs(deviation.mean() - 0.1) < 0.01


def test_scales_are_as_wide_as_they_are_said_to_be():
    image = torch.zeros(1, 1, 256, 256)
    image[..., 128:] = 1
    for scale, sigma in enumerate((0.7, 1.7, 3.4, 6.9, 14)):
        step = named(pixel_features(image), scale)["mean"][128]
        # The slope of a smoothed step is a Gaussian: its variance is that of the smoothing.
        slope = step.diff()
        place = torch.arange(len(slope), dtype=torch.float32)
        middle = (slope * place).sum()
        deviation = (slope * (place - middle).square()).sum().sqrt()
        assert abs(deviation - sigma) < 0.2 * sigma


@pytest.mark.parametrize(
    "turn", [lambda x: x.flip(-1), lambda x: x.mT, lambda x: x.rot90(1, (-2, -1))]
)
def test_features_turn_with_the_image(turn):
    torch.manual_seed(0)
    image = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(pixel_features(turn(image)), turn(pixel_features(image)))


def test_features_are_standardised_by_the_pixels_that_are_given():
    torch.manual_seed(0)
    bank = FilterBank()
    images = torch.rand(2, 1, 64, 64)
    pixels = pixel_features(images).movedim(1, -1).flatten(0, 2)  # (N, C)
    standardised = bank.standardise(pixels)
    features = bank(images)
    torch.testing.assert_close(standardised, features.movedim(1, -1).flatten(0, 2))
    assert features.mean((0, 2, 3)).abs().max() < 1e-3
    assert (features.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert bank(images / 2)[:, 0].mean() < -0.5  # absolute grey values are seen
    assert torch.equal(bank.train()(images), features)  # nothing is learned in training


def test_fitting_tells_foreground_by_texture_within_seconds(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((128, 136), np.uint8)
    mask[:, 68:] = 1
    image = np.where(mask, rng.integers(80, 176, mask.shape), 128).astype(np.uint8)
    blank = np.zeros(mask.shape, bool)
    blank[:40] = True
    image[:40] = 128
    s = Slice(tmp_path / "s.tif", image, mask, outside=blank)
    classifiers = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        classifier = PixelClassifier()
        config = make_config(method="auto", seed=seed)
        fit_pixel_classifier(classifier, [s], config, torch.device("cpu"))
        classifiers.append(classifier.eval())
    x = torch.from_numpy(image).float()[None, None] / 255
    with torch.no_grad():
        found = classifiers[0](x)[0, 0, 56:] > 0
    assert overlap_metrics(found.numpy(), mask[56:])["dice"] > 0.95
    first, again, other = (c.state_dict() for c in classifiers)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["first.0.weight"], other["first.0.weight"])


def draw(s, pixels: int, generator: torch.Generator) -> pixel_fit.Pixels:
    """Random pixels of a slice with a binary mask, at its own resolution."""
    (planes,) = mask_planes([s], 1, class_count=2)
    return draw_pixels(s, planes, pixels, 1, generator)


def test_pixels_that_are_drawn_have_the_features_of_the_layer():
    s = labelled(1, (66, 71))[0]
    sample = draw(s, 10_000, torch.Generator().manual_seed(0))
    assert sample.image.shape == (1, 1, 68, 72)
    assert len(set(sample.places.tolist())) == 66 * 71
    rows, columns = sample.places // 72, sample.places % 72
    assert torch.equal(sample.targets[:, 0], torch.from_numpy(s.mask)[rows, columns].float())
    grey_values = sample.features_of(sample.image)[:, 0]
    shown = torch.from_numpy(s.image)[rows, columns]
    torch.testing.assert_close(grey_values, shown / 255)


def test_only_pixels_of_the_sample_are_drawn_and_no_more_than_asked_for():
    s = labelled(1, (64, 72))[0]
    outside = np.zeros(s.image.shape, bool)
    outside[:40] = True
    s = dataclasses.replace(s, outside=outside)
    generator = torch.Generator().manual_seed(0)
    every = draw(s, 10_000, generator)
    assert sorted(every.places.tolist()) == list(range(40 * 72, 64 * 72))
    assert len(set(draw(s, 100, generator).places.tolist())) == 100


def test_looking_twice_tells_what_was_found_around_a_pixel():
    """Halves whose noise differs little: one pixel's neighbourhood is too small to be sure of it."""
    rng = np.random.default_rng(0)
    mask = np.zeros((192, 192), np.uint8)
    mask[:, 96:] = 1
    deviation = np.where(mask, 20, 22)
    image = np.clip(128 + deviation * rng.standard_normal(mask.shape), 0, 255).astype(np.uint8)
    classifier = PixelClassifier()
    slices = [Slice(Path("s.tif"), image, mask)]
    fit_pixel_classifier(classifier, slices, make_config(), torch.device("cpu"))
    x = torch.from_numpy(image).float()[None, None] / 255
    with torch.no_grad():
        once = logits_of(classifier.first, classifier.of_image(x))[0, 0] > 0
        twice = classifier(x)[0, 0] > 0
    wrong_once, wrong_twice = ((found.numpy() != mask).sum() for found in (once, twice))
    assert wrong_once > 100
    assert wrong_twice < 0.8 * wrong_once


def test_a_fitted_network_answers_what_its_classifier_says_and_hands_it_on():
    torch.manual_seed(0)
    slices = labelled(2)
    config = make_config(method="auto", base_channels=2)
    fitted = fitted_network(config, slices, torch.device("cpu"))
    x = torch.from_numpy(slices[0].image[:64, :64]).float()[None, None] / 255
    torch.testing.assert_close(fitted(x), fitted.pixel_classifier(x))
    found = fitted(x)[0, 0] > 0
    assert overlap_metrics(found.numpy(), slices[0].mask[:64, :64])["dice"] > 0.9

    other = UNet(2, unshuffle=2, pixel_classifier=True)
    take_classifier(other, fitted)
    torch.testing.assert_close(other.pixel_classifier(x), CONFIDENCE * fitted(x))
    torch.testing.assert_close(with_confidence(other, 1.0).pixel_classifier(x), fitted(x))
    assert other.pixel_classifier.confidence == CONFIDENCE
    # It stays as it is while the network is trained.
    assert not any(weight.requires_grad for weight in other.pixel_classifier.parameters())


def test_pixels_far_away_change_no_feature():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 256, 256)
    near, far = image.clone(), image.clone()
    near[..., 120 + 20, 120] += 1
    far[..., 120 + REACH :, :] += 1
    here = pixel_features(image)[..., 120, 120]
    assert torch.equal(pixel_features(far)[..., 120, 120], here)
    assert not torch.equal(pixel_features(near)[..., 120, 120], here)


def test_a_large_slice_is_looked_at_in_parts_and_nothing_changes(monkeypatch):
    s = labelled(1, (230, 300))[0]
    classifier = PixelClassifier()
    sample = draw(s, 5000, torch.Generator().manual_seed(0))
    classifier.of_image.standardise(sample.features_of(sample.image))
    whole = sample.features_of(sample.image), first_answer(classifier, sample)
    monkeypatch.setattr(pixel_fit, "TILE", 64)
    assert len(list(pixel_fit.tiles_of(sample.image))) == 4 * 5
    parts = sample.features_of(sample.image), first_answer(classifier, sample)
    for of_parts, of_whole in zip(parts, whole, strict=True):
        torch.testing.assert_close(of_parts, of_whole)


def test_a_network_adds_the_logits_of_the_classifier():
    torch.manual_seed(0)
    model = UNet(2, unshuffle=2, pixel_classifier=True).eval()
    plain = UNet(2, unshuffle=2).eval()
    weights = model.state_dict()
    plain.load_state_dict(
        {name: value for name, value in weights.items() if "pixel_classifier" not in name}
    )
    x = torch.rand(2, 1, 64, 96)
    torch.testing.assert_close(model(x), plain(x) + model.pixel_classifier(x))
    assert torch.equal(UNet.from_weights(weights)(x), model(x))


def test_precision_is_not_lost_where_features_are_differences():
    torch.manual_seed(0)
    images = 0.9 + 0.001 * torch.rand(1, 1, 64, 64)
    bank = FilterBank()
    expected = bank(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank(images), expected)
        assert PixelClassifier()(images).dtype == torch.bfloat16


def test_a_network_that_takes_blocks_loses_no_pixel():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 64, 96)
    left, right = x.clone(), x.clone()
    left[..., 32, 48] += 1
    right[..., 32, 49] += 1  # the other pixel of the same row of a block
    means, blocks = UNet(2, downsample=2).eval(), UNet(2, unshuffle=2).eval()
    torch.testing.assert_close(means(left), means(right))
    assert (blocks(left) - blocks(right)).abs().max() > 0.01
    assert blocks(x).shape == x.shape
    assert [tuple(level.shape[1:]) for level in blocks.encode(x)[:2]] == [(2, 32, 48), (4, 16, 24)]
    with pytest.raises(ValueError, match="input is 48×64; sides must be multiples of 32"):
        blocks(torch.zeros(1, 1, 48, 64))


def test_blocks_of_means_work_together():
    torch.manual_seed(0)
    model = UNet(2, downsample=2, unshuffle=2, pixel_classifier=True).eval()
    x = torch.rand(1, 1, 128, 192)
    small = model(F.avg_pool2d(x, 2), reduced=True)
    assert small.shape == (1, 1, 64, 96)
    torch.testing.assert_close(model(x), F.interpolate(small, scale_factor=2, mode="bilinear"))
    assert UNet.from_weights(model.state_dict()).unshuffle == 2
