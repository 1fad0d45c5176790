"""Which pixels of a mask are foreground: one rule for every reader, and for all masks of a folder or a volume alike.

What a mask may be, and what is foreground in it:

two values      the one that is not 0; where neither is 0, the higher one. RGB, palette and bilevel files count as they
                are shown: white is high, black is 0, and of black and one colour the colour is foreground.
soft edges      two values with grey rims between them, of a soft brush, an interpolation or JPEG: above the middle.
painted copy    the slice itself, in which an annotator has filled what is foreground with one grey value or colour. It
                is recognised by being a copy: outside the paint it equals its slice up to a linear map.
labels          whole numbers, a particle each; everything above 0. Only where the caller says so.

Whatever else a file holds is an error that says what the caller can state: a side (`dark`, `bright`) or `labels`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from runtime.messages import InputError, say_once
from slices.reading import Picture, read_image, read_picture

FULL = (255, 65535)         # what the pixels of a full mask hold, where no other mask shows two values
ALIKE = (1, 255, 65535)     # values of foreground that may stand for each other: programs write one or the other
FLAT = 0.1                  # of the range: so far from an extreme value is a pixel of a flat part, at most
RIM = 4                     # px: so far from both flat parts is a pixel of a soft edge, at most
RINGING = 9                 # px: so far from an edge are the pixels that JPEG has changed a little, at most
EXTREME = 0.01              # of the range: closer pixels hold an extreme value
SURE = 0.9                  # probabilities of foreground reach it somewhere
LEAST_VALUES = 4            # of a mask with soft edges
MOST_BETWEEN = 0.05         # pixels with a third value, for each with the rarer extreme one, that are an accident
FEW_VALUES = 16             # with fewer, only the extreme values themselves are flat: others may be classes
LEAST_FLAT = 0.75           # share of the pixels of either side that are flat in a mask with soft edges
HIGHEST_LABEL = 15          # whole numbers up to here may be labels, and are never taken for soft edges

EXACT = 1e-6                # of the range: copies that differ by less are exact
LEAST_EXPLAINED = 0.98      # of the variance of a copy, by a linear map of its slice: no gamma, no equalised histogram
LEAST_COPIED = 0.9          # share of the pixels that are likely not painted which a linear map explains
LEAST_PAINT = 0.02          # share of the pixels that differ which hold one value: fewer are rims of a soft brush
MOST_UNDECIDED = 0.1        # pixels of the slice that hold the value of the paint by themselves, for each painted one
MOST_AROUND = 0.3           # share of a slice that paint fills around everything else before it is asked for
FAR = 1000.0            # median distances from the median: values farther away are padding, and none of a slice
ONE_SIDED = 0.25            # paint on the other side of the grey values that is disregarded, as a share of the larger

KEPT = 24                   # masks of a folder that are kept, when all have been looked at for their rule


# --- what a single file looks like -----------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Reading:
    """What one mask was taken for.

    Attributes
    ----------
    kind : {"constant", "two values", "soft edges", "painted copy", "coloured copy", "labels", "dark", "bright"}
    levels : (low, high)
        The two values, or the extremes of a mask with soft edges; of a constant mask its value, twice.
    mask : (H, W) uint8 ndarray, or None
        1 for foreground. None for constant masks: whether these are empty or full, the other masks tell.
    side : {"", "dark", "bright"}
        Of a painted copy: whether the paint is darker or brighter than the slice; empty where nothing is painted.
    is_boolean : bool
        Of a constant mask: whether the file can hold nothing but 0 and 1.
    """

    kind: str
    levels: tuple[float, float] = (0.0, 0.0)
    mask: np.ndarray | None = None
    side: str = ""
    is_boolean: bool = False


def read_mask_as(picture: Picture, name: str, foreground: str = "auto", image: np.ndarray | None = None,
                 option: str = "--mask-foreground") -> Reading:
    """Return what one mask holds; see the module for the rules.

    Parameters
    ----------
    picture : Picture
        The file as `slices.reading.read_picture` decodes it.
    name : str
        What messages call it.
    foreground : {"auto", "dark", "bright", "labels"}
        What the caller states. `dark` and `bright`: of two values the lower or the higher one, of a painted copy the
        paint of that side, else that side of Otsu's threshold (Otsu, 1979, doi:10.1109/TSMC.1979.4310076).
    image : (H, W) ndarray, optional
        The slice that the mask belongs to, with values as stored: a painted copy is known by it.
    option : str
        The option of the command by which the caller states `foreground`, for messages.

    Raises
    ------
    InputError
        For NaN and infinite values, and for whatever the rules do not cover.
    """
    if foreground == "labels" and picture.values.ndim == 2 and picture.alpha is None:
        values, of_colours = picture.values, False              # numbers, whatever they look like on a screen
    elif picture.is_coloured:
        values, of_colours = values_of_colours(picture, name, foreground, option)
    else:
        values, of_colours = shown_values(picture), False
    if values.dtype.kind not in "uifb" or not np.isfinite(values).all():
        raise InputError(f"{name}: holds NaN, infinite or other than real values; save the mask again as 0 and 255")
    if foreground == "labels":
        return Reading("labels", mask=above_zero(values, name))

    low, high = values.min(), values.max()
    levels = (low.item(), high.item())
    if low == high:
        return Reading("constant", levels, is_boolean=values.dtype.kind == "b")
    is_high = values == high
    if (is_high | (values == low)).all():
        return read_two_values(is_high, levels, foreground)
    if of_colours:
        return read_coloured_copy(values, name, image, option)
    return read_grey_values(values, levels, name, foreground, image, option)


def read_two_values(is_high: np.ndarray, levels: tuple[float, float], foreground: str) -> Reading:
    """Return the reading of a mask with two values: the one that is not 0 is foreground, else the higher one."""
    if foreground != "auto":
        return Reading(foreground, levels, (is_high == (foreground == "bright")).astype(np.uint8))
    if levels[1] == 0:                                          # such as 0 and −1
        return Reading("two values", (0.0, levels[0]), (~is_high).astype(np.uint8))
    return Reading("two values", levels, is_high.astype(np.uint8))


def read_coloured_copy(values: np.ndarray, name: str, image: np.ndarray | None, option: str) -> Reading:
    """Return the reading of a grey picture with one colour in it, which `values_of_colours` has marked by −1.

    The grey part has to be a copy of the slice: a mask may have a scale bar in a colour.
    """
    paint = None if image is None else find_paint(values, image)
    if paint is None or (paint.dark != (values < 0)).any():
        known = "no slice tells whether it is a copy" if image is None else "is no copy of its slice"
        raise InputError(f"{name}: is grey with one colour, and {known}; save the mask as black and white, or set "
                         f"{option} dark or bright")
    return Reading("coloured copy", mask=paint.dark.astype(np.uint8))


def read_grey_values(values: np.ndarray, levels: tuple[float, float], name: str, foreground: str,
                     image: np.ndarray | None, option: str) -> Reading:
    """Return the reading of a mask with more than two grey values: a painted copy, or a mask with soft edges."""
    if not np.isfinite(float(levels[1]) - float(levels[0])):
        raise InputError(f"{name}: its grey values, from {levels[0]:g} to {levels[1]:g}, cannot be split by a "
                         "threshold; damaged?")
    paint = find_paint(values, image) if image is not None else None
    if paint is not None:
        return read_painted_copy(paint, name, foreground, option)
    if foreground in ("dark", "bright"):
        return Reading(foreground, levels, split_by_otsu(values, name, foreground, image))
    if has_soft_edges(values):
        if values.dtype.kind == "f" and levels[0] >= 0 and levels[1] < SURE:
            raise InputError(f"{name}: holds values from {levels[0]:g} to {levels[1]:g}, as probabilities that are "
                             "sure nowhere; save decisions as 0 and 255")
        middle = (float(levels[0]) + float(levels[1])) / 2
        return Reading("soft edges", levels, (values > middle).astype(np.uint8))
    raise InputError(f"{name}: {describe_unknown(values, image is not None)}; {advise(values, option)}")


# --- values and colours ----------------------------------------------------------------------------------------

def shown_values(picture: Picture) -> np.ndarray:
    """Return the grey values of a picture as they are shown: turned round where 0 stands for white."""
    values = picture.values
    if not picture.white_is_zero:
        return values
    if values.dtype == bool:
        return ~values
    if values.dtype.kind == "u":
        return np.iinfo(values.dtype).max - values
    return values.max() - values


def values_of_colours(picture: Picture, name: str, foreground: str, option: str) -> tuple[np.ndarray, bool]:
    """Return grey values for a coloured picture, and whether a grey picture has one colour in it, marked by −1.

    Greys keep their value, and of black and one colour the colour becomes 255. Two colours neither of which is black
    cannot be ordered without a guess; with a stated side their luminance does. What transparent parts mean, nobody can
    know: not painted, erased, or outside.
    """
    colours, alpha = eight_or_sixteen_bit(picture.colours(), name), picture.alpha
    if alpha is not None and alpha.min() != alpha.max():
        raise InputError(f"{name}: has transparent parts; flatten it, and save black and white")

    is_grey = (colours[..., 0] == colours[..., 1]) & (colours[..., 0] == colours[..., 2])
    grey = colours[..., 0]
    if is_grey.all():
        return grey, False
    if foreground == "labels":
        is_black = is_grey & (grey == 0)
        if not is_black.any():
            raise InputError(f"{name}: has colours, and black nowhere; labels in colours stand on black")
        return (~is_black).astype(np.uint8), False
    if foreground in ("dark", "bright"):
        return cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), False

    tones = np.unique(colours[~is_grey], axis=0)
    greys = np.unique(grey[is_grey])
    if len(tones) == 1 and len(greys) == 0:
        raise InputError(f"{name}: every pixel has the colour {hexadecimal(tones[0])}; save a full mask as all white")
    if len(tones) == 1 and greys.tolist() == [0]:
        return np.where(is_grey, 0, 255).astype(np.uint8), False
    if len(tones) == 1 and len(greys) > 2:
        return np.where(is_grey, grey.astype(np.int32), -1), True
    shown = ", ".join([hexadecimal(np.repeat(g, 3)) for g in greys[:4]] + [hexadecimal(tone) for tone in tones[:4]])
    if len(tones) + len(greys) == 2:
        raise InputError(f"{name}: has the colours {shown}, which do not tell the foreground; save black and white, or "
                         f"set {option} dark or bright")
    raise InputError(f"{name}: has {len(tones) + len(greys)} colours ({shown} …); save a mask as black and white. If "
                     f"it is one colour on black with soft edges, set {option} bright; if black is background and "
                     f"every other colour foreground, {option} labels")


def eight_or_sixteen_bit(colours: np.ndarray, name: str) -> np.ndarray:
    """Return colours as uint8 or uint16, of floats those from 0 to 1; `InputError` for others."""
    if colours.dtype in (np.uint8, np.uint16):
        return colours
    if colours.dtype.kind == "b":
        return colours * np.uint8(255)
    low, high = float(colours.min()), float(colours.max())
    if colours.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(colours * 255).astype(np.uint8)
    if colours.dtype.kind in "ui" and low >= 0 and high <= 65535:
        return colours.astype(np.uint8 if high <= 255 else np.uint16)
    raise InputError(f"{name}: has colours from {low:g} to {high:g} as {colours.dtype}; save the mask as black and "
                     "white")


def hexadecimal(colour: np.ndarray) -> str:
    """Return a colour as paint programs write it: #ff0000."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def above_zero(values: np.ndarray, name: str) -> np.ndarray:
    """Return where whole numbers are above 0, as uint8; `InputError` for others and negative ones."""
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise InputError(f"{name}: holds other than whole numbers; labels are 0, for background, and 1, 2, 3 …")
    if values.min() < 0:
        raise InputError(f"{name}: holds negative numbers; labels are 0, for background, and 1, 2, 3 …")
    return (values > 0).astype(np.uint8)


