"""Ten materials, each with another difficulty: what a plane of them absorbs, and what in it is to be found.

Attenuation has no unit: 1 is that of the matrix, or of the main mineral. Lengths are in pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from phantoms.scanner import Scanner
from phantoms.shapes import Plane, make_balls, make_cells, make_field, make_rods, make_sheet

AIR = 0.0


@dataclass(frozen=True, eq=False)
class Look:
    """What a plane of a material is like.

    Attributes
    ----------
    attenuation : (rows, columns) float32 ndarray
    truth : (rows, columns) bool ndarray
        What an annotator would paint.
    """

    attenuation: np.ndarray
    truth: np.ndarray


class Material(Protocol):
    """A volume of a material."""

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""


Build = Callable[[np.random.Generator, tuple[int, int, int]], Material]


@dataclass(frozen=True)
class Kind:
    """A kind of material.

    Attributes
    ----------
    text : str
        What is to be found in it, and what makes that hard.
    build : function of a generator and a size
        Draws a volume of it.
    scanner : Scanner
    is_round : bool
        Whether the whole sample is seen, with the air around it; else a part of a larger one.
    """

    text: str
    build: Build
    scanner: Scanner
    is_round: bool = False


# --- what materials share -------------------------------------------------------------------------


def share_inside(distance: np.ndarray) -> np.ndarray:
    """Return the share of each pixel that lies inside a shape, from the distance to its surface."""
    return np.clip(0.5 - distance, 0, 1)


def blend(below: np.ndarray, above: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """Return what is seen where `above` takes a share of each pixel."""
    return below + share * (above - below)


def choose_for_each(rng: np.random.Generator, values: dict[float, float], count: int) -> np.ndarray:
    """Draw one of some values, with their frequencies, for each of `count` cells or rods."""
    frequencies = np.array(list(values.values()))
    return rng.choice(list(values), count, p=frequencies / frequencies.sum()).astype(np.float32)


def count_for(share: float, size: tuple[int, int, int], radius: float, length: float) -> int:
    """Return how many rods fill a share of a volume, were they not to cross."""
    of_one = math.pi * radius**2 * length + 4 / 3 * math.pi * radius**3
    return math.ceil(share * math.prod(side + length for side in size) / of_one)


@dataclass(frozen=True)
class Holder:
    """A round sample in a tube, with air around it.

    Attributes
    ----------
    sample, inner, outer : float
        Radii of the sample and of the tube's wall, as shares of the plane's side.
    wall : float
        Attenuation of the tube.
    """

    sample: float = 0.41
    inner: float = 0.43
    outer: float = 0.46
    wall: float = 0.6

    def put_in(self, look: Look) -> Look:
        """Return what a plane is like when only the part inside the holder is there."""
        rows, columns = look.truth.shape
        row = np.arange(rows, dtype=np.float32)[:, None] - rows / 2
        column = np.arange(columns, dtype=np.float32) - columns / 2
        radius = np.hypot(row, column) / min(rows, columns)
        in_sample = radius < self.sample
        # A sample that is wider than the wall stands without one.
        in_wall = (radius > self.inner) & (radius < self.outer)
        around = np.where(in_wall, np.float32(self.wall), np.float32(AIR))
        return Look(np.where(in_sample, look.attenuation, around), look.truth & in_sample)


# --- the materials --------------------------------------------------------------------------------


class Sand:
    """Grains of two minerals, packed densely in a tube; the grains are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        self.cells = make_cells(rng, size, 55, irregularity=0.3)
        count = len(self.cells.seeds)
        self.mineral = choose_for_each(rng, {1.0: 0.75, 0.75: 0.15, AIR: 0.1}, count)
        self.gap = make_field(rng, 60)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        owner, depth = self.cells.at(plane)
        mineral = self.mineral[owner]
        distance = 2.5 + 1.2 * self.gap.at(plane) - depth
        attenuation = mineral * share_inside(distance)
        return Holder().put_in(Look(attenuation, (distance < 0) & (mineral > AIR)))


