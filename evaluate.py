"""Score predicted masks against true ones, slice by slice.

python evaluate.py --pred MASKS --truth MASKS           scores, a row per slice
python evaluate.py particles MASKS [MASKS …]            sizes and shapes of particles
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.intervals import mean_interval
from evaluation.mask_pairs import Foreground, MaskPair, folder_pairs, sample_beside, volume_pairs
from evaluation.metrics import METRICS, slice_metrics
from evaluation.uncertainty import CODES, count_errors, describe_error_rates, error_rates
from particles import command as particles_command
from particles.shapes import particle_table
from runtime.command_line import Parser, run_command_line
from runtime.files import write_csv
from runtime.messages import InputError
from slices.options import IMAGES, MASKS
from slices.reading import FOREGROUND, MASK_SUFFIXES, crop_roi
from volumes.reading import ZARR_FILES, open_volume
from volumes.records import inside_file, roi_of
from volumes.volume import map_reader, refuse_unlike

LARGEST_PIXEL = 1e9  # µm
MOST_ROWS = 60  # of the table that is printed


# --- what is scored -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """What is scored against what.

    Attributes
    ----------
    pred, truth : Path
        Folders of masks, or volumes.
    foreground : Foreground
        What is foreground in them.
    uncertainty : Path or None
        The map that was written with the predictions.
    pixel_size : float or None
        Side of a pixel [µm], with which particle sizes are added.
    """

    pred: Path
    truth: Path
    foreground: Foreground
    uncertainty: Path | None = None
    pixel_size: float | None = None

    @property
    def are_files(self) -> bool:
        """Whether masks are files of two folders, which are paired by name.

        Else both sides are volumes, and slices are paired in their order: a folder of slices beside
        a stack is a volume, too.
        """
        return is_folder(self.pred) and (is_folder(self.truth) or not self.truth.exists())


@dataclass(frozen=True)
class Scores:
    """The scores of predicted masks.

    Attributes
    ----------
    table : DataFrame
        A row per slice.
    error_counts : ndarray or None
        Of `count_errors`, summed over slices; None without an uncertainty.
    """

    table: pd.DataFrame
    error_counts: np.ndarray | None


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder of files, and no zarr array."""
    return path.is_dir() and not any((path / name).exists() for name in ZARR_FILES)


def score(scored: Scored) -> Scores:
    """Return the scores of all slices: inside the region and the sample that were predicted.

    Raises
    ------
    InputError
        For whatever cannot be read or paired.
    """
    read_uncertainty = uncertainty_reader(scored)
    pairs = folder_pairs if scored.are_files else volume_pairs
    roi = roi_of(scored.pred)
    sample = sample_beside(scored.pred, scored.are_files)

    rows = []
    error_counts = None if read_uncertainty is None else np.zeros((2, CODES), int)
    for i, pair in enumerate(pairs(scored.pred, scored.truth, scored.foreground)):
        mask = crop_roi(pair.mask, roi, str(pair.name))
        truth = crop_roi(pair.truth, roi, str(pair.name))
        inside = np.ones(mask.shape, bool)
        if sample is not None:
            inside = crop_roi(sample(i, pair.name), roi).astype(bool)
        mask = mask * inside
        truth = truth * inside

        row = {"stem": pair.name.stem, **slice_metrics(mask, truth)}
        if scored.pixel_size is not None:
            row |= count_particles(mask, truth, scored.pixel_size)
        rows.append(row)
        if read_uncertainty is not None:
            uncertainty = crop_roi(read_uncertainty(i, pair), roi)
            wrong = mask.astype(bool) != truth.astype(bool)
            error_counts += count_errors(uncertainty[inside], wrong[inside])

    return Scores(pd.DataFrame(rows), error_counts)


def count_particles(mask: np.ndarray, truth: np.ndarray, pixel_size: float) -> dict[str, float]:
    """Return number and median diameter [µm] of the particles of a predicted and a true mask."""
    row: dict[str, float] = {}
    for kind, image in (("predicted", mask), ("truth", truth)):
        particles = particle_table(image, pixel_size)
        row[f"particles_{kind}"] = len(particles)
        row[f"median_diameter_um_{kind}"] = particles["diameter"].median()
    return row


