"""How much of a few slices has to be painted? Shares of painted pixels × seeds, on the demo of four classes.

    python benchmarks/painting.py [--data DIR] [--shares 0.01,0.03,0.1,1] [--seeds 0,1,2] [--part 1/2] [--summary]

At 3 % there are runs with the same amount of paint in longer strokes on fewer things, too (`--strokes gathered` of
`demo_data.py`).

Each run has four labelled slices for training and four that choose the checkpoint, of which that share is painted with
strokes, and 50 unlabelled ones (`demo_data.py --classes --scribbles SHARE`; seed of the strokes, the volume and the
training alike). It trains the recipe `best` as the small version that a CPU gets, with three times its steps: the
supervised model, its step-matched control, student and teacher; and fits the random forest to the same paint. All are
scored on test slices that are painted everywhere, and the table has what each run recommends beside them.

Rows, one per slice, method and class, and one for the mean over all classes but the matrix, go to
`runs/study_painting/rows.csv`. What has its rows there is not run again: a stopped study goes on where it was. `--part
1/2` runs every second run, with rows in `rows_1of2.csv`, so that two cores can share it; `--summary` gathers all rows
in `rows.csv`, and writes `summary.csv` and the figure.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.materials import (  # noqa: E402 - after the path
    COMMIT_DIGITS,
    FIGURE_DPI,
    environment_of_study,
    numbers,
    read_rows,
    role_of,
)
from benchmarks.study import every_nth  # noqa: E402
from config import CPU_PROFILE, Config, make_config  # noqa: E402
from demo_data import write_class_demo  # noqa: E402
from evaluation.recommendation import recommend_model  # noqa: E402
from phantoms.scribbles import GATHERED, SPREAD  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.files import read_json, write_csv, write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import release  # noqa: E402
from train import (  # noqa: E402
    continue_supervised,
    evaluate_run,
    train_semi_supervised,
    train_supervised,
)
from training.phases import method_names  # noqa: E402
from training.preparation import prepare  # noqa: E402
from viz.run_files import read_table  # noqa: E402
from viz.study_figures import draw_painting  # noqa: E402

FOLDER = Path("runs/study_painting")
SHARES = (0.01, 0.03, 0.1, 1.0)
GATHERED_SHARES = (0.03,)  # which are painted with gathered strokes, too
SEEDS = (0, 1, 2)
SCANS = 50
LABELLED = 22  # of which the split leaves four apart for validation and test each
SETTINGS = {**CPU_PROFILE, "method": "best", "labels": 4, "steps_per_epoch": 24}

PLACE = ["share", "strokes", "seed"]
MEAN = "mean"  # in the column `class`: over all classes but the background
SCORES = ["dice", "precision", "recall"]
KEY = [*PLACE, "method", "stem", "class"]
COLUMNS = [*KEY, *SCORES, "recommended"]
RECOMMENDED = "recommended"  # in the table: the model that each run recommends


@dataclass(frozen=True)
class Place:
    """One run of the study: which share of the pixels is painted, with which strokes, and the seed."""

    share: float
    seed: int
    strokes: str = SPREAD

    @property
    def folder_name(self) -> str:
        """The name of the folder of its slices."""
        kind = "" if self.strokes == SPREAD else f"_{self.strokes}"
        return f"{self.share:g}{kind}_s{self.seed}"

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"painting_{self.folder_name}"


# --- one run --------------------------------------------------------------------------------------


def run_one(place: Place, data: Path) -> pd.DataFrame:
    """Make a run, and its slices where they are missing; return its rows."""
    folder = data / place.folder_name
    if not folder.exists():
        write_class_demo(folder, place.seed, SCANS, LABELLED, place.share, place.strokes)
    check_slices(folder, place)

    config = make_config(**SETTINGS, data=str(folder), run=place.name, seed=place.seed)
    try:
        slices = prepare(config, resume=True)
        train_supervised(config, slices)
        continue_supervised(config, slices)
        train_semi_supervised(config, slices)
        evaluate_run(config, slices)
    finally:
        release(config.run_folder)
    return rows_of(place, config)


def check_slices(folder: Path, place: Place) -> None:
    """Raise `InputError` where slices were made otherwise than this study has them."""
    made = read_json(folder / "demo.json")
    wanted = {
        "seed": place.seed,
        "scans": SCANS,
        "labelled": LABELLED,
        "painted": place.share,
        "strokes": place.strokes,
    }
    for name, value in wanted.items():
        if made.get(name) != value:
            raise InputError(f"{folder}: was made with another {name} than {value}; move it away")


def rows_of(place: Place, config: Config) -> pd.DataFrame:
    """Return a row per slice, method and class of a finished run, and those of the means over classes."""
    run = config.run_folder
    of_classes = read_table(run / "test_classes.csv", "method", "stem", "class", *SCORES)
    means = read_table(run / "test_full.csv", "method", "stem", *SCORES).assign(**{"class": MEAN})
    rows = pd.concat([of_classes, means], ignore_index=True)

    names = method_names(config.method)
    chosen = recommend_model(config.run_folder).name
    rows["recommended"] = rows["method"].map(lambda method: names.get(method) == chosen)
    rows["method"] = rows["method"].map(lambda method: role_of(method, names))
    commit = read_json(run / "environment.json")["git_commit"] or ""
    return rows.assign(**vars(place), commit=commit[:COMMIT_DIGITS])[[*COLUMNS, "commit"]]


# --- all runs -------------------------------------------------------------------------------------


def is_known(place: Place, rows: pd.DataFrame) -> bool:
    """Return whether there are rows of a run."""
    values = [place.share, place.strokes, place.seed]
    return bool((rows[PLACE] == values).all(axis=1).any())


def write_record(folder: Path) -> None:
    """Write what is run, and on which machine; `InputError` where the folder has runs of other settings."""
    path = folder / "study.json"
    study = {"settings": SETTINGS, "scans": SCANS, "labelled": LABELLED}
    if path.exists():
        before = read_json(path)
        if any(before.get(name) != value for name, value in study.items()):
            raise InputError(f"{folder}: holds runs with other settings; move it away")
    write_json(path, {**study, "environment": environment_of_study()})


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean Dice by share, strokes and method: of each class, and over them, with its range over seeds.

    `of full paint` is that mean, divided by that of the same method with everything painted. The
    model that a run recommends, by validation alone, has rows of its own.
    """
    of_recommended = rows[rows["recommended"]].assign(method=RECOMMENDED)
    rows = pd.concat([rows, of_recommended], ignore_index=True)
    keys = ["share", "strokes", "method"]
    by_seed = rows.groupby([*keys, "class", "seed"], sort=False)["dice"].mean()
    by_class = by_seed.groupby([*keys, "class"], sort=False).mean().unstack("class")
    of_mean = by_seed.xs(MEAN, level="class").groupby(keys, sort=False)
    table = by_class.assign(lowest=of_mean.min(), highest=of_mean.max(), seeds=of_mean.size())
    full = pd.Series(dtype=float)
    if 1.0 in rows["share"].to_numpy():
        full = table[MEAN].xs(1.0, level="share").droplevel("strokes")
    methods = table.index.get_level_values("method")
    table["of full paint"] = table[MEAN].to_numpy() / full.reindex(methods).to_numpy(float)
    return table.reset_index()


