"""TIFF files of one or many slices (BigTIFF, ImageJ, OME), and what they say about voxels."""

import math
import weakref
from contextlib import ExitStack
from pathlib import Path

import tifffile
import zarr

from runtime.messages import InputError
from slices.pictures import (
    Picture,
    collect_complaints,
    main_series,
    palette_of,
    read_picture,
    refuse_bombs,
    shows_zero_white,
)
from slices.reading import read_array
from volumes.stacks import SliceReader, names_of_slices, stacked_axes
from volumes.volume import Volume
from volumes.voxel_size import (
    Voxel,
    describe_default,
    is_default_resolution,
    plain_unit,
    read_voxel,
)

# The version that tifffile writes, which leaves the spacing out where nobody gave one.
TIFFFILE_IMAGEJ = "1.11a"

RESOLUTION_UNITS = {2: "inch", 3: "cm"}  # as TIFF numbers them
NO_LIMIT = 2**62  # bytes: the size of a series in several files is not checked


def open_tiff(path: Path) -> Volume:
    """Open a TIFF slice or stack; slices are read when they are asked for.

    Raises
    ------
    InputError
        When it holds images of different kinds, channels or other axes.
    ValueError
        When it is damaged.
    """
    with ExitStack() as opened:
        with collect_complaints() as complaints:
            file = opened.enter_context(tifffile.TiffFile(path))
            series = main_series(file)
        if complaints:
            # Pages behind the damage would be missing silently.
            raise ValueError(complaints[0])
        if series is None:
            raise InputError(
                f"{path}: {len(file.series)} images of different kinds in one file; export one of "
                "them"
            )
        slice_shape = shape_of_single_slice(series)
        if slice_shape is not None:
            voxel, details = read_metadata(file, path)
            return single_slice(path, slice_shape, voxel, details)

        stored_bytes = NO_LIMIT if series.is_multifile else path.stat().st_size
        refuse_bombs(series.shape, series.dtype.itemsize, stored_bytes)
        axes, shape = stacked_axes(path, series.axes, series.shape)
        voxel, details = read_metadata(file, path)
        array = zarr.open(series.aszarr(level=0), mode="r")
        read = SliceReader(path, array, series.axes, shape)

        is_inverted = shows_zero_white(file, series.keyframe)
        palette = palette_of(series.keyframe)

        def decode(i: int) -> Picture:
            return Picture(read(i), None, palette, is_inverted)

        volume = Volume(
            path=path,
            kind=kind_of(file),
            axes=axes,
            shape=shape,
            names=names_of_slices(path, shape),
            read=read,
            voxel=voxel,
            details=details,
            decode=decode if is_inverted or palette is not None else None,
        )
        # The file stays open as long as slices can be read.
        weakref.finalize(read, opened.pop_all().close)
        return volume


def single_slice(
    path: Path, shape: tuple[int, int], voxel: Voxel | None = None, details: dict | None = None
) -> Volume:
    """Return a volume of the one slice in a file."""

    def read(_: int):
        return read_array(path)

    def decode(_: int) -> Picture:
        return read_picture(path)

    return Volume(path, "slice", "YX", shape, [str(path)], read, voxel or {}, details or {}, decode)


def shape_of_single_slice(series: tifffile.TiffPageSeries) -> tuple[int, int] | None:
    """Return rows and columns of a series that is one slice, perhaps coloured; None for a stack."""
    length = dict(zip(series.axes, series.shape, strict=True))
    if "Y" not in length or "X" not in length:
        return None
    rows, columns = length["Y"], length["X"]
    channels = length.get("S", 1)
    if math.prod(series.shape) != rows * columns * channels:
        return None
    return rows, columns


def kind_of(file: tifffile.TiffFile) -> str:
    """Return the family of a TIFF stack: `imagej`, `ome` or `tiff`."""
    if file.is_imagej:
        return "imagej"
    if file.is_ome:
        return "ome"
    return "tiff"


# --- metadata -------------------------------------------------------------------------------------


def read_metadata(file: tifffile.TiffFile, path: Path) -> tuple[Voxel, dict]:
    """Return the voxel size, and what an output inherits, with `remarks`: lines on what is not believed."""
    details = read_resolution(file)
    if file.is_imagej:
        metadata = file.imagej_metadata or {}
        stated, remarks = imagej_voxel(metadata, details, path)
        details["imagej"] = imagej_inheritance(metadata)
    elif file.is_ome:
        pixels = ome_pixels(file)
        stated, remarks = ome_voxel(pixels), []
        details["ome"] = {
            key: value
            for key, value in pixels.items()
            if key.startswith(("PhysicalSize", "TimeIncrement"))
        }
    else:
        stated, remarks = resolution_voxel(details, path)

    voxel, more_remarks = read_voxel(stated, str(path))
    details["remarks"] = [*remarks, *more_remarks]
    return voxel, details


