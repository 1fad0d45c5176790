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

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.feature import multiscale_basic_features
from skimage.future import TrainableSegmenter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study_statistics import summarise_study  # noqa: E402 - after the path
from config import FREE, Config, make_config, parse_settings  # noqa: E402
from evaluation.metrics import slice_table  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import read_json, write_atomically, write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment, release  # noqa: E402
from slices.data_folder import Data  # noqa: E402
from slices.reading import MASK_SUFFIXES  # noqa: E402
from train import continue_supervised, evaluate_run, train_semi_supervised, train_supervised  # noqa: E402
from training.phases import control_phase, method_names, supervised_phase  # noqa: E402
from training.preparation import prepare, read_slices  # noqa: E402
from viz.panels import FOREST  # noqa: E402
from viz.run_files import read_table  # noqa: E402
from viz.study_figures import draw_ablation, draw_budgets  # noqa: E402

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
)  # not of the control
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
PLACE = ("labels", "fold", "seed")
ROW = ("variant", *PLACE, "role", "stem")
KINDS = {
    "name": str,
    "data": str,
    "labels": list,
    "folds": list,
    "seeds": list,
    "settings": dict,
    "variants": dict,
}
MANY = 4  # variants, beyond which points of one budget cannot be told apart
RESERVED = {"labels", "fold", "seed", "run", "data"}  # the study sets them itself


def plan(study: dict, content: str = "") -> list[tuple[dict, Config]]:
    """Every run: what it is called in the table, and its settings. Variants of one budget, fold and seed together.

    `content` as in `digest`.
    """
    for what, wrong in (("unknown", set(study) - set(KINDS)), ("missing", set(KINDS) - set(study))):
        if wrong:
            raise InputError(f"study: {what} {', '.join(sorted(wrong))}")
    for key, kind in KINDS.items():
        value = study[key]
        if not isinstance(value, kind) or not (value or key == "settings"):
            raise InputError(f"study: {key} is {value!r}, expected a filled {kind.__name__}")
        if kind is list and not all(type(number) is int for number in value):
            raise InputError(f"study: {key} is {value!r}, expected whole numbers")
    for name, settings in {"settings": study["settings"], **study["variants"]}.items():
        if not isinstance(settings, dict):
            raise InputError(f"study: {name} is {settings!r}, expected settings by name")
        for wrong in sorted(set(settings) - (set(Config.__dataclass_fields__) - RESERVED)):
            raise InputError(
                f"study: {name}: {wrong} "
                + (
                    "is set by the study itself; use labels, folds, seeds, data"
                    if wrong in RESERVED
                    else "is no setting of train.py"
                )
            )
        if settings.get("split", "blocks") != "blocks":
            raise InputError(
                f"study: {name}: split is {settings['split']!r}; a study is made of folds of blocks"
            )
    if "" in study["variants"]:
        raise InputError("study: a variant has no name")
    if FOREST in study["variants"]:
        raise InputError(
            f"study: {FOREST!r} is the pixel classifier beside the variants; choose another name"
        )
    runs = []
    for seed, labels, fold in itertools.product(study["seeds"], study["labels"], study["folds"]):
        for variant, settings in study["variants"].items():
            details = {"variant": variant, "labels": labels, "fold": fold, "seed": seed}
            config = make_config(
                **{
                    "split": "blocks",
                    **study["settings"],
                    **settings,
                    "data": study["data"],
                    "labels": labels,
                    "fold": fold,
                    "seed": seed,
                    "run": "study",
                }
            )
            name = f"{study['name']}_{variant}_l{labels}_f{fold}_s{seed}_{digest(config, content=content)[:6]}"
            runs.append((details, dataclasses.replace(config, run=name)))
    return runs


def check_folds(configs: list[Config]) -> None:
    """Read and split the data of every fold and budget once, so that no training precedes an error in the last one."""
    for config in {str(dataclasses.replace(c, seed=0).subset(SPLIT)): c for c in configs}.values():
        if not read_slices(config).test:
            raise InputError(f"study: fold {config.fold} has no test slice; raise test_fraction")


