"""Does the ranking of `annotate_next.csv` help? A simulated annotator paints one more slice of the demo data.

    python benchmarks/annotation.py [--seeds 3] [--random 4] [--held-out 10] [--any-setting=value of train.py]

A model is trained on two labelled slices and ranks the unlabelled scans. Then, for the first of the ranking, for the
scan of which the model is least certain (highest entropy) and for some chosen at random, the true mask is added and the
supervised model trained anew, with as many steps. All are scored on scans that nobody could choose. Without a GPU,
settings that are not given are those of the CPU profile. Rows go to `runs/annotation/annotation.csv`, settings to a
JSON file beside it that their column `settings` names; what is there is not run again, and rows of other settings or
scans stay.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study import digest, finished  # noqa: E402 - after the path
from config import Config, make_config, parse_settings, profile  # noqa: E402 - after the path
from demo_data import truth_folder_of  # noqa: E402
from evaluation.annotate_next import rank_unlabelled  # noqa: E402
from evaluation.metrics import slice_table  # noqa: E402
from model_unet import UNet  # noqa: E402
from runtime.checkpoints import load_checkpoint  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import write_atomically, write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from slices.data_folder import Data  # noqa: E402
from slices.masks import read_mask  # noqa: E402
from slices.reading import (  # noqa: E402
    Slice,
    crop_roi,
    evenly_spaced,
)
from train import train_semi_supervised, train_supervised  # noqa: E402
from training.preparation import prepare  # noqa: E402
from utils import predict_image  # noqa: E402
from viz.run_files import read_table  # noqa: E402

RESULTS = Path("runs/annotation/annotation.csv")


def truth_file(s: Slice, config: Config) -> Path:
    """Where the demo keeps the mask of a scan: outside the data folder. Hidden labels of slices are not there."""
    return truth_folder_of(Path(config.data)) / f"{s.stem}.png"


def annotate(s: Slice, config: Config) -> Slice:
    """The scan with its true mask."""
    truth = truth_file(s, config)
    return dataclasses.replace(s, mask=crop_roi(read_mask(truth), config.roi, str(truth)))


def score(config: Config, scans: list[Slice]) -> pd.DataFrame:
    """Dice of the supervised model on each annotated scan."""
    device = choose_device(config.device)
    model = UNet.from_weights(load_checkpoint(config.checkpoint("supervised"))[0]).to(device)
    masks = [
        predict_image(model, s.image, device, config.sliding_window) >= config.threshold
        for s in scans
    ]
    return slice_table(
        {"supervised": masks}, [s.mask.astype(bool) for s in scans], [s.stem for s in scans]
    )


def choices(config: Config, data: Data, held_out: list[Slice], count: int) -> list[tuple[str, str]]:
    """(how it was chosen, stem): the first of the ranking, the least certain, and `count` at random."""
    away = {s.stem for s in held_out}
    pool = [s for s in data.unlabelled if s.stem not in away and truth_file(s, config).exists()]
    ranking = rank_unlabelled(config, dataclasses.replace(data, unlabelled=pool)).set_index("stem")
    drawn = np.random.default_rng([config.seed, 77]).choice(
        sorted(ranking.index), count, replace=False
    )
    return [
        ("first", ranking.index[0]),
        ("least certain", ranking["entropy"].idxmax()),
        *(("random", stem) for stem in drawn),
    ]


def run_seed(
    arguments: dict,
    seed: int,
    count: int,
    held_out: int,
    known: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`known` with the rows of one seed that were not in it yet, and the rows of that seed."""
    changes = profile("auto", choose_device(arguments.get("device", "auto")))
    config = make_config(
        **{
            "labels": 2,
            "data": "data/demo",
            **changes,
            **arguments,
            "seed": seed,
            "run": "annotation",
        }
    )
    steps = config.steps_per_epoch or max(
        1, config.labels // config.batch_size
    )  # the same with one more slice
    config = dataclasses.replace(config, steps_per_epoch=steps)
    name = digest(config, ("run", "seed"))
    config = dataclasses.replace(config, run=f"annotation_s{seed}_{name}")
    data = prepare(config, resume=True)
    train_supervised(config, data)
    train_semi_supervised(config, data)
    scans = {s.stem: s for s in data.unlabelled if truth_file(s, config).exists()}
    if len(scans) < held_out + count + 1:
        raise InputError(
            f"{config.data}: {len(scans)} scans with a known mask, expected {held_out + count + 1} or "
            "more; use the demo data of demo_data.py"
        )
    kept = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run", "seed")}
    write_json(RESULTS.with_name(f"{name}.json"), {**kept, "data": Path(config.data).name})
    scored = [annotate(s, config) for s in evenly_spaced(list(scans.values()), held_out)]
    details = {"settings": name, "held_out": held_out, "seed": seed}
    mine = []
    for how, stem in [("none", ""), *choices(config, data, scored, count)]:
        this = {**details, "how": how, "added": stem}
        mine.append(this)
        if finished(known, this):
            continue
        more = config if how == "none" else dataclasses.replace(config, run=f"{config.run}_{stem}")
        if how != "none":
            prepare(more, resume=True)
            train_supervised(
                more, dataclasses.replace(data, train=[*data.train, annotate(scans[stem], config)])
            )
        rows = score(more, scored).assign(**this)
        known = pd.concat([known, rows], ignore_index=True)
        write_atomically(RESULTS, lambda path, t=known: t.to_csv(path, index=False))
    return known, known.merge(pd.DataFrame(mine))  # not what another ranking chose


