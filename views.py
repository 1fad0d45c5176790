"""Weak and strong views of a crop: recorded geometry, and what makes a strong view strong.

All that depends on albumentations (2.0.8, the last MIT release) stands here. Its random state repeats in every
epoch when workers are used, so each draw seeds it anew; and every transform apart, since a Compose gives all of
its transforms one seed: a flipped crop would always be a blurred one. Crops and padding do not replay, so
`datasets` does them in NumPy around it.
"""

import math
import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else importing albumentations asks the network for a newer version

import albumentations as A
import cv2
import numpy as np

NOISE_PITCH, SHADING_PITCH = 3, 96  # px between independent values of correlated noise and of shading
BLUR_SIGMA = (0.5, 3.0)  # px: the range of A.GaussianBlur


def build_geometry(flip_p: float = 0.5, vertical_flip_p: float = 0.2, rotation: float = 10.0,
                   quarter_turns: bool = False, zoom: float = 1.0, of_means: bool = False) -> A.ReplayCompose:
    """Flips, quarter turns, a rotation by up to ±`rotation` degrees and a magnification of 1/`zoom` to `zoom`.

    Mirrored at the border. Images are interpolated linearly, and masks take the nearest pixel. Arrays `of_means` of
    pixels are interpolated with cubics: between block means, which the network sees as they are when it predicts, a
    linear interpolation takes a third of the white noise away, a cubic one a seventh. Masks `of_means` hold shares of
    foreground, and are interpolated linearly.
    """
    border = {"interpolation": cv2.INTER_CUBIC if of_means else cv2.INTER_LINEAR,
              "mask_interpolation": cv2.INTER_LINEAR if of_means else cv2.INTER_NEAREST,
              "border_mode": cv2.BORDER_REFLECT_101, "p": 1.0}
    return A.ReplayCompose([
        A.HorizontalFlip(p=flip_p),
        A.VerticalFlip(p=vertical_flip_p),
        *([A.RandomRotate90(p=1.0)] if quarter_turns else []),
        A.Rotate(limit=(-rotation, rotation), **border) if zoom == 1 else
        A.Affine(rotate=(-rotation, rotation), scale=(1 / zoom, zoom), balanced_scale=True,
                 keep_ratio=True, **border),
    ])


class SmoothField(A.ImageOnlyTransform):
    """Adds a smooth random field to a uint8 image: slow shading or correlated noise, by its pitch.

    Independent normal values on a grid of `pitch` pixels, 1 or more, interpolated with cubics and scaled to a standard
    deviation of up to `limit` (a share of the grey range).
    """

    def __init__(self, limit: float, pitch: float, p: float = 0.5):
        super().__init__(p=p)
        self.limit, self.pitch = limit, pitch

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
        """The field in grey levels, (H, W) float32."""
        height, width = params["shape"][:2]
        grid = tuple(math.ceil(length / self.pitch) + 2 for length in (height, width))
        coarse = self.random_generator.standard_normal(grid).astype(np.float32)
        fine = cv2.resize(coarse, None, fx=self.pitch, fy=self.pitch, interpolation=cv2.INTER_CUBIC)
        first = math.floor(self.pitch)
        field = fine[first:first + height, first:first + width]
        sigma = 255 * self.random_generator.uniform(0, self.limit)
        return {"field": (field - field.mean()) * (sigma / max(1e-6, field.std()))}

    def apply(self, img: np.ndarray, field: np.ndarray, **params) -> np.ndarray:
        """Image plus field, rounded and clipped to 8 bit."""
        return np.clip(np.rint(img + field), 0, 255).astype(np.uint8)


def build_intensity(blur_p: float = 0.5, blur_limit: int = 7, motion_blur: float = 0.5, brightness: float = 0.0,
                    contrast: float = 0.0, gamma: float = 1.0, noise: float = 0.0, correlated_noise: float = 0.0,
                    shading: float = 0.0, cutout: int = 0, intensity_p: float = 0.5, downsample: int = 1) -> A.Compose:
    """What makes the strong view strong, in the order in which an instrument would do it.

    Parameters
    ----------
    blur_p, blur_limit, motion_blur : float, int, float
        Probability of Gaussian or motion blur, its largest kernel [px], and the share of motion blur among both.
    brightness, contrast : float
        Largest shift, as a share of the grey range, and largest relative change of contrast.
    gamma : float
        Largest exponent; the smallest is its inverse. 1 is off.
    noise, correlated_noise, shading : float
        Largest standard deviation of white noise, of noise correlated over a few pixels and of slow shading, as a
        share of the grey range.
    cutout : int
        Largest number of boxes that are filled with one random grey value.
    intensity_p : float
        Probability of each of these except blur.
    downsample : int
        Side of the blocks [px] whose means the image holds. All the above is meant in pixels of the slice: kernels
        shrink, and noise is as weak as the mean of a block of it is.
    """
    p = intensity_p
    transforms = []
    if shading:
        transforms.append(SmoothField(shading, max(1.0, SHADING_PITCH / downsample), p))
    if brightness or contrast:
        transforms.append(A.RandomBrightnessContrast(brightness, contrast, brightness_by_max=True, p=p))
    if gamma > 1:
        transforms.append(A.RandomGamma((100 / gamma, 100 * gamma), p=p))
    transforms.append(build_blur(blur_p, blur_limit, motion_blur, downsample))
    if noise:
        transforms.append(A.GaussNoise(std_range=(0.0, noise / downsample), p=p))
    if correlated_noise:
        remaining = deviation_of_means(NOISE_PITCH, downsample)
        transforms.append(SmoothField(correlated_noise * remaining, max(1.0, NOISE_PITCH / downsample), p))
    if cutout:
        transforms.append(A.CoarseDropout(num_holes_range=(1, cutout), hole_height_range=(0.05, 0.2),
                                          hole_width_range=(0.05, 0.2), fill="random_uniform", p=p))
    return A.Compose(transforms)


