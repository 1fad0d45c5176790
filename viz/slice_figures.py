"""Pictures of slices: what the network sees, what it found, where it is wrong; and sizes of particles.

Arrays and tables in, `Figure` out. Colours: the palette of Okabe & Ito (jfly.uni-koeln.de/color), which colour-blind
readers can tell apart.
"""

import itertools
from collections.abc import Iterator, Mapping

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import ndimage

from utils import overlap_metrics

ORANGE, SKY, GREEN, BLUE, RED, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
FALSE_POSITIVE, FALSE_NEGATIVE = (0.9, 0.1, 0.1), (0.0, 0.85, 0.9)  # red and cyan: opposite for every reader
STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
         "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.dpi": 100, "image.cmap": "gray"}
WIDTH = 9.5  # inches: a notebook column
SHOWN = 1200  # px: of a larger slice means of blocks are shown, so that a figure takes little memory
FOREST = "random forest"  # the pixel classifier of `benchmarks/study.py`


def new_figure(rows: int, columns: int, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Empty figure of notebook width with (rows, columns) axes, in this project's style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colour_of(method: str) -> str:
    """One colour for what a row of a table is: Otsu, supervised, its continuation, a student or a teacher."""
    known = {"truth": "k", "Otsu": "#777777", FOREST: PURPLE, "supervised": SKY, "supervised continued": BLUE}
    return known.get(method, ORANGE if "student" in method else RED if "teacher" in method else GREEN)


def block_of(shape: tuple[int, ...]) -> int:
    """Return the side of the blocks of pixels whose means are shown of a slice: 1 but for large ones."""
    return -(-max(shape[:2]) // SHOWN)


def reduced(image: np.ndarray, block: int) -> np.ndarray:
    """Return means of `block`² pixels of a (H, W) or (H, W, 3) image, as float32 for bool; itself for blocks of 1."""
    if block == 1:
        return image
    size = (max(1, image.shape[1] // block), max(1, image.shape[0] // block))
    numbers = image.astype(np.float32) if image.dtype.kind == "b" or image.dtype.itemsize > 4 else image
    return cv2.resize(numbers, size, interpolation=cv2.INTER_AREA)


def show(axes, image: np.ndarray, title: str = "", size: tuple[int, int] | None = None, **options) -> object:
    """Show one (H, W) or (H, W, 3) image without ticks; uint8 grey from 0 to 255, and a large one reduced.

    `size` is that of the slice [px] of which the image may be a reduced copy: coordinates are those of the slice.
    """
    height, width = size or image.shape[:2]
    if image.ndim == 2 and image.dtype == np.uint8:
        options = {"vmin": 0, "vmax": 255, **options}
    if image.dtype.kind == "b":
        options = {"vmin": 0, "vmax": 1, **options}
    image = reduced(image, block_of(image.shape))
    options = {"cmap": "gray", "extent": (-0.5, width - 0.5, height - 0.5, -0.5), **options}
    shown = axes.imshow(image, interpolation="antialiased", **options)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, parse_math=False)             # file names are no formulas
    return shown


def add_scale_bar(axes, image: np.ndarray, pixel_size: float, block: float = 1.0) -> None:
    """A bar of a round length, at most a third of an image's width: in µm, or in pixels where `pixel_size` is 0.

    A pixel of the image stands for `block` pixels of the slice along each side.
    """
    shown_pixel = block * (pixel_size or 1.0)
    most = image.shape[1] * shown_pixel / 3
    power = 10.0 ** np.floor(np.log10(most))
    length = max(step * power for step in (1, 2, 5) if step * power <= most)
    bar = AnchoredSizeBar(axes.transData, length / shown_pixel, f"{length:g} {'µm' if pixel_size else 'px'}",
                          "lower left", pad=0.3, borderpad=0.4, sep=2, color="white", size_vertical=len(image) / 80,
                          fontproperties={"size": 8})
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.6)
    axes.add_artist(bar)


def write_inside(axes, text: str) -> None:
    """A remark in the middle of a panel."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.3")


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float], strength: float = 0.55) -> np.ndarray:
    """(H, W) uint8 or (H, W, 3) float image in [0, 1] as RGB with `mask` pixels tinted."""
    rgb = np.repeat(image[..., None] / 255.0, 3, axis=2) if image.ndim == 2 else image.copy()
    rgb[mask.astype(bool)] = (1 - strength) * rgb[mask.astype(bool)] + strength * np.array(colour)
    return rgb


def draw_slice(raw: np.ndarray, image: np.ndarray, mask: np.ndarray, percentiles: tuple[float, float],
               pixel_size: float = 0.0) -> Figure:
    """A slice as stored, as the network sees it, and with its mask. Here and below, scale bars are in µm where
    `pixel_size` [µm] is given.
    """
    figure, axes = new_figure(1, 3, 4.0)
    shown = show(axes[0, 0], raw, "as stored: full grey range")
    bar = figure.colorbar(shown, cax=axes[0, 0].inset_axes((0.05, -0.06, 0.9, 0.03)), orientation="horizontal")
    bar.formatter.set_powerlimits((-2, 3))
    add_scale_bar(axes[0, 0], raw, pixel_size)
    show(axes[0, 1], image, f"percentile window {percentiles[0]:g} … {percentiles[1]:g} %, 8 bit")
    block = block_of(image.shape)
    painted = tint(reduced(image, block), reduced(mask.astype(bool), block) >= 0.5, (0.9, 0.6, 0.0))
    show(axes[0, 2], painted, f"mask (orange): {100 * mask.mean():.1f} % foreground", image.shape)
    return figure


def draw_views(samples: dict[str, np.ndarray], pixel_size: float = 0.0) -> Figure:
    """Crops of labelled and unlabelled slices: weak view, strong view, their difference, and the mask.

    Of each kind two: one whose strong view differs and one where chance left it as it is, where there are both.

    Parameters
    ----------
    samples : dict
        `labelled_weak`, `labelled_strong`, `labelled_mask`, `unlabelled_weak`, `unlabelled_strong`: (N, P, P) uint8;
        `patch_size`, their side in pixels of the slice, where that is not P.
    """
    figure, axes = new_figure(4, 4, 9.2)
    chosen = {}
    for kind in ("labelled", "unlabelled"):
        changed = (samples[f"{kind}_weak"] != samples[f"{kind}_strong"]).any(axis=(1, 2))
        order = np.concatenate([np.flatnonzero(changed)[:1], np.flatnonzero(~changed), np.flatnonzero(changed)[1:]])
        chosen |= {(kind, i): place for i, place in enumerate(order[:2])}
    differences = {(kind, i): samples[f"{kind}_strong"][place].astype(float) - samples[f"{kind}_weak"][place]
                   for (kind, i), place in chosen.items()}
    limit = max(1.0, *(np.percentile(np.abs(d), 99.5) for d in differences.values()))   # one for all: comparable
    for row, ((kind, i), place) in zip(axes, chosen.items(), strict=False):
        weak, difference = samples[f"{kind}_weak"][place], differences[kind, i]
        block = float(samples.get("patch_size", weak.shape[1])) / weak.shape[1]
        show(row[0], weak, f"{kind}: weak view" if i == 0 else "")
        show(row[1], samples[f"{kind}_strong"][place], "strong view" if i == 0 else "")
        show(row[2], difference, f"strong − weak (±{limit:.0f} grey levels)" if i == 0 else "",
             cmap="PuOr", vmin=-limit, vmax=limit)
        add_scale_bar(row[0], weak, pixel_size, block)
        if not difference.any():
            write_inside(row[2], "not changed\n(by chance)")
        if kind == "labelled":
            painted = tint(weak, samples["labelled_mask"][place] >= 128, (0.9, 0.6, 0.0))
            show(row[3], painted, "mask on weak view" if i == 0 else "")
        else:
            row[3].set_axis_off()
            write_inside(row[3], "no mask:\nconsistency only")
    return figure


def error_map(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return the darkened slice with false positives red and false negatives cyan: (h, w, 3) RGB, reduced if large."""
    block = block_of(image.shape)
    invented, missed = (reduced(wrong, block) >= 0.5 for wrong in (prediction & ~truth, truth & ~prediction))
    rgb = tint((reduced(image, block) * 0.7).astype(np.uint8), invented, FALSE_POSITIVE, 0.85)
    return tint(rgb, missed, FALSE_NEGATIVE, 0.85)


def dice_text(prediction: np.ndarray, truth: np.ndarray) -> str:
    """Dice for a panel's title."""
    return f"Dice {overlap_metrics(prediction, truth)['dice']:.3f}"


def draw_predictions(image: np.ndarray, truth: np.ndarray, probability: np.ndarray, threshold: float,
                     stem: str, method: str, pixel_size: float = 0.0) -> Figure:
    """Five panels of one slice: image, truth, probability, prediction, errors (FP red, FN cyan).

    Parameters
    ----------
    image, truth : (H, W) uint8 and bool ndarrays
    probability : (H, W) ndarray in [0, 1]
    """
    prediction = probability >= threshold
    figure, axes = new_figure(1, 5, 2.5)
    show(axes[0, 0], image, stem)
    add_scale_bar(axes[0, 0], image, pixel_size)
    show(axes[0, 1], truth, "truth")
    shown = show(axes[0, 2], probability, "probability", cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes[0, 2], location="bottom", shrink=0.8, pad=0.02, aspect=30)
    show(axes[0, 3], prediction, f"prediction (p ≥ {threshold:g})")
    show(axes[0, 4], error_map(image, truth, prediction), f"{dice_text(prediction, truth)}\nFP red, FN cyan",
         image.shape)
    figure.suptitle(method, fontsize=10)
    return figure


def draw_methods(image: np.ndarray, truth: np.ndarray, predictions: dict[str, np.ndarray], stem: str,
                 pixel_size: float = 0.0) -> Figure:
    """One full slice: image, truth, and the errors of every method side by side (FP red, FN cyan)."""
    columns = min(4, 2 + len(predictions))
    rows = -(-(2 + len(predictions)) // columns)
    figure, axes = new_figure(rows, columns, 2.65 * rows)
    show(axes.flat[0], image, stem)
    add_scale_bar(axes.flat[0], image, pixel_size)
    show(axes.flat[1], truth, "truth")
    for panel, (method, prediction) in zip(axes.flat[2:], predictions.items(), strict=False):
        show(panel, error_map(image, truth, prediction), f"{method}\n{dice_text(prediction, truth)}", image.shape)
    for panel in axes.flat[2 + len(predictions):]:
        panel.set_axis_off()
    figure.suptitle("false positives red, false negatives cyan", fontsize=9)
    return figure


def lost_particles(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(H, W) int: the particles of `mask` of which less than half lies in `other`, each with a number; 0 elsewhere.

    Of the true mask these are the missed particles, of a predicted one the invented ones. Particles are 8-connected.

    Parameters
    ----------
    mask, other : (H, W) bool ndarrays
    """
    particles, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(particles.ravel())
    inside = np.bincount(particles[other], minlength=len(areas))
    lost = inside < 0.5 * areas
    lost[0] = False  # the background
    return np.where(lost[particles], particles, 0)


def describe_errors(truth: np.ndarray, prediction: np.ndarray) -> str:
    """What went wrong in a slice, in words: particles missed and invented, and errors at the rim of found ones.

    See `lost_particles`; the share of the rim counts the wrong pixels of all other particles.

    Parameters
    ----------
    truth, prediction : (H, W) bool ndarrays
    """
    missed, invented = lost_particles(truth, prediction), lost_particles(prediction, truth)
    numbers = [np.count_nonzero(np.unique(particles)) for particles in (missed, invented)]
    wrong = truth != prediction
    rim = np.count_nonzero(wrong & (missed == 0) & (invented == 0)) / max(1, np.count_nonzero(wrong))
    return f"{numbers[0]} of {ndimage.label(truth, np.ones((3, 3)))[1]} particles missed, {numbers[1]} invented;\n" \
           f"{100 * rim:.0f} % of wrong pixels at rims"


def draw_worst(slices: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]], threshold: float, method: str,
               pixel_size: float = 0.0) -> Figure:
    """A row per slice: image, errors, probability; the title of the errors says in words what went wrong.

    Parameters
    ----------
    slices : list of (stem, image, truth, probability)
        The slices with the lowest scores, the worst first; arrays as in `draw_predictions`, or probabilities in uint8,
        255 for 1.
    """
    figure, axes = new_figure(len(slices), 3, 3.3 * len(slices))
    for row, (stem, image, truth, stored) in zip(axes, slices, strict=True):
        probability = to_probability(stored) if stored.dtype == np.uint8 else stored    # one slice at a time
        prediction = probability >= threshold
        show(row[0], image, stem)
        add_scale_bar(row[0], image, pixel_size)
        show(row[1], error_map(image, truth, prediction),
             f"{dice_text(prediction, truth)}; FP red, FN cyan\n{describe_errors(truth, prediction)}", image.shape)
        shown = show(row[2], probability, "probability", cmap="viridis", vmin=0, vmax=1)
        figure.colorbar(shown, ax=row[2], shrink=0.8, pad=0.02)
    figure.suptitle(f"{method}: its worst slices", fontsize=10)
    return figure


def stored_figures(stored: Mapping[str, np.ndarray], pixel_size: float = 0.0) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of predicted test slices, name and figure, from the arrays of `predictions.npz`.

    One slice is held at a time, so slices may be large and many.
    """
    methods, threshold = [str(m) for m in stored["methods"]], float(stored["threshold"])
    stems, last = [str(stem) for stem in stored["stems"]], methods[-1]
    scores = []
    for i, stem in enumerate(stems):
        image, truth = stored[f"image_{i}"], stored[f"truth_{i}"].astype(bool)
        masks = {method: to_mask(stored[f"{method}_{i}"], threshold) for method in methods}
        scores.append(overlap_metrics(masks[last], truth)["dice"])
        yield f"methods_{stem}", draw_methods(image, truth, masks, stem, pixel_size)
        probability = to_probability(stored[f"{last}_{i}"])
        yield f"prediction_{stem}", draw_predictions(image, truth, probability, threshold, stem, last, pixel_size)

    worst = sorted(range(len(stems)), key=lambda i: scores[i])[:3]
    if worst:
        slices = [(stems[i], stored[f"image_{i}"], stored[f"truth_{i}"].astype(bool), stored[f"{last}_{i}"])
                  for i in worst]
        yield "worst", draw_worst(slices, threshold, last, pixel_size)


def to_probability(grey: np.ndarray) -> np.ndarray:
    """Return the probabilities that a uint8 array stands for, as float32."""
    return (np.arange(256) / 255).astype(np.float32)[grey]


def to_mask(grey: np.ndarray, threshold: float) -> np.ndarray:
    """Return where the probabilities that a uint8 array stands for reach a threshold, as bool."""
    return (np.arange(256) / 255 >= threshold)[grey]


# --- volumes and uncertainty ----------------------------------------------------------------------------------

def draw_volume(slices: dict[int, tuple[np.ndarray, np.ndarray | None, np.ndarray | None]], most: float,
                pixel_size: float = 0.0) -> Figure:
    """A column per slice of a volume: image, mask (orange), uncertainty from 0 to `most`, as far as there are these.

    Parameters
    ----------
    slices : dict of number to (image, mask, uncertainty)
        (H, W) uint8, bool or None, float or None.
    """
    kinds = [k for k in range(3) if all(one[k] is not None for one in slices.values())]
    height, width = next(iter(slices.values()))[0].shape
    figure, axes = new_figure(len(kinds), len(slices), 0.35 + len(kinds) * WIDTH / len(slices) * height / width)
    for column, (i, (image, mask, uncertainty)) in zip(axes.T, slices.items(), strict=True):
        for panel, kind in zip(column, kinds, strict=True):
            if kind < 2:
                show(panel, image if kind == 0 else tint(image, mask, (0.9, 0.6, 0.0)))
            else:
                show(panel, uncertainty, cmap="viridis", vmin=0, vmax=most)
        column[0].set_title(f"slice {i}", fontsize=9)
    add_scale_bar(axes[0, 0], image, pixel_size)
    return figure


def draw_uncertainty(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, uncertainty: np.ndarray,
                     rates: dict[str, pd.DataFrame], pixel_size: float = 0.0) -> Figure:
    """Errors of a slice, its uncertainty, and error rates of pixels from the least to the most uncertain tenth.

    Parameters
    ----------
    image, truth, prediction, uncertainty : (H, W) uint8, bool, bool and float ndarrays
    rates : dict of name to table
        As `evaluation.uncertainty.error_rates`, of each kind of uncertainty.
    """
    figure, axes = new_figure(1, 3, 3.7, width_ratios=(1, 1, 1.1))
    show(axes[0, 0], error_map(image, truth, prediction), f"FP red, FN cyan; {dice_text(prediction, truth)}")
    add_scale_bar(axes[0, 0], image, pixel_size)
    shown = show(axes[0, 1], uncertainty, "uncertainty", cmap="viridis", vmin=0)
    figure.colorbar(shown, cax=axes[0, 1].inset_axes((0.05, -0.06, 0.9, 0.03)), orientation="horizontal")
    for (name, table), colour in zip(rates.items(), (RED, BLUE, ORANGE, GREEN, PURPLE), strict=False):
        axes[0, 2].plot(table.index, 100 * table["error_rate"], "o-", ms=4, lw=1.4, color=colour, label=name)
    axes[0, 2].set(xlabel="tenth of pixels, by uncertainty", ylabel="wrong pixels [%]", ylim=(0, None))
    axes[0, 2].legend(fontsize=8, loc="upper left")
    return figure


# --- particles ------------------------------------------------------------------------------------------------

def draw_sizes(tables: dict[str, pd.DataFrame], unit: str) -> Figure:
    """Cumulative distributions of the equivalent diameter, by number and by area or volume, a line per table.

    Parameters
    ----------
    tables : dict of name to table
        As of `particles.measuring.particle_table`. Particles that touch the border are left out, the others count with
        their weight.
    unit : str
        Of the diameters.
    """
    size = "volume" if any("volume" in table for table in tables.values()) else "area"
    figure, axes = new_figure(1, 2, 3.4 + 0.2 * len(tables), sharey=True)
    colours = [colour_of(name) for name in tables]
    if len(set(colours)) < len(colours):  # rows of no known kind
        colours = itertools.cycle((BLUE, RED, ORANGE, GREEN, PURPLE, SKY, "k"))
    for (name, table), colour in zip(tables.items(), colours, strict=False):
        whole, medians = table[~table["touches_border"].astype(bool)].sort_values("diameter"), []
        for panel, weights in zip(axes[0], (whole["weight"], whole["weight"] * whole[size]), strict=True):
            share = np.cumsum(weights) / weights.sum() if len(whole) else weights
            panel.step(whole["diameter"], share, where="post", color=colour, lw=1.5)
            medians += [f"{whole['diameter'].iloc[np.searchsorted(share, 0.5)]:.3g}"] if len(whole) else []
        text = f"{len(whole)} whole particles; D50 {' and '.join(medians)} {unit}" if medians else "no whole particle"
        shown = " " * name.startswith("_") + name               # a label that begins with _ would be hidden
        axes[0, 0].plot([], [], color=colour, lw=1.5, label=f"{shown}: {text}")
    for panel, title in zip(axes[0], ("number of particles", f"their {size}"), strict=True):
        panel.axhline(0.5, color="0.85", lw=0.8, zorder=0)
        panel.set(xlabel=f"equivalent diameter [{unit}]", ylim=(0, 1.02))
        panel.set_title(f"by {title}", fontsize=9)
    axes[0, 0].set_ylabel("share up to this diameter")
    legend = figure.legend(loc="outside lower center", fontsize=8, frameon=False,
                           title=f"D50 by number and by {size}", title_fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)                                  # file names are no formulas
    return figure
