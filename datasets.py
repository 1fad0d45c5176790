"""Views of slices for training, and the commands that check a data folder and say what it is like.

A slice flows: file → float32 → ROI → percentile window → uint8 (kept in memory once) → crop →
one geometry → weak / strong view → tensor. `slices.data_folder` does the part up to uint8.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from config import Config, Geometry, Intensity
from runtime.command_line import Parser, run_command_line
from runtime.files import write_json
from runtime.messages import InputError
from slices.data_folder import load_data, sum_up
from slices.fingerprint import describe_fingerprint, take_fingerprints
from slices.folder_check import check_data
from slices.options import DataOptions, Reading
from slices.reading import (
    FOREGROUND,
    ROI,
    Slice,
    cut_window,
    natural_key,
    parse_roi,
    reduce_slice,
)
from slices.windows import parse_outside
from views import Augmentation, build_geometry, build_intensity, make_views

# --- crops and their views ------------------------------------------------------------------------


@dataclass(frozen=True)
class ViewOptions:
    """How views are made.

    Attributes
    ----------
    patch_size : int
        Side of a crop, in pixels of the slice.
    downsample : int
        k: views are means of k×k pixels.
    geometry : Geometry
    intensity : Intensity
    strong_views : int
        Strong views of each crop.
    has_weak_view : bool
        Whether items hold the weak view; training on labelled crops needs none.
    foreground_crop : float
        Share of crops of slices with a mask that contain foreground; the others may lie anywhere,
        in slices that are painted in part anywhere on the paint.
    class_count : int
        Classes of the masks, with the background.
    """

    patch_size: int = 256
    downsample: int = 1
    geometry: Geometry = Geometry()
    intensity: Intensity = Intensity()
    strong_views: int = 1
    has_weak_view: bool = True
    foreground_crop: float = 1.0
    class_count: int = 2

    @property
    def side(self) -> int:
        """Side of a view, in pixels of the network's input."""
        return self.patch_size // self.downsample

    @property
    def margin(self) -> int:
        """How far outside a view its pixels may come from: its corners, when turned and made smaller."""
        angle = math.radians(self.geometry.rotation)
        reach = self.geometry.zoom * (math.cos(angle) + math.sin(angle)) - 1
        if reach == 0:
            return 0
        return math.ceil(self.side * reach / 2) + 1


def view_options(
    config: Config, strong_views: int = 1, has_weak_view: bool = True, class_count: int = 2
) -> ViewOptions:
    """Return how the views of a run are made."""
    return ViewOptions(
        patch_size=config.patch_size,
        downsample=config.downsample,
        geometry=config.geometry,
        intensity=config.intensity,
        strong_views=strong_views,
        has_weak_view=has_weak_view,
        foreground_crop=config.foreground_crop,
        class_count=class_count,
    )


