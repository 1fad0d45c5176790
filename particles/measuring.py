"""All particles of a source: of a volume that need not fit into memory, or of every slice by itself.

A volume is read twice, in slabs: first every connected component is found with its box, then each
box is measured. So memory holds a slab, or the box of one component, never the volume.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import ndimage

from evaluation.uncertainty import SMALLEST
from particles.components import NEIGHBOURS, Components, find_components, split_touching
from particles.field_of_view import (
    FieldOfView,
    distance_from,
    farthest_foreground,
    find_field,
    middle_of,
)
from particles.shapes import (
    PLACES,
    Place,
    label_parts,
    measure,
    nearest_distances,
    weight_of,
)
from runtime.messages import InputError, quiet_bar, say_once
from slices.classes import Classes
from slices.label_maps import MasksOfClass
from slices.masks import Masks
from volumes.volume import Volume, crop_volume, masks_of_class, masks_of_volume, of_one_size

BOX_VOXELS = 2**26  # of the largest component that is measured in detail

# A circle at which foreground ends, although nobody has stated a field of view.
RIM = 1.5  # px: of the circle
MOST_OF_CORNER = 0.95  # of the distance of the corners: so far from the middle it is at most
MOST_OF_SIDE = 1.02  # of half the side of a slice
PLACES_IN_SLICE = 3  # at which particles reach it in some slice, at least
PLACES_IN_ALL = 5  # in all slices, at least
SHARE_OF_PARTICLES = 0.05  # that these places are, at least

Reader = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class MeasuringOptions:
    """How particles are measured.

    Attributes
    ----------
    spacing : (3,) tuple of float
        Distance of slices, height and width of a pixel [unit].
    in_slices : bool
        Whether every slice is measured by itself.
    neck : float or None
        Split touching particles, see `particles.components.split_touching` [unit].
    smallest : int
        Voxels of a particle, at least.
    max_uncertainty : float or None
        Particles with a higher mean are left out.
    foreground : {"auto", "dark", "bright", "labels"}
        What is foreground in the masks.
    phase : PhaseOfMaps or None
        The class that is measured, where masks are label maps.
    fov : str
        Field of view, see `particles.field_of_view.find_field`.
    roi : (row, end row, column, end column), or None
        What is looked at [px].
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    in_slices: bool = False
    neck: float | None = None
    smallest: int = SMALLEST
    max_uncertainty: float | None = None
    foreground: str = "auto"
    phase: "PhaseOfMaps | None" = None
    fov: str = "auto"
    roi: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class PhaseOfMaps:
    """A class of label maps.

    Attributes
    ----------
    classes : Classes
    name : str
        Of the class, or its value.
    may_be_partial : bool
        Whether pixels may be without a label, as in predictions.
    """

    classes: Classes
    name: str
    may_be_partial: bool


def masks_to_measure(volume: Volume, options: MeasuringOptions) -> Masks | MasksOfClass:
    """Return what is measured in the slices of a volume: masks, or one class of label maps."""
    phase = options.phase
    if phase is None:
        return masks_of_volume(volume, options.foreground)
    return masks_of_class(volume, phase.classes, phase.name, phase.may_be_partial)


def measure_masks(
    volume: Volume, options: MeasuringOptions, beside: dict[str, Reader] | None = None
) -> pd.DataFrame:
    """Return all particles of a source: of a volume for each point in time, or of every slice by itself.

    Parameters
    ----------
    volume : Volume
        The masks. Of the slices and their field of view what lies in the ROI is looked at.
    options : MeasuringOptions
    beside : dict of name to index → (H, W) ndarray, optional
        Further maps, such as the uncertainty, which are of the ROI already; the mean of each over a
        particle becomes a column.

    Returns
    -------
    DataFrame
        See `particles.shapes.particle_table`; with `nearest`, the distance of centres, and with
        `fraction`, the foreground, and `fov` in `attrs`.

    Raises
    ------
    InputError
        When points in time are not the first axis; as `slices.masks.Masks`, and for slices of
        several sizes.
    """
    if "T" in volume.axes[1:]:
        raise InputError(f"{volume.path}: has axes {volume.axes}; save time as the first one")
    source = open_source(volume, options, beside or {})
    depth = source.volume.shape[-3] if len(source.volume.shape) > 2 else 1
    has_times = len(source.volume.shape) > 3

    tables = []
    if options.in_slices or depth == 1:
        for i in quiet_bar(range(len(source.volume)), "particles"):
            table = measure_slice(source, i)
            table["slice"] = i % depth if has_times else i
            if has_times:
                table["time"] = i // depth
            tables.append(finished(table, options, options.spacing[1:]))
    else:
        for start in range(0, len(source.volume), depth):
            table = measure_part(source, start, depth)
            if has_times:
                table["time"] = start // depth
            tables.append(finished(table, options, options.spacing))

    table = pd.concat(tables, ignore_index=True)
    say_of_unplaced(table, volume)
    table.attrs["fraction"] = source.fraction()
    table.attrs["fov"] = None if source.field is None else source.field.text
    if source.field is None and options.fov == "auto" and not options.in_slices:
        say_of_circle(table, source.volume, source.mask)
    return table