def build_blur(blur_p: float, blur_limit: int, motion_blur: float, downsample: int) -> A.OneOf:
    """Gaussian or motion blur of up to `blur_limit` pixels of the slice, on means of `downsample`² of them.

    A motion of fewer than three block means cannot be drawn on their grid: there all blur is Gaussian.
    """
    if downsample == 1:
        return A.OneOf([A.GaussianBlur(blur_limit=(3, blur_limit), p=1.0 - motion_blur),
                        A.MotionBlur(blur_limit=(3, blur_limit), p=motion_blur)], p=blur_p)
    shorter = blur_limit // downsample
    limit = max(3, shorter if shorter % 2 == 1 else shorter + 1)                # kernels are odd
    sigma = tuple(end / downsample for end in BLUR_SIGMA)
    motion_blur = motion_blur if blur_limit >= 3 * downsample else 0.0
    return A.OneOf([A.GaussianBlur(blur_limit=(3, limit), sigma_limit=sigma, p=1.0 - motion_blur),
                    A.MotionBlur(blur_limit=(3, limit), p=motion_blur)], p=blur_p)


def deviation_of_means(pitch: int, side: int) -> float:
    """Return the standard deviation of means of side×side pixels of a `SmoothField`, as a share of that of its pixels.

    A pixel of the field is a weighted sum of independent values on the grid, and so is a mean of pixels: their variance
    is the sum of the squared weights. Both axes are interpolated alike, so the ratio of variances is squared in two
    dimensions, and the ratio of deviations in two dimensions is that of variances in one.
    """
    if side == 1:
        return 1.0
    grid = 16 * side                                                            # a whole number of blocks
    weights = cv2.resize(np.eye(grid, dtype=np.float32), (grid * pitch, grid), interpolation=cv2.INTER_CUBIC)
    of_blocks = weights.reshape(grid, -1, side).mean(2)
    inner = slice(len(of_blocks[0]) // 4, -len(of_blocks[0]) // 4)              # away from the ends of the axis
    variances = [np.square(w).sum(0)[inner].mean() for w in (weights, of_blocks)]
    return float(variances[1] / variances[0])


def seed_apart(transform: A.BasicTransform | A.BaseCompose, rng: np.random.Generator) -> None:
    """Seed a transform and each one inside it with a number of its own."""
    transform.set_random_seed(int(rng.integers(2**32)))
    for inner in getattr(transform, "transforms", ()):
        seed_apart(inner, rng)


def make_views(image: np.ndarray, mask: np.ndarray | None, geometry: A.ReplayCompose, intensity: A.Compose, seed: int,
               strong_views: int = 1, margin: int = 0) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """Weak view, strong views and mask in one geometry.

    All start from one turned and zoomed array, which costs half of replaying the recorded geometry on the image again.

    Parameters
    ----------
    image, mask : (H, W) uint8 ndarrays
        No mask where there is none.
    seed : int
        The same seed gives the same views.
    margin : int
        Pixels on each side that only the geometry sees; they are cut off before grey values are perturbed.

    Returns
    -------
    weak : (H − 2·margin, W − 2·margin) uint8 ndarray
    strong : list of `strong_views` such
    mask : such, or None
    """
    rng = np.random.default_rng([seed, 1])
    seed_apart(geometry, rng)
    moved = geometry(image=image) if mask is None else geometry(image=image, mask=mask)
    weak, mask = (None if array is None else np.ascontiguousarray(
        array[margin:array.shape[0] - margin, margin:array.shape[1] - margin])
        for array in (moved["image"], moved.get("mask")))
    strong = []
    for _ in range(strong_views):
        seed_apart(intensity, rng)
        strong.append(intensity(image=weak)["image"])
    return weak, strong, mask
