"""The folder of a run: who works in it, how the run was made and whether that is still so, states to go on from."""

import hashlib
import io
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from runtime.devices import resolve_precision
from runtime.files import lock, read_json, remove_leftovers, write_atomically, write_json
from runtime.messages import InputError, one_line

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = (
    "torch",
    "torchvision",
    "albumentations",
    "opencv-python-headless",
    "scikit-image",
    "numpy",
    "tifffile",
)

# Modules that decide what is trained; folders stand for all modules in them.
TRAINING_CODE = (
    "config.py",
    "datasets.py",
    "losses.py",
    "mean_teacher.py",
    "model_unet.py",
    "pixel_classifier.py",
    "train.py",
    "utils.py",
    "views.py",
    "evaluation/models.py",
    "runtime/checkpoints.py",
    "runtime/devices.py",
    "runtime/loaders.py",
    "runtime/progress.py",
    "runtime/team.py",
    "slices/",
    "training/",
)

DEATH_TRIES = 100  # how often a dead holder's children are waited for, a tenth of a second each
CHECKSUM_BYTES = 32  # of SHA-256, in front of a state

# Open locks of this process, until it ends: file numbers by (process, path).
_held: dict[tuple[int, Path], int] = {}


# --- who works in it ------------------------------------------------------------------------------


def take(folder: Path) -> None:
    """Let this process, until it ends, be the only one that works in a run folder.

    What a killed process left half-written there is removed. A process whose parent holds the
    folder, as `accelerate.notebook_launcher` starts them, may work in it.

    Raises
    ------
    InputError
        When another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / ".lock"
    if is_held_here(path):
        return

    file = os.open(path, os.O_RDWR | os.O_CREAT)
    holder = wait_for_lock(file)
    if holder is not None:
        os.close(file)
        if holder == signature(os.getppid()):
            return
        raise InputError(
            f"{folder}: {holder or 'another process'} works on this run; wait for it, or choose "
            "another --run"
        )

    os.truncate(file, 0)
    os.write(file, signature(os.getpid()).encode())
    _held[os.getpid(), path] = file
    remove_leftovers(folder)


def is_held_here(path: Path) -> bool:
    """Return whether this process holds the lock of a file, which has not been replaced since."""
    file = _held.get((os.getpid(), path))
    if file is None or not path.exists():
        return False
    return os.path.samestat(os.fstat(file), path.stat())


def wait_for_lock(file: int) -> str | None:
    """Lock an open file; return who holds it instead, None where this process does.

    A holder of this machine that is dead was killed: its children, which have the file open, too,
    are about to notice.
    """
    for _ in range(DEATH_TRIES):
        if lock(file):
            return None
        holder = one_line(os.pread(file, 200, 0).decode(errors="replace"))
        is_of_this_machine = holder.endswith(f" on {socket.gethostname()}")
        if not is_of_this_machine or is_alive(holder):
            return holder
        time.sleep(0.1)

    return holder


def release(folder: Path) -> None:
    """Let others work in a run folder again: for a process that makes many runs."""
    file = _held.pop((os.getpid(), folder.resolve() / ".lock"), None)
    if file is not None:
        os.close(file)


def leave_to_parent() -> None:
    """Close what a forked child has of its parent's locks, so that they end with the parent."""
    while _held:
        _, file = _held.popitem()
        os.close(file)


def signature(process: int) -> str:
    """Return what a process writes into a file that it locks."""
    return f"process {process} on {socket.gethostname()}"


