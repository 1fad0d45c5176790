"""What a single mask holds, and which of its pixels are foreground.

What a mask may be, and what is foreground in it:

two values      the one that is not 0; where neither is 0, the higher one. RGB, palette and bilevel
                files count as they are shown: white is high, black is 0, and of black and one
                colour the colour is foreground.
soft edges      two values with grey rims between them, of a soft brush, an interpolation or JPEG:
                above the middle.
painted copy    the slice itself, in which an annotator has filled what is foreground with one grey
                value or colour. It is recognised by being a copy; see `slices.painted_copies`.
labels          whole numbers, a particle each; everything above 0. Only where the caller says so.

Whatever else a file holds is an error that says what the caller can state: a side (`dark`,
`bright`) or `labels`.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.filters import threshold_otsu

from runtime.messages import InputError
from slices.painted_copies import Paint, find_paint, is_outside
from slices.pictures import Picture

# Soft edges. Positions are shares of the range of the values.
FLAT = 0.1  # so far from an extreme value is a pixel of a flat part, at most
EXTREME = 0.01  # closer pixels hold an extreme value
RIM = 4  # px: so far from both flat parts is a pixel of a soft edge, at most
RINGING = 9  # px: so far from an edge are the pixels that JPEG has changed a little, at most
LEAST_VALUES = 4  # of a mask with soft edges
MOST_BETWEEN = 0.05  # pixels with a third value, for each with the rarer extreme one, by accident
FEW_VALUES = 16  # with fewer, only the extreme values themselves are flat: others may be classes
LEAST_FLAT = 0.75  # share of the pixels of either side that are flat
MOST_STRAY = 0.01  # share of the pixels of the smaller side that are neither flat nor rim
HIGHEST_LABEL = 15  # whole numbers up to here may be labels, and are never taken for soft edges
SURE = 0.9  # probabilities of foreground reach it somewhere

# Painted copies.
ONE_SIDED = 0.25  # paint of another kind that is disregarded, as a share of the larger
MOST_PAINTED = 0.5  # share of a slice that paint fills before it is asked whether it is
MOST_AROUND = 0.3  # the same, where it fills all that surrounds everything else


@dataclass(frozen=True)
class MaskInfo:
    """What is known about a mask beside its pixels.

    Attributes
    ----------
    name : str
        What messages call it.
    foreground : {"auto", "dark", "bright", "labels"}
        What the caller states. `dark` and `bright`: of two values the lower or the higher one, of a
        painted copy the paint of that side, else that side of Otsu's threshold (Otsu, 1979,
        doi:10.1109/TSMC.1979.4310076).
    image : (H, W) ndarray, or None
        The slice that the mask belongs to, with values as stored: a painted copy is known by it.
    option : str
        The option of the command by which the caller states `foreground`, for messages.
    """

    name: str
    foreground: str = "auto"
    image: np.ndarray | None = None
    option: str = "--mask-foreground"

    @property
    def states_side(self) -> bool:
        """Whether the caller states a side."""
        return self.foreground in ("dark", "bright")


@dataclass(frozen=True, eq=False)
class MaskReading:
    """What one mask was taken for.

    Attributes
    ----------
    kind : str
        `constant`, `two values`, `soft edges`, `painted copy`, `coloured copy`, `labels`, `dark` or
        `bright`.
    levels : (low, high)
        The two values, or the extremes of a mask with soft edges; of a constant mask its value,
        twice.
    mask : (H, W) uint8 ndarray, or None
        1 for foreground. None for constant masks: whether these are empty or full, the other masks
        tell.
    side : {"", "dark", "bright"}
        Of a painted copy: whether the paint is darker or brighter than the slice; empty where
        nothing is painted.
    is_boolean : bool
        Of a constant mask: whether the file can hold nothing but 0 and 1.
    """

    kind: str
    levels: tuple[float, float] = (0.0, 0.0)
    mask: np.ndarray | None = None
    side: str = ""
    is_boolean: bool = False


def read_mask_as(picture: Picture, info: MaskInfo) -> MaskReading:
    """Return what one mask holds; see the module for the rules.

    Parameters
    ----------
    picture : Picture
        The file as `slices.pictures.read_picture` decodes it.
    info : MaskInfo

    Raises
    ------
    InputError
        For NaN and infinite values, and for whatever the rules do not cover.
    """
    are_numbers = picture.values.ndim == 2 and picture.alpha is None
    is_of_colours = False
    if info.foreground == "labels" and are_numbers:
        # Numbers count as stored, whatever they look like on a screen.
        values = picture.values
    elif picture.is_coloured:
        values, is_of_colours = values_of_colours(picture, info)
    else:
        values = shown_values(picture)

    if values.dtype.kind not in "uifb" or not np.isfinite(values).all():
        raise InputError(
            f"{info.name}: holds NaN, infinite or other than real values; save the mask again as 0 "
            "and 255"
        )

    if info.foreground == "labels":
        return MaskReading("labels", mask=above_zero(values, info.name))

    low = values.min()
    high = values.max()
    levels = (low.item(), high.item())
    if low == high:
        return MaskReading("constant", levels, is_boolean=values.dtype.kind == "b")
    is_high = values == high
    if (is_high | (values == low)).all():
        return read_two_values(is_high, levels, info.foreground)
    if is_of_colours:
        return read_coloured_copy(values, info)
    return read_grey_values(values, levels, info)


def read_two_values(
    is_high: np.ndarray, levels: tuple[float, float], foreground: str
) -> MaskReading:
    """Return the reading of a mask with two values: the one that is not 0 is foreground, else the higher one."""
    low, high = levels
    if foreground == "bright":
        return MaskReading("bright", levels, is_high.astype(np.uint8))
    if foreground == "dark":
        return MaskReading("dark", levels, (~is_high).astype(np.uint8))
    if high == 0:
        # Such as 0 and −1.
        return MaskReading("two values", (0.0, low), (~is_high).astype(np.uint8))
    return MaskReading("two values", levels, is_high.astype(np.uint8))


def read_coloured_copy(values: np.ndarray, info: MaskInfo) -> MaskReading:
    """Return the reading of a grey picture with one colour in it, which `values_of_colours` has marked by −1.

    The grey part has to be a copy of the slice: a mask may have a scale bar in a colour.
    """
    paint = None
    known = "no slice tells whether it is a copy"
    if info.image is not None:
        paint = find_paint(values, info.image)
        known = "is no copy of its slice"
    if paint is None or (paint.dark.where != (values < 0)).any():
        raise InputError(
            f"{info.name}: is grey with one colour, and {known}; save the mask as black and white, "
            f"or set {info.option} dark or bright"
        )

    return MaskReading("coloured copy", mask=paint.dark.where.astype(np.uint8))


def read_grey_values(
    values: np.ndarray, levels: tuple[float, float], info: MaskInfo
) -> MaskReading:
    """Return the reading of a mask with more than two grey values: a painted copy, or a mask with soft edges."""
    low, high = levels
    if not np.isfinite(float(high) - float(low)):
        raise InputError(describe_unsplittable(info.name, low, high))

    paint = None
    if info.image is not None:
        paint = find_paint(values, info.image)
    if paint is not None:
        return read_painted_copy(paint, info)
    if info.states_side:
        return MaskReading(info.foreground, levels, split_by_otsu(values, info))

    if has_soft_edges(values):
        is_probability = values.dtype.kind == "f" and low >= 0 and high < SURE
        if is_probability:
            raise InputError(
                f"{info.name}: holds values from {low:g} to {high:g}, as probabilities that are "
                "sure nowhere; save decisions as 0 and 255"
            )
        middle = (float(low) + float(high)) / 2
        return MaskReading("soft edges", levels, (values > middle).astype(np.uint8))

    is_known = info.image is not None
    raise InputError(
        f"{info.name}: {describe_unknown(values, is_known)}; {advise(values, info.option)}"
    )


def above_zero(values: np.ndarray, name: str) -> np.ndarray:
    """Return where whole numbers are above 0, as uint8; `InputError` for others and negative ones."""
    expected = "labels are 0, for background, and 1, 2, 3 …"
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise InputError(f"{name}: holds other than whole numbers; {expected}")
    if values.min() < 0:
        raise InputError(f"{name}: holds negative numbers; {expected}")
    return (values > 0).astype(np.uint8)


# --- values and colours ---------------------------------------------------------------------------


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


def values_of_colours(picture: Picture, info: MaskInfo) -> tuple[np.ndarray, bool]:
    """Return grey values for a coloured picture.

    Greys keep their value, and of black and one colour the colour becomes 255. Two colours neither
    of which is black cannot be ordered without a guess; with a stated side their luminance does.
    What transparent parts mean, nobody can know: not painted, erased, or outside.

    Returns
    -------
    values : (H, W) ndarray
    is_copy : bool
        Whether this is a grey picture with one colour in it, which is marked by −1.
    """
    alpha = picture.alpha
    if alpha is not None and alpha.min() != alpha.max():
        raise InputError(
            f"{info.name}: has transparent parts; flatten it, and save black and white"
        )

    colours = eight_or_sixteen_bit(picture.colours(), info.name)
    red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
    is_grey = (red == green) & (red == blue)
    if is_grey.all():
        return red, False

    if info.foreground == "labels":
        is_black = is_grey & (red == 0)
        if not is_black.any():
            raise InputError(
                f"{info.name}: has colours, and black nowhere; labels in colours stand on black"
            )
        return (~is_black).astype(np.uint8), False

    if info.states_side:
        return cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), False

    tones = np.unique(colours[~is_grey], axis=0)  # (N, 3)
    greys = np.unique(red[is_grey])
    if len(tones) == 1 and greys.tolist() == [0]:
        return np.where(is_grey, 0, 255).astype(np.uint8), False
    if len(tones) == 1 and len(greys) > 2:
        return np.where(is_grey, red.astype(np.int32), -1), True
    raise colours_error(tones, greys, info)


def colours_error(tones: np.ndarray, greys: np.ndarray, info: MaskInfo) -> InputError:
    """Return the error for colours that do not tell the foreground.

    Parameters
    ----------
    tones : (N, 3) ndarray
        Colours that are not grey.
    greys : (N,) ndarray
    """
    if len(tones) == 1 and len(greys) == 0:
        return InputError(
            f"{info.name}: every pixel has the colour {hexadecimal(tones[0])}; save a full mask as "
            "all white"
        )

    shown = [hexadecimal(np.repeat(grey, 3)) for grey in greys[:4]]
    shown += [hexadecimal(tone) for tone in tones[:4]]
    names = ", ".join(shown)
    count = len(tones) + len(greys)
    if count == 2:
        return InputError(
            f"{info.name}: has the colours {names}, which do not tell the foreground; save black and "
            f"white, or set {info.option} dark or bright"
        )

    return InputError(
        f"{info.name}: has {count} colours ({names} …); save a mask as black and white. If it is one "
        f"colour on black with soft edges, set {info.option} bright; if black is background and "
        f"every other colour foreground, {info.option} labels; if colours are classes, name them in "
        "classes.json of the data folder"
    )


def eight_or_sixteen_bit(colours: np.ndarray, name: str) -> np.ndarray:
    """Return colours as uint8 or uint16, of floats those from 0 to 1; `InputError` for others."""
    if colours.dtype in (np.uint8, np.uint16):
        return colours
    if colours.dtype.kind == "b":
        return colours * np.uint8(255)

    low = float(colours.min())
    high = float(colours.max())
    if colours.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(colours * 255).astype(np.uint8)
    if colours.dtype.kind in "ui" and low >= 0 and high <= 65535:
        return colours.astype(np.uint8 if high <= 255 else np.uint16)
    raise InputError(
        f"{name}: has colours from {low:g} to {high:g} as {colours.dtype}; save the mask as black "
        "and white"
    )


def hexadecimal(colour: np.ndarray) -> str:
    """Return a colour as paint programs write it: #ff0000."""
    channels = [f"{channel:02x}" for channel in colour]
    return "#" + "".join(channels)


