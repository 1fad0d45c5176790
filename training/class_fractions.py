"""How much of a slice each class fills, where only a part of it is painted; what follows for networks and scores.

Who paints strokes paints of a rare class more than its share. A network learns that share with the rest, and takes
too much for the rare class. What it says of painted pixels is right; what it says of all pixels is not.

How much of all slices a class fills can be estimated without further paint (`estimate_fractions`). The logits are
then moved by log(fraction / painted fraction), which makes of probabilities among painted pixels those among all
(Saerens, Latinne & Decaestecker, 2002, doi:10.1162/089976602753284446, eq. 2.4). The network keeps these numbers
(`UNet.class_offset`), and losses of painted pixels are those of logits without them, so that training goes on from
there (logit adjustment: Menon et al., 2021, arXiv:2007.07314).

Validation scores are those of all pixels, too: of a class that has three times its share of the paint, each painted
pixel counts a third (`score_paint`).
"""

from dataclasses import dataclass

import numpy as np
import torch

from model_unet import UNet
from slices.reading import Slice
from utils import SlidingWindow, decide, predict_images

# Paint whose fractions are within this factor of the estimated ones is taken as it is: an estimate
# is no better than that.
MOST_RATIO = 1.5
# Of the painted pixels of a class those count that score highest, at least this share of them.
LEAST_SHARE = 0.2
THRESHOLDS = 60
LEAST_PIXELS = 200  # painted pixels of each class, to estimate from
MOST_PIXELS = 500_000  # of a slice, and of its paint, that are looked at: evenly spaced ones
LARGEST_FACTOR = 30.0  # by which odds are changed
LEAST_FRACTION = 1e-6


@dataclass(frozen=True, eq=False)
class Fractions:
    """How much each class fills.

    Attributes
    ----------
    painted : (K,) ndarray
        Of the painted pixels of the training slices.
    estimated : (K,) ndarray
        Of all pixels.
    """

    painted: np.ndarray
    estimated: np.ndarray

    @property
    def is_biased(self) -> bool:
        """Whether paint shows a class far more, or far less, often than it is there."""
        ratios = self.estimated / self.painted
        return bool(np.maximum(ratios, 1 / ratios).max() > MOST_RATIO)

    @property
    def factors(self) -> np.ndarray:
        """By what probabilities among painted pixels are multiplied, but for their sum: (K,)."""
        if not self.is_biased:
            return np.ones(len(self.painted))
        return np.clip(self.estimated / self.painted, 1 / LARGEST_FACTOR, LARGEST_FACTOR)

    def offset(self, outputs: int) -> torch.Tensor:
        """Return by what the logits are moved, (outputs,): those of all classes, or the one of the second of two."""
        moved = np.log(self.factors)
        if outputs == 1:
            moved = moved[1:] - moved[:1]
        return torch.from_numpy(moved).float()


def describe_fractions(painted: dict[str, float], estimated: dict[str, float]) -> str:
    """Say how much of the paint each class has, how much of the slices, and what was done about it."""
    texts = [
        f"{name} {100 * share:.1f} and {100 * estimated[name]:.1f} %"
        for name, share in painted.items()
    ]
    return (
        f"shares of the paint, and estimated of all pixels: {', '.join(texts)}; probabilities were "
        "corrected for that"
    )


def painted_fractions(slices: list[Slice], class_count: int) -> np.ndarray:
    """Return how much of the paint each class has: (K,)."""
    counts = np.zeros(class_count)
    for s in slices:
        counts += np.bincount(np.asarray(s.mask)[s.counted], minlength=class_count)
    return counts / max(1, counts.sum())


def estimate_fractions(
    everywhere: np.ndarray, painted: np.ndarray, labels: np.ndarray
) -> np.ndarray | None:
    """Return how much of some slices each class fills, (K,); None where that cannot be told.

    For a threshold t on the probability of a class, the share of all pixels above it is at least
    the fraction of the class, times the share of its own pixels above it. The smallest ratio of
    both shares is the estimate: there, hardly anything else is above t (best bin estimation: Garg
    et al., 2021, arXiv:2111.00980). Only the paint of the class itself has to be typical of it; the
    first class, of which nobody paints a fair sample, fills what is left.

    A network that tells classes badly gives ratios that are too large, never ones that are too
    small. So a ratio above the share of the paint says nothing, and that share is taken.

    Parameters
    ----------
    everywhere : (K, N) ndarray
        Probabilities of all pixels, of a network that has learned from the paint as it is, and not
        from these slices.
    painted : (K, M) ndarray
        Those of the painted pixels.
    labels : (M,) ndarray
        The class with which each of these is painted.
    """
    class_count = len(everywhere)
    fractions = np.bincount(labels, minlength=class_count) / max(1, len(labels))
    for index in range(1, class_count):
        of_all = np.sort(everywhere[index])
        own = np.sort(painted[index, labels == index])
        if len(own) < LEAST_PIXELS:
            return None
        thresholds = np.quantile(own, np.linspace(0, 1 - LEAST_SHARE, THRESHOLDS))
        share_of_all = 1 - np.searchsorted(of_all, thresholds) / len(of_all)
        share_of_own = 1 - np.searchsorted(own, thresholds) / len(own)
        ratio = (share_of_all / share_of_own).min()
        fractions[index] = min(ratio, fractions[index])

    fractions[0] = 1 - fractions[1:].sum()
    return fractions if fractions.min() > 0 else None


