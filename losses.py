"""Losses, mixing and ramp-up: pure functions of tensors. Every loss is a mean over the batch (a scalar).

Dice of an empty mask, here and in `utils.overlap_metrics`: an empty prediction of an empty mask is
perfect (Dice 1, loss 0). The loss gets there by adding one pixel to numerator and denominator
(`smooth`), which also keeps the gradient finite.
"""

import math

import torch
from torch.nn import functional as F

# Share of an image that a CutMix box covers, and the largest ratio of its sides.
LEAST_AREA = 0.1
MOST_AREA = 0.5
MOST_RATIO = 2.0


# --- losses ---------------------------------------------------------------------------------------


def soft_dice_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    smooth: float = 1.0,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return 1 − soft Dice, per image, then averaged over the batch.

    Dice = (2 Σ p t + s) / (Σ p + Σ t + s): Milletari et al., V-Net, 2016, arXiv:1606.04797 (with
    plain sums in the denominator).

    Parameters
    ----------
    logits : (B, 1, H, W) float tensor
    target : (B, 1, H, W) float tensor
        0 and 1; of block means shares of foreground between them, for which soft Dice is smallest
        at a decision.
    smooth : float
        Pixels added to numerator and denominator.
    weight : (B, 1, H, W) float tensor, or None
        How much each pixel counts, 0 to 1; None is all.
    """
    probability = logits.float().sigmoid()
    if weight is not None:
        probability = probability * weight
        target = target * weight
    intersection = (probability * target).sum(dim=(1, 2, 3))  # (B,)
    total = probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))  # (B,)
    dice = (2 * intersection + smooth) / (total + smooth)  # (B,)
    return (1 - dice).mean()


def bce_dice_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    bce_weight: float = 0.5,
    inside: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `bce_weight`·BCE-with-logits + (1 − `bce_weight`)·soft Dice loss.

    Parameters
    ----------
    logits : (B, 1, H, W) float tensor
    target : (B, 1, H, W) float tensor
        0 and 1, or shares of foreground between them.
    bce_weight : float in [0, 1]
    inside : (B, 1, H, W) float tensor, or None
        How much each pixel counts, 0 to 1: 0 where there is no sample. None is all.
    """
    if inside is None:
        bce = F.binary_cross_entropy_with_logits(logits.float(), target)
    else:
        of_pixels = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        bce = mean_inside(of_pixels, inside)

    dice_loss = soft_dice_loss(logits, target, weight=inside)
    return bce_weight * bce + (1 - bce_weight) * dice_loss


