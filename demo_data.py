"""Synthetic nano-CT in the real folder layout: labelled slices, larger unlabelled scans, and their truth beside.

    python demo_data.py --output data/demo [--seed 0] [--scans 150]
    python demo_data.py --classes --output data/phases [--scribbles 0.03 [--strokes gathered]] [--seed 0] [--scans 150]
    python demo_data.py --volume data/volume.tif [--seed 0] [--slices 1000] [--size 512]
    python demo_data.py --material foam --output data/foam [--seed 0] [--slices 12] [--size 768]

One volume of faint faceted particles is cut into correlated slices at three points in time. What
makes real slices hard is there: contrast below the noise, correlated noise, streaks, rings, slow
shading, bright needles and clouds that are not particles, and the bright rim with a dark fringe of
phase contrast. Grey values have the scale of linear attenuation in a real scan (about 2e-4 per
voxel).

`--classes` adds pores and bright inclusions, and writes label maps of four classes in the place of
masks; with `--scribbles` they are painted in part. `--volume` writes one volume as an ImageJ stack
instead, its true mask and a table of its particles beside it. `--material` writes labelled slices of
another material instead: those of `phantoms.materials`, each as a scanner sees it.
"""

import argparse
import dataclasses
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from tqdm import tqdm

from phantoms.data_set import DataSet, stem_of
from phantoms.data_set import write_slice as write_material_slice
from phantoms.materials import MATERIALS
from phantoms.nano_ct import (
    DEPTH,
    DRIFT,
    LABELLED,
    PHASES,
    SPACING,
    as_counts,
    make_particles,
    render,
    render_phases,
)
from phantoms.scribbles import SPREAD, STYLES, scribble
from runtime.command_line import Parser, run_command_line
from runtime.files import locked, write_atomically, write_csv, write_json
from runtime.messages import PROGRESS_SECONDS, InputError, quiet_bar
from slices.classes import CLASSES_FILE, classes_of, look_up_table
from slices.options import IMAGES, MASKS, UNLABELLED
from slices.reading import ROI
from slices.splits import split_by_blocks

SCANS = 150  # unlabelled scans, where no other number is asked for
HELD_OUT = 0.18  # share of the labelled slices that are test slices, and that are validation slices
PIXEL_SIZE_UM = 0.022

# Grey values.
PAINT_DARK = -2.0e-4  # what the annotator filled particles with
PAINT_BRIGHT = 3.5e-4  # and bright needles

MOST_PROCESSES = 8

VOLUME_SLICES = 1000  # of a volume, where nothing else is asked for
VOLUME_SIDE = 512  # px, likewise
LEAST_SIDE = 64  # px, of a slice of a material


def write_slice(index: int, folder: Path, seed: int) -> None:
    """Write one labelled slice and its painted mask."""
    top, bottom, left, right = ROI
    one = render(seed, 0, index * SPACING)
    image = one.image[top:bottom, left:right]
    truth = one.truth[top:bottom, left:right]
    needles = one.needles[top:bottom, left:right]

    painted = np.where(truth, np.float32(PAINT_DARK), image)
    if index % 3 == 0:
        # On some, bright needles are painted over as well.
        painted[needles] = PAINT_BRIGHT
    details: dict[str, Any] = {
        "imagej": True,
        "resolution": pixels_per_um(),
        "metadata": {"unit": "um"},
    }
    tifffile.imwrite(folder / IMAGES / f"slice_{index:02d}.tif", image, **details)
    tifffile.imwrite(folder / MASKS / f"slice_mask_{index:02d}.tif", painted, **details)


