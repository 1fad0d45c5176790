"""What particles are like: size, outline, elongation, and how likely one of this size is seen whole."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull, cKDTree
from skimage.measure import (
    find_contours,
    marching_cubes,
    mesh_surface_area,
    regionprops_table,
)

from particles.components import split_touching
from particles.field_of_view import EDGE, FieldOfView

PLACES = ("slice", "row", "column")

# By dimensions: what size, outline and roundness of a particle are called.
NAMES = {2: ("area", "perimeter", "circularity"), 3: ("volume", "surface", "sphericity")}

SMOOTHING = 1.0  # voxels: σ with which a mask is smoothed before its outline is drawn
AROUND = 3  # voxels of background around it then
LEAST_CHANCE = 1e-9  # that a particle is seen whole, along one axis
PROPERTIES = (
    "label",
    "area",
    "equivalent_diameter_area",
    "axis_major_length",
    "axis_minor_length",
    "bbox",
    "image",
)


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Place:
    """Where a box of labelled particles lies.

    Attributes
    ----------
    low : tuple of int
        First slice, row and column of the box, or row and column.
    shape : tuple of int
        Of the whole image or volume.
    near_edge : bool ndarray of the box's shape, or None
        Where the edge of the field of view cuts what is there.
    field : FieldOfView or None
        Which changes the weights.
    """

    low: tuple[int, ...]
    shape: tuple[int, ...]
    near_edge: np.ndarray | None = None
    field: FieldOfView | None = None


def particle_table(
    mask: np.ndarray, pixel_size: float = 1.0, neck: float | None = None
) -> pd.DataFrame:
    """Return the particles of one slice, or of a volume in memory: connected components, corners included.

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
        `voxels`; `area` [unit²] or `volume` [unit³]; `diameter` of the circle or sphere of that
        size [unit]; `aspect` (longest over shortest axis of the ellipse of equal moments; NaN for
        lines and planes of one voxel); `perimeter` [unit] or `surface` [unit²], `solidity`,
        `circularity` or `sphericity` (see `outline_2d`, `outline_3d`); centre as (`slice`,) `row`,
        `column` [px]; `touches_border`; and `weight`, the inverse of the chance that a particle of
        this extent, placed at random, touches no border (Miles & Lantuéjoul, in Serra, Image
        Analysis and Mathematical Morphology, 1982): with it sizes of the particles that touch no
        border are those of all.
    """
    spacing = (pixel_size,) * mask.ndim
    labels = label_parts(mask, spacing, neck)
    return measure(labels, spacing, Place((0,) * mask.ndim, mask.shape))


def label_parts(mask: np.ndarray, spacing: tuple[float, ...], neck: float | None) -> np.ndarray:
    """Return labels, from 1, of connected components, or of the parts that `split_touching` finds in each."""
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if neck is None:
        return labels
    parts = np.zeros_like(labels)
    count = 0
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == i
        parts_of_component = split_touching(inside, spacing, neck)
        parts[box][inside] = parts_of_component[inside] + count
        count += parts_of_component.max()

    return parts


def measure(
    labels: np.ndarray,
    spacing: tuple[float, ...],
    place: Place,
    beside: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Return a row per label of a box; see `particle_table` for the columns.

    Parameters
    ----------
    labels : (H, W) or (D, H, W) int ndarray
    spacing : tuple of float
        Sides of a pixel or voxel [unit].
    place : Place
    beside : dict of name to ndarray of the box's shape, optional
        The mean of each over a particle becomes a column.
    """
    n = labels.ndim
    properties = regionprops_table(labels, spacing=spacing, properties=PROPERTIES)
    numbers = properties["label"]
    outlines = [outline(image, spacing) for image in properties["image"]]
    size, around, roundness = NAMES[n]

    # What is a line or a plane of voxels has no shortest axis.
    shortest = properties["axis_minor_length"]
    is_flat = shortest <= 1e-3 * min(spacing)
    columns = {
        "voxels": [int(np.count_nonzero(image)) for image in properties["image"]],
        size: properties["area"],
        "diameter": properties["equivalent_diameter_area"],
        "aspect": properties["axis_major_length"] / np.where(is_flat, np.nan, shortest),
        around: [one.length for one in outlines],
        "solidity": [one.solidity for one in outlines],
        roundness: [one.roundness for one in outlines],
    }
    columns = {name: np.asarray(values) for name, values in columns.items()}

    centres = np.array(ndimage.center_of_mass(labels > 0, labels, numbers)).reshape(-1, n)
    for i, name in enumerate(PLACES[-n:]):
        columns[name] = centres[:, i] + place.low[i]

    starts = np.stack([properties[f"bbox-{i}"] + place.low[i] for i in range(n)], 1)  # (N, n)
    ends = np.stack([properties[f"bbox-{n + i}"] + place.low[i] for i in range(n)], 1)
    is_cut = ((starts == 0) | (ends == place.shape)).any(1)
    if place.near_edge is not None:
        is_cut |= ndimage.maximum(place.near_edge, labels, numbers).astype(bool)

    # Of a particle that fits nowhere, nothing is known of its chance: it counts as cut.
    weight = weight_of(ends - starts, place.shape, place.field)
    is_unplaced = np.isinf(weight) & ~is_cut
    columns["touches_border"] = is_cut | is_unplaced
    columns["weight"] = np.where(is_unplaced, np.nan, weight)
    for name, values in (beside or {}).items():
        columns[name] = ndimage.mean(values, labels, numbers)
    return pd.DataFrame(columns)


