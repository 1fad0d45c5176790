"""Volumes slice by slice: folders of TIFF, stacks and zarr are read, with their metadata.

A volume is a list of slices, whatever axes are stacked: z, time, or both. Only the slices asked for are read.
"""

import hashlib
import itertools
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

from runtime.messages import InputError, say_once
from slices.masks import Masks
from slices.reading import (
    IMAGE_SUFFIXES,
    LARGEST,
    TIFF_SUFFIXES,
    Picture,
    complaints,
    list_files,
    main_series,
    palette_of,
    read_array,
    read_picture,
    refuse_bombs,
    refuse_devices,
    shows_zero_white,
    signed_places,
)
from volumes.voxel_size import Voxel, describe_default, describe_voxel, is_default_resolution, plain_unit, read_voxel

SLAB_BYTES = 2**28  # of the slices that share a chunk
CHUNK_BYTES = 2**32  # of a chunk, at most: it is decoded as a whole
MOST_SLICES = 2**24
FILES_COMPARED = 20  # of a folder, about as many are asked for their voxel size
TIFFFILE_IMAGEJ = "1.11a"  # the version that tifffile writes, which leaves the spacing out where nobody gave one
STACKED = "TZIQ"  # axes whose planes are slices: time, depth, and what TIFF does not name
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")  # of which a zarr array or group has one


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
        As far as it is known; see `voxel_size`.
    about : dict
        Further metadata that an output inherits, by family; `remarks`, a line for what the file says and cannot be.
    decode : index → Picture, optional
        A slice as its file shows it, where that is more than its grey values.
    """

    path: Path
    kind: str
    axes: str
    shape: tuple[int, ...]
    names: list[str]
    read: Callable[[int], np.ndarray]
    voxel: Voxel = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    decode: Callable[[int], Picture] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, i: int) -> Picture:
        """Return slice `i` as its file shows it, with colours where it has some."""
        return self.decode(i) if self.decode else Picture(self.read(i))


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
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return Volume(path, "slice", "YX", read_picture(path).shape, [str(path)], lambda _: read_array(path),
                      decode=lambda _: read_picture(path))
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
        raise InputError(f"{path}: holds no slice ({', '.join(IMAGE_SUFFIXES)}), and is no zarr array")
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        stem = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(f"{path}: holds {', '.join(file.name for file in files if file.stem == stem)}, of which one "
                         "slice was saved twice; keep one of them")
    first = open_volume(files[0])
    voxel, remarks = first.voxel, list(first.about.get("remarks", []))
    other = other_voxel(files, voxel)
    if other is not None:
        file, found = other
        remarks.append(f"{path}: {files[0].name} says that a voxel is {describe_voxel(voxel)}, {file.name} says "
                       f"{describe_voxel(found)}; sizes are in pixels (give --pixel-size)")
        voxel = {}
    about = {"files": files, "remarks": remarks, "order": remarks_on_order(path, files)}
    return Volume(path, "folder", "ZYX", (len(files), *first.shape[-2:]), [str(file) for file in files],
                  lambda i: read_array(files[i]), voxel, about, lambda i: read_picture(files[i]))


def remarks_on_order(path: Path, files: list[Path]) -> list[str]:
    """Return lines on what makes files of a folder no neighbours, where they are taken for slices of a volume."""
    stems = [file.stem for file in files]
    places = signed_places(stems)
    if places is None:
        numbers = [re.findall(r"\d+", stem) for stem in stems]
        around = {re.sub(r"\d+", "#", stem) for stem in stems}
        if len(around) > 1:
            return [f"{path}: names of its files have several forms ({stems[0]}, {stems[-1]}); is it one volume? "
                    "Slices are taken in the order of their names"]
        if not all(numbers) or len(files) < 2:
            return []
        if re.search(r"#\.#\D*$", around.pop()) and len({len(found[-1]) for found in numbers}) > 1:
            return [f"{path}: takes numbers in names for whole ones, so that {stems[0]} comes first and {stems[-1]} "
                    "last; rename the files if they are decimals"]
        changing = [i for i in range(len(numbers[0])) if len({found[i] for found in numbers}) > 1]
        if len(changing) != 1:
            return []
        places = [int(found[changing[0]]) for found in numbers]

    steps = [after - before for before, after in itertools.pairwise(places)]
    usual = min(steps, key=abs)
    jumps = [i for i, step in enumerate(steps) if step != usual]
    if jumps:
        i = jumps[0]
        return [f"{path}: numbers of slices jump from {places[i]} to {places[i + 1]}"
                f"{f', and in {len(jumps) - 1} other places' if jumps[1:] else ''}; they are taken for neighbours"]
    if abs(usual) > 1:
        return [f"{path}: has every {abs(usual)}. slice; they are taken for neighbours, and their distance is that of "
                "slices (--slice-distance)"]
    return []


def other_voxel(files: list[Path], voxel: Voxel) -> tuple[Path, Voxel] | None:
    """Return a file that states another voxel size than the first one, and what it states; None where none does.

    Up to `FILES_COMPARED` of them are looked at, evenly spaced, with the last one. A file that cannot be read is an
    error when its slice is asked for, not here.
    """
    step = max(1, len(files) // FILES_COMPARED)
    for file in [*files[step::step], files[-1]]:
        try:
            found = open_volume(file).voxel
        except InputError:
            continue
        units = {axis: unit for axis, (_, unit) in voxel.items()}
        if {axis: unit for axis, (_, unit) in found.items()} != units:
            return file, found
        if any(not math.isclose(found[axis][0], voxel[axis][0], rel_tol=1e-3) for axis in voxel):
            return file, found
    return None


def _open_tiff(path: Path) -> Volume:
    with ExitStack() as opened:
        with complaints() as found:
            file = opened.enter_context(tifffile.TiffFile(path))
            series = main_series(file)
        if found:                                               # pages behind the damage would be missing silently
            raise ValueError(found[0])
        if series is None:
            raise InputError(f"{path}: {len(file.series)} images of different kinds in one file; export one of them")
        rows_and_columns = tuple(series.shape[series.axes.index(axis)] for axis in "YX" if axis in series.axes)
        channels = series.shape[series.axes.index("S")] if "S" in series.axes else 1
        if len(rows_and_columns) == 2 and math.prod(series.shape) == math.prod(rows_and_columns) * channels:
            return Volume(path, "slice", "YX", rows_and_columns, [str(path)], lambda _: read_array(path),
                          *_tiff_metadata(file, path), lambda _: read_picture(path))
        refuse_bombs(series.shape, series.dtype.itemsize, path.stat().st_size if not series.is_multifile else 2**62)
        kind = "imagej" if file.is_imagej else "ome" if file.is_ome else "tiff"
        shape, axes = _stacked(path, series.axes, series.shape)
        array = zarr.open(series.aszarr(level=0), mode="r")
        read = _reader(path, array, series.axes, shape)
        is_inverted, palette = shows_zero_white(file, series.keyframe), palette_of(series.keyframe)
        decode = None
        if is_inverted or palette is not None:
            def decode(i: int) -> Picture:
                return Picture(read(i), None, palette, is_inverted)
        volume = Volume(path, kind, axes, shape, _names(path, shape), read, *_tiff_metadata(file, path), decode)
        weakref.finalize(read, opened.pop_all().close)          # the file stays open as long as slices can be read
        return volume


def _open_zarr(path: Path) -> Volume:
    remarks = []
    try:
        node = zarr.open(path, mode="r")
        image = None
        if isinstance(node, zarr.Group):
            node, name = _image_group(path, node)
            if name:
                remarks.append(f"{path}: is a collection of images (bioformats2raw); its only one, /{name}, is read")
            image = ngff_image(dict(node.attrs))
            level, array = _finest_level(node, image)
            if level:
                remarks.append(f"{path}: its finest level is {level['path']}, not the first one; that is read")
                image = {**image, "datasets": [level]}
        else:
            array = node
        names, (voxel, more) = _dimension_names(array), _ngff_voxel(image, path)
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
    remarks += [*more, *_remarks_on_chunks(path, array, shape)]
    about = {"format": array.metadata.zarr_format, "ngff": image, "attributes": dict(node.attrs), "array": array,
             "remarks": remarks}
    return Volume(path, "zarr", kept, shape, _names(path, shape), _reader(path, array, axes, shape), voxel, about)


def _image_group(path: Path, node: zarr.Group) -> tuple[zarr.Group, str]:
    """Return the group of an OME-Zarr image, and its name where it lies inside another one (bioformats2raw).

    Raises
    ------
    InputError
        When there is no image, or several.
    """
    if ngff_image(dict(node.attrs)) is not None:
        return node, ""
    inside = [name for name, group in node.groups() if ngff_image(dict(group.attrs)) is not None]
    if len(inside) == 1:
        return node[inside[0]], inside[0]
    if inside:
        raise InputError(f"{path}: holds {len(inside)} images; name one of them: "
                         f"{', '.join(str(path / name) for name in sorted(inside)[:5])}")
    arrays = [name for name, _ in node.arrays()]
    raise InputError(f"{path}: is a zarr group without OME-Zarr metadata; name one of its arrays"
                     f" ({', '.join(arrays[:5]) or 'none'})")


def _finest_level(node: zarr.Group, image: dict) -> tuple[dict | None, zarr.Array]:
    """Return the array of the finest level of an image, and that level where it is not the first, as it should be."""
    levels = image["datasets"]
    arrays = [node[level["path"]] for level in levels]
    sizes = [math.prod(array.shape) for array in arrays]
    finest = sizes.index(max(sizes))
    return (levels[finest] if finest else None), arrays[finest]


def _remarks_on_chunks(path: Path, array: zarr.Array, shape: tuple[int, ...]) -> list[str]:
    """Return a line where each slice takes reading much more than itself."""
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if chunk <= SLAB_BYTES or chunk <= math.prod(shape[-2:]) * array.dtype.itemsize:
        return []
    return [f"{path}: has chunks of {chunk / 1e9:.2g} GB, each of which is decoded for every slice in it; chunks of "
            "a few slices would be read many times faster"]


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


def masks_of_volume(volume: Volume, foreground: str = "auto", image: Volume | None = None,
                    option: str = "--mask-foreground") -> Masks:
    """Return the masks in the slices of a volume; `image` is the volume that they belong to, where it is known."""
    def read_slice(i: int) -> np.ndarray | None:
        return None if image is None else image.read(i)

    return Masks(volume.names, volume.picture, foreground, read_slice, option)


def refuse_unlike(one: Volume, other: Volume) -> None:
    """`InputError` where two volumes differ in shape, or have named axes that contradict each other."""
    if one.shape != other.shape:
        raise InputError(f"{one.path}: has shape {one.shape}, {other.path} {other.shape}; they must belong together")
    for axis, its in zip(one.axes, other.axes, strict=True):
        if axis != its and not {axis, its} & set("IQ"):         # which say nothing
            raise InputError(f"{one.path}: has axes {one.axes}, {other.path} {other.axes}; save both in one order")


def of_one_size(masks: Masks, shape: tuple[int, int]) -> Callable[[int], np.ndarray]:
    """Return a reader of masks that refuses those of another shape than (H, W)."""
    def read(i: int) -> np.ndarray:
        mask = masks[i]
        if mask.shape != shape:
            raise InputError(f"{masks.names[i]}: is {mask.shape} px, the first slice {shape}; give slices of one size")
        return mask
    return read


def map_reader(volume: Volume) -> Callable[[int], np.ndarray]:
    """Index → (H, W) map; `InputError` where it is negative, infinite or not a number."""
    def read(i: int) -> np.ndarray:
        stored = volume.read(i)
        if not (np.isfinite(stored) & (stored >= 0)).all():
            raise InputError(f"{volume.names[i]}: holds negative or infinite values; is it an uncertainty?")
        return stored
    return read


def say_remarks(*volumes: Volume | None, are_stacked: bool = False) -> None:
    """Say on standard error what some files state and cannot be.

    With `are_stacked`, slices are taken for neighbours; then also what speaks against that.
    """
    for volume in volumes:
        if volume is None:
            continue
        for line in volume.about.get("remarks", []):
            say_once(line)
        for line in volume.about.get("order", []) if are_stacked else []:
            say_once(line)


def plain_name(path: Path) -> str:
    """Name of a file or folder without the suffixes of images."""
    return re.sub(r"(\.ome)?\.(tiff?|zarr)$", "", path.name, flags=re.IGNORECASE)


# --- metadata -------------------------------------------------------------------------------------------------

def _tiff_metadata(file: tifffile.TiffFile, path: Path) -> tuple[Voxel, dict]:
    """Return the voxel size, and what an output inherits; `remarks` in it are lines on what is not believed."""
    series = main_series(file)
    tags = (file.pages[0] if series is None else series.keyframe).tags
    values = [tags[name].value if name in tags else None for name in ("XResolution", "YResolution", "ResolutionUnit")]
    about = {}
    if all(values[:2]):
        about["pixel"] = tuple(v[1] / v[0] if v[0] else 0.0 for v in values[:2])        # exact, unlike 1 / resolution
        about["resolution"] = tuple(v[0] / v[1] if v and v[1] else 1.0 for v in values[:2])
        about["resolutionunit"] = int(values[2]) if values[2] else 1

    if file.is_imagej:
        stated, remarks = _imagej_voxel(file.imagej_metadata or {}, about, path)
        about["imagej"] = _imagej_inheritance(file.imagej_metadata or {})
    elif file.is_ome:
        pixels = _ome_pixels(file)
        about["ome"] = {key: value for key, value in pixels.items()
                        if key.startswith(("PhysicalSize", "TimeIncrement"))}
        stated = {axis: (pixels[f"PhysicalSize{axis}"], pixels.get(f"PhysicalSize{axis}Unit", "µm"))
                  for axis in "XYZ" if f"PhysicalSize{axis}" in pixels}
        remarks = []
    else:
        stated, remarks = _resolution_voxel(about, path)

    voxel, more = read_voxel(stated, str(path))
    about["remarks"] = [*remarks, *more]
    return voxel, about


def _imagej_voxel(stated: dict, about: dict, path: Path) -> tuple[dict, list[str]]:
    """Return sizes and units that ImageJ states: pixels per unit in the resolution, the distance of slices as spacing.

    Axes whose unit is not that of X have one of their own.
    """
    unit = str(stated.get("unit", ""))
    sizes, remarks = {}, []
    if "pixel" in about and unit:
        for axis, size, per_unit in zip("XY", about["pixel"], about["resolution"], strict=True):
            own = str(stated.get("yunit", unit)) if axis == "Y" else unit
            plain = plain_unit(own)
            if plain in ("inch", "cm") and is_default_resolution(per_unit, plain):
                remarks.append(describe_default(per_unit, plain, str(path)))
                return {}, remarks
            sizes[axis] = size, own
    if not sizes and "spacing" in stated and not unit:          # pixels are 1 by 1, whatever the tags say
        sizes = {"X": (1, ""), "Y": (1, "")}
    spacing = _imagej_spacing(stated)
    if sizes and spacing is not None:
        sizes["Z"] = spacing, str(stated.get("zunit", unit))
    return sizes, remarks


def _imagej_spacing(stated: dict) -> object:
    """Return the distance of slices as an ImageJ file has it; None where it says nothing about it.

    ImageJ leaves it out where it is 1, and in files of a single slice whatever it is.
    """
    if "spacing" in stated:
        return stated["spacing"]
    is_of_imagej = str(stated.get("ImageJ", "")) != TIFFFILE_IMAGEJ
    return 1.0 if is_of_imagej and stated.get("images", 1) > 1 else None


def _imagej_inheritance(stated: dict) -> dict:
    """Return what an ImageJ file that is written says of its voxels, as the one that was read."""
    kept = {key: stated[key] for key in ("unit", "yunit", "zunit", "finterval", "fps") if key in stated}
    spacing = _imagej_spacing(stated)
    if spacing is not None:
        kept["spacing"] = spacing
    for key in ("unit", "yunit", "zunit"):
        if not str(kept.get(key, "")).isascii():
            kept[key] = plain_unit(str(kept[key])).encode("ascii", "backslashreplace").decode()
    return kept


def _ome_pixels(file: tifffile.TiffFile) -> dict:
    """Return the metadata of the first image of an OME-TIFF."""
    images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    return (images[0] if isinstance(images, list) else images)["Pixels"]


def _resolution_voxel(about: dict, path: Path) -> tuple[dict, list[str]]:
    """Return sizes and units of the resolution of a plain TIFF, unless that is one that programs make up."""
    unit = {2: "inch", 3: "cm"}.get(about.get("resolutionunit"))
    if unit is None:                                            # the shape of a pixel alone, if that is not square
        if "pixel" in about and not math.isclose(*about["pixel"], rel_tol=1e-3):
            return {axis: (size, "") for axis, size in zip("XY", about["pixel"], strict=True)}, []
        return {}, []
    for per_unit in about["resolution"]:
        if is_default_resolution(per_unit, unit):
            return {}, [describe_default(per_unit, unit, str(path))]
    return {axis: (size, unit) for axis, size in zip("XY", about["pixel"], strict=True)}, []


def ngff_image(attributes: dict) -> dict | None:
    """The first multiscale image of OME-Zarr metadata, 0.4 or 0.5; None where there is none."""
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else None


def _ngff_voxel(image: dict | None, path: Path) -> tuple[Voxel, list[str]]:
    """Return the voxel size of an OME-Zarr image, and a line for what is not believed.

    The scales of its level and of the image multiply.
    """
    if image is None or not all(isinstance(axis, dict) for axis in image.get("axes", [""])):
        return {}, []
    steps = [*image["datasets"][0].get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    kinds = {str(step.get("type")) for step in steps}
    scales = [step["scale"] for step in steps if isinstance(step.get("scale"), list)]
    if not scales or any(len(scale) != len(image["axes"]) for scale in scales) or kinds - {"scale", "translation",
                                                                                         "identity"}:
        if not steps:
            return {}, []
        return {}, [f"{path}: says its voxel size in a way that is not read ({', '.join(sorted(kinds))}); sizes are in "
                    "pixels (give --pixel-size)"]
    try:
        scale = np.prod(np.array(scales, float), axis=0)
    except (TypeError, ValueError):
        return {}, [f"{path}: says a voxel size that is no number; sizes are in pixels (give --pixel-size)"]
    stated = {axis["name"].upper(): (float(size), axis.get("unit", ""))
              for axis, size in zip(image["axes"], np.atleast_1d(scale), strict=False)
              if axis.get("type", "space") == "space" and axis["name"].upper() in "XYZ"}
    return read_voxel(stated, str(path))


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
