"""Which method pays, and with how many labels: variants × label budgets × block folds × seeds, on one data set.

    python benchmarks/study.py FILE.json [--summary]

FILE.json holds `name`, `data`, `labels`, `folds`, `seeds`, `settings` (of every run) and `variants` (name → settings
of that variant, `method` among them). Each run is a folder `runs/NAME_VARIANT_lL_fF_sS`, made by the same functions
as `train.py`; runs that do not differ before the semi-supervised phase share their supervised models, so every
variant is compared with the very control it has. The random-forest pixel classifier that ilastik and Weka made popular
is trained on the same slices. A stopped study goes on where it was; finished runs are kept. Rows (one per slice and
model) go to `runs/study_NAME/study.csv`, the summary beside it.
"""

import argparse
import dataclasses
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

from config import Config, make_config  # noqa: E402 - after the path
from datasets import Data  # noqa: E402
from evaluate import slice_table  # noqa: E402
from train import (  # noqa: E402
    CONTROL, LOGS, continue_supervised, evaluate_run, method_names, prepare, read_slices, train_mean_teacher,
    train_supervised,
)
from utils import InputError, read_json, run_command_line, write_atomically, write_json  # noqa: E402

SEMI = ("run", "method", "freeze", "ema_alpha", "consistency", "consistency_weight", "ramp_epochs", "confidence",
        "hard_labels", "cutmix_p", "strong_views", "feature_dropout", "unlabelled_foreground")


def plan(study: dict) -> list[tuple[dict, Config]]:
    """Every run: what it is called in the table, and its settings. Variants of one budget, fold and seed together."""
    unknown = set(study) - {"name", "data", "labels", "folds", "seeds", "settings", "variants"}
    if unknown:
        raise InputError(f"study: unknown {', '.join(sorted(unknown))}")
    runs = []
    for seed, labels, fold in itertools.product(study["seeds"], study["labels"], study["folds"]):
        for variant, settings in study["variants"].items():
            about = {"variant": variant, "labels": labels, "fold": fold, "seed": seed}
            given = {"split": "blocks", **study["settings"], **settings, "data": study["data"],
                     **{k: about[k] for k in ("labels", "fold", "seed")},
                     "run": f"{study['name']}_{variant}_l{labels}_f{fold}_s{seed}"}
            runs.append((about, make_config(**given)))
    return runs


def key(config: Config) -> str:
    """Equal for runs whose supervised phases are equal."""
    return json.dumps({k: v for k, v in dataclasses.asdict(config).items() if k not in SEMI})


def adopt(config: Config, donor: Config) -> None:
    """Take the supervised phases of a finished run with the same settings, instead of training them again."""
    phases = read_json(donor.run_folder / "phases.json")
    mine = config.run_folder / "phases.json"
    if mine.exists():
        return
    for phase in ("supervised", "continued"):
        config.checkpoint(phase).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(donor.checkpoint(phase), config.checkpoint(phase))
        shutil.copy(donor.run_folder / LOGS[phase], config.run_folder / LOGS[phase])
    write_json(mine, {phase: phases[phase] for phase in ("supervised", "continued")})


def run_one(config: Config, donor: Config | None) -> None:
    """A run from its data to its tables, or what is left of it."""
    if (config.run_folder / "summary.json").exists():
        return
    data = prepare(config, resume=True)
    if donor is not None:
        adopt(config, donor)
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


def run_forest(study: dict, about: dict, config: Config) -> None:
    """Scores of the pixel classifier for one budget, fold and seed, unless they are there."""
    path = forest_path(study, about)
    if not path.exists():
        table = forest_scores(read_slices(config), about["seed"])
        write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def forest_path(study: dict, about: dict) -> Path:
    """Where the pixel classifier's scores for one budget, fold and seed are kept."""
    name = f"forest_l{about['labels']}_f{about['fold']}_s{about['seed']}.csv"
    return Path("runs") / f"study_{study['name']}" / name


