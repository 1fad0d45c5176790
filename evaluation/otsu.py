"""The classical baseline: Otsu's thresholds after smoothing, at their best on the training slices."""

from dataclasses import dataclass

import numpy as np
from skimage.filters import gaussian, threshold_multiotsu, threshold_otsu

from evaluation.class_metrics import Truth, mean_class_overlap
from slices.reading import Slice
from utils import overlap_metrics

SIGMAS = (1.0, 2.0, 4.0, 8.0)  # px

# More thresholds than that take long to find.
MOST_CLASSES = 5


@dataclass(frozen=True)
class Otsu:
    """Otsu's threshold after smoothing.

    Attributes
    ----------
    sigma : float
        Of the Gaussian smoothing [px].
    is_bright : bool
        Whether foreground is the bright side.
    """

    sigma: float
    is_bright: bool

    def predict(self, s: Slice) -> np.ndarray:
        """Return the foreground of a slice: (H, W) bool, False where there is no sample."""
        smooth = gaussian(s.image, self.sigma, preserve_range=True)
        if s.outside is None:
            return (smooth > threshold_otsu(smooth)) == self.is_bright
        threshold = threshold_otsu(smooth[~s.outside])
        return ((smooth > threshold) == self.is_bright) & ~s.outside


def fit_otsu(slices: list[Slice]) -> Otsu:
    """Return the best smoothed Otsu on labelled slices.

    The threshold that a user would try first, at its best: smoothing and foreground side are chosen
    on the training slices.
    """
    scores = {}
    for sigma in SIGMAS:
        for is_bright in (True, False):
            otsu = Otsu(sigma, is_bright)
            dice = []
            for s in slices:
                mask = otsu.predict(s)
                if s.painted is not None:
                    mask &= s.painted
                dice.append(overlap_metrics(mask, s.mask)["dice"])
            scores[otsu] = np.mean(dice)

    return max(scores, key=scores.get)


# --- of several classes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class MultiOtsu:
    """Otsu's method with several thresholds: Liao, Chen & Chung, A fast algorithm for multilevel thresholding, 2001.

    Attributes
    ----------
    sigma : float
        Of the smoothing [px].
    order : tuple of int
        The class of each range of grey values, from dark to bright.
    """

    sigma: float
    order: tuple[int, ...]

    def predict(self, s: Slice) -> np.ndarray:
        """Return the class of each pixel of a slice: (H, W) uint8, 0 where there is no sample."""
        ranges = grey_ranges(s, self.sigma, len(self.order))
        return np.take(np.array(self.order, np.uint8), ranges) * s.inside


def grey_ranges(s: Slice, sigma: float, count: int) -> np.ndarray:
    """Return which of the ranges between Otsu's thresholds each pixel of a smoothed slice is in: (H, W) int."""
    smooth = np.rint(gaussian(s.image, sigma, preserve_range=True)).astype(np.uint8)
    values = smooth[s.inside]
    if len(np.unique(values)) < count:
        # Too few grey values for so many ranges.
        return np.zeros(smooth.shape, int)
    return np.digitize(smooth, threshold_multiotsu(values, count), right=True)


def fit_multi_otsu(slices: list[Slice], class_count: int) -> MultiOtsu:
    """Return the best thresholds on labelled slices, each range of which is the class that is painted there most."""
    truths = [Truth(s.mask, s.counted) for s in slices]
    best, best_dice = None, -1.0
    for sigma in SIGMAS:
        counts = np.zeros((class_count, class_count), int)
        for s in slices:
            ranges = grey_ranges(s, sigma, class_count)[s.counted]
            pairs = ranges * class_count + s.mask[s.counted]
            counts += np.bincount(pairs, minlength=class_count**2).reshape(counts.shape)

        candidate = MultiOtsu(sigma, tuple(counts.argmax(axis=1).tolist()))
        predictions = [candidate.predict(s) for s in slices]
        dice = mean_class_overlap(predictions, truths, class_count)["dice"]
        if dice > best_dice:
            best, best_dice = candidate, dice
    if best is None:
        raise ValueError("no slice to learn from")
    return best


def fit_thresholds(slices: list[Slice], class_count: int) -> Otsu | MultiOtsu:
    """Return the best thresholds on labelled slices: one for two classes, several for more."""
    return fit_otsu(slices) if class_count == 2 else fit_multi_otsu(slices, class_count)
