"""All figures of a run, and plots of its tables. Nothing here trains or reads a model.

python utils_viz.py runs/NAME           draws every figure of a run again from what is stored in its
folder
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from config import OTSU
from evaluation.class_metrics import Truth
from runtime.command_line import Parser, run_command_line
from runtime.messages import InputError
from viz.class_figures import (
    draw_class_scores,
    draw_class_slice,
    draw_confusion,
    draw_fractions,
    stored_class_figures,
)
from viz.label_colours import legend_of
from viz.panels import ORANGE, PURPLE, RED, STYLE, colour_of, new_figure, write_inside
from viz.run_files import (
    StoredArrays,
    blaming,
    read_logs,
    read_npz,
    read_optional,
    read_table,
)
from viz.slice_figures import PER_SLICE, draw_slice, draw_views, stored_figures

NOISY = ("views", "worst")  # figures of many grey pixels: a PNG of them is large
NOISY_DPI = 80
PANELS = {
    "loss_sup": "supervised loss",
    "val_dice": "validation Dice",
    "loss_consistency": "consistency loss",
    "lr": "learning rate",
}


# --- learning curves ------------------------------------------------------------------------------


def draw_curves(logs: dict[str, pd.DataFrame]) -> Figure:
    """Draw losses, validation Dice, consistency weight and learning rate against the epoch, a line per phase.

    A learning rate that never changes is said in the title instead.

    Parameters
    ----------
    logs : dict of phase name to table
        Columns `epoch` and whichever of `loss_sup`, `loss_consistency`, `lam`, `val_dice`,
        `teacher_val_dice`, `lr` a run has; a panel without data says so.
    """
    rates = pd.concat([log["lr"] for log in logs.values() if "lr" in log] or [pd.Series()])
    has_constant_rate = rates.nunique() == 1
    columns = [name for name in PANELS if name != "lr" or not has_constant_rate]

    if has_constant_rate:
        figure, axes = new_figure(1, 3, 3.0)
        figure.suptitle(f"learning rate {rates.iloc[0]:g} throughout", fontsize=9)
    else:
        figure, axes = new_figure(2, 2, 5.6)

    panels = dict(zip(columns, axes.flat, strict=True))
    for column, panel in panels.items():
        draw_curve(panel, logs, column)
    if "lr" in panels:
        panels["lr"].set_ylim(bottom=0)
        panels["lr"].ticklabel_format(axis="y", scilimits=(0, 0))
    for log in logs.values():
        if "lam" in log:
            draw_weight(panels["loss_consistency"], log)

    # The first layout changes the ticks; their labels fit in the second.
    figure.draw_without_rendering()
    return figure


def draw_curve(panel, logs: dict[str, pd.DataFrame], column: str) -> None:
    """Draw one column of all learning curves."""
    for name, log in logs.items():
        colour = ORANGE if "loss_consistency" in log else colour_of(name)
        add_line(panel, log, column, name, colour)
        if column == "val_dice":
            add_line(panel, log, "teacher_val_dice", f"{name}, teacher", RED)

    if not panel.lines:
        write_inside(panel, "not recorded")
    elif column != "loss_consistency":
        panel.legend(fontsize=8, frameon=False)

    panel.set(xlabel="epoch of the phase", ylabel=PANELS[column])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def add_line(panel, log: pd.DataFrame, column: str, label: str, colour: str) -> None:
    """Add the line of one column, of epochs that have a value: those without validation have no score."""
    if column not in log:
        return
    rows = log.dropna(subset=[column])
    if len(rows):
        panel.plot(rows["epoch"], rows[column], label=label, lw=1.4, color=colour)


def draw_weight(panel, log: pd.DataFrame) -> None:
    """Draw the weight of the consistency loss, on an axis of its own."""
    with mpl.rc_context(STYLE):
        weight = panel.twinx()
    weight.plot(log["epoch"], log["lam"], "--", color=PURPLE, lw=1.4)
    weight.set(ylim=(0, 1.05 * max(1e-6, log["lam"].max())))
    weight.set_ylabel("weight λ (dashed)", color=PURPLE)
    weight.spines["right"].set_visible(True)
    weight.spines["top"].set_visible(False)


# --- scores ---------------------------------------------------------------------------------------


def draw_paired(tables: dict[str, pd.DataFrame], metric: str = "dice") -> Figure:
    """Draw per-slice scores, one grey line per slice through its methods, and each method's mean as a black bar.

    Otsu would squeeze the others into a corner; its mean stands in the title instead.

    Parameters
    ----------
    tables : dict of title to table with columns `method`, `stem` and `metric`
    metric : str
    """
    figure, axes = new_figure(1, len(tables), 3.8, sharey=True)
    for panel, (title, table) in zip(axes[0], tables.items(), strict=True):
        methods = list(dict.fromkeys(table["method"]))
        scores = table.pivot(index="stem", columns="method", values=metric)[methods]
        if OTSU in scores and scores.shape[1] > 1:
            title = f"{title} ({OTSU}: {scores.pop(OTSU).mean():.3f})"
        draw_scores(panel, scores)
        panel.set_title(title, fontsize=9, pad=16)

    name = "Dice" if metric == "dice" else metric
    axes[0, 0].set_ylabel(f"{name} per test slice (bar: mean)")
    return figure


def draw_scores(panel, scores: pd.DataFrame) -> None:
    """Draw the scores of slices (rows) by method (columns)."""
    for of_slice in scores.to_numpy():
        panel.plot(range(len(of_slice)), of_slice, color="0.75", lw=0.8, zorder=1)
    for x, method in enumerate(scores.columns):
        panel.scatter(
            np.full(len(scores), x),
            scores[method],
            s=26,
            zorder=2,
            color=colour_of(method),
            edgecolor="white",
            lw=0.5,
        )
        mean = scores[method].mean()
        panel.plot([x - 0.28, x + 0.28], [mean, mean], color="k", lw=2, zorder=3)
        above = ("data", "axes fraction")
        panel.annotate(f"{mean:.3f}", (x, 1.0), xycoords=above, ha="center", fontsize=8)

    labels = [method.replace(" ", "\n") for method in scores.columns]
    panel.set_xticks(range(len(labels)), labels, fontsize=8)
    panel.grid(axis="y", color="0.92")


def draw_calibration(
    calibration: pd.DataFrame, thresholds: pd.DataFrame | None, threshold: float = 0.5
) -> Figure:
    """Draw a reliability diagram with expected calibration errors, and Dice against the threshold.

    Of several classes it is that of the most probable one, and there is no threshold.

    Parameters
    ----------
    calibration : DataFrame
        `method`, `predicted`, `observed`, `pixels` of each bin
        (`evaluation.uncertainty.reliability`).
    thresholds : DataFrame or None
        `method`, `threshold`, `dice`: mean over slices; None of several classes.
    threshold : float
        That of the run; marked.
    """
    figure, axes = new_figure(1, 1 if thresholds is None else 2, 3.9)
    left = axes[0, 0]
    left.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
    for method, table in calibration.groupby("method", sort=False):
        filled = table[table["pixels"] > 0]
        deviation = (filled["observed"] - filled["predicted"]).abs()
        error = np.average(deviation, weights=filled["pixels"])
        left.plot(
            filled["predicted"],
            filled["observed"],
            "o-",
            ms=4,
            lw=1.4,
            color=colour_of(method),
            label=f"{method}: ECE {error:.3f}",
        )

    predicted, observed = "foreground", "foreground"
    if thresholds is None:
        predicted, observed = "the most probable class", "pixels of that class"
    left.set(
        xlabel=f"mean predicted probability of {predicted}",
        ylabel=f"observed share of {observed}",
        xlim=(0, 1),
        ylim=(0, 1),
        title="calibration (over all pixels of the test slices)",
    )

    left.legend(fontsize=8)
    if thresholds is None:
        left.set_aspect("equal")
        return figure

    right = axes[0, 1]
    for method, table in thresholds.groupby("method", sort=False):
        best = table.loc[table["dice"].idxmax()]
        right.plot(
            table["threshold"],
            table["dice"],
            color=colour_of(method),
            lw=1.4,
            label=f"{method}: best {best['dice']:.3f} at {best['threshold']:.2f}",
        )

    right.axvline(threshold, color="0.8", lw=1, zorder=0)
    right.set(
        xlabel="threshold on the probability",
        ylabel="full-image Dice, mean of test slices",
        title="sensitivity to the threshold",
    )
    right.legend(fontsize=8)
    return figure


# --- a run's figures ------------------------------------------------------------------------------


def draw_run(run: Path) -> dict[str, Figure]:
    """Draw every figure that the content of a run folder allows, and save each as `figures/NAME.png` in it.

    Returns
    -------
    dict of name to Figure
        Those of the run, and those of its first test slice. Figures of further slices are only
        saved: they are many.

    Raises
    ------
    InputError
        When the folder holds nothing to draw.
    """
    run = Path(run)
    folder = run / "figures"
    returned: dict[str, Figure] = {}
    kinds_returned = set()
    for name, figure in run_figures(run):
        folder.mkdir(exist_ok=True)
        dpi = NOISY_DPI if name in NOISY else STYLE["savefig.dpi"]
        figure.savefig(folder / f"{name}.png", dpi=dpi)

        kind = name.partition("_")[0]
        if kind in PER_SLICE and kind in kinds_returned:
            # Its images are large, and wait for no collector.
            figure.clear()
        else:
            kinds_returned.add(kind)
            returned[name] = figure

    if not returned:
        raise InputError(
            f"{run}: holds nothing to draw; expected sup_metrics.csv, test_full.csv … of a run"
        )

    return returned


def run_figures(run: Path) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of whatever the content of a run folder allows to draw."""
    with blaming(run / "config.json"):
        pixel_size = float(read_optional(run / "config.json").get("pixel_size", 0))

    path = run / "samples.npz"
    if path.exists():
        with blaming(path):
            samples = read_npz(path)
            yield "slice", draw_sample(samples, pixel_size)
            yield "views", draw_views(samples, pixel_size)

    with blaming(run):
        yield from table_figures(run)

    path = run / "predictions.npz"
    if path.exists():
        with blaming(path):
            stored = StoredArrays(path)
            has_several_classes = "classes" in stored and len(stored["classes"]) > 2
            draw = stored_class_figures if has_several_classes else stored_figures
            yield from draw(stored, pixel_size)


