"""Data sets: load and check the slices of a folder; weak and strong views.

A slice flows: file → float32 → ROI → percentile window → uint8 (kept in memory once) → crop → recorded
geometry → weak / strong view → tensor. `slices` does the part up to uint8.
"""

import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from slices import (
    IMAGE_SUFFIXES, MASK_SUFFIXES, ROI, Slice, crop_roi, cut_window, list_files, parse_roi, percentile_window,
    read_image, read_mask, reduce_slice,
)
from splits import PARTS, make_split, pair_files, split_problems
from commands import Parser, run_command_line
from utils import InputError, quiet_bar, read_json
from views import build_geometry, build_intensity, make_views

IMAGES, MASKS, UNLABELLED = "labeled/Original_images", "labeled/Original_masks", "unlabeled"


# --- loading --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Data:
    """Preprocessed slices by role. `unlabelled` never holds a validation or test slice."""

    train: list[Slice]
    val: list[Slice]
    test: list[Slice]
    unlabelled: list[Slice]


def load_data(root: Path, split: str = "auto", val_fraction: float = 0.18, test_fraction: float = 0.18,
              fold: int = 0, labels: int = 0, seed: int = 0, roi: tuple[int, int, int, int] | None = ROI,
              percentiles: tuple[float, float] = (1.0, 99.5), mask_foreground: str = "auto",
              max_unlabelled: int = 0) -> Data:
    """Read a data folder once; everything later works on what this returns.

    Parameters
    ----------
    root : Path
        Folder with `labeled/Original_images`, `labeled/Original_masks` and, where there is one, `unlabeled`.
    split, val_fraction, test_fraction, fold, seed
        As in `make_split`.
    labels : int
        Training slices that keep their label, evenly spaced (0: all). The others join the unlabelled.
    roi : (row, end row, column, end column) or None
        Crop of the unlabelled scans [px]; those as large as a labelled slice are used as they are.
    max_unlabelled : int
        Unlabelled scans to read, evenly spaced (0: all).

    Raises
    ------
    InputError
        For whatever cannot be read, paired or split. Where nothing is unlabelled, the training images serve.
    """
    root = Path(root)
    images, masks = list_files(root / IMAGES), list_files(root / MASKS, MASK_SUFFIXES)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; `python demo_data.py --output {root}` makes demo data there")
    if not images:
        raise InputError(f"{root / IMAGES}: no .tif slice found; put the labelled slices there")
    pairs, problems = pair_files(images, masks)
    if problems:
        raise InputError(problems[0])
    labelled = {image.stem: load_slice(image, mask, percentiles, mask_foreground) for image, mask in pairs.items()}
    scans = list_files(root / UNLABELLED)
    scans = evenly_spaced(scans, max_unlabelled or len(scans))
    parts = make_split(root, list(labelled), split, val_fraction, test_fraction, fold, seed, [p.stem for p in scans])
    train, val, test = ([labelled[stem] for stem in parts[part]] for part in PARTS)
    if labels > len(train):
        raise InputError(f"--labels {labels}: there are {len(train)} training slices")
    kept = evenly_spaced(train, labels or len(train))
    unlabelled = [Slice(s.path, s.image) for s in train if s not in kept]
    held_back, sizes = {s.image.tobytes(): s.stem for s in [*val, *test]}, {s.image.shape for s in labelled.values()}
    for path in quiet_bar(scans, "read"):
        image = percentile_window(crop_scan(read_image(path), roi, sizes, path), percentiles, str(path))
        if image.tobytes() in held_back:
            raise InputError(f"{path}: has the pixels of {held_back[image.tobytes()]}, a validation or test slice; "
                             "remove it from the unlabelled")
        unlabelled.append(Slice(path, image))
    return Data(kept, val, test, unlabelled or [Slice(s.path, s.image) for s in kept])


def crop_scan(image: np.ndarray, roi: tuple[int, int, int, int] | None, sizes: set[tuple[int, int]],
              path: Path) -> np.ndarray:
    """`crop_roi` of an unlabelled scan, unless it has one of the `sizes` of the labelled slices."""
    return image if image.shape in sizes else crop_roi(image, roi, str(path))


