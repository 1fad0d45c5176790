"""What a prediction keeps on disk until it is whole: blocks of slices, along z or along all three axes of a volume."""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.lib.format import open_memmap

from runtime.files import write_npz
from runtime.messages import InputError, say_once
from volumes.reading import Volume, open_volume
from volumes.voxel_size import relative_sides

BLOCK, BLOCK_PIXELS = 16, 2**25  # slices of a block, and pixels of all of them, at most
MASK, PROBABILITY, UNCERTAINTY = "mask", "probability", "uncertainty"
LIMITS, OWN = "limits", "own_limits"    # grey values that became 0 and 255, and the slice's own percentiles
FLAT = "flat_border"                    # value and share of what may be padding and was taken for sample, else NaN
CONSTANT = "constant"                   # whether there is nothing to see, because all pixels of the sample are alike
OUTSIDE = "outside"                     # where there is no sample; of shape (0, 0) where there is sample everywhere
TOTAL, SPREAD = "total", "spread"  # kinds of uncertainty
ACROSS = {"rows": (1, 0, 2), "columns": (2, 0, 1)}  # planes across a volume: the order of its axes there
BACK = {"rows": (1, 0, 2), "columns": (1, 2, 0)}    # and back


class Blocks:
    """Results that wait for the others, a file per block of slices."""

    def __init__(self, folder: Path, volume: Volume):
        self.folder = folder
        count = max(1, min(BLOCK, BLOCK_PIXELS // max(1, volume.shape[-2] * volume.shape[-1])))
        self.all = [range(i, min(i + count, len(volume))) for i in range(0, len(volume), count)]

    def path(self, block: range) -> Path:
        """File of a block."""
        return self.folder / f"{block.start:07d}.npz"

    def write(self, block: range, found: list[dict[str, np.ndarray]]) -> None:
        """Keep what was found for each slice of a block."""
        write_npz(self.path(block), **{f"{name}_{i}": array for i, one in zip(block, found, strict=True)
                                       for name, array in one.items()})

    def slices(self, kind: str) -> Iterator[np.ndarray]:
        """One kind of results, slice by slice."""
        for block in self.all:
            try:
                with self.path(block).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    yield from (arrays[f"{kind}_{i}"] for i in block)
            except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error) as error:
                raise InputError(f"{self.path(block)}: is damaged ({error}); delete it and go on") from None


def ahead(pool: Executor, work: Callable, items: Iterable, count: int) -> Iterator:
    """`work` of each item, in order; `count` of them are under way while one is used."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# --- three axes -----------------------------------------------------------------------------------------------

def check_cubes(volume: Volume) -> None:
    """`InputError` where a volume cannot be cut along any axis: points in time, one slice, voxels that are no cubes."""
    if len(volume.shape) != 3 or "T" in volume.axes or len(volume) < 2:
        raise InputError(f"{volume.path}: has axes {volume.axes} and shape {volume.shape}; --three-axes needs one "
                         "volume")
    if "X" in volume.voxel and "Z" not in volume.voxel:
        say_once(f"{volume.path}: does not say the distance of its slices; --three-axes takes its voxels for cubes")
    if max(relative_sides(volume.voxel).values(), default=1.0) > 1.01:
        stated = ", ".join(f"{axis} {size:g} {unit}" for axis, (size, unit) in volume.voxel.items())
        raise InputError(f"{volume.path}: its voxels are no cubes ({stated}), as --three-axes needs; resample it first")
    for file in volume.about.get("files", []):
        shape = open_volume(file).shape[-2:]
        if shape != volume.shape[-2:]:
            raise InputError(f"{file}: is {shape} px, the first slice {volume.shape[-2:]}; --three-axes needs slices "
                             "of one size")


def new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """An `.npy` file of zeros whose space is taken at once: a disk that fills up later would end the process."""
    array = open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)


def cut_across(folder: Path, blocks: list[range], greys: Iterator[np.ndarray], shape: tuple[int, int, int]) -> None:
    """Write a volume once more, for each other axis, so that planes across it lie together: `rows.npy` (H, D, W) holds
    a plane per row, `columns.npy` (W, D, H) one per column.

    Parameters
    ----------
    greys : iterator of (H, W) uint8 ndarrays
        The slices, read a block at a time.
    shape : (D, H, W)
    """
    paths = {name: folder / f"{name}.npy" for name in ACROSS}
    if all(path.exists() for path in paths.values()):
        return
    for name, order in ACROSS.items():
        new_array(folder / f"{name}.tmp", np.uint8, tuple(shape[axis] for axis in order))
    for block in blocks:
        some = np.stack([next(greys) for _ in block])
        for name, order in ACROSS.items():                      # opened anew: what is mapped counts as memory
            open_memmap(folder / f"{name}.tmp", "r+")[:, block.start:block.stop] = some.transpose(order)
    for name, path in paths.items():
        (folder / f"{name}.tmp").replace(path)


def mapped(path: Path) -> np.ndarray:
    """An array that stays on the disk."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def planes_of(folder: Path, name: str) -> Volume:
    """The planes that `cut_across` wrote, as a volume."""
    path = folder / f"{name}.npy"
    try:
        shape = mapped(path).shape
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete it and go on") from None
    return Volume(path, "planes", "ZYX", shape, [f"{path}, plane {i}" for i in range(shape[0])],
                  lambda i: mapped(path)[i].copy())


def total_deviation(probability: np.ndarray) -> np.ndarray:
    """√(p (1 − p)), 0 to ½, as float16: the standard deviation of a decision that is foreground with probability p.

    Where p is a mean of predictions, it is all of the uncertainty: what each prediction leaves open, p (1 − p), and the
    variance between them (law of total variance).
    """
    p = probability.astype(np.float32)
    return np.sqrt(p * (1 - p)).astype(np.float16)


class ThreeAxes:
    """Results along three axes, averaged voxel by voxel, and read like `Blocks`.

    The uncertainty is `total_deviation`, or the spread of all that is averaged: with means p and deviations s along
    each axis the root of mean (p² + s²) − (mean p)². Nothing is found in blank slices.

    Parameters
    ----------
    along : Blocks
        Of the slices.
    across : dict of name to Blocks
        Of the planes, see `cut_across`.
    inside : tuple of two slices
        Rows and columns of the region of interest, which the planes cut.
    kind : str
        Of the uncertainty: `TOTAL` or `SPREAD`.
    """

    def __init__(self, along: Blocks, across: dict[str, Blocks], inside: tuple[slice, slice], threshold: float,
                 kind: str = ""):
        self.along, self.across, self.inside, self.threshold, self.kind = along, across, inside, threshold, kind

    def gather(self, kind: str, name: str) -> Path:
        """One kind of results of planes as one array (planes, D, length), from which slices can be read."""
        blocks = self.across[name]
        path = blocks.folder / f"{kind}.npy"
        for i, plane in enumerate(() if path.exists() else blocks.slices(kind)):
            if i == 0:
                new_array(path.with_suffix(".tmp"), np.float16, (blocks.all[-1].stop, *plane.shape))
            open_memmap(path.with_suffix(".tmp"), "r+")[i] = plane
        if not path.exists():
            path.with_suffix(".tmp").replace(path)
        return path

    def slices(self, kind: str) -> Iterator[np.ndarray]:
        """One kind of results, slice by slice."""
        if kind in (LIMITS, OWN, OUTSIDE, CONSTANT, FLAT):
            yield from self.along.slices(kind)
            return
        spread = kind == UNCERTAINTY and self.kind == SPREAD
        needed = [PROBABILITY, UNCERTAINTY] if spread else [PROBABILITY]
        gathered = {each: {name: self.gather(each, name) for name in self.across} for each in needed}
        slices, limits = {each: self.along.slices(each) for each in needed}, self.along.slices(LIMITS)
        outsides = self.along.slices(OUTSIDE)
        for block in self.along.all:
            planes = {each: [mapped(path)[:, block.start:block.stop].copy().transpose(BACK[name])
                             for name, path in paths.items()] for each, paths in gathered.items()}
            for i in range(len(block)):
                whole = {each: next(slices[each]) for each in needed}
                found = np.zeros(whole[PROBABILITY].shape, np.float16)
                if not np.isnan(next(limits)[0]):
                    found[self.inside] = averaged(*([whole[each][self.inside], *(plane[i] for plane in planes[each])]
                                                    for each in needed))
                outside = next(outsides)
                if outside.size:
                    found[outside] = 0
                if kind == MASK:
                    yield (found >= np.float32(self.threshold)).astype(np.uint8) * 255
                else:
                    yield total_deviation(found) if kind == UNCERTAINTY and not spread else found


def averaged(means: list[np.ndarray], deviations: list[np.ndarray] | None = None) -> np.ndarray:
    """Mean of means, or with `deviations` the standard deviation of all that these sum up."""
    means = np.array(means, np.float32)
    if deviations is None:
        return means.mean(0)
    squares = means**2 + np.array(deviations, np.float32)**2
    return np.sqrt(np.maximum(squares.mean(0) - means.mean(0)**2, 0))
