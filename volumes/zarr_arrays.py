"""Zarr arrays and OME-Zarr images (formats 2 and 3, OME-Zarr 0.1 to 0.5)."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr

from runtime.messages import InputError
from volumes.stacks import SLAB_BYTES, SliceReader, names_of_slices, stacked_axes
from volumes.volume import Volume
from volumes.voxel_size import Voxel, read_voxel

CHUNK_BYTES = 2**32  # of a chunk, at most: it is decoded as a whole
FEW_NAMES = 5  # as many names are listed in a message
DEFAULT_AXES = "tczyx"  # of OME-Zarr before version 0.3
KNOWN_TRANSFORMATIONS = {"scale", "translation", "identity"}


@dataclass
class _Stored:
    """What was found in a zarr store.

    Attributes
    ----------
    array : zarr.Array
    attributes : dict
        Of the image, or of the array.
    image : dict or None
        Its OME-Zarr metadata, with the level that is read first.
    remarks : list of str
    """

    array: zarr.Array
    attributes: dict
    image: dict | None = None
    remarks: list[str] = field(default_factory=list)


def open_zarr(path: Path) -> Volume:
    """Open a zarr array or an OME-Zarr image; slices are read when they are asked for.

    Raises
    ------
    InputError
        When it cannot be read, or holds several images, channels or other axes.
    """
    try:
        stored = find_array(path)
        axes = axes_of(stored)
        voxel, remarks_on_voxel = ngff_voxel(stored.image, path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever zarr makes of damaged metadata
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as zarr ({type(error).__name__}: {reason})"
        ) from None

    array = stored.array
    if len(axes) != array.ndim:
        raise InputError(f"{path}: its metadata names {len(axes)} axes, the array has {array.ndim}")
    kept_axes, shape = stacked_axes(path, axes, array.shape)
    check_codecs(path, array)
    details = {
        "format": array.metadata.zarr_format,
        "ngff": stored.image,
        "attributes": stored.attributes,
        "array": array,
        "axes": axes,
        "remarks": [*stored.remarks, *remarks_on_voxel, *remarks_on_chunks(path, array, shape)],
    }
    names = names_of_slices(path, shape)
    read = SliceReader(path, array, axes, shape)
    return Volume(path, "zarr", kept_axes, shape, names, read, voxel, details)


def find_array(path: Path) -> _Stored:
    """Return the array of a zarr store that is read: itself, or the finest level of its one image."""
    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        return _Stored(node, dict(node.attrs))

    remarks = []
    group, name = find_image_group(path, node)
    if name:
        remarks.append(
            f"{path}: is a collection of images (bioformats2raw); its only one, /{name}, is read"
        )

    attributes = dict(group.attrs)
    image = ngff_image(attributes)
    finest = find_finest_level(group, image)
    if finest > 0:
        level = image["datasets"][finest]
        remarks.append(
            f"{path}: its finest level is {level['path']}, not the first one; that is read"
        )
        image = {**image, "datasets": [level]}

    array = group[image["datasets"][0]["path"]]
    return _Stored(array, attributes, image, remarks)


def find_image_group(path: Path, node: zarr.Group) -> tuple[zarr.Group, str]:
    """Return the group of an OME-Zarr image, and its name where it lies inside another one (bioformats2raw).

    Raises
    ------
    InputError
        When there is no image, or several.
    """
    if ngff_image(dict(node.attrs)) is not None:
        return node, ""

    inside = []
    for name, group in node.groups():
        if ngff_image(dict(group.attrs)) is not None:
            inside.append(name)
    if len(inside) == 1:
        return node[inside[0]], inside[0]
    if inside:
        names = ", ".join(str(path / name) for name in sorted(inside)[:FEW_NAMES])
        raise InputError(f"{path}: holds {len(inside)} images; name one of them: {names}")

    arrays = [name for name, _ in node.arrays()]
    names = ", ".join(arrays[:FEW_NAMES]) or "none"
    raise InputError(
        f"{path}: is a zarr group without OME-Zarr metadata; name one of its arrays ({names})"
    )


def find_finest_level(group: zarr.Group, image: dict) -> int:
    """Return the number of the finest level of an image, which should be 0."""
    sizes = [math.prod(group[level["path"]].shape) for level in image["datasets"]]
    return sizes.index(max(sizes))


def check_codecs(path: Path, array: zarr.Array) -> None:
    """Raise `InputError` for chunks that decoding would execute (pickles) or that no memory holds."""
    metadata = array.metadata.to_dict()
    codecs = repr([metadata.get(key) for key in ("codecs", "filters", "compressor")])
    if re.search(r"\bpickle\b", codecs.lower()):
        raise InputError(
            f"{path}: its chunks are pickles, which may run code when they are read; store it again "
            "as numbers"
        )

    if array.dtype.kind not in "uifb":
        raise InputError(f"{path}: holds {array.dtype} values, expected integers or floats")
    size = chunk_bytes(array)
    if size > CHUNK_BYTES:
        raise InputError(
            f"{path}: has chunks of {size / 1e9:.3g} GB; store it again in smaller ones"
        )


def chunk_bytes(array: zarr.Array) -> int:
    """Return the bytes of a decoded chunk."""
    return math.prod(array.chunks) * array.dtype.itemsize


def remarks_on_chunks(path: Path, array: zarr.Array, shape: tuple[int, ...]) -> list[str]:
    """Return a line where each slice takes reading much more than itself."""
    size = chunk_bytes(array)
    slice_bytes = math.prod(shape[-2:]) * array.dtype.itemsize
    if size <= SLAB_BYTES or size <= slice_bytes:
        return []
    return [
        f"{path}: has chunks of {size / 1e9:.2g} GB, each of which is decoded for every slice in "
        "it; chunks of a few slices would be read many times faster"
    ]


# --- metadata -------------------------------------------------------------------------------------


def axes_of(stored: _Stored) -> str:
    """Return a letter for each axis of an array; Q for one whose name is no letter."""
    names = names_of_axes(stored)
    return "".join(name.upper() if len(name) == 1 else "Q" for name in names)


def names_of_axes(stored: _Stored) -> list[str]:
    """Return the names of the axes of an array, as its metadata have them.

    In OME-Zarr 0.4 and later each axis is an object, in 0.3 a letter; before it had five, in one
    order.
    """
    array = stored.array
    if stored.image:
        axes = stored.image.get("axes", DEFAULT_AXES[-array.ndim :])
        return [str(axis.get("name", "")) if isinstance(axis, dict) else str(axis) for axis in axes]
    names = getattr(array.metadata, "dimension_names", None)
    if names:
        return [name or "" for name in names]
    return ["q"] * (array.ndim - 2) + ["y", "x"]


def ngff_image(attributes: dict) -> dict | None:
    """Return the first multiscale image of OME-Zarr metadata; None where there is none.

    Version 0.5 has it under `ome`.
    """
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        return None
    return images[0]


def ngff_voxel(image: dict | None, path: Path) -> tuple[Voxel, list[str]]:
    """Return the voxel size of an OME-Zarr image, and a line for what is not believed.

    The scales of its level and of the image multiply.
    """
    if image is None:
        return {}, []
    axes = image.get("axes", [])
    if not axes or not all(isinstance(axis, dict) for axis in axes):
        return {}, []
    steps = [
        *image["datasets"][0].get("coordinateTransformations", []),
        *image.get("coordinateTransformations", []),
    ]
    if not steps:
        return {}, []

    kinds = {str(step.get("type")) for step in steps}
    scales = [step["scale"] for step in steps if isinstance(step.get("scale"), list)]
    fits = all(len(scale) == len(axes) for scale in scales)
    if not scales or not fits or not kinds <= KNOWN_TRANSFORMATIONS:
        names = ", ".join(sorted(kinds))
        return {}, [
            f"{path}: says its voxel size in a way that is not read ({names}); sizes are in pixels "
            "(give --pixel-size)"
        ]

    try:
        sizes = np.prod(np.array(scales, float), axis=0)
    except (TypeError, ValueError):
        return {}, [
            f"{path}: says a voxel size that is no number; sizes are in pixels (give --pixel-size)"
        ]

    stated = {}
    for axis, size in zip(axes, sizes, strict=True):
        if axis.get("type", "space") != "space":
            continue
        name = axis["name"].upper()
        if name in ("X", "Y", "Z"):
            stated[name] = (float(size), axis.get("unit", ""))

    return read_voxel(stated, str(path))
