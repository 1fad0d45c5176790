"""What all figures have in common: size, style and colours, images in panels, scale bars.

Colours are of the palette of Okabe & Ito (jfly.uni-koeln.de/color), which colour-blind readers can
tell apart.
"""

from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from config import FOREST, OTSU, PIXEL_CLASSIFIER

ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
BLUE = "#0072B2"
RED = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#777777"
BROWN = "#8a5a00"

# As red, green and blue from 0 to 1. Red and cyan are opposite for every reader.
PAINTED = (0.9, 0.6, 0.0)
FALSE_POSITIVE = (0.9, 0.1, 0.1)
FALSE_NEGATIVE = (0.0, 0.85, 0.9)

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 100,
    "image.cmap": "gray",
}
WIDTH = 9.5  # inches: a notebook column

# px: of a larger slice means of blocks are shown, so that a figure takes little memory.
MOST_SHOWN = 1200

# --- figures --------------------------------------------------------------------------------------


def new_figure(rows: int, columns: int, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Return an empty figure of notebook width with (rows, columns) axes, in this project's style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def colour_of(method: str) -> str:
    """Return one colour for what a row of a table is: Otsu, supervised, its continuation, a student or a teacher."""
    known = {
        "truth": "k",
        OTSU: GREY,
        FOREST: PURPLE,
        PIXEL_CLASSIFIER: BROWN,
        "supervised": SKY,
        "supervised continued": BLUE,
    }
    if method in known:
        return known[method]
    if "student" in method:
        return ORANGE
    if "teacher" in method:
        return RED
    return GREEN


def write_inside(axes, text: str) -> None:
    """Write a remark in the middle of a panel."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.3")


# --- images ---------------------------------------------------------------------------------------


def show(
    axes, image: np.ndarray, title: str = "", size: tuple[int, int] | None = None, **options
) -> object:
    """Show one image without ticks; uint8 grey from 0 to 255, and a large one reduced.

    Parameters
    ----------
    axes : matplotlib Axes
    image : (H, W) or (H, W, 3) ndarray
    title : str
    size : (height, width), optional
        Of the slice [px] of which the image may be a reduced copy: coordinates are those of the
        slice.
    **options
        Of `Axes.imshow`.

    Returns
    -------
    matplotlib AxesImage
    """
    height, width = size or image.shape[:2]
    ranges = {}
    if image.ndim == 2 and image.dtype == np.uint8:
        ranges = {"vmin": 0, "vmax": 255}
    elif image.dtype.kind == "b":
        ranges = {"vmin": 0, "vmax": 1}

    extent = (-0.5, width - 0.5, height - 0.5, -0.5)

    shown = axes.imshow(
        reduced(image, block_of(image.shape)),
        interpolation="antialiased",
        **{"cmap": "gray", "extent": extent, **ranges, **options},
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    # File names are no formulas.
    axes.set_title(title, fontsize=9, parse_math=False)
    return shown


def block_of(shape: tuple[int, ...]) -> int:
    """Return the side of the blocks of pixels whose means are shown of a slice: 1 but for large ones."""
    longest = max(shape[:2])
    return -(-longest // MOST_SHOWN)


def reduced(image: np.ndarray, block: int) -> np.ndarray:
    """Return means of `block`² pixels of a (H, W) or (H, W, 3) image, as float32 for bool; for 1 the image itself."""
    if block == 1:
        return image
    height, width = image.shape[:2]
    size = (max(1, width // block), max(1, height // block))
    # OpenCV knows neither bool nor wide integers.
    if image.dtype.kind == "b" or image.dtype.itemsize > 4:
        image = image.astype(np.float32)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def tint(
    image: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float], strength: float = 0.55
) -> np.ndarray:
    """Return an image as RGB with the pixels of a mask tinted: (H, W, 3) float in [0, 1].

    Parameters
    ----------
    image : (H, W) uint8 or (H, W, 3) float ndarray in [0, 1]
    mask : (H, W) ndarray
    colour : red, green, blue, 0 to 1
    strength : float
        Of the colour, 0 to 1.
    """
    if image.ndim == 2:
        rgb = np.repeat(image[..., None] / 255.0, 3, axis=2)
    else:
        rgb = image.copy()

    where = mask.astype(bool)
    rgb[where] = (1 - strength) * rgb[where] + strength * np.array(colour)
    return rgb


def add_scale_bar(axes, image: np.ndarray, pixel_size: float, block: float = 1.0) -> None:
    """Add a bar of a round length, at most a third of an image's width.

    Parameters
    ----------
    axes : matplotlib Axes
    image : (H, W) ndarray
    pixel_size : float
        Side of a pixel [µm]; 0: the bar is in pixels.
    block : float
        A pixel of the image stands for so many pixels of the slice along each side.
    """
    unit = "µm" if pixel_size else "px"
    side = block * (pixel_size or 1.0)
    most = image.shape[1] * side / 3
    power = 10.0 ** np.floor(np.log10(most))
    length = max(step * power for step in (1, 2, 5) if step * power <= most)
    bar = AnchoredSizeBar(
        axes.transData,
        length / side,
        f"{length:g} {unit}",
        "lower left",
        pad=0.3,
        borderpad=0.4,
        sep=2,
        color="white",
        size_vertical=len(image) / 80,
        fontproperties={"size": 8},
    )
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.6)
    axes.add_artist(bar)


def add_colour_bar(figure: Figure, axes, shown: object) -> object:
    """Add a thin horizontal colour bar below a panel."""
    place = axes.inset_axes((0.05, -0.06, 0.9, 0.03))
    return figure.colorbar(shown, cax=place, orientation="horizontal")
