"""Volumes slice by slice: folders of TIFF, stacks and zarr are read and written in their own family, with metadata.

A volume is a list of slices, whatever axes are stacked: z, time, or both. Only the slices asked for are read.
"""

import logging
import math
import re
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
import zarr

from slices import IMAGE_SUFFIXES, list_files, read_array
from utils import InputError

STACKED = "TZIQ"  # axes whose planes are slices: time, depth, and what TIFF does not name
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")  # of which a zarr array or group has one
IMAGEJ_TYPES = "BHf"  # uint8, uint16, float32
CLASSIC_BYTES = 2**32 - 2**25  # of a TIFF that is no BigTIFF, at most
UNITS = {"µm": "um", "μm": "um", "micron": "um", "microns": "um", "micrometer": "um", "nanometer": "nm",
         "millimeter": "mm", "centimeter": "cm", "meter": "m", "\u00c5": "angstrom", "\u212b": "angstrom"}
IN_UM = {"um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "angstrom": 1e-4}


@dataclass(frozen=True, eq=False)
class Volume:
    """Slices of one source, and what its outputs inherit.

    Attributes
    ----------
    kind : {"slice", "folder", "imagej", "ome", "tiff", "zarr"}
    axes, shape : str, tuple of int
        Of the source, such as `TZYX`; a folder has `Z`, and its slices may differ in size.
    names : list of str
        What each slice is called in messages.
    read : index → (H, W) ndarray
    voxel : dict of axis to (size, unit)
        As far as it is known; units `um`, `nm`, `mm` or the file's own.
    about : dict
        Further metadata that an output inherits, by family.
    """

    path: Path
    kind: str
    axes: str
    shape: tuple[int, ...]
    names: list[str]
    read: Callable[[int], np.ndarray]
    voxel: dict[str, tuple[float, str]] = field(default_factory=dict)
    about: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


# --- reading --------------------------------------------------------------------------------------------------

def open_volume(path: Path) -> Volume:
    """A slice, a folder of them, a TIFF stack (BigTIFF, ImageJ, OME) or a zarr array or OME-Zarr image (v2, v3).

    Raises
    ------
    InputError
        When there is no such thing, or it has channels or other axes than rows, columns, depth and time.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        stored = any((path / name).exists() for name in ZARR_FILES)
        return _open_zarr(path) if stored else _open_folder(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: is not a .tif; give a .tif slice or stack, a folder of slices, or a zarr array")
    try:
        return _open_tiff(path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - the parser raises a dozen types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); damaged or truncated? export it again") from None


def _open_folder(path: Path) -> Volume:
    files = list_files(path)
    if not files:
        raise InputError(f"{path}: holds no .tif slice, and is no zarr array")
    first = open_volume(files[0])
    return Volume(path, "folder", "ZYX", (len(files), *first.shape[-2:]), [str(file) for file in files],
                  lambda i: read_array(files[i]), first.voxel, {"files": files})


def _open_tiff(path: Path) -> Volume:
    with ExitStack() as opened:
        with complaints() as found:
            file = opened.enter_context(tifffile.TiffFile(path))
            series = file.series[0]
        if found:                                               # pages behind the damage would be missing silently
            raise ValueError(found[0])
        if len(file.series) > 1:
            raise InputError(f"{path}: {len(file.series)} images of different kinds in one file; export one of them")
        if series.axes.endswith("YX") and math.prod(series.shape[:-2]) == 1:
            return Volume(path, "slice", "YX", series.shape[-2:], [str(path)], lambda _: read_array(path),
                          *_tiff_metadata(file))
        kind = "imagej" if file.is_imagej else "ome" if file.is_ome else "tiff"
        shape, axes = _stacked(path, series.axes, series.shape)
        array = zarr.open(series.aszarr(level=0), mode="r")
        read = _reader(path, array, series.axes, shape)
        volume = Volume(path, kind, axes, shape, _names(path, shape), read, *_tiff_metadata(file))
        weakref.finalize(read, opened.pop_all().close)          # the file stays open as long as slices can be read
        return volume


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What tifffile logs as errors, instead of raising them, while this is open."""
    found, handler, logger = [], logging.Handler(logging.ERROR), logging.getLogger("tifffile")
    handler.emit = lambda record: found.append(record.getMessage())
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _open_zarr(path: Path) -> Volume:
    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Group):
            image = ngff_image(dict(node.attrs))
            if image is None:
                arrays = [name for name, _ in node.arrays()]
                raise InputError(f"{path}: is a zarr group without OME-Zarr metadata; name one of its arrays"
                                 f" ({', '.join(arrays[:5]) or 'none'})")
            array = node[image["datasets"][0]["path"]]
        else:
            array, image = node, None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever zarr makes of damaged metadata
        raise InputError(f"{path}: cannot be read as zarr ({' '.join(str(error).split())})") from None
    names = [str(axis.get("name", "")) for axis in image["axes"]] if image else _dimension_names(array)
    axes = "".join(name.upper() if len(name) == 1 else "Q" for name in names)
    if len(axes) != array.ndim:
        raise InputError(f"{path}: its metadata names {len(axes)} axes, the array has {array.ndim}")
    shape, kept = _stacked(path, axes, array.shape)
    about = {"format": array.metadata.zarr_format, "ngff": image, "attributes": dict(node.attrs), "array": array}
    return Volume(path, "zarr", kept, shape, _names(path, shape), _reader(path, array, axes, shape), _ngff_voxel(image),
                  about)