# --- soft edges -----------------------------------------------------------------------------------


def has_soft_edges(values: np.ndarray) -> bool:
    """Return whether a mask is two flat parts with rims between them.

    Flat is what lies within a tenth of the range from an extreme value. All other pixels but one in
    a hundred are rims, which have both flat parts within `RIM` pixels, and most pixels of either
    side are flat. What is flat and not quite extreme is what JPEG makes near an edge. So labels and
    classes are never taken for soft edges, because their numbers fill whole particles, and neither
    are slices with their noise.
    """
    if are_whole(values) and values.max() <= HIGHEST_LABEL:
        return False
    low = float(values.min())
    high = float(values.max())
    count = len(np.unique(values))
    if count < LEAST_VALUES:
        # Three values are three classes, unless the third is an accident.
        at_low = np.count_nonzero(values == low)
        at_high = np.count_nonzero(values == high)
        between = values.size - at_low - at_high
        if between > MOST_BETWEEN * min(at_low, at_high):
            return False

    # Of few values only the extreme ones are flat: the others may be classes.
    flat = 0.0 if count < FEW_VALUES else FLAT
    extreme = 0.0 if count < FEW_VALUES else EXTREME
    position = (values.astype(np.float64) - low) / (high - low)
    dark = position <= flat
    bright = position >= 1 - flat
    lower = np.count_nonzero(position <= 0.5)
    upper = position.size - lower
    if np.count_nonzero(dark) < LEAST_FLAT * lower:
        return False
    if np.count_nonzero(bright) < LEAST_FLAT * upper:
        return False

    is_rim = near(dark, RIM) & near(bright, RIM)
    is_ringing = (dark & near(bright, RINGING)) | (bright & near(dark, RINGING))
    is_extreme = (position <= extreme) | (position >= 1 - extreme)
    stray = ~is_extreme & ~is_rim & ~is_ringing
    return np.count_nonzero(stray) <= MOST_STRAY * min(lower, upper)


