"""Which mask belongs to which image: by their names, and whether their pixels agree.

Names are compared as people write them. A mask may be called like its image, or like it with a
usual addition in front or behind (`slice_07_mask`, `mask_slice_07`, `img_1_cp_masks`,
`img_1_mask_v2`), or have the same parts in another order. Where no name fits, the last number
decides (`image_v2_07`, `mask_007_inv`), which is said, because two samples have the same numbers.
Whether such a mask belongs to its image at all, its outline tells: there the image changes.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from slices.reading import plain_text

# What people and programs add to the name of an image to get that of its mask.
MASK_WORDS = frozenset(
    """
    annotated annotation annotations bin binary cp groundtruth gt inv label labeled labelled labels
    mask masks msk nii of ome painted png roi seg segmentation segmented simple target tif tiff truth
    """.split()
)

# What they add to the names of images.
IMAGE_WORDS = frozenset("image images im img raw grey gray bit".split())

CHANNEL = re.compile(r"_\d{4}$")  # which nnU-Net has behind the names of images
BIT_DEPTH = re.compile(r"\d+bit\b")  # such as 8bit, which is no number of a slice

SHIFTS = 40  # places of a mask where it does not belong, with which its own place is compared
JUDGED = (
    40  # slices of a folder that are judged, evenly spaced; each takes up to a third of a second
)
OUTLINE = 200  # px: a mask with a shorter outline is not judged by itself
LEAST_OUTLINE = 30  # px: and with a shorter one not together with others

# Agreement is counted in standard deviations. Masks of other slices had 0.8 in the mean (2.7 where
# the sample is round) and 3.5 at most, own ones 22.
STRANGER = 3.5  # a mask of another slice has less
LEAST_AGREEMENT = 3.0  # masks of other slices have less in the mean
CLEAR_AGREEMENT = 8.0  # chance does not make it


# --- pairs ----------------------------------------------------------------------------------------


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

    The strictest of four comparisons that finds one decides: the same stem; the same stem with a
    usual addition; the same parts without such words, in any order; the same last number. A mask
    that one comparison has given away, or could not decide about, is not asked in the next.
    """
    pairing = Pairing()
    images_left = list(images)
    masks_left = list(masks)
    for agree in (is_same_stem, has_addition, has_same_parts, has_same_number):
        candidates_of = find_candidates(images_left, masks_left, agree)
        for image, candidates in candidates_of.items():
            rivals = [other for other in images_left if set(candidates_of[other]) & set(candidates)]
            if len(candidates) == 1 and rivals == [image]:
                pairing.mask_of[image] = candidates[0]
                if agree is has_same_number:
                    pairing.by_number.append(image)
            elif candidates:
                pairing.problems.append(describe_conflict(image, candidates, rivals))

        # What is unclear stays so: a weaker comparison must not decide it.
        asked = {mask for candidates in candidates_of.values() for mask in candidates}
        images_left = [image for image in images_left if not candidates_of[image]]
        masks_left = [mask for mask in masks_left if mask not in asked]

    # In the order of the images, each problem once.
    pairing.mask_of = {
        image: pairing.mask_of[image] for image in images if image in pairing.mask_of
    }
    pairing.by_number = [image for image in images if image in pairing.by_number]
    pairing.problems = list(dict.fromkeys(pairing.problems))
    for image in images_left:
        pairing.problems.append(
            f"{image}: no mask with this stem or last number; add it, or move the image away"
        )

    for mask in masks_left:
        pairing.problems.append(
            f"{mask}: no image with this stem or last number; add it, or remove the mask"
        )

    return pairing


def find_candidates(
    images: list[Path], masks: list[Path], agree: Callable[[str, str], bool]
) -> dict[Path, list[Path]]:
    """Return the masks whose names agree with that of each image."""
    candidates_of = {}
    for image in images:
        candidates_of[image] = [mask for mask in masks if agree(image.stem, mask.stem)]
    if agree is has_addition:
        candidates_of = keep_longest_stems(candidates_of)
    return candidates_of


def keep_longest_stems(candidates_of: dict[Path, list[Path]]) -> dict[Path, list[Path]]:
    """Return candidates with each mask left to the images with the longest stem.

    `a_1_label_mask` belongs to `a_1_label`, not to `a_1`.
    """
    longest: dict[Path, int] = {}
    for image, candidates in candidates_of.items():
        for mask in candidates:
            longest[mask] = max(longest.get(mask, 0), len(image.stem))

    kept = {}
    for image, candidates in candidates_of.items():
        kept[image] = [mask for mask in candidates if len(image.stem) == longest[mask]]
    return kept


