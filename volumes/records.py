"""Where results of a prediction lie, and the record beside them that says how they were made."""

import os
from pathlib import Path

from runtime.files import read_json
from runtime.messages import InputError
from slices.classes import Classes, classes_of, find_classes
from slices.options import MASKS
from slices.reading import TIFF_SUFFIXES, parse_roi
from volumes.blocks import MASK, PROBABILITY, UNCERTAINTY
from volumes.volume import Volume, plain_name

INSIDE = "inside"  # where there is sample: a mask that is written where that is not everywhere
FOLDERS = {MASK: "", PROBABILITY: "probabilities", UNCERTAINTY: "uncertainty", INSIDE: "inside"}
NO_TARGET = (".png", ".bmp", ".jpg", ".jpeg", ".npy")  # in which results are not written

# Settings that earlier versions did not have, with the value that reproduces what they did; None:
# any value is accepted.
LATER_SETTINGS = {"precision": None, "outside": "auto", "blank": "none"}


# --- places ---------------------------------------------------------------------------------------


def targets(volume: Volume, output: Path, kinds: list[str]) -> dict[str, Path]:
    """Return where each kind of result goes.

    OUT is a file or zarr array, with OUT_probability beside it, or a folder, with subfolders.

    Raises
    ------
    InputError
        When an output would replace an input or lie inside a zarr one, or has the suffix of another
        family.
    """
    if output.name in ("", ".."):
        output = Path(os.path.abspath(output))
    refuse_other_family(volume, output)

    suffix = output.suffix.lower()
    is_one_file = volume.kind not in ("folder", "zarr")
    places = {}
    for kind in kinds:
        if volume.kind == "folder":
            places[kind] = output / FOLDERS[kind]
        elif is_one_file and suffix not in TIFF_SUFFIXES:
            places[kind] = output / FOLDERS[kind] / tiff_name(volume.path)
        elif kind == MASK:
            places[kind] = output
        else:
            places[kind] = neighbour(output, kind)

    for path in places.values():
        if would_replace(path, volume):
            raise InputError(f"{path}: would replace the input; choose another --output")
    return places


def refuse_other_family(volume: Volume, output: Path) -> None:
    """Raise `InputError` where an output has the suffix of another family than the input."""
    families = {"zarr": ("zarr", ".zarr"), "folder": ("folder", "")}
    family, expected = families.get(volume.kind, ("TIFF", ".tif"))
    suffix = output.suffix.lower()
    is_zarr_instead = suffix == ".zarr" and expected != ".zarr"
    is_tiff_instead = suffix in TIFF_SUFFIXES and expected != ".tif"
    if is_zarr_instead or is_tiff_instead:
        raise InputError(
            f"{output}: the input is a {family}, and so is the output; choose a name without the "
            "suffix of another family"
        )

    if suffix not in NO_TARGET or output.is_dir():
        return
    if volume.kind == "folder":
        raise InputError(
            f"{output}: the input is a folder, so the output is one; give it another name"
        )

    raise InputError(
        f"{output}: results are not written as {suffix}; give a name that ends in {expected}"
    )


def would_replace(path: Path, volume: Volume) -> bool:
    """Return whether writing to a path would replace the input, what it lies in, or a part of it."""
    source = volume.path.resolve()
    path = path.resolve()
    is_inside_input = volume.kind == "zarr" and source in path.parents
    return path == source or path in source.parents or is_inside_input


def neighbour(masks: Path, kind: str) -> Path:
    """Return the place of another kind of result beside a file or zarr array of masks: OUT_probability.tif."""
    stem = plain_name(masks)
    suffixes = masks.name[len(stem) :]
    return masks.with_name(f"{stem}_{kind}{suffixes}")