def finished(
    table: pd.DataFrame, options: MeasuringOptions, spacing: tuple[float, ...]
) -> pd.DataFrame:
    """Return a table without particles that are too small or too uncertain, with distances of centres.

    Parts of what was split may be too small, too.
    """
    table = table[table["voxels"] >= options.smallest]
    if options.max_uncertainty is not None:
        table = table[~(table["uncertainty"] > options.max_uncertainty)]
    return table.assign(nearest=nearest_distances(table, spacing))


# --- what is read ---------------------------------------------------------------------------------


class Source:
    """Masks that are measured, their field of view, and further maps of them.

    Attributes
    ----------
    volume : Volume
        What lies in the ROI.
    mask : index → (H, W) uint8 ndarray
    field : FieldOfView or None
    beside : dict of name to index → (H, W) ndarray
    options : MeasuringOptions
    """

    def __init__(
        self,
        volume: Volume,
        mask: Reader,
        field: FieldOfView | None,
        beside: dict[str, Reader],
        options: MeasuringOptions,
    ):
        self.volume = volume
        self.mask = mask
        self.field = field
        self.beside = beside
        self.options = options
        self._foreground: dict[int, float] = {}

    def read(self, i: int) -> np.ndarray:
        """Return the mask of slice `i`, and count its foreground in the field of view."""
        mask = self.mask(i)
        in_view = mask
        if self.field is not None:
            inside = self.field.inside(i)
            if inside.shape != mask.shape:
                raise InputError(
                    f"{self.volume.names[i]}: is {mask.shape} px, its field of view "
                    f"({self.field.text}) {inside.shape}; give --fov none, or a field of view of "
                    "these masks"
                )
            in_view = mask[inside]

        if in_view.size:
            self._foreground[i] = in_view.mean()
        return mask

    def fraction(self) -> float:
        """Return the share of foreground in all slices that were read."""
        if not self._foreground:
            return 0.0
        return float(np.mean(list(self._foreground.values())))

    def beginning_at(self, start: int, depth: int) -> "Source":
        """Return some of the slices, such as those of one point in time."""
        field = None
        if self.field is not None:
            field = self.field.beginning_at(start, depth)
        beside = {name: shifted(read, start) for name, read in self.beside.items()}
        return Source(self.volume, shifted(self.read, start), field, beside, self.options)


def shifted(read: Reader, start: int) -> Reader:
    """Return a reader whose slice 0 is slice `start`."""

    def read_from(i: int) -> np.ndarray:
        return read(start + i)

    return read_from


def open_source(volume: Volume, options: MeasuringOptions, beside: dict[str, Reader]) -> Source:
    """Return what is measured of a volume: inside the ROI, with its field of view."""
    whole = masks_to_measure(volume, options)
    field = find_field(options.fov, volume, whole.__getitem__)
    if field is not None:
        field = field.cropped(options.roi)

    inside = crop_volume(volume, options.roi)
    masks = masks_to_measure(inside, options)
    mask = masks.__getitem__
    if not options.in_slices:
        mask = of_one_size(masks, inside.slice_shape)
    return Source(inside, mask, field, beside, options)


# --- slices ---------------------------------------------------------------------------------------


