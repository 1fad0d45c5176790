"""What materials are made of: random fields, cells, balls, rods and sheets, as they appear in one plane of a volume.

Nothing here is drawn in a grid of voxels. Each shape is known by its place in the volume, and is
asked for one plane at a time. So two planes of one volume fit together, however far apart they are,
and a volume costs no more memory than a plane.

Lengths are in pixels; z counts along the volume, rows and columns inside a plane. Distances are
negative inside a shape.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

WAVES = 300  # of a random field: enough for grey values that are distributed normally
CANDIDATES = 4  # cells whose faces may be nearest to a point


@dataclass(frozen=True)
class Plane:
    """A plane of a volume.

    Attributes
    ----------
    z : float
    shape : (rows, columns)
    """

    z: float
    shape: tuple[int, int]

    def points(self) -> np.ndarray:
        """Return z, row and column of every pixel: (rows, columns, 3) float32."""
        points = np.empty((*self.shape, 3), np.float32)
        points[..., 0] = self.z
        points[..., 1] = np.arange(self.shape[0], dtype=np.float32)[:, None]
        points[..., 2] = np.arange(self.shape[1], dtype=np.float32)
        return points


# --- random fields --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RandomField:
    """A smooth random function of place, with mean 0 and variance 1: a sum of plane waves.

    Attributes
    ----------
    vectors : (N, 3) ndarray
        Of the waves [radians per px].
    phases : (N,) ndarray
    """

    vectors: np.ndarray
    phases: np.ndarray

    def at(self, plane: Plane) -> np.ndarray:
        """Return the field in a plane: (rows, columns) float32."""
        # A wave is the product of a wave along rows and one along columns: so all of them are
        # summed by one product of matrices.
        of_z, of_row, of_column = self.vectors.T
        rows = np.exp(1j * np.arange(plane.shape[0])[:, None] * of_row)  # (rows, N)
        columns = np.exp(1j * of_column[:, None] * np.arange(plane.shape[1]))  # (N, columns)
        start = np.exp(1j * (of_z * plane.z + self.phases))  # (N,)
        product = (rows * start).astype(np.complex64) @ columns.astype(np.complex64)
        return product.real * np.float32(np.sqrt(2 / len(self.phases)))


def make_field(
    rng: np.random.Generator, wavelength: float, stretch: tuple[float, float, float] = (1, 1, 1)
) -> RandomField:
    """Draw a random field.

    Parameters
    ----------
    rng : numpy Generator
    wavelength : float
        From one crest to the next, on average [px].
    stretch : three floats
        How many times longer the waves are along z, rows and columns.
    """
    directions = rng.normal(size=(WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = wavelength * np.exp(rng.normal(0, 0.25, (WAVES, 1)))
    vectors = 2 * np.pi * directions / lengths / np.asarray(stretch)
    return RandomField(vectors, rng.uniform(0, 2 * np.pi, WAVES))


# --- cells ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells that fill a volume: each holds what is nearest to its seed (Voronoi), with curved faces.

    Attributes
    ----------
    seeds : (N, 3) ndarray
    warp : three RandomFields
        By which points are moved before their nearest seed is looked for.
    strength : float
        Standard deviation of that movement [px].
    """

    seeds: np.ndarray
    warp: tuple[RandomField, ...]
    strength: float

    def at(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """Return which cell each pixel of a plane lies in, and how deep.

        Returns
        -------
        owner : (rows, columns) int ndarray
        depth : (rows, columns) float32 ndarray
            Distance to the nearest face [px].
        """
        points = plane.points()
        for axis, field in enumerate(self.warp):
            points[..., axis] += self.strength * field.at(plane)

        points = points.reshape(-1, 3)
        distances, nearest = cKDTree(self.seeds).query(points, CANDIDATES, workers=-1)
        square = distances**2

        # The face between two cells is the plane halfway between their seeds.
        depth = np.full(len(points), np.inf)
        seed = self.seeds[nearest[:, 0]]
        for other in range(1, CANDIDATES):
            apart = np.linalg.norm(self.seeds[nearest[:, other]] - seed, axis=1)
            to_face = (square[:, other] - square[:, 0]) / (2 * apart)
            depth = np.minimum(depth, to_face)

        return nearest[:, 0].reshape(plane.shape), depth.reshape(plane.shape).astype(np.float32)


def make_cells(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    diameter: float,
    irregularity: float = 0.35,
    curvature: float = 0.08,
) -> Cells:
    """Draw cells that fill a volume.

    Parameters
    ----------
    rng : numpy Generator
    size : (slices, rows, columns)
    diameter : float
        Of a cell, on average [px].
    irregularity : float
        How far seeds lie from the nodes of a cubic lattice, as a share of its pitch: with 0.2 all
        cells are alike, with 0.5 they differ a great deal.
    curvature : float
        By which share of a diameter faces are bent.
    """
    pitch = 0.85 * diameter
    axes = [np.arange(-pitch, length + 2 * pitch, pitch) for length in size]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    # Every other row and layer is moved by half a pitch: else faces would lie in lines.
    layer = np.round(nodes[:, 0] / pitch).astype(int)
    row = np.round(nodes[:, 1] / pitch).astype(int)
    nodes[:, 2] += 0.5 * pitch * (row % 2)
    nodes[:, 1] += 0.5 * pitch * (layer % 2)
    seeds = nodes + rng.normal(0, irregularity * pitch, nodes.shape)

    warp = tuple(make_field(rng, 1.2 * diameter) for _ in range(3))
    return Cells(seeds, warp, curvature * diameter)


# --- balls and rods -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rods:
    """Rods with round ends; those of length 0 are balls.

    Attributes
    ----------
    centres : (N, 3) ndarray
    halves : (N, 3) ndarray
        From the centre of a rod to the centre of its round end.
    radii : (N,) ndarray
    """

    centres: np.ndarray
    halves: np.ndarray
    radii: np.ndarray

    def at(self, plane: Plane, reach: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest rod of each pixel of a plane, and the distance to its surface.

        Returns
        -------
        owner : (rows, columns) int ndarray
            -1 where none is nearer than `reach`.
        distance : (rows, columns) float32 ndarray
            At most `reach` [px].
        """
        owner = np.full(plane.shape, -1)
        distance = np.full(plane.shape, reach, np.float32)
        around = self.radii + reach
        near = np.abs(self.centres[:, 0] - plane.z) < np.abs(self.halves[:, 0]) + around
        for i in np.flatnonzero(near):
            box, of_rod = self._in_its_box(int(i), plane, around[i])
            if of_rod.size == 0:
                continue
            owner[box][of_rod < distance[box]] = i
            np.minimum(distance[box], of_rod, out=distance[box])

        return owner, distance

    def _in_its_box(self, i: int, plane: Plane, around: float) -> tuple[tuple, np.ndarray]:
        """Return the part of a plane that is near rod `i`, and the distances to its surface there."""
        centre, half = self.centres[i], self.halves[i]
        low = np.floor(centre[1:] - np.abs(half[1:]) - around).astype(int)
        high = np.ceil(centre[1:] + np.abs(half[1:]) + around).astype(int) + 1
        low = np.clip(low, 0, plane.shape)
        high = np.clip(high, 0, plane.shape)
        box = (slice(low[0], high[0]), slice(low[1], high[1]))

        dz = np.float32(plane.z - centre[0])
        dy = np.arange(low[0], high[0], dtype=np.float32)[:, None] - np.float32(centre[1])
        dx = np.arange(low[1], high[1], dtype=np.float32) - np.float32(centre[2])
        square = dz**2 + dy**2 + dx**2
        half_length = np.linalg.norm(half)
        if half_length > 0:
            # How far along the rod, up to its ends, the nearest point of its axis lies.
            axis = (half / half_length).astype(np.float32)
            along = dz * axis[0] + dy * axis[1] + dx * axis[2]
            ends = np.float32(half_length)
            on_axis = np.clip(along, -ends, ends)
            square = square - along**2 + (along - on_axis) ** 2
        return box, np.sqrt(np.maximum(square, 0)) - np.float32(self.radii[i])


def make_balls(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    radii: np.ndarray,
    overlap: float = 0.0,
) -> Rods:
    """Place balls at random, the large ones first, each where it overlaps others little.

    Parameters
    ----------
    rng : numpy Generator
    size : (slices, rows, columns)
    radii : (N,) ndarray
        Wanted [px]; a ball that finds no place in a hundred tries is left out.
    overlap : float
        Share of the smaller radius by which two may overlap; below 0 they keep a distance.
    """
    radii = np.sort(radii)[::-1]
    low = -radii.max() * np.ones(3)
    high = np.asarray(size) + radii.max()
    centres = np.empty((len(radii), 3))
    placed = 0
    kept = np.empty(len(radii))
    for radius in radii:
        for _ in range(100):
            place = rng.uniform(low, high)
            apart = np.linalg.norm(centres[:placed] - place, axis=1)
            if (apart > kept[:placed] + (1 - overlap) * radius).all():
                centres[placed] = place
                kept[placed] = radius
                placed += 1
                break

    return Rods(centres[:placed], np.zeros((placed, 3)), kept[:placed])


def make_rods(
    rng: np.random.Generator,
    size: tuple[int, int, int],
    count: int,
    radius: tuple[float, float],
    length: tuple[float, float],
    along: tuple[float, float, float] | None = None,
    spread: float = 0.1,
) -> Rods:
    """Place rods at random; they may cross.

    Parameters
    ----------
    rng : numpy Generator
    size : (slices, rows, columns)
    count : int
    radius, length : (least, most)
        Drawn evenly between both [px].
    along : (z, row, column), optional
        Preferred direction; else all directions are as frequent.
    spread : float
        Standard deviation around the preferred direction, as a share of its length.
    """
    directions = rng.normal(size=(count, 3))
    if along is not None:
        directions = np.asarray(along) + spread * directions
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    lengths = rng.uniform(*length, count)
    margin = lengths.max() / 2
    centres = rng.uniform(-margin, np.asarray(size) + margin, (count, 3))
    halves = directions * lengths[:, None] / 2
    return Rods(centres, halves, rng.uniform(*radius, count))


# --- sheets ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sheet:
    """A bent sheet of varying thickness that ends somewhere, as a crack does.

    Attributes
    ----------
    normal : (3,) ndarray
        Of the plane that is bent, of length 1.
    offset : float
        Of that plane from the origin [px].
    bend : RandomField
    height : float
        Standard deviation of the bending [px].
    opening : RandomField
        Says how thick it is, and where it ends.
    thickness : float
        Where it is thickest, about [px].
    """

    normal: np.ndarray
    offset: float
    bend: RandomField
    height: float
    opening: RandomField
    thickness: float

    def at(self, plane: Plane) -> np.ndarray:
        """Return the distance to the surface of the sheet: (rows, columns) float32."""
        flat = plane.points() @ self.normal.astype(np.float32) - np.float32(self.offset)
        level = flat + np.float32(self.height) * self.bend.at(plane)

        # The level rises by its gradient per pixel: so far away is where it is 0. The plane sees
        # two parts of the gradient; the third one is that of the normal, nearly.
        by_row, by_column = np.gradient(level)
        slope = np.sqrt(by_row**2 + by_column**2 + np.float32(self.normal[0] ** 2))
        from_middle = np.abs(level) / np.maximum(slope, np.float32(0.3))

        opening = np.clip(0.5 + 0.5 * self.opening.at(plane), 0, 1)
        is_closed = opening == 0
        half = np.where(is_closed, -1, np.float32(self.thickness / 2) * opening)
        return (from_middle - half).astype(np.float32)


def make_sheet(
    rng: np.random.Generator, size: tuple[int, int, int], thickness: float, height: float
) -> Sheet:
    """Draw a sheet that passes through a volume, rather along z than across it.

    Parameters
    ----------
    rng : numpy Generator
    size : (slices, rows, columns)
    thickness, height : float
        As in `Sheet` [px].
    """
    normal = rng.normal(size=3) * (0.3, 1, 1)
    normal /= np.linalg.norm(normal)
    through = rng.uniform(0.15, 0.85, 3) * size
    bend = make_field(rng, 0.5 * max(size))
    opening = make_field(rng, 0.4 * max(size))
    return Sheet(normal, float(through @ normal), bend, height, opening, thickness)
