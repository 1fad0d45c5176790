"""Any bytes, names and split files: read and right, or refused in one line. `make stress` tries 20,000 of each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.messages import InputError
from slices import reading
from slices.masks import read_mask
from slices.pairing import pair_files
from slices.pictures import READERS
from slices.splits import split_problems
from volumes.reading import open_volume
from wrong_files import IMAGES, MASKS, split_file

FUZZ = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read_or_refused(read: Callable, path: Path) -> None:
    """A slice that is not empty, or an error that names the file."""
    try:
        result = read(path)
    except InputError as refusal:
        said = str(refusal)
    else:
        assert result.ndim == 2
        assert result.size
        return
    assert str(path) in said


@pytest.mark.fuzz
@FUZZ
@given(
    st.sampled_from(
        [c for c, (_, said, _) in IMAGES.items() if said is None and c != "long and narrow"]
        + [c for c, (_, _, said, _) in MASKS.items() if said is None]
    ),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0, 1.5),
)
def test_damaged_bytes_are_read_or_refused(tmp_path, case, changes, kept):
    """Any change of any byte, any loss of the end: an array of two axes, or one line."""
    suffix, write = (".tif", IMAGES[case][0]) if case in IMAGES else MASKS[case][:2]
    path = tmp_path / f"a{suffix}"
    path.unlink(missing_ok=True)
    write(path)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: int(kept * len(content))])
    for read in (
        reading.read_array,
        reading.read_image,
        read_mask,
        lambda p: open_volume(p).read(0),
    ):
        read_or_refused(read, path)


@pytest.mark.fuzz
@FUZZ
@given(
    st.binary(max_size=300),
    st.sampled_from(sorted(READERS)),
    st.sampled_from(
        [
            b"",
            b"II*\0\x08\0\0\0",
            b"MM\0*\0\0\0\x08",
            b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
            b"\x89PNG\r\n\x1a\n",
            b"BM",
            b"\x93NUMPY\x01\0",
            b"\x93NUMPY\x02\0",
        ]
    ),
)
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix, start):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(start + content)
    read_or_refused(reading.read_array, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
)


@pytest.mark.fuzz
@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["train", "val", "test", "x"]), JSON | st.lists(st.sampled_from("abc"))
    )
)
def test_any_split_is_taken_or_refused(tmp_path, content):
    path = tmp_path / "split.json"
    split_file(content)(path)
    problems = split_problems(json.loads(path.read_text()), ["a", "b"])
    if not problems:
        assert set(content) <= {"train", "val", "test"}
        stems = [stem for part in content.values() for stem in part]
        assert len(set(stems)) == len(stems)
        assert set(stems) <= {"a", "b"}
        assert "b" not in [*content.get("val", []), *content.get("test", [])]
        assert content["train"]


@pytest.mark.fuzz
@FUZZ
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6),
        max_size=5,
        unique=True,
    ),
    st.lists(
        st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6),
        max_size=5,
        unique=True,
    ),
)
def test_any_names_are_paired_or_reported(images, masks):
    images, masks = (
        [Path("i") / f"{n}.tif" for n in images],
        [Path("m") / f"{n}.png" for n in masks],
    )
    result = pair_files(images, masks)
    pairs, problems = result.mask_of, result.problems
    assert set(pairs) <= set(images)
    assert len(problems) >= len(set(images) - set(pairs))
    assert set(pairs.values()) <= set(masks)
