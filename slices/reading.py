"""From files to arrays: find files, read slices as grey values, and cut parts out of them."""

import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from runtime.messages import InputError, breaks_lines
from slices.pictures import Picture, read_picture

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".bmp")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
CLUTTER = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")

# What may be stated about the foreground of masks; see `slices.masks`.
FOREGROUND = ("auto", "dark", "bright", "labels")

# Of the unlabelled scans: first row, end row, first column, end column [px].
ROI = (370, 1138, 200, 968)


@dataclass(frozen=True, eq=False)
class Slice:
    """One preprocessed slice.

    Attributes
    ----------
    path : Path
        Its file.
    image : (H, W) uint8 ndarray
    mask : (H, W) uint8 ndarray, or None
        0 and 1, or of a label map the class of each pixel, by its place in `Data.classes`.
    outside : (H, W) bool ndarray, or None
        Where there is no sample; None where there is sample everywhere.
    painted : (H, W) bool ndarray, or None
        Where somebody has said what the mask is; None where all of the sample is painted. What is
        not painted has the value 0 in the mask, and counts nowhere: see `counted`.
    limits : (low, high), or None
        The grey values of the file that became 0 and 255.
    flat_border : (value, share), or None
        What may be padding and was taken for sample; see `slices.padding.find_flat_border`.
    """

    path: Path
    image: np.ndarray
    mask: np.ndarray | None = None
    outside: np.ndarray | None = None
    limits: tuple[float, float] | None = None
    flat_border: tuple[float, float] | None = None
    painted: np.ndarray | None = None

    @property
    def inside(self) -> np.ndarray:
        """Where the slice shows the sample: (H, W) bool."""
        if self.outside is None:
            return np.ones(self.image.shape, bool)
        return ~self.outside

    @property
    def counted(self) -> np.ndarray:
        """Where losses and scores count: sample that is painted, (H, W) bool."""
        if self.painted is None:
            return self.inside
        return self.inside & self.painted

    @property
    def stem(self) -> str:
        """Name without folder and suffix: what splits and tables call the slice."""
        return plain_text(self.path.stem)

    def with_mask(self, mask: np.ndarray, painted: np.ndarray | None = None) -> "Slice":
        """Return the slice with a mask, which is 0 where there is no sample.

        Parameters
        ----------
        mask : (H, W) uint8 ndarray
        painted : (H, W) bool ndarray, optional
            Where somebody has said what the mask is; everywhere if it is not given.
        """
        if self.outside is not None:
            mask = mask * ~self.outside
        if painted is not None and painted[self.inside].all():
            painted = None
        return replace(self, mask=mask, painted=painted)

    def without_mask(self) -> "Slice":
        """Return the slice as if nobody had labelled it."""
        return replace(self, mask=None, painted=None)


# --- files ----------------------------------------------------------------------------------------


def list_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Return files with one of these suffixes (any case), in natural order, without hidden ones.

    Raises
    ------
    InputError
        For a name with line breaks or bytes that are no text, and for what is there but no folder.
    """
    if not os.path.lexists(folder):
        return []
    if not folder.is_dir():
        raise InputError(
            f"{folder}: is no folder (a file, or a link that leads nowhere); remove it, or mend the "
            "link"
        )

    files = []
    for path in folder.iterdir():
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if breaks_lines(path.name):
            raise InputError(
                f"{path}: has line breaks or bytes that are no text in its name; rename it"
            )
        if not path.is_dir():
            files.append(path)

    return in_order(files)


def is_clutter(path: Path) -> bool:
    """Return whether a file is one that operating systems leave in folders: hidden ones, thumbnails, settings."""
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def plain_text(text: str) -> str:
    """Return a name in one spelling: letters with accents composed, on which no two file systems agree."""
    return unicodedata.normalize("NFC", text)


def in_order(files: list[Path]) -> list[Path]:
    """Return files in the order of the numbers in their stems: 2 before 10."""
    places = signed_places([path.stem for path in files])
    if places is not None:
        return [path for _, path in sorted(zip(places, files, strict=True))]
    return sorted(files, key=lambda path: (natural_key(path.stem), path.name))


def signed_places(stems: list[str]) -> list[int] | None:
    """Return the numbers in some stems where these lie below and above zero; None where they do not.

    They do where the stems differ in their last number alone, some have a minus before it, and some
    have none. A hyphen that stands before all of them is none.
    """
    parts = [re.fullmatch(r"(.*?)([-+]?)(\d+)(\D*)", stem) for stem in stems]
    if not all(parts):
        return None
    names = {(part[1], part[4]) for part in parts}
    signs = {part[2] for part in parts}
    if len(names) > 1 or "-" not in signs or len(signs) == 1:
        return None
    return [int(part[2] + part[3]) for part in parts]


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key that compares numbers inside a name as numbers."""
    key = []
    for part in re.findall(r"\d+|\D+", name):
        if part.isdecimal():
            key.append((0, int(part)))
        else:
            key.append((1, part))

    return key


# --- grey values ----------------------------------------------------------------------------------


