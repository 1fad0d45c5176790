"""From files to arrays: read slices and masks, window, binarise. Imports nothing of training."""

import logging
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from skimage.filters import threshold_otsu

from utils import InputError, breaks_lines

IMAGE_SUFFIXES = (".tif", ".tiff")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".png", ".npy")
LARGEST = 2**30  # pixels of a slice; OpenCV reads no more
INFLATION = 100_000  # bytes that a compressed byte can become: bits of a mask in CCITT G4, zstd or LZMA
FEW = 16  # grey values: a painted copy of a slice has more
SMALL = 2**28  # bytes that are taken without a look at the file's size
ROI = (370, 1138, 200, 968)  # first row, end row, first column, end column of the unlabelled scans [px]


@dataclass(frozen=True, eq=False)
class Slice:
    """One preprocessed slice: `image` (H, W) uint8, `mask` (H, W) uint8 of 0 and 1 or None, and its file."""

    path: Path
    image: np.ndarray
    mask: np.ndarray | None = None

    @property
    def stem(self) -> str:
        """Name without folder and suffix: what splits and tables call the slice."""
        return self.path.stem


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
    return sorted((p for p in files if not p.is_dir()), key=lambda p: natural_key(p.name))


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that compares numbers inside a name as numbers."""
    return [(0, int(s)) if s.isdecimal() else (1, s) for s in re.findall(r"\d+|\D+", name)]


def read_array(path: Path) -> np.ndarray:
    """One 2-D array from `.tif`, `.png` or `.npy`, in the type that the file has.

    Values are as stored: a palette or an inverting look-up table is not applied.

    Raises
    ------
    InputError
        When the file is missing, damaged, holds more than one channel or page, or claims to be larger than it can be.
    """
    path = Path(path)
    read = {".npy": _read_npy, ".png": _read_png}.get(path.suffix.lower(), _read_tiff)
    refuse_devices(path)
    try:
        with complaints() as found:
            array = read(path)
        if found:
            raise ValueError(found[0])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno is None:                                 # of a parser, not of the system
            raise _unreadable(path, error) from None
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its rights") from None
    except Exception as error:  # noqa: BLE001 - the parsers raise a dozen types on damaged files (struct, zlib, key, value …)
        raise _unreadable(path, error) from None
    shape = array.shape
    array = array.reshape([n for n in shape if n != 1] if array.ndim > 2 else shape)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{path}: has shape {shape}, expected one grey slice (rows, columns); "
                         "save one channel and one page per file")
    return array


def refuse_devices(path: Path) -> None:
    """`InputError` for what is there but no file, such as a pipe, of which reading would never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file that can be read; remove it")


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); damaged or truncated? export it again")


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("not an npy file")
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False))   # mapped: a short file is an error, not memory


