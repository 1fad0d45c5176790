"""A volume: a list of slices that are read one at a time, whatever axes are stacked."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from runtime.messages import InputError, say_once
from slices.classes import Classes
from slices.label_maps import LabelMaps, MasksOfClass
from slices.masks import Masks
from slices.pictures import Picture
from slices.reading import crop_picture, crop_roi
from volumes.voxel_size import Voxel

UNNAMED_AXES = frozenset("IQ")  # which say nothing about what is stacked
FINGERPRINT_SLICES = 9  # that are read to tell one volume from another


@dataclass(frozen=True, eq=False)
class Volume:
    """Slices of one source, and what its outputs inherit.

    Attributes
    ----------
    path : Path
    kind : {"slice", "folder", "imagej", "ome", "tiff", "zarr", "planes"}
    axes, shape : str, tuple of int
        Of the source, such as `TZYX`. A folder has `ZYX` and the shape of its first slice; the
        others may differ.
    names : list of str
        What each slice is called in messages.
    read : index → (H, W) ndarray
    voxel : dict of axis to (size, unit)
        As far as it is known; see `volumes.voxel_size`.
    details : dict
        What else is known, by name. All kinds: `remarks`, a line for each thing that the file says
        and that cannot be. Folders: `files` and `order`, what is odd about it. TIFF stacks:
        `imagej`, `ome` and the resolution, which an output inherits. Zarr: the open `array` and
        its `format`.
    decode : index → Picture, or None
        A slice as its file shows it, where that is more than its grey values.
    """

    path: Path
    kind: str
    axes: str
    shape: tuple[int, ...]
    names: list[str]
    read: Callable[[int], np.ndarray]
    voxel: Voxel = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    decode: Callable[[int], Picture] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def slice_shape(self) -> tuple[int, int]:
        """Rows and columns of the first slice."""
        return self.shape[-2:]

    def picture(self, i: int) -> Picture:
        """Return slice `i` as its file shows it, with colours where it has some."""
        if self.decode is not None:
            return self.decode(i)
        return Picture(self.read(i))


def crop_volume(volume: Volume, roi: tuple[int, int, int, int] | None) -> Volume:
    """Return a volume of what lies in a region of each slice; see `slices.reading.crop_roi`."""
    if roi is None:
        return volume

    def read(i: int) -> np.ndarray:
        return crop_roi(volume.read(i), roi, volume.names[i])

    def decode(i: int) -> Picture:
        return crop_picture(volume.picture(i), roi, volume.names[i])

    top, bottom, left, right = roi
    shape = (*volume.shape[:-2], bottom - top, right - left)
    return replace(volume, shape=shape, read=read, decode=decode)


def plain_name(path: Path) -> str:
    """Return the name of a file or folder without the suffixes of images."""
    return re.sub(r"(\.ome)?\.(tiff?|zarr)$", "", path.name, flags=re.IGNORECASE)


# --- what its slices hold -------------------------------------------------------------------------


def masks_of_volume(
    volume: Volume,
    foreground: str = "auto",
    image: Volume | None = None,
    option: str = "--mask-foreground",
) -> Masks:
    """Return the masks in the slices of a volume.

    Parameters
    ----------
    volume : Volume
    foreground, option : str
        As in `slices.mask_values.MaskInfo`.
    image : Volume, optional
        The volume that the masks belong to, where it is known.
    """

    def read_slice(i: int) -> np.ndarray | None:
        if image is None:
            return None
        return image.read(i)

    return Masks(volume.names, volume.picture, foreground, read_slice, option)


def label_maps_of_volume(volume: Volume, classes: Classes) -> LabelMaps:
    """Return the label maps in the slices of a volume, in some of which nothing may be labelled."""
    return LabelMaps(volume.names, volume.picture, classes, may_be_empty=True)


def masks_of_class(
    volume: Volume, classes: Classes, name: str, may_be_partial: bool
) -> MasksOfClass:
    """Return the masks of one class in the label maps of a volume.

    Parameters
    ----------
    volume : Volume
    classes : Classes
    name : str
        Of the class, or its value.
    may_be_partial : bool
        As in `MasksOfClass`.
    """
    label_maps = label_maps_of_volume(volume, classes)
    return MasksOfClass(label_maps, classes.index(name), may_be_partial)


def of_one_size(masks: Masks | MasksOfClass, shape: tuple[int, int]) -> Callable[[int], np.ndarray]:
    """Return a reader of masks that refuses those of another shape than (H, W)."""

    def read(i: int) -> np.ndarray:
        mask = masks[i]
        if mask.shape != shape:
            raise InputError(
                f"{masks.names[i]}: is {mask.shape} px, the first slice {shape}; give slices of one "
                "size"
            )
        return mask

    return read


def map_reader(volume: Volume) -> Callable[[int], np.ndarray]:
    """Return a reader of maps that refuses negative and infinite values, and what is not a number."""

    def read(i: int) -> np.ndarray:
        values = volume.read(i)
        is_possible = np.isfinite(values) & (values >= 0)
        if not is_possible.all():
            raise InputError(
                f"{volume.names[i]}: holds negative or infinite values; is it an uncertainty?"
            )
        return values

    return read


def refuse_unlike(one: Volume, other: Volume) -> None:
    """Raise `InputError` where two volumes differ in shape, or have axes that contradict each other."""
    if one.shape != other.shape:
        raise InputError(
            f"{one.path}: has shape {one.shape}, {other.path} {other.shape}; they must belong "
            "together"
        )

    for axis, other_axis in zip(one.axes, other.axes, strict=True):
        says_nothing = {axis, other_axis} & UNNAMED_AXES
        if axis != other_axis and not says_nothing:
            raise InputError(
                f"{one.path}: has axes {one.axes}, {other.path} {other.axes}; save both in one order"
            )


def say_remarks(*volumes: Volume | None, are_stacked: bool = False) -> None:
    """Say on standard error what some files state and cannot be.

    With `are_stacked`, slices are taken for neighbours; then also what speaks against that.
    """
    for volume in volumes:
        if volume is None:
            continue
        lines = list(volume.details.get("remarks", []))
        if are_stacked:
            lines += volume.details.get("order", [])
        for line in lines:
            say_once(line)


# --- has it changed? ------------------------------------------------------------------------------


def stored_files(volume: Volume) -> list[Path]:
    """Return all files that a volume is read from, as far as they are known.

    Of an OME-TIFF of several files that is the first.
    """
    if volume.kind == "folder":
        return volume.details["files"]
    if volume.path.is_dir():
        return sorted(path for path in volume.path.rglob("*") if path.is_file())
    return [volume.path]


def stamp(volume: Volume) -> str:
    """Return a digest of names, sizes and times of change of the files.

    It is another one where something was written since.
    """
    digest = hashlib.sha256()
    for path in stored_files(volume):
        details = path.stat()
        digest.update(f"{path.name} {details.st_size} {details.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprint(volume: Volume, count: int = FINGERPRINT_SLICES) -> str:
    """Return a digest of the names and of `count` slices, evenly spaced, first and last among them."""
    names = "\n".join(Path(name).name for name in volume.names)
    digest = hashlib.sha256(names.encode())
    for i in spread_evenly(len(volume), count):
        digest.update(np.ascontiguousarray(volume.read(i)).tobytes())
    return digest.hexdigest()


def spread_evenly(length: int, count: int) -> list[int]:
    """Return up to `count` different indices from 0 to length − 1, evenly spaced."""
    places = np.linspace(0, length - 1, count).round().astype(int)
    return np.unique(places).tolist()
