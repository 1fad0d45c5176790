"""How long one core takes to make a sample: weak and strong views and mask of a crop, for each recipe.

    python benchmarks/loader.py [--data DIR] [--samples 60] [--output FILE.json]

Without DIR on a demo that is written for it. One thread; slices are in memory, as in training. Milliseconds per sample,
median and mean over the samples. A GPU needs a batch of labelled and one of unlabelled samples per step: what a step
may take on it, divided by the samples of both, times the number of worker processes, is what a sample may take here.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import processor  # noqa: E402 - after the path
from config import make_config  # noqa: E402
from datasets import Views, view_options  # noqa: E402
from demo_data import write_demo  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.files import write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment  # noqa: E402
from training.preparation import read_slices  # noqa: E402

METHODS = ("mean_teacher", "cutmix_mt", "fixmatch", "unimatch", "best")


def time_samples(views: Views, samples: int) -> dict[str, float]:
    """Median and mean milliseconds of so many samples, after a few that are not counted."""
    count = len(views.slices)
    for seed in range(5):
        views[seed % count, seed]
    seconds = []
    for seed in range(samples):
        began = time.perf_counter()
        views[seed % count, seed]
        seconds.append(time.perf_counter() - began)
    return {
        "median_ms": round(1e3 * float(np.median(seconds)), 2),
        "mean_ms": round(1e3 * float(np.mean(seconds)), 2),
    }


def measure(data: str, samples: int) -> list[dict]:
    """A row per recipe and kind of slice."""
    rows = []
    for method in METHODS:
        config = make_config(method=method, data=data, roi=None, split="blocks", labels=2)
        slices = read_slices(config)
        kinds = {
            "labelled": Views(slices.train, view_options(config, has_weak_view=False)),
            "unlabelled": Views(slices.unlabelled, view_options(config, config.strong_views)),
        }
        for kind, views in kinds.items():
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    **time_samples(views, samples),
                    "kilobytes": round(views.item_bytes / 1000),
                }
            )
            print(
                "{method:14s} {kind:11s} {median_ms:7.2f} ms (mean {mean_ms:.2f}), {kilobytes} kB".format(
                    **rows[-1]
                ),
                flush=True,
            )
    return rows


def main() -> None:
    """Measure, print, and write where asked."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data folder (default: a demo)")
    parser.add_argument(
        "--samples", type=int, default=60, help="of each recipe and kind (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="write the table to this .json file")
    arguments = parser.parse_args()
    if arguments.samples < 1:
        raise InputError("--samples: expected 1 or more")

    if arguments.output:
        arguments.output.parent.mkdir(
            parents=True, exist_ok=True
        )  # an error before the measurement, not after it
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = f"{folder}/demo"
            write_demo(Path(data), scans=6, labelled=6)
        rows = measure(data, arguments.samples)
    if arguments.output:
        device = torch.device("cpu")
        write_json(
            arguments.output,
            {"processor": processor(device), "environment": environment(device), "rows": rows},
        )


if __name__ == "__main__":
    run_command_line(main)
