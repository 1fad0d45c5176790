"""Ellipsoids in a volume, and how far the pixels of a slice are from the nearest one's surface."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ellipsoids:
    """Ellipsoids at random places.

    Attributes
    ----------
    centres : (N, 3) ndarray
        Slice, row, column [px].
    axes : (N, 3, 3) ndarray
        A row for each half axis: its direction, divided by its length [1/px].
    radii : (N,) ndarray
        Of the balls of the same volume [px].
    """

    centres: np.ndarray
    axes: np.ndarray
    radii: np.ndarray

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def reach(self) -> np.ndarray:
        """The longest half axis of each [px]."""
        return 1 / np.linalg.norm(self.axes, axis=2).min(axis=1)


@dataclass(frozen=True)
class Sizes:
    """How large ellipsoids are: radii are log-normal.

    Attributes
    ----------
    median, least, most : float
        Of the radii [px].
    spread : float
        Standard deviation of their logarithm.
    elongation : float
        Standard deviation of the logarithm of a half axis, as a multiple of the radius.
    filled : float
        Share of the volume that all of them would fill if none overlapped.
    """

    median: float
    least: float
    most: float
    spread: float
    elongation: float
    filled: float


def make_ellipsoids(
    rng: np.random.Generator, size: tuple[int, int, int], sizes: Sizes
) -> Ellipsoids:
    """Draw ellipsoids at random places of a volume, which may overlap, until they fill their share of it."""
    radii = []
    volume = 0.0
    while volume < sizes.filled * math.prod(size):
        radius = rng.lognormal(math.log(sizes.median), sizes.spread)
        radius = float(np.clip(radius, sizes.least, sizes.most))
        radii.append(radius)
        volume += 4 / 3 * math.pi * radius**3

    count = len(radii)
    centres = rng.uniform(0, size, (count, 3))
    stretch = np.exp(rng.normal(0, sizes.elongation, (count, 3)))
    # The volume stays that of the ball.
    stretch /= np.cbrt(stretch.prod(axis=1, keepdims=True))
    lengths = np.array(radii)[:, None] * stretch
    directions = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    return Ellipsoids(centres, directions / lengths[..., None], np.array(radii))


def ellipsoid_depth(
    ellipsoids: Ellipsoids, z: float, shape: tuple[int, int], reach: float
) -> np.ndarray:
    """Return about how far each pixel of a slice is from the nearest surface: negative inside, ≤ `reach`.

    Of a stretched ellipsoid the distance is that of a ball, in units of whose radius the pixel lies
    as far out: exact at the surface, and of the right order beside it.

    Parameters
    ----------
    ellipsoids : Ellipsoids
    z : float
        Of the slice [px].
    shape : (rows, columns)
    reach : float
        Distances beyond this are not told apart [px].

    Returns
    -------
    (rows, columns) float32 ndarray
    """
    depth = np.full(shape, reach, np.float32)
    around = ellipsoids.reach + reach
    near = np.abs(ellipsoids.centres[:, 0] - z) < around
    for i in np.flatnonzero(near):
        _, row, column = ellipsoids.centres[i]
        top = max(0, int(row - around[i]))
        bottom = min(shape[0], int(row + around[i]) + 1)
        left = max(0, int(column - around[i]))
        right = min(shape[1], int(column + around[i]) + 1)
        if top >= bottom or left >= right:
            continue

        above = np.float32(z - ellipsoids.centres[i, 0])
        rows = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(row)
        columns = np.arange(left, right, dtype=np.float32)[None] - np.float32(column)
        square = np.zeros((bottom - top, right - left), np.float32)
        for axis in ellipsoids.axes[i].astype(np.float32):
            square += (axis[0] * above + axis[1] * rows + axis[2] * columns) ** 2
        distance = (np.sqrt(square) - 1) * np.float32(ellipsoids.radii[i])
        box = np.s_[top:bottom, left:right]
        np.minimum(depth[box], distance, out=depth[box])

    return depth
