"""Which method pays, and with how many labels: variants × label budgets × block folds × seeds, on one data set.

    python benchmarks/study.py FILE.json [--data DIR] [--name NAME] [--part 1/2] [--summary] [--any-setting=value]

FILE.json holds `name`, `data`, `labels`, `folds`, `seeds`, `settings` (of every run) and `variants` (name → settings of
that variant, `method` among them). Each run is a folder `runs/NAME_VARIANT_lL_fF_sS_…`, made by the same functions as
`train.py`; the end of its name stands for all settings and for the content of the data folder, so runs of other
settings or data never mix. Runs that do not differ before the semi-supervised phase share their supervised models. The
random-forest pixel classifier that ilastik and Weka made popular is trained on the same slices. Rows (one per slice and
model) go to `runs/study_NAME/study.csv`, summary and figures beside it. A stopped study goes on where it was; what has
its rows in that file is not run again, even where its run folder is gone. `--part 1/2` runs one of two parts, so that
several GPUs or cores can share a study; `--summary` then gathers their rows. It needs no data folder.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study_statistics import summarise_study  # noqa: E402 - after the path
from config import FOREST, FREE, Config, make_config, parse_settings  # noqa: E402
from evaluation.forest import fit_forest  # noqa: E402
from evaluation.metrics import slice_table  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import read_json, write_csv, write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment, read_phases, release  # noqa: E402
from slices.classes import CLASSES_FILE  # noqa: E402
from slices.data_folder import Data  # noqa: E402
from slices.reading import MASK_SUFFIXES  # noqa: E402
from train import continue_supervised, evaluate_run, train_semi_supervised, train_supervised  # noqa: E402
from training.phases import Phase, control_phase, method_names, supervised_phase  # noqa: E402
from training.preparation import prepare, read_slices  # noqa: E402
from viz.run_files import read_table  # noqa: E402
from viz.study_figures import draw_ablation, draw_budgets  # noqa: E402

MANY = 4  # variants, beyond which points of one budget cannot be told apart
PLACE = ("labels", "fold", "seed")
ROW = ("variant", *PLACE, "role", "stem")

# What a study file holds, and of what type.
KINDS = {
    "name": str,
    "data": str,
    "labels": list,
    "folds": list,
    "seeds": list,
    "settings": dict,
    "variants": dict,
}
RESERVED = {"labels", "fold", "seed", "run", "data"}  # settings that the study sets itself

# Settings that change nothing before the semi-supervised phase: runs that differ in these alone
# share their supervised models.
SEMI = (
    "run",
    "method",
    "freeze",
    "ema_alpha",
    "consistency",
    "consistency_weight",
    "ramp_epochs",
    "confidence",
    "hard_labels",
    "cutmix_p",
    "strong_views",
    "feature_dropout",
    "unlabelled_foreground",
)

# Settings on which the slices of a run depend, and with them the pixel classifier.
SPLIT = (
    "split",
    "val_fraction",
    "test_fraction",
    "fold",
    "labels",
    "seed",
    "roi",
    "percentiles",
    "mask_foreground",
)

# Settings that earlier studies did not know, with the value that does what they did.
LATER = {
    "outside": "auto",
    "trust_pairs": False,
    "unshuffle": 1,
    "pixel_classifier": False,
    "rim": 0,
}


# --- what is to be run ----------------------------------------------------------------------------


def plan(study: dict, content: str = "") -> list[tuple[dict, Config]]:
    """Return every run: what it is called in the table, and its settings.

    Variants of one budget, fold and seed stand together.

    Parameters
    ----------
    study : dict
        What the study file holds.
    content : str
        As in `digest`.

    Raises
    ------
    InputError
        For whatever is wrong with the study file.
    """
    check_study(study)
    runs = []
    for seed, labels, fold in itertools.product(study["seeds"], study["labels"], study["folds"]):
        for variant, settings in study["variants"].items():
            config = make_config(
                **{
                    "split": "blocks",
                    "forest": False,  # it is scored once for all variants
                    **study["settings"],
                    **settings,
                    "data": study["data"],
                    "labels": labels,
                    "fold": fold,
                    "seed": seed,
                    "run": "study",
                }
            )
            short = digest(config, content=content)[:6]
            name = f"{study['name']}_{variant}_l{labels}_f{fold}_s{seed}_{short}"
            place = {"variant": variant, "labels": labels, "fold": fold, "seed": seed}
            runs.append((place, dataclasses.replace(config, run=name)))

    return runs


def check_study(study: dict) -> None:
    """Raise `InputError` where a study file does not hold what it should."""
    unknown = sorted(set(study) - set(KINDS))
    if unknown:
        raise InputError(f"study: unknown {', '.join(unknown)}")
    missing = sorted(set(KINDS) - set(study))
    if missing:
        raise InputError(f"study: missing {', '.join(missing)}")

    for key, kind in KINDS.items():
        value = study[key]
        may_be_empty = key == "settings"
        if not isinstance(value, kind) or not (value or may_be_empty):
            raise InputError(f"study: {key} is {value!r}, expected a filled {kind.__name__}")
        if kind is list and not all(type(number) is int for number in value):
            raise InputError(f"study: {key} is {value!r}, expected whole numbers")

    check_settings("settings", study["settings"])
    for name, settings in study["variants"].items():
        check_settings(name, settings)
    if "" in study["variants"]:
        raise InputError("study: a variant has no name")
    if FOREST in study["variants"]:
        raise InputError(
            f"study: {FOREST!r} is the pixel classifier beside the variants; choose another name"
        )


def check_settings(name: str, settings: dict) -> None:
    """Raise `InputError` where the settings of a variant are not those of `train.py`, or the study's own."""
    if not isinstance(settings, dict):
        raise InputError(f"study: {name} is {settings!r}, expected settings by name")

    for setting in sorted(settings):
        if setting in RESERVED:
            raise InputError(
                f"study: {name}: {setting} is set by the study itself; use labels, folds, seeds, data"
            )
        if setting not in Config.__dataclass_fields__:
            raise InputError(f"study: {name}: {setting} is no setting of train.py")

    split = settings.get("split", "blocks")
    if split != "blocks":
        raise InputError(f"study: {name}: split is {split!r}; a study is made of folds of blocks")