def describe_conflict(image: Path, candidates: list[Path], rivals: list[Path]) -> str:
    """Return in words why the mask of an image is unclear."""
    if len(candidates) > 1:
        names = ", ".join(mask.name for mask in candidates)
        return (
            f"{image}: {len(candidates)} masks fit ({names}); name masks like their images, and "
            "have one for each"
        )

    names = ", ".join(other.name for other in rivals)
    return f"{candidates[0]}: fits {len(rivals)} images ({names}); name masks like their images"


# --- names ----------------------------------------------------------------------------------------


def is_same_stem(image: str, mask: str) -> bool:
    """Return whether two stems are the same text."""
    return plain_text(image) == plain_text(mask)


def has_addition(image: str, mask: str) -> bool:
    """Return whether a mask's stem is the image's with a usual addition, set off by a sign.

    An addition in front is all of usual words. Behind the stem the first word has to be one: a
    version or a date may follow.
    """
    image = plain_text(image).lower()
    mask = plain_text(mask).lower()
    if CHANNEL.sub("", image) == mask and image != mask:
        return True
    if len(mask) <= len(image) + 1:
        return False

    if mask.startswith(image) and not mask[len(image)].isalnum():
        words = words_of(mask[len(image) :])
        return bool(words) and words[0] in MASK_WORDS
    if mask.endswith(image) and not mask[-len(image) - 1].isalnum():
        words = words_of(mask[: -len(image)])
        return bool(words) and set(words) <= MASK_WORDS
    return False


def words_of(text: str) -> list[str]:
    """Return the words and numbers in a part of a name."""
    return re.findall(r"\d+|[^\W\d_]+", text)


def has_same_parts(image: str, mask: str) -> bool:
    """Return whether two stems have the same parts, without the words that tell masks from images.

    Parts may stand in any order. Stems without a number never match, and `+` signs count: they
    tell places above zero from places below.
    """
    if not any(char.isdecimal() for char in image):
        return False
    if image.count("+") != mask.count("+"):
        return False
    return labelled_numbers(image) == labelled_numbers(mask)


def labelled_numbers(stem: str) -> tuple[list[str], list[str]]:
    """Return the parts of a stem, sorted: words with the number that touches them, then bare numbers in order.

    `s1_z2` and `z2_s1` are the same place, `s1_z2` and `z1_s2` are two, and so are `tile_3_9` and
    `tile_9_3`.
    """
    text = BIT_DEPTH.sub("", plain_text(stem).lower())
    named = []
    bare = []
    for part in re.findall(r"[^\W\d_]*\d+|[^\W\d_]+", text):
        word, number = re.fullmatch(r"([^\W\d_]*)(\d*)", part).groups()
        if number:
            number = str(int(number))
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
    """Return the last number in a name: 7 for `image_v2_07` and `mask_007_inv`; None for none."""
    numbers = re.findall(r"\d+", name)
    if not numbers:
        return None
    return int(numbers[-1])


# --- pixels ---------------------------------------------------------------------------------------


