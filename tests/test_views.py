"""Weak and strong views: one geometry, recorded and replayed; each perturbation apart from the others."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import views
from config import Geometry, Intensity
from conftest import FloatViews as Views
from conftest import labelled
from runtime import loaders
from slices.reading import Slice, reduce_slice


def test_tensor_is_what_normalize_gives():
    image = np.random.default_rng(0).integers(0, 256, (5, 6)).astype(np.uint8)
    expected = views.A.Normalize(mean=0, std=1, max_pixel_value=255)(image=image)["image"]
    np.testing.assert_allclose(
        loaders.to_float(torch.from_numpy(image)).numpy(), expected, atol=1e-7
    )


def test_views_coincide_without_blur_and_differ_in_grey_only_with_it():
    plain = Views(labelled(), 48, intensity={"blur_p": 0.0})
    blurred = Views(labelled(), 48, intensity={"blur_p": 1.0})
    for seed in range(30):
        same, other = plain[seed % 4, seed], blurred[seed % 4, seed]
        assert torch.equal(same["weak"], same["strong"])
        assert torch.equal(same["weak"], other["weak"])
        assert torch.equal(same["mask"], other["mask"])
        assert not torch.equal(other["weak"], other["strong"])


def test_blur_has_its_probability():
    made = Views(labelled(), 48, intensity={"blur_p": 0.5})
    changed = [
        not torch.equal(v["weak"], v["strong"]) for v in (made[0, seed] for seed in range(200))
    ]
    assert 70 < sum(changed) < 130


def test_mask_follows_the_image_exactly():
    """The image is the mask itself. Bilinear against nearest neighbour at the same point: the nearest pixel has at
    least a quarter of the weight, so a mask pixel that moved by even one pixel would break the bounds."""
    rng = np.random.default_rng(0)
    masks = [
        (cv2.GaussianBlur(rng.random((96, 96)), (0, 0), 2) > 0.5).astype(np.uint8) for _ in range(3)
    ]
    turned = Views(
        [Slice(Path("m"), m * np.uint8(255), m) for m in masks], 64, intensity={"blur_p": 0.0}
    )
    flipped = Views(turned.slices, 64, geometry={"rotation": 0.0}, intensity={"blur_p": 0.0})
    zoomed = Views(
        turned.slices, 64, geometry={"zoom": 1.5, "quarter_turns": True}, intensity={"blur_p": 0.0}
    )
    for seed in range(60):
        for item in (turned[seed % 3, seed], zoomed[seed % 3, seed]):
            assert item["weak"][item["mask"] == 1].min() > 0.2
            assert item["weak"][item["mask"] == 0].max() < 0.8
        item = flipped[seed % 3, seed]
        assert torch.equal(item["weak"], item["mask"])


def test_geometry_is_recorded_and_replayed():
    image = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    geometry = views.build_geometry()
    geometry.set_random_seed(3)
    recorded = geometry(image=image)
    again = views.A.ReplayCompose.replay(recorded["replay"], image=image)["image"]
    np.testing.assert_array_equal(recorded["image"], again)
    assert not np.array_equal(recorded["image"], image)


def test_flips_have_their_probabilities():
    image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    made = Views(
        [Slice(Path("a"), image)], 32, geometry={"rotation": 0.0}, intensity={"blur_p": 0.0}
    )
    seen = [(made[0, seed]["weak"][0] * 255).round().byte().numpy() for seed in range(400)]
    horizontal = sum(
        np.array_equal(v, image[:, ::-1]) or np.array_equal(v, image[::-1, ::-1]) for v in seen
    )
    vertical = sum(
        np.array_equal(v, image[::-1]) or np.array_equal(v, image[::-1, ::-1]) for v in seen
    )
    assert 160 < horizontal < 240  # p = 0.5
    assert 50 < vertical < 115  # p = 0.2


def test_magnification_goes_from_its_inverse_to_its_limit_and_brings_no_border():
    image = np.full((160, 160), 200, np.uint8)
    image[70:90, 70:90] = 100
    made = Views(
        [Slice(Path("a"), image)],
        64,
        geometry={"rotation": 0.0, "zoom": 1.5},
        intensity={"blur_p": 0.0},
        guides=[image == 100],
    )
    sides = []
    for seed in range(200):
        view = made[0, seed]["weak"][0] * 255
        assert view.min() > 99
        assert view.max() < 201
        inside = (view < 150).numpy()
        if not (inside[[0, -1]].any() or inside[:, [0, -1]].any()):
            sides.append(np.sqrt(inside.sum()) / 20)
            height, width = np.ptp(np.argwhere(inside), axis=0) + 1
            assert abs(height - width) <= 1  # magnified, not stretched
    assert 1 / 1.5 - 0.06 < min(sides) < 0.75
    assert 1.3 < max(sides) < 1.56
    assert 0.3 < np.mean(np.array(sides) < 1) < 0.95  # the larger ones are cut more often


def test_flips_rotation_and_blur_are_independent():
    image = np.zeros((96, 96), np.uint8)
    cv2.arrowedLine(
        image, (20, 48), (76, 48), 255, 3, tipLength=0.5
    )  # tells left from right and its angle
    image[:20] = 90  # and up from down
    made = Views([Slice(Path("a"), image)], 96, geometry={"rotation": 0.0})
    geometry = Views([Slice(Path("a"), image)], 96).augmentation.geometry
    rows = []
    for seed in range(600):
        item = made[0, seed]
        weak = (item["weak"][0] * 255).round().byte().numpy()
        rng = np.random.default_rng([seed, 1])
        views.seed_apart(geometry, rng)
        applied = geometry(image=image)["replay"]["transforms"]
        angle = np.degrees(np.arcsin(applied[2]["params"]["matrix"][0, 1]))
        rows.append(
            [
                weak[48, :48].astype(int).sum() > weak[48, 48:].astype(int).sum(),
                weak[0, 0] != 90,
                not torch.equal(item["weak"], item["strong"]),
                angle,
            ]
        )
    horizontal, vertical, blurred, angles = np.array(rows, float).T
    assert 0.4 < horizontal.mean() < 0.6
    correlation = np.corrcoef([horizontal, vertical, blurred, angles]) - np.eye(4)
    assert np.abs(correlation).max() < 0.15
    assert len({tuple(r) for r in np.array(rows)[:, :3].tolist()}) == 8  # every combination occurs


def test_both_kinds_and_all_sizes_of_blur_occur():
    point = np.zeros((65, 65), np.uint8)
    point[32, 32] = 255
    made = Views(
        [Slice(Path("a"), point)], 65, geometry={"rotation": 0.0}, intensity={"blur_p": 1.0}
    )
    widths = {int(np.count_nonzero(made[0, seed]["strong"])) for seed in range(300)}
    assert len(widths) > 12


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_kinds_of_blur_have_their_shares(share):
    edges = np.zeros((65, 65), np.uint8)
    edges[32, 32] = 255
    made = Views(
        [Slice(Path("a"), edges)],
        65,
        geometry={"rotation": 0.0},
        intensity={"blur_p": 1.0, "motion_blur": share},
    )
    strong = [made[0, seed]["strong"][0] for seed in range(200)]
    round_ones = sum(
        torch.equal(s, s.T) and torch.equal(s, s.flip(0)) for s in strong
    )  # a streak has a direction
    assert abs(1 - share - round_ones / 200) < (0.1 if 0 < share < 1 else 1e-9)


def test_boxes_are_cut_out_of_the_patch_whatever_the_geometry_needs_around_it():
    image = np.full((400, 400), 100, np.uint8)
    made = Views(
        [Slice(Path("a"), image)],
        128,
        geometry={"rotation": 45.0, "zoom": 1.5},
        intensity={"blur_p": 0.0, "intensity_p": 1.0, "cutout": 1},
    )
    assert made.options.margin > 64
    shares = [
        float((made[0, seed]["strong"] != made[0, seed]["weak"]).float().mean())
        for seed in range(60)
    ]
    assert min(shares) > 0
    assert max(shares) < 0.05  # sides up to a fifth of the patch


PERTURBATIONS = {
    "brightness": 0.3,
    "contrast": 0.5,
    "gamma": 2.0,
    "noise": 0.2,
    "correlated_noise": 0.2,
    "shading": 0.2,
    "cutout": 3,
}


def test_every_perturbation_is_looked_at():
    fields = {field.name for field in dataclasses.fields(Intensity)}
    of_blur = {"blur_p", "blur_limit", "motion_blur"}
    assert fields == {*PERTURBATIONS, *of_blur, "intensity_p"}  # a new one belongs in PERTURBATIONS


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_each_perturbation_has_its_probability_and_leaves_geometry_alone(name):
    def made(value, p):
        return Views(labelled(1), 64, intensity={"blur_p": 0.0, "intensity_p": p, name: value})

    off, on = made(build_default(name), 1.0), made(PERTURBATIONS[name], 0.5)
    changed = 0
    for seed in range(100):
        plain, item = off[0, seed], on[0, seed]
        assert torch.equal(plain["weak"], plain["strong"])
        assert torch.equal(item["weak"], plain["weak"])
        assert torch.equal(item["mask"], plain["mask"])
        changed += not torch.equal(item["weak"], item["strong"])
    assert 30 < changed < 70


def build_default(name):
    return getattr(Intensity(), name)


def test_noise_and_shading_have_the_stated_size_and_scale():
    grey = np.full((256, 256), 128, np.uint8)
    for name, neighbours in (
        ("noise", (-0.1, 0.1)),
        ("correlated_noise", (0.5, 0.95)),
        ("shading", (0.99, 1.0)),
    ):
        transform = views.build_intensity(Intensity(blur_p=0.0, intensity_p=1.0, **{name: 0.1}))
        sigmas = []
        for seed in range(60):
            views.seed_apart(transform, np.random.default_rng(seed))
            field = transform(image=grey)["image"] - 128.0
            sigmas.append(field.std() / 255)
            if sigmas[-1] > 0.05:
                assert (
                    neighbours[0]
                    < np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1]
                    < neighbours[1]
                )
        assert max(sigmas) < 0.105
        assert 0.03 < np.mean(sigmas) < 0.07  # uniform between 0 and the limit


def test_two_strong_views_differ_from_each_other_in_grey_only():
    made = Views(
        labelled(), 48, strong_views=2, intensity={"blur_p": 0.0, "intensity_p": 1.0, "noise": 0.2}
    )
    single = Views(labelled(), 48, intensity={"blur_p": 0.0, "intensity_p": 1.0, "noise": 0.2})
    item = made[1, 5]
    assert item["strong"].shape == (2, 48, 48)
    assert not torch.equal(item["strong"][0], item["strong"][1])
    assert torch.equal(item["strong"][:1], single[1, 5]["strong"])
    assert (item["strong"] - item["weak"]).abs().mean() < 0.2


# --- at the resolution of the network -------------------------------------------------------------------------


def blocks(array: np.ndarray, side: int) -> np.ndarray:
    height, width = (length // side for length in array.shape)
    return array[: height * side, : width * side].reshape(height, side, width, side).mean((1, 3))


def test_views_of_reduced_slices_are_the_reduced_views():
    """Without interpolation, geometry and means of blocks can be exchanged."""
    slices = labelled(2, (96, 128))
    options = {"geometry": {"rotation": 0.0, "quarter_turns": True}, "intensity": {"blur_p": 0.0}}
    whole, reduced = Views(slices, 128, **options), Views(slices, 128, downsample=4, **options)
    for seed in range(20):
        full, small = whole[seed % 2, seed], reduced[seed % 2, seed]
        assert small["weak"].shape == small["mask"].shape == (1, 32, 32)
        inner = slice(8, 24)  # 128 > 96: what is mirrored in may differ
        np.testing.assert_allclose(
            small["weak"][0][inner, inner],
            blocks(full["weak"][0].numpy(), 4)[inner, inner],
            atol=0.6 / 255,
        )
        np.testing.assert_allclose(
            small["mask"][0][inner, inner],
            blocks(full["mask"][0].numpy(), 4)[inner, inner],
            atol=0.6 / 255,
        )


@pytest.mark.parametrize(("smooth", "least"), [(0.0, 0.8), (1.5, 0.88)])
def test_turned_block_means_have_the_noise_that_predictions_see(smooth, least):
    """Interpolated linearly they would have two thirds of white noise, and three quarters of noise of 1.5 pixels."""
    noise = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    if smooth:
        noise = cv2.GaussianBlur(noise, (0, 0), smooth)
    image = (128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    made = Views(
        [Slice(Path("a"), image)],
        256,
        downsample=4,
        intensity={"blur_p": 0.0},
        geometry={"rotation": 45.0, "zoom": 1.3, "quarter_turns": True},
    )
    seen = np.mean([255 * float(made[0, seed]["weak"].std()) for seed in range(30)])
    assert least < seen / reduce_slice(image, 4).std() < 1.1


def test_correlated_noise_stays_correlated_on_block_means():
    grey, result = np.full((384, 384), 128, np.uint8), []
    for downsample in (1, 2):
        transform = views.build_intensity(
            Intensity(blur_p=0.0, intensity_p=1.0, correlated_noise=0.3), downsample
        )
        image, correlations = reduce_slice(grey, downsample), []
        for seed in range(12):
            views.seed_apart(transform, np.random.default_rng(seed))
            made = transform(image=image)["image"].astype(float)
            made = made if downsample > 1 else blocks(made, 2)
            if made.std() > 10:
                correlations.append(np.corrcoef(made[:, 1:].ravel(), made[:, :-1].ravel())[0, 1])
        result.append(np.mean(correlations))
    assert result[1] == pytest.approx(result[0], abs=0.2)
    assert result[1] > 0.3


def test_a_mask_of_block_means_holds_shares_of_foreground():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :30] = 1  # half of a block of four
    made = Views(
        [Slice(Path("a"), mask * np.uint8(200), mask)],
        64,
        downsample=4,
        intensity={"blur_p": 0.0},
        geometry={"rotation": 0.0, "flip_p": 0.0, "vertical_flip_p": 0.0},
    )
    row = made[0, 0]["mask"][0, 3]
    assert row.tolist() == [1.0] * 7 + [pytest.approx(128 / 255)] + [0.0] * 8


def test_a_slice_that_is_no_multiple_of_the_blocks_is_filled_up():
    array = np.random.default_rng(0).integers(0, 256, (7, 10)).astype(np.uint8)
    small = reduce_slice(array, 4)
    assert small.shape == (2, 3)
    np.testing.assert_allclose(small[:1, :2], blocks(array, 4)[:1], atol=0.51)
    assert reduce_slice(array, 1) is array
    assert reduce_slice(array[:1, :1], 4)[0, 0] == array[0, 0]


@pytest.mark.parametrize("name", ["noise", "correlated_noise", "shading"])
@pytest.mark.parametrize("side", [2, 4])
def test_noise_on_block_means_is_as_strong_as_block_means_of_noise(name, side):
    grey = np.full((384, 384), 128, np.uint8)
    deviations = []
    for downsample in (1, side):
        transform = views.build_intensity(
            Intensity(blur_p=0.0, intensity_p=1.0, **{name: 0.3}), downsample
        )
        image, result = reduce_slice(grey, downsample), []
        for seed in range(40):
            views.seed_apart(transform, np.random.default_rng(seed))
            made = transform(image=image)["image"].astype(float)
            result.append((made if downsample > 1 else blocks(made, side)).std())
        deviations.append(np.mean(result))
    assert deviations[1] == pytest.approx(
        deviations[0], rel=0.25
    )  # of random strengths, drawn in other orders


def test_blur_on_block_means_is_as_wide_as_in_the_slice():
    """Variance of the blurred image of a point, in pixels of the slice."""
    side, point = 2, np.zeros((130, 130), np.uint8)
    point[64:66, 64:66] = 255

    def spread(image: np.ndarray) -> float:
        weights = image.astype(float) / image.sum()
        rows, columns = np.indices(image.shape)
        return sum(
            (weights * (axis - (weights * axis).sum()) ** 2).sum() for axis in (rows, columns)
        )

    widths = []
    for downsample in (1, side):
        transform = views.build_intensity(
            Intensity(blur_p=1.0, motion_blur=0.0, blur_limit=13), downsample
        )
        image, result = reduce_slice(point, downsample), []
        for seed in range(60):
            views.seed_apart(transform, np.random.default_rng(seed))
            result.append(spread(transform(image=image)["image"]) * downsample**2)
        widths.append(np.mean(result))
    assert 0.7 < widths[1] / widths[0] < 1.6


def test_items_without_a_weak_view_are_otherwise_the_same():
    whole, part = Views(labelled(), 48), Views(labelled(), 48, has_weak_view=False)
    assert set(part[0, 3]) == {"strong", "mask"}
    for name, tensor in part[0, 3].items():
        assert torch.equal(tensor, whole[0, 3][name])


def test_quarter_turns_show_all_four_sides():
    corner = np.zeros((64, 64), np.uint8)
    corner[:32, :32] = 255
    made = Views(
        [Slice(Path("a"), corner)],
        64,
        intensity={"blur_p": 0.0},
        geometry={"rotation": 0.0, "flip_p": 0.0, "vertical_flip_p": 0.0, "quarter_turns": True},
    )
    white = [np.argwhere(made[0, seed]["weak"][0].numpy() > 0.5) for seed in range(80)]
    seen = [tuple(w.min(axis=0).tolist()) for w in white]
    assert all(seen.count(where) > 8 for where in ((0, 0), (0, 32), (32, 0), (32, 32)))


def test_a_guide_places_the_crops_of_unlabelled_slices():
    image = np.zeros((200, 200), np.uint8)
    guide = np.zeros(image.shape, bool)
    guide[150:160, 20:30] = True
    image[guide] = 255
    made = Views([Slice(Path("a"), image)], 32, guides=[guide], geometry={"rotation": 0.0})
    assert all(made[0, seed]["weak"].max() == 1 for seed in range(50))


def test_perturbations_never_touch_the_weak_view_they_start_from():
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8), (0, 0), 2
    )
    geometry = views.build_geometry(Geometry(0.0, 0.0, 0.0))
    intensity = views.build_intensity(
        Intensity(
            1.0,
            brightness=0.3,
            contrast=0.3,
            gamma=2.0,
            noise=0.2,
            correlated_noise=0.2,
            shading=0.2,
            cutout=5,
            intensity_p=1.0,
        )
    )
    augmentation = views.Augmentation(geometry, intensity)
    expected = geometry(image=image)["image"]
    for seed in range(20):
        made = views.make_views(image, None, augmentation, seed, strong_views=2)
        assert made.mask is None
        np.testing.assert_array_equal(made.weak, expected)
        assert not np.array_equal(made.strong[0], made.weak)
        assert not np.array_equal(made.strong[0], made.strong[1])
