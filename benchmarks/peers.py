"""The same work the usual way: a plain training loop and its data set, windows one by one, MONAI, and others' networks.

Written for `speed.py` alone. What is measured against is what a careful researcher writes without thinking of speed:
float32, every sample read and normalised anew, geometry replayed for the second view, labelled and unlabelled batch one
after the other, the loss read in every step, weights averaged one by one. Views, losses and random numbers are those of
this project, so that the losses can be compared, too. They keep freed memory as this project does (`choose_device`),
and all but the plain loop compute in its precision.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import nn
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config  # noqa: E402 - after the path
from datasets import crop_corner, view_options  # noqa: E402
from losses import bce_dice_loss, consistency_loss  # noqa: E402
from model_unet import NormReLU, UNet, freeze  # noqa: E402
from runtime.devices import autocast, choose_device  # noqa: E402
from runtime.loaders import Draws, LoaderOptions, to_float  # noqa: E402
from slices.options import IMAGES, MASKS, UNLABELLED  # noqa: E402
from slices.pairing import pair_files  # noqa: E402
from slices.reading import crop_roi, cut_window, list_files, read_image  # noqa: E402
from slices.windows import percentile_window  # noqa: E402
from utils import seed_everything, windows_at_once  # noqa: E402
from views import build_geometry, build_intensity, seed_apart  # noqa: E402

Repeat = Callable[[], np.ndarray]


# --- loading --------------------------------------------------------------------------------------------------


class PlainViews(Dataset):
    """Weak view, strong view and mask of a random crop, from the file on: `views[index, seed]`."""

    def __init__(self, config: Config, files: list[tuple[Path, Path | None]]):
        self.config, self.files = config, files
        self.margin = view_options(config).margin
        self.geometry = build_geometry(config.geometry)
        self.intensity = build_intensity(config.intensity)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """One sample, float32."""
        (image_file, mask_file), seed, size = self.files[key[0]], key[1], self.config.patch_size
        raw = read_image(image_file)
        image = percentile_window(
            raw if mask_file else crop_roi(raw, self.config.roi), self.config.percentiles
        )
        mask = np.zeros_like(image)
        if mask_file:  # painted dark, as the demo is
            painted = read_image(mask_file)
            mask = (painted <= threshold_otsu(painted)).astype(np.uint8)
        top, left = crop_corner(
            np.flatnonzero(mask), size, image.shape, np.random.default_rng(seed)
        )
        margin = min(self.margin, max(0, max(image.shape) - size))
        window = top - margin, left - margin, size + 2 * margin
        image, mask = cut_window(image, *window).copy(), cut_window(mask, *window).copy()
        rng = np.random.default_rng([seed, 1])
        seed_apart(self.geometry, rng)
        recorded = self.geometry(image=image)
        replayed = A.ReplayCompose.replay(recorded["replay"], image=image, mask=mask)
        inner = slice(margin, margin + size)
        seed_apart(self.intensity, rng)
        strong = self.intensity(image=np.ascontiguousarray(replayed["image"][inner, inner]))[
            "image"
        ]
        mask = 255 * replayed["mask"][inner, inner]
        result = {"weak": recorded["image"][inner, inner], "strong": strong, "mask": mask}
        return {
            name: to_float(torch.from_numpy(np.ascontiguousarray(array)[None]))
            for name, array in result.items()
        }


def plain_batches(
    config: Config, part: str, workers: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of the "labelled" or "unlabelled" files of a data folder, each sample read from disk."""
    root = Path(config.data)
    if part == "labelled":
        files = list(
            pair_files(
                list_files(root / IMAGES), list_files(root / MASKS, (".tif",))
            ).mask_of.items()
        )
    else:
        files = [(path, None) for path in list_files(root / UNLABELLED)]
    draws = Draws(len(files), LoaderOptions(1, [config.seed, *part.encode()]))
    for batch in DataLoader(
        PlainViews(config, files), config.batch_size, sampler=draws, num_workers=workers
    ):
        yield {name: tensor.to(device) for name, tensor in batch.items()}


# --- training -------------------------------------------------------------------------------------------------