def tiff_name(path: Path) -> str:
    """Return the name of the TIFF that is written for a file, which may be of another family: `a.tif` for `a.png`."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        return path.name
    return f"{path.stem}.tif"


def places_beside(masks: Path, kind: str) -> list[Path]:
    """Return where another kind of result may be that was written together with some masks.

    The masks may be given as the output folder, as an output file, or as one file of the output
    folder: for each the place where `targets` puts that kind.
    """
    masks = Path(os.path.abspath(masks))
    folder = FOLDERS[kind]
    return [masks / folder, neighbour(masks, kind), masks.parent / folder / masks.name]


def inside_file(masks: Path) -> Path | None:
    """Return the map of the sample that `predict.py` wrote beside its masks; None where there is none."""
    for path in places_beside(masks, INSIDE):
        if path.exists():
            return path
    return None


def part_of(target: Path) -> Path:
    """Return the folder in which a prediction is made until it is whole."""
    return target.with_name(f"{target.name}.part")


def is_there(path: Path, volume: Volume) -> bool:
    """Return whether something is in the place of an output; an empty folder counts as nothing."""
    if not os.path.lexists(path):
        return False
    is_own_folder = volume.kind in ("folder", "zarr") and path.is_dir() and not path.is_symlink()
    if is_own_folder:
        return any(path.iterdir())
    return True


# --- records --------------------------------------------------------------------------------------


def record_of(target: Path, volume: Volume) -> Path:
    """Return the file that says how a result was made."""
    if volume.kind == "folder":
        return target / "prediction.json"
    return target.with_name(f"{target.name}.json")


def roi_of(path: Path) -> tuple[int, int, int, int] | None:
    """Return the region in which a mask was predicted, as its record says.

    Outside nothing was looked for: a particle that this border cuts is cut, and no particle beyond
    is missed. None where there is no record, or all was looked at.

    Raises
    ------
    InputError
        When the record is damaged.
    """
    path = Path(os.path.abspath(path))
    for record in (path / "prediction.json", path.with_name(f"{path.name}.json")):
        if not record.is_file():
            continue
        settings = read_json(record).get("settings")
        if not isinstance(settings, dict) or not isinstance(settings.get("roi"), list):
            return None
        return parse_roi(",".join(map(str, settings["roi"])))

    return None


def classes_beside(masks: Path) -> Classes | None:
    """Return the classes of the label maps at a path, as far as files beside them name any.

    That is the record of a prediction, or a `classes.json` in their folder, beside them, or in the
    data folder that they lie in.

    Raises
    ------
    InputError
        When they name nothing that label maps can hold.
    """
    record = record_beside(masks)
    if record:
        stated = record.get("classes")
        return classes_of(stated, f"record of {masks}") if isinstance(stated, dict) else None

    path = Path(os.path.abspath(masks))
    folders = [path, path.parent]
    if path.name == Path(MASKS).name:
        folders.append(path.parent.parent)
    for folder in folders:
        classes = find_classes(folder)
        if classes is not None:
            return classes
    return None


def is_prediction(masks: Path) -> bool:
    """Return whether a record says that masks were made by `predict.py`."""
    return bool(record_beside(masks))


def record_beside(masks: Path) -> dict:
    """Return the record that `predict.py` wrote beside its masks; empty where there is none.

    A file of that name may be another program's: then it is no record.
    """
    path = Path(os.path.abspath(masks))
    for file in (path / "prediction.json", path.with_name(f"{path.name}.json")):
        if not file.is_file():
            continue
        try:
            content = read_json(file)
        except InputError:
            continue
        if "checkpoints" in content and "settings" in content:
            return content
    return {}


def unknown_settings(record: dict) -> list[str]:
    """Return the settings of a prediction that the version did not know which wrote a record."""
    settings = record.get("settings")
    if not isinstance(settings, dict):
        return []
    return [name for name in LATER_SETTINGS if name not in settings]


def without_settings(identity: dict, names: list[str]) -> dict:
    """Return what versions that did not know some settings would have written of the same prediction."""
    settings = {name: value for name, value in identity["settings"].items() if name not in names}
    return identity | {"settings": settings}


def describe_difference(record: dict, wanted: dict) -> str:
    """Return in words which settings of a prediction are not those that are wanted now.

    An empty text means that the difference lies elsewhere: in the input, or in the checkpoints.
    """
    before = record.get("settings")
    if not isinstance(before, dict):
        return ""
    changes = []
    for name, value in wanted["settings"].items():
        if before.get(name) != value:
            changes.append(f"{name} was {before.get(name, 'not stated')}, is {value}")
    return f" ({', '.join(changes)})" if changes else ""
