"""What of a slice is sample, and which of its grey values become black and white.

What a reconstruction has filled in outside its field of view is left out of the window of grey
values, and marked, so that crops, losses, scores, masks and particles leave it out, too.
"""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from runtime.messages import InputError
from slices.padding import connected_to_border, recognise_outside, with_blurred_edge
from slices.reading import crop_roi, read_image

MOST_DEAD = 0.001  # share of a slice that single dead pixels are, at most


def parse_outside(text: str) -> str | float:
    """Return what `--outside` states: `auto`, `none`, or a grey value, which may be `nan`."""
    if text.lower() in ("auto", "none"):
        return text.lower()
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"--outside {text}: expected auto, none, or the grey value outside the sample, such as "
            "-1000 or nan"
        ) from None

    if math.isinf(value):
        raise InputError(f"--outside {text}: is no grey value")
    return value


# --- outside the sample ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grey:
    """A slice with what lies outside the sample.

    Attributes
    ----------
    image : (H, W) float ndarray
        Values as stored; 0 in the place of NaN.
    outside : (H, W) bool ndarray, or None
        Where there is no sample; None where there is sample everywhere.
    value : float or None
        The value that fills what is outside; None where nothing is, or it was not looked for.
    skip_zeros : bool
        Whether zeros are left out of windows: they are, unless something else is known to fill what
        is outside.
    """

    image: np.ndarray
    outside: np.ndarray | None = None
    value: float | None = None
    skip_zeros: bool = True

    def crop(self, roi: tuple[int, int, int, int] | None, name: str = "image") -> "Grey":
        """Return what lies in a region of interest; see `slices.reading.crop_roi`."""
        outside = self.outside
        if outside is not None:
            outside = crop_roi(outside, roi, name)
        return replace(self, image=crop_roi(self.image, roi, name), outside=outside)

    def values(self) -> np.ndarray:
        """Return the grey values from which a window is taken, (N,)."""
        values = self.image.ravel() if self.outside is None else self.image[~self.outside]
        if self.skip_zeros:
            values = values[values != 0]
        return values


def read_grey(path: Path, outside: str | float = "auto") -> Grey:
    """Return the slice in a file, with what lies outside the sample; see `mark_outside`."""
    return mark_outside(read_image(path), str(path), outside)


def mark_outside(image: np.ndarray, name: str, outside: str | float = "auto") -> Grey:
    """Return a slice with what lies outside the sample.

    Parameters
    ----------
    image : (H, W) float ndarray
        Values as stored.
    name : str
        What messages call the slice.
    outside : {"auto", "none"} or float
        `auto` looks for padding, see `slices.padding`; `none`: all is sample; a value, NaN
        included: what holds it and reaches the border is outside.

    Raises
    ------
    InputError
        For NaN and infinite values that are not outside.
    """
    is_nan = np.isnan(image)
    finite = np.where(is_nan, 0, image) if is_nan.any() else image
    refuse_infinite(finite, name)
    if outside == "none":
        if is_nan.any():
            raise InputError(describe_nan(is_nan, name))
        return Grey(finite, skip_zeros=False)

    if outside == "auto":
        where, values = recognise_outside(image)
    else:
        value = float(outside)
        values = [value]
        where = connected_to_border(is_nan if math.isnan(value) else image == value)

    dead = is_nan & ~where
    if dead.any():
        # Single dead pixels get the value of a neighbour; more of them are no accident.
        nan_is_padding = any(math.isnan(value) for value in values)
        if not nan_is_padding or np.count_nonzero(dead) > MOST_DEAD * image.size:
            raise InputError(describe_nan(dead, name))
        finite = fill_from_nearest(finite, dead | where)

    if not where.any():
        first = values[0] if values else None
        return Grey(finite, value=first, skip_zeros=outside == "auto")
    where = with_blurred_edge(finite, where, values)
    return Grey(finite, where, values[0], skip_zeros=values[0] == 0)


def refuse_infinite(image: np.ndarray, name: str) -> None:
    """Raise `InputError` where a slice holds infinite values."""
    bad = np.count_nonzero(~np.isfinite(image))
    if bad:
        raise InputError(
            f"{name}: {bad} of {image.size} pixels are NaN or infinite; replace them by 0"
        )