# --- soft edges ------------------------------------------------------------------------------------------------

def has_soft_edges(values: np.ndarray) -> bool:
    """Return whether a mask is two flat parts with rims between them.

    Flat is what lies within a tenth of the range from an extreme value. All other pixels but one in a hundred are rims,
    which have both flat parts within `RIM` pixels, and most pixels of either side are flat. What is flat and not quite
    extreme is what JPEG makes near an edge. So labels and classes are never taken for soft edges, because their numbers
    fill whole particles, and neither are slices with their noise.
    """
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "uib" or bool((values == np.rint(values)).all())
    if whole and high <= HIGHEST_LABEL:
        return False

    position = (values.astype(np.float64) - low) / (high - low)
    count = len(np.unique(values))
    between = np.count_nonzero((values != low) & (values != high))
    if count < LEAST_VALUES and between > MOST_BETWEEN * min(np.count_nonzero(values == low),
                                                             np.count_nonzero(values == high)):
        return False                                            # three values are three classes
    few = count < FEW_VALUES
    flat, extreme = (0.0, 0.0) if few else (FLAT, EXTREME)
    dark, bright = position <= flat, position >= 1 - flat
    lower, upper = np.count_nonzero(position <= 0.5), np.count_nonzero(position > 0.5)
    if np.count_nonzero(dark) < LEAST_FLAT * lower or np.count_nonzero(bright) < LEAST_FLAT * upper:
        return False

    is_rim = near(dark, RIM) & near(bright, RIM)
    is_ringing = (dark & near(bright, RINGING)) | (bright & near(dark, RINGING))
    is_extreme = (position <= extreme) | (position >= 1 - extreme)
    stray = ~is_extreme & ~is_rim & ~is_ringing
    return np.count_nonzero(stray) <= 0.01 * min(lower, upper)


