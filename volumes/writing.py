"""Volumes written slice by slice in the family of another one, with its axes and voxel size."""

import math
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tifffile
import zarr

from volumes.reading import open_volume
from volumes.records import tiff_name
from volumes.volume import Volume
from volumes.voxel_size import Voxel

IMAGEJ_TYPES = "BHf"  # uint8, uint16, float32
CLASSIC_BYTES = 2**32 - 2**25  # of a TIFF that is no BigTIFF, at most


def write_like(
    path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, details: dict
) -> None:
    """Write slices as a volume is stored: a folder of files with its names, one TIFF, or a zarr array.

    Parameters
    ----------
    path : Path
    volume : Volume
        Whose family, axes and voxel size are taken over.
    slices : iterable of (H, W) ndarrays
    dtype : numpy dtype
    details : dict
        What is kept with a zarr array.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if volume.kind == "zarr":
        write_zarr(path, volume, slices, dtype, details)
    elif volume.kind == "folder":
        path.mkdir(exist_ok=True)
        for file, one in zip(volume.details["files"], slices, strict=True):
            write_tiff(path / tiff_name(file), open_volume(file), [one], dtype)
    else:
        write_tiff(path, volume, slices, dtype)


# --- TIFF -----------------------------------------------------------------------------------------


def write_tiff(path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype) -> None:
    """Write all slices as one file of the volume's kind, streamed: ImageJ, OME or plain.

    float16, which neither ImageJ nor OME knows, becomes float32 there. ImageJ files are not
    compressed: so they open at once, as a virtual stack. They cannot be larger than 4 GB: larger
    ones become OME-TIFF, which ImageJ reads, too, and which keeps the voxel size. The same slices
    give the same bytes.
    """
    details = volume.details
    is_imagej = volume.kind == "imagej" or (volume.kind == "slice" and "imagej" in details)
    is_ome = volume.kind == "ome" or (volume.kind == "slice" and "ome" in details)
    dtype = np.dtype(dtype)
    if dtype == np.float16 and (is_imagej or is_ome):
        dtype = np.dtype(np.float32)
    size = math.prod(volume.shape) * dtype.itemsize
    is_large = size >= CLASSIC_BYTES

    options = {"shape": volume.shape, "dtype": dtype, "photometric": "minisblack"}
    options["compression"] = "zlib"
    for key in ("resolution", "resolutionunit"):
        if key in details:
            options[key] = details[key]

    if is_imagej and dtype.char in IMAGEJ_TYPES and not is_large:
        options["imagej"] = True
        options["compression"] = None
        options["metadata"] = {"axes": named_axes(volume.axes), **details["imagej"]}
    elif is_ome or is_imagej:
        sizes = details["ome"] if is_ome else ome_sizes(volume.voxel)
        options["ome"] = True
        options["bigtiff"] = is_large
        options["metadata"] = {
            "axes": named_axes(volume.axes),
            **sizes,
            "UUID": stable_uuid(f"{path.name} {volume.shape} {dtype}"),
        }
    else:
        options["bigtiff"] = is_large
        options["metadata"] = {"axes": volume.axes}

    contiguous = (np.ascontiguousarray(one, dtype) for one in slices)
    tifffile.imwrite(path, contiguous, **options)


def named_axes(axes: str) -> str:
    """Return axes with names for those that say nothing, I and Q, which ImageJ and OME do not know: depth and time."""
    return axes.replace("I", "Z").replace("Q", "T")


def ome_sizes(voxel: Voxel) -> dict[str, float | str]:
    """Return a voxel size as OME-TIFF states it."""
    stated: dict[str, float | str] = {}
    for axis, (size, unit) in voxel.items():
        stated[f"PhysicalSize{axis}"] = size
        stated[f"PhysicalSize{axis}Unit"] = "µm" if unit == "um" else "pixel"
    return stated


def stable_uuid(text: str) -> str:
    """Return an identifier that depends on a text alone, so that the same slices give the same bytes."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text))


# --- zarr -----------------------------------------------------------------------------------------


def write_zarr(
    path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, details: dict
) -> None:
    """Write all slices as a zarr array like the source: its format, a chunk per slice, its OME-Zarr metadata."""
    zarr_format = volume.details["format"]
    image = volume.details["ngff"]
    source = volume.details["array"]
    attributes = dict(volume.details["attributes"])
    ours = {"freezelayers": details}

    options = {}
    if zarr_format == 3 and getattr(source.metadata, "dimension_names", None):
        options["dimension_names"] = source.metadata.dimension_names
    if zarr_format == 2:
        separator = source.metadata.dimension_separator
        options["chunk_key_encoding"] = {"name": "v2", "separator": separator}

    store = path
    name = None
    if image:
        name = "0"
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        metadata = ngff_of_mask(attributes, image, path.name)
        group.attrs.update(metadata | ours)
        store = group.store

    shape = source.shape
    array = zarr.create_array(
        store,
        name=name,
        shape=shape,
        dtype=dtype,
        zarr_format=zarr_format,
        chunks=(*[1] * (len(shape) - 2), *shape[-2:]),
        **options,
    )
    if not image:
        array.attrs.update(attributes | ours)

    stacked = [axis for axis, length in enumerate(shape[:-2]) if length != 1]
    for i, one in enumerate(slices):
        place = [0] * (len(shape) - 2)
        for axis, index in zip(stacked, np.unravel_index(i, volume.shape[:-2]), strict=True):
            place[axis] = int(index)
        array[tuple(place)] = one


def ngff_of_mask(attributes: dict, image: dict, name: str) -> dict:
    """Return OME-Zarr metadata of a mask of one level, with the axes and the voxel size of an image's finest level."""
    finest = {**image["datasets"][0], "path": "0"}
    kept = ("axes", "version", "coordinateTransformations")
    metadata = {key: value for key, value in image.items() if key in kept}
    images = [{**metadata, "name": name, "datasets": [finest]}]
    if "ome" in attributes:
        version = attributes["ome"].get("version", "0.5")
        return {"ome": {"version": version, "multiscales": images}}
    return {"multiscales": images}
