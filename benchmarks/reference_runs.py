"""The reference runs in one call: the demo, and with --real a real data set in folds of contiguous blocks.

    python benchmarks/reference_runs.py [--real DIR] [--methods mean_teacher,best] [--profile auto|full|cpu]
                                        [-- any option of train.py]

Each method is a run of its own, through the command lines that users have: train, predict on the test slices, evaluate.
A table of all runs is printed at the end, and written to runs/reference_table.csv.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.messages import InputError  # noqa: E402

TEACHER = "best_ssl_teacher.safetensors"


def call(module: str, *arguments: object) -> None:
    """Run one of the command lines; its failure ends this script with the same status."""
    status = subprocess.run(
        [sys.executable, ROOT / f"{module}.py", *map(str, arguments)]
    ).returncode
    if status:
        sys.exit(status)


def run_once(data: Path, run: str, method: str, options: list[str]) -> pd.DataFrame:
    """Train, predict the test slices with the teacher, evaluate; the per-slice table of the full images."""
    call("train", "--data", data, "--run", run, "--method", method, "--resume", *options)
    images, masks = data / "labeled" / "Original_images", data / "labeled" / "Original_masks"
    stems = json.loads((Path("runs") / run / "split.json").read_text())["test"]
    with tempfile.TemporaryDirectory() as folder:
        test, output = Path(folder) / "test", Path(folder) / "masks"
        test.mkdir()
        for stem in stems:
            (test / f"{stem}.tif").symlink_to((images / f"{stem}.tif").resolve())
        call(
            "predict",
            test,
            "--checkpoint",
            Path("checkpoints") / run / TEACHER,
            "--output",
            output,
            *["--tta"] * json.loads((Path("runs") / run / "config.json").read_text())["tta"],
        )
        call(
            "evaluate",
            "--pred",
            output,
            "--truth",
            masks,
            "--output",
            Path("runs") / run / "predicted_masks.csv",
        )
    return pd.read_csv(Path("runs") / run / "test_full.csv").assign(run=run)


def main() -> None:
    """Run what was asked for and print mean scores by method."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--real", type=Path, help="data folder with real slices; each fold is one run"
    )
    parser.add_argument(
        "--methods", default="mean_teacher,best", help="presets, by comma (%(default)s)"
    )
    parser.add_argument(
        "--folds", type=int, default=3, help="contiguous blocks of the real slices (%(default)s)"
    )
    parser.add_argument(
        "--labels",
        type=int,
        default=4,
        help="labelled training slices per fold, 0: all (%(default)s)",
    )
    parser.add_argument("--no-demo", action="store_true", help="leave the demo out")
    parser.add_argument("--profile", default="auto", choices=["auto", "full", "cpu"])
    arguments, options = parser.parse_known_args()
    options = ["--profile", arguments.profile, *(o for o in options if o != "--")]
    tables = []
    if arguments.no_demo and not arguments.real:
        raise InputError("--no-demo: leaves nothing to run without --real DIR")
    if arguments.folds < 1:
        raise InputError(f"--folds {arguments.folds}: expected 1 or more")
    if not arguments.no_demo and not Path("data/demo").exists():
        call("demo_data", "--output", "data/demo")
    for method in arguments.methods.split(","):
        suffix = "" if method == "mean_teacher" else f"_{method}"
        if not arguments.no_demo:
            tables.append(run_once(Path("data/demo"), f"reference_demo{suffix}", method, options))
        for fold in range(arguments.folds if arguments.real else 0):
            blocks = [
                "--split",
                "blocks",
                "--test-fraction",
                1 / arguments.folds,
                "--val-fraction",
                1 / 6,
                "--fold",
                fold,
                "--labels",
                arguments.labels,
            ]
            name = f"reference_real{suffix}_fold{fold}"
            tables.append(run_once(arguments.real, name, method, [*map(str, blocks), *options]))
    table = pd.concat(tables)
    table.to_csv("runs/reference_table.csv", index=False)
    table["data"] = table["run"].str.replace(r"_fold\d+", "", regex=True)
    scores = table.groupby(["data", "method"], sort=False)[["dice", "iou", "surface_dice"]]
    print(scores.agg(["mean", "count"]).round(4).to_string())


if __name__ == "__main__":
    run_command_line(main)
