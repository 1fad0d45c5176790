"""Measure the particles of masks, and compare how their sizes are distributed.

python evaluate.py particles MASKS [MASKS …] [--pixel-size UM] [--split] [--in-slices] [--output
DIR]
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluation.uncertainty import SMALLEST
from particles.measuring import (
    BOX_VOXELS,
    MeasuringOptions,
    PhaseOfMaps,
    Reader,
    measure_masks,
)
from particles.sizes import compare_sizes, invented, summarise_sizes
from particles.voxels import voxel_of
from runtime.command_line import Parser
from runtime.files import write_atomically, write_csv, write_json
from runtime.messages import InputError
from slices.classes import read_classes
from slices.label_maps import MasksOfClass
from slices.masks import Masks
from slices.reading import FOREGROUND
from viz.size_figures import draw_sizes
from volumes.reading import open_volume
from volumes.records import classes_beside, is_prediction, roi_of
from volumes.volume import (
    Volume,
    crop_volume,
    map_reader,
    masks_of_class,
    masks_of_volume,
    of_one_size,
    plain_name,
    refuse_unlike,
    say_remarks,
)

NECK = 0.5  # px
LARGEST_NUMBER = 1e9
DPI = 110


# --- options --------------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(prog="evaluate.py particles", description="Sizes and shapes of particles.")
    parser.add_argument(
        "masks", type=Path, nargs="+", help="folder of .tif, stack or zarr; several are compared"
    )
    parser.add_argument(
        "--pixel-size",
        type=float,
        help="side of a pixel [µm] (default: what the masks say, else px)",
    )
    parser.add_argument(
        "--slice-distance",
        type=float,
        help="distance of slices [µm] (default: what the masks say, else the side of a pixel)",
    )
    parser.add_argument(
        "--in-slices", action="store_true", help="each slice by itself, not the volume"
    )
    parser.add_argument("--split", action="store_true", help="split touching particles")
    parser.add_argument(
        "--neck",
        type=float,
        default=NECK,
        help="of what is split: by how much the radius between two parts is smaller than that of "
        "either [px] (%(default)s)",
    )
    parser.add_argument(
        "--smallest",
        type=int,
        default=SMALLEST,
        help="voxels of a particle, at least (%(default)s)",
    )
    parser.add_argument(
        "--uncertainty", type=Path, help="map written by predict.py; its mean becomes a column"
    )
    parser.add_argument(
        "--max-uncertainty", type=float, help="leave out particles with a higher mean"
    )
    parser.add_argument(
        "--truth", type=Path, help="true masks; the share of each particle in them becomes a column"
    )
    parser.add_argument(
        "--mask-foreground",
        default="auto",
        choices=FOREGROUND,
        help="what is foreground in MASKS: the dark or the bright side, labels (all above 0), or "
        "auto, by their values (%(default)s)",
    )
    parser.add_argument(
        "--truth-foreground", default="auto", choices=FOREGROUND, help="the same of --truth"
    )
    parser.add_argument(
        "--class",
        dest="phase",
        metavar="NAME",
        help="MASKS are label maps: the class whose particles are measured, by its name or value",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE.json",
        help="names of their values or colours, where no record of a prediction and no classes.json "
        "beside them says them",
    )
    parser.add_argument(
        "--fov",
        default="auto",
        help="field of view, at whose edge particles are cut as at the border: what predict.py wrote "
        "beside the masks (auto), none, circle: the smallest one with all foreground in it, "
        "ROW,COLUMN,RADIUS [px], or the file of a mask (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, help="folder of tables and figure (default: MASKS_particles)"
    )
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of `main`; `InputError` for values that make no sense."""
    options = make_parser().parse_args(arguments)
    for name in ("pixel_size", "slice_distance", "neck", "smallest", "max_uncertainty"):
        value = getattr(options, name)
        if value is not None and not 0 < value < LARGEST_NUMBER:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {value:g}: must be above 0 and below 10⁹")

    if (options.uncertainty or options.truth) and len(options.masks) > 1:
        raise InputError("--uncertainty, --truth: belong to one of MASKS; measure them one by one")
    if options.max_uncertainty is not None and not options.uncertainty:
        raise InputError(
            "--max-uncertainty: needs the map that predict.py --uncertainty wrote; give "
            "--uncertainty MAP"
        )

    options.masks = [with_a_name(path) for path in options.masks]
    if options.output is None:
        first = options.masks[0]
        options.output = first.with_name(f"{plain_name(first)}_particles")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"{options.output}: is a file; --output names a folder")
    return options