def write_class_slice(index: int, share: float, folder: Path, seed: int, strokes: str) -> None:
    """Write one labelled slice with several phases, and its label map, of which a share is painted."""
    top, bottom, left, right = ROI
    image, labels = render_phases(seed, 0, index * SPACING)
    image, labels = image[top:bottom, left:right], labels[top:bottom, left:right]
    rng = np.random.default_rng([seed, *b"scribbles", index])
    painted = scribble(labels, share, rng, strokes)
    tifffile.imwrite(
        folder / IMAGES / f"slice_{index:02d}.tif",
        image,
        imagej=True,
        resolution=pixels_per_um(),
        metadata={"unit": "um"},
    )
    write_labels(folder / MASKS / f"slice_{index:02d}.tif", labels * painted)


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write a label map as a TIFF that shows each class in its colour."""
    classes = classes_of(PHASES, CLASSES_FILE)
    colours = 257 * look_up_table(classes).astype(np.uint16)
    tifffile.imwrite(path, labels, photometric="palette", colormap=colours, compression="zlib")


def pixels_per_um() -> tuple[float, float]:
    """Return the resolution of all files, along columns and rows."""
    return 1 / PIXEL_SIZE_UM, 1 / PIXEL_SIZE_UM


def write_scan(
    index: int,
    folder: Path,
    truth_folder: Path,
    seed: int,
    scans: int,
    has_classes: bool = False,
) -> None:
    """Write one unlabelled scan of time 1 or 2 as 16-bit integers, its truth in another tree: PNG, or a label map."""
    scans_of_time = (scans + 1) // 2
    time, within = divmod(index, scans_of_time)
    z = within * DEPTH / max(1, scans_of_time)
    name = f"time{time + 1}_{within:03d}"
    if has_classes:
        image, labels = render_phases(seed, time + 1, z)
        write_labels(truth_folder / f"{name}.tif", labels)
    else:
        one = render(seed, time + 1, z)
        image = one.image
        cv2.imwrite(str(truth_folder / f"{name}.png"), one.truth.astype(np.uint8) * 255)
    tifffile.imwrite(folder / UNLABELLED / f"{name}.tif", as_counts(image))


# --- a data set -----------------------------------------------------------------------------------


def truth_folder_of(output: Path) -> Path:
    """Return where the truth of the unlabelled scans goes: beside `output`, where training never reads."""
    return output.with_name(output.name + "_truth")


def write_demo(output: Path, seed: int = 0, scans: int = SCANS, labelled: int = LABELLED) -> None:
    """Write the demo data set: `output` in the real layout, and the truth of its scans beside it.

    The same arguments give the same bytes. Both folders appear only when they are complete.

    Raises
    ------
    InputError
        When `output` or the folder of the truth exists, or `output` is no name.
    """
    output = Path(output)
    with new_folders(output, truth_folder_of(output)) as (folder, truth_folder):
        make_folders(folder)
        draw_slices(folder, truth_folder, seed, scans, labelled)
        write_split(folder, [f"slice_{i:02d}" for i in range(labelled)])
        details = {
            "seed": seed,
            "scans": scans,
            "labelled": labelled,
            "pixel_size_um": PIXEL_SIZE_UM,
            "time_points": len(DRIFT),
        }
        write_json(folder / "demo.json", details)


def write_class_demo(
    output: Path,
    seed: int = 0,
    scans: int = SCANS,
    labelled: int = LABELLED,
    share: float = 1.0,
    strokes: str = SPREAD,
) -> None:
    """Write the demo data set with four classes: label maps, of which a share of the pixels is painted.

    That share is of training and validation slices; test slices are painted everywhere, so that
    scores are about whole slices. How strokes lie, and how `strokes` spreads them, is said in
    `phantoms.scribbles`.

    Raises
    ------
    InputError
        As `write_demo`.
    """
    output = Path(output)
    stems = [f"slice_{i:02d}" for i in range(labelled)]
    held_out = round(HELD_OUT * labelled)
    split = split_by_blocks(stems, held_out, held_out)
    shares = [1.0 if stem in split["test"] else share for stem in stems]
    with new_folders(output, truth_folder_of(output)) as (folder, truth_folder):
        make_folders(folder)
        write_json(folder / CLASSES_FILE, PHASES)
        draw_slice = partial(write_class_slice, folder=folder, seed=seed, strokes=strokes)
        draw_scan = partial(
            write_scan,
            folder=folder,
            truth_folder=truth_folder,
            seed=seed,
            scans=scans,
            has_classes=True,
        )
        with drawing_pool() as pool:
            drawn = pool.map(draw_slice, range(labelled), shares)
            for _ in quiet_bar(drawn, "labelled slices", total=labelled):
                pass
            for _ in quiet_bar(pool.map(draw_scan, range(scans)), "scans", total=scans):
                pass
        write_split(folder, stems)
        details = {
            "seed": seed,
            "scans": scans,
            "labelled": labelled,
            "pixel_size_um": PIXEL_SIZE_UM,
            "time_points": len(DRIFT),
            "classes": PHASES,
            "painted": share,
            "strokes": strokes,
        }
        write_json(folder / "demo.json", details)


@contextmanager
def new_folders(*targets: Path) -> Iterator[list[Path]]:
    """Yield an empty folder for each target, which becomes that target when all is written.

    Raises
    ------
    InputError
        When a target exists, the first one is no name, or another process is writing it.
    """
    first = targets[0]
    if not first.name.strip("."):
        raise InputError(f"--output {first}: is no name of a new folder; such as data/demo")
    lock_file = first.with_name(f".{first.name}.lock")
    with locked(lock_file, f"{first}: another process is writing it; wait for it"):
        for target in targets:
            if target.exists():
                raise InputError(
                    f"{target}: exists already; choose another --output, or delete it first"
                )

        unfinished = [target.with_name(f".{target.name}.part") for target in targets]
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield unfinished

        for folder, target in zip(unfinished, targets, strict=True):
            folder.rename(target)


def make_folders(folder: Path) -> None:
    """Make the folders inside a data folder."""
    for inside in (IMAGES, MASKS, UNLABELLED, "splits"):
        (folder / inside).mkdir(parents=True)


def draw_slices(folder: Path, truth_folder: Path, seed: int, scans: int, labelled: int) -> None:
    """Draw all slices of a data set, in several processes."""
    draw_slice = partial(write_slice, folder=folder, seed=seed)
    draw_scan = partial(
        write_scan, folder=folder, truth_folder=truth_folder, seed=seed, scans=scans
    )
    with drawing_pool() as pool:
        for draw, name, count in (
            (draw_slice, "labelled slices", labelled),
            (draw_scan, "unlabelled scans", scans),
        ):
            for _ in quiet_bar(pool.map(draw, range(count)), name, total=count):
                pass


def write_split(folder: Path, stems: list[str]) -> None:
    """Write which slices train, choose the checkpoint and test: blocks of the volume."""
    held_out = round(HELD_OUT * len(stems))
    write_json(folder / "splits" / "split.json", split_by_blocks(stems, held_out, held_out))


def write_material(output: Path, data_set: DataSet) -> None:
    """Write labelled slices of a synthetic material: a data folder.

    The same arguments give the same bytes. The folder appears only when it is complete.

    Raises
    ------
    InputError
        When `output` exists, or is no name.
    """
    output = Path(output)
    with new_folders(output) as (folder,):
        make_folders(folder)
        write = partial(write_material_slice, data_set=data_set, folder=folder)
        numbers = range(data_set.slices)
        with drawing_pool() as pool:
            for _ in quiet_bar(pool.map(write, numbers), data_set.material, total=len(numbers)):
                pass
        write_split(folder, [stem_of(data_set, number) for number in numbers])
        write_json(folder / "material.json", dataclasses.asdict(data_set))


def drawing_pool() -> ProcessPoolExecutor:
    """Return processes that draw slices."""
    # A forked copy of OpenCV's threads can lock up.
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(MOST_PROCESSES, os.cpu_count() or 1), fresh)


# --- a volume -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CountedSlice:
    """A slice of a volume as a detector counts, and what of each particle is in it.

    Attributes
    ----------
    counts : (rows, columns) uint16 ndarray
    truth : (rows, columns) bool ndarray
    voxels : (N,) int ndarray
        Pixels of each particle.
    at_border : (N,) int ndarray
        Those at the border of the slice.
    """

    counts: np.ndarray
    truth: np.ndarray
    voxels: np.ndarray
    at_border: np.ndarray


def write_volume(output: Path, seed: int = 0, slices: int = 1000, side: int = 512) -> None:
    """Write a volume as an ImageJ stack, and NAME_truth.tif and NAME_particles.csv beside it.

    The same arguments give the same bytes; each file appears when it is complete, the volume last.

    Raises
    ------
    InputError
        When one of the files exists.
    """
    output = Path(output)
    truth = output.with_name(f"{output.stem}_truth.tif")
    table = output.with_name(f"{output.stem}_particles.csv")
    for target in (output, truth, table):
        if target.exists():
            raise InputError(
                f"{target}: exists already; choose another --volume, or delete it first"
            )

    drawn = DrawnVolume(seed, (slices, side, side))
    details: dict[str, Any] = {
        "imagej": True,
        "resolution": pixels_per_um(),
        "shape": drawn.size,
        "metadata": {"axes": "ZYX", "spacing": PIXEL_SIZE_UM, "unit": "um"},
    }

    def write_masks(temporary: Path) -> None:
        tifffile.imwrite(temporary, drawn.masks(), dtype=np.uint8, **details)

    def write_all(temporary: Path) -> None:
        tifffile.imwrite(temporary, drawn.counts(), dtype=np.uint16, **details)
        write_atomically(truth, write_masks)
        write_csv(table, drawn.particles(), float_format="%.6g")

    write_atomically(output, write_all)


class DrawnVolume:
    """A volume that is drawn once, slice by slice; its masks are kept with a bit for each pixel."""

    def __init__(self, seed: int, size: tuple[int, int, int]):
        self.seed = seed
        self.size = size
        self.made = make_particles(seed, size=size)
        self._packed: list[np.ndarray] = []
        self._voxels = np.zeros(len(self.made), int)
        self._at_border = np.zeros(len(self.made), int)

    def counts(self) -> Iterator[np.ndarray]:
        """Draw the slices, and yield them: (rows, columns) uint16."""
        slices = self.size[0]
        draw = partial(count_slice, seed=self.seed, size=self.size)
        with drawing_pool() as pool:
            drawn = pool.map(draw, range(slices), chunksize=4)
            bar = tqdm(drawn, "volume", slices, unit="slice", mininterval=PROGRESS_SECONDS)
            for z, one in enumerate(bar):
                is_end = z in (0, slices - 1)
                self._packed.append(np.packbits(one.truth))
                self._voxels += one.voxels
                self._at_border += one.voxels if is_end else one.at_border
                yield one.counts

    def masks(self) -> Iterator[np.ndarray]:
        """Yield the true masks of the slices that were drawn: (rows, columns) uint8, 255 for particle."""
        _, rows, columns = self.size
        for bits in self._packed:
            mask = np.unpackbits(bits, count=rows * columns).reshape(rows, columns)
            yield mask * np.uint8(255)

    def particles(self) -> pd.DataFrame:
        """Return the particles of the volume that was drawn.

        Centre [px], volume [px³], diameter of the sphere of that volume [px], and whether the
        border cuts them.
        """
        seen = np.flatnonzero(self._voxels)
        volume = self._voxels[seen]
        centres = self.made.centres[seen]
        return pd.DataFrame(
            {
                "slice": centres[:, 0],
                "row": centres[:, 1],
                "column": centres[:, 2],
                "volume": volume,
                "diameter": (6 * volume / math.pi) ** (1 / 3),
                "touches_border": self._at_border[seen] > 0,
            }
        )


def count_slice(z: int, seed: int, size: tuple[int, int, int]) -> CountedSlice:
    """Draw slice `z` of a volume as a detector counts."""
    owners = np.zeros(size[1:], np.int32)
    one = render(seed, 0, z, size, owners)
    is_border = np.ones(size[1:], bool)
    is_border[1:-1, 1:-1] = False

    number = len(make_particles(seed, size=size))
    voxels = np.bincount(owners[one.truth], minlength=number)
    at_border = np.bincount(owners[one.truth & is_border], minlength=number)
    return CountedSlice(as_counts(one.image), one.truth, voxels, at_border)


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(description="Write a synthetic nano-CT data set with known truth.")
    parser.add_argument(
        "--output", type=Path, help="new folder (data/demo, or data/ and the name of the material)"
    )
    parser.add_argument(
        "--volume", type=Path, help="write one volume to this .tif instead, its truth beside it"
    )
    parser.add_argument(
        "--material",
        choices=list(MATERIALS),
        help="write labelled slices of this material instead of nano-CT",
    )
    parser.add_argument(
        "--classes",
        action="store_true",
        help="add pores and bright inclusions, and write label maps of four classes",
    )
    parser.add_argument(
        "--scribbles",
        type=float,
        metavar="SHARE",
        help="--classes: share of the pixels of training and validation slices that is painted, in "
        "strokes, 0 to 1 (1: all)",
    )
    parser.add_argument(
        "--strokes",
        choices=list(STYLES),
        help="--scribbles: short ones on one thing after the other, or as much paint in longer ones, on "
        f"fewer things ({SPREAD})",
    )
    parser.add_argument(
        "--slices",
        type=int,
        help=f"of the volume ({VOLUME_SLICES}), or of the material ({DataSet.slices})",
    )
    parser.add_argument(
        "--size",
        type=int,
        help=f"rows and columns of the volume ({VOLUME_SIDE}), or of each slice of the material "
        f"({DataSet.side}) [px]",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)"
    )
    parser.add_argument(
        "--scans",
        type=int,
        help=f"unlabelled scans of the two later times ({SCANS})",
    )
    return parser


def main() -> None:
    """Write the demo data, a volume or a material, and say where."""
    arguments = make_parser().parse_args()
    refuse_options_without_meaning(arguments)
    if arguments.volume is not None:
        command_volume(arguments)
    elif arguments.material is not None:
        command_material(arguments)
    else:
        command_demo(arguments)


def refuse_options_without_meaning(arguments: argparse.Namespace) -> None:
    """Raise `InputError` where an option stands beside one with which it has no meaning, or a number is negative."""
    if arguments.seed < 0 or (arguments.scans or 0) < 0:
        raise InputError("--seed and --scans: must be 0 or more")

    is_demo = arguments.volume is None and arguments.material is None
    if arguments.volume is not None and arguments.material is not None:
        raise InputError("--material: writes a data folder, and --volume a volume; choose one")
    if arguments.classes and not is_demo:
        raise InputError("--classes: is of the demo; has no meaning with --volume or --material")
    share = arguments.scribbles
    if share is not None and not arguments.classes:
        raise InputError("--scribbles: are painted in label maps; give --classes, too")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"--scribbles {share:g}: must be above 0, and 1 at most")
    if arguments.strokes is not None and (share is None or share == 1):
        raise InputError("--strokes: has a meaning only with --scribbles below 1")
    if arguments.scans is not None and not is_demo:
        raise InputError("--scans: are of the demo; has no meaning with --volume or --material")
    for name in ("slices", "size"):
        if getattr(arguments, name) is not None and is_demo:
            raise InputError(f"--{name}: has a meaning only with --volume or --material")


def command_demo(arguments: argparse.Namespace) -> None:
    """Write the demo data, with masks or with label maps, and say where."""
    scans = SCANS if arguments.scans is None else arguments.scans
    if arguments.classes:
        share = 1.0 if arguments.scribbles is None else arguments.scribbles
        folder = arguments.output or Path("data/phases")
        strokes = arguments.strokes or SPREAD
        write_class_demo(folder, arguments.seed, scans, share=share, strokes=strokes)
        painted = (
            "" if share == 1 else f", {share:.1%} of those for training and validation painted"
        )
        content = f" (label maps of {', '.join(PHASES.values())}{painted})"
    else:
        folder = arguments.output or Path("data/demo")
        write_demo(folder, arguments.seed, scans)
        content = ""
    print(
        f"{folder}: {LABELLED} labelled slices{content}, {scans} scans; truth of the scans: "
        f"{truth_folder_of(folder)}"
    )


def command_volume(arguments: argparse.Namespace) -> None:
    """Write a volume, and say what lies beside it."""
    slices = VOLUME_SLICES if arguments.slices is None else arguments.slices
    side = VOLUME_SIDE if arguments.size is None else arguments.size
    is_tiff = arguments.volume.suffix.lower() in (".tif", ".tiff")
    if not is_tiff or slices < 1 or not 16 <= side <= 2**14:
        raise InputError(
            "--volume: expected the name of a .tif, --slices 1 or more and --size 16 to 16384"
        )

    write_volume(arguments.volume, arguments.seed, slices, side)
    print(
        f"{arguments.volume}: {slices} slices of {side}²; true mask and particles: _truth.tif and "
        "_particles.csv beside it"
    )


def command_material(arguments: argparse.Namespace) -> None:
    """Write slices of a material, and say what is painted in them."""
    slices = DataSet.slices if arguments.slices is None else arguments.slices
    side = DataSet.side if arguments.size is None else arguments.size
    if slices < 1 or not LEAST_SIDE <= side <= 2**12:
        raise InputError(
            f"--material: expected --slices 1 or more and --size {LEAST_SIDE} to {2**12}"
        )

    data_set = DataSet(arguments.material, arguments.seed, slices, side)
    folder = arguments.output or Path("data") / data_set.material
    write_material(folder, data_set)
    kind = MATERIALS[data_set.material]
    print(f"{folder}: {slices} labelled slices of {side}²: {kind.text}")


if __name__ == "__main__":
    run_command_line(main)