def are_whole(values: np.ndarray) -> bool:
    """Return whether all values are whole numbers."""
    return values.dtype.kind in "uib" or bool((values == np.rint(values)).all())


def near(where: np.ndarray, distance: int) -> np.ndarray:
    """Return what lies within `distance` pixels of a (H, W) bool array."""
    side = 2 * distance + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(where.astype(np.uint8), disc).astype(bool)


# --- painted copies -------------------------------------------------------------------------------


def read_painted_copy(paint: Paint, info: MaskInfo) -> MaskReading:
    """Return the reading of a painted copy: the paint is foreground, of two colours the one that fills more.

    Where a side is stated, its paint is; where only the other side is painted, all that is not.

    Raises
    ------
    InputError
        Where both sides are painted, or one with several values, or so much that it may be padding.
    """
    if info.states_side:
        return read_stated_side(paint, info.foreground)
    if paint.dark.count == paint.bright.count == 0:
        return MaskReading("painted copy", mask=paint.dark.where.astype(np.uint8))

    sides = {"dark": paint.dark, "bright": paint.bright}
    side, other = (
        ("dark", "bright") if paint.dark.count > paint.bright.count else ("bright", "dark")
    )
    painted = sides[side]
    if sides[other].count > ONE_SIDED * painted.count:
        dark_share = paint.dark.where.mean()
        bright_share = paint.bright.where.mean()
        raise InputError(
            f"{info.name}: is a copy of its slice with {dark_share:.1%} painted dark and "
            f"{bright_share:.1%} bright; set {info.option} to the side that is foreground: dark or "
            "bright"
        )

    if painted.second_share > ONE_SIDED:
        values = ", ".join(f"{value:g}" for value in painted.values[:4])
        raise InputError(
            f"{info.name}: is a copy of its slice painted with several values on one side "
            f"({values}): classes? save one of them as 0 and 255, or set {info.option} {side} if all "
            "of them are foreground"
        )

    # Padding that lies around everything may look like paint.
    mask = painted.where
    fills_corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    most = MOST_AROUND if fills_corners and is_outside(mask) else MOST_PAINTED
    if mask.mean() > most:
        values = ", ".join(f"{value:g}" for value in painted.values[:3])
        raise InputError(
            f"{info.name}: is a copy of its slice in which {mask.mean():.0%} hold {values}: paint, "
            f"or what lies outside? set {info.option} {side} if that is foreground, else "
            f"{info.option} {other}"
        )

    return MaskReading("painted copy", mask=mask.astype(np.uint8), side=side)


