"""Particles of a mask, slice by slice or in the whole volume: what each is like, and how sizes are distributed.

    python evaluate.py particles MASKS [MASKS …] [--pixel-size UM] [--split] [--in-slices] [--output DIR]

A volume is read twice, in slabs: first every connected component is found with its box, then each box is measured. So
memory holds a slab, or the box of one component, never the volume.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull, cKDTree
from skimage.measure import find_contours, marching_cubes, mesh_surface_area, regionprops_table

from evaluation.uncertainty import SMALLEST
from particles.components import find_components, split_touching
from particles.field_of_view import EDGE, FieldOfView, distance_from, farthest_foreground, find_field
from particles.sizes import compare_sizes, invented, summarise_sizes
from runtime.command_line import Parser
from runtime.files import write_atomically, write_json
from runtime.messages import InputError, quiet_bar, say_once
from slices.reading import FOREGROUND
from viz.slice_figures import draw_sizes
from volumes.outputs import crop_volume, roi_of
from volumes.reading import (
    Volume,
    map_reader,
    masks_of_volume,
    of_one_size,
    open_volume,
    plain_name,
    refuse_unlike,
    say_remarks,
)
from volumes.voxel_size import relative_sides, sides_in_um

BOX_VOXELS = 2**26   # of the largest component that is measured in detail
NECK = 0.5  # px
PLACES = ("slice", "row", "column")
NAMES = {2: ("area", "perimeter", "circularity"), 3: ("volume", "surface", "sphericity")}  # by dimensions


# --- what a particle is like ----------------------------------------------------------------------------------

def outline(inside: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float, float]:
    """Surface of a particle, its share of the convex hull (solidity), and sphericity; perimeter and circularity in 2-D.

    Measured on the triangles that marching cubes puts around the mask smoothed by σ = 1 voxel (Lorensen & Cline, 1987,
    doi:10.1145/37402.37422), scaled such that they enclose the particle's own volume: within 1 % for ellipsoids with
    semi-axes of 4 voxels and more; edges of boxes are rounded. Voxel faces would be half too many. Sphericity is the
    surface of the sphere of equal volume over that surface (Wadell, 1935, doi:10.1086/624298), circularity
    4π area / perimeter².
    """
    n, size = inside.ndim, float(np.count_nonzero(inside)) * math.prod(spacing)
    smooth = ndimage.gaussian_filter(np.pad(inside, 3).astype(np.float32), 1.0)
    level = min(0.5, smooth.max() / 2)                                      # what is thin lies below one half
    if n == 2:
        lines = [line * spacing for line in find_contours(smooth, level)]     # around holes they turn the other way
        enclosed = abs(sum(np.sum(t[:-1, 0] * t[1:, 1] - t[1:, 0] * t[:-1, 1]) for t in lines)) / 2
        length = float(sum(np.linalg.norm(np.diff(t, axis=0), axis=1).sum() for t in lines))
        length *= math.sqrt(size / enclosed)
        hull = ConvexHull(np.concatenate(lines)).volume
        return length, min(1.0, enclosed / hull), 4 * math.pi * size / length**2
    corners, faces, _, _ = marching_cubes(smooth, level, spacing=spacing)
    a, b, c = (corners[faces[:, i]].astype(float) for i in range(3))
    enclosed = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
    area = float(mesh_surface_area(corners, faces)) * (size / enclosed) ** (2 / 3)
    return area, min(1.0, enclosed / ConvexHull(corners).volume), math.pi ** (1 / 3) * (6 * size) ** (2 / 3) / area


def measure(labels: np.ndarray, spacing: tuple[float, ...], low: tuple[int, ...], shape: tuple[int, ...],
            beside: dict[str, np.ndarray] | None = None, near_edge: np.ndarray | None = None,
            field: FieldOfView | None = None) -> pd.DataFrame:
    """Return a row per label of a box that begins at `low` of an image or volume of `shape`; see `particle_table`.

    Parameters
    ----------
    beside : dict of name to ndarray of the box's shape
        The mean of each over a particle becomes a column.
    near_edge : bool ndarray of the box's shape, optional
        Where the edge of the field of view cuts what is there.
    field : FieldOfView, optional
        Which changes the weights.
    """
    properties = ("label", "area", "equivalent_diameter_area", "axis_major_length", "axis_minor_length", "bbox",
                  "image", "slice")
    table, n = regionprops_table(labels, spacing=spacing, properties=properties), labels.ndim
    minor = np.where(table["axis_minor_length"] > 1e-3 * min(spacing), table["axis_minor_length"], np.nan)
    outlines = np.array([outline(image, spacing) for image in table["image"]]).reshape(-1, 3)
    size, around, roundness = NAMES[n]
    found = {"voxels": [int(np.count_nonzero(image)) for image in table["image"]], size: table["area"],
             "diameter": table["equivalent_diameter_area"], "aspect": table["axis_major_length"] / minor,
             around: outlines[:, 0], "solidity": outlines[:, 1], roundness: outlines[:, 2]}
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, table["label"])).reshape(-1, n)
    found |= {name: centres[:, i] + low[i] for i, name in enumerate(PLACES[-n:])}
    starts = np.stack([table[f"bbox-{i}"] + low[i] for i in range(n)], 1)
    ends = np.stack([table[f"bbox-{n + i}"] + low[i] for i in range(n)], 1)
    found["touches_border"] = ((starts == 0) | (ends == shape)).any(1)
    if near_edge is not None:
        found["touches_border"] |= ndimage.maximum(near_edge, labels, table["label"]).astype(bool)
    found["weight"] = weight_of(ends - starts, shape, field)
    is_unplaced = np.isinf(found["weight"]) & ~found["touches_border"]
    found["weight"][is_unplaced] = np.nan
    found["touches_border"] |= is_unplaced
    found |= {name: ndimage.mean(values, labels, table["label"]) for name, values in (beside or {}).items()}
    return pd.DataFrame(found)


def weight_of(extent: np.ndarray, shape: tuple[int, ...], field: FieldOfView | None = None) -> np.ndarray:
    """Return the inverse of the chance that a box of (N, 2 or 3) `extent` [px], placed at random, touches no border.

    In a field of view that is no rectangle, the ellipse in the box takes its place. Where that fits nowhere, although
    the particle does, nothing is known of its chance: the weight is infinite.
    """
    free = 1 - (extent + 1) / shape
    if field is None:
        return 1 / np.prod(np.maximum(free, 1e-9), axis=1)

    sides = extent[:, -2:] + 2 * EDGE
    in_slice = np.array([field.share_of_places(height, width) for height, width in sides]).reshape(-1, 1)
    free = np.concatenate([np.maximum(free[:, :-2], 1e-9), in_slice], axis=1)
    with np.errstate(divide="ignore"):
        return 1 / np.prod(free, axis=1)


def particle_table(mask: np.ndarray, pixel_size: float = 1.0, neck: float | None = None) -> pd.DataFrame:
    """Particles of one slice, or of a volume in memory: connected components, corners included.

    Parameters
    ----------
    mask : (H, W) or (D, H, W) bool or 0/1 ndarray
    pixel_size : float
        Side of a pixel [unit], e.g. 0.022 for 22 nm in µm.
    neck : float or None
        Split touching particles, see `split_touching` [unit].

    Returns
    -------
    DataFrame
        `voxels`; `area` [unit²] or `volume` [unit³]; `diameter` of the circle or sphere of that size [unit]; `aspect`
        (longest over shortest axis of the ellipse of equal moments; NaN for lines and planes of one voxel);
        `perimeter` [unit] or `surface` [unit²], `solidity`, `circularity` or `sphericity` (see `outline`); centre as
        (`slice`,) `row`, `column` [px]; `touches_border`; and `weight`, the inverse of the chance that a particle of
        this extent, placed at random, touches no border (Miles & Lantuéjoul, in Serra, Image Analysis and Mathematical
        Morphology, 1982): with it sizes of the particles that touch no border are those of all.
    """
    spacing = (pixel_size,) * mask.ndim
    return measure(label_parts(mask, spacing, neck), spacing, (0,) * mask.ndim, mask.shape)


def label_parts(mask: np.ndarray, spacing: tuple[float, ...], neck: float | None) -> np.ndarray:
    """Labels, from 1, of connected components, or of the parts that `split_touching` finds in each."""
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if neck is None:
        return labels
    parts, count = np.zeros_like(labels), 0
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == i
        found = split_touching(inside, spacing, neck)
        parts[box][inside] = found[inside] + count
        count += found.max()
    return parts


def measure_volume(read: Callable[[int], np.ndarray], shape: tuple[int, int, int], spacing: tuple[float, ...],
                   neck: float | None = None, smallest: int = 1,
                   beside: dict[str, Callable[[int], np.ndarray]] | None = None,
                   field: FieldOfView | None = None) -> Iterator[pd.DataFrame]:
    """Particles of a volume that need not fit into memory, a table per component: `particle_table` with `component`.

    Parameters
    ----------
    read : index → (H, W) ndarray
        The mask.
    beside : dict of name to index → (H, W) ndarray
        Further maps, such as the uncertainty; the mean of each over a particle becomes a column.
    spacing : (3,) tuple of float
        Distance of slices, height and width of a pixel [unit].
    smallest : int
        Components of fewer voxels are left out.
    field : FieldOfView, optional
        At whose edge particles are cut.
    """
    components = find_components((read(i) != 0 for i in quiet_bar(range(shape[0]), "find particles")), shape)
    deepest = int((components.high - components.low)[:, 0].max(initial=1))
    held = max(2, BOX_VOXELS // (shape[1] * shape[2]))
    masks = lru_cache(min(deepest + 8, 8 * held))(lambda i: np.packbits(read(i) != 0, axis=1))      # eight in a byte
    maps = {name: lru_cache(min(deepest + 8, held))(one) for name, one in (beside or {}).items()}
    for i in quiet_bar(np.lexsort(components.low.T[::-1]), "measure particles", "particle"):
        low, high = components.low[i], components.high[i]
        if components.voxels[i] < smallest:
            continue
        if np.prod(high - low) > BOX_VOXELS:
            yield _unmeasured(components.voxels[i], spacing, low, high, shape, field).assign(component=i)
            continue
        box, bits = (slice(low[1], high[1]), slice(low[2], high[2])), slice(low[2] // 8, -(-high[2] // 8))
        packed = np.stack([masks(z)[box[0], bits] for z in range(low[0], high[0])])
        whole = np.unpackbits(packed, axis=2)[..., low[2] % 8:][..., :high[2] - low[2]]
        labels, _ = ndimage.label(whole, np.ones((3, 3, 3)))
        inside = labels == labels[tuple(components.inside[i] - low)]
        parts = inside.astype(np.int32) if neck is None else split_touching(inside, spacing, neck)
        around = {name: np.stack([one(z)[box] for z in range(low[0], high[0])]) for name, one in maps.items()}
        near_edge = None if field is None else np.stack([field.near_edge(z)[box] for z in range(low[0], high[0])])
        yield measure(parts, spacing, low, shape, around, near_edge, field).assign(component=i)


def _unmeasured(voxels: int, spacing: tuple, low: np.ndarray, high: np.ndarray, shape: tuple,
                field: FieldOfView | None) -> pd.DataFrame:
    """Return the size of a component whose box is too large to be looked at; it has no shape.

    With a field of view its box counts: so large a component reaches its edge, if its box does.
    """
    is_cut = ((low == 0) | (high == shape)).any()
    if field is not None:
        box = slice(low[1], high[1]), slice(low[2], high[2])
        is_cut |= any(field.near_edge(z)[box].any() for z in range(low[0], high[0]))
    volume, weight = voxels * math.prod(spacing), weight_of((high - low)[None], shape, field)[0]
    return pd.DataFrame([{"voxels": voxels, "volume": volume, "diameter": (6 * volume / math.pi) ** (1 / 3),
                          **{name: (low[i] + high[i] - 1) / 2 for i, name in enumerate(PLACES)},
                          "touches_border": bool(is_cut or np.isinf(weight)), "weight": weight, "unmeasured": True}])


def nearest_distances(table: pd.DataFrame, spacing: tuple[float, ...]) -> np.ndarray:
    """(N,) distance of each particle's centre to the nearest other one [unit]; NaN for a single particle."""
    centres = table[list(PLACES[-len(spacing):])].to_numpy() * spacing
    return cKDTree(centres).query(centres, 2)[0][:, 1] if len(centres) > 1 else np.full(len(centres), np.nan)


