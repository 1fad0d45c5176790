"""One page that says what a run found and how: `runs/NAME/report.html`, which needs no other file and no network.

    python report.py runs/NAME          writes it again, and all figures, from what is stored in the folder
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from config import Config, make_config, stored_config
from evaluate import describe
from particles.measuring import SMALLEST, particle_table
from particles.sizes import summarise_sizes
from runtime.command_line import Parser, run_command_line
from runtime.files import read_json, write_atomically
from runtime.messages import InputError
from utils_viz import PER_SLICE, StoredArrays, blaming, draw_run, read_table, results_table
from viz.slice_figures import draw_sizes, to_mask

CAPTIONS = {
    "paired": "Dice of every test slice. A grey line follows one slice through the methods; the black bar is the mean.",
    "methods": "One test slice: errors of each method. Red pixels were marked wrongly, cyan ones were missed.",
    "prediction": "One test slice: probability, mask, and errors of the last method.",
    "worst": "The test slices with the lowest Dice, and what went wrong there.",
    "calibration": "Left: observed against predicted share of foreground; ECE is the mean distance from the diagonal. "
                   "Right: Dice when another threshold is taken.",
    "sizes": "Cumulative distributions of particle sizes in the test slices, of particles that touch no border, each "
             "with the inverse of its chance to lie inside. Left by number, right by area.",
    "curves": "Learning curves of the phases. Validation Dice chooses the checkpoint; test slices decide nothing.",
    "slice": "The first training slice: as stored, in the percentile window the network sees, and with its mask.",
    "views": "Crops as the network sees them: weak view, strong view, their difference, mask.",
}
FEW = 6  # with fewer slices the p of a sign-flip test, 2/2ⁿ at least, cannot be below 0.05
METRIC_NAMES = {"dice": "Dice", "iou": "IoU", "surface_dice": "surface Dice (2 px)"}
SECTIONS = {"Where it is right, and wrong": ("paired", "methods", "worst", "prediction", "calibration"),
            "Particle sizes": ("sizes",), "Training": ("curves",), "The data": ("slice", "views")}
TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title><style>
:root { color-scheme: light dark; --text: #1c2024; --soft: #5c6670; --line: #d9dee3; --page: #ffffff; --card: #f5f7f9;
  --mark: #0b62a4; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --soft: #9aa4ae; --line: #363c43; --page: #15181b;
  --card: #1e2226; --mark: #6cb6f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
p.soft, figcaption { color: var(--soft); font-size: .9rem; } h1 + p.soft { margin: 0 0 1rem; font-size: 1rem; }
.found { padding: .9rem 1.1rem; background: var(--card); border-left: 4px solid var(--mark); border-radius: 4px; }
.found p { margin: .3rem 0; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } .prose td + td { white-space: normal; min-width: 5rem; }
tr.changed td { color: var(--mark); }
figure { margin: 1.25rem 0; } figure img { display: block; max-width: 100%; height: auto; padding: .5rem;
  background: #fff; border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: .4rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--mark); }
code { overflow-wrap: anywhere; font-size: .9em; }
</style></head><body>
<h1>{{ name }}</h1>
<p class="soft">{{ about }}</p>
<div class="found">{% for line in found %}<p>{{ line }}</p>{% endfor %}</div>
{% macro grid(table) %}{% if table.caption %}<p class="soft">{{ table.caption }}</p>{% endif %}
<div class="wide{% if table.folded %} prose{% endif %}"><table>
<tr>{% for head in table.heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr{% if loop.index0 in table.marked %} class="changed"{% endif %}>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endmacro %}
{% for title, parts in sections.items() %}<h2>{{ title }}</h2>
{% for part in parts %}{% if part.heads is defined %}
{% if part.folded %}<details><summary>{{ part.folded }}</summary>{{ grid(part) }}</details>
{% else %}{{ grid(part) }}{% endif %}
{% else %}<figure><img alt="{{ part.caption }}" src="{{ part.data }}">
<figcaption>{{ part.caption }}</figcaption></figure>
{% endif %}{% endfor %}{% endfor %}
</body></html>
"""


