"""The masks of a folder or a volume: all are read by one rule, which they show themselves.

What a single mask may be stands in `slices.mask_values`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.messages import InputError, say_once
from slices.mask_values import MaskInfo, MaskReading, read_mask_as
from slices.pictures import Picture, read_picture
from slices.reading import read_image

# What the pixels of a full mask hold, where no other mask shows two values.
FULL = (255, 65535)

# Values of foreground that may stand for each other: programs write one or the other.
INTERCHANGEABLE = (1, 255, 65535)

# Masks that are kept in memory when all have been looked at for their rule.
MOST_KEPT = 24


class Masks:
    """The masks of a folder or a volume, read one at a time by one rule.

    `masks[i]` is (H, W) uint8, 1 for foreground.

    Parameters
    ----------
    names : list of str
        What messages call each of them.
    read : index → Picture
    foreground : {"auto", "dark", "bright", "labels"}
        As in `MaskInfo`.
    read_image : index → (H, W) ndarray, optional
        The slices they belong to, with values as stored; None for one that is not known.
    option : str
        The option of the command by which the caller states `foreground`, for messages.
    all_vote : bool
        Whether all of them are read before one is used, to find the rule that most of them follow.
        Else the first one that shows a rule decides.

    Raises
    ------
    InputError
        When a mask is read: as `read_mask_as`, and where it needs another rule than the others.
    """

    def __init__(
        self,
        names: list[str],
        read: Callable[[int], Picture],
        foreground: str = "auto",
        read_image: Callable[[int], np.ndarray | None] | None = None,
        option: str = "--mask-foreground",
        all_vote: bool = False,
    ):
        self.names = names
        self.read = read
        self.foreground = foreground
        self.read_image = read_image
        self.option = option
        self.all_vote = all_vote
        self._kept: dict[int, MaskReading] = {}
        self._shapes: dict[int, tuple[int, int]] = {}
        self._rule: Rule | None = None
        self._has_spoken_of_white = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray:
        reading = self._read(i)
        return self.rule.apply(reading, self._shapes[i], self.names[i], self.option)

    def _read(self, i: int) -> MaskReading:
        """Return what a mask was taken for; `InputError` where its slice is of another size."""
        if i in self._kept:
            return self._kept[i]
        picture = self.read(i)
        self._speak_of_white(picture, self.names[i])
        image = None
        if self.read_image is not None:
            image = self.read_image(i)
        if image is not None and image.shape != picture.shape:
            raise InputError(
                f"{self.names[i]}: is {picture.shape[0]}×{picture.shape[1]} px, its image "
                f"{image.shape[0]}×{image.shape[1]}; they must be of one size"
            )

        info = MaskInfo(self.names[i], self.foreground, image, self.option)
        reading = read_mask_as(picture, info)
        self._shapes[i] = picture.shape
        if self.all_vote and len(self._kept) < MOST_KEPT:
            self._kept[i] = reading
        return reading

    def _speak_of_white(self, picture: Picture, name: str) -> None:
        """Say, once, that the white of a bilevel file is foreground although 0 stands for it."""
        is_bilevel = picture.white_is_zero and picture.values.dtype == bool
        if not is_bilevel or self.foreground != "auto" or self._has_spoken_of_white:
            return
        self._has_spoken_of_white = True
        say_once(
            f"{name}: is of one bit, with 0 as white, and what is shown white is foreground. Some "
            "programs (tifffile) store True so, and show it black; if True is foreground, save masks "
            "as 0 and 255"
        )

    @property
    def rule(self) -> "Rule":
        """The rule of all of them; it is looked for once."""
        if self._rule is None:
            self._rule = self._find_rule()
        return self._rule

    def _find_rule(self) -> "Rule":
        """Return the rule that most masks follow.

        Where all masks are constant, the rule follows from their values together.
        """
        constants: dict[float, str] = {}
        votes: dict[Rule, int] = {}
        for i, reading in self._readable():
            if reading.kind == "constant":
                constants.setdefault(reading.levels[0], self.names[i])
                continue
            if reading.kind == "painted copy" and not reading.side:
                # A copy without paint shows no side.
                continue
            rule = next((rule for rule in votes if rule.is_shown_by(reading)), None)
            if rule is None:
                rule = Rule(reading.kind, reading.levels, reading.side, self.names[i])
            votes[rule] = votes.get(rule, 0) + 1
            if not self.all_vote:
                return rule

        if votes:
            return rule_of_most(votes)
        return rule_of_constants(constants, self.foreground)

    def _readable(self) -> Iterator[tuple[int, MaskReading]]:
        """Yield number and reading of each mask that can be read.

        The others are errors when they are asked for.
        """
        for i in range(len(self)):
            try:
                reading = self._read(i)
            except InputError:
                continue
            yield i, reading


# --- the rule -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """How the masks of a folder or volume are read.

    Attributes
    ----------
    kind, levels, side
        As of the `MaskReading` that showed the rule; levels (0, 0) where all masks are empty.
    name : str
        The mask that showed it.
    """

    kind: str
    levels: tuple[float, float]
    side: str
    name: str

    def is_shown_by(self, reading: MaskReading) -> bool:
        """Return whether a reading is just like the one that showed this rule."""
        return (self.kind, self.levels, self.side) == (reading.kind, reading.levels, reading.side)

    def apply(
        self, reading: MaskReading, shape: tuple[int, int], name: str, option: str
    ) -> np.ndarray:
        """Return the mask of a reading as (H, W) uint8; `InputError` where it needs another rule."""
        if reading.kind == "constant":
            return np.full(shape, self.is_full(reading, name), np.uint8)
        if reading.kind == "painted copy" and not reading.side:
            # Nothing is painted, whatever the others are.
            return reading.mask
        if self.allows(reading):
            return reading.mask

        cure = "save all of them alike, as 0 and 255"
        if self.kind == reading.kind == "two values" and self.levels[0] == reading.levels[0] == 0:
            cure += f", or set {option} labels if every number above 0 is foreground"
        raise InputError(
            f"{name}: {describe_rule(reading)}, but {self.name} {describe_rule(self)}; masks of one "
            f"folder or volume follow one rule: {cure}"
        )

    def allows(self, reading: "MaskReading | Rule") -> bool:
        """Return whether a reading with foreground follows this rule."""
        kinds = {self.kind, reading.kind}
        low, high = self.levels
        other_low, other_high = reading.levels
        if kinds == {"two values"}:
            same_foreground = high == other_high or {high, other_high} <= set(INTERCHANGEABLE)
            return low == other_low and same_foreground

        # A hard mask among soft ones, and soft ones of different brushes: the middle of either lies
        # between the extremes of the other.
        if kinds <= {"two values", "soft edges"}:
            middle = (float(low) + float(high)) / 2
            other_middle = (float(other_low) + float(other_high)) / 2
            return low < other_middle < high and other_low < middle < other_high

        return self.kind == reading.kind and self.side == reading.side

    def is_full(self, reading: MaskReading, name: str) -> bool:
        """Return whether a mask of one value is full; it is empty otherwise.

        Raises
        ------
        InputError
            When its value is none that tells.
        """
        value = reading.levels[0]
        low, high = self.levels
        has_levels = self.kind in ("two values", "soft edges", "dark", "bright") and low != high
        if has_levels:
            background, foreground = (high, low) if self.kind == "dark" else (low, high)
            if value in self.levels:
                return value == foreground
            if value == 0 and background == 0:
                return False
            raise self.constant_error(value, name)

        # No mask shows two values.
        if value == 0:
            return self.kind == "dark" and not self.name
        if reading.is_boolean or value in FULL or self.kind in ("dark", "bright"):
            return self.kind != "dark"
        raise self.constant_error(value, name)

    def constant_error(self, value: float, name: str) -> InputError:
        """Return the error for a mask of one value that may be empty or full."""
        if self.name:
            return InputError(
                f"{name}: every pixel is {value:g}, but {self.name} {describe_rule(self)}; save a "
                "mask without foreground, or one that is full, as the others are"
            )

        return InputError(
            f"{name}: every pixel is {value:g}; an empty mask is all 0, a full one all 255"
        )


def rule_of_most(votes: dict[Rule, int]) -> Rule:
    """Return the rule that most masks follow; of equal ones the first.

    Parameters
    ----------
    votes : dict of Rule to int
        How many masks show each rule.
    """
    followers = {}
    for rule in votes:
        followers[rule] = sum(votes[other] for other in votes if rule.allows(other))
    return max(followers, key=followers.get)


def rule_of_constants(constants: dict[float, str], foreground: str) -> Rule:
    """Return the rule of masks that are all constant, such as only empty and only full ones.

    Parameters
    ----------
    constants : dict of float to str
        Their values, with the first mask that holds each.
    foreground : {"auto", "dark", "bright", "labels"}
        What the caller states.
    """
    kind = foreground if foreground in ("dark", "bright") else "two values"
    others = [value for value in constants if value != 0]
    if len(others) == 1 and 0 in constants:
        return Rule(kind, (0.0, others[0]), "", constants[others[0]])
    return Rule(kind, (0.0, 0.0), "", "")


def describe_rule(rule: MaskReading | Rule) -> str:
    """Return in words what a mask was taken for."""
    low, high = rule.levels
    if rule.kind == "two values":
        return f"holds {low:g} and {high:g}, of which {high:g} is foreground"
    if rule.kind == "soft edges":
        return f"has soft edges between {low:g} and {high:g}, and is foreground above the middle"
    if rule.kind == "painted copy":
        return f"is a copy of its slice, and foreground where it is painted {rule.side}"
    if rule.kind == "coloured copy":
        return "is a grey picture, and foreground where it is painted with a colour"
    if rule.kind == "labels":
        return "holds labels, and is foreground above 0"
    return f"is foreground where it is {rule.kind}, as stated"


# --- masks in files -------------------------------------------------------------------------------


def masks_of_files(
    files: list[Path],
    foreground: str = "auto",
    images: list[Path | None] | None = None,
    option: str = "--mask-foreground",
) -> Masks:
    """Return the masks in some files, in their order.

    Parameters
    ----------
    files : list of Path
    foreground : {"auto", "dark", "bright", "labels"}
    images : list of Path or None, optional
        The files of their slices, as far as known.
    option : str
        As in `MaskInfo`.
    """

    def read_slice(i: int) -> np.ndarray | None:
        if images is None or images[i] is None:
            return None
        return read_image(images[i])

    def read_file(i: int) -> Picture:
        return read_picture(files[i])

    names = [str(file) for file in files]
    return Masks(names, read_file, foreground, read_slice, option, all_vote=True)


def read_mask(file: Path, foreground: str = "auto", image: Path | None = None) -> np.ndarray:
    """Return the mask in a single file as (H, W) uint8, foreground 1; see `Masks`."""
    return masks_of_files([file], foreground, [image])[0]