def near(where: np.ndarray, distance: int) -> np.ndarray:
    """Return what lies within `distance` pixels of a (H, W) bool array."""
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * distance + 1, 2 * distance + 1))
    return cv2.dilate(where.astype(np.uint8), reach).astype(bool)


# --- painted copies --------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Paint:
    """What an annotator painted over a copy of a slice: (H, W) bool, apart for paint below and above its grey values.

    `dark_values` and `bright_values` are the grey values of the paint; `second_share` says of each side how much the
    second most frequent of them fills, as a share of the most frequent one.
    """

    dark: np.ndarray
    bright: np.ndarray
    dark_values: list[float]
    bright_values: list[float]
    second_share: dict[str, float] = field(default_factory=lambda: {"dark": 0.0, "bright": 0.0, "": 0.0})


def find_paint(values: np.ndarray, image: np.ndarray) -> Paint | None:
    """Return what is painted in a mask that is a copy of `image`; None where it is none.

    A copy equals the image up to a linear map, such as the one to 8 bit, everywhere but where it is painted: there it
    holds one of a few exact values.
    """
    # In units of their ranges, so that values of any size are treated alike: the squares of tiny ones would vanish.
    lowest, reach = float(values.min()), float(values.max()) - float(values.min())
    rounding = 1.01 / reach if (values == np.rint(values)).all() else 0.0
    image, is_padding = without_far_padding(image)
    values, image = in_units_of_range(values), in_units_of_range(image)
    fit = fit_copy(values, image, rounding)
    if fit is None:
        return None
    expected, tolerance = fit
    difference = values - expected
    differs = (np.abs(difference) > tolerance) & ~is_padding
    if not differs.any():
        nothing = np.zeros(values.shape, bool)
        return Paint(nothing, nothing, [], [])

    # Paint is what many of the pixels hold that differ. Other pixels that differ are rims of a soft brush: they belong
    # to the paint where they are nearer to it than to the copy.
    found, counts = np.unique(values[differs], return_counts=True)
    paints = found[counts >= max(2, LEAST_PAINT * differs.sum())].astype(np.float64)
    if len(paints) == 0 or np.isin(values[differs], paints).mean() < 0.5:
        return None
    nearest = paints[np.abs(values[..., None] - paints).argmin(-1)] if len(paints) < 4 else nearest_of(values, paints)
    painted = differs & (np.abs(values - nearest) < np.abs(difference))

    # The slice may hold the value of the paint by itself. Such pixels count as painted where paint surrounds them.
    undecided = ~differs & (values == nearest)
    inside = surrounded(undecided, painted)
    if np.count_nonzero(undecided & ~inside) > MOST_UNDECIDED * np.count_nonzero(painted) and not is_outside(
            undecided & ~inside):
        return None
    painted |= inside

    middle = np.median(expected)
    is_dark = nearest < middle
    dark_values, bright_values = (sorted((lowest + reach * paints[side]).tolist())
                                  for side in (paints < middle, paints >= middle))
    second_share = {"": 0.0}
    for side, where in (("dark", is_dark), ("bright", ~is_dark)):
        filled = sorted((np.count_nonzero(painted & where & (nearest == value)) for value in paints), reverse=True)
        second_share[side] = filled[1] / filled[0] if len(filled) > 1 and filled[0] else 0.0
    return Paint(painted & is_dark, painted & ~is_dark, dark_values, bright_values, second_share)


