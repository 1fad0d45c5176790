"""How much of a slice each class fills, where only a part of it is painted, and the network that knows it.

Who paints strokes paints of a rare class more than its share. A network learns that share with the rest, and takes
far too much for the rare class: of pores that fill 3 % of a slice and have 12 % of the paint, three times too much.
What it says of painted pixels is right; what it says of all pixels is not.

How much of all slices a class fills can be estimated without further paint (`estimate_fractions`). The logits are
then moved by log(fraction / painted fraction), which makes of probabilities among painted pixels those among all
(Saerens, Latinne & Decaestecker, 2002, doi:10.1162/089976602753284446, eq. 2.4). The network keeps these numbers
(`UNet.class_offset`), and losses of painted pixels are those of logits without them, so that training goes on from
there (logit adjustment: Menon et al., 2021, arXiv:2007.07314).
"""

from dataclasses import dataclass

import numpy as np
import torch

from model_unet import UNet
from slices.reading import Slice
from utils import SlidingWindow, predict_images

# Paint whose fractions are within this factor of the estimated ones is taken as it is: an estimate
# is no better than that.
MOST_RATIO = 1.5
# Of the painted pixels of a class those count that score highest, at least this share of them.
LEAST_SHARE = 0.2
THRESHOLDS = 60
LEAST_PIXELS = 200  # painted pixels of each class, to estimate from
LARGEST_FACTOR = 30.0  # by which odds are changed


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

    def offset(self, outputs: int) -> torch.Tensor:
        """Return by what the logits are moved, (outputs,): those of all classes, or the one of the second of two."""
        if not self.is_biased:
            return torch.zeros(outputs)
        factors = np.clip(self.estimated / self.painted, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
        moved = np.log(factors)
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


def estimate_fractions(probabilities: list[np.ndarray], slices: list[Slice]) -> np.ndarray | None:
    """Return how much of some slices each class fills, (K,); None where that cannot be told.

    For a threshold t on the probability of a class, the share of all pixels above it is at least
    the fraction of the class, times the share of its own pixels above it. The smallest ratio of
    both shares is the estimate: there, hardly anything else is above t (best bin estimation: Garg
    et al., 2021, arXiv:2111.00980). Only the paint of the class itself has to be typical of it; the
    first class, of which nobody paints a fair sample, fills what is left.

    Parameters
    ----------
    probabilities : list of (K, H, W) ndarrays
        Of a network that has learned from the paint as it is.
    slices : list of Slice
        What is painted in them, none of which the network should have learned from.
    """
    class_count = len(probabilities[0])
    fractions = np.zeros(class_count)
    for index in range(1, class_count):
        of_all = [p[index][s.inside] for p, s in zip(probabilities, slices, strict=True)]
        own = [
            p[index][s.counted & (s.mask == index)]
            for p, s in zip(probabilities, slices, strict=True)
        ]
        everywhere, painted = np.sort(np.concatenate(of_all)), np.sort(np.concatenate(own))
        if len(painted) < LEAST_PIXELS:
            return None
        thresholds = np.quantile(painted, np.linspace(0, 1 - LEAST_SHARE, THRESHOLDS))
        above = 1 - np.searchsorted(everywhere, thresholds) / len(everywhere)
        own_above = 1 - np.searchsorted(painted, thresholds) / len(painted)
        fractions[index] = (above / own_above).min()

    fractions[0] = 1 - fractions.sum()
    return fractions if fractions.min() > 0 else None


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
    painted = painted_fractions(train, class_count)
    whole = [s for s in val if s.painted is None]
    if whole:
        estimated = painted_fractions(whole, class_count)
        return Fractions(painted, estimated) if estimated.min() > 0 else None

    raw = without_offset(model)
    for slices in (val, train):
        if not slices:
            continue
        images = [s.image for s in slices]
        predicted = list(predict_images(raw, images, device, window))
        probabilities = [p if p.ndim == 3 else np.stack([1 - p, p]) for p in predicted]
        found = estimate_fractions(probabilities, slices)
        if found is not None:
            return Fractions(painted, found)
    return None


def without_offset(model: UNet) -> UNet:
    """Return the same network with an offset of 0: what it says among painted pixels."""
    raw = UNet.from_weights(model.state_dict()).to(next(model.parameters()).device)
    if raw.class_offset is not None:
        raw.class_offset.zero_()
    return raw