def with_a_name(path: Path) -> Path:
    """Return a path that ends in a name, for `.` and `..`, too.

    `InputError` for the root of all files.
    """
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    if not path.name:
        raise InputError("MASKS /: is no folder of masks; name one")
    return path


def distinct_names(paths: list[Path]) -> list[str]:
    """Return a short name for each path, no two alike."""
    names = [plain_name(path) for path in paths]
    if len(set(names)) == len(names):
        return names

    # With the folder in front; where that is not enough, with a number behind.
    parents = [plain_name(path.absolute().parent) for path in paths]
    names = [f"{parent}_{name}" for parent, name in zip(parents, names, strict=True)]
    distinct = []
    for i, name in enumerate(names, 1):
        distinct.append(name if names.count(name) == 1 else f"{name}_{i}")
    return distinct


# --- masks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One of MASKS, and how it is measured.

    Attributes
    ----------
    name : str
        What tables call it.
    volume : Volume
    unit : str
        Of lengths: µm or px.
    options : MeasuringOptions
    """

    name: str
    volume: Volume
    unit: str
    options: MeasuringOptions


def open_sources(arguments: argparse.Namespace) -> list[Source]:
    """Return all of MASKS, and how they are measured.

    Raises
    ------
    InputError
        Where they cannot be compared: one has a pixel size and another none, or one is a slice and
        another a volume.
    """
    volumes = [open_volume(path) for path in arguments.masks]
    say_remarks(*volumes, are_stacked=not arguments.in_slices)

    sources = []
    for name, volume in zip(distinct_names(arguments.masks), volumes, strict=True):
        spacing, unit = voxel_of(volume, arguments.pixel_size, arguments.slice_distance)
        is_flat = volume.axes[:-2] in ("", "T")
        options = MeasuringOptions(
            spacing=spacing,
            in_slices=arguments.in_slices or is_flat,
            neck=arguments.neck * spacing[-1] if arguments.split else None,
            smallest=arguments.smallest,
            max_uncertainty=arguments.max_uncertainty,
            foreground=arguments.mask_foreground,
            phase=phase_of(volume.path, arguments),
            fov=arguments.fov,
            roi=roi_of(volume.path),
        )
        sources.append(Source(name, volume, unit, options))

    if len({source.unit for source in sources}) > 1:
        raise InputError("one of MASKS has a pixel size and another has none; give --pixel-size")
    if len({source.options.in_slices for source in sources}) > 1:
        raise InputError(
            "one of MASKS is a slice and another a volume; give --in-slices, or measure them one by "
            "one"
        )

    return sources


def phase_of(path: Path, arguments: argparse.Namespace) -> PhaseOfMaps | None:
    """Return the class that is measured in some label maps; None for binary masks.

    Raises
    ------
    InputError
        When a class is asked for that there is not, or none of several.
    """
    classes = None
    if arguments.classes is not None:
        classes = read_classes(arguments.classes)
    classes = classes_beside(path) or classes
    if classes is None and arguments.phase is None:
        return None
    if classes is None:
        raise InputError(
            f"{path}: does not say which classes its values are; name them with --classes FILE.json"
        )
    if arguments.phase is None:
        raise InputError(
            f"{path}: holds label maps; choose a class with --class NAME: {classes.describe()}"
        )
    try:
        classes.index(arguments.phase)
    except InputError as error:
        raise InputError(f"--class {error}") from None
    return PhaseOfMaps(classes, arguments.phase, is_prediction(path))


def open_maps(arguments: argparse.Namespace, source: Source) -> dict[str, Reader]:
    """Return readers of the uncertainty and of the true masks of the one source they belong to."""
    maps = {}
    if arguments.uncertainty:
        volume = open_beside(arguments.uncertainty, source)
        maps["uncertainty"] = map_reader(volume)
    if arguments.truth:
        volume = open_beside(arguments.truth, source)
        phase = phase_of(arguments.truth, arguments)
        masks: Masks | MasksOfClass
        if phase is None:
            masks = masks_of_volume(volume, arguments.truth_foreground, option="--truth-foreground")
        else:
            masks = masks_of_class(volume, phase.classes, phase.name, phase.may_be_partial)
        maps["truth"] = of_one_size(masks, volume.slice_shape)

    return maps


def open_beside(path: Path, source: Source) -> Volume:
    """Return a volume that belongs to a source, cropped like that."""
    volume = open_volume(path)
    refuse_unlike(volume, source.volume)
    return crop_volume(volume, source.options.roi)


def measure_source(source: Source, maps: dict[str, Reader]) -> pd.DataFrame:
    """Return the particles of a source, with places in the whole slice."""
    table = measure_masks(source.volume, source.options, maps)
    if source.options.roi is not None:
        top, _, left, _ = source.options.roi
        table["row"] += top
        table["column"] += left

    too_large = count_too_large(table)
    if too_large:
        print(
            f"{source.volume.path}: {too_large} components are too large to be looked at (a box of "
            f"more than {BOX_VOXELS} voxels): not split, without shape",
            file=sys.stderr,
        )

    return table


def count_too_large(table: pd.DataFrame) -> int:
    """Return how many components were too large to be measured in detail."""
    if "unmeasured" not in table:
        return 0
    return int(table["unmeasured"].eq(True).sum())


def summarise(source: Source, table: pd.DataFrame, neck: float | None) -> dict:
    """Return how a source was measured, and how sizes are distributed in it."""
    options = source.options
    return {
        "masks": str(source.volume.path),
        **({} if options.phase is None else {"class": options.phase.name}),
        "unit": source.unit,
        "voxel": options.spacing,
        "in_slices": options.in_slices,
        "roi": options.roi,
        "split": neck,
        "smallest": options.smallest,
        "max_uncertainty": options.max_uncertainty,
        "too_large": count_too_large(table),
        **table.attrs,
        **summarise_sizes(table),
        **invented(table),
    }


# --- command --------------------------------------------------------------------------------------


def main(command_line: list[str]) -> None:
    """Measure each of MASKS, and compare them with the first.

    All is looked at before anything is written.
    """
    arguments = parse(command_line)
    sources = open_sources(arguments)
    maps = open_maps(arguments, sources[0])
    neck = arguments.neck if arguments.split else None

    tables = {}
    summaries = {}
    for source in sources:
        tables[source.name] = measure_source(source, maps)
        summaries[source.name] = summarise(source, tables[source.name], neck)
    first, *others = tables
    compared = []
    for name in others:
        difference = compare_sizes(tables[first], tables[name])
        compared.append({"masks": name, "with": first, **difference})

    folder = arguments.output
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table, float_format="%.6g")
    write_json(folder / "summary.json", {"masks": summaries, "compared": compared})
    draw_into(folder / "sizes.png", tables, sources[0].unit)

    print(pd.DataFrame(summaries).drop("masks").to_string())
    for pair in compared:
        print(describe(pair))
    print(folder)


def draw_into(path: Path, tables: dict[str, pd.DataFrame], unit: str) -> None:
    """Draw how sizes are distributed."""
    figure = draw_sizes(tables, unit)

    def write(temporary: Path) -> None:
        figure.savefig(temporary, dpi=DPI, format="png")

    write_atomically(path, write)


def describe(pair: dict) -> str:
    """Return in words how the sizes of two masks differ."""
    if not pair["ratio"]:
        return f"{pair['masks']}: too few particles to compare"
    return (
        f"{pair['masks']}: D50 is {pair['ratio']:.3f} (95 % interval {pair['low']:.3f}–"
        f"{pair['high']:.3f}) times that of {pair['with']}, p = {pair['p']:.2g}"
    )
