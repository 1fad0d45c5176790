"""Synthetic nano-CT in the real folder layout: labelled slices, larger unlabelled scans, and their truth beside.

    python demo_data.py --output data/demo [--seed 0] [--scans 150]
    python demo_data.py --volume data/volume.tif [--seed 0] [--slices 1000] [--size 512]

One volume of faint faceted particles is cut into correlated slices at three points in time. What makes real
slices hard is there: contrast below the noise, correlated noise, streaks, rings, slow shading, bright needles
and clouds that are not particles, and the bright rim with a dark fringe of phase contrast. Grey values have the
scale of linear attenuation in a real scan (about 2e-4 per voxel). `--volume` writes one volume as an ImageJ stack
instead, its true mask and a table of its particles beside it.
"""

import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile
from tqdm import tqdm

from runtime.command_line import Parser, run_command_line
from runtime.files import locked as alone
from runtime.files import write_atomically, write_json
from runtime.messages import PROGRESS_SECONDS, InputError, quiet_bar
from slices.reading import ROI
from slices.splits import split_by_blocks

SHAPE = (1160, 1000)        # rows and columns of a scan [px]; the labelled slices are its ROI
LABELLED, SPACING = 22, 10  # labelled slices and their distance along z [px]
DEPTH = LABELLED * SPACING
PIXEL_SIZE_UM = 0.022
MATRIX, CONTRAST, NOISE = 1.9e-4, 2.6e-5, 2.5e-5    # grey values of the matrix; particle − matrix; noise σ
PAINT_DARK, PAINT_BRIGHT = -2.0e-4, 3.5e-4          # what the annotator filled particles and bright needles with
DRIFT = (1.0, 0.9, 0.8)                             # contrast at the three points in time


@dataclass(frozen=True)
class Particles:
    """Convex polyhedra: `centres` (N, 3) as z, row, column [px]; `normals` (N, F, 3); `offsets` (N, F) [px]."""

    centres: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray


