import math

import numpy as np
import pytest
import torch

import losses
from utils import overlap_metrics


def test_soft_dice_of_certain_logits_is_the_metric():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 1, 16, 16)) < 0.3
    loss = losses.soft_dice_loss(torch.where(torch.tensor(prediction)[None], 50.0, -50.0),
                                 torch.tensor(truth)[None].float(), smooth=0.0)
    assert 1 - loss.item() == pytest.approx(overlap_metrics(prediction[0], truth[0])["dice"], abs=1e-6)


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
    per_image = [1 - (2 * (p[i] * target[i]).sum() + 1) / (p[i].sum() + target[i].sum() + 1) for i in range(3)]
    dice = sum(per_image) / 3
    assert losses.bce_dice_loss(logits, target).item() == pytest.approx((0.5 * bce + 0.5 * dice).item(), rel=1e-5)
    assert losses.bce_dice_loss(logits, target, 1.0).item() == pytest.approx(bce.item(), rel=1e-5)
    assert losses.bce_dice_loss(logits, target, 0.0).item() == pytest.approx(dice.item(), rel=1e-5)


def test_consistency_is_the_mean_squared_difference_and_only_the_student_learns():
    student = torch.tensor([[[[0.0, 2.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    loss = losses.consistency_mse(student, teacher)
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
