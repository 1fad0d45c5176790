"""Particles of a mask, slice by slice or in the whole volume: what each is like, and how sizes are distributed.

    python evaluate.py particles MASKS [MASKS …] [--pixel-size UM] [--split] [--in-slices] [--output DIR]

A volume is read twice, in slabs: first every connected component is found with its box, then each box is measured. So
memory holds a slab, or the box of one component, never the volume.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, stats
from scipy.spatial import ConvexHull, cKDTree
from skimage.measure import find_contours, marching_cubes, mesh_surface_area, regionprops_table
from tqdm import tqdm

from components import find_components, split_touching
from uncertainty import SMALLEST, area_under_curve
from utils import InputError, write_atomically, write_json
from viz_slices import draw_sizes
from volumes import IN_UM, Volume, open_volume

BOX_VOXELS = 2**26   # of the largest component that is measured in detail
QUANTILES = {"D10": 0.1, "D50": 0.5, "D90": 0.9}
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
        line = max(find_contours(smooth, level), key=len) * spacing
        enclosed = abs(np.sum(line[:-1, 0] * line[1:, 1] - line[1:, 0] * line[:-1, 1])) / 2
        length = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()) * math.sqrt(size / enclosed)
        return length, min(1.0, enclosed / ConvexHull(line).volume), 4 * math.pi * size / length**2
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
    minor = np.where(table["axis_minor_length"] > 0, table["axis_minor_length"], np.nan)
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
    found["weight"] = 1 / np.prod(np.maximum(1 - (ends - starts) / shape, 1e-9), axis=1)
    found |= {name: ndimage.mean(values, labels, table["label"]) for name, values in (beside or {}).items()}
    return pd.DataFrame(found)


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
        (longest over shortest axis of the ellipse of equal moments; NaN for a line); `perimeter` [unit] or `surface`
        [unit²], `solidity`, `circularity` or `sphericity` (see `outline`); centre as (`slice`,) `row`, `column` [px];
        `touches_border`; and `weight`, the inverse of the chance that a particle of this extent, placed at random,
        lies wholly inside (Miles & Lantuéjoul, in Serra, Image Analysis and Mathematical Morphology, 1982): with it
        sizes of the particles that touch no border are those of all.
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
    components = find_components((read(i) != 0 for i in range(shape[0])), shape)
    deepest = int((components.high - components.low)[:, 0].max(initial=1))
    recent = lru_cache(min(deepest + 8, max(2, BOX_VOXELS // (shape[1] * shape[2]))))
    masks, maps = recent(lambda i: read(i) != 0), {name: recent(one) for name, one in (beside or {}).items()}
    for i in np.lexsort(components.low.T[::-1]):
        low, high = components.low[i], components.high[i]
        if components.voxels[i] < smallest:
            continue
        if np.prod(high - low) > BOX_VOXELS:
            yield _unmeasured(components.voxels[i], spacing, low, high, shape).assign(component=i)
            continue
        box = slice(low[1], high[1]), slice(low[2], high[2])
        labels, _ = ndimage.label(np.stack([masks(z)[box] for z in range(low[0], high[0])]), np.ones((3, 3, 3)))
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
                          "weight": 1 / float(np.prod(np.maximum(1 - (high - low) / shape, 1e-9)))}])


# --- how sizes are distributed --------------------------------------------------------------------------------

def nearest_distances(table: pd.DataFrame, spacing: tuple[float, ...]) -> np.ndarray:
    """(N,) distance of each particle's centre to the nearest other one [unit]; NaN for a single particle."""
    centres = table[list(PLACES[-len(spacing):])].to_numpy() * spacing
    return cKDTree(centres).query(centres, 2)[0][:, 1] if len(centres) > 1 else np.full(len(centres), np.nan)


