"""Masks find their images by name, and pixels tell whether they belong together."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import labelled
from slices.pairing import LEAST_AGREEMENT, agreement, judge_pairs, pair_files

DIAERESIS = "\N{LATIN SMALL LETTER O WITH DIAERESIS}"
NAMES = {
    "two samples": [(f"{s}_{i:02d}", f"{s}_{i:02d}_mask") for s in "AB" for i in (7, 8, 9)],
    "label behind": [(f"slice{i:04d}", f"slice{i:04d}_label") for i in (1, 2, 10)],
    "bits in the name": [(f"slice_{i:03d}_8bit", f"slice_{i:03d}_8bit_mask") for i in (1, 2, 3)],
    "a version behind": [(f"img_{i}", f"img_{i}_mask_v2") for i in (1, 2, 3)],
    "cellpose": [(f"img_{i}", f"img_{i}_cp_masks") for i in (1, 2, 3)],
    "ilastik": [(f"s_{i}", f"s_{i}_Simple Segmentation") for i in (1, 2, 3)],
    "a dash": [(f"s{s}_t{t}", f"s{s}_t{t}-mask") for s in (1, 2) for t in (0, 1)],
    "parts in another order": [(f"s{s}_z{z}", f"z{z}_s{s}") for s, z in ((1, 2), (2, 1), (3, 3))],
    "another spelling": [
        (f"k{DIAERESIS}ln_a", "ko\u0308ln_a"),
        (f"k{DIAERESIS}ln_b", "ko\u0308ln_b"),
    ],
    "a word in the middle": [(f"image_v2_{i:02d}", f"image_v2_mask_{i:02d}") for i in (3, 4)],
    "image and mask": [(f"image{i}", f"mask{i}") for i in (1, 2, 3)],
    "a word in front": [(f"IMG_{i}", f"GT_{i}") for i in (1, 2)],
    "capitals": [(f"Slice_{i}", f"slice_{i}_Mask") for i in (1, 2)],
    "no sign between": [(f"slice{i}", f"slice{i}mask") for i in (1, 2)],
    "numbers that begin alike": [(f"a{i}", f"a{i}_mask") for i in (1, 10, 100)],
    "words alone": [("left", "left_mask"), ("right", "right_mask")],
    "Fiji": [(f"{s}_{i:03d}", f"Mask of {s}_{i:03d}") for s in "AB" for i in (1, 2)],
    "a suffix within": [(f"A_{i:03d}", f"A_{i:03d}.tif_mask") for i in (1, 2)],
    "Dragonfly": [(f"{s}_{i:04d}", f"{s}_ROI_{i:04d}") for s in "AB" for i in (1, 2)],
    "nnU-Net": [(f"case_{i:03d}_0000", f"case_{i:03d}") for i in (1, 2)],
    "bits of the image alone": [(f"slice_{i:03d}_8bit", f"slice_{i:03d}_mask") for i in (1, 2)],
    "zeros in front": [(f"scan_{i}", f"scan_{i:05d}_seg") for i in (3, 12)],
}


@pytest.mark.parametrize("names", NAMES)
def test_masks_are_called_as_people_call_them(names):
    images, masks = (
        [Path(f"{name}.tif") for name in part] for part in zip(*NAMES[names], strict=True)
    )
    for order in (masks, masks[::-1]):
        result = pair_files(images, list(order))
        assert result.problems == []
        assert [result.mask_of[image] for image in images] == masks
        assert result.by_number == []


def test_what_only_a_number_pairs_is_said():
    images = [Path(f"image_v2_{i:02d}.tif") for i in (7, 8)]
    masks = [Path(f"painted_{i:03d}_inv.npy") for i in (7, 8)]
    result = pair_files(images, masks)
    assert [result.mask_of[image] for image in images] == masks
    assert result.by_number == images


def test_places_with_bare_numbers_are_not_turned_round():
    images, masks = (
        [Path("tile_3_9.tif"), Path("z-5.tif")],
        [Path("tile_9_3_mask.tif"), Path("z+5_mask.tif")],
    )
    result = pair_files(images, masks)
    assert result.mask_of.get(images[0]) is None or images[0] in result.by_number
    assert result.mask_of.get(images[1]) is None or images[1] in result.by_number


def test_numbers_of_two_samples_do_not_pair():
    images = [Path(f"{s}_{i}.tif") for s in "AB" for i in (1, 2)]
    result = pair_files(images, [Path(f"m{i}.tif") for i in (1, 2)])
    assert result.mask_of == {}
    assert any("m1.tif: fits 2 images (A_1.tif, B_1.tif)" in line for line in result.problems)


def test_pairing(tmp_path):
    def paths(*names):
        return [tmp_path / name for name in names]

    images = paths("image_v2_07.tif", "image_v2_10.tif", "other.tif")
    masks = paths("mask_007_inv.npy", "image_v2_mask_10.tif", "other.png")
    result = pair_files(images, masks)
    pairs, problems = result.mask_of, result.problems
    assert problems == []
    assert {i.name: m.name for i, m in pairs.items()} == {
        "image_v2_07.tif": "mask_007_inv.npy",
        "image_v2_10.tif": "image_v2_mask_10.tif",
        "other.tif": "other.png",
    }


def test_pairing_prefers_the_stem(tmp_path):
    images, masks = (
        [tmp_path / "a_1.tif", tmp_path / "b_1.tif"],
        [tmp_path / "a_1.png", tmp_path / "b_1.png"],
    )
    result = pair_files(images, masks)
    pairs, problems = result.mask_of, result.problems
    assert problems == []
    assert [m.stem for m in pairs.values()] == ["a_1", "b_1"]


@given(
    st.lists(
        st.from_regex(r"[a-z_]{0,3}[0-9]{0,4}[a-z]{0,2}", fullmatch=True), max_size=6, unique=True
    ),
    st.lists(
        st.from_regex(r"[a-z_]{0,3}[0-9]{0,4}[a-z]{0,2}", fullmatch=True), max_size=6, unique=True
    ),
)
def test_every_file_is_paired_or_reported(images, masks):
    images, masks = (
        [Path("i") / f"{n}.tif" for n in images],
        [Path("m") / f"{n}.tif" for n in masks],
    )
    result = pair_files(images, masks)
    pairs, problems = result.mask_of, result.problems
    used = list(pairs.values())
    for file in [*images, *masks]:
        fine = file in pairs or used.count(file) == 1
        assert fine or any(str(file) in p or file.name in p for p in problems)


def test_problems_name_every_file(tmp_path):
    images, masks = (
        [tmp_path / "a_11.tif"],
        [tmp_path / "1.tif", tmp_path / "x_11.tif", tmp_path / "y_11.tif"],
    )
    problems = pair_files(images, masks).problems
    assert [Path(p.split(": ")[0]).name for p in problems] == ["a_11.tif", "1.tif"]


# --- pixels ---------------------------------------------------------------------------------------------------


def test_own_masks_agree_with_their_slices_and_those_of_others_do_not():
    slices = labelled(8, (256, 240))
    own = judge_pairs((s.image, s.mask) for s in slices)
    assert own.mean > 3 * LEAST_AGREEMENT
    assert own.strangers == own.inverted == []
    others = judge_pairs((s.image, slices[i - 3].mask) for i, s in enumerate(slices))
    assert others.mean < LEAST_AGREEMENT


def many_discs(seed: int, size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A slice in 8 bit with twenty bright discs in noise, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(20):
        cv2.circle(
            mask, tuple(int(c) for c in rng.integers(0, size, 2)), int(rng.integers(5, 12)), 1, -1
        )
    image = 90 + 60.0 * mask + rng.normal(0, 25, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def test_single_strangers_and_inverted_masks_are_named():
    pairs = [many_discs(seed) for seed in range(6)]
    assert judge_pairs(pairs).strangers == []
    swapped = [*pairs[:4], (pairs[4][0], pairs[5][1]), (pairs[5][0], pairs[4][1])]
    assert judge_pairs(swapped).strangers == [4, 5]
    mostly = [
        (image, many_discs(50 + i)[1] if i else mask) for i, (image, mask) in enumerate(pairs)
    ]
    assert judge_pairs(mostly).strangers == [1, 2, 3, 4, 5]
    inverted = [(image, 1 - mask if i in (1, 3) else mask) for i, (image, mask) in enumerate(pairs)]
    assert judge_pairs(inverted).inverted == [1, 3]


def test_a_round_sample_in_air_does_not_make_strangers_agree():
    rows, columns = np.mgrid[:200, :200]
    sample = np.hypot(rows - 99.5, columns - 99.5) < 92
    air = np.random.default_rng(0).integers(0, 60, (200, 200)).astype(np.uint8)
    pairs = [
        (np.where(sample, image, air), mask * sample) for image, mask in map(many_discs, range(12))
    ]
    assert judge_pairs(pairs[:6]).mean > 3 * LEAST_AGREEMENT
    assert judge_pairs([(pairs[i][0], pairs[i + 6][1]) for i in range(6)]).mean < LEAST_AGREEMENT


def test_outlines_alone_are_enough():
    """Particles as bright as what is around them, with an edge: the mean says nothing, the outline does."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:200, :200]
    distance = np.hypot(rows - 90, columns - 110)
    mask = (distance < 40).astype(np.uint8)
    image = np.clip(
        128 + 60 * (np.abs(distance - 40) < 2) + rng.normal(0, 20, mask.shape), 0, 255
    ).astype(np.uint8)
    assert agreement(image, mask).max() > 3 * LEAST_AGREEMENT
    assert np.abs(agreement(image, np.roll(mask, (70, 60), (0, 1)))).max() < 2 * LEAST_AGREEMENT


def test_masks_without_an_outline_are_not_judged():
    slices = labelled(2)
    assert agreement(slices[0].image, np.zeros_like(slices[0].mask)) is None
    assert judge_pairs([(s.image, np.zeros_like(s.mask)) for s in slices]).mean is None


def test_short_outlines_are_judged_together():
    rng = np.random.default_rng(0)
    pairs = []
    for place in ((40, 40), (120, 50), (60, 120), (110, 110), (30, 90), (90, 30)):
        mask = np.zeros((160, 160), np.uint8)
        cv2.circle(mask, place, 12, 1, -1)
        pairs.append(
            (
                np.clip(100 + 40 * mask + rng.normal(0, 12, mask.shape), 0, 255).astype(np.uint8),
                mask,
            )
        )
    assert judge_pairs(pairs).mean > 10
    exchanged = [(image, pairs[(i + 1) % 6][1]) for i, (image, _) in enumerate(pairs)]
    assert judge_pairs(exchanged).mean < LEAST_AGREEMENT
