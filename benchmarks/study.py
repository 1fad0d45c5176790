"""Which method pays, and with how many labels: variants × label budgets × block folds × seeds, on one data set.

    python benchmarks/study.py FILE.json [--data DIR] [--name NAME] [--summary] [--any-setting=value of train.py]

FILE.json holds `name`, `data`, `labels`, `folds`, `seeds`, `settings` (of every run) and `variants` (name → settings
of that variant, `method` among them). Each run is a folder `runs/NAME_VARIANT_lL_fF_sS`, made by the same functions
as `train.py`; runs that do not differ before the semi-supervised phase share their supervised models, so every
variant is compared with the very control it has. The random-forest pixel classifier that ilastik and Weka made popular
is trained on the same slices. Rows (one per slice and model) go to `runs/study_NAME/study.csv`, summary and figures
beside it. A stopped study goes on where it was; what has its rows in that file is not run again, even where its run
folder is gone.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.feature import multiscale_basic_features
from skimage.future import TrainableSegmenter
from sklearn.ensemble import RandomForestClassifier

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, make_config, parse_settings  # noqa: E402 - after the path
from datasets import Data  # noqa: E402
from evaluate import slice_table  # noqa: E402
from train import (  # noqa: E402
    CONTROL, LOGS, continue_supervised, evaluate_run, method_names, prepare, read_slices, train_mean_teacher,
    train_supervised,
)
from utils import (  # noqa: E402
    InputError, choose_device, environment, read_json, run_command_line, write_atomically, write_json,
)
from utils_viz import draw_ablation, draw_budgets  # noqa: E402

SEMI = ("run", "method", "freeze", "ema_alpha", "consistency", "consistency_weight", "ramp_epochs", "confidence",
        "hard_labels", "cutmix_p", "strong_views", "feature_dropout", "unlabelled_foreground")  # not of the control
SHARED = ("Otsu", "supervised", CONTROL)  # rows that runs with equal supervised phases have in common
FOREST = "random forest"


def plan(study: dict) -> list[tuple[dict, Config]]:
    """Every run: what it is called in the table, and its settings. Variants of one budget, fold and seed together."""
    keys = {"name", "data", "labels", "folds", "seeds", "settings", "variants"}
    for what, wrong in (("unknown", set(study) - keys), ("missing", keys - set(study))):
        if wrong:
            raise InputError(f"study: {what} {', '.join(sorted(wrong))}")
    runs = []
    for seed, labels, fold in itertools.product(study["seeds"], study["labels"], study["folds"]):
        for variant, settings in study["variants"].items():
            about = {"variant": variant, "labels": labels, "fold": fold, "seed": seed}
            given = {"split": "blocks", **study["settings"], **settings, "data": study["data"],
                     **{k: about[k] for k in ("labels", "fold", "seed")},
                     "run": f"{study['name']}_{variant}_l{labels}_f{fold}_s{seed}"}
            runs.append((about, make_config(**given)))
    return runs


def adopt(config: Config, donors: list[Config]) -> None:
    """Take the supervised phases of a run with the same ones, instead of training them again."""
    mine = config.run_folder / "phases.json"
    if mine.exists():
        return
    for donor in donors:
        theirs = donor.run_folder / "phases.json"
        phases = read_json(theirs) if digest(donor, SEMI) == digest(config, SEMI) and theirs.exists() else {}
        if "continued" in phases and donor.checkpoint("continued").exists():
            break
    else:
        return
    for phase in ("supervised", "continued"):
        config.checkpoint(phase).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(donor.checkpoint(phase), config.checkpoint(phase))
        shutil.copy(donor.run_folder / LOGS[phase], config.run_folder / LOGS[phase])
    write_json(mine, {phase: phases[phase] for phase in ("supervised", "continued")})


def run_one(config: Config, donors: list[Config]) -> None:
    """A run from its data to its tables, or what is left of it."""
    if (config.run_folder / "summary.json").exists():
        return
    data = prepare(config, resume=True)
    adopt(config, donors)
    train_supervised(config, data)
    continue_supervised(config, data)
    if config.method != "supervised":
        train_mean_teacher(config, data)
    evaluate_run(config, data)


def forest_scores(data: Data, seed: int, pixels: int = 20_000) -> pd.DataFrame:
    """Scores of a random forest on multiscale intensity, edge and texture features, one row per test slice.

    As in ilastik (Berg et al., 2019, doi:10.1038/s41592-019-0582-9) and Trainable Weka Segmentation (Arganda-Carreras
    et al., 2017, doi:10.1093/bioinformatics/btx180), but with `pixels` random pixels of every training slice instead
    of brush strokes, which is more than anybody paints.
    """
    rng = np.random.default_rng(seed)

    def features(image: np.ndarray) -> np.ndarray:                                    # (H, W, F)
        return multiscale_basic_features(image, sigma_min=1, sigma_max=16)

    samples, labels = [], []
    for s in data.train:
        chosen = rng.choice(s.mask.size, min(pixels, s.mask.size), replace=False)
        samples.append(features(s.image).reshape(s.mask.size, -1)[chosen])
        labels.append(s.mask.ravel()[chosen])
    forest = RandomForestClassifier(100, min_samples_leaf=5, n_jobs=-1, random_state=seed)
    segmenter = TrainableSegmenter(forest, features)
    segmenter.clf.fit(np.concatenate(samples), np.concatenate(labels))
    found = [segmenter.predict(s.image).astype(bool) for s in data.test]
    return slice_table({"random forest": found}, [s.mask.astype(bool) for s in data.test], [s.stem for s in data.test])


def forest_rows(about: dict, config: Config, known: pd.DataFrame) -> pd.DataFrame:
    """Scores of the pixel classifier for one budget, fold and seed; nothing where they are `known`."""
    about = {**about, "variant": FOREST}
    if finished(known, about, FOREST):
        return pd.DataFrame()
    return forest_scores(read_slices(config), about["seed"]).assign(
        role=FOREST, group=digest(config, SEMI), settings=FOREST, **about).drop(columns="method")


def run_rows(about: dict, config: Config, known: pd.DataFrame) -> pd.DataFrame:
    """A row per slice and model of a finished run, without the models that `known` rows of its group hold."""
    table = pd.read_csv(config.run_folder / "test_full.csv").merge(
        pd.read_csv(config.run_folder / "test_patches.csv"), on=["method", "stem"], suffixes=("", "_patch"))
    own = list(method_names(config.method))[2:]
    table["role"] = table.pop("method").map(lambda name: name.split()[-1] if name in own else name)
    group = digest(config, SEMI)
    if len(known) and (known["group"] == group).any():
        table = table[table["role"].isin(["student", "teacher"])]
    return table.assign(group=group, settings=digest(config), **about)


def finished(known: pd.DataFrame, about: dict, settings: str) -> bool:
    """Whether `known` holds rows of a run with this name and these settings."""
    wanted = {**about, "settings": settings}
    return len(known) > 0 and bool((known[list(wanted)] == list(wanted.values())).all(axis=1).any())


def of_plan(known: pd.DataFrame, runs: list[tuple[dict, Config]]) -> pd.DataFrame:
    """The rows of these runs, in their order; `study.csv` keeps those of variants that were changed or left out since.
    """
    own = known["settings"].isin([digest(config) for _, config in runs])
    shared = known["role"].isin([*SHARED, FOREST]) & known["group"].isin([digest(config, SEMI) for _, config in runs])
    order = {variant: i for i, variant in enumerate(dict.fromkeys(about["variant"] for about, _ in runs))}
    return known[own | shared].sort_values("variant", key=lambda v: v.map(order).fillna(len(order)), kind="stable")


def digest(config: Config, without: tuple[str, ...] = ("run",)) -> str:
    """Short name of settings; equal for equal ones. Where the data lie and on what device is left out."""
    left_out = {*without, "run", "data", "device", "num_workers"}
    text = json.dumps({k: v for k, v in dataclasses.asdict(config).items() if k not in left_out})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- statistics -----------------------------------------------------------------------------------------------

def bootstrap(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean of (slices, seeds) values, NaN where one is missing.

    Slices and seeds are resampled independently of each other: both are crossed, every slice is predicted with every
    seed (Owen, 2007, doi:10.1214/07-AOAS122).
    """
    rng, (slices, seeds) = np.random.default_rng(0), values.shape
    samples = [values[rng.integers(0, slices, slices)][:, rng.integers(0, seeds, seeds)] for _ in range(draws)]
    low, high = np.quantile([np.nanmean(s) for s in samples if not np.isnan(s).all()], (0.025, 0.975))
    return low, high