def evenly(values: np.ndarray) -> np.ndarray:
    """Return at most `MOST_PIXELS` of the last axis, evenly spaced."""
    return values[..., :: -(-values.shape[-1] // MOST_PIXELS) or 1]


@dataclass(frozen=True, eq=False)
class PixelSample:
    """What a network says of pixels of some slices, evenly spaced ones.

    Attributes
    ----------
    everywhere : (K, N) ndarray
        Probabilities of pixels of the sample, painted or not.
    painted : (K, M) ndarray
        Those of painted pixels.
    labels : (M,) ndarray
        The class with which each of these is painted.
    """

    everywhere: np.ndarray
    painted: np.ndarray
    labels: np.ndarray


def sample_pixels(
    model: UNet, slices: list[Slice], device: torch.device, window: SlidingWindow
) -> PixelSample:
    """Return what a network says of pixels of some slices; one slice is held in memory at a time."""
    everywhere, painted, labels = [], [], []
    predicted = predict_images(model, [s.image for s in slices], device, window)
    for probability, s in zip(predicted, slices, strict=True):
        of_classes = probability
        if probability.ndim == 2:
            of_classes = np.stack([1 - probability, probability])
        everywhere.append(evenly(of_classes[:, s.inside]))
        painted.append(evenly(of_classes[:, s.counted]))
        labels.append(evenly(np.asarray(s.mask)[s.counted]))
    return PixelSample(
        np.concatenate(everywhere, axis=1),
        np.concatenate(painted, axis=1),
        np.concatenate(labels),
    )


def find_fractions(
    model: UNet,
    train: list[Slice],
    val: list[Slice],
    class_count: int,
    device: torch.device,
    window: SlidingWindow,
) -> Fractions | None:
    """Return how much each class is painted, and how much of all pixels it fills; None where that cannot be told.

    Validation slices that are painted everywhere say it; else it is estimated on validation slices,
    and without any on those for training, though there the network knows the paint by heart.

    Parameters
    ----------
    model : UNet
        Its `class_offset` is left out.
    train, val : lists of Slice
    class_count : int
    device : torch.device
    window : SlidingWindow
    """
    counted = counted_fractions(val, class_count)
    sample = None
    if counted is None:
        sample = sample_pixels(without_offset(model), val or train, device, window)
    return fractions_of(train, counted, sample, class_count)


def counted_fractions(val: list[Slice], class_count: int) -> np.ndarray | None:
    """Return how much each class fills of slices that are painted everywhere, (K,); None where these lack one."""
    whole = [s for s in val if s.painted is None]
    counted = painted_fractions(whole, class_count)
    return counted if counted.min() > 0 else None


def fractions_of(
    train: list[Slice],
    counted: np.ndarray | None,
    sample: PixelSample | None,
    class_count: int,
) -> Fractions | None:
    """Return the fractions that were counted, else those that are estimated from a sample of pixels."""
    painted = painted_fractions(train, class_count)
    if painted.min() == 0:
        # Of a class without paint nothing was learned.
        return None

    fractions = counted
    if fractions is None and sample is not None:
        fractions = estimate_fractions(sample.everywhere, sample.painted, sample.labels)
    return None if fractions is None else Fractions(painted, fractions)


def score_paint(
    model: UNet,
    train: list[Slice],
    val: list[Slice],
    class_count: int,
    device: torch.device,
    window: SlidingWindow,
    threshold: float,
) -> dict[str, float | None] | None:
    """Return Dice and IoU over painted pixels of validation slices, as of a corrected network and of all pixels.

    Each painted pixel counts by how much more of all pixels its class fills than of the paint. Else
    a network would seem best that takes rare classes for too much: of the background, where that
    is wrong, there is too little paint. None where fractions cannot be told.

    Scores of each class are of the pixels of all slices together, and means are over the classes
    but the background that are painted.

    Parameters
    ----------
    model : UNet
        Its `class_offset` is left out.
    train, val : lists of Slice
    class_count : int
    device : torch.device
    window : SlidingWindow
    threshold : float
        Of two classes: the probability from which a pixel is foreground.
    """
    sample = sample_pixels(without_offset(model), val, device, window)
    fractions = fractions_of(train, counted_fractions(val, class_count), sample, class_count)
    if fractions is None:
        return None

    probabilities = sample.painted
    weights = np.ones(class_count)
    if fractions.is_biased:
        probabilities = probabilities * fractions.factors[:, None]
        probabilities /= probabilities.sum(axis=0)
        shares = np.bincount(sample.labels, minlength=class_count) / len(sample.labels)
        weights = fractions.estimated / np.maximum(shares, LEAST_FRACTION)
    # The pixels of all slices are one row of a picture.
    row = probabilities[:, None] if class_count > 2 else probabilities[1:2]
    decided = decide(row, threshold)[0]
    return weighted_overlap(decided.astype(int), sample.labels.astype(int), weights)


def weighted_overlap(
    decided: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float | None]:
    """Return Dice and IoU of some pixels, where those of a class count by its weight: means over classes.

    The background is no part of the mean, nor is a class that no pixel has.

    Parameters
    ----------
    decided, labels : (M,) int ndarrays
        The class that each pixel is taken for, and the one that it has.
    weights : (K,) ndarray
    """
    class_count = len(weights)
    counts = np.bincount(labels * class_count + decided, minlength=class_count**2)
    confusion = weights[:, None] * counts.reshape(class_count, class_count)
    right = np.diag(confusion)
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = [index for index in range(1, class_count) if (labels == index).any()]
    present = present or list(range(1, class_count))
    # A class that is neither there nor found is right.
    dice = np.divide(2 * right, both, out=np.ones(class_count), where=both > 0)
    return {
        "dice": float(dice[present].mean()),
        "iou": float((dice / (2 - dice))[present].mean()),
    }


def without_offset(model: UNet) -> UNet:
    """Return the same network with an offset of 0: what it says among painted pixels."""
    raw = UNet.from_weights(model.state_dict()).to(next(model.parameters()).device)
    if raw.class_offset is not None:
        raw.class_offset.zero_()
    return raw
