"""Recognise a mask that is the slice itself, in which an annotator has painted over what is foreground.

Such a file equals its slice up to a linear map, such as the one to 8 bit, everywhere but where it
is painted: there it holds one of a few exact values.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

EXACT = 1e-6  # of the range: copies that differ by less are exact
MOST_FITTED = 200_000  # pixels to which the linear map is fitted
LEAST_FITTED = 100  # pixels: with fewer nothing can be said
ROUNDS = 10  # of fitting, each without what did not fit in the one before

# Share of the variance of a copy that a linear map of its slice explains: no gamma, no equalised
# histogram.
LEAST_EXPLAINED = 0.98

# Share of the pixels that are likely not painted which that map explains.
LEAST_COPIED = 0.9

# Share of the pixels that differ which hold one value: values with fewer are rims of a soft brush.
LEAST_PAINT = 0.02

# Pixels of the slice that hold the value of the paint by themselves, for each painted one.
MOST_UNDECIDED = 0.1

# Median distances from the median: values farther away are padding, and none of a slice.
FAR = 1000.0


@dataclass(frozen=True, eq=False)
class PaintedSide:
    """What is painted below, or above, the grey values of a slice.

    Attributes
    ----------
    where : (H, W) bool ndarray
    values : list of float
        The grey values of the paint, rising.
    second_share : float
        How much the second most frequent of them fills, as a share of the most frequent one.
    """

    where: np.ndarray
    values: list[float]
    second_share: float = 0.0

    @property
    def count(self) -> int:
        """Painted pixels."""
        return np.count_nonzero(self.where)


@dataclass(frozen=True, eq=False)
class Paint:
    """What an annotator painted over a copy of a slice: darker and brighter than that is."""

    dark: PaintedSide
    bright: PaintedSide


def find_paint(values: np.ndarray, image: np.ndarray) -> Paint | None:
    """Return what is painted in a mask that is a copy of a slice; None where it is none.

    Parameters
    ----------
    values : (H, W) ndarray
        Of the mask.
    image : (H, W) ndarray
        The slice, with values as stored.
    """
    # All is computed in units of the ranges: of tiny values the squares would vanish.
    lowest = float(values.min())
    reach = float(values.max()) - lowest
    rounding = 1.01 / reach if (values == np.rint(values)).all() else 0.0
    image, is_padding = without_far_padding(image)
    values = in_units_of_range(values)

    fit = fit_copy(values, in_units_of_range(image), rounding)
    if fit is None:
        return None
    expected, tolerance = fit
    difference = values - expected
    differs = (np.abs(difference) > tolerance) & ~is_padding
    if not differs.any():
        nothing = PaintedSide(np.zeros(values.shape, bool), [])
        return Paint(nothing, nothing)

    paints = values_of_paint(values[differs])
    if paints is None:
        return None

    # Other pixels that differ are rims of a soft brush. They belong to the paint where they are
    # nearer to it than to the copy.
    nearest = nearest_of(values, paints)
    painted = differs & (np.abs(values - nearest) < np.abs(difference))

    # The slice may hold the value of the paint by itself. Such pixels count as painted where paint
    # surrounds them; where many are left over, this is no paint, unless they are padding.
    undecided = ~differs & (values == nearest)
    inside = surrounded(undecided, painted)
    left_over = undecided & ~inside
    too_many = np.count_nonzero(left_over) > MOST_UNDECIDED * np.count_nonzero(painted)
    if too_many and not is_outside(left_over):
        return None
    painted |= inside

    middle = np.median(expected)
    dark = painted_side(painted & (nearest < middle), nearest, paints[paints < middle])
    bright = painted_side(painted & (nearest >= middle), nearest, paints[paints >= middle])
    return Paint(in_stored_units(dark, lowest, reach), in_stored_units(bright, lowest, reach))


def values_of_paint(differing: np.ndarray) -> np.ndarray | None:
    """Return the values that many of the pixels hold which differ from the slice, rising.

    None where most of these pixels hold other values: then nobody painted them.
    """
    values, counts = np.unique(differing, return_counts=True)
    enough = max(2, LEAST_PAINT * differing.size)
    paints = values[counts >= enough].astype(np.float64)
    if len(paints) == 0 or np.isin(differing, paints).mean() < 0.5:
        return None
    return paints


def painted_side(where: np.ndarray, nearest: np.ndarray, values: np.ndarray) -> PaintedSide:
    """Return one side of the paint, with values in units of the range.

    Parameters
    ----------
    where : (H, W) bool ndarray
        What is painted on this side.
    nearest : (H, W) ndarray
        The value of the paint that each pixel is nearest to.
    values : (N,) ndarray
        The values of the paint on this side.
    """
    filled = sorted(
        (np.count_nonzero(where & (nearest == value)) for value in values), reverse=True
    )
    second_share = 0.0
    if len(filled) > 1 and filled[0] > 0:
        second_share = filled[1] / filled[0]
    return PaintedSide(where, values.tolist(), second_share)


def in_stored_units(side: PaintedSide, lowest: float, reach: float) -> PaintedSide:
    """Return a side of the paint with the grey values that the file holds."""
    values = [lowest + reach * value for value in side.values]
    return PaintedSide(side.where, values, side.second_share)


# --- is it a copy? --------------------------------------------------------------------------------


def fit_copy(
    values: np.ndarray, image: np.ndarray, rounding: float
) -> tuple[np.ndarray, float] | None:
    """Return the image as a copy of it would show it, and how far a copy may differ.

    The linear map is fitted by least squares to pixels that are likely not painted: the three most
    frequent values are left out, and the two extremes, at which a copy of fewer bits is cut off;
    and in turn what does not fit.

    Parameters
    ----------
    values, image : (H, W) float64 ndarrays
        Both in units of their ranges.
    rounding : float
        By which copies may differ at least.

    Returns
    -------
    (H, W) float64 ndarray, float
        Or None where `values` are no copy.
    """
    different, counts = np.unique(values, return_counts=True)
    frequent = different[np.argsort(-counts)[:3]]
    likely_painted = np.isin(values, [*frequent, different[0], different[-1]])
    likely = ~likely_painted
    step = max(1, np.count_nonzero(likely) // MOST_FITTED)
    x = image[likely][::step]
    y = values[likely][::step]
    if len(x) < LEAST_FITTED or x.min() == x.max():
        return None

    fits = np.ones(len(x), bool)
    for _ in range(ROUNDS):
        slope, offset = np.polyfit(x[fits], y[fits], 1)
        residual = np.abs(y - offset - slope * x)
        # Three standard deviations, estimated by the median.
        limit = max(3 * 1.4826 * np.median(residual), EXACT)
        fits = residual <= limit
        if np.count_nonzero(fits) < LEAST_FITTED or np.ptp(x[fits]) == 0:
            return None

    unexplained = np.square(residual[fits]).sum()
    variance = np.square(y[fits] - y[fits].mean()).sum()
    explained = 1 - unexplained / max(variance, 1e-300)
    if slope == 0 or explained < LEAST_EXPLAINED or fits.mean() < LEAST_COPIED:
        return None
    expected = np.clip(offset + slope * image, different[0], different[-1])
    return expected, max(rounding, limit)


def without_far_padding(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice without padding that is NaN or extremely far from all grey values, and where that was.

    Beside a padding of −10³⁰ all grey values would be one. Its pixels get the lowest value of the
    others.
    """
    image = image.astype(np.float64)
    is_finite = np.isfinite(image)
    if not is_finite.any():
        return np.zeros_like(image), ~is_finite

    is_padding = ~is_finite
    # Values may be farther apart than the largest number.
    with np.errstate(over="ignore", invalid="ignore"):
        middle = np.median(image[is_finite])
        distance = np.abs(image - middle)
        usual = np.median(distance[is_finite])
        if usual > 0:
            is_padding |= distance > FAR * usual

    if is_padding.all():
        return np.zeros_like(image), is_padding
    lowest = image[~is_padding].min()
    return np.where(is_padding, lowest, image), is_padding


