"""Plots of tables, and all figures of a run. Nothing here trains or reads a model.

    python utils_viz.py runs/NAME           draws every figure of a run again from what is stored in its folder
"""

import itertools
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from runtime.command_line import Parser, run_command_line
from runtime.files import read_json
from runtime.messages import InputError
from viz.slice_figures import (
    BLUE,
    FOREST,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    colour_of,
    draw_slice,
    draw_views,
    new_figure,
    stored_figures,
    write_inside,
)

PER_SLICE = ("methods", "prediction")   # kinds of figures of which there is one for each test slice

# --- learning curves and scores -------------------------------------------------------------------------------

def draw_curves(logs: dict[str, pd.DataFrame]) -> Figure:
    """Loss, validation Dice, consistency weight and learning rate against the epoch, a line per phase.

    Parameters
    ----------
    logs : dict of phase name to table
        Columns `epoch` and whichever of `loss_sup`, `loss_consistency`, `lam`, `val_dice`, `teacher_val_dice`, `lr`
        a run has; a panel without data says so.
    """
    panels = (("loss_sup", "supervised loss"), ("val_dice", "validation Dice"),
              ("loss_consistency", "consistency loss"), ("lr", "learning rate"))
    figure, axes = new_figure(2, 2, 5.6)
    for panel, (column, label) in zip(axes.flat, panels, strict=True):
        for name, log in logs.items():
            if column in log and log[column].notna().any():
                rows = log.dropna(subset=[column])  # epochs without a validation have no score
                panel.plot(rows["epoch"], rows[column], label=name, lw=1.4,
                           color=ORANGE if "loss_consistency" in log else colour_of(name))
        if column == "val_dice":
            for name, log in ((name, log) for name, log in logs.items() if "teacher_val_dice" in log):
                rows = log.dropna(subset=["teacher_val_dice"])
                panel.plot(rows["epoch"], rows["teacher_val_dice"], color=RED, label=f"{name}, teacher", lw=1.4)
        if not panel.lines:
            write_inside(panel, "not recorded")
        elif column != "loss_consistency":
            panel.legend(fontsize=8, frameon=False)
        panel.set(xlabel="epoch of the phase", ylabel=label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1, 1].set_ylim(bottom=0)
    axes[1, 1].ticklabel_format(axis="y", scilimits=(0, 0))
    for log in (log for log in logs.values() if "lam" in log):
        with mpl.rc_context(STYLE):
            weight = axes[1, 0].twinx()
        weight.plot(log["epoch"], log["lam"], "--", color=PURPLE, lw=1.4)
        weight.set(ylim=(0, 1.05 * max(1e-6, log["lam"].max())))
        weight.set_ylabel("weight λ (dashed)", color=PURPLE)
        weight.spines["right"].set_visible(True)
        weight.spines["top"].set_visible(False)
    figure.draw_without_rendering()     # the first layout changes the ticks; their labels fit in the second
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
                          color=colour_of(method), edgecolor="white", lw=0.5)
            mean = scores[method].mean()
            panel.plot([x - 0.28, x + 0.28], [mean, mean], color="k", lw=2, zorder=3)
            panel.annotate(f"{mean:.3f}", (x, 1.0), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        panel.set_xticks(range(len(scores.columns)), [m.replace(" ", "\n") for m in scores.columns], fontsize=8)
        panel.set_title(title, fontsize=9, pad=16)
        panel.grid(axis="y", color="0.92")
    axes[0, 0].set_ylabel(f"{'Dice' if metric == 'dice' else metric} per test slice (bar: mean)")
    return figure


def draw_calibration(calibration: pd.DataFrame, thresholds: pd.DataFrame, threshold: float = 0.5) -> Figure:
    """Reliability diagram with expected calibration errors, and Dice against the threshold; a line per method.

    Parameters
    ----------
    calibration : DataFrame
        `method`, `predicted`, `observed`, `pixels` of each bin (`evaluate.reliability`).
    thresholds : DataFrame
        `method`, `threshold`, `dice`: mean over slices.
    threshold : float
        That of the run; marked.
    """
    figure, axes = new_figure(1, 2, 3.9)
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
    for method, table in calibration.groupby("method", sort=False):
        table = table[table["pixels"] > 0]
        error = np.average((table["observed"] - table["predicted"]).abs(), weights=table["pixels"])
        left.plot(table["predicted"], table["observed"], "o-", ms=4, lw=1.4, color=colour_of(method),
                  label=f"{method}: ECE {error:.3f}")
    left.set(xlabel="mean predicted probability of foreground", ylabel="observed share of foreground",
             xlim=(0, 1), ylim=(0, 1), title="calibration (over all pixels of the test slices)")
    for method, table in thresholds.groupby("method", sort=False):
        top = table.loc[table["dice"].idxmax()]
        right.plot(table["threshold"], table["dice"], color=colour_of(method), lw=1.4,
                   label=f"{method}: best {top['dice']:.3f} at {top['threshold']:.2f}")
    right.axvline(threshold, color="0.8", lw=1, zorder=0)
    right.set(xlabel="threshold on the probability", ylabel="full-image Dice, mean of test slices",
              title="sensitivity to the threshold")
    for panel in (left, right):
        panel.legend(fontsize=8)
    return figure


# --- studies --------------------------------------------------------------------------------------------------

def by_budget(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of a study by rising number of labelled slices, 0 (all) last; else in their order."""
    return summary.sort_values("labels", key=lambda n: n.replace(0, np.inf), kind="stable")


def error_bars(mean: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """Lengths of error bars; those of equal values are 0, whatever rounding makes of them."""
    return [(mean - low).clip(lower=0), (high - mean).clip(lower=0)]


def draw_budgets(summary: pd.DataFrame) -> Figure:
    """Mean score against the number of labelled slices with 95 % intervals, and the paired gain over the control.

    Scores of Otsu and random forest are given above the plot: they lie too far below to share its axis.

    Parameters
    ----------
    summary : DataFrame
        Of `benchmarks/study.py`: `labels`, `variant`, `role`, `dice`, `low`, `high`, `gain`, `gain_low`, `gain_high`.
    """
    figure, axes = new_figure(1, 2, 4.6)
    summary = by_budget(summary)
    budgets = list(summary["labels"].unique())
    rivals = ("Otsu", FOREST)
    lines = list(summary[~summary["role"].isin((*rivals, "supervised"))].groupby(["variant", "role"], sort=False))
    colours = itertools.cycle((BLUE, ORANGE, RED, GREEN, PURPLE, SKY, "k", "#777777", "#8a5a00"))
    for i, ((variant, role), table) in enumerate(lines):
        x = np.array([budgets.index(n) for n in table["labels"]]) + 0.06 * (i - (len(lines) - 1) / 2)
        style = {"color": next(colours), "ms": 5, "lw": 1.4, "capsize": 2}
        for panel, mean, low, high in ((axes[0, 0], "dice", "low", "high"),
                                       (axes[0, 1], "gain", "gain_low", "gain_high")):
            if table[mean].notna().all():
                panel.errorbar(x, table[mean], error_bars(table[mean], table[low], table[high]), fmt="o-",
                               label=f"{variant}: {role}", **style)
    axes[0, 1].axhline(0, color="0.7", lw=1, zorder=0)
    known = {name: summary.loc[summary["role"] == name, "dice"] for name in rivals}
    axes[0, 0].set_title(", ".join(
        f"{name} " + " to ".join(dict.fromkeys((f"{dice.min():.2f}", f"{dice.max():.2f}")))
        for name, dice in known.items() if len(dice)), fontsize=9)
    for panel, label in ((axes[0, 0], "full-image Dice on test slices"),
                         (axes[0, 1], "gain over the step-matched control")):
        panel.set_xticks(range(len(budgets)), [str(n) if n else "all" for n in budgets])
        panel.set(xlabel="labelled training slices\n(the checkpoint is chosen on further ones)", ylabel=label,
                  xlim=(-0.5, len(budgets) - 0.5))
        panel.grid(axis="y", color="0.92")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7.5,
                  frameon=False)
    return figure


def draw_ablation(summary: pd.DataFrame, column: str = "gain", reference: str = "the control",
                  role: str = "teacher") -> Figure:
    """Bars of a paired difference for each variant of one study, with 95 % intervals and mean scores.

    Parameters
    ----------
    summary : DataFrame
        As in `draw_budgets`; each budget is a panel.
    column, reference : str
        `gain` over the control, or `change` against the first variant; what the axis calls it.
    role : str
        Row of each variant that is shown; a variant without it (supervised training alone) is left out.
    """
    rows = by_budget(summary[(summary["role"] == role) & summary[column].notna()])
    budgets, variants = rows["labels"].unique(), list(rows["variant"].unique())
    figure, axes = new_figure(1, len(budgets), 1.2 + 0.34 * len(variants), sharex=True, sharey=True)
    for panel, budget in zip(axes[0], budgets, strict=True):
        table = rows[rows["labels"] == budget].set_index("variant").reindex(variants)
        mean, low, high = (table[column + suffix] for suffix in ("", "_low", "_high"))
        panel.barh(range(len(variants)), mean, color=SKY, xerr=error_bars(mean, low, high), capsize=3)
        for place, (dice, x) in enumerate(zip(table["dice"], high, strict=True)):
            text, colour = ("not run", "0.5") if np.isnan(dice) else (f"{dice:.3f}", "black")
            panel.annotate(text, (np.fmax(0.0, x), place), (4, 0), textcoords="offset points", va="center", fontsize=8,
                           color=colour)
        panel.axvline(0, color="0.3", lw=1)
        panel.xaxis.set_major_locator(MaxNLocator(5 if len(budgets) < 3 else 3))
        panel.set_title(f"{budget or 'all'} labelled slice{'' if budget == 1 else 's'}", fontsize=10)
        panel.set_xlabel(f"full-image Dice\n− that of {reference}")
    axes[0, 0].margins(x=0.15 if len(budgets) < 3 else 0.3)
    axes[0, 0].set_yticks(range(len(variants)), variants)
    axes[0, 0].invert_yaxis()
    figure.suptitle(f"{role}, mean Dice at the bars", fontsize=9)
    return figure


# --- a run's figures ------------------------------------------------------------------------------------------

def read_logs(run: Path) -> dict[str, pd.DataFrame]:
    """The learning curves that a run folder holds, by phase."""
    phases = read_json(run / "phases.json") if (run / "phases.json").exists() else {}
    semi = phases.get("mean_teacher", {}).get("label", "Mean Teacher")
    files = {"supervised": "sup_metrics.csv", "supervised continued": "continued_metrics.csv", semi: "ssl_metrics.csv"}
    return {name: read_table(run / file, "epoch") for name, file in files.items() if (run / file).exists()}


def read_table(path: Path, *columns: str, **how: object) -> pd.DataFrame:
    """A CSV file with at least these columns, read as `pandas.read_csv` does; an `InputError` names a damaged one."""
    try:
        table = pd.read_csv(path, **how)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]}); remove it") from None
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"{path}: has no column {', '.join(missing)}; remove it")
    return table


class StoredArrays(Mapping):
    """The arrays of an `.npz` file by name, each read when it is asked for; an `InputError` names a damaged file."""

    def __init__(self, path: Path):
        self.path = path
        with self._blaming(), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            self.names = list(arrays.files)

    def __getitem__(self, name: str) -> np.ndarray:
        with self._blaming(), self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if name not in arrays.files:
                raise KeyError(name)
            return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: cannot be read ({str(error).splitlines()[0]}); remove it") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an `.npz` file by name; an `InputError` names a damaged one."""
    return dict(StoredArrays(path))


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """`InputError` that names `path` for what fails because other things stand there than a run writes."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: holds other things than a run writes ({error}); evaluate the run again") from None


def draw_run(run: Path) -> dict[str, Figure]:
    """Draw every figure that the content of a run folder allows, and save each as `figures/NAME.png` in it.

    Returns
    -------
    dict of name to Figure
        Those of the run, and those of its first test slice. Figures of further slices are only saved: they are many.

    Raises
    ------
    InputError
        When the folder holds nothing to draw.
    """
    run = Path(run)
    returned: dict[str, Figure] = {}
    for name, figure in run_figures(run):
        (run / "figures").mkdir(exist_ok=True)
        is_noisy = name in ("views", "worst")                   # many grey pixels: a PNG of them is large
        figure.savefig(run / "figures" / f"{name}.png", dpi=80 if is_noisy else STYLE["savefig.dpi"])
        kind = name.partition("_")[0]
        if kind not in PER_SLICE or not any(other.startswith(f"{kind}_") for other in returned):
            returned[name] = figure
        else:
            figure.clear()                                      # its images are large, and wait for no collector
    if not returned:
        raise InputError(f"{run}: holds nothing to draw; expected sup_metrics.csv, test_full.csv … of a run")
    return returned


def run_figures(run: Path) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of whatever the content of a run folder allows to draw."""
    with blaming(path := run / "config.json"):
        pixel_size = float(read_json(path).get("pixel_size", 0)) if path.exists() else 0.0

    if (path := run / "samples.npz").exists():
        with blaming(path):
            samples = read_npz(path)
            yield "slice", draw_slice(samples["raw"], samples["image"], samples["mask"], samples["percentiles"],
                                      pixel_size)
            yield "views", draw_views(samples, pixel_size)

    with blaming(run):
        if logs := read_logs(run):
            yield "curves", draw_curves(logs)
        names = {"centre patches": "test_patches.csv", "full images": "test_full.csv"}
        tables = {title: read_table(run / file, "method", "stem", "dice")
                  for title, file in names.items() if (run / file).exists()}
        if any(map(len, tables.values())):                      # without test slices there is nothing to show
            yield "paired", draw_paired(tables)
        curves = {"calibration.csv": ("method", "predicted", "observed", "pixels"),
                  "thresholds.csv": ("method", "threshold", "dice")}
        if all((run / name).exists() for name in curves):
            summary = read_json(run / "summary.json") if (run / "summary.json").exists() else {}
            calibration, thresholds = (read_table(run / name, *columns) for name, columns in curves.items())
            yield "calibration", draw_calibration(calibration, thresholds, summary.get("threshold", 0.5))

    if (path := run / "predictions.npz").exists():
        with blaming(path):
            yield from stored_figures(StoredArrays(path), pixel_size)


def results_table(run: Path, kind: str = "full") -> pd.DataFrame:
    """Mean and 95 % interval of each metric by method, as text, from `summary.json`; `kind` is full or patches."""
    def cell(value: dict) -> str:
        interval = "" if value["low"] is None else f" ({value['low']:.3f}–{value['high']:.3f})"
        return f"{value['mean']:.3f}{interval}"

    path = Path(run) / "summary.json"
    try:
        methods = read_json(path)[kind]["methods"]
    except KeyError as error:
        raise InputError(f"{path}: has no {error}; evaluate the run again") from None
    return pd.DataFrame({m: {metric: cell(v) for metric, v in row.items()} for m, row in methods.items()}).T


def main() -> None:
    """Draw all figures of a run again."""
    parser = Parser(description="Draw every figure of a run again from its folder.")
    parser.add_argument("run", type=Path, help="runs/NAME")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run}: no such run folder")
    draw_run(arguments.run)
    drawn = list((arguments.run / "figures").glob("*.png"))
    print(f"{arguments.run / 'figures'}: {len(drawn)} figures", file=sys.stdout)


if __name__ == "__main__":
    run_command_line(main)
