"""Synthetic nano-CT in the real folder layout: labelled slices, larger unlabelled scans, and their truth beside.

    python demo_data.py --output data/demo [--seed 0] [--scans 150]
    python demo_data.py --volume data/volume.tif [--seed 0] [--slices 1000] [--size 512]
    python demo_data.py --material foam --output data/foam [--seed 0] [--slices 12] [--size 768]

One volume of faint faceted particles is cut into correlated slices at three points in time. What
makes real slices hard is there: contrast below the noise, correlated noise, streaks, rings, slow
shading, bright needles and clouds that are not particles, and the bright rim with a dark fringe of
phase contrast. Grey values have the scale of linear attenuation in a real scan (about 2e-4 per
voxel). `--volume` writes one volume as an ImageJ stack instead, its true mask and a table of its
particles beside it. `--material` writes labelled slices of another material instead: those of
`phantoms.materials`, each as a scanner sees it.
"""

import argparse
import dataclasses
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from tqdm import tqdm

from phantoms.data_set import DataSet, stem_of
from phantoms.data_set import write_slice as write_material_slice
from phantoms.materials import MATERIALS
from runtime.command_line import Parser, run_command_line
from runtime.files import locked, write_atomically, write_csv, write_json
from runtime.messages import PROGRESS_SECONDS, InputError, quiet_bar
from slices.options import IMAGES, MASKS, UNLABELLED
from slices.reading import ROI
from slices.splits import split_by_blocks

SHAPE = (1160, 1000)  # rows and columns of a scan [px]; the labelled slices are its ROI
LABELLED = 22  # labelled slices
SCANS = 150  # unlabelled scans, where no other number is asked for
SPACING = 10  # their distance along z [px]
DEPTH = LABELLED * SPACING  # of the volume [px]
SIZE = (DEPTH, *SHAPE)
HELD_OUT = 0.18  # share of the labelled slices that are test slices, and that are validation slices
PIXEL_SIZE_UM = 0.022

# Grey values.
MATRIX = 1.9e-4
CONTRAST = 2.6e-5  # particle − matrix
NOISE = 2.5e-5  # σ
DARKEST = 4e-5
PAINT_DARK = -2.0e-4  # what the annotator filled particles with
PAINT_BRIGHT = 3.5e-4  # and bright needles
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

MOST_PROCESSES = 8

VOLUME_SLICES = 1000  # of a volume, where nothing else is asked for
VOLUME_SIDE = 512  # px, likewise
LEAST_SIDE = 64  # px, of a slice of a material


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
    shape = size[1:]
    rng = np.random.default_rng([seed, 4, time, round(z * 100)])
    particles = at_time(make_particles(seed, size=size), seed, time)
    depth = depth_map(particles, z, shape, owners)
    truth = depth < 0

    # A soft edge, one resolution element wide, with the bright rim and dark fringe of phase
    # contrast.
    body = np.clip(0.5 - depth / 2, 0, 1)
    rim = 1.6 * np.exp(-(((depth + 2.5) / 2.2) ** 2)) - 0.8 * np.exp(-(((depth - 2.5) / 2.5) ** 2))
    strength = CONTRAST * DRIFT[time] * (1 + 0.2 * smooth_noise(rng, 60, shape))
    added, needles = make_artefacts(seed, time, z, rng, size)
    fine = 0.9 * smooth_noise(rng, 1.6, shape)
    coarse = 0.45 * smooth_noise(rng, 3.0, shape)
    noise = NOISE * (fine + coarse) / DRIFT[time]

    image = MATRIX + strength * (body + rim) + added + noise
    image = np.maximum(image, DARKEST).astype(np.float32)
    return RenderedSlice(image, truth, needles & ~truth)


def as_counts(image: np.ndarray) -> np.ndarray:
    """Return grey values as a detector counts: uint16."""
    return np.clip(image * COUNTS, 0, 65535).astype(np.uint16)


def write_slice(index: int, folder: Path, seed: int) -> None:
    """Write one labelled slice and its painted mask."""
    top, bottom, left, right = ROI
    one = render(seed, 0, index * SPACING)
    image = one.image[top:bottom, left:right]
    truth = one.truth[top:bottom, left:right]
    needles = one.needles[top:bottom, left:right]

    painted = np.where(truth, np.float32(PAINT_DARK), image)
    if index % 3 == 0:
        # On some, bright needles are painted over as well.
        painted[needles] = PAINT_BRIGHT
    details: dict[str, Any] = {
        "imagej": True,
        "resolution": pixels_per_um(),
        "metadata": {"unit": "um"},
    }
    tifffile.imwrite(folder / IMAGES / f"slice_{index:02d}.tif", image, **details)
    tifffile.imwrite(folder / MASKS / f"slice_mask_{index:02d}.tif", painted, **details)


