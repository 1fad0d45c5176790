"""Decode image files: TIFF, PNG, BMP and npy, of one page, grey or coloured."""

import io
import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL.PngImagePlugin import PngImageFile

from runtime.messages import InputError

KNOWN_COLOURS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
    tifffile.PHOTOMETRIC.YCBCR,
)
OPACITY = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)

NPY_START = b"\x93NUMPY"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # of the colour types that have more than one
PNG_PALETTE = 3  # the colour type of numbers that stand for colours

MOST_PIXELS = 2**30  # of a slice; OpenCV reads no more
INFLATION = (
    100_000  # bytes that a compressed byte can become: bits of a mask in CCITT G4, zstd or LZMA
)
SMALL = 2**28  # bytes that are taken without a look at the file's size


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
    numbers : (H, W) uint8 ndarray, or None
        The numbers of a palette, where `values` are the colours that these stand for (PNG).
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    palette: np.ndarray | None = None
    white_is_zero: bool = False
    numbers: np.ndarray | None = None

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
        When the file is missing, damaged, holds several pages, or claims to be larger than it can
        be.
    """
    path = Path(path)
    refuse_devices(path)
    read = READERS.get(path.suffix.lower(), read_tiff)
    try:
        with collect_complaints() as complaints:
            picture = read(path)
        if complaints:
            raise ValueError(complaints[0])
        return picture
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        # An error without a number is one of a parser, not of the operating system.
        if error.errno is None:
            raise unreadable(path, error) from None
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its rights") from None
    except Exception as error:  # noqa: BLE001
        # On damaged files the parsers raise a dozen types: KeyError, ValueError, those of zlib and struct.
        raise unreadable(path, error) from None


def refuse_devices(path: Path) -> None:
    """Raise `InputError` for what is there but no file, such as a pipe, of which reading would never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file that can be read; remove it")


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that cannot be decoded."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); damaged or truncated? export it again")


