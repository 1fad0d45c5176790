"""How much of a slice each class fills, where only a part of it is painted; what follows for networks and scores.

Who paints strokes paints of a rare class more than its share. A network learns that share with the rest, and takes
too much for the rare class. What it says of painted pixels is right; what it says of all pixels is not.

How much of all slices a class fills can be estimated without further paint (`measure_fractions`). The logits are
then moved by log(fraction / painted fraction), which makes of probabilities among painted pixels those among all
(Saerens, Latinne & Decaestecker, 2002, doi:10.1162/089976602753284446, eq. 2.4). The network keeps these numbers
(`UNet.class_offset`), and losses of painted pixels are those of logits without them, so that training goes on from
there (logit adjustment: Menon et al., 2021, arXiv:2007.07314).

Validation scores are those of all pixels, too: of a class that has three times its share of the paint, each painted
pixel counts a third (`score_samples`). Models are only compared by scores that take the same fractions.

Fractions are estimated while the first network is trained, and hold for the whole run from its end on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model_unet import UNet
from runtime.messages import InputError
from runtime.run_folder import read_phases
from slices.reading import Slice
from utils import SlidingWindow, decide, predict_images

# Paint whose fractions are within this factor of the estimated ones is taken as it is: an estimate
# is no better than that.
MOST_RATIO = 1.5
# Of the painted pixels of a class those count that score highest, at least this share of them.
LEAST_SHARE = 0.2
THRESHOLDS = 60
LEAST_PIXELS = 200  # painted pixels of a class, to estimate from
MOST_PIXELS = 200_000  # of a slice, and of its paint, that are looked at: evenly spaced ones
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
        Of all pixels. What cannot be told is as `painted` has it.
    unknown : tuple of int
        The classes of which it cannot be told.
    """

    painted: np.ndarray
    estimated: np.ndarray
    unknown: tuple[int, ...] = ()

    @property
    def is_biased(self) -> bool:
        """Whether paint shows a class far more, or far less, often than it is there."""
        ratios = self._ratios()
        return bool(np.maximum(ratios, 1 / ratios).max() > MOST_RATIO)

    @property
    def factors(self) -> np.ndarray:
        """By what probabilities among painted pixels are multiplied, but for their sum: (K,)."""
        return self._ratios() if self.is_biased else np.ones(len(self.painted))

    def _ratios(self) -> np.ndarray:
        """Return estimated by painted fractions, within limits; 1 of a class without paint."""
        ratios = np.ones(len(self.painted))
        np.divide(self.estimated, self.painted, out=ratios, where=self.painted > 0)
        return np.clip(ratios, 1 / LARGEST_FACTOR, LARGEST_FACTOR)

    def offset(self, outputs: int) -> torch.Tensor:
        """Return by what the logits are moved, (outputs,): those of all classes, or the one of the second of two."""
        moved = np.log(self.factors)
        if outputs == 1:
            moved = moved[1:] - moved[:1]
        return torch.from_numpy(moved).float()

    def record(self, names: Sequence[str]) -> dict:
        """Return what JSON can hold of them, by the names of the classes."""
        return {
            "painted": dict(zip(names, self.painted.round(6).tolist(), strict=True)),
            "estimated": dict(zip(names, self.estimated.round(6).tolist(), strict=True)),
            "unknown": [names[index] for index in self.unknown],
            "is_corrected": self.is_biased,
        }

    @classmethod
    def from_record(cls, record: Mapping) -> "Fractions":
        """Return what `record` holds."""
        names = list(record["painted"])
        return cls(
            np.array([record["painted"][name] for name in names]),
            np.array([record["estimated"][name] for name in names]),
            tuple(names.index(name) for name in record["unknown"]),
        )


def fractions_of_run(run: Path) -> Fractions | None:
    """Return the fractions that a run measured when its supervised phase ended; None before, or if it measures none.

    Raises
    ------
    InputError
        Where they are not what a run writes.
    """
    record = read_phases(run).get("supervised", {}).get("fractions")
    if record is None:
        return None
    try:
        return Fractions.from_record(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{run / 'phases.json'}: its fractions are not what a run writes; damaged? take it from "
            "a copy of the run"
        ) from None


def describe_fractions(record: Mapping) -> str:
    """Say how much of the paint each class has, how much of the slices, and what was done about it.

    Nothing where paint is taken as it is, and no class is unknown.
    """
    texts = []
    if record["is_corrected"]:
        shares = [
            f"{name} {100 * share:.1f} and {100 * record['estimated'][name]:.1f} %"
            for name, share in record["painted"].items()
        ]
        texts.append(
            f"shares of the paint, and estimated of all pixels: {', '.join(shares)}; probabilities "
            "were corrected for that"
        )
    if record["unknown"]:
        texts.append(
            f"how much of all pixels {', '.join(record['unknown'])} fills cannot be told, and is "
            "taken to be its share of the paint; paint more of it in validation slices"
        )
    return "; ".join(texts)


