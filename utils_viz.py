"""Figures: arrays or tables in, `Figure` out. Nothing here trains or reads a model.

    python utils_viz.py runs/NAME

draws every figure of a run again from what is stored in its folder. Colours: the palette of Okabe & Ito
(jfly.uni-koeln.de/color), which colour-blind readers can tell apart.
"""

import argparse
import sys
import zipfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils import InputError, read_json, run_command_line

ORANGE, SKY, GREEN, BLUE, RED, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
METHOD_COLOURS = {"Otsu": "#777777", "supervised": SKY, "supervised continued": BLUE,
                  "Mean Teacher student": ORANGE, "Mean Teacher teacher": RED}
FALSE_POSITIVE, FALSE_NEGATIVE = (0.9, 0.1, 0.1), (0.0, 0.85, 0.9)  # red and cyan: opposite for every reader
STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
         "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.dpi": 100, "image.cmap": "gray"}
WIDTH = 9.5  # inches: a notebook column


def new_figure(rows: int, columns: int, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Empty figure of notebook width with (rows, columns) axes, in this project's style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def show(axes, image: np.ndarray, title: str = "", **options) -> object:
    """One (H, W) or (H, W, 3) image without ticks; uint8 grey is shown from 0 to 255."""
    if image.ndim == 2 and image.dtype == np.uint8:
        options = {"vmin": 0, "vmax": 255, **options}
    shown = axes.imshow(image, interpolation="antialiased", **{"cmap": "gray", **options})
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)
    return shown


def write_inside(axes, text: str) -> None:
    """A remark in the middle of a panel."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.3")


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float], strength: float = 0.55) -> np.ndarray:
    """(H, W) uint8 or (H, W, 3) float image in [0, 1] as RGB with `mask` pixels tinted."""
    rgb = np.repeat(image[..., None] / 255.0, 3, axis=2) if image.ndim == 2 else image.copy()
    rgb[mask.astype(bool)] = (1 - strength) * rgb[mask.astype(bool)] + strength * np.array(colour)
    return rgb


def draw_slice(raw: np.ndarray, image: np.ndarray, mask: np.ndarray, percentiles: tuple[float, float]) -> Figure:
    """A slice as stored, as the network sees it, and with its mask."""
    figure, axes = new_figure(1, 3, 4.1)
    shown = show(axes[0, 0], raw, "as stored: full grey range")
    bar = figure.colorbar(shown, ax=axes[0, 0], location="bottom", shrink=0.8, pad=0.02, aspect=30)
    bar.formatter.set_powerlimits((-2, 3))
    show(axes[0, 1], image, f"percentile window {percentiles[0]:g} … {percentiles[1]:g} %, 8 bit")
    show(axes[0, 2], tint(image, mask, (0.9, 0.6, 0.0)), f"mask (orange): {100 * mask.mean():.1f} % foreground")
    return figure


def draw_views(samples: dict[str, np.ndarray]) -> Figure:
    """Crops of labelled and unlabelled slices: weak view, strong view, their difference, and the mask.

    Of each kind two: one whose strong view was blurred and one where chance left it as it is, where there are both.

    Parameters
    ----------
    samples : dict
        `labelled_weak`, `labelled_strong`, `labelled_mask` and the same for `unlabelled`: (N, P, P) uint8.
    """
    figure, axes = new_figure(4, 4, 9.2)
    for k, kind in enumerate(("labelled", "unlabelled")):
        blurred = (samples[f"{kind}_weak"] != samples[f"{kind}_strong"]).any(axis=(1, 2))
        order = np.concatenate([np.flatnonzero(blurred)[:1], np.flatnonzero(~blurred), np.flatnonzero(blurred)[1:]])
        for i, chosen in enumerate(order[:2]):
            weak, strong, mask = (samples[f"{kind}_{name}"][chosen] for name in ("weak", "strong", "mask"))
            row = axes[2 * k + i]
            difference = strong.astype(float) - weak
            limit = max(1.0, np.percentile(np.abs(difference), 99.5))
            show(row[0], weak, f"{kind}: weak view" if i == 0 else "")
            show(row[1], strong, "strong view" if i == 0 else "")
            show(row[2], difference, f"strong − weak (±{limit:.0f} grey levels)" if difference.any() else "",
                 cmap="PuOr", vmin=-limit, vmax=limit)
            if not difference.any():
                write_inside(row[2], "not blurred\n(by chance)")
            if kind == "labelled":
                show(row[3], tint(weak, mask, (0.9, 0.6, 0.0)), "mask on weak view" if i == 0 else "")
            else:
                row[3].set_axis_off()
                write_inside(row[3], "no mask:\nconsistency only")
    return figure


def draw_curves(logs: dict[str, pd.DataFrame]) -> Figure:
    """Loss, validation Dice, consistency weight and learning rate against the epoch, a line per phase.

    Parameters
    ----------
    logs : dict of phase name to table
        Columns `epoch` and whichever of `loss_sup`, `loss_consistency`, `lam`, `val_dice`, `teacher_val_dice`, `lr`
        a run has; a panel without data says so.
    """
    colours = {"supervised": SKY, "supervised continued": BLUE, "Mean Teacher": ORANGE}
    panels = (("loss_sup", "supervised loss"), ("val_dice", "validation Dice (centre patches)"),
              ("loss_consistency", "consistency loss"), ("lr", "learning rate"))
    figure, axes = new_figure(2, 2, 5.6)
    for panel, (column, label) in zip(axes.flat, panels, strict=True):
        for name, log in logs.items():
            if column in log and log[column].notna().any():
                rows = log.dropna(subset=[column])  # epochs without a validation have no score
                panel.plot(rows["epoch"], rows[column], label=name, color=colours.get(name, "k"), lw=1.4)
        if column == "val_dice":
            for log in (log for log in logs.values() if "teacher_val_dice" in log):
                rows = log.dropna(subset=["teacher_val_dice"])
                panel.plot(rows["epoch"], rows["teacher_val_dice"], color=RED, label="Mean Teacher, teacher", lw=1.4)
        if not panel.lines:
            write_inside(panel, "not recorded")
        elif column != "loss_consistency":
            panel.legend(fontsize=8, frameon=False)
        panel.set(xlabel="epoch of the phase", ylabel=label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1, 1].set_ylim(bottom=0)
    axes[1, 1].ticklabel_format(axis="y", scilimits=(0, 0))
    for log in (log for log in logs.values() if "lam" in log):
        weight = axes[1, 0].twinx()
        weight.plot(log["epoch"], log["lam"], "--", color=PURPLE, lw=1.4)
        weight.set(ylim=(0, 1.05 * max(1e-6, log["lam"].max())))
        weight.set_ylabel("weight λ (dashed)", color=PURPLE)
        weight.spines["right"].set_visible(True)
        weight.spines["top"].set_visible(False)
    return figure


def error_map(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB: the darkened slice with false positives red and false negatives cyan."""
    rgb = tint((image * 0.7).astype(np.uint8), prediction & ~truth, FALSE_POSITIVE, 0.85)
    return tint(rgb, truth & ~prediction, FALSE_NEGATIVE, 0.85)


