"""The page of a run: what it found, and how it was made. Needs no other file and no network."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from config import FOREST, OTSU, PIXEL_CLASSIFIER, Config, as_typed, make_config
from evaluation.intervals import describe
from evaluation.metrics import METRICS
from evaluation.recommendation import kept_weights, recommend_model
from evaluation.uncertainty import SMALLEST
from particles.shapes import particle_table
from particles.sizes import summarise_sizes
from runtime.messages import InputError
from runtime.run_folder import read_phases
from slices.fingerprint import Fingerprint, fingerprint_rows
from training.class_fractions import describe_fractions, fractions_of_run
from training.phases import CONTROL, method_names
from training.recipe import RECIPE_FILE
from viz.run_files import (
    StoredArrays,
    interval_text,
    read_optional,
    read_table,
    results_table,
)
from viz.size_figures import draw_sizes
from viz.slice_figures import PER_SLICE, to_mask

TEMPLATE = Path(__file__).with_name("run_page.html")

# The figures of the page by section, each with its caption.
FIGURES = {
    "Where it is right, and wrong": {
        "paired": "Dice of every test slice. A grey line follows one slice through the methods; the "
        "black bar is the mean.",
        "methods": "One test slice: errors of each method. Red pixels were marked wrongly, cyan ones "
        "were missed.",
        "worst": "The test slices on which the last method of the table has the lowest Dice, and what "
        "went wrong there.",
        "prediction": "One test slice: probability, mask, and errors of the last method of the table.",
        "calibration": "Left: observed against predicted share of foreground, or of several classes how "
        "often the most probable one is right; ECE is the mean distance from the diagonal. Right, where "
        "there are two classes: Dice when another threshold is taken.",
    },
    "Particle sizes": {
        "sizes": "Cumulative distributions of particle sizes in the test slices, of particles that "
        "touch no border, each with the inverse of its chance to lie inside. Left by number, right "
        "by area.",
    },
    "Training": {
        "curves": "Learning curves of the phases. Validation Dice chooses the checkpoint; test "
        "slices decide nothing.",
    },
    "The data": {
        "slice": "The first training slice: as stored, in the percentile window the network sees, "
        "and with its mask.",
        "views": "Crops as the network sees them: weak view, strong view, their difference, mask.",
    },
}

# Those that only runs on label maps of several classes have.
CLASS_SECTION = "Class by class"
CLASS_FIGURES = {
    "classes": "Dice of every class and test slice, over painted pixels; the black bar is the mean.",
    "confusion": "Which class is taken for which: of the painted pixels of each class (rows) the share "
    "that a method takes for each class (columns).",
    "fractions": "Fractions of the classes in the test slices: as all trained networks predict whole "
    "slices, with the interval over networks and slices, and as they are painted. An error that all "
    "networks share is not in the interval.",
}

# What those figures show that other runs have, too.
CAPTIONS_OF_CLASSES = {
    "methods": "One test slice: what is painted, and what each method makes of it, in the colours of the "
    "classes.",
    "worst": "The test slices on which the last method of the table has the lowest mean Dice over "
    "classes: what is painted, what was found, and in red the painted pixels that are wrong.",
    "prediction": "One test slice: what is painted, what the last method of the table found, and in red "
    "the painted pixels that are wrong.",
}

RESULT_CAPTIONS = {
    "full": "Full images, stitched from windows. Dice: twice the area that mask and truth share, by the "
    "sum of both areas; 1 is perfect.",
    "patches": "Centre patches, from one window.",
}

# What rows of the results are, where their names do not say it.
METHOD_CAPTIONS = {
    OTSU: "a smoothed threshold",
    FOREST: "single pixels by features of several scales, as ilastik has it",
    PIXEL_CLASSIFIER: "the part of the network that is fitted within seconds, on its own",
    CONTROL: "the control, trained for as many further steps as student and teacher",
}

# Methods without a network, in words, and where `summary.json` has what was chosen for them.
BASELINES = {FOREST: "a random forest on features of pixels", OTSU: "a threshold (Otsu, smoothed)"}
BASELINE_KEYS = {FOREST: "forest", OTSU: "otsu"}
BEFORE_CONTROL = (PIXEL_CLASSIFIER, "supervised")  # which the control goes on from
AS_GOOD = 0.01  # of Dice, by which a baseline may be below the networks

# With fewer slices the p of a sign-flip test, 2/2ⁿ at least, cannot be below 0.05.
LEAST_SLICES = 6

# Settings that say nothing about the recipe.
CIRCUMSTANCES = ("data", "run", "pixel_size", "device", "num_workers")

SIZES_DPI = 100
PAGE_DPI = 110


@dataclass(frozen=True)
class Table:
    """What the page needs of a table.

    Attributes
    ----------
    heads : list of str
    rows : list of lists
    caption : str
    folded : str
        A folded table opens with a click on these words.
    marked : set of int
        Rows that stand out.
    is_prose : bool
        Whether cells hold sentences, which are broken into lines; those of folded tables always are.
    """

    heads: list[str]
    rows: list[list]
    caption: str = ""
    folded: str = ""
    marked: set[int] = field(default_factory=set)
    is_prose: bool = False


def make_page(run: Path, config: Config, figures: dict[str, Figure]) -> str:
    """Return the page of a run, as HTML.

    Parameters
    ----------
    run : Path
    config : Config
    figures : dict of name to Figure
        Those of `utils_viz.draw_run`.
    """
    figures = dict(figures)
    unit = "µm" if config.pixel_size else "px"
    sizes = size_tables(run, config.pixel_size or 1.0)
    if sizes:
        figures["sizes"] = draw_sizes(sizes, unit)
        figures["sizes"].savefig(run / "figures" / "sizes.png", dpi=SIZES_DPI)

    sections: dict[str, list] = {
        "Results": result_tables(run),
        "How it was chosen": recipe_tables(run),
        CLASS_SECTION: [*class_tables(run), *pictures(run, figures, CLASS_FIGURES)],
    }
    has_several_classes = background_of(run) is not None
    for title, captions in FIGURES.items():
        if has_several_classes:
            captions = {
                kind: CAPTIONS_OF_CLASSES.get(kind, text) for kind, text in captions.items()
            }
        sections[title] = pictures(run, figures, captions)
    if sizes:
        sections["Particle sizes"].append(size_summary(sizes, unit))
    sections["Training"] += phase_tables(run)
    sections["The data"] += split_tables(run)
    sections["How it was made"] = [settings_table(run, config), *environment_tables(run)]
    sections["What to annotate next"] = annotation_tables(run)

    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=config.run,
        details=describe_run(run, config),
        found=describe_results(run),
        sections={title: parts for title, parts in sections.items() if parts},
    )


# --- words ----------------------------------------------------------------------------------------


def describe_run(run: Path, config: Config) -> str:
    """Return in words what was trained, on what, when and where, and what differs from the recipe."""
    environment = read_optional(run / "environment.json")
    method = config.method.replace("_", " ")
    device = environment.get("device", "unknown device")
    date = str(environment.get("date", ""))[:10] or "unknown date"
    parts = [f"{method}, width {config.base_channels}, on {config.data}", f"{device}, {date}"]

    changed = []
    for name, (value, usual) in changes(run, config).items():
        if name not in CIRCUMSTANCES:
            changed.append(f"{name} {as_typed(value)} instead of {as_typed(usual)}")
    if changed:
        parts.append(", ".join(changed))
    return "; ".join(parts)


def describe_results(run: Path) -> list[str]:
    """Return the result in sentences: scores of full test images, and what is clear about the differences."""
    full = read_optional(run / "summary.json").get("full")
    if not full or not full["methods"]:
        lines = describe_recommendation(run, {})
        return [*lines, "No test slice was scored, so nothing can be said about accuracy."]

    scores = {name: metrics["dice"]["mean"] for name, metrics in full["methods"].items()}
    lines = describe_recommendation(run, scores)
    best = max(scores, key=scores.get)
    line = f"Highest mean Dice of full test images: {best}, {scores[best]:.3f}"
    for baseline, words in BASELINES.items():
        if baseline in scores and baseline != best:
            line += f"; {words} has {scores[baseline]:.3f}"
    line += (
        ". Test slices choose nothing: a score above that of the recommended model may be chance."
    )
    lines += [line, *describe_baselines(run, scores), *describe_paint(run)]

    pairs = full["paired"]
    lines += [describe(pair) for pair in pairs if pair["method"] not in BEFORE_CONTROL]
    if pairs and pairs[0]["slices"] < LEAST_SLICES:
        slices = pairs[0]["slices"]
        plural = "s" if slices > 1 else ""
        lines.append(
            f"With {slices} test slice{plural} no difference between methods can be significant: it takes "
            f"{LEAST_SLICES}."
        )

    return lines


def describe_paint(run: Path) -> list[str]:
    """Say where classes have another share of the paint than of the slices, and what was done about it."""
    if fractions_of_run(run) is None:
        return []
    text = describe_fractions(read_phases(run)["supervised"]["fractions"])
    if not text:
        return []
    return [f"Strokes are no fair sample of the slices. {text[0].upper()}{text[1:]}."]


def describe_recommendation(run: Path, scores: dict[str, float]) -> list[str]:
    """Say which model to use, and why, and how good it is; nothing where no phase was finished.

    Parameters
    ----------
    run : Path
    scores : dict of str to float
        Mean Dice of full test images by method.
    """
    if not kept_weights(run):
        return []
    chosen = recommend_model(run)
    line = f"Recommended: best_{chosen.name}, {chosen.reason}"

    settings = read_optional(run / "config.json")
    for method, name in method_names(str(settings.get("method"))).items():
        if name == chosen.name and method in scores:
            line += f"; in the table {method}, Dice {scores[method]:.3f} on full test images"
    return [f"{line}. It is what predict.py takes of this run."]


def describe_baselines(run: Path, scores: dict[str, float]) -> list[str]:
    """Say plainly where a method without a network is as good as the networks."""
    networks = [score for name, score in scores.items() if name not in BASELINES]
    if not networks:
        return []

    lines = []
    for baseline, words in BASELINES.items():
        if baseline in scores and scores[baseline] >= max(networks) - AS_GOOD:
            chosen = read_optional(run / "summary.json").get(BASELINE_KEYS[baseline], {})
            seconds = chosen.get("seconds")
            after = "" if seconds is None else f" after {seconds:.0f} s"
            lines.append(
                f"{words[0].upper()}{words[1:]} is as good here as the networks{after}: its Dice is "
                f"{scores[baseline]:.3f}, theirs at most {max(networks):.3f}. It is scored for "
                "comparison, and not kept: predict.py takes networks."
            )
    return lines


def changes(run: Path, config: Config) -> dict[str, tuple]:
    """Return value and recipe's value of each setting that differs from the recipe that `config.method` names.

    What `auto` chose for the slices belongs to its recipe.
    """
    # Not as a `Config` of their own: what was chosen may not be possible without what was given beside it.
    recipe = make_config(method=config.method)
    chosen = chosen_settings(run)
    changed = {}
    for name in Config.__dataclass_fields__:
        value = getattr(config, name)
        usual = chosen.get(name, getattr(recipe, name))
        if value != usual:
            changed[name] = (value, usual)

    return changed


def chosen_settings(run: Path) -> dict[str, Any]:
    """Return the settings that `auto` chose for the slices; none for other methods."""
    path = run / RECIPE_FILE
    chosen: dict[str, Any] = {}
    try:
        for choice in read_optional(path).get("choices", []):
            chosen |= choice["settings"]
    except (KeyError, TypeError) as error:
        raise not_of_a_run(path, error) from None
    return chosen


def not_of_a_run(path: Path, error: Exception) -> InputError:
    """Return the error for a file that was changed by hand."""
    return InputError(f"{path}: is not what a run writes ({error}); remove it")


# --- results --------------------------------------------------------------------------------------


def result_tables(run: Path) -> list[Table]:
    """Return mean and interval of each metric by method, of full images and centre patches."""
    if not (run / "summary.json").exists():
        return []
    background = background_of(run)
    tables = []
    for kind, caption in RESULT_CAPTIONS.items():
        table = results_table(run, kind)
        if len(table) == 0:
            continue
        heads = ["", *(METRICS.get(column, column) for column in table)]
        rows = [[name, *cells] for name, *cells in table.itertuples()]
        methods = [row[0] for row in rows]
        texts = [caption, "Mean over test slices (95 % bootstrap interval)."]
        if background is not None:
            texts.append(f"Each is the mean over classes but the background, {background}.")
        if kind == "full":
            texts += explain_methods(methods)
        tables.append(Table(heads, rows, " ".join(texts)))

    return tables


def background_of(run: Path) -> str | None:
    """Return the name of the first of several classes, which means leave out; None where masks are binary."""
    classes = read_optional(run / "summary.json").get("classes")
    if not classes:
        return None
    return str(next(iter(classes.values())))


def class_tables(run: Path) -> list[Table]:
    """Return the Dice of each class by method, where there are several classes."""
    by_class = read_optional(run / "summary.json").get("by_class")
    if not by_class:
        return []
    names = list(dict.fromkeys(name for scores in by_class.values() for name in scores))
    rows = []
    for method, scores in by_class.items():
        cells = [interval_text(scores[name]["dice"]) if name in scores else "" for name in names]
        rows.append([method, *cells])
    caption = "Dice of each class in full images, over painted pixels of slices that have it."
    return [Table(["", *names], rows, caption)]


def explain_methods(methods: list[str]) -> list[str]:
    """Return a sentence for each of these methods whose name does not say what it is."""
    sentences = []
    for method, words in METHOD_CAPTIONS.items():
        if method in methods:
            sentences.append(f"{method[0].upper()}{method[1:]}: {words}.")
    return sentences


def size_tables(run: Path, pixel_size: float) -> dict[str, pd.DataFrame]:
    """Return the particles of the test slices: those of the truth, and those of each model.

    Only particles of at least `SMALLEST` pixels count. The result is empty where no predictions are
    stored, and where masks are label maps of several classes or painted in part.
    """
    path = run / "predictions.npz"
    if not path.exists():
        return {}
    stored = StoredArrays(path)
    # Of several classes none is the one whose sizes are asked for, and where paint ends no particle
    # does: evaluate.py particles measures whole label maps, one class at a time.
    has_several_classes = "classes" in stored and len(stored["classes"]) > 2
    if has_several_classes or any(name.startswith("painted_") for name in stored):
        return {}
    return particles_of(stored, pixel_size)


def particles_of(stored: Mapping[str, np.ndarray], pixel_size: float) -> dict[str, pd.DataFrame]:
    """Return the particles in stored test slices, one slice at a time."""
    threshold = float(stored["threshold"])
    methods = [str(method) for method in stored["methods"] if method != OTSU]
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in ("truth", *methods)}
    for i in range(len(stored["stems"])):
        parts["truth"].append(particle_table(stored[f"truth_{i}"], pixel_size))
        for method in methods:
            mask = to_mask(stored[f"{method}_{i}"], threshold)
            parts[method].append(particle_table(mask, pixel_size))

    tables = {}
    for name, of_slices in parts.items():
        if of_slices:
            table = pd.concat(of_slices)
            tables[name] = table[table["voxels"] >= SMALLEST]

    return tables


def size_summary(tables: dict[str, pd.DataFrame], unit: str) -> Table:
    """Return number of particles, and D10, D50 and D90 by number and by area."""
    summaries = {name: summarise_sizes(table) for name, table in tables.items()}
    columns = list(next(iter(summaries.values())))
    rows = []
    for name, summary in summaries.items():
        rows.append([name, *(size_text(summary[column]) for column in columns)])
    heads = ["", *(column.replace("_", " by ") for column in columns)]
    caption = f"Diameters in {unit}, of particles of at least {SMALLEST} pixels that touch no border (whole)."
    return Table(heads, rows, caption)


def size_text(value: float | int | None) -> str:
    """Return a size or a number as text; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def recipe_tables(run: Path) -> list[Table]:
    """Return what was chosen for the material and why, and what the painted slices are like; where that was done."""
    path = run / RECIPE_FILE
    recipe = read_optional(path)
    if not recipe:
        return []

    try:
        choices = [[choice["topic"], choice["reason"]] for choice in recipe["choices"]]
        caption = f"Chosen for these slices, and for {recipe['minutes']:g} minutes of this machine."
        fingerprint = Fingerprint(**recipe["fingerprint"])
    except (KeyError, TypeError) as error:
        raise not_of_a_run(path, error) from None
    numbers = [list(row) for row in fingerprint_rows(fingerprint)]
    return [
        Table(["", "what, and why"], choices, caption, is_prose=True),
        Table(["", "", ""], numbers, folded=f"What {fingerprint.slices} painted slices are like"),
    ]


