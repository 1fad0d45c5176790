"""The field of view of a volume, at whose edge particles are cut: what `predict.py` marked as sample, or a circle."""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from runtime.messages import InputError
from slices.reading import crop_roi
from volumes.outputs import INSIDE, places_beside
from volumes.reading import Volume, masks_of_volume, open_volume

EDGE = 1            # px: so close to its edge is a particle cut by it
SAMPLED = 16        # slices from whose fields of view the weights of particles are taken
CACHED = 64         # slices whose edges are kept
STEP = 1.25         # from one ratio of height and width of a particle to the next for which places are counted


class FieldOfView:
    """Where a volume shows the sample, slice by slice.

    Parameters
    ----------
    inside : index → (H, W) bool ndarray
    depth : int
        Slices.
    text : str
        How it was found, for records.
    """

    def __init__(self, inside: Callable[[int], np.ndarray], depth: int, text: str):
        self.inside, self.depth, self.text = inside, depth, text
        self.near_edge = lru_cache(CACHED)(self._near_edge)
        self.distances = lru_cache(CACHED)(self._distances)

    def _near_edge(self, i: int, in_volume: bool = True) -> np.ndarray:
        """Return what of slice `i` lies outside, or within `EDGE` pixels of it.

        In a volume, what lies outside in a neighbouring slice counts, too.
        """
        first, last = (max(0, i - 1), min(self.depth - 1, i + 1)) if in_volume else (i, i)
        outside = np.zeros(self.inside(i).shape, bool)
        for neighbour in range(first, last + 1):
            outside |= ~self.inside(neighbour)
        reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * EDGE + 1, 2 * EDGE + 1))
        return cv2.dilate(outside.astype(np.uint8), reach).astype(bool)

    def beginning_at(self, start: int, depth: int) -> "FieldOfView":
        """Return the field of view of some of the slices, such as those of one point in time."""
        if start == 0 and depth == self.depth:
            return self
        return FieldOfView(lambda i: self.inside(start + i), depth, self.text)

    def cropped(self, roi: tuple[int, int, int, int] | None) -> "FieldOfView":
        """Return the field of view in a region of interest."""
        if roi is None:
            return self
        return FieldOfView(lambda i: crop_roi(self.inside(i), roi, self.text), self.depth, self.text)

    def share_of_places(self, height: float, width: float) -> float:
        """Return the share of the field of view in which an ellipse of this height and width would not be cut [px].

        Neither by its edge nor by the border of the slice. Over a few slices spread evenly.
        """
        # Where rows and columns are scaled so that the ellipse is a disc, the distance to the edge has to be larger
        # than its radius. Distances are kept for a few ratios of height and width, of which the next one is taken.
        step = round(math.log(width / height) / math.log(STEP))
        distances = self.distances(step)
        radius = math.sqrt(height * width) / 2
        beyond = len(distances) - np.searchsorted(distances, radius, side="right")
        return beyond / max(1, len(distances))

    def _distances(self, step: int) -> np.ndarray:
        """Return the distances of all places inside to the edge, sorted, with rows and columns scaled; (N,)."""
        ratio = STEP**step
        scaled = math.sqrt(ratio), 1 / math.sqrt(ratio)
        found: dict[bytes, np.ndarray] = {}                     # mostly all slices have the same field of view
        for i in np.unique(np.linspace(0, self.depth - 1, SAMPLED).round().astype(int)):
            inside = np.pad(self.inside(int(i)), 1)             # the border of the slice is an edge, too
            key = np.packbits(inside).tobytes()
            if key not in found:
                distance = ndimage.distance_transform_edt(inside, scaled)
                found[key] = distance[inside].astype(np.float32)
        return np.sort(np.concatenate(list(found.values())))


def find_field(text: str, volume: Volume, masks: Callable[[int], np.ndarray]) -> FieldOfView | None:
    """Return the field of view that `--fov` names; None where all of each slice is in it.

    Parameters
    ----------
    text : str
        `auto`: what `predict.py` wrote beside the masks; `none`; `circle`: the smallest one around the middle of the
        slices with all foreground in it; `ROW,COLUMN,RADIUS` [px]; or the file of a mask of the field of view, of one
        slice or of the shape of the masks.
    volume : Volume
        The masks.
    masks : index → (H, W) ndarray
        The same, read.

    Raises
    ------
    InputError
        For other texts, and for a file of another shape.
    """
    shape, depth = volume.shape[-2:], len(volume)
    if text == "none":
        return None
    if text == "auto":
        beside = inside_file(volume.path)
        return None if beside is None else field_of_file(beside, depth)
    if text == "circle":
        row, column = (shape[0] - 1) / 2, (shape[1] - 1) / 2
        radius = farthest_foreground(masks, depth, distance_from(shape, row, column))
        return circle(shape, depth, row, column, radius)
    if Path(text).exists():
        return field_of_file(Path(text), depth)
    try:
        row, column, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--fov {text}: expected auto, none, circle, ROW,COLUMN,RADIUS, or the file of a "
                         "mask") from None
    return circle(shape, depth, row, column, radius)


def inside_file(masks: Path) -> Path | None:
    """Return the map of the sample that `predict.py` wrote beside its masks; None where there is none."""
    return next((path for path in places_beside(masks, INSIDE) if path.exists()), None)


def field_of_file(path: Path, depth: int) -> FieldOfView:
    """Return the field of view in a mask file, everything above 0; one slice stands for all."""
    volume = open_volume(path)
    if len(volume) not in (1, depth):
        raise InputError(f"{path}: has shape {volume.shape}, the masks {depth} slices; give the field of view of these "
                         "masks")
    masks = masks_of_volume(volume)

    @lru_cache(8)
    def inside(i: int) -> np.ndarray:
        try:
            return masks[i if len(volume) > 1 else 0].astype(bool)
        except InputError as error:
            finding = str(error).partition(";")[0]
            raise InputError(f"{finding}; save the field of view as 0 and 255") from None

    return FieldOfView(inside, depth, str(path))


def distance_from(shape: tuple[int, int], row: float, column: float) -> np.ndarray:
    """Return the distance of each pixel's centre from a place [px]: (H, W)."""
    rows, columns = np.ogrid[:shape[0], :shape[1]]
    return np.hypot(rows - row, columns - column)


def circle(shape: tuple[int, int], depth: int, row: float, column: float, radius: float) -> FieldOfView:
    """Return a field of view that is the same circle in all slices."""
    inside = distance_from(shape, row, column) <= radius
    if not inside.any():
        raise InputError(f"--fov {row:g},{column:g},{radius:g}: lies outside slices of {shape} px")
    return FieldOfView(lambda _: inside, depth, f"circle around row {row:g}, column {column:g}, radius {radius:g} px")


def farthest_foreground(masks: Callable[[int], np.ndarray], depth: int, distance: np.ndarray) -> float:
    """Return the largest distance at which there is foreground; 0 without any."""
    farthest = 0.0
    for i in range(depth):
        mask = masks(i).astype(bool)
        if mask.shape != distance.shape:
            raise InputError(f"--fov circle: slice {i} is {mask.shape} px, the first one {distance.shape}; slices of "
                             "several sizes have no circle in common, give --fov none, or the file of a mask")
        if mask.any():
            farthest = max(farthest, float(distance[mask].max()))
    return farthest
