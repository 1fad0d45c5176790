"""Volumes written slice by slice in the family of another one, with its axes and voxel size."""

import math
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tifffile
import zarr

from slices.reading import TIFF_SUFFIXES
from volumes.reading import Volume, open_volume
from volumes.voxel_size import Voxel

IMAGEJ_TYPES = "BHf"  # uint8, uint16, float32
CLASSIC_BYTES = 2**32 - 2**25  # of a TIFF that is no BigTIFF, at most


def write_tiff(path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, compress: bool) -> None:
    """Write all slices as one file of the volume's kind, streamed: ImageJ, OME or plain; BigTIFF where it has to be.

    float16, which neither ImageJ nor OME knows, becomes float32 there. ImageJ files are not compressed: so they open
    at once, as a virtual stack. They cannot be larger than 4 GB: larger ones become OME-TIFF, which ImageJ reads, too,
    and which keeps the voxel size. The same slices give the same bytes.
    """
    dtype, about, axes = np.dtype(dtype), volume.about, volume.axes
    imagej, ome = (volume.kind == kind or (volume.kind == "slice" and kind in about) for kind in ("imagej", "ome"))
    if dtype == np.float16 and (imagej or ome):
        dtype = np.dtype(np.float32)
    size = math.prod(volume.shape) * dtype.itemsize
    options = {"shape": volume.shape, "dtype": dtype, "photometric": "minisblack",
               "compression": "zlib" if compress else None}
    options |= {key: about[key] for key in ("resolution", "resolutionunit") if key in about}
    fits_imagej = dtype.char in IMAGEJ_TYPES and size < CLASSIC_BYTES
    if imagej and fits_imagej:
        options |= {"imagej": True, "compression": None, "metadata": {"axes": imagej_axes(axes), **about["imagej"]}}
    elif ome or imagej:
        stated = about["ome"] if ome else ome_sizes(volume.voxel)
        options |= {"ome": True, "bigtiff": size >= CLASSIC_BYTES, "metadata": {
            "axes": axes.translate(str.maketrans("IQ", "ZT")), **stated,
            "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name} {volume.shape} {dtype}"))}}
    else:
        options |= {"bigtiff": size >= CLASSIC_BYTES, "metadata": {"axes": axes}}
    tifffile.imwrite(path, (np.ascontiguousarray(s, dtype) for s in slices), **options)


def ome_sizes(voxel: Voxel) -> dict[str, float | str]:
    """Return a voxel size as OME-TIFF states it."""
    stated: dict[str, float | str] = {}
    for axis, (size, unit) in voxel.items():
        stated[f"PhysicalSize{axis}"] = size
        stated[f"PhysicalSize{axis}Unit"] = "µm" if unit == "um" else "pixel"
    return stated


def imagej_axes(axes: str) -> str:
    """Axes as an ImageJ hyperstack has them."""
    return axes.translate(str.maketrans("IQ", "ZT"))


def write_zarr(path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, about: dict) -> None:
    """All slices as a zarr array of the source's format, a chunk each; with OME-Zarr metadata where it has that."""
    form, image = volume.about["format"], volume.about["ngff"]
    source, inherited = volume.about["array"], dict(volume.about["attributes"])
    shape, options = source.shape, {}
    if form == 3 and getattr(source.metadata, "dimension_names", None):
        options["dimension_names"] = source.metadata.dimension_names
    store, name = path, None
    if image:
        group, name = zarr.open_group(path, mode="w", zarr_format=form), "0"
        group.attrs.update(ngff_of_mask(inherited, image, path.name.removesuffix(".part")) | {"freezelayers": about})
        store = group.store
    if form == 2:
        options["chunk_key_encoding"] = {"name": "v2", "separator": source.metadata.dimension_separator}
    array = zarr.create_array(store, name=name, shape=shape, dtype=dtype, zarr_format=form,
                              chunks=(*(1 for _ in shape[:-2]), *shape[-2:]), **options)
    if not image:
        array.attrs.update(inherited | {"freezelayers": about})
    for i, one in enumerate(slices):
        place = iter(np.unravel_index(i, volume.shape[:-2]))
        array[tuple(0 if n == 1 else int(next(place)) for n in shape[:-2])] = one


def ngff_of_mask(attributes: dict, image: dict, name: str) -> dict:
    """OME-Zarr metadata of one level in the place of an image's finest: its axes and voxel size, another name."""
    finest = {**image["datasets"][0], "path": "0"}
    one = {key: value for key, value in image.items() if key in ("axes", "version", "coordinateTransformations")}
    images = [{**one, "name": name, "datasets": [finest]}]
    if "ome" in attributes:
        return {"ome": {"version": attributes["ome"].get("version", "0.5"), "multiscales": images}}
    return {"multiscales": images}


def tiff_name(path: Path) -> str:
    """Return the name of the TIFF that is written for a file, which may be of another family: `a.tif` for `a.png`."""
    return path.name if path.suffix.lower() in TIFF_SUFFIXES else f"{path.stem}.tif"


def write_like(path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, about: dict) -> None:
    """Write slices as the volume is stored: a folder of files with its names, one TIFF, or a zarr array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if volume.kind == "zarr":
        write_zarr(path, volume, slices, dtype, about)
    elif volume.kind == "folder":
        path.mkdir(exist_ok=True)
        for file, one in zip(volume.about["files"], slices, strict=True):
            write_tiff(path / tiff_name(file), open_volume(file), [one], dtype, compress=True)
    else:
        write_tiff(path, volume, slices, dtype, compress=True)
