"""A data folder: read it for training, or check it file by file.

    DATA/labeled/Original_images    painted slices          DATA/unlabeled            all other slices
    DATA/labeled/Original_masks     their masks             DATA/splits/split.json    who trains, chooses and tests
"""

import hashlib
import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from runtime.files import read_json
from runtime.messages import InputError, quiet_bar
from slices.masks import Masks, describe_reading, masks_of_files
from slices.pairing import JUDGED, LEAST_AGREEMENT, Pairing, judge_pairs, pair_files
from slices.reading import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    ROI,
    Slice,
    is_clutter,
    list_files,
    plain_text,
    read_array,
    read_image,
)
from slices.splits import PARTS, known_stems, make_split, split_problems
from slices.windows import Grey, apply_window, find_flat_border, find_padding, grey_limits, read_grey

IMAGES, MASKS, UNLABELLED = "labeled/Original_images", "labeled/Original_masks", "unlabeled"

PERCENTILES = (1.0, 99.5)
COARSELY_SAME = 0.99    # correlation of 32×32 block means of two slices, below which they are not compared further
SAME = 0.99             # share of pixels whose grey value in one slice says that in another: these are copies
RIM = 4                 # px: so far may paint reach over the edge of the sample
MOST_OUTSIDE = 0.02     # share of the paint that lies farther outside, from which on it is said
THIN = 5                # px: lines are thinner
ENCLOSED = 1.0          # times their own area that lines of drawn outlines enclose, at least
LEAST_PARTICLE = 3.0    # blocks: smaller particles are hard to see for a network that works on block means


@dataclass(frozen=True)
class Reading:
    """How the files of a data folder are read.

    Attributes
    ----------
    roi : (row, end row, column, end column) or None
        Crop of the unlabelled scans [px]; those as large as a labelled slice are used as they are.
    percentiles : (low, high)
        Of the grey values of the sample, which become 0 and 255.
    mask_foreground : {"auto", "dark", "bright", "labels"}
        As in `slices.masks.read_mask_as`.
    outside : {"auto", "none"} or float
        Grey value outside the field of view, as in `slices.windows.mark_outside`.
    trust_pairs : bool
        Whether masks are taken even though their outlines do not agree with their images.
    """

    roi: tuple[int, int, int, int] | None = ROI
    percentiles: tuple[float, float] = PERCENTILES
    mask_foreground: str = "auto"
    outside: str | float = "auto"
    trust_pairs: bool = False


@dataclass(frozen=True)
class Data:
    """Preprocessed slices by role, and what was noticed while they were read.

    `unlabelled` never holds a validation or test slice. Where a folder has none, the training images serve as such.
    """

    train: list[Slice]
    val: list[Slice]
    test: list[Slice]
    unlabelled: list[Slice]
    notes: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, list[Slice]]:
        """The slices by the name of their role."""
        return {"train": self.train, "val": self.val, "test": self.test, "unlabelled": self.unlabelled}

    @property
    def can_choose(self) -> bool:
        """Whether validation slices tell good weights from bad ones: at least one has foreground."""
        return any(s.mask.any() for s in self.val)


# --- reading for training -------------------------------------------------------------------------------------

