"""Recognise what a reconstruction has filled in outside its field of view.

That is one value, as the program likes: 0, −1000, −32768, 65535 or NaN. Such pixels are no
material.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LEAST_OUTSIDE = 0.002  # share of a slice that padding fills, at least
MOST_VALUES = 4  # of padding in one slice

# Padding that is farther from all other grey values than this share of their range cannot be
# sample.
CLEAR_GAP = 0.05

# For each pixel of padding that is connected with a corner, so many elsewhere have its value at
# most.
RARE = 0.01

# Programs cut grey values off at these. Where one of them, or a value that varies, fills more than
# this share of a slice outside the sample, it is dark air or bright metal.
CUT_OFF = (0.0, 1.0, 255.0, 1023.0, 4095.0, 16383.0, 32767.0, 65535.0)
MOST_CUT_OFF = 0.5

# Padding varies in the corners by this share of its distance from the grey values, at most.
VARYING = 0.01
LOSSY = 9  # px: so far reaches what lossy compression has mixed with padding, at most

# Share of a slice that one exact value fills at its border before it is said.
LEAST_FLAT = 0.01

FRAME = 3  # px: frames around slices are thinner
EDGE = 3  # px: so far reaches what an interpolation has mixed with padding, at most
SPREAD = (0.1, 99.9)  # percentiles between which other grey values lie, a few extreme ones left out
CONNECTED = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Padding:
    """The grey value outside the field of view.

    Attributes
    ----------
    value : float
        May be NaN.
    is_clear : bool
        Whether it is so far from all others that it cannot be sample.
    """

    value: float
    is_clear: bool


# --- all padding of a slice -----------------------------------------------------------------------


def recognise_outside(image: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return where padding fills a slice, and its values: several, as after a rotation or a crop.

    Where no exact value does, padding may still vary a little; see `find_varying_padding`.

    Parameters
    ----------
    image : (H, W) float ndarray

    Returns
    -------
    (H, W) bool ndarray, list of float
    """
    known = np.zeros(image.shape, bool)
    values = []
    for _ in range(MOST_VALUES):
        padding = find_padding(image, known)
        if padding is None:
            break
        is_value = np.isnan(image) if math.isnan(padding.value) else image == padding.value
        if not padding.is_clear or math.isnan(padding.value):
            # Within the sample it may be a grey value, or a dead pixel.
            is_value &= connected_to_border(is_value | known)
        known |= is_value
        values.append(padding.value)

    if values:
        return known, values

    varying = find_varying_padding(image)
    if varying is None:
        return known, []
    where, value = varying
    return where, [value]


# --- padding of one exact value -------------------------------------------------------------------


def find_padding(image: np.ndarray, known: np.ndarray | None = None) -> Padding | None:
    """Return what fills the part of a slice outside the field of view; None where nothing does.

    Padding is one exact value that fills a part of the slice in a corner. Three things tell it from
    grey values:

    - It is far from all others, hardly a pixel elsewhere has it, and it is none at which programs
      cut grey values off (0, 255, 4095 …): then a single corner is enough. NaN is no grey value
      anywhere.
    - It lies beyond all others: then it fills three corners at least, as around a circular field of
      view, and more of them than of the rest, because a program may have cut off grey values
      anywhere.
    - It lies among them: then it fills all four corners, and hardly a pixel elsewhere has exactly
      this value.

    Parameters
    ----------
    image : (H, W) float ndarray
    known : (H, W) bool ndarray, optional
        What is known to lie outside already, such as padding of another value.
    """
    if known is None:
        known = np.zeros(image.shape, bool)
    frame = frame_value(image)
    if frame is not None and not known[0, 0]:
        return Padding(frame, is_clear=False)

    # Infinity stands for padding that is known; the values of the corners otherwise.
    blocks = corner_blocks(np.where(known, np.inf, image))
    corners = [block_of_one_value(block) for block in blocks]
    filled = [value for value in corners if value is not None]
    if any(math.isnan(value) for value in filled):
        return Padding(math.nan, is_clear=True)

    known_corners = filled.count(math.inf)
    values = [value for value in filled if math.isfinite(value)]
    for value in sorted(set(values), key=values.count, reverse=True):
        padding = judge_padding(image, known, value, values.count(value) + known_corners)
        if padding is not None:
            return padding

    # A second ring, as where a round field of view was padded, rotated, and padded again, reaches
    # no corner.
    beside = value_beside(image, known)
    if beside is None:
        return None
    return judge_padding(image, known, beside, corners=4)