def without_far_padding(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice without padding that is NaN or extremely far from all grey values, and where that was.

    Beside a padding of −10³⁰ all grey values would be one. Its pixels get the lowest value of the others.
    """
    image = image.astype(np.float64)
    is_finite = np.isfinite(image)
    if not is_finite.any():
        return np.zeros_like(image), ~is_finite
    with np.errstate(over="ignore", invalid="ignore"):          # of values farther apart than the largest number
        middle = np.median(image[is_finite])
        distance = np.abs(image - middle)
        usual = np.median(distance[is_finite])
        is_padding = ~is_finite
        if usual > 0:
            is_padding |= distance > FAR * usual
    if is_padding.all():
        return np.zeros_like(image), is_padding
    return np.where(is_padding, image[~is_padding].min(), image), is_padding


def in_units_of_range(array: np.ndarray) -> np.ndarray:
    """Return an array with its lowest value as 0 and its highest as 1, float64; all 0 where they are the same."""
    array = array.astype(np.float64)
    reach = array.max() - array.min()
    return (array - array.min()) / reach if 0 < reach < np.inf else np.zeros_like(array)


def nearest_of(values: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """Return the nearest of sorted `paints` for each of the values."""
    upper = np.searchsorted(paints, values).clip(1, len(paints) - 1)
    below, above = paints[upper - 1], paints[upper]
    return np.where(values - below <= above - values, below, above)


def fit_copy(values: np.ndarray, image: np.ndarray, rounding: float) -> tuple[np.ndarray, float] | None:
    """Return the image as a copy of it would show it, and how far a copy may differ; None where `values` are no copy.

    Both in units of their ranges; copies may differ by `rounding` at least.

    The linear map is fitted by least squares to pixels that are likely not painted: the three most frequent values, and
    the two extremes, at which a copy of fewer bits is cut off, are left out, and what does not fit in turn.
    """
    found, counts = np.unique(values, return_counts=True)
    frequent = found[np.argsort(-counts)[:3]]
    likely = ~np.isin(values, [*frequent, found[0], found[-1]])
    step = max(1, np.count_nonzero(likely) // 200_000)
    x, y = image[likely][::step], values[likely][::step]
    if len(x) < 100 or x.min() == x.max():
        return None

    fits = np.ones(len(x), bool)
    for _ in range(10):
        slope, offset = np.polyfit(x[fits], y[fits], 1)
        residual = np.abs(y - offset - slope * x)
        limit = max(3 * 1.4826 * np.median(residual), EXACT)
        fits = residual <= limit
        if np.count_nonzero(fits) < 100 or np.ptp(x[fits]) == 0:
            return None

    explained = 1 - np.square(residual[fits]).sum() / max(np.square(y[fits] - y[fits].mean()).sum(), 1e-300)
    if slope == 0 or explained < LEAST_EXPLAINED or fits.mean() < LEAST_COPIED:
        return None
    expected = np.clip(offset + slope * image, found[0], found[-1])
    return expected, max(rounding, limit)


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


def read_painted_copy(paint: Paint, name: str, foreground: str, option: str) -> Reading:
    """Return the reading of a painted copy: the paint is foreground; of two kinds of paint the one that fills more.

    Where a side is stated, its paint is; where only the other side is painted, all that is not.
    """
    dark, bright = np.count_nonzero(paint.dark), np.count_nonzero(paint.bright)
    if foreground == "dark":
        mask = paint.dark if dark or not bright else ~paint.bright
        return Reading("dark", mask=mask.astype(np.uint8))
    if foreground == "bright":
        mask = paint.bright if bright or not dark else ~paint.dark
        return Reading("bright", mask=mask.astype(np.uint8))

    if min(dark, bright) > ONE_SIDED * max(dark, bright):
        raise InputError(f"{name}: is a copy of its slice with {dark / paint.dark.size:.1%} painted dark and "
                         f"{bright / paint.dark.size:.1%} bright; set {option} to the side that is foreground: dark or "
                         "bright")
    side = "dark" if dark > bright else "bright" if bright else ""
    if paint.second_share[side] > ONE_SIDED:
        values = paint.bright_values if side == "bright" else paint.dark_values
        raise InputError(f"{name}: is a copy of its slice painted with several values on one side "
                         f"({', '.join(f'{v:g}' for v in values[:4])}): classes? save one of them as 0 and 255, or set "
                         f"{option} {side} if all of them are foreground")
    mask = paint.bright if side == "bright" else paint.dark
    surrounds = mask[[0, 0, -1, -1], [0, -1, 0, -1]].all() and is_outside(mask)
    if mask.mean() > (MOST_AROUND if surrounds else 0.5):
        values = paint.bright_values if side == "bright" else paint.dark_values
        raise InputError(f"{name}: is a copy of its slice in which {mask.mean():.0%} hold "
                         f"{', '.join(f'{v:g}' for v in values[:3])}: paint, or what lies outside? set {option} {side} "
                         f"if that is foreground, else {option} {'bright' if side == 'dark' else 'dark'}")
    return Reading("painted copy", mask=mask.astype(np.uint8), side=side)


# --- a stated side of a threshold ------------------------------------------------------------------------------

def split_by_otsu(values: np.ndarray, name: str, foreground: str, image: np.ndarray | None) -> np.ndarray:
    """Return the dark or the bright side of Otsu's threshold as (H, W) uint8.

    Where mask and slice are both 0, outside the field of view, there is no foreground.

    Raises
    ------
    InputError
        When dark is foreground, all corners are 0, and no slice tells whether these are paint or outside.
    """
    inside = np.ones(values.shape, bool) if image is None else (values != 0) | (image != 0)
    if not inside.any():
        return np.zeros(values.shape, np.uint8)
    threshold = otsu_threshold(values[inside], name)
    corners = values[np.ix_((0, -1), (0, -1))]
    if foreground == "dark" and image is None and not corners.any():
        raise InputError(f"{name}: is 0 in all corners: paint, or outside the field of view? save it as 0 and 255")
    return (inside & ((values <= threshold) == (foreground == "dark"))).astype(np.uint8)


def otsu_threshold(values: np.ndarray, name: str) -> float:
    """Return Otsu's threshold; `InputError` where values reach too far, or lie too close, for its arithmetic."""
    low, high = float(values.min()), float(values.max())
    reach = high - low
    if not 1e-300 < reach < np.inf:
        raise InputError(f"{name}: its grey values, from {low:g} to {high:g}, cannot be split by a threshold; damaged?")

    # Of integers every one would be a bin of its own; float16 and extreme floats leave no room for 256 bins.
    if values.dtype == np.float16 or (values.dtype.kind in "ui" and reach > 65535):
        values = values.astype(np.float64)
    try:
        if 1e-12 < reach < 1e12:
            return threshold_otsu(values)
        return threshold_otsu((values - np.float64(low)) / reach) * reach + low
    except ValueError:
        raise InputError(f"{name}: its grey values, from {low:g} to {high:g}, cannot be split by a threshold; damaged?"
                         ) from None


# --- errors ----------------------------------------------------------------------------------------------------

def describe_unknown(values: np.ndarray, with_image: bool) -> str:
    """Return in words what a mask holds that no rule covers."""
    found = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in found[:6]) + (" …" if len(found) > 6 else "")
    copy = "and is no copy of its slice with paint on it" if with_image else "and no slice tells whether it is a copy"
    return f"holds {len(found)} values ({shown}), {copy}"