def load_data(root: Path, split: str = "auto", val_fraction: float = 0.18, test_fraction: float = 0.18,
              fold: int = 0, labels: int = 0, seed: int = 0, max_unlabelled: int = 0,
              reading: Reading = Reading()) -> Data:
    """Read a data folder once; everything later works on what this returns.

    Parameters
    ----------
    root : Path
        Folder with `labeled/Original_images`, `labeled/Original_masks` and, where there is one, `unlabeled`.
    split, val_fraction, test_fraction, fold, seed
        As in `make_split`.
    labels : int
        Training slices that keep their label, evenly spaced (0: all). The others join the unlabelled.
    max_unlabelled : int
        Unlabelled scans to read, evenly spaced (0: all).

    Raises
    ------
    InputError
        For whatever cannot be read, paired or split, for masks that do not agree with their images, and where no
        training slice has foreground, or all of them nothing else.
    """
    root = Path(root)
    images, masks = list_files(root / IMAGES), list_files(root / MASKS, MASK_SUFFIXES)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; `python demo_data.py --output {root}` makes demo data there")
    if not images:
        raise InputError(f"{root / IMAGES}: no slice found ({', '.join(IMAGE_SUFFIXES)}); put the labelled slices "
                         "there")
    pairing = pair_files(images, masks)
    if pairing.problems:
        raise InputError(pairing.problems[0])

    labelled = load_labelled(pairing, reading)
    notes = [*notes_on_pairs(pairing), *refuse_strangers(list(labelled.values()), reading)]

    notes += notes_on_equal_masks({s.path: s.mask for s in labelled.values()})
    outlines = [s.path for s in labelled.values() if is_of_outlines(s.mask)]
    if outlines:
        notes.append(describe_outlines(outlines, len(labelled)))

    scans = list_files(root / UNLABELLED)
    scans = evenly_spaced(scans, max_unlabelled or len(scans))
    parts = make_split(root, list(labelled), split, val_fraction, test_fraction, fold, seed)
    roles = {part: [labelled[stem] for stem in parts[part]] for part in PARTS}
    refuse_twins(roles)
    train, val, test = roles.values()
    if labels > len(train):
        raise InputError(f"--labels {labels}: there are {len(train)} training slices")
    kept = evenly_spaced(train, labels or len(train))
    refuse_one_class(kept, root)
    unused = [stem for stem in labelled if not any(stem in parts[part] for part in PARTS)]
    if unused:
        notes.append(f"{root / IMAGES}: {len(unused)} labelled slices are in no part of the split, and used nowhere: "
                     f"{', '.join(unused[:5])}{' …' if len(unused) > 5 else ''}")

    unlabelled = [s.without_mask() for s in train if s not in kept]
    read, blank = load_scans(scans, reading, {s.image.shape for s in labelled.values()}, [*val, *test])
    unlabelled += read
    notes += notes_on_borders([*labelled.values(), *read])
    if blank:
        notes.append(f"{blank[0]}: is blank, as {len(blank)} of {len(scans)} unlabelled slices are; left out")
    if val and not any(s.mask.any() for s in val):
        notes.append(f"{val[0].stem}: is empty, as all {len(val)} validation masks are, so they cannot choose a "
                     "checkpoint; the last weights are kept: take validation slices with foreground")
    return Data(kept, val, test, unlabelled or [s.without_mask() for s in kept], tuple(notes))


def load_labelled(pairing: Pairing, reading: Reading) -> dict[str, Slice]:
    """Return the labelled slices by stem, windowed and binarised."""
    images, files = list(pairing.mask_of), list(pairing.mask_of.values())
    masks = masks_of_files(files, reading.mask_foreground, images)
    found = {}
    for i, path in enumerate(images):
        one, mask = load_slice(path, reading), masks[i]
        if one.stem in found:
            raise InputError(f"{path}: has the stem of {found[one.stem].path.name}; keep one of them")
        refuse_paint_in_padding(one, mask, files[i], reading)
        found[one.stem] = one.with_mask(mask)
    return found


def refuse_paint_in_padding(one: Slice, mask: np.ndarray, file: Path, reading: Reading) -> None:
    """`InputError` where paint lies in what was recognised as padding, and nobody has stated that this is padding.

    Black pores and bright metal that a program has cut off look like it.
    """
    if one.outside is None or reading.outside != "auto":
        return
    share = share_outside(mask, one.outside)
    if share <= MOST_OUTSIDE:
        return
    padding = find_padding(read_image(one.path))
    if padding is None or math.isnan(padding.value):            # NaN is no grey value: nothing was painted over
        return
    raise InputError(f"{file}: {share:.0%} of its foreground lies where every pixel of {one.path.name} is "
                     f"{padding.value:g}, which looks like padding outside the sample; if it is, set --outside "
                     f"{padding.value:g}, and the paint there is left out; if it is sample, --outside none")


def share_outside(mask: np.ndarray, outside: np.ndarray) -> float:
    """Return the share of the foreground of a (H, W) mask that lies outside the sample, but for a rim at its edge."""
    far = cv2.erode(outside.astype(np.uint8), np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)).astype(bool)
    return np.count_nonzero(far & (mask > 0)) / max(1, np.count_nonzero(mask))


def load_slice(path: Path, reading: Reading) -> Slice:
    """Return one slice in 8 bit; `InputError` where it is constant."""
    grey = read_grey(path, reading.outside)
    if grey.outside is not None and grey.outside.all():
        raise InputError(f"{path}: lies outside the sample altogether, every pixel is {grey.value:g}; nothing to "
                         "segment, remove it")
    low, high = grey_limits(grey, reading.percentiles, str(path))
    if not high > low:
        raise InputError(f"{path}: is constant ({low:g}) between percentiles {reading.percentiles[0]:g} and "
                         f"{reading.percentiles[1]:g}; nothing to segment, remove it")
    return Slice(path, apply_window(grey, low, high), outside=grey.outside, limits=(low, high),
                 flat_border=flat_border_of(grey, reading))


