"""Seeding, device, overlap metrics, files that are whole or not there, CSV logs and checkpoints."""

import csv
import ctypes
import errno
import functools
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows has none: there nothing keeps two processes from the same output
    fcntl = None

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

QUIET_SECONDS = 5.0  # what takes longer shows how far it is
PROGRESS_SECONDS = 0.5 if sys.stderr.isatty() else 10.0  # between two updates of a bar: a log keeps every one
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}  # for each CUDA: NVIDIA, CUDA compatibility, minor versions
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # as malloc.h numbers them


class InputError(ValueError):
    """Something the user gave cannot be used. One line: which file or setting, what was found, the cure."""


class WorkerDied(InputError):
    """A process that makes views is gone: killed for memory, by a crash, or because the whole job was told to stop."""


def one_line(text: object) -> str:
    """`text` with whatever would break a line, or steer a terminal, written as an escape: names may hold anything."""
    return "".join(c.encode("unicode_escape", "surrogatepass").decode() if breaks_lines(c) else c for c in str(text))


def breaks_lines(text: str) -> bool:
    """Whether there are control characters, line breaks or bytes that are no text in it."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def quiet_bar(items: Iterable, title: str, unit: str = "slice", total: int | None = None) -> Iterable:
    """`items`, with a progress bar where they take longer than `QUIET_SECONDS`; it goes when they are done."""
    return tqdm(items, title, total, leave=False, unit=unit, mininterval=PROGRESS_SECONDS, delay=QUIET_SECONDS)


# --- seeding and device ---------------------------------------------------------------------------------------

def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still draw from it
    torch.manual_seed(seed)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that `name` stands for: `auto` is CUDA, else MPS, else the CPU; `cuda:1` as torch names it.

    Of several processes on one machine, each gets a GPU of its own. On CUDA float32 means IEEE float32 from then on:
    torch lets cuDNN round the operands of float32 convolutions to 10 bits (TF32) unless it is told otherwise.

    Where `auto` comes to the CPU although there is an NVIDIA GPU, one line on standard error says why.

    Raises
    ------
    InputError
        When the device is not here, cannot be used by this build of PyTorch, or belongs to the parent of this process.
    """
    if name == "auto":
        return choose_automatically()
    return use_device(name, "choose auto, cpu, cuda or mps")


def use_device(name: str, cure: str) -> torch.device:
    """Return a device that is known by name, ready for use; the `cure` ends the error where it cannot be used."""
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"

    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not supported")
        torch.ones(1, device=device)  # fills one number: a GPU that this build has no kernels for fails here
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "forked subprocess" in why:
            raise InputError(f"device {name!r}: the notebook has used the GPU before it started this process; restart "
                             "its kernel, and launch the processes before anything chooses a device") from None
        raise InputError(f"device {name!r} cannot be used ({why}); {cure}") from None

    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def choose_automatically() -> torch.device:
    """Return the best device that can be used; see `choose_device`."""
    with warnings.catch_warnings(record=True) as caught:  # torch tells of a driver that is too old in several lines
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        try:
            return use_device("cuda", "free it of other work, or take --device cpu")
        except InputError as error:
            if "no kernel image" not in str(error):
                raise
            say_once("the NVIDIA GPU of this machine is of a kind that this build of PyTorch has no kernels for, so "
                     f"the CPU is used: install a build for an older CUDA than {torch.version.cuda}")
            return choose_device("cpu")
    if torch.backends.mps.is_available():
        return choose_device("mps")
    say_why_no_gpu(" ".join(str(caught[0].message).split()) if caught else "")
    return choose_device("cpu")


def say_once(line: str) -> None:
    """Print a line on standard error, once, and in the first process of a job only; above a progress bar."""
    if line not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(line)
        tqdm.write(line, file=sys.stderr)


_said: set[str] = set()


