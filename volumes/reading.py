"""Volumes slice by slice: a slice, a folder of slices, a TIFF stack, a zarr array.

Only the slices asked for are read.
"""

import itertools
import math
import re
from collections import Counter
from pathlib import Path

from runtime.messages import InputError
from slices.pictures import Picture, read_picture, refuse_devices
from slices.reading import IMAGE_SUFFIXES, TIFF_SUFFIXES, list_files, read_array, signed_places
from volumes.tiff_stacks import open_tiff, single_slice
from volumes.volume import Volume
from volumes.voxel_size import Voxel, describe_voxel
from volumes.zarr_arrays import open_zarr

FILES_COMPARED = 20  # of a folder, about as many are asked for their voxel size
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")  # of which a zarr array or group has one


def open_volume(path: Path) -> Volume:
    """Open a slice, a folder of them, a TIFF stack (BigTIFF, ImageJ, OME) or a zarr array or OME-Zarr image.

    Raises
    ------
    InputError
        When there is no such thing, or it has channels or other axes than rows, columns, depth and
        time.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        if any((path / name).exists() for name in ZARR_FILES):
            return open_zarr(path)
        return open_folder(path)

    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(
            f"{path}: is not a .tif; give a .tif slice or stack, a folder of slices, or a zarr array"
        )

    if suffix not in TIFF_SUFFIXES:
        return single_slice(path, read_picture(path).shape)

    refuse_devices(path)
    try:
        return open_tiff(path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - the parser raises a dozen types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read ({reason}); damaged or truncated? export it again"
        ) from None


# --- folders --------------------------------------------------------------------------------------


def open_folder(path: Path) -> Volume:
    """Open a folder of slices, in the natural order of their names."""
    files = list_files(path)
    if not files:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{path}: holds no slice ({suffixes}), and is no zarr array")
    refuse_twins(path, files)

    first = open_volume(files[0])
    voxel = first.voxel
    remarks = list(first.details.get("remarks", []))
    other = find_other_voxel(files, voxel)
    if other is not None:
        file, other_voxel = other
        remarks.append(
            f"{path}: {files[0].name} says that a voxel is {describe_voxel(voxel)}, {file.name} says "
            f"{describe_voxel(other_voxel)}; sizes are in pixels (give --pixel-size)"
        )
        voxel = {}

    def read(i: int):
        return read_array(files[i])

    def decode(i: int) -> Picture:
        return read_picture(files[i])

    details = {"files": files, "remarks": remarks, "order": remarks_on_order(path, files)}
    shape = (len(files), *first.slice_shape)
    names = [str(file) for file in files]
    return Volume(path, "folder", "ZYX", shape, names, read, voxel, details, decode)


def refuse_twins(path: Path, files: list[Path]) -> None:
    """Raise `InputError` where a folder holds a slice twice, in two formats."""
    counts = Counter(file.stem for file in files)
    for stem, count in counts.items():
        if count > 1:
            names = ", ".join(file.name for file in files if file.stem == stem)
            raise InputError(
                f"{path}: holds {names}, of which one slice was saved twice; keep one of them"
            )


def find_other_voxel(files: list[Path], voxel: Voxel) -> tuple[Path, Voxel] | None:
    """Return a file that states another voxel size than the first one, and what it states; None where none does.

    Up to `FILES_COMPARED` of them are looked at, evenly spaced, with the last one. A file that
    cannot be read is an error when its slice is asked for, not here.
    """
    step = max(1, len(files) // FILES_COMPARED)
    for file in [*files[step::step], files[-1]]:
        try:
            other = open_volume(file).voxel
        except InputError:
            continue
        if not are_close(other, voxel):
            return file, other

    return None


def are_close(one: Voxel, other: Voxel) -> bool:
    """Return whether two voxel sizes have the same axes and units, and sizes that agree to a thousandth."""
    if one.keys() != other.keys():
        return False
    for axis, (size, unit) in one.items():
        other_size, other_unit = other[axis]
        if unit != other_unit or not math.isclose(size, other_size, rel_tol=1e-3):
            return False

    return True


# --- are they neighbours? -------------------------------------------------------------------------


def remarks_on_order(path: Path, files: list[Path]) -> list[str]:
    """Return lines on what makes files of a folder no neighbours, where they are taken for slices of a volume."""
    stems = [file.stem for file in files]
    places = signed_places(stems)
    if places is not None:
        return remarks_on_places(path, places)

    # Names without their numbers.
    forms = {re.sub(r"\d+", "#", stem) for stem in stems}
    if len(forms) > 1:
        return [
            f"{path}: names of its files have several forms ({stems[0]}, {stems[-1]}); is it one "
            "volume? Slices are taken in the order of their names"
        ]

    numbers = [re.findall(r"\d+", stem) for stem in stems]
    if len(files) < 2 or not numbers[0]:
        return []

    ends_in_decimals = re.search(r"#\.#\D*$", forms.pop()) is not None
    lengths = {len(found[-1]) for found in numbers}
    if ends_in_decimals and len(lengths) > 1:
        return [
            f"{path}: takes numbers in names for whole ones, so that {stems[0]} comes first and "
            f"{stems[-1]} last; rename the files if they are decimals"
        ]

    # Where a single number changes from file to file, it is the place of the slice.
    changing = [i for i in range(len(numbers[0])) if len({found[i] for found in numbers}) > 1]
    if len(changing) != 1:
        return []
    return remarks_on_places(path, [int(found[changing[0]]) for found in numbers])


def remarks_on_places(path: Path, places: list[int]) -> list[str]:
    """Return lines where places of slices jump, or where there is only every second or third one."""
    steps = [after - before for before, after in itertools.pairwise(places)]
    usual = min(steps, key=abs)
    jumps = [i for i, step in enumerate(steps) if step != usual]
    if jumps:
        first = jumps[0]
        others = f", and in {len(jumps) - 1} other places" if len(jumps) > 1 else ""
        return [
            f"{path}: numbers of slices jump from {places[first]} to {places[first + 1]}{others}; "
            "they are taken for neighbours"
        ]

    if abs(usual) > 1:
        return [
            f"{path}: has every {abs(usual)}. slice; they are taken for neighbours, and their "
            "distance is that of slices (--slice-distance)"
        ]

    return []