def write_report(run: Path, figures: dict[str, Figure] | None = None) -> Path:
    """Write the page of a run; the path of it. `figures` are those of `draw_run`, which are drawn where not given.

    `InputError` where the folder holds no run.
    """
    run = Path(run)
    config = stored_config(run / "config.json")
    with blaming(run):
        sections: dict[str, list[dict]] = {"Results": result_tables(run)}
        stored = StoredArrays(run / "predictions.npz") if (run / "predictions.npz").exists() else None
        sizes = size_tables(stored, config.pixel_size or 1.0) if stored else {}
        figures = dict(draw_run(run) if figures is None else figures)
        if sizes:
            figures["sizes"] = draw_sizes(sizes, "µm" if config.pixel_size else "px")
            figures["sizes"].savefig(run / "figures" / "sizes.png", dpi=100)
        for title, names in SECTIONS.items():
            sections[title] = [picture(run, figures, name) for kind in names for name in known(run, figures, kind)]
        sections["Particle sizes"] += [size_summary(sizes, "µm" if config.pixel_size else "px")] if sizes else []
        sections["The data"].append(split_table(run))
        sections["Training"].append(phase_table(run))
        sections["How it was made"] = [settings_table(config), environment_table(run)]
        if (run / "annotate_next.csv").exists():
            sections["What to annotate next"] = [annotation_table(run)]
        page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE).render(
            name=config.run, about=about(run, config), found=what_was_found(run),
            sections={title: [part for part in parts if part] for title, parts in sections.items() if any(parts)})
    write_atomically(run / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return run / "report.html"


# --- words ----------------------------------------------------------------------------------------------------

def about(run: Path, config: Config) -> str:
    """What was trained, on what, when and where, and what differs from the recipe."""
    made = optional(run / "environment.json")
    changed = [f"{name} {plain(value)} instead of {plain(usual)}" for name, (value, usual) in changes(config).items()
               if name not in ("data", "run", "pixel_size", "device", "num_workers")]
    return (f"{config.method.replace('_', ' ')}, width {config.base_channels}, on {config.data}; "
            f"{made.get('device', 'unknown device')}, {str(made.get('date', ''))[:10] or 'unknown date'}"
            + f"; {', '.join(changed)}" * bool(changed))


def what_was_found(run: Path) -> list[str]:
    """The result in sentences: scores of full test images, and what is clear about the differences."""
    full = optional(run / "summary.json").get("full")
    if not full or not full["methods"]:
        return ["No test slice was scored, so nothing can be said about accuracy."]
    scores = {name: row["dice"]["mean"] for name, row in full["methods"].items()}
    best = max(scores, key=scores.get)
    lines = [f"Highest mean Dice of full test images: {best}, {scores[best]:.3f}" + (
        f"; a threshold (Otsu, smoothed) has {scores['Otsu']:.3f}." if best != "Otsu" and "Otsu" in scores else ".")]
    lines += [describe(pair) for pair in full["paired"] if pair["method"] != "supervised"]
    if full["paired"] and (slices := full["paired"][0]["slices"]) < FEW:
        lines.append(f"With {slices} test slice{'s' * (slices > 1)} no difference can be significant: it takes {FEW}.")
    return lines


# --- tables ---------------------------------------------------------------------------------------------------

def as_table(heads: list[str], rows: list[list], caption: str = "", folded: str = "", marked: tuple = ()) -> dict:
    """What the page needs of a table; a `folded` one opens with a click on these words."""
    return {"heads": heads, "rows": rows, "caption": caption, "folded": folded, "marked": set(marked)}


def result_tables(run: Path) -> list[dict]:
    """Mean and interval of each metric by method, of full images and centre patches."""
    if not (run / "summary.json").exists():
        return []
    tables = {kind: results_table(run, kind) for kind in ("full", "patches")}
    text = {"full": "Otsu: a smoothed threshold. Supervised continued: the control, trained for as many further steps "
                    "as student and teacher. Full images, stitched from windows.",
            "patches": "Centre patches, from one window."}
    return [as_table(["", *(METRIC_NAMES.get(column, column) for column in table)],
                     [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)],
                     f"{text[kind]} Mean over test slices (95 % bootstrap interval).")
            for kind, table in tables.items() if len(table)]


def size_tables(stored: Mapping[str, np.ndarray], pixel_size: float) -> dict[str, pd.DataFrame]:
    """Return the particles of the test slices, of at least `SMALLEST` pixels: the truth's, and those each model finds.

    One slice is held at a time.
    """
    threshold, count = float(stored["threshold"]), len(stored["stems"])
    methods = [str(method) for method in stored["methods"] if method != "Otsu"]
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("truth", *methods)}
    for i in range(count):
        found["truth"].append(particle_table(stored[f"truth_{i}"], pixel_size))
        for method in methods:
            found[method].append(particle_table(to_mask(stored[f"{method}_{i}"], threshold), pixel_size))
    tables = {name: pd.concat(parts) for name, parts in found.items() if parts}
    return {name: table[table["voxels"] >= SMALLEST] for name, table in tables.items()}