class Foam:
    """Closed cells with thin walls; the walls are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        self.cells = make_cells(rng, size, 52, irregularity=0.25, curvature=0.03)
        self.thickness = make_field(rng, 150)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        _, depth = self.cells.at(plane)
        distance = depth - 1.5 - 0.4 * self.thickness.at(plane)
        return Look(0.1 + 0.9 * share_inside(distance), distance < 0)


class Fibres:
    """Fibres that run nearly in one direction, with voids between them; the fibres are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        count = count_for(0.7, size, 5.5, 300)
        self.fibres = make_rods(
            rng, size, count, (5, 6), (240, 360), along=(0.15, 0.1, 1), spread=0.06
        )
        self.voids = make_field(rng, 45, stretch=(1, 1, 3))
        self.matrix = make_field(rng, 20)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        _, distance = self.fibres.at(plane)
        voids = 6 * (1.6 - self.voids.at(plane))
        attenuation = 1 + 0.03 * self.matrix.at(plane)
        attenuation = blend(attenuation, 0.5, share_inside(voids))
        return Look(blend(attenuation, 1.35, share_inside(distance)), distance < 0)


class Cracks:
    """A few thin cracks among pores of the same grey; only the cracks are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        self.sheets = [make_sheet(rng, size, 5, 25) for _ in range(6)]
        radii = rng.lognormal(math.log(4), 0.4, round(math.prod(size) / 60_000))
        self.pores = make_balls(rng, size, np.clip(radii, 2, 12), overlap=-0.5)
        self.matrix = make_field(rng, 14)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        cracks = np.minimum.reduce([sheet.at(plane) for sheet in self.sheets])
        _, pores = self.pores.at(plane)
        attenuation = 1 + 0.04 * self.matrix.at(plane)
        dark = share_inside(np.minimum(cracks, pores))
        return Look(blend(attenuation, 0.2, dark), cracks < 0)


class Rock:
    """Three minerals, pores, and fine-textured clay in some of these, in a holder; the clay is to be found.

    A mineral has the mean grey value of the clay, and no texture.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        self.cells = make_cells(rng, size, 75, irregularity=0.4)
        minerals = {1.0: 0.72, 1.12: 0.15, 0.72: 0.1, 1.9: 0.03}
        self.mineral = choose_for_each(rng, minerals, len(self.cells.seeds))
        self.gap = make_field(rng, 70)
        self.has_clay = make_field(rng, 160)
        self.flakes = make_field(rng, 6)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        owner, depth = self.cells.at(plane)
        width = 4 + 2.5 * self.gap.at(plane)
        grains = width - depth
        attenuation = blend(
            np.full(plane.shape, 0.1, np.float32), self.mineral[owner], share_inside(grains)
        )

        is_clay = (grains > 0) & (self.has_clay.at(plane) > 0.75)
        clay = 0.72 + 0.3 * self.flakes.at(plane)
        attenuation = np.where(is_clay, clay, attenuation)
        return Holder(sample=0.40).put_in(Look(attenuation, is_clay))


class Agglomerates:
    """Fine particles, dense in some regions and single elsewhere; the dense regions are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        radii = np.clip(rng.lognormal(math.log(45), 0.4, 400), 20, 110)
        share = 0.09 * math.prod(side + 2 * radii.max() for side in size)
        fits = np.cumsum(4 / 3 * math.pi * radii**3) < share
        # One at least, also in a small volume.
        fits[0] = True
        self.regions = make_balls(rng, size, radii[fits], overlap=0.2)
        self.outline = make_field(rng, 40)
        self.dense = make_field(rng, 9)
        self.single = make_field(rng, 9)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        _, distance = self.regions.at(plane, reach=20)
        distance = distance + 5 * self.outline.at(plane)
        inside = distance < 0
        # One unit of such a field is about two pixels.
        particles = np.where(inside, 0.5 - self.dense.at(plane), 2.1 - self.single.at(plane))
        return Look(1 + 0.4 * share_inside(2 * particles), inside)


class RodsAndBalls:
    """Rods and balls of one grey value; the rods are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        count = count_for(0.05, size, 3.5, 45)
        self.rods = make_rods(rng, size, count, (3, 4), (30, 60))
        radii = rng.uniform(5, 9, round(math.prod(size) / 60_000))
        self.balls = make_balls(rng, size, radii, overlap=0.0)
        self.matrix = make_field(rng, 30)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        _, rods = self.rods.at(plane)
        _, balls = self.balls.at(plane)
        attenuation = 1 + 0.03 * self.matrix.at(plane)
        bright = share_inside(np.minimum(rods, balls))
        return Look(blend(attenuation, 1.6, bright), rods < 0)