def flat_border_of(grey: Grey, reading: Reading) -> tuple[float, float] | None:
    """Return what may be padding in a slice and was taken for sample, unless it was stated what is padding."""
    return find_flat_border(grey.image, grey.outside) if reading.outside == "auto" else None


def notes_on_borders(slices: list[Slice]) -> list[str]:
    """Return a line where slices have a part at their border that may be padding, and counts as sample."""
    flat = [s for s in slices if s.flat_border is not None]
    if not flat:
        return []
    value, share = flat[0].flat_border
    return [f"{flat[0].path}: {share:.0%} of it are exactly {value:g}, at its border, as in {len(flat)} of "
            f"{len(slices)} slices, and count as sample; right if it is, else --outside {value:g}"]


def load_scans(scans: list[Path], reading: Reading, sizes: set[tuple[int, int]],
               held_back: list[Slice]) -> tuple[list[Slice], list[Path]]:
    """Return the unlabelled slices, and the files of those in which there is nothing to see.

    Raises
    ------
    InputError
        Where one has the pixels of a slice that is `held_back`.
    """
    found, blank = [], []
    for path in quiet_bar(scans, "read"):
        grey = crop_scan(path, reading, sizes)
        low, high = grey_limits(grey, reading.percentiles, str(path))
        if not high > low:
            blank.append(path)
            continue
        image = apply_window(grey, low, high)
        same = next((s for s in held_back if is_same_picture(s.image, image)), None)
        if same is not None:
            raise InputError(f"{path}: has the pixels of {same.stem}, a validation or test slice; remove it from the "
                             "unlabelled")
        found.append(Slice(path, image, outside=grey.outside, limits=(low, high),
                           flat_border=flat_border_of(grey, reading)))
    return found, blank


def is_same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two slices in 8 bit show the same pixels, if perhaps saved with fewer bits or another contrast.

    One may be flipped or turned by 90, 180 or 270 degrees, as augmented copies are. Of copies each grey value of one
    has become one of the other, but for rounding. Neighbouring slices of a volume may be alike, too, but where one is
    100, the other is 97 here and 104 there.
    """
    if sorted(one.shape) != sorted(other.shape):
        return False
    small, other_small = thumbnail(one), thumbnail(other)
    if small.std() == 0 or other_small.std() == 0:
        return False

    for turns, is_flipped in itertools.product(range(4), (False, True)):
        # The thumbnail turns like its image, in a thousandth of the time: few images are turned themselves.
        alike = np.corrcoef(small.ravel(), turn(other_small, turns, is_flipped).ravel())[0, 1]
        if alike < COARSELY_SAME:
            continue
        turned = turn(other, turns, is_flipped)
        if turned.shape == one.shape and max(share_mapped(one, turned), share_mapped(turned, one)) >= SAME:
            return True
    return False


def turn(image: np.ndarray, turns: int, is_flipped: bool) -> np.ndarray:
    """Return a (H, W) image flipped from left to right, or not, and turned by so many quarters."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if is_flipped else image, turns))


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return an image reduced to (32, 32) block means, float64."""
    return cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)


def share_mapped(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pixels of which the grey value in `one` says that in `other`, but for rounding.

    `other` may differ from its mean where `one` has a certain value by what lies between two grey levels of `one`.
    """
    values, levels = one.ravel(), other.ravel().astype(np.float64)
    count = np.bincount(values, minlength=256)
    mean = np.bincount(values, levels, 256) / np.maximum(count, 1)
    step = float(np.median(np.diff(np.flatnonzero(count)))) if np.count_nonzero(count) > 1 else 1.0
    return float(np.mean(np.abs(levels - mean[values]) <= step / 2 + 1))


def refuse_twins(parts: dict[str, list[Slice]]) -> None:
    """`InputError` where a validation or test slice has the pixels of one that is trained on."""
    for role in ("val", "test"):
        for held in parts[role]:
            for seen in parts["train"]:
                if is_same_picture(held.image, seen.image):
                    raise InputError(f"{held.path}: a {role} slice with the pixels of {seen.stem}, which is trained "
                                     "on; keep one of them")


def crop_scan(path: Path, reading: Reading, sizes: set[tuple[int, int]]) -> Grey:
    """Return an unlabelled scan, cropped to the ROI unless it has one of the `sizes` of the labelled slices."""
    grey = read_grey(path, reading.outside)
    return grey if grey.image.shape in sizes else grey.crop(reading.roi, str(path))


