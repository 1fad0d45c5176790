"""Losses of label maps: two classes are the binary mask, and what is not painted counts nowhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from config import Config
from conftest import FloatViews, class_slice
from losses import (
    bce_dice_loss,
    ce_dice_loss,
    class_dice_loss,
    class_probabilities,
    consistency_loss,
    log_probabilities,
    mix,
    segmentation_loss,
)
from mean_teacher import new_network, step_losses
from slices.reading import Slice
from slices.windows import percentile_window

CONSISTENCIES = ("mse", "bce", "bce_dice")


def shares_of(
    labels: torch.Tensor, count: int, painted: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, H, W) classes → (B, K, H, W) shares, 0 where nothing is painted."""
    shares = F.one_hot(labels, count).movedim(-1, 1).double()
    return shares if painted is None else shares * painted[:, None]


def random_case(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, K, 16, 16) float64 and classes; the second image has nothing but background."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, count, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(count, (3, 16, 16), generator=generator)
    labels[1] = 0
    return logits, labels


# --- two classes are a binary mask -------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_with_two_classes_and_all_painted_the_loss_is_the_binary_one(weight):
    """To the last digits of float32, in which losses are computed, and so is its gradient."""
    logits, labels = random_case(2)
    mask = labels[:, None].double()
    for given in (logits, (logits[:, 1:] - logits[:, :1])):
        given = given.clone().requires_grad_()
        found = segmentation_loss(given, shares_of(labels, 2), weight)
        (gradient,) = torch.autograd.grad(found, given)

        foreground = (logits[:, 1:] - logits[:, :1]).requires_grad_()
        expected = bce_dice_loss(foreground, mask, weight)
        (expected_gradient,) = torch.autograd.grad(expected, foreground)
        assert found.item() == pytest.approx(expected.item(), rel=3e-7)
        torch.testing.assert_close(gradient[:, -1:], expected_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", CONSISTENCIES)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("confidence", [0.0, 0.8])
def test_with_two_classes_the_consistency_is_the_binary_one(kind, hard, confidence):
    logits, _ = random_case(2)
    teacher, _ = random_case(2, seed=1)
    inside = (torch.arange(16) < 12).double().expand(3, 1, 16, 16)
    found = consistency_loss(logits, teacher.softmax(1), kind, confidence, hard, inside)
    foreground = logits[:, 1:] - logits[:, :1]
    target = teacher.softmax(1)[:, 1:]
    expected = consistency_loss(foreground, target, kind, confidence, hard, inside)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_binary_mask_takes_the_binary_loss():
    logits, labels = random_case(2)
    mask = labels[:, None].double()
    inside = torch.ones_like(mask)
    assert torch.equal(
        segmentation_loss(logits[:, :1], mask, 0.5, inside),
        bce_dice_loss(logits[:, :1], mask, 0.5, inside),
    )


# --- what is painted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_what_is_not_painted_has_no_gradient_at_all(count):
    logits, labels = random_case(count)
    painted = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3)) < 0.1
    shares = shares_of(labels, count, painted)
    for given in (logits, logits[:, :1]) if count == 2 else (logits,):
        given = given.clone().requires_grad_()
        ce_dice_loss(given, shares).backward()
        by_pixel = given.grad.abs().sum(1)
        assert (by_pixel[~painted] == 0).all()
        assert (by_pixel[painted] > 0).all()


def test_the_loss_of_a_part_is_that_of_an_image_of_the_part():
    """Not painted is as good as not there: neither cross-entropy nor Dice's denominator knows of it."""
    logits, labels = random_case(3)
    painted = torch.zeros(3, 16, 16, dtype=torch.bool)
    painted[:, :7] = True
    part = ce_dice_loss(logits, shares_of(labels, 3, painted))
    alone = ce_dice_loss(logits[:, :, :7], shares_of(labels[:, :7], 3))
    assert part.item() == pytest.approx(alone.item(), rel=1e-6)


