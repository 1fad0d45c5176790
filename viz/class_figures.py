"""Pictures of label maps: what is painted, what was found, which class is taken for which. Arrays in, `Figure` out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.class_metrics import Truth, mean_class_overlap
from slices.classes import Classes
from slices.reading import Slice
from viz.label_colours import Legend, colour_classes, legend_of, legend_of_classes
from viz.panels import (
    FALSE_POSITIVE,
    ORANGE,
    add_scale_bar,
    block_of,
    colour_of,
    new_figure,
    reduced,
    show,
    tint,
)
from viz.slice_figures import dice_text, draw_grey_values, draw_methods, error_map

WORST = 3  # slices with the lowest scores that are shown
MOST_IN_ROW = 4  # panels


# --- what is painted --------------------------------------------------------------------------------


def draw_class_slice(
    raw: np.ndarray,
    image: np.ndarray,
    truth: Truth,
    percentiles: tuple[float, float],
    legend: Legend,
    pixel_size: float = 0.0,
) -> Figure:
    """Draw a slice as stored, as the network sees it, and with its label map.

    Parameters
    ----------
    raw : (H, W) ndarray
        Grey values as stored.
    image : (H, W) uint8 ndarray
    truth : Truth
    percentiles : (low, high)
        Of the window.
    legend : Legend
    pixel_size : float
        [µm]
    """
    figure, painted = draw_grey_values(raw, image, percentiles, pixel_size)
    share = 1.0 if truth.counted is None else truth.counted.mean()
    title = f"label map: {100 * share:.1f} % painted"
    coloured = colour_classes(image, truth.classes, truth.counted, legend)
    show(painted, coloured, title, image.shape)
    legend.add_to(figure, truth.counted is not None)
    return figure


# --- what was found ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """A test slice, what is known of it, and what methods make of it.

    Attributes
    ----------
    stem : str
    image : (H, W) uint8 ndarray
    truth : Truth
    predictions : dict of method to (H, W) uint8 ndarray
        The class of each pixel.
    """

    stem: str
    image: np.ndarray
    truth: Truth
    predictions: dict[str, np.ndarray]

    def wrong(self, method: str) -> np.ndarray:
        """Return which painted pixels a method takes for another class: (H, W) bool."""
        wrong = self.predictions[method] != self.truth.classes
        return wrong if self.truth.counted is None else wrong & self.truth.counted

    def dice(self, method: str, class_count: int) -> float:
        """Return the mean Dice over classes of a method."""
        overlap = mean_class_overlap([self.predictions[method]], [self.truth], class_count)
        return overlap["dice"]


def draw_class_methods(one: LabelledSlice, legend: Legend, pixel_size: float = 0.0) -> Figure:
    """Draw one slice: image, what is painted, and what every method makes of it."""
    count = 2 + len(one.predictions)
    columns = min(MOST_IN_ROW, count)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, 2.65 * rows + 0.3)
    panels = list(axes.flat)
    show(panels[0], one.image, one.stem)
    add_scale_bar(panels[0], one.image, pixel_size)
    painted = colour_classes(one.image, one.truth.classes, one.truth.counted, legend)
    show(panels[1], painted, "truth", one.image.shape)
    for panel, (method, labels) in zip(panels[2:], one.predictions.items(), strict=False):
        title = f"{method}\nmean Dice {one.dice(method, len(legend.names)):.3f}"
        show(panel, colour_classes(one.image, labels, None, legend), title, one.image.shape)
    for panel in panels[count:]:
        panel.set_axis_off()
    legend.add_to(figure, one.truth.counted is not None)
    return figure


def draw_class_prediction(
    one: LabelledSlice, method: str, legend: Legend, pixel_size: float = 0.0
) -> Figure:
    """Draw one slice: image, what is painted, what a method makes of it, and where that is wrong."""
    figure, axes = new_figure(1, 4, 3.0)
    draw_row(axes[0], one, method, legend, pixel_size)
    figure.suptitle(method, fontsize=10)
    legend.add_to(figure, one.truth.counted is not None)
    return figure


def draw_row(
    panels: np.ndarray, one: LabelledSlice, method: str, legend: Legend, pixel_size: float
) -> None:
    """Draw image, what is painted, what a method makes of it, and where that is wrong, into four panels."""
    size = one.image.shape
    show(panels[0], one.image, one.stem)
    add_scale_bar(panels[0], one.image, pixel_size)
    painted = colour_classes(one.image, one.truth.classes, one.truth.counted, legend)
    show(panels[1], painted, "truth", size)
    found = colour_classes(one.image, one.predictions[method], None, legend)
    show(panels[2], found, "prediction", size)

    title = f"wrong (red); mean Dice {one.dice(method, len(legend.names)):.3f}"
    show(panels[3], wrong_pixels(one.image, one.wrong(method)), title, size)


def wrong_pixels(image: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the darkened slice with wrong pixels red: (h, w, 3) RGB, reduced if large."""
    block = block_of(image.shape)
    dark = (reduced(image, block) * 0.7).astype(np.uint8)
    return tint(dark, reduced(wrong, block) >= 0.5, FALSE_POSITIVE, 0.85)