class Polycrystal:
    """Grains that differ little in grey, with dark boundaries; the boundaries are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        self.cells = make_cells(rng, size, 85, irregularity=0.35, curvature=0.03)
        self.grey = rng.normal(1, 0.06, len(self.cells.seeds)).astype(np.float32)
        radii = rng.uniform(2, 4, round(math.prod(size) / 150_000))
        self.pores = make_balls(rng, size, radii)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        owner, depth = self.cells.at(plane)
        boundary = depth - 1.5
        _, pores = self.pores.at(plane)
        attenuation = blend(self.grey[owner], 0.72, share_inside(boundary))
        return Look(blend(attenuation, 0.3, share_inside(pores)), boundary < 0)


class Pores:
    """Pores of all sizes in a dense matrix, under rings and beam hardening; the pores are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        radii = rng.lognormal(math.log(4), 0.6, round(math.prod(size) / 30_000))
        self.pores = make_balls(rng, size, np.clip(radii, 1.5, 25))
        bright = rng.uniform(2, 5, round(math.prod(size) / 150_000))
        self.inclusions = make_balls(rng, size, bright)
        self.matrix = make_field(rng, 100)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        _, pores = self.pores.at(plane)
        _, inclusions = self.inclusions.at(plane)
        attenuation = 1 + 0.03 * self.matrix.at(plane)
        attenuation = blend(attenuation, 1.7, share_inside(inclusions))
        attenuation = blend(attenuation, 0.5, share_inside(pores))
        return Holder(sample=0.47, wall=AIR).put_in(Look(attenuation, pores < 0))


class Electrode:
    """Large cracked particles in a porous binder of nearly their grey; the particles are to be found."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int, int]):
        radii = np.clip(rng.lognormal(math.log(38), 0.5, 4000), 15, 100)
        share = 0.75 * math.prod(side + 2 * radii.max() for side in size)
        radii = radii[np.cumsum(4 / 3 * math.pi * radii**3) < share]
        self.particles = make_balls(rng, size, radii, overlap=0.25)
        self.grey = rng.normal(1, 0.04, len(self.particles.radii)).astype(np.float32)
        self.outline = make_field(rng, 30)
        self.cracks = make_field(rng, 40)
        self.binder = make_field(rng, 9)
        self.pores = make_field(rng, 30)

    def at(self, plane: Plane) -> Look:
        """Return what a plane of it is like."""
        owner, distance = self.particles.at(plane, reach=12)
        distance = distance + 2.5 * self.outline.at(plane)
        binder = 0.85 + 0.12 * self.binder.at(plane)
        binder = blend(binder, 0.35, share_inside(5 * (0.9 - self.pores.at(plane))))

        # Cracks are where a field is nearly 0, and end where its slope is small.
        cracks = share_inside(10 * np.abs(self.cracks.at(plane)) - 1)
        particle = self.grey[owner] - 0.35 * cracks
        return Look(blend(binder, particle, share_inside(distance)), distance < 0)


MATERIALS = {
    "sand": Kind("bright grains of two minerals in a tube", Sand, Scanner(1e3, rings=0.01), True),
    "foam": Kind("thin bright walls of cells", Foam, Scanner(1.5e3)),
    "fibres": Kind("fibres in one direction, voids beside them", Fibres, Scanner(1e4)),
    "cracks": Kind("thin dark cracks among round pores of their grey", Cracks, Scanner(1e4)),
    "rock": Kind(
        "fine-textured clay, a smooth mineral of its grey beside it", Rock, Scanner(2e4), True
    ),
    "agglomerates": Kind(
        "regions where fine particles are dense", Agglomerates, Scanner(1e4, rings=0.005)
    ),
    "rods": Kind("bright rods among balls of their grey", RodsAndBalls, Scanner(8e3)),
    "polycrystal": Kind("faint boundaries of grains", Polycrystal, Scanner(2e4)),
    "pores": Kind(
        "dark pores under rings and beam hardening",
        Pores,
        Scanner(2e4, absorption=2.5, hardening=0.2, rings=0.02),
        True,
    ),
    "electrode": Kind(
        "large particles in a binder of nearly their grey",
        Electrode,
        Scanner(1e4, absorption=2.0, hardening=0.15),
    ),
}