def read_stated_side(paint: Paint, foreground: str) -> MaskReading:
    """Return the reading of a painted copy whose foreground is stated to be dark or bright."""
    stated, other = paint.dark, paint.bright
    if foreground == "bright":
        stated, other = paint.bright, paint.dark
    mask = stated.where
    if stated.count == 0 and other.count > 0:
        mask = ~other.where
    return MaskReading(foreground, mask=mask.astype(np.uint8))


# --- a stated side of a threshold -----------------------------------------------------------------


def split_by_otsu(values: np.ndarray, info: MaskInfo) -> np.ndarray:
    """Return the dark or the bright side of Otsu's threshold as (H, W) uint8.

    Where mask and slice are both 0, outside the field of view, there is no foreground.

    Raises
    ------
    InputError
        When dark is foreground, all corners are 0, and no slice tells whether these are paint or
        outside.
    """
    inside = np.ones(values.shape, bool)
    if info.image is not None:
        inside = (values != 0) | (info.image != 0)
    if not inside.any():
        return np.zeros(values.shape, np.uint8)

    threshold = otsu_threshold(values[inside], info.name)
    if info.foreground == "bright":
        return (inside & (values > threshold)).astype(np.uint8)

    corners = values[np.ix_((0, -1), (0, -1))]
    if info.image is None and not corners.any():
        raise InputError(
            f"{info.name}: is 0 in all corners: paint, or outside the field of view? save it as 0 "
            "and 255"
        )

    return (inside & (values <= threshold)).astype(np.uint8)


