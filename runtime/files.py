"""Files that are whole or not there: written beside their place, on the disk before they get their name."""

import csv
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from runtime.messages import InputError

if TYPE_CHECKING:
    import pandas as pd

try:
    import fcntl
except ImportError:
    # Windows has none: nothing keeps two processes from the same output there.
    fcntl = None


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is old or new, never half.

    The content is on the disk, not only in memory, before the file gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # Elsewhere, folders cannot be opened.
            folder_to_disk(path.parent)
    except OSError as error:
        # The system does not say which file it was that could not be written to.
        if error.errno and not error.filename:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def folder_to_disk(path: Path) -> None:
    """Call `to_disk` for a folder, where the file system can: some network file systems cannot."""
    try:
        to_disk(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of `write_atomically` left.

    To be called only where no other process may be at work.
    """
    for path in folder.glob(".*.*.tmp"):
        path.unlink(missing_ok=True)


def lock(file: IO | int) -> bool:
    """Lock an open file for this process until it is closed; return False where another process holds it.

    The system frees the lock, whatever ends the process, but only when forked children have closed
    the file, too.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: whether another process is at work cannot be known there.
        return True

    return True


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file, which stays, while this is open.

    Raises
    ------
    InputError
        With the text `refusal`, where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not lock(file):
            raise InputError(refusal)
        yield


def write_json(path: Path, content: dict) -> None:
    """Write an object as indented JSON, atomically."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write a text as it is, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="")

    write_atomically(path, write)


def read_json(path: Path) -> dict:
    """Return the object in a JSON file.

    `InputError` when it is missing, not JSON, or not an object, and where a name stands twice in one
    object: of these JSON would keep the last.
    """
    try:
        # Some editors put a mark in front.
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=object_of)
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also for numbers of too many digits.
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None

    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected an object {{…}}")
    return content


def object_of(pairs: list[tuple[str, object]]) -> dict:
    """Return the object that some names and values make; `ValueError` where a name stands twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} stands twice")
    return content


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays by name into one file, atomically.

    They are compressed weakly, which is four times as fast as what NumPy does, and hardly larger.
    """

    def write(temporary: Path) -> None:
        with ZipFile(temporary, "w", ZIP_DEFLATED, compresslevel=1) as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)

    write_atomically(path, write)


def append_row(path: Path, row: dict) -> None:
    """Append a row to a CSV file, with a header first where the file is new. It is flushed when this returns."""
    is_new = not path.exists()
    as_text = {
        name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()
    }
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(as_text)


def write_csv(path: Path, table: "pd.DataFrame", **options: object) -> None:
    """Write a table without its index, atomically; `options` are those of `DataFrame.to_csv`."""

    def write(temporary: Path) -> None:
        table.to_csv(temporary, index=False, **options)

    write_atomically(path, write)