# --- command line ---------------------------------------------------------------------------------------------

def voxel_of(volume: Volume, pixel_size: float | None, distance: float | None) -> tuple[tuple[float, ...], str]:
    """Return distance of slices, height and width of a pixel, and their unit: µm, or px where no size is known.

    What is given goes before what the file says. Where a file knows the shape of a voxel and not its size, the sides
    are in units of the smallest one. What is known of no axis, or not given, is taken as the side of a pixel, which is
    said.

    Raises
    ------
    InputError
        When a distance is given, and no pixel size is known.
    """
    stated, unit = sides_in_um(volume.voxel), "µm"
    if not {"X", "Y"} & stated.keys() and not pixel_size:
        if distance:
            raise InputError(f"{volume.path}: says no pixel size; --slice-distance needs --pixel-size")
        stated, unit = relative_sides(volume.voxel), "px"

    if pixel_size:
        width, shape, known = pixel_size, relative_sides(volume.voxel), sides_in_um(volume.voxel)
        height = pixel_size * shape["Y"] / shape["X"] if {"X", "Y"} <= shape.keys() else pixel_size
        depth = known.get("Z")
        if depth is None and {"X", "Z"} <= shape.keys():
            depth = pixel_size * shape["Z"] / shape["X"]
        elif depth is not None and distance is None and not math.isclose(known.get("X", width), width, rel_tol=0.01):
            say_once(f"{volume.path}: --pixel-size {width:g} takes the place of {known.get('X', 0):g} µm; the "
                     f"distance of slices stays as the file says, {depth:g} µm, unless --slice-distance is given")
    else:
        width = stated.get("X", stated.get("Y", 1.0))
        height, depth = stated.get("Y", width), stated.get("Z")
        if unit == "px" and not {"X", "Y"} & stated.keys():
            depth = None                                        # relative to nothing
    depth = distance or depth
    if depth is None and len(volume) > 1 and set("ZIQ") & set(volume.axes) and unit == "µm":
        say_once(f"{volume.path}: the distance of its slices is not known, and taken as the side of a pixel, {width:g} "
                 "µm; give --slice-distance if that is wrong")
    return (depth or width, height, width), unit


