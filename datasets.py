"""Views of slices for training, and the command that checks a data folder.

A slice flows: file → float32 → ROI → percentile window → uint8 (kept in memory once) → crop → recorded
geometry → weak / strong view → tensor. `data_folder` does the part up to uint8.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from runtime.command_line import Parser, run_command_line
from runtime.messages import InputError
from slices.data_folder import Reading, check_data, load_data, sum_up
from slices.reading import FOREGROUND, ROI, Slice, cut_window, parse_roi, reduce_slice
from slices.windows import parse_outside
from views import build_geometry, build_intensity, make_views

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

    Each item is a dict of uint8 tensors of sides P = `patch_size` / k, which `runtime.loaders.to_float` makes floats in
    [0, 1] once they are where the model is: `weak` (1, P, P), `strong` (`strong_views`, P, P) and, for labelled slices,
    `mask` (1, P, P), 255 for foreground. Where some of the slices do not show the sample everywhere, all items have
    `inside` (1, P, P), 255 for sample.

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

        # Where there is sample. Most data sets show nothing else, and need no such arrays.
        self.inside: list[np.ndarray | None] = [None] * len(slices)
        if any(s.outside is not None for s in slices):
            self.inside = [reduce_slice(inside_of(s), downsample) for s in slices]

        # Where there is foreground, if only in a part of a block, as flat indices: found once, because it takes long.
        if guides is not None:
            shown = [reduce_slice(guide * np.uint8(255), downsample) for guide in guides]
        elif foreground_crop:
            shown = [np.empty(0) if mask is None else mask for mask in self.masks]
        else:
            shown = [np.empty(0)] * len(slices)
        self.foreground = [np.flatnonzero(array).astype(np.int32) for array in shown]
        for i, inside in enumerate(self.inside):                # a crop without foreground shall show sample
            if inside is not None and not self.foreground[i].size:
                self.foreground[i] = np.flatnonzero(inside).astype(np.int32)

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
        arrays = self.weak + self.strong_views
        for optional in (self.masks, self.inside):
            arrays += any(array is not None for array in optional)
        return arrays * self.patch_size**2

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, seed = key
        image = self.images[index]
        rng = np.random.default_rng(seed)
        top, left = crop_corner(self.foreground[index], self.patch_size, image.shape, rng)
        margin = min(self.margin, max(0, max(image.shape) - self.patch_size))  # mirroring needs no window
        window = top - margin, left - margin, self.patch_size + 2 * margin

        # What is moved with the image: its mask, and where there is sample.
        arrays = {"mask": self.masks[index], "inside": self.inside[index]}
        planes = {name: cut_window(array, *window) for name, array in arrays.items() if array is not None}
        moving = None
        if len(planes) == 1:
            (moving,) = planes.values()
        elif planes:
            moving = np.dstack(list(planes.values()))
        image = cut_window(image, *window)
        weak, strong, moved = make_views(image, moving, self.geometry, self.intensity, seed, self.strong_views, margin)

        item = {}
        if self.weak:
            item["weak"] = torch.from_numpy(weak[None])
        item["strong"] = torch.from_numpy(np.stack(strong))
        for i, name in enumerate(planes):
            plane = moved if moved.ndim == 2 else np.ascontiguousarray(moved[..., i])
            item[name] = torch.from_numpy(plane[None])
        return item


def inside_of(s: Slice) -> np.ndarray:
    """Return where a slice shows the sample: (H, W) uint8, 255 there."""
    if s.outside is None:
        return np.full(s.image.shape, 255, np.uint8)
    return np.where(s.outside, np.uint8(0), np.uint8(255))


# --- command line ---------------------------------------------------------------------------------------------

def main() -> int:
    """`python datasets.py check DIR`: 0 when nothing is wrong, 1 with one line per problem, 2 for wrong usage."""
    parser = Parser(description="Check a data folder; every problem is one line.")
    parser.add_argument("command", choices=["check"])
    parser.add_argument("folder", type=Path, help="data/NAME")
    parser.add_argument("--roi", default=",".join(map(str, ROI)),
                        help="row,end row,column,end column of the unlabelled scans [px], or none (%(default)s)")
    parser.add_argument("--mask-foreground", default="auto", choices=FOREGROUND, help="what is foreground in a mask: "
                        "the dark or the bright side, labels (all above 0), or auto, by its values (%(default)s)")
    parser.add_argument("--outside", default="auto", help="grey value outside the sample, none, or auto: recognise it "
                        "(%(default)s)")
    parser.add_argument("--trust-pairs", default="false", choices=["true", "false"], help="take masks that do not "
                        "agree with their images (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise InputError(f"{arguments.folder}: no such folder")

    reading = Reading(roi=parse_roi(arguments.roi), mask_foreground=arguments.mask_foreground,
                      outside=parse_outside(arguments.outside), trust_pairs=arguments.trust_pairs == "true")
    check = check_data(arguments.folder, reading)
    if check.problems:
        print("\n".join(check.problems + check.masks))
        return 1
    data = load_data(arguments.folder, reading=reading)
    print("\n".join([f"{arguments.folder}: no problem found", sum_up(data), *check.masks, *data.notes]))
    return 0


if __name__ == "__main__":
    run_command_line(main)
