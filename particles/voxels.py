"""The sides of a voxel with which particles are measured: what is given, what the file says, or pixels."""

import math

from runtime.messages import InputError, say_once
from volumes.volume import Volume
from volumes.voxel_size import relative_sides, sides_in_um

SAME = 0.01  # relative: pixel sizes that differ by less are the same


def voxel_of(
    volume: Volume, pixel_size: float | None, distance: float | None
) -> tuple[tuple[float, float, float], str]:
    """Return distance of slices, height and width of a pixel, and their unit: µm, or px where no size is known.

    What is given goes before what the file says. Where a file knows the shape of a voxel and not
    its size, the sides are in units of the smallest one. What is known of no axis, or not given, is
    taken as the side of a pixel, which is said.

    Parameters
    ----------
    volume : Volume
    pixel_size, distance : float or None
        Side of a pixel and distance of slices [µm], where they are given.

    Raises
    ------
    InputError
        When a distance is given, and no pixel size is known.
    """
    known = sides_in_um(volume.voxel)
    is_size_known = bool(pixel_size) or "X" in known or "Y" in known
    if distance and not is_size_known:
        raise InputError(f"{volume.path}: says no pixel size; --slice-distance needs --pixel-size")

    if pixel_size:
        depth, height, width = sides_of_given_pixel(volume, pixel_size)
        if depth is not None and not distance:
            say_if_distance_stays(volume, pixel_size, depth)
    elif is_size_known:
        width = known.get("X", known.get("Y"))
        height = known.get("Y", width)
        depth = known.get("Z")
    else:
        depth, height, width = sides_in_pixels(volume)

    unit = "µm" if is_size_known else "px"
    depth = distance or depth
    is_stacked = len(volume) > 1 and set("ZIQ") & set(volume.axes)
    if depth is None and is_stacked and unit == "µm":
        say_once(
            f"{volume.path}: the distance of its slices is not known, and taken as the side of a "
            f"pixel, {width:g} µm; give --slice-distance if that is wrong"
        )

    return (depth or width, height, width), unit


def sides_of_given_pixel(volume: Volume, pixel_size: float) -> tuple[float | None, float, float]:
    """Return the sides of a voxel whose pixels have a given size [µm], as far as the file knows their ratio."""
    ratio = relative_sides(volume.voxel)
    height = pixel_size
    if "X" in ratio and "Y" in ratio:
        height = pixel_size * ratio["Y"] / ratio["X"]

    depth = sides_in_um(volume.voxel).get("Z")
    if depth is None and "X" in ratio and "Z" in ratio:
        depth = pixel_size * ratio["Z"] / ratio["X"]
    return depth, height, pixel_size


def say_if_distance_stays(volume: Volume, pixel_size: float, depth: float) -> None:
    """Say that a given pixel size takes the place of another one, and that the distance of slices stays as it is."""
    known = sides_in_um(volume.voxel)
    if "Z" not in known or math.isclose(known.get("X", pixel_size), pixel_size, rel_tol=SAME):
        return
    say_once(
        f"{volume.path}: --pixel-size {pixel_size:g} takes the place of {known['X']:g} µm; the "
        f"distance of slices stays as the file says, {depth:g} µm, unless --slice-distance is given"
    )


def sides_in_pixels(volume: Volume) -> tuple[float | None, float, float]:
    """Return the sides of a voxel in units of the smallest one, where no size is known."""
    ratio = relative_sides(volume.voxel)
    if "X" not in ratio and "Y" not in ratio:
        # A distance of slices is relative to nothing then.
        return None, 1.0, 1.0
    width = ratio.get("X", ratio.get("Y"))
    return ratio.get("Z"), ratio.get("Y", width), width