def _dimension_names(array: zarr.Array) -> list[str]:
    names = getattr(array.metadata, "dimension_names", None)
    return [n or "" for n in names] if names else ["q"] * (array.ndim - 2) + ["y", "x"]


def _stacked(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Shape and axes without axes of length 1; `InputError` for channels and transposed images."""
    kept = [(axis, n) for axis, n in zip(axes, shape, strict=True) if n != 1 or axis in "YX"]
    names = "".join(axis for axis, _ in kept)
    if not all(shape) or not names.endswith("YX") or set(names[:-2]) - set(STACKED):
        raise InputError(f"{path}: has axes {axes} and shape {shape}; save one grey channel, stacked along depth or "
                         "time, rows and columns last")
    return tuple(n for _, n in kept), names


def _names(path: Path, shape: tuple[int, ...]) -> list[str]:
    return [f"{path}, slice {i}" for i in range(math.prod(shape[:-2]))]


def _reader(path: Path, array: zarr.Array, axes: str, shape: tuple[int, ...]) -> Callable[[int], np.ndarray]:
    """Index of a slice → the slice, of an array that may have further axes of length 1."""
    def read(i: int) -> np.ndarray:
        place = iter(np.unravel_index(i, shape[:-2]))
        index = tuple(slice(None) if axis in "YX" else 0 if n == 1 else int(next(place))
                      for axis, n in zip(axes, array.shape, strict=True))
        try:
            return array[index]
        except Exception as error:  # noqa: BLE001 - whatever codecs make of damaged chunks
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{path}, slice {i}: cannot be read ({reason}); damaged? export it again") from None
    return read


def mask_reader(volume: Volume, one_size: bool = True) -> Callable[[int], np.ndarray]:
    """Index → (H, W) bool; `InputError` for slices with more values than 0 and one other, or of another size."""
    def read(i: int) -> np.ndarray:
        stored = volume.read(i)
        if not ((stored == 0) | (stored == stored.max())).all():
            raise InputError(f"{volume.names[i]}: holds other values than 0 and {stored.max()}; give a mask, of two "
                             "values, not labels or grey values")
        if one_size and stored.shape != volume.shape[-2:]:
            raise InputError(f"{volume.names[i]}: is {stored.shape} px, the first slice {volume.shape[-2:]}; "
                             "give slices of one size")
        return stored != 0
    return read


def map_reader(volume: Volume) -> Callable[[int], np.ndarray]:
    """Index → (H, W) map; `InputError` where it is negative, infinite or not a number."""
    def read(i: int) -> np.ndarray:
        stored = volume.read(i)
        if not (np.isfinite(stored) & (stored >= 0)).all():
            raise InputError(f"{volume.names[i]}: holds negative or infinite values; is it an uncertainty?")
        return stored
    return read


def plain_name(path: Path) -> str:
    """Name of a file or folder without the suffixes of images."""
    return re.sub(r"(\.ome)?\.(tiff?|zarr)$", "", path.name, flags=re.IGNORECASE)


# --- metadata -------------------------------------------------------------------------------------------------

def _tiff_metadata(file: tifffile.TiffFile) -> tuple[dict, dict]:
    """Voxel size, and the resolution tags as they are."""
    tags, voxel = file.pages[0].tags, {}
    values = [tags[name].value if name in tags else None for name in ("XResolution", "YResolution", "ResolutionUnit")]
    about = {"resolution": tuple(v[0] / v[1] if v and v[1] else 1.0 for v in values[:2]),
             "resolutionunit": int(values[2]) if values[2] else 1} if all(values[:2]) else {}
    if file.is_imagej:
        stated = file.imagej_metadata or {}
        about["imagej"] = {key: stated[key] for key in ("spacing", "unit", "finterval", "fps") if key in stated}
        unit = str(stated.get("unit", ""))
        if unit and about.get("resolution"):
            voxel = {axis: (v[1] / v[0], plain_unit(unit)) for axis, v in zip("XY", values[:2], strict=True) if v[0]}
            if "spacing" in stated:
                voxel["Z"] = float(stated["spacing"]), plain_unit(unit)
    elif file.is_ome:
        images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
        about["ome"] = {key: value for key, value in pixels.items()
                        if key.startswith(("PhysicalSize", "TimeIncrement"))}
        voxel = {axis: (float(pixels[f"PhysicalSize{axis}"]),
                        plain_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm")))
                 for axis in "XYZ" if f"PhysicalSize{axis}" in pixels}
    elif about.get("resolutionunit") == 3:
        voxel = {axis: (1e4 * v[1] / v[0], "um") for axis, v in zip("XY", values[:2], strict=True) if v[0]}
    return voxel, about


def plain_unit(unit: str) -> str:
    """`um`, `nm`, `mm` for every way to write them; others as they are."""
    unit = unit.encode().decode("unicode_escape") if "\\u" in unit else unit      # ImageJ writes \u00B5m
    return UNITS.get(unit, unit)


def ngff_image(attributes: dict) -> dict | None:
    """The first multiscale image of OME-Zarr metadata, 0.4 or 0.5; None where there is none."""
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else None


def _ngff_voxel(image: dict | None) -> dict[str, tuple[float, str]]:
    if image is None:
        return {}
    steps = [*image["datasets"][0].get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    scale = np.prod([step["scale"] for step in steps if step.get("type") == "scale"], axis=0)
    return {axis["name"].upper(): (float(s), plain_unit(axis["unit"]))
            for axis, s in zip(image["axes"], np.atleast_1d(scale), strict=False)
            if axis.get("type") == "space" and "unit" in axis}


# --- writing --------------------------------------------------------------------------------------------------

def write_tiff(path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, compress: bool) -> None:
    """All slices as one file of the volume's kind, streamed: ImageJ, OME or plain; BigTIFF where it has to be.

    float16, which neither ImageJ nor OME knows, becomes float32 there. ImageJ files are not compressed: so they open
    at once, as a virtual stack. The same slices give the same bytes.
    """
    dtype, about, axes = np.dtype(dtype), volume.about, volume.axes
    imagej = volume.kind == "imagej" or (volume.kind == "slice" and "imagej" in about)
    if dtype == np.float16 and (imagej or volume.kind == "ome"):
        dtype = np.dtype(np.float32)
    size = math.prod(volume.shape) * dtype.itemsize
    options = {"shape": volume.shape, "dtype": dtype, "photometric": "minisblack",
               "compression": "zlib" if compress else None}
    options |= {key: about[key] for key in ("resolution", "resolutionunit") if key in about}
    if imagej and dtype.char in IMAGEJ_TYPES and size < CLASSIC_BYTES:
        options |= {"imagej": True, "compression": None, "metadata": {"axes": imagej_axes(axes), **about["imagej"]}}
    elif volume.kind == "ome":
        options |= {"ome": True, "bigtiff": size >= CLASSIC_BYTES, "metadata": {
            "axes": axes.translate(str.maketrans("IQ", "ZT")), **about["ome"],
            "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name} {volume.shape} {dtype}"))}}
    else:
        options |= {"bigtiff": size >= CLASSIC_BYTES, "metadata": {"axes": axes}}
    tifffile.imwrite(path, (np.ascontiguousarray(s, dtype) for s in slices), **options)


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


def write_like(path: Path, volume: Volume, slices: Iterable[np.ndarray], dtype: np.dtype, about: dict) -> None:
    """Write slices as the volume is stored: a folder of files with its names, one TIFF, or a zarr array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if volume.kind == "zarr":
        write_zarr(path, volume, slices, dtype, about)
    elif volume.kind == "folder":
        path.mkdir(exist_ok=True)
        for file, one in zip(volume.about["files"], slices, strict=True):
            write_tiff(path / file.name, open_volume(file), [one], dtype, compress=True)
    else:
        write_tiff(path, volume, slices, dtype, compress=True)
