"""The field of view of a volume, at whose edge particles are cut: what `predict.py` marked as sample, or a circle."""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from outputs import INSIDE
from utils import InputError
from volumes import Volume, masks_of_volume, of_one_size, open_volume, plain_name

EDGE = 1            # px: so close to its edge is a particle cut by it
SAMPLED = 16        # slices from whose fields of view the weights of particles are taken
CACHED = 64         # slices whose edges are kept


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
        self._distances: np.ndarray | None = None

    def _near_edge(self, i: int) -> np.ndarray:
        """Return what of slice `i` lies outside, or within `EDGE` pixels of it in this or a neighbouring slice."""
        outside = np.zeros(self.inside(i).shape, bool)
        for neighbour in range(max(0, i - 1), min(self.depth, i + 2)):
            outside |= ~self.inside(neighbour)
        reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * EDGE + 1, 2 * EDGE + 1))
        return cv2.dilate(outside.astype(np.uint8), reach).astype(bool)

    def beginning_at(self, start: int, depth: int) -> "FieldOfView":
        """Return the field of view of some of the slices, such as those of one point in time."""
        if start == 0 and depth == self.depth:
            return self
        return FieldOfView(lambda i: self.inside(start + i), depth, self.text)

    def share_of_places(self, radius: float) -> float:
        """Return the share of the field of view in which a disc of `radius` pixels would not be cut.

        The distance to the edge, or to the border of the slice, has to be larger. Over a few slices spread evenly.
        """
        if self._distances is None:
            found = []
            for i in np.unique(np.linspace(0, self.depth - 1, SAMPLED).round().astype(int)):
                inside = np.pad(self.inside(int(i)), 1)         # the border of the slice is an edge, too
                distance = ndimage.distance_transform_edt(inside)
                found.append(distance[inside].astype(np.float32))
            self._distances = np.sort(np.concatenate(found))
        beyond = len(self._distances) - np.searchsorted(self._distances, radius, side="right")
        return beyond / max(1, len(self._distances))


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
        return None if beside is None else field_of_file(beside, shape, depth)
    if text == "circle":
        row, column = (shape[0] - 1) / 2, (shape[1] - 1) / 2
        radius = farthest_foreground(masks, depth, distance_from(shape, row, column))
        return circle(shape, depth, row, column, radius)
    if Path(text).exists():
        return field_of_file(Path(text), shape, depth)
    try:
        row, column, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--fov {text}: expected auto, none, circle, ROW,COLUMN,RADIUS, or the file of a "
                         "mask") from None
    return circle(shape, depth, row, column, radius)


def inside_file(masks: Path) -> Path | None:
    """Return the map of the sample that `predict.py` wrote beside its masks; None where there is none."""
    masks = Path(os.path.abspath(masks))
    stem = plain_name(masks)
    for path in (masks / INSIDE, masks.with_name(f"{stem}_{INSIDE}{masks.name[len(stem):]}")):
        if path.exists():
            return path
    return None


def field_of_file(path: Path, shape: tuple[int, int], depth: int) -> FieldOfView:
    """Return the field of view in a mask file; one slice stands for all."""
    volume = open_volume(path)
    if volume.shape[-2:] != shape or len(volume) not in (1, depth):
        raise InputError(f"{path}: has shape {volume.shape}, the masks {depth} slices of {shape}; give the field of "
                         "view of these masks")
    read = of_one_size(masks_of_volume(volume), shape)

    @lru_cache(8)
    def inside(i: int) -> np.ndarray:
        return read(i if len(volume) > 1 else 0).astype(bool)

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
        if mask.any():
            farthest = max(farthest, float(distance[mask].max()))
    return farthest
