"""Slices of a synthetic material, and a data folder of them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile

from phantoms.materials import MATERIALS, Material
from phantoms.scanner import scan, side_of_sample
from phantoms.shapes import Plane
from slices.options import IMAGES, MASKS

SPACING = 20  # px along z from one slice to the next
COUNTS_OF_MATRIX = 10_000  # of a detector, for an attenuation of 1
RING_PITCH = 30.0  # px along z over which a detector's gains change


@dataclass(frozen=True)
class DataSet:
    """Which slices of which volume.

    Attributes
    ----------
    material : str
        A name in `MATERIALS`.
    seed : int
    slices : int
    side : int
        Of a slice [px].
    """

    material: str
    seed: int = 0
    slices: int = 12
    side: int = 768

    @property
    def side_of_plane(self) -> int:
        """The side of the square around what the scanner sees [px]."""
        if MATERIALS[self.material].is_round:
            return self.side
        return side_of_sample(self.side)


@lru_cache(maxsize=1)
def build_material(data_set: DataSet) -> Material:
    """Return the volume that the slices are of: the same for the same seed."""
    kind = MATERIALS[data_set.material]
    rng = np.random.default_rng([data_set.seed, *data_set.material.encode()])
    side = data_set.side_of_plane
    return kind.build(rng, (data_set.slices * SPACING, side, side))


def draw_slice(data_set: DataSet, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice, as the scanner sees it, and its truth.

    Returns
    -------
    image : (side, side) float32 ndarray
    truth : (side, side) bool ndarray
    """
    kind = MATERIALS[data_set.material]
    side = data_set.side_of_plane
    z = number * SPACING
    look = build_material(data_set).at(Plane(z, (side, side)))

    rng = np.random.default_rng([data_set.seed, *b"noise", number])
    image = scan(look.attenuation, kind.scanner, rng, detector_gains(data_set, z))

    margin = (side - data_set.side) // 2
    inner = slice(margin, margin + data_set.side)
    return image[inner, inner], look.truth[inner, inner]


def detector_gains(data_set: DataSet, z: float) -> np.ndarray:
    """Return the gains of the detector's pixels at a place along the volume, where they change slowly: (N,).

    Their mean is 0 and their variance 1, everywhere.
    """
    of_detector = np.random.default_rng([data_set.seed, *b"detector"])
    first, second = of_detector.normal(size=(2, data_set.side_of_plane))
    return np.sin(z / RING_PITCH) * first + np.cos(z / RING_PITCH) * second


def stem_of(data_set: DataSet, number: int) -> str:
    """Return the name of a slice, without suffix."""
    return f"{data_set.material}_{number:02d}"


def write_slice(number: int, data_set: DataSet, folder: Path) -> None:
    """Write a slice, as a detector of 16 bits has it, and its mask."""
    image, truth = draw_slice(data_set, number)
    name = f"{stem_of(data_set, number)}.tif"
    counts = np.clip(COUNTS_OF_MATRIX * (1 + image), 0, 65535).astype(np.uint16)
    if MATERIALS[data_set.material].is_round:
        # As reconstruction programs do: what was not seen is 0.
        counts[image == 0] = 0
    tifffile.imwrite(folder / IMAGES / name, counts, compression="zlib")
    tifffile.imwrite(folder / MASKS / name, truth * np.uint8(255), compression="zlib")
