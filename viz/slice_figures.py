"""Pictures of slices: what the network sees, what it found, where it is wrong. Arrays in, `Figure` out.

Scale bars are in µm where `pixel_size` [µm] is given, else in pixels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from utils import overlap_metrics
from viz.label_colours import Legend
from viz.panels import (
    BLUE,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GREEN,
    ORANGE,
    PAINTED,
    PURPLE,
    RED,
    WIDTH,
    add_colour_bar,
    add_scale_bar,
    block_of,
    new_figure,
    reduced,
    show,
    tint,
    write_inside,
)

PER_SLICE = ("methods", "prediction")  # kinds of figures of which there is one for each test slice
WORST = 3  # slices with the lowest scores that are shown
EIGHT_NEIGHBOURS = np.ones((3, 3))
GREY_LEVELS = np.arange(256) / 255  # the probabilities that uint8 stands for


# --- what the network sees ------------------------------------------------------------------------


def draw_slice(
    raw: np.ndarray,
    image: np.ndarray,
    mask: np.ndarray,
    percentiles: tuple[float, float],
    pixel_size: float = 0.0,
) -> Figure:
    """Draw a slice as stored, as the network sees it, and with its mask.

    Parameters
    ----------
    raw : (H, W) ndarray
        Grey values as stored.
    image, mask : (H, W) uint8 ndarrays
    percentiles : (low, high)
        Of the window.
    pixel_size : float
        [µm]
    """
    figure, painted = draw_grey_values(raw, image, percentiles, pixel_size)
    block = block_of(image.shape)
    foreground = reduced(mask.astype(bool), block) >= 0.5
    tinted = tint(reduced(image, block), foreground, PAINTED)
    title = f"mask (orange): {100 * mask.mean():.1f} % foreground"
    show(painted, tinted, title, image.shape)
    return figure


def draw_grey_values(
    raw: np.ndarray, image: np.ndarray, percentiles: tuple[float, float], pixel_size: float
) -> tuple[Figure, Axes]:
    """Draw a slice as stored and as the network sees it; return the figure, and its third panel, which is empty.

    See `draw_slice` for the parameters.
    """
    figure, axes = new_figure(1, 3, 4.0)
    stored, windowed, empty = axes[0]
    shown = show(stored, raw, "as stored: full grey range")
    add_colour_bar(figure, stored, shown).formatter.set_powerlimits((-2, 3))
    add_scale_bar(stored, raw, pixel_size)
    low, high = percentiles
    show(windowed, image, f"percentile window {low:g} … {high:g} %, 8 bit")
    return figure, empty


def draw_views(samples: dict[str, np.ndarray], pixel_size: float = 0.0) -> Figure:
    """Draw crops of labelled and unlabelled slices: weak view, strong view, their difference, and the mask.

    Of each kind two, whose strong views differ from the weak ones where there are such.

    Parameters
    ----------
    samples : dict
        `labelled_weak`, `labelled_strong`, `labelled_mask`, `unlabelled_weak`, `unlabelled_strong`:
        (N, P, P) uint8; `patch_size`, their side in pixels of the slice, where that is not P. Of
        label maps, `labelled_labels` in the place of the masks, 1 for the first class and 0 for what
        is not painted, and the `colours` of the classes.
    pixel_size : float
        [µm]
    """
    rows = []
    for kind in ("labelled", "unlabelled"):
        for place in changed_first(samples, kind)[:2]:
            rows.append((kind, place))
    differences = [difference_of(samples, kind, place) for kind, place in rows]
    # One range for all, so that they can be compared.
    limit = max(1.0, *(np.percentile(np.abs(one), 99.5) for one in differences))

    figure, axes = new_figure(len(rows), 4, 2.3 * len(rows))
    for panels, (kind, place), difference in zip(axes, rows, differences, strict=True):
        weak = samples[f"{kind}_weak"][place]
        strong = samples[f"{kind}_strong"][place]
        show(panels[0], weak, f"{kind}: weak view")
        side = weak.shape[1]
        block = float(samples.get("patch_size", side)) / side
        add_scale_bar(panels[0], weak, pixel_size, block)
        show(panels[1], strong, "strong view")
        title = f"strong − weak (±{limit:.0f} grey levels)"
        show(panels[2], difference, title, cmap="PuOr", vmin=-limit, vmax=limit)
        if not difference.any():
            write_inside(panels[2], "not changed\n(by chance)")
        if kind == "labelled" and "labelled_labels" in samples:
            painted = weak
            for value, colour in enumerate(samples["colours"] / 255, 1):
                where = samples["labelled_labels"][place] == value
                painted = tint(painted, where, tuple(colour))
            show(panels[3], painted, "label map on weak view")
        elif kind == "labelled":
            mask = samples["labelled_mask"][place] >= 128
            show(panels[3], tint(weak, mask, PAINTED), "mask on weak view")
        else:
            panels[3].set_axis_off()
            write_inside(panels[3], "no mask:\nconsistency only")

    return figure


def changed_first(samples: dict[str, np.ndarray], kind: str) -> list[int]:
    """Return the numbers of the crops of a kind, those first whose strong view differs from the weak one."""
    differs = samples[f"{kind}_weak"] != samples[f"{kind}_strong"]
    is_changed = differs.any(axis=(1, 2))
    return [*np.flatnonzero(is_changed), *np.flatnonzero(~is_changed)]


def difference_of(samples: dict[str, np.ndarray], kind: str, place: int) -> np.ndarray:
    """Return strong minus weak view of a crop, in grey levels."""
    strong = samples[f"{kind}_strong"][place].astype(float)
    return strong - samples[f"{kind}_weak"][place]


def draw_consistency(
    weak: np.ndarray,
    pseudo_label: np.ndarray,
    strong: np.ndarray,
    probability: np.ndarray,
    name: str,
    pixel_size: float = 0.0,
) -> Figure:
    """Draw what the consistency loss compares: two views of a crop, and what teacher and student say of them.

    Parameters
    ----------
    weak, strong : (P, P) ndarrays in [0, 1]
        The views that teacher and student see.
    pseudo_label, probability : (P, P) ndarrays in [0, 1]
        Probability of a class, of teacher and student.
    name : str
        Of that class.
    pixel_size : float
        Side of a pixel of the views [µm].
    """
    figure, axes = new_figure(1, 5, 2.7)
    grey = {"vmin": 0, "vmax": 1}
    show(axes[0, 0], weak, "weak view", **grey)
    add_scale_bar(axes[0, 0], weak, pixel_size)
    of_teacher = show(axes[0, 1], pseudo_label, f"teacher: p of {name}", cmap="viridis", **grey)
    show(axes[0, 2], strong, "strong view", **grey)
    of_student = show(axes[0, 3], probability, f"student: p of {name}", cmap="viridis", **grey)
    difference = probability - pseudo_label
    limit = max(0.05, float(np.abs(difference).max()))
    title = "student − teacher"
    shown = show(axes[0, 4], difference, title, cmap="PuOr", vmin=-limit, vmax=limit)
    for panel, image in ((axes[0, 1], of_teacher), (axes[0, 3], of_student), (axes[0, 4], shown)):
        add_colour_bar(figure, panel, image)
    return figure


# --- what it found --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PredictedSlice:
    """A test slice and what a method makes of it.

    Attributes
    ----------
    stem : str
    image : (H, W) uint8 ndarray
    truth : (H, W) bool ndarray
    probability : (H, W) ndarray
        In [0, 1], or uint8, 255 for 1, which takes a quarter of the memory.
    threshold : float
        Probability from which a pixel is foreground.
    method : str
    counted : (H, W) bool ndarray, or None
        Where it is known what is there; None is everywhere. Elsewhere nothing is wrong.
    """

    stem: str
    image: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    threshold: float
    method: str
    counted: np.ndarray | None = None

    def where_known(self, prediction: np.ndarray) -> np.ndarray:
        """Return a predicted mask without what lies where nothing is known."""
        return prediction if self.counted is None else prediction & self.counted


def draw_predictions(one: PredictedSlice, pixel_size: float = 0.0) -> Figure:
    """Draw five panels of one slice: image, truth, probability, prediction, errors (FP red, FN cyan)."""
    probability = as_probability(one.probability)
    prediction = probability >= one.threshold
    figure, axes = new_figure(1, 5, 2.5)
    show(axes[0, 0], one.image, one.stem)
    add_scale_bar(axes[0, 0], one.image, pixel_size)
    show(axes[0, 1], one.truth, "truth")
    shown = show(axes[0, 2], probability, "probability", cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes[0, 2], location="bottom", shrink=0.8, pad=0.02, aspect=30)
    show(axes[0, 3], prediction, f"prediction (p ≥ {one.threshold:g})")
    prediction = one.where_known(prediction)
    errors = error_map(one.image, one.truth, prediction)
    title = f"{dice_text(prediction, one.truth)}\nFP red, FN cyan"
    show(axes[0, 4], errors, title, one.image.shape)
    figure.suptitle(one.method, fontsize=10)
    return figure


def draw_methods(
    image: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    stem: str,
    pixel_size: float = 0.0,
) -> Figure:
    """Draw one full slice: image, truth, and the errors of every method side by side (FP red, FN cyan).

    Parameters
    ----------
    image, truth : (H, W) uint8 and bool ndarrays
    predictions : dict of method to (H, W) bool ndarray
    stem : str
    pixel_size : float
        [µm]
    """
    count = 2 + len(predictions)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, 2.65 * rows)
    panels = list(axes.flat)
    show(panels[0], image, stem)
    add_scale_bar(panels[0], image, pixel_size)
    show(panels[1], truth, "truth")
    for panel, (method, prediction) in zip(panels[2:], predictions.items(), strict=False):
        title = f"{method}\n{dice_text(prediction, truth)}"
        show(panel, error_map(image, truth, prediction), title, image.shape)
    for panel in panels[count:]:
        panel.set_axis_off()
    figure.suptitle("false positives red, false negatives cyan", fontsize=9)
    return figure


def error_map(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return the darkened slice with false positives red and false negatives cyan: (h, w, 3) RGB, reduced if large."""
    block = block_of(image.shape)
    false_positive = reduced(prediction & ~truth, block) >= 0.5
    false_negative = reduced(truth & ~prediction, block) >= 0.5
    dark = (reduced(image, block) * 0.7).astype(np.uint8)
    rgb = tint(dark, false_positive, FALSE_POSITIVE, 0.85)
    return tint(rgb, false_negative, FALSE_NEGATIVE, 0.85)


