"""Does a recipe suit any material? Twelve sets of slices × label budgets × seeds, beside fixed recipes and a forest.

    python benchmarks/materials.py [FILE.json] [--data DIR] [--minutes 5] [--part 1/2] [--seeds 0] [--labels 2,5]
                                   [--variants auto,best] [--summary]

FILE.json (`materials.json`) holds `name`, `labels`, `seeds`, `materials` (name → settings that its files need),
`variants` (name → settings), and `data_seed`: that of the synthetic slices (1; the recipe was developed on those of
seed 0). The slices of a material are those of DIR/MATERIAL (data/materials); the synthetic ones are
written there where they are missing. `auto` gets so many minutes, the other variants the CPU profile. What each
run recommends is compared, and the random forest is scored once for all variants, in the first of them.

Rows, one per slice and method, go to `runs/study_NAME/rows.csv`, with the time that their run took and the commit of
the code that began it. What has its rows there is not run again: a stopped study goes on where it was. `--part 1/2`
runs every second one of what is asked for, with rows in `rows_1of2.csv`, so that two cores can share it; `--summary`
gathers all rows in `rows.csv`, and writes `summary.csv` and the figure.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study import every_nth  # noqa: E402 - after the path
from config import AUTO, CPU_PROFILE, FOREST, OTSU, Config, make_config  # noqa: E402
from demo_data import write_material  # noqa: E402
from evaluation.recommendation import recommend_model  # noqa: E402
from phantoms.data_set import DataSet  # noqa: E402
from phantoms.materials import MATERIALS  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import read_json, write_csv, write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment, read_phases, release  # noqa: E402
from train import (  # noqa: E402
    continue_supervised,
    evaluate_run,
    train_semi_supervised,
    train_supervised,
)
from training.phases import CONTROL, method_names  # noqa: E402
from training.preparation import MOST_MINUTES, find_recipe, prepare  # noqa: E402
from training.recipe import Recipe  # noqa: E402
from viz.run_files import read_table  # noqa: E402
from viz.study_figures import draw_materials  # noqa: E402

PLACE = ["material", "labels", "seed", "variant"]
KEY = [*PLACE, "method", "stem"]
COLUMNS = [*KEY, "dice"]
# What a study has to say, and in which form.
KEYS = {"name": str, "labels": list, "seeds": list, "materials": dict, "variants": dict}
BASELINES = (OTSU, FOREST)
DATA_SEED = 1  # of the synthetic slices: the recipe was developed on those of seed 0
FIGURE_DPI = 110
COMMIT_DIGITS = 12


@dataclass(frozen=True)
class Place:
    """One run of the study."""

    material: str
    labels: int
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"materials_{self.material}_{self.variant}_l{self.labels}_s{self.seed}"


# --- one run --------------------------------------------------------------------------------------


def run_one(place: Place, study: dict, data: Path, minutes: float) -> pd.DataFrame:
    """Make a run, and return its rows."""
    settings = {
        **study["materials"][place.material],
        **study["variants"][place.variant],
        "data": str(data / place.material),
        "run": place.name,
        "labels": place.labels,
        "seed": place.seed,
        "forest": place.variant == next(iter(study["variants"])),
    }
    begun = time.monotonic()
    config, recipe = settings_of_run(settings, minutes)
    try:
        slices = prepare(config, resume=True, recipe=recipe)
        training_begun = time.monotonic()
        train_supervised(config, slices)
        if config.is_semi_supervised:
            continue_supervised(config, slices)
            train_semi_supervised(config, slices)
        trained = time.monotonic()
        evaluate_run(config, slices)
    finally:
        release(config.run_folder)

    before_and_after = training_begun - begun + time.monotonic() - trained
    return rows_of(place, config, before_and_after + seconds_of_training(config.run_folder))


def seconds_of_training(run: Path) -> float:
    """Return how long all phases of a run took, also those that were trained before it was stopped."""
    return sum(phase["seconds"] for phase in read_phases(run).values())


def settings_of_run(settings: dict, minutes: float) -> tuple[Config, Recipe | None]:
    """Return the settings of a run, and how they were chosen where they were."""
    if settings["method"] != AUTO:
        return make_config(**{**CPU_PROFILE, **settings}), None
    recipe = find_recipe(settings, minutes)
    return recipe.config, recipe


def rows_of(place: Place, config: Config, seconds: float) -> pd.DataFrame:
    """Return a row per slice and method of a finished run."""
    names = method_names(config.method)
    chosen = recommend_model(config.run_folder).name
    rows = read_table(config.run_folder / "test_full.csv", "method", "stem", "dice")
    rows = rows[["method", "stem", "dice", "precision", "recall"]]
    rows["recommended"] = rows["method"].map(lambda method: names.get(method) == chosen)
    rows["method"] = rows["method"].map(lambda method: role_of(method, names))
    commit = read_json(config.run_folder / "environment.json")["git_commit"] or ""
    return rows.assign(**vars(place), seconds=round(seconds), commit=commit[:COMMIT_DIGITS])


def role_of(method: str, names: dict[str, str]) -> str:
    """Return the same name for what is the same in all variants: student and teacher have names of their own there."""
    return names.get(method, "").removeprefix("ssl_") if "(" in method else method


# --- what is to be run ----------------------------------------------------------------------------


def plan(study: dict, arguments: argparse.Namespace) -> list[Place]:
    """Return the runs that the command line asks for: all of a budget and seed before the next.

    Of those, all materials of a variant stand together: parts of them take about as long.
    """
    seeds = numbers(arguments.seeds) or study["seeds"]
    labels = numbers(arguments.labels) or study["labels"]
    variants = arguments.variants.split(",") if arguments.variants else list(study["variants"])
    for variant in variants:
        if variant not in study["variants"]:
            raise InputError(f"--variants {variant}: not in {arguments.study}")
    places = itertools.product(seeds, labels, variants, study["materials"])
    return [Place(material, count, seed, variant) for seed, count, variant, material in places]


def read_study(path: Path) -> dict:
    """Return what a file says is to be run; `InputError` where something is missing there."""
    study = read_json(path)
    for name, kind in KEYS.items():
        if not isinstance(study.get(name), kind) or not study[name]:
            raise InputError(f"{path}: has no {name}, or in another form than materials.json")

    if Path(study["name"]).name != study["name"]:
        raise InputError(f"{path}: name: must be that of a folder")
    for kind in ("materials", "variants"):
        for name, settings in study[kind].items():
            if not isinstance(settings, dict):
                raise InputError(f"{path}: {name}: must have settings")

    for name, settings in study["variants"].items():
        if "method" not in settings:
            raise InputError(f"{path}: {name}: has no method")

    return study


def numbers(text: str) -> list[int]:
    """Return the whole numbers between commas."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"{text}: must be whole numbers between commas") from None