def painted_fractions(slices: list[Slice], class_count: int) -> np.ndarray:
    """Return how much of the paint each class has: (K,)."""
    counts = np.zeros(class_count)
    for s in slices:
        counts += np.bincount(np.asarray(s.mask)[s.counted], minlength=class_count)
    return counts / max(1, counts.sum())


# --- what a network says of the paint, and of all pixels ------------------------------------------


@dataclass(frozen=True, eq=False)
class PixelSample:
    """What a network says of pixels of a slice, evenly spaced ones.

    Attributes
    ----------
    everywhere : (K, N) ndarray
        Probabilities of pixels of the sample, painted or not.
    painted : (K, M) ndarray
        Those of painted pixels.
    labels : (M,) int ndarray
        The class with which each of these is painted.
    pixels : int
        How many the slice has, but for what lies outside the sample.
    is_whole : bool
        Whether all of them are painted.
    """

    everywhere: np.ndarray
    painted: np.ndarray
    labels: np.ndarray
    pixels: int
    is_whole: bool


def sample_pixels(
    model: UNet, slices: list[Slice], device: torch.device, window: SlidingWindow
) -> list[PixelSample]:
    """Return what a network says of pixels of some slices, without its offset; of one whole slice at a time."""
    samples = []
    predicted = predict_images(without_offset(model), [s.image for s in slices], device, window)
    for probability, s in zip(predicted, slices, strict=True):
        of_classes = probability
        if probability.ndim == 2:
            of_classes = np.stack([1 - probability, probability])
        of_classes = of_classes.reshape(len(of_classes), -1)
        everywhere, painted = evenly(s.inside), evenly(s.counted)
        samples.append(
            PixelSample(
                of_classes[:, everywhere],
                of_classes[:, painted],
                np.asarray(s.mask).reshape(-1)[painted].astype(int),
                int(np.count_nonzero(s.inside)),
                s.painted is None,
            )
        )
    return samples