def check_folds(configs: list[Config]) -> None:
    """Read and split the data of every fold and budget once, so that no training precedes an error in the last one."""
    different = {}
    for config in configs:
        without_seed = dataclasses.replace(config, seed=0)
        different[str(without_seed.subset(SPLIT))] = config

    for config in different.values():
        if not read_slices(config).test:
            raise InputError(f"study: fold {config.fold} has no test slice; raise test_fraction")


def part_of(runs: list[tuple[dict, Config]], text: str) -> list[tuple[dict, Config]]:
    """Return every N-th budget, fold and seed of a plan from the K-th on, for `K/N`.

    What shares supervised models stays together.
    """
    mine = every_nth(list(dict.fromkeys(place_of(name) for name, _ in runs)), text)
    return [(name, config) for name, config in runs if place_of(name) in mine]


def every_nth(things: list, text: str) -> list:
    """Return every N-th thing from the K-th on, for `K/N`.

    Raises
    ------
    InputError
        When the text is not of this form.
    """
    try:
        number, parts = (int(piece) for piece in text.split("/"))
    except ValueError:
        number = parts = 0
    if not 1 <= number <= parts:
        raise InputError(f"--part {text}: expected K/N, the K-th of N parts, as 1/2")
    return things[number - 1 :: parts]


def place_of(name: dict) -> tuple[int, ...]:
    """Return budget, fold and seed of a run."""
    return tuple(name[key] for key in PLACE)


# --- what a run depends on ------------------------------------------------------------------------


@functools.cache
def content_of(folder: str) -> str:
    """Return the SHA-256 of all files of a data folder, whatever their dates and wherever it lies."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such data folder; give it with --data")

    total = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        is_read = path.suffix.lower() in MASK_SUFFIXES or path.name == CLASSES_FILE
        if is_read and path.is_file():
            name = f"{path.relative_to(folder)}\0".encode()
            total.update(name + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def digest(config: Config, without: tuple[str, ...] = ("run",), content: str = "") -> str:
    """Return a short name of settings and data, which is equal for equal ones.

    Where the data lie and on what device is left out.

    Parameters
    ----------
    config : Config
    without : tuple of str
        Further settings that are left out.
    content : str
        What `content_of` said about the data, where the folder need not be here.
    """
    left_out = {*without, "run", "data", *FREE}
    for name, default in LATER.items():
        if getattr(config, name) == default:
            left_out.add(name)

    settings = {}
    for name, value in dataclasses.asdict(config).items():
        if name not in left_out:
            settings[name] = value
    # In earlier versions all crops contained foreground, or none had to.
    if settings.get("foreground_crop") in (0.0, 1.0):
        settings["foreground_crop"] = bool(settings["foreground_crop"])
    return digest_of([settings, content or content_of(config.data)])


def forest_digest(config: Config, content: str = "") -> str:
    """Return a short name of what the pixel classifier depends on, likewise."""
    return digest_of([config.subset(SPLIT), content or content_of(config.data)])


def digest_of(values: list) -> str:
    """Return the first twelve digits of the SHA-256 of some values, as JSON."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