def measure_slice(source: Source, i: int) -> pd.DataFrame:
    """Return the particles of a slice."""
    spacing = source.options.spacing[1:]
    labels = label_parts(source.read(i), spacing, source.options.neck)
    near_edge = None
    if source.field is not None:
        near_edge = source.field.near_edge(i, in_volume=False)
    place = Place((0, 0), labels.shape, near_edge, source.field)
    beside = {name: read(i) for name, read in source.beside.items()}
    return measure(labels, spacing, place, beside)


# --- volumes --------------------------------------------------------------------------------------


def measure_part(source: Source, start: int, depth: int) -> pd.DataFrame:
    """Return the particles of some of the slices as one volume, in the order of their places."""
    part = source.beginning_at(start, depth)
    shape = (depth, *source.volume.slice_shape)
    tables = list(measure_volume(part.mask, shape, source.options, part.beside, part.field))
    if not tables:
        return empty_table(source)
    return pd.concat(tables).sort_values(list(PLACES))


def empty_table(source: Source) -> pd.DataFrame:
    """Return a table of no particle, with all columns."""
    nothing = np.zeros((1, 1, 1))
    place = Place((0, 0, 0), (1, 1, 1))
    beside = dict.fromkeys(source.beside, nothing)
    return measure(nothing.astype(int), source.options.spacing, place, beside)