def test_cross_entropy_is_that_of_torch():
    logits, labels = random_case(4)
    painted = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3)) < 0.5
    expected = F.cross_entropy(logits, labels.where(painted, torch.tensor(-100)), ignore_index=-100)
    found = ce_dice_loss(logits, shares_of(labels, 4, painted), ce_weight=1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_dice_leaves_out_background_and_classes_that_an_image_does_not_have():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :4] = 2
    shares = shares_of(labels, 4)
    painted = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    # Class 2 is found, but half of the background is taken for class 3, which nothing is.
    wrong = labels.clone()
    wrong[:, 6:] = 3
    assert class_dice_loss(shares_of(wrong, 4), shares, painted).item() == pytest.approx(0)
    # Half of class 2 is missing: Dice is 2·16 / (16 + 32), but for the added pixel.
    wrong = labels.clone()
    wrong[:, 2:4] = 3
    expected = 1 - (2 * 16 + 1) / (16 + 32 + 1)
    assert class_dice_loss(shares_of(wrong, 4), shares, painted).item() == pytest.approx(expected)
    # Of nothing but background all three count: the 16 pixels taken for class 3 are one third.
    nothing = shares_of(torch.zeros_like(labels), 4)
    wrong = torch.zeros_like(labels)
    wrong[:, :2] = 3
    expected = (1 - 1 / 17) / 3
    assert class_dice_loss(shares_of(wrong, 4), nothing, painted).item() == pytest.approx(expected)


def test_an_image_without_paint_costs_nothing():
    logits, labels = random_case(3)
    nothing = torch.zeros(3, 16, 16)
    assert ce_dice_loss(logits, shares_of(labels, 3, nothing)).item() == 0


def test_shares_of_blocks_weigh_as_their_pixels():
    """A block that is half painted, of two classes, costs what its pixels cost that all look alike."""
    logits, _ = random_case(3)
    fine = logits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    labels = torch.randint(3, (3, 32, 32), generator=torch.Generator().manual_seed(5))
    painted = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(6)) < 0.5
    shares = shares_of(labels, 3, painted)
    found = ce_dice_loss(logits, F.avg_pool2d(shares, 2), ce_weight=1.0)
    assert found.item() == pytest.approx(ce_dice_loss(fine, shares, ce_weight=1.0).item(), rel=1e-6)


# --- consistency -------------------------------------------------------------------------------------


def test_confidence_is_the_largest_probability():
    teacher = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]).T.reshape(1, 3, 1, 2)
    student = torch.zeros(1, 3, 1, 2)
    every = consistency_loss(student, teacher, "bce", 0.0)
    sure = consistency_loss(student, teacher, "bce", 0.5)
    # With equal logits each pixel costs log 3, and one of two is sure.
    assert every.item() == pytest.approx(np.log(3))
    assert sure.item() == pytest.approx(np.log(3) / 2)


def test_a_hard_label_is_the_most_probable_class():
    teacher = torch.tensor([0.3, 0.4, 0.3]).reshape(1, 3, 1, 1)
    student = torch.tensor([0.0, 5.0, 0.0]).reshape(1, 3, 1, 1)
    expected = -student.log_softmax(1)[0, 1, 0, 0]
    assert consistency_loss(student, teacher, "bce", hard=True).item() == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("kind", CONSISTENCIES)
def test_the_teacher_gets_no_gradient_and_pixels_below_the_confidence_none_either(kind):
    logits, _ = random_case(3)
    teacher, _ = random_case(3, seed=1)
    logits.requires_grad_()
    teacher.requires_grad_()
    target = teacher.softmax(1)
    consistency_loss(logits, target, kind, confidence=0.7).backward()
    assert teacher.grad is None
    is_sure = target.detach().amax(1) >= 0.7
    by_pixel = logits.grad.abs().sum(1)
    assert (by_pixel[~is_sure] == 0).all()
    assert (by_pixel[is_sure] > 0).all()
    with pytest.raises(ValueError, match="no consistency loss is called"):
        consistency_loss(logits, target, "kl")


def test_boxes_are_mixed_in_all_classes_alike():
    batch = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    boxes = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    boxes[0, 0, 1:3, 1:3] = True
    mixed = mix(batch, boxes)
    assert torch.equal(mixed[0, :, 1:3, 1:3], batch[1, :, 1:3, 1:3])
    assert torch.equal(mixed[1], batch[1])


def test_probabilities_of_one_logit_are_those_of_foreground():
    logits, _ = random_case(2)
    one = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(class_probabilities(one), class_probabilities(logits)[:, 1:])
    torch.testing.assert_close(log_probabilities(one), log_probabilities(logits))


# --- views and a step --------------------------------------------------------------------------------


def slices_of_classes(count: int = 3, share: float = 1.0) -> list[Slice]:
    """Preprocessed slices with three classes, a share of the pixels painted."""
    made = []
    for i in range(count):
        image, values = class_slice(i, (96, 96))
        painted = np.random.default_rng(i).random(values.shape) < share
        one = Slice(Path(f"s{i}.tif"), percentile_window(image))
        made.append(one.with_mask(((values - 1) * painted).astype(np.uint8), painted))
    return made


