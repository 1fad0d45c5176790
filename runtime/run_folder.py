"""The folder of a run: who works in it, how the run was made and whether that is still so, states to go on from."""

import hashlib
import io
import os
import platform
import socket
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from runtime.devices import resolve_precision
from runtime.files import lock, read_json, remove_leftovers, write_atomically, write_json
from runtime.messages import InputError, one_line

PACKAGES = ("torch", "torchvision", "albumentations", "opencv-python-headless", "scikit-image", "numpy", "tifffile")
# Modules that decide what is trained; folders stand for all modules in them.
TRAINING_CODE = ("config.py", "datasets.py", "losses.py", "mean_teacher.py", "model_unet.py", "train.py", "views.py",
                 "slices/", "runtime/loaders.py")
ROOT = Path(__file__).resolve().parent.parent
_held: dict[tuple[int, Path], int] = {}  # open locks of this process, until it ends


# --- who works in it ------------------------------------------------------------------------------------------

def take(folder: Path) -> None:
    """Let this process, until it ends, be the only one that works in a run folder.

    What a killed process left half-written there is removed. A process whose parent holds the folder, as
    `accelerate.notebook_launcher` starts them, may work in it.

    Raises
    ------
    InputError
        When another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / ".lock"
    held = _held.get((os.getpid(), path))
    if held and path.exists() and os.path.samestat(os.fstat(held), path.stat()):
        return
    file, tries = os.open(path, os.O_RDWR | os.O_CREAT), 100
    while not lock(file):
        holder = one_line(os.pread(file, 200, 0).decode(errors="replace"))
        tries -= 1
        if tries and holder.endswith(f" on {socket.gethostname()}") and not _lives(holder):
            time.sleep(0.1)                                     # killed: its children are about to notice
            continue
        os.close(file)
        if holder == _signature(os.getppid()):
            return
        raise InputError(f"{folder}: {holder or 'another process'} works on this run; wait for it, or choose another "
                         "--run")
    os.truncate(file, 0)
    os.write(file, _signature(os.getpid()).encode())
    _held[os.getpid(), path] = file
    remove_leftovers(folder)


def release(folder: Path) -> None:
    """Let others work in a run folder again: for a process that makes many runs."""
    if held := _held.pop((os.getpid(), folder.resolve() / ".lock"), None):
        os.close(held)


def leave_to_parent() -> None:
    """Close what a forked child has of its parent's locks, so that they end with the parent."""
    while _held:
        os.close(_held.popitem()[1])


def _signature(process: int) -> str:
    return f"process {process} on {socket.gethostname()}"


