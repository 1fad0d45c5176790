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

from runtime.files import lock, read_json, write_json
from runtime.messages import InputError
from slices.reading import TIFF_SUFFIXES, crop_picture, crop_roi, parse_roi
from volumes.blocks import CONSTANT, FLAT, LIMITS, MASK, OUTSIDE, OWN, Blocks, ThreeAxes
from volumes.reading import Volume, plain_name, stamp
from volumes.writing import tiff_name, write_like

INSIDE = "inside"  # where there is sample: a mask that is written where that is not everywhere
FOLDERS = {MASK: "", "probability": "probabilities", "uncertainty": "uncertainty", INSIDE: "inside"}
# Settings that earlier versions did not have, with the value that comes closest to what they did; None: any does.
LATER_SETTINGS = {"precision": None, "outside": "auto", "blank": "none"}
DIFFERENT = 1.5         # times: a slice whose contrast differs by more from that of training is named
LOW_CONTRAST = 0.5      # of the usual contrast of a volume: slices with less are named, and left blank if wanted
OTHER_UNITS = 30.0      # times: where the contrast of a volume and of training differ by more, they are in other units
SUDDEN = 0.15           # of a slice: where so much more or less lies outside than in the slice before, it is said
NAMED = 3               # slices that a line names
NO_TARGET = (".png", ".bmp", ".jpg", ".jpeg", ".npy")
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
    if (suffix == ".zarr" and stored != ".zarr") or (suffix in TIFF_SUFFIXES and stored != ".tif"):
        raise InputError(f"{output}: the input is a {'TIFF' if stored == '.tif' else stored[1:] or 'folder'}, and so "
                         "is the output; choose a name without the suffix of another family")
    if suffix in NO_TARGET and not output.is_dir():
        raise InputError(f"{output}: results are not written as {suffix}; give a name that ends in {stored}"
                         if stored else f"{output}: the input is a folder, so the output is one; give it another name")
    if volume.kind == "folder":
        found = {kind: output / FOLDERS[kind] for kind in kinds}
    elif volume.kind != "zarr" and suffix not in TIFF_SUFFIXES:
        found = {kind: output / FOLDERS[kind] / tiff_name(volume.path) for kind in kinds}
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
                   read=lambda i: crop_roi(volume.read(i), roi, volume.names[i]),
                   decode=lambda i: crop_picture(volume.picture(i), roi, volume.names[i]))


def part_of(target: Path) -> Path:
    """The folder of what is not whole yet."""
    return target.with_name(f"{target.name}.part")


def places_beside(masks: Path, kind: str) -> list[Path]:
    """Return where `targets` puts another kind of result of the masks in a place, which may be read another way.

    Masks in a folder have a folder inside it, a file in a folder that was the output one there, and other files a
    neighbour.
    """
    masks = Path(os.path.abspath(masks))
    stem = plain_name(masks)
    return [masks / FOLDERS[kind], masks.with_name(f"{stem}_{kind}{masks.name[len(stem):]}"),
            masks.parent / FOLDERS[kind] / masks.name]


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
    unknown = unknown_settings(made)
    asked_for = identity["settings"]
    if all(LATER_SETTINGS[name] in (None, asked_for[name]) for name in unknown):
        identity = without_settings(identity, unknown)          # what earlier versions finished is whole, and stays
    is_same = identity.items() <= made.items() and made.get("files") == stamp(volume)
    if len(there) == 1 + len(found) and is_same:
        if unknown:
            print(f"{target}: was finished by an earlier version, which knew nothing of --{', --'.join(unknown)}; kept",
                  file=sys.stderr)
        return True
    raise InputError(f"{there[0]}: exists, and was not made from this input with these settings"
                     f"{what_differs(made, identity)}; {ELSE}")


def unknown_settings(record: dict) -> list[str]:
    """Return the settings of a prediction that the version did not know which wrote a record."""
    settings = record.get("settings")
    return [name for name in LATER_SETTINGS if name not in settings] if isinstance(settings, dict) else []


