"""Which slices train, choose the checkpoint, and test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.files import read_json
from runtime.messages import InputError
from slices.reading import MASK_SUFFIXES, natural_key, plain_text

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitOptions:
    """How labelled slices are split into train, val and test.

    Attributes
    ----------
    how : str
        `random`, `blocks`, the path of a JSON file, or `auto`: `splits/split.json` of the data set
        where it exists, else `random`.
    val_fraction, test_fraction : float
        Shares of the labelled slices, 0 to 1.
    fold : int
        Which block is the test set, from 0; for `blocks` only.
    seed : int
        Of a random split.
    """

    how: str = "auto"
    val_fraction: float = 0.18
    test_fraction: float = 0.18
    fold: int = 0
    seed: int = 0


def make_split(root: Path, stems: list[str], options: SplitOptions) -> dict[str, list[str]]:
    """Split labelled stems into train, val and test, each in natural order.

    Parameters
    ----------
    root : Path
        The data folder.
    stems : list of str
        Of all labelled slices, in natural order.
    options : SplitOptions

    Raises
    ------
    InputError
        With the first thing that `split_problems` finds, and where a fraction leaves nothing to
        learn from.
    """
    how = options.how
    if options.fold and how != "blocks":
        raise InputError(f"--fold {options.fold}: has a meaning only with --split blocks")

    stated = root / "splits" / "split.json"
    if how == "auto":
        how = str(stated) if stated.exists() else "random"

    n_val = round(options.val_fraction * len(stems))
    n_test = round(options.test_fraction * len(stems))
    if how == "blocks":
        split = split_by_blocks(stems, n_val, n_test, options.fold)
        source = "split by blocks"
    elif how == "random":
        split = split_at_random(stems, n_val, n_test, options.seed)
        source = "random split"
    else:
        split = known_stems(read_json(Path(how)), stems)
        source = how

    problems = split_problems(split, stems)
    if problems:
        raise InputError(f"{source}: {problems[0]}")
    return {part: sorted(split.get(part, []), key=natural_key) for part in PARTS}


def split_by_blocks(
    stems: list[str], n_val: int, n_test: int, fold: int = 0
) -> dict[str, list[str]]:
    """Split into contiguous blocks of the natural order.

    The test slices are block number `fold`, the validation slices the end farther from it.
    Neighbouring slices of a volume are near-copies; only whole blocks measure generalisation.
    """
    if n_val + n_test >= len(stems):
        raise InputError(
            f"{n_val} validation and {n_test} test slices leave none of {len(stems)} to learn from; "
            "lower --val-fraction or --test-fraction"
        )

    first = fold * n_test
    end = first + n_test
    if end > len(stems):
        last_fold = len(stems) // max(1, n_test) - 1
        raise InputError(
            f"fold {fold} of {n_test} slices goes beyond the {len(stems)} labelled; "
            f"folds 0 to {last_fold} exist"
        )

    rest = stems[:first] + stems[end:]
    slices_after_test = len(stems) - end
    if first <= slices_after_test:
        val = rest[len(rest) - n_val :]
    else:
        val = rest[:n_val]

    train = [stem for stem in rest if stem not in val]
    return {"train": train, "val": val, "test": stems[first:end]}


def split_at_random(stems: list[str], n_val: int, n_test: int, seed: int) -> dict[str, list[str]]:
    """Put each slice into one part by chance; the order inside a part stays natural."""
    order = np.random.default_rng(seed).permutation(len(stems))
    chosen = {
        "test": order[:n_test],
        "val": order[n_test : n_test + n_val],
        "train": order[n_test + n_val :],
    }
    return {part: [stems[i] for i in sorted(chosen[part])] for part in PARTS}


def known_stems(split: dict, stems: list[str]) -> dict:
    """Return a split with its names as the labelled slices have them.

    A name may have the suffix of a file (`slice_07.tif`), and letters with accents in another
    spelling. What is not a list is returned as it is: `split_problems` names it.
    """
    known = {}
    for part, names in split.items():
        if isinstance(names, list):
            names = [known_stem(name, stems) for name in names]
        known[part] = names

    return known


def known_stem(name: object, stems: list[str]) -> object:
    """Return the stem that a name of a split means; what is not text is returned as it is."""
    if not isinstance(name, str):
        return name
    plain = plain_text(name)
    if plain not in stems and Path(plain).suffix.lower() in MASK_SUFFIXES:
        return Path(plain).stem
    return plain


def split_problems(split: dict, stems: list[str]) -> list[str]:
    """Return what is wrong with a split, one line each.

    That is unknown parts or stems, a stem that stands twice, and nothing to train on.
    """
    problems = []
    for part in split:
        if part not in PARTS:
            problems.append(f"{part}: not a part of a split; parts are {', '.join(PARTS)}")

    parts = {}
    for part in PARTS:
        parts[part] = split.get(part, [])
        if not is_list_of_text(parts[part]):
            problems.append(f"{part}: expected a list of stems")
            parts[part] = []

    named = {stem for names in parts.values() for stem in names}
    for stem in sorted(named, key=natural_key):
        places = []
        for part in PARTS:
            places += [part] * parts[part].count(stem)
        if len(places) > 1:
            problems.append(f"{stem}: stands in {' and '.join(places)}; keep it in one part")
        if stem not in stems:
            problems.append(f"{stem}: in {places[0]}, but no labelled slice has this stem")

    if not parts["train"]:
        problems.append("train: holds no slice; nothing to learn from")
    return problems


def is_list_of_text(value: object) -> bool:
    """Return whether a value is a list of nothing but text."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