def uncertainty_reader(scored: Scored) -> Callable[[int, MaskPair], np.ndarray] | None:
    """Return a reader of the uncertainty of a slice, by its number and masks; None where there is none."""
    if scored.uncertainty is None:
        return None
    volume = open_volume(scored.uncertainty)
    read = map_reader(volume)
    if not scored.are_files:
        refuse_unlike(volume, open_volume(scored.pred))
    places = {Path(name).stem: i for i, name in enumerate(volume.names)}

    def read_uncertainty(i: int, pair: MaskPair) -> np.ndarray:
        place = places.get(pair.name.stem) if scored.are_files else i
        uncertainty = None
        if place is not None and place < len(volume):
            uncertainty = read(place)
        if uncertainty is None or uncertainty.shape != pair.mask.shape:
            raise InputError(
                f"{scored.uncertainty}: has no map of {pair.name} of {pair.mask.shape} px; give what "
                "predict.py --uncertainty wrote beside these masks"
            )

        return uncertainty

    return read_uncertainty


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(
        description="Score predicted masks against true ones, slice by slice.",
        epilog="evaluate.py particles MASKS measures particles instead; see evaluate.py particles --help",
    )
    parser.add_argument(
        "--pred",
        type=Path,
        required=True,
        help=f"folder of predicted masks ({', '.join(MASK_SUFFIXES)}), or a volume: .tif stack, zarr",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        required=True,
        help="folder of true masks, paired by stem or last number; of a volume the true volume",
    )
    parser.add_argument(
        "--uncertainty",
        type=Path,
        help="map that predict.py --uncertainty wrote: are the uncertain pixels the wrong ones?",
    )
    parser.add_argument("--output", type=Path, help="write the table to this CSV file")
    parser.add_argument(
        "--pixel-size", type=float, help="side of a pixel [µm]; adds particle sizes"
    )
    parser.add_argument(
        "--mask-foreground",
        default="auto",
        choices=FOREGROUND,
        help="what is foreground in the true masks: the dark or the bright side, labels (all above "
        "0), or auto, by their values (%(default)s)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder or volume of the slices that the true masks are painted copies of (default: "
        "Original_images beside Original_masks)",
    )
    parser.add_argument(
        "--pred-foreground",
        default="auto",
        choices=FOREGROUND,
        help="what is foreground in the predicted masks: dark, bright, labels or auto (%(default)s)",
    )
    return parser


def images_beside(truth: Path) -> Path | None:
    """Return the folder of the slices beside that of the true masks, where it has the usual name."""
    if truth.name != Path(MASKS).name:
        return None
    images = truth.with_name(Path(IMAGES).name)
    return images if images.is_dir() else None


def print_scores(scores: Scores) -> None:
    """Print a row per slice, then the means."""
    table = scores.table
    print(table.to_string(index=False, float_format="{:.4f}".format, max_rows=MOST_ROWS))
    width = max(len(metric) for metric in METRICS)
    for metric in METRICS:
        interval = mean_interval(table[metric].to_numpy())
        line = f"mean {metric:{width}s} {interval['mean']:.4f}"
        if interval["low"] is not None:
            line += f"  95 % interval {interval['low']:.4f} – {interval['high']:.4f}"
        print(line)

    if scores.error_counts is not None:
        print(describe_error_rates(error_rates(scores.error_counts)))


def main() -> None:
    """Score slices, or, with `particles`, measure what is in them."""
    if sys.argv[1:2] == ["particles"]:
        particles_command.main(sys.argv[2:])
        return

    arguments = make_parser().parse_args()
    size = arguments.pixel_size
    if size is not None and not 0 < size < LARGEST_PIXEL:
        raise InputError(f"--pixel-size {size:g}: must be above 0 and below 10⁹ µm")
    if arguments.output and arguments.output.is_dir():
        raise InputError(f"{arguments.output}: is a folder; --output names a .csv file")

    images = arguments.images or images_beside(arguments.truth)
    foreground = Foreground(arguments.pred_foreground, arguments.mask_foreground, images)
    scored = Scored(arguments.pred, arguments.truth, foreground, arguments.uncertainty, size)
    scores = score(scored)

    roi = roi_of(scored.pred)
    if roi is not None:
        top, bottom, left, right = roi
        print(
            f"inside rows {top}–{bottom}, columns {left}–{right}, where {scored.pred} was predicted"
        )

    inside = inside_file(scored.pred)
    if inside is not None:
        print(f"inside the sample, as {inside} says; what lies outside is not scored")
    print_scores(scores)
    if arguments.output:
        write_csv(arguments.output, scores.table)


if __name__ == "__main__":
    run_command_line(main)
