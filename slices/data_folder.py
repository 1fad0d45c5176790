"""A data folder, read for training.

DATA/labeled/Original_images    painted slices
DATA/labeled/Original_masks     their masks
DATA/unlabeled                  all other slices
DATA/splits/split.json          which slices train, choose the checkpoint, and test
DATA/classes.json               where masks are label maps: what their values or colours mean
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.messages import InputError, quiet_bar
from slices.class_notes import (
    notes_on_absent_classes,
    notes_on_colours,
    refuse_single_class,
    sum_up_paint,
)
from slices.classes import CLASSES_FILE, Classes, find_classes
from slices.copies import is_same_picture
from slices.label_maps import LabelMap, label_maps_of_files, paint_without_rim
from slices.masks import masks_of_files
from slices.options import IMAGES, MASKS, UNLABELLED, DataOptions, Reading
from slices.padding import find_flat_border
from slices.pairing import Pairing, pair_files
from slices.plausibility import (
    notes_on_blank,
    notes_on_borders,
    notes_on_empty_validation,
    notes_on_equal_masks,
    notes_on_outlines,
    notes_on_pairs,
    notes_on_unused,
    refuse_one_class,
    refuse_paint_in_padding,
    refuse_strangers,
    refuse_twins,
)
from slices.reading import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Slice,
    evenly_spaced,
    list_files,
    read_array,
)
from slices.splits import PARTS, make_split
from slices.windows import Grey, apply_window, find_window, grey_limits, read_grey


@dataclass(frozen=True)
class Data:
    """Preprocessed slices by role, and what was noticed while they were read.

    `unlabelled` never holds a validation or test slice. It also holds training slices that are
    painted only in part, as if they were not painted at all. Where a folder has no other slices, the
    training images serve as such.

    `classes` are those of label maps; None where masks are binary. `is_painted_in_part` says whether
    some of the training slices are, by hand: not only because of their rims (`Reading.rim`).
    """

    train: list[Slice]
    val: list[Slice]
    test: list[Slice]
    unlabelled: list[Slice]
    notes: tuple[str, ...] = ()
    classes: Classes | None = None
    is_painted_in_part: bool = False

    @property
    def class_count(self) -> int:
        """How many classes there are, with the background: 2 where masks are binary."""
        return 2 if self.classes is None else len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of label maps; none where masks are binary."""
        return () if self.classes is None else self.classes.names

    @property
    def labelled(self) -> list[Slice]:
        """All slices with a mask."""
        return [*self.train, *self.val, *self.test]

    @property
    def roles(self) -> dict[str, list[Slice]]:
        """The slices by the name of their role."""
        return {
            "train": self.train,
            "val": self.val,
            "test": self.test,
            "unlabelled": self.unlabelled,
        }

    @property
    def can_choose(self) -> bool:
        """Whether validation slices tell good weights from bad ones: at least one has foreground."""
        return any(s.mask.any() for s in self.val)


# --- reading for training -------------------------------------------------------------------------


def load_data(root: Path, options: DataOptions = DataOptions()) -> Data:
    """Read a data folder once; everything later works on what this returns.

    Parameters
    ----------
    root : Path
        Folder with `labeled/Original_images`, `labeled/Original_masks` and, where there is one,
        `unlabeled`.
    options : DataOptions

    Raises
    ------
    InputError
        For whatever cannot be read, paired or split, for masks that do not agree with their images,
        and where no training slice has foreground, or all of them nothing else.
    """
    root = Path(root)
    reading = options.reading
    classes = find_classes(root)
    pairing = pair_labelled(root)
    if classes is None:
        labelled, notes = load_binary(pairing, reading)
    else:
        labelled, notes = load_label_maps(pairing, reading, classes)

    notes = notes_on_pairs(pairing) + notes
    scans = chosen_scans(root, options.max_unlabelled)

    # Who trains, chooses and tests.
    split = make_split(root, list(labelled), options.split)
    parts = {part: [labelled[stem] for stem in split[part]] for part in PARTS}
    used = {stem for stems in split.values() for stem in stems}
    unused = [stem for stem in labelled if stem not in used]
    refuse_twins(parts)

    with_label = keep_labels(parts["train"], options.labels)
    train = [slice_without_rim(s, reading.rim) for s in with_label]
    if classes is None:
        refuse_one_class(train, root)
    else:
        refuse_single_class(train, classes, root)
        notes += notes_on_absent_classes({**parts, "train": train}, classes)

    # What nobody has labelled: scans, training slices that a smaller number of labels leaves over,
    # and what lies between the paint of the others.
    without_label = [s.without_mask() for s in parts["train"] if s not in with_label]
    partly_painted = [s.without_mask() for s in train if s.painted is not None]
    sizes = {s.image.shape for s in labelled.values()}
    held_out = [*parts["val"], *parts["test"]]
    read, blank = load_scans(scans, reading, sizes, held_out)
    unlabelled = [*without_label, *partly_painted, *read]
    if not unlabelled:
        unlabelled = [s.without_mask() for s in train]

    notes += notes_on_unused(root, unused)
    notes += notes_on_borders([*labelled.values(), *read])
    notes += notes_on_blank(blank, len(scans))
    notes += notes_on_empty_validation(parts["val"])
    return Data(
        train,
        parts["val"],
        parts["test"],
        unlabelled,
        tuple(notes),
        classes,
        is_painted_in_part=any(s.painted is not None for s in with_label),
    )