def measure_volume(
    read: Reader,
    shape: tuple[int, int, int],
    options: MeasuringOptions,
    beside: dict[str, Reader] | None = None,
    field: FieldOfView | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the particles of a volume that need not fit into memory, a table per component.

    Parameters
    ----------
    read : index → (H, W) ndarray
        The mask.
    shape : (D, H, W)
    options : MeasuringOptions
        Of which spacing, neck and smallest count; components of fewer voxels are left out.
    beside : dict of name to index → (H, W) ndarray
        Further maps; the mean of each over a particle becomes a column.
    field : FieldOfView, optional
        At whose edge particles are cut.

    Yields
    ------
    DataFrame
        As `particles.shapes.particle_table`, with the number of the `component`.
    """
    slices = (read(i) != 0 for i in quiet_bar(range(shape[0]), "find particles"))
    components = find_components(slices, shape)
    boxes = BoxReader(read, beside or {}, field, components, shape)

    by_place = np.lexsort(components.low.T[::-1])
    for i in quiet_bar(by_place, "measure particles", "particle"):
        if components.voxels[i] < options.smallest:
            continue
        if boxes.voxels(i) > BOX_VOXELS:
            table = size_alone(components, i, shape, options.spacing, field)
        else:
            inside = boxes.component(i)
            parts = inside.astype(np.int32)
            if options.neck is not None:
                parts = split_touching(inside, options.spacing, options.neck)
            place = Place(components.low[i], shape, boxes.near_edge(i), field)
            table = measure(parts, options.spacing, place, boxes.beside(i))
        yield table.assign(component=i)


class BoxReader:
    """Read the boxes of components, with the slices of neighbouring boxes kept in memory.

    Masks are kept with a bit for each pixel.
    """

    def __init__(
        self,
        read: Reader,
        beside: dict[str, Reader],
        field: FieldOfView | None,
        components: Components,
        shape: tuple[int, int, int],
    ):
        self.components = components
        self.field = field
        extents = components.high - components.low
        deepest = int(extents[:, 0].max(initial=1))
        slices_in_box = max(2, BOX_VOXELS // (shape[1] * shape[2]))

        @lru_cache(min(deepest + 8, 8 * slices_in_box))
        def read_packed(z: int) -> np.ndarray:
            return np.packbits(read(z) != 0, axis=1)

        self._read_packed = read_packed
        keep = lru_cache(min(deepest + 8, slices_in_box))
        self._beside = {name: keep(read_map) for name, read_map in beside.items()}

    def voxels(self, i: int) -> int:
        """Return the voxels of the box of component `i`."""
        return int(np.prod(self.components.high[i] - self.components.low[i]))

    def component(self, i: int) -> np.ndarray:
        """Return component `i` in its box: (D, H, W) bool."""
        low, high = self.components.low[i], self.components.high[i]

        # Eight columns share a byte: the box is cut out of whole bytes.
        first_byte = low[2] // 8
        end_byte = -(-high[2] // 8)
        packed = [
            self._read_packed(z)[low[1] : high[1], first_byte:end_byte]
            for z in range(low[0], high[0])
        ]
        bits = np.unpackbits(np.stack(packed), axis=2)
        first = low[2] - 8 * first_byte
        box = bits[..., first : first + high[2] - low[2]]

        labels, _ = ndimage.label(box, NEIGHBOURS)
        one_voxel = tuple(self.components.inside[i] - low)
        return labels == labels[one_voxel]

    def near_edge(self, i: int) -> np.ndarray | None:
        """Return where the edge of the field of view cuts what is in the box of component `i`."""
        if self.field is None:
            return None
        return self._stack(i, self.field.near_edge)

    def beside(self, i: int) -> dict[str, np.ndarray]:
        """Return the further maps in the box of component `i`."""
        return {name: self._stack(i, read_map) for name, read_map in self._beside.items()}

    def _stack(self, i: int, read: Reader) -> np.ndarray:
        """Return what a reader gives in the box of component `i`: (D, H, W)."""
        low, high = self.components.low[i], self.components.high[i]
        slices = []
        for z in range(low[0], high[0]):
            slices.append(read(z)[low[1] : high[1], low[2] : high[2]])
        return np.stack(slices)


def size_alone(
    components: Components,
    i: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, ...],
    field: FieldOfView | None,
) -> pd.DataFrame:
    """Return the size of a component whose box is too large to be looked at; it has no shape.

    With a field of view its box counts: so large a component reaches its edge, if its box does.
    """
    low, high = components.low[i], components.high[i]
    is_cut = bool(((low == 0) | (high == shape)).any())
    if field is not None and not is_cut:
        for z in range(low[0], high[0]):
            if field.near_edge(z)[low[1] : high[1], low[2] : high[2]].any():
                is_cut = True
                break

    voxels = components.voxels[i]
    volume = voxels * math.prod(spacing)
    (weight,) = weight_of((high - low)[None], shape, field)
    row = {
        "voxels": voxels,
        "volume": volume,
        "diameter": (6 * volume / math.pi) ** (1 / 3),
    }
    for axis, name in enumerate(PLACES):
        row[name] = (low[axis] + high[axis] - 1) / 2
    row["touches_border"] = is_cut or bool(np.isinf(weight))
    row["weight"] = weight
    row["unmeasured"] = True
    return pd.DataFrame([row])


# --- what is said ---------------------------------------------------------------------------------


def say_of_unplaced(table: pd.DataFrame, volume: Volume) -> None:
    """Say how many particles are so large that they fit hardly anywhere."""
    unplaced = int(table["weight"].isna().sum())
    if unplaced:
        say_once(
            f"{volume.path}: {unplaced} particles are so large that they fit hardly anywhere in the "
            "field of view; they count as cut"
        )


def say_of_circle(table: pd.DataFrame, volume: Volume, mask: Reader) -> None:
    """Say where foreground ends at a circle, as if a field of view had cut it, and nobody has said so.

    Several particles then reach just as far from the middle of the slices, and none into the
    corners.
    """
    shape = volume.slice_shape
    distance = distance_from(shape, *middle_of(shape))
    radius = farthest_foreground(mask, len(volume), distance)
    reaches_corner = radius >= MOST_OF_CORNER * distance.max()
    if radius == 0 or reaches_corner or radius > MOST_OF_SIDE * max(shape) / 2:
        return

    # Particles in a slice that reach the rim count, not pieces of it: a ball far from the middle
    # has one round outline.
    rim = (distance > radius - RIM) & (distance <= radius)
    counts = []
    for i in range(len(volume)):
        labels, _ = ndimage.label(mask(i), np.ones((3, 3)))
        counts.append(np.count_nonzero(np.unique(labels[rim])))
    places = sum(counts)
    least = max(PLACES_IN_ALL, SHARE_OF_PARTICLES * len(table))
    if max(counts) >= PLACES_IN_SLICE and places >= least:
        say_once(
            f"{volume.path}: its foreground ends at a circle of {radius:.0f} px in {places} places, "
            "as at the edge of a field of view; particles that are cut there count as whole: --fov "
            "circle leaves them out"
        )
