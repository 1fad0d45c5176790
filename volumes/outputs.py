"""How the results of a prediction appear: all at once, never half, never in the place of others.

A prediction is made in a folder of its own, OUT.part beside its output OUT, in this order. Whatever
ends the process, the next call with the same input and settings goes on from there.

1. `LOCK` is held by the one process, or team, that works there.
2. `BEGUN` says what the prediction depends on: it only goes on with the same.
3. Blocks of slices are written, each whole or not there (`volumes.blocks`).
4. All results are put together in `result/`, and reach the disk; then `WHOLE` is written.
5. They are moved to where they go, the masks last: where the masks are, all is. Then `MOVED` is
   written, and the folder is removed.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.files import lock, read_json, write_json
from runtime.messages import InputError
from slices.classes import Classes
from volumes.blocks import MASK, PROBABILITY, Blocks
from volumes.decisions import Decision
from volumes.prediction_notes import (
    describe_fractions,
    describe_results,
    inside_masks,
    notes_on_slices,
)
from volumes.records import (
    INSIDE,
    LATER_SETTINGS,
    describe_difference,
    is_there,
    part_of,
    record_of,
    targets,
    unknown_settings,
    without_settings,
)
from volumes.three_axes import ThreeAxes
from volumes.volume import Volume, stamp
from volumes.writing import Content, write_like

CURE = "delete it, or choose another --output"
BEGUN = "prediction.json"  # in the folder of an interrupted call: what it was begun with
LOCK = "lock"  # held while a process works there
WHOLE = "whole"  # is there when all results are, and have only to be moved
MOVED = "moved"  # is there when they were moved


@dataclass(frozen=True)
class Output:
    """Where the results of a prediction go, and what they depend on.

    Attributes
    ----------
    volume : Volume
        The input.
    places : dict of kind to Path
        See `volumes.records.targets`; with the masks.
    inside : Path
        Where the map of the sample goes, which is written where not all pixels show it.
    identity : dict
        Input, checkpoints and settings: runs with the same identity continue each other.
    classes : Classes or None
        Of label maps; None where masks are binary.
    """

    volume: Volume
    places: dict[str, Path]
    inside: Path
    identity: dict
    classes: Classes | None = None

    @property
    def target(self) -> Path:
        """Where the masks go."""
        return self.places[MASK]

    @property
    def part(self) -> Path:
        """The folder in which the prediction is made until it is whole."""
        return part_of(self.target)

    @property
    def record(self) -> Path:
        """The file that says how the results were made."""
        return record_of(self.target, self.volume)

    @property
    def begun(self) -> dict:
        """What is kept of an interrupted call, to know whether it can go on."""
        return self.identity | {"files": stamp(self.volume)}


def make_output(
    volume: Volume,
    path: Path,
    kinds: list[str],
    identity: dict,
    classes: Classes | None = None,
) -> Output:
    """Return where results go; see `volumes.records.targets` for the errors."""
    places = targets(volume, path, kinds)
    inside = targets(volume, path, [INSIDE])[INSIDE]
    return Output(volume, places, inside, identity, classes)


# --- before ---------------------------------------------------------------------------------------


def keep_finished(output: Output) -> bool:
    """Return whether all outputs are there, made from this input as it is, with these settings.

    Then nothing has to be done. What an earlier version made is kept, and that is said.

    Raises
    ------
    InputError
        When something else is in the place of one of them, and no interrupted call is about to put
        it there.
    """
    candidates = [*reversed(output.places.values()), output.record]
    there = [path for path in candidates if is_there(path, output.volume)]
    if not there or (output.part / WHOLE).exists():
        return False

    record = read_json(output.record) if output.record in there else {}
    unknown = unknown_settings(record)
    identity = output.identity
    if does_what_earlier_versions_did(identity, unknown):
        identity = without_settings(identity, unknown)

    is_same = identity.items() <= record.items() and record.get("files") == stamp(output.volume)
    if is_same and len(there) == len(candidates):
        if unknown:
            options = ", --".join(unknown)
            print(
                f"{output.target}: was finished by an earlier version, which knew nothing of "
                f"--{options}; kept",
                file=sys.stderr,
            )
        return True

    raise InputError(
        f"{there[0]}: exists, and was not made from this input with these settings"
        f"{describe_difference(record, identity)}; {CURE}"
    )


def does_what_earlier_versions_did(identity: dict, unknown: list[str]) -> bool:
    """Return whether settings that a version did not know have the values that do what it did."""
    for name in unknown:
        accepted = LATER_SETTINGS[name]
        if accepted is not None and identity["settings"][name] != accepted:
            return False
    return True


def refuse_leftover_inside(output: Output) -> None:
    """Raise `InputError` where the map of the sample of an earlier prediction would be taken for that of this one."""
    if is_there(output.inside, output.volume) and not output.part.exists():
        raise InputError(
            f"{output.inside}: is left from an earlier prediction, and would be taken for the field "
            "of view of this one; delete it, or choose another --output"
        )


def begin(output: Output, leads: bool = True) -> None:
    """Open the folder in which a prediction is made, or go on in that of an interrupted call.

    The first process of a team begins; then each one checks that it was begun with what it was
    asked for itself.

    Parameters
    ----------
    output : Output
    leads : bool
        Whether this call may write; else it only checks.

    Raises
    ------
    InputError
        When it was begun with another identity and holds blocks already, or holds something else.
    """
    path = output.part / BEGUN
    held = held_in(output.part)
    if not held:
        if leads:
            write_json(path, output.begun)
        return

    try:
        begun = read_json(path)
    except InputError:
        raise InputError(
            f"{output.part}: holds {held[0].name} and does not say what it belongs to; {CURE}"
        ) from None

    if begun == output.begun:
        return

    unknown = unknown_settings(begun)
    is_of_earlier_version = begun == without_settings(output.begun, unknown)
    if is_of_earlier_version and unknown == ["precision"]:
        if leads:
            precision = output.identity["settings"]["precision"]
            print(
                f"{output.part}: was begun by an earlier version, which does not say in what "
                f"precision (float32 on a CPU, bfloat16 on a GPU); goes on in {precision}",
                file=sys.stderr,
            )
            write_json(path, output.begun)
        return

    if is_of_earlier_version:
        raise InputError(
            f"{output.part}: was begun by an earlier version, which looked at slices in another way; "
            "delete it, and the prediction begins anew"
        )

    raise InputError(
        f"{output.part}: was begun with other settings or input"
        f"{describe_difference(begun, output.identity)}; give what it was begun with, or {CURE}"
    )


def held_in(part: Path) -> list[Path]:
    """Return what the folder of an interrupted call holds, apart from what `begin` and `alone` write."""
    if not part.exists():
        return []
    return [path for path in part.rglob("*") if path.name not in (BEGUN, LOCK)]


@contextmanager
def alone(part: Path, leads: bool = True) -> Iterator[None]:
    """Let nobody else work on the same output while this is open; `InputError` where somebody does.

    The lock is freed by the system, whatever ends the process. Only the first of a team takes it. A
    folder in which nothing was kept is removed again.
    """
    if not leads:
        yield
        return
    if part.exists() and not part.is_dir():
        raise InputError(f"{part}: is in the way; {CURE}")

    made = [folder for folder in part.parents if not folder.exists()]
    part.mkdir(parents=True, exist_ok=True)
    is_mine = False
    try:
        with (part / LOCK).open("w") as file:
            if not lock(file):
                raise InputError(
                    f"{part}: another process works on this output; wait for it, or choose another "
                    "--output"
                )
            is_mine = True
            yield
    finally:
        # The lock is closed here: Windows renames and removes no folder in which a file is open.
        if is_mine and (part / MOVED).exists():
            remove(part)
        elif is_mine and part.exists() and not held_in(part):
            shutil.rmtree(part)
            remove_empty(made)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders in which nothing is."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove(part: Path) -> None:
    """Remove the folder of a finished prediction.

    It is renamed before: half of it must not look like a whole.
    """
    done = part.with_name(f"{part.name}.done")
    shutil.rmtree(done, ignore_errors=True)
    if part.exists():
        part.rename(done)
    shutil.rmtree(done, ignore_errors=True)


# --- after ----------------------------------------------------------------------------------------


def finish(output: Output, results: Blocks | ThreeAxes, training: dict | None) -> list[str]:
    """Put the results together beside the output, then let them appear.

    Parameters
    ----------
    output : Output
    results : Blocks or ThreeAxes
    training : dict, or None
        Grey values of the slices of training, see `slices.data_folder.training_window`.

    Returns
    -------
    list of str
        What is noticed about slices, a line each.
    """
    if not (output.part / WHOLE).exists():
        put_together(output, results, training)
    move_into_place(output)

    # `alone` removes the folder, once it has let go of it.
    write_json(output.part / MOVED, {})
    return notes_on_slices(read_json(output.record), output.record)


def put_together(output: Output, results: Blocks | ThreeAxes, training: dict | None) -> None:
    """Write all results into the folder of the prediction, and say there that they are whole."""
    volume, identity = output.volume, output.identity
    shutil.rmtree(result_folder(output), ignore_errors=True)
    record = identity | {"files": stamp(volume)} | describe_results(volume, results, training)
    if output.classes is not None:
        record["fractions"] = describe_fractions(results, output.classes)

    for kind, path in output.places.items():
        content = content_of(output, kind)
        write_like(waiting_place(output, path), volume, results.slices(kind), content)
    if record["outside"]:
        place = waiting_place(output, output.inside)
        content = Content(np.dtype(np.uint8), identity)
        write_like(place, volume, inside_masks(results), content)
    as_json_has_it = json.loads(json.dumps(record))
    write_json(waiting_place(output, output.record), as_json_has_it)

    # All has to be on the disk before anything says that it is whole. From then on it is only
    # moved.
    if hasattr(os, "sync"):
        os.sync()
    write_json(output.part / WHOLE, {})


def content_of(output: Output, kind: str) -> Content:
    """Return what the pixels of one kind of results are."""
    classes = output.classes if kind in (MASK, PROBABILITY) else None
    dtype = np.dtype(np.float16)
    if kind == MASK:
        dtype = Decision(0.5, classes).dtype
    return Content(dtype, output.identity, classes, has_channels=kind == PROBABILITY)


def move_into_place(output: Output) -> None:
    """Move all results to where they go, the masks last: where they are, all is.

    What is not there any more was moved before an interruption.
    """
    if output.volume.kind == "folder":
        # Everything else lies inside the folder of the masks.
        paths = [output.target]
    else:
        others = [path for kind, path in output.places.items() if kind != MASK]
        paths = [*others, output.inside, output.record, output.target]

    for path in paths:
        waiting = waiting_place(output, path)
        if waiting.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(waiting, path)


def result_folder(output: Output) -> Path:
    """Return the folder in which results wait."""
    return output.part / "result"


def waiting_place(output: Output, path: Path) -> Path:
    """Return where a result waits until all are there."""
    return result_folder(output) / path.relative_to(output.target.parent)