def in_units_of_range(array: np.ndarray) -> np.ndarray:
    """Return an array with its lowest value as 0 and its highest as 1, float64; all 0 where they are the same."""
    array = array.astype(np.float64)
    lowest = array.min()
    reach = array.max() - lowest
    if not 0 < reach < np.inf:
        return np.zeros_like(array)
    return (array - lowest) / reach


# --- places ---------------------------------------------------------------------------------------


def nearest_of(values: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """Return the nearest of the rising `paints` for each of the values."""
    if len(paints) == 1:
        return np.full(values.shape, paints[0])
    upper = np.searchsorted(paints, values).clip(1, len(paints) - 1)
    below = paints[upper - 1]
    above = paints[upper]
    return np.where(values - below <= above - values, below, above)


def is_outside(where: np.ndarray) -> bool:
    """Return whether most of a (H, W) bool array reaches into a corner, as what lies outside a field of view does."""
    parts, _ = ndimage.label(where)
    corners = parts[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(np.isin(parts[where], corners[corners > 0]).mean() > 0.9)


def surrounded(undecided: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """Return the parts of `undecided` whose neighbours are mostly painted: (H, W) bool."""
    parts, _ = ndimage.label(undecided)
    inside = np.zeros(undecided.shape, bool)
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        wider = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        part = parts[wider] == number
        rim = ndimage.binary_dilation(part) & ~part
        if rim.any() and painted[wider][rim].mean() > 0.5:
            inside[wider] |= part

    return inside