def agreement(image: np.ndarray, mask: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Return how much better a mask fits its image in its own place than beside it.

    Three things are measured along the outline of the mask: how fast the image changes there, the
    difference between a narrow band inside and one outside, and how bright the foreground is. Each
    is compared with what the same mask shows in `SHIFTS` other places, one to three diameters of
    its particles away, so that it stays on the sample.

    This is a permutation test: in units of the standard deviation over the other places, masks of
    other slices score about 0 ± 1. Either sign may mean agreement.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
    mask : (H, W) uint8 ndarray of 0 and 1
    seed : int
        Of the other places.

    Returns
    -------
    (3,) ndarray, or None
        Standard deviations; None where the mask has hardly an outline.
    """
    pixels = pixels_to_measure(mask)
    if pixels is None:
        return None
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 2.0)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    diameter = mean_diameter(mask, len(pixels["outline"][0]))

    rng = np.random.default_rng(seed)
    elsewhere = []
    for _ in range(SHIFTS):
        distance = min(diameter * rng.uniform(1, 3), min(mask.shape) / 2)
        angle = rng.uniform(0, 2 * np.pi)
        shift = (round(distance * np.sin(angle)), round(distance * np.cos(angle)))
        elsewhere.append(measure_shifted(smooth, slope, pixels, shift))

    here = np.array(measure_shifted(smooth, slope, pixels, (0, 0)))

    spread = np.maximum(np.std(elsewhere, axis=0), 1e-9)
    return (here - np.mean(elsewhere, axis=0)) / spread


def pixels_to_measure(mask: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Return rows and columns of the outline, of bands at both sides of it, and of the foreground.

    The result is None where the mask has hardly an outline.
    """
    inside = mask.astype(bool)
    nine = np.ones((9, 9), np.uint8)
    places = {
        "outline": outline_of(mask),
        "band inside": inside & ~cv2.erode(mask, nine).astype(bool),
        "band outside": cv2.dilate(mask, nine).astype(bool) & ~inside,
        "foreground": inside,
    }
    if np.count_nonzero(places["outline"]) < LEAST_OUTLINE:
        return None
    if not all(place.any() for place in places.values()):
        return None
    return {name: np.nonzero(place) for name, place in places.items()}


def outline_of(mask: np.ndarray) -> np.ndarray:
    """Return the pixels on both sides of the outline of a mask, (H, W) bool."""
    three = np.ones((3, 3), np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, three).astype(bool)


def mean_diameter(mask: np.ndarray, outline: int) -> float:
    """Return the mean diameter of discs with this area and outline, of the smaller phase [px].

    The outline is drawn two pixels wide. The result is at least 8.
    """
    painted = np.count_nonzero(mask)
    area = min(painted, mask.size - painted)
    return max(8.0, 4 * area / (outline / 2))


def measure_shifted(
    smooth: np.ndarray,
    slope: np.ndarray,
    pixels: dict[str, tuple[np.ndarray, np.ndarray]],
    shift: tuple[int, int],
) -> list[float]:
    """Measure an image along a mask that is shifted, around the border where it leaves the image.

    Returns
    -------
    list of float
        The mean slope along the outline, the difference of the bands at both sides of it, and the
        mean of the foreground.
    """
    height, width = smooth.shape
    down, right = shift
    mean = {}
    for name, (rows, columns) in pixels.items():
        values = slope if name == "outline" else smooth
        mean[name] = float(values[(rows + down) % height, (columns + right) % width].mean())

    contrast = mean["band inside"] - mean["band outside"]
    return [mean["outline"], contrast, mean["foreground"]]


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
        Numbers of pairs whose foreground is as dark as that of the others is bright, or the other
        way round.
    """

    mean: float | None
    strangers: list[int] = field(default_factory=list)
    inverted: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)


def judge_pairs(slices: Iterable[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    """Return whether images and masks agree, all together and one by one.

    Masks with a short outline say little by themselves; where all are so, they are judged together.
    """
    long: dict[int, np.ndarray] = {}
    short: list[np.ndarray] = []
    length_of_short = 0
    for i, (image, mask) in enumerate(slices):
        length = np.count_nonzero(outline_of(mask))
        if length < LEAST_OUTLINE:
            continue
        if length < OUTLINE:
            length_of_short += length
        scores = agreement(image, mask)
        if scores is None:
            continue
        if length < OUTLINE:
            short.append(scores)
        else:
            long[i] = scores

    if long:
        return judge_one_by_one(long)
    if short and length_of_short >= OUTLINE:
        return judge_together(short)
    return Agreement(None)


def judge_together(scores: list[np.ndarray]) -> Agreement:
    """Return whether pairs agree that say little by themselves.

    The sum of N scores, each in units of its standard deviation, over √N is one in such units
    again.
    """
    together = np.abs(np.sum(scores, axis=0)) / np.sqrt(len(scores))
    return Agreement(float(together.max()))


def judge_one_by_one(scores_of: dict[int, np.ndarray]) -> Agreement:
    """Return which of these pairs agree, by their scores: (3,) each."""
    numbers = list(scores_of)
    scores = np.array(list(scores_of.values()))  # (N, 3)
    strongest = np.abs(scores).max(axis=1)  # (N,)
    mean = float(np.abs(scores.mean(axis=0)).max())

    strangers = []
    if strongest.max() >= CLEAR_AGREEMENT:
        strangers = [numbers[i] for i in np.flatnonzero(strongest < STRANGER)]

    inverted = find_inverted(numbers, contrast=scores[:, 1])
    if inverted:
        # Scores of either sign cancel in the mean.
        mean = max(mean, float(strongest.max()))
    return Agreement(mean, strangers, inverted, numbers)


def find_inverted(numbers: list[int], contrast: np.ndarray) -> list[int]:
    """Return the numbers of pairs whose contrast clearly has the sign that most have not."""
    is_clear = np.abs(contrast) >= CLEAR_AGREEMENT
    if not is_clear.any():
        return []
    sign = np.sign(contrast)
    usual = np.sign(np.sum(sign[is_clear]))
    if usual == 0:
        usual = 1.0
    return [numbers[i] for i in np.flatnonzero(is_clear & (sign != usual))]
