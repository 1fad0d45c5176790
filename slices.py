"""From files to arrays: read slices and masks, window, binarise, pair, split. Imports nothing of training."""

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from skimage.filters import threshold_otsu

from utils import InputError, read_json

IMAGE_SUFFIXES = (".tif", ".tiff")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".png", ".npy")
ROI = (370, 1138, 200, 968)  # first row, end row, first column, end column of the unlabelled scans [px]
PARTS = ("train", "val", "test")


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
    """Files with one of `suffixes` (any case), in natural order (2 before 10), hidden ones left out."""
    files = [p for p in folder.glob("*") if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return sorted((p for p in files if not p.is_dir()), key=lambda p: natural_key(p.name))


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that compares numbers inside a name as numbers."""
    return [(0, int(s)) if s.isdecimal() else (1, s) for s in re.findall(r"\d+|\D+", name)]


def read_array(path: Path) -> np.ndarray:
    """One 2-D array from `.tif`, `.png` or `.npy`, in the type that the file has.

    Raises
    ------
    InputError
        When the file is missing, damaged, or holds more than one channel or page.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".png":
            array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
            if array is None:
                raise ValueError("not a PNG image")
        else:
            with tifffile.TiffFile(path) as file:
                if len(file.series) > 1:
                    raise ValueError(f"{len(file.series)} images in one file, expected one slice")
                array = file.asarray()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001 - the parsers raise a dozen types on damaged files (struct, zlib, key, value …)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); damaged or truncated? export it again") from None
    shape = array.shape
    array = array.reshape([n for n in shape if n != 1] if array.ndim > 2 else shape)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{path}: has shape {shape}, expected one grey slice (rows, columns); "
                         "save one channel and one page per file")
    return array


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
    low, high = grey_limits(image, percentiles)
    if not high > low:
        raise InputError(f"{name}: is constant ({low:g}) between percentiles {percentiles[0]:g} and "
                         f"{percentiles[1]:g}; nothing to segment, remove it")
    return apply_window(image, low, high)