def judge_padding(
    image: np.ndarray, known: np.ndarray, value: float, corners: int
) -> Padding | None:
    """Return the padding if a value that fills some corners is one; see `find_padding`."""
    is_value = (image == value) & ~known
    in_corners = np.count_nonzero(is_value & connected_to_corners(is_value | known))
    elsewhere = np.count_nonzero(is_value) - in_corners
    if in_corners < LEAST_OUTSIDE * image.size:
        return None

    distance = distance_from_others(value, image[~is_value & ~known])
    if distance is None:
        return None
    gap, reach = distance

    # Dark air or bright metal that was cut off looks like padding, too.
    is_cut_off = value in CUT_OFF
    if is_cut_off and in_corners > MOST_CUT_OFF * image.size:
        return None

    is_rare_elsewhere = elsewhere <= RARE * in_corners
    is_far = gap > 0 and gap >= CLEAR_GAP * reach
    if is_far and is_rare_elsewhere and not is_cut_off:
        return Padding(value, is_clear=True)

    is_beyond_others = gap > 0 and corners >= 3 and elsewhere <= in_corners
    is_among_others = corners == 4 and is_rare_elsewhere
    if is_beyond_others or is_among_others:
        return Padding(value, is_clear=False)
    return None


def distance_from_others(value: float, others: np.ndarray) -> tuple[float, float] | None:
    """Return how far a value lies beyond the other grey values, and how far these reach.

    The distance is negative where it lies among them. None where there are no others, where they
    are all the same, or where they cannot be compared because they are farther apart than the
    largest number.
    """
    others = others[np.isfinite(others)]
    if others.size == 0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.percentile(others, SPREAD)
        gap = max(low - value, value - high)
        reach = high - low

    if reach == 0 or not np.isfinite([gap, reach]).all():
        return None
    return gap, reach


def frame_value(image: np.ndarray) -> float | None:
    """Return the value of a frame of one or two pixels all around a slice; None where there is no such frame."""
    if min(image.shape) <= 2 * FRAME:
        return None
    value = image[0, 0]
    inner = image[FRAME:-FRAME, FRAME:-FRAME]
    is_frame = (border_of(image) == value).all()
    goes_on = (border_of(inner) == value).mean() > 0.5
    if not is_frame or goes_on:
        return None
    return float(value)


