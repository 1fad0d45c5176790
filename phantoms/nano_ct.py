"""Synthetic nano-CT: faint faceted particles, and all that makes real slices of them hard.

Contrast is below the noise; there are correlated noise, streaks, rings, slow shading, bright needles and
clouds that are not particles, and the bright rim with a dark fringe of phase contrast. Grey values have
the scale of linear attenuation in a real scan (about 2e-4 per voxel). Where several phases are asked for,
there are pores and bright inclusions, too.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from phantoms.ellipsoids import Ellipsoids, Sizes, ellipsoid_depth, make_ellipsoids

SHAPE = (1160, 1000)  # rows and columns of a scan [px]
LABELLED = 22  # labelled slices of a volume
SPACING = 10  # their distance along z [px]
DEPTH = LABELLED * SPACING  # of the volume [px]
SIZE = (DEPTH, *SHAPE)

# Grey values.
MATRIX = 1.9e-4
CONTRAST = 2.6e-5  # particle − matrix
NOISE = 2.5e-5  # σ
DARKEST = 4e-5
COUNTS = 1e8  # of a detector, for a grey value of 1

DRIFT = (1.0, 0.9, 0.8)  # contrast at the three points in time

# Particles.
FILLED = 0.108  # share of the volume
FACES = 18  # of a particle
MARGIN = (60, 40, 40)  # px around the volume in which particles lie, too
REACH = 12.0  # px: so far from a particle its surface is felt

# Artefacts.
NEEDLES = 60  # in a volume of `SIZE`
STREAKED_REGIONS = 5  # in a slice
RINGS = 2000  # px: radii that rings may have, farther than any corner

# Further phases: the values of all of them in label maps, and how they differ from the matrix.
PHASES = {"1": "matrix", "2": "particle", "3": "pore", "4": "inclusion"}
PORE_CONTRAST = -4.5e-5
INCLUSION_CONTRAST = 1.3e-4
PORES = Sizes(median=9, least=4, most=28, spread=0.45, elongation=0.3, filled=0.035)
INCLUSIONS = Sizes(median=8, least=4, most=18, spread=0.35, elongation=0.15, filled=0.012)


# --- particles ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Particles:
    """Convex polyhedra.

    Attributes
    ----------
    centres : (N, 3) ndarray
        Slice, row, column [px].
    normals : (N, F, 3) ndarray
        Of the faces, of length 1.
    offsets : (N, F) ndarray
        Distance of each face from the centre [px].
    """

    centres: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.centres)


@lru_cache(maxsize=1)
def make_particles(seed: int, size: tuple[int, int, int] = SIZE) -> Particles:
    """Make polydisperse particles (log-normal radii) at random places, some touching, until `FILLED` is filled."""
    rng = np.random.default_rng([seed, 1])
    low = -np.array(MARGIN)
    high = np.add(size, MARGIN)
    wanted = FILLED * np.prod(high - low)
    drawn = []
    total = 0.0
    while total < wanted:
        radius = np.clip(rng.lognormal(np.log(17), 0.5), 5, 60)
        drawn.append(radius)
        total += 4.2 * radius**3

    # Large ones first: they find a place.
    radii = np.sort(drawn)[::-1]
    centres = place_particles(radii, low, high, rng)
    normals = rng.normal(size=(len(radii), FACES, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)

    # Elongated and flat ones: faces that look along a stretched axis lie farther out.
    stretch = np.exp(rng.normal(0, 0.18, (len(radii), 1, 3)))
    uneven = rng.uniform(0.75, 1.1, (len(radii), FACES))
    offsets = radii[:, None] * uneven * np.linalg.norm(normals * stretch, axis=2)
    return Particles(centres, normals, offsets)


def place_particles(
    radii: np.ndarray, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return random centres between two corners.

    Particles overlap by a quarter of the smaller radius at most.
    """
    centres = np.empty((len(radii), 3))
    for i, radius in enumerate(radii):
        while True:
            place = rng.uniform(low, high)
            distances = np.linalg.norm(centres[:i] - place, axis=1)
            gaps = distances - (radii[:i] + radius)
            if i == 0 or gaps.min() > -0.25 * radius:
                break
        centres[i] = place

    return centres