def dice_text(prediction: np.ndarray, truth: np.ndarray) -> str:
    """Return the Dice for a panel's title."""
    return f"Dice {overlap_metrics(prediction, truth)['dice']:.3f}"


# --- where it is wrong ----------------------------------------------------------------------------


def draw_worst(slices: list[PredictedSlice], pixel_size: float = 0.0) -> Figure:
    """Draw a row per slice: image, errors, probability.

    The title of the errors says in words what went wrong.

    Parameters
    ----------
    slices : list of PredictedSlice
        Those with the lowest scores, the worst first.
    pixel_size : float
        [µm]
    """
    figure, axes = new_figure(len(slices), 3, 3.3 * len(slices))
    for panels, one in zip(axes, slices, strict=True):
        # One slice at a time has its probabilities as floats.
        probability = as_probability(one.probability)
        prediction = one.where_known(probability >= one.threshold)
        show(panels[0], one.image, one.stem)
        add_scale_bar(panels[0], one.image, pixel_size)
        title = (
            f"{dice_text(prediction, one.truth)}; FP red, FN cyan\n"
            f"{describe_errors(one.truth, prediction)}"
        )
        show(panels[1], error_map(one.image, one.truth, prediction), title, one.image.shape)
        shown = show(panels[2], probability, "probability", cmap="viridis", vmin=0, vmax=1)
        figure.colorbar(shown, ax=panels[2], shrink=0.8, pad=0.02)

    figure.suptitle(f"{slices[0].method}: its worst slices", fontsize=10)
    return figure


