"""How time and memory grow: with batch size, width, image side, number of slices and loader workers.

    python benchmarks/scaling.py [--device auto] [--base-channels N] [--calls N] [--axes "batch size,slices" --output F]

Each point is a process of its own. Written to `benchmarks/results/DEVICE_scaling.json` and drawn beside it as `.png`.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import (  # noqa: E402 - after the path
    add_options,
    chosen,
    demo_settings,
    output_of,
    processor,
    records,
    run_race,
    shown,
)
from config import Config  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment  # noqa: E402
from viz.panels import new_figure  # noqa: E402


def measure(axes: list[str], config: Config, calls: int) -> Iterator[dict]:
    """A row per axis and value: `axis`, `value`, `unit`, median `seconds`, `low` and `high` of calls, `memory_mb`.

    A value that cannot be measured, for want of memory perhaps, is told and left out.
    """
    from benchmarks.contenders import SCALES, steps_per_call, values_of

    for axis in axes:
        unit = SCALES[axis][2]
        count = steps_per_call(config, is_given=True)
        if "step" in unit and count > 1:
            unit = f"{count} × {unit}"
        for value in values_of(axis, choose_device(config.device)):
            try:
                result = run_race(axis, [str(value)], config, calls)
            except InputError as error:
                print(f"{axis} {error}", file=sys.stderr)
                continue
            timed = result[result["round"] > 0]["seconds"]
            yield {
                "axis": axis,
                "value": value,
                "unit": unit,
                "seconds": timed.median(),
                "low": timed.min(),
                "high": timed.max(),
                "memory_mb": result["memory_mb"].max(),
            }


def draw_scaling(table: pd.DataFrame, title: str, path: Path) -> None:
    """Seconds above, memory below, a column per axis; logarithmic where values allow. Written to `path`."""
    figure, axes = new_figure(2, table["axis"].nunique(), 5.0)
    for column, (name, some) in zip(axes.T, table.groupby("axis", sort=False), strict=True):
        upper, lower = column
        upper.errorbar(
            some["value"],
            some["seconds"],
            [some["seconds"] - some["low"], some["high"] - some["seconds"]],
            marker="o",
            capsize=3,
        )
        lower.plot(some["value"], some["memory_mb"] / 1000, marker="o")
        for axis in column:
            if some["value"].min() > 0:
                axis.set_xscale("log", base=2)
            axis.set_xticks(
                some["value"], some["value"], rotation=90 if some["value"].max() > 99 else 0
            )
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
        if some["value"].min() > 0:
            upper.set_yscale("log")
            upper.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            upper.yaxis.set_major_formatter("{x:g}")
            upper.yaxis.set_minor_locator(NullLocator())
        lower.set_ylim(0, 1.1 * some["memory_mb"].max() / 1000)
        upper.set_title(some["unit"].iloc[0], fontsize=9)
        lower.set_xlabel(name)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory [GB]")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Measure every point, write the table and the figure."""
    from benchmarks.contenders import SCALES

    parser = Parser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument(
        "--calls", type=int, default=3, help="timed calls of each point (%(default)s)"
    )
    parser.add_argument(
        "--axes", default=",".join(SCALES), help="which ones, by comma (%(default)s)"
    )
    arguments = parser.parse_args()
    axes, device, rows = chosen(arguments.axes, SCALES, "axis"), choose_device(arguments.device), []
    if arguments.calls < 1:
        raise InputError("--calls: expected 1 or more")
    path, details = output_of(parser, arguments, device, "_scaling"), environment(device)
    partial = path.with_suffix(".partial.json")
    with tempfile.TemporaryDirectory() as folder:
        config = demo_settings(arguments, Path(folder))
        for row in measure(axes, config, arguments.calls):
            rows.append(row)
            write_json(
                partial,
                {
                    "processor": processor(device),
                    "environment": details,
                    "settings": shown(config),
                    "table": records(pd.DataFrame(rows)),
                },
            )
    if not rows:
        raise InputError("nothing could be measured; the reasons stand above")
    partial.replace(path)
    table = pd.DataFrame(rows)
    draw_scaling(table, processor(device), path.with_suffix(".png"))
    print(table.to_string(index=False))
    print(path)


if __name__ == "__main__":
    run_command_line(main)
