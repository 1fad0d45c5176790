"""Before a network is trained: fit its pixel classifier to random pixels of the painted slices, in seconds."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from datasets import mask_planes, reduce_mask
from losses import segmentation_loss
from mean_teacher import new_network
from model_unet import UNet
from pixel_classifier import (
    COARSE,
    REACH,
    PixelClassifier,
    answer_of,
    feature_count,
    logits_of,
    pixel_features,
)
from slices.reading import Slice, reduce_slice

PIXELS = 200_000  # of a slice, to which the classifier is fitted
MOST_PIXELS = 2_000_000  # of all slices: their features take 400 MB
STEPS = 1500
BATCH = 4096  # pixels
LR = 5e-3  # at its peak
WEIGHT_DECAY = 1e-4
TILE = 1024  # px: side of the part of a slice whose features are held at once, about 100 MB

# Of the classifier beside a network that is trained. Where farther surroundings tell much, all of its
# confidence holds the network up: on the nano-tomogram, with two labels, Dice 0.72 after 200 steps,
# where a quarter gave 0.76 after 120.
CONFIDENCE = 0.25

# Those that are tried on validation slices, when weights are to be kept.
CONFIDENCES = (CONFIDENCE, 0.5, 1.0)


def fit_pixel_classifier(
    classifier: PixelClassifier,
    slices: list[Slice],
    config: Config,
    device: torch.device,
    class_count: int = 2,
) -> None:
    """Fit a pixel classifier, in place, to random pixels of labelled slices as they are: no view of them.

    It has few weights, and each of them learns from every pixel, so this takes seconds where a U-Net
    takes minutes.

    Parameters
    ----------
    slices : list of Slice
        With masks; pixels without sample are left out.
    config : Config
        Its `downsample`, `bce_weight` and `seed`, which decides which pixels are drawn.
    class_count : int
        Classes of the masks, with the background.
    """
    generator = torch.Generator().manual_seed(config.seed)
    pixels = min(PIXELS, MOST_PIXELS // len(slices))
    samples = []
    for s, planes in zip(slices, mask_planes(slices, config.downsample, class_count), strict=True):
        if planes is None:
            raise ValueError(f"{s.path}: has no mask to learn from")
        drawn = draw_pixels(s, planes, pixels, config.downsample, generator)
        samples.append(drawn.to(device))
    targets = torch.cat([sample.targets for sample in samples])

    features = torch.cat([sample.features_of(sample.image) for sample in samples])
    features = classifier.of_image.standardise(features)
    fit_layers(classifier.first, features, targets, config, generator)

    around = torch.cat([sample.features_of(first_answer(classifier, sample)) for sample in samples])
    features = torch.cat([features, classifier.of_answer.standardise(around)], dim=1)
    fit_layers(classifier.second, features, targets, config, generator)


@torch.no_grad()
def first_answer(classifier: PixelClassifier, sample: "Pixels") -> torch.Tensor:
    """Return what the classifier says when it has looked once: (1, 1, H, W), or (1, K − 1, H, W)."""
    answers = classifier.of_answer.images
    whole = sample.image.new_empty(1, answers, *sample.image.shape[-2:])
    for tile in tiles_of(sample.image):
        features = classifier.of_image(cut(sample.image, tile.around))
        answer = answer_of(logits_of(classifier.first, features))
        cut(whole, tile.core).copy_(cut(answer, tile.core_in_it))
    return whole


def fit_layers(
    layers: nn.Sequential,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: Config,
    generator: torch.Generator,
) -> None:
    """Fit layers, in place, so that they tell the classes of pixels with features (N, C).

    `targets` are shares of foreground (N,), or of K classes (N, K).
    """
    layers.requires_grad_(True)
    optimizer = torch.optim.AdamW(layers.parameters(), LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (BATCH,), generator=generator).to(features.device)
        logits = layers(features[chosen])  # (N, outputs)
        # All pixels of a step count as one image.
        loss = segmentation_loss(as_image(logits), as_image(targets[chosen]), config.bce_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    layers.requires_grad_(False)


def as_image(of_pixels: torch.Tensor) -> torch.Tensor:
    """Return values of pixels (N, C) as those of an image: (1, C, N, 1)."""
    return of_pixels.T[None, :, :, None]


def steps_of_fit() -> int:
    """Return how many steps a fit takes: it looks twice."""
    return 2 * STEPS


def fitted_network(
    config: Config,
    slices: list[Slice],
    device: torch.device,
    class_count: int = 2,
    has_offset: bool = False,
) -> UNet:
    """Return a network that answers what a pixel classifier says that was fitted to labelled slices.

    All else in it is as random weights have it, and adds nothing. See `UNet` for `has_offset`.
    """
    network = new_network(config, class_count, has_offset).to(device)
    fit_pixel_classifier(classifier_of(network), slices, config, device, class_count)
    for weights in network.head.parameters():
        torch.nn.init.zeros_(weights)
    return network.eval()


def take_classifier(model: UNet, fitted: UNet) -> None:
    """Give a network the pixel classifier of another one, with the confidence that it has in training."""
    classifier_of(model).load_state_dict(classifier_of(fitted).state_dict())
    set_confidence(model, CONFIDENCE)


def classifier_of(model: UNet) -> PixelClassifier:
    """Return the pixel classifier of a network that has one."""
    if model.pixel_classifier is None:
        raise ValueError("this network has no pixel classifier")
    return model.pixel_classifier


def set_confidence(model: UNet, confidence: float) -> None:
    """Set by what the logits of a network's pixel classifier are multiplied."""
    classifier_of(model).confidence.fill_(confidence)