def say_why_no_gpu(reason: str) -> None:
    """Say, once, why PyTorch cannot use an NVIDIA GPU of this machine; nothing where there is none, or it was hidden.

    `reason` is what torch said of it, if anything.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return
    driver = nvidia_driver()
    if driver is None:
        return

    if torch.version.cuda is None:
        cure = "this PyTorch was built without CUDA; install the build for CUDA that pytorch.org names"
    else:
        needed = OLDEST_DRIVER.get(int(torch.version.cuda.split(".")[0]))
        if needed is not None and int(driver.split(".")[0]) >= needed:
            hidden = "" if visible is None else f"CUDA_VISIBLE_DEVICES is {one_line(visible)!r}; "
            cure = hidden + (one_line(reason) or "torch does not say why; nvidia-smi may")
        else:
            wanted = f"a driver of version {needed} or newer" if needed else "a newer driver"
            cure = (f"this PyTorch is built for CUDA {torch.version.cuda} and needs {wanted}; update the driver, or "
                    "install a build of PyTorch for an older CUDA")
    say_once(f"an NVIDIA GPU with driver {driver} is here, but cannot be used, so the CPU is: {cure}")


@functools.cache
def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver of this machine, such as 535.183.01; None where there is no such GPU.

    It is asked for once in a process: the program may take seconds to answer.
    """
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                capture_output=True, timeout=10).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    with suppress(OSError):  # a container may have the device, but not the program
        answer += "\n" + Path("/proc/driver/nvidia/version").read_text(errors="replace")
    found = re.search(r"(?<![\w.])\d{3}(\.\d+){1,2}(?![\w.])", answer)
    return found[0] if found else None


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """Return what convolutions are computed in: `float32` or `bfloat16`; `auto` is bfloat16 on a CUDA GPU that has it.

    GPUs before Ampere (Turing: RTX 20, T4) have none in hardware; torch would emulate it, slower than float32.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    with torch.cuda.device(device):  # the question below is about the current device
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Return a context in which convolutions are computed in `precision`, as `resolve_precision` understands it.

    Weights, normalisation statistics and losses stay float32.
    """
    half = resolve_precision(device, precision) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a small tensor of the CPU on `device`; on CUDA without making the CPU wait for what is computed there.

    A copy from ordinary memory waits; one from memory that the operating system may not move (pinned) is only queued.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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


# --- files ----------------------------------------------------------------------------------------------------

def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is old or new, never half.

    It is on the disk, not only in memory, before it gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere folders cannot be opened
            folder_to_disk(path.parent)
    except OSError as error:
        if error.errno and not error.filename:  # of a write that failed the system does not say which
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


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which stays, while this is open; `InputError` that says `refusal` where another one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not lock(file):
            raise InputError(refusal)
        yield


def folder_to_disk(path: Path) -> None:
    """As `to_disk`, where the file system knows how: some network file systems do not."""
    try:
        to_disk(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on whatever device.

    CUDA says so in several ways: torch's own allocator raises `OutOfMemoryError`; cuDNN and cuBLAS, which take memory
    of their own, say ALLOC_FAILED; the driver's answer comes as `AcceleratorError`, as many other faults do.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of `write_atomically` left; not while another process may be at work."""
    for path in folder.glob(".*.*.tmp"):
        path.unlink(missing_ok=True)


def lock(file: IO | int) -> bool:
    """Let this process hold an open file until it is closed; False where another one holds it.

    The system frees it, whatever ends the process, but only when forked children have closed the file too.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing can be known there
        return True
    return True


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


def read_json(path: Path) -> dict:
    """Content of a JSON file that holds an object; `InputError` when it is missing, not JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark in front
    except (OSError, ValueError, RecursionError) as error:  # numbers of too many digits, nested too deeply
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


# --- checkpoints ----------------------------------------------------------------------------------------------

def save_checkpoint(path: Path, weights: dict[str, torch.Tensor], about: dict) -> None:
    """Write a state dict as safetensors, with `about` (JSON-serialisable) and a checksum in the header, atomically.

    The same content gives the same bytes; two entries in the header would be in any order.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    header = json.dumps({**about, "sha256": checksum(tensors)})
    write_atomically(path, lambda p: p.write_bytes(save(tensors, metadata={"about": header})))


def checksum(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values of tensors in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and `about` of a file that `save_checkpoint` wrote. No code in the file is ever run.

    Raises
    ------
    InputError
        When the file is missing, not of `save_checkpoint`, changed since, or its weights are not numbers.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
    except (SafetensorError, KeyError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a checkpoint of this project ({error}); give a .safetensors file "
                         "from checkpoints/") from None
    if not isinstance(about, dict):
        raise InputError(f"{path}: not a checkpoint of this project (its settings are no object); give a .safetensors "
                         "file from checkpoints/")
    if (stated := about.pop("sha256", None)) and stated != checksum(weights):   # files of earlier versions have none
        raise InputError(f"{path}: was damaged since it was written (wrong checksum); copy it again, or train again")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise InputError(f"{path}: its weights are not numbers; train again with a lower --lr")
    return weights, about