def collect(study: dict) -> pd.DataFrame:
    """A row per slice and model of every finished run; models that several variants share appear once."""
    tables, seen = [], set()
    for about, config in plan(study):
        path = config.run_folder / "test_full.csv"
        if not (config.run_folder / "summary.json").exists():
            continue
        table = pd.read_csv(path).merge(pd.read_csv(config.run_folder / "test_patches.csv"), on=["method", "stem"],
                                        suffixes=("", "_patch"))
        own = list(method_names(config.method))[2:]
        table["role"] = table["method"].map({name: name.split()[-1] for name in own}).fillna(table["method"])
        table["method"] = about["variant"]
        table["group"] = f"{key(config)}"
        fresh = table["role"].isin(["student", "teacher"]) | (key(config) not in seen)
        seen.add(key(config))
        forest = forest_path(study, about)
        if forest.exists() and forest not in seen:
            seen.add(forest)
            table = pd.concat([table[fresh], pd.read_csv(forest).assign(role="random forest", group=key(config))])
            fresh = slice(None)
        tables.append(table[fresh].assign(**{k: v for k, v in about.items() if k != "variant"}))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if len(table):
        codes = {k: i for i, k in enumerate(dict.fromkeys(table["group"]))}
        table["group"] = table["group"].map(codes)
    return table


def paired(table: pd.DataFrame, metric: str = "dice", draws: int = 10_000) -> dict:
    """Mean difference to the control with its 95 % bootstrap interval over slices and seeds, and a sign-flip test.

    Slices and seeds are resampled independently of each other (both are crossed: every slice is predicted with every
    seed). The test flips the sign of whole slices, averaged over seeds, so seeds do not count as further evidence.
    A slice may lack a seed while a study is under way.

    Parameters
    ----------
    table : DataFrame
        Columns `stem`, `seed`, `metric` and `control`: the score, and that of the control on the same slice and seed.
    """
    grid = table.assign(gain=table[metric] - table["control"]).pivot_table(index="stem", columns="seed", values="gain")
    gains, rng = grid.to_numpy(), np.random.default_rng(0)
    slices, seeds = gains.shape
    samples = [gains[rng.integers(0, slices, slices)][:, rng.integers(0, seeds, seeds)] for _ in range(draws)]
    means = [np.nanmean(sample) for sample in samples if not np.isnan(sample).all()]
    each = np.nanmean(gains, axis=1)
    flips = rng.choice([-1.0, 1.0], (draws, slices)) @ each / slices
    p = (1 + np.count_nonzero(np.abs(flips) >= abs(each.mean()) - 1e-12)) / (1 + draws)
    return {"gain": each.mean(), "gain_low": np.quantile(means, 0.025), "gain_high": np.quantile(means, 0.975),
            "p": p, "slices": slices, "seeds": seeds}


def summarise_study(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """A row per label budget, variant and role: mean score, and the paired comparison with the control."""
    rows = []
    control = table[table["role"] == CONTROL].set_index(["group", "stem"])[metric].rename("control")
    for (labels, method, role), part in table.groupby(["labels", "method", "role"], sort=False):
        row = {"labels": labels, "variant": method, "role": role, metric: part[metric].mean()}
        if role not in (CONTROL, "Otsu"):
            row |= paired(part.join(control, on=["group", "stem"]), metric)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Run what is not finished, then write rows and summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="JSON file that says what to run")
    parser.add_argument("--summary", action="store_true", help="run nothing, only collect what is finished")
    arguments = parser.parse_args()
    study = read_json(arguments.study)
    runs, donors = plan(study), {}
    folder = Path("runs") / f"study_{study['name']}"
    for number, (about, config) in enumerate(runs, 1):
        if not arguments.summary:
            print(f"run {number} of {len(runs)}: {about}", flush=True)
            run_forest(study, about, config)
            run_one(config, donors.get(key(config)))
            donors[key(config)] = config
            table = collect(study)
            write_atomically(folder / "study.csv", lambda path, t=table: t.to_csv(path, index=False))
    table = collect(study)
    if table.empty:
        raise InputError(f"{folder}: no finished run yet")
    summary = summarise_study(table)
    for name, content in (("study.csv", table), ("summary.csv", summary)):
        write_atomically(folder / name, lambda path, t=content: t.to_csv(path, index=False))
    write_json(folder / "study.json", study)
    print(summary.round(4).to_string(index=False))


if __name__ == "__main__":
    run_command_line(main)
