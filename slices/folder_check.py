"""Check a data folder file by file: every problem is one line."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.files import read_json
from runtime.messages import InputError, quiet_bar
from slices.class_notes import describe_paint, notes_on_colours, painted_classes
from slices.classes import CLASSES_FILE, Classes, find_classes
from slices.copies import fingerprint
from slices.data_folder import load_scans, load_slice, no_slice_found, read_map_of
from slices.label_maps import suggest_classes
from slices.masks import Masks, describe_rule, masks_of_files
from slices.options import IMAGES, MASKS, UNLABELLED, Reading
from slices.pairing import pair_files
from slices.pictures import read_picture
from slices.plausibility import (
    notes_on_borders,
    notes_on_equal_masks,
    notes_on_outlines,
    refuse_paint_in_padding,
    refuse_strangers,
)
from slices.reading import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Slice,
    is_clutter,
    list_files,
    plain_text,
)
from slices.splits import known_stems, split_problems

MUCH = 0.8  # share of foreground from which on a mask is asked about even if all are so


@dataclass(frozen=True)
class Check:
    """What is wrong with a data folder, and how its masks are read: lines of text."""

    problems: list[str]
    masks: list[str]


def check_data(root: Path, reading: Reading = Reading()) -> Check:
    """Return every problem of a data folder, one line each, by file, and what each mask was taken for."""
    root = Path(root)
    images = list_files(root / IMAGES)
    mask_files = list_files(root / MASKS, MASK_SUFFIXES)
    scans = list_files(root / UNLABELLED)

    problems = unread_files(root, {*images, *mask_files, *scans})
    if not images:
        problems.append(no_slice_found(root))
    for files in (images, mask_files, scans):
        problems += equal_stems(files)

    labelled, problems_of_images = read_all(images, reading)
    sizes = {one.image.shape for one in labelled.values()}
    unlabelled, problems_of_scans = read_all_scans(scans, reading, sizes)
    problems += problems_of_images
    problems += problems_of_scans
    problems += notes_on_borders([*labelled.values(), *(one.slice for one in unlabelled)])
    problems += equal_slices(labelled.values(), unlabelled)

    pairing = pair_files(images, mask_files)
    image_of = {mask: image for image, mask in pairing.mask_of.items()}
    readable = {
        file: labelled[image_of[file]] for file in mask_files if image_of.get(file) in labelled
    }
    check = check_paint(root, readable, reading)
    problems += check.problems
    problems += check_split(root, images)
    problems += pairing.problems
    return Check(problems, check.masks)


# --- files ----------------------------------------------------------------------------------------


def unread_files(root: Path, known: set[Path]) -> list[str]:
    """Return a line for each file that looks as if it should be read, and is not."""
    lines = []
    folders = {IMAGES: IMAGE_SUFFIXES, MASKS: MASK_SUFFIXES, UNLABELLED: IMAGE_SUFFIXES}
    for folder, suffixes in folders.items():
        for path in sorted((root / folder).glob("*")):
            if path not in known and not is_clutter(path):
                lines.append(f"{path}: is not read; only {', '.join(suffixes)} are")

    return lines


def equal_stems(files: list[Path]) -> list[str]:
    """Return a line for each stem that several files of one folder have."""
    lines = []
    ordered = sorted(files, key=lambda path: (path.stem, path.name))
    for _, group in itertools.groupby(ordered, lambda path: path.stem):
        first, *others = group
        if others:
            names = ", ".join(path.name for path in others)
            lines.append(f"{first}: same stem as {names}; keep one of them")

    return lines


# --- slices ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckedScan:
    """An unlabelled slice without its pixels, of which only the fingerprint is kept in memory."""

    slice: Slice
    fingerprint: tuple


def read_all(images: list[Path], reading: Reading) -> tuple[dict[Path, Slice], list[str]]:
    """Return the labelled slices that can be read, and a line for each of the others."""
    slices = {}
    problems = []
    for path in quiet_bar(images, "check"):
        try:
            slices[path] = load_slice(path, reading)
        except InputError as error:
            problems.append(str(error))

    return slices, problems


def read_all_scans(
    scans: list[Path], reading: Reading, sizes: set[tuple[int, int]]
) -> tuple[list[CheckedScan], list[str]]:
    """Return the unlabelled slices that can be read, and a line for each of the others.

    Blank ones are no problem: training leaves them out.
    """
    checked = []
    problems = []
    no_pixels = np.zeros((0, 0), np.uint8)
    for path in quiet_bar(scans, "check"):
        try:
            slices, _ = load_scans([path], reading, sizes, held_out=[])
        except InputError as error:
            problems.append(str(error))
            continue
        for one in slices:
            light = replace(one, image=no_pixels, outside=None)
            checked.append(CheckedScan(light, fingerprint(one.image)))

    return checked, problems


def equal_slices(labelled: Iterable[Slice], unlabelled: list[CheckedScan]) -> list[str]:
    """Return a line for each group of slices with the same pixels."""
    groups: dict[tuple, list[Path]] = {}
    for one in labelled:
        groups.setdefault(fingerprint(one.image), []).append(one.path)
    for scan in unlabelled:
        groups.setdefault(scan.fingerprint, []).append(scan.slice.path)

    lines = []
    for first, *others in groups.values():
        if others:
            names = ", ".join(path.name for path in others)
            lines.append(f"{first}: same pixels as {names}; keep one of them")

    return lines


# --- masks ----------------------------------------------------------------------------------------


def check_paint(root: Path, readable: dict[Path, Slice], reading: Reading) -> Check:
    """Return the problems of the masks or label maps of slices that can be read.

    Parameters
    ----------
    root : Path
        The data folder.
    readable : dict of Path to Slice
        The slices by the files of their masks.
    reading : Reading
    """
    try:
        classes = find_classes(root)
    except InputError as error:
        return Check([str(error)], [])
    if classes is not None:
        return check_label_maps(root, readable, classes, reading)

    return check_masks(root, readable, reading)


def check_masks(root: Path, readable: dict[Path, Slice], reading: Reading) -> Check:
    """Return the problems of the binary masks of slices that can be read, and what each was taken for."""
    files = list(readable)
    images = [one.path for one in readable.values()]
    masks = masks_of_files(files, reading.mask_foreground, images)

    problems = []
    contents = {}
    for i, file in enumerate(files):
        try:
            contents[file] = masks[i]
        except InputError as error:
            problems.append(str(error))
    if problems:
        # What is no binary mask may be a label map.
        problems += notes_on_missing_classes(root, files)

    painted = {}
    for file, mask in contents.items():
        one = readable[file]
        try:
            refuse_paint_in_padding(one, mask, file, reading)
            painted[file] = one.with_mask(mask)
        except InputError as error:
            problems.append(str(error))
            # All of the paint is judged, else the mask would seem empty.
            painted[file] = replace(one, mask=mask)

    inside_sample = {file: one.mask for file, one in painted.items()}
    problems += problems_of_masks(inside_sample, reading)
    try:
        refuse_strangers(list(painted.values()), reading)
    except InputError as error:
        problems.append(str(error))

    return Check(problems, describe_masks(masks, inside_sample))


def check_label_maps(
    root: Path, readable: dict[Path, Slice], classes: Classes, reading: Reading
) -> Check:
    """Return the problems of the label maps of slices that can be read, and how much of each is painted."""
    problems = []
    painted = {}
    values = {}
    contents = {}
    for file, one in readable.items():
        try:
            label_map = read_map_of(file, one, classes, reading)
        except InputError as error:
            problems.append(str(error))
            continue
        contents[file] = label_map
        values[file] = label_map.classes + label_map.painted
        painted[file] = one.with_mask(label_map.classes, label_map.painted)

    problems += notes_on_equal_masks(values)
    in_slices = painted_classes(list(painted.values()), classes)
    for index, name in enumerate(classes.names):
        if painted and index not in in_slices:
            problems.append(
                f"{root / CLASSES_FILE}: names {name} ({classes.keys()[index]}), of which no pixel is "
                "painted; paint some, or take the name out"
            )
    try:
        refuse_strangers(list(painted.values()), reading)
    except InputError as error:
        problems.append(str(error))

    lines = [f"classes: {classes.describe()}; {classes.names[0]} is the background"]
    lines += notes_on_colours(contents)
    for file, one in painted.items():
        lines.append(f"  {file.name}: {describe_paint(one, classes)}")
    return Check(problems, lines)


def notes_on_missing_classes(root: Path, files: list[Path]) -> list[str]:
    """Return a line where masks look like label maps, and the data folder names no classes."""
    pictures = []
    for file in files:
        try:
            pictures.append(read_picture(file))
        except InputError:
            continue
    line = suggest_classes(pictures)
    if line is None:
        return []
    of_one, not_labelled, otherwise = "value", "0", "add 1 to all values"
    if "#" in line:
        of_one, not_labelled, otherwise = "colour", "black", 'name "#000000" as well'
    return [
        f"{root / CLASSES_FILE}: missing; masks look like label maps, where {not_labelled} is not labelled "
        f"and every other {of_one} a class: if they are, write this file "
        f"with {line} and names of your own, the background first; if {not_labelled} is a class, too, "
        f"{otherwise}"
    ]


def problems_of_masks(masks: dict[Path, np.ndarray], reading: Reading) -> list[str]:
    """Return a line for each mask that is empty, full, a copy, of outlines, or likely inverted."""
    problems = []
    for file, mask in masks.items():
        if mask.min() == mask.max():
            kind = "full" if mask.max() else "empty"
            problems.append(
                f"{file}: mask is {kind}; right if the slice really is so, else paint it again"
            )

    problems += notes_on_equal_masks(masks)
    problems += notes_on_outlines(masks)
    problems += problems_of_shares(masks, reading)
    return problems


def problems_of_shares(masks: dict[Path, np.ndarray], reading: Reading) -> list[str]:
    """Return a line for each mask with so much foreground that it is likely inverted."""
    if not masks:
        return []
    shares = {file: float(mask.mean()) for file, mask in masks.items()}
    usual = np.median(list(shares.values()))

    problems = []
    for file, share in shares.items():
        if not 0.5 < share < 1:
            continue
        if usual < 0.5:
            problems.append(
                f"{file}: {share:.0%} of the slice is foreground, of most others less than half; "
                "right if the material is so, else inverted: save it the other way round"
            )
        elif share > MUCH:
            cure = "save it the other way round"
            if reading.mask_foreground == "auto":
                cure += ", or --mask-foreground dark"
            problems.append(
                f"{file}: {share:.0%} of the slice is foreground; right if the material is so, else "
                f"inverted: {cure}"
            )

    return problems


def describe_masks(masks: Masks, contents: dict[Path, np.ndarray]) -> list[str]:
    """Return the rule by which the masks of a folder were read, and the share of foreground of each."""
    if not contents:
        return []
    rule = masks.rule
    if rule.name:
        lines = [f"masks: {Path(rule.name).name} {describe_rule(rule)}"]
    else:
        lines = ["all masks are empty"]

    for file, mask in contents.items():
        lines.append(f"  {file.name}: {mask.mean():.1%} foreground")
    return lines


# --- split ----------------------------------------------------------------------------------------


def check_split(root: Path, images: list[Path]) -> list[str]:
    """Return the problems of the split that stands in a data folder; none where there is none."""
    split = root / "splits" / "split.json"
    if not split.exists():
        return []
    stems = [plain_text(path.stem) for path in images]
    try:
        stated = known_stems(read_json(split), stems)
        return [f"{split}: {line}" for line in split_problems(stated, stems)]
    except InputError as error:
        return [str(error)]
