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

# From this scale on, one pixel of `COARSE` by `COARSE` is kept: images are so smooth there that
# those between can be interpolated.
FIRST_COARSE = 3
COARSE = 4

# Pixels that are farther away change no feature of a pixel; a multiple of `COARSE`.
REACH = 48

HIDDEN = 16  # channels between the features and the logit
SMALLEST_SQUARE = 1e-10  # added under a root: at 0 its slope has no end
PIXELS_IN_CACHE = 8192  # of which a CPU computes all layers, before it turns to others
LEAST_DEVIATION = 1e-4  # added to that of a feature: the faintest have about 1e-3


class PixelClassifier(nn.Module):
    """Logits of single pixels, from grey value, edges and texture around each: (B, 1, H, W) → (B, outputs, H, W).

    It looks twice: at the image, and at image and first answer together, by which it knows what was
    found around a pixel. Auto-context: Tu & Bai, 2010, doi:10.1109/TPAMI.2009.186; ilastik has it,
    too.

    `training.pixel_fit` fits it; while a network is trained beside it, it stays as it is.

    Parameters
    ----------
    outputs : int
        As of the network: 1, or one for each class of several.

    Attributes
    ----------
    of_image, of_answer : FilterBank
        Features of the image, and of the first answer.
    first, second : module
        Layers (N, C) → (N, outputs) from the features of pixels to logits: of the image's alone; of those
        and of the first answer's.
    confidence : () tensor
        By which logits are multiplied. Where a classifier that knows two slices by heart is wrong,
        it is so with confidence, and a network that is added to it has to undo that first.
    """

    confidence: torch.Tensor

    def __init__(self, outputs: int = 1):
        super().__init__()
        # What is not one of the other classes is background, and needs no features of its own.
        answers = max(1, outputs - 1)
        self.of_image = FilterBank()
        self.of_answer = FilterBank(answers)
        self.first = pixel_layers(self.of_image.channels, outputs)
        self.second = pixel_layers(self.of_image.channels + self.of_answer.channels, outputs)
        self.register_buffer("confidence", torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images in [0, 1], whose sides are multiples of `COARSE`."""
        # What is computed of one image fits into a CPU's cache, or nearly; that of a batch does not.
        at_once = 1 if x.device.type == "cpu" else len(x)
        logits = [self.look_twice(images) for images in x.split(at_once)]
        return torch.cat(logits) * self.confidence

    def look_twice(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits with full confidence."""
        features = self.of_image(x)
        answer = answer_of(logits_of(self.first, features))
        features = torch.cat([features, self.of_answer(answer)], dim=1)
        return logits_of(self.second, features)


def pixel_layers(channels: int, outputs: int) -> nn.Sequential:
    """Return layers from the features of pixels (N, `channels`) to logits (N, `outputs`)."""
    return nn.Sequential(
        nn.Linear(channels, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, outputs),
    )


def logits_of(layers: nn.Sequential, features: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, outputs, H, W) of all pixels of features (B, C, H, W)."""
    count, _, height, width = features.shape
    pixels = features.movedim(1, -1).flatten(0, 2)  # (B·H·W, C)
    at_once = PIXELS_IN_CACHE if features.device.type == "cpu" else len(pixels)
    logits = [layers(part) for part in pixels.split(at_once)]
    together = torch.cat(logits)  # (B·H·W, outputs)
    if together.shape[1] == 1:
        return together.reshape(count, 1, height, width)
    return together.reshape(count, height, width, -1).movedim(-1, 1).contiguous()


def answer_of(logits: torch.Tensor) -> torch.Tensor:
    """Return logits as grey values from −1, surely not, to 1, surely: of foreground, or of each class but the first.

    (B, 1, H, W) → (B, 1, H, W), (B, K, H, W) → (B, K − 1, H, W).
    """
    if logits.shape[1] == 1:
        return torch.tanh(logits.float() / 2)
    return 2 * logits.float().softmax(1)[:, 1:] - 1


class FilterBank(nn.Module):
    """Fixed features of each pixel, standardised: (B, images, H, W) → (B, `channels`, H, W) float32.

    The grey value itself; then for each scale, of the grey values smoothed to it, their mean, their
    standard deviation around it (texture), the size of the gradient (edges), and the largest and
    the smallest curvature, which are large in thin bright or dark things and in spots. They turn
    with the image by quarters, and are flipped with it, but do not change otherwise.

    Nothing here is trained. Features are brought to mean 0 and variance 1 of the pixels that
    `standardise` was given.

    H and W are multiples of `COARSE`.

    Parameters
    ----------
    images : int
        Channels of which each has all these features.
    """

    def __init__(self, images: int = 1):
        super().__init__()
        self.images = images
        self.channels = feature_count(images)
        self.register_buffer("mean", torch.zeros(self.channels, 1, 1))
        self.register_buffer("deviation", torch.ones(self.channels, 1, 1))

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Learn mean and deviation of the features (N, `channels`) of some pixels, and return them standardised."""
        deviation, mean = torch.std_mean(features, dim=0)
        deviation += LEAST_DEVIATION
        self.mean.copy_(mean[:, None, None])
        self.deviation.copy_(deviation[:, None, None])
        return (features - mean) / deviation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of images."""
        # Differences of grey values, and of their squares, need all the digits that there are.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return pixel_features(x.float()).sub_(self.mean).div_(self.deviation)


def feature_count(images: int = 1) -> int:
    """Return how many features `pixel_features` gives of so many images."""
    return images * (1 + SCALES * len(KINDS))


def pixel_features(x: torch.Tensor) -> torch.Tensor:
    """Return the features of `FilterBank` before they are standardised: (B, images, H, W) → (B, channels, H, W).

    Each scale is smoothed from the one before with the same few weights, twice as far apart
    (Holschneider et al., 1990, doi:10.1007/978-3-642-75988-8_28).
    """
    if x.shape[1] > 1:
        return torch.cat([pixel_features(image) for image in x.split(1, dim=1)], dim=1)

    features = [x]
    mean, mean_square = x, x.square()
    for scale in range(SCALES):
        gap = 2**scale
        if scale == FIRST_COARSE:
            mean, mean_square = F.avg_pool2d(mean, COARSE), F.avg_pool2d(mean_square, COARSE)
        if scale >= FIRST_COARSE:
            gap //= COARSE
        mean, mean_square = smooth(mean, gap), smooth(mean_square, gap)
        variance = (mean_square - mean.square()).clamp_min(0)
        deviation = (variance + SMALLEST_SQUARE).sqrt()
        of_scale = torch.cat([mean, deviation, *edges_and_curvatures(mean)], dim=1)
        if scale >= FIRST_COARSE:
            of_scale = F.interpolate(
                of_scale, size=x.shape[-2:], mode="bilinear", align_corners=False
            )
        features.append(of_scale)

    return torch.cat(features, dim=1)


def smooth(x: torch.Tensor, gap: int) -> torch.Tensor:
    """Return an image smoothed with (¼, ½, ¼), `gap` pixels apart, along rows and columns.

    Its border is repeated outside.
    """
    middle = slice(gap, -gap)
    before, after = slice(None, -2 * gap), slice(2 * gap, None)
    x = F.pad(x, (gap, gap, gap, gap), mode="replicate")
    x = 0.25 * x[..., before, :] + 0.5 * x[..., middle, :] + 0.25 * x[..., after, :]
    return 0.25 * x[..., before] + 0.5 * x[..., middle] + 0.25 * x[..., after]


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