def without_settings(identity: dict, names: list[str]) -> dict:
    """Return what versions that did not know some settings would have written of the same prediction."""
    settings = {name: value for name, value in identity["settings"].items() if name not in names}
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
        if unknown_settings(begun) == ["precision"] and begun == without_settings(identity, ["precision"]):
            if leads:
                print(f"{part}: was begun by an earlier version, which does not say in what precision (float32 on a "
                      f"CPU, bfloat16 on a GPU); goes on in {identity['settings']['precision']}", file=sys.stderr)
                write_json(about, identity)
        elif begun != identity and without_settings(identity, unknown_settings(begun)) == begun:
            raise InputError(f"{part}: was begun by an earlier version, which looked at slices in another way; delete "
                             "it, and the prediction begins anew")
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
    is_mine = False
    try:
        with (part / "lock").open("w") as file:
            if not lock(file):
                raise InputError(f"{part}: another process works on this output; wait for it, or choose another "
                                 "--output")
            is_mine = True
            yield
    finally:
        # The lock is closed here: Windows renames and removes no folder in which a file is open.
        if is_mine and (part / "moved").exists():
            remove(part)
        elif is_mine and part.exists() and not held_in(part):
            shutil.rmtree(part)
            for folder in made:
                with suppress(OSError):                         # something is in it
                    folder.rmdir()


def finish(results: Blocks | ThreeAxes, volume: Volume, found: dict[str, Path], identity: dict, inside: Path,
           training: dict | None) -> list[str]:
    """Put the results together beside the output, then let it appear; what is noticed about slices, a line each.

    Parameters
    ----------
    inside : Path
        Where the map of the sample goes, which is written where not all pixels show it.
    training : dict, or None
        Grey values of the slices of training, see `slices.data_folder.training_window`.
    """
    target, part = found[MASK], part_of(found[MASK])
    folder, about = part / "result", record_of(target, volume)
    if not (part / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        limits = np.array(list(results.slices(LIMITS)))
        record = identity | {"files": stamp(volume), "voxel": volume.voxel, "blank": int(np.isnan(limits[:, 0]).sum()),
                             "limits": [None if np.isnan(low) else [low, high] for low, high in limits.tolist()],
                             "slices": describe_slices(volume, np.array(list(results.slices(OWN))), training),
                             **describe_outside(volume, results)}
        for kind, path in found.items():
            write_like(folder / path.relative_to(target.parent), volume, results.slices(kind),
                       np.uint8 if kind == MASK else np.float16, identity)
        if record["outside"]:
            write_like(folder / inside.relative_to(target.parent), volume, inside_masks(results), np.uint8, identity)
        write_json(folder / about.relative_to(target.parent), json.loads(json.dumps(record)))
        if hasattr(os, "sync"):
            os.sync()                                           # on the disk, before anything says that it is whole
        write_json(part / "whole", {})                          # from here on things are only moved

    others = [found[kind] for kind in found if kind != MASK]
    whole = [target] if volume.kind == "folder" else [*others, inside, about, target]
    for path in whole:                                          # the masks last: where they are, all is
        made = folder / path.relative_to(target.parent)
        if made.exists():                                       # else it was moved before an interruption
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, path)
    write_json(part / "moved", {})                              # `alone` removes the folder, once it has let go of it
    return notes_on_slices(read_json(about), about)


def inside_masks(results: Blocks | ThreeAxes) -> Iterator[np.ndarray]:
    """Yield where each slice of a volume with padding shows the sample: (H, W) uint8, 255 there.

    A constant slice shows none: above and below the sample there is nothing but padding.
    """
    kinds = (results.slices(kind) for kind in (MASK, OUTSIDE, CONSTANT))
    for mask, outside, is_constant in zip(*kinds, strict=True):
        if outside.size:
            yield np.where(outside, np.uint8(0), np.uint8(255))
        else:
            yield np.full_like(mask, 0 if is_constant else 255)


def describe_outside(volume: Volume, results: Blocks | ThreeAxes) -> dict:
    """Return the share of a volume that lies outside the sample, and slices where it is quite another than before.

    Constant slices are left out of these: above and below the sample there is nothing to be seen.
    """
    outsides, constants = results.slices(OUTSIDE), results.slices(CONSTANT)
    shares, changes, before = [], {}, None
    for name, outside, is_constant in zip(volume.names, outsides, constants, strict=True):
        share = float(outside.mean()) if outside.size else 0.0
        shares.append(share)
        if is_constant:
            continue
        if before is not None and abs(share - before) > SUDDEN:
            changes[Path(name).name] = [before, share]
        before = share
    flat = {Path(name).name: found.tolist() for name, found in zip(volume.names, results.slices(FLAT), strict=True)
            if np.isfinite(found[0])}
    return {"outside": float(np.mean(shares)), "outside_changes": changes, "flat_borders": flat}