def notes_on_pairs(pairing: Pairing) -> list[str]:
    """Return what to say of masks that were found by their number alone."""
    if not pairing.by_number:
        return []
    image = pairing.by_number[0]
    return [f"{image}: takes {pairing.mask_of[image].name} for its mask because of the number alone, as "
            f"{len(pairing.by_number)} of {len(pairing.mask_of)} images do; name masks like their images if that is "
            "wrong"]


def refuse_strangers(labelled: list[Slice], reading: Reading) -> list[str]:
    """Return nothing, or where the pairs are to be trusted notes, if masks do not agree with their images.

    Raises
    ------
    InputError
        Where they do not; see `slices.pairing.agreement` for the test.
    """
    judged = evenly_spaced(labelled, JUDGED)
    found = judge_pairs((s.image, s.mask) for s in judged)
    lines = []
    if found.mean is not None and found.mean < LEAST_AGREEMENT:
        first = judged[found.judged[0]] if found.judged else next(s for s in judged if s.mask.any())
        lines.append(f"{first.path}: masks hardly agree with their images: along their outlines grey values "
                     f"change no more than beside them ({found.mean:.1f} standard deviations, own masks have "
                     f"{LEAST_AGREEMENT:g} and more); masks of other slices?")
    elif found.strangers:
        lines.append(f"{judged[found.strangers[0]].path}: its mask does not agree with it, as those of "
                     f"{', '.join(judged[i].stem for i in found.strangers)} do not, while others do clearly; masks of "
                     "other slices?")
    if found.inverted:
        lines.append(f"{judged[found.inverted[0]].path}: its mask has the dark side where others have the bright "
                     f"one, as {', '.join(judged[i].stem for i in found.inverted)} do; inverted? save it the other "
                     "way round")
    if found.mean is None and any(s.mask.any() for s in labelled):
        return [f"{labelled[0].path}: masks have too short outlines to tell whether they belong to their images"]
    if lines and not reading.trust_pairs:
        raise InputError(f"{lines[0]} if the masks are right, --trust-pairs true")
    return lines


def refuse_one_class(train: list[Slice], root: Path) -> None:
    """`InputError` where the masks of all training slices are empty, or all full."""
    if train and not any(s.mask.any() for s in train):
        raise InputError(f"{root / MASKS}: the masks of all {len(train)} training slices are empty; there is nothing "
                         "to learn")
    if train and all(s.mask.all() for s in train):
        raise InputError(f"{root / MASKS}: the masks of all {len(train)} training slices are full; there is nothing to "
                         "learn")


def used_files(root: Path, split: str = "auto", max_unlabelled: int = 0) -> dict[str, Path]:
    """Return the files that `load_data` reads with these settings, by their names in the folder."""
    root = Path(root)
    scans = list_files(root / UNLABELLED)
    files = [*list_files(root / IMAGES), *list_files(root / MASKS, MASK_SUFFIXES),
             *evenly_spaced(scans, max_unlabelled or len(scans))]
    if split not in ("random", "blocks"):
        stated = root / "splits" / "split.json" if split == "auto" else Path(split)
        if stated.is_file():
            files.append(stated)
    return {str(path.relative_to(root)) if path.is_relative_to(root) else path.name: path for path in files}