def at_time(particles: Particles, seed: int, time: int) -> Particles:
    """Return the particles at a later point in time: shifted together, and each a little by itself."""
    if time == 0:
        return particles
    rng = np.random.default_rng([seed, 2, time])
    drift = rng.normal(0, 6, 3) + rng.normal(0, 3, particles.centres.shape)
    return Particles(particles.centres + time * drift, particles.normals, particles.offsets)


def depth_map(
    particles: Particles,
    z: float,
    shape: tuple[int, int] = SHAPE,
    owners: np.ndarray | None = None,
) -> np.ndarray:
    """Return the signed distance [px] to the nearest particle surface in a slice: negative inside, ≤ `REACH`.

    Parameters
    ----------
    particles : Particles
    z : float
        Of the slice [px].
    shape : (rows, columns)
    owners : (rows, columns) int ndarray, optional
        Gets the number of the particle whose distance that is: where two overlap, the one in which
        a pixel lies deeper.

    Returns
    -------
    (rows, columns) float32 ndarray
    """
    depth = np.full(shape, REACH, np.float32)
    # No corner reaches farther.
    size = particles.offsets.mean(axis=1) * 1.3
    near = np.abs(particles.centres[:, 0] - z) < size + REACH
    for i in np.flatnonzero(near):
        _, row, column = particles.centres[i]
        top = max(0, int(row - size[i] - REACH))
        bottom = min(shape[0], int(row + size[i] + REACH))
        left = max(0, int(column - size[i] - REACH))
        right = min(shape[1], int(column + size[i] + REACH))
        if top >= bottom or left >= right:
            continue

        rows = np.arange(top, bottom, dtype=np.float32)[:, None] - row
        columns = np.arange(left, right, dtype=np.float32)[None] - column
        distance = distance_to_surface(particles, int(i), z, rows, columns, size[i])
        box = np.s_[top:bottom, left:right]
        if owners is not None:
            owners[box][distance < depth[box]] = i
        np.minimum(depth[box], distance, out=depth[box])

    return depth


def distance_to_surface(
    particles: Particles, i: int, z: float, rows: np.ndarray, columns: np.ndarray, size: float
) -> np.ndarray:
    """Return the signed distance of pixels to the surface of particle `i`: behind every face it is negative.

    Parameters
    ----------
    particles : Particles
    i : int
    z : float
        Of the slice [px].
    rows, columns : (H, 1) and (1, W) float32 ndarrays
        From the centre of the particle.
    size : float
        Radius of a ball that holds all corners.
    """
    normals = particles.normals[i].astype(np.float32)
    offsets = particles.offsets[i].astype(np.float32)
    above = np.float32(z - particles.centres[i, 0])
    square_above = np.float32((z - particles.centres[i, 0]) ** 2)

    distance = np.sqrt(rows**2 + columns**2 + square_above) - np.float32(size)
    for normal, offset in zip(normals, offsets, strict=True):
        to_face = rows * normal[1] + columns * normal[2] + above * normal[0] - offset
        np.maximum(distance, to_face, out=distance)
    return distance


# --- what is not particle -------------------------------------------------------------------------


