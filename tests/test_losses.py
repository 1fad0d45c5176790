"""Losses, mixing and ramp-up against closed forms, empty masks included."""

import math

import numpy as np
import pytest
import torch

import losses
from config import CONSISTENCY
from utils import overlap_metrics


def test_soft_dice_of_certain_logits_is_the_metric():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 1, 16, 16)) < 0.3
    loss = losses.soft_dice_loss(
        torch.where(torch.tensor(prediction)[None], 50.0, -50.0),
        torch.tensor(truth)[None].float(),
        smooth=0.0,
    )
    assert 1 - loss.item() == pytest.approx(
        overlap_metrics(prediction[0], truth[0])["dice"], abs=1e-6
    )


def test_empty_prediction_of_an_empty_mask_is_perfect_in_loss_and_metric():
    empty = torch.zeros(1, 1, 8, 8)
    assert losses.soft_dice_loss(empty - 50, empty).item() == pytest.approx(0, abs=1e-6)
    assert overlap_metrics(np.zeros((8, 8)), np.zeros((8, 8)))["dice"] == 1


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-80.0, 0.0, 80.0])
def test_gradient_is_finite_on_empty_and_full_masks(fill, logit):
    logits = torch.full((2, 1, 8, 8), logit, requires_grad=True)
    losses.bce_dice_loss(logits, torch.full((2, 1, 8, 8), fill)).backward()
    assert torch.isfinite(logits.grad).all()
    if logit == 0:
        assert (logits.grad * (0.5 - fill) > 0).all()  # downhill is towards the mask


def test_parts_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator)
    target = (torch.rand(3, 1, 8, 8, generator=generator) < 0.3).float()
    p = logits.sigmoid()
    bce = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    per_image = [
        1 - (2 * (p[i] * target[i]).sum() + 1) / (p[i].sum() + target[i].sum() + 1)
        for i in range(3)
    ]
    dice = sum(per_image) / 3
    assert losses.bce_dice_loss(logits, target).item() == pytest.approx(
        (0.5 * bce + 0.5 * dice).item(), rel=1e-5
    )
    assert losses.bce_dice_loss(logits, target, 1.0).item() == pytest.approx(bce.item(), rel=1e-5)
    assert losses.bce_dice_loss(logits, target, 0.0).item() == pytest.approx(dice.item(), rel=1e-5)


