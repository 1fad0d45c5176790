"""What keeps the Dice of finished runs below 1: what kind of errors is left, and would another model make them too?

    python benchmarks/ceiling.py runs/NAME [runs/NAME …] [--output FILE.csv]

For each run and test slice (from `predictions.npz`): the Dice of its last method, the Dice without a band along the
true outline, and how much of the true area is lost to missed particles, to invented ones, and to outlines. Runs
that share test slices, such as seeds, are compared with each other: models that agree far better with each other than
with the annotation have learnt one reading of the images, and more training of the same kind moves little. How much
neighbouring annotations differ stands below for the slices of the runs' data folder.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.files import read_json, write_atomically  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from slices.data_folder import load_labelled  # noqa: E402 - after the path
from slices.options import IMAGES, MASKS, Reading  # noqa: E402 - after the path
from slices.pairing import last_number, pair_files  # noqa: E402
from slices.reading import MASK_SUFFIXES, Slice, list_files  # noqa: E402
from utils import overlap_metrics  # noqa: E402
from viz.run_files import read_npz  # noqa: E402
from viz.slice_figures import lost_particles  # noqa: E402

BAND = 3  # px on both sides of an outline: a brush stroke


def error_budget(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Wrong pixels by kind, each as a share of the true area; their sum is (FP + FN) / true area.

    `missed` and `invented`: of particles as in `viz.slice_figures.lost_particles`; `outline`: the
    others, where a particle was found but its shape differs.

    Parameters
    ----------
    prediction, truth : (H, W) bool ndarrays
    """
    wrong = prediction ^ truth
    missed, invented = (
        wrong & (lost_particles(mine, other) > 0)
        for mine, other in ((truth, prediction), (prediction, truth))
    )
    area = max(1, np.count_nonzero(truth))
    counts = {"missed": missed, "invented": invented, "outline": wrong & ~missed & ~invented}
    return {name: np.count_nonzero(pixels) / area for name, pixels in counts.items()}


def dice_without_band(prediction: np.ndarray, truth: np.ndarray, band: int = BAND) -> float:
    """Dice of the pixels farther than `band` pixels from the true outline; an error there is not one of outlines."""
    distance = np.where(
        truth, ndimage.distance_transform_edt(truth), ndimage.distance_transform_edt(~truth)
    )
    far = distance > band
    return overlap_metrics(prediction & far, truth & far)["dice"]


def run_rows(run: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A row per test slice of a run, and the predicted masks by stem; of the last method in its tables."""
    stored = read_npz(run / "predictions.npz")
    method, threshold = str(stored["methods"][-1]), float(stored["threshold"])
    rows, masks = [], {}
    for i, stem in enumerate(map(str, stored["stems"])):
        truth = stored[f"truth_{i}"].astype(bool)
        masks[stem] = stored[f"{method}_{i}"] / 255 >= threshold
        rows.append(
            {
                "run": run.name,
                "method": method,
                "stem": stem,
                "dice": overlap_metrics(masks[stem], truth)["dice"],
                "dice_without_band": dice_without_band(masks[stem], truth),
                **error_budget(masks[stem], truth),
            }
        )
    if not rows:
        raise InputError(f"{run}: has no test slice")
    return pd.DataFrame(rows), masks


def agreement(predicted: list[dict[str, np.ndarray]]) -> pd.Series:
    """Mean Dice between the masks of every two runs, by stem; empty where no slice was predicted twice."""
    rows = [
        {"stem": stem, "dice": overlap_metrics(one[stem], other[stem])["dice"]}
        for one, other in itertools.combinations(predicted, 2)
        for stem in one
        if stem in other
    ]
    return pd.DataFrame(rows, columns=["stem", "dice"]).groupby("stem")["dice"].mean()


def neighbours(slices: list[Slice]) -> pd.DataFrame:
    """Dice between the annotations of slices that follow each other and have one size; `distance`: of their numbers."""
    return pd.DataFrame(
        [
            {
                "one": a.stem,
                "other": b.stem,
                "distance": (last_number(b.stem) or 0) - (last_number(a.stem) or 0),
                "dice": overlap_metrics(a.mask, b.mask)["dice"],
            }
            for a, b in itertools.pairwise(slices)
            if a.mask.shape == b.mask.shape
        ],
        columns=["one", "other", "distance", "dice"],
    )


def main() -> None:
    """Print the tables; write the rows where asked to."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="runs/NAME")
    parser.add_argument("--output", type=Path, help="write the rows of all runs to this CSV file")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not (run / "predictions.npz").exists():
            raise InputError(
                f"{run / 'predictions.npz'}: missing; it is written at the end of a run"
            )
    tables, predicted = zip(*map(run_rows, arguments.runs), strict=True)
    table = pd.concat(tables, ignore_index=True)
    print(table.groupby("run", sort=False).mean(numeric_only=True).round(4).to_string())
    print(table.mean(numeric_only=True).round(4).rename("all").to_frame().T.to_string())
    both = agreement(list(predicted))
    table["agreement"] = table["stem"].map(both)  # of every two runs on this slice
    if len(both):
        print(
            f"Dice of two runs with each other: {both.mean():.4f}, of one with the truth: "
            f"{table[table['stem'].isin(both.index)]['dice'].mean():.4f} ({len(both)} slices)"
        )
    if arguments.output:
        write_atomically(arguments.output, lambda path: table.to_csv(path, index=False))
    config = read_json(arguments.runs[0] / "config.json")
    pairing = pair_files(
        list_files(Path(config["data"]) / IMAGES),
        list_files(Path(config["data"]) / MASKS, MASK_SUFFIXES),
    )
    reading = Reading(
        percentiles=tuple(config["percentiles"]), mask_foreground=config["mask_foreground"]
    )
    slices = list(load_labelled(pairing, reading).values())
    if len(near := neighbours(slices)):
        near = near[near["distance"] == near["distance"].min()]["dice"]
        print(
            f"Dice of neighbouring annotations: {near.mean():.4f} ({near.min():.4f} to {near.max():.4f}, "
            f"{len(near)} pairs)"
        )


if __name__ == "__main__":
    run_command_line(main)