def measure_masks(volume: Volume, spacing: tuple[float, ...], in_slices: bool, neck: float | None = None,
                  smallest: int = SMALLEST, beside: dict[str, Callable[[int], np.ndarray]] | None = None,
                  max_uncertainty: float | None = None, foreground: str = "auto", fov: str = "auto",
                  roi: tuple[int, int, int, int] | None = None) -> pd.DataFrame:
    """Return all particles of a source: of a volume for each point in time, or of every slice by itself.

    With `nearest`, the distance of centres, and `fraction`, the foreground, in `attrs`. Those whose mean of
    `beside["uncertainty"]` is above `max_uncertainty` are left out. Of the slices and their field of view what lies in
    `roi` is looked at, and of `beside`, which is that already.

    Raises
    ------
    InputError
        When points in time are not the first axis; as `slices.masks.Masks`, and for slices of several sizes.
    """
    if "T" in volume.axes[1:]:
        raise InputError(f"{volume.path}: has axes {volume.axes}; save time as the first one")
    whole = masks_of_volume(volume, foreground)
    field = find_field(fov, volume, whole.__getitem__)
    field = None if field is None else field.cropped(roi)
    volume = crop_volume(volume, roi)
    masks = masks_of_volume(volume, foreground)
    mask = masks.__getitem__ if in_slices else of_one_size(masks, volume.shape[-2:])
    maps, tables, shares = beside or {}, [], {}
    depth = 1 if in_slices or len(volume.shape) < 3 else volume.shape[-3]

    def read(i: int) -> np.ndarray:
        found = mask(i)
        seen = found
        if field is not None:
            inside = field.inside(i)
            if inside.shape != found.shape:
                raise InputError(f"{volume.names[i]}: is {found.shape} px, its field of view ({field.text}) "
                                 f"{inside.shape}; give --fov none, or a field of view of these masks")
            seen = found[inside]
        if seen.size:
            shares[i] = seen.mean()
        return found

    starts = range(0, len(volume), depth)
    for start in quiet_bar(starts, "particles") if depth == 1 else starts:      # a volume has bars of its own
        several = {"time": start // volume.shape[-3]} if len(volume.shape) > 3 else {}
        if depth == 1:
            labels = label_parts(read(start), spacing[1:], neck)
            near_edge = None if field is None else field.near_edge(start, in_volume=False)
            table = measure(labels, spacing[1:], (0, 0), labels.shape, {name: of(start) for name, of in maps.items()},
                            near_edge, field)
            table = table.assign(slice=start % volume.shape[-3] if several else start, **several)
        else:
            found = measure_volume(lambda i, s=start: read(s + i), (depth, *volume.shape[-2:]), spacing, neck, smallest,
                                   {name: lambda i, s=start, of=of: of(s + i) for name, of in maps.items()},
                                   None if field is None else field.beginning_at(start, depth))
            nothing = np.zeros((1, 1, 1))
            none = measure(nothing.astype(int), spacing, (0, 0, 0), (1, 1, 1), dict.fromkeys(maps, nothing))
            table = pd.concat(found) if (found := list(found)) else none
            table = table.sort_values(list(PLACES)).assign(**several)
        table = table[table["voxels"] >= smallest]                      # parts of what was split, too
        if max_uncertainty is not None:
            table = table[~(table["uncertainty"] > max_uncertainty)]
        tables.append(table.assign(nearest=nearest_distances(table, spacing if depth > 1 else spacing[1:])))
    table = pd.concat(tables, ignore_index=True)
    unplaced = int(table["weight"].isna().sum())
    if unplaced:
        say_once(f"{volume.path}: {unplaced} particles are so large that they fit hardly anywhere in the field of "
                 "view; they count as cut")
    table.attrs["fraction"] = float(np.mean(list(shares.values()))) if shares else 0.0
    table.attrs["fov"] = None if field is None else field.text
    if field is None and fov == "auto" and not in_slices:
        say_of_circle(table, volume, mask)
    return table


def say_of_circle(table: pd.DataFrame, volume: Volume, mask: Callable[[int], np.ndarray]) -> None:
    """Say where foreground ends at a circle, as if a field of view had cut it, and nobody has said so.

    Several particles then reach just as far from the middle of the slices, and none into the corners.
    """
    shape = volume.shape[-2:]
    distance = distance_from(shape, (shape[0] - 1) / 2, (shape[1] - 1) / 2)
    radius = farthest_foreground(mask, len(volume), distance)
    if not 0 < radius < 0.95 * distance.max() or radius > 1.02 * max(shape) / 2:
        return
    rim = (distance > radius - 1.5) & (distance <= radius)
    # Particles in a slice that reach the rim, not pieces of it: a ball far from the middle has one round outline.
    counts = []
    for i in range(len(volume)):
        labels, _ = ndimage.label(mask(i), np.ones((3, 3)))
        counts.append(np.count_nonzero(np.unique(labels[rim])))
    places = sum(counts)
    if max(counts) >= 3 and places >= max(5, 0.05 * len(table)):
        say_once(f"{volume.path}: its foreground ends at a circle of {radius:.0f} px in {places} places, as at the "
                 "edge of a field of view; particles that are cut there count as whole: --fov circle leaves them out")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of `main`; `InputError` for values that make no sense."""
    parser = Parser(prog="evaluate.py particles", description="Sizes and shapes of particles.")
    parser.add_argument("masks", type=Path, nargs="+", help="folder of .tif, stack or zarr; several are compared")
    parser.add_argument("--pixel-size", type=float, help="side of a pixel [µm] (default: what the masks say, else px)")
    parser.add_argument("--slice-distance", type=float, help="distance of slices [µm] (default: what the masks say, "
                        "else the side of a pixel)")
    parser.add_argument("--in-slices", action="store_true", help="each slice by itself, not the volume")
    parser.add_argument("--split", action="store_true", help="split touching particles")
    parser.add_argument("--neck", type=float, default=NECK, help="of what is split: by how much the radius between two "
                        "parts is smaller than that of either [px] (%(default)s)")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="voxels of a particle, at least (%(default)s)")
    parser.add_argument("--uncertainty", type=Path, help="map written by predict.py; its mean becomes a column")
    parser.add_argument("--max-uncertainty", type=float, help="leave out particles with a higher mean")
    parser.add_argument("--truth", type=Path, help="true masks; the share of each particle in them becomes a column")
    parser.add_argument("--mask-foreground", default="auto", choices=FOREGROUND, help="what is foreground in MASKS: "
                        "the dark or the bright side, labels (all above 0), or auto, by their values (%(default)s)")
    parser.add_argument("--truth-foreground", default="auto", choices=FOREGROUND, help="the same of --truth")
    parser.add_argument("--fov", default="auto", help="field of view, at whose edge particles are cut as at the "
                        "border: what predict.py wrote beside the masks (auto), none, circle: the smallest one with "
                        "all foreground in it, ROW,COLUMN,RADIUS [px], or the file of a mask (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of tables and figure (default: MASKS_particles)")
    given = parser.parse_args(arguments)
    for name in ("pixel_size", "slice_distance", "neck", "smallest", "max_uncertainty"):
        if (value := getattr(given, name)) is not None and not 0 < value < 1e9:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: must be above 0 and below 10⁹")
    if (given.uncertainty or given.truth) and len(given.masks) > 1:
        raise InputError("--uncertainty, --truth: belong to one of MASKS; measure them one by one")
    if given.max_uncertainty is not None and not given.uncertainty:
        raise InputError("--max-uncertainty: needs the map that predict.py --uncertainty wrote; give --uncertainty MAP")
    given.masks = [Path(os.path.abspath(path)) if path.name in ("", "..") else path for path in given.masks]
    if not all(path.name for path in given.masks):
        raise InputError("MASKS /: is no folder of masks; name one")
    given.output = given.output or given.masks[0].with_name(f"{plain_name(given.masks[0])}_particles")
    if given.output.exists() and not given.output.is_dir():
        raise InputError(f"{given.output}: is a file; --output names a folder")
    return given


def distinct_names(paths: list[Path]) -> list[str]:
    """A short name for each path, no two alike."""
    names = [plain_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{plain_name(path.absolute().parent)}_{name}" for path, name in zip(paths, names, strict=True)]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names, 1)]


def main(arguments: list[str]) -> None:
    """Measure each of MASKS, and compare them with the first; all is looked at before anything is written."""
    given = parse(arguments)
    volumes = {name: open_volume(path) for name, path in zip(distinct_names(given.masks), given.masks, strict=True)}
    say_remarks(*volumes.values(), are_stacked=not given.in_slices)
    voxels = {name: voxel_of(volume, given.pixel_size, given.slice_distance) for name, volume in volumes.items()}
    flat = {name: given.in_slices or volume.axes[:-2] in ("", "T") for name, volume in volumes.items()}
    if len({unit for _, unit in voxels.values()}) > 1:
        raise InputError("one of MASKS has a pixel size and another has none; give --pixel-size")
    if len(set(flat.values())) > 1:
        raise InputError("one of MASKS is a slice and another a volume; give --in-slices, or measure them one by one")
    rois = {name: roi_of(volume.path) for name, volume in volumes.items()}
    first, *others = volumes
    beside = {name: open_volume(other) for name in ("uncertainty", "truth") if (other := getattr(given, name))}
    for other in beside.values():
        refuse_unlike(other, volumes[first])
    maps = {}
    for name, other in beside.items():
        cropped = crop_volume(other, rois[first])
        if name == "truth":
            maps[name] = of_one_size(masks_of_volume(cropped, given.truth_foreground, option="--truth-foreground"),
                                     cropped.shape[-2:])
        else:
            maps[name] = map_reader(cropped)
    tables, summaries = {}, {}
    for name, volume in volumes.items():
        spacing, unit = voxels[name]
        neck = given.neck * spacing[-1] if given.split else None
        table = tables[name] = measure_masks(volume, spacing, flat[name], neck, given.smallest, maps,
                                             given.max_uncertainty, given.mask_foreground, given.fov, rois[name])
        if rois[name]:                                                  # places are those in the whole slice
            table["row"], table["column"] = table["row"] + rois[name][0], table["column"] + rois[name][2]
        large = int(table["unmeasured"].eq(True).sum()) if "unmeasured" in table else 0
        if large:
            print(f"{volume.path}: {large} components are too large to be looked at (a box of more than {BOX_VOXELS} "
                  "voxels): not split, without shape", file=sys.stderr)
        summaries[name] = {"masks": str(volume.path), "unit": unit, "voxel": spacing, "in_slices": flat[name],
                           "roi": rois[name], "split": given.neck if given.split else None, "smallest": given.smallest,
                           "max_uncertainty": given.max_uncertainty, "too_large": large, **table.attrs,
                           **summarise_sizes(table), **invented(table)}
    compared = [{"masks": name, "with": first, **compare_sizes(tables[first], tables[name])} for name in others]
    for name, table in tables.items():
        write_atomically(given.output / f"{name}.csv",
                         lambda path, t=table: t.to_csv(path, index=False, float_format="%.6g"))
    write_json(given.output / "summary.json", {"masks": summaries, "compared": compared})
    figure = draw_sizes(tables, voxels[first][1])
    write_atomically(given.output / "sizes.png", lambda path: figure.savefig(path, dpi=110, format="png"))
    print(pd.DataFrame(summaries).drop("masks").to_string())
    for pair in compared:
        print("{masks}: D50 is {ratio:.3f} (95 % interval {low:.3f}–{high:.3f}) times that of {with}, p = {p:.2g}"
              .format(**pair) if pair["ratio"] else f"{pair['masks']}: too few particles to compare")
    print(given.output)