def _lives(signature: str) -> bool:
    try:
        os.kill(int(signature.split()[1]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except PermissionError:
        return True
    return True


# --- how the run was made -------------------------------------------------------------------------------------

def environment(device: torch.device, precision: str = "auto") -> dict:
    """Date, versions, device, git state and command line of this process, to be stored beside results.

    `precision` is what was asked for; what it comes to on this device is stored.
    """
    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
        except FileNotFoundError:  # git is not installed
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": commit, "git_dirty": None if changes is None else bool(changes),
        "command": "notebook" if "ipykernel" in sys.argv[0] else " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": resolve_precision(device, precision),
        "cpu_threads": torch.get_num_threads(), "platform": platform.platform(), "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def hashes(files: dict[str, Path]) -> dict[str, str]:
    """Name → SHA-256 of a file's content."""
    found = {}
    for name, path in files.items():
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def code_files() -> dict[str, Path]:
    """Return the modules of this project by their place in it: `train.py`, `slices/masks.py`."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [path for folder in (ROOT, *rooms) for path in folder.glob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(files)}


def open_run(folder: Path, settings: dict, device: torch.device, resume: bool, free: tuple[str, ...] = (),
             data: dict[str, Path] | None = None, defaults: dict | None = None) -> None:
    """Create a run folder with `config.json` and `environment.json`, or go on in an existing one.

    Parameters
    ----------
    settings : dict
        What makes the results; JSON-serialisable.
    resume : bool
        Whether a folder that holds a run may be continued.
    free : tuple of str
        Settings that may differ on resuming because they do not change results.
    data : dict of str to Path
        The files that the run reads, of which hashes are kept.
    defaults : dict, optional
        Values of settings that runs of earlier versions do not know.

    Raises
    ------
    InputError
        When another process works in the folder, it holds a run and `resume` is off, or the run there was made with
        other settings.
    """
    take(folder)
    path, precision = folder / "config.json", settings.get("precision", "auto")
    if path.exists():
        if not resume:
            raise InputError(f"{folder}: holds a run already; add --resume to go on with it, or choose another --run")
        stored = {**(defaults or {}), **read_json(path)}
        changed = [f"{k} was {stored.get(k)!r}, now {settings.get(k)!r}" for k in sorted({*stored, *settings})
                   if k not in free and stored.get(k) != settings.get(k)]
        if changed:
            raise InputError(f"{folder}: was made with other settings ({'; '.join(changed)}); choose another --run")
        about = folder / "environment.json"
        for line in moved(read_about(about), environment(device, precision)) if about.exists() else ():
            what = "more than the last digits" if line.startswith("precision") else "the last digits"
            print(f"{folder}: {line}: {what} will not be those of an uninterrupted run", file=sys.stderr)
        if changed := changed_code(folder):
            print(f"{folder}: was begun with another version of {', '.join(changed)}; what is trained from here on may "
                  "differ from what was, in more than its last digits", file=sys.stderr)
    else:
        about = environment(device, precision) | {"code": hashes(code_files()), "data": hashes(data or {})}
        write_json(folder / "environment.json", about)
        write_json(path, settings)  # last: where it is, the other is


def changed_code(folder: Path) -> list[str]:
    """Return the modules that decide what is trained, and are not those with which the run in `folder` was begun."""
    path = folder / "environment.json"
    before = read_about(path).get("code", {}) if path.exists() else {}
    now = hashes({name: file for name, file in code_files().items() if name.startswith(TRAINING_CODE)})
    return [name for name in now if name in before and before[name] != now[name]]


# --- whether that is still so ---------------------------------------------------------------------------------

def read_about(path: Path) -> dict:
    """Content of `environment.json`; `InputError` where parts of it are of another kind than a run writes."""
    content = read_json(path)
    for name in ("packages", "code", "data"):
        if not isinstance(content.get(name, {}), dict):
            raise InputError(f"{path}: {name} is no object {{…}}; damaged? take it from a copy of the run")
    return content


def moved(stored: dict, now: dict) -> list[str]:
    """What differs between two `environment`s that can change the last digits of a result, one line each."""
    lines = [f"{name} was {stored[name]}, is {now[name]}" for name in ("device", "precision", "cpu_threads", "python")
             if name in stored and stored[name] != now[name]]
    before, after = stored.get("packages", {}), now["packages"]
    return lines + [f"{name} was {before[name]}, is {after.get(name)}" for name in before
                    if before[name] != after.get(name)]


def read_phases(folder: Path) -> dict:
    """What is known about the finished phases of a run, by name; `InputError` where it is not what a run writes."""
    path = folder / "phases.json"
    phases = read_json(path) if path.exists() else {}
    for name, about in phases.items():
        if not (isinstance(about, dict) and isinstance(about.get("best"), dict)
                and isinstance(about.get("weights", {}), dict)):
            raise InputError(f"{path}: {name} is not what a run writes; damaged? take it from a copy of the run")
    return phases


def differences(folder: Path, device: torch.device, data: dict[str, Path], weights: dict[str, Path],
                precision: str = "auto") -> list[str]:
    """What is no longer as it was when the run in `folder` was made, one line each: data, code, weights, versions.

    Parameters
    ----------
    data, weights : dict of str to Path
        The files that the run would read now, and its checkpoints.

    Raises
    ------
    InputError
        When the run kept no hashes.
    """
    stored = read_about(folder / "environment.json")
    if "data" not in stored or "code" not in stored:
        raise InputError(f"{folder}: kept no hashes of its data and code; it was made by an earlier version")
    lines, kept = [], {name: digest for phase in read_phases(folder).values()
                       for name, digest in phase.get("weights", {}).items()}
    weights = {name: path for name, path in weights.items() if name in kept}       # others are of unfinished phases
    for before, files in ((stored["data"], data), (stored["code"], code_files()), (kept, weights)):
        now = hashes({name: path for name, path in files.items() if path.is_file()})
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                lines.append(f"{files.get(name, name)}: " + (
                    "is missing" if name not in now else "is new" if name not in before else "has changed"))
    return lines + moved(stored, environment(device, precision))


# --- states to go on from -------------------------------------------------------------------------------------

def before(path: Path) -> Path:
    """Where the state before the last one is."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def save_state(path: Path, stateful: dict, about: dict) -> None:
    """Write the `state_dict` of each part and `about`, what else a phase needs to go on: tensors, numbers, text.

    Atomically, with a checksum in front; the state that was there is kept until the next one.
    """
    stream = io.BytesIO()  # torch would report a full disk as an error of its own
    torch.save({"state": {name: part.state_dict() for name, part in stateful.items()}, **about}, stream)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(stream.getbuffer()).digest())
            file.write(stream.getbuffer())
        if path.exists():
            os.replace(path, before(path))
    write_atomically(path, write)


def restore_state(path: Path, stateful: dict) -> dict | None:
    """Load what `save_state` wrote into `stateful`; what stood beside it, None where there is no state.

    A damaged state is named and passed over, for the one before it, or for none. No code in it is ever run.

    Raises
    ------
    InputError
        When it is whole, but of other parts.
    """
    for candidate in (path, before(path)):
        if not candidate.exists():
            continue
        try:
            content = candidate.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("wrong checksum")
            saved = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)  # moved by each part
        except Exception as error:  # noqa: BLE001 - zip and pickle errors alike mean: this state cannot be used
            why = one_line(" ".join(str(error).split())[:200])
            print(f"{candidate}: cannot be resumed from ({why}); going on from before it", file=sys.stderr)
            continue
        try:
            for name, part in stateful.items():
                part.load_state_dict(saved["state"][name])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"{candidate}: is a state of something else ({why}); delete it to start this phase again"
                             ) from None
        return saved
    return None


def forget_state(path: Path) -> None:
    """Remove the states of a finished phase."""
    for candidate in (before(path), path):  # the last one last: until it is gone, the phase can go on from there
        candidate.unlink(missing_ok=True)
