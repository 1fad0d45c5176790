"""Pairing of images and masks, and splits that keep their parts apart."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import splits
from utils import InputError


def test_pairing(tmp_path):
    def paths(*names):
        return [tmp_path / name for name in names]

    images = paths("image_v2_07.tif", "image_v2_10.tif", "other.tif")
    masks = paths("mask_007_inv.npy", "image_v2_mask_10.tif", "other.png")
    pairs, problems = splits.pair_files(images, masks)
    assert problems == []
    assert {i.name: m.name for i, m in pairs.items()} == {
        "image_v2_07.tif": "mask_007_inv.npy", "image_v2_10.tif": "image_v2_mask_10.tif", "other.tif": "other.png"}


def test_pairing_prefers_the_stem(tmp_path):
    images, masks = [tmp_path / "a_1.tif", tmp_path / "b_1.tif"], [tmp_path / "a_1.png", tmp_path / "b_1.png"]
    pairs, problems = splits.pair_files(images, masks)
    assert problems == []
    assert [m.stem for m in pairs.values()] == ["a_1", "b_1"]


@given(st.lists(st.from_regex(r"[a-z_]{0,3}[0-9]{0,4}[a-z]{0,2}", fullmatch=True), max_size=6, unique=True),
       st.lists(st.from_regex(r"[a-z_]{0,3}[0-9]{0,4}[a-z]{0,2}", fullmatch=True), max_size=6, unique=True))
def test_every_file_is_paired_or_reported(images, masks):
    images, masks = [Path("i") / f"{n}.tif" for n in images], [Path("m") / f"{n}.tif" for n in masks]
    pairs, problems = splits.pair_files(images, masks)
    used = list(pairs.values())
    for file in [*images, *masks]:
        fine = file in pairs or used.count(file) == 1
        assert fine or any(str(file) in p or file.name in p for p in problems)


STEMS = [f"s{i}" for i in range(22)]


def test_random_split_has_the_recipes_sizes_and_a_seed():
    split = splits.split_at_random(STEMS, 4, 4, seed=1)
    assert [len(split[part]) for part in splits.PARTS] == [14, 4, 4]
    assert sorted(itertools.chain(*split.values())) == sorted(STEMS)
    assert split == splits.split_at_random(STEMS, 4, 4, seed=1)
    assert split != splits.split_at_random(STEMS, 4, 4, seed=2)


@pytest.mark.parametrize("fold", range(3))
def test_block_split_is_contiguous_and_keeps_val_away_from_test(fold):
    split = splits.split_by_blocks(STEMS, 3, 7, fold)
    assert split["test"] == STEMS[7 * fold:7 * fold + 7]
    assert split["val"] == (STEMS[:3] if fold == 2 else STEMS[-3:])
    assert sorted(itertools.chain(*split.values())) == sorted(STEMS)


def test_fold_beyond_the_end():
    with pytest.raises(InputError, match="folds 0 to 2 exist"):
        splits.split_by_blocks(STEMS, 3, 7, 3)


def test_fractions_that_leave_nothing_to_learn_from():
    with pytest.raises(InputError, match="leave none of 10 to learn from"):
        splits.split_by_blocks(STEMS[:10], 9, 3)


def test_a_fold_without_blocks_is_an_error(tmp_path):
    with pytest.raises(InputError, match="--fold 1: has a meaning only with --split blocks"):
        splits.make_split(tmp_path, STEMS, "random", 0.18, 0.18, 1, 0, [])


def test_problems_name_every_file(tmp_path):
    images, masks = [tmp_path / "a_11.tif"], [tmp_path / "1.tif", tmp_path / "x_11.tif", tmp_path / "y_11.tif"]
    _, problems = splits.pair_files(images, masks)
    assert [Path(p.split(": ")[0]).name for p in problems] == ["a_11.tif", "1.tif"]


def make(root, how="auto", unlabelled=()):
    return splits.make_split(root, STEMS, how, 0.18, 0.18, 0, 0, list(unlabelled))


def test_split_by_file_is_the_default_where_there_is_one(tmp_path):
    assert make(tmp_path) == make(tmp_path, "random")
    (tmp_path / "splits").mkdir()
    file = tmp_path / "splits" / "split.json"
    file.write_text(json.dumps({"train": ["s3", "s1"], "test": ["s20"]}))
    assert make(tmp_path) == {"train": ["s1", "s3"], "val": [], "test": ["s20"]}
    assert make(tmp_path, str(file)) == make(tmp_path)
    assert len(make(tmp_path, "blocks")["train"]) == 14


@pytest.mark.parametrize(("content", "message"), [
    ({"train": ["s1"], "test": ["s1"]}, "s1: stands in train and test"),
    ({"train": ["s1", "s1"]}, "s1: stands in train and train"),
    ({"train": ["s99"]}, "s99: in train, but no labelled slice"),
    ({"train": ["s1"], "test": ["s2"]}, "s2: a test slice that is also among the unlabelled"),
    ({"train": "s1"}, "train: expected a list of stems"),
    ({"train": [1]}, "train: expected a list of stems"),
    ({"train": []}, "train: holds no slice"),
    ({"train": ["s1"], "tests": ["s3"]}, "tests: not a part of a split"),
    ([1], "holds a list, expected an object"),
    ("{", "cannot be read as JSON"),
])
def test_wrong_split_files(tmp_path, content, message):
    file = tmp_path / "split.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        make(tmp_path, str(file), unlabelled=["s2"])