def weight_of(
    extent: np.ndarray, shape: tuple[int, ...], field: FieldOfView | None = None
) -> np.ndarray:
    """Return the inverse of the chance that a box, placed at random, touches no border.

    In a field of view that is no rectangle, the ellipse in the box takes its place. Where that fits
    nowhere, although the particle does, nothing is known of its chance: the weight is infinite.

    Parameters
    ----------
    extent : (N, 2 or 3) ndarray
        Sides of the boxes [px].
    shape : tuple of int
        Of the whole image or volume.
    field : FieldOfView, optional
    """
    chance = np.maximum(1 - (extent + 1) / shape, LEAST_CHANCE)  # (N, n), along each axis
    if field is None:
        return 1 / np.prod(chance, axis=1)

    sides = extent[:, -2:] + 2 * EDGE
    in_slice = [field.share_of_places(height, width) for height, width in sides]
    across_slices = np.prod(chance[:, :-2], axis=1)
    with np.errstate(divide="ignore"):
        return 1 / (across_slices * np.array(in_slice).reshape(-1))


def nearest_distances(table: pd.DataFrame, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the distance of each particle's centre to the nearest other one [unit]: (N,).

    The result is NaN for a single particle.
    """
    centres = table[list(PLACES[-len(spacing) :])].to_numpy() * spacing
    if len(centres) < 2:
        return np.full(len(centres), np.nan)
    # The nearest of all is the centre itself.
    distances, _ = cKDTree(centres).query(centres, 2)
    return distances[:, 1]


# --- outlines -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outline:
    """The outline of a particle.

    Attributes
    ----------
    length : float
        Perimeter [unit] or surface [unit²].
    solidity : float
        Share of the convex hull that the particle fills.
    roundness : float
        Circularity, 4π area / perimeter²; or sphericity, the surface of the sphere of equal volume
        over that of the particle (Wadell, 1935, doi:10.1086/624298).
    """

    length: float
    solidity: float
    roundness: float


def outline(inside: np.ndarray, spacing: tuple[float, ...]) -> Outline:
    """Return the outline of a particle, 2-D or 3-D."""
    if inside.ndim == 2:
        return outline_2d(inside, spacing)
    return outline_3d(inside, spacing)


def outline_2d(inside: np.ndarray, spacing: tuple[float, float]) -> Outline:
    """Return perimeter, solidity and circularity of a particle in a slice.

    Measured on the contour of the mask smoothed by σ = 1 pixel, scaled such that it encloses the
    particle's own area.
    """
    area = float(np.count_nonzero(inside)) * math.prod(spacing)
    smooth, level = smooth_mask(inside)
    contours = [contour * spacing for contour in find_contours(smooth, level)]

    # Contours around holes turn the other way, so their area counts as negative.
    enclosed = abs(sum(signed_area(contour) for contour in contours))
    length = float(sum(length_of(contour) for contour in contours))
    length *= math.sqrt(area / enclosed)
    hull = ConvexHull(np.concatenate(contours)).volume
    return Outline(length, min(1.0, enclosed / hull), 4 * math.pi * area / length**2)


def signed_area(contour: np.ndarray) -> float:
    """Return the area inside a closed contour, (N, 2): negative where it turns the other way (shoelace formula)."""
    row, column = contour[:-1, 0], contour[:-1, 1]
    next_row, next_column = contour[1:, 0], contour[1:, 1]
    return np.sum(row * next_column - next_row * column) / 2


def length_of(contour: np.ndarray) -> float:
    """Return the length of a contour, (N, 2)."""
    return np.linalg.norm(np.diff(contour, axis=0), axis=1).sum()


def outline_3d(inside: np.ndarray, spacing: tuple[float, float, float]) -> Outline:
    """Return surface, solidity and sphericity of a particle in a volume.

    Measured on the triangles that marching cubes puts around the mask smoothed by σ = 1 voxel
    (Lorensen & Cline, 1987, doi:10.1145/37402.37422), scaled such that they enclose the particle's
    own volume: within 1 % for ellipsoids with semi-axes of 4 voxels and more; edges of boxes are
    rounded. Voxel faces would be half too many.
    """
    volume = float(np.count_nonzero(inside)) * math.prod(spacing)
    smooth, level = smooth_mask(inside)
    corners, faces, _, _ = marching_cubes(smooth, level, spacing=spacing)

    # Each triangle makes a tetrahedron with the origin, of a sixth of a·(b × c).
    a, b, c = (corners[faces[:, i]].astype(float) for i in range(3))
    enclosed = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
    surface = float(mesh_surface_area(corners, faces)) * (volume / enclosed) ** (2 / 3)
    hull = ConvexHull(corners).volume
    surface_of_sphere = math.pi ** (1 / 3) * (6 * volume) ** (2 / 3)
    return Outline(surface, min(1.0, enclosed / hull), surface_of_sphere / surface)


def smooth_mask(inside: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a smoothed particle with background around it, and the level of its outline.

    What is thin lies below one half.
    """
    padded = np.pad(inside, AROUND).astype(np.float32)
    smooth = ndimage.gaussian_filter(padded, SMOOTHING)
    return smooth, min(0.5, smooth.max() / 2)
