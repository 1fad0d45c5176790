"""How sizes of particles are distributed, as a figure."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from viz.panels import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, colour_of, new_figure

OTHER_COLOURS = (BLUE, RED, ORANGE, GREEN, PURPLE, SKY, "k")


def draw_sizes(tables: dict[str, pd.DataFrame], unit: str) -> Figure:
    """Draw cumulative distributions of the equivalent diameter, by number and by area or volume, a line per table.

    Parameters
    ----------
    tables : dict of name to table
        As of `particles.shapes.particle_table`. Particles that touch the border are left out, the
        others count with their weight.
    unit : str
        Of the diameters.
    """
    size = "volume" if any("volume" in table for table in tables.values()) else "area"
    figure, axes = new_figure(1, 2, 3.4 + 0.2 * len(tables), sharey=True)
    by_number, by_size = axes[0]
    for (name, table), colour in zip(tables.items(), colours_of(tables), strict=False):
        is_whole = ~table["touches_border"].astype(bool)
        whole = table[is_whole].sort_values("diameter")
        text = "no whole particle"
        if len(whole):
            median = draw_distribution(by_number, whole, whole["weight"], colour)
            median_by_size = draw_distribution(
                by_size, whole, whole["weight"] * whole[size], colour
            )
            text = f"{len(whole)} whole particles; D50 {median:.3g} and {median_by_size:.3g} {unit}"
        by_number.plot([], [], color=colour, lw=1.5, label=f"{visible(name)}: {text}")

    for panel, title in ((by_number, "number of particles"), (by_size, f"their {size}")):
        panel.axhline(0.5, color="0.85", lw=0.8, zorder=0)
        panel.set(xlabel=f"equivalent diameter [{unit}]", ylim=(0, 1.02))
        panel.set_title(f"by {title}", fontsize=9)

    by_number.set_ylabel("share up to this diameter")
    legend = figure.legend(
        loc="outside lower center",
        fontsize=8,
        frameon=False,
        title=f"D50 by number and by {size}",
        title_fontsize=8,
    )
    for text in legend.get_texts():
        # File names are no formulas.
        text.set_parse_math(False)
    return figure


def colours_of(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Return a colour for each table: that of its method, or others where these are of no known kind."""
    colours = [colour_of(name) for name in tables]
    if len(set(colours)) == len(colours):
        return colours
    return list(itertools.islice(itertools.cycle(OTHER_COLOURS), len(tables)))


def draw_distribution(panel, whole: pd.DataFrame, weights: pd.Series, colour: str) -> float:
    """Draw the share of all weights that particles up to a diameter have; return the diameter of one half."""
    share = np.cumsum(weights) / weights.sum()
    panel.step(whole["diameter"], share, where="post", color=colour, lw=1.5)
    return whole["diameter"].iloc[np.searchsorted(share, 0.5)]


def visible(name: str) -> str:
    """Return a label that is shown: one that begins with _ would be hidden."""
    if name.startswith("_"):
        return f" {name}"
    return name
