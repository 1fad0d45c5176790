"""Volumes written slice by slice in the family of another one, with its axes and voxel size."""

import math
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import zarr

from slices.classes import Classes, look_up_table
from volumes.reading import open_volume
from volumes.records import tiff_name
from volumes.volume import Volume
from volumes.voxel_size import Voxel

IMAGEJ_TYPES = "BHf"  # uint8, uint16, float32
CLASSIC_BYTES = 2**32 - 2**25  # of a TIFF that is no BigTIFF, at most


@dataclass(frozen=True)
class Content:
    """What the pixels of a written volume are.

    Attributes
    ----------
    dtype : numpy dtype
    details : dict
        What is kept with a zarr array.
    classes : Classes or None
        Of label maps, or of their probabilities.
    has_channels : bool
        Whether slices are (K, H, W): the probability of each class.
    """

    dtype: np.dtype
    details: dict
    classes: Classes | None = None
    has_channels: bool = False

    @property
    def channels(self) -> list[str]:
        """The names of the channels; none where slices have none."""
        return list(self.classes.names) if self.classes and self.has_channels else []

    @property
    def shows_labels(self) -> bool:
        """Whether these are label maps."""
        return self.classes is not None and not self.has_channels


def write_like(path: Path, volume: Volume, slices: Iterable[np.ndarray], content: Content) -> None:
    """Write slices as a volume is stored: a folder of files with its names, one TIFF, or a zarr array.

    Parameters
    ----------
    path : Path
    volume : Volume
        Whose family, axes and voxel size are taken over.
    slices : iterable of (H, W) or (K, H, W) ndarrays
    content : Content
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if volume.kind == "zarr":
        write_zarr(path, volume, slices, content)
    elif volume.kind == "folder":
        path.mkdir(exist_ok=True)
        for file, one in zip(volume.details["files"], slices, strict=True):
            write_tiff(path / tiff_name(file), open_volume(file), [one], content)
    else:
        write_tiff(path, volume, slices, content)


# --- TIFF -----------------------------------------------------------------------------------------


def write_tiff(path: Path, volume: Volume, slices: Iterable[np.ndarray], content: Content) -> None:
    """Write all slices as one file of the volume's kind, streamed: ImageJ, OME or plain.

    Channels stand before rows and columns. Label maps get a look-up table with the colours of their
    classes, where the format knows any: ImageJ's own, or the palette of a plain TIFF.

    float16, which neither ImageJ nor OME knows, becomes float32 there. ImageJ files are not
    compressed: so they open at once, as a virtual stack. They cannot be larger than 4 GB: larger
    ones become OME-TIFF, which ImageJ reads, too, and which keeps the voxel size. The same slices
    give the same bytes.
    """
    details = volume.details
    is_imagej = volume.kind == "imagej" or (volume.kind == "slice" and "imagej" in details)
    is_ome = volume.kind == "ome" or (volume.kind == "slice" and "ome" in details)
    dtype = np.dtype(content.dtype)
    channels = content.channels
    shape, axes = volume.shape, volume.axes
    if channels:
        shape = (*shape[:-2], len(channels), *shape[-2:])
        axes = f"{axes[:-2]}C{axes[-2:]}"
    if dtype == np.float16 and (is_imagej or is_ome):
        dtype = np.dtype(np.float32)
    size = math.prod(shape) * dtype.itemsize
    is_large = size >= CLASSIC_BYTES

    options = {"shape": shape, "dtype": dtype, "photometric": "minisblack"}
    options["compression"] = "zlib"
    for key in ("resolution", "resolutionunit"):
        if key in details:
            options[key] = details[key]

    if is_imagej and dtype.char in IMAGEJ_TYPES and not is_large:
        options["imagej"] = True
        options["compression"] = None
        options["metadata"] = {"axes": named_axes(axes), **details["imagej"]}
        if channels:
            options["metadata"]["Labels"] = channels * (math.prod(shape[:-2]) // len(channels))
        if content.shows_labels and dtype == np.uint8:
            options["metadata"]["LUTs"] = [look_up_table(content.classes)]
    elif is_ome or is_imagej:
        sizes = details["ome"] if is_ome else ome_sizes(volume.voxel)
        options["ome"] = True
        options["bigtiff"] = is_large
        options["metadata"] = {
            "axes": named_axes(axes),
            **sizes,
            "UUID": stable_uuid(f"{path.name} {shape} {dtype}"),
        }
        if channels:
            options["metadata"]["Channel"] = {"Name": channels}
    else:
        options["bigtiff"] = is_large
        options["metadata"] = {"axes": axes}
        if content.shows_labels and dtype == np.uint8:
            options["photometric"] = "palette"
            options["colormap"] = 257 * look_up_table(content.classes).astype(np.uint16)

    tifffile.imwrite(path, pages_of(slices, dtype), **options)


def pages_of(slices: Iterable[np.ndarray], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield slices as the pages of a TIFF: one each, or one for each channel."""
    for one in slices:
        for page in one.reshape(-1, *one.shape[-2:]):
            yield np.ascontiguousarray(page, dtype)


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