def used_files(root: Path, split: str = "auto", max_unlabelled: int = 0) -> dict[str, Path]:
    """The files that `load_data` reads with these settings, by their names in the folder."""
    root = Path(root)
    scans = list_files(root / UNLABELLED)
    files = [*list_files(root / IMAGES), *list_files(root / MASKS, MASK_SUFFIXES),
             *evenly_spaced(scans, max_unlabelled or len(scans))]
    stated = root / "splits" / "split.json" if split == "auto" else Path(split)
    files += [stated] * (split not in ("random", "blocks") and stated.is_file())
    return {str(path.relative_to(root)) if path.is_relative_to(root) else path.name: path for path in files}


def describe_data(data: Data) -> dict:
    """Stems by role, and a hash of every pixel that training and evaluation see."""
    pixels = hashlib.sha256()
    for s in itertools.chain(*vars(data).values()):
        pixels.update(s.image.tobytes() + (b"" if s.mask is None else s.mask.tobytes()))
    return {**{part: [s.stem for s in slices] for part, slices in vars(data).items()}, "sha256": pixels.hexdigest()}


def sum_up(data: Data) -> str:
    """How much there is of what, in words: what a folder was taken for shows here before anything is trained."""
    labelled = [*data.train, *data.val, *data.test]
    shapes = ", ".join({f"{s.image.shape[0]}×{s.image.shape[1]}": None for s in labelled})
    shares = [100 * s.mask.mean() for s in labelled]
    own = {s.path for s in data.unlabelled} <= {s.path for s in data.train}
    plural, first = "s" * (len(labelled) > 1), data.unlabelled[0]
    others = "none unlabelled, the training slices serve as such" if own else f"{len(data.unlabelled)} unlabelled"
    if not own and (whole := read_image(first.path).shape) != first.image.shape:
        others += f", {first.stem} cut to {first.image.shape[0]}×{first.image.shape[1]} of {whole[0]}×{whole[1]} px"
    return (f"{len(labelled)} labelled slice{plural} of {shapes} px, {min(shares):.0f}–{max(shares):.0f} % foreground: "
            f"{len(data.train)} to train on, {len(data.val)} to choose the checkpoint, {len(data.test)} to test; "
            f"{others}")


def load_slice(image_path: Path, mask_path: Path, percentiles: tuple[float, float], foreground: str) -> Slice:
    """One labelled slice, windowed and binarised."""
    raw = read_image(image_path)
    image, mask = percentile_window(raw, percentiles, str(image_path)), read_mask(mask_path, foreground, raw)
    if mask.shape != image.shape:
        raise InputError(f"{mask_path}: is {mask.shape[0]}×{mask.shape[1]} px, its image {image_path.name} "
                         f"{image.shape[0]}×{image.shape[1]}; they must be of one size")
    return Slice(image_path, image, mask)


