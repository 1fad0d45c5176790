"""The random forest on features of several scales, with which users compare every network.

As ilastik (Berg et al., 2019, doi:10.1038/s41592-019-0582-9) and Trainable Weka Segmentation
(Arganda-Carreras et al., 2017, doi:10.1093/bioinformatics/btx180) have it, but with random pixels
of whole painted slices in the place of brush strokes: more than anybody paints there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from skimage.feature import multiscale_basic_features

from evaluation.class_metrics import Truth, mean_class_overlap
from slices.reading import Slice

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

PIXELS = 20_000  # of a training slice, from which the forest learns
MOST_PIXELS = 100_000  # of all training slices: more take time, and add little
TREES = 100
LEAST_LEAF = 5  # pixels of training in a leaf
SCALES = (1.0, 16.0)  # px: smallest and largest σ of the features
PIXELS_AT_ONCE = 2**18  # of a slice, in a prediction: more need memory without need
THRESHOLDS = np.arange(0.05, 0.96, 0.05)


@dataclass(frozen=True, eq=False)
class PixelForest:
    """A trained random forest.

    Attributes
    ----------
    classifier : RandomForestClassifier
    threshold : float
        Of two classes the probability from which a pixel is foreground.
    class_count : int
        With the background.
    """

    classifier: "RandomForestClassifier"
    threshold: float
    class_count: int = 2

    def probability(self, s: Slice) -> np.ndarray:
        """Return the probability of foreground: (H, W) float32, 0 where there is no sample."""
        return self.probabilities(s)[1]

    def probabilities(self, s: Slice) -> np.ndarray:
        """Return the probabilities of all classes: (K, H, W) float32, 0 where there is no sample."""
        return forest_probabilities(self.classifier, s, self.class_count)


def forest_features(image: np.ndarray) -> np.ndarray:
    """Return intensity, edges and texture at several scales around each pixel: (H, W, F) float32."""
    smallest, largest = SCALES
    features = multiscale_basic_features(image, sigma_min=smallest, sigma_max=largest)
    return features.astype(np.float32, copy=False)


def fit_forest(
    train: list[Slice], val: list[Slice], seed: int, class_count: int = 2
) -> PixelForest:
    """Train a forest on labelled slices.

    Parameters
    ----------
    train : list of Slice
        Not empty; pixels without sample, and those that are not painted, are left out.
    val : list of Slice
        Of two classes, the threshold is the one with the best Dice on these, where one of them has
        foreground; else ½.
    seed : int
        Of the pixels that are drawn, and of the forest.
    class_count : int
        With the background.
    """
    # It takes a second to import, which no other command needs to wait for.
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(seed)
    pixels = min(PIXELS, MOST_PIXELS // len(train))
    samples, labels = [], []
    for s in train:
        counted = np.flatnonzero(s.counted)
        chosen = rng.choice(counted, min(pixels, len(counted)), replace=False)
        features = forest_features(s.image)
        samples.append(features.reshape(s.mask.size, -1)[chosen])
        labels.append(s.mask.ravel()[chosen])

    classifier = RandomForestClassifier(
        TREES, min_samples_leaf=LEAST_LEAF, n_jobs=-1, random_state=seed
    )
    classifier.fit(np.concatenate(samples), np.concatenate(labels))
    threshold = choose_threshold(classifier, val) if class_count == 2 else 0.5
    return PixelForest(classifier, threshold, class_count)


def choose_threshold(classifier: "RandomForestClassifier", val: list[Slice]) -> float:
    """Return the threshold with the best Dice on labelled slices, as networks are judged there; ½ without foreground.

    Of several that are as good, the one next to ½.
    """
    if not any(s.mask.any() for s in val):
        return 0.5

    probabilities = [forest_probabilities(classifier, s)[1] for s in val]
    truths = [Truth(s.mask, s.counted) for s in val]
    best, best_dice = 0.5, -1.0
    for threshold in sorted(THRESHOLDS, key=lambda value: abs(value - 0.5)):
        masks = [probability >= threshold for probability in probabilities]
        dice = mean_class_overlap(masks, truths, class_count=2)["dice"]
        if dice > best_dice:
            best, best_dice = float(threshold), dice

    return best


def forest_probabilities(
    classifier: "RandomForestClassifier", s: Slice, class_count: int = 2
) -> np.ndarray:
    """Return the probabilities of all classes in a slice: (K, H, W) float32, 0 where there is no sample."""
    probabilities = np.zeros((class_count, s.image.size), np.float32)
    features = forest_features(s.image).reshape(s.image.size, -1)
    # A forest that has not seen a class does not know it.
    known = classifier.classes_.astype(int)
    for part in parts_of(s.image.size):
        probabilities[known, part] = classifier.predict_proba(features[part]).T
    return probabilities.reshape(class_count, *s.image.shape) * s.inside


def parts_of(count: int) -> Iterator[slice]:
    """Yield the pixels of a slice in parts that are predicted at once."""
    for start in range(0, count, PIXELS_AT_ONCE):
        yield slice(start, start + PIXELS_AT_ONCE)