def dice_of(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice for a panel's title; 1 when both are empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0


def draw_predictions(image: np.ndarray, truth: np.ndarray, probability: np.ndarray, threshold: float,
                     stem: str, method: str) -> Figure:
    """Five panels of one slice: image, truth, probability, prediction, errors (FP red, FN cyan).

    Parameters
    ----------
    image, truth : (H, W) uint8 and bool ndarrays
    probability : (H, W) ndarray in [0, 1]
    """
    prediction = probability >= threshold
    figure, axes = new_figure(1, 5, 2.5)
    show(axes[0, 0], image, stem)
    show(axes[0, 1], truth, "truth")
    shown = show(axes[0, 2], probability, "probability", cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes[0, 2], location="bottom", shrink=0.8, pad=0.02, aspect=30)
    show(axes[0, 3], prediction, f"prediction (p ≥ {threshold:g})")
    show(axes[0, 4], error_map(image, truth, prediction), f"Dice {dice_of(prediction, truth):.3f}\nFP red, FN cyan")
    figure.suptitle(method, fontsize=10)
    return figure


def draw_methods(image: np.ndarray, truth: np.ndarray, predictions: dict[str, np.ndarray], stem: str) -> Figure:
    """One full slice: image, truth, and the errors of every method side by side (FP red, FN cyan)."""
    columns = min(4, 2 + len(predictions))
    rows = -(-(2 + len(predictions)) // columns)
    figure, axes = new_figure(rows, columns, 2.65 * rows)
    show(axes.flat[0], image, stem)
    show(axes.flat[1], truth, "truth")
    for panel, (method, prediction) in zip(axes.flat[2:], predictions.items(), strict=False):
        show(panel, error_map(image, truth, prediction), f"{method}\nDice {dice_of(prediction, truth):.3f}")
    for panel in axes.flat[2 + len(predictions):]:
        panel.set_axis_off()
    figure.suptitle("false positives red, false negatives cyan", fontsize=9)
    return figure


def draw_paired(tables: dict[str, pd.DataFrame], metric: str = "dice") -> Figure:
    """Per-slice scores, one grey line per slice through its methods, and each method's mean as a black bar.

    Otsu would squeeze the others into a corner; its mean stands in the title instead.

    Parameters
    ----------
    tables : dict of title to table with columns `method`, `stem` and `metric`
    """
    figure, axes = new_figure(1, len(tables), 3.8, sharey=True)
    for panel, (title, table) in zip(axes[0], tables.items(), strict=True):
        scores = table.pivot(index="stem", columns="method", values=metric)[list(dict.fromkeys(table["method"]))]
        if "Otsu" in scores and scores.shape[1] > 1:
            title = f"{title} (Otsu: {scores.pop('Otsu').mean():.3f})"
        for values in scores.to_numpy():
            panel.plot(range(len(values)), values, color="0.75", lw=0.8, zorder=1)
        for x, method in enumerate(scores.columns):
            panel.scatter(np.full(len(scores), x), scores[method], s=26, zorder=2,
                          color=METHOD_COLOURS.get(method, BLUE), edgecolor="white", lw=0.5)
            mean = scores[method].mean()
            panel.plot([x - 0.28, x + 0.28], [mean, mean], color="k", lw=2, zorder=3)
            panel.annotate(f"{mean:.3f}", (x, 1.0), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        panel.set_xticks(range(len(scores.columns)), [m.replace(" ", "\n") for m in scores.columns], fontsize=8)
        panel.set_title(title, fontsize=9, pad=16)
        panel.grid(axis="y", color="0.92")
    axes[0, 0].set_ylabel(f"{'Dice' if metric == 'dice' else metric} per test slice (bar: mean)")
    return figure


def draw_sizes(diameters: dict[str, np.ndarray], unit: str) -> Figure:
    """Cumulative number distribution of equivalent diameters, one line per set of slices, median marked."""
    figure, axes = new_figure(1, 1, 3.4)
    panel = axes[0, 0]
    for (name, values), colour in zip(diameters.items(), (BLUE, RED, GREEN, ORANGE, PURPLE), strict=False):
        values = np.sort(np.asarray(values, float))
        if values.size == 0:
            panel.plot([], [], color=colour, label=f"{name}: no particle")
            continue
        panel.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=colour, lw=1.5,
                   label=f"{name}: {len(values)} particles, median {np.median(values):.3g} {unit}")
    panel.axhline(0.5, color="0.85", lw=0.8, zorder=0)
    panel.set(xlabel=f"equivalent diameter in the slice [{unit}]", ylabel="fraction of particles below", ylim=(0, 1.02))
    panel.legend(fontsize=8, loc="lower right", frameon=False)
    return figure


# --- a run's figures ------------------------------------------------------------------------------------------

def read_logs(run: Path) -> dict[str, pd.DataFrame]:
    """The learning curves that a run folder holds, by phase."""
    files = {"supervised": "sup_metrics.csv", "supervised continued": "continued_metrics.csv",
             "Mean Teacher": "ssl_metrics.csv"}
    return {name: read_table(run / file) for name, file in files.items() if (run / file).exists()}


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file of a run; an `InputError` names a damaged one."""
    try:
        return pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]}); remove it") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file by name; an `InputError` names a damaged one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); remove it") from None


def draw_run(run: Path) -> dict[str, Figure]:
    """Every figure that the content of a run folder allows, by name; saved as `figures/NAME.png` in it.

    Raises
    ------
    InputError
        When the folder holds nothing to draw.
    """
    run = Path(run)
    figures = {}
    if (run / "samples.npz").exists():
        samples = read_npz(run / "samples.npz")
        figures["slice"] = draw_slice(samples["raw"], samples["image"], samples["mask"], samples["percentiles"])
        figures["views"] = draw_views(samples)
    if logs := read_logs(run):
        figures["curves"] = draw_curves(logs)
    names = {"centre patches": "test_patches.csv", "full images": "test_full.csv"}
    tables = {title: read_table(run / file) for title, file in names.items() if (run / file).exists()}
    if tables:
        figures["paired"] = draw_paired(tables)
    if (run / "predictions.npz").exists():
        stored = read_npz(run / "predictions.npz")
        methods, threshold = [str(m) for m in stored["methods"]], float(stored["threshold"])
        for i, stem in enumerate(stored["stems"]):
            image, truth = stored[f"image_{i}"], stored[f"truth_{i}"].astype(bool)
            maps = {method: stored[f"{method}_{i}"] / 255 for method in methods}
            figures[f"methods_{stem}"] = draw_methods(image, truth, {m: p >= threshold for m, p in maps.items()}, stem)
            last = methods[-1]
            figures[f"prediction_{stem}"] = draw_predictions(image, truth, maps[last], threshold, str(stem), last)
    if not figures:
        raise InputError(f"{run}: holds nothing to draw; expected sup_metrics.csv, test_full.csv … of a run")
    (run / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(run / "figures" / f"{name}.png", dpi=STYLE["savefig.dpi"])
    return figures


def results_table(run: Path, kind: str = "full") -> pd.DataFrame:
    """Mean and 95 % interval of each metric by method, as text, from `summary.json`; `kind` is full or patches."""
    def cell(value: dict) -> str:
        interval = "" if value["low"] is None else f" ({value['low']:.3f}–{value['high']:.3f})"
        return f"{value['mean']:.3f}{interval}"

    methods = read_json(Path(run) / "summary.json")[kind]["methods"]
    return pd.DataFrame({m: {metric: cell(v) for metric, v in row.items()} for m, row in methods.items()}).T


def main() -> None:
    """Draw all figures of a run again."""
    parser = argparse.ArgumentParser(description="Draw every figure of a run again from its folder.")
    parser.add_argument("run", type=Path, help="runs/NAME")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run}: no such run folder")
    print(f"{arguments.run / 'figures'}: {len(draw_run(arguments.run))} figures", file=sys.stdout)


if __name__ == "__main__":
    run_command_line(main)
