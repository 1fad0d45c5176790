"""The U-Net: 2-D, one grey channel in, one foreground logit out, or one logit per class.

Ronneberger, Fischer & Brox, "U-Net", 2015, arXiv:1505.04597, with zero padding instead of valid
convolutions (output and input have the same size), InstanceNorm (Ulyanov et al., arXiv:1607.08022)
instead of none, and bilinear upsampling instead of transposed convolution.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pixel_classifier import PixelClassifier

ENCODER_BLOCKS = (
    "down1",
    "down2",
    "down3",
    "down4",
    "bottleneck",
)  # from fine to coarse; any may be frozen
CHANNELS = (1, 2, 4, 8, 16)  # of their results, as multiples of the width
EPSILON = 1e-5  # added to a variance
STRIDE = 16  # four poolings: height and width of an input are multiples of this


class NormReLU(nn.Module):
    """InstanceNorm without weights, then ReLU, by the way that is fastest where the tensor is. Keeps the shape.

    On a CPU `group_norm` with a group per channel gives the numbers of `instance_norm` sooner.
    Where no gradient is needed, channels last makes the convolutions faster too
    (`benchmarks/speed.py` measures both), but not with `group_norm`, which in that format loses
    digits of the variance in a sum of squares over so many pixels. There it may write into its
    input, which is a convolution's result that nobody else reads.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        if x.device.type != "cpu":
            return F.relu(
                F.instance_norm(x, eps=EPSILON)
            )  # not in place: it is a view, and autograd would copy it

        if x.requires_grad:
            return F.relu_(
                F.group_norm(x.contiguous(), x.shape[1], eps=EPSILON)
            )  # its backward wants channels first

        x = x.float().contiguous(memory_format=torch.channels_last)
        x.sub_(x.mean((2, 3), keepdim=True))
        variance = x.square().mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x.mul_((variance + EPSILON).rsqrt_()).relu_()


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each followed by InstanceNorm and ReLU. (B, Cin, H, W) → (B, Cout, H, W).

    The convolutions have no bias: InstanceNorm subtracts the mean of each channel and with it any
    bias. `first` is the kind of the first of them.
    """

    def __init__(self, channels_in: int, channels_out: int, first: type[nn.Conv2d] = nn.Conv2d):
        super().__init__(
            first(channels_in, channels_out, 3, padding=1, bias=False),
            NormReLU(),
            nn.Identity(),  # so that the second convolution is number 3, as in checkpoints of earlier versions
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            NormReLU(),
        )


class FirstConv(nn.Conv2d):
    """The convolution that sees grey values: always in float32, its result in the precision of the others.

    Above ½ the numbers that bfloat16 knows are 1/256 apart, and 8-bit grey values k/255 hardly
    more: with autocast each bright pixel would be moved by up to half a grey level before anything
    has looked at it, where a faint particle has a contrast of a few. With one channel in, this
    convolution is a thousandth of the arithmetic.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) float32 → (B, C, H, W), float32 or what autocast computes in."""
        kind = x.device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            y = super().forward(x.float())
        return y.to(torch.get_autocast_dtype(kind))


class UNet(nn.Module):
    """U-Net with channels 1, 2, 4, 8, 16 × `base_channels` from the finest to the coarsest level.

    With `base_channels=64` it has 31.45 M parameters and needs 120.9 GFLOP for one 256×256 image. A
    last DoubleConv at full resolution (`refine`) sharpens outlines before the 1×1 head.

    With `downsample=k` the network works on means of k×k pixels: it sees k times as far, and costs
    1/k². By default it makes these means itself and interpolates its logits back, so that windows
    and masks stay in the pixels of the slice. In training, slices are reduced to such means before
    views are made of them (`datasets.Views`), and `forward(…, reduced=True)` leaves both out.

    With `unshuffle=k` the first convolution sees the pixels of a k×k block as k² channels, and the
    head gives its logits for each of them (Shi et al., 2016, arXiv:1609.05158). That costs 1/k², too,
    and loses no pixel, but noise is not averaged.

    With `pixel_classifier` the logits of a small network that classifies each pixel by features of
    several scales are added. It is fitted before, within seconds, and frozen; the U-Net has to learn
    only what these features do not tell.

    Parameters
    ----------
    base_channels : int
        Channels at the finest level. Cost grows with its square.
    downsample : int
        Side of the pixel blocks that are averaged first. Kept with the weights.
    unshuffle : int
        Side of the blocks that become channels, in pixels after that.
    pixel_classifier : bool
    outputs : int
        Logits of a pixel: 1 of foreground, or one for each class of several.
    has_offset : bool
        Whether a constant is added to each logit, which no training changes: it says how much rarer
        classes are than in the paint that was learned from (`training.class_fractions`).

    Raises
    ------
    ValueError
        In `forward`, when height or width (after downsampling, in blocks that become channels) is
        not a multiple of 16 or both are 16 (InstanceNorm at the coarsest level needs more than one
        pixel).
    """

    def __init__(
        self,
        base_channels: int = 64,
        downsample: int = 1,
        unshuffle: int = 1,
        pixel_classifier: bool = False,
        outputs: int = 1,
        has_offset: bool = False,
    ):
        super().__init__()
        c = base_channels
        if downsample > 1:  # weights without it are those of the plain network
            self.register_buffer("downsample", torch.tensor(downsample))
        self.factor = downsample
        self.unshuffle = unshuffle
        self.outputs = outputs
        self.frozen: tuple[str, ...] = ()
        self.down1 = DoubleConv(unshuffle**2, c, FirstConv)
        self.down2 = DoubleConv(c, 2 * c)
        self.down3 = DoubleConv(2 * c, 4 * c)
        self.down4 = DoubleConv(4 * c, 8 * c)
        self.bottleneck = DoubleConv(8 * c, 16 * c)
        self.up4 = DoubleConv(16 * c + 8 * c, 8 * c)
        self.up3 = DoubleConv(8 * c + 4 * c, 4 * c)
        self.up2 = DoubleConv(4 * c + 2 * c, 2 * c)
        self.up1 = DoubleConv(2 * c + c, c)
        self.refine = DoubleConv(c, c)
        self.head = nn.Conv2d(c, outputs * unshuffle**2, 1)
        self.pixel_classifier = None
        if pixel_classifier:
            self.pixel_classifier = PixelClassifier(outputs).requires_grad_(False)
        # Weights without it are those of networks that learned from all pixels.
        self.class_offset: torch.Tensor | None
        self.register_buffer("class_offset", torch.zeros(outputs) if has_offset else None)

    def train(self, mode: bool = True) -> "UNet":
        """Set the mode of training, in which frozen blocks stay in that of evaluation."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    @classmethod
    def from_weights(cls, weights: dict[str, torch.Tensor]) -> "UNet":
        """Model in eval mode from a state dict, off whose shapes its width and kind are read.

        Raises
        ------
        ValueError
            When the weights are not those of this network.
        """
        try:
            width, factor = len(weights["down1.0.weight"]), int(weights.get("downsample", 1))
            unshuffle = math.isqrt(weights["down1.0.weight"].shape[1])
            if not (1 <= width <= 1024 and 1 <= factor <= 16 and 1 <= unshuffle <= 16):
                raise KeyError(f"width {width}, downsample {factor}, unshuffle {unshuffle}")
            outputs = max(1, len(weights["head.weight"]) // unshuffle**2)
            has_classifier = any(name.startswith("pixel_classifier.") for name in weights)
            has_offset = "class_offset" in weights
            model = cls(width, factor, unshuffle, has_classifier, outputs, has_offset)
            model.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"not the weights of this U-Net: {str(error).splitlines()[0]}"
            ) from None

        return model.eval()

    def forward(
        self,
        x: torch.Tensor,
        perturb: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None = None,
        reduced: bool = False,
    ) -> torch.Tensor:
        """Return the logits (B, `outputs`, H, W) of images (B, 1, H, W) in [0, 1].

        With `reduced` the images are means of `downsample`² pixels already, and so are meant the
        logits.
        """
        stride = STRIDE * self.unshuffle
        if not reduced:
            stride *= self.factor
        height, width = x.shape[-2:]
        if height % stride or width % stride or height * width <= stride * stride:
            raise ValueError(
                f"input is {height}×{width}; sides must be multiples of {stride}, and not both {stride}"
            )

        if self.factor > 1 and not reduced:
            x = F.avg_pool2d(x, self.factor)
        features = self.encode(x)
        if perturb is not None:
            features = perturb(features)
        logits = self.decode(features)
        if self.pixel_classifier is not None:
            logits = logits + self.pixel_classifier(x)
        if self.class_offset is not None:
            logits = logits + self.class_offset[None, :, None, None]
        if self.factor > 1 and not reduced:
            logits = F.interpolate(
                logits, scale_factor=self.factor, mode="bilinear", align_corners=False
            )

        return logits

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of every level, from (B, c, H, W) to (B, 16c, H/16, W/16).

        Of (B, 1, H, W) images at the network's resolution; H and W are counted in blocks where
        these become channels.
        """
        x = F.pixel_unshuffle(x, self.unshuffle)  # (B, k², H, W)
        x1 = self.down1(x)  # (B,  c, H, W)
        x2 = self.down2(F.max_pool2d(x1, 2))  # (B, 2c, H/2, W/2)
        x3 = self.down3(F.max_pool2d(x2, 2))  # (B, 4c, H/4, W/4)
        x4 = self.down4(F.max_pool2d(x3, 2))  # (B, 8c, H/8, W/8)
        x5 = self.bottleneck(F.max_pool2d(x4, 2))  # (B, 16c, H/16, W/16)
        return [x1, x2, x3, x4, x5]

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits of what `encode` gave, perturbed or not, at the network's resolution."""
        x1, x2, x3, x4, x5 = features
        y = self.up4(_upsample_and_concatenate(x5, x4))  # (B, 8c, H/8, W/8)
        y = self.up3(_upsample_and_concatenate(y, x3))  # (B, 4c, H/4, W/4)
        y = self.up2(_upsample_and_concatenate(y, x2))  # (B, 2c, H/2, W/2)
        y = self.up1(_upsample_and_concatenate(y, x1))  # (B,  c, H, W)
        y = self.head(self.refine(y))  # (B, outputs·k², H, W)
        return F.pixel_shuffle(y, self.unshuffle)  # (B, outputs, k·H, k·W)