def write_zarr(path: Path, volume: Volume, slices: Iterable[np.ndarray], content: Content) -> None:
    """Write all slices as a zarr array like the source: its format, a chunk per slice, its OME-Zarr metadata.

    The axis of channels is the source's own, of length 1, where it has one; else it stands before
    the axes of space, as OME-Zarr asks for.
    """
    zarr_format = volume.details["format"]
    image = volume.details["ngff"]
    source = volume.details["array"]
    attributes = dict(volume.details["attributes"])
    ours = {"freezelayers": content.details}

    layout = array_layout(volume, content)
    options: dict = {}
    if zarr_format == 3 and layout.names is not None:
        options["dimension_names"] = layout.names
    if zarr_format == 2:
        separator = source.metadata.dimension_separator
        options["chunk_key_encoding"] = {"name": "v2", "separator": separator}

    store = path
    name = None
    if image:
        name = "0"
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        metadata = ngff_of_result(attributes, image, path.name, content, layout)
        group.attrs.update(metadata | ours)
        store = group.store

    array = zarr.create_array(
        store,
        name=name,
        shape=layout.shape,
        dtype=content.dtype,
        zarr_format=zarr_format,
        chunks=(*[1] * (len(layout.shape) - 2), *layout.shape[-2:]),
        **options,
    )
    if not image:
        array.attrs.update(attributes | ours)

    # The source may have further axes of length 1.
    stacked = [axis for axis, length in enumerate(source.shape[:-2]) if length != 1]
    for i, one in enumerate(slices):
        place: list[int] = [0] * (source.ndim - 2)
        for axis, index in zip(stacked, np.unravel_index(i, volume.shape[:-2]), strict=True):
            place[axis] = int(index)
        if layout.channel_axis is None:
            array[tuple(place)] = one
            continue
        if layout.is_new_axis:
            place.insert(layout.channel_axis, 0)
        for channel, plane in enumerate(one):
            place[layout.channel_axis] = channel
            array[tuple(place)] = plane


@dataclass(frozen=True)
class ArrayLayout:
    """The axes of a zarr array that is written.

    Attributes
    ----------
    shape : tuple of int
    names : list of str or None
        Of its axes, for zarr 3; None where the source names none.
    channel_axis : int or None
        Where channels stand; None where there are none.
    is_new_axis : bool
        Whether the source has no such axis.
    """

    shape: tuple[int, ...]
    names: list[str] | None
    channel_axis: int | None = None
    is_new_axis: bool = False


def array_layout(volume: Volume, content: Content) -> ArrayLayout:
    """Return the axes that a result has in zarr."""
    source = volume.details["array"]
    stated = getattr(source.metadata, "dimension_names", None)
    names = list(stated) if stated else None
    if not content.channels:
        return ArrayLayout(source.shape, names)

    letters = volume.details["axes"]
    shape = list(source.shape)
    if "C" in letters[:-2]:
        axis = letters.index("C")
        shape[axis] = len(content.channels)
        return ArrayLayout(tuple(shape), names, axis)

    # Time comes before channels, and these before space.
    axis = 1 if letters.startswith("T") else 0
    shape.insert(axis, len(content.channels))
    if names is not None:
        names.insert(axis, "c")
    return ArrayLayout(tuple(shape), names, axis, is_new_axis=True)


def ngff_of_result(
    attributes: dict, image: dict, name: str, content: Content, layout: ArrayLayout
) -> dict:
    """Return OME-Zarr metadata of a result of one level, with the axes and the voxel size of an image's finest level.

    Channels have names and colours, and so have the values of label maps.
    """
    finest = {**image["datasets"][0], "path": "0"}
    kept = ("axes", "version", "coordinateTransformations")
    metadata = {key: value for key, value in image.items() if key in kept}
    if layout.is_new_axis:
        add_channel_axis(metadata, finest, layout.channel_axis)

    described: dict = {"multiscales": [{**metadata, "name": name, "datasets": [finest]}]}
    if content.channels:
        described["omero"] = {"channels": channels_of(content.classes)}
    if content.shows_labels:
        described["image-label"] = labels_of(content.classes)
    if "ome" in attributes:
        version = attributes["ome"].get("version", "0.5")
        return {"ome": {"version": version, **described}}
    return described


def add_channel_axis(metadata: dict, finest: dict, place: int | None) -> None:
    """Add an axis of channels to the metadata of an image and of its finest level, which are changed."""
    if place is None:
        return
    if "axes" in metadata:
        axes = list(metadata["axes"])
        is_described = all(isinstance(axis, dict) for axis in axes)
        axes.insert(place, {"name": "c", "type": "channel"} if is_described else "c")
        metadata["axes"] = axes
    for level in (metadata, finest):
        steps = []
        for step in level.get("coordinateTransformations", []):
            changed = dict(step)
            for kind, neutral in (("scale", 1.0), ("translation", 0.0)):
                if isinstance(changed.get(kind), list):
                    changed[kind] = [*changed[kind][:place], neutral, *changed[kind][place:]]
            steps.append(changed)
        if steps:
            level["coordinateTransformations"] = steps


def channels_of(classes: Classes | None) -> list[dict]:
    """Return the channels of probabilities as OME-Zarr describes them."""
    if classes is None:
        return []
    channels = []
    for name, colour in zip(classes.names, classes.shown_colours, strict=True):
        channels.append(
            {
                "label": name,
                "color": bytes(colour).hex().upper(),
                "active": True,
                "window": {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0},
            }
        )
    return channels


def labels_of(classes: Classes | None) -> dict:
    """Return names and colours of the values of label maps as OME-Zarr describes them."""
    if classes is None:
        return {}
    colours, properties = [], []
    for value, name, colour in zip(
        classes.values, classes.names, classes.shown_colours, strict=True
    ):
        colours.append({"label-value": value, "rgba": [*colour, 255]})
        properties.append({"label-value": value, "class": name})
    return {"colors": colours, "properties": properties}