def pixels_per_um() -> tuple[float, float]:
    """Return the resolution of all files, along columns and rows."""
    return 1 / PIXEL_SIZE_UM, 1 / PIXEL_SIZE_UM


def write_scan(index: int, folder: Path, truth_folder: Path, seed: int, scans: int) -> None:
    """Write one unlabelled scan of time 1 or 2 as 16-bit integers, its truth as PNG in another tree."""
    scans_of_time = (scans + 1) // 2
    time, within = divmod(index, scans_of_time)
    z = within * DEPTH / max(1, scans_of_time)
    one = render(seed, time + 1, z)
    name = f"time{time + 1}_{within:03d}"
    tifffile.imwrite(folder / UNLABELLED / f"{name}.tif", as_counts(one.image))
    cv2.imwrite(str(truth_folder / f"{name}.png"), one.truth.astype(np.uint8) * 255)


# --- a data set -----------------------------------------------------------------------------------


def truth_folder_of(output: Path) -> Path:
    """Return where the truth of the unlabelled scans goes: beside `output`, where training never reads."""
    return output.with_name(output.name + "_truth")


def write_demo(output: Path, seed: int = 0, scans: int = SCANS, labelled: int = LABELLED) -> None:
    """Write the demo data set: `output` in the real layout, and the truth of its scans beside it.

    The same arguments give the same bytes. Both folders appear only when they are complete.

    Raises
    ------
    InputError
        When `output` or the folder of the truth exists, or `output` is no name.
    """
    output = Path(output)
    with new_folders(output, truth_folder_of(output)) as (folder, truth_folder):
        make_folders(folder)
        draw_slices(folder, truth_folder, seed, scans, labelled)
        write_split(folder, [f"slice_{i:02d}" for i in range(labelled)])
        details = {
            "seed": seed,
            "scans": scans,
            "labelled": labelled,
            "pixel_size_um": PIXEL_SIZE_UM,
            "time_points": len(DRIFT),
        }
        write_json(folder / "demo.json", details)


@contextmanager
def new_folders(*targets: Path) -> Iterator[list[Path]]:
    """Yield an empty folder for each target, which becomes that target when all is written.

    Raises
    ------
    InputError
        When a target exists, the first one is no name, or another process is writing it.
    """
    first = targets[0]
    if not first.name.strip("."):
        raise InputError(f"--output {first}: is no name of a new folder; such as data/demo")
    lock_file = first.with_name(f".{first.name}.lock")
    with locked(lock_file, f"{first}: another process is writing it; wait for it"):
        for target in targets:
            if target.exists():
                raise InputError(
                    f"{target}: exists already; choose another --output, or delete it first"
                )

        unfinished = [target.with_name(f".{target.name}.part") for target in targets]
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield unfinished

        for folder, target in zip(unfinished, targets, strict=True):
            folder.rename(target)


def make_folders(folder: Path) -> None:
    """Make the folders inside a data folder."""
    for inside in (IMAGES, MASKS, UNLABELLED, "splits"):
        (folder / inside).mkdir(parents=True)


def draw_slices(folder: Path, truth_folder: Path, seed: int, scans: int, labelled: int) -> None:
    """Draw all slices of a data set, in several processes."""
    draw_slice = partial(write_slice, folder=folder, seed=seed)
    draw_scan = partial(
        write_scan, folder=folder, truth_folder=truth_folder, seed=seed, scans=scans
    )
    with drawing_pool() as pool:
        for draw, name, count in (
            (draw_slice, "labelled slices", labelled),
            (draw_scan, "unlabelled scans", scans),
        ):
            for _ in quiet_bar(pool.map(draw, range(count)), name, total=count):
                pass


def write_split(folder: Path, stems: list[str]) -> None:
    """Write which slices train, choose the checkpoint and test: blocks of the volume."""
    held_out = round(HELD_OUT * len(stems))
    write_json(folder / "splits" / "split.json", split_by_blocks(stems, held_out, held_out))


