"""What speaks against the way in which slices and masks were read: notes, and errors that ask."""

import math
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from runtime.messages import InputError
from slices.copies import group_equal, is_same_picture
from slices.options import IMAGES, MASKS, Reading
from slices.padding import find_padding
from slices.pairing import JUDGED, LEAST_AGREEMENT, Agreement, Pairing, judge_pairs
from slices.reading import Slice, evenly_spaced, read_image

RIM = 4  # px: so far may paint reach over the edge of the sample
MOST_OUTSIDE = 0.02  # share of the paint that lies farther outside, from which on it is said
THIN = 5  # px: lines are thinner
MOST_THICK = 0.02  # share of the foreground of drawn outlines that is not thin
ENCLOSED = 1.0  # times their own area that lines of drawn outlines enclose, at least
FEW_NAMES = 5  # as many names are listed in a message


# --- paint outside the sample ---------------------------------------------------------------------


def refuse_paint_in_padding(one: Slice, mask: np.ndarray, file: Path, reading: Reading) -> None:
    """Raise `InputError` where paint lies in what was recognised as padding.

    Black pores and bright metal that a program has cut off look like it. Nothing is asked where it
    was stated what is padding, or where that is NaN: it is no grey value, so nothing was painted
    over.
    """
    if one.outside is None or reading.outside != "auto":
        return
    share = share_outside(mask, one.outside)
    if share <= MOST_OUTSIDE:
        return
    padding = find_padding(read_image(one.path))
    if padding is None or math.isnan(padding.value):
        return
    raise InputError(
        f"{file}: {share:.0%} of its foreground lies where every pixel of {one.path.name} is "
        f"{padding.value:g}, which looks like padding outside the sample; if it is, set --outside "
        f"{padding.value:g}, and the paint there is left out; if it is sample, --outside none"
    )


def share_outside(mask: np.ndarray, outside: np.ndarray) -> float:
    """Return the share of the foreground of a mask that lies outside the sample, but for a rim.

    Parameters
    ----------
    mask, outside : (H, W) ndarrays
    """
    neighbourhood = np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)
    far = cv2.erode(outside.astype(np.uint8), neighbourhood).astype(bool)
    painted = np.count_nonzero(mask)
    return np.count_nonzero(far & (mask > 0)) / max(1, painted)


def notes_on_borders(slices: list[Slice]) -> list[str]:
    """Return a line where slices have a part at their border that may be padding, and counts as sample."""
    flat = [s for s in slices if s.flat_border is not None]
    if not flat:
        return []
    value, share = flat[0].flat_border
    return [
        f"{flat[0].path}: {share:.0%} of it are exactly {value:g}, at its border, as in {len(flat)} "
        f"of {len(slices)} slices, and count as sample; right if it is, else --outside {value:g}"
    ]


# --- pairs ----------------------------------------------------------------------------------------


def notes_on_pairs(pairing: Pairing) -> list[str]:
    """Return what to say of masks that were found by their number alone."""
    if not pairing.by_number:
        return []
    image = pairing.by_number[0]
    return [
        f"{image}: takes {pairing.mask_of[image].name} for its mask because of the number alone, as "
        f"{len(pairing.by_number)} of {len(pairing.mask_of)} images do; name masks like their "
        "images if that is wrong"
    ]


def refuse_strangers(labelled: list[Slice], reading: Reading) -> list[str]:
    """Return notes on masks that do not agree with their images; none where all do.

    Only slices that are painted everywhere are judged: the end of a stroke is no outline of
    anything.

    Raises
    ------
    InputError
        Where some do not, unless the pairs are to be trusted; see `slices.pairing.agreement` for
        the test.
    """
    whole = [s for s in labelled if s.painted is None]
    judged = evenly_spaced(whole, JUDGED)
    agreement = agreement_of_best_class(judged)
    if agreement.mean is None and any(s.mask.any() for s in whole):
        return [
            f"{labelled[0].path}: masks have too short outlines to tell whether they belong to "
            "their images"
        ]

    lines = describe_strangers(judged, agreement)
    if lines and not reading.trust_pairs:
        raise InputError(f"{lines[0]} if the masks are right, --trust-pairs true")
    return lines


def agreement_of_best_class(judged: list[Slice]) -> Agreement:
    """Return whether masks and images agree, by the outlines of the class that shows it best.

    Not every class differs from what lies around it in grey value.
    """
    last = max((int(s.mask.max()) for s in judged), default=0)
    if last <= 1:
        return judge_pairs((s.image, s.mask) for s in judged)

    best = Agreement(None)
    for index in range(1, last + 1):
        agreement = judge_pairs((s.image, (s.mask == index).astype(np.uint8)) for s in judged)
        if best.mean is None or (agreement.mean is not None and agreement.mean > best.mean):
            best = agreement
    return best


