"""Before a network is trained: fit its pixel classifier to random pixels of the painted slices, in seconds."""

import copy

import torch
from torch.nn import functional as F

from config import Config
from datasets import reduce_mask
from losses import soft_dice_loss
from model_unet import UNet
from pixel_classifier import COARSE, PixelClassifier, pixel_features
from slices.reading import Slice, reduce_slice

PIXELS = 200_000  # of a slice, to which the classifier is fitted
STEPS = 1500
BATCH = 4096  # pixels
LR = 5e-3  # at its peak
WEIGHT_DECAY = 1e-4

# Of the classifier beside a network. With all of its confidence the network learned half as fast
# where surroundings tell more than pixels, with none a third slower where they do not.
CONFIDENCE = 0.25


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
    features, targets = draw_pixels(slices, config.downsample, generator)
    features, targets = features.to(device), targets.to(device)

    bank, layers = classifier.features, classifier.layers
    bank.standardise(features)
    features = (features - bank.mean.flatten()) / bank.deviation.flatten()

    layers.requires_grad_(True)
    optimizer = torch.optim.AdamW(layers.parameters(), LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (BATCH,), generator=generator).to(device)
        logits = layers(features[chosen])[:, 0]
        target = targets[chosen]
        bce = F.binary_cross_entropy_with_logits(logits, target)
        dice = soft_dice_loss(logits[None, None, :, None], target[None, None, :, None])
        loss = config.bce_weight * bce + (1 - config.bce_weight) * dice
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    layers.requires_grad_(False)


def start_with_classifier(student: UNet, slices: list[Slice], config: Config) -> None:
    """Fit the classifier of a network that has not been trained, and turn its confidence down for training."""
    classifier = student.pixel_classifier
    fit_pixel_classifier(classifier, slices, config, student.head.weight.device)
    classifier.confidence.fill_(CONFIDENCE)


def classifier_alone(student: UNet) -> UNet:
    """Return a network of the same kind that answers what the classifier says, with its full confidence."""
    alone = copy.deepcopy(student)
    torch.nn.init.zeros_(alone.head.weight)
    torch.nn.init.zeros_(alone.head.bias)
    alone.pixel_classifier.confidence.fill_(1.0)
    return alone.eval()


def draw_pixels(
    slices: list[Slice], downsample: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features (N, C) of random pixels that show sample, and their shares of foreground (N,)."""
    features, targets = [], []
    for s in slices:
        image = torch.from_numpy(reduce_slice(s.image, downsample)).float() / 255
        mask = torch.from_numpy(reduce_mask(s.mask, downsample)).float() / 255
        inside = torch.from_numpy(reduce_mask(s.inside, downsample)) > 0
        height, width = image.shape
        below, beside = -height % COARSE, -width % COARSE
        padded = F.pad(image[None, None], (0, beside, 0, below), mode="replicate")
        of_slice = pixel_features(padded)[0, :, :height, :width]

        places = inside.flatten().nonzero()[:, 0]
        chosen = places[torch.randperm(len(places), generator=generator)[:PIXELS]]
        features.append(of_slice.flatten(1)[:, chosen].T)
        targets.append(mask.flatten()[chosen])

    return torch.cat(features), torch.cat(targets)