class Views(Dataset):
    """Weak view, strong views and mask of a random crop of slice `index`: `views[index, seed]`.

    Crops of labelled slices are foreground-aware: they lie around a random pixel of foreground, of
    several classes around one of a random class that is painted in the slice, and of slices that are
    painted in part that class may be the background. The window that is turned and zoomed is larger
    than the patch where the image is, so its corners come from the image; only beyond the image's
    own border are pixels mirrored.

    A network that works on means of k×k pixels (`downsample`) gets views of slices that were
    reduced to these means once, here: for k = 4 a sixteenth of the pixels is turned and perturbed.
    Means are rounded to 8 bit, and masks hold shares of foreground.

    Each item is a dict of uint8 tensors of sides P = `patch_size` / k, which
    `runtime.loaders.to_float` makes floats in [0, 1] once they are where the model is:

    - `weak` (1, P, P), where asked for
    - `strong` (`strong_views`, P, P)
    - `mask` (1, P, P), of labelled slices: 255 for foreground; of slices with several classes or
      partial paint (K, P, P): for each class the share of a pixel that is painted with it
    - `inside` (1, P, P), where some of the slices do not show the sample everywhere: 255 for sample.
      Where `mask` has K planes there is none: outside the sample nothing is painted

    Parameters
    ----------
    slices : list of Slice
    options : ViewOptions
    guides : list of (H, W) ndarrays, or None
        The class of each pixel of each slice, 0 for background, for placing its crops; None: its
        mask.
    """

    def __init__(
        self,
        slices: list[Slice],
        options: ViewOptions = ViewOptions(),
        guides: list[np.ndarray] | None = None,
    ):
        self.slices = slices
        self.options = options
        self.augmentation = Augmentation(
            build_geometry(options.geometry, of_means=options.downsample > 1),
            build_intensity(options.intensity, options.downsample),
        )

        self.images = [reduce_slice(s.image, options.downsample) for s in slices]
        self.masks = mask_planes(slices, options.downsample, options.class_count)
        self.inside = reduce_inside(slices, options.downsample)
        if any(mask is not None and is_of_shares(mask) for mask in self.masks):
            self.inside = [None] * len(slices)
        self.targets = self._find_targets(guides)
        # Guides are there because all crops shall contain foreground.
        self.foreground_share = options.foreground_crop if guides is None else 1.0
        self.sample: list[np.ndarray] = []
        if self.foreground_share < 1:
            self.sample = [self._find_sample(i) for i in range(len(slices))]

    def _find_sample(self, i: int) -> np.ndarray:
        """Return the pixels of a slice around which any crop is placed, as flat indices; none means anywhere."""
        mask = self.masks[i]
        if mask is not None and is_of_shares(mask):
            # A crop without paint would teach nothing.
            return flat_indices(mask.max(axis=2))
        return flat_indices(self.inside[i])

    def _find_targets(self, guides: list[np.ndarray] | None) -> list[list[np.ndarray]]:
        """Return of each slice the pixels around which crops with foreground are placed, as flat indices.

        They are found once, because that takes long. One of several arrays is drawn first, then a
        pixel of it; no pixel means anywhere. A block counts that is foreground only in a part.
        """
        targets = []
        for i, mask in enumerate(self.masks):
            pixels: list[np.ndarray] = []
            if guides is not None:
                for index in range(1, self.options.class_count):
                    of_class = reduce_mask(guides[i] == index, self.options.downsample)
                    pixels.append(flat_indices(of_class))
            elif self.options.foreground_crop > 0 and mask is not None:
                # Of the shares of classes the first is background. It lies around everything, and
                # is no aim of its own, but where only parts are painted.
                is_painted_everywhere = self.slices[i].painted is None
                first = 1 if is_of_shares(mask) and is_painted_everywhere else 0
                for plane in range(first, mask.shape[2]):
                    pixels.append(flat_indices(mask[..., plane]))
            pixels = [of_class for of_class in pixels if of_class.size]

            # A crop without foreground shall at least show sample.
            targets.append(pixels or [self._find_sample(i)])

        return targets

    @property
    def item_bytes(self) -> int:
        """Bytes of an item, all its tensors together."""
        arrays = self.options.strong_views
        if self.options.has_weak_view:
            arrays += 1
        if any(array is not None for array in self.inside):
            arrays += 1
        arrays += max((mask.shape[2] for mask in self.masks if mask is not None), default=0)
        return arrays * self.options.side**2

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, seed = key
        image = self.images[index]

        # The crop, with the pixels around it that the geometry may turn into it.
        side = self.options.side
        rng = np.random.default_rng(seed)
        targets = self.targets[index]
        # Nothing is drawn where all crops are alike: seeds give the views that they always gave.
        if 0 < self.foreground_share < 1 and rng.random() >= self.foreground_share:
            targets = [self.sample[index]]
        place = int(rng.integers(len(targets))) if len(targets) > 1 else 0
        top, left = crop_corner(targets[place], side, image.shape, rng)
        around = max(0, max(image.shape) - side)
        margin = min(self.options.margin, around)
        window = (top - margin, left - margin, side + 2 * margin)

        # Its mask, and where there is sample, are moved with the image.
        planes = {}
        for name, plane in (("mask", self.masks[index]), ("inside", self.inside[index])):
            if plane is not None:
                part = cut_window(plane, *window)
                planes[name] = part.reshape(*part.shape[:2], -1)  # (h, w, planes)

        views = make_views(
            cut_window(image, *window),
            stack_planes(list(planes.values())),
            self.augmentation,
            seed,
            self.options.strong_views,
            margin,
        )

        item = {}
        if self.options.has_weak_view:
            item["weak"] = torch.from_numpy(views.weak[None])  # (1, P, P)
        item["strong"] = torch.from_numpy(np.stack(views.strong))  # (strong_views, P, P)
        if views.mask is not None:
            moved = views.mask.reshape(*views.weak.shape, -1)  # (P, P, all planes)
            first = 0
            for name, part in planes.items():
                last = first + part.shape[2]
                of_name = np.ascontiguousarray(np.moveaxis(moved[..., first:last], -1, 0))
                item[name] = torch.from_numpy(of_name)  # (planes, P, P)
                first = last
        return item


