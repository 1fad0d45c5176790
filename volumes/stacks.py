"""Slices of an array with several axes, such as time and depth: which they are, and how one is read."""

import math
import threading
from pathlib import Path

import numpy as np
import zarr

from runtime.messages import InputError
from slices.pictures import MOST_PIXELS

STACKED_AXES = frozenset(
    "TZIQ"
)  # whose planes are slices: time, depth, and what TIFF does not name
MOST_SLICES = 2**24
SLAB_BYTES = 2**28  # of the slices that share a chunk, at most, to be kept in memory together


def stacked_axes(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return axes and shape of an array without axes of length 1.

    Parameters
    ----------
    path : Path
        For messages.
    axes : str
        A letter for each axis.
    shape : tuple of int

    Raises
    ------
    InputError
        For channels, transposed images, and arrays that are larger than a volume can be.
    """
    if math.prod(shape[-2:]) > MOST_PIXELS or math.prod(shape[:-2]) > MOST_SLICES:
        raise InputError(
            f"{path}: claims to have the shape {shape}; slices have {MOST_PIXELS} pixels at most, "
            f"and volumes {MOST_SLICES} slices"
        )

    kept = [i for i, axis in enumerate(axes) if shape[i] != 1 or axis in "YX"]
    kept_axes = "".join(axes[i] for i in kept)
    kept_shape = tuple(shape[i] for i in kept)
    is_empty = math.prod(shape) == 0
    has_other_axes = not STACKED_AXES.issuperset(kept_axes[:-2])
    if is_empty or has_other_axes or not kept_axes.endswith("YX"):
        raise InputError(
            f"{path}: has axes {axes} and shape {shape}; save one grey channel, stacked along depth "
            "or time, rows and columns last"
        )

    return kept_axes, kept_shape


def names_of_slices(path: Path, shape: tuple[int, ...]) -> list[str]:
    """Return what the slices of a file are called in messages."""
    return [f"{path}, slice {i}" for i in range(math.prod(shape[:-2]))]


class SliceReader:
    """Read slice `i` of an array, `reader(i)` → (H, W), as stored.

    The array may have further axes of length 1. Where its chunks are several slices deep, the slab
    of slices that share a chunk is kept: neighbours come from the same chunks. Several threads may
    read at once.

    Parameters
    ----------
    path : Path
        For messages.
    array : zarr.Array
    axes : str
        A letter for each axis of the array.
    shape : tuple of int
        Of the volume, as `stacked_axes` gives it.

    Raises
    ------
    InputError
        When a slice cannot be read.
    """

    def __init__(self, path: Path, array: zarr.Array, axes: str, shape: tuple[int, ...]):
        self.path = path
        self.array = array
        self.axes = axes
        self.stack_shape = shape[:-2]

        # The axes along which slices are stacked; of the last of them, a chunk holds so many.
        self.stacked = [i for i, axis in enumerate(axes) if axis not in "YX" and array.shape[i] > 1]
        self.depth = array.chunks[self.stacked[-1]] if self.stacked else 1
        slab_bytes = self.depth * math.prod(shape[-2:]) * array.dtype.itemsize
        if slab_bytes > SLAB_BYTES:
            self.depth = 1

        self._lock = threading.Lock()
        self._slab_place: tuple[int, ...] | None = None
        self._slab: np.ndarray | None = None

    def __call__(self, i: int) -> np.ndarray:
        """Return slice `i` as stored, (H, W)."""
        place = tuple(int(n) for n in np.unravel_index(i, self.stack_shape))
        try:
            if self.depth == 1:
                return self._read(place)
            return self._read_from_slab(place)
        except Exception as error:  # noqa: BLE001 - whatever codecs make of damaged chunks
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self.path}, slice {i}: cannot be read ({reason}); damaged? export it again"
            ) from None

    def _read_from_slab(self, place: tuple[int, ...]) -> np.ndarray:
        """Read a slice from the slab in memory, or the slab that it is in."""
        slab_number, within = divmod(place[-1], self.depth)
        slab_place = (*place[:-1], slab_number)
        with self._lock:
            if slab_place != self._slab_place:
                self._slab = self._read(slab_place)
                self._slab_place = slab_place
            return self._slab[within]

    def _read(self, place: tuple[int, ...]) -> np.ndarray:
        """Read the slice, or the slab, in a place along the stacked axes."""
        place_of = dict(zip(self.stacked, place, strict=True))
        index: list[int | slice] = []
        for i, axis in enumerate(self.axes):
            if axis in "YX":
                index.append(slice(None))
            elif self.depth > 1 and i == self.stacked[-1]:
                first = place_of[i] * self.depth
                index.append(slice(first, first + self.depth))
            else:
                index.append(place_of.get(i, 0))

        return self.array[tuple(index)]
