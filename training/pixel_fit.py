"""Before a network is trained: fit its pixel classifier to random pixels of the painted slices, in seconds."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from datasets import reduce_mask
from losses import bce_dice_loss
from model_unet import UNet
from pixel_classifier import COARSE, PixelClassifier, answer_of, logits_of, pixel_features
from slices.reading import Slice, reduce_slice

PIXELS = 200_000  # of a slice, to which the classifier is fitted
MOST_PIXELS = 2_000_000  # of all slices: their features take 400 MB
STEPS = 1500
BATCH = 4096  # pixels
LR = 5e-3  # at its peak
WEIGHT_DECAY = 1e-4

# Of the classifier beside a network that is trained. Where farther surroundings tell much, all of its
# confidence holds the network up: on the nano-tomogram, with two labels, Dice 0.72 after 200 steps,
# where a quarter gave 0.76 after 120.
CONFIDENCE = 0.25

# Those that are tried on validation slices, when weights are to be kept.
CONFIDENCES = (CONFIDENCE, 0.5, 1.0)


def fit_pixel_classifier(
    classifier: PixelClassifier, slices: list[Slice], config: Config, device: torch.device
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
    """
    generator = torch.Generator().manual_seed(config.seed)
    pixels = min(PIXELS, MOST_PIXELS // len(slices))
    samples = [draw_pixels(s, pixels, config.downsample, generator).to(device) for s in slices]
    targets = torch.cat([sample.targets for sample in samples])

    features = torch.cat([sample.features_of(sample.image) for sample in samples])
    features = classifier.of_image.standardise(features)
    fit_layers(classifier.first, features, targets, config, generator)

    around = torch.cat([sample.features_of(first_answer(classifier, sample)) for sample in samples])
    features = torch.cat([features, classifier.of_answer.standardise(around)], dim=1)
    fit_layers(classifier.second, features, targets, config, generator)


@torch.no_grad()
def first_answer(classifier: PixelClassifier, sample: "Pixels") -> torch.Tensor:
    """Return what the classifier says when it has looked once: (1, 1, H, W)."""
    return answer_of(logits_of(classifier.first, classifier.of_image(sample.image)))


def fit_layers(
    layers: nn.Sequential,
    features: torch.Tensor,
    targets: torch.Tensor,
    config: Config,
    generator: torch.Generator,
) -> None:
    """Fit layers, in place, so that they tell the shares of foreground (N,) of pixels with features (N, C)."""
    layers.requires_grad_(True)
    optimizer = torch.optim.AdamW(layers.parameters(), LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (BATCH,), generator=generator).to(features.device)
        logits = layers(features[chosen])
        # All pixels of a step count as one image.
        loss = bce_dice_loss(
            logits[None, None], targets[chosen][None, None, :, None], config.bce_weight
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    layers.requires_grad_(False)


def start_with_classifier(student: UNet, slices: list[Slice], config: Config) -> None:
    """Fit the classifier of a network that has not been trained, and turn its confidence down for training."""
    device = student.head.weight.device
    fit_pixel_classifier(classifier_of(student), slices, config, device)
    set_confidence(student, CONFIDENCE)


def classifier_of(model: UNet) -> PixelClassifier:
    """Return the pixel classifier of a network that has one."""
    if model.pixel_classifier is None:
        raise ValueError("this network has no pixel classifier")
    return model.pixel_classifier


def set_confidence(model: UNet, confidence: float) -> None:
    """Set by what the logits of a network's pixel classifier are multiplied."""
    classifier_of(model).confidence.fill_(confidence)


def classifier_alone(student: UNet) -> UNet:
    """Return a network of the same kind that answers what the classifier says, with its full confidence."""
    alone = copy.deepcopy(student)
    for weights in alone.head.parameters():
        torch.nn.init.zeros_(weights)
    set_confidence(alone, 1.0)
    return alone.eval()


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
    targets : (N,) tensor
        Their shares of foreground.
    """

    image: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Pixels":
        """Return the same on a device."""
        return Pixels(self.image.to(device), self.places.to(device), self.targets.to(device))

    @torch.no_grad()
    def features_of(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features (N, C) of these pixels in an image of the same size."""
        return pixel_features(image)[0].flatten(1)[:, self.places].T


def draw_pixels(s: Slice, pixels: int, downsample: int, generator: torch.Generator) -> Pixels:
    """Draw so many random pixels of a labelled slice that show sample, at the network's resolution.

    All of them where there are no more.
    """
    image = torch.from_numpy(reduce_slice(s.image, downsample)).float() / 255
    mask = torch.from_numpy(reduce_mask(s.mask, downsample)).float() / 255
    inside = torch.from_numpy(reduce_mask(s.inside, downsample)) > 0

    height, width = image.shape
    image = F.pad(image[None, None], (0, -width % COARSE, 0, -height % COARSE), mode="replicate")
    rows, columns = inside.nonzero(as_tuple=True)
    chosen = torch.randperm(len(rows), generator=generator)[:pixels]
    rows, columns = rows[chosen], columns[chosen]
    return Pixels(image, rows * image.shape[-1] + columns, mask[rows, columns])
