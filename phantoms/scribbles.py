"""Scribbles that a person might paint, drawn from a label map of which everything is known.

The rule. Strokes are `BRUSH` pixels wide, and never wrong: they end where they would leave their class. Half of
them wander through the inside of their class, half follow its outline a few pixels away from it, as somebody
paints who wants outlines to be found. Of a slice each class gets as much paint as the root of its area says, so
that large things get more, but less than their share; and at most `MOST` of its pixels: nobody fills small
things. What a class cannot take, the others get. The same seed gives the same strokes.

How that paint is spread is the `Style`: "spread", short strokes in one thing after the other, until each has one;
or "gathered", longer ones wherever they fall, of which large things get many, and most things none.
"""

from dataclasses import dataclass

import cv2
import numpy as np

BRUSH = 3  # px: width of a stroke
STEP = 4.0  # px
TURN = 0.35  # rad: by so much (σ) a wandering stroke turns at each step
CLEARANCE = 3  # px from the border of a class, where there is room
ALONG_OUTLINES = 0.5  # share of the strokes
NEAR = (3.0, 6.0)  # px from the outline: where strokes along it begin
MOST = 0.5  # share of the pixels of a class that is painted, at most
IDLE = 50  # strokes without a new pixel, after which a class is given up


@dataclass(frozen=True)
class Style:
    """How strokes are spread over the things of a class.

    Attributes
    ----------
    longest : int
        Length of a stroke, at most [px].
    each_in_turn : bool
        Whether each thing gets a stroke before any gets a second one.
    """

    longest: int
    each_in_turn: bool

    @property
    def steps(self) -> int:
        """Of `STEP` pixels, of a stroke, at most."""
        return round(self.longest / STEP)


SPREAD = "spread"
GATHERED = "gathered"
STYLES = {
    SPREAD: Style(longest=32, each_in_turn=True),
    GATHERED: Style(longest=80, each_in_turn=False),
}


def scribble(
    labels: np.ndarray, share: float, rng: np.random.Generator, style: str = SPREAD
) -> np.ndarray:
    """Return where strokes are painted over a label map: (H, W) bool.

    Parameters
    ----------
    labels : (H, W) int ndarray
        The class of each pixel.
    share : float
        Of the pixels that shall be painted, 0 to 1; it is met but for a few pixels. 1 is all, without
        strokes.
    rng : numpy Generator
    style : {"spread", "gathered"}
        One of `STYLES`.
    """
    if share >= 1:
        return np.ones(labels.shape, bool)

    present, counts = np.unique(labels, return_counts=True)
    budgets = share_out(share * labels.size, np.sqrt(counts), MOST * counts)
    painted = np.zeros(labels.shape, bool)
    for value, budget in zip(present, budgets, strict=True):
        painted |= strokes_inside(labels == value, budget, rng, STYLES[style])
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


def strokes_inside(
    region: np.ndarray, budget: float, rng: np.random.Generator, style: Style
) -> np.ndarray:
    """Return strokes that cover so many pixels of a region, and none outside: (H, W) bool."""
    side = 2 * CLEARANCE + 1
    inner = cv2.erode(
        region.astype(np.uint8), np.ones((side, side), np.uint8), borderValue=0
    ).astype(bool)
    if not inner.any():
        inner = region
    inner_pixels = np.flatnonzero(inner)
    outline = OutlineOf(region)
    things = Things(region, rng if style.each_in_turn else None)

    painted = np.zeros(region.shape, bool)
    count = 0
    idle = 0
    while count < budget and idle < IDLE:
        if rng.random() < ALONG_OUTLINES:
            start = random_pixel(things.next_of(outline.starts), region.shape, rng)
            path = outline.follow(start, style.steps, rng)
        else:
            start = random_pixel(things.next_of(inner_pixels), region.shape, rng)
            path = walk(inner, start, style.steps, rng)
        # The last strokes end where enough is painted.
        before = count
        for points in range(len(path), 0, -1):
            longer = painted | (draw_stroke(path[:points], region.shape) & region)
            if np.count_nonzero(longer) <= budget:
                painted, count = longer, int(np.count_nonzero(longer))
                break
        idle = idle + 1 if count == before else 0
    return painted


def draw_stroke(path: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a stroke of `BRUSH` pixels along some points (N, 2), a dot where there is one: (H, W) bool."""
    # OpenCV draws no line of a single point, but one from a point to itself.
    points = np.concatenate([path[:1], path])[:, ::-1]
    stroke = np.zeros(shape, np.uint8)
    cv2.polylines(stroke, [points], isClosed=False, color=1, thickness=BRUSH)
    return stroke.astype(bool)


class Things:
    """The things that a region consists of, which touch nowhere, in a random order.

    Parameters
    ----------
    region : (H, W) bool ndarray
    rng : numpy Generator or None
        None: nobody goes from thing to thing.
    """

    def __init__(self, region: np.ndarray, rng: np.random.Generator | None):
        count, self.labels = cv2.connectedComponents(region.astype(np.uint8))
        # The first label is that of what lies between them.
        self.waiting: list[int] = []
        if rng is not None:
            self.waiting = rng.permutation(np.arange(1, count)).tolist()

    def next_of(self, pixels: np.ndarray) -> np.ndarray:
        """Return those of some pixels (flat indices) that lie in the next thing.

        All of the thing where none of them does; all of them once every thing had its turn.
        """
        if not self.waiting:
            return pixels
        thing = self.waiting.pop()
        of_thing = pixels[self.labels.flat[pixels] == thing]
        return of_thing if of_thing.size else np.flatnonzero(self.labels == thing)


def walk(region: np.ndarray, start: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Return the points of a stroke that wanders from a pixel of a region until it would leave it.

    (N, 2) int32, rows and columns [px].
    """
    place = start
    angle = rng.uniform(0, 2 * np.pi)
    points = [place]
    for _ in range(steps):
        angle += rng.normal(0, TURN)
        place = place + STEP * np.array([np.sin(angle), np.cos(angle)])
        if not is_inside(region, place):
            break
        points.append(place)
    return np.rint(points).astype(np.int32)


class OutlineOf:
    """The outline of a region, along which strokes are drawn.

    Attributes
    ----------
    starts : (N,) ndarray
        Flat indices of the pixels near it.
    """

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

    def follow(self, start: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
        """Return the points of a stroke that keeps its distance from the outline: (N, 2) int32, rows and columns."""
        place = start
        kept = self.distance[pixel_of(place)]
        side = rng.choice([-1.0, 1.0])
        points = [place]
        for _ in range(steps):
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