def refuse_bombs(shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    """Raise `ValueError` for an image that is larger than its file can hold, or than a slice may be.

    That is asked before any memory is taken, and answered however well the file is compressed.

    Parameters
    ----------
    shape : tuple of int
        Which the file claims to have.
    itemsize : int
        Bytes of a pixel and channel.
    stored : int
        Bytes of the file.
    """
    size = math.prod(shape) * itemsize
    is_too_large = math.prod(shape[-2:]) > MOST_PIXELS
    is_impossible = size > SMALL and size > INFLATION * stored
    if is_too_large or is_impossible:
        sides = " × ".join(map(str, shape))
        raise ValueError(
            f"it claims to hold {sides} pixels, {size / 1e9:.3g} GB, in a file of {stored} bytes"
        )


# --- channels -------------------------------------------------------------------------------------


def grey_plane(array: np.ndarray, path: Path) -> np.ndarray:
    """Return an array without axes of length 1 as (H, W); `InputError` where other axes are left."""
    plane = array
    if array.ndim > 2:
        plane = array.reshape([length for length in array.shape if length != 1])
    if plane.ndim != 2 or plane.size == 0:
        raise InputError(
            f"{path}: has shape {array.shape}, expected one grey slice (rows, columns); "
            "save one channel and one page per file"
        )

    return plane


def picture_of_channels(array: np.ndarray, path: Path, is_alpha: bool = True) -> Picture:
    """Return the picture that 1 to 4 channels (H, W, C) make.

    That is grey, grey and opacity, colours, or colours and opacity. Of two channels the second one
    is opacity only where the file says so (`is_alpha`).
    """
    channels = array.shape[2]
    if channels == 2 and not is_alpha:
        raise InputError(
            f"{path}: has two channels, expected one grey slice; probabilities of two classes? save "
            "one channel per file"
        )

    if array.size == 0 or channels > 4:
        raise InputError(
            f"{path}: has shape {array.shape}, expected one grey slice (rows, columns); "
            "save one channel and one page per file"
        )

    alpha = array[..., -1] if channels in (2, 4) else None
    values = array[..., :3] if channels > 2 else array[..., 0]
    return Picture(values, alpha)


# --- formats --------------------------------------------------------------------------------------


def read_npy(path: Path) -> Picture:
    """Decode a `.npy` file."""
    with path.open("rb") as file:
        if file.read(len(NPY_START)) != NPY_START:
            raise ValueError("not an npy file")

    # Mapped: where a file is shorter than it claims, that is an error, not memory.
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return Picture(grey_plane(np.array(stored), path))


def read_png(path: Path) -> Picture:
    """Decode a `.png` file."""
    stored = path.read_bytes()
    if not stored.startswith(PNG_START) or stored[12:16] != b"IHDR":
        raise ValueError("not a PNG image")
    width, height, depth, colour_type = struct.unpack(">IIBB", stored[16:26])
    channels = PNG_CHANNELS.get(colour_type, 1)
    refuse_bombs((height, width, channels), max(1, depth // 8), len(stored))

    # What is missing would come out black.
    if PNG_END not in stored:
        raise ValueError("its end is missing")
    picture = decode(stored, path, "PNG")
    if colour_type == PNG_PALETTE:
        picture = replace(picture, numbers=numbers_of_palette(stored, picture.shape))
    return picture


def numbers_of_palette(stored: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Return the numbers that a PNG with a palette holds, (H, W) uint8: OpenCV gives their colours alone."""
    with PngImageFile(io.BytesIO(stored)) as image:
        numbers = np.array(image)
    if numbers.shape != shape:
        raise ValueError(f"its numbers have shape {numbers.shape}, its colours {shape}")
    return numbers


def read_bmp(path: Path) -> Picture:
    """Decode a `.bmp` file."""
    stored = path.read_bytes()
    if stored[:2] != b"BM" or len(stored) < 26:
        raise ValueError("not a BMP image")

    # What is missing would come out black.
    (size,) = struct.unpack("<I", stored[2:6])
    if size > len(stored):
        raise ValueError("its end is missing")

    # A negative height means that rows are stored from the top.
    width, height = struct.unpack("<ii", stored[18:26])
    refuse_bombs((abs(height), abs(width), 3), 1, len(stored))
    return decode(stored, path, "BMP")


def decode(stored: bytes, path: Path, family: str) -> Picture:
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


def read_tiff(path: Path) -> Picture:
    """Decode a TIFF of one page."""
    with tifffile.TiffFile(path) as file:
        series = main_series(file)
        if series is None:
            raise ValueError(f"{len(file.series)} images in one file, expected one slice")
        refuse_bombs(series.shape, series.dtype.itemsize, path.stat().st_size)
        array = series.asarray()
        page = series.keyframe
        if page.photometric not in KNOWN_COLOURS:
            raise ValueError(
                f"its colours are {page.photometric.name}, expected grey values or RGB"
            )

        samples = series.axes.find("S")
        if samples >= 0 and array.shape[samples] > 1:
            is_alpha = any(kind in OPACITY for kind in page.extrasamples)
            return picture_of_channels(channels_last(array, samples, path), path, is_alpha)
        values = grey_plane(array, path)
        return Picture(values, None, palette_of(page), shows_zero_white(file, page))


def channels_last(array: np.ndarray, axis: int, path: Path) -> np.ndarray:
    """Return an array with the axis of its channels last, and otherwise without axes of length 1: (H, W, C)."""
    moved = np.moveaxis(array, axis, -1)
    sides = [length for length in moved.shape[:-1] if length != 1]
    if len(sides) != 2:
        raise InputError(f"{path}: has shape {array.shape}, expected rows, columns and channels")
    return moved.reshape([*sides, moved.shape[-1]])


def main_series(file: tifffile.TiffFile) -> tifffile.TiffPageSeries | None:
    """Return the images of a TIFF without those that are marked as smaller copies; None where several are left."""
    whole = [series for series in file.series if not series.keyframe.is_reduced]
    if len(whole) != 1:
        return None
    return whole[0]


def palette_of(page: tifffile.TiffPage) -> np.ndarray | None:
    """Return the colours that the numbers of a page stand for, (N, 3) uint8; None where they are grey values."""
    if page.photometric != tifffile.PHOTOMETRIC.PALETTE or page.colormap is None:
        return None
    colours = np.ascontiguousarray(page.colormap.T)

    # A colour map should have 16 bit; some programs write 8.
    if colours.max() > 255:
        colours = colours // 256
    return colours.astype(np.uint8)


def shows_zero_white(file: tifffile.TiffFile, page: tifffile.TiffPage) -> bool:
    """Return whether the grey values of a page are to be turned round, because 0 stands for white.

    Not in ImageJ's files: there that is a look-up table for the screen, and the object of a mask
    has the value 255.
    """
    return page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not file.is_imagej


class _Collector(logging.Handler):
    """Keep the log messages that mean that a file is damaged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep errors, and the warning that missing data were filled with zeros."""
        message = record.getMessage()
        if record.levelno >= logging.ERROR or "zeroed" in message:
            self.messages.append(message)


@contextmanager
def collect_complaints() -> Iterator[list[str]]:
    """Collect what tifffile logs about a damaged file, instead of raising, while this is open."""
    collector = _Collector()
    logger = logging.getLogger("tifffile")
    propagated = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagated


# How files are read, by their suffix.
READERS = {
    ".npy": read_npy,
    ".png": read_png,
    ".bmp": read_bmp,
    ".tif": read_tiff,
    ".tiff": read_tiff,
}
