"""Which mask belongs to which image, and which slices train, choose the checkpoint, and test."""

import re
from pathlib import Path

import numpy as np

from slices import natural_key
from utils import InputError, read_json

PARTS = ("train", "val", "test")


# --- pairing --------------------------------------------------------------------------------------------------

def last_number(name: str) -> int | None:
    """The last number in a name: 7 for `image_v2_07`, `mask_007_inv` and `image_v2_mask_07`."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def pair_files(images: list[Path], masks: list[Path]) -> tuple[dict[Path, Path], list[str]]:
    """Find the mask of each image: the same stem, else the same last number.

    Returns
    -------
    pairs : dict of Path to Path
    problems : list of str
        One line for each image or mask without a partner or with several.
    """
    pairs: dict[Path, Path] = {}
    problems: list[str] = []
    fitting: list[Path] = []  # masks of images for which several fit
    for image in images:
        found = [m for m in masks if m.stem == image.stem]
        if not found and last_number(image.stem) is not None:
            found = [m for m in masks if last_number(m.stem) == last_number(image.stem)]
        if len(found) == 1:
            pairs[image] = found[0]
        elif found:
            fitting += found
            problems.append(f"{image}: {len(found)} masks fit ({', '.join(m.name for m in found)}); keep one")
        else:
            problems.append(f"{image}: no mask with this stem or last number; add it, or move the image away")
    for mask in masks:
        users = [i.name for i, m in pairs.items() if m == mask]
        if len(users) > 1:
            problems.append(f"{mask}: fits {len(users)} images ({', '.join(users)}); name masks like their images")
        elif not users and mask not in fitting:
            problems.append(f"{mask}: no image with this stem or last number; add it, or remove the mask")
    return pairs, problems


# --- splitting ------------------------------------------------------------------------------------------------

def split_by_blocks(stems: list[str], n_val: int, n_test: int, fold: int = 0) -> dict[str, list[str]]:
    """Contiguous blocks of the natural order: test is block number `fold`, val the end farther from it.

    Neighbouring slices of a volume are near-copies; only whole blocks measure generalisation.
    """
    if n_val + n_test >= len(stems):
        raise InputError(f"{n_val} validation and {n_test} test slices leave none of {len(stems)} to learn from; "
                         "lower --val-fraction or --test-fraction")
    first = fold * n_test
    if first + n_test > len(stems):
        raise InputError(f"fold {fold} of {n_test} slices goes beyond the {len(stems)} labelled; "
                         f"folds 0 to {len(stems) // max(1, n_test) - 1} exist")
    rest = stems[:first] + stems[first + n_test:]
    val_at_end = first <= len(stems) - (first + n_test)
    val = rest[len(rest) - n_val:] if val_at_end else rest[:n_val]
    return {"train": [s for s in rest if s not in val], "val": val, "test": stems[first:first + n_test]}


def split_at_random(stems: list[str], n_val: int, n_test: int, seed: int) -> dict[str, list[str]]:
    """Each slice into one part by chance; the order inside a part stays natural."""
    order = np.random.default_rng(seed).permutation(len(stems))
    chosen = {"test": order[:n_test], "val": order[n_test:n_test + n_val], "train": order[n_test + n_val:]}
    return {part: [stems[i] for i in sorted(chosen[part])] for part in PARTS}


def split_problems(split: dict, stems: list[str], unlabelled: list[str]) -> list[str]:
    """What is wrong with a split, one line each: unknown parts or stems, a stem twice, tests among unlabelled."""
    problems = [f"{part}: not a part of a split; parts are {', '.join(PARTS)}" for part in split if part not in PARTS]
    parts = {}
    for part in PARTS:
        parts[part] = split.get(part, [])
        if not isinstance(parts[part], list) or not all(isinstance(s, str) for s in parts[part]):
            problems.append(f"{part}: expected a list of stems")
            parts[part] = []
    for stem in sorted({s for names in parts.values() for s in names}, key=natural_key):
        places = [part for part in PARTS for s in parts[part] if s == stem]
        if len(places) > 1:
            problems.append(f"{stem}: stands in {' and '.join(places)}; keep it in one part")
        if stem not in stems:
            problems.append(f"{stem}: in {places[0]}, but no labelled slice has this stem")
        if stem in unlabelled and {"val", "test"} & set(places):
            problems.append(f"{stem}: a {places[0]} slice that is also among the unlabelled; remove it there")
    if not parts["train"]:
        problems.append("train: holds no slice; nothing to learn from")
    return problems


def make_split(root: Path, stems: list[str], how: str, val_fraction: float, test_fraction: float, fold: int,
               seed: int, unlabelled: list[str]) -> dict[str, list[str]]:
    """Split labelled stems into train, val and test.

    Parameters
    ----------
    how : str
        `random`, `blocks`, the path of a JSON file, or `auto`: `splits/split.json` of the data set where it
        exists, else `random`.

    Raises
    ------
    InputError
        With the first thing that `split_problems` finds.
    """
    default = root / "splits" / "split.json"
    n_val, n_test = round(val_fraction * len(stems)), round(test_fraction * len(stems))
    if fold and how != "blocks":
        raise InputError(f"--fold {fold}: has a meaning only with --split blocks")
    if how == "blocks":
        split, source = split_by_blocks(stems, n_val, n_test, fold), "split by blocks"
    elif how == "random" or (how == "auto" and not default.exists()):
        split, source = split_at_random(stems, n_val, n_test, seed), "random split"
    else:
        source = default if how == "auto" else Path(how)
        split = read_json(source)
    problems = split_problems(split, stems, unlabelled)
    if problems:
        raise InputError(f"{source}: {problems[0]}")
    return {part: sorted(split.get(part, []), key=natural_key) for part in PARTS}