def is_alive(holder: str) -> bool:
    """Return whether the process of a signature runs on this machine."""
    try:
        os.kill(int(holder.split()[1]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except PermissionError:
        return True

    return True


# --- how the run was made -------------------------------------------------------------------------


def environment(device: torch.device, precision: str = "auto") -> dict:
    """Return date, versions, device, git state and command line of this process, to be stored beside results.

    `precision` is what was asked for; what it comes to on this device is stored.
    """
    changes = git_output("status", "--porcelain", "--untracked-files=no")
    program = Path(sys.argv[0]).name
    command = " ".join([program, *sys.argv[1:]])
    if "ipykernel" in sys.argv[0]:
        command = "notebook"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": git_output("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "command": command,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": resolve_precision(device, precision),
        "cpu_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def git_output(*arguments: str) -> str | None:
    """Return what git says about this project; None where git or the history is missing."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        return None

    if result.returncode != 0:
        return None
    return result.stdout.strip()


def hashes(files: dict[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of the content of each file, by name."""
    digests = {}
    for name, path in files.items():
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def code_files() -> dict[str, Path]:
    """Return the modules of this project by their place in it: `train.py`, `slices/masks.py`."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = [path for folder in (ROOT, *rooms) for path in folder.glob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(files)}


@dataclass(frozen=True)
class RunFiles:
    """What a run folder keeps of how its run is made.

    Attributes
    ----------
    settings : dict
        What makes the results; JSON-serialisable.
    free : tuple of str
        Settings that may differ on resuming.
    data : dict of str to Path
        The files that the run reads, of which hashes are kept.
    defaults : dict
        Values of settings that runs of earlier versions do not know.
    beside : dict of str to dict
        Further files that are written when the run is begun: their content, by name.
    """

    settings: dict
    free: tuple[str, ...] = ()
    data: dict[str, Path] = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)
    beside: dict[str, dict] = field(default_factory=dict)


def open_run(folder: Path, files: RunFiles, device: torch.device, resume: bool) -> None:
    """Create a run folder with `config.json` and `environment.json`, or go on in an existing one.

    Parameters
    ----------
    folder : Path
    files : RunFiles
    device : torch.device
    resume : bool
        Whether a folder that holds a run may be continued.

    Raises
    ------
    InputError
        When another process works in the folder, it holds a run and `resume` is off, or the run
        there was made with other settings.
    """
    take(folder)
    path = folder / "config.json"
    now = environment(device, files.settings.get("precision", "auto"))
    if not path.exists():
        details = now | {
            "code": hashes(code_files()),
            "data": hashes(files.data),
            "settings": {
                "free": list(files.free),
                "sha256": hash_of_settings(files.settings, files.free),
            },
        }
        write_json(folder / "environment.json", details)
        for name, content in files.beside.items():
            write_json(folder / name, content)
        # Last: where it is, the others are.
        write_json(path, files.settings)
        return

    if not resume:
        raise InputError(
            f"{folder}: holds a run already; add --resume to go on with it, or choose another --run"
        )

    refuse_edited_settings(folder)
    refuse_other_settings(folder, files)
    say_what_changed(folder, now)


def hash_of_settings(settings: dict, free: Collection[str]) -> str:
    """Return the SHA-256 of the settings of a run that must stay what they are, in whatever order."""
    bound = {name: value for name, value in settings.items() if name not in free}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def are_settings_edited(folder: Path) -> bool:
    """Return whether `config.json` of a run holds other settings than those with which it was begun.

    Free ones may differ. Of a run that kept no hash of its settings, nobody knows.
    """
    path = folder / "environment.json"
    begun_with = read_environment(path).get("settings") if path.exists() else None
    if begun_with is None:
        return False
    settings = read_json(folder / "config.json")
    return begun_with.get("sha256") != hash_of_settings(settings, begun_with.get("free", []))


def refuse_edited_settings(folder: Path) -> None:
    """Raise `InputError` where `config.json` was edited: part of the run was made with what stood there before."""
    if are_settings_edited(folder):
        raise InputError(
            f"{folder / 'config.json'}: was edited since the run was begun; put back what stood there, "
            "or choose another --run"
        )


def refuse_other_settings(folder: Path, files: RunFiles) -> None:
    """Raise `InputError` where a run was made with other settings than these."""
    stored = {**files.defaults, **read_json(folder / "config.json")}
    changes = []
    for name in sorted({*stored, *files.settings}):
        before = stored.get(name)
        now = files.settings.get(name)
        if name not in files.free and before != now:
            changes.append(f"{name} was {before!r}, now {now!r}")

    if changes:
        raise InputError(
            f"{folder}: was made with other settings ({'; '.join(changes)}); choose another --run"
        )


def say_what_changed(folder: Path, now: dict) -> None:
    """Say what about machine, packages and code is not as it was when a run was begun."""
    path = folder / "environment.json"
    if path.exists():
        for line in describe_moves(read_environment(path), now):
            digits = "the last digits"
            if line.startswith("precision"):
                digits = "more than the last digits"
            print(
                f"{folder}: {line}: {digits} will not be those of an uninterrupted run",
                file=sys.stderr,
            )

    changed = changed_code(folder)
    if changed:
        print(
            f"{folder}: was begun with another version of {', '.join(changed)}; what is trained from "
            "here on may differ from what was, in more than its last digits",
            file=sys.stderr,
        )


# --- whether that is still so ---------------------------------------------------------------------


def changed_code(folder: Path) -> list[str]:
    """Return the modules that decide what is trained, and are not those with which a run was begun."""
    path = folder / "environment.json"
    before = read_environment(path).get("code", {}) if path.exists() else {}
    files = {name: path for name, path in code_files().items() if name.startswith(TRAINING_CODE)}
    now = hashes(files)
    return [name for name in now if name in before and before[name] != now[name]]


def read_environment(path: Path) -> dict:
    """Return the content of `environment.json`.

    Raises
    ------
    InputError
        Where parts of it are of another kind than a run writes.
    """
    content = read_json(path)
    for name in ("packages", "code", "data", "settings"):
        if not isinstance(content.get(name, {}), dict):
            raise InputError(
                f"{path}: {name} is no object {{…}}; damaged? take it from a copy of the run"
            )
    if not isinstance(content.get("settings", {}).get("free", []), list):
        raise InputError(
            f"{path}: its free settings are no list; damaged? take it from a copy of the run"
        )

    return content


def describe_moves(stored: dict, now: dict) -> list[str]:
    """Return what differs between two `environment`s that can change the last digits of a result, one line each."""
    lines = []
    for name in ("device", "precision", "cpu_threads", "python"):
        if name in stored and stored[name] != now[name]:
            lines.append(f"{name} was {stored[name]}, is {now[name]}")
    for name, before in stored.get("packages", {}).items():
        after = now["packages"].get(name)
        if before != after:
            lines.append(f"{name} was {before}, is {after}")

    return lines


def read_phases(folder: Path) -> dict:
    """Return what is known about the finished phases of a run, by name.

    Raises
    ------
    InputError
        Where it is not what a run writes.
    """
    path = folder / "phases.json"
    phases = read_json(path) if path.exists() else {}
    for name, details in phases.items():
        is_whole = (
            isinstance(details, dict)
            and isinstance(details.get("best"), dict)
            and all(is_score(kept) for kept in details["best"].values())
            and isinstance(details.get("weights", {}), dict)
        )
        if not is_whole:
            raise InputError(
                f"{path}: {name} is not what a run writes; damaged? take it from a copy of the run"
            )

    return phases


def is_score(kept: object) -> bool:
    """Return whether something is what a phase keeps of its weights: an epoch, and validation Dice or None."""
    if not isinstance(kept, dict) or not isinstance(kept.get("epoch"), int):
        return False
    dice = kept.get("val_dice")
    return dice is None or (isinstance(dice, int | float) and 0 <= dice <= 1)


def differences(
    folder: Path,
    device: torch.device,
    data: dict[str, Path],
    weights: dict[str, Path],
    precision: str = "auto",
) -> list[str]:
    """Return what is no longer as it was when a run was made, one line each.

    That is settings, data, code, weights and versions.

    Parameters
    ----------
    folder : Path
    device : torch.device
    data, weights : dict of str to Path
        The files that the run would read now, and its checkpoints.
    precision : str

    Raises
    ------
    InputError
        When the run kept no hashes.
    """
    stored = read_environment(folder / "environment.json")
    if "data" not in stored or "code" not in stored:
        raise InputError(
            f"{folder}: kept no hashes of its data and code; it was made by an earlier version"
        )

    hashes_of_weights = {}
    for phase in read_phases(folder).values():
        hashes_of_weights |= phase.get("weights", {})

    # Other weights are of unfinished phases.
    weights = {name: path for name, path in weights.items() if name in hashes_of_weights}
    edited = [f"{folder / 'config.json'}: has changed"] if are_settings_edited(folder) else []
    return [
        *edited,
        *compare_files(stored["data"], data),
        *compare_files(stored["code"], code_files()),
        *compare_files(hashes_of_weights, weights),
        *describe_moves(stored, environment(device, precision)),
    ]


def compare_files(before: dict[str, str], files: dict[str, Path]) -> list[str]:
    """Return a line for each file whose hash is not what it was, that is missing, or new."""
    now = hashes({name: path for name, path in files.items() if path.is_file()})
    lines = []
    for name in sorted({*before, *now}):
        if before.get(name) == now.get(name):
            continue
        if name not in now:
            change = "is missing"
        elif name not in before:
            change = "is new"
        else:
            change = "has changed"
        lines.append(f"{files.get(name, name)}: {change}")

    return lines


# --- states to go on from -------------------------------------------------------------------------


def state_before(path: Path) -> Path:
    """Return where the state before the last one is."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def save_state(path: Path, stateful: dict, details: dict) -> None:
    """Write the `state_dict` of each part, and what else a phase needs to go on: tensors, numbers, text.

    Atomically, with a checksum in front; the state that was there is kept until the next one.
    """
    # In memory first: torch would report a full disk as an error of its own.
    stream = io.BytesIO()
    states = {name: part.state_dict() for name, part in stateful.items()}
    torch.save({"state": states, **details}, stream)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(stream.getbuffer()).digest())
            file.write(stream.getbuffer())
        if path.exists():
            os.replace(path, state_before(path))

    write_atomically(path, write)


def restore_state(path: Path, stateful: dict) -> dict | None:
    """Load what `save_state` wrote into the parts; return what stood beside them, None without a state.

    A damaged state is named and passed over, for the one before it, or for none. No code in it is
    ever run.

    Raises
    ------
    InputError
        When it is whole, but of other parts.
    """
    for candidate in (path, state_before(path)):
        if not candidate.exists():
            continue
        saved = read_state(candidate)
        if saved is None:
            continue
        try:
            for name, part in stateful.items():
                part.load_state_dict(saved["state"][name])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(
                f"{candidate}: is a state of something else ({why}); delete it to start this phase "
                "again"
            ) from None
        return saved

    return None


def read_state(path: Path) -> dict | None:
    """Return the content of a state, on the CPU; None, and a line that says why, where it is damaged."""
    try:
        content = path.read_bytes()
        checksum, state = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if hashlib.sha256(state).digest() != checksum:
            raise ValueError("wrong checksum")
        return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - zip and pickle errors alike mean: it cannot be used
        why = one_line(" ".join(str(error).split())[:200])
        print(f"{path}: cannot be resumed from ({why}); going on from before it", file=sys.stderr)
        return None


def forget_state(path: Path) -> None:
    """Remove the states of a finished phase, the newest one last: until it is gone, the phase can go on."""
    for candidate in (state_before(path), path):
        candidate.unlink(missing_ok=True)
