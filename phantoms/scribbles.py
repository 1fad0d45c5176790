"""Scribbles that a person might paint, drawn from a label map of which everything is known.

The rule: strokes of `BRUSH` pixels that wander inside one class, away from its border where there is
room, and are never wrong. Each class gets as many painted pixels as the others, but at most `MOST` of
those that it has in the slice: nobody fills small things. What a small class leaves over goes to the
others. The same seed gives the same strokes.
"""

import cv2
import numpy as np

BRUSH = 5  # px: width of a stroke
STEP = 4.0  # px
STEPS = 40  # of a stroke, at most
TURN = 0.35  # rad: by so much (σ) a stroke turns at each step
CLEARANCE = 3  # px from the border of a class, where there is room
MOST = 0.5  # share of the pixels of a class that is painted, at most
IDLE = 50  # strokes without a new pixel, after which a class is given up


def scribble(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return where strokes are painted over a label map: (H, W) bool.

    Parameters
    ----------
    labels : (H, W) int ndarray
        The class of each pixel.
    share : float
        Of the pixels that shall be painted, 0 to 1; it is met but for a few pixels. 1 is all, without
        strokes.
    rng : numpy Generator
    """
    if share >= 1:
        return np.ones(labels.shape, bool)

    present, counts = np.unique(labels, return_counts=True)
    budgets = share_out(share * labels.size, MOST * counts)
    painted = np.zeros(labels.shape, bool)
    for value, budget in zip(present, budgets, strict=True):
        painted |= strokes_inside(labels == value, budget, rng)
    return painted


def share_out(total: float, most: np.ndarray) -> np.ndarray:
    """Return equal parts of a total, none of which is larger than its `most`: (N,), where the others get the rest."""
    parts = np.zeros(len(most))
    is_open = np.ones(len(most), bool)
    while is_open.any():
        left = total - parts.sum()
        if left <= 0:
            break
        parts[is_open] += left / np.count_nonzero(is_open)
        is_full = is_open & (parts >= most)
        parts = np.minimum(parts, most)
        is_open &= ~is_full
        if not is_full.any():
            break
    return parts


def strokes_inside(region: np.ndarray, budget: float, rng: np.random.Generator) -> np.ndarray:
    """Return strokes that cover so many pixels of a region, and none outside: (H, W) bool."""
    painted = np.zeros(region.shape, bool)
    side = 2 * CLEARANCE + 1
    inner = cv2.erode(
        region.astype(np.uint8), np.ones((side, side), np.uint8), borderValue=0
    ).astype(bool)
    starts = np.flatnonzero(inner if inner.any() else region)
    count = 0
    idle = 0
    while count < budget and idle < IDLE:
        start = np.unravel_index(rng.choice(starts), region.shape)
        path = walk(inner if inner.any() else region, start, rng)
        longer = painted | (draw_stroke(path, region.shape) & region)
        # The last stroke ends where enough is painted.
        points = len(path)
        while np.count_nonzero(longer) > budget and points > 1:
            points -= 1
            longer = painted | (draw_stroke(path[:points], region.shape) & region)

        before, count = count, int(np.count_nonzero(longer))
        painted = longer
        idle = idle + 1 if count == before else 0
    return painted


def draw_stroke(path: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a stroke of `BRUSH` pixels along some points (N, 2): (H, W) bool."""
    stroke = np.zeros(shape, np.uint8)
    cv2.polylines(stroke, [path[:, ::-1]], isClosed=False, color=1, thickness=BRUSH)
    return stroke.astype(bool)


def walk(region: np.ndarray, start: tuple[np.intp, ...], rng: np.random.Generator) -> np.ndarray:
    """Return the points of a stroke that begins at a pixel of a region and ends where it would leave it: (N, 2) int32.

    Rows and columns [px].
    """
    place = np.array(start, float)
    angle = rng.uniform(0, 2 * np.pi)
    points = [place.copy()]
    for _ in range(STEPS):
        angle += rng.normal(0, TURN)
        place = place + STEP * np.array([np.sin(angle), np.cos(angle)])
        row, column = np.rint(place).astype(int)
        is_there = 0 <= row < region.shape[0] and 0 <= column < region.shape[1]
        if not is_there or not region[row, column]:
            break
        points.append(place.copy())
    return np.rint(points).astype(np.int32)