def crop_corner(
    targets: np.ndarray, size: int, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Draw row and column of a crop's corner: around one of the targets, or anywhere where none is given.

    The crop lies inside the image, and contains the chosen pixel. Along a side shorter than `size`
    it is centred.

    Parameters
    ----------
    targets : (N,) int ndarray
        Flat indices of pixels.
    size : int
        Side of the crop [px].
    shape : tuple of int
        Of the image.
    """
    target = None
    if targets.size:
        target = np.unravel_index(rng.choice(targets), shape)

    corner = []
    for axis, length in enumerate(shape):
        if length <= size:
            corner.append((length - size) // 2)
        elif target is None:
            corner.append(int(rng.integers(0, length - size + 1)))
        else:
            jitter = int(rng.integers(-size // 4, size // 4 + 1))
            first = target[axis] - size // 2 + jitter
            corner.append(int(np.clip(first, 0, length - size)))

    return corner[0], corner[1]


def reduce_mask(mask: np.ndarray, downsample: int) -> np.ndarray:
    """Return the share of foreground in blocks of a mask: uint8, 255 for all."""
    return reduce_slice(mask * np.uint8(255), downsample)


def mask_planes(slices: list[Slice], downsample: int, class_count: int) -> list[np.ndarray | None]:
    """Return what is painted in blocks of each slice: (H, W, planes) uint8, or None for no mask.

    One plane is the share of foreground, 255 for all. Where there are more classes than two, or a
    slice is painted only in part, each class has a plane: 255 where all of a block is painted with
    it, and 0 in all planes where nothing is painted or no sample is.
    """
    has_shares = class_count > 2 or any(s.painted is not None for s in slices)
    planes: list[np.ndarray | None] = []
    for s in slices:
        if s.mask is None:
            planes.append(None)
        elif has_shares:
            counted = s.counted
            of_classes = [
                reduce_mask(counted & (s.mask == index), downsample) for index in range(class_count)
            ]
            planes.append(np.dstack(of_classes))
        else:
            planes.append(reduce_mask(s.mask, downsample)[..., None])
    return planes


def is_of_shares(planes: np.ndarray) -> bool:
    """Return whether a mask has a plane for each class."""
    return planes.shape[2] > 1


def reduce_inside(slices: list[Slice], downsample: int) -> list[np.ndarray | None]:
    """Return the share of sample in blocks of each slice: uint8, 255 for all.

    Most data sets show nothing but sample, and need no such arrays: then each is None.
    """
    if all(s.outside is None for s in slices):
        return [None] * len(slices)
    return [reduce_slice(s.inside * np.uint8(255), downsample) for s in slices]


def flat_indices(shown: np.ndarray | None) -> np.ndarray:
    """Return the flat indices of pixels that are not 0; none for no array."""
    if shown is None:
        return np.empty(0, np.int32)
    return np.flatnonzero(shown).astype(np.int32)


def stack_planes(planes: list[np.ndarray]) -> np.ndarray | None:
    """Return (H, W, planes) arrays as one that a geometry takes for a mask: (H, W) of a single plane; None for none."""
    if not planes:
        return None
    together = np.concatenate(planes, axis=2)
    if together.shape[2] == 1:
        return together[..., 0]
    return together


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of `python datasets.py`."""
    parser = Parser(
        description="check: every problem of a data folder, a line each. fingerprint: what its painted "
        "slices are like, in numbers."
    )
    parser.add_argument("command", choices=["check", "fingerprint"])
    parser.add_argument("folder", type=Path, help="data/NAME")
    parser.add_argument(
        "--roi",
        default=",".join(map(str, ROI)),
        help="row,end row,column,end column of the unlabelled scans [px], or none (%(default)s)",
    )
    parser.add_argument(
        "--mask-foreground",
        default="auto",
        choices=FOREGROUND,
        help="what is foreground in a mask: the dark or the bright side, labels (all above 0), or "
        "auto, by its values (%(default)s)",
    )
    parser.add_argument(
        "--outside",
        default="auto",
        help="grey value outside the sample, none, or auto: recognise it (%(default)s)",
    )
    parser.add_argument(
        "--trust-pairs",
        default="false",
        choices=["true", "false"],
        help="take masks that do not agree with their images (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="fingerprint: write its numbers here, too"
    )
    return parser


def check_output(path: Path) -> None:
    """Raise `InputError` where a fingerprint cannot be written: to a file that exists, or that is no .json."""
    if path.suffix.lower() != ".json":
        raise InputError(f"--output {path}: must end in .json")
    if path.exists():
        raise InputError(f"{path}: exists already; choose another --output, or delete it first")


def main() -> int:
    """Check a data folder, or say what its painted slices are like; 1 where there is a problem."""
    arguments = make_parser().parse_args()
    if not arguments.folder.is_dir():
        raise InputError(f"{arguments.folder}: no such folder")
    if arguments.output is not None and arguments.command != "fingerprint":
        raise InputError("--output: has a meaning only for fingerprint")
    if arguments.output is not None:
        check_output(arguments.output)

    reading = Reading(
        roi=parse_roi(arguments.roi),
        mask_foreground=arguments.mask_foreground,
        outside=parse_outside(arguments.outside),
        trust_pairs=arguments.trust_pairs == "true",
    )
    check = check_data(arguments.folder, reading)
    if check.problems:
        print("\n".join([*check.problems, *check.masks]))
        return 1

    data = load_data(arguments.folder, DataOptions(reading=reading))
    if arguments.command == "fingerprint":
        slices = sorted(data.labelled, key=lambda s: natural_key(s.stem))
        fingerprints = take_fingerprints(slices, data.classes)
        for name, fingerprint in fingerprints.items():
            if name:
                print(f"{name}:")
            print(describe_fingerprint(fingerprint))
        if arguments.output is not None:
            records = {name: dataclasses.asdict(f) for name, f in fingerprints.items()}
            write_json(arguments.output, records if data.classes else records[""])
        return 0

    print(f"{arguments.folder}: no problem found")
    print("\n".join([sum_up(data), *check.masks, *data.notes]))
    return 0


if __name__ == "__main__":
    run_command_line(main)