def describe_nan(where: np.ndarray, name: str) -> str:
    """Return in words that pixels of the sample are not a number."""
    return (
        f"{name}: {np.count_nonzero(where)} of {where.size} pixels are NaN or infinite, inside the "
        "sample; replace them by 0, or, if they lie at its border, leave them out with --outside nan"
    )


def fill_from_nearest(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return an image with the value of the nearest other pixel in some places."""
    rows, columns = nearest_other(where)
    return image[rows, columns]


def nearest_other(where: np.ndarray) -> np.ndarray:
    """Return for each pixel row and column of the nearest one where a (H, W) bool array is False: (2, H, W)."""
    return ndimage.distance_transform_edt(where, return_distances=False, return_indices=True)


# --- the window of grey values --------------------------------------------------------------------


def grey_limits(
    grey: Grey, percentiles: tuple[float, float], name: str = "image"
) -> tuple[float, float]:
    """Return the grey values at two percentiles of the sample; equal where there is nothing to see.

    Raises
    ------
    InputError
        Where they are farther apart than the largest number.
    """
    values = grey.values()
    if values.size == 0:
        return 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.percentile(values, percentiles)
    if not np.isfinite(float(high) - float(low)):
        raise InputError(
            f"{name}: its grey values reach from {low:g} to {high:g}, too far to be scaled; damaged?"
        )

    return float(low), float(high)


def find_window(
    grey: Grey, percentiles: tuple[float, float], name: str = "image"
) -> tuple[float, float]:
    """Return the grey values that become black and white: those at two percentiles of the sample.

    Raises
    ------
    InputError
        Where both are equal, which is a (nearly) constant image.
    """
    low, high = grey_limits(grey, percentiles, name)
    if not high > low:
        first, last = percentiles
        raise InputError(
            f"{name}: is constant ({low:g}) between percentiles {first:g} and {last:g}; nothing to "
            "segment, remove it"
        )

    return low, high


def percentile_window(
    image: np.ndarray | Grey,
    percentiles: tuple[float, float] = (1.0, 99.5),
    name: str = "image",
) -> np.ndarray:
    """Map two percentiles of the grey values of the sample to 0 and 255, clip, round: (H, W) uint8.

    Zero is what most reconstructions write outside the field of view, so it does not count.

    Raises
    ------
    InputError
        As `find_window`.
    """
    grey = image if isinstance(image, Grey) else Grey(image)
    low, high = find_window(grey, percentiles, name)
    return apply_window(grey, low, high)


def apply_window(grey: Grey, low: float, high: float) -> np.ndarray:
    """Return a slice in 8 bit, `low` as 0 and `high` as 255, clipped and rounded: (H, W) uint8.

    What is outside mirrors the sample at its edge. A black or grey surface there would be the
    strongest edge of the slice, and change what the network makes of the sample beside it: on a
    demo volume with a circular field of view, the Dice of the sample was 0.50 with black, 0.68 with
    a medium grey, 0.78 mirrored, and 0.80 of the volume without padding.
    """
    scaled = (grey.image.astype(np.float64) - low) / (high - low)
    eight_bit = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    if grey.outside is None or grey.outside.all():
        return eight_bit
    rows, columns = mirror_places(grey.outside.tobytes(), grey.outside.shape)
    return eight_bit[rows, columns]


@functools.lru_cache(maxsize=2)
def mirror_places(outside: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pixel the row and column from which it takes its grey value.

    Inside the sample that is its own. A pixel outside takes the place that lies as far behind the
    nearest pixel of the sample as itself before it; where that is no sample, the nearest pixel.
    Slices of a volume mostly have the same outside, so the last ones are kept.

    Parameters
    ----------
    outside : bytes
        Of a (H, W) bool ndarray.
    shape : (H, W)

    Returns
    -------
    rows, columns : (H, W) int32 ndarrays
    """
    where = np.frombuffer(outside, bool).reshape(shape)
    own = np.indices(shape)  # (2, H, W)
    nearest = nearest_other(where)  # (2, H, W)

    last = np.array(shape)[:, None, None] - 1
    mirrored = np.clip(2 * nearest - own, 0, last)
    is_outside = where[mirrored[0], mirrored[1]]
    rows, columns = np.where(is_outside, nearest, mirrored).astype(np.int32)
    return rows, columns
