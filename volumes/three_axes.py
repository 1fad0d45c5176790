"""A volume predicted along its three axes: planes across its slices, and averages voxel by voxel."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from runtime.messages import InputError, say_once
from volumes.blocks import LIMITS, MASK, OUTSIDE, PROBABILITY, SPREAD, UNCERTAINTY, Blocks
from volumes.decisions import Decision, joint_spread, mean_probability
from volumes.reading import open_volume
from volumes.volume import Volume
from volumes.voxel_size import describe_voxel, relative_sides

# Planes across a volume (D, H, W): the order of its axes in planes of rows (H, D, W) and of columns
# (W, D, H), and back.
ACROSS = {"rows": (1, 0, 2), "columns": (2, 0, 1)}
BACK = {"rows": (1, 0, 2), "columns": (1, 2, 0)}

MOST_ELONGATED = 1.01  # ratio of the sides of a voxel that counts as a cube


def check_cubes(volume: Volume) -> None:
    """Raise `InputError` where a volume cannot be cut along any axis.

    That is for points in time, a single slice, slices of several sizes, and voxels that are no
    cubes.
    """
    if len(volume.shape) != 3 or "T" in volume.axes or len(volume) < 2:
        raise InputError(
            f"{volume.path}: has axes {volume.axes} and shape {volume.shape}; --three-axes needs one "
            "volume"
        )

    if "X" in volume.voxel and "Z" not in volume.voxel:
        say_once(
            f"{volume.path}: does not say the distance of its slices; --three-axes takes its voxels "
            "for cubes"
        )

    ratio = max(relative_sides(volume.voxel).values(), default=1.0)
    if ratio > MOST_ELONGATED:
        raise InputError(
            f"{volume.path}: its voxels are no cubes ({describe_voxel(volume.voxel)}), as "
            "--three-axes needs; resample it first"
        )

    for file in volume.details.get("files", []):
        shape = open_volume(file).slice_shape
        if shape != volume.slice_shape:
            raise InputError(
                f"{file}: is {shape} px, the first slice {volume.slice_shape}; --three-axes needs "
                "slices of one size"
            )


# --- planes across the slices ---------------------------------------------------------------------


def cut_across(
    folder: Path, blocks: list[range], greys: Iterator[np.ndarray], shape: tuple[int, int, int]
) -> None:
    """Write a volume once more, for each other axis, so that planes across it lie together.

    `rows.npy` (H, D, W) holds a plane per row, `columns.npy` (W, D, H) one per column.

    Parameters
    ----------
    folder : Path
        Where the files go.
    blocks : list of range
    greys : iterator of (H, W) uint8 ndarrays
        The slices, read a block at a time.
    shape : (D, H, W)
    """
    paths = {name: folder / f"{name}.npy" for name in ACROSS}
    if all(path.exists() for path in paths.values()):
        return

    for name, order in ACROSS.items():
        new_array(unfinished(paths[name]), np.uint8, tuple(shape[axis] for axis in order))
    for block in blocks:
        slab = np.stack([next(greys) for _ in block])  # (slices, H, W)
        for name, order in ACROSS.items():
            write_slab(unfinished(paths[name]), block, slab.transpose(order))

    for path in paths.values():
        unfinished(path).replace(path)


def write_slab(path: Path, block: range, slab: np.ndarray) -> None:
    """Write a block of slices into an array of planes: (planes, slices, length).

    The file is opened anew for each block: what is mapped counts as memory, and Windows renames no
    file that is open.
    """
    open_memmap(path, "r+")[:, block.start : block.stop] = slab


def unfinished(path: Path) -> Path:
    """Return the name that an array has until it is whole."""
    return path.with_suffix(".tmp")


def new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Make an `.npy` file of zeros whose space is taken at once.

    A disk that fills up later would end the process.
    """
    array = open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)


