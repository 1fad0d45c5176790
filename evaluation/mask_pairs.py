"""Predicted masks beside true ones: of two folders or of two volumes, and where they show the sample."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.messages import InputError, quiet_bar
from slices.masks import Masks, masks_of_files
from slices.pairing import pair_files
from slices.plausibility import notes_on_pairs
from slices.reading import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files
from volumes.reading import open_volume
from volumes.records import inside_file
from volumes.volume import (
    masks_of_volume,
    of_one_size,
    plain_name,
    refuse_unlike,
    say_remarks,
)

PRED_OPTION = "--pred-foreground"


@dataclass(frozen=True)
class Foreground:
    """What is foreground in predicted and in true masks.

    Attributes
    ----------
    pred, truth : {"auto", "dark", "bright", "labels"}
        As in `slices.mask_values.MaskInfo`.
    images : Path or None
        The folder or volume of the slices that true masks are painted copies of, where it is known.
    """

    pred: str = "auto"
    truth: str = "auto"
    images: Path | None = None


@dataclass(frozen=True, eq=False)
class MaskPair:
    """A predicted mask and the true one.

    Attributes
    ----------
    name : Path
        What messages and tables call the slice.
    mask, truth : (H, W) uint8 ndarrays
        1 for foreground.
    """

    name: Path
    mask: np.ndarray
    truth: np.ndarray


# --- of folders -----------------------------------------------------------------------------------


def folder_pairs(
    pred: Path, truth: Path, foreground: Foreground = Foreground()
) -> Iterator[MaskPair]:
    """Yield the masks of two folders, paired as `pair_files` does.

    Raises
    ------
    InputError
        For predictions without a partner, partners of another size, and as `slices.masks.Masks`.
    """
    mask_of = pair_folders(list_masks(pred, "--pred"), list_masks(truth, "--truth"))
    predicted_files = list(mask_of)
    true_files = list(mask_of.values())
    predicted = masks_of_files(predicted_files, foreground.pred, option=PRED_OPTION)
    true = read_true_masks(true_files, foreground)
    for i, file in enumerate(predicted_files):
        pair = MaskPair(file, predicted[i], true[i])
        if pair.mask.shape != pair.truth.shape:
            raise InputError(
                f"{file}: is {pair.mask.shape} px, {true_files[i]} {pair.truth.shape}; they must be "
                "of one size"
            )
        yield pair


def list_masks(folder: Path, option: str) -> list[Path]:
    """Return the masks in a folder; `InputError` where there are none."""
    files = list_files(folder, MASK_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no mask found ({', '.join(MASK_SUFFIXES)}); check {option}")
    return files


def pair_folders(predicted: list[Path], true: list[Path]) -> dict[Path, Path]:
    """Return the true mask of each predicted one; the truth may hold more slices."""
    pairing = pair_files(predicted, true)
    for file in predicted:
        if file not in pairing.mask_of:
            raise InputError(next(line for line in pairing.problems if file.name in line))
    for line in notes_on_pairs(pairing):
        print(line, file=sys.stderr)
    return pairing.mask_of


def read_true_masks(files: list[Path], foreground: Foreground) -> Masks:
    """Return true masks, which may be painted copies of slices in another folder."""
    image_of = {}
    if foreground.images is not None:
        images = list_files(foreground.images)
        if not images:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise InputError(f"{foreground.images}: no slice found ({suffixes}); check --images")
        mask_of = pair_files(images, files).mask_of
        image_of = {mask: image for image, mask in mask_of.items()}

    return masks_of_files(files, foreground.truth, [image_of.get(file) for file in files])


# --- of volumes -----------------------------------------------------------------------------------


def volume_pairs(
    pred: Path, truth: Path, foreground: Foreground = Foreground()
) -> Iterator[MaskPair]:
    """Yield the masks in the slices of two volumes; `InputError` where they differ in shape."""
    predicted = open_volume(pred)
    true = open_volume(truth)
    refuse_unlike(predicted, true)
    say_remarks(predicted, true, are_stacked=True)
    image = None
    if foreground.images is not None:
        image = open_volume(foreground.images)
        refuse_unlike(image, true)

    masks = masks_of_volume(predicted, foreground.pred, option=PRED_OPTION)
    true_masks = masks_of_volume(true, foreground.truth, image)
    read = of_one_size(masks, predicted.slice_shape)
    read_true = of_one_size(true_masks, true.slice_shape)
    stem = pred.name.partition(".")[0]
    for i in quiet_bar(range(len(predicted)), "evaluate"):
        yield MaskPair(Path(f"{stem}_{i:04d}"), read(i), read_true(i))


# --- where there is sample ------------------------------------------------------------------------


def sample_beside(pred: Path, are_files: bool) -> Callable[[int, Path], np.ndarray] | None:
    """Return a reader of where a predicted slice shows the sample, by its number and name; None for everywhere.

    `predict.py` writes that beside its masks.

    Parameters
    ----------
    pred : Path
        The predicted masks.
    are_files : bool
        Whether these are files of a folder, and found by name, or slices of a volume.
    """
    path = inside_file(pred)
    if path is None:
        return None
    volume = open_volume(path)
    masks = masks_of_volume(volume)
    places = {plain_name(Path(name)): i for i, name in enumerate(volume.names)}

    def read(i: int, name: Path) -> np.ndarray:
        place = places.get(plain_name(name)) if are_files else i
        if place is None or place >= len(masks):
            raise InputError(
                f"{path}: does not say where {name} shows the sample; predict again, or remove it"
            )
        return masks[place]

    return read