def smooth_noise(
    rng: np.random.Generator, sigma: float, shape: tuple[int, int] = SHAPE
) -> np.ndarray:
    """Return Gaussian noise of unit variance, correlated over `sigma` pixels."""
    # Wide correlation needs no fine grid.
    step = max(1, int(sigma // 4))
    coarse = rng.standard_normal((shape[0] // step + 2, shape[1] // step + 2), dtype=np.float32)
    smooth = cv2.GaussianBlur(coarse, (0, 0), sigma / step)
    noise = cv2.resize(smooth, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return noise / noise.std()


def make_artefacts(
    seed: int, time: int, z: float, rng: np.random.Generator, size: tuple[int, int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is not particle in a slice: grey values to add, and where bright needles are.

    Rings, shading, clouds and needles belong to the volume and change slowly with z; streaks are
    the slice's own.

    Parameters
    ----------
    seed, time : int
        Of the volume.
    z : float
        Of the slice [px].
    rng : numpy Generator
        Of the slice.
    size : (slices, rows, columns)

    Returns
    -------
    added : (rows, columns) float ndarray
    needles : (rows, columns) bool ndarray
    """
    shape = size[1:]
    of_volume = np.random.default_rng([seed, 3, time])
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)

    # Four fields that are mixed in another way in each slice, but as strongly in every one.
    mix = np.sin(np.array([z / 60, z / 90 + 1, z / 45 + 2, z / 70 + 3]))
    mix *= 1.5 / np.linalg.norm(mix)
    shading = sum(np.float32(share) * smooth_noise(of_volume, 150, shape) for share in mix)
    clouds = sum(np.float32(share) * smooth_noise(of_volume, 16, shape) for share in mix)

    # Rings around the axis of rotation.
    centre = np.array(shape) / 2 + of_volume.normal(0, 20, 2)
    radius = np.hypot(rows - centre[0], columns - centre[1])
    strength = np.exp(np.sin(np.arange(RINGS) / 40 + z / 80))
    rings = (of_volume.standard_normal(RINGS) * strength).astype(np.float32)[radius.astype(int)]

    added = 1.2e-5 * shading + 0.75e-5 * clouds + 0.35e-5 * rings
    add_streaks(added, rows, columns, rng)
    count = round(NEEDLES * math.prod(size) / math.prod(SIZE))
    needles = add_needles(added, rows, columns, z, of_volume, size[0], count)
    return added, needles


def add_streaks(
    added: np.ndarray, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator
) -> None:
    """Add fine parallel streaks, strong in one region each."""
    for angle in rng.uniform(0, np.pi, STREAKED_REGIONS):
        across = (np.cos(angle) * rows + np.sin(angle) * columns + 2000).astype(int)
        profile = rng.standard_normal((1, across.max() + 1), dtype=np.float32)
        lines = cv2.GaussianBlur(profile, (0, 0), 1.2)[0]
        strength = np.clip(smooth_noise(rng, 150, added.shape), 0, 2)
        added += 0.9e-5 * lines[across] * strength


def add_needles(
    added: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    z: float,
    rng: np.random.Generator,
    depth: int,
    count: int,
) -> np.ndarray:
    """Add bright needles, each with its streak; return where they are: (rows, columns) bool."""
    needles = np.zeros(added.shape, bool)
    for _ in range(count):
        place, row, column, angle = rng.uniform([0, 0, 0, 0], [depth, *added.shape, np.pi])
        length, width, height = rng.uniform([15, 3, 4], [70, 7, 14])
        if abs(z - place) > height:
            continue
        along = np.cos(angle) * (rows - row) + np.sin(angle) * (columns - column)
        across = np.abs(np.sin(angle) * (rows - row) - np.cos(angle) * (columns - column))
        needle = (np.abs(along) < length) & (across < width)
        needles |= needle
        added += np.where(needle, np.float32(2.2e-4), 0)
        streak = np.exp(-((across / 5) ** 2)) * np.cos(across / 3) * np.exp(-np.abs(along) / 250)
        added += np.float32(2.5e-5) * streak * ~needle

    return needles


# --- slices ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RenderedSlice:
    """A slice of a volume.

    Attributes
    ----------
    image : (rows, columns) float32 ndarray
    truth : (rows, columns) bool ndarray
        Where there is particle.
    needles : (rows, columns) bool ndarray
        Where there are bright needles, and no particle.
    """

    image: np.ndarray
    truth: np.ndarray
    needles: np.ndarray


def render(
    seed: int,
    time: int,
    z: float,
    size: tuple[int, int, int] = SIZE,
    owners: np.ndarray | None = None,
) -> RenderedSlice:
    """Return one slice of a volume.

    Parameters
    ----------
    seed : int
    time : int
        Point in time, 0 to 2.
    z : float
        Of the slice [px].
    size : (slices, rows, columns)
        Of the volume.
    owners : (rows, columns) int ndarray, optional
        See `depth_map`.
    """
    parts = draw_parts(seed, time, z, size, owners)
    truth = parts.depth < 0
    profile = body_of(parts.depth) + rim_of(parts.depth)
    image = MATRIX + parts.strength * profile + parts.added + parts.noise
    image = np.maximum(image, DARKEST).astype(np.float32)
    return RenderedSlice(image, truth, parts.needles & ~truth)


@dataclass(frozen=True, eq=False)
class Parts:
    """What a slice is made of: (rows, columns) float ndarrays.

    Attributes
    ----------
    depth : ndarray
        Signed distance to the nearest surface of a particle [px].
    strength : ndarray
        Contrast of the particles.
    added, needles : ndarrays
        As `make_artefacts` returns them.
    noise : ndarray
    """

    depth: np.ndarray
    strength: np.ndarray
    added: np.ndarray
    needles: np.ndarray
    noise: np.ndarray


def draw_parts(
    seed: int,
    time: int,
    z: float,
    size: tuple[int, int, int] = SIZE,
    owners: np.ndarray | None = None,
) -> Parts:
    """Return what a slice is made of; see `render` for the parameters."""
    shape = size[1:]
    rng = np.random.default_rng([seed, 4, time, round(z * 100)])
    particles = at_time(make_particles(seed, size=size), seed, time)
    depth = depth_map(particles, z, shape, owners)
    strength = CONTRAST * DRIFT[time] * (1 + 0.2 * smooth_noise(rng, 60, shape))
    added, needles = make_artefacts(seed, time, z, rng, size)
    fine = 0.9 * smooth_noise(rng, 1.6, shape)
    coarse = 0.45 * smooth_noise(rng, 3.0, shape)
    noise = NOISE * (fine + coarse) / DRIFT[time]
    return Parts(depth, strength, added, needles, noise)


def body_of(depth: np.ndarray) -> np.ndarray:
    """Return how much of each pixel is inside: a soft edge, one resolution element wide."""
    return np.clip(0.5 - depth / 2, 0, 1)


def rim_of(depth: np.ndarray) -> np.ndarray:
    """Return the bright rim and the dark fringe of phase contrast along a surface."""
    return 1.6 * np.exp(-(((depth + 2.5) / 2.2) ** 2)) - 0.8 * np.exp(-(((depth - 2.5) / 2.5) ** 2))


# --- several phases ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def make_phases(seed: int, size: tuple[int, int, int] = SIZE) -> tuple[Ellipsoids, Ellipsoids]:
    """Return the pores and the bright inclusions of a volume."""
    pores = make_ellipsoids(np.random.default_rng([seed, 5]), size, PORES)
    inclusions = make_ellipsoids(np.random.default_rng([seed, 6]), size, INCLUSIONS)
    return pores, inclusions


def render_phases(
    seed: int, time: int, z: float, size: tuple[int, int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Return one slice of a volume with pores and bright inclusions, and its label map.

    Where two phases overlap, the later one in `PHASES` is there. Needles are no phase: they belong
    to the matrix, as streaks and rings do.

    Parameters
    ----------
    seed, time, z, size
        As in `render`.

    Returns
    -------
    image : (rows, columns) float32 ndarray
    labels : (rows, columns) uint8 ndarray
        The values of `PHASES`.
    """
    parts = draw_parts(seed, time, z, size)
    pores, inclusions = make_phases(seed, size)
    pore_depth = ellipsoid_depth(pores, z, size[1:], REACH)
    inclusion_depth = ellipsoid_depth(inclusions, z, size[1:], REACH)

    # Each phase takes the place of what was there before; the rim of a pore has the other sign.
    grey = parts.strength * (body_of(parts.depth) + rim_of(parts.depth))
    pore = body_of(pore_depth)
    grey = grey * (1 - pore) + PORE_CONTRAST * (pore + 0.3 * rim_of(pore_depth))
    inclusion = body_of(inclusion_depth)
    grey = grey * (1 - inclusion) + INCLUSION_CONTRAST * inclusion
    image = np.maximum(MATRIX + grey + parts.added + parts.noise, DARKEST)

    labels = np.ones(image.shape, np.uint8)
    for value, depth in ((2, parts.depth), (3, pore_depth), (4, inclusion_depth)):
        labels[depth < 0] = value
    return image.astype(np.float32), labels


def as_counts(image: np.ndarray) -> np.ndarray:
    """Return grey values as a detector counts: uint16."""
    return np.clip(image * COUNTS, 0, 65535).astype(np.uint16)
