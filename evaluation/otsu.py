"""The classical baseline: Otsu's threshold after smoothing, at its best on the training slices."""

import numpy as np
from skimage.filters import gaussian, threshold_otsu

from slices.reading import Slice
from utils import overlap_metrics

SIGMAS = (1.0, 2.0, 4.0, 8.0)  # px


def fit_otsu(slices: list[Slice]) -> tuple[float, bool]:
    """Return smoothing σ [px] and foreground side (True: bright) of the best smoothed Otsu on labelled slices.

    The threshold that a user would try first, at its best: both choices are made on the training
    slices.
    """
    scores = {}
    for sigma in SIGMAS:
        for bright in (True, False):
            dice = []
            for s in slices:
                mask = predict_otsu(s, sigma, bright)
                dice.append(overlap_metrics(mask, s.mask)["dice"])
            scores[sigma, bright] = np.mean(dice)

    return max(scores, key=scores.get)


def predict_otsu(s: Slice, sigma: float, bright: bool) -> np.ndarray:
    """Return the bright or dark side of Otsu's threshold after Gaussian smoothing by `sigma` pixels: (H, W) bool."""
    smooth = gaussian(s.image, sigma, preserve_range=True)
    if s.outside is None:
        return (smooth > threshold_otsu(smooth)) == bright
    threshold = threshold_otsu(smooth[~s.outside])
    return ((smooth > threshold) == bright) & ~s.outside