def draw_sample(samples: dict[str, np.ndarray], pixel_size: float) -> Figure:
    """Draw the first training slice, with its mask or its label map."""
    low, high = samples["percentiles"]
    raw, image, mask = samples["raw"], samples["image"], samples["mask"]
    if "classes" not in samples:
        return draw_slice(raw, image, mask, (low, high), pixel_size)
    truth = Truth(mask, samples.get("painted"))
    return draw_class_slice(raw, image, truth, (low, high), legend_of(samples), pixel_size)


def table_figures(run: Path) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of the tables in a run folder."""
    logs = read_logs(run)
    if logs:
        yield "curves", draw_curves(logs)

    scores = {}
    for title, file in (("centre patches", "test_patches.csv"), ("full images", "test_full.csv")):
        if (run / file).exists():
            scores[title] = read_table(run / file, "method", "stem", "dice")
    # Without test slices there is nothing to show.
    if any(len(table) for table in scores.values()):
        yield "paired", draw_paired(scores)

    yield from class_figures(run)

    calibration, thresholds = run / "calibration.csv", run / "thresholds.csv"
    if not calibration.exists():
        return
    reliability = read_table(calibration, "method", "predicted", "observed", "pixels")
    if thresholds.exists():
        threshold = read_optional(run / "summary.json").get("threshold", 0.5)
        of_thresholds = read_table(thresholds, "method", "threshold", "dice")
        yield "calibration", draw_calibration(reliability, of_thresholds, threshold)
    elif (run / "test_classes.csv").exists():
        # The most probable of several classes is taken, whatever its probability is.
        yield "calibration", draw_calibration(reliability, None)


def class_figures(run: Path) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of the tables that a run on label maps of several classes has."""
    # Of each the file, what draws it, its columns of names, and those of numbers.
    drawings = {
        "classes": ("test_classes.csv", draw_class_scores, ("method", "stem", "class"), ("dice",)),
        "confusion": (
            "confusion.csv",
            draw_confusion,
            ("method", "truth", "predicted"),
            ("pixels",),
        ),
        "fractions": (
            "phase_fractions.csv",
            draw_fractions,
            ("class",),
            ("predicted", "low", "high", "painted"),
        ),
    }
    for name, (file, draw, names, numbers) in drawings.items():
        if (run / file).exists():
            # A class may be called NA, or 1.2.
            kinds = dict.fromkeys(names, str)
            table = read_table(
                run / file, *names, *numbers, dtype=kinds, keep_default_na=False, na_values=[""]
            )
            if len(table):
                yield name, draw(table)


def main() -> None:
    """Draw all figures of a run again."""
    parser = Parser(description="Draw every figure of a run again from its folder.")
    parser.add_argument("run", type=Path, help="runs/NAME")
    run = parser.parse_args().run
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    draw_run(run)
    drawn = list((run / "figures").glob("*.png"))
    print(f"{run / 'figures'}: {len(drawn)} figures")


if __name__ == "__main__":
    run_command_line(main)
