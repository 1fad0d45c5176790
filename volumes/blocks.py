"""What a prediction keeps on disk until it is whole: a file for each block of slices."""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from runtime.files import write_npz
from runtime.messages import InputError
from volumes.volume import Volume

BLOCK = 16  # slices of a block, at most
BLOCK_PIXELS = 2**25  # of all of its slices, at most

# What is kept of each slice, by the names in the files:
MASK = "mask"  # (H, W) uint8, 255 for foreground; or a label map
PROBABILITY = "probability"  # (H, W) float16, or (K, H, W) of the classes of label maps
UNCERTAINTY = "uncertainty"  # (H, W) float16
LIMITS = "limits"  # (2,), the grey values that became 0 and 255; NaN for a blank slice
OWN = "own_limits"  # (2,), the slice's own percentiles
FLAT = (
    "flat_border"  # (2,), value and share of what may be padding and was taken for sample; or NaN
)
CONSTANT = (
    "constant"  # (), whether all pixels of the sample are alike, so that there is nothing to see
)
OUTSIDE = (
    "outside"  # (H, W) bool, where there is no sample; (0, 0) where there is sample everywhere
)

# Kinds of uncertainty.
TOTAL = "total"  # of the decision
SPREAD = "spread"  # of the predictions that were averaged


class Blocks:
    """Results that wait for the others, a file per block of slices.

    Parameters
    ----------
    folder : Path
    volume : Volume
    planes : int
        Probabilities of a pixel: with more of them blocks have fewer slices.
    """

    def __init__(self, folder: Path, volume: Volume, planes: int = 1):
        self.folder = folder
        height, width = volume.slice_shape
        slices = max(1, min(BLOCK, BLOCK_PIXELS // max(1, planes * height * width)))
        self.all = []
        for first in range(0, len(volume), slices):
            self.all.append(range(first, min(first + slices, len(volume))))

    def path(self, block: range) -> Path:
        """Return the file of a block."""
        return self.folder / f"{block.start:07d}.npz"

    def is_written(self, block: range) -> bool:
        """Return whether the results of a block are there."""
        return self.path(block).exists()

    def missing(self) -> list[range]:
        """Return the blocks whose results are not there yet."""
        return [block for block in self.all if not self.is_written(block)]

    def write(self, block: range, results: list[dict[str, np.ndarray]]) -> None:
        """Keep what was found for each slice of a block."""
        arrays = {}
        for i, of_slice in zip(block, results, strict=True):
            for name, array in of_slice.items():
                arrays[f"{name}_{i}"] = array
        write_npz(self.path(block), **arrays)

    def slices(self, kind: str) -> Iterator[np.ndarray]:
        """Yield one kind of results, slice by slice.

        Raises
        ------
        InputError
            When a file is damaged.
        """
        damage = (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error)
        for block in self.all:
            path = self.path(block)
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    for i in block:
                        yield arrays[f"{kind}_{i}"]
            except damage as error:
                raise InputError(f"{path}: is damaged ({error}); delete it and go on") from None


def ahead(pool: Executor, work: Callable, items: Iterable, count: int) -> Iterator:
    """Yield `work(item)` of each item, in order.

    `count` of them are under way while one is used.
    """
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > count:
            yield waiting.popleft().result()

    while waiting:
        yield waiting.popleft().result()