def border_of(image: np.ndarray) -> np.ndarray:
    """Return the pixels of first and last row and column, corners twice: (N,)."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def value_beside(image: np.ndarray, known: np.ndarray) -> float | None:
    """Return the value that most pixels next to the `known` padding hold; None where no value does."""
    rim = ndimage.binary_dilation(known, CONNECTED) & ~known
    values, counts = np.unique(image[rim], return_counts=True)
    if values.size == 0:
        return None
    most = counts.argmax()
    if counts[most] <= rim.sum() / 2 or not np.isfinite(values[most]):
        return None
    return float(values[most])


def corner_blocks(image: np.ndarray) -> list[np.ndarray]:
    """Return the 3×3 pixels in each corner of a slice."""
    return [image[:3, :3], image[:3, -3:], image[-3:, :3], image[-3:, -3:]]


def block_of_one_value(block: np.ndarray) -> float | None:
    """Return the value that all pixels hold, which may be NaN; None where they differ."""
    if np.isnan(block).all():
        return math.nan
    if (block == block[0, 0]).all():
        return float(block[0, 0])
    return None


# --- padding that varies --------------------------------------------------------------------------


def find_varying_padding(image: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return where padding lies that is not one exact value, and its median; None where there is none.

    Resampling changes the last digits of padding, and lossy compression more near the edge of the
    sample. It fills three corners and no more than half of the slice, is far from all other grey
    values, and varies in the corners by a hundredth of that distance at most, as nothing does that
    was measured. What is connected with it and nearer to it than to the grey values belongs to it.

    Returns
    -------
    (H, W) bool ndarray, float
        Or None.
    """
    blocks = np.array(corner_blocks(image))  # (4, 3, 3)
    if not np.isfinite(blocks).all():
        return None

    # Values may be farther apart than the largest number.
    with np.errstate(over="ignore"):
        centre = float(np.median(np.median(blocks, axis=(1, 2))))
        deviations = np.abs(blocks - centre).max(axis=(1, 2))  # (4,)
        # How far it varies in the three corners that agree best.
        width = float(np.sort(deviations)[2])
        # Of most slices corners vary more, which ends the search quickly.
        if not width <= VARYING * (float(image.max()) - float(image.min())):
            return None
        rough = connected_to_corners(np.abs(image - centre) <= 2 * width)

    if np.count_nonzero(rough) < LEAST_OUTSIDE * image.size:
        return None

    near = ndimage.binary_dilation(rough, CONNECTED, iterations=LOSSY)
    distance = distance_from_others(centre, image[~near])
    if distance is None:
        return None
    gap, reach = distance
    if gap < CLEAR_GAP * reach or width > VARYING * gap:
        return None

    where = connected_to_corners(np.abs(image - centre) <= gap / 2)
    if where.mean() > MOST_CUT_OFF:
        return None
    return where, centre


# --- what may be padding --------------------------------------------------------------------------


def find_flat_border(
    image: np.ndarray, outside: np.ndarray | None = None
) -> tuple[float, float] | None:
    """Return one exact value that fills a part of the sample at its border, and that part's share of the slice.

    It may be padding that was not recognised as such, such as a strip on one side after slices were
    aligned. None where there is no such part, or much of the sample elsewhere has this value.
    """
    is_sample = np.ones(image.shape, bool) if outside is None else ~outside
    border = border_of(image)[border_of(is_sample)]
    values, counts = np.unique(border, return_counts=True)
    if values.size == 0:
        return None
    most = counts.argmax()
    if counts[most] < max(16, 0.02 * border.size):
        return None

    is_value = (image == values[most]) & is_sample
    at_border = np.count_nonzero(is_value & connected_to_border(is_value))
    elsewhere = np.count_nonzero(is_value) - at_border
    if at_border < LEAST_FLAT * image.size or elsewhere > 0.1 * at_border:
        return None
    return float(values[most]), at_border / image.size


# --- its edge -------------------------------------------------------------------------------------


def with_blurred_edge(image: np.ndarray, outside: np.ndarray, values: list[float]) -> np.ndarray:
    """Return what is outside with the pixels at its edge that an interpolation has mixed with padding.

    They lie within three pixels of it, and between a value of padding and the grey values of the
    sample farther inside.
    """
    near = ndimage.binary_dilation(outside, CONNECTED, iterations=EDGE)
    inner = image[~near]
    if inner.size == 0:
        return outside

    low, high = np.percentile(inner, SPREAD)
    clearly_beyond = CLEAR_GAP * (high - low)
    mixed = np.zeros(image.shape, bool)
    if any(value < low for value in values):
        mixed |= image < low - clearly_beyond
    if any(value > high for value in values):
        mixed |= image > high + clearly_beyond
    return outside | (near & mixed)


def connected_to_corners(where: np.ndarray) -> np.ndarray:
    """Return the parts of a (H, W) bool array that reach into a corner."""
    parts, _ = ndimage.label(where, CONNECTED)
    corners = parts[[0, 0, -1, -1], [0, -1, 0, -1]]
    return np.isin(parts, corners[corners > 0])


def connected_to_border(where: np.ndarray) -> np.ndarray:
    """Return the parts of a (H, W) bool array that reach a side."""
    parts, _ = ndimage.label(where, CONNECTED)
    sides = border_of(parts)
    return np.isin(parts, np.unique(sides[sides > 0]))
