"""Seeding, device, overlap metrics, run folders, CSV logs and checkpoints."""

import csv
import ctypes
import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

PROGRESS_SECONDS = 0.5 if sys.stderr.isatty() else 10.0  # between two updates of a bar: a log keeps every one
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # as malloc.h numbers them


class InputError(ValueError):
    """Something the user gave cannot be used. One line: which file or setting, what was found, the cure."""


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: its status; 2 with one line for what the user can mend; 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that knows no arrows or dashes is no reason to stop
    try:
        status = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}; check path, rights, space", file=sys.stderr)
        status = 2
    except torch.OutOfMemoryError:
        print("error: the device is out of memory; smaller --batch-size, or --device cpu", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        status = 130
    raise SystemExit(status)


# --- seeding and device ---------------------------------------------------------------------------------------

def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still draw from it
    torch.manual_seed(seed)


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else MPS, else CPU; else as torch names it (`cuda:1`). `InputError` where that is not here.

    Of several processes on one machine, each gets a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({why}); choose auto, cpu, cuda or mps") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Context in which convolutions are computed in `precision`: float32, bfloat16, or auto, which is bfloat16 on CUDA.

    Weights, normalisation statistics and losses stay float32.
    """
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for its next tensors, where the C library is glibc.

    Else every large tensor is mapped anew, and the kernel fills its pages with zeros first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 << 20)):
            mallopt(parameter, value)


# --- overlap metrics ------------------------------------------------------------------------------------------

def overlap_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice, IoU, precision and recall of one binary image.

    Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN): Taha & Hanbury, 2015,
    doi:10.1186/s12880-015-0068-x. An empty prediction of an empty truth scores 1 in all four; otherwise a
    ratio without a denominator (precision of an empty prediction, say) is 0. `losses` follows the same rule.

    Parameters
    ----------
    prediction, truth : (H, W) bool or 0/1 ndarray

    Raises
    ------
    InputError
        When the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise InputError(f"prediction is {prediction.shape} px, truth {truth.shape}; they must be of one size")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    if tp + fp + fn == 0:
        return {"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0}
    return {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn),
            "precision": tp / max(1, tp + fp), "recall": tp / max(1, tp + fn)}


# --- run folder, CSV log, checkpoints -------------------------------------------------------------------------

def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is old or new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays by name into one file, atomically; weakly compressed, which is four times as fast and hardly larger
    than what NumPy does.
    """
    def write(temporary: Path) -> None:
        with ZipFile(temporary, "w", ZIP_DEFLATED, compresslevel=1) as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    write_atomically(path, write)


def environment(device: torch.device) -> dict:
    """Date, versions, device, git state and command line of this process, to be stored beside results."""
    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        except FileNotFoundError:  # git is not installed
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    packages = ("torch", "torchvision", "albumentations", "opencv-python-headless", "scikit-image", "numpy", "tifffile")
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": commit, "git_dirty": None if changes is None else bool(changes),
        "command": "notebook" if "ipykernel" in sys.argv[0] else " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_threads": torch.get_num_threads(), "platform": platform.platform(), "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def open_run(folder: Path, settings: dict, device: torch.device, resume: bool, free: tuple[str, ...] = ()) -> None:
    """Create a run folder with `config.json` and `environment.json`, or go on in an existing one.

    Parameters
    ----------
    settings : dict
        What makes the results; JSON-serialisable.
    resume : bool
        Whether a folder that holds a run may be continued.
    free : tuple of str
        Settings that may differ on resuming because they do not change results.

    Raises
    ------
    InputError
        When the folder holds a run and `resume` is off, or the run there was made with other settings.
    """
    path = folder / "config.json"
    if path.exists():
        if not resume:
            raise InputError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --run")
        stored = read_json(path)
        changed = [f"{k} was {stored.get(k)!r}, now {settings.get(k)!r}" for k in sorted({*stored, *settings})
                   if k not in free and stored.get(k) != settings.get(k)]
        if changed:
            raise InputError(f"{folder}: was made with other settings ({'; '.join(changed)}); choose another --run")
    else:
        write_json(path, settings)
        write_json(folder / "environment.json", environment(device))


def read_json(path: Path) -> dict:
    """Content of a JSON file that holds an object; `InputError` when it is missing, not JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected an object {{…}}")
    return content


def append_row(path: Path, row: dict) -> None:
    """Append one row to a CSV file, header first where the file is new. Flushed when it returns."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def keep_rows(path: Path, count: int) -> None:
    """Drop all but the header and the first `count` rows of a CSV file: what a resumed phase has not done yet."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if count == 0:
            path.unlink()
        else:
            write_atomically(path, lambda p: p.write_text("".join(lines[:count + 1]), encoding="utf-8"))


def save_checkpoint(path: Path, weights: dict[str, torch.Tensor], about: dict) -> None:
    """Write a state dict as safetensors, with `about` (JSON-serialisable) in the header, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(path, lambda p: p.write_bytes(save(tensors, metadata={"about": json.dumps(about)})))


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and `about` of a file that `save_checkpoint` wrote. No code in the file is ever run.

    Raises
    ------
    InputError
        When the file is missing, not of `save_checkpoint`, or its weights are not numbers.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
    except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a checkpoint of this project ({error}); give a .safetensors file "
                         "from checkpoints/") from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise InputError(f"{path}: its weights are not numbers; train again with a lower --lr")
    return weights, about


def save_state(path: Path, stateful: dict, epoch: int, best: dict, seconds: float) -> None:
    """Write all that a phase needs to go on after `epoch` epochs, atomically."""
    state = {name: part.state_dict() for name, part in stateful.items()}
    write_atomically(path, lambda p: torch.save({"state": state, "epoch": epoch, "best": best, "seconds": seconds}, p))


def restore_state(path: Path, stateful: dict) -> tuple[int, dict, float]:
    """Load what `save_state` wrote into `stateful`: finished epochs, best scores, seconds; 0, {}, 0 without a file."""
    if not path.exists():
        return 0, {}, 0.0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # each part moves it to where it is
        for name, part in stateful.items():
            part.load_state_dict(saved["state"][name])
    except Exception as error:  # noqa: BLE001 - zip, pickle and shape errors alike mean: this state cannot be used
        raise InputError(f"{path}: cannot be resumed from ({' '.join(str(error).split())[:200]}); "
                         "delete it to start this phase again") from None
    return saved["epoch"], saved["best"], saved["seconds"]