def with_confidence(model: UNet, confidence: float) -> UNet:
    """Return a copy of a network in which the logits of the pixel classifier are multiplied by this."""
    changed = copy.deepcopy(model)
    set_confidence(changed, confidence)
    return changed


@dataclass(frozen=True, eq=False)
class Pixels:
    """Random pixels of a slice.

    Attributes
    ----------
    image : (1, 1, H, W) tensor
        The slice at the network's resolution, in [0, 1]; its last rows and columns are repeated,
        so that sides are multiples of `COARSE`.
    places : (N,) tensor
        Flat indices of the pixels in it.
    targets : (N, 1) or (N, K) tensor
        Their shares of foreground, or of each class.
    """

    image: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Pixels":
        """Return the same on a device."""
        return Pixels(self.image.to(device), self.places.to(device), self.targets.to(device))

    @torch.no_grad()
    def features_of(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features (N, C) of these pixels in an image (1, images, H, W) of the same size."""
        width = image.shape[-1]
        rows, columns = self.places // width, self.places % width
        channels = feature_count(image.shape[1])
        features = torch.empty(len(self.places), channels, device=image.device)
        for tile in tiles_of(image):
            is_here = tile.holds(rows, columns)
            found = pixel_features(cut(image, tile.around))[0]  # (C, h, w)
            top, left = (side.start for side in tile.around)
            features[is_here] = found[:, rows[is_here] - top, columns[is_here] - left].T
        return features


def draw_pixels(
    s: Slice, planes: np.ndarray, pixels: int, downsample: int, generator: torch.Generator
) -> Pixels:
    """Draw so many random pixels of a labelled slice that show sample, at the network's resolution.

    All of them where there are no more. Of a label map they are pixels that are painted.

    Parameters
    ----------
    planes : (H, W, 1) or (H, W, K) uint8 ndarray
        As `datasets.mask_planes` returns them.
    """
    image = torch.from_numpy(reduce_slice(s.image, downsample)).float() / 255
    targets = torch.from_numpy(planes).float() / 255
    is_label_map = planes.shape[2] > 1
    if is_label_map:
        counted = targets.sum(dim=2) > 0
    else:
        counted = torch.from_numpy(reduce_mask(s.inside, downsample)) > 0

    height, width = image.shape
    image = F.pad(image[None, None], (0, -width % COARSE, 0, -height % COARSE), mode="replicate")
    rows, columns = counted.nonzero(as_tuple=True)
    chosen = torch.randperm(len(rows), generator=generator)[:pixels]
    rows, columns = rows[chosen], columns[chosen]
    return Pixels(image, rows * image.shape[-1] + columns, targets[rows, columns])


# --- large slices in parts ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A part of an image, and what lies around it, on which its features depend.

    Attributes
    ----------
    core, around : (slice, slice)
        Rows and columns of the part, and of it with its surroundings, in the image.
    """

    core: tuple[slice, ...]
    around: tuple[slice, ...]

    @property
    def core_in_it(self) -> tuple[slice, ...]:
        """Rows and columns of the part in what it and its surroundings are."""
        inner = []
        for core, around in zip(self.core, self.around, strict=True):
            start = core.start - around.start
            inner.append(slice(start, start + core.stop - core.start))
        return tuple(inner)

    def holds(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return which pixels (N,) lie in the part."""
        of_rows, of_columns = self.core
        in_rows = (rows >= of_rows.start) & (rows < of_rows.stop)
        return in_rows & (columns >= of_columns.start) & (columns < of_columns.stop)


def cut(image: torch.Tensor, place: tuple[slice, ...]) -> torch.Tensor:
    """Return some rows and columns of an image (1, images, H, W), as a view."""
    rows, columns = place
    return image[:, :, rows, columns]


def tiles_of(image: torch.Tensor) -> Iterator[Tile]:
    """Yield the parts of an image (1, images, H, W), with as much around each as features reach."""
    height, width = image.shape[-2:]
    for rows in sections(height):
        for columns in sections(width):
            around = (widened(rows, height), widened(columns, width))
            yield Tile((rows, columns), around)


def sections(length: int) -> Iterator[slice]:
    """Yield the sections of a side, each `TILE` pixels long or, at its end, what is left."""
    for start in range(0, length, TILE):
        yield slice(start, min(start + TILE, length))


def widened(section: slice, length: int) -> slice:
    """Return a section with what features reach on both sides, as far as the image goes."""
    return slice(max(0, section.start - REACH), min(length, section.stop + REACH))
