"""Figures of studies: scores by number of labels, what each part of a recipe changes, and scores by material."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from config import FOREST, OTSU
from viz.panels import BLUE, BROWN, GREEN, GREY, ORANGE, PURPLE, RED, SKY, colour_of, new_figure

COLOURS = (BLUE, ORANGE, RED, GREEN, PURPLE, SKY, "k", GREY, BROWN)
BASELINES = (OTSU, FOREST)  # which lie too far below to share an axis
SHIFT = 0.06  # of neighbouring lines, so that their error bars can be told apart


def by_budget(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a study by rising number of labelled slices, 0 (all) last, else in their order."""

    def all_last(labels: pd.Series) -> pd.Series:
        return labels.replace(0, np.inf)

    return summary.sort_values("labels", key=all_last, kind="stable")


def error_bars(mean: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """Return the lengths of error bars.

    Those of equal values are 0, whatever rounding makes of them.
    """
    return [(mean - low).clip(lower=0), (high - mean).clip(lower=0)]


# --- scores by number of labels -------------------------------------------------------------------


def draw_budgets(summary: pd.DataFrame) -> Figure:
    """Draw the mean score against the number of labelled slices, and the paired gain over the control.

    With 95 % intervals. Scores of Otsu and random forest are given above the plot: they lie too far
    below to share its axis.

    Parameters
    ----------
    summary : DataFrame
        Of `benchmarks/study.py`: `labels`, `variant`, `role`, `dice`, `low`, `high`, `gain`,
        `gain_low`, `gain_high`.
    """
    figure, axes = new_figure(1, 2, 4.6)
    scores, gains = axes[0]
    summary = by_budget(summary)
    budgets = list(summary["labels"].unique())
    is_line = ~summary["role"].isin((*BASELINES, "supervised"))
    lines = list(summary[is_line].groupby(["variant", "role"], sort=False))
    for i, ((variant, role), table) in enumerate(lines):
        x = np.array([budgets.index(labels) for labels in table["labels"]], float)
        x += SHIFT * (i - (len(lines) - 1) / 2)
        style = {"color": COLOURS[i % len(COLOURS)], "label": f"{variant}: {role}"}
        draw_line(scores, x, table, ("dice", "low", "high"), style)
        draw_line(gains, x, table, ("gain", "gain_low", "gain_high"), style)

    gains.axhline(0, color="0.7", lw=1, zorder=0)
    scores.set_title(describe_baselines(summary), fontsize=9)
    scores.set_ylabel("full-image Dice on test slices")
    gains.set_ylabel("gain over the step-matched control")
    names = [str(labels) if labels else "all" for labels in budgets]
    for panel in (scores, gains):
        panel.set_xticks(range(len(budgets)), names)
        panel.set_xlim(-0.5, len(budgets) - 0.5)
        panel.set_xlabel("labelled training slices\n(the checkpoint is chosen on further ones)")
        panel.grid(axis="y", color="0.92")

    figure.legend(
        *scores.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=7.5,
        frameon=False,
    )
    return figure


def draw_line(
    panel, x: np.ndarray, table: pd.DataFrame, columns: tuple[str, str, str], style: dict
) -> None:
    """Draw means with their intervals, if all are known.

    Parameters
    ----------
    panel : matplotlib Axes
    x : (N,) ndarray
    table : DataFrame
    columns : names of mean, low and high
    style : dict
    """
    mean, low, high = (table[column] for column in columns)
    if mean.isna().any():
        return
    bars = error_bars(mean, low, high)
    panel.errorbar(x, mean, bars, fmt="o-", ms=5, lw=1.4, capsize=2, **style)


def describe_baselines(summary: pd.DataFrame) -> str:
    """Return the range of the scores of Otsu and random forest in words, as far as they are known."""
    texts = []
    for name in BASELINES:
        dice = summary.loc[summary["role"] == name, "dice"]
        if len(dice):
            ends = dict.fromkeys((f"{dice.min():.2f}", f"{dice.max():.2f}"))
            texts.append(f"{name} {' to '.join(ends)}")

    return ", ".join(texts)


# --- what each part changes -----------------------------------------------------------------------


def draw_ablation(
    summary: pd.DataFrame,
    column: str = "gain",
    reference: str = "the control",
    role: str = "teacher",
) -> Figure:
    """Draw bars of a paired difference for each variant of one study, with 95 % intervals and mean scores.

    Parameters
    ----------
    summary : DataFrame
        As in `draw_budgets`; each budget is a panel.
    column, reference : str
        `gain` over the control, or `change` against the first variant; what the axis calls it.
    role : str
        Row of each variant that is shown; a variant without it (supervised training alone) is left
        out.
    """
    rows = by_budget(summary[(summary["role"] == role) & summary[column].notna()])
    budgets = rows["labels"].unique()
    variants = list(rows["variant"].unique())
    height = 1.2 + 0.34 * len(variants)
    figure, axes = new_figure(1, len(budgets), height, sharex=True, sharey=True)
    for panel, budget in zip(axes[0], budgets, strict=True):
        table = rows[rows["labels"] == budget].set_index("variant").reindex(variants)
        draw_bars(panel, table, column)
        plural = "" if budget == 1 else "s"
        panel.set_title(f"{budget or 'all'} labelled slice{plural}", fontsize=10)
        panel.set_xlabel(f"full-image Dice\n− that of {reference}")
        panel.xaxis.set_major_locator(MaxNLocator(5 if len(budgets) < 3 else 3))

    axes[0, 0].margins(x=0.15 if len(budgets) < 3 else 0.3)
    axes[0, 0].set_yticks(range(len(variants)), variants)
    axes[0, 0].invert_yaxis()
    figure.suptitle(f"{role}, mean Dice at the bars", fontsize=9)
    return figure


def draw_bars(panel, table: pd.DataFrame, column: str) -> None:
    """Draw a bar for each variant, with its interval and its mean score."""
    mean, low, high = (table[column + suffix] for suffix in ("", "_low", "_high"))
    places = range(len(table))
    panel.barh(places, mean, color=SKY, xerr=error_bars(mean, low, high), capsize=3)
    for place, dice, x in zip(itertools.count(), table["dice"], high, strict=False):
        text, colour = f"{dice:.3f}", "black"
        if np.isnan(dice):
            text, colour = "not run", "0.5"
        panel.annotate(
            text,
            (np.fmax(0.0, x), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )

    panel.axvline(0, color="0.3", lw=1)


# --- by material ----------------------------------------------------------------------------------

# How each way to get masks is marked; what is not named here gets the last.
MARKERS = ("o", "P", "v", "s", "^", "x", "D")
BAND = 0.64  # of the height of a row: where the marks of a material stand


def draw_materials(summary: pd.DataFrame) -> Figure:
    """Draw the mean score of each way to get masks, a row for each material and a panel for each budget.

    Materials are sorted by how far the first way is above the random forest, the largest gain first.

    Parameters
    ----------
    summary : DataFrame
        Of `benchmarks/materials.py`: `material`, `labels`, and a column of Dice for each way.
    """
    ways = list(summary.columns[2:])
    budgets = sorted(summary["labels"].unique())
    tables = {budget: summary[summary["labels"] == budget] for budget in budgets}
    materials = materials_by_gain(summary, ways[0])
    figure, axes = new_figure(1, len(budgets), 1.6 + 0.5 * len(materials), sharex=True, sharey=True)
    for panel, budget in zip(axes[0], budgets, strict=True):
        draw_ways(panel, tables[budget].set_index("material").reindex(materials), ways)
        plural = "" if budget == 1 else "s"
        panel.set_title(f"{budget} labelled slice{plural}", fontsize=10)
        panel.set_xlabel("full-image Dice on test slices")

    axes[0, 0].set_yticks(range(len(materials)), materials)
    axes[0, 0].invert_yaxis()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(ways),
        fontsize=8,
        frameon=False,
    )
    return figure


def materials_by_gain(summary: pd.DataFrame, first: str) -> list[str]:
    """Return the materials by how far a way to get masks is above the forest, the largest gain first."""
    gains = (summary[first] - summary[FOREST]).groupby(summary["material"]).mean()
    return list(gains.sort_values(ascending=False).index)


def draw_ways(panel, table: pd.DataFrame, ways: list[str]) -> None:
    """Draw a mark for each way to get masks, in a band for each material; those not measured are left out.

    Within a band the ways stand below each other, in their order: ways that score the same do not hide each other.
    """
    places = np.arange(len(table))
    lines = np.linspace(-BAND / 2, BAND / 2, len(ways)) if len(ways) > 1 else [0.0]
    for place in places[::2]:
        panel.axhspan(place - 0.5, place + 0.5, color="0.965", zorder=-2)
    for i, (way, line) in enumerate(zip(ways, lines, strict=True)):
        marker = MARKERS[min(i, len(MARKERS) - 1)]
        size = 40 if i == 0 else 22
        colour = COLOURS[i % len(COLOURS)]
        panel.scatter(
            table[way], places + line, size, marker=marker, color=colour, label=way, zorder=2
        )
    panel.set_ylim(-0.5, len(table) - 0.5)
    panel.grid(axis="x", color="0.9", zorder=-1)


# --- scores by painted share ----------------------------------------------------------------------


def draw_painting(summary: pd.DataFrame) -> Figure:
    """Draw the mean Dice against the share of painted pixels: over classes, with its range over seeds, and of each.

    Parameters
    ----------
    summary : DataFrame
        Of `benchmarks/painting.py`: `share`, `strokes`, `method`, `mean`, `lowest`, `highest`, and a
        column for each class. Strokes of another kind than those of the first row have hollow marks,
        and no lines.
    """
    columns = list(summary.columns)
    # The background, which is the first class, is not part of the mean.
    classes = columns[columns.index("method") + 2 : columns.index("mean")]
    usual = summary["strokes"].iloc[0]
    figure, axes = new_figure(1, 1 + len(classes), 3.6, sharey=True)
    for panel, column in zip(axes[0], ["mean", *classes], strict=True):
        for (strokes, method), of_method in summary.groupby(["strokes", "method"], sort=False):
            rows = of_method.sort_values("share")
            style = {"color": colour_of(method), "label": method, "ls": "-"}
            if strokes != usual:
                style |= {"label": None, "ls": "", "mfc": "white"}
            if column == "mean":
                bars = error_bars(rows["mean"], rows["lowest"], rows["highest"])
                panel.errorbar(
                    rows["share"], rows["mean"], bars, marker="o", ms=4, lw=1.4, capsize=2, **style
                )
            else:
                panel.plot(rows["share"], rows[column], marker="o", ms=4, lw=1.4, **style)
        panel.set_xscale("log")
        shares = sorted(summary["share"].unique())
        panel.set_xticks(shares, [f"{100 * share:g}" for share in shares])
        panel.minorticks_off()
        panel.set_title("mean over classes" if column == "mean" else column, fontsize=9)
        panel.grid(color="0.92")

    axes[0, 0].set_ylabel("full-image Dice on test slices")
    figure.supxlabel("painted pixels of the training slices [%]", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for strokes in summary["strokes"].unique():
        if strokes != usual:
            handles.append(Line2D([], [], color=GREY, marker="o", ms=4, ls="", mfc="white"))
            labels.append(f"hollow: {strokes} strokes")
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False
    )
    return figure
