"""Weak and strong views of a crop: the geometry that they share, and what makes a strong view strong.

All that depends on albumentations (2.0.8, the last release under the MIT licence) stands here.
Three of its habits shape this module:

- Its random state repeats in every epoch when workers are used, so each draw seeds it anew.
- A Compose gives all of its transforms one seed: a flipped crop would always be a blurred one. So
  each transform is seeded apart.
- Its crops know nothing of foreground, and its padding nothing of the pixels around a crop. So
  `datasets` cuts crops in NumPy, with a margin from which the geometry turns pixels in.
"""

import math
import os
from dataclasses import dataclass

# Else importing albumentations asks the network for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np

from config import Geometry, Intensity

NOISE_PITCH = 3  # px between independent values of correlated noise
SHADING_PITCH = 96  # px between independent values of shading
BLUR_SIGMA = (0.5, 3.0)  # px: the range of A.GaussianBlur
CUTOUT_SIDES = (0.05, 0.2)  # of a blanked box, as shares of the image


# --- geometry -------------------------------------------------------------------------------------


def build_geometry(geometry: Geometry = Geometry(), of_means: bool = False) -> A.ReplayCompose:
    """Return flips, quarter turns, a rotation and a magnification, mirrored at the border.

    Images are interpolated linearly, and masks take the nearest pixel. With `of_means` the pixels
    are means of blocks: images are then interpolated with cubics, because between the block means
    that the network sees when it predicts, a linear interpolation takes a third of the white noise
    away, a cubic one a seventh; and masks, which hold shares of foreground, linearly.
    """
    border = {
        "interpolation": cv2.INTER_CUBIC if of_means else cv2.INTER_LINEAR,
        "mask_interpolation": cv2.INTER_LINEAR if of_means else cv2.INTER_NEAREST,
        "border_mode": cv2.BORDER_REFLECT_101,
        "p": 1.0,
    }
    angles = (-geometry.rotation, geometry.rotation)

    transforms = [
        A.HorizontalFlip(p=geometry.flip_p),
        A.VerticalFlip(p=geometry.vertical_flip_p),
    ]
    if geometry.quarter_turns:
        transforms.append(A.RandomRotate90(p=1.0))
    if geometry.zoom == 1:
        transforms.append(A.Rotate(limit=angles, **border))
    else:
        scale = (1 / geometry.zoom, geometry.zoom)
        transforms.append(
            A.Affine(rotate=angles, scale=scale, balanced_scale=True, keep_ratio=True, **border)
        )

    return A.ReplayCompose(transforms)


# --- intensity ------------------------------------------------------------------------------------


class SmoothField(A.ImageOnlyTransform):
    """Add a smooth random field to a uint8 image: slow shading or correlated noise, by its pitch.

    Independent normal values on a grid of `pitch` pixels, 1 or more, are interpolated with cubics
    and scaled to a standard deviation of up to `limit` (a share of the grey range).
    """

    def __init__(self, limit: float, pitch: float, p: float = 0.5):
        super().__init__(p=p)
        self.limit = limit
        self.pitch = pitch

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
        """Draw the field: (H, W) float32, in grey levels."""
        height, width = params["shape"][:2]
        rows = math.ceil(height / self.pitch) + 2
        columns = math.ceil(width / self.pitch) + 2
        coarse = self.random_generator.standard_normal((rows, columns)).astype(np.float32)
        fine = cv2.resize(coarse, None, fx=self.pitch, fy=self.pitch, interpolation=cv2.INTER_CUBIC)

        # The first cell of the grid is interpolated from one side only, and left out.
        first = math.floor(self.pitch)
        field = fine[first : first + height, first : first + width]
        sigma = 255 * self.random_generator.uniform(0, self.limit)
        return {"field": (field - field.mean()) * (sigma / max(1e-6, field.std()))}

    def apply(self, img: np.ndarray, field: np.ndarray, **params) -> np.ndarray:
        """Return image plus field, rounded and clipped to 8 bit."""
        return np.clip(np.rint(img + field), 0, 255).astype(np.uint8)


def build_intensity(intensity: Intensity = Intensity(), downsample: int = 1) -> A.Compose:
    """Return what makes the strong view strong, in the order in which an instrument would do it.

    Parameters
    ----------
    intensity : Intensity
    downsample : int
        Side of the blocks [px] whose means the image holds. All perturbations are meant in pixels
        of the slice: kernels shrink, and noise is weaker, as the mean over a block is.
    """
    p = intensity.intensity_p
    transforms = []
    if intensity.shading:
        pitch = max(1.0, SHADING_PITCH / downsample)
        transforms.append(SmoothField(intensity.shading, pitch, p))
    if intensity.brightness or intensity.contrast:
        transforms.append(
            A.RandomBrightnessContrast(
                intensity.brightness, intensity.contrast, brightness_by_max=True, p=p
            )
        )

    if intensity.gamma > 1:
        percent = (100 / intensity.gamma, 100 * intensity.gamma)
        transforms.append(A.RandomGamma(percent, p=p))

    transforms.append(build_blur(intensity, downsample))

    if intensity.noise:
        transforms.append(A.GaussNoise(std_range=(0.0, intensity.noise / downsample), p=p))
    if intensity.correlated_noise:
        limit = intensity.correlated_noise * deviation_of_means(NOISE_PITCH, downsample)
        pitch = max(1.0, NOISE_PITCH / downsample)
        transforms.append(SmoothField(limit, pitch, p))

    if intensity.cutout:
        transforms.append(
            A.CoarseDropout(
                num_holes_range=(1, intensity.cutout),
                hole_height_range=CUTOUT_SIDES,
                hole_width_range=CUTOUT_SIDES,
                fill="random_uniform",
                p=p,
            )
        )

    return A.Compose(transforms)


