"""A small network that classifies each pixel by what a random forest would look at.

Pixel classifiers such as ilastik's (Berg et al., 2019, doi:10.1038/s41592-019-0582-9) know after
seconds what a U-Net has to find out first: which grey values, edges and textures are foreground.
Here such features are a layer, and a few weights that read them give the U-Net's answer a start.
"""

import torch
from torch import nn
from torch.nn import functional as F

# Each scale is twice as coarse as the one before: smoothing with σ of 0.7, 1.7, 3.4, 6.9 and 14 px.
SCALES = 5
KINDS = ("mean", "deviation", "gradient", "largest curvature", "smallest curvature")

# Sides of an image are multiples of this: the coarsest scale has so many pixels for one of its own.
STRIDE = 2 ** (SCALES - 1)

HIDDEN = 16  # channels between the features and the logit
SMALLEST_SQUARE = 1e-10  # added under a root: at 0 its slope has no end
LEAST_VARIANCE = 1e-8  # added to that of a feature: those of faint coarse things are about 1e-5


class PixelClassifier(nn.Sequential):
    """Logits of single pixels, from grey value, edges and texture around each: (B, 1, H, W) → (B, 1, H, W)."""

    def __init__(self):
        super().__init__(
            FilterBank(),
            nn.Conv2d(FilterBank.channels, HIDDEN, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(HIDDEN, HIDDEN, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(HIDDEN, 1, 1),
        )


class FilterBank(nn.Module):
    """Fixed features of each pixel, standardised: (B, 1, H, W) → (B, `channels`, H, W) float32.

    The grey value itself; then for each scale, of the grey values smoothed to it, their mean, their
    standard deviation around it (texture), the size of the gradient (edges), and the largest and
    the smallest curvature, which are large in thin bright or dark things and in spots. They turn
    with the image by quarters, and are flipped with it, but do not change otherwise.

    Nothing here is trained. Features are brought to mean 0 and variance 1, as far as all batches of
    training are concerned together: what has been seen so far decides, in training as in
    evaluation, so that a feature means the same in every batch.

    H and W are multiples of `STRIDE`.
    """

    channels = 1 + SCALES * len(KINDS)

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.tensor(0))  # that have been seen
        self.register_buffer("mean", torch.zeros(self.channels, 1, 1))
        self.register_buffer("mean_square", torch.ones(self.channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of images in [0, 1]."""
        # Differences of grey values, and of their squares, need all the digits that there are.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            features = pixel_features(x.float())
            if self.training:
                self._see(features)
            variance = (self.mean_square - self.mean.square()).clamp_min(0)
            return (features - self.mean) * (variance + LEAST_VARIANCE).rsqrt()

    def _see(self, features: torch.Tensor) -> None:
        """Let a batch count in the means, as much as every other."""
        self.batches += 1
        of_batch = features.mean((0, 2, 3))[:, None, None]
        squares_of_batch = features.square().mean((0, 2, 3))[:, None, None]
        self.mean.lerp_(of_batch, 1 / self.batches)
        self.mean_square.lerp_(squares_of_batch, 1 / self.batches)


def pixel_features(x: torch.Tensor) -> torch.Tensor:
    """Return the features of `FilterBank` before they are standardised.

    Scales are the levels of a pyramid of images, each with half as many pixels along a side (Burt &
    Adelson, 1983, doi:10.1109/TCOM.1983.1095851): coarse ones cost next to nothing.
    """
    features = [x]
    mean, mean_square = x, x.square()
    for scale in range(SCALES):
        if scale > 0:
            mean, mean_square = F.avg_pool2d(mean, 2), F.avg_pool2d(mean_square, 2)
        mean, mean_square = smooth(mean), smooth(mean_square)
        variance = (mean_square - mean.square()).clamp_min(0)
        deviation = (variance + SMALLEST_SQUARE).sqrt()
        of_scale = torch.cat([mean, deviation, *edges_and_curvatures(mean)], dim=1)
        if scale > 0:
            of_scale = F.interpolate(
                of_scale, size=x.shape[-2:], mode="bilinear", align_corners=False
            )
        features.append(of_scale)

    return torch.cat(features, dim=1)


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Return an image smoothed with (¼, ½, ¼) along rows and columns; its border is repeated outside."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = 0.25 * x[..., :-2, :] + 0.5 * x[..., 1:-1, :] + 0.25 * x[..., 2:, :]
    return 0.25 * x[..., :-2] + 0.5 * x[..., 1:-1] + 0.25 * x[..., 2:]


def edges_and_curvatures(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the size of an image's gradient, and its largest and its smallest curvature.

    Curvatures are the eigenvalues of the Hessian: the second derivatives along the two directions
    in which grey values bend most and least.
    """
    around = F.pad(x, (1, 1, 1, 1), mode="replicate")
    above, below = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    down_right = around[..., :-2, :-2] + around[..., 2:, 2:]
    down_left = around[..., :-2, 2:] + around[..., 2:, :-2]

    slope_along_rows = (right - left) / 2
    slope_along_columns = (below - above) / 2
    square = slope_along_rows.square() + slope_along_columns.square()
    gradient = (square + SMALLEST_SQUARE).sqrt()

    bend_along_rows = right + left - 2 * x
    bend_along_columns = below + above - 2 * x
    twist = (down_right - down_left) / 4
    middle = (bend_along_rows + bend_along_columns) / 2
    half_difference = (bend_along_rows - bend_along_columns) / 2
    reach = (half_difference.square() + twist.square()).sqrt()
    return gradient, middle + reach, middle - reach