# --- how it was made ------------------------------------------------------------------------------


def split_tables(run: Path) -> list[Table]:
    """Return which slices had which part."""
    rows = []
    for part, stems in read_optional(run / "split.json").items():
        if isinstance(stems, list) and stems:
            rows.append([part, len(stems), ", ".join(map(str, stems))])
    if not rows:
        return []
    return [Table(["", "slices", ""], rows, folded="Which slices had which part")]


def phase_tables(run: Path) -> list[Table]:
    """Return steps, time and chosen epoch of each phase."""
    rows = []
    for phase in read_optional(run / "phases.json").values():
        for name, best in phase["best"].items():
            dice = best["val_dice"]
            rows.append(
                [
                    phase.get("label", name),
                    f"best_{name}",
                    phase["steps"],
                    f"{phase['seconds']:.0f} s",
                    best["epoch"] or "",
                    "" if dice is None else f"{dice:.3f}",
                ]
            )

    if not rows:
        return []
    heads = ["phase", "weights", "steps", "time", "chosen epoch", "its validation Dice"]
    return [Table(heads, rows)]


def settings_table(run: Path, config: Config) -> Table:
    """Return every setting; those that differ from the recipe are marked."""
    changed = changes(run, config)
    rows = []
    marked = set()
    for i, (name, setting) in enumerate(Config.__dataclass_fields__.items()):
        usual = ""
        if name in changed:
            marked.add(i)
            usual = as_typed(changed[name][1])
        rows.append([name, as_typed(getattr(config, name)), usual, setting.metadata["help"]])

    heads = ["setting", "value", "in the recipe", "what it is"]
    folded = f"Settings: {len(changed)} differ from the recipe of {config.method}"
    return Table(heads, rows, folded=folded, marked=marked)


