"""From files to arrays: read slices and masks, window, binarise. Imports nothing of training."""

import logging
import math
import os
import re
import struct
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile

from runtime.messages import InputError, breaks_lines

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".bmp")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
FOREGROUND = ("auto", "dark", "bright", "labels")   # what may be stated of masks; see `masks`
KNOWN_COLOURS = (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB,
                 tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.YCBCR)
OPACITY = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
LARGEST = 2**30  # pixels of a slice; OpenCV reads no more
INFLATION = 100_000  # bytes that a compressed byte can become: bits of a mask in CCITT G4, zstd or LZMA
SMALL = 2**28  # bytes that are taken without a look at the file's size
ROI = (370, 1138, 200, 968)  # first row, end row, first column, end column of the unlabelled scans [px]


@dataclass(frozen=True, eq=False)
class Slice:
    """One preprocessed slice.

    Attributes
    ----------
    path : Path
        Its file.
    image : (H, W) uint8 ndarray
    mask : (H, W) uint8 ndarray of 0 and 1, or None
    outside : (H, W) bool ndarray, or None
        Where there is no sample; None where there is sample everywhere.
    limits : (low, high), or None
        The grey values of the file that became 0 and 255.
    flat_border : (value, share), or None
        What may be padding and was taken for sample; see `slices.windows.find_flat_border`.
    """

    path: Path
    image: np.ndarray
    mask: np.ndarray | None = None
    outside: np.ndarray | None = None
    limits: tuple[float, float] | None = None
    flat_border: tuple[float, float] | None = None

    @property
    def stem(self) -> str:
        """Name without folder and suffix: what splits and tables call the slice."""
        return plain_text(self.path.stem)

    def with_mask(self, mask: np.ndarray) -> "Slice":
        """Return the slice with a mask, which is 0 where there is no sample."""
        return replace(self, mask=mask if self.outside is None else mask * ~self.outside)

    def without_mask(self) -> "Slice":
        """Return the slice as if nobody had labelled it."""
        return replace(self, mask=None)


# --- reading --------------------------------------------------------------------------------------------------

def list_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Files with one of `suffixes` (any case), in natural order (2 before 10), hidden ones left out.

    `InputError` for a name with line breaks or bytes that are no text, and for what is there but no folder.
    """
    if not os.path.lexists(folder):
        return []
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder (a file, or a link that leads nowhere); remove it, or mend the link")
    files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    for path in files:
        if breaks_lines(path.name):
            raise InputError(f"{path}: has line breaks or bytes that are no text in its name; rename it")
    return in_order([p for p in files if not p.is_dir()])


def is_clutter(path: Path) -> bool:
    """Return whether a file is one that operating systems leave in folders: hidden ones, thumbnails, settings."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r")


def plain_text(text: str) -> str:
    """Return a name in one spelling: letters with accents composed, on which no two file systems agree."""
    return unicodedata.normalize("NFC", text)


def in_order(files: list[Path]) -> list[Path]:
    """Return files in the order of the numbers in their stems."""
    places = signed_places([path.stem for path in files])
    if places is not None:
        return [path for _, path in sorted(zip(places, files, strict=True))]
    return sorted(files, key=lambda path: (natural_key(path.stem), path.name))