def plain_unet(model: UNet) -> UNet:
    """The same network from PyTorch's own layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NormReLU):
            block = model.get_submodule(name.rpartition(".")[0])
            block[int(name.rpartition(".")[2])] = nn.Sequential(
                nn.InstanceNorm2d(block[0].out_channels), nn.ReLU()
            )  # in place it is slower: the norm is a view
    return model


def plain_step(
    config: Config, labelled: Iterator, unlabelled: Iterator | None, steps: int
) -> Repeat:
    """`steps` steps of the plain loop: supervised, or Mean Teacher with `unlabelled` batches; their mean losses."""
    device = choose_device(config.device)
    seed_everything(config.seed)
    student = plain_unet(UNet(config.base_channels)).to(device)
    teacher = copy.deepcopy(student).eval()
    if unlabelled:
        freeze(student, config.freeze)
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad],
        lr=config.lr,
        weight_decay=config.weight_decay,
    )

    def one() -> tuple[float, float]:
        student.train()
        batch, consistency = next(labelled), 0.0
        supervised = loss = bce_dice_loss(
            student(batch["strong"]), batch["mask"], config.bce_weight
        )
        if unlabelled:
            other = next(unlabelled)
            with torch.no_grad():
                target = teacher(other["weak"]).sigmoid()
            consistency = consistency_loss(student(other["strong"]), target)
            loss = loss + config.consistency_weight * consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if unlabelled:
            with torch.no_grad():
                for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                    t.mul_(config.ema_alpha).add_(s, alpha=1 - config.ema_alpha)
        return supervised.item(), consistency.item() if unlabelled else 0.0

    return lambda: np.mean([one() for _ in range(steps)], axis=0)


def network_step(model: nn.Module, config: Config, labelled: Iterator, steps: int) -> Repeat:
    """`steps` supervised steps of another network, otherwise like the plain loop; their mean loss."""
    device = choose_device(config.device)
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )

    def one() -> float:
        batch = next(labelled)
        with autocast(device):
            loss = bce_dice_loss(model(batch["strong"]), batch["mask"], config.bce_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return lambda: np.array([np.mean([one() for _ in range(steps)]), 0.0])


def monai_unet(base_channels: int) -> nn.Module:
    """MONAI's U-Net with the same channels at every level (transposed convolutions and LeakyReLU, as it comes)."""
    from monai.networks.nets import BasicUNet  # where it runs alone: the import takes seconds

    c = base_channels
    return BasicUNet(2, 1, 1, (c, 2 * c, 4 * c, 8 * c, 16 * c, c))


def smp_unet() -> nn.Module:
    """segmentation_models_pytorch's U-Net with its default encoder, not pretrained."""
    import segmentation_models_pytorch as smp  # only `make bench` installs it

    return smp.Unet("resnet34", encoder_weights=None, in_channels=1, classes=1)


# --- predicting -----------------------------------------------------------------------------------------------


def one_window_at_a_time(
    model: nn.Module, image: np.ndarray, device: torch.device, patch_size: int, overlap: float
) -> np.ndarray:
    """(H, W) probability: each window sent to the device, predicted, fetched and added up in NumPy."""
    stride = int(patch_size * (1 - overlap))
    starts = [
        sorted({*range(0, length - patch_size, stride), length - patch_size})
        for length in image.shape
    ]
    side = (np.arange(patch_size) - (patch_size - 1) / 2) / (patch_size / 8)
    weights = np.maximum(np.exp(-0.5 * (side[:, None] ** 2 + side[None] ** 2)), 1e-3)
    total, weight = np.zeros(image.shape), np.zeros(image.shape)
    for top in starts[0]:
        for left in starts[1]:
            window = slice(top, top + patch_size), slice(left, left + patch_size)
            with torch.no_grad(), autocast(device):
                x = torch.from_numpy(image[window].astype(np.float32) / 255)[None, None].to(device)
                total[window] += weights * model(x).float().sigmoid()[0, 0].cpu().numpy()
            weight[window] += weights
    return total / weight


def monai_windows(
    model: nn.Module, image: np.ndarray, device: torch.device, patch_size: int, overlap: float
) -> np.ndarray:
    """(H, W) probability by MONAI's sliding windows, as many at a time as this project takes."""
    from monai.inferers import sliding_window_inference

    with torch.no_grad(), autocast(device):
        x = torch.from_numpy(image)[None, None].to(device).float() / 255
        return (
            sliding_window_inference(
                x,
                (patch_size, patch_size),
                windows_at_once(model, patch_size, device),
                lambda w: model(w).float().sigmoid(),
                overlap=overlap,
                mode="gaussian",
                sigma_scale=0.125,
            )[0, 0]
            .cpu()
            .numpy()
        )