def read_array(path: Path) -> np.ndarray:
    """Return the grey values of a file as (H, W), in the type that the file has.

    Values are as stored: a palette of a TIFF or an inverting look-up table is not applied. Colours
    that are all grey count as grey values.

    Raises
    ------
    InputError
        As `read_picture`, and for colours and transparency.
    """
    picture = read_picture(path)
    values = picture.values
    if values.ndim == 3:
        grey = values[..., 0]
        if not (values == grey[..., None]).all():
            raise InputError(
                f"{path}: has shape {values.shape} and is coloured, expected one grey slice (rows, "
                "columns); save one channel per file"
            )
        values = np.ascontiguousarray(grey)

    alpha = picture.alpha
    if alpha is not None and alpha.min() != alpha.max():
        raise InputError(f"{path}: has transparent parts; flatten it and save one grey channel")
    return values


def read_image(path: Path) -> np.ndarray:
    """Return one slice as (H, W) floats, values as stored, on any physical scale.

    Files hold 8, 16 or 32-bit integers or floats. The type is float32, or float64 for 32-bit
    integers and wider types, whose values float32 would merge.

    Raises
    ------
    InputError
        As `read_array`, and for complex values.
    """
    return as_floats(read_array(path), str(path))


def as_floats(array: np.ndarray, name: str) -> np.ndarray:
    """Return stored values as `read_image` does; `InputError` for what are no real numbers."""
    kind = array.dtype.kind
    size = array.dtype.itemsize
    if kind not in "uifb":
        raise InputError(f"{name}: holds {array.dtype} values, expected integers or floats")
    if size > 4 or (size == 4 and kind != "f"):
        return array.astype(np.float64)
    return array.astype(np.float32)


# --- region of interest ---------------------------------------------------------------------------


def parse_roi(text: str) -> tuple[int, int, int, int] | None:
    """Return the ROI that `370,1138,200,968` means; None for `none`."""
    if text.lower() == "none":
        return None
    try:
        top, bottom, left, right = (int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--roi {text}: expected row,end row,column,end column, or none") from None

    if not (0 <= top < bottom and 0 <= left < right):
        raise InputError(
            f"--roi {text}: each end must be larger than its start, and no number negative"
        )

    return top, bottom, left, right


def crop_roi(
    image: np.ndarray, roi: tuple[int, int, int, int] | None, name: str = "image"
) -> np.ndarray:
    """Return the part of an image in a ROI; an image of just that size is returned as it is.

    Parameters
    ----------
    image : (H, W, …) ndarray
    roi : (row, end row, column, end column) [px], or None
        None is the whole image.
    name : str
        Of the image, for the error.

    Raises
    ------
    InputError
        When the ROI does not fit into the image.
    """
    if roi is None:
        return image
    top, bottom, left, right = roi
    height, width = image.shape[:2]
    if (height, width) == (bottom - top, right - left):
        return image
    if bottom > height or right > width:
        raise InputError(
            f"{name}: is {height}×{width} px, too small for the ROI rows {top}–{bottom}, columns "
            f"{left}–{right}; set --roi to fit, or --roi none"
        )

    return image[top:bottom, left:right]


def crop_picture(
    picture: Picture, roi: tuple[int, int, int, int] | None, name: str = "image"
) -> Picture:
    """Return what `crop_roi` leaves of a picture, with its colours."""
    cropped = {"values": crop_roi(picture.values, roi, name)}
    for part in ("alpha", "numbers"):
        array = getattr(picture, part)
        if array is not None:
            cropped[part] = crop_roi(array, roi, name)
    return replace(picture, **cropped)


# --- parts of an array ----------------------------------------------------------------------------


def reflect_index(index: np.ndarray, length: int) -> np.ndarray:
    """Return indices, however far outside 0 … length − 1, mirrored back into it; edge pixels are not repeated."""
    if length <= 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)


def cut_window(array: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Return (size, size) of an array from (top, left); what lies outside (H, W) is mirrored in."""
    height, width = array.shape[:2]
    if 0 <= top <= height - size and 0 <= left <= width - size:
        # A view is six times as fast as the general case.
        return array[top : top + size, left : left + size]
    rows = reflect_index(np.arange(top, top + size), height)
    columns = reflect_index(np.arange(left, left + size), width)
    return array[np.ix_(rows, columns)]


def center_patch(array: np.ndarray, size: int) -> np.ndarray:
    """Return (size, size) from the middle of (H, W); a smaller array is mirrored at its edges."""
    height, width = array.shape[:2]
    return cut_window(array, (height - size) // 2, (width - size) // 2, size)


def reduce_slice(array: np.ndarray, side: int) -> np.ndarray:
    """Return the means of side×side pixels: (H, W) uint8 → (⌈H/side⌉, ⌈W/side⌉) uint8.

    Where a block is not full, pixels are mirrored in.
    """
    if side == 1:
        return array
    height, width = array.shape
    padded = np.pad(array, ((0, -height % side), (0, -width % side)), mode="symmetric")
    rows = padded.shape[0] // side
    columns = padded.shape[1] // side
    return cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_AREA)


def evenly_spaced(items: list, count: int) -> list:
    """Return `count` of the items, evenly spaced with first and last; of one the middle, of fewer all."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[i] for i in np.unique(places)]
