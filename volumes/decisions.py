"""From probabilities to what is written: masks or label maps, and how unsure they are."""

from dataclasses import dataclass

import numpy as np

from slices.classes import NOT_LABELLED, Classes


@dataclass(frozen=True)
class Decision:
    """How probabilities become masks.

    Probabilities are those of foreground (H, W), or of all K classes of label maps (K, H, W), all 0
    where nothing was looked at: outside the sample or the region of interest, and in blank slices.

    Attributes
    ----------
    threshold : float
        Probability from which a pixel is foreground, or of two classes the second one. Of more
        classes the most probable one is taken.
    classes : Classes or None
        Of label maps; None where masks are binary.
    """

    threshold: float
    classes: Classes | None = None

    @property
    def planes(self) -> int:
        """Probabilities of a pixel: 1, or one for each class."""
        return 1 if self.classes is None else len(self.classes)

    @property
    def dtype(self) -> np.dtype:
        """The type of masks: uint8, or what holds the largest value of a class."""
        largest = 255 if self.classes is None else max(self.classes.values)
        return np.dtype(np.uint8 if largest <= 255 else np.uint16)

    def mask(self, probability: np.ndarray) -> np.ndarray:
        """Return a mask, 255 for foreground, or a label map with the values of the classes: (H, W).

        In label maps 0 is where nothing was looked at.
        """
        if self.classes is None:
            return decide(probability, self.threshold)

        values = np.array(self.classes.values, self.dtype)
        if len(values) == 2:
            place = (probability[1] >= np.float32(self.threshold)).astype(np.uint8)
        else:
            place = probability.argmax(axis=0)
        is_seen = probability.max(axis=0) > 0
        return np.where(is_seen, values[place], self.dtype.type(NOT_LABELLED))

    def uncertainty(self, probability: np.ndarray) -> np.ndarray:
        """Return how unsure a decision is, (H, W) float16.

        The standard deviation √(p (1 − p)), 0 to ½, where there are two classes; of more the entropy
        −Σ pₖ log pₖ / log K, 0 to 1.
        """
        if self.planes == 1:
            return total_deviation(probability)
        if self.planes == 2:
            return total_deviation(probability[1])
        p = np.clip(probability.astype(np.float32), 1e-7, 1)
        entropy = -(p * np.log(p)).sum(axis=0) / np.log(self.planes)
        is_seen = probability.max(axis=0) > 0
        return (np.clip(entropy, 0, 1) * is_seen).astype(np.float16)


def decide(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Return where the probability reaches the threshold: uint8, 255 there."""
    is_foreground = probability >= np.float32(threshold)
    return is_foreground.astype(np.uint8) * 255


def total_deviation(probability: np.ndarray) -> np.ndarray:
    """Return √(p (1 − p)), 0 to ½, as float16.

    That is the standard deviation of a decision that is foreground with probability p. Where p is a
    mean of predictions, it is all of the uncertainty: what each prediction leaves open, p (1 − p),
    and the variance between them (law of total variance).
    """
    p = probability.astype(np.float32)
    return np.sqrt(p * (1 - p)).astype(np.float16)


def mean_probability(probabilities: list[np.ndarray]) -> np.ndarray:
    """Return the mean of probabilities, float32."""
    return np.array(probabilities, np.float32).mean(0)


def joint_spread(means: list[np.ndarray], deviations: list[np.ndarray]) -> np.ndarray:
    """Return the standard deviation over several groups of predictions, from mean and deviation of each, float32.

    √(mean(p² + s²) − (mean p)²), of means p and deviations s. Of K classes it is the root of half
    the sum of the variances of their probabilities, which is the same for two.

    Parameters
    ----------
    means : list of (H, W) or (K, H, W) ndarrays
    deviations : list of (H, W) ndarrays
    """
    p = np.array(means, np.float32)
    s = np.array(deviations, np.float32)
    if p.ndim == s.ndim:
        variance = (p**2 + s**2).mean(0) - p.mean(0) ** 2
    else:
        between = (p**2).mean(0) - p.mean(0) ** 2  # (K, H, W)
        variance = between.sum(0) / 2 + (s**2).mean(0)
    return np.sqrt(np.maximum(variance, 0))
