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

from components import find_components, split_touching
from outputs import crop_volume, roi_of
from sizes import compare_sizes, invented, summarise_sizes
from uncertainty import SMALLEST
from commands import Parser
from utils import InputError, quiet_bar, write_atomically, write_json
from viz_slices import draw_sizes
from volumes import IN_UM, Volume, map_reader, mask_reader, open_volume, plain_name

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
            beside: dict[str, np.ndarray] | None = None) -> pd.DataFrame:
    """A row per label of a box that begins at `low` of an image or volume of `shape`; see `particle_table`.

    `beside`: arrays of the box's shape; the mean of each over a particle becomes a column.
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
    found["weight"] = weight_of(ends - starts, shape)
    found |= {name: ndimage.mean(values, labels, table["label"]) for name, values in (beside or {}).items()}
    return pd.DataFrame(found)


def weight_of(extent: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(N,) inverse of the chance that a box of (N, 2 or 3) `extent`, placed at random, touches no border [px]."""
    return 1 / np.prod(np.maximum(1 - (extent + 1) / shape, 1e-9), axis=1)


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
                   beside: dict[str, Callable[[int], np.ndarray]] | None = None) -> Iterator[pd.DataFrame]:
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
            yield _unmeasured(components.voxels[i], spacing, low, high, shape).assign(component=i)
            continue
        box, bits = (slice(low[1], high[1]), slice(low[2], high[2])), slice(low[2] // 8, -(-high[2] // 8))
        packed = np.stack([masks(z)[box[0], bits] for z in range(low[0], high[0])])
        whole = np.unpackbits(packed, axis=2)[..., low[2] % 8:][..., :high[2] - low[2]]
        labels, _ = ndimage.label(whole, np.ones((3, 3, 3)))
        inside = labels == labels[tuple(components.inside[i] - low)]
        parts = inside.astype(np.int32) if neck is None else split_touching(inside, spacing, neck)
        around = {name: np.stack([one(z)[box] for z in range(low[0], high[0])]) for name, one in maps.items()}
        yield measure(parts, spacing, low, shape, around).assign(component=i)


def _unmeasured(voxels: int, spacing: tuple, low: np.ndarray, high: np.ndarray, shape: tuple) -> pd.DataFrame:
    """A component whose box is too large to be looked at: its size, and no shape."""
    volume = voxels * math.prod(spacing)
    return pd.DataFrame([{"voxels": voxels, "volume": volume, "diameter": (6 * volume / math.pi) ** (1 / 3),
                          **{name: (low[i] + high[i] - 1) / 2 for i, name in enumerate(PLACES)},
                          "touches_border": bool(((low == 0) | (high == shape)).any()),
                          "weight": weight_of((high - low)[None], shape)[0], "unmeasured": True}])


def nearest_distances(table: pd.DataFrame, spacing: tuple[float, ...]) -> np.ndarray:
    """(N,) distance of each particle's centre to the nearest other one [unit]; NaN for a single particle."""
    centres = table[list(PLACES[-len(spacing):])].to_numpy() * spacing
    return cKDTree(centres).query(centres, 2)[0][:, 1] if len(centres) > 1 else np.full(len(centres), np.nan)


# --- command line ---------------------------------------------------------------------------------------------

def voxel_of(volume: Volume, pixel_size: float | None, distance: float | None) -> tuple[tuple[float, ...], str]:
    """Distance of slices, height and width of a pixel, and their unit: µm, or px where nothing is known.

    What is given goes before what the file says; a distance alone does not make sizes known.
    """
    known = {axis: size * IN_UM[unit] for axis, (size, unit) in volume.voxel.items() if unit in IN_UM}
    width = pixel_size or known.get("X")
    if width is None:
        if distance:
            raise InputError(f"{volume.path}: says no pixel size; --slice-distance needs --pixel-size")
        return (1.0, 1.0, 1.0), "px"
    height = pixel_size or known.get("Y", width)
    return (distance or known.get("Z", width), height, width), "µm"


def measure_masks(volume: Volume, spacing: tuple[float, ...], in_slices: bool, neck: float | None = None,
                  smallest: int = SMALLEST, beside: dict[str, Callable[[int], np.ndarray]] | None = None,
                  max_uncertainty: float | None = None) -> pd.DataFrame:
    """All particles of a source: a volume for each point in time, or every slice by itself; with `nearest`, the
    distance of centres, and `fraction`, the foreground, in `attrs`. Those whose mean of `beside["uncertainty"]` is
    above `max_uncertainty` are left out.

    Raises
    ------
    InputError
        When points in time are not the first axis; as `mask_reader`.
    """
    if "T" in volume.axes[1:]:
        raise InputError(f"{volume.path}: has axes {volume.axes}; save time as the first one")
    mask, maps, tables, shares = mask_reader(volume, not in_slices), beside or {}, [], {}
    depth = 1 if in_slices or len(volume.shape) < 3 else volume.shape[-3]

    def read(i: int) -> np.ndarray:
        found = mask(i)
        shares[i] = found.mean()
        return found

    starts = range(0, len(volume), depth)
    for start in quiet_bar(starts, "particles") if depth == 1 else starts:      # a volume has bars of its own
        several = {"time": start // volume.shape[-3]} if len(volume.shape) > 3 else {}
        if depth == 1:
            labels = label_parts(read(start), spacing[1:], neck)
            table = measure(labels, spacing[1:], (0, 0), labels.shape, {name: of(start) for name, of in maps.items()})
            table = table.assign(slice=start % volume.shape[-3] if several else start, **several)
        else:
            found = measure_volume(lambda i, s=start: read(s + i), (depth, *volume.shape[-2:]), spacing, neck, smallest,
                                   {name: lambda i, s=start, of=of: of(s + i) for name, of in maps.items()})
            nothing = np.zeros((1, 1, 1))
            none = measure(nothing.astype(int), spacing, (0, 0, 0), (1, 1, 1), dict.fromkeys(maps, nothing))
            table = pd.concat(found) if (found := list(found)) else none
            table = table.sort_values(list(PLACES)).assign(**several)
        table = table[table["voxels"] >= smallest]                      # parts of what was split, too
        if max_uncertainty is not None:
            table = table[~(table["uncertainty"] > max_uncertainty)]
        tables.append(table.assign(nearest=nearest_distances(table, spacing if depth > 1 else spacing[1:])))
    table = pd.concat(tables, ignore_index=True)
    table.attrs["fraction"] = float(np.mean(list(shares.values())))
    return table


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
        if other.shape != volumes[first].shape:
            raise InputError(f"{other.path}: has shape {other.shape}, {given.masks[0]} {volumes[first].shape}")
    maps = {name: (mask_reader if name == "truth" else map_reader)(crop_volume(other, rois[first]))
            for name, other in beside.items()}
    tables, summaries = {}, {}
    for name, volume in volumes.items():
        spacing, unit = voxels[name]
        neck = given.neck * spacing[-1] if given.split else None
        table = tables[name] = measure_masks(crop_volume(volume, rois[name]), spacing, flat[name], neck, given.smallest,
                                             maps, given.max_uncertainty)
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
