"""Which mask belongs to which image: by their names, and whether their pixels agree.

Names are compared as people write them. A mask may be called like its image, or like it with a usual addition in front
or behind (`slice_07_mask`, `mask_slice_07`, `img_1_cp_masks`, `img_1_mask_v2`), or have the same parts in another
order. Where no name fits, the last number decides (`image_v2_07`, `mask_007_inv`), which is said, because two samples
have the same numbers. Whether such a mask belongs to its image at all, its outline tells: there the image changes.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from slices.reading import plain_text

# What people and programs add to the name of an image to get that of its mask, or have in front of either.
MASK_WORDS = frozenset({
    "annotated", "annotation", "annotations", "bin", "binary", "cp", "groundtruth", "gt", "inv", "label", "labeled",
    "labelled", "labels", "mask", "masks", "msk", "nii", "of", "ome", "painted", "png", "roi", "seg", "segmentation",
    "segmented", "simple", "target", "tif", "tiff", "truth"})
IMAGE_WORDS = frozenset({"image", "images", "im", "img", "raw", "grey", "gray", "bit"})
CHANNEL = re.compile(r"_\d{4}$")         # which nnU-Net has behind the names of images

SHIFTS = 40             # places of a mask where it does not belong, with which its own place is compared
JUDGED = 40             # slices of a folder that are judged, evenly spaced; a tenth to a third of a second each
OUTLINE = 200           # px: a mask with a shorter outline is not judged by itself
LEAST_OUTLINE = 30      # px: and with a shorter one not together with others
STRANGER = 3.5          # standard deviations that a single mask of another slice had at most
CLEAR_AGREEMENT = 8.0   # standard deviations: agreement that chance does not make
LEAST_AGREEMENT = 3.0   # standard deviations; masks of other slices had 0.8 (2.7 of round samples), own ones 22


# --- names ----------------------------------------------------------------------------------------------------

@dataclass
class Pairing:
    """The masks of some images.

    Attributes
    ----------
    mask_of : dict of Path to Path
    problems : list of str
        One line for each image or mask without a partner, or with several.
    by_number : list of Path
        Images whose mask has nothing in common with their name but the last number.
    """

    mask_of: dict[Path, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    by_number: list[Path] = field(default_factory=list)


def pair_files(images: list[Path], masks: list[Path]) -> Pairing:
    """Find the mask of each image.

    The strictest of four comparisons that finds one decides: the same stem; the same stem with a usual addition; the
    same parts without such words, in any order; the same last number. A mask that one comparison has given away is not
    asked in the next.
    """
    found = Pairing()
    comparisons: list[Callable[[str, str], bool]] = [is_same_stem, has_addition, has_same_parts, has_same_number]
    images_left, masks_left = list(images), list(masks)
    for agree in comparisons:
        fitting = {image: [mask for mask in masks_left if agree(image.stem, mask.stem)] for image in images_left}
        if agree is has_addition:
            keep_longest_stems(fitting)
        for image, candidates in fitting.items():
            rivals = [other for other in images_left if set(fitting[other]) & set(candidates)]
            if len(candidates) == 1 and rivals == [image]:
                found.mask_of[image] = candidates[0]
                if agree is has_same_number:
                    found.by_number.append(image)
            elif candidates:
                found.problems.append(describe_conflict(image, candidates, rivals))

        # What is unclear stays so: a weaker comparison must not decide it.
        unclear = [image for image, candidates in fitting.items() if candidates]
        asked = {mask for candidates in fitting.values() for mask in candidates}
        images_left = [image for image in images_left if image not in unclear]
        masks_left = [mask for mask in masks_left if mask not in asked]

    found.problems = list(dict.fromkeys(found.problems))
    found.mask_of = {image: found.mask_of[image] for image in images if image in found.mask_of}
    found.by_number = [image for image in images if image in found.by_number]
    found.problems += [f"{image}: no mask with this stem or last number; add it, or move the image away"
                       for image in images_left]
    found.problems += [f"{mask}: no image with this stem or last number; add it, or remove the mask"
                       for mask in masks_left]
    return found


def describe_conflict(image: Path, candidates: list[Path], rivals: list[Path]) -> str:
    """Return in words why the mask of an image is unclear."""
    if len(candidates) > 1:
        return (f"{image}: {len(candidates)} masks fit ({', '.join(mask.name for mask in candidates)}); name masks "
                "like their images, and have one for each")
    return (f"{candidates[0]}: fits {len(rivals)} images ({', '.join(other.name for other in rivals)}); name masks "
            "like their images")


def keep_longest_stems(fitting: dict[Path, list[Path]]) -> None:
    """Leave each mask to the images with the longest stem: `a_1_label_mask` belongs to `a_1_label`, not to `a_1`."""
    longest = {mask: max(len(image.stem) for image, others in fitting.items() if mask in others)
               for candidates in fitting.values() for mask in candidates}
    for image, candidates in fitting.items():
        fitting[image] = [mask for mask in candidates if len(image.stem) == longest[mask]]


def is_same_stem(image: str, mask: str) -> bool:
    """Return whether two stems are the same text."""
    return plain_text(image) == plain_text(mask)


def has_addition(image: str, mask: str) -> bool:
    """Return whether a mask's stem is the image's with a usual addition in front or behind, set off by a sign."""
    image, mask = plain_text(image).lower(), plain_text(mask).lower()
    if CHANNEL.sub("", image) == mask and image != mask:
        return True
    if len(mask) <= len(image) + 1:
        return False
    if mask.startswith(image) and not mask[len(image)].isalnum():
        words = words_of(mask[len(image):])
        return bool(words) and words[0] in MASK_WORDS           # behind it may come more: a version, a date
    if mask.endswith(image) and not mask[-len(image) - 1].isalnum():
        words = words_of(mask[:-len(image)])
        return bool(words) and set(words) <= MASK_WORDS
    return False


def words_of(text: str) -> list[str]:
    """Return the words and numbers in a part of a name."""
    return re.findall(r"\d+|[^\W\d_]+", text)


def has_same_parts(image: str, mask: str) -> bool:
    """Return whether two stems have the same parts, in any order, without the words that tell masks from images.

    A word and the number behind it stay together: `s1_z2` and `z1_s2` are two places.
    """
    wanted, given = labelled_numbers(image), labelled_numbers(mask)
    if image.count("+") != mask.count("+"):                     # places above and below zero
        return False
    return wanted == given and any(char.isdecimal() for char in image)


def labelled_numbers(stem: str) -> tuple[list[str], list[str]]:
    """Return the parts of a stem: words, and numbers that touch the word before them, sorted; bare numbers in order.

    `s1_z2` and `z2_s1` are the same place, `tile_3_9` and `tile_9_3` are two.
    """
    parts = re.findall(r"[^\W\d_]*\d+|[^\W\d_]+", re.sub(r"\d+bit\b", "", plain_text(stem).lower()))
    named, bare = [], []
    for part in parts:
        word, number = re.fullmatch(r"([^\W\d_]*)(\d*)", part).groups()
        number = str(int(number)) if number else ""
        if word in MASK_WORDS or word in IMAGE_WORDS:
            word = ""
        if word:
            named.append(word + number)
        elif number:
            bare.append(number)
    return sorted(named), bare


def has_same_number(image: str, mask: str) -> bool:
    """Return whether the last numbers of two stems are the same."""
    number = last_number(image)
    return number is not None and number == last_number(mask)


def last_number(name: str) -> int | None:
    """Return the last number in a name, or None: 7 for `image_v2_07`, `mask_007_inv` and `image_v2_mask_07`."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