def signed_places(stems: list[str]) -> list[int] | None:
    """Return the numbers in some stems where these lie below and above zero; None where they do not.

    They do where the stems differ in their last number alone, some have a minus before it, and some have none. A hyphen
    that stands before all of them is none.
    """
    parts = [re.fullmatch(r"(.*?)([-+]?)(\d+)(\D*)", stem) for stem in stems]
    if not all(parts) or len({(part[1], part[4]) for part in parts}) > 1:
        return None
    signs = {part[2] for part in parts}
    if "-" not in signs or len(signs) == 1:
        return None
    return [int(part[2] + part[3]) for part in parts]


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that compares numbers inside a name as numbers."""
    return [(0, int(s)) if s.isdecimal() else (1, s) for s in re.findall(r"\d+|\D+", name)]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file as it is stored.

    Attributes
    ----------
    values : (H, W) or (H, W, 3) ndarray
        Grey values, numbers of a palette, or red, green and blue.
    alpha : (H, W) ndarray, or None
        Opacity.
    palette : (N, 3) uint8 ndarray, or None
        The colours that values stand for.
    white_is_zero : bool
        Whether a grey file is to be shown with 0 as white (TIFF's photometric interpretation 0).
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    palette: np.ndarray | None = None
    white_is_zero: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[:2]

    @property
    def is_coloured(self) -> bool:
        """Whether there are colours, or is opacity, and not only grey values."""
        return self.values.ndim == 3 or self.palette is not None or self.alpha is not None

    def colours(self) -> np.ndarray:
        """Return what is shown, as (H, W, 3) uint8 or wider."""
        if self.palette is not None:
            return self.palette[self.values]
        if self.values.ndim == 3:
            return self.values
        return np.repeat(self.values[..., None], 3, axis=2)


def read_picture(path: Path) -> Picture:
    """Decode a `.tif`, `.png`, `.bmp` or `.npy` file of one page, grey or coloured.

    Of a TIFF with smaller copies of its page, such as a thumbnail, the page is read.

    Raises
    ------
    InputError
        When the file is missing, damaged, holds several pages, or claims to be larger than it can be.
    """
    path = Path(path)
    read = {".npy": _read_npy, ".png": _read_png, ".bmp": _read_bmp}.get(path.suffix.lower(), _read_tiff)
    refuse_devices(path)
    try:
        with complaints() as found:
            picture = read(path)
        if found:
            raise ValueError(found[0])
        return picture
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno is None:                                 # of a parser, not of the system
            raise _unreadable(path, error) from None
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its rights") from None
    except Exception as error:  # noqa: BLE001 - the parsers raise a dozen types on damaged files (struct, zlib, key, value …)
        raise _unreadable(path, error) from None


def read_array(path: Path) -> np.ndarray:
    """Return the grey values of a file as (H, W), in the type that the file has.

    Values are as stored: a palette of a TIFF or an inverting look-up table is not applied. Colours that are all grey
    count as grey values.

    Raises
    ------
    InputError
        As `read_picture`, and for colours and transparency.
    """
    picture = read_picture(path)
    values, alpha = picture.values, picture.alpha
    if values.ndim == 3:
        grey = values[..., 0]
        if not (values == grey[..., None]).all():
            raise InputError(f"{path}: has shape {values.shape} and is coloured, expected one grey slice (rows, "
                             "columns); save one channel per file")
        values = np.ascontiguousarray(grey)
    if alpha is not None and alpha.min() != alpha.max():
        raise InputError(f"{path}: has transparent parts; flatten it and save one grey channel")
    return values


def grey_plane(array: np.ndarray, path: Path) -> np.ndarray:
    """Return an array without axes of length 1 as (H, W); `InputError` where other axes are left."""
    shape = array.shape
    array = array.reshape([n for n in shape if n != 1] if array.ndim > 2 else shape)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{path}: has shape {shape}, expected one grey slice (rows, columns); "
                         "save one channel and one page per file")
    return array


def picture_of_channels(array: np.ndarray, path: Path, is_alpha: bool = True) -> Picture:
    """Return the picture that 1 to 4 channels (H, W, C) make: grey, grey and opacity, colours, colours and opacity.

    Of two channels the second one is opacity only where the file says so (`is_alpha`).
    """
    channels = array.shape[2]
    if channels == 2 and not is_alpha:
        raise InputError(f"{path}: has two channels, expected one grey slice; probabilities of two classes? save one "
                         "channel per file")
    if array.size == 0 or channels > 4:
        raise InputError(f"{path}: has shape {array.shape}, expected one grey slice (rows, columns); "
                         "save one channel and one page per file")
    alpha = array[..., -1] if channels in (2, 4) else None
    values = array[..., :3] if channels > 2 else array[..., 0]
    return Picture(values, alpha)


def refuse_devices(path: Path) -> None:
    """`InputError` for what is there but no file, such as a pipe, of which reading would never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file that can be read; remove it")


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); damaged or truncated? export it again")


def _read_npy(path: Path) -> Picture:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("not an npy file")
    stored = np.load(path, mmap_mode="r", allow_pickle=False)   # mapped: a short file is an error, not memory
    return Picture(grey_plane(np.array(stored), path))