def interval_of(gains: pd.Series) -> str:
    """Mean, 95 % t-interval and number of these values, as text."""
    low, high = gains.mean() + gains.sem() * np.array(
        stats.t.interval(0.95, max(1, len(gains) - 1))
    )
    return f"{gains.mean():+.4f} (95 % {low:+.4f} to {high:+.4f}, n = {len(gains)})"


def main() -> None:
    """All seeds, then the mean Dice by how the slice was chosen, and each choice against random for each seed."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (%(default)s)")
    parser.add_argument(
        "--random", type=int, default=4, help="slices chosen at random, per seed (%(default)s)"
    )
    parser.add_argument("--held-out", type=int, default=10, help="scans to score on (%(default)s)")
    arguments, rest = parser.parse_known_args()
    given, tables = parse_settings(rest), []
    if wrong := sorted({"seed", "run"} & set(given)):
        raise InputError(f"--{wrong[0]}: is set by this script; use --seeds")
    if given.get("method") == "supervised":
        raise InputError(
            "--method supervised: has no teacher to rank with; choose a semi-supervised method"
        )
    for name in ("seeds", "random", "held_out"):
        if getattr(arguments, name) < 1:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(arguments, name)}: expected 1 or more"
            )
    texts = dict.fromkeys(("settings", "how", "added", "stem"), str)  # a hash of digits stays one
    known = (
        read_table(RESULTS, *texts, keep_default_na=False, dtype=texts)
        if RESULTS.exists()
        else pd.DataFrame()
    )
    for seed in range(arguments.seeds):
        known, mine = run_seed(given, seed, arguments.random, arguments.held_out, known)
        tables.append(mine)
    means = pd.concat(tables).groupby(["seed", "how", "added"], sort=False)["dice"].mean()
    print(means.round(4).to_string())
    table = means.groupby(["seed", "how"], sort=False).mean().unstack("how")
    print(table.round(4).to_string())
    for how in ("first", "least certain"):
        gain = (table[how] - table["random"]).rename("gain").reset_index()
        chosen = means.reset_index().query("how == @how")[["seed", "added"]].merge(gain)
        print(
            f"{how} − random: {interval_of(gain['gain'])} over seeds "
            f"({', '.join(f'{g:+.4f}' for g in gain['gain'])}), which chose the same slices again: "
            f"{interval_of(chosen.groupby('added')['gain'].mean())} over the slices chosen"
        )


if __name__ == "__main__":
    run_command_line(main)