def write_material(output: Path, data_set: DataSet) -> None:
    """Write labelled slices of a synthetic material: a data folder.

    The same arguments give the same bytes. The folder appears only when it is complete.

    Raises
    ------
    InputError
        When `output` exists, or is no name.
    """
    output = Path(output)
    with new_folders(output) as (folder,):
        make_folders(folder)
        write = partial(write_material_slice, data_set=data_set, folder=folder)
        numbers = range(data_set.slices)
        with drawing_pool() as pool:
            for _ in quiet_bar(pool.map(write, numbers), data_set.material, total=len(numbers)):
                pass
        write_split(folder, [stem_of(data_set, number) for number in numbers])
        write_json(folder / "material.json", dataclasses.asdict(data_set))


def drawing_pool() -> ProcessPoolExecutor:
    """Return processes that draw slices."""
    # A forked copy of OpenCV's threads can lock up.
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(MOST_PROCESSES, os.cpu_count() or 1), fresh)


# --- a volume -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CountedSlice:
    """A slice of a volume as a detector counts, and what of each particle is in it.

    Attributes
    ----------
    counts : (rows, columns) uint16 ndarray
    truth : (rows, columns) bool ndarray
    voxels : (N,) int ndarray
        Pixels of each particle.
    at_border : (N,) int ndarray
        Those at the border of the slice.
    """

    counts: np.ndarray
    truth: np.ndarray
    voxels: np.ndarray
    at_border: np.ndarray


def write_volume(output: Path, seed: int = 0, slices: int = 1000, side: int = 512) -> None:
    """Write a volume as an ImageJ stack, and NAME_truth.tif and NAME_particles.csv beside it.

    The same arguments give the same bytes; each file appears when it is complete, the volume last.

    Raises
    ------
    InputError
        When one of the files exists.
    """
    output = Path(output)
    truth = output.with_name(f"{output.stem}_truth.tif")
    table = output.with_name(f"{output.stem}_particles.csv")
    for target in (output, truth, table):
        if target.exists():
            raise InputError(
                f"{target}: exists already; choose another --volume, or delete it first"
            )

    drawn = DrawnVolume(seed, (slices, side, side))
    details: dict[str, Any] = {
        "imagej": True,
        "resolution": pixels_per_um(),
        "shape": drawn.size,
        "metadata": {"axes": "ZYX", "spacing": PIXEL_SIZE_UM, "unit": "um"},
    }

    def write_masks(temporary: Path) -> None:
        tifffile.imwrite(temporary, drawn.masks(), dtype=np.uint8, **details)

    def write_all(temporary: Path) -> None:
        tifffile.imwrite(temporary, drawn.counts(), dtype=np.uint16, **details)
        write_atomically(truth, write_masks)
        write_csv(table, drawn.particles(), float_format="%.6g")

    write_atomically(output, write_all)


class DrawnVolume:
    """A volume that is drawn once, slice by slice; its masks are kept with a bit for each pixel."""

    def __init__(self, seed: int, size: tuple[int, int, int]):
        self.seed = seed
        self.size = size
        self.made = make_particles(seed, size=size)
        self._packed: list[np.ndarray] = []
        self._voxels = np.zeros(len(self.made), int)
        self._at_border = np.zeros(len(self.made), int)

    def counts(self) -> Iterator[np.ndarray]:
        """Draw the slices, and yield them: (rows, columns) uint16."""
        slices = self.size[0]
        draw = partial(count_slice, seed=self.seed, size=self.size)
        with drawing_pool() as pool:
            drawn = pool.map(draw, range(slices), chunksize=4)
            bar = tqdm(drawn, "volume", slices, unit="slice", mininterval=PROGRESS_SECONDS)
            for z, one in enumerate(bar):
                is_end = z in (0, slices - 1)
                self._packed.append(np.packbits(one.truth))
                self._voxels += one.voxels
                self._at_border += one.voxels if is_end else one.at_border
                yield one.counts

    def masks(self) -> Iterator[np.ndarray]:
        """Yield the true masks of the slices that were drawn: (rows, columns) uint8, 255 for particle."""
        _, rows, columns = self.size
        for bits in self._packed:
            mask = np.unpackbits(bits, count=rows * columns).reshape(rows, columns)
            yield mask * np.uint8(255)

    def particles(self) -> pd.DataFrame:
        """Return the particles of the volume that was drawn.

        Centre [px], volume [px³], diameter of the sphere of that volume [px], and whether the
        border cuts them.
        """
        seen = np.flatnonzero(self._voxels)
        volume = self._voxels[seen]
        centres = self.made.centres[seen]
        return pd.DataFrame(
            {
                "slice": centres[:, 0],
                "row": centres[:, 1],
                "column": centres[:, 2],
                "volume": volume,
                "diameter": (6 * volume / math.pi) ** (1 / 3),
                "touches_border": self._at_border[seen] > 0,
            }
        )