def otsu_threshold(values: np.ndarray, name: str) -> float:
    """Return Otsu's threshold.

    `InputError` where values reach too far, or lie too close, for its arithmetic.
    """
    low = float(values.min())
    high = float(values.max())
    reach = high - low
    if not 1e-300 < reach < np.inf:
        raise InputError(describe_unsplittable(name, low, high))

    # Of integers every one would be a bin of its own; float16 leaves no room for 256 bins.
    if values.dtype == np.float16 or (values.dtype.kind in "ui" and reach > 65535):
        values = values.astype(np.float64)
    try:
        if 1e-12 < reach < 1e12:
            return threshold_otsu(values)
        # Nor do extreme floats.
        in_units_of_range = (values - np.float64(low)) / reach
        return threshold_otsu(in_units_of_range) * reach + low
    except ValueError:
        raise InputError(describe_unsplittable(name, low, high)) from None


# --- errors ---------------------------------------------------------------------------------------


def describe_unsplittable(name: str, low: float, high: float) -> str:
    """Return in words that no threshold can be found between these grey values."""
    return f"{name}: its grey values, from {low:g} to {high:g}, cannot be split by a threshold; damaged?"


def describe_unknown(values: np.ndarray, is_slice_known: bool) -> str:
    """Return in words what a mask holds that no rule covers."""
    different = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in different[:6])
    if len(different) > 6:
        shown += " …"
    copy = "and no slice tells whether it is a copy"
    if is_slice_known:
        copy = "and is no copy of its slice with paint on it"
    return f"holds {len(different)} values ({shown}), {copy}"


def advise(values: np.ndarray, option: str) -> str:
    """Return what the caller can do about a mask that no rule covers, right for what it holds."""
    may_be_labels = are_whole(values) and values.min() >= 0
    has_many_values = len(np.unique(values)) >= FEW_VALUES
    advice = []
    if may_be_labels:
        advice.append(
            f"if 0 is background and every other number foreground, set {option} labels; if 0 means "
            "not painted, and other numbers are classes, name them in classes.json of the data folder"
        )

    if has_many_values or not may_be_labels:
        advice.append(
            "if foreground is one side of a threshold, as in a painted copy, set "
            f"{option} dark or bright"
        )

    return "; ".join(advice)