def advise(values: np.ndarray, option: str) -> str:
    """Return what the caller can do about a mask that no rule covers, right for what it holds."""
    whole = values.dtype.kind in "uib" or bool((values == np.rint(values)).all())
    few = len(np.unique(values)) < FEW_VALUES
    lines = []
    if whole and values.min() >= 0:
        lines.append(f"if 0 is background and every other number foreground, set {option} labels; if 0 means not "
                     "painted, or numbers are classes, save one class as 0 and 255")
    if not few or not lines:
        lines.append(f"if foreground is one side of a threshold, as in a painted copy, set {option} dark or bright")
    return "; ".join(lines)


# --- all masks of a folder or a volume -------------------------------------------------------------------------

class Masks:
    """The masks of a folder or a volume, read one at a time by one rule: `masks[i]` is (H, W) uint8, foreground 1.

    Parameters
    ----------
    names : list of str
        What messages call each of them.
    read : index → Picture
    foreground : {"auto", "dark", "bright", "labels"}
        As in `read_mask_as`.
    read_image : index → (H, W) ndarray, optional
        The slices they belong to, with values as stored; None for one that is not known.
    option : str
        The option of the command by which the caller states `foreground`, for messages.
    all_vote : bool
        Whether all of them are read before one is used, to find the rule that most of them follow. Else the first one
        that shows a rule decides.

    Raises
    ------
    InputError
        When a mask is read: as `read_mask_as`, and where it needs another rule than the others.
    """

    def __init__(self, names: list[str], read: Callable[[int], Picture], foreground: str = "auto",
                 read_image: Callable[[int], np.ndarray | None] | None = None, option: str = "--mask-foreground",
                 all_vote: bool = False):
        self.names, self.read, self.foreground, self.option = names, read, foreground, option
        self.read_image = read_image or (lambda _: None)
        self.all_vote = all_vote
        self._has_said = False
        self._kept: dict[int, tuple[Reading, tuple[int, int]]] = {}
        self._rule: Rule | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray:
        reading, shape = self._read(i)
        return self.rule.apply(reading, shape, self.names[i], self.option)

    def _read(self, i: int) -> tuple[Reading, tuple[int, int]]:
        """Return what a mask was taken for, and its shape; `InputError` where its slice is of another size."""
        if i in self._kept:
            return self._kept[i]
        picture, image, name = self.read(i), self.read_image(i), self.names[i]
        if picture.white_is_zero and picture.values.dtype == bool and self.foreground == "auto" and not self._has_said:
            say_once(f"{name}: is of one bit, with 0 as white, and what is shown white is foreground. Some programs "
                     "(tifffile) store True so, and show it black; if True is foreground, save masks as 0 and 255")
            self._has_said = True
        if image is not None and image.shape != picture.shape:
            raise InputError(f"{name}: is {picture.shape[0]}×{picture.shape[1]} px, its image {image.shape[0]}×"
                             f"{image.shape[1]}; they must be of one size")
        found = read_mask_as(picture, name, self.foreground, image, self.option), picture.shape
        if self.all_vote and len(self._kept) < KEPT:
            self._kept[i] = found
        return found

    @property
    def rule(self) -> "Rule":
        """The rule of all of them; it is looked for once."""
        if self._rule is None:
            self._rule = self._find_rule()
        return self._rule

    def _find_rule(self) -> "Rule":
        constants: dict[float, str] = {}
        votes: dict[tuple, int] = {}
        rules: dict[tuple, Rule] = {}
        for i, reading in self._readable():
            if reading.kind == "constant":
                constants.setdefault(reading.levels[0], self.names[i])
            elif reading.kind != "painted copy" or reading.side:        # an unpainted copy shows no side
                key = reading.kind, reading.levels, reading.side
                votes[key] = votes.get(key, 0) + 1
                rules.setdefault(key, Rule(*key, self.names[i]))
                if not self.all_vote:
                    break
        if rules:
            followers = {key: sum(votes[other] for other in rules if rule.allows(rules[other]))
                         for key, rule in rules.items()}
            return rules[max(followers, key=followers.get)]             # of equal ones the first

        # All are constant: such as only empty and only full ones.
        others = sorted(value for value in constants if value != 0)
        kind = self.foreground if self.foreground in ("dark", "bright") else "two values"
        if len(others) == 1 and 0 in constants:
            return Rule(kind, (0.0, others[0]), "", constants[others[0]])
        return Rule(kind, (0.0, 0.0), "", "")

    def _readable(self) -> Iterator[tuple[int, Reading]]:
        """Number and reading of each mask that can be read; the others are errors when they are asked for."""
        for i in range(len(self)):
            try:
                reading, _ = self._read(i)
            except InputError:
                continue
            yield i, reading


