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
from volumes.reading import open_volume
from volumes.records import inside_file
from volumes.volume import Volume, masks_of_volume, spread_evenly

EDGE = 1  # px: so close to its edge is a particle cut by it
WEIGHED_SLICES = 16  # from whose fields of view the weights of particles are taken
CACHED = 64  # slices whose edges are kept
RATIO_STEP = 1.25  # from one ratio of height and width to the next for which places are counted


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
        self.inside = inside
        self.depth = depth
        self.text = text
        self.near_edge = lru_cache(CACHED)(self._near_edge)
        self.distances = lru_cache(CACHED)(self._distances)

    def _near_edge(self, i: int, in_volume: bool = True) -> np.ndarray:
        """Return what of slice `i` lies outside, or within `EDGE` pixels of it: (H, W) bool.

        In a volume, what lies outside in a neighbouring slice counts, too.
        """
        slices = [i]
        if in_volume:
            slices = range(max(0, i - 1), min(self.depth, i + 2))
        outside = np.zeros(self.inside(i).shape, bool)
        for neighbour in slices:
            outside |= ~self.inside(neighbour)
        side = 2 * EDGE + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        return cv2.dilate(outside.astype(np.uint8), disc).astype(bool)

    def beginning_at(self, start: int, depth: int) -> "FieldOfView":
        """Return the field of view of some of the slices, such as those of one point in time."""
        if start == 0 and depth == self.depth:
            return self

        def inside(i: int) -> np.ndarray:
            return self.inside(start + i)

        return FieldOfView(inside, depth, self.text)

    def cropped(self, roi: tuple[int, int, int, int] | None) -> "FieldOfView":
        """Return the field of view in a region of interest."""
        if roi is None:
            return self

        def inside(i: int) -> np.ndarray:
            return crop_roi(self.inside(i), roi, self.text)

        return FieldOfView(inside, self.depth, self.text)

    def share_of_places(self, height: float, width: float) -> float:
        """Return the share of the field of view in which an ellipse of this height and width would not be cut [px].

        Neither by its edge nor by the border of the slice. Over a few slices spread evenly.
        """
        # Where rows and columns are scaled so that the ellipse is a disc, the distance to the edge
        # has to be larger than its radius. Distances are kept for a few ratios of height and width,
        # of which the next one is taken.
        step = round(math.log(width / height) / math.log(RATIO_STEP))
        distances = self.distances(step)
        radius = math.sqrt(height * width) / 2
        cut = np.searchsorted(distances, radius, side="right")
        return (len(distances) - cut) / max(1, len(distances))

    def _distances(self, step: int) -> np.ndarray:
        """Return the distances of all places inside to the edge, rising, with rows and columns scaled: (N,)."""
        ratio = RATIO_STEP**step
        scale = (math.sqrt(ratio), 1 / math.sqrt(ratio))

        # Mostly all slices have the same field of view, which then counts once.
        distances: dict[bytes, np.ndarray] = {}
        for i in spread_evenly(self.depth, WEIGHED_SLICES):
            # The border of the slice is an edge, too.
            inside = np.pad(self.inside(i), 1)
            key = np.packbits(inside).tobytes()
            if key not in distances:
                distance = ndimage.distance_transform_edt(inside, scale)
                distances[key] = distance[inside].astype(np.float32)

        return np.sort(np.concatenate(list(distances.values())))


def find_field(text: str, volume: Volume, masks: Callable[[int], np.ndarray]) -> FieldOfView | None:
    """Return the field of view that `--fov` names; None where all of each slice is in it.

    Parameters
    ----------
    text : str
        `auto`: what `predict.py` wrote beside the masks; `none`; `circle`: the smallest one around
        the middle of the slices with all foreground in it; `ROW,COLUMN,RADIUS` [px]; or the file of
        a mask of the field of view, of one slice or of the shape of the masks.
    volume : Volume
        The masks.
    masks : index → (H, W) ndarray
        The same, read.

    Raises
    ------
    InputError
        For other texts, and for a file of another shape.
    """
    shape = volume.slice_shape
    depth = len(volume)
    if text == "none":
        return None
    if text == "auto":
        beside = inside_file(volume.path)
        if beside is None:
            return None
        return field_of_file(beside, depth)

    if text == "circle":
        row, column = middle_of(shape)
        radius = farthest_foreground(masks, depth, distance_from(shape, row, column))
        return circle(shape, depth, row, column, radius)

    if Path(text).exists():
        return field_of_file(Path(text), depth)
    try:
        row, column, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--fov {text}: expected auto, none, circle, ROW,COLUMN,RADIUS, or the file of a mask"
        ) from None

    return circle(shape, depth, row, column, radius)


def field_of_file(path: Path, depth: int) -> FieldOfView:
    """Return the field of view in a mask file, everything above 0; one slice stands for all."""
    volume = open_volume(path)
    if len(volume) not in (1, depth):
        raise InputError(
            f"{path}: has shape {volume.shape}, the masks {depth} slices; give the field of view of "
            "these masks"
        )

    masks = masks_of_volume(volume)

    @lru_cache(8)
    def inside(i: int) -> np.ndarray:
        place = i if len(volume) > 1 else 0
        try:
            return masks[place].astype(bool)
        except InputError as error:
            finding = str(error).partition(";")[0]
            raise InputError(f"{finding}; save the field of view as 0 and 255") from None

    return FieldOfView(inside, depth, str(path))


# --- circles --------------------------------------------------------------------------------------


def middle_of(shape: tuple[int, int]) -> tuple[float, float]:
    """Return row and column of the middle of a slice."""
    return (shape[0] - 1) / 2, (shape[1] - 1) / 2


def distance_from(shape: tuple[int, int], row: float, column: float) -> np.ndarray:
    """Return the distance of each pixel's centre from a place [px]: (H, W)."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(rows - row, columns - column)


def circle(
    shape: tuple[int, int], depth: int, row: float, column: float, radius: float
) -> FieldOfView:
    """Return a field of view that is the same circle in all slices."""
    in_circle = distance_from(shape, row, column) <= radius
    if not in_circle.any():
        raise InputError(f"--fov {row:g},{column:g},{radius:g}: lies outside slices of {shape} px")

    def inside(_: int) -> np.ndarray:
        return in_circle

    text = f"circle around row {row:g}, column {column:g}, radius {radius:g} px"
    return FieldOfView(inside, depth, text)


def farthest_foreground(
    masks: Callable[[int], np.ndarray], depth: int, distance: np.ndarray
) -> float:
    """Return the largest distance at which there is foreground; 0 without any.

    Parameters
    ----------
    masks : index → (H, W) ndarray
    depth : int
        Slices.
    distance : (H, W) ndarray
    """
    farthest = 0.0
    for i in range(depth):
        mask = masks(i).astype(bool)
        if mask.shape != distance.shape:
            raise InputError(
                f"--fov circle: slice {i} is {mask.shape} px, the first one {distance.shape}; slices "
                "of several sizes have no circle in common, give --fov none, or the file of a mask"
            )
        if mask.any():
            farthest = max(farthest, float(distance[mask].max()))

    return farthest