def lost_particles(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the particles of `mask` of which less than half lies in `other`, each with a number; 0 elsewhere.

    Of the true mask these are the missed particles, of a predicted one the invented ones. Particles
    are 8-connected.

    Parameters
    ----------
    mask, other : (H, W) bool ndarrays

    Returns
    -------
    (H, W) int ndarray
    """
    particles, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    areas = np.bincount(particles.ravel())
    inside = np.bincount(particles[other], minlength=len(areas))
    is_lost = inside < 0.5 * areas
    is_lost[0] = False  # the background
    return np.where(is_lost[particles], particles, 0)


def describe_errors(truth: np.ndarray, prediction: np.ndarray) -> str:
    """Return in words what went wrong in a slice: particles missed and invented, and errors at the rim of others.

    See `lost_particles`; the share of the rim counts the wrong pixels of all other particles.

    Parameters
    ----------
    truth, prediction : (H, W) bool ndarrays
    """
    missed = lost_particles(truth, prediction)
    invented = lost_particles(prediction, truth)
    _, particles = ndimage.label(truth, EIGHT_NEIGHBOURS)

    wrong = truth != prediction
    at_rims = wrong & (missed == 0) & (invented == 0)
    share = np.count_nonzero(at_rims) / max(1, np.count_nonzero(wrong))
    return (
        f"{count_labels(missed)} of {particles} particles missed, {count_labels(invented)} invented;\n"
        f"{100 * share:.0f} % of wrong pixels at rims"
    )


def count_labels(labels: np.ndarray) -> int:
    """Return how many different labels there are, without 0."""
    return np.count_nonzero(np.unique(labels))


def stored_figures(
    stored: Mapping[str, np.ndarray], pixel_size: float = 0.0
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of predicted test slices, name and figure, from the arrays of `predictions.npz`.

    One slice is held at a time, so slices may be large and many.
    """
    methods = [str(method) for method in stored["methods"]]
    threshold = float(stored["threshold"])
    stems = [str(stem) for stem in stored["stems"]]
    last = methods[-1]

    def read_slice(i: int) -> PredictedSlice:
        return PredictedSlice(
            stems[i],
            stored[f"image_{i}"],
            stored[f"truth_{i}"].astype(bool),
            stored[f"{last}_{i}"],
            threshold,
            last,
            stored.get(f"painted_{i}"),
        )

    scores = []
    for i in range(len(stems)):
        one = read_slice(i)
        masks = {
            method: one.where_known(to_mask(stored[f"{method}_{i}"], threshold))
            for method in methods
        }
        scores.append(overlap_metrics(masks[last], one.truth)["dice"])
        yield (
            f"methods_{one.stem}",
            draw_methods(one.image, one.truth, masks, one.stem, pixel_size),
        )
        yield f"prediction_{one.stem}", draw_predictions(one, pixel_size)

    worst = np.argsort(scores, kind="stable")[:WORST]
    if len(worst):
        yield "worst", draw_worst([read_slice(i) for i in worst], pixel_size)


def as_probability(probability: np.ndarray) -> np.ndarray:
    """Return probabilities in [0, 1], of those in uint8 as float32."""
    if probability.dtype == np.uint8:
        return GREY_LEVELS.astype(np.float32)[probability]
    return probability


def to_mask(grey: np.ndarray, threshold: float) -> np.ndarray:
    """Return where the probabilities that a uint8 array stands for reach a threshold, as bool."""
    return (GREY_LEVELS >= threshold)[grey]


# --- volumes and uncertainty ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SliceOfVolume:
    """A slice of a volume, with its mask and its uncertainty where there are these.

    Attributes
    ----------
    image : (H, W) uint8 ndarray
    masked : (h, w, 3) float ndarray in [0, 1], or None
        The slice tinted with its mask, as `viz.label_colours.tint_labels` has it.
    uncertainty : (H, W) float ndarray, or None
    """

    image: np.ndarray
    masked: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


def draw_volume(
    slices: dict[int, SliceOfVolume],
    most: float,
    measure: str,
    pixel_size: float = 0.0,
    legend: Legend | None = None,
) -> Figure:
    """Draw a column per slice of a volume: image, mask, uncertainty, as far as there are these.

    Parameters
    ----------
    slices : dict of number to SliceOfVolume
    most : float
        End of the range of the uncertainty, from 0.
    measure : str
        What the uncertainty is.
    pixel_size : float
        [µm]
    legend : Legend or None
        Of several classes.
    """
    first = next(iter(slices.values()))
    rows = ["image"]
    if first.masked is not None:
        rows.append("mask")
    if first.uncertainty is not None:
        rows.append("uncertainty")

    height, width = first.image.shape
    panel_height = WIDTH / len(slices) * height / width
    height_of_legend = 0.0 if legend is None else 0.3
    figure, axes = new_figure(
        len(rows), len(slices), 0.35 + height_of_legend + len(rows) * panel_height
    )
    for column, (i, one) in zip(axes.T, slices.items(), strict=True):
        for panel, row in zip(column, rows, strict=True):
            if row == "image":
                show(panel, one.image)
            elif row == "mask":
                show(panel, one.masked, size=one.image.shape)
            else:
                shown = show(panel, one.uncertainty, cmap="viridis", vmin=0, vmax=most)
        column[0].set_title(f"slice {i}", fontsize=9)

    if "uncertainty" in rows:
        bar = figure.colorbar(
            shown, ax=axes[-1], location="bottom", shrink=0.5, pad=0.02, aspect=40
        )
        bar.set_label(f"uncertainty: {measure}", fontsize=8)

    if legend is not None and "mask" in rows:
        legend.add_to(figure)
    add_scale_bar(axes[0, 0], first.image, pixel_size)
    return figure


def draw_uncertainty(
    image: np.ndarray,
    errors: tuple[np.ndarray, str],
    uncertainty: np.ndarray,
    rates: dict[str, pd.DataFrame],
    pixel_size: float = 0.0,
) -> Figure:
    """Draw errors of a slice, its uncertainty, and error rates of pixels from the least to the most uncertain tenth.

    Parameters
    ----------
    image : (H, W) uint8 ndarray
    errors : (h, w, 3) ndarray, and str
        A picture of what is wrong, see `viz.class_figures.picture_of_errors`, and its title.
    uncertainty : (H, W) float ndarray
    rates : dict of name to table
        As `evaluation.uncertainty.error_rates`, of each kind of uncertainty.
    pixel_size : float
        [µm]
    """
    figure, axes = new_figure(1, 3, 3.7, width_ratios=(1, 1, 1.1))
    wrong, doubts, plot = axes[0]
    picture, title = errors
    show(wrong, picture, title, image.shape)
    add_scale_bar(wrong, image, pixel_size)
    shown = show(doubts, uncertainty, "uncertainty", cmap="viridis", vmin=0)
    add_colour_bar(figure, doubts, shown)

    colours = (RED, BLUE, ORANGE, GREEN, PURPLE)
    for (name, table), colour in zip(rates.items(), colours, strict=False):
        percent = 100 * table["error_rate"]
        plot.plot(table.index, percent, "o-", ms=4, lw=1.4, color=colour, label=name)
    plot.set(xlabel="tenth of pixels, by uncertainty", ylabel="wrong pixels [%]", ylim=(0, None))
    plot.legend(fontsize=8, loc="upper left")
    return figure