def size_summary(tables: dict[str, pd.DataFrame], unit: str) -> dict:
    """Number of particles, and D10, D50 and D90 by number and by area."""
    rows = {name: summarise_sizes(table) for name, table in tables.items()}
    heads = list(next(iter(rows.values())))
    return as_table(["", *(head.replace("_", " by ") for head in heads)],
                    [[name, *("" if row[h] is None else f"{row[h]:.3g}" if isinstance(row[h], float) else row[h]
                              for h in heads)] for name, row in rows.items()],
                    f"Diameters in {unit}, of particles of at least {SMALLEST} pixels that touch no border (whole).")


def split_table(run: Path) -> dict | None:
    """Which slices had which part."""
    parts = {part: stems for part, stems in optional(run / "split.json").items() if isinstance(stems, list) and stems}
    rows = [[part, len(stems), ", ".join(map(str, stems))] for part, stems in parts.items()]
    return as_table(["", "slices", ""], rows, folded="Which slices had which part") if rows else None


def phase_table(run: Path) -> dict | None:
    """Steps, time and chosen epoch of each phase."""
    rows = []
    for about_phase in optional(run / "phases.json").values():
        for name, best in about_phase["best"].items():
            dice = "" if best["val_dice"] is None else f"{best['val_dice']:.3f}"
            rows.append([about_phase.get("label", name), f"best_{name}", about_phase["steps"],
                         f"{about_phase['seconds']:.0f} s", best["epoch"], dice])
    heads = ["phase", "weights", "steps", "time", "chosen epoch", "its validation Dice"]
    return as_table(heads, rows) if rows else None


def settings_table(config: Config) -> dict:
    """Every setting; those that differ from the recipe are marked."""
    changed, fields = changes(config), Config.__dataclass_fields__
    rows = [[name, plain(getattr(config, name)), plain(changed[name][1]) if name in changed else "", f.metadata["help"]]
            for name, f in fields.items()]
    return as_table(["setting", "value", "in the recipe", "what it is"], rows,
                    marked=[i for i, name in enumerate(fields) if name in changed],
                    folded=f"Settings: {len(changed)} differ from the recipe of {config.method}")


def environment_table(run: Path) -> dict | None:
    """Versions, device, command, code."""
    made = optional(run / "environment.json")
    rows = [[name.replace("_", " "), ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict)
             else plain(value)] for name, value in made.items() if name != "data"]
    return as_table(["", ""], rows, folded="Machine, versions, code") if rows else None


def annotation_table(run: Path) -> dict:
    """The first rows of the ranking."""
    table = read_table(run / "annotate_next.csv", "rank", "file", "coverage", "coverage_alone").head()
    return as_table(["", "slice", "coverage up to here", "coverage alone"],
                    [[r.rank, r.file, f"{r.coverage:.2f}", f"{r.coverage_alone:.2f}"] for r in table.itertuples()],
                    "Unlabelled slices unlike those that are labelled, the most useful one first.")


def changes(config: Config) -> dict[str, tuple]:
    """Of each setting that differs from the recipe that `config.method` names: its value, and that of the recipe."""
    recipe = make_config(method=config.method)
    return {name: (getattr(config, name), getattr(recipe, name)) for name in Config.__dataclass_fields__
            if getattr(config, name) != getattr(recipe, name)}


def plain(value: object) -> str:
    """A setting as one would type it."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def optional(path: Path) -> dict:
    """The content of a JSON file, nothing where it is missing."""
    return read_json(path) if path.exists() else {}


# --- figures --------------------------------------------------------------------------------------------------

def known(run: Path, figures: dict[str, Figure], kind: str) -> list[str]:
    """Names of one kind of figure, drawn now or before: the first of those that there is one of for each slice."""
    drawn = {*figures, *(path.stem for path in (run / "figures").glob("*.png"))}
    return sorted(name for name in drawn if name == kind or (kind in PER_SLICE and name.startswith(f"{kind}_")))[:1]


def picture(run: Path, figures: dict[str, Figure], name: str) -> dict:
    """A figure with its caption, as text that stands in the page; one that was drawn now is smaller as WebP."""
    caption = CAPTIONS[name.split("_")[0]]
    if name not in figures:
        content, kind = (run / "figures" / f"{name}.png").read_bytes(), "png"
    else:
        buffer, kind = io.BytesIO(), "webp"
        figures[name].savefig(buffer, format=kind, dpi=110, pil_kwargs={"quality": 85})
        content = buffer.getvalue()
    return {"caption": caption, "data": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"}


def main() -> None:
    """Write the page of a run again."""
    parser = Parser(description="Write runs/NAME/report.html again, and its figures.")
    parser.add_argument("run", type=Path, help="runs/NAME")
    run = parser.parse_args().run
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    print(write_report(run))


if __name__ == "__main__":
    run_command_line(main)