# --- pixels ---------------------------------------------------------------------------------------------------

def agreement(image: np.ndarray, mask: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Return how much better a mask fits its image in its own place than beside it: (3,) standard deviations.

    Three things are measured along the outline of the mask: how fast the image changes there, the difference between a
    narrow band inside and one outside, and the difference between foreground and background. Each is compared with what
    the same mask shows in `SHIFTS` other places, one to three diameters of its particles away, so that it stays on the
    sample: in units of the standard deviation there. A permutation test; masks of other slices score about 0 ± 1, and
    either sign may mean agreement.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
    mask : (H, W) uint8 ndarray of 0 and 1

    Returns
    -------
    (3,) ndarray, or None
        None where the mask has hardly an outline.
    """
    nine = np.ones((9, 9), np.uint8)
    inside = mask.astype(bool)
    places = {"outline": outline_of(mask),
              "band inside": inside & ~cv2.erode(mask, nine).astype(bool),
              "band outside": cv2.dilate(mask, nine).astype(bool) & ~inside,
              "foreground": inside}
    length = np.count_nonzero(places["outline"])
    if length < LEAST_OUTLINE or not all(place.any() for place in places.values()):
        return None

    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 2.0)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    pixels = {name: np.nonzero(place) for name, place in places.items()}
    mean_of_all = float(smooth.mean())
    height, width = mask.shape

    def measured(down: int, right: int) -> list[float]:
        """Measure the mask shifted around the border."""
        mean = {name: float((slope if name == "outline" else smooth)[(y + down) % height, (x + right) % width].mean())
                for name, (y, x) in pixels.items()}
        return [mean["outline"], mean["band inside"] - mean["band outside"], mean["foreground"] - mean_of_all]

    # The mean diameter of discs with this area and outline, which is drawn two pixels wide; of the smaller phase.
    area = min(np.count_nonzero(inside), np.count_nonzero(~inside))
    diameter = max(8.0, 4 * area / (length / 2))
    rng = np.random.default_rng(seed)
    elsewhere = []
    for _ in range(SHIFTS):
        distance = min(diameter * rng.uniform(1, 3), min(height, width) / 2)
        angle = rng.uniform(0, 2 * np.pi)
        elsewhere.append(measured(round(distance * np.sin(angle)), round(distance * np.cos(angle))))
    here = np.array(measured(0, 0))
    return (here - np.mean(elsewhere, axis=0)) / np.maximum(np.std(elsewhere, axis=0), 1e-9)


def outline_of(mask: np.ndarray) -> np.ndarray:
    """Return the pixels on both sides of the outline of a mask, (H, W) bool."""
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)


@dataclass(frozen=True)
class Agreement:
    """Whether masks belong to their images, as far as pixels tell.

    Attributes
    ----------
    mean : float or None
        The largest of the three mean agreements; None where outlines are too short to be judged.
    judged : list of int
        Numbers of the pairs that were judged one by one.
    strangers : list of int
        Numbers of pairs that do not agree at all, where others do clearly.
    inverted : list of int
        Numbers of pairs whose foreground is as dark as that of the others is bright, or the other way round.
    """

    mean: float | None
    strangers: list[int]
    inverted: list[int]
    judged: list[int] = field(default_factory=list)


def judge_pairs(slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    """Return whether images and masks agree, all together and one by one.

    Masks with a short outline say little by themselves. Where all are so, what they say together decides: the sum of N
    measurements, each in units of its standard deviation, over √N is one in such units again.
    """
    found, short, length = {}, [], 0
    for i, (image, mask) in enumerate(slices):
        outline = np.count_nonzero(outline_of(mask))
        if outline >= OUTLINE:
            found[i] = agreement(image, mask)
        elif outline >= LEAST_OUTLINE:
            short.append(agreement(image, mask))
            length += outline
    found = {i: one for i, one in found.items() if one is not None}
    short = [one for one in short if one is not None]
    if not found:
        if length < OUTLINE or not short:
            return Agreement(None, [], [])
        together = np.abs(np.sum(short, axis=0)) / np.sqrt(len(short))
        return Agreement(float(together.max()), [], [])
    scores = np.array(list(found.values()))                     # (N, 3)
    strongest = np.abs(scores).max(axis=1)
    mean = float(np.abs(scores.mean(axis=0)).max())

    strangers, inverted = [], []
    if strongest.max() >= CLEAR_AGREEMENT:
        strangers = [i for i, strength in zip(found, strongest, strict=True) if strength < STRANGER]
    contrast = scores[:, 1]
    clear = np.abs(contrast) >= CLEAR_AGREEMENT
    if clear.any():
        usual = np.sign(np.sum(np.sign(contrast[clear]))) or 1.0
        inverted = [i for i, value, is_clear in zip(found, contrast, clear, strict=True)
                    if is_clear and np.sign(value) != usual]
    return Agreement(max(mean, float(strongest.max())) if inverted else mean, strangers, inverted, list(found))
