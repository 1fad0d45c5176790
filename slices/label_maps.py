"""Label maps: what is painted in a slice, class by class, and where nothing is.

How masks write it down, `classes.json` says; see `slices.classes`. In maps of values 0 is not
labelled, and every other value must have a name. In maps of colours every colour without a name is
not labelled: so an annotator may paint over the slice itself, and the soft rims that brushes leave
between two colours count nowhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from runtime.messages import InputError
from slices.classes import BACKGROUND, CLASSES_FILE, NOT_LABELLED, Classes, as_line, hexadecimal
from slices.pictures import Picture, read_picture

MOST_SHOWN = 4  # values or colours that a message names
MOST_SUGGESTED = 16  # values or colours that may be classes: more are grey values or particles
LEAST_SHARE = 0.005  # of a mask that a colour fills which may be a class


@dataclass(frozen=True, eq=False)
class LabelMap:
    """What is painted in a slice.

    Attributes
    ----------
    classes : (H, W) uint8 ndarray
        The class of each pixel, by its place in `Classes`; 0 where nothing is painted, too.
    painted : (H, W) bool ndarray
        Where something is painted.
    unnamed : dict of str to float
        Colours without a name, and the share of the pixels that has them; the most frequent first.
    """

    classes: np.ndarray
    painted: np.ndarray
    unnamed: dict[str, float]

    def holds(self, index: int) -> np.ndarray:
        """Return where a class is painted: (H, W) bool."""
        return self.painted & (self.classes == index)

    def values(self, classes: Classes) -> np.ndarray:
        """Return the map with the values of the classes, and 0 where nothing is painted: (H, W) uint16."""
        values = np.array(classes.values, np.uint16)[self.classes]
        return np.where(self.painted, values, np.uint16(NOT_LABELLED))


# --- a single map ---------------------------------------------------------------------------------


def read_label_map(
    picture: Picture, classes: Classes, name: str, may_be_empty: bool = False
) -> LabelMap:
    """Return what is painted in a file.

    Parameters
    ----------
    picture : Picture
        The file as `slices.pictures.read_picture` decodes it.
    classes : Classes
    name : str
        What messages call the file.
    may_be_empty : bool
        Whether nothing needs to be painted, as in most slices of a volume.

    Raises
    ------
    InputError
        For values without a name, a file none of whose colours has one, and one in which nothing is
        painted but something should be.
    """
    if classes.colours is None:
        label_map = map_of_values(picture, classes, name)
    else:
        label_map = map_of_colours(picture, classes, name)
    if not may_be_empty and not label_map.painted.any():
        raise InputError(
            f"{name}: not a single pixel is labelled; paint some, or take the slice out of the "
            "labelled ones"
        )
    return label_map


def map_of_values(picture: Picture, classes: Classes, name: str) -> LabelMap:
    """Return the label map of a file that holds a value for each class."""
    numbers = numbers_of(picture, name)
    places, painted = places_of(numbers, classes.values)
    is_unknown = ~painted & (numbers != NOT_LABELLED)
    if is_unknown.any():
        unknown = np.unique(numbers[is_unknown])
        raise InputError(
            f"{name}: holds {listed(unknown)}, which {CLASSES_FILE} does not name "
            f"({classes.describe()}); name it there, or paint 0 where nothing is labelled"
        )

    return LabelMap(places, painted, {})


def places_of(codes: np.ndarray, wanted: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which of some numbers each pixel holds, (H, W) uint8, `BACKGROUND` for none; and whether it holds one."""
    places = np.full(codes.shape, BACKGROUND, np.uint8)
    painted = np.zeros(codes.shape, bool)
    # One class at a time: slices may be so large that each further copy counts.
    for place, code in enumerate(wanted):
        holds = codes == code
        places[holds] = place
        painted |= holds
    return places, painted


def numbers_of(picture: Picture, name: str) -> np.ndarray:
    """Return the whole numbers that a file holds, as stored: of a palette the numbers of its colours.

    Raises
    ------
    InputError
        For colours, and for other than whole numbers from 0 on.
    """
    if picture.numbers is not None:
        return picture.numbers
    values = picture.values
    if values.ndim == 3 and (values == values[..., :1]).all():
        # All colours are grey: a program has saved the values three times.
        values = values[..., 0]
    has_transparency = picture.alpha is not None and picture.alpha.min() != picture.alpha.max()
    if values.ndim == 3 or has_transparency:
        what = "colours" if values.ndim == 3 else "transparent parts"
        raise InputError(
            f"{name}: has {what}, but {CLASSES_FILE} names values; save values, or name the colours "
            'there, such as {"#0000ff": "matrix", "#ff0000": "pore"}'
        )

    if values.dtype.kind not in "uifb":
        raise InputError(f"{name}: holds {values.dtype} values, expected whole numbers from 0 on")
    if values.dtype.kind == "f":
        is_whole = np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**53)
        if not is_whole.all():
            raise InputError(
                f"{name}: holds other than whole numbers, such as {values[~is_whole][0]:g}; label maps "
                f"hold {CLASSES_FILE}'s values, and 0 where nothing is labelled"
            )
    if values.min() < 0:
        raise InputError(
            f"{name}: holds negative numbers, such as {values.min():g}; label maps hold "
            f"{CLASSES_FILE}'s values, and 0 where nothing is labelled"
        )
    return values.astype(np.int64) if values.dtype.kind in "fb" else values