def size_distribution(diameters: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """Cumulative distribution: `diameter`, ascending, and the `share` of all weight up to and including it."""
    order = np.argsort(diameters, kind="stable")
    return pd.DataFrame({"diameter": np.asarray(diameters)[order],
                         "share": np.cumsum(np.asarray(weights)[order]) / np.sum(weights)})


def summarise_sizes(table: pd.DataFrame) -> dict[str, float | int]:
    """Number of particles and D10, D50, D90 by number and by size, of those that touch no border, with their weights.

    Half of the particles (by number), or of their area or volume, are in particles up to the diameter D50.
    """
    whole = table[~table["touches_border"]]
    size = "volume" if "volume" in table else "area"
    found = {"particles": len(table), "whole": len(whole)}
    for by, weights in (("number", whole["weight"]), (size, whole["weight"] * whole[size])):
        for name, quantile in QUANTILES.items():
            found[f"{name}_{by}"] = float(np.quantile(whole["diameter"], quantile, weights=weights,
                                                      method="inverted_cdf")) if len(whole) else None
    return found


def invented(table: pd.DataFrame) -> dict[str, float | int]:
    """Where the truth is known: the number of particles of which less than half lies in it, and with an uncertainty
    the chance that an invented particle has a higher one than another (ROC AUC).
    """
    if "truth" not in table:
        return {}
    false = (table["truth"] < 0.5).to_numpy()
    if "uncertainty" not in table or false.all() or not false.any():
        return {"invented": int(false.sum()), "auc": None}
    return {"invented": int(false.sum()), "auc": area_under_curve(table["uncertainty"].to_numpy(), false)}


def compare_sizes(one: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """How the particles of `other` differ from those of `one`: ratio of D50 by number with its 95 % bootstrap interval
    over particles, and the p-value of the Kolmogorov–Smirnov test that both have one distribution.

    Particles that touch the border are left out. Particles are taken as independent, and the two as different samples:
    where the same particles are seen twice, real differences are clearer than this says.
    """
    whole = [table[~table["touches_border"]] for table in (one, other)]
    if min(map(len, whole)) < 2:
        return {"ratio": None, "low": None, "high": None, "p": None}
    rng, drawn = np.random.default_rng(seed), []

    def median(table: pd.DataFrame) -> float:
        return float(np.quantile(table["diameter"], 0.5, weights=table["weight"], method="inverted_cdf"))

    for _ in range(1000):
        drawn.append(np.divide(*(median(t.iloc[rng.integers(0, len(t), len(t))]) for t in whole[::-1])))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"ratio": median(whole[1]) / median(whole[0]), "low": float(low), "high": float(high),
            "p": float(stats.ks_2samp(*(t["diameter"] for t in whole)).pvalue)}


# --- command line ---------------------------------------------------------------------------------------------

def voxel_of(volume: Volume, pixel_size: float | None, distance: float | None) -> tuple[tuple[float, ...], str]:
    """Distance of slices, height and width of a pixel, and their unit: µm, or px where nothing is known."""
    known = {axis: size * IN_UM[unit] for axis, (size, unit) in volume.voxel.items() if unit in IN_UM}
    width = pixel_size or known.get("X")
    if width is None:
        return ((distance or 1.0), 1.0, 1.0), "px"
    height = pixel_size or known.get("Y", width)
    return (distance or (width if pixel_size else known.get("Z", width)), height, width), "µm"


def mask_reader(volume: Volume) -> Callable[[int], np.ndarray]:
    """Index → (H, W) bool; `InputError` for slices with more values than 0 and one other."""
    def read(i: int) -> np.ndarray:
        stored = volume.read(i)
        if not ((stored == 0) | (stored == stored.max())).all():
            raise InputError(f"{volume.names[i]}: holds other values than 0 and {stored.max()}; is it a mask?")
        if stored.shape != volume.shape[-2:]:
            raise InputError(f"{volume.names[i]}: is {stored.shape} px, the first slice {volume.shape[-2:]}; "
                             "give slices of one size")
        return stored != 0
    return read


def measure_masks(volume: Volume, spacing: tuple[float, ...], in_slices: bool, neck: float | None = None,
                  smallest: int = SMALLEST, beside: dict[str, Callable[[int], np.ndarray]] | None = None,
                  max_uncertainty: float | None = None) -> pd.DataFrame:
    """All particles of a source: a volume for each point in time, or every slice by itself; with `nearest`, the
    distance of centres. Those whose mean of `beside["uncertainty"]` is above `max_uncertainty` are left out.
    """
    read, maps, tables = mask_reader(volume), beside or {}, []
    depth = 1 if in_slices or len(volume.shape) < 3 else volume.shape[-3]
    for start in tqdm(range(0, len(volume), depth), "particles", unit="slice" if depth == 1 else "volume", leave=False):
        if depth == 1:
            labels = label_parts(read(start), spacing[1:], neck)
            table = measure(labels, spacing[1:], (0, 0), labels.shape, {name: of(start) for name, of in maps.items()})
            table = table[table["voxels"] >= smallest].assign(slice=start)
        else:
            found = measure_volume(lambda i, s=start: read(s + i), (depth, *volume.shape[-2:]), spacing, neck, smallest,
                                   {name: lambda i, s=start, of=of: of(s + i) for name, of in maps.items()})
            none = measure(np.zeros((1, 1, 1), int), spacing, (0, 0, 0), (1, 1, 1))
            table = pd.concat(found) if (found := list(found)) else none
            table = table.sort_values(list(PLACES)).assign(**{"time": start // depth} if depth < len(volume) else {})
        if max_uncertainty is not None:
            table = table[table["uncertainty"] <= max_uncertainty]
        tables.append(table.assign(nearest=nearest_distances(table, spacing if depth > 1 else spacing[1:])))
    return pd.concat(tables, ignore_index=True)


def main(arguments: list[str]) -> None:
    """Measure each of MASKS, and compare them with the first."""
    parser = argparse.ArgumentParser(prog="evaluate.py particles", description="Sizes and shapes of particles.")
    parser.add_argument("masks", type=Path, nargs="+", help="folder, .tif stack or zarr of masks; several are compared")
    parser.add_argument("--pixel-size", type=float, help="side of a pixel [µm] (default: what the masks say, else px)")
    parser.add_argument("--slice-distance", type=float, help="distance of slices [µm] (default: what the masks say, "
                        "else the side of a pixel)")
    parser.add_argument("--in-slices", action="store_true", help="each slice by itself, not the volume")
    parser.add_argument("--split", type=float, nargs="?", const=0.5, metavar="NECK", help="split touching particles "
                        "where the radius of the neck is smaller by this [px] than that of either (0.5)")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="voxels of a particle, at least (%(default)s)")
    parser.add_argument("--uncertainty", type=Path, help="map written by predict.py; its mean becomes a column")
    parser.add_argument("--max-uncertainty", type=float, help="leave out particles with a higher mean")
    parser.add_argument("--truth", type=Path, help="true masks; the share of each particle in them becomes a column")
    parser.add_argument("--output", type=Path, help="folder of tables and figure (default: MASKS_particles)")
    given = parser.parse_args(arguments)
    for name in ("pixel_size", "slice_distance", "split", "smallest"):
        if getattr(given, name) is not None and not getattr(given, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(given, name):g}: must be above 0")
    if (given.uncertainty or given.truth) and len(given.masks) > 1:
        raise InputError("--uncertainty, --truth: belong to one of MASKS; measure them one by one")
    if given.max_uncertainty is not None and not given.uncertainty:
        raise InputError("--max-uncertainty: needs the map that predict.py --uncertainty wrote; give --uncertainty MAP")
    output = given.output or given.masks[0].with_name(f"{given.masks[0].name.partition('.')[0]}_particles")
    tables, summaries, units = {}, {}, set()
    for path in given.masks:
        volume = open_volume(path)
        spacing, unit = voxel_of(volume, given.pixel_size, given.slice_distance)
        units.add(unit)
        flat = given.in_slices or volume.axes[:-2] in ("", "T")
        beside = {name: open_volume(other) for name in ("uncertainty", "truth") if (other := getattr(given, name))}
        for other in beside.values():
            if other.shape != volume.shape:
                raise InputError(f"{other.path}: has shape {other.shape}, {path} {volume.shape}")
        maps = {name: mask_reader(other) if name == "truth" else other.read for name, other in beside.items()}
        table = measure_masks(volume, spacing, flat, given.split and given.split * spacing[-1], given.smallest, maps,
                              given.max_uncertainty)
        name = path.name.partition(".")[0] if path.name.partition(".")[0] not in tables else str(path)
        tables[name], read = table, mask_reader(volume)
        fraction = float(np.mean([read(i).mean() for i in range(len(volume))]))
        summaries[name] = {"masks": str(path), "unit": unit, "voxel": spacing, "in_slices": flat, "split": given.split,
                           "smallest": given.smallest, "max_uncertainty": given.max_uncertainty, "fraction": fraction,
                           **summarise_sizes(table), **invented(table)}
        write_atomically(output / f"{path.name.partition('.')[0]}.csv",
                         lambda p, t=table: t.to_csv(p, index=False, float_format="%.6g"))
    if len(units) > 1:
        raise InputError("one of MASKS has a pixel size and another has none; give --pixel-size")
    first, *others = tables
    compared = [{"masks": name, "with": first, **compare_sizes(tables[first], tables[name])} for name in others]
    write_json(output / "summary.json", {"masks": summaries, "compared": compared})
    figure = draw_sizes(tables, units.pop())
    write_atomically(output / "sizes.png", lambda p: figure.savefig(p, dpi=110, format="png"))
    print(pd.DataFrame(summaries).drop(["masks", "voxel"]).to_string())
    for pair in compared:
        print("{masks}: D50 is {ratio:.3f} (95 % interval {low:.3f}–{high:.3f}) times that of {with}, p = {p:.2g}"
              .format(**pair) if pair["ratio"] else f"{pair['masks']}: too few particles to compare")
    print(output)