def grey_limits(image: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Grey values at two percentiles of the non-zero pixels; equal where there is nothing to see."""
    values = image[image != 0]
    low, high = np.percentile(values, percentiles) if values.size else (0.0, 0.0)
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
        As `read_array`, and when `auto` finds no unambiguous side.
    """
    array = read_array(path)
    if array.dtype.kind not in "uifb" or not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN, infinite or other than real values; save the mask again as 0 and 255")
    values, counts = np.unique(array, return_counts=True)
    if len(values) <= 2 and any(set(values.tolist()) <= {0, top} for top in (1, 255, 65535)):
        return ((array == 0) if foreground == "dark" else (array != 0)).astype(np.uint8)
    if len(values) == 1:
        raise InputError(f"{path}: every pixel is {values[0]:g}; an empty mask is all 0, a full one all 1 or 255")
    inside = np.ones(array.shape, bool) if image is None or image.shape != array.shape else (array != 0) | (image != 0)
    values, counts = np.unique(array[inside], return_counts=True)
    threshold = threshold_otsu(array[inside])
    dark, n_dark, total = values <= threshold, int(counts[values <= threshold].sum()), int(counts.sum())
    if foreground == "auto":
        paint_dark = counts[dark].max() / n_dark > 0.5 and n_dark < total / 2
        paint_bright = counts[~dark].max() / (total - n_dark) > 0.5 and n_dark > total / 2
        if paint_dark == paint_bright:
            raise InputError(f"{path}: {len(values)} grey values do not tell which side of the threshold "
                             f"{threshold:g} is foreground; set --mask-foreground dark or bright")
        foreground = "dark" if paint_dark else "bright"
    return (inside & ((array <= threshold) == (foreground == "dark"))).astype(np.uint8)


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


def center_patch(array: np.ndarray, size: int) -> np.ndarray:
    """(size, size) from the middle of (H, W); a smaller array is mirrored at its edges."""
    return cut_window(array, (array.shape[0] - size) // 2, (array.shape[1] - size) // 2, size)


# --- pairing --------------------------------------------------------------------------------------------------

def last_number(name: str) -> int | None:
    """The last number in a name: 7 for `image_v2_07`, `mask_007_inv` and `image_v2_mask_07`."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def pair_files(images: list[Path], masks: list[Path]) -> tuple[dict[Path, Path], list[str]]:
    """Find the mask of each image: the same stem, else the same last number.

    Returns
    -------
    pairs : dict of Path to Path
    problems : list of str
        One line for each image or mask without a partner or with several.
    """
    pairs: dict[Path, Path] = {}
    problems: list[str] = []
    fitting: list[Path] = []  # masks of images for which several fit
    for image in images:
        found = [m for m in masks if m.stem == image.stem]
        if not found and last_number(image.stem) is not None:
            found = [m for m in masks if last_number(m.stem) == last_number(image.stem)]
        if len(found) == 1:
            pairs[image] = found[0]
        elif found:
            fitting += found
            problems.append(f"{image}: {len(found)} masks fit ({', '.join(m.name for m in found)}); keep one")
        else:
            problems.append(f"{image}: no mask with this stem or last number; add it, or move the image away")
    for mask in masks:
        users = [i.name for i, m in pairs.items() if m == mask]
        if len(users) > 1:
            problems.append(f"{mask}: fits {len(users)} images ({', '.join(users)}); name masks like their images")
        elif not users and mask not in fitting:
            problems.append(f"{mask}: no image with this stem or last number; add it, or remove the mask")
    return pairs, problems


# --- splitting ------------------------------------------------------------------------------------------------

def split_by_blocks(stems: list[str], n_val: int, n_test: int, fold: int = 0) -> dict[str, list[str]]:
    """Contiguous blocks of the natural order: test is block number `fold`, val the end farther from it.

    Neighbouring slices of a volume are near-copies; only whole blocks measure generalisation.
    """
    if n_val + n_test >= len(stems):
        raise InputError(f"{n_val} validation and {n_test} test slices leave none of {len(stems)} to learn from; "
                         "lower --val-fraction or --test-fraction")
    first = fold * n_test
    if first + n_test > len(stems):
        raise InputError(f"fold {fold} of {n_test} slices goes beyond the {len(stems)} labelled; "
                         f"folds 0 to {len(stems) // max(1, n_test) - 1} exist")
    rest = stems[:first] + stems[first + n_test:]
    val_at_end = first <= len(stems) - (first + n_test)
    val = rest[len(rest) - n_val:] if val_at_end else rest[:n_val]
    return {"train": [s for s in rest if s not in val], "val": val, "test": stems[first:first + n_test]}


def split_at_random(stems: list[str], n_val: int, n_test: int, seed: int) -> dict[str, list[str]]:
    """Each slice into one part by chance; the order inside a part stays natural."""
    order = np.random.default_rng(seed).permutation(len(stems))
    chosen = {"test": order[:n_test], "val": order[n_test:n_test + n_val], "train": order[n_test + n_val:]}
    return {part: [stems[i] for i in sorted(chosen[part])] for part in PARTS}


def split_problems(split: dict, stems: list[str], unlabelled: list[str]) -> list[str]:
    """What is wrong with a split, one line each: unknown parts or stems, a stem twice, tests among unlabelled."""
    problems = [f"{part}: not a part of a split; parts are {', '.join(PARTS)}" for part in split if part not in PARTS]
    parts = {}
    for part in PARTS:
        parts[part] = split.get(part, [])
        if not isinstance(parts[part], list) or not all(isinstance(s, str) for s in parts[part]):
            problems.append(f"{part}: expected a list of stems")
            parts[part] = []
    for stem in sorted({s for names in parts.values() for s in names}, key=natural_key):
        places = [part for part in PARTS for s in parts[part] if s == stem]
        if len(places) > 1:
            problems.append(f"{stem}: stands in {' and '.join(places)}; keep it in one part")
        if stem not in stems:
            problems.append(f"{stem}: in {places[0]}, but no labelled slice has this stem")
        if stem in unlabelled and {"val", "test"} & set(places):
            problems.append(f"{stem}: a {places[0]} slice that is also among the unlabelled; remove it there")
    if not parts["train"]:
        problems.append("train: holds no slice; nothing to learn from")
    return problems


def make_split(root: Path, stems: list[str], how: str, val_fraction: float, test_fraction: float, fold: int,
               seed: int, unlabelled: list[str]) -> dict[str, list[str]]:
    """Split labelled stems into train, val and test.

    Parameters
    ----------
    how : str
        `random`, `blocks`, the path of a JSON file, or `auto`: `splits/split.json` of the data set where it
        exists, else `random`.

    Raises
    ------
    InputError
        With the first thing that `split_problems` finds.
    """
    default = root / "splits" / "split.json"
    n_val, n_test = round(val_fraction * len(stems)), round(test_fraction * len(stems))
    if fold and how != "blocks":
        raise InputError(f"--fold {fold}: has a meaning only with --split blocks")
    if how == "blocks":
        split, source = split_by_blocks(stems, n_val, n_test, fold), "split by blocks"
    elif how == "random" or (how == "auto" and not default.exists()):
        split, source = split_at_random(stems, n_val, n_test, seed), "random split"
    else:
        source = default if how == "auto" else Path(how)
        split = read_json(source)
    problems = split_problems(split, stems, unlabelled)
    if problems:
        raise InputError(f"{source}: {problems[0]}")
    return {part: sorted(split.get(part, []), key=natural_key) for part in PARTS}