def _upsample_and_concatenate(coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """(B, C1, H/2, W/2) and (B, C2, H, W) → (B, C1 + C2, H, W), in the precision of `skip`.

    Autocast interpolates in float32; joined as that, both halves would be, and the next convolution
    would have to round twice as many numbers, of twice the size.
    """
    fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.cat([skip, fine.to(skip.dtype)], dim=1)


def freeze(model: UNet, blocks: tuple[str, ...]) -> None:
    """Freeze encoder blocks in place: no gradients, and `eval()` for good.

    Build the optimizer from parameters with `requires_grad` afterwards: weight decay moves frozen
    ones, too.

    Raises
    ------
    ValueError
        For a name that is not in `ENCODER_BLOCKS`.
    """
    for name in blocks:
        if name not in ENCODER_BLOCKS:
            choices = ", ".join(ENCODER_BLOCKS)
            raise ValueError(f"no encoder block {name!r}; choose from {choices}")

    for name in blocks:
        getattr(model, name).requires_grad_(False)
    model.frozen = (*model.frozen, *blocks)
    model.train(model.training)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, alpha: float) -> None:
    """Move the teacher: teacher ← α·teacher + (1 − α)·student, in place.

    For weights and buffers; integer buffers are copied. Tarvainen & Valpola, 2017,
    arXiv:1703.01780, section 2.
    """
    averaged: list[torch.Tensor] = []
    averaged_from: list[torch.Tensor] = []
    of_student = student.state_dict().values()
    for target, source in zip(teacher.state_dict().values(), of_student, strict=True):
        if target.is_floating_point():
            averaged.append(target)
            averaged_from.append(source)
        else:
            target.copy_(source)

    # All tensors at once: one kernel instead of one for each.
    if averaged:
        move = get_ema_multi_avg_fn(alpha)
        move(averaged, averaged_from, None)