def test_consistency_is_the_mean_squared_difference_and_only_the_student_learns():
    student = torch.tensor([[[[0.0, 2.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    loss = losses.consistency_loss(student, teacher.sigmoid())
    assert loss.item() == pytest.approx((0.5 - 1 / (1 + math.exp(-1))) ** 2 / 2)
    loss.backward()
    assert student.grad[0, 0, 0, 0] < 0
    assert student.grad[0, 0, 0, 1] == 0
    assert teacher.grad is None


def test_ramp_up():
    values = [losses.cosine_ramp_up(epoch, 10) for epoch in range(13)]
    assert values[0] == 0
    assert values[5] == pytest.approx(0.5)
    assert values[2] == pytest.approx(0.0954915)
    assert values[10:] == [1, 1, 1]
    assert losses.cosine_ramp_up(0, 0) == 1


def test_consistency_counts_confident_pixels_and_divides_by_all():
    logits, target = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    sure = torch.maximum(target, 1 - target) >= 0.8
    square = (logits.sigmoid() - target).square()
    assert losses.consistency_loss(logits, target, "mse", 0.8).item() == pytest.approx(
        (square * sure).mean().item()
    )
    decision = (target >= 0.5).float()
    bce = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), decision, reduction="none")
    expected = (bce * sure).mean().item()
    assert losses.consistency_loss(logits, target, "bce", 0.8, hard=True).item() == pytest.approx(
        expected, rel=1e-5
    )
    dice = (
        sum(
            losses.soft_dice_loss(
                logits[i][sure[i]][None, None, None], decision[i][sure[i]][None, None, None]
            )
            for i in range(2)
        ).item()
        / 2
    )
    both = losses.consistency_loss(logits, target, "bce_dice", 0.8, hard=True)
    assert both.item() == pytest.approx(0.5 * expected + 0.5 * dice, rel=1e-5)
    assert losses.consistency_loss(logits, torch.full_like(target, 0.6), "bce", 0.9).item() == 0


def test_where_a_consistency_loss_is_smallest():
    """Squared difference and cross-entropy at the teacher's probability; with Dice beside it at surer ones."""
    target = torch.tensor([0.02, 0.1, 0.6, 0.95]).repeat(16).reshape(1, 1, 8, 8)
    result = {}
    for kind in CONSISTENCY:
        logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            losses.consistency_loss(logits, target, kind).backward()
            optimizer.step()
        result[kind] = logits.sigmoid().detach()
    assert torch.allclose(result["mse"], target, atol=0.01)
    assert torch.allclose(result["bce"], target, atol=0.01)
    assert ((result["bce_dice"] - target) * (target - 0.5) > 0).all()


def test_weighted_dice_ignores_what_does_not_count():
    logits, target = torch.randn(1, 1, 4, 8), (torch.rand(1, 1, 4, 8) > 0.5).float()
    weight = torch.zeros_like(target)
    weight[..., :4] = 1
    expected = losses.soft_dice_loss(logits[..., :4], target[..., :4])
    torch.testing.assert_close(losses.soft_dice_loss(logits, target, weight=weight), expected)


def test_cutmix_boxes_and_mixing():
    generator = torch.Generator().manual_seed(0)
    boxes = losses.fill_boxes(losses.draw_boxes(400, 64, 0.5, generator), 64)
    shares = boxes.float().mean(dim=(1, 2, 3))
    used = shares[shares > 0]
    assert 150 < len(used) < 250
    assert 0.09 < used.min() < used.max() < 0.52
    for box in boxes[shares > 0][:20, 0]:
        rows, columns = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == rows * columns  # one full rectangle
        assert 0.2 < rows / columns < 4.5
    assert not losses.draw_boxes(50, 64, 0.0, generator).any()
    image, probability = torch.rand(3, 1, 64, 64), torch.rand(3, 1, 64, 64)
    box = boxes[shares > 0][:3]
    mixed = losses.mix(image, box)
    assert torch.equal(mixed[~box], image[~box])
    assert torch.equal(mixed[box], image[[1, 2, 0]][box])
    confidence = torch.maximum(
        probability, 1 - probability
    )  # mixing it is the same as taking it after mixing
    mixed = losses.mix(probability, box)
    assert torch.equal(losses.mix(confidence, box), torch.maximum(mixed, 1 - mixed))


def test_dropped_channels_are_zero_and_the_mean_stays():
    generator = torch.Generator().manual_seed(0)
    factors = losses.draw_kept_channels(40, (50,), 0.3, generator)
    (dropped,) = losses.scale_channels([torch.ones(40, 50, 2, 2)], factors)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert torch.equal(dropped.amax((2, 3)), dropped.amin((2, 3)))
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_what_lies_outside_the_sample_counts_for_nothing():
    """A loss over the inside is that of images in which there is nothing else."""
    generator = torch.Generator().manual_seed(0)
    logits, target = (
        torch.randn(3, 1, 8, 8, generator=generator),
        torch.rand(3, 1, 8, 8, generator=generator),
    )
    inside = torch.zeros(3, 1, 8, 8)
    inside[..., :5] = 1
    left = (slice(None), slice(None), slice(None), slice(0, 5))
    truth = (target > 0.5).float()
    spoilt = torch.where(inside.bool(), logits, torch.full_like(logits, 50.0))
    assert losses.bce_dice_loss(spoilt, truth, 0.5, inside).item() == pytest.approx(
        losses.bce_dice_loss(logits[left], truth[left], 0.5).item(), rel=1e-5
    )
    for kind in CONSISTENCY:
        assert losses.consistency_loss(
            spoilt, target, kind, 0.7, inside=inside
        ).item() == pytest.approx(
            losses.consistency_loss(logits[left], target[left], kind, 0.7).item(), rel=1e-5
        )
    nothing = torch.zeros_like(inside)
    assert losses.bce_dice_loss(spoilt, truth, 0.5, nothing).isfinite()
    assert losses.consistency_loss(spoilt, target, inside=nothing).item() == 0