def write_missing_materials(study: dict, data: Path) -> None:
    """Write the synthetic materials that are not there; `InputError` for a real one."""
    for material in study["materials"]:
        folder = data / material
        if folder.exists():
            check_data_seed(folder, study.get("data_seed", DATA_SEED))
            continue
        if material not in MATERIALS:
            raise InputError(f"{folder}: missing; put the slices of {material} there")
        write_material(folder, DataSet(material, study.get("data_seed", DATA_SEED)))


def check_data_seed(folder: Path, seed: int) -> None:
    """Raise `InputError` where synthetic slices were made with another seed; real ones have none."""
    path = folder / "material.json"
    made_with = read_json(path).get("seed", seed) if path.exists() else seed
    if made_with != seed:
        raise InputError(
            f"{folder}: its slices were made with --seed {made_with}, the study is on those of "
            f"{seed}; move it away"
        )


def read_rows(
    files: list[Path], columns: Sequence[str] = COLUMNS, key: Sequence[str] = KEY
) -> pd.DataFrame:
    """Return the rows of some files, each once; an empty table where there are none.

    Parameters
    ----------
    files : list of Path
    columns : sequence of str
        Which they have to have.
    key : sequence of str
        Those that say which row it is.
    """
    # Names that look like numbers stay what they are.
    kinds = {"stem": str, "commit": str}
    tables = [read_table(path, *columns, dtype=kinds) for path in files if path.exists()]
    if not tables:
        return pd.DataFrame(columns=list(columns))
    rows = pd.concat(tables, ignore_index=True)
    # Rows of a part stand in its own file, and once they were gathered, in `rows.csv`, too.
    return rows.drop_duplicates(list(key), ignore_index=True)


def is_known(place: Place, rows: pd.DataFrame) -> bool:
    """Return whether there are rows of a run."""
    values = [place.material, place.labels, place.seed, place.variant]
    return bool((rows[PLACE] == values).all(axis=1).any())


def write_record(folder: Path, study: dict, minutes: float) -> None:
    """Write what is run, for how long, and on which machine."""
    write_json(
        folder / "study.json", {**study, "minutes": minutes, "environment": environment_of_study()}
    )


def environment_of_study() -> dict:
    """Return on which machine a study is run, and with which versions."""
    machine = environment(choose_device())
    # What is run stands beside it; the command line says no more. Rows say which code began their run.
    for name in ("command", "git_commit", "git_dirty"):
        machine.pop(name)
    return machine


def check_same_settings(folder: Path, study: dict, minutes: float | None = None) -> None:
    """Raise `InputError` where a folder holds runs of the same names with other settings.

    Parameters
    ----------
    folder : Path
    study : dict
    minutes : float, optional
        Of a run of `auto`; None where nothing is run.
    """
    path = folder / "study.json"
    before = read_json(path) if path.exists() else {}
    for kind in ("materials", "variants"):
        for name, settings in before.get(kind, {}).items():
            if study[kind].get(name, settings) != settings:
                raise InputError(
                    f"{name}: {folder} holds runs of it with other settings; move it away"
                )

    seed = study.get("data_seed", DATA_SEED)
    if before.get("data_seed", seed) != seed:
        raise InputError(
            f"data_seed {seed}: {folder} holds runs on slices of {before['data_seed']}; move it away"
        )
    if minutes is not None and before.get("minutes", minutes) != minutes:
        raise InputError(
            f"--minutes {minutes:g}: {folder} holds runs of {before['minutes']:g}; move it away"
        )


