"""What speaks against label maps, or should be known of them: notes, and errors that ask."""

from pathlib import Path

import numpy as np

from runtime.messages import InputError
from slices.classes import CLASSES_FILE, Classes
from slices.label_maps import MOST_SHOWN, LabelMap
from slices.options import MASKS
from slices.reading import Slice

# Share of a mask that a colour without a name fills, from which on the check says so.
LEAST_UNNAMED = 0.01


def painted_classes(slices: list[Slice], classes: Classes) -> list[int]:
    """Return which classes are painted in some slices, by their place."""
    pixels = count_pixels(slices, classes)
    return [int(index) for index in np.flatnonzero(pixels)]


def count_pixels(slices: list[Slice], classes: Classes) -> np.ndarray:
    """Return how many pixels of each class are painted in some slices: (K,) int."""
    pixels = np.zeros(len(classes), int)
    for s in slices:
        pixels += np.bincount(s.mask[s.counted], minlength=len(classes))
    return pixels


def refuse_single_class(train: list[Slice], classes: Classes, root: Path) -> None:
    """Raise `InputError` where fewer than two classes are painted in the training slices."""
    painted = painted_classes(train, classes)
    if len(painted) >= 2:
        return
    what = f"nothing but {classes.names[painted[0]]}" if painted else "nothing"
    raise InputError(
        f"{root / MASKS}: {what} is painted in all {len(train)} training slices; paint a second class "
        f"({classes.describe()}), there is nothing to tell apart"
    )


def notes_on_absent_classes(parts: dict[str, list[Slice]], classes: Classes) -> list[str]:
    """Return a line for each class that is named, and painted in no training, or in no test slice."""
    lines = []
    in_train = painted_classes(parts["train"], classes)
    in_test = painted_classes(parts["test"], classes)
    for index, name in enumerate(classes.names):
        if index not in in_train:
            lines.append(
                f"{name}: is painted in no training slice, so it is learned by nobody, and predicted "
                "nowhere"
            )
        elif parts["test"] and index not in in_test:
            lines.append(f"{name}: is painted in no test slice, so it has no score")
    return lines


def notes_on_colours(label_maps: dict[Path, LabelMap]) -> list[str]:
    """Return a line where colours without a name fill a part of the masks: they are not labelled."""
    shares: dict[str, float] = {}
    first: dict[str, Path] = {}
    for path, label_map in label_maps.items():
        for colour, share in label_map.unnamed.items():
            if share >= LEAST_UNNAMED:
                shares[colour] = shares.get(colour, 0.0) + share / len(label_maps)
                first.setdefault(colour, path)
    if not shares:
        return []

    frequent = sorted(shares, key=lambda colour: -shares[colour])[:MOST_SHOWN]
    shown = ", ".join(f"{colour} {shares[colour]:.0%}" for colour in frequent)
    return [
        f"{first[frequent[0]]}: colours that {CLASSES_FILE} does not name are not labelled: {shown} of "
        f"the {len(label_maps)} masks"
    ]


def describe_paint(s: Slice, classes: Classes) -> str:
    """Return in words how much of a slice is painted, and with what."""
    pixels = count_pixels([s], classes)
    painted = pixels.sum()
    sample = np.count_nonzero(s.inside)
    parts = []
    for index in np.flatnonzero(pixels):
        parts.append(f"{classes.names[index]} {pixels[index] / painted:.1%}")
    return f"{painted / max(1, sample):.1%} painted: {', '.join(parts) or 'nothing'}"


def sum_up_paint(slices: list[Slice], classes: Classes) -> str:
    """Return in words how much of some slices is painted, and with what, all together."""
    shares = [float(np.mean(s.counted[s.inside])) for s in slices if s.inside.any()]
    pixels = count_pixels(slices, classes)
    of_classes = pixels / max(1, pixels.sum())
    parts = [f"{name} {share:.1%}" for name, share in zip(classes.names, of_classes, strict=True)]
    least, most = min(shares), max(shares)
    if least == 1:
        painted = "all of them painted"
    elif f"{least:.1%}" == f"{most:.1%}":
        painted = f"{least:.1%} of each painted"
    else:
        painted = f"{least:.1%}–{most:.1%} of each painted"
    return f"{painted} ({', '.join(parts)})"