def build_blur(intensity: Intensity, downsample: int) -> A.OneOf:
    """Return Gaussian or motion blur, by kernels of 3 to `blur_limit` pixels of the slice.

    On means of blocks kernels are as many times shorter, but never below three block means; what
    shrinks there is the width of the Gaussian. A motion of fewer than three block means cannot be
    drawn on their grid: where `blur_limit` is shorter, all blur is Gaussian.
    """
    # Kernels have an odd number of pixels, three at least.
    largest = intensity.blur_limit // downsample
    if largest % 2 == 0:
        largest += 1
    kernels = (3, max(3, largest))
    sigmas = tuple(end / downsample for end in BLUR_SIGMA)

    motion_blur = intensity.motion_blur
    if intensity.blur_limit < 3 * downsample:
        motion_blur = 0.0
    gaussian = A.GaussianBlur(blur_limit=kernels, sigma_limit=sigmas, p=1.0 - motion_blur)
    motion = A.MotionBlur(blur_limit=kernels, p=motion_blur)
    return A.OneOf([gaussian, motion], p=intensity.blur_p)


def deviation_of_means(pitch: int, side: int) -> float:
    """Return how much less the means of side×side pixels of a `SmoothField` vary than its pixels.

    That is the standard deviation of the means as a share of that of the pixels. A pixel of the
    field is a weighted sum of independent values on the grid, and so is a mean of pixels: their
    variance is the sum of the squared weights. Both axes are interpolated alike, so the ratio of
    variances is squared in two dimensions, and the ratio of deviations in two dimensions is that of
    variances in one.
    """
    if side == 1:
        return 1.0

    # The weights of each value of the grid in each pixel of an axis of a whole number of blocks.
    grid = 16 * side
    of_pixels = cv2.resize(
        np.eye(grid, dtype=np.float32), (grid * pitch, grid), interpolation=cv2.INTER_CUBIC
    )
    of_blocks = of_pixels.reshape(grid, -1, side).mean(2)

    # The ends of the axis are left out: there the interpolation has no neighbours.
    margin = of_blocks.shape[1] // 4
    variance_of_pixels = np.square(of_pixels).sum(0)[margin:-margin].mean()
    variance_of_blocks = np.square(of_blocks).sum(0)[margin:-margin].mean()
    return float(variance_of_blocks / variance_of_pixels)


# --- views ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ViewsOfCrop:
    """The views of one crop, all in one geometry.

    Attributes
    ----------
    weak : (H, W) uint8 ndarray
        With the geometry only.
    strong : list of (H, W) uint8 ndarrays
        With perturbed grey values, too.
    mask : (H, W) or (H, W, planes) uint8 ndarray, or None
    """

    weak: np.ndarray
    strong: list[np.ndarray]
    mask: np.ndarray | None


@dataclass(frozen=True)
class Augmentation:
    """What is done to crops to make views of them."""

    geometry: A.ReplayCompose
    intensity: A.Compose


def make_views(
    image: np.ndarray,
    mask: np.ndarray | None,
    augmentation: Augmentation,
    seed: int,
    strong_views: int = 1,
    margin: int = 0,
) -> ViewsOfCrop:
    """Make weak view, strong views and mask of a crop.

    The geometry is applied once, to image and mask together. All views start from the array that
    comes out, so they share it without replaying what `ReplayCompose` recorded: that would turn the
    image again for each view, which costs twice as much, and give the same pixels.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
    mask : (H, W) or (H, W, planes) uint8 ndarray, or None
    augmentation : Augmentation
    seed : int
        The same seed gives the same views.
    strong_views : int
        How many strong views.
    margin : int
        Pixels on each side that only the geometry sees; they are cut off before grey values are
        perturbed.

    Returns
    -------
    ViewsOfCrop
        Of (H − 2·margin, W − 2·margin) pixels.
    """
    rng = np.random.default_rng([seed, 1])
    seed_apart(augmentation.geometry, rng)
    if mask is None:
        moved = augmentation.geometry(image=image)
    else:
        moved = augmentation.geometry(image=image, mask=mask)
        mask = cut_margin(moved["mask"], margin)

    weak = cut_margin(moved["image"], margin)

    strong = []
    for _ in range(strong_views):
        seed_apart(augmentation.intensity, rng)
        strong.append(augmentation.intensity(image=weak)["image"])
    return ViewsOfCrop(weak, strong, mask)


def cut_margin(array: np.ndarray, margin: int) -> np.ndarray:
    """Return an array without `margin` pixels on each side of its first two axes, contiguous."""
    height, width = array.shape[:2]
    return np.ascontiguousarray(array[margin : height - margin, margin : width - margin])


def seed_apart(transform: A.BasicTransform | A.BaseCompose, rng: np.random.Generator) -> None:
    """Seed a transform and each one inside it with a number of its own."""
    transform.set_random_seed(int(rng.integers(2**32)))
    for inner in getattr(transform, "transforms", ()):
        seed_apart(inner, rng)
