"""Read what a run has stored: its tables, its arrays, its learning curves; errors name what is damaged."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from runtime.files import read_json
from runtime.messages import InputError

DAMAGE = (ValueError, OSError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile)
OTHER_CONTENT = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Raise `InputError` that names a path for what fails because other things stand there than a run writes."""
    try:
        yield
    except InputError:
        raise
    except OTHER_CONTENT as error:
        raise InputError(
            f"{path}: holds other things than a run writes ({error}); evaluate the run again"
        ) from None


def read_optional(path: Path) -> dict:
    """Return the content of a JSON file, nothing where it is missing."""
    if not path.exists():
        return {}
    return read_json(path)


def read_table(path: Path, *columns: str, **options: object) -> pd.DataFrame:
    """Return a CSV file with at least these columns; `options` are those of `pandas.read_csv`.

    Raises
    ------
    InputError
        When it is damaged, or has no such column.
    """
    try:
        table = pd.read_csv(path, **options)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a table ({reason}); remove it") from None

    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}; remove it")
    return table


class StoredArrays(Mapping):
    """The arrays of an `.npz` file by name, each read when it is asked for.

    Raises
    ------
    InputError
        When the file is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._open() as arrays:
            self.names = list(arrays.files)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        with self._open() as arrays:
            return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @contextmanager
    def _open(self) -> Iterator[np.lib.npyio.NpzFile]:
        """Open the file for one reading."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                yield arrays
        except DAMAGE as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path}: cannot be read ({reason}); remove it") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an `.npz` file by name; an `InputError` names a damaged one."""
    return dict(StoredArrays(path))


def read_logs(run: Path) -> dict[str, pd.DataFrame]:
    """Return the learning curves that a run folder holds, by phase."""
    phases = read_optional(run / "phases.json")
    semi_supervised = phases.get("mean_teacher", {}).get("label", "Mean Teacher")
    files = {
        "supervised": "sup_metrics.csv",
        "supervised continued": "continued_metrics.csv",
        semi_supervised: "ssl_metrics.csv",
    }
    logs = {}
    for name, file in files.items():
        if (run / file).exists():
            logs[name] = read_table(run / file, "epoch")
    return logs


def results_table(run: Path, kind: str = "full") -> pd.DataFrame:
    """Return mean and 95 % interval of each metric by method, as text, from `summary.json`.

    Parameters
    ----------
    run : Path
    kind : {"full", "patches"}
    """
    path = Path(run) / "summary.json"
    try:
        methods = read_json(path)[kind]["methods"]
    except KeyError as error:
        raise InputError(f"{path}: has no {error}; evaluate the run again") from None

    rows = {}
    for method, metrics in methods.items():
        rows[method] = {metric: interval_text(value) for metric, value in metrics.items()}
    return pd.DataFrame(rows).T


def interval_text(value: dict) -> str:
    """Return a mean with its interval, where it has one."""
    text = f"{value['mean']:.3f}"
    if value["low"] is not None:
        text += f" ({value['low']:.3f}–{value['high']:.3f})"
    return text
