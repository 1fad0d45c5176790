"""Scribbles that a person might paint, drawn from a label map of which everything is known.

The rule. Strokes are `BRUSH` pixels wide, at most `STEPS` · `STEP` pixels long, and never wrong: they end
where they would leave their class. Half of them wander through the inside of their class, half follow
its outline a few pixels away from it, as somebody paints who wants outlines to be found. Of a slice each class
gets as much paint as the root of its area says, so that large things get more, but less than their
share; and at most `MOST` of its pixels: nobody fills small things. What a class cannot take, the others
get. The same seed gives the same strokes.
"""

import cv2
import numpy as np

BRUSH = 3  # px: width of a stroke
STEP = 4.0  # px
STEPS = 20  # of a stroke, at most
TURN = 0.35  # rad: by so much (σ) a wandering stroke turns at each step
CLEARANCE = 3  # px from the border of a class, where there is room
ALONG_OUTLINES = 0.5  # share of the strokes
NEAR = (3.0, 6.0)  # px from the outline: where strokes along it begin
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
    budgets = share_out(share * labels.size, np.sqrt(counts), MOST * counts)
    painted = np.zeros(labels.shape, bool)
    for value, budget in zip(present, budgets, strict=True):
        painted |= strokes_inside(labels == value, budget, rng)
    return painted


def share_out(total: float, weights: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return parts of a total in proportion to weights, none larger than its `most`: (N,).

    What one cannot take, the others get.
    """
    parts = np.zeros(len(most))
    is_open = np.ones(len(most), bool)
    while is_open.any():
        left = total - parts.sum()
        if left <= 0:
            break
        parts[is_open] += left * weights[is_open] / weights[is_open].sum()
        is_full = is_open & (parts >= most)
        parts = np.minimum(parts, most)
        is_open &= ~is_full
        if not is_full.any():
            break
    return parts


def strokes_inside(region: np.ndarray, budget: float, rng: np.random.Generator) -> np.ndarray:
    """Return strokes that cover so many pixels of a region, and none outside: (H, W) bool."""
    side = 2 * CLEARANCE + 1
    inner = cv2.erode(
        region.astype(np.uint8), np.ones((side, side), np.uint8), borderValue=0
    ).astype(bool)
    if not inner.any():
        inner = region
    outline = OutlineOf(region)

    painted = np.zeros(region.shape, bool)
    count = 0
    idle = 0
    while count < budget and idle < IDLE:
        if rng.random() < ALONG_OUTLINES:
            path = outline.follow(rng)
        else:
            path = walk(inner, rng)
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


def walk(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the points of a stroke that wanders from a random pixel of a region until it would leave it.

    (N, 2) int32, rows and columns [px].
    """
    place = random_pixel(np.flatnonzero(region), region.shape, rng)
    angle = rng.uniform(0, 2 * np.pi)
    points = [place]
    for _ in range(STEPS):
        angle += rng.normal(0, TURN)
        place = place + STEP * np.array([np.sin(angle), np.cos(angle)])
        if not is_inside(region, place):
            break
        points.append(place)
    return np.rint(points).astype(np.int32)


class OutlineOf:
    """The outline of a region, along which strokes are drawn."""

    def __init__(self, region: np.ndarray):
        self.region = region
        # Of each pixel the distance to the nearest one outside.
        self.distance = cv2.distanceTransform(
            region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )
        smooth = cv2.GaussianBlur(self.distance, (0, 0), 1.5)
        self.away = np.stack(np.gradient(smooth), axis=-1)  # (H, W, 2)
        least, most = NEAR
        near = np.flatnonzero((self.distance >= least) & (self.distance <= most))
        self.starts = near if near.size else np.flatnonzero(region)

    def follow(self, rng: np.random.Generator) -> np.ndarray:
        """Return the points of a stroke that keeps its distance from the outline: (N, 2) int32, rows and columns."""
        shape = self.region.shape
        place = random_pixel(self.starts, shape, rng)
        kept = self.distance[pixel_of(place)]
        side = rng.choice([-1.0, 1.0])
        points = [place]
        for _ in range(STEPS):
            away = self.away[pixel_of(place)]
            length = np.linalg.norm(away)
            if length < 1e-3:
                # In the middle between two outlines there is no direction along either.
                break
            away = away / length
            along = side * np.array([away[1], -away[0]])
            too_near = kept - self.distance[pixel_of(place)]
            place = place + STEP * along + 0.5 * too_near * away
            if not is_inside(self.region, place):
                break
            points.append(place)
        return np.rint(points).astype(np.int32)


def random_pixel(
    pixels: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Return row and column of one of some pixels, which are given as flat indices: (2,) float."""
    return np.array(np.unravel_index(rng.choice(pixels), shape), float)


def pixel_of(place: np.ndarray) -> tuple[int, int]:
    """Return row and column of the pixel at a place."""
    row, column = np.rint(place).astype(int)
    return int(row), int(column)


def is_inside(region: np.ndarray, place: np.ndarray) -> bool:
    """Return whether a place lies in a region: (H, W) bool."""
    row, column = pixel_of(place)
    is_there = 0 <= row < region.shape[0] and 0 <= column < region.shape[1]
    return bool(is_there and region[row, column])
