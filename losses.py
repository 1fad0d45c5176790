"""Losses, mixing and ramp-up: pure functions of tensors. Every loss is a mean over the batch (a scalar).

Dice of an empty mask, here and in `utils.overlap_metrics`: an empty prediction of an empty mask is
perfect (Dice 1, loss 0). The loss gets there by adding one pixel to numerator and denominator
(`smooth`), which also keeps the gradient finite.

Of binary masks a network gives one logit, that of foreground. Of label maps with K classes it gives
K logits, or one where K is 2, and what is painted comes as *shares*: (B, K, H, W), for each class
the share of a pixel that is painted with it. Where nothing is painted all shares are 0, and such a
pixel has no weight in any sum: not in the cross-entropy, and not in Dice's denominator.
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


def segmentation_loss(
    logits: torch.Tensor,
    mask: torch.Tensor,
    ce_weight: float = 0.5,
    inside: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the supervised loss: `bce_dice_loss` of a binary mask, `ce_dice_loss` of the shares of classes.

    Parameters
    ----------
    logits : (B, 1, H, W) or (B, K, H, W) float tensor
    mask : (B, 1, H, W) or (B, K, H, W) float tensor
        Foreground, or the shares of K classes, two at least.
    ce_weight : float in [0, 1]
        Of the cross-entropy; the rest is Dice.
    inside : (B, 1, H, W) float tensor, or None
        Of a binary mask: 0 where there is no sample. Shares are 0 there by themselves.
    """
    if mask.shape[1] == 1:
        return bce_dice_loss(logits, mask, ce_weight, inside)
    return ce_dice_loss(logits, mask, ce_weight)


def ce_dice_loss(
    logits: torch.Tensor, shares: torch.Tensor, ce_weight: float = 0.5
) -> torch.Tensor:
    """Return `ce_weight`·cross-entropy + (1 − `ce_weight`)·soft Dice loss over what is painted.

    With two classes and everything painted this is `bce_dice_loss`.

    Parameters
    ----------
    logits : (B, K, H, W) float tensor
        Or (B, 1, H, W) of two classes.
    shares : (B, K, H, W) float tensor
        See the module.
    ce_weight : float in [0, 1]
    """
    log_p = log_probabilities(logits)  # (B, K, H, W)
    painted = shares.sum(1, keepdim=True)  # (B, 1, H, W)
    ce = -(shares * log_p).sum() / painted.sum().clamp(min=1.0)
    dice_loss = class_dice_loss(log_p.exp(), shares, painted)
    return ce_weight * ce + (1 - ce_weight) * dice_loss


def class_dice_loss(
    probabilities: torch.Tensor,
    shares: torch.Tensor,
    painted: torch.Tensor,
    smooth: float = 1.0,
) -> torch.Tensor:
    """Return 1 − soft Dice, averaged over the classes of each image, then over the batch.

    The background, which is the first class, is left out, as in nnU-Net (Isensee et al., 2021,
    doi:10.1038/s41592-020-01008-z), and so are classes of which nothing is painted in an image:
    there, the few pixels that a network takes for them would decide the mean. In an image with
    nothing but background all classes count, as foreground does in an empty binary mask.

    Parameters
    ----------
    probabilities, shares : (B, K, H, W) float tensors
    painted : (B, 1, H, W) float tensor
        How much each pixel counts, 0 to 1.
    smooth : float
        Pixels added to numerator and denominator.
    """
    probabilities = probabilities[:, 1:]
    shares = shares[:, 1:]
    intersection = (probabilities * shares).sum(dim=(2, 3))  # (B, K − 1)
    of_class = shares.sum(dim=(2, 3))  # (B, K − 1)
    total = (probabilities * painted).sum(dim=(2, 3)) + of_class
    dice = (2 * intersection + smooth) / (total + smooth)  # (B, K − 1)

    counts = (of_class > 0).float()
    counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, torch.ones_like(counts))
    dice_of_image = (dice * counts).sum(1) / counts.sum(1)  # (B,)
    return (1 - dice_of_image).mean()


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of the probabilities of all classes, (B, K, H, W) float32.

    One logit is that of the second of two classes.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
    return logits.log_softmax(1)


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of foreground (B, 1, H, W) of one logit, those of all classes (B, K, H, W) of several."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return logits.sigmoid()
    return logits.softmax(1)


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
        Or (B, K, H, W) of K classes.
    target : (B, 1, H, W) or (B, K, H, W) float tensor
        Probability in [0, 1], in the same geometry; it receives no gradients.
    kind : {"mse", "bce", "bce_dice"}
        `mse`: squared difference of probabilities (Mean Teacher, arXiv:1703.01780, eq. 1), of
        several classes half the sum of them, which is the same for two; `bce`: cross-entropy;
        `bce_dice`: half of it and half soft Dice over the confident pixels.
        The first two are smallest at the target. Soft Dice of a probability is smallest at a
        decision (1 above about half the Dice, 0 below), so `bce_dice` also makes the student surer
        than its teacher, as entropy minimisation does.
    confidence : float
        A pixel counts where the largest probability of a class, of foreground or background, is at
        least this; 0.5 or less is every pixel of a binary mask.
    hard : bool
        Compare with the teacher's decision (p ≥ 0.5, or the most probable class) instead of its
        probability.
    inside : (B, 1, H, W) float tensor, or None
        How much each pixel counts, 0 to 1: 0 where there is no sample. None is all.
    """
    target = target.detach().float()
    if target.shape[1] > 1:
        return class_consistency_loss(student_logits, target, kind, confidence, hard, inside)

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


def class_consistency_loss(
    student_logits: torch.Tensor,
    target: torch.Tensor,
    kind: str,
    confidence: float,
    hard: bool,
    inside: torch.Tensor | None,
) -> torch.Tensor:
    """Return the `consistency_loss` of several classes: (B, K, H, W) logits and probabilities."""
    sure = (target.amax(1, keepdim=True) >= confidence).float()  # (B, 1, H, W)
    if hard:
        decision = target.argmax(1, keepdim=True)
        target = torch.zeros_like(target).scatter_(1, decision, 1.0)
    log_p = log_probabilities(student_logits)

    if kind == "mse":
        distance = 0.5 * (log_p.exp() - target).square().sum(1, keepdim=True)  # (B, 1, H, W)
        return mean_inside(distance * sure, inside)

    of_pixels = -(target * log_p).sum(1, keepdim=True)  # (B, 1, H, W)
    ce = mean_inside(of_pixels * sure, inside)
    if kind == "bce":
        return ce
    if kind == "bce_dice":
        weight = sure if inside is None else sure * inside
        return 0.5 * ce + 0.5 * class_dice_loss(log_p.exp(), target * weight, weight)
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
    batch : (B, C, H, W) tensor
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