def read_resolution(file: tifffile.TiffFile) -> dict:
    """Return what the tags say about resolution: nothing, or three entries.

    `pixel`: sides (x, y) of a pixel, exact, unlike 1 / resolution. `resolution`: pixels per unit.
    `resolutionunit`: as TIFF numbers it.
    """
    series = main_series(file)
    page = file.pages[0] if series is None else series.keyframe
    values = {}
    for name in ("XResolution", "YResolution", "ResolutionUnit"):
        values[name] = page.tags[name].value if name in page.tags else None
    if not values["XResolution"] or not values["YResolution"]:
        return {}

    pixel = []
    resolution = []
    for name in ("XResolution", "YResolution"):
        numerator, denominator = values[name]
        pixel.append(denominator / numerator if numerator else 0.0)
        resolution.append(numerator / denominator if denominator else 1.0)

    unit = int(values["ResolutionUnit"]) if values["ResolutionUnit"] else 1
    return {"pixel": tuple(pixel), "resolution": tuple(resolution), "resolutionunit": unit}


def imagej_voxel(metadata: dict, details: dict, path: Path) -> tuple[dict, list[str]]:
    """Return sizes and units that ImageJ states, by axis, and lines on what is not believed.

    The resolution holds pixels per unit, and the spacing the distance of slices. Axes whose unit is
    not that of X have one of their own.
    """
    unit = str(metadata.get("unit", ""))
    sizes = {}
    if "pixel" in details and unit:
        units = {"X": unit, "Y": str(metadata.get("yunit", unit))}
        for i, axis in enumerate("XY"):
            per_unit = details["resolution"][i]
            plain = plain_unit(units[axis])
            if plain in RESOLUTION_UNITS.values() and is_default_resolution(per_unit, plain):
                return {}, [describe_default(per_unit, plain, str(path))]
            sizes[axis] = (details["pixel"][i], units[axis])

    if not sizes and "spacing" in metadata and not unit:
        # Pixels are 1 by 1, whatever the tags say.
        sizes = {"X": (1, ""), "Y": (1, "")}
    spacing = imagej_spacing(metadata)
    if sizes and spacing is not None:
        sizes["Z"] = (spacing, str(metadata.get("zunit", unit)))
    return sizes, []


def imagej_spacing(metadata: dict) -> object:
    """Return the distance of slices as an ImageJ file has it; None where it says nothing about it.

    ImageJ leaves it out where it is 1, and in files of a single slice whatever it is.
    """
    if "spacing" in metadata:
        return metadata["spacing"]
    is_of_imagej = str(metadata.get("ImageJ", "")) != TIFFFILE_IMAGEJ
    if is_of_imagej and metadata.get("images", 1) > 1:
        return 1.0
    return None


def imagej_inheritance(metadata: dict) -> dict:
    """Return what an ImageJ file says of its voxels, to be written into a file of its masks."""
    names = ("unit", "yunit", "zunit", "finterval", "fps")
    inherited = {name: metadata[name] for name in names if name in metadata}
    spacing = imagej_spacing(metadata)
    if spacing is not None:
        inherited["spacing"] = spacing

    # ImageJ's metadata are ASCII; it reads escapes in them.
    for name in ("unit", "yunit", "zunit"):
        unit = str(inherited.get(name, ""))
        if not unit.isascii():
            escaped = plain_unit(unit).encode("ascii", "backslashreplace")
            inherited[name] = escaped.decode()

    return inherited


def ome_pixels(file: tifffile.TiffFile) -> dict:
    """Return the metadata of the first image of an OME-TIFF."""
    images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    first = images[0] if isinstance(images, list) else images
    return first["Pixels"]


def ome_voxel(pixels: dict) -> dict:
    """Return sizes and units that OME metadata state, by axis."""
    sizes = {}
    for axis in "XYZ":
        key = f"PhysicalSize{axis}"
        if key in pixels:
            sizes[axis] = (pixels[key], pixels.get(f"{key}Unit", "µm"))
    return sizes


def resolution_voxel(details: dict, path: Path) -> tuple[dict, list[str]]:
    """Return sizes and units of the resolution of a plain TIFF, unless that is one that programs make up.

    Without a unit only the shape of a pixel is known, and only told where it is not square.
    """
    if "pixel" not in details:
        return {}, []
    width, height = details["pixel"]
    unit = RESOLUTION_UNITS.get(details["resolutionunit"])
    if unit is None:
        if math.isclose(width, height, rel_tol=1e-3):
            return {}, []
        return {"X": (width, ""), "Y": (height, "")}, []

    for per_unit in details["resolution"]:
        if is_default_resolution(per_unit, unit):
            return {}, [describe_default(per_unit, unit, str(path))]
    return {"X": (width, unit), "Y": (height, unit)}, []
