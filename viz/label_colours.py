"""The colours of classes: their legend, and slices tinted with them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from slices.classes import Classes
from viz.panels import PAINTED, block_of, reduced, tint

STRENGTH = 0.6  # of the colours of classes over a slice


@dataclass(frozen=True, eq=False)
class Legend:
    """Names and colours of the classes, the background first.

    Attributes
    ----------
    names : list of str
    colours : (K, 3) ndarray
        Red, green and blue, 0 to 1.
    """

    names: list[str]
    colours: np.ndarray

    def add_to(self, figure: Figure, is_partial: bool = False) -> None:
        """Add the legend below all panels of a figure; what is not painted has no colour."""
        handles = [
            Patch(color=tuple(colour), label=name)
            for name, colour in zip(self.names, self.colours, strict=True)
        ]
        if is_partial:
            handles.append(Patch(facecolor="none", edgecolor="0.6", label="not painted"))
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles),
            fontsize=8,
            frameon=False,
        )


def legend_of(stored: Mapping[str, np.ndarray]) -> Legend:
    """Return the legend of what a run has stored."""
    names = [str(name) for name in stored["classes"]]
    return Legend(names, stored["colours"] / 255)


def colour_classes(
    image: np.ndarray, labels: np.ndarray, painted: np.ndarray | None, legend: Legend
) -> np.ndarray:
    """Return a slice tinted with the colours of its classes: (h, w, 3) float in [0, 1], reduced where it is large.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
    labels : (H, W) uint8 ndarray
        The class of each pixel.
    painted : (H, W) bool ndarray, or None
        Other pixels stay grey.
    legend : Legend
    """
    block = block_of(image.shape)
    shown = np.repeat(reduced(image, block)[..., None] / 255.0, 3, axis=2)
    for index, colour in enumerate(legend.colours):
        where = labels == index
        if painted is not None:
            where &= painted
        shown = tint(shown, reduced(where, block) >= 0.5, tuple(colour), STRENGTH)
    return shown


def legend_of_classes(classes: Classes) -> Legend:
    """Return the legend of the classes of a data folder, or of a prediction."""
    return Legend(list(classes.names), np.array(classes.shown_colours) / 255)


def tint_labels(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Classes | None,
    painted: np.ndarray | None = None,
) -> np.ndarray:
    """Return a slice tinted with a mask, (h, w, 3) float in [0, 1]: orange foreground, or the colours of classes.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
    labels : (H, W) ndarray
        Foreground, or the class of each pixel.
    classes : Classes or None
        None of binary masks.
    painted : (H, W) bool ndarray, or None
        Other pixels stay grey; None is all.
    """
    if classes is not None and not classes.is_binary:
        return colour_classes(image, labels, painted, legend_of_classes(classes))
    block = block_of(image.shape)
    foreground = labels.astype(bool)
    if painted is not None:
        foreground &= painted
    return tint(reduced(image, block), reduced(foreground, block) >= 0.5, PAINTED)
