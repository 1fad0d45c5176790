"""A volume, its masks and its uncertainty as layers of napari, whose slices are read when they are looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from runtime.messages import InputError
from slices.classes import Classes
from slices.reading import as_floats
from slices.windows import Grey, grey_limits, mark_outside
from viz.browser import PERCENTILES, most_uncertain, sample
from volumes.volume import Volume, label_maps_of_volume, masks_of_volume
from volumes.voxel_size import relative_sides, sides_in_um

if TYPE_CHECKING:
    import dask.array
    import napari

SAMPLED_STEP = 7  # of the grey values of a slice every seventh
LEAST_CONTRAST = 1e-6


def add_layers(
    viewer: napari.Viewer,
    image: Volume,
    mask: Volume | None,
    uncertainty: Volume | None,
    mask_foreground: str = "auto",
    classes: Classes | None = None,
) -> None:
    """Add image, masks as labels, and uncertainty: 0 to ½, of more than two classes 0 to 1.

    Label maps are shown as they are, in the colours of their classes; napari says the name of the
    class under the pointer.
    """
    scale = voxel_scale(image)
    viewer.add_image(
        as_dask(image),
        name="image",
        scale=scale,
        colormap="gray",
        contrast_limits=contrast_limits(image),
    )
    if uncertainty is not None:
        viewer.add_image(
            as_dask(uncertainty).astype(np.float32),
            name="uncertainty",
            scale=scale,
            colormap="magma",
            contrast_limits=(0, most_uncertain(classes)),
            blending="additive",
            visible=mask is None,
        )

    if mask is not None and classes is not None:
        label_maps = label_maps_of_volume(mask, classes)

        def read_values(i: int) -> np.ndarray:
            return label_maps[i].values(classes)

        viewer.add_labels(
            as_dask(replace(mask, read=read_values)),
            name="classes",
            scale=scale,
            opacity=0.4,
            colormap=colours_of(classes),
            features=features_of(classes),
        )
    elif mask is not None:
        masks = masks_of_volume(mask, mask_foreground)
        read_by_rule = replace(mask, read=masks.__getitem__)
        viewer.add_labels(as_dask(read_by_rule), name="mask", scale=scale, opacity=0.4)


def colours_of(classes: Classes) -> dict[int | None, tuple[float, float, float, float]]:
    """Return the colour of each value of label maps as napari takes it; what has none is transparent."""
    colours: dict[int | None, tuple[float, float, float, float]] = {None: (0, 0, 0, 0)}
    for value, (red, green, blue) in zip(classes.values, classes.shown_colours, strict=True):
        colours[value] = (red / 255, green / 255, blue / 255, 1.0)
    return colours


def features_of(classes: Classes) -> pd.DataFrame:
    """Return the name of each value of label maps as napari takes it."""
    return pd.DataFrame({"index": [0, *classes.values], "class": ["not labelled", *classes.names]})


def contrast_limits(image: Volume) -> tuple[float, float]:
    """Return the grey values that become black and white: percentiles of a few slices."""
    values = []
    for i in sample(image):
        name = image.names[i]
        grey = mark_outside(as_floats(image.read(i), name), name)
        values.append(grey.values()[::SAMPLED_STEP])

    together = Grey(np.concatenate(values), skip_zeros=False)
    low, high = grey_limits(together, PERCENTILES)
    return low, max(high, low + LEAST_CONTRAST)


def as_dask(volume: Volume) -> dask.array.Array:
    """Return the slices as a dask array of the volume's shape.

    Each is read when it is looked at.
    """
    import dask.array

    first = volume.read(0)

    def read(i: int) -> np.ndarray:
        one = volume.read(i)
        if one.shape != first.shape:
            raise InputError(f"{volume.names[i]}: is {one.shape} px, the first slice {first.shape}")
        return one

    slices = []
    for i in range(len(volume)):
        delayed = dask.delayed(read)(i)
        slices.append(dask.array.from_delayed(delayed, first.shape, first.dtype))
    return dask.array.stack(slices).reshape(volume.shape)


def voxel_scale(volume: Volume) -> list[float]:
    """Return the distance of neighbours along each axis [µm], or relative to a pixel's side; 1 for points in time."""
    known = sides_in_um(volume.voxel) or relative_sides(volume.voxel)
    side = known.get("X", 1.0)
    scale = []
    for axis in volume.axes:
        usual = 1.0 if axis == "T" else side
        scale.append(known.get(axis, usual))
    return scale