@functools.cache
def content_of(folder: str) -> str:
    """SHA-256 of all files of a data folder, whatever their dates and wherever it lies."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such data folder; give it with --data")
    total = hashlib.sha256()
    for path in sorted(
        p for p in Path(folder).rglob("*") if p.suffix.lower() in MASK_SUFFIXES and p.is_file()
    ):
        total.update(
            f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
        )
    return total.hexdigest()


LATER = {
    "outside": "auto",
    "trust_pairs": False,
}  # fields that studies before did not know, with what they did


def digest(config: Config, without: tuple[str, ...] = ("run",), content: str = "") -> str:
    """Short name of settings and data; equal for equal ones. Where the data lie and on what device is left out.

    `content` is what `content_of` said about the data, where the folder need not be here.
    """
    left_out = {*without, "run", "data", *FREE}
    left_out |= {name for name, default in LATER.items() if getattr(config, name) == default}
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in left_out}
    return hashlib.sha256(
        json.dumps([settings, content or content_of(config.data)]).encode()
    ).hexdigest()[:12]


def forest_digest(config: Config, content: str = "") -> str:
    """Short name of what the pixel classifier depends on, likewise."""
    details = [config.subset(SPLIT), content or content_of(config.data)]
    return hashlib.sha256(json.dumps(details).encode()).hexdigest()[:12]


def adopt(config: Config, donors: list[Config]) -> None:
    """Take the supervised phases of a run with the same ones, instead of training them again."""
    mine = config.run_folder / "phases.json"
    if mine.exists():
        return
    for donor in donors:
        theirs = donor.run_folder / "phases.json"
        phases = (
            read_json(theirs)
            if digest(donor, SEMI) == digest(config, SEMI) and theirs.exists()
            else {}
        )
        shared = [supervised_phase(config), control_phase(config)]
        files = []
        for phase in shared:
            files += [donor.checkpoint(phase.name), donor.run_folder / phase.log]
        if "continued" in phases and all(file.exists() for file in files):
            break
    else:
        return

    for phase in shared:
        config.checkpoint(phase.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(donor.checkpoint(phase.name), config.checkpoint(phase.name))
        shutil.copy(donor.run_folder / phase.log, config.run_folder / phase.log)
    write_json(mine, {phase.name: phases[phase.name] for phase in shared})


def run_one(config: Config, donors: list[Config]) -> None:
    """A run from its data to its tables, or what is left of it."""
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
        release(config.run_folder)  # else a long study would run out of open files


def forest_scores(data: Data, seed: int, pixels: int = 20_000) -> pd.DataFrame:
    """Scores of a random forest on multiscale intensity, edge and texture features, one row per test slice.

    As in ilastik (Berg et al., 2019, doi:10.1038/s41592-019-0582-9) and Trainable Weka Segmentation (Arganda-Carreras
    et al., 2017, doi:10.1093/bioinformatics/btx180), but with `pixels` random pixels of every training slice instead
    of brush strokes, which is more than anybody paints.
    """
    from sklearn.ensemble import (
        RandomForestClassifier,  # of the development packages; drawing a study needs none
    )

    rng = np.random.default_rng(seed)

    def features(image: np.ndarray) -> np.ndarray:  # (H, W, F)
        return multiscale_basic_features(image, sigma_min=1, sigma_max=16)

    samples, labels = [], []
    for s in data.train:
        chosen = rng.choice(s.mask.size, min(pixels, s.mask.size), replace=False)
        samples.append(features(s.image).reshape(s.mask.size, -1)[chosen])
        labels.append(s.mask.ravel()[chosen])
    forest = RandomForestClassifier(100, min_samples_leaf=5, n_jobs=-1, random_state=seed)
    segmenter = TrainableSegmenter(forest, features)
    segmenter.clf.fit(np.concatenate(samples), np.concatenate(labels))
    result = [segmenter.predict(s.image).astype(bool) for s in data.test]
    return slice_table(
        {FOREST: result}, [s.mask.astype(bool) for s in data.test], [s.stem for s in data.test]
    )


def forest_rows(details: dict, config: Config, known: pd.DataFrame) -> pd.DataFrame:
    """Scores of the pixel classifier for one budget, fold and seed; nothing where they are `known`."""
    details = {**details, "variant": FOREST}
    if finished(known, {**details, "settings": forest_digest(config)}):
        return pd.DataFrame()
    return (
        forest_scores(read_slices(config), details["seed"])
        .assign(role=FOREST, group=FOREST, settings=forest_digest(config), **details)
        .drop(columns="method")
    )


def run_rows(details: dict, config: Config) -> pd.DataFrame:
    """A row per slice and model of a finished run; `group` is the same for runs with equal supervised phases."""
    table = pd.read_csv(config.run_folder / "test_full.csv").merge(
        pd.read_csv(config.run_folder / "test_patches.csv"),
        on=["method", "stem"],
        suffixes=("", "_patch"),
    )
    own = list(method_names(config.method))[2:]
    table["role"] = table.pop("method").map(
        lambda name: name.split()[-1].strip("()") if name in own else name
    )
    return table.assign(group=digest(config, SEMI), settings=digest(config), **details)


def finished(known: pd.DataFrame, wanted: dict) -> bool:
    """Whether `known` holds a row with these values."""
    return len(known) > 0 and bool((known[list(wanted)] == list(wanted.values())).all(axis=1).any())


def read_rows(paths: list[Path]) -> pd.DataFrame:
    """The rows of these files, each once, or an empty table without any; names stay text, whatever they look like."""
    names = dict.fromkeys(("stem", "role", "group", "settings", "variant"), str)
    tables = [
        read_table(
            path,
            *ROW,
            "settings",
            "group",
            "dice",
            dtype=names,
            keep_default_na=False,
            na_values=[""],
        )
        for path in paths
        if path.exists()
    ]
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, ignore_index=True).drop_duplicates(
        [*ROW, "settings"], ignore_index=True
    )


def part_of(runs: list[tuple[dict, Config]], text: str) -> list[tuple[dict, Config]]:
    """Every N-th budget, fold and seed of a plan from the K-th on, for `K/N`: what shares supervised models stays
    together.
    """
    try:
        number, parts = (int(piece) for piece in text.split("/"))
    except ValueError:
        number = parts = 0
    if not 1 <= number <= parts:
        raise InputError(f"--part {text}: expected K/N, the K-th of N parts, as 1/2")
    places = list(dict.fromkeys(tuple(details[key] for key in PLACE) for details, _ in runs))[
        number - 1 :: parts
    ]
    return [
        (details, config)
        for details, config in runs
        if tuple(details[key] for key in PLACE) in places
    ]


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """One of the files that `read_rows` reads."""
    write_atomically(
        path, lambda temporary: rows.to_csv(temporary, index=False, float_format="%.6g")
    )


def of_plan(known: pd.DataFrame, runs: list[tuple[dict, Config]], content: str) -> pd.DataFrame:
    """The rows of these runs on data of this `content`, in their order; `study.csv` keeps those of variants that were
    changed or left out since.
    """
    planned = {(details["variant"], digest(config, content=content)) for details, config in runs}
    planned |= {(FOREST, forest_digest(config, content)) for _, config in runs}
    mine = [pair in planned for pair in zip(known["variant"], known["settings"], strict=True)]
    order = {
        variant: i
        for i, variant in enumerate(dict.fromkeys(details["variant"] for details, _ in runs))
    }
    return known[mine].sort_values(
        "variant", key=lambda v: v.map(order).fillna(len(order)), kind="stable"
    )


def write_study(
    folder: Path, study: dict, table: pd.DataFrame, content: str, ran: bool = True
) -> pd.DataFrame:
    """`summary.csv`, `study.json` and the figures of the rows of a study on data of this `content`; the summary.

    `study.json` names the machine that last `ran` something, not one that only drew the figures again; without its
    command line: what was run stands beside it.
    """
    stored, first = folder / "study.json", next(iter(study["variants"]))
    machine = (
        environment(choose_device())
        if ran or not stored.exists()
        else read_json(stored)["environment"]
    )
    summary = summarise_study(table, first)
    write_atomically(folder / "summary.csv", lambda path: summary.to_csv(path, index=False))
    machine = {name: value for name, value in machine.items() if name != "command"}
    write_json(
        stored,
        {**study, "data": Path(study["data"]).name, "content": content, "environment": machine},
    )
    (folder / "figures").mkdir(exist_ok=True)
    if len(study["variants"]) <= MANY or summary["labels"].nunique() > 1:  # else bars say it better
        draw_budgets(summary).savefig(folder / "figures" / "budgets.png", dpi=100)
    for column, of in (("gain", "the control"), ("change", first)):
        if column in summary and (summary[column].notna() & (summary["role"] == "teacher")).any():
            draw_ablation(summary, column, of).savefig(
                folder / "figures" / f"{column}s.png", dpi=100
            )
    return summary


def stored_content(study: dict, folder: Path) -> str:
    """What the `study.json` of a finished study says about data that are not here; else nothing."""
    data, stored = study.get("data"), folder / "study.json"
    return (
        ""
        if not isinstance(data, str) or Path(data).is_dir() or not stored.exists()
        else read_json(stored).get("content", "")
    )


def main() -> None:
    """Run what is not finished, then write rows, summary and figures; a run that fails does not keep others back."""
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
    arguments, rest = parser.parse_known_args()
    if wrong := sorted(RESERVED & set(parse_settings(rest))):
        raise InputError(
            f"--{wrong[0]}: is set by the study itself; write it into {arguments.study}"
        )
    study = read_json(arguments.study)
    study |= {key: value for key in ("data", "name") if (value := getattr(arguments, key))}
    if isinstance(study.get("settings"), dict):  # else `plan` says what is wrong
        study["settings"] |= parse_settings(rest)
    folder = Path("runs") / f"study_{study.get('name')}"
    content = stored_content(study, folder) if arguments.summary else ""
    runs = plan(study, content)
    content, configs = content or content_of(study["data"]), [config for _, config in runs]
    part = None if arguments.summary else arguments.part
    files = sorted(
        p for p in folder.glob("study*.csv") if re.fullmatch(r"study(_\d+of\d+)?\.csv", p.name)
    )
    todo = [] if arguments.summary else part_of(runs, part) if part else runs
    own = folder / (f"study_{part.replace('/', 'of')}.csv" if part else "study.csv")
    known, mine = read_rows(files), read_rows([own] if part else files)
    todo = [
        (details, config)
        for details, config in todo
        if not finished(known, {**details, "settings": digest(config)})
    ]
    check_folds([config for _, config in todo])
    failed = []
    for number, (details, config) in enumerate(todo, 1):
        print(f"run {number} of {len(todo)}: {details}", flush=True)
        try:
            run_one(config, configs)
        except InputError as error:
            failed.append(f"{config.run}: {error}")
            print(f"run {number} failed: {error}", file=sys.stderr)
            continue
        for new in (run_rows(details, config), forest_rows(details, config, known)):
            known, mine = (pd.concat([rows, new], ignore_index=True) for rows in (known, mine))
        write_rows(own, mine)
    failure = failed and InputError(
        f"{len(failed)} of {len(todo)} runs failed, the first is {failed[0]}"
    )
    if part:
        if failure:
            raise failure
        print(f"part {part}: finished; gather the parts with --summary")
        return
    if parts := set(files) - {own}:
        write_rows(own, known)
        for file in parts:
            file.unlink()
    known = read_rows([own])  # as they are stored: the same summary now and later
    planned = of_plan(known, runs, content) if len(known) else known
    if len(planned):
        print(
            write_study(folder, study, planned, content, bool(todo)).round(4).to_string(index=False)
        )
    if failure or planned.empty:
        raise failure or InputError(
            f"{folder}: no finished run of this study yet" + ", only such of other settings or "
            "data" * (len(known) > 0)
        )


if __name__ == "__main__":
    run_command_line(main)