def describe_strangers(judged: list[Slice], agreement: Agreement) -> list[str]:
    """Return a line for each way in which masks do not agree with their images."""
    lines = []
    if agreement.mean is not None and agreement.mean < LEAST_AGREEMENT:
        if agreement.judged:
            first = judged[agreement.judged[0]]
        else:
            first = next(s for s in judged if s.mask.any())
        lines.append(
            f"{first.path}: masks hardly agree with their images: along their outlines grey values "
            f"change no more than beside them ({agreement.mean:.1f} standard deviations, own masks "
            f"have {LEAST_AGREEMENT:g} and more); masks of other slices?"
        )
    elif agreement.strangers:
        stems = ", ".join(judged[i].stem for i in agreement.strangers)
        lines.append(
            f"{judged[agreement.strangers[0]].path}: its mask does not agree with it, as those of "
            f"{stems} do not, while others do clearly; masks of other slices?"
        )

    if agreement.inverted:
        stems = ", ".join(judged[i].stem for i in agreement.inverted)
        lines.append(
            f"{judged[agreement.inverted[0]].path}: its mask has the dark side where others have "
            f"the bright one, as {stems} do; inverted? save it the other way round"
        )

    return lines


# --- copies, and masks of one class ---------------------------------------------------------------


def refuse_twins(parts: dict[str, list[Slice]]) -> None:
    """Raise `InputError` where a validation or test slice has the pixels of one that is trained on."""
    for role in ("val", "test"):
        for held_out in parts[role]:
            for trained_on in parts["train"]:
                if is_same_picture(held_out.image, trained_on.image):
                    raise InputError(
                        f"{held_out.path}: a {role} slice with the pixels of {trained_on.stem}, "
                        "which is trained on; keep one of them"
                    )


def refuse_one_class(train: list[Slice], root: Path) -> None:
    """Raise `InputError` where the masks of all training slices are empty, or all full."""
    if not train:
        return
    if not any(s.mask.any() for s in train):
        kind = "empty"
    elif all(s.mask.all() for s in train):
        kind = "full"
    else:
        return

    raise InputError(
        f"{root / MASKS}: the masks of all {len(train)} training slices are {kind}; there is "
        "nothing to learn"
    )


def notes_on_equal_masks(masks: dict[Path, np.ndarray]) -> list[str]:
    """Return a line for each mask that several slices have; empty and full ones may be alike."""
    painted = {path: mask for path, mask in masks.items() if mask.min() != mask.max()}
    lines = []
    for first, *others in group_equal(painted):
        names = ", ".join(path.name for path in others)
        lines.append(f"{first}: has the mask of {names}, pixel by pixel; saved twice?")
    return lines


# --- outlines instead of areas --------------------------------------------------------------------


def notes_on_outlines(masks: dict[Path, np.ndarray]) -> list[str]:
    """Return a line where masks look like drawn outlines."""
    files = [file for file, mask in masks.items() if is_of_outlines(mask)]
    if not files:
        return []
    return [
        f"{files[0]}: its foreground is thin lines that enclose areas, as in {len(files)} of "
        f"{len(masks)} masks: outlines? fill what they enclose, if that is the foreground; right if "
        "the material is so"
    ]


def is_of_outlines(mask: np.ndarray) -> bool:
    """Return whether the foreground of a (H, W) mask is thin lines alone, which enclose more than they cover."""
    area = np.count_nonzero(mask)
    thick = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((THIN, THIN), np.uint8))
    if area == 0 or np.count_nonzero(thick) > MOST_THICK * area:
        return False
    filled = np.count_nonzero(ndimage.binary_fill_holes(mask))
    return filled >= (1 + ENCLOSED) * area


# --- what is left out -----------------------------------------------------------------------------


def notes_on_unused(root: Path, unused: list[str]) -> list[str]:
    """Return a line where labelled slices are in no part of the split."""
    if not unused:
        return []
    names = ", ".join(unused[:FEW_NAMES])
    if len(unused) > FEW_NAMES:
        names += " …"
    return [
        f"{root / IMAGES}: {len(unused)} labelled slices are in no part of the split, and used nowhere: {names}"
    ]


def notes_on_blank(blank: list[Path], count: int) -> list[str]:
    """Return a line where there is nothing to see in some of `count` unlabelled slices."""
    if not blank:
        return []
    return [f"{blank[0]}: is blank, as {len(blank)} of {count} unlabelled slices are; left out"]


def notes_on_empty_validation(val: list[Slice]) -> list[str]:
    """Return a line where no validation slice has foreground."""
    if not val or any(s.mask.any() for s in val):
        return []
    return [
        f"{val[0].stem}: is empty, as all {len(val)} validation masks are, so they cannot choose a "
        "checkpoint; the last weights are kept: take validation slices with foreground"
    ]