@lru_cache(maxsize=1)
def make_particles(seed: int, fraction: float = 0.108, faces: int = 18,
                   size: tuple[int, int, int] = (DEPTH, *SHAPE)) -> Particles:
    """Polydisperse particles (log-normal radii) at random places, some touching, until `fraction` is filled."""
    rng = np.random.default_rng([seed, 1])
    low, high = np.array([-60, -40, -40]), np.add(size, (60, 40, 40))
    wanted = fraction * np.prod(high - low)
    radii, total = [], 0.0
    while total < wanted:
        radii.append(np.clip(rng.lognormal(np.log(17), 0.5), 5, 60))
        total += 4.2 * radii[-1] ** 3
    centres = np.empty((len(radii), 3))
    for i, radius in enumerate(sorted(radii, reverse=True)):    # large ones first: they find a place
        while True:
            place = rng.uniform(low, high)
            gaps = np.linalg.norm(centres[:i] - place, axis=1) - (np.sort(radii)[::-1][:i] + radius)
            if i == 0 or gaps.min() > -0.25 * radius:
                break
        centres[i] = place
    radii = np.sort(radii)[::-1]
    normals = rng.normal(size=(len(radii), faces, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    stretch = np.exp(rng.normal(0, 0.18, (len(radii), 1, 3)))   # elongated and flat ones
    offsets = radii[:, None] * rng.uniform(0.75, 1.1, (len(radii), faces)) * np.linalg.norm(normals * stretch, axis=2)
    return Particles(centres, normals, offsets)


def moved(particles: Particles, seed: int, time: int) -> Particles:
    """The particles at a later point in time: shifted together, and each a little by itself."""
    if time == 0:
        return particles
    rng = np.random.default_rng([seed, 2, time])
    drift = rng.normal(0, 6, 3) + rng.normal(0, 3, particles.centres.shape)
    return Particles(particles.centres + time * drift, particles.normals, particles.offsets)


def depth_map(particles: Particles, z: float, reach: float = 12.0, shape: tuple[int, int] = SHAPE,
              owners: np.ndarray | None = None) -> np.ndarray:
    """Signed distance [px] to the nearest particle surface in the slice at `z`: negative inside, ≤ `reach`.

    Returns (rows, columns) float32 of a whole scan. `owners` (rows, columns) int gets the number of the particle whose
    distance that is: where two overlap, the one in which a pixel lies deeper.
    """
    depth = np.full(shape, reach, np.float32)
    size = particles.offsets.mean(axis=1) * 1.3                 # no corner reaches farther
    for i in np.flatnonzero(np.abs(particles.centres[:, 0] - z) < size + reach):
        _, row, column = particles.centres[i]
        r0, r1 = max(0, int(row - size[i] - reach)), min(shape[0], int(row + size[i] + reach))
        c0, c1 = max(0, int(column - size[i] - reach)), min(shape[1], int(column + size[i] + reach))
        if r0 >= r1 or c0 >= c1:
            continue
        n, h = particles.normals[i].astype(np.float32), particles.offsets[i].astype(np.float32)
        y, x = np.arange(r0, r1, dtype=np.float32)[:, None] - row, np.arange(c0, c1, dtype=np.float32)[None] - column
        box = np.sqrt(y**2 + x**2 + np.float32((z - particles.centres[i, 0]) ** 2)) - np.float32(size[i])
        for face in range(len(h)):                              # inside a polyhedron: behind every face
            plane = y * n[face, 1] + x * n[face, 2] + np.float32(z - particles.centres[i, 0]) * n[face, 0] - h[face]
            np.maximum(box, plane, out=box)
        if owners is not None:
            owners[r0:r1, c0:c1][box < depth[r0:r1, c0:c1]] = i
        np.minimum(depth[r0:r1, c0:c1], box, out=depth[r0:r1, c0:c1])
    return depth


def smooth_noise(rng: np.random.Generator, sigma: float, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Gaussian noise of unit variance, correlated over `sigma` pixels."""
    step = max(1, int(sigma // 4))  # wide correlation needs no fine grid
    coarse = rng.standard_normal((shape[0] // step + 2, shape[1] // step + 2), dtype=np.float32)
    coarse = cv2.GaussianBlur(coarse, (0, 0), sigma / step)
    noise = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return noise / noise.std()


def artefacts(seed: int, time: int, z: float, rng: np.random.Generator, depth: int = DEPTH,
              shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """What is not particle: grey values to add, and a bool map of the bright needles; (rows, columns) each.

    Rings, shading, clouds and needles belong to the volume and change slowly with z; streaks are the slice's own.
    """
    fixed = np.random.default_rng([seed, 3, time])
    rows, columns = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    mix = np.sin(np.array([z / 60, z / 90 + 1, z / 45 + 2, z / 70 + 3]))
    mix *= 1.5 / np.linalg.norm(mix)                            # as strong in every slice
    shading = sum(np.float32(m) * smooth_noise(fixed, 150, shape) for m in mix)
    clouds = sum(np.float32(m) * smooth_noise(fixed, 16, shape) for m in mix)
    centre = np.array(shape) / 2 + fixed.normal(0, 20, 2)
    radius = np.hypot(rows - centre[0], columns - centre[1])
    profile = fixed.standard_normal(2000) * np.exp(np.sin(np.arange(2000) / 40 + z / 80))  # farther than any corner
    added = 1.2e-5 * shading + 0.75e-5 * clouds + 0.35e-5 * profile.astype(np.float32)[radius.astype(int)]
    for angle in rng.uniform(0, np.pi, 5):                      # fine parallel streaks, strong in one region
        across = (np.cos(angle) * rows + np.sin(angle) * columns + 2000).astype(int)
        lines = cv2.GaussianBlur(rng.standard_normal((1, across.max() + 1), dtype=np.float32), (0, 0), 1.2)[0]
        added += 0.9e-5 * lines[across] * np.clip(smooth_noise(rng, 150, shape), 0, 2)
    needles = np.zeros(shape, bool)
    for _ in range(round(60 * math.prod((depth, *shape)) / math.prod((DEPTH, *SHAPE)))):
        place, row, column, angle = fixed.uniform([0, 0, 0, 0], [depth, *shape, np.pi])
        length, width, height = fixed.uniform([15, 3, 4], [70, 7, 14])
        if abs(z - place) > height:                             # bright needles, each with its streak
            continue
        along = np.cos(angle) * (rows - row) + np.sin(angle) * (columns - column)
        across = np.abs(np.sin(angle) * (rows - row) - np.cos(angle) * (columns - column))
        needle = (np.abs(along) < length) & (across < width)
        needles |= needle
        added += np.where(needle, np.float32(2.2e-4), 0)
        streak = np.exp(-(across / 5) ** 2) * np.cos(across / 3) * np.exp(-np.abs(along) / 250)
        added += np.float32(2.5e-5) * streak * ~needle
    return added, needles


def render(seed: int, time: int, z: float, size: tuple[int, int, int] = (DEPTH, *SHAPE),
           owners: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One slice of a volume of `size`: grey values float32, truth bool, bright needles bool; (rows, columns) each.

    `owners`: see `depth_map`.
    """
    rng, shape = np.random.default_rng([seed, 4, time, round(z * 100)]), size[1:]
    depth = depth_map(moved(make_particles(seed, size=size), seed, time), z, shape=shape, owners=owners)
    truth = depth < 0
    body = np.clip(0.5 - depth / 2, 0, 1)                       # soft edge, one resolution element wide
    rim = 1.6 * np.exp(-((depth + 2.5) / 2.2) ** 2) - 0.8 * np.exp(-((depth - 2.5) / 2.5) ** 2)
    strength = CONTRAST * DRIFT[time] * (1 + 0.2 * smooth_noise(rng, 60, shape))
    added, needles = artefacts(seed, time, z, rng, size[0], shape)
    noise = NOISE * (0.9 * smooth_noise(rng, 1.6, shape) + 0.45 * smooth_noise(rng, 3.0, shape)) / DRIFT[time]
    image = MATRIX + strength * (body + rim) + added + noise
    needles &= ~truth
    return np.maximum(image, 4e-5).astype(np.float32), truth, needles


def write_slice(index: int, folder: Path, seed: int) -> None:
    """One labelled slice and its painted mask."""
    image, truth, needles = (a[ROI[0]:ROI[1], ROI[2]:ROI[3]] for a in render(seed, 0, index * SPACING))
    painted = np.where(truth, np.float32(PAINT_DARK), image)
    if index % 3 == 0:                                          # on some, bright needles are painted over as well
        painted[needles] = PAINT_BRIGHT
    about = {"resolution": (1 / PIXEL_SIZE_UM, 1 / PIXEL_SIZE_UM), "metadata": {"unit": "um"}, "imagej": True}
    tifffile.imwrite(folder / "labeled" / "Original_images" / f"slice_{index:02d}.tif", image, **about)
    tifffile.imwrite(folder / "labeled" / "Original_masks" / f"slice_mask_{index:02d}.tif", painted, **about)


def write_scan(index: int, folder: Path, truth_folder: Path, seed: int, scans: int) -> None:
    """One unlabelled scan of time 1 or 2 as 16-bit integers, its truth as PNG in another tree."""
    time, within = divmod(index, (scans + 1) // 2)
    z = within * DEPTH / max(1, (scans + 1) // 2)
    image, truth, _ = render(seed, time + 1, z)
    name = f"time{time + 1}_{within:03d}"
    counts = np.clip(image * 1e8, 0, 65535).astype(np.uint16)
    tifffile.imwrite(folder / "unlabeled" / f"{name}.tif", counts)
    cv2.imwrite(str(truth_folder / f"{name}.png"), truth.astype(np.uint8) * 255)


def truth_folder_of(output: Path) -> Path:
    """Where the truth of the unlabelled scans goes: beside `output`, where training never reads."""
    return output.with_name(output.name + "_truth")


def write_demo(output: Path, seed: int = 0, scans: int = 150, labelled: int = LABELLED) -> None:
    """Write the demo data set: `output` in the real layout, and the truth of its scans beside it.

    The same arguments give the same bytes. Both folders appear only when they are complete.

    Raises
    ------
    InputError
        When `output` or the folder of the truth exists, or `output` is no name.
    """
    output = Path(output)
    if not output.name.strip("."):
        raise InputError(f"--output {output}: is no name of a new folder; such as data/demo")
    with alone(output.with_name(f".{output.name}.lock"), f"{output}: another process is writing it; wait for it"):
        for target in (output, truth_folder_of(output)):
            if target.exists():
                raise InputError(f"{target}: exists already; choose another --output, or delete it first")
        _write_demo(output, seed, scans, labelled)


def _write_demo(output: Path, seed: int, scans: int, labelled: int) -> None:
    final = {output: output.with_name(f".{output.name}.part")}
    final[truth_folder_of(output)] = final[output].with_name(f".{output.name}_truth.part")
    folder, truth = final.values()
    for part in final.values():
        shutil.rmtree(part, ignore_errors=True)
    for sub in ("labeled/Original_images", "labeled/Original_masks", "unlabeled", "splits"):
        (folder / sub).mkdir(parents=True)
    truth.mkdir()
    with drawing_pool() as pool:
        draw_scan = partial(write_scan, folder=folder, truth_folder=truth, seed=seed, scans=scans)
        for draw, name, count in ((partial(write_slice, folder=folder, seed=seed), "labelled slices", labelled),
                                  (draw_scan, "unlabelled scans", scans)):
            list(quiet_bar(pool.map(draw, range(count)), name, total=count))
    held_back = round(0.18 * labelled)
    split = split_by_blocks([f"slice_{i:02d}" for i in range(labelled)], held_back, held_back)
    write_json(folder / "splits" / "split.json", split)
    write_json(folder / "demo.json", {"seed": seed, "scans": scans, "labelled": labelled,
                                      "pixel_size_um": PIXEL_SIZE_UM, "time_points": len(DRIFT)})
    for target, part in final.items():
        part.rename(target)


# --- a volume -------------------------------------------------------------------------------------------------

def true_particles(particles: Particles, voxels: np.ndarray, cut: np.ndarray) -> pd.DataFrame:
    """The particles of a volume: centre [px], volume [px³], diameter of the sphere of that volume [px], and whether the
    border cuts them, from the number of each one's voxels inside and at the border.
    """
    here, volume = np.flatnonzero(voxels), voxels[voxels > 0]
    centres = {name: particles.centres[here, i] for i, name in enumerate(("slice", "row", "column"))}
    return pd.DataFrame({**centres, "volume": volume, "diameter": (6 * volume / math.pi) ** (1 / 3),
                         "touches_border": cut[here] > 0})


def write_volume(output: Path, seed: int = 0, slices: int = 1000, side: int = 512) -> None:
    """Write a volume as an ImageJ stack, and NAME_truth.tif and NAME_particles.csv beside it.

    The same arguments give the same bytes; each file appears when it is complete, the volume last.

    Raises
    ------
    InputError
        When one of the files exists.
    """
    output = Path(output)
    truth, table = (output.with_name(f"{output.stem}{name}") for name in ("_truth.tif", "_particles.csv"))
    for target in (output, truth, table):
        if target.exists():
            raise InputError(f"{target}: exists already; choose another --volume, or delete it first")
    size, packed = (slices, side, side), []
    found = np.zeros((2, len(make_particles(seed, size=size).centres)), int)    # voxels inside, and at the border
    about = {"imagej": True, "resolution": (1 / PIXEL_SIZE_UM, 1 / PIXEL_SIZE_UM), "shape": size,
             "metadata": {"axes": "ZYX", "spacing": PIXEL_SIZE_UM, "unit": "um"}}

    def grey(pool: ProcessPoolExecutor) -> Iterator[np.ndarray]:
        rendered = pool.map(partial(render_counts, seed=seed, size=size), range(slices), chunksize=4)
        bar = tqdm(rendered, "volume", slices, unit="slice", mininterval=PROGRESS_SECONDS)
        for z, (counts, mask, voxels, cut) in enumerate(bar):
            packed.append(np.packbits(mask))
            found[0] += voxels
            found[1] += voxels if z in (0, slices - 1) else cut
            yield counts

    def write_masks(path: Path) -> None:
        masks = (np.unpackbits(bits, count=side * side).reshape(side, side) * np.uint8(255) for bits in packed)
        tifffile.imwrite(path, masks, dtype=np.uint8, **about)

    with drawing_pool() as pool:
        def write_grey(path: Path) -> None:
            tifffile.imwrite(path, grey(pool), dtype=np.uint16, **about)
            write_atomically(truth, write_masks)
            particles = true_particles(make_particles(seed, size=size), *found)
            write_atomically(table, lambda p: particles.to_csv(p, index=False, float_format="%.6g"))
        write_atomically(output, write_grey)


def render_counts(z: int, seed: int, size: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Slice `z` of a volume as a detector counts, (rows, columns) uint16; its truth, bool; and how many pixels each
    particle has in it, and at its border.
    """
    owners = np.zeros(size[1:], np.int32)
    image, truth, _ = render(seed, 0, z, size, owners)
    inner = np.zeros_like(truth)
    inner[1:-1, 1:-1] = True
    voxels, cut = (np.bincount(owners[some], minlength=len(make_particles(seed, size=size).centres))
                   for some in (truth, truth & ~inner))
    return np.clip(image * 1e8, 0, 65535).astype(np.uint16), truth, voxels, cut


def drawing_pool() -> ProcessPoolExecutor:
    """Processes that draw slices."""
    fresh = multiprocessing.get_context("spawn")    # a forked copy of OpenCV's threads can lock up
    return ProcessPoolExecutor(min(8, os.cpu_count() or 1), fresh)


def main() -> None:
    """Write the demo data and say where."""
    parser = Parser(description="Write a synthetic nano-CT data set with known truth.")
    parser.add_argument("--output", type=Path, default=Path("data/demo"), help="new folder (%(default)s)")
    parser.add_argument("--volume", type=Path, help="write one volume to this .tif instead, its truth beside it")
    parser.add_argument("--slices", type=int, default=1000, help="of the volume (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the volume [px] (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    parser.add_argument("--scans", type=int, default=150, help="unlabelled scans of the two later times (%(default)s)")
    arguments = parser.parse_args()
    if arguments.seed < 0 or arguments.scans < 0:
        raise InputError("--seed and --scans: must be 0 or more")
    if arguments.volume is not None:
        named = arguments.volume.suffix.lower() in (".tif", ".tiff")
        if not named or arguments.slices < 1 or not 16 <= arguments.size <= 2**14:
            raise InputError("--volume: expected the name of a .tif, --slices 1 or more and --size 16 to 16384")
        write_volume(arguments.volume, arguments.seed, arguments.slices, arguments.size)
        print(f"{arguments.volume}: {arguments.slices} slices of {arguments.size}²; "
              "true mask and particles: _truth.tif and _particles.csv beside it")
        return
    write_demo(arguments.output, arguments.seed, arguments.scans)
    print(f"{arguments.output}: {LABELLED} labelled slices, {arguments.scans} scans; "
          f"truth of the scans: {truth_folder_of(arguments.output)}")


if __name__ == "__main__":
    run_command_line(main)
