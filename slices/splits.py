"""Which slices train, choose the checkpoint, and test."""

from pathlib import Path

import numpy as np

from runtime.files import read_json
from runtime.messages import InputError
from slices.reading import MASK_SUFFIXES, natural_key, plain_text

PARTS = ("train", "val", "test")


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


def known_stems(split: dict, stems: list[str]) -> dict:
    """Return a split with its names as the labelled slices have them.

    A name may have the suffix of a file (`slice_07.tif`), and letters with accents in another spelling.
    """
    def known(name: object) -> object:
        if not isinstance(name, str):
            return name
        plain = plain_text(name)
        if plain not in stems and Path(plain).suffix.lower() in MASK_SUFFIXES:
            return Path(plain).stem
        return plain

    return {part: [known(name) for name in names] if isinstance(names, list) else names
            for part, names in split.items()}


def split_problems(split: dict, stems: list[str]) -> list[str]:
    """Return what is wrong with a split, one line each: unknown parts or stems, a stem twice, nothing to train on."""
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
    if not parts["train"]:
        problems.append("train: holds no slice; nothing to learn from")
    return problems


def make_split(root: Path, stems: list[str], how: str, val_fraction: float, test_fraction: float, fold: int,
               seed: int) -> dict[str, list[str]]:
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
        split = known_stems(read_json(source), stems)

    problems = split_problems(split, stems)
    if problems:
        raise InputError(f"{source}: {problems[0]}")
    return {part: sorted(split.get(part, []), key=natural_key) for part in PARTS}