def draw_class_worst(
    slices: list[LabelledSlice], method: str, legend: Legend, pixel_size: float = 0.0
) -> Figure:
    """Draw a row per slice, as `draw_class_prediction`: those with the lowest scores, the worst first."""
    figure, axes = new_figure(len(slices), 4, 2.6 * len(slices) + 0.3)
    for panels, one in zip(axes, slices, strict=True):
        draw_row(panels, one, method, legend, pixel_size)
    figure.suptitle(f"{method}: its worst slices", fontsize=10)
    legend.add_to(figure, any(one.truth.counted is not None for one in slices))
    return figure


def stored_class_figures(
    stored: Mapping[str, np.ndarray], pixel_size: float = 0.0
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of predicted test slices, name and figure, from the arrays of `predictions.npz`.

    One slice is held at a time, so slices may be large and many.
    """
    legend = legend_of(stored)
    methods = [str(method) for method in stored["methods"]]
    stems = [str(stem) for stem in stored["stems"]]
    last = methods[-1]

    def read_slice(i: int) -> LabelledSlice:
        counted = stored.get(f"painted_{i}")
        truth = Truth(stored[f"truth_{i}"], counted)
        predictions = {method: stored[f"{method}_{i}"] for method in methods}
        return LabelledSlice(stems[i], stored[f"image_{i}"], truth, predictions)

    scores = []
    for i, stem in enumerate(stems):
        one = read_slice(i)
        scores.append(one.dice(last, len(legend.names)))
        yield f"methods_{stem}", draw_class_methods(one, legend, pixel_size)
        yield f"prediction_{stem}", draw_class_prediction(one, last, legend, pixel_size)

    worst = np.argsort(scores, kind="stable")[:WORST]
    if len(worst):
        slices = [read_slice(i) for i in worst]
        yield "worst", draw_class_worst(slices, last, legend, pixel_size)


# --- masks of either kind ---------------------------------------------------------------------------


def labelled_slice(s: Slice, decisions: dict[str, np.ndarray]) -> LabelledSlice:
    """Return a labelled slice with what methods make of it."""
    truth = Truth(s.mask, None if s.counted.all() else s.counted)
    return LabelledSlice(s.stem, s.image, truth, decisions)


def draw_decisions(
    s: Slice,
    decisions: dict[str, np.ndarray],
    classes: Classes | None,
    pixel_size: float = 0.0,
) -> Figure:
    """Draw a labelled slice, what is painted, and what methods make of it: their errors, or the classes they find.

    Parameters
    ----------
    s : Slice
    decisions : dict of method to (H, W) ndarray
        Foreground, bool, or the class of each pixel, uint8.
    classes : Classes or None
        None of binary masks.
    pixel_size : float
        [µm]
    """
    if classes is not None and not classes.is_binary:
        one = labelled_slice(s, decisions)
        return draw_class_methods(one, legend_of_classes(classes), pixel_size)
    known = {method: mask & s.counted for method, mask in decisions.items()}
    return draw_methods(s.image, s.mask.astype(bool) & s.counted, known, s.stem, pixel_size)


def picture_of_errors(
    s: Slice, decision: np.ndarray, classes: Classes | None
) -> tuple[np.ndarray, str]:
    """Return a picture of what is wrong in a slice, (h, w, 3) RGB, and its title, with the Dice.

    Parameters
    ----------
    s : Slice
    decision : (H, W) ndarray
        Foreground, bool, or the class of each pixel, uint8.
    classes : Classes or None
        None of binary masks.
    """
    if classes is not None and not classes.is_binary:
        one = labelled_slice(s, {"": decision})
        title = f"wrong: red; mean Dice {one.dice('', len(classes)):.3f}"
        return wrong_pixels(s.image, one.wrong("")), title

    truth, known = s.mask.astype(bool) & s.counted, decision & s.counted
    return error_map(s.image, truth, known), f"FP red, FN cyan; {dice_text(known, truth)}"


# --- tables -----------------------------------------------------------------------------------------


def draw_confusion(table: pd.DataFrame) -> Figure:
    """Draw which class is taken for which, in percent of the painted pixels of each, a panel per method.

    Parameters
    ----------
    table : DataFrame
        Of `evaluation.class_metrics.confusion_table`.
    """
    methods = list(dict.fromkeys(table["method"]))
    names = list(dict.fromkeys(table["truth"]))
    columns = min(MOST_IN_ROW, len(methods))
    rows = -(-len(methods) // columns)
    figure, axes = new_figure(rows, columns, (2.2 + 0.12 * max(map(len, names))) * rows)
    panels = list(axes.flat)
    for place, (panel, method) in enumerate(zip(panels, methods, strict=False)):
        counts = table[table["method"] == method].pivot(
            index="truth", columns="predicted", values="pixels"
        )
        counts = counts.loc[names, names].to_numpy()
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for i in range(len(names)):
            for j in range(len(names)):
                colour = "white" if shares[i, j] > 60 else "0.2"
                panel.text(
                    j, i, f"{shares[i, j]:.1f}", ha="center", va="center", fontsize=7, color=colour
                )
        panel.set_title(method, fontsize=9, parse_math=False)
        is_first = place % columns == 0
        panel.set_yticks(range(len(names)), names if is_first else [""] * len(names), fontsize=8)
        panel.set_xticks(range(len(names)), names, fontsize=8, rotation=45, ha="right")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        if is_first:
            panel.set_ylabel("painted")
    for panel in panels[len(methods) :]:
        panel.set_axis_off()
    figure.supxlabel("taken for [% of the painted pixels of a class]", fontsize=9)
    return figure


def draw_class_scores(table: pd.DataFrame) -> Figure:
    """Draw the Dice of every class, slice and method, and their means as bars.

    Parameters
    ----------
    table : DataFrame
        Of `evaluation.class_metrics.class_table`.
    """
    methods = list(dict.fromkeys(table["method"]))
    names = list(dict.fromkeys(table["class"]))
    figure, axes = new_figure(1, 1, 3.6)
    panel = axes[0, 0]
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        of_method = table[table["method"] == method]
        for i, name in enumerate(names):
            dice = of_method.loc[of_method["class"] == name, "dice"].dropna()
            x = i + (place - (len(methods) - 1) / 2) * width
            label = method if i == 0 else None
            panel.scatter(
                np.full(len(dice), x), dice, s=14, color=colour_of(method), alpha=0.6, label=label
            )
            if len(dice):
                mean = dice.mean()
                panel.plot([x - 0.4 * width, x + 0.4 * width], [mean, mean], color="k", lw=1.8)

    panel.set_xticks(range(len(names)), names)
    panel.set_ylabel("Dice per test slice (bar: mean)")
    panel.grid(axis="y", color="0.92")
    figure.legend(loc="outside upper center", ncols=min(3, len(methods)), fontsize=8, frameon=False)
    return figure


def draw_fractions(table: pd.DataFrame) -> Figure:
    """Draw the predicted fraction of each class with its interval, beside the painted one.

    Parameters
    ----------
    table : DataFrame
        Of `evaluation.phase_fractions.fraction_table`.
    """
    figure, axes = new_figure(1, 1, 0.9 + 0.42 * len(table))
    panel = axes[0, 0]
    places = np.arange(len(table))[::-1]
    predicted = 100 * table["predicted"].to_numpy()
    low = predicted - 100 * table["low"].fillna(table["predicted"]).to_numpy()
    high = 100 * table["high"].fillna(table["predicted"]).to_numpy() - predicted
    panel.errorbar(
        predicted,
        places,
        xerr=[np.maximum(low, 0), np.maximum(high, 0)],
        fmt="o",
        color="k",
        capsize=3,
        label="predicted, of whole slices (95 % interval over models and slices)",
    )
    panel.plot(100 * table["painted"], places, "D", color=ORANGE, ms=6, mfc="none", label="painted")
    panel.set_yticks(places, table["class"])
    panel.set(
        xlabel="fraction of the test slices [%]", ylim=(-0.6, len(table) - 0.4), xlim=(0, None)
    )
    panel.grid(axis="x", color="0.92")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure
