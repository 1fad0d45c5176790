"""How large a voxel is, as far as a file says so: what programs write, read with some distrust.

A voxel size is a dict of axis (`X`, `Y`, `Z`) to (size, unit), in `um`; or in `px`, relative to
each other, where a file knows the shape of a voxel and not its size. What a file says and cannot be
is left out, with a line that says why.
"""

import math
import unicodedata
from collections.abc import Mapping

Voxel = dict[str, tuple[float, str]]

IN_UM = {
    "pm": 1e-6,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "inch": 25400.0,
    "px": 1.0,
}
SPELLINGS = {
    "pm": "pm picometer picometre",
    "angstrom": "å a angstrom angstroem ångström angström aa",
    "nm": "nm nanometer nanometre nanon nmeter",
    "um": "um µm micron micrometer micrometre mikrometer mikron mcm umeter",
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre zentimeter",
    "dm": "dm decimeter decimetre",
    "m": "m meter metre",
    "inch": 'in inch inche "',
    "px": "px pixel pix voxel vx none unknown arbitrary referenceframe",
}
UNITS = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in spellings.split()}

# Pixels per inch that programs write where nobody told them: they are about paper and screens.
DEFAULT_DPI = (
    *(1, 2.54, 72, 90, 96, 100, 120, 144, 150, 180, 200, 240, 254),
    *(300, 350, 360, 400, 600, 720, 1200, 2400),
)
DPI_TOLERANCE = 0.005  # relative
MOST_PIXEL = 50.0  # µm: larger pixels in a tag of resolution are of a program that knew no better

# µm: sides of voxels beyond which units are likely wrong.
LEAST_SIDE = 1e-5
MOST_SIDE = 1000.0

MOST_RATIO = 50  # of two sides of a voxel: more is said


# --- units ----------------------------------------------------------------------------------------


def plain_unit(text: str) -> str:
    r"""Return the unit that a text names: a key of `IN_UM`, or the text where none is known.

    Takes plurals, capitals, spaces, both letters µ, escaped ones (ImageJ: \u00B5m), and µ in a
    wrong encoding (Âµm).
    """
    if "\\u" in text:
        text = text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    word = text
    for variant in ("Âµ", "Î¼", "\N{GREEK SMALL LETTER MU}"):
        word = word.replace(variant, "µ")
    word = unicodedata.normalize("NFC", word.strip()).replace(" ", "").lower()

    singular = word.removesuffix("s")
    for candidate in (word, singular, singular.replace("µ", "u")):
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

    if not math.isfinite(size) or size <= 0:
        return None
    return size


# --- voxels ---------------------------------------------------------------------------------------


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
    sizes, remarks = read_sizes(stated, name)
    unknown = [unit for _, unit in sizes.values() if unit not in IN_UM]
    if unknown:
        remarks.append(
            f"{name}: says its voxel size in {unknown[0]!r}, which is no known unit of length; sizes "
            "are in pixels"
        )
        has_several_units = len({unit for _, unit in sizes.values()}) > 1
        if has_several_units:
            return {}, remarks
        sizes = {axis: (size, "px") for axis, (size, _) in sizes.items()}

    if any(is_length(unit) for _, unit in sizes.values()):
        voxel, more = in_micrometres(sizes, name)
        remarks += more
    else:
        voxel = in_pixels(sizes)

    ratio = max(relative_sides(voxel).values(), default=1.0)
    if ratio > MOST_RATIO:
        remarks.append(
            f"{name}: says that its voxels are {ratio:.0f} times as long as wide "
            f"({describe_voxel(voxel)}); taken so, but are the units right?"
        )

    return voxel, remarks


def read_sizes(stated: Mapping[str, tuple[object, object]], name: str) -> tuple[Voxel, list[str]]:
    """Return the sizes that are numbers above 0, with plain units, and a line for each other."""
    sizes = {}
    remarks = []
    for axis, (value, unit) in stated.items():
        size = read_size(value)
        if size is None:
            remarks.append(
                f"{name}: says that voxels are {value} {unit} along {axis}, which cannot be; left out"
            )
            continue
        sizes[axis] = (size, plain_unit(str(unit)) if unit else "px")

    return sizes, remarks


def in_micrometres(sizes: Voxel, name: str) -> tuple[Voxel, list[str]]:
    """Return sizes with a unit of length in µm, and lines on those without, and on strange ones."""
    voxel = {}
    without_unit = []
    strange = []
    for axis, (size, unit) in sizes.items():
        if not is_length(unit):
            without_unit.append(axis)
            continue
        voxel[axis] = (size * IN_UM[unit], "um")
        if not LEAST_SIDE <= voxel[axis][0] <= MOST_SIDE:
            strange.append(axis)

    remarks = []
    if without_unit:
        axes = ", ".join(without_unit)
        remarks.append(f"{name}: says a size without a unit of length along {axes}; left out")
    if strange:
        axes = ", ".join(strange)
        remarks.append(
            f"{name}: says that voxels are {voxel[strange[0]][0]:g} µm along {axes}; taken so, but "
            "is the unit right? (m where µm was meant?) --pixel-size goes before it"
        )

    return voxel, remarks


def in_pixels(sizes: Voxel) -> Voxel:
    """Return sizes in units of the smallest one."""
    smallest = min((size for size, _ in sizes.values()), default=1.0)
    return {axis: (size / smallest, "px") for axis, (size, _) in sizes.items()}


def describe_voxel(voxel: Voxel) -> str:
    """Return a voxel size in words."""
    if not voxel:
        return "of unknown size"
    return ", ".join(f"{axis} {size:g} {unit}" for axis, (size, unit) in voxel.items())


def sides_in_um(voxel: Voxel) -> dict[str, float]:
    """Return the sides of a voxel by axis [µm]; empty where the size is not known."""
    return {axis: size for axis, (size, unit) in voxel.items() if unit == "um"}


def relative_sides(voxel: Voxel) -> dict[str, float]:
    """Return the sides of a voxel by axis in units of the smallest one, whether or not its size is known."""
    return {axis: size for axis, (size, _) in in_pixels(voxel).items()}


# --- resolutions that programs make up ------------------------------------------------------------


def is_default_resolution(per_unit: float, unit: str) -> bool:
    """Return whether so many pixels per inch or centimetre are what programs write by themselves, for print."""
    if per_unit > 0 and IN_UM[unit] / per_unit >= MOST_PIXEL:
        return True
    per_inch = per_unit * IN_UM["inch"] / IN_UM[unit]
    return any(abs(per_inch - dpi) <= DPI_TOLERANCE * dpi for dpi in DEFAULT_DPI)


def describe_default(per_unit: float, unit: str, name: str) -> str:
    """Return in words why a resolution is not believed."""
    return (
        f"{name}: says {per_unit:g} pixels per {unit}, which programs write when they know no "
        "better; left out, so sizes are in pixels (give --pixel-size)"
    )
