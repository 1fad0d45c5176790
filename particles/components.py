"""Connected components of a volume that need not fit into memory, and the parts of those that touch."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

SMOOTHING = 0.7  # voxels: σ with which distances are smoothed before parts are sought
MARGIN = 3  # voxels of background around a component then
SLAB_VOXELS = 2**24  # that are labelled at once
NEIGHBOURS = np.ones((3, 3, 3))


@dataclass(frozen=True)
class Components:
    """Connected components of a volume (26 neighbours), numbered from 0.

    Attributes
    ----------
    voxels : (N,) int ndarray
    low, high : (N, 3) int ndarrays
        Box: first slice, row and column, and one past the last.
    inside : (N, 3) int ndarray
        One voxel of each.
    """

    voxels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    inside: np.ndarray


def find_components(slices: Iterable[np.ndarray], shape: tuple[int, int, int]) -> Components:
    """Return the connected components of a volume that is read once, slab by slab.

    Labels of neighbouring slabs that touch are joined at the end, as connected components of the
    graph of labels.

    Parameters
    ----------
    slices : iterable of (H, W) bool ndarray
        `shape[0]` of them.
    shape : (D, H, W)
    """
    slices = iter(slices)
    depth = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    parts = []
    pairs = [np.zeros((0, 2), int)]
    labelled = 0
    last_of_slab_above = None
    for start in range(0, shape[0], depth):
        slab = np.stack([next(slices) for _ in range(min(depth, shape[0] - start))])
        labels, count = ndimage.label(slab, NEIGHBOURS)
        parts.append(describe_slab(labels, count, start))

        # Labels are unique in a slab; from here on in the volume.
        first = np.where(labels[0], labels[0] + labelled, 0)
        if last_of_slab_above is not None:
            pairs.append(touching(last_of_slab_above, first))
        last_of_slab_above = np.where(labels[-1], labels[-1] + labelled, 0)
        labelled += count

    together = Components(
        np.concatenate([part.voxels for part in parts]),
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.high for part in parts]),
        np.concatenate([part.inside for part in parts]),
    )
    return join(together, np.concatenate(pairs) - 1)


def describe_slab(labels: np.ndarray, count: int, start: int) -> Components:
    """Return the components of a slab, with places in the volume.

    Parameters
    ----------
    labels : (slices, H, W) int ndarray
    count : int
        Of the components.
    start : int
        First slice of the slab.
    """
    offset = np.array([start, 0, 0])
    boxes = []
    for box in ndimage.find_objects(labels):
        boxes.append([(side.start, side.stop) for side in box])
    boxes = np.array(boxes, int).reshape(-1, 3, 2) + offset[:, None]

    flat = labels.ravel()
    index = np.flatnonzero(flat)
    voxels = np.bincount(flat[index], minlength=count + 1)[1:]
    _, first = np.unique(flat[index], return_index=True)
    inside = np.stack(np.unravel_index(index[first], labels.shape), 1) + offset
    return Components(voxels, boxes[..., 0], boxes[..., 1], inside)


def join(parts: Components, pairs: np.ndarray) -> Components:
    """Return components whose parts belong together where they touch.

    Parameters
    ----------
    parts : Components
    pairs : (N, 2) int ndarray
        Numbers of parts that touch.
    """
    total = len(parts.voxels)
    graph = coo_array((np.ones(len(pairs)), pairs.T), (total, total))
    number, component = connected_components(graph, directed=False)

    low = np.full((number, 3), np.iinfo(int).max)
    high = np.zeros((number, 3), int)
    np.minimum.at(low, component, parts.low)
    np.maximum.at(high, component, parts.high)
    voxels = np.bincount(component, parts.voxels, number).astype(int)
    _, first = np.unique(component, return_index=True)
    return Components(voxels, low, high, parts.inside[first])


def touching(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return (N, 2) pairs of labels of two neighbouring slices that touch, corners included; 0 is background."""
    height, width = above.shape
    pairs = [np.zeros((0, 2), int)]
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            # The pixels of one slice, and their neighbours in the other.
            rows, rows_below = overlap(height, down)
            columns, columns_below = overlap(width, right)
            a = above[rows, columns]
            b = below[rows_below, columns_below]
            both = (a > 0) & (b > 0)
            pairs.append(np.unique(np.stack([a[both], b[both]], 1), axis=0))

    return np.unique(np.concatenate(pairs), axis=0)


def overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Return the pixels of an axis that have a neighbour so many pixels further, and these neighbours."""
    first = max(0, -shift)
    end = length - max(0, shift)
    return slice(first, end), slice(first + shift, end + shift)


def split_touching(inside: np.ndarray, spacing: tuple[float, ...], neck: float) -> np.ndarray:
    """Return labels, from 1, of the parts of one component: watershed of the distance to its surface.

    Two parts are two where the neck between them is thinner, in radius, by more than `neck` than
    the thinner of them: maxima of the distance that stand out by less are none (h-maxima; Soille,
    Morphological Image Analysis, 2004). Beucher & Lantuéjoul, 1979, International Workshop on Image
    Processing, Rennes. The distance is smoothed by `SMOOTHING` voxels: along straight rods and
    plates it fluctuates, by where their surface cuts the voxels.

    Parameters
    ----------
    inside : bool ndarray, 2-D or 3-D
        The component in its box.
    spacing : tuple of float
        Size of a voxel along each axis [unit].
    neck : float
        [unit]
    """
    neighbours = np.ones((3,) * inside.ndim)
    padded = np.pad(inside, MARGIN)
    distance = ndimage.distance_transform_edt(padded, sampling=spacing)
    distance = np.where(padded, ndimage.gaussian_filter(distance, SMOOTHING), 0)

    # Maxima that stand out by less than the neck are cut off.
    lowered = reconstruction(distance - neck, distance)
    seeds, count = ndimage.label(local_maxima(lowered) & padded, neighbours)
    if count > 1:
        labels = watershed(-distance, seeds, neighbours, mask=padded)
    else:
        labels = padded.astype(np.int32)

    without_margin = (slice(MARGIN, -MARGIN),) * inside.ndim
    return labels[without_margin]
