"""What a command says: one line for what the user can mend, remarks that are made once, progress of what takes long."""

import os
import sys
import unicodedata
from collections.abc import Iterable

from tqdm import tqdm

QUIET_SECONDS = 5.0  # What takes longer shows how far it is.
PROGRESS_SECONDS = (
    0.5 if sys.stderr.isatty() else 10.0
)  # Between two updates of a bar: a log file keeps every one.

_said: set[str] = set()


class InputError(ValueError):
    """Something that the user gave cannot be used.

    One line: which file or setting, what was found, what was expected, and the cure.
    """


class WorkerDied(InputError):
    """A process that makes views is gone: killed for memory, by a crash, or because the whole job was told to stop."""


def one_line(text: object) -> str:
    """Return a text with whatever would break a line, or steer a terminal, as an escape: names may hold anything."""
    shown = []
    for character in str(text):
        if breaks_lines(character):
            character = character.encode("unicode_escape", "surrogatepass").decode()
        shown.append(character)
    return "".join(shown)


def breaks_lines(text: str) -> bool:
    """Return whether there are control characters, line breaks or bytes that are no text in a text."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def say_once(line: str) -> None:
    """Print a line on standard error, above a progress bar, unless it was printed before.

    Of several processes of a job only the first one prints.
    """
    is_first_process = os.environ.get("RANK", "0") == "0"
    if line in _said or not is_first_process:
        return

    _said.add(line)
    tqdm.write(line, file=sys.stderr)


def quiet_bar(
    items: Iterable, title: str, unit: str = "slice", total: int | None = None
) -> Iterable:
    """Return the items, with a progress bar where they take longer than `QUIET_SECONDS`; it goes at the end."""
    return tqdm(
        items,
        title,
        total,
        leave=False,
        unit=unit,
        mininterval=PROGRESS_SECONDS,
        delay=QUIET_SECONDS,
    )
