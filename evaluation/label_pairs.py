"""Predicted label maps beside true ones: of two folders or of two volumes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.class_metrics import Truth
from evaluation.mask_pairs import list_masks, pair_folders
from runtime.messages import InputError, quiet_bar
from slices.classes import Classes, read_classes
from slices.label_maps import LabelMap, LabelMaps, label_maps_of_files
from slices.masks import read_mask
from slices.reading import crop_roi
from volumes.reading import open_volume
from volumes.records import classes_beside, is_prediction
from volumes.volume import label_maps_of_volume, refuse_unlike, say_remarks


@dataclass(frozen=True)
class ClassPair:
    """The classes of predicted and of true label maps, which have the same names.

    Attributes
    ----------
    pred, truth : Classes
    """

    pred: Classes
    truth: Classes

    def place_in_truth(self, prediction: LabelMap) -> np.ndarray:
        """Return the classes of a predicted map by their place among the true ones: (H, W) uint8."""
        places = [self.truth.names.index(name) for name in self.pred.names]
        return np.array(places, np.uint8)[prediction.classes]


@dataclass(frozen=True, eq=False)
class LabelPair:
    """A predicted label map and the true one.

    Attributes
    ----------
    name : Path
        What messages and tables call the slice.
    prediction : (H, W) uint8 ndarray
        The class of each pixel, by its place among the true classes.
    predicted : (H, W) bool ndarray
        Where something was predicted.
    truth : LabelMap
    """

    name: Path
    prediction: np.ndarray
    predicted: np.ndarray
    truth: LabelMap


def find_class_pair(pred: Path, truth: Path, stated: Path | None) -> ClassPair | None:
    """Return the classes of what is compared; None where both sides are binary masks.

    Parameters
    ----------
    pred, truth : Path
        Folders or volumes of masks.
    stated : Path or None
        A `classes.json` for the side that has none of its own.

    Raises
    ------
    InputError
        When one side has classes and the other has none, or others.
    """
    named = None if stated is None else read_classes(stated)
    of_truth = classes_beside(truth) or named
    of_pred = classes_beside(pred)
    if of_pred is None and not is_prediction(pred):
        # They were made by another program, which says nothing of classes.
        of_pred = named or of_truth
    if of_pred is None and of_truth is None:
        return None
    if of_truth is None:
        raise InputError(
            f"{truth}: does not say what its values mean, but {pred} holds the classes "
            f"{of_pred.describe()}; name them with --classes FILE.json"
        )
    if of_pred is None:
        raise InputError(
            f"{pred}: holds binary masks, but {truth} label maps with the classes "
            f"{of_truth.describe()}; predict with a model that was trained for these"
        )
    if set(of_pred.names) != set(of_truth.names):
        raise InputError(
            f"{pred}: holds the classes {of_pred.describe()}, but {truth} {of_truth.describe()}; they "
            "must have the same names"
        )
    return ClassPair(of_pred, of_truth)


def label_pairs(
    pred: Path, truth: Path, classes: ClassPair, are_files: bool
) -> Iterator[LabelPair]:
    """Yield predicted label maps with the true ones, slice by slice; of two folders paired as `pair_files` does.

    Raises
    ------
    InputError
        For predictions without a partner, partners of another size, and as `read_label_map`.
    """
    if are_files:
        mask_of = pair_folders(list_masks(pred, "--pred"), list_masks(truth, "--truth"))
        names = list(mask_of)
        predicted = label_maps_of_files(names, classes.pred, may_be_empty=True)
        true = label_maps_of_files(list(mask_of.values()), classes.truth, may_be_empty=True)
    else:
        pred_volume, true_volume = open_volume(pred), open_volume(truth)
        refuse_unlike(pred_volume, true_volume)
        say_remarks(pred_volume, true_volume, are_stacked=True)
        stem = pred.name.partition(".")[0]
        names = [Path(f"{stem}_{i:04d}") for i in range(len(pred_volume))]
        predicted = label_maps_of_volume(pred_volume, classes.pred)
        true = label_maps_of_volume(true_volume, classes.truth)

    for i in quiet_bar(range(len(names)), "evaluate"):
        yield pair_of(names[i], predicted, true, i, classes)


def pair_of(
    name: Path, predicted: LabelMaps, true: LabelMaps, i: int, classes: ClassPair
) -> LabelPair:
    """Return one slice of both sides; `InputError` where they are of different sizes."""
    prediction, truth = predicted[i], true[i]
    if prediction.classes.shape != truth.classes.shape:
        raise InputError(
            f"{name}: is {prediction.classes.shape} px, {true.names[i]} {truth.classes.shape}; they must "
            "be of one size"
        )
    return LabelPair(name, classes.place_in_truth(prediction), prediction.painted, truth)


def read_truth(
    file: Path, classes: Classes | None, roi: tuple[int, int, int, int] | None = None
) -> Truth:
    """Return what a single file says of a slice.

    Parameters
    ----------
    file : Path
        A binary mask, or a label map.
    classes : Classes or None
        Of the label map; None of a mask.
    roi : (row, end row, column, end column), or None
        What is looked at [px].

    Raises
    ------
    InputError
        When it cannot be read, or ends before the ROI does.
    """
    if classes is None:
        return Truth(crop_roi(read_mask(file), roi, str(file)))
    one = label_maps_of_files([file], classes)[0]
    painted = None if one.painted.all() else crop_roi(one.painted, roi, str(file))
    return Truth(crop_roi(one.classes, roi, str(file)), painted)
