"""Splits keep their parts apart, and name what is wrong with a file."""

import itertools
import json

import pytest

from runtime.messages import InputError
from slices import splits
from slices.splits import SplitOptions

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
    assert split["test"] == STEMS[7 * fold : 7 * fold + 7]
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
        splits.make_split(tmp_path, STEMS, SplitOptions("random", fold=1))


def make(root, how="auto"):
    return splits.make_split(root, STEMS, SplitOptions(how))


def test_split_by_file_is_the_default_where_there_is_one(tmp_path):
    assert make(tmp_path) == make(tmp_path, "random")
    (tmp_path / "splits").mkdir()
    file = tmp_path / "splits" / "split.json"
    file.write_text(json.dumps({"train": ["s3", "s1"], "test": ["s20"]}))
    assert make(tmp_path) == {"train": ["s1", "s3"], "val": [], "test": ["s20"]}
    assert make(tmp_path, str(file)) == make(tmp_path)
    assert len(make(tmp_path, "blocks")["train"]) == 14


def test_names_of_files_and_other_spellings_are_known(tmp_path):
    file = tmp_path / "split.json"
    stems = ["s.1", "k\N{LATIN SMALL LETTER O WITH DIAERESIS}ln", "a"]
    file.write_text(json.dumps({"train": ["s.1.tif", "a.PNG"], "test": ["ko\u0308ln.tiff"]}))
    split = splits.make_split(tmp_path, stems, SplitOptions(str(file)))
    assert split == {"train": ["a", "s.1"], "val": [], "test": [stems[1]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["s1"], "test": ["s1"]}, "s1: stands in train and test"),
        ({"train": ["s1", "s1"]}, "s1: stands in train and train"),
        ({"train": ["s99"]}, "s99: in train, but no labelled slice"),
        ({"train": "s1"}, "train: expected a list of stems"),
        ({"train": [1]}, "train: expected a list of stems"),
        ({"train": []}, "train: holds no slice"),
        ({"train": ["s1"], "tests": ["s3"]}, "tests: not a part of a split"),
        ([1], "holds a list, expected an object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_wrong_split_files(tmp_path, content, message):
    file = tmp_path / "split.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        make(tmp_path, str(file))