def mean_inside(values: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of values weighted with `inside`, or of all where that is None; 0 where nothing is inside."""
    if inside is None:
        return values.mean()
    return (values * inside).sum() / inside.sum().clamp(min=1.0)


def consistency_loss(
    student_logits: torch.Tensor,
    target: torch.Tensor,
    kind: str = "mse",
    confidence: float = 0.0,
    hard: bool = False,
    inside: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return how far the student is from the teacher's probability, where the teacher is confident.

    Averaged over all pixels: one below the confidence counts as zero, it is not left out, so a
    batch in which few pixels are sure pulls little (FixMatch, Sohn et al., 2020, arXiv:2001.07685,
    eq. 4).

    Parameters
    ----------
    student_logits : (B, 1, H, W) float tensor
    target : (B, 1, H, W) float tensor
        Probability in [0, 1], in the same geometry; it receives no gradients.
    kind : {"mse", "bce", "bce_dice"}
        `mse`: squared difference of probabilities (Mean Teacher, arXiv:1703.01780, eq. 1); `bce`:
        binary cross-entropy; `bce_dice`: half of it and half soft Dice over the confident pixels.
        The first two are smallest at the target. Soft Dice of a probability is smallest at a
        decision (1 above about half the Dice, 0 below), so `bce_dice` also makes the student surer
        than its teacher, as entropy minimisation does.
    confidence : float
        A pixel counts where max(p, 1 − p) is at least this; 0.5 or less is every pixel.
    hard : bool
        Compare with the teacher's decision (p ≥ 0.5) instead of its probability.
    inside : (B, 1, H, W) float tensor, or None
        How much each pixel counts, 0 to 1: 0 where there is no sample. None is all.
    """
    target = target.detach().float()
    certainty = torch.maximum(target, 1 - target)
    sure = (certainty >= confidence).float()  # (B, 1, H, W)
    if hard:
        target = (target >= 0.5).float()
    logits = student_logits.float()

    if kind == "mse":
        difference = logits.sigmoid() - target
        return mean_inside(difference.square() * sure, inside)

    of_pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    bce = mean_inside(of_pixels * sure, inside)
    if kind == "bce":
        return bce
    if kind == "bce_dice":
        weight = sure if inside is None else sure * inside
        return 0.5 * bce + 0.5 * soft_dice_loss(logits, target, weight=weight)
    raise ValueError(f"no consistency loss is called {kind!r}")


# --- mixing ---------------------------------------------------------------------------------------


def draw_boxes(
    count: int, size: int, probability: float, generator: torch.Generator | None
) -> torch.Tensor:
    """Draw one random box per image: (count, 4) integers, its first row, end row, first column and end column [px].

    A box covers 0.1 to 0.5 of the (size, size) image with sides in a ratio of up to 2. With
    probability 1 − `probability` an image gets none: four zeros. CutMix: Yun et al., 2019,
    arXiv:1905.04899; for semi-supervised segmentation: French et al., 2020, arXiv:1906.01916.
    """
    boxes = []
    for use, area, ratio, y, x in torch.rand(count, 5, generator=generator).tolist():
        if use >= probability:
            boxes.append((0, 0, 0, 0))
            continue
        area = LEAST_AREA + (MOST_AREA - LEAST_AREA) * area
        ratio = MOST_RATIO ** (2 * ratio - 1)
        height = min(size, round(size * math.sqrt(area * ratio)))
        width = min(size, round(size * math.sqrt(area / ratio)))
        top = round(y * (size - height))
        left = round(x * (size - width))
        boxes.append((top, top + height, left, left + width))

    return torch.tensor(boxes)


def fill_boxes(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Return where `draw_boxes` has boxes: (count, 4) integers → (count, 1, size, size) bool, on the same device."""
    top, bottom, left, right = boxes.T[:, :, None]  # (count, 1) each
    pixel = torch.arange(size, device=boxes.device)  # (size,)
    rows = (pixel >= top) & (pixel < bottom)  # (count, size)
    columns = (pixel >= left) & (pixel < right)  # (count, size)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def mix(batch: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return images with their boxes filled from the next image of the batch, the last from the first.

    Parameters
    ----------
    batch : (B, 1, H, W) tensor
    boxes : (B, 1, H, W) bool tensor
    """
    return torch.where(boxes, batch.roll(-1, 0), batch)


# --- feature dropout ------------------------------------------------------------------------------


def draw_kept_channels(
    count: int, channels: tuple[int, ...], share: float, generator: torch.Generator | None
) -> list[torch.Tensor]:
    """Draw which channels of each level stay: (count, C) per level, 0 or, for what stays, 1/(1 − `share`).

    The feature perturbation of UniMatch (Yang et al., 2023, arXiv:2208.09910, section 3.2).
    """
    factors = []
    for of_level in channels:
        stays = torch.rand(count, of_level, generator=generator) >= share
        factors.append(stays / (1 - share))
    return factors


def scale_channels(features: list[torch.Tensor], factors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Multiply each channel of (B, C, H, W) features by its factor in (B, C), level by level."""
    scaled = []
    for of_level, factor in zip(features, factors, strict=True):
        scaled.append(of_level * factor.to(of_level)[:, :, None, None])
    return scaled


# --- ramp-up --------------------------------------------------------------------------------------


def cosine_ramp_up(epoch: int, length: int) -> float:
    """Return ½ (1 − cos π·epoch/length): 0 in epoch 0, 1 from epoch `length` on; always 1 for `length` 0.

    A consistency weight that starts at zero keeps an untrained teacher from leading: Laine & Aila,
    2017, arXiv:1610.02242 (there with a Gaussian shape).
    """
    if epoch >= length:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * epoch / length))