def map_of_colours(picture: Picture, classes: Classes, name: str) -> LabelMap:
    """Return the label map of a file that shows each class in its colour."""
    codes = colour_codes(picture, name)
    wanted = [code_of(colour) for colour in classes.colours or ()]
    places, painted = places_of(codes, wanted)

    unnamed = frequent_colours(codes[~painted], codes.size)
    if not painted.any() and len(unnamed) > 1:
        raise InputError(
            f"{name}: has none of the colours that {CLASSES_FILE} names ({', '.join(classes.keys())}), "
            f"but {', '.join(list(unnamed)[:MOST_SHOWN])}; name those, or save the mask without "
            "smoothing or compression that changes colours"
        )
    return LabelMap(places, painted, unnamed)


def colour_codes(picture: Picture, name: str) -> np.ndarray:
    """Return the colours that a file shows as whole numbers, (H, W) int32; −1 where it is not opaque."""
    colours = picture.colours()
    if colours.dtype.kind == "b":
        colours = colours * np.uint8(255)
    if colours.dtype == np.uint16:
        # Of 16 bits, only those colours are named that 8 bits have, too.
        is_of_eight_bits = (colours % 257 == 0).all(axis=2)
        codes = np.where(is_of_eight_bits, codes_of((colours // 257).astype(np.uint8)), -1)
    elif colours.dtype == np.uint8:
        codes = codes_of(colours)
    else:
        raise InputError(
            f"{name}: holds {colours.dtype} values, but {CLASSES_FILE} names colours; save the mask "
            "as RGB of 8 bits, or name values there"
        )

    alpha = picture.alpha
    # A layer of paint is transparent where nobody painted, and half transparent at the rim of a
    # soft brush. Opacity that is the same everywhere says nothing, but that there is some.
    if alpha is not None:
        is_paint = (alpha == alpha.max()) & (alpha > 0)
        codes = np.where(is_paint, codes, np.int32(-1))
    return codes


def codes_of(colours: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) uint8 as whole numbers (H, W) int32."""
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return (red << 16) | (green << 8) | blue


def code_of(colour: tuple[int, int, int]) -> int:
    """Return a colour as `codes_of` has it."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def name_of_code(code: int) -> str:
    """Return a colour that `colour_codes` gives as paint programs write it."""
    if code < 0:
        return "transparent"
    return hexadecimal((code >> 16, code >> 8 & 255, code & 255))


def frequent_colours(codes: np.ndarray, pixels: int) -> dict[str, float]:
    """Return the most frequent of some colours with their share of all pixels of a mask."""
    found, counts = np.unique(codes, return_counts=True)
    most = np.argsort(-counts, kind="stable")[: 2 * MOST_SHOWN]
    return {name_of_code(int(found[i])): float(counts[i] / pixels) for i in most}


def listed(values: np.ndarray) -> str:
    """Return the first few values in words."""
    text = ", ".join(f"{value:g}" for value in values[:MOST_SHOWN])
    if len(values) > MOST_SHOWN:
        text += " …"
    return text


def paint_without_rim(classes: np.ndarray, painted: np.ndarray, width: int) -> np.ndarray:
    """Return the paint that is farther than so many pixels from paint of another class: (H, W) bool.

    For annotations whose outlines are rough: there, nobody knows which class a pixel has.

    Parameters
    ----------
    classes : (H, W) uint8 ndarray
    painted : (H, W) bool ndarray
    width : int
        Distance between the middles of two pixels [px]; 0 leaves all paint.
    """
    if width == 0:
        return painted
    left = painted.copy()
    for index in np.unique(classes[painted]):
        own = painted & (classes == index)
        others = painted & ~own
        if others.any():
            # Of each pixel the distance to the nearest one that is 0 here.
            nothing = (~others).astype(np.uint8)
            distance = cv2.distanceTransform(nothing, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            left &= ~own | (distance > width)
    return left


# --- the maps of a folder or volume ---------------------------------------------------------------


class LabelMaps:
    """The label maps of a folder or a volume, read one at a time: `maps[i]` is a `LabelMap`.

    Parameters
    ----------
    names : list of str
        What messages call each of them.
    read : index → Picture
    classes : Classes
    shape_of : index → (rows, columns), optional
        Of the slices they belong to; None for one that is not known.
    may_be_empty : bool
        As in `read_label_map`.
    """

    def __init__(
        self,
        names: list[str],
        read: Callable[[int], Picture],
        classes: Classes,
        shape_of: Callable[[int], tuple[int, int] | None] | None = None,
        may_be_empty: bool = False,
    ):
        self.names = names
        self.read = read
        self.classes = classes
        self.shape_of = shape_of
        self.may_be_empty = may_be_empty

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> LabelMap:
        picture = self.read(i)
        if self.shape_of is not None:
            refuse_other_size(self.names[i], picture.shape, self.shape_of(i))
        return read_label_map(picture, self.classes, self.names[i], self.may_be_empty)


class MasksOfClass:
    """The masks of one class in label maps, read one at a time: `masks[i]` is (H, W) uint8, 1 there.

    Parameters
    ----------
    label_maps : LabelMaps
    index : int
        The class, by its place.
    may_be_partial : bool
        Whether pixels may be without a label, and count as not of the class: in predictions, where
        these lie outside what was looked at. Else they are an error: things would seem to end where
        the paint does.
    """

    def __init__(self, label_maps: LabelMaps, index: int, may_be_partial: bool):
        self.label_maps = label_maps
        self.index = index
        self.may_be_partial = may_be_partial

    @property
    def names(self) -> list[str]:
        """What messages call each of them."""
        return self.label_maps.names

    def __len__(self) -> int:
        return len(self.label_maps)

    def __getitem__(self, i: int) -> np.ndarray:
        label_map = self.label_maps[i]
        if not self.may_be_partial and not label_map.painted.all():
            raise InputError(
                f"{self.names[i]}: {1 - label_map.painted.mean():.1%} of its pixels are not labelled, "
                "and whatever lies there would be cut; measure whole label maps, such as those that "
                "predict.py writes"
            )
        return label_map.holds(self.index).astype(np.uint8)


def refuse_other_size(name: str, shape: tuple[int, int], expected: tuple[int, int] | None) -> None:
    """Raise `InputError` where a mask is of another size than its slice, if that is known."""
    if expected is None or expected == shape:
        return
    raise InputError(
        f"{name}: is {shape[0]}×{shape[1]} px, its image {expected[0]}×{expected[1]}; they must be of "
        "one size"
    )


def label_maps_of_files(
    files: list[Path],
    classes: Classes,
    shapes: list[tuple[int, int]] | None = None,
    may_be_empty: bool = False,
) -> LabelMaps:
    """Return the label maps in some files, in their order.

    Parameters
    ----------
    files : list of Path
    classes : Classes
    shapes : list of (rows, columns), optional
        Of their slices.
    may_be_empty : bool
        As in `read_label_map`.
    """

    def read_file(i: int) -> Picture:
        return read_picture(files[i])

    shape_of = None if shapes is None else shapes.__getitem__
    return LabelMaps([str(file) for file in files], read_file, classes, shape_of, may_be_empty)


# --- masks that look like label maps ----------------------------------------------------------------


def suggest_classes(pictures: list[Picture]) -> str | None:
    """Return the line that `classes.json` could hold for some masks; None where they look like no label maps.

    They do where, all together, they hold few whole numbers, three at least with 0 as not labelled,
    or few colours that fill areas.
    """
    numbers: set[int] = set()
    colours: set[int] = set()
    for picture in pictures:
        if picture.numbers is None and picture.values.ndim == 3:
            codes = codes_that_fill_areas(picture)
            if codes is None:
                return None
            colours |= codes
            continue
        values = picture.values if picture.numbers is None else picture.numbers
        is_whole = values.dtype.kind in "ui" or (
            values.dtype.kind == "f" and bool((values == np.rint(values)).all())
        )
        if not is_whole or values.min() < 0 or values.max() > 255:
            return None
        numbers |= set(np.unique(values).astype(int).tolist())

    if colours and numbers:
        return None
    if colours:
        # Black is what nobody has painted.
        named = sorted(colours - {0})
        if not 2 <= len(named) <= MOST_SUGGESTED:
            return None
        return as_line({name_of_code(code): f"class {i}" for i, code in enumerate(named, 1)})

    named = sorted(numbers - {NOT_LABELLED})
    if not 2 <= len(named) <= MOST_SUGGESTED or len(numbers) < 3:
        return None
    return as_line({str(value): f"class {i}" for i, value in enumerate(named, 1)})


def codes_that_fill_areas(picture: Picture) -> set[int] | None:
    """Return the colours of a mask that may be classes; None where it is a picture with many of them."""
    if picture.values.dtype != np.uint8:
        return None
    codes, counts = np.unique(codes_of(picture.colours()), return_counts=True)
    is_large = counts >= LEAST_SHARE * picture.values.shape[0] * picture.values.shape[1]
    is_grey_picture = counts[~is_large].sum() > 0.1 * counts.sum()
    if is_grey_picture or is_large.sum() > MOST_SUGGESTED + 1:
        return None
    return set(codes[is_large].tolist())