def evenly_spaced(items: list, count: int) -> list:
    """Return `count` of the items, evenly spaced with first and last, of one the middle; all if there are fewer."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


# --- what was read, in words ----------------------------------------------------------------------------------

def describe_data(data: Data) -> dict:
    """Return stems by role, and a hash of every pixel that training and evaluation see."""
    pixels = hashlib.sha256()
    for s in itertools.chain(*data.roles.values()):
        for array in (s.image, s.mask, s.outside):
            if array is not None:
                pixels.update(array.tobytes())
    return {**{role: [s.stem for s in slices] for role, slices in data.roles.items()}, "sha256": pixels.hexdigest()}


def sum_up(data: Data) -> str:
    """Return how much there is of what, in words: what a folder was taken for shows before anything is trained."""
    labelled = [*data.train, *data.val, *data.test]
    shapes = ", ".join(dict.fromkeys(f"{s.image.shape[0]}×{s.image.shape[1]}" for s in labelled))
    shares = [100 * s.mask.mean() for s in labelled]
    plural = "s" if len(labelled) > 1 else ""

    if {s.path for s in data.unlabelled} <= {s.path for s in data.train}:
        others = "none unlabelled, the training slices serve as such"
    else:
        others = f"{len(data.unlabelled)} unlabelled"
        first = data.unlabelled[0]
        whole = read_array(first.path).shape
        if whole != first.image.shape:
            others += f", {first.stem} cut to {first.image.shape[0]}×{first.image.shape[1]} of {whole[0]}×{whole[1]} px"

    every = {s.path: s for s in (*labelled, *data.unlabelled)}
    outside = [float(s.outside.mean()) for s in every.values() if s.outside is not None]
    if outside:
        others += (f"; {len(outside)} of {len(every)} slices have padding outside the sample, "
                   f"{100 * np.mean(outside):.0f} % of their pixels, which are left out")
    return (f"{len(labelled)} labelled slice{plural} of {shapes} px, {min(shares):.0f}–{max(shares):.0f} % foreground: "
            f"{len(data.train)} to train on, {len(data.val)} to choose the checkpoint, {len(data.test)} to test; "
            f"{others}")


def training_window(slices: list[Slice]) -> dict[str, float] | None:
    """Return the grey values of the slices of training, which go with the weights: medians over slices.

    Keys: `low`, `high`, `contrast`, and the `least_contrast` and `most_contrast` of a slice. None for slices that do
    not come from files, and so have no grey values of their own.
    """
    if any(s.limits is None for s in slices):
        return None
    low, high = np.array([s.limits for s in slices]).T
    contrasts = high - low
    return {"low": float(np.median(low)), "high": float(np.median(high)), "contrast": float(np.median(contrasts)),
            "least_contrast": float(contrasts.min()), "most_contrast": float(contrasts.max())}


# --- checking -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Check:
    """What is wrong with a data folder, and how its masks are read: lines of text."""

    problems: list[str]
    masks: list[str]


def check_data(root: Path, reading: Reading = Reading()) -> Check:
    """Return every problem of a data folder, one line each, by file, and what each mask was taken for."""
    root = Path(root)
    images, mask_files = list_files(root / IMAGES), list_files(root / MASKS, MASK_SUFFIXES)
    scans = list_files(root / UNLABELLED)

    problems = unread_files(root, {*images, *mask_files, *scans})
    if not images:
        problems.append(f"{root / IMAGES}: no slice found ({', '.join(IMAGE_SUFFIXES)}); put the labelled slices there")
    for files in (images, mask_files, scans):
        problems += equal_stems(files)

    contents: dict[tuple, list[Path]] = {}
    greys, scanned = {}, []
    for path in quiet_bar(images, "check"):
        try:
            greys[path] = load_slice(path, reading)
        except InputError as error:
            problems.append(str(error))
            continue
        contents.setdefault(fingerprint(greys[path].image), []).append(path)
    sizes = {one.image.shape for one in greys.values()}
    for path in quiet_bar(scans, "check"):
        try:
            read, _ = load_scans([path], reading, sizes, [])    # blank ones are no problem: training leaves them out
        except InputError as error:
            problems.append(str(error))
            continue
        for one in read:
            contents.setdefault(fingerprint(one.image), []).append(path)
            scanned.append(replace(one, image=np.zeros((0, 0), np.uint8), outside=None))    # pixels are not kept
    problems += notes_on_borders([*greys.values(), *scanned])
    problems += [f"{same[0]}: same pixels as {', '.join(path.name for path in same[1:])}; keep one of them"
                 for same in contents.values() if len(same) > 1]

    pairing = pair_files(images, mask_files)
    image_of = {mask: image for image, mask in pairing.mask_of.items()}
    readable = [file for file in mask_files if image_of.get(file) in greys]     # of the others it is said already
    masks = masks_of_files(readable, reading.mask_foreground, [image_of[file] for file in readable])
    found = {}
    for i, file in enumerate(readable):
        try:
            found[file] = masks[i]
        except InputError as error:
            problems.append(str(error))
    painted = {}
    for file, mask in found.items():
        one = greys[image_of[file]]
        try:
            refuse_paint_in_padding(one, mask, file, reading)
            painted[file] = one.with_mask(mask)                 # without what lies outside the sample
        except InputError as error:
            problems.append(str(error))
            painted[file] = replace(one, mask=mask)             # all of the paint: it is not empty
    found = {file: one.mask for file, one in painted.items()}
    problems += problems_of_masks(found, reading)
    try:
        refuse_strangers(list(painted.values()), reading)
    except InputError as error:
        problems.append(str(error))

    split = root / "splits" / "split.json"
    if split.exists():
        try:
            stems = [plain_text(path.stem) for path in images]
            problems += [f"{split}: {line}" for line in split_problems(known_stems(read_json(split), stems), stems)]
        except InputError as error:
            problems.append(str(error))
    problems += pairing.problems

    return Check(problems, describe_masks(masks, found))


def unread_files(root: Path, known: set[Path]) -> list[str]:
    """Return a line for each file that looks as if it should be read, and is not."""
    lines = []
    for folder, suffixes in ((IMAGES, IMAGE_SUFFIXES), (MASKS, MASK_SUFFIXES), (UNLABELLED, IMAGE_SUFFIXES)):
        for path in sorted((root / folder).glob("*")):
            if path not in known and not is_clutter(path):
                lines.append(f"{path}: is not read; only {', '.join(suffixes)} are")
    return lines


def equal_stems(files: list[Path]) -> list[str]:
    """Return a line for each stem that several files of one folder have."""
    lines = []
    for _, same in itertools.groupby(sorted(files, key=lambda path: (path.stem, path.name)), lambda path: path.stem):
        first, *twins = same
        if twins:
            lines.append(f"{first}: same stem as {', '.join(path.name for path in twins)}; keep one of them")
    return lines


def fingerprint(image: np.ndarray) -> tuple:
    """Return what two slices have in common only where their pixels are the same."""
    return image.shape, hashlib.sha256(np.ascontiguousarray(image)).digest()


def problems_of_masks(found: dict[Path, np.ndarray], reading: Reading) -> list[str]:
    """Return a line for each mask that is empty, full, or likely inverted."""
    problems = []
    for file, mask in found.items():
        if mask.min() == mask.max():
            problems.append(f"{file}: mask is {'full' if mask.max() else 'empty'}; right if the slice really is so, "
                            "else paint it again")

    problems += notes_on_equal_masks(found)
    outlines = [file for file, mask in found.items() if is_of_outlines(mask)]
    if outlines:
        problems.append(describe_outlines(outlines, len(found)))

    shares = {file: float(mask.mean()) for file, mask in found.items()}
    usual = np.median(list(shares.values())) if shares else 0.0
    for file, share in shares.items():
        if not 0.5 < share < 1:
            continue
        if usual < 0.5:
            problems.append(f"{file}: {share:.0%} of the slice is foreground, of most others less than half; right if "
                            "the material is so, else inverted: save it the other way round")
        elif share > 0.8:
            advice = ", or --mask-foreground dark" if reading.mask_foreground == "auto" else ""
            problems.append(f"{file}: {share:.0%} of the slice is foreground; right if the material is so, else "
                            f"inverted: save it the other way round{advice}")
    return problems


def notes_on_equal_masks(masks: dict[Path, np.ndarray]) -> list[str]:
    """Return a line for each mask that several slices have; empty and full ones may be alike."""
    alike: dict[tuple, list[Path]] = {}
    for path, mask in masks.items():
        if mask.min() != mask.max():
            alike.setdefault(fingerprint(mask), []).append(path)
    return [f"{first}: has the mask of {', '.join(path.name for path in others)}, pixel by pixel; saved twice?"
            for first, *others in alike.values() if others]


def is_of_outlines(mask: np.ndarray) -> bool:
    """Return whether the foreground of a (H, W) mask is thin lines alone, which enclose more than they cover."""
    thick = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((THIN, THIN), np.uint8))
    area = np.count_nonzero(mask)
    if area == 0 or np.count_nonzero(thick) > 0.02 * area:
        return False
    return np.count_nonzero(ndimage.binary_fill_holes(mask)) >= (1 + ENCLOSED) * area


def describe_outlines(files: list[Path], of: int) -> str:
    """Return in words that masks look like drawn outlines."""
    return (f"{files[0]}: its foreground is thin lines that enclose areas, as in {len(files)} of {of} masks: outlines? "
            "fill what they enclose, if that is the foreground; right if the material is so")


def describe_masks(masks: Masks, found: dict[Path, np.ndarray]) -> list[str]:
    """Return the rule by which the masks of a folder were read, and the share of foreground of each."""
    if not found:
        return []
    rule = masks.rule
    shown = "all masks are empty" if not rule.name else f"masks: {Path(rule.name).name} {describe_reading(rule)}"
    return [shown, *(f"  {file.name}: {mask.mean():.1%} foreground" for file, mask in found.items())]