def paired(table: pd.DataFrame, metric: str = "dice", draws: int = 10_000) -> dict:
    """Mean difference to the control with its 95 % bootstrap interval, and a sign-flip test.

    The test flips the sign of whole slices, averaged over seeds, so seeds do not count as further evidence. A slice
    may lack a seed while a study is under way.

    Parameters
    ----------
    table : DataFrame
        Columns `stem`, `seed`, `metric` and `control`: the score, and that of the control on the same slice and seed.
    """
    gains = crossed(table.assign(gain=table[metric] - table["control"]), "gain")
    each, rng = np.nanmean(gains, axis=1), np.random.default_rng(0)
    flips = rng.choice([-1.0, 1.0], (draws, len(each))) @ each / len(each)
    p = (1 + np.count_nonzero(np.abs(flips) >= abs(each.mean()) - 1e-12)) / (1 + draws)
    low, high = bootstrap(gains, draws)
    return {"gain": each.mean(), "gain_low": low, "gain_high": high, "p": p}


def crossed(table: pd.DataFrame, metric: str) -> np.ndarray:
    """(slices, seeds) values of a column."""
    return table.pivot_table(index="stem", columns="seed", values=metric).to_numpy()


def summarise_study(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """A row per label budget, variant and role: mean score with its interval, and the comparison with the control.

    `gain` is against the control of the same run, `change` against the same role of the first variant (ablations).
    """
    rows, first = [], table["variant"].iloc[0]
    control = table[table["role"] == CONTROL].set_index(["group", "stem"])[metric].rename("control")
    same = ["labels", "fold", "seed", "stem", "role"]
    base = table[table["variant"] == first].set_index(same)[metric].rename("control")
    for (labels, variant, role), part in table.groupby(["labels", "variant", "role"], sort=False):
        values = crossed(part, metric)
        low, high = bootstrap(values)
        row = {"labels": labels, "variant": variant, "role": role, metric: part[metric].mean(), "low": low,
               "high": high, "slices": values.shape[0], "seeds": values.shape[1]}
        if role not in (CONTROL, "Otsu"):
            row |= paired(part.join(control, on=["group", "stem"]), metric)
        both = part.join(base, on=same, how="inner")
        if variant != first and len(both):
            row |= {k.replace("gain", "change"): v for k, v in paired(both, metric).items() if k != "p"}
        rows.append(row)
    return pd.DataFrame(rows)


def write_study(folder: Path, study: dict, table: pd.DataFrame) -> pd.DataFrame:
    """`summary.csv`, `study.json` and the figures of the rows of a study; the summary."""
    summary = summarise_study(table)
    write_atomically(folder / "summary.csv", lambda path: summary.to_csv(path, index=False))
    write_json(folder / "study.json", {**study, "data": Path(study["data"]).name,
                                       "environment": environment(choose_device())})
    (folder / "figures").mkdir(exist_ok=True)
    draw_budgets(summary).savefig(folder / "figures" / "budgets.png", dpi=100)
    for column, of in (("gain", "the control"), ("change", next(iter(study["variants"])))):
        if column in summary:
            draw_ablation(summary, column, of).savefig(folder / "figures" / f"{column}s.png", dpi=100)
    return summary


def main() -> None:
    """Run what is not finished, then write rows, summary and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="JSON file that says what to run")
    parser.add_argument("--summary", action="store_true", help="run nothing, only sum up the rows that are there")
    parser.add_argument("--data", help="data folder, where it is not the one that the file names")
    parser.add_argument("--name", help="name of the study, likewise: runs/study_NAME")
    arguments, rest = parser.parse_known_args()
    study = read_json(arguments.study)
    study |= {key: value for key in ("data", "name") if (value := getattr(arguments, key))}
    study["settings"] = {**study.get("settings", {}), **parse_settings(rest)}
    runs = plan(study)
    configs = [config for _, config in runs]
    folder = Path("runs") / f"study_{study['name']}"
    rows = folder / "study.csv"
    known = pd.read_csv(rows) if rows.exists() else pd.DataFrame()
    for number, (about, config) in enumerate(runs, 1):
        if arguments.summary or finished(known, about, digest(config)):
            continue
        print(f"run {number} of {len(runs)}: {about}", flush=True)
        run_one(config, configs)
        known = pd.concat([known, run_rows(about, config, known)], ignore_index=True)
        known = pd.concat([known, forest_rows(about, config, known)], ignore_index=True)
        write_atomically(rows, lambda path, t=known: t.to_csv(path, index=False))
    known = of_plan(known, runs) if len(known) else known
    if known.empty:
        raise InputError(f"{folder}: no finished run of this study yet")
    print(write_study(folder, study, known).round(4).to_string(index=False))


if __name__ == "__main__":
    run_command_line(main)