@pytest.mark.parametrize("downsample", [1, 2])
def test_views_show_the_shares_of_what_is_painted(downsample):
    slices = slices_of_classes(share=0.3)
    views = FloatViews(slices, 32, downsample=downsample, class_count=3, geometry={"rotation": 0.0})
    for seed in range(8):
        item = views[seed % 3, seed]
        side = 32 // downsample
        assert item["mask"].shape == (3, side, side)
        assert "inside" not in item
        painted = item["mask"].sum(0)
        assert 0 < painted.mean() < 0.6
        assert painted.max() <= 1 + 1e-6
        if downsample == 1:
            assert set(item["mask"].unique().tolist()) == {0.0, 1.0}


def test_two_classes_that_are_painted_in_part_have_shares_too():
    slices = [
        Slice(s.path, s.image).with_mask(s.mask > 0, s.painted) for s in slices_of_classes(2, 0.3)
    ]
    item = FloatViews(slices, 32)[0, 0]
    assert item["mask"].shape == (2, 32, 32)
    assert 0 < item["mask"].sum(0).mean() < 0.6


def test_crops_are_placed_on_paint_and_on_each_class_as_often():
    """A single stroke of each class in a large slice: every crop shows one, and all are as frequent."""
    mask = np.zeros((300, 300), np.uint8)
    painted = np.zeros(mask.shape, bool)
    for index, (row, column, length) in enumerate([(20, 20, 3), (150, 200, 2), (270, 40, 60)]):
        mask[row, column : column + length] = index
        painted[row, column : column + length] = True
    s = Slice(Path("s.tif"), np.zeros(mask.shape, np.uint8)).with_mask(mask, painted)
    views = FloatViews([s], 32, class_count=3, geometry={"rotation": 0.0})
    seen = np.zeros(3)
    for seed in range(200):
        shown = views[0, seed]["mask"].amax((1, 2)).numpy() > 0
        assert shown.any()
        seen += shown
    assert (seen > 45).all()
    assert (seen < 90).all()
    # Where crops may lie anywhere, that is anywhere on the paint: most of it is of the last class.
    views = FloatViews([s], 32, class_count=3, foreground_crop=0.01, geometry={"rotation": 0.0})
    shown = sum(views[0, seed]["mask"].amax((1, 2)).numpy() > 0 for seed in range(200))
    assert shown.sum() == 200
    assert shown[2] > 150


def test_where_all_is_painted_background_is_no_aim_of_crops():
    mask = np.zeros((300, 300), np.uint8)
    mask[20, 20:23] = 1
    mask[270, 40:100] = 2
    s = Slice(Path("s.tif"), np.zeros(mask.shape, np.uint8)).with_mask(mask)
    views = FloatViews([s], 32, class_count=3, geometry={"rotation": 0.0})
    for seed in range(50):
        assert views[0, seed]["mask"][1:].any()


def test_padding_is_no_paint_in_views():
    slices = slices_of_classes(2)
    outside = np.zeros((96, 96), bool)
    outside[:, :48] = True
    slices = [
        Slice(s.path, s.image, outside=outside).with_mask(s.mask, np.ones((96, 96), bool))
        for s in slices
    ]
    views = FloatViews(slices, 96, class_count=3, geometry={"rotation": 0.0, "flip_p": 0.0})
    painted = views[0, 0]["mask"].sum(0)
    assert not painted[:, :48].any()
    assert painted[:, 48:].all()


@pytest.mark.parametrize("feature_dropout", [0.0, 0.5])
def test_a_step_of_several_classes_teaches_all_outputs_of_the_student(feature_dropout):
    config = Config(
        base_channels=2,
        patch_size=32,
        cutmix_p=1.0,
        feature_dropout=feature_dropout,
        strong_views=2,
    )
    slices = slices_of_classes(share=0.3)
    labelled = FloatViews(slices, 32, class_count=3, has_weak_view=False)
    unlabelled = FloatViews([s.without_mask() for s in slices], 32, class_count=3, strong_views=2)

    def batch(views):
        items = [views[i, i] for i in range(3)]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    torch.manual_seed(0)
    student, teacher = new_network(config, 3), new_network(config, 3)
    supervised, consistency = step_losses(
        config, student, batch(labelled), teacher, batch(unlabelled), torch.Generator()
    )
    (supervised + consistency).backward()
    assert torch.isfinite(supervised)
    assert consistency > 0
    assert (student.head.weight.grad.abs().sum((1, 2, 3)) > 0).all()
    assert teacher.head.weight.grad is None