# --- one run --------------------------------------------------------------------------------------


def run_one(config: Config, donors: list[Config]) -> None:
    """Make a run from its data to its tables, or what is left of it."""
    if (config.run_folder / "summary.json").exists():
        return

    try:
        data = prepare(config, resume=True)
        adopt(config, donors)
        train_supervised(config, data)
        continue_supervised(config, data)
        if config.method != "supervised":
            train_semi_supervised(config, data)
        evaluate_run(config, data)
    finally:
        # Else a long study would run out of open files.
        release(config.run_folder)


def adopt(config: Config, donors: list[Config]) -> None:
    """Take the supervised phases of a run with the same ones, instead of training them again."""
    record = config.run_folder / "phases.json"
    if record.exists():
        return

    shared = [supervised_phase(config), control_phase(config)]
    donor = find_donor(config, donors, shared)
    if donor is None:
        return

    config.checkpoint_folder.mkdir(parents=True, exist_ok=True)
    for phase in shared:
        shutil.copy(donor.checkpoint(phase.name), config.checkpoint(phase.name))
        shutil.copy(donor.run_folder / phase.log, config.run_folder / phase.log)
    phases = read_phases(donor.run_folder)
    write_json(record, {phase.name: phases[phase.name] for phase in shared})


def find_donor(config: Config, donors: list[Config], shared: list[Phase]) -> Config | None:
    """Return a run that has trained the shared phases with the same settings; None where there is none."""
    for donor in donors:
        if digest(donor, SEMI) != digest(config, SEMI):
            continue
        files = []
        for phase in shared:
            files += [donor.checkpoint(phase.name), donor.run_folder / phase.log]
        are_finished = "continued" in read_phases(donor.run_folder)
        if are_finished and all(file.exists() for file in files):
            return donor

    return None


def run_rows(name: dict, config: Config) -> pd.DataFrame:
    """Return a row per slice and model of a finished run.

    `group` is the same for runs with equal supervised phases, and `role` for models of all methods:
    `supervised`, the control, `student`, `teacher`.
    """
    full = pd.read_csv(config.run_folder / "test_full.csv")
    patches = pd.read_csv(config.run_folder / "test_patches.csv")
    table = full.merge(patches, on=["method", "stem"], suffixes=("", "_patch"))

    roles = {}
    for method in table["method"].unique():
        roles[method] = method
    for method, checkpoint in method_names(config.method).items():
        if checkpoint.startswith("ssl_"):
            roles[method] = checkpoint.removeprefix("ssl_")
    table["role"] = table.pop("method").map(roles)
    return table.assign(group=digest(config, SEMI), settings=digest(config), **name)


# --- the pixel classifier -------------------------------------------------------------------------


def forest_rows(name: dict, config: Config, known: pd.DataFrame) -> pd.DataFrame:
    """Return scores of the pixel classifier for one budget, fold and seed; none where they are `known`."""
    name = {**name, "variant": FOREST}
    settings = forest_digest(config)
    if finished(known, {**name, "settings": settings}):
        return pd.DataFrame()

    scores = forest_scores(read_slices(config), name["seed"])
    rows = scores.assign(role=FOREST, group=FOREST, settings=settings, **name)
    return rows.drop(columns="method")


def forest_scores(data: Data, seed: int) -> pd.DataFrame:
    """Return scores of the random forest of `evaluation.forest`, one row per test slice."""
    forest = fit_forest(data.train, data.val, seed)
    masks = [forest.probability(s) >= forest.threshold for s in data.test]
    truths = [s.mask.astype(bool) for s in data.test]
    return slice_table({FOREST: masks}, truths, [s.stem for s in data.test])


# --- tables ---------------------------------------------------------------------------------------