def load_binary(pairing: Pairing, reading: Reading) -> tuple[dict[str, Slice], list[str]]:
    """Return the labelled slices with binary masks by stem, and what is noticed about these."""
    labelled = load_labelled(pairing, reading)
    masks = {s.path: s.mask for s in labelled.values()}
    notes = refuse_strangers(list(labelled.values()), reading)
    notes += notes_on_equal_masks(masks)
    notes += notes_on_outlines(masks)
    return labelled, notes


def load_labelled(pairing: Pairing, reading: Reading) -> dict[str, Slice]:
    """Return the labelled slices with binary masks by stem, windowed and binarised."""
    images = list(pairing.mask_of)
    files = list(pairing.mask_of.values())
    masks = masks_of_files(files, reading.mask_foreground, images)

    labelled: dict[str, Slice] = {}
    for i, path in enumerate(images):
        one = load_slice(path, reading)
        mask = masks[i]
        refuse_equal_stem(one, labelled)
        refuse_paint_in_padding(one, mask, files[i], reading)
        labelled[one.stem] = one.with_mask(mask)

    return labelled


def load_label_maps(
    pairing: Pairing, reading: Reading, classes: Classes
) -> tuple[dict[str, Slice], list[str]]:
    """Return the labelled slices with label maps by stem, and what is noticed about these."""
    labelled: dict[str, Slice] = {}
    contents = {}
    for path, file in pairing.mask_of.items():
        one = load_slice(path, reading)
        refuse_equal_stem(one, labelled)
        contents[file] = read_map_of(file, one, classes, reading)
        labelled[one.stem] = one.with_mask(contents[file].classes, contents[file].painted)

    values = {file: m.classes + m.painted for file, m in contents.items()}
    notes = refuse_strangers(list(labelled.values()), reading)
    notes += notes_on_equal_masks(values)
    notes += notes_on_colours(contents)
    return labelled, notes


def read_map_of(file: Path, one: Slice, classes: Classes, reading: Reading) -> LabelMap:
    """Return the label map of a slice.

    Raises
    ------
    InputError
        As `slices.label_maps.read_label_map`; and where it is of another size than the slice, or its
        paint lies outside the sample.
    """
    label_map = label_maps_of_files([file], classes, [one.image.shape])[0]
    refuse_paint_in_padding(one, label_map.classes, file, reading)
    if not (label_map.painted & one.inside).any():
        raise InputError(
            f"{file}: all of its paint lies outside the sample; paint some inside, or, if that is "
            "sample, set --outside none"
        )
    return label_map


def refuse_equal_stem(one: Slice, labelled: dict[str, Slice]) -> None:
    """Raise `InputError` where another labelled slice has the same stem."""
    if one.stem in labelled:
        twin = labelled[one.stem].path.name
        raise InputError(f"{one.path}: has the stem of {twin}; keep one of them")


