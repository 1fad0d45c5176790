"""Slices of a volume as models see them: in 8 bit, inside the region of interest, without what is outside."""

from dataclasses import dataclass, replace

import numpy as np

from runtime.messages import InputError
from slices.padding import find_flat_border
from slices.reading import as_floats
from slices.windows import Grey, apply_window, grey_limits, mark_outside, parse_outside
from volumes.prediction_notes import LOW_CONTRAST, USUAL
from volumes.volume import Volume, spread_evenly

SAMPLED_SLICES = 32  # from which the grey values of a whole volume are taken
SAMPLED_STEP = 2  # of their pixels every second in either direction


@dataclass(frozen=True)
class SeeingOptions:
    """How the slices of a volume are seen.

    Attributes
    ----------
    roi : (row, end row, column, end column), or None
        What is looked at [px]; None is all.
    window : {"slice", "volume", "training"} or (low, high)
        Grey values that become black and white: percentiles of each slice, or of all, those of the
        slices of training, or the values themselves.
    outside : str
        Grey value outside the sample; see `slices.windows.parse_outside`.
    blank : {"none", "auto"}
        `auto`: slices with a fraction of the usual contrast stay without foreground.
    """

    roi: tuple[int, int, int, int] | None = None
    window: str | tuple[float, float] = "slice"
    outside: str = "auto"
    blank: str = "none"


@dataclass(frozen=True)
class GreyWindow:
    """Which grey values of a slice become 0 and 255.

    Attributes
    ----------
    percentiles : (low, high)
        Of the slice's own grey values, unless `limits` are given.
    limits : (low, high), or None
        Grey values for all slices.
    least_contrast : float
        Slices whose own percentiles are less apart stay blank.
    """

    percentiles: tuple[float, float]
    limits: tuple[float, float] | None = None
    least_contrast: float = 0.0


@dataclass(frozen=True, eq=False)
class SeenSlice:
    """A slice as models see it.

    Attributes
    ----------
    shape : (int, int)
        Of the whole slice.
    image : (H, W) uint8 ndarray, or None
        What lies inside the region of interest; None where there is nothing to see.
    outside : (H, W) bool ndarray, or None
        Of the whole slice: where there is no sample; None where there is sample everywhere.
    limits : (low, high), or None
        The grey values that became 0 and 255.
    own : (low, high)
        The slice's own percentiles, whatever window was taken.
    is_constant : bool
        Whether all pixels of the sample hold one value.
    flat_border : (value, share), or None
        What may be padding and was taken for sample; see `slices.padding.find_flat_border`.
    """

    shape: tuple[int, int]
    image: np.ndarray | None
    outside: np.ndarray | None
    limits: tuple[float, float] | None
    own: tuple[float, float]
    is_constant: bool
    flat_border: tuple[float, float] | None = None


def see_slice(volume: Volume, i: int, options: SeeingOptions, window: GreyWindow) -> SeenSlice:
    """Return slice `i` of a volume as models see it."""
    name = volume.names[i]
    whole = read_marked(volume, i, options)
    inside = whole.crop(options.roi, name)
    own = grey_limits(inside, window.percentiles, name)
    low, high = window.limits or own

    sample = inside.image if inside.outside is None else inside.image[~inside.outside]
    is_constant = sample.size == 0 or bool(sample.min() == sample.max())
    has_little_contrast = own[1] - own[0] < window.least_contrast
    shape = whole.image.shape
    if is_constant or has_little_contrast or not high > low:
        return SeenSlice(shape, None, whole.outside, None, own, is_constant)

    flat_border = None
    if options.outside == "auto":
        flat_border = find_flat_border(whole.image, whole.outside)
    image = apply_window(inside, low, high)
    return SeenSlice(shape, image, whole.outside, (low, high), own, is_constant, flat_border)


def read_marked(volume: Volume, i: int, options: SeeingOptions) -> Grey:
    """Return slice `i` of a volume with what lies outside the sample."""
    name = volume.names[i]
    image = as_floats(volume.read(i), name)
    return mark_outside(image, name, parse_outside(options.outside))


# --- the window of a whole volume -----------------------------------------------------------------


def choose_grey_window(
    volume: Volume,
    options: SeeingOptions,
    percentiles: tuple[float, float],
    training: dict | None,
) -> GreyWindow:
    """Return which grey values become 0 and 255; the volume is sampled only where that takes it.

    Parameters
    ----------
    volume : Volume
    options : SeeingOptions
    percentiles : (low, high)
    training : dict, or None
        Grey values of the slices of training, see `slices.data_folder.training_window`.

    Raises
    ------
    InputError
        Where the volume is constant, or a window is asked for that the checkpoint does not know.
    """
    sampled = []
    if options.window == "volume" or options.blank == "auto":
        sampled = sample_slices(volume, options)

    limits = None
    if options.window == "volume":
        limits = limits_of_all(volume, sampled, percentiles)
    elif options.window == "training":
        if training is None:
            raise InputError(
                "--window training: the checkpoint does not say which grey values it was trained on "
                "(it is of an earlier version, or several that differ); give --window LOW,HIGH"
            )
        limits = (training["low"], training["high"])
    elif not isinstance(options.window, str):
        limits = options.window

    least_contrast = 0.0
    if options.blank == "auto":
        least_contrast = LOW_CONTRAST * usual_contrast(sampled, percentiles)
    return GreyWindow(percentiles, limits, least_contrast)


def sample_slices(volume: Volume, options: SeeingOptions) -> list[np.ndarray]:
    """Return the grey values of the sample in slices spread evenly over the volume, every fourth pixel: (N,) each."""
    coarse = (slice(None, None, SAMPLED_STEP), slice(None, None, SAMPLED_STEP))
    values = []
    for i in spread_evenly(len(volume), SAMPLED_SLICES):
        grey = read_marked(volume, i, options).crop(options.roi, volume.names[i])
        outside = None if grey.outside is None else grey.outside[coarse]
        values.append(replace(grey, image=grey.image[coarse], outside=outside).values())

    return values


def limits_of_all(
    volume: Volume, sampled: list[np.ndarray], percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Return the grey values at two percentiles of all sampled slices."""
    together = Grey(np.concatenate(sampled), skip_zeros=False)
    low, high = grey_limits(together, percentiles, str(volume.path))
    if not high > low:
        raise InputError(
            f"{volume.path}: is constant in all of {len(sampled)} slices looked at; nothing to segment"
        )

    return low, high


def usual_contrast(sampled: list[np.ndarray], percentiles: tuple[float, float]) -> float:
    """Return the contrast that a quarter of the sampled slices exceeds; 0 where there is nothing to see."""
    contrasts = []
    for values in sampled:
        if values.size:
            low, high = np.percentile(values, percentiles)
            contrasts.append(high - low)

    if not contrasts:
        return 0.0
    return float(np.percentile(contrasts, USUAL))