def count_slice(z: int, seed: int, size: tuple[int, int, int]) -> CountedSlice:
    """Draw slice `z` of a volume as a detector counts."""
    owners = np.zeros(size[1:], np.int32)
    one = render(seed, 0, z, size, owners)
    is_border = np.ones(size[1:], bool)
    is_border[1:-1, 1:-1] = False

    number = len(make_particles(seed, size=size))
    voxels = np.bincount(owners[one.truth], minlength=number)
    at_border = np.bincount(owners[one.truth & is_border], minlength=number)
    return CountedSlice(as_counts(one.image), one.truth, voxels, at_border)


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(description="Write a synthetic nano-CT data set with known truth.")
    parser.add_argument(
        "--output", type=Path, help="new folder (data/demo, or data/ and the name of the material)"
    )
    parser.add_argument(
        "--volume", type=Path, help="write one volume to this .tif instead, its truth beside it"
    )
    parser.add_argument(
        "--material",
        choices=list(MATERIALS),
        help="write labelled slices of this material instead of nano-CT",
    )
    parser.add_argument(
        "--slices",
        type=int,
        help=f"of the volume ({VOLUME_SLICES}), or of the material ({DataSet.slices})",
    )
    parser.add_argument(
        "--size",
        type=int,
        help=f"rows and columns of the volume ({VOLUME_SIDE}), or of each slice of the material "
        f"({DataSet.side}) [px]",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)"
    )
    parser.add_argument(
        "--scans",
        type=int,
        help=f"unlabelled scans of the two later times ({SCANS})",
    )
    return parser


def main() -> None:
    """Write the demo data, a volume or a material, and say where."""
    arguments = make_parser().parse_args()
    refuse_options_without_meaning(arguments)
    if arguments.volume is not None:
        command_volume(arguments)
    elif arguments.material is not None:
        command_material(arguments)
    else:
        scans = SCANS if arguments.scans is None else arguments.scans
        folder = arguments.output or Path("data/demo")
        write_demo(folder, arguments.seed, scans)
        print(
            f"{folder}: {LABELLED} labelled slices, {scans} scans; truth of the scans: "
            f"{truth_folder_of(folder)}"
        )


def refuse_options_without_meaning(arguments: argparse.Namespace) -> None:
    """Raise `InputError` where an option stands beside one with which it has no meaning, or a number is negative."""
    if arguments.seed < 0 or (arguments.scans or 0) < 0:
        raise InputError("--seed and --scans: must be 0 or more")

    is_demo = arguments.volume is None and arguments.material is None
    if arguments.volume is not None and arguments.material is not None:
        raise InputError("--material: writes a data folder, and --volume a volume; choose one")
    if arguments.scans is not None and not is_demo:
        raise InputError("--scans: are of the demo; has no meaning with --volume or --material")
    for name in ("slices", "size"):
        if getattr(arguments, name) is not None and is_demo:
            raise InputError(f"--{name}: has a meaning only with --volume or --material")


def command_volume(arguments: argparse.Namespace) -> None:
    """Write a volume, and say what lies beside it."""
    slices = VOLUME_SLICES if arguments.slices is None else arguments.slices
    side = VOLUME_SIDE if arguments.size is None else arguments.size
    is_tiff = arguments.volume.suffix.lower() in (".tif", ".tiff")
    if not is_tiff or slices < 1 or not 16 <= side <= 2**14:
        raise InputError(
            "--volume: expected the name of a .tif, --slices 1 or more and --size 16 to 16384"
        )

    write_volume(arguments.volume, arguments.seed, slices, side)
    print(
        f"{arguments.volume}: {slices} slices of {side}²; true mask and particles: _truth.tif and "
        "_particles.csv beside it"
    )


def command_material(arguments: argparse.Namespace) -> None:
    """Write slices of a material, and say what is painted in them."""
    slices = DataSet.slices if arguments.slices is None else arguments.slices
    side = DataSet.side if arguments.size is None else arguments.size
    if slices < 1 or not LEAST_SIDE <= side <= 2**12:
        raise InputError(
            f"--material: expected --slices 1 or more and --size {LEAST_SIDE} to {2**12}"
        )

    data_set = DataSet(arguments.material, arguments.seed, slices, side)
    folder = arguments.output or Path("data") / data_set.material
    write_material(folder, data_set)
    kind = MATERIALS[data_set.material]
    print(f"{folder}: {slices} labelled slices of {side}²: {kind.text}")


if __name__ == "__main__":
    run_command_line(main)
