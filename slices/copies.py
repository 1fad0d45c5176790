"""Recognise slices and masks that are copies of each other."""

import hashlib
from pathlib import Path

import cv2
import numpy as np

# Correlation of the thumbnails of two slices below which they are not compared further.
LEAST_CORRELATION = 0.99

# Share of pixels whose grey value in one slice says that in another, from which on they are copies.
LEAST_SHARE = 0.99

THUMBNAIL = (32, 32)  # px


def fingerprint(array: np.ndarray) -> tuple:
    """Return what two arrays have in common only where their pixels are the same."""
    return array.shape, hashlib.sha256(np.ascontiguousarray(array)).digest()


def group_equal(arrays: dict[Path, np.ndarray]) -> list[list[Path]]:
    """Return the files of arrays that are the same pixel by pixel, in groups of two and more."""
    groups: dict[tuple, list[Path]] = {}
    for path, array in arrays.items():
        groups.setdefault(fingerprint(array), []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def is_same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two slices in 8 bit show the same pixels.

    One may have been saved with fewer bits or another contrast, and may be flipped or turned by 90,
    180 or 270 degrees, as augmented copies are. Of copies each grey value of one has become one of
    the other, but for rounding. Neighbouring slices of a volume may be alike, too, but where one is
    100, the other is 97 here and 104 there.

    Parameters
    ----------
    one, other : (H, W) uint8 ndarrays
    """
    if sorted(one.shape) != sorted(other.shape):
        return False
    small = thumbnail(one)
    other_small = thumbnail(other)
    if small.std() == 0 or other_small.std() == 0:
        return False

    for turns in range(4):
        for is_flipped in (False, True):
            # The thumbnail turns like its image, in a thousandth of the time.
            small_turned = turn(other_small, turns, is_flipped)
            correlation = np.corrcoef(small.ravel(), small_turned.ravel())[0, 1]
            if correlation < LEAST_CORRELATION:
                continue

            turned = turn(other, turns, is_flipped)
            if turned.shape != one.shape:
                continue
            share = max(share_mapped(one, turned), share_mapped(turned, one))
            if share >= LEAST_SHARE:
                return True

    return False


def turn(image: np.ndarray, turns: int, is_flipped: bool) -> np.ndarray:
    """Return a (H, W) image flipped from left to right, or not, and turned by so many quarters."""
    if is_flipped:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, turns))


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return an image reduced to (32, 32) block means, float64."""
    return cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float64)


def share_mapped(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pixels of which the grey value in `one` says that in `other`, but for rounding.

    For each grey value of `one` the mean of `other` is taken there; a pixel of `other` may differ
    from it by what lies between two grey levels of `one`.
    """
    values = one.ravel()
    levels = other.ravel().astype(np.float64)
    count = np.bincount(values, minlength=256)
    mean = np.bincount(values, levels, 256) / np.maximum(count, 1)

    used = np.flatnonzero(count)
    step = float(np.median(np.diff(used))) if len(used) > 1 else 1.0
    deviation = np.abs(levels - mean[values])
    return float(np.mean(deviation <= step / 2 + 1))
