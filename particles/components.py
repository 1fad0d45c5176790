"""Connected components of a volume that need not fit into memory, and the parts of those that touch."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

SMOOTHING, MARGIN = 0.7, 3  # voxels
SLAB_VOXELS = 2**24  # that are labelled at once


@dataclass(frozen=True)
class Components:
    """Connected components of a volume (26 neighbours), numbered from 0.

    Attributes
    ----------
    voxels : (N,) int ndarray
    low, high : (N, 3) int ndarray
        Box: first slice, row and column, and one past the last.
    inside : (N, 3) int ndarray
        One voxel of each.
    """

    voxels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    inside: np.ndarray


def find_components(slices: Iterable[np.ndarray], shape: tuple[int, int, int]) -> Components:
    """Connected components of a volume that is read once, slab by slab.

    Labels of neighbouring slabs that touch are joined at the end, as connected components of the graph of labels.

    Parameters
    ----------
    slices : iterable of (H, W) bool ndarray
        `shape[0]` of them.
    """
    depth, source, total, above = max(1, SLAB_VOXELS // (shape[1] * shape[2])), iter(slices), 0, None
    voxels, boxes, inside, pairs = [], [], [], []
    for start in range(0, shape[0], depth):
        slab = np.stack([next(source) for _ in range(min(depth, shape[0] - start))])
        labels, count = ndimage.label(slab, np.ones((3, 3, 3)))
        if above is not None:
            pairs.append(touching(above, np.where(labels[0], labels[0] + total, 0)))
        found = ndimage.find_objects(labels)
        index = np.flatnonzero(labels)
        voxels.append(np.bincount(labels.ravel()[index], minlength=count + 1)[1:])
        first = index[np.unique(labels.ravel()[index], return_index=True)[1]]
        inside.append(np.stack(np.unravel_index(first, slab.shape), 1) + np.array([start, 0, 0]))
        boxes.append(np.array([[(s.start, s.stop) for s in box] for box in found], int).reshape(-1, 3, 2)
                     + np.array([start, 0, 0])[:, None])
        above = np.where(labels[-1], labels[-1] + total, 0)
        total += count
    voxels, boxes, inside = (np.concatenate(some) for some in (voxels, boxes, inside))
    edges = np.concatenate(pairs) - 1 if pairs else np.zeros((0, 2), int)
    number, component = connected_components(coo_array((np.ones(len(edges)), edges.T), (total, total)), directed=False)
    low, high = np.full((number, 3), np.iinfo(int).max), np.zeros((number, 3), int)
    np.minimum.at(low, component, boxes[..., 0])
    np.maximum.at(high, component, boxes[..., 1])
    first = np.unique(component, return_index=True)[1]
    return Components(np.bincount(component, voxels, number).astype(int), low, high, inside[first])


def touching(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """(N, 2) pairs of labels of two neighbouring slices that touch, corners included; 0 is background."""
    (height, width), found = above.shape, [np.zeros((0, 2), int)]
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            a = above[max(0, -down):height - max(0, down), max(0, -right):width - max(0, right)]
            b = below[max(0, down):height - max(0, -down), max(0, right):width - max(0, -right)]
            both = (a > 0) & (b > 0)
            found.append(np.unique(np.stack([a[both], b[both]], 1), axis=0))
    return np.unique(np.concatenate(found), axis=0)


def split_touching(inside: np.ndarray, spacing: tuple[float, ...], neck: float) -> np.ndarray:
    """Labels, from 1, of the parts of one component: watershed of the distance to its surface.

    Two parts are two where the neck between them is thinner, in radius, by more than `neck` than the thinner of them:
    maxima of the distance that stand out by less are none (h-maxima; Soille, Morphological Image Analysis, 2004).
    Beucher & Lantuéjoul, 1979, International Workshop on Image Processing, Rennes. The distance is smoothed by
    `SMOOTHING` voxels: along straight rods and plates it fluctuates, by where their surface cuts the voxels.

    Parameters
    ----------
    inside : bool ndarray, 2-D or 3-D
        The component in its box.
    spacing : tuple of float
        Size of a voxel along each axis [unit].
    neck : float
        [unit]
    """
    padded, around = np.pad(inside, MARGIN), np.ones((3,) * inside.ndim)
    distance = ndimage.distance_transform_edt(padded, sampling=spacing)
    distance = np.where(padded, ndimage.gaussian_filter(distance, SMOOTHING), 0)
    lowered = reconstruction(distance - neck, distance)
    seeds, count = ndimage.label(local_maxima(lowered) & padded, around)
    labels = watershed(-distance, seeds, around, mask=padded) if count > 1 else padded.astype(np.int32)
    return labels[(slice(MARGIN, -MARGIN),) * inside.ndim]