def describe_slices(volume: Volume, own: np.ndarray, training: dict | None) -> dict:
    """Return which slices do not look like the others, or like those of training: names, with contrasts and limits.

    Parameters
    ----------
    own : (N, 2) ndarray
        The percentiles of each slice.
    """
    contrasts = own[:, 1] - own[:, 0]
    usual = float(np.percentile(contrasts, 75))
    described = {"usual_contrast": usual, "low_contrast": {}, "unlike_training": {}, "training": training}
    for name, (low, high), contrast in zip(volume.names, own.tolist(), contrasts.tolist(), strict=True):
        if contrast < LOW_CONTRAST * usual:
            described["low_contrast"][Path(name).name] = {"contrast": contrast, "limits": [low, high]}
        if training is not None and is_unlike(low, high, training):
            described["unlike_training"][Path(name).name] = {
                "times_the_contrast": contrast / training["contrast"], "limits": [low, high]}
    return described


def is_unlike(low: float, high: float, training: dict) -> bool:
    """Return whether the percentiles of a slice lie elsewhere than those of training, or farther apart, or closer."""
    contrast = high - low
    if not training["least_contrast"] / DIFFERENT <= contrast <= training["most_contrast"] * DIFFERENT:
        return True
    reach = (DIFFERENT - 1) * training["contrast"]
    return abs(low - training["low"]) > reach or abs(high - training["high"]) > reach


def notes_on_slices(record: dict, path: Path) -> list[str]:
    """Return what to say about slices that look unlike others, or unlike those of training."""
    notes, slices = [], record["slices"]
    count = len(record["limits"])
    unlike, low = slices["unlike_training"], slices["low_contrast"]
    if unlike:
        first, training = next(iter(unlike.values())), slices["training"]
        values = (f"grey values {first['limits'][0]:g} to {first['limits'][1]:g} instead of {training['low']:g} to "
                  f"{training['high']:g}")
        by_training = record["settings"].get("window") == "training"
        ratio = slices["usual_contrast"] / training["contrast"] if training["contrast"] else np.inf
        if not 1 / OTHER_UNITS < ratio < OTHER_UNITS:
            advice = ("--window training is wrong for them" if by_training
                      else "no matter, as long as each is seen by its own percentiles")
            notes.append(f"{shown(unlike)}: {len(unlike)} of {count} slices have grey values in other units than those "
                         f"of training: {values}; {advice}")
        else:
            advice = "" if by_training else "; --window training shows them as training did"
            notes.append(f"{shown(unlike)}: {len(unlike)} of {count} slices do not look like those of training: "
                         f"contrast {first['times_the_contrast']:.3g} times as large, {values} (all in "
                         f"{path.name}){advice}")
    if low:
        first = next(iter(low.values()))
        left = "are" if record["settings"].get("blank") == "auto" else "can be"
        notes.append(f"{shown(low)}: {len(low)} of {count} slices have little contrast, {first['contrast']:g} where "
                     f"{slices['usual_contrast']:g} is usual; air? they {left} left blank by --blank auto")
    if flat := record["flat_borders"]:
        value, share = next(iter(flat.values()))
        notes.append(f"{shown(flat)}: {share:.0%} of the slice are exactly {value:g}, at its border, as in {len(flat)} "
                     f"of {count} slices, and count as sample; right if it is, else --outside {value:g}")
    if changes := record["outside_changes"]:
        before, share = next(iter(changes.values()))
        notes.append(f"{shown(changes)}: what lies outside the sample changes suddenly there, first from {before:.0%} "
                     f"to {share:.0%} of the slice; if that is wrong, give its grey value (--outside VALUE), or "
                     "--outside none")
    if record["outside"]:
        notes.append(f"{record['outside']:.1%} of the pixels lie outside the sample and are 0 in the mask; --outside "
                     "none looks at them, too")
    elif record["settings"].get("outside") not in ("auto", "none", None):
        notes.append(f"no slice holds {record['settings']['outside']} at its border, so nothing lies outside: is the "
                     "value of --outside right?")
    return notes


def shown(names: dict) -> str:
    """Return the first few names in words."""
    first = list(names)[:NAMED]
    return ", ".join(first) + (" …" if len(names) > len(first) else "")


def remove(part: Path) -> None:
    """Remove the folder of a finished prediction; under another name first: half of it must not look like a whole."""
    done = part.with_name(f"{part.name}.done")
    shutil.rmtree(done, ignore_errors=True)
    if part.exists():
        part.rename(done)
    shutil.rmtree(done, ignore_errors=True)