def write_summary(folder: Path) -> None:
    """Gather the rows of all parts, whose files stay: they may still grow. Write the table and the figure."""
    rows = read_rows(sorted(folder.glob("rows*.csv")), COLUMNS, KEY)
    if rows.empty:
        raise InputError(f"{folder}: no finished run yet")
    rows = rows.sort_values(PLACE, kind="stable", ignore_index=True)
    write_csv(folder / "rows.csv", rows, float_format="%.5g")
    summary = summarise(rows)
    write_csv(folder / "summary.csv", summary, float_format="%.4f")
    (folder / "figures").mkdir(exist_ok=True)
    drawn = summary[summary["method"] != RECOMMENDED]
    draw_painting(drawn).savefig(folder / "figures" / "painting.png", dpi=FIGURE_DPI)
    print(summary.round(3).to_string(index=False))


# --- command line ---------------------------------------------------------------------------------


def shares_of(text: str) -> list[float]:
    """Return the shares between commas."""
    try:
        shares = [float(part) for part in text.split(",")] if text else list(SHARES)
    except ValueError:
        shares = [0.0]
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f"--shares {text}: must be numbers above 0, and at most 1, between commas")
    return shares


def places_of(shares: Sequence[float], seeds: Sequence[int]) -> list[Place]:
    """Return the runs of some shares and seeds, those with gathered strokes last."""
    places = [Place(share, seed) for seed, share in itertools.product(seeds, shares)]
    for seed, share in itertools.product(seeds, shares):
        if share in GATHERED_SHARES:
            places.append(Place(share, seed, GATHERED))
    return places


def main() -> None:
    """Run what is not finished, or sum up."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/painting"), help="%(default)s")
    parser.add_argument("--shares", default="", help="only these, as 0.03,1")
    parser.add_argument("--seeds", default="", help="only these, as 0,1")
    parser.add_argument("--part", default="1/1", help="K/N: run the K-th of N parts (%(default)s)")
    parser.add_argument("--summary", action="store_true", help="run nothing, only sum up")
    arguments = parser.parse_args()
    if arguments.summary:
        write_summary(FOLDER)
        return

    seeds = numbers(arguments.seeds) or SEEDS
    places = places_of(shares_of(arguments.shares), seeds)
    mine = every_nth(places, arguments.part)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_record(FOLDER)
    known = read_rows(sorted(FOLDER.glob("rows*.csv")), COLUMNS, KEY)
    own = FOLDER / f"rows_{arguments.part.replace('/', 'of')}.csv"
    for place in mine:
        if is_known(place, known):
            continue
        print(place.name, flush=True)
        rows = run_one(place, arguments.data)
        before = read_rows([own], COLUMNS, KEY)
        write_csv(own, pd.concat([before, rows], ignore_index=True), float_format="%.5g")


if __name__ == "__main__":
    run_command_line(main)