def evenly_spaced(items: list, count: int) -> list:
    """`count` of `items` in their order, first and last included, of one the middle; all where there are not more."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def check_data(root: Path, roi: tuple[int, int, int, int] | None = ROI, foreground: str = "auto") -> list[str]:
    """Every problem of a data folder, one line each, by file; an empty list when there is none."""
    root = Path(root)
    images, masks = list_files(root / IMAGES), list_files(root / MASKS, MASK_SUFFIXES)
    scans, problems = list_files(root / UNLABELLED), []
    known = {*images, *masks, *scans}
    for folder, suffixes in ((IMAGES, IMAGE_SUFFIXES), (MASKS, MASK_SUFFIXES), (UNLABELLED, IMAGE_SUFFIXES)):
        for path in sorted((root / folder).glob("*")):
            if path not in known and not path.name.startswith("."):
                problems.append(f"{path}: is not read; only {', '.join(suffixes)} are")
    if not images:
        problems.append(f"{root / IMAGES}: no .tif slice found; put the labelled slices there")
    for files in (images, masks, scans):
        for _, same in itertools.groupby(sorted(files, key=lambda p: (p.stem, p.name)), lambda p: p.stem):
            first, *twins = same
            if twins:
                problems.append(f"{first}: same stem as {', '.join(p.name for p in twins)}; keep one of them")
    shapes, contents, cropped = {}, {}, set(scans)
    for path in quiet_bar([*images, *scans], "check"):
        try:
            image = read_image(path)
            shapes[path] = image.shape
            if path in cropped:
                image = crop_scan(image, roi, {shapes.get(p) for p in images}, path)
            pixels = hashlib.sha256(percentile_window(image, name=str(path))).digest()
            contents.setdefault((image.shape, pixels), []).append(path)
        except InputError as error:
            problems.append(str(error))
    pairs, unpaired = pair_files(images, masks)
    partner, shares = {mask: image for image, mask in pairs.items()}, {}
    for path in masks:
        try:
            mask = read_mask(path, foreground, read_image(partner[path]) if partner.get(path) in shapes else None)
        except InputError as error:
            problems.append(str(error))
            continue
        if mask.min() == mask.max():
            problems.append(f"{path}: mask is {'full' if mask.max() else 'empty'}; right if the slice really is so, "
                            "else paint it again")
        shares[path] = float(mask.mean())
        image_shape = shapes.get(partner.get(path), mask.shape)
        if mask.shape != image_shape:
            problems.append(f"{path}: is {mask.shape[0]}×{mask.shape[1]} px, its image {partner[path].name} "
                            f"{image_shape[0]}×{image_shape[1]}; they must be of one size")
    usual = np.median(list(shares.values())) if shares else 0.0
    for path, share in shares.items():
        if 0.5 < share < 1 and (usual < 0.5 or share > 0.8):
            others = ", of most others less than half" if usual < 0.5 else ""
            problems.append(f"{path}: {share:.0%} of the slice is foreground{others}; right if the material is so, "
                            "else inverted: save it the other way round, or --mask-foreground dark")
    for same in contents.values():
        if len(same) > 1:
            problems.append(f"{same[0]}: same pixels as {', '.join(p.name for p in same[1:])}; keep one of them")
    split = root / "splits" / "split.json"
    if split.exists():
        try:
            found = split_problems(read_json(split), [p.stem for p in images], [p.stem for p in scans])
            problems += [f"{split}: {line}" for line in found]
        except InputError as error:
            problems.append(str(error))
    return problems + unpaired


# --- crops and their views -------------------------------------------------------------------------------------

def crop_corner(foreground: np.ndarray, size: int, shape: tuple[int, int],
                rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a crop's corner: around one of `foreground` (flat indices) with jitter; anywhere without.

    The crop lies inside the image, and contains the chosen pixel; along a side shorter than `size` it is centred.
    """
    corner = []
    pixel = np.unravel_index(rng.choice(foreground), shape) if foreground.size else None
    for axis, length in enumerate(shape):
        if length <= size:
            corner.append((length - size) // 2)
        elif pixel is None:
            corner.append(int(rng.integers(0, length - size + 1)))
        else:
            jitter = int(rng.integers(-size // 4, size // 4 + 1))
            corner.append(int(np.clip(pixel[axis] - size // 2 + jitter, 0, length - size)))
    return corner[0], corner[1]


class Views(Dataset):
    """Weak view, strong views and mask of a random crop of slice `index`: `views[index, seed]`.

    Crops of labelled slices are foreground-aware. The window that is turned and zoomed is larger than the
    patch where the image is, so its corners come from the image; only beyond the image's own border are pixels
    mirrored.

    A network that works on means of k×k pixels (`downsample`) gets views of slices that were reduced to these means
    once, here: for k = 4 a sixteenth of the pixels is turned and perturbed. Means are rounded to 8 bit, and masks hold
    shares of foreground.

    Each item is a dict of uint8 tensors of sides P = `patch_size` / k, which `loaders.to_float` makes floats in [0, 1]
    once they are where the model is: `weak` (1, P, P), `strong` (`strong_views`, P, P) and, for labelled slices,
    `mask` (1, P, P), 255 for foreground.

    Parameters
    ----------
    slices : list of Slice
    patch_size : int
        Side of a crop in pixels of the slice.
    guides : list of (H, W) bool ndarrays, or None
        What counts as foreground where a crop is placed, for each slice; None: its mask.
    geometry, intensity : dict
        Options of `views.build_geometry` and `views.build_intensity`.
    downsample : int
        k.
    weak : bool
        Whether items hold the weak view; training on labelled crops needs none.
    """

    def __init__(self, slices: list[Slice], patch_size: int = 256, foreground_crop: bool = True,
                 guides: list[np.ndarray] | None = None, strong_views: int = 1, geometry: dict | None = None,
                 intensity: dict | None = None, downsample: int = 1, weak: bool = True):
        self.slices, self.strong_views, self.weak = slices, strong_views, weak
        self.patch_size = patch_size // downsample
        self.images = [reduce_slice(s.image, downsample) for s in slices]
        self.masks = [None if s.mask is None else reduce_slice(s.mask * np.uint8(255), downsample) for s in slices]

        # Where there is foreground, if only in a part of a block, as flat indices: found once, because it takes long.
        if guides is not None:
            shown = [reduce_slice(guide * np.uint8(255), downsample) for guide in guides]
        elif foreground_crop:
            shown = [np.empty(0) if mask is None else mask for mask in self.masks]
        else:
            shown = [np.empty(0)] * len(slices)
        self.foreground = [np.flatnonzero(array).astype(np.int32) for array in shown]

        # How far outside a patch its pixels may come from: its corners, when it is turned and made smaller.
        geometry = {"rotation": 10.0, "zoom": 1.0, **(geometry or {})}
        angle = math.radians(geometry["rotation"])
        reach = geometry["zoom"] * (math.cos(angle) + math.sin(angle)) - 1
        self.margin = math.ceil(self.patch_size * reach / 2) + 1 if reach else 0
        self.geometry = build_geometry(**geometry, of_means=downsample > 1)
        self.intensity = build_intensity(**(intensity or {}), downsample=downsample)

    @property
    def item_bytes(self) -> int:
        """Bytes of an item, all its tensors together."""
        arrays = self.weak + self.strong_views + any(mask is not None for mask in self.masks)
        return arrays * self.patch_size**2

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, seed = key
        image, mask = self.images[index], self.masks[index]
        rng = np.random.default_rng(seed)
        top, left = crop_corner(self.foreground[index], self.patch_size, image.shape, rng)
        margin = min(self.margin, max(0, max(image.shape) - self.patch_size))  # mirroring needs no window
        window = top - margin, left - margin, self.patch_size + 2 * margin
        image, mask = (None if array is None else cut_window(array, *window) for array in (image, mask))

        weak, strong, mask = make_views(image, mask, self.geometry, self.intensity, seed, self.strong_views, margin)
        item = {}
        if self.weak:
            item["weak"] = torch.from_numpy(weak[None])
        item["strong"] = torch.from_numpy(np.stack(strong))
        if mask is not None:
            item["mask"] = torch.from_numpy(mask[None])
        return item


# --- command line ---------------------------------------------------------------------------------------------

def main() -> int:
    """`python datasets.py check DIR`: 0 when nothing is wrong, 1 with one line per problem, 2 for wrong usage."""
    parser = Parser(description="Check a data folder; every problem is one line.")
    parser.add_argument("command", choices=["check"])
    parser.add_argument("folder", type=Path, help="data/NAME")
    parser.add_argument("--roi", default=",".join(map(str, ROI)),
                        help="row,end row,column,end column of the unlabelled scans [px], or none (%(default)s)")
    parser.add_argument("--mask-foreground", default="auto", choices=["auto", "dark", "bright"],
                        help="which side of a mask's threshold is foreground (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise InputError(f"{arguments.folder}: no such folder")
    roi = parse_roi(arguments.roi)
    problems = check_data(arguments.folder, roi, arguments.mask_foreground)
    if problems:
        print("\n".join(problems))
        return 1
    data = load_data(arguments.folder, roi=roi, mask_foreground=arguments.mask_foreground)
    print(f"{arguments.folder}: no problem found\n{sum_up(data)}")
    return 0


if __name__ == "__main__":
    run_command_line(main)
