"""Score predicted masks against true ones, slice by slice.

python evaluate.py --pred MASKS --truth MASKS           scores, a row per slice
python evaluate.py particles MASKS [MASKS …]            sizes and shapes of particles
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.class_metrics import Truth, class_table, confusion_matrix, mean_table
from evaluation.intervals import mean_interval
from evaluation.label_pairs import ClassPair, find_class_pair, label_pairs
from evaluation.mask_pairs import Foreground, folder_pairs, sample_beside, volume_pairs
from evaluation.metrics import METRICS, slice_metrics
from evaluation.phase_fractions import class_shares, fraction_table
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
    classes : ClassPair or None
        Of label maps; None where masks are binary.
    """

    pred: Path
    truth: Path
    foreground: Foreground
    uncertainty: Path | None = None
    pixel_size: float | None = None
    classes: ClassPair | None = None

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
        A row per slice, of label maps one per slice and class.
    error_counts : ndarray or None
        Of `count_errors`, summed over slices; None without an uncertainty.
    of_classes : ClassScores or None
        What is known of label maps beside that; None where masks are binary.
    """

    table: pd.DataFrame
    error_counts: np.ndarray | None
    of_classes: "ClassScores | None" = None

    def mean_dice(self) -> float:
        """Return the mean Dice over slices, of label maps over their classes but the background first."""
        table = self.table
        if self.of_classes is not None:
            table = mean_table(table.assign(method=""), self.of_classes.names)
        return float(table["dice"].mean())


@dataclass(frozen=True)
class ClassScores:
    """What is known of predicted label maps beside their scores.

    Attributes
    ----------
    names : tuple of str
        Of the classes.
    confusion : (K, K) int ndarray
        Painted pixels of each class (rows) that are taken for each class (columns).
    predicted, painted : (N, K) ndarray
        Fractions of the classes: of all that was predicted of each slice, and of what is painted.
    missing : int
        Painted pixels of which nothing was predicted, which are not scored.
    """

    names: tuple[str, ...]
    confusion: np.ndarray
    predicted: np.ndarray
    painted: np.ndarray
    missing: int


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
    if scored.classes is not None:
        return score_classes(scored, scored.classes)

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
            uncertainty = crop_roi(read_uncertainty(i, pair.name, pair.mask.shape), roi)
            wrong = mask.astype(bool) != truth.astype(bool)
            error_counts += count_errors(uncertainty[inside], wrong[inside])

    return Scores(pd.DataFrame(rows), error_counts)


def score_classes(scored: Scored, classes: ClassPair) -> Scores:
    """Return the scores of label maps: of the pixels that are painted, where something was predicted.

    Slices in which nothing is painted are left out.
    """
    names = classes.truth.names
    read_uncertainty = uncertainty_reader(scored)
    roi = roi_of(scored.pred)
    sample = sample_beside(scored.pred, scored.are_files)

    tables = []
    confusion = np.zeros((len(names), len(names)), int)
    predicted, painted = [], []
    missing = 0
    error_counts = None if read_uncertainty is None else np.zeros((2, CODES), int)
    for i, pair in enumerate(label_pairs(scored.pred, scored.truth, classes, scored.are_files)):
        is_predicted = pair.predicted.copy()
        if sample is not None:
            is_predicted &= sample(i, pair.name).astype(bool)
        is_painted = crop_roi(pair.truth.painted, roi, str(pair.name))
        is_predicted = crop_roi(is_predicted, roi)
        prediction = crop_roi(pair.prediction, roi)
        counted = is_painted & is_predicted
        truth = Truth(crop_roi(pair.truth.classes, roi), counted)
        missing += int(np.count_nonzero(is_painted & ~is_predicted))
        if not counted.any():
            continue

        predictions = {"": [prediction]}
        tables.append(class_table(predictions, [truth], [pair.name.stem], names))
        confusion += confusion_matrix([prediction], [truth], len(names))
        predicted.append(class_shares(prediction, is_predicted, len(names)))
        painted.append(class_shares(truth.classes, counted, len(names)))
        if read_uncertainty is not None:
            uncertainty = crop_roi(read_uncertainty(i, pair.name, pair.prediction.shape), roi)
            wrong = prediction != truth.classes
            error_counts += count_errors(uncertainty[counted], wrong[counted])

    if not tables:
        raise InputError(
            f"{scored.truth}: nothing is painted where {scored.pred} was predicted; nothing to score"
        )
    of_classes = ClassScores(names, confusion, np.array(predicted), np.array(painted), missing)
    return Scores(pd.concat(tables).drop(columns="method"), error_counts, of_classes)


def count_particles(mask: np.ndarray, truth: np.ndarray, pixel_size: float) -> dict[str, float]:
    """Return number and median diameter [µm] of the particles of a predicted and a true mask."""
    row: dict[str, float] = {}
    for kind, image in (("predicted", mask), ("truth", truth)):
        particles = particle_table(image, pixel_size)
        row[f"particles_{kind}"] = len(particles)
        row[f"median_diameter_um_{kind}"] = particles["diameter"].median()
    return row


def uncertainty_reader(
    scored: Scored,
) -> Callable[[int, Path, tuple[int, ...]], np.ndarray] | None:
    """Return a reader of the uncertainty of a slice, by its number, name and shape; None where there is none."""
    if scored.uncertainty is None:
        return None
    volume = open_volume(scored.uncertainty)
    read = map_reader(volume)
    if not scored.are_files:
        refuse_unlike(volume, open_volume(scored.pred))
    places = {Path(name).stem: i for i, name in enumerate(volume.names)}

    def read_uncertainty(i: int, name: Path, shape: tuple[int, ...]) -> np.ndarray:
        place = places.get(name.stem) if scored.are_files else i
        uncertainty = None
        if place is not None and place < len(volume):
            uncertainty = read(place)
        if uncertainty is None or uncertainty.shape != shape:
            raise InputError(
                f"{scored.uncertainty}: has no map of {name} of {shape} px; give what "
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
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE.json",
        help="masks are label maps: names of their values or colours, where no classes.json in the "
        "data folder and no record of a prediction says them",
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


def refuse_foreground(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for options that have a meaning for binary masks alone."""
    for name in ("mask_foreground", "pred_foreground"):
        if getattr(arguments, name) != "auto":
            option = name.replace("_", "-")
            raise InputError(f"--{option}: has no meaning for label maps, whose classes are named")
    if arguments.pixel_size is not None:
        raise InputError(
            "--pixel-size: sizes are those of one class: evaluate.py particles MASKS --class NAME"
        )


