"""Losses and ramp-up: pure functions of tensors. Every loss is a mean over the batch (a scalar).

Dice of an empty mask, here and in `utils.overlap_metrics`: an empty prediction of an empty mask is perfect
(Dice 1, loss 0). The loss gets there by adding one pixel to numerator and denominator (`smooth`), which also
keeps the gradient finite.
"""

import math

import torch
from torch.nn import functional as F


def soft_dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """1 − soft Dice, per image, then averaged over the batch.

    Dice = (2 Σ p t + s) / (Σ p + Σ t + s): Milletari et al., V-Net, 2016, arXiv:1606.04797 (with plain sums in
    the denominator).

    Parameters
    ----------
    logits : (B, 1, H, W) float tensor
    target : (B, 1, H, W) float tensor of 0 and 1
    smooth : float
        Pixels added to numerator and denominator.
    """
    probability = logits.float().sigmoid()
    intersection = (probability * target).sum(dim=(1, 2, 3))                 # (B,)
    total = probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))       # (B,)
    return (1 - (2 * intersection + smooth) / (total + smooth)).mean()


def bce_dice_loss(logits: torch.Tensor, target: torch.Tensor, bce_weight: float = 0.5) -> torch.Tensor:
    """`bce_weight`·BCE-with-logits + (1 − `bce_weight`)·soft Dice loss.

    Parameters
    ----------
    logits : (B, 1, H, W) float tensor
    target : (B, 1, H, W) float tensor of 0 and 1
    bce_weight : float in [0, 1]
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), target)
    return bce_weight * bce + (1 - bce_weight) * soft_dice_loss(logits, target)


def consistency_mse(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the two probabilities; only the student receives gradients.

    Tarvainen & Valpola, Mean Teacher, 2017, arXiv:1703.01780, eq. 1 (expectation over views of one crop).

    Parameters
    ----------
    student_logits, teacher_logits : (B, 1, H, W) float tensors, pixels in the same geometry
    """
    return F.mse_loss(student_logits.float().sigmoid(), teacher_logits.detach().float().sigmoid())


def cosine_ramp_up(epoch: int, length: int) -> float:
    """½ (1 − cos π·epoch/length): 0 in epoch 0, 1 from epoch `length` on; always 1 for `length` 0.

    A consistency weight that starts at zero keeps an untrained teacher from leading: Laine & Aila, 2017,
    arXiv:1610.02242 (there with a Gaussian shape).
    """
    if epoch >= length:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * epoch / length))