@dataclass(frozen=True)
class Rule:
    """How the masks of a folder or volume are read.

    Attributes
    ----------
    kind, levels, side
        As of the `Reading` that showed the rule; levels (0, 0) where all masks are empty.
    name : str
        The mask that showed it.
    """

    kind: str
    levels: tuple[float, float]
    side: str
    name: str

    def apply(self, reading: Reading, shape: tuple[int, int], name: str, option: str) -> np.ndarray:
        """Return the mask of a reading as (H, W) uint8; `InputError` where it needs another rule."""
        if reading.kind == "constant":
            return np.full(shape, self.is_full(reading, name), np.uint8)
        if reading.kind == "painted copy" and not reading.side:
            return reading.mask                                 # nothing is painted, whatever the others are
        if not self.allows(reading):
            are_numbers = self.kind == reading.kind == "two values" and self.levels[0] == reading.levels[0] == 0
            labels = f", or set {option} labels if every number above 0 is foreground" if are_numbers else ""
            raise InputError(f"{name}: {describe_reading(reading)}, but {self.name} {describe_reading(self)}; masks "
                             f"of one folder or volume follow one rule: save all of them alike, as 0 and 255{labels}")
        return reading.mask

    def is_full(self, reading: Reading, name: str) -> bool:
        """Return whether a mask of one value is full; it is empty otherwise."""
        value = reading.levels[0]
        if self.kind in ("two values", "soft edges", "dark", "bright") and self.levels[0] != self.levels[1]:
            background, foreground = self.levels if self.kind != "dark" else self.levels[::-1]
            if value in self.levels:
                return value == foreground
            if value != 0 or background != 0:
                raise InputError(f"{name}: every pixel is {value:g}, but {self.name} {describe_reading(self)}; save a "
                                 "mask without foreground, or one that is full, as the others are")
            return False
        if value == 0:
            return self.kind == "dark" and not self.name
        if reading.is_boolean or value in FULL or self.kind in ("dark", "bright"):
            return self.kind != "dark"
        if self.name:
            raise InputError(f"{name}: every pixel is {value:g}, but {self.name} {describe_reading(self)}; save a mask "
                             "without foreground, or one that is full, as the others are")
        raise InputError(f"{name}: every pixel is {value:g}; an empty mask is all 0, a full one all 255")

    def allows(self, reading: "Reading | Rule") -> bool:
        """Return whether a reading with foreground follows this rule."""
        kinds = {self.kind, reading.kind}
        if kinds == {"two values"}:
            (low, high), (other_low, other_high) = self.levels, reading.levels
            return low == other_low and (high == other_high or {high, other_high} <= set(ALIKE))
        if kinds <= {"two values", "soft edges"}:
            middle = [sum(map(float, levels)) / 2 for levels in (self.levels, reading.levels)]
            return self.levels[0] < middle[1] < self.levels[1] and reading.levels[0] < middle[0] < reading.levels[1]
        return len(kinds) == 1 and self.side == reading.side