def environment_tables(run: Path) -> list[Table]:
    """Return versions, device, command, code."""
    rows = []
    for name, value in read_optional(run / "environment.json").items():
        if name == "data":
            continue
        text = as_typed(value)
        if isinstance(value, dict):
            text = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append([name.replace("_", " "), text])

    if not rows:
        return []
    return [Table(["", ""], rows, folded="Machine, versions, code")]


def annotation_tables(run: Path) -> list[Table]:
    """Return the first rows of the ranking of what to annotate next, where there is one."""
    path = run / "annotate_next.csv"
    if not path.exists():
        return []
    ranking = read_table(path, "rank", "file", "coverage", "coverage_alone").head()
    rows = []
    for row in ranking.itertuples():
        rows.append([row.rank, row.file, f"{row.coverage:.2f}", f"{row.coverage_alone:.2f}"])
    heads = ["", "slice", "coverage up to here", "coverage alone"]
    caption = "Unlabelled slices unlike those that are labelled, the most useful one first."
    return [Table(heads, rows, caption)]


# --- figures --------------------------------------------------------------------------------------


def pictures(run: Path, figures: dict[str, Figure], captions: dict[str, str]) -> list[dict]:
    """Return the figures of some kinds that there are, with the caption of each kind."""
    shown = []
    for kind, caption in captions.items():
        name = find_figure(run, figures, kind)
        if name is not None:
            shown.append({"caption": caption, "data": picture(run, figures, name)})
    return shown


def find_figure(run: Path, figures: dict[str, Figure], kind: str) -> str | None:
    """Return the name of a figure of a kind, drawn now or before; None where there is none.

    Where each slice has such a figure, it is that of the first.
    """
    drawn = {*figures, *(path.stem for path in (run / "figures").glob("*.png"))}
    for name in sorted(drawn):
        if name == kind or (kind in PER_SLICE and name.startswith(f"{kind}_")):
            return name
    return None


def picture(run: Path, figures: dict[str, Figure], name: str) -> str:
    """Return a figure as text that stands in the page; one that was drawn now is smaller as WebP."""
    if name in figures:
        kind = "webp"
        buffer = io.BytesIO()
        figures[name].savefig(buffer, format=kind, dpi=PAGE_DPI, pil_kwargs={"quality": 85})
        content = buffer.getvalue()
    else:
        kind = "png"
        content = (run / "figures" / f"{name}.png").read_bytes()

    encoded = base64.b64encode(content).decode()
    return f"data:image/{kind};base64,{encoded}"
