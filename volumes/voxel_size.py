"""How large a voxel is, as far as a file says so: what programs write, read with some distrust.

A voxel size is a dict of axis (`X`, `Y`, `Z`) to (size, unit), in `um`; or in `px`, relative to each other, where a
file knows the shape of a voxel and not its size. What a file says and cannot be is left out, with a line that says why.
"""

import math
import unicodedata
from collections.abc import Mapping

Voxel = dict[str, tuple[float, str]]

IN_UM = {"pm": 1e-6, "angstrom": 1e-4, "nm": 1e-3, "um": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6,
         "inch": 25400.0, "px": 1.0}
SPELLINGS = {
    "pm": "pm picometer picometre",
    "angstrom": "å a angstrom angstroem ångström angström aa",
    "nm": "nm nanometer nanometre nanon nmeter",
    "um": "um µm micron micrometer micrometre mikrometer mikron mcm umeter",
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre zentimeter",
    "dm": "dm decimeter decimetre",
    "m": "m meter metre",
    "inch": "in inch inche \"",
    "px": "px pixel pix voxel vx none unknown arbitrary referenceframe",
}
UNITS = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in spellings.split()}

# Pixels per inch that programs write where nobody told them: they are about paper and screens.
DEFAULT_DPI = (1, 2.54, 72, 90, 96, 100, 120, 144, 150, 180, 200, 240, 254, 300, 350, 360, 400, 600, 720, 1200, 2400)
MOST_PIXEL = 50.0   # µm: larger pixels in a tag of resolution are those of a program that knew no better
LARGEST, SMALLEST = 1000.0, 1e-5    # µm: sides of voxels beyond which units are likely wrong
MOST_RATIO = 50     # of two sides of a voxel: more is said


def plain_unit(text: str) -> str:
    """Return the unit that a text names: a key of `IN_UM`, or the text where none is known.

    Takes plurals, capitals, spaces, both letters µ, escaped ones (ImageJ: \\u00B5m), and µ in a wrong encoding (Âµm).
    """
    if "\\u" in text:
        text = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    word = text.replace("Âµ", "µ").replace("Î¼", "µ").replace("\N{GREEK SMALL LETTER MU}", "µ").strip()
    word = unicodedata.normalize("NFC", word).replace(" ", "").lower()
    for candidate in (word, word.removesuffix("s"), word.removesuffix("s").replace("µ", "u")):
        if candidate in UNITS:
            return UNITS[candidate]
    return text.strip()


def is_length(unit: str) -> bool:
    """Return whether a plain unit is one of length."""
    return unit in IN_UM and unit != "px"


def read_size(value: object) -> float | None:
    """Return a size as a number above 0; None for what is none."""
    try:
        size = float(value)
    except (TypeError, ValueError):
        return None
    return size if math.isfinite(size) and size > 0 else None


def read_voxel(stated: Mapping[str, tuple[object, object]], name: str) -> tuple[Voxel, list[str]]:
    """Return the voxel size that a file states, and a line for everything in it that cannot be.

    Parameters
    ----------
    stated : mapping of axis to (size, unit)
        As the file has them; an empty unit is none.
    name : str
        What messages call the file.

    Returns
    -------
    voxel : dict of axis to (size, unit)
        All in `um`, or all in `px`, where the smallest side is 1; empty where nothing is known.
    remarks : list of str
    """
    sizes: dict[str, tuple[float, str]] = {}
    remarks = []
    for axis, (value, unit) in stated.items():
        size = read_size(value)
        if size is None:
            remarks.append(f"{name}: says that voxels are {value} {unit} along {axis}, which cannot be; left out")
            continue
        sizes[axis] = size, plain_unit(str(unit)) if unit else "px"

    unknown = {axis: unit for axis, (_, unit) in sizes.items() if unit not in IN_UM}
    if unknown:
        axis, unit = next(iter(unknown.items()))
        remarks.append(f"{name}: says its voxel size in {unit!r}, which is no known unit of length; sizes are in "
                       "pixels")
        if len({unit for _, unit in sizes.values()}) > 1:
            return {}, remarks
        sizes = {axis: (size, "px") for axis, (size, _) in sizes.items()}

    lengths = {axis: size * IN_UM[unit] for axis, (size, unit) in sizes.items() if is_length(unit)}
    if lengths:
        voxel = {axis: (size, "um") for axis, size in lengths.items()}
        without = [axis for axis in sizes if axis not in lengths]
        if without:
            remarks.append(f"{name}: says a size without a unit of length along {', '.join(without)}; left out")
        strange = [axis for axis, size in lengths.items() if not SMALLEST <= size <= LARGEST]
        if strange:
            remarks.append(f"{name}: says that voxels are {lengths[strange[0]]:g} µm along {', '.join(strange)}; taken "
                           "so, but is the unit right? (m where µm was meant?) --pixel-size goes before it")
    else:
        smallest = min((size for size, _ in sizes.values()), default=1.0)
        voxel = {axis: (size / smallest, "px") for axis, (size, _) in sizes.items()}

    ratio = max(relative_sides(voxel).values(), default=1.0)
    if ratio > MOST_RATIO:
        remarks.append(f"{name}: says that its voxels are {ratio:.0f} times as long as wide ({describe_voxel(voxel)}); "
                       "taken so, but are the units right?")
    return voxel, remarks


def describe_voxel(voxel: Voxel) -> str:
    """Return a voxel size in words."""
    return ", ".join(f"{axis} {size:g} {unit}" for axis, (size, unit) in voxel.items()) or "of unknown size"


def is_default_resolution(per_unit: float, unit: str) -> bool:
    """Return whether so many pixels per inch or centimetre are what programs write by themselves, for print."""
    per_inch = per_unit * IN_UM["inch"] / IN_UM[unit]
    if per_unit > 0 and IN_UM[unit] / per_unit >= MOST_PIXEL:
        return True
    return any(abs(per_inch - dpi) <= 0.005 * dpi for dpi in DEFAULT_DPI)


def describe_default(per_unit: float, unit: str, name: str) -> str:
    """Return in words why a resolution is not believed."""
    return (f"{name}: says {per_unit:g} pixels per {unit}, which programs write when they know no better; left out, so "
            "sizes are in pixels (give --pixel-size)")


def sides_in_um(voxel: Voxel) -> dict[str, float]:
    """Return the sides of a voxel by axis [µm]; empty where the size is not known."""
    return {axis: size for axis, (size, unit) in voxel.items() if unit == "um"}


def relative_sides(voxel: Voxel) -> dict[str, float]:
    """Return the sides of a voxel by axis in units of the smallest one, whether or not its size is known."""
    smallest = min((size for size, _ in voxel.values()), default=1.0)
    return {axis: size / smallest for axis, (size, _) in voxel.items()}