# --- summary --------------------------------------------------------------------------------------


def summarise(rows: pd.DataFrame, variants: list[str]) -> pd.DataFrame:
    """Return the mean Dice by material and budget: a column for each way to get masks."""
    first = variants[0]
    of_first = rows[rows["variant"] == first]
    parts = {
        first: of_first[of_first["recommended"]],
        f"{first}: control": of_first[of_first["method"] == CONTROL],
        f"{first}: teacher": of_first[of_first["method"] == "teacher"],
    }
    for variant in variants[1:]:
        parts[variant] = rows[(rows["variant"] == variant) & rows["recommended"]]
    for baseline in BASELINES:
        parts[baseline] = rows[rows["method"] == baseline]

    columns = {}
    for name, part in parts.items():
        columns[name] = part.groupby(["material", "labels"], sort=False)["dice"].mean()
    # Where a way was not tried, the others keep their order.
    order = pd.MultiIndex.from_frame(rows[["material", "labels"]].drop_duplicates())
    return pd.DataFrame(columns).reindex(order).reset_index()


def wins(summary: pd.DataFrame, first: str) -> pd.DataFrame:
    """Return how often the first recipe is better, or worse, than each other by more than 0.01, and by how much."""
    rows = []
    for other in summary.columns[2:]:
        if other == first:
            continue
        for labels, part in summary.groupby("labels"):
            difference = (part[first] - part[other]).dropna()
            rows.append(
                {
                    "against": other,
                    "labels": labels,
                    "sets": len(difference),
                    "better": int((difference > 0.01).sum()),
                    "worse": int((difference < -0.01).sum()),
                    "mean difference": difference.mean(),
                    "least": difference.min(),
                }
            )
    return pd.DataFrame(rows)


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "study", type=Path, nargs="?", default=ROOT / "benchmarks" / "materials.json"
    )
    parser.add_argument("--data", type=Path, default=Path("data/materials"), help="%(default)s")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of each run of auto (%(default)g)"
    )
    parser.add_argument("--part", default="1/1", help="K/N: run the K-th of N parts (%(default)s)")
    parser.add_argument("--seeds", default="", help="only these, as 0,1")
    parser.add_argument("--labels", default="", help="only these numbers of labels, as 2,5")
    parser.add_argument("--variants", default="", help="only these variants, as auto,best")
    parser.add_argument("--summary", action="store_true", help="run nothing, only sum up")
    return parser


def main() -> None:
    """Run what is not finished, or sum up."""
    arguments = make_parser().parse_args()
    study = read_study(arguments.study)
    if not 0 < arguments.minutes <= MOST_MINUTES:
        raise InputError(
            f"--minutes {arguments.minutes:g}: must be above 0, and at most {MOST_MINUTES}"
        )
    folder = Path("runs") / f"study_{study['name']}"
    folder.mkdir(parents=True, exist_ok=True)
    # Also where all is finished: what is there would be taken for what is asked.
    check_same_settings(folder, study, None if arguments.summary else arguments.minutes)
    if arguments.summary:
        write_summary(study, folder)
        return

    mine = every_nth(plan(study, arguments), arguments.part)
    own = folder / f"rows_{arguments.part.replace('/', 'of')}.csv"
    write_missing_materials(study, arguments.data)
    known = read_rows(sorted(folder.glob("rows*.csv")))
    todo = [place for place in mine if not is_known(place, known)]
    if todo:
        write_record(folder, study, arguments.minutes)
    for place in todo:
        print(place.name, flush=True)
        rows = run_one(place, study, arguments.data, arguments.minutes)
        write_csv(own, pd.concat([read_rows([own]), rows], ignore_index=True), float_format="%.5g")


def in_order_of(study: dict, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows by material, as the study names them, then by budget, seed, variant, method and slice."""
    numbers = {material: number for number, material in enumerate(study["materials"])}

    def key(column: pd.Series) -> pd.Series:
        return column.map(numbers) if column.name == "material" else column

    return rows.sort_values(COLUMNS[:-1], key=key, ignore_index=True)


def write_summary(study: dict, folder: Path) -> None:
    """Gather the rows of all parts, whose files stay: they may still grow. Write the table of means."""
    rows = read_rows(sorted(folder.glob("rows*.csv")))
    if rows.empty:
        raise InputError(f"{folder}: no finished run yet")
    rows = in_order_of(study, rows)
    write_csv(folder / "rows.csv", rows, float_format="%.5g")

    variants = [name for name in study["variants"] if name in set(rows["variant"])]
    summary = summarise(rows, variants)
    write_csv(folder / "summary.csv", summary, float_format="%.4f")
    (folder / "figures").mkdir(exist_ok=True)
    draw_materials(summary).savefig(folder / "figures" / "materials.png", dpi=FIGURE_DPI)
    print(summary.round(3).to_string(index=False))
    print(wins(summary, variants[0]).round(3).to_string(index=False))
    minutes = rows.groupby("variant", sort=False)["seconds"].mean() / 60
    print("minutes of a run:", ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()))


if __name__ == "__main__":
    run_command_line(main)