def describe_reading(reading: Reading | Rule) -> str:
    """Return in words what a mask was taken for."""
    low, high = reading.levels
    return {
        "two values": f"holds {low:g} and {high:g}, of which {high:g} is foreground",
        "soft edges": f"has soft edges between {low:g} and {high:g}, and is foreground above the middle",
        "painted copy": f"is a copy of its slice, and foreground where it is painted {reading.side}",
        "coloured copy": "is a grey picture, and foreground where it is painted with a colour",
        "labels": "holds labels, and is foreground above 0",
        "dark": "is foreground where it is dark, as stated",
        "bright": "is foreground where it is bright, as stated",
    }[reading.kind]


def masks_of_files(files: list[Path], foreground: str = "auto", images: list[Path | None] | None = None,
                   option: str = "--mask-foreground") -> Masks:
    """Return the masks in some files, in their order; `images` are the files of their slices, as far as known."""
    def read_slice(i: int) -> np.ndarray | None:
        if images is None or images[i] is None:
            return None
        return read_image(images[i])

    return Masks([str(file) for file in files], lambda i: read_picture(files[i]), foreground, read_slice, option,
                 all_vote=True)


def read_mask(file: Path, foreground: str = "auto", image: Path | None = None) -> np.ndarray:
    """Return the mask in a single file as (H, W) uint8, foreground 1; see `Masks`."""
    return masks_of_files([file], foreground, [image])[0]
