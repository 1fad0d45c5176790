"""The classes of label maps: which number or colour means what, as `classes.json` of a data folder names it.

A label map says of each pixel which class it belongs to, or that nobody has said so. Two ways of
writing it are known, by the names that `classes.json` gives:

{"1": "matrix", "2": "pore"}                  whole numbers; 0 is not labelled
{"#0000ff": "matrix", "#ff0000": "pore"}      colours; every other colour is not labelled

The first class is the background. Means over classes leave it out, so that with two classes scores
and losses are those of a binary mask.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.files import read_json
from runtime.messages import InputError, breaks_lines

CLASSES_FILE = "classes.json"

MOST_CLASSES = 64
LARGEST_VALUE = 65535
BACKGROUND = 0  # the number of the first class, counted from 0
NOT_LABELLED = 0  # in label maps

Colour = tuple[int, int, int]

# What figures and viewers show classes in that have no colour of their own, the background first.
# From the second one on it is the palette of Okabe & Ito, which people with any kind of colour
# vision can tell apart: Wong, Points of view: Color blindness, 2011, doi:10.1038/nmeth.1618.
PALETTE: tuple[Colour, ...] = (
    (64, 64, 64),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

LONGEST_NAME = 40  # letters


@dataclass(frozen=True)
class Classes:
    """The classes that a label map distinguishes.

    Inside the program a class is its place in this order, counted from 0, which is the background.

    Attributes
    ----------
    names : tuple of str
    values : tuple of int
        What label maps hold for each of them: rising, and 1, 2, 3 … where masks are in colours.
    colours : tuple of (red, green, blue), or None
        In which masks show them, 0 to 255; None where masks hold the values.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[Colour, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_binary(self) -> bool:
        """Whether there is but one class beside the background, for which one logit suffices."""
        return len(self) == 2

    @property
    def foreground(self) -> range:
        """The classes that means are over: all but the background."""
        return range(1, len(self))

    @property
    def shown_colours(self) -> tuple[Colour, ...]:
        """The colours in which figures and viewers show the classes."""
        if self.colours is not None:
            return self.colours
        return tuple(PALETTE[i % len(PALETTE)] for i in range(len(self)))

    def index(self, name: str) -> int:
        """Return the place of a class that is given by its name, or by its value in label maps.

        Raises
        ------
        InputError
            When there is no such class.
        """
        if name in self.names:
            return self.names.index(name)
        if name.isdecimal() and int(name) in self.values:
            return self.values.index(int(name))
        raise InputError(f"{name}: no class has this name; there are {self.describe()}")

    def describe(self) -> str:
        """Return values and names in words: `1 matrix, 2 pore`."""
        return ", ".join(
            f"{value} {name}" for value, name in zip(self.values, self.names, strict=True)
        )

    def keys(self) -> list[str]:
        """Return what stands for each class in masks, as `classes.json` has it."""
        if self.colours is None:
            return [str(value) for value in self.values]
        return [hexadecimal(colour) for colour in self.colours]

    def record(self) -> dict[str, str]:
        """Return the content of a `classes.json` that names these classes."""
        return dict(zip(self.keys(), self.names, strict=True))

    def by_value(self) -> "Classes":
        """Return the same classes as label maps have them that hold values."""
        return Classes(self.names, self.values)


def hexadecimal(colour: Colour) -> str:
    """Return a colour as paint programs write it: #ff0000."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def look_up_table(classes: Classes | None) -> np.ndarray:
    """Return the colours in which the values 0 to 255 of label maps are shown: (3, 256) uint8.

    0, which is not labelled, and values without a class are black.
    """
    table = np.zeros((3, 256), np.uint8)
    if classes is not None:
        for value, colour in zip(classes.values, classes.shown_colours, strict=True):
            table[:, value] = colour
    return table


# --- classes.json ---------------------------------------------------------------------------------


def find_classes(root: Path) -> Classes | None:
    """Return the classes of a data folder; None where it has no `classes.json`, and so binary masks.

    Raises
    ------
    InputError
        When the file names nothing that label maps can hold.
    """
    path = Path(root) / CLASSES_FILE
    if not path.exists():
        return None
    return read_classes(path)


def read_classes(path: Path) -> Classes:
    """Return the classes that a file names; `InputError` as `classes_of`."""
    return classes_of(read_json(path), str(path))


def classes_of(record: dict, name: str) -> Classes:
    """Return the classes that a mapping from values or colours to names describes.

    Parameters
    ----------
    record : dict of str to str
    name : str
        What messages call it.

    Raises
    ------
    InputError
        When values and colours are mixed, a name is empty or stands twice, a value is out of range,
        or there are fewer than two classes.
    """
    example = '{"1": "matrix", "2": "pore"}'
    if len(record) < 2:
        raise InputError(
            f"{name}: names {len(record)} class{'es' if not record else ''}, expected two or more, "
            f"the background first, such as {example}"
        )
    if len(record) > MOST_CLASSES:
        raise InputError(f"{name}: names {len(record)} classes; {MOST_CLASSES} at most")
    check_names(list(record.values()), name)

    keys = list(record)
    are_colours = [key.startswith("#") for key in keys]
    if all(are_colours):
        colours = tuple(colour_of(key, name) for key in keys)
        refuse_repeated(list(colours), keys, name)
        values = tuple(range(1, len(colours) + 1))
        return Classes(tuple(record.values()), values, colours)
    if any(are_colours):
        raise InputError(f"{name}: mixes values and colours; name all classes by one of them")

    numbers = [value_of(key, name) for key in keys]
    refuse_repeated(numbers, keys, name)
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    names = tuple(record[keys[i]] for i in order)
    return Classes(names, tuple(numbers[i] for i in order))


def check_names(names: list, where: str) -> None:
    """Raise `InputError` for a name that is no text on one line, too long, a formula or a number, or stands twice."""
    for name in names:
        if not isinstance(name, str) or not name.strip() or breaks_lines(name):
            raise InputError(
                f"{where}: {name!r} is no name of a class; expected a word on one line"
            )
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"{where}: {name[:LONGEST_NAME]!r} … is the name of a class; take one of at most "
                f"{LONGEST_NAME} letters, so that figures have room for it"
            )
        if "$" in name:
            raise InputError(
                f"{where}: {name!r}: figures take $ for the beginning of a formula; write the name "
                "of the class without it"
            )
        if name.isdecimal():
            raise InputError(
                f"{where}: {name!r} as the name of a class would be taken for a value; use a word"
            )
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: two classes are called {name!r}; give each its own name")


def refuse_repeated(found: list, keys: list[str], where: str) -> None:
    """Raise `InputError` where two keys mean the same value or colour."""
    for i, value in enumerate(found):
        first = found.index(value)
        if first < i:
            raise InputError(f"{where}: {keys[first]} and {keys[i]} are the same; keep one of them")


def value_of(key: str, where: str) -> int:
    """Return the value that a key names; `InputError` for 0, and for what is no whole number."""
    if not re.fullmatch(r"[0-9]{1,9}", key):
        raise InputError(f"{where}: {key!r} is neither a whole number nor a colour such as #ff0000")
    value = int(key)
    if value == NOT_LABELLED:
        raise InputError(
            f"{where}: gives 0 a name, but 0 is what is not labelled; if your masks have a class 0, "
            "add 1 to all their values, and to those in this file"
        )
    if value > LARGEST_VALUE:
        raise InputError(f"{where}: {value} is too large; values are 1 to {LARGEST_VALUE}")
    return value


def colour_of(key: str, where: str) -> Colour:
    """Return the colour that a key names, such as #ff0000."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", key):
        raise InputError(f"{where}: {key!r} is no colour; write six digits, such as #ff0000")
    red, green, blue = bytes.fromhex(key[1:])
    return red, green, blue


def as_line(record: dict[str, str]) -> str:
    """Return the content of a `classes.json` on one line."""
    return json.dumps(record, ensure_ascii=False)
