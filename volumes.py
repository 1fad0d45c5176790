"""Volumes slice by slice: folders of TIFF, stacks and zarr are read, with their metadata.

A volume is a list of slices, whatever axes are stacked: z, time, or both. Only the slices asked for are read.
"""

import hashlib
import math
import re
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
import zarr

from slices import IMAGE_SUFFIXES, LARGEST, complaints, list_files, read_array, refuse_bombs, refuse_devices
from utils import InputError

SLAB_BYTES = 2**28  # of the slices that share a chunk
CHUNK_BYTES = 2**32  # of a chunk, at most: it is decoded as a whole
MOST_SLICES = 2**24
STACKED = "TZIQ"  # axes whose planes are slices: time, depth, and what TIFF does not name
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")  # of which a zarr array or group has one
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
    refuse_devices(path)
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
        refuse_bombs(series.shape, series.dtype.itemsize, path.stat().st_size if not series.is_multifile else 2**62)
        kind = "imagej" if file.is_imagej else "ome" if file.is_ome else "tiff"
        shape, axes = _stacked(path, series.axes, series.shape)
        array = zarr.open(series.aszarr(level=0), mode="r")
        read = _reader(path, array, series.axes, shape)
        volume = Volume(path, kind, axes, shape, _names(path, shape), read, *_tiff_metadata(file))
        weakref.finalize(read, opened.pop_all().close)          # the file stays open as long as slices can be read
        return volume


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
        names, voxel = _dimension_names(array), _ngff_voxel(image)
        if image:
            named = image.get("axes", "tczyx"[-array.ndim:])            # before 0.4 they were letters, before 0.3 these
            names = [str(axis.get("name", "")) if isinstance(axis, dict) else str(axis) for axis in named]
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever zarr makes of damaged metadata
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as zarr ({type(error).__name__}: {reason})") from None
    axes = "".join(name.upper() if len(name) == 1 else "Q" for name in names)
    if len(axes) != array.ndim:
        raise InputError(f"{path}: its metadata names {len(axes)} axes, the array has {array.ndim}")
    shape, kept = _stacked(path, axes, array.shape)
    check_codecs(path, array)
    about = {"format": array.metadata.zarr_format, "ngff": image, "attributes": dict(node.attrs), "array": array}
    return Volume(path, "zarr", kept, shape, _names(path, shape), _reader(path, array, axes, shape), voxel, about)


def check_codecs(path: Path, array: zarr.Array) -> None:
    """`InputError` for chunks that decoding would execute (pickles) or that no memory holds."""
    stated = array.metadata.to_dict()
    if re.search(r"\bpickle\b", repr([stated.get(key) for key in ("codecs", "filters", "compressor")]).lower()):
        raise InputError(f"{path}: its chunks are pickles, which may run code when they are read; store it again as "
                         "numbers")
    if array.dtype.kind not in "uifb":
        raise InputError(f"{path}: holds {array.dtype} values, expected integers or floats")
    if (size := math.prod(array.chunks) * array.dtype.itemsize) > CHUNK_BYTES:
        raise InputError(f"{path}: has chunks of {size / 1e9:.3g} GB; store it again in smaller ones")


def _dimension_names(array: zarr.Array) -> list[str]:
    names = getattr(array.metadata, "dimension_names", None)
    return [n or "" for n in names] if names else ["q"] * (array.ndim - 2) + ["y", "x"]


def _stacked(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Shape and axes without axes of length 1; `InputError` for channels and transposed images."""
    kept = [(axis, n) for axis, n in zip(axes, shape, strict=True) if n != 1 or axis in "YX"]
    names = "".join(axis for axis, _ in kept)
    if math.prod(shape[-2:]) > LARGEST or math.prod(shape[:-2]) > MOST_SLICES:
        raise InputError(f"{path}: claims to have the shape {shape}; slices have {LARGEST} pixels at most, and volumes "
                         f"{MOST_SLICES} slices")
    if not all(shape) or not names.endswith("YX") or set(names[:-2]) - set(STACKED):
        raise InputError(f"{path}: has axes {axes} and shape {shape}; save one grey channel, stacked along depth or "
                         "time, rows and columns last")
    return tuple(n for _, n in kept), names


def _names(path: Path, shape: tuple[int, ...]) -> list[str]:
    return [f"{path}, slice {i}" for i in range(math.prod(shape[:-2]))]


def _reader(path: Path, array: zarr.Array, axes: str, shape: tuple[int, ...]) -> Callable[[int], np.ndarray]:
    """Index of a slice → the slice, of an array that may have further axes of length 1.

    Where chunks are several slices deep, a slab of them is kept: neighbours come from the same chunks.
    """
    stacked = [i for i, axis in enumerate(axes) if axis not in "YX" and array.shape[i] > 1]
    depth = array.chunks[stacked[-1]] if stacked else 1
    if depth * math.prod(shape[-2:]) * array.dtype.itemsize > SLAB_BYTES:
        depth = 1
    kept, lock = {}, threading.Lock()

    def slab(place: tuple[int, ...]) -> np.ndarray:
        places = dict(zip(stacked, place, strict=True))
        index = [slice(None) if axis in "YX" else places.get(i, 0) for i, axis in enumerate(axes)]
        if depth > 1:
            index[stacked[-1]] = slice(place[-1] * depth, (place[-1] + 1) * depth)
        return array[tuple(index)]

    def read(i: int) -> np.ndarray:
        place = tuple(int(n) for n in np.unravel_index(i, shape[:-2]))
        try:
            if depth == 1:
                return slab(place)
            with lock:
                place, rest = (*place[:-1], place[-1] // depth), place[-1] % depth
                if place not in kept:
                    found = slab(place)
                    kept.clear()
                    kept[place] = found
                return kept[place][rest]
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
        if not str(about["imagej"].get("unit", "")).isascii():
            about["imagej"]["unit"] = plain_unit(str(stated["unit"])).encode("ascii", "backslashreplace").decode()
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
    if not all(isinstance(axis, dict) for axis in image.get("axes", [""])):
        return {}
    steps = [*image["datasets"][0].get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    scale = np.prod([step["scale"] for step in steps if step.get("type") == "scale"], axis=0)
    return {axis["name"].upper(): (float(s), plain_unit(axis["unit"]))
            for axis, s in zip(image["axes"], np.atleast_1d(scale), strict=False)
            if axis.get("type") == "space" and "unit" in axis}


# --- has it changed? ------------------------------------------------------------------------------------------

def stored_files(volume: Volume) -> list[Path]:
    """All files that a volume is read from, as far as they are known; of an OME-TIFF of several files the first."""
    if volume.kind == "folder":
        return volume.about["files"]
    return sorted(p for p in volume.path.rglob("*") if p.is_file()) if volume.path.is_dir() else [volume.path]


def stamp(volume: Volume) -> str:
    """Digest of names, sizes and times of change of the files: another one where something was written since."""
    digest = hashlib.sha256()
    for path in stored_files(volume):
        about = path.stat()
        digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprint(volume: Volume, count: int = 9) -> str:
    """Digest of the names and of `count` slices, evenly spaced, the first and the last among them."""
    digest = hashlib.sha256("\n".join(Path(name).name for name in volume.names).encode())
    for i in np.unique(np.linspace(0, len(volume) - 1, count).round().astype(int)):
        digest.update(np.ascontiguousarray(volume.read(int(i))).tobytes())
    return digest.hexdigest()