def finished(known: pd.DataFrame, wanted: dict) -> bool:
    """Return whether `known` holds a row with these values."""
    if len(known) == 0:
        return False
    is_equal = known[list(wanted)] == list(wanted.values())
    return bool(is_equal.all(axis=1).any())


def read_rows(paths: list[Path]) -> pd.DataFrame:
    """Return the rows of these files, each once; an empty table without any file.

    Names stay text, whatever they look like.
    """
    names = dict.fromkeys(("stem", "role", "group", "settings", "variant"), str)
    columns = (*ROW, "settings", "group", "dice")
    tables = []
    for path in paths:
        if path.exists():
            table = read_table(path, *columns, dtype=names, keep_default_na=False, na_values=[""])
            tables.append(table)

    if not tables:
        return pd.DataFrame()
    rows = pd.concat(tables, ignore_index=True)
    return rows.drop_duplicates([*ROW, "settings"], ignore_index=True)


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write one of the files that `read_rows` reads."""
    write_csv(path, rows, float_format="%.6g")


def of_plan(known: pd.DataFrame, runs: list[tuple[dict, Config]], content: str) -> pd.DataFrame:
    """Return the rows of these runs on data of this `content`, in the order of the variants.

    `study.csv` also keeps those of variants that were changed or left out since.
    """
    planned = set()
    variants = []
    for name, config in runs:
        planned.add((name["variant"], digest(config, content=content)))
        planned.add((FOREST, forest_digest(config, content)))
        if name["variant"] not in variants:
            variants.append(name["variant"])

    rows = zip(known["variant"], known["settings"], strict=True)
    mine = known[[row in planned for row in rows]]
    order = {variant: i for i, variant in enumerate(variants)}
    place = mine["variant"].map(order).fillna(len(order))
    return mine.iloc[place.argsort(kind="stable")]


# --- summary and figures --------------------------------------------------------------------------


def write_study(
    folder: Path, study: dict, table: pd.DataFrame, content: str, has_run: bool = True
) -> pd.DataFrame:
    """Write `summary.csv`, `study.json` and the figures; return the summary.

    Parameters
    ----------
    folder : Path
        `runs/study_NAME`.
    study : dict
        What the study file holds.
    table : DataFrame
        The rows of the study.
    content : str
        Of the data, see `content_of`.
    has_run : bool
        Whether this machine has run something of it. `study.json` names the machine that last did,
        not one that only drew the figures again.
    """
    first = next(iter(study["variants"]))
    summary = summarise_study(table, first)
    write_csv(folder / "summary.csv", summary)

    record = folder / "study.json"
    if has_run or not record.exists():
        machine = environment(choose_device())
    else:
        machine = read_json(record)["environment"]
    # What was run stands beside it; the command line says no more.
    machine.pop("command", None)
    data = Path(study["data"]).name
    write_json(record, {**study, "data": data, "content": content, "environment": machine})

    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    # Many variants of one budget are better told apart as bars.
    if len(study["variants"]) <= MANY or summary["labels"].nunique() > 1:
        draw_budgets(summary).savefig(figures / "budgets.png", dpi=100)
    for column, reference in (("gain", "the control"), ("change", first)):
        if has_teacher_values(summary, column):
            figure = draw_ablation(summary, column, reference)
            figure.savefig(figures / f"{column}s.png", dpi=100)
    return summary


def has_teacher_values(summary: pd.DataFrame, column: str) -> bool:
    """Return whether a column of a summary says something about a teacher."""
    if column not in summary:
        return False
    is_said = summary[column].notna() & (summary["role"] == "teacher")
    return bool(is_said.any())


def stored_content(study: dict, folder: Path) -> str:
    """Return what the `study.json` of a finished study says about data that are not here; else nothing."""
    data = study.get("data")
    record = folder / "study.json"
    if not isinstance(data, str) or Path(data).is_dir() or not record.exists():
        return ""
    return read_json(record).get("content", "")


# --- command line ---------------------------------------------------------------------------------


@dataclass
class Study:
    """A study, and how far it has come.

    Attributes
    ----------
    description : dict
        What the study file holds, with what the command line changes.
    folder : Path
        `runs/study_NAME`.
    runs : list of (dict, Config)
        See `plan`.
    content : str
        Of the data, see `content_of`.
    """

    description: dict
    folder: Path
    runs: list[tuple[dict, Config]]
    content: str

    def row_files(self) -> list[Path]:
        """Return the files of rows: of the study, and of parts that were run side by side."""
        files = sorted(self.folder.glob("study*.csv"))
        return [file for file in files if re.fullmatch(r"study(_\d+of\d+)?\.csv", file.name)]


def make_parser() -> Parser:
    """Return the options of the command line; settings of all runs may stand beside them."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("study", type=Path, help="JSON file that says what to run")
    parser.add_argument(
        "--summary", action="store_true", help="run nothing, only sum up the rows that are there"
    )
    parser.add_argument(
        "--part", help="K/N: run the K-th of N parts; several run side by side, then --summary"
    )
    parser.add_argument("--data", help="data folder, where it is not the one that the file names")
    parser.add_argument("--name", help="name of the study, likewise: runs/study_NAME")
    return parser