def _read_png(path: Path) -> np.ndarray:
    stored = path.read_bytes()
    if stored[:8] != b"\x89PNG\r\n\x1a\n" or stored[12:16] != b"IHDR":
        raise ValueError("not a PNG image")
    width, height, depth, colours = struct.unpack(">IIBB", stored[16:26])
    refuse_bombs((height, width, {2: 3, 4: 2, 6: 4}.get(colours, 1)), max(1, depth // 8), len(stored))
    if b"IEND\xaeB`\x82" not in stored:                                 # else what is missing would come out black
        raise ValueError("its end is missing")
    array = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("not a PNG image")
    return array


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError(f"{len(file.series)} images in one file, expected one slice")
        (series,) = file.series
        refuse_bombs(series.shape, series.dtype.itemsize, path.stat().st_size)
        return file.asarray()


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
    """One slice as (H, W) floats, values as stored: 8/16/32-bit integers or floats, on any physical scale.

    The type is float32, or float64 for 32-bit integers and wider types, whose values float32 would merge.

    Raises
    ------
    InputError
        As `read_array`, and for NaN, infinite or complex values.
    """
    return as_grey(read_array(path), str(path))


def as_grey(array: np.ndarray, name: str) -> np.ndarray:
    """Stored values as `read_image` gives them; `InputError` for NaN, infinite or complex values."""
    if array.dtype.kind not in "uifb":
        raise InputError(f"{name}: holds {array.dtype} values, expected integers or floats")
    wide = array.dtype.itemsize > 4 or (array.dtype.itemsize == 4 and array.dtype.kind != "f")
    array = array.astype(np.float64 if wide else np.float32)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InputError(f"{name}: {bad} of {array.size} pixels are NaN or infinite; replace them by 0")
    return array


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
    if roi is None or image.shape == (roi[1] - roi[0], roi[3] - roi[2]):
        return image
    if roi[1] > image.shape[0] or roi[3] > image.shape[1]:
        raise InputError(f"{name}: is {image.shape[0]}×{image.shape[1]} px, too small for the ROI rows "
                         f"{roi[0]}–{roi[1]}, columns {roi[2]}–{roi[3]}; set --roi to fit, or --roi none")
    return image[roi[0]:roi[1], roi[2]:roi[3]]


def percentile_window(image: np.ndarray, percentiles: tuple[float, float] = (1.0, 99.5),
                      name: str = "image") -> np.ndarray:
    """Map the two percentiles of the non-zero pixels to 0 and 255, clip, round. (H, W) any → (H, W) uint8.

    Zero is what reconstruction writes outside the field of view, so it does not count.

    Raises
    ------
    InputError
        When both percentiles are equal: a (nearly) constant image.
    """
    low, high = grey_limits(image, percentiles, name)
    if not high > low:
        raise InputError(f"{name}: is constant ({low:g}) between percentiles {percentiles[0]:g} and "
                         f"{percentiles[1]:g}; nothing to segment, remove it")
    return apply_window(image, low, high)


def grey_limits(image: np.ndarray, percentiles: tuple[float, float], name: str = "image") -> tuple[float, float]:
    """Grey values at two percentiles of the non-zero pixels; equal where there is nothing to see.

    Raises
    ------
    InputError
        Where they are farther apart than the largest number.
    """
    values = image[image != 0]
    low, high = np.percentile(values, percentiles) if values.size else (0.0, 0.0)
    if not np.isfinite(float(high) - float(low)):
        raise InputError(f"{name}: its grey values reach from {low:g} to {high:g}, too far to be scaled; damaged?")
    return float(low), float(high)


def apply_window(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` to 0 and `high` to 255, clip, round: uint8."""
    scaled = (image.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def read_mask(path: Path, foreground: str = "auto", image: np.ndarray | None = None) -> np.ndarray:
    """A mask as (H, W) uint8, foreground 1.

    Binary files hold two values, one of them 0 and the other 1 or the type's largest. Painted copies hold the
    grey slice with the particles filled with one value; they are split by Otsu's threshold (Otsu, 1979,
    doi:10.1109/TSMC.1979.4310076).

    Parameters
    ----------
    foreground : {"auto", "dark", "bright"}
        Which side of the threshold is foreground. `auto`: the non-zero side of a binary file, and of a painted
        copy the smaller side, of which more than half has exactly one value.
    image : (H, W) ndarray, optional
        The slice that was painted: where both are 0, outside the field of view, there is no foreground.

    Raises
    ------
    InputError
        As `read_array`, when `auto` finds no unambiguous side, or zeros may be paint or outside.
    """
    array = read_array(path)
    if array.dtype.kind not in "uifb" or not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN, infinite or other than real values; save the mask again as 0 and 255")
    values, counts = np.unique(array, return_counts=True)
    if len(values) <= 2 and any(set(values.tolist()) <= {0, top} for top in (1, 255, 65535)):
        return ((array == 0) if foreground == "dark" else (array != 0)).astype(np.uint8)
    if len(values) == 1:
        raise InputError(f"{path}: every pixel is {values[0]:g}; an empty mask is all 0, a full one all 1 or 255")
    if foreground == "auto" and 2 < len(values) < FEW:
        shown = ", ".join(f"{value:g}" for value in values)
        raise InputError(f"{path}: holds the values {shown}: neither a binary mask (0 and 255) nor a painted copy of "
                         "the slice; save one class per mask, or set --mask-foreground dark or bright")
    inside = np.ones(array.shape, bool) if image is None or image.shape != array.shape else (array != 0) | (image != 0)
    values, counts = np.unique(array[inside], return_counts=True)
    threshold = _otsu(array[inside], path)
    dark, n_dark, total = values <= threshold, int(counts[values <= threshold].sum()), int(counts.sum())
    if foreground == "auto":
        paint_dark = counts[dark].max() / n_dark > 0.5 and n_dark < total / 2
        paint_bright = counts[~dark].max() / (total - n_dark) > 0.5 and n_dark > total / 2
        if paint_dark == paint_bright:
            raise InputError(f"{path}: {len(values)} grey values do not tell which side of the threshold "
                             f"{threshold:g} is foreground; set --mask-foreground dark or bright")
        foreground = "dark" if paint_dark else "bright"
    corners = array[np.ix_((0, -1), (0, -1))]
    if foreground == "dark" and image is None and len(values) >= FEW and not corners.any():
        raise InputError(f"{path}: is 0 in all corners: paint, or outside the field of view? save it as 0 and 255")
    return (inside & ((array <= threshold) == (foreground == "dark"))).astype(np.uint8)


def _otsu(values: np.ndarray, path: Path) -> float:
    """Otsu's threshold; `InputError` where values reach too far, or lie too close, for its arithmetic."""
    low, high = float(values.min()), float(values.max())
    scale = 1.0 if 1e-12 < high - low < 1e12 else high - low
    if values.dtype == np.float16 or (values.dtype.kind in "ui" and high - low > 65535):
        values = values.astype(np.float64)                      # of integers, every one would be a bin of its own
    try:
        if not 1e-300 < scale < np.inf:
            raise ValueError("of no use")
        if scale == 1.0:
            return threshold_otsu(values)
        return threshold_otsu((values - np.float64(low)) / scale) * scale + low
    except ValueError:
        raise InputError(f"{path}: its grey values, from {low:g} to {high:g}, cannot be split by a threshold; damaged?"
                         ) from None


# --- windows of an array --------------------------------------------------------------------------------------

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