def mapped(path: Path) -> np.ndarray:
    """Return an array that stays on the disk."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def planes_of(folder: Path, name: str) -> Volume:
    """Return the planes that `cut_across` wrote, as a volume."""
    path = folder / f"{name}.npy"
    try:
        shape = mapped(path).shape
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete it and go on") from None

    def read(i: int) -> np.ndarray:
        return mapped(path)[i].copy()

    names = [f"{path}, plane {i}" for i in range(shape[0])]
    return Volume(path, "planes", "ZYX", shape, names, read)


# --- averages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThreeAxes:
    """Results along three axes, averaged voxel by voxel, and read like `Blocks`.

    Nothing is found in blank slices, and outside the sample.

    Attributes
    ----------
    along : Blocks
        Of the slices.
    across : dict of name to Blocks
        Of the planes, see `cut_across`.
    inside : tuple of two slices
        Rows and columns of the region of interest, which the planes cut.
    decision : Decision
        How probabilities become masks.
    uncertainty : str
        `TOTAL` or `SPREAD`, or empty.
    """

    along: Blocks
    across: dict[str, Blocks]
    inside: tuple[slice, slice]
    decision: Decision
    uncertainty: str = ""

    def slices(self, kind: str) -> Iterator[np.ndarray]:
        """Yield one kind of results, slice by slice."""
        if kind == PROBABILITY:
            return self._probabilities()
        if kind == MASK:
            return self._masks()
        if kind == UNCERTAINTY and self.uncertainty == SPREAD:
            return self._combine([PROBABILITY, UNCERTAINTY], joint_spread)
        if kind == UNCERTAINTY:
            return self._total_deviations()
        return self.along.slices(kind)

    def _probabilities(self) -> Iterator[np.ndarray]:
        """Yield the mean probability of each slice."""
        return self._combine([PROBABILITY], mean_probability)

    def _masks(self) -> Iterator[np.ndarray]:
        """Yield the mask of each slice."""
        for probability in self._probabilities():
            yield self.decision.mask(probability)

    def _total_deviations(self) -> Iterator[np.ndarray]:
        """Yield the uncertainty of the decision in each slice."""
        for probability in self._probabilities():
            yield self.decision.uncertainty(probability)

    def _combine(
        self, kinds: list[str], combine: Callable[..., np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yield what `combine` makes of the results along all axes, slice by slice: (…, H, W) float16.

        Parameters
        ----------
        kinds : list of str
            Of the results; `combine` gets a list of arrays for each.
        combine : lists of ndarrays → ndarray
        """
        across = {kind: self._gather(kind) for kind in kinds}
        along = {kind: self.along.slices(kind) for kind in kinds}
        limits = self.along.slices(LIMITS)
        outsides = self.along.slices(OUTSIDE)

        for block in self.along.all:
            slabs = {kind: read_slabs(across[kind], block) for kind in kinds}
            for i in range(len(block)):
                of_slice = {kind: next(along[kind]) for kind in kinds}
                is_blank = np.isnan(next(limits)[0])
                outside = next(outsides)

                # The last kind has the shape of what comes out: of spreads and probabilities the
                # former have no axis of classes.
                combined = np.zeros(of_slice[kinds[-1]].shape, np.float16)
                if not is_blank:
                    arguments = []
                    for kind in kinds:
                        of_planes = [slab[..., i, :, :] for slab in slabs[kind]]
                        arguments.append([of_slice[kind][..., *self.inside], *of_planes])
                    combined[..., *self.inside] = combine(*arguments)
                if outside.size:
                    combined[..., outside] = 0
                yield combined

    def _gather(self, kind: str) -> dict[str, Path]:
        """Write one kind of results of planes as arrays, from which slices can be read; see `gather_planes`.

        Returns
        -------
        dict of name to Path
        """
        paths = {}
        for name, blocks in self.across.items():
            path = blocks.folder / f"{kind}.npy"
            if not path.exists():
                gather_planes(path, blocks, kind)
            paths[name] = path

        return paths


def gather_planes(path: Path, blocks: Blocks, kind: str) -> None:
    """Write one kind of results of all planes as one array: (…, planes, D, length) float16, of (…, D, length)."""
    planes = blocks.all[-1].stop
    for i, plane in enumerate(blocks.slices(kind)):
        if i == 0:
            shape = (*plane.shape[:-2], planes, *plane.shape[-2:])
            new_array(unfinished(path), np.float16, shape)
        open_memmap(unfinished(path), "r+")[..., i, :, :] = plane
    unfinished(path).replace(path)


def read_slabs(paths: dict[str, Path], block: range) -> list[np.ndarray]:
    """Return what the planes along each axis hold of a block of slices: (…, slices, H, W) each."""
    slabs = []
    for name, path in paths.items():
        of_block = mapped(path)[..., block.start : block.stop, :].copy()
        classes = of_block.ndim - 3
        order = [*range(classes), *(classes + axis for axis in BACK[name])]
        slabs.append(of_block.transpose(order))
    return slabs
