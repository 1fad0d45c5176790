"""Where results go, what they depend on, and how they appear: all at once, never half, never in the place of others."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from blocks import LIMITS, MASK, Blocks, ThreeAxes
from slices import IMAGE_SUFFIXES, crop_roi, parse_roi
from utils import InputError, lock, read_json, write_json
from volumes import Volume, plain_name, stamp
from write_volumes import write_like

FOLDERS = {MASK: "", "probability": "probabilities", "uncertainty": "uncertainty"}
NO_TARGET = (".png", ".jpg", ".jpeg", ".npy")
ELSE = "delete it, or choose another --output"


def targets(volume: Volume, output: Path, kinds: list[str]) -> dict[str, Path]:
    """Where each kind goes: OUT is a file or zarr array, with OUT_probability beside, or a folder, with subfolders.

    Raises
    ------
    InputError
        When an output would replace an input or lie inside a zarr one, or has the suffix of another family.
    """
    output = output if output.name not in ("", "..") else Path(os.path.abspath(output))
    stored = {"zarr": ".zarr", "folder": ""}.get(volume.kind, ".tif")
    suffix = output.suffix.lower()
    if (suffix == ".zarr" and stored != ".zarr") or (suffix in IMAGE_SUFFIXES and stored != ".tif"):
        raise InputError(f"{output}: the input is a {'TIFF' if stored == '.tif' else stored[1:] or 'folder'}, and so "
                         "is the output; choose a name without the suffix of another family")
    if suffix in NO_TARGET and not output.is_dir():
        raise InputError(f"{output}: results are not written as {suffix}; give a name that ends in {stored}"
                         if stored else f"{output}: the input is a folder, so the output is one; give it another name")
    if volume.kind == "folder":
        found = {kind: output / FOLDERS[kind] for kind in kinds}
    elif volume.kind != "zarr" and suffix not in IMAGE_SUFFIXES:
        found = {kind: output / FOLDERS[kind] / volume.path.name for kind in kinds}
    else:
        stem = plain_name(output)
        rest = output.name[len(stem):]
        found = {kind: output if kind == MASK else output.with_name(f"{stem}_{kind}{rest}") for kind in kinds}
    source = volume.path.resolve()
    for path in found.values():
        inside = volume.kind == "zarr" and source in path.resolve().parents
        if path.resolve() == source or path.resolve() in source.parents or inside:
            raise InputError(f"{path}: would replace the input; choose another --output")
    return found


def record_of(target: Path, volume: Volume) -> Path:
    """The file that says how a result was made."""
    return target / "prediction.json" if volume.kind == "folder" else target.with_name(f"{target.name}.json")


def roi_of(path: Path) -> tuple[int, int, int, int] | None:
    """The region in which a mask was predicted, as its record says; None where it says nothing, or all was looked at.

    Outside nothing was looked for: a particle that this border cuts is cut, and no particle beyond is missed.
    `InputError` where the record is damaged.
    """
    path = Path(os.path.abspath(path))
    for record in (path / "prediction.json", path.with_name(f"{path.name}.json")):
        if record.is_file():
            settings = read_json(record).get("settings")
            roi = settings.get("roi") if isinstance(settings, dict) else None
            return parse_roi(",".join(map(str, roi))) if isinstance(roi, list) else None
    return None


def crop_volume(volume: Volume, roi: tuple[int, int, int, int] | None) -> Volume:
    """A volume of what lies in a region of each slice; see `crop_roi`."""
    if roi is None:
        return volume
    return replace(volume, shape=(*volume.shape[:-2], roi[1] - roi[0], roi[3] - roi[2]),
                   read=lambda i: crop_roi(volume.read(i), roi, volume.names[i]))


def part_of(target: Path) -> Path:
    """The folder of what is not whole yet."""
    return target.with_name(f"{target.name}.part")


def is_there(path: Path, volume: Volume) -> bool:
    """Whether something is in the place of an output; an empty folder is nothing where a folder shall be."""
    folder = volume.kind in ("folder", "zarr") and path.is_dir() and not path.is_symlink()
    return os.path.lexists(path) and not (folder and not any(path.iterdir()))


def is_finished(found: dict[str, Path], volume: Volume, identity: dict) -> bool:
    """Whether all outputs are there, made from this input as it is, with these settings.

    Raises
    ------
    InputError
        When something else is in the place of one of them, and no interrupted call is about to put it there.
    """
    target, part = found[MASK], part_of(found[MASK])
    record = record_of(target, volume)
    there = [path for path in (*reversed(found.values()), record) if is_there(path, volume)]
    if not there or (part / "whole").exists():
        return False
    made = read_json(record) if record in there else {}
    old = says_no_precision(made)
    if old:  # what earlier versions finished is whole, and stays
        identity = without_precision(identity)
    if len(there) == 1 + len(found) and {**made, **identity, "files": stamp(volume)} == made:
        if old:
            print(f"{target}: was finished by an earlier version, which does not say in what precision; kept",
                  file=sys.stderr)
        return True
    raise InputError(f"{there[0]}: exists, and was not made from this input with these settings"
                     f"{what_differs(made, identity)}; {ELSE}")


def says_no_precision(record: dict) -> bool:
    """Return whether a record was written by an earlier version, which did not say in what precision it predicted."""
    return isinstance(record.get("settings"), dict) and "precision" not in record["settings"]


def without_precision(identity: dict) -> dict:
    """Return what earlier versions would have written of the same prediction."""
    settings = {name: value for name, value in identity["settings"].items() if name != "precision"}
    return identity | {"settings": settings}


def what_differs(made: dict, wanted: dict) -> str:
    """Return in words which settings of a prediction are not those that are wanted now; "" where others differ."""
    before, now = made.get("settings"), wanted["settings"]
    if not isinstance(before, dict):
        return ""
    changed = [f"{name} was {before.get(name, 'not stated')}, is {now[name]}" for name in now
               if before.get(name) != now[name]]
    return f" ({', '.join(changed)})" if changed else ""


def held_in(part: Path) -> list[Path]:
    """What the folder of an interrupted call holds, apart from what `begin` and `alone` write."""
    return [p for p in part.rglob("*") if p.name not in ("prediction.json", "lock")] if part.exists() else []


def begin(part: Path, identity: dict, leads: bool = True) -> None:
    """Open the folder of what is not whole yet.

    Raises
    ------
    InputError
        When it was begun with another identity and holds blocks already, or holds something else.
    """
    about, held = part / "prediction.json", held_in(part)
    if held:
        try:
            begun = read_json(about)
        except InputError:
            raise InputError(f"{part}: holds {held[0].name} and does not say what it belongs to; {ELSE}") from None
        if says_no_precision(begun) and begun == without_precision(identity):
            if leads:
                print(f"{part}: was begun by an earlier version, which does not say in what precision (float32 on a "
                      f"CPU, bfloat16 on a GPU); goes on in {identity['settings']['precision']}", file=sys.stderr)
                write_json(about, identity)
        elif begun != identity:
            raise InputError(f"{part}: was begun with other settings or input{what_differs(begun, identity)}; give "
                             f"what it was begun with, or {ELSE}")
    elif leads:
        write_json(about, identity)


@contextmanager
def alone(part: Path, leads: bool = True) -> Iterator[None]:
    """Nobody else works on the same output while this is open; `InputError` where somebody does.

    The lock is freed by the system, whatever ends the process. Only the first of a team takes it. A folder in which
    nothing was kept is removed again.
    """
    if not leads:
        yield
        return
    if part.exists() and not part.is_dir():
        raise InputError(f"{part}: is in the way; {ELSE}")
    made = [folder for folder in part.parents if not folder.exists()]
    part.mkdir(parents=True, exist_ok=True)
    with (part / "lock").open("w") as file:
        if not lock(file):
            raise InputError(f"{part}: another process works on this output; wait for it, or choose another --output")
        try:
            yield
        finally:
            if part.exists() and not held_in(part):
                shutil.rmtree(part)
                for folder in made:
                    with suppress(OSError):                     # something is in it
                        folder.rmdir()


def finish(results: Blocks | ThreeAxes, volume: Volume, found: dict[str, Path], identity: dict) -> None:
    """Put the results together beside the output, then let it appear, and forget the blocks."""
    target, part = found[MASK], part_of(found[MASK])
    folder, about = part / "result", record_of(target, volume)
    if not (part / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        limits = np.array(list(results.slices(LIMITS)))
        record = identity | {"files": stamp(volume), "voxel": volume.voxel, "blank": int(np.isnan(limits[:, 0]).sum()),
                             "limits": [None if np.isnan(low) else [low, high] for low, high in limits.tolist()]}
        for kind, path in found.items():
            write_like(folder / path.relative_to(target.parent), volume, results.slices(kind),
                       np.uint8 if kind == MASK else np.float16, identity)
        write_json(folder / about.relative_to(target.parent), json.loads(json.dumps(record)))
        if hasattr(os, "sync"):
            os.sync()                                           # on the disk, before anything says that it is whole
        write_json(part / "whole", {})                          # from here on things are only moved
    whole = [target] if volume.kind == "folder" else [*[found[kind] for kind in found if kind != MASK], about, target]
    for path in whole:                                          # the masks last: where they are, all is
        made = folder / path.relative_to(target.parent)
        if made.exists():                                       # else it was moved before an interruption
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, path)
    remove(part)


def remove(part: Path) -> None:
    """Remove the folder of a finished prediction; under another name first: half of it must not look like a whole."""
    done = part.with_name(f"{part.name}.done")
    shutil.rmtree(done, ignore_errors=True)
    if part.exists():
        part.rename(done)
    shutil.rmtree(done, ignore_errors=True)