def evenly(shown: np.ndarray) -> np.ndarray:
    """Return flat indices of at most `MOST_PIXELS` of the pixels that are shown, evenly spaced."""
    indices = np.flatnonzero(shown)
    return indices[:: -(-indices.size // MOST_PIXELS) or 1]


def measure_fractions(samples: list[PixelSample], painted: np.ndarray) -> Fractions:
    """Return how much of some slices each class fills.

    Slices that are painted everywhere say it of themselves, of the others it is estimated; both
    count by their pixels.

    Parameters
    ----------
    samples : list of PixelSample
    painted : (K,) ndarray
        How much of the paint of the training slices each class has.
    """
    class_count = len(painted)
    partial = [sample for sample in samples if not sample.is_whole]
    whole = [sample for sample in samples if sample.is_whole]

    # A row of fractions for the slices of either kind that there are, and how many pixels these have.
    found, pixels = [], []
    if partial:
        found.append(estimate_fractions(partial, painted))
        pixels.append(sum(sample.pixels for sample in partial))
    if whole:
        counts = np.zeros(class_count)
        for sample in whole:
            shares = np.bincount(sample.labels, minlength=class_count) / len(sample.labels)
            counts += shares * sample.pixels
        found.append(counts / counts.sum())
        pixels.append(counts.sum())

    fractions = np.zeros(class_count)
    for index in range(class_count):
        known = [row for row in range(len(found)) if not np.isnan(found[row][index])]
        total = sum(pixels[row] * found[row][index] for row in known)
        fractions[index] = total / max(1, sum(pixels[row] for row in known))

    # Slices in which nobody saw a class do not say how rare it is; nor does a network that never did.
    is_unknown = (fractions == 0) | (painted == 0)
    if is_unknown.all():
        return Fractions(painted, painted, tuple(range(class_count)))
    left = 1 - painted[is_unknown].sum()
    fractions = np.where(is_unknown, painted, fractions * left / fractions[~is_unknown].sum())
    return Fractions(painted, fractions, tuple(np.flatnonzero(is_unknown).tolist()))


def estimate_fractions(samples: list[PixelSample], painted: np.ndarray) -> np.ndarray:
    """Return how much of slices that are painted in part each class fills; NaN where too little of it is painted.

    For a threshold t on the probability of a class, the share of all pixels above it is at least
    the fraction of the class, times the share of its own pixels above it. The smallest ratio of
    both shares is the estimate: there, hardly anything else is above t (best bin estimation: Garg
    et al., 2021, arXiv:2111.00980). Only the paint of the class itself has to be typical of it.

    That finds classes which paint shows too often. It is an upper bound, which says nothing where it
    lies above the share of the paint, as with a network that tells classes badly: these classes
    share what the others leave (`share_rest`).

    Parameters
    ----------
    samples : list of PixelSample
        Of a network that has learned from the paint as it is, and not from these slices.
    painted : (K,) ndarray
        How much of the paint of the training slices each class has.
    """
    everywhere = np.concatenate([sample.everywhere for sample in samples], axis=1)
    among_paint = np.concatenate([sample.painted for sample in samples], axis=1)
    labels = np.concatenate([sample.labels for sample in samples])

    bounds = np.full(len(painted), np.nan)
    for index in np.flatnonzero(painted):
        own = among_paint[index, labels == index]
        if len(own) >= LEAST_PIXELS:
            bounds[index] = largest_share(everywhere[index], own)
    return share_rest(bounds, painted)


def largest_share(of_all: np.ndarray, own: np.ndarray) -> float:
    """Return how much of all pixels a class fills at most.

    Parameters
    ----------
    of_all : (N,) ndarray
        The probability of the class in all pixels.
    own : (M,) ndarray
        In those that are painted with it.
    """
    thresholds = np.quantile(own, np.linspace(0, 1 - LEAST_SHARE, THRESHOLDS))
    share_of_all = 1 - np.searchsorted(np.sort(of_all), thresholds) / len(of_all)
    share_of_own = 1 - np.searchsorted(np.sort(own), thresholds) / len(own)
    return float((share_of_all / share_of_own).min())


def share_rest(bounds: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """Return how much each class fills, (K,), of upper bounds for them; NaN where nothing is known.

    Classes whose bound lies below their share of the paint fill as much as it says. The others
    share what is left, in proportion to their paint. Where no bound lies above, that is the class
    which comes nearest: not all can be rarer than the paint has them.

    Parameters
    ----------
    bounds : (K,) ndarray
        NaN for classes without one, which are taken to fill their share of the paint.
    painted : (K,) ndarray
        How much of the paint each class has.
    """
    is_known = ~np.isnan(bounds)
    if not is_known.any():
        return bounds
    of_paint = np.divide(bounds, painted, out=np.full(len(painted), -1.0), where=is_known)
    takes_rest = of_paint >= 1
    takes_rest[of_paint.argmax()] = True

    rest = 1 - painted[~is_known].sum() - bounds[is_known & ~takes_rest].sum()
    if rest <= 0:
        return np.full(len(painted), np.nan)
    shares = painted[takes_rest] / painted[takes_rest].sum()
    fractions = bounds.copy()
    fractions[takes_rest] = rest * shares
    return fractions


def lowest(found: list[Fractions]) -> Fractions:
    """Return of each class that paint shows too often the lowest estimate, which is an upper bound.

    What that leaves is for the class of which paint shows least.
    """
    painted = found[0].painted
    estimates = np.array([one.estimated for one in found])
    fractions = estimates.min(axis=0)
    most = int(np.argmax(fractions / np.maximum(painted, LEAST_FRACTION) * (painted > 0)))
    others = np.arange(len(painted)) != most
    fractions[most] = 1 - fractions[others].sum()
    return Fractions(painted, fractions, found[0].unknown)


# --- scores ---------------------------------------------------------------------------------------


def score_alike(
    samples: Mapping[str, list[PixelSample]],
    painted: np.ndarray,
    threshold: float,
    fractions: Fractions | None = None,
) -> dict[str, dict[str, float | None]]:
    """Return the scores (`score_samples`) of some models on the same slices, with the same fractions for all.

    Parameters
    ----------
    samples : dict of str to list of PixelSample
        Of each model what it says of the slices.
    painted : (K,) ndarray
        How much of the paint of the training slices each class has.
    threshold : float
        Of two classes: the probability from which a pixel is foreground.
    fractions : Fractions, optional
        Those of the run; without them the lowest that are measured with these models.
    """
    if fractions is None:
        fractions = lowest([measure_fractions(found, painted) for found in samples.values()])
    return {name: score_samples(found, fractions, threshold) for name, found in samples.items()}


def score_samples(
    samples: list[PixelSample], fractions: Fractions, threshold: float
) -> dict[str, float | None]:
    """Return Dice and IoU over painted pixels, as of a corrected network and of all pixels.

    Each painted pixel counts by how much more of all pixels its class fills than of the paint. Else
    a network would seem best that takes rare classes for too much: of the background, where that
    is wrong, there is too little paint.

    Scores of each class are of the pixels of all slices together, and means are over the classes
    but the background that are painted.
    """
    labels = np.concatenate([sample.labels for sample in samples])
    probabilities = np.concatenate([sample.painted for sample in samples], axis=1)
    class_count = len(probabilities)
    weights = np.ones(class_count)
    if fractions.is_biased:
        probabilities = probabilities * fractions.factors[:, None]
        probabilities /= probabilities.sum(axis=0)
        shares = np.bincount(labels, minlength=class_count) / len(labels)
        weights = fractions.estimated / np.maximum(shares, LEAST_FRACTION)
    # The pixels of all slices are one row of a picture.
    row = probabilities[:, None] if class_count > 2 else probabilities[1:2]
    decided = decide(row, threshold)[0]
    return weighted_overlap(decided.astype(int), labels, weights)


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