def slice_without_rim(s: Slice, width: int) -> Slice:
    """Return a slice whose paint within so many pixels of another class counts as not painted.

    Raises
    ------
    InputError
        When nothing is left of it.
    """
    if width == 0:
        return s
    painted = paint_without_rim(s.mask, s.counted, width)
    if not painted.any():
        raise InputError(f"--rim {width}: leaves no paint in {s.path}; choose a smaller one")
    return s.with_mask(s.mask * painted, painted)


def pair_labelled(root: Path) -> Pairing:
    """Return which mask belongs to which labelled slice of a data folder.

    Raises
    ------
    InputError
        When there is no such folder, no slice in it, or a slice whose mask is missing or in doubt.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; `python demo_data.py --output {root}` makes demo data there"
        )

    images = list_files(root / IMAGES)
    masks = list_files(root / MASKS, MASK_SUFFIXES)
    if not images:
        raise InputError(no_slice_found(root))
    pairing = pair_files(images, masks)
    if pairing.problems:
        raise InputError(pairing.problems[0])
    return pairing


def no_slice_found(root: Path) -> str:
    """Return in words that a data folder has no labelled slice."""
    suffixes = ", ".join(IMAGE_SUFFIXES)
    return f"{root / IMAGES}: no slice found ({suffixes}); put the labelled slices there"


def keep_labels(train: list[Slice], labels: int) -> list[Slice]:
    """Return the training slices that keep their label: so many, or all for 0."""
    if labels > len(train):
        raise InputError(f"--labels {labels}: there are {len(train)} training slices")
    return evenly_spaced(train, labels or len(train))


def chosen_scans(root: Path, max_unlabelled: int) -> list[Path]:
    """Return the unlabelled scans that are read: so many, or all for 0."""
    scans = list_files(root / UNLABELLED)
    return evenly_spaced(scans, max_unlabelled or len(scans))


def load_slice(path: Path, reading: Reading) -> Slice:
    """Return one slice in 8 bit; `InputError` where there is nothing to see."""
    grey = read_grey(path, reading.outside)
    if grey.outside is not None and grey.outside.all():
        raise InputError(
            f"{path}: lies outside the sample altogether, every pixel is {grey.value:g}; nothing to "
            "segment, remove it"
        )

    limits = find_window(grey, reading.percentiles, str(path))
    return window_slice(path, grey, limits, reading)


def load_scans(
    scans: list[Path], reading: Reading, sizes: set[tuple[int, int]], held_out: list[Slice]
) -> tuple[list[Slice], list[Path]]:
    """Return the unlabelled slices, and the files of those in which there is nothing to see.

    Parameters
    ----------
    scans : list of Path
    reading : Reading
    sizes : set of (height, width)
        Of the labelled slices: scans of these sizes are not cropped.
    held_out : list of Slice
        Validation and test slices.

    Raises
    ------
    InputError
        Where a scan has the pixels of a slice that is held out.
    """
    slices = []
    blank = []
    for path in quiet_bar(scans, "read"):
        grey = crop_scan(path, reading, sizes)
        low, high = grey_limits(grey, reading.percentiles, str(path))
        if not high > low:
            blank.append(path)
            continue
        one = window_slice(path, grey, (low, high), reading)
        for held in held_out:
            if is_same_picture(held.image, one.image):
                raise InputError(
                    f"{path}: has the pixels of {held.stem}, a validation or test slice; remove it "
                    "from the unlabelled"
                )
        slices.append(one)

    return slices, blank


def crop_scan(path: Path, reading: Reading, sizes: set[tuple[int, int]]) -> Grey:
    """Return an unlabelled scan, cropped to the ROI unless it has one of the `sizes` of the labelled slices."""
    grey = read_grey(path, reading.outside)
    if grey.image.shape in sizes:
        return grey
    return grey.crop(reading.roi, str(path))


def window_slice(path: Path, grey: Grey, limits: tuple[float, float], reading: Reading) -> Slice:
    """Return a slice in 8 bit, the grey values at its limits as 0 and 255."""
    flat_border = None
    if reading.outside == "auto":
        flat_border = find_flat_border(grey.image, grey.outside)
    image = apply_window(grey, *limits)
    return Slice(path, image, outside=grey.outside, limits=limits, flat_border=flat_border)


def used_files(root: Path, split: str = "auto", max_unlabelled: int = 0) -> dict[str, Path]:
    """Return the files that `load_data` reads with these settings, by their names in the folder."""
    root = Path(root)
    files = [
        *list_files(root / IMAGES),
        *list_files(root / MASKS, MASK_SUFFIXES),
        *chosen_scans(root, max_unlabelled),
    ]
    if (root / CLASSES_FILE).exists():
        files.append(root / CLASSES_FILE)
    if split not in ("random", "blocks"):
        stated = root / "splits" / "split.json" if split == "auto" else Path(split)
        if stated.is_file():
            files.append(stated)

    names = {}
    for path in files:
        inside = path.is_relative_to(root)
        name = str(path.relative_to(root)) if inside else path.name
        names[name] = path

    return names


# --- what was read --------------------------------------------------------------------------------


def describe_data(data: Data) -> dict:
    """Return stems by role, a hash of every pixel that training and evaluation see, and the classes."""
    pixels = hashlib.sha256()
    for slices in data.roles.values():
        for s in slices:
            for array in (s.image, s.mask, s.outside, s.painted):
                if array is not None:
                    pixels.update(array.tobytes())

    described: dict = {role: [s.stem for s in slices] for role, slices in data.roles.items()}
    described["sha256"] = pixels.hexdigest()
    if data.classes is not None:
        described["classes"] = data.classes.record()
    return described


def sum_up(data: Data) -> str:
    """Return in words how much there is of what.

    So it shows before anything is trained what a folder was taken for.
    """
    labelled = data.labelled
    shapes = ", ".join(dict.fromkeys(size_of(s.image) for s in labelled))
    plural = "s" if len(labelled) > 1 else ""
    if data.classes is None:
        shares = [100 * s.mask.mean() for s in labelled]
        content = f"{min(shares):.0f}–{max(shares):.0f} % foreground"
    else:
        content = sum_up_paint(labelled, data.classes)
    return (
        f"{len(labelled)} labelled slice{plural} of {shapes} px, {content}: {len(data.train)} to train "
        f"on, {len(data.val)} to choose the checkpoint, {len(data.test)} to test; "
        f"{sum_up_unlabelled(data)}{sum_up_padding(data)}"
    )


def size_of(array: np.ndarray) -> str:
    """Return height × width of an array in words."""
    return f"{array.shape[0]}×{array.shape[1]}"


def sum_up_unlabelled(data: Data) -> str:
    """Return in words how many unlabelled slices there are, and whether they were cut."""
    partly_painted = [s for s in data.train if s.painted is not None]
    trained_on = {s.path for s in data.train}
    others = [s for s in data.unlabelled if s.path not in trained_on]
    if not others and partly_painted:
        return "unlabelled is what lies between the paint"
    if not others:
        return "none unlabelled (a method that needs some takes the training slices)"

    text = f"{len(others)} unlabelled"
    if partly_painted:
        text += ", and what lies between the paint"
    first = others[0]
    stored = read_array(first.path)
    if stored.shape != first.image.shape:
        text += f", {first.stem} cut to {size_of(first.image)} of {size_of(stored)} px"
    return text


def sum_up_padding(data: Data) -> str:
    """Return in words how much padding there is; nothing where there is none."""
    slices = {s.path: s for s in (*data.labelled, *data.unlabelled)}
    shares = [float(s.outside.mean()) for s in slices.values() if s.outside is not None]
    if not shares:
        return ""
    return (
        f"; {len(shares)} of {len(slices)} slices have padding outside the sample, "
        f"{100 * np.mean(shares):.0f} % of their pixels, which are left out"
    )


def training_window(slices: list[Slice]) -> dict[str, float] | None:
    """Return the grey values of the slices of training, which go with the weights.

    Returns
    -------
    dict or None
        `low`, `high` and `contrast`, medians over slices, and the `least_contrast` and
        `most_contrast` of a slice. None for slices that do not come from files, and so have no grey
        values of their own.
    """
    if any(s.limits is None for s in slices):
        return None
    low, high = np.array([s.limits for s in slices]).T
    contrasts = high - low
    return {
        "low": float(np.median(low)),
        "high": float(np.median(high)),
        "contrast": float(np.median(contrasts)),
        "least_contrast": float(contrasts.min()),
        "most_contrast": float(contrasts.max()),
    }