def images_beside(truth: Path) -> Path | None:
    """Return the folder of the slices beside that of the true masks, where it has the usual name."""
    if truth.name != Path(MASKS).name:
        return None
    images = truth.with_name(Path(IMAGES).name)
    return images if images.is_dir() else None


def print_scores(scores: Scores) -> None:
    """Print a row per slice, then the means."""
    if scores.of_classes is not None:
        print_classes(scores.table, scores.of_classes)
        print_error_rates(scores)
        return

    table = scores.table
    print(table.to_string(index=False, float_format="{:.4f}".format, max_rows=MOST_ROWS))
    width = max(len(metric) for metric in METRICS)
    for metric in METRICS:
        interval = mean_interval(table[metric].to_numpy())
        line = f"mean {metric:{width}s} {interval['mean']:.4f}"
        if interval["low"] is not None:
            line += f"  95 % interval {interval['low']:.4f} – {interval['high']:.4f}"
        print(line)

    print_error_rates(scores)


def print_error_rates(scores: Scores) -> None:
    """Print whether uncertain pixels are the wrong ones, where that is known."""
    if scores.error_counts is not None:
        print(describe_error_rates(error_rates(scores.error_counts)))


def print_classes(table: pd.DataFrame, scores: ClassScores) -> None:
    """Print the scores of each class, their mean, which class is taken for which, and phase fractions."""
    names = scores.names
    means = mean_table(table.assign(method=""), names)
    rows = {}
    for name in names:
        of_class = table[table["class"] == name].dropna(subset=["dice"])
        rows[name] = {metric: describe_interval(of_class[metric]) for metric in METRICS}
        rows[name]["slices"] = str(len(of_class))
    without = f"mean without {names[0]}"
    rows[without] = {metric: describe_interval(means[metric]) for metric in METRICS}
    rows[without]["slices"] = str(len(means))
    print(pd.DataFrame(rows).T.to_string())

    print("\npainted pixels of each class (rows), and what they are taken for (columns), %")
    of_truth = np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
    shares = pd.DataFrame(100 * scores.confusion / of_truth, list(names), list(names))
    print(shares.to_string(float_format="{:.1f}".format))

    print(
        "\nfractions: of all that was predicted, with the interval over slices, beside the painted ones, %"
    )
    fractions = fraction_table(scores.predicted[None], scores.painted, names).set_index("class")
    print((100 * fractions).to_string(float_format="{:.2f}".format))
    if scores.missing:
        print(f"{scores.missing} painted pixels were not predicted, and are not scored")


def describe_interval(values: pd.Series) -> str:
    """Return a mean over slices with its interval in words."""
    if values.empty:
        return "–"
    interval = mean_interval(values.to_numpy())
    if interval["low"] is None:
        return f"{interval['mean']:.4f}"
    return f"{interval['mean']:.4f} ({interval['low']:.3f}–{interval['high']:.3f})"


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
    classes = find_class_pair(arguments.pred, arguments.truth, arguments.classes)
    if classes is not None:
        refuse_foreground(arguments)
    scored = Scored(
        arguments.pred, arguments.truth, foreground, arguments.uncertainty, size, classes
    )
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