def _read_png(path: Path) -> Picture:
    stored = path.read_bytes()
    if stored[:8] != b"\x89PNG\r\n\x1a\n" or stored[12:16] != b"IHDR":
        raise ValueError("not a PNG image")
    width, height, depth, colours = struct.unpack(">IIBB", stored[16:26])
    refuse_bombs((height, width, {2: 3, 4: 2, 6: 4}.get(colours, 1)), max(1, depth // 8), len(stored))
    if b"IEND\xaeB`\x82" not in stored:                                 # else what is missing would come out black
        raise ValueError("its end is missing")
    return _decode(stored, path, "PNG")


def _read_bmp(path: Path) -> Picture:
    stored = path.read_bytes()
    if stored[:2] != b"BM" or len(stored) < 26:
        raise ValueError("not a BMP image")
    size, = struct.unpack("<I", stored[2:6])
    if size > len(stored):                                              # else what is missing would come out black
        raise ValueError("its end is missing")
    width, height = struct.unpack("<ii", stored[18:26])
    refuse_bombs((abs(height), abs(width), 3), 1, len(stored))
    return _decode(stored, path, "BMP")


def _decode(stored: bytes, path: Path, family: str) -> Picture:
    """Decode a PNG or BMP file with OpenCV, which applies palettes and has blue before red."""
    array = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError(f"not a {family} image")
    if array.ndim == 2:
        return Picture(array)
    picture = picture_of_channels(array, path)
    if picture.values.ndim == 3:
        picture = replace(picture, values=picture.values[..., ::-1])
    return picture


def _read_tiff(path: Path) -> Picture:
    with tifffile.TiffFile(path) as file:
        series = main_series(file)
        if series is None:
            raise ValueError(f"{len(file.series)} images in one file, expected one slice")
        refuse_bombs(series.shape, series.dtype.itemsize, path.stat().st_size)
        array, page = series.asarray(), series.keyframe
        if page.photometric not in KNOWN_COLOURS:
            raise ValueError(f"its colours are {page.photometric.name}, expected grey values or RGB")

        channels = series.axes.find("S")
        if channels >= 0 and array.shape[channels] > 1:
            array = np.moveaxis(array, channels, -1)
            array = array.reshape([n for n in array.shape[:-1] if n != 1] + [array.shape[-1]])
            if array.ndim != 3:
                grey_plane(array, path)                                 # an error that names the shape
            return picture_of_channels(array, path, any(kind in OPACITY for kind in page.extrasamples))

        array = grey_plane(array, path)
        return Picture(array, None, palette_of(page), shows_zero_white(file, page))


def palette_of(page: tifffile.TiffPage) -> np.ndarray | None:
    """Return the colours that the numbers of a page stand for, (N, 3) uint8; None where they are grey values."""
    if page.photometric != tifffile.PHOTOMETRIC.PALETTE or page.colormap is None:
        return None
    colours = np.ascontiguousarray(page.colormap.T)
    if colours.max() > 255:                                     # 16 bit, as it should be; some programs write 8
        colours = colours // 256
    return colours.astype(np.uint8)


def shows_zero_white(file: tifffile.TiffFile, page: tifffile.TiffPage) -> bool:
    """Return whether the grey values of a page are to be turned round, because 0 stands for white.

    Not in ImageJ's files: there that is a look-up table for the screen, and the object of a mask has the value 255.
    """
    return page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not file.is_imagej


def main_series(file: tifffile.TiffFile) -> tifffile.TiffPageSeries | None:
    """Return the images of a TIFF without those that are marked as smaller copies; None where several are left."""
    whole = [series for series in file.series if not series.keyframe.is_reduced]
    return whole[0] if len(whole) == 1 else None


def refuse_bombs(shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    """`ValueError`, before any memory is taken, for an image that is too large, or larger than a file of `stored` bytes
    can hold however well it is compressed.
    """
    size = math.prod(shape) * itemsize
    if math.prod(shape[-2:]) > LARGEST or (size > SMALL and size > INFLATION * stored):
        raise ValueError(f"it claims to hold {' × '.join(map(str, shape))} pixels, {size / 1e9:.3g} GB, in a file of "
                         f"{stored} bytes")


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What tifffile logs as errors, or makes up for missing data, instead of raising, while this is open."""
    found, handler, logger = [], logging.Handler(logging.WARNING), logging.getLogger("tifffile")

    def note(record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or "zeroed" in record.getMessage():
            found.append(record.getMessage())
    handler.emit = note
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def read_image(path: Path) -> np.ndarray:
    """Return one slice as (H, W) floats, values as stored: 8/16/32-bit integers or floats, on any physical scale.

    The type is float32, or float64 for 32-bit integers and wider types, whose values float32 would merge.

    Raises
    ------
    InputError
        As `read_array`, and for complex values.
    """
    return as_floats(read_array(path), str(path))


def as_floats(array: np.ndarray, name: str) -> np.ndarray:
    """Return stored values as `read_image` does; `InputError` for what are no real numbers."""
    if array.dtype.kind not in "uifb":
        raise InputError(f"{name}: holds {array.dtype} values, expected integers or floats")
    wide = array.dtype.itemsize > 4 or (array.dtype.itemsize == 4 and array.dtype.kind != "f")
    return array.astype(np.float64 if wide else np.float32)


def parse_roi(text: str) -> tuple[int, int, int, int] | None:
    """`370,1138,200,968` or `none`."""
    if text.lower() == "none":
        return None
    try:
        r0, r1, c0, c1 = (int(n) for n in text.split(","))
    except ValueError:
        raise InputError(f"--roi {text}: expected row,end row,column,end column, or none") from None
    if not (0 <= r0 < r1 and 0 <= c0 < c1):
        raise InputError(f"--roi {text}: each end must be larger than its start, and no number negative")
    return r0, r1, c0, c1


def crop_roi(image: np.ndarray, roi: tuple[int, int, int, int] | None, name: str = "image") -> np.ndarray:
    """Rows roi[0]…roi[1]−1 and columns roi[2]…roi[3]−1; an image of just that size is returned as it is.

    Raises
    ------
    InputError
        When the ROI does not fit into the image.
    """
    if roi is None or image.shape[:2] == (roi[1] - roi[0], roi[3] - roi[2]):
        return image
    if roi[1] > image.shape[0] or roi[3] > image.shape[1]:
        raise InputError(f"{name}: is {image.shape[0]}×{image.shape[1]} px, too small for the ROI rows "
                         f"{roi[0]}–{roi[1]}, columns {roi[2]}–{roi[3]}; set --roi to fit, or --roi none")
    return image[roi[0]:roi[1], roi[2]:roi[3]]


def crop_picture(picture: Picture, roi: tuple[int, int, int, int] | None, name: str = "image") -> Picture:
    """Return what `crop_roi` leaves of a picture, with its colours."""
    alpha = None if picture.alpha is None else crop_roi(picture.alpha, roi, name)
    return replace(picture, values=crop_roi(picture.values, roi, name), alpha=alpha)


# --- parts of an array --------------------------------------------------------------------------------------

def reflect_index(index: np.ndarray, length: int) -> np.ndarray:
    """Indices outside 0 … length − 1 mirrored back into it, edge pixel not repeated; any distance."""
    period = max(1, 2 * (length - 1))
    index = np.abs(index) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros_like(index)


def cut_window(array: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """(size, size) of `array` from (top, left); what lies outside (H, W) is mirrored in."""
    if 0 <= top <= array.shape[0] - size and 0 <= left <= array.shape[1] - size:
        return array[top:top + size, left:left + size]  # a view: six times as fast as the general case
    rows = reflect_index(np.arange(top, top + size), array.shape[0])
    columns = reflect_index(np.arange(left, left + size), array.shape[1])
    return array[np.ix_(rows, columns)]


def reduce_slice(array: np.ndarray, side: int) -> np.ndarray:
    """Means of side×side pixels: (H, W) uint8 → (⌈H/side⌉, ⌈W/side⌉) uint8; mirrored where a block is not full."""
    if side == 1:
        return array
    height, width = array.shape
    padded = np.pad(array, ((0, -height % side), (0, -width % side)), mode="symmetric")
    rows, columns = (length // side for length in padded.shape)
    return cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_AREA)


def center_patch(array: np.ndarray, size: int) -> np.ndarray:
    """(size, size) from the middle of (H, W); a smaller array is mirrored at its edges."""
    return cut_window(array, (array.shape[0] - size) // 2, (array.shape[1] - size) // 2, size)
