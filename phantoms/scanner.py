"""A slice of a tomogram, reconstructed from projections that have the faults of real ones.

A parallel beam, one plane at a time. Faults are put where they arise, in the projections: counts of
photons vary, detector pixels differ in gain, soft rays are absorbed first. So noise is correlated
and grows towards the middle of a sample, rings lie around the axis of rotation, and dense parts
cast streaks, as they do in a scan (Kak & Slaney, Principles of Computerized Tomographic Imaging,
1988, chapters 3 and 5).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.transform import iradon, radon


@dataclass(frozen=True)
class Scanner:
    """How a scan is made.

    Attributes
    ----------
    photons : float
        That reach a detector pixel where nothing is in their way.
    absorption : float
        Mean line integral of the attenuation through the middle of the sample.
    angles : int
        Projections over half a turn.
    blur : float
        Standard deviation of the detector's blur [px].
    hardening : float
        Share by which the longest line integral is too small, because soft rays are absorbed first.
    rings : float
        Standard deviation of the detector's gain, as a share.
    """

    photons: float = 3e4
    absorption: float = 1.5
    angles: int = 400
    blur: float = 0.8
    hardening: float = 0.0
    rings: float = 0.0


def side_of_sample(side: int) -> int:
    """Return the side of the square around a circular field of view in which a square of `side` lies [px]."""
    return math.ceil(side * math.sqrt(2)) + 2


def scan(
    attenuation: np.ndarray, scanner: Scanner, rng: np.random.Generator, gains: np.ndarray
) -> np.ndarray:
    """Return the reconstruction of a plane from its projections.

    Parameters
    ----------
    attenuation : (N, N) float ndarray
        Of the sample, in any unit. What lies outside the circle in that square is not seen.
    scanner : Scanner
    rng : numpy Generator
        Of the noise in this plane.
    gains : (N,) ndarray
        Of the detector's pixels, with mean 0 and variance 1: those of one volume are the same.

    Returns
    -------
    (N, N) float32 ndarray
        In the unit of `attenuation`; 0 outside the circle.
    """
    side = len(attenuation)
    from_axis = np.arange(side) - side // 2
    is_seen = from_axis[:, None] ** 2 + from_axis**2 <= (side // 2) ** 2
    blurred = ndimage.gaussian_filter(attenuation.astype(np.float32), scanner.blur)
    seen = np.where(is_seen, blurred, np.float32(0))

    # Line integrals, in the unit in which their mean through the middle is `absorption`.
    angles = np.linspace(0, 180, scanner.angles, endpoint=False)
    integrals = radon(seen, angles, circle=True, preserve_range=True)  # (N, angles)
    middle = slice(side * 3 // 8, side * 5 // 8)
    unit = scanner.absorption / integrals[middle].mean()
    integrals = unit * integrals

    # What the detector makes of them.
    integrals -= scanner.hardening * integrals**2 / integrals.max()
    expected = scanner.photons * np.exp(-integrals)
    counts = np.maximum(rng.poisson(expected), 1)
    measured = np.log(scanner.photons / counts) + scanner.rings * gains[:, None]

    image = iradon(measured / unit, angles, circle=True, filter_name="hann", preserve_range=True)
    return image.astype(np.float32)