def open_study(arguments: argparse.Namespace, settings: dict) -> Study:
    """Return the study that a file describes, with other data, name and settings where they are given."""
    for name in sorted(RESERVED & set(settings)):
        raise InputError(f"--{name}: is set by the study itself; write it into {arguments.study}")

    description = read_json(arguments.study)
    if arguments.data:
        description["data"] = arguments.data
    if arguments.name:
        description["name"] = arguments.name
    # Where these are no object, `plan` says so.
    if isinstance(description.get("settings"), dict):
        description["settings"] |= settings

    folder = Path("runs") / f"study_{description.get('name')}"
    content = stored_content(description, folder) if arguments.summary else ""
    runs = plan(description, content)
    return Study(description, folder, runs, content or content_of(description["data"]))


def run_missing(study: Study, part: str | None) -> tuple[int, list[str]]:
    """Make the runs, all or those of a part, whose rows are not there; add their rows.

    A run that fails does not keep others back.

    Returns
    -------
    int
        How many runs had no rows.
    list of str
        What went wrong, a line for each run that failed.
    """
    planned = study.runs if part is None else part_of(study.runs, part)
    known = read_rows(study.row_files())
    if part is None:
        own = study.folder / "study.csv"
        mine = known
    else:
        own = study.folder / f"study_{part.replace('/', 'of')}.csv"
        mine = read_rows([own])

    todo = []
    for name, config in planned:
        if not finished(known, {**name, "settings": digest(config)}):
            todo.append((name, config))
    check_folds([config for _, config in todo])

    failed = []
    donors = [config for _, config in study.runs]
    for number, (name, config) in enumerate(todo, 1):
        print(f"run {number} of {len(todo)}: {name}", flush=True)
        try:
            run_one(config, donors)
        except InputError as error:
            failed.append(f"{config.run}: {error}")
            print(f"run {number} failed: {error}", file=sys.stderr)
            continue

        for rows in (run_rows(name, config), forest_rows(name, config, known)):
            known = pd.concat([known, rows], ignore_index=True)
            mine = pd.concat([mine, rows], ignore_index=True)
        write_rows(own, mine)

    return len(todo), failed


def gather_parts(study: Study) -> pd.DataFrame:
    """Write the rows of all parts into one file, and return them as they are stored."""
    own = study.folder / "study.csv"
    files = study.row_files()
    parts = [file for file in files if file != own]
    if parts:
        write_rows(own, read_rows(files))
        for file in parts:
            file.unlink()
    return read_rows([own])


def main() -> None:
    """Run what is not finished, then write rows, summary and figures."""
    arguments, rest = make_parser().parse_known_args()
    study = open_study(arguments, parse_settings(rest))
    part = None if arguments.summary else arguments.part

    count, failed = 0, []
    if not arguments.summary:
        count, failed = run_missing(study, part)
    failure = None
    if failed:
        failure = InputError(f"{len(failed)} of {count} runs failed, the first is {failed[0]}")

    if part is not None:
        if failure is not None:
            raise failure
        print(f"part {part}: finished; gather the parts with --summary")
        return

    known = gather_parts(study)
    planned = of_plan(known, study.runs, study.content) if len(known) else known
    if len(planned):
        summary = write_study(
            study.folder, study.description, planned, study.content, has_run=count > 0
        )
        print(summary.round(4).to_string(index=False))

    if failure is not None:
        raise failure
    if planned.empty:
        others = ", only such of other settings or data" if len(known) else ""
        raise InputError(f"{study.folder}: no finished run of this study yet{others}")


if __name__ == "__main__":
    run_command_line(main)
