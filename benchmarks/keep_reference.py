"""Keep what `make notebook` has made as the reference runs: tables, some figures, and the network that is recommended.

    python benchmarks/keep_reference.py

The network is stored in half precision, which halves the file: `checkpoints/reference_demo_auto`. Its pixel classifier
stays as it is, for features are differences of grey values that are nearly equal.
"""

import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evaluation.recommendation import recommended_checkpoint  # noqa: E402 - after the path
from runtime.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.messages import InputError  # noqa: E402

FIGURES = {
    "demo": ("calibration", "curves", "paired", "slice"),
    "demo_auto": ("calibration", "curves", "methods_slice_00", "paired", "sizes", "worst"),
}
OF_NETWORK = "demo_auto"


def keep_tables(run: str) -> None:
    """Copy the tables of a run, and its figures that are tracked."""
    folder, kept = Path("runs") / run, Path("runs") / f"reference_{run}"
    # What an earlier run had, and this one has not, would seem to be of this one.
    shutil.rmtree(kept, ignore_errors=True)
    (kept / "figures").mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.csv"), *folder.glob("*.json")]:
        shutil.copy(path, kept)
    for name in FIGURES[run]:
        shutil.copy(folder / "figures" / f"{name}.png", kept / "figures")


def keep_network(run: str) -> Path:
    """Write the recommended network of a run in half precision; return its file."""
    path, _ = recommended_checkpoint(Path("checkpoints") / run)
    weights, details = load_checkpoint(path)
    kept = Path("checkpoints") / f"reference_{run}" / path.name
    shutil.rmtree(kept.parent, ignore_errors=True)
    kept.parent.mkdir(parents=True)
    save_checkpoint(kept, halve(weights), details)
    return kept


def halve(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with those of the U-Net, not of its pixel classifier, as float16."""
    halved = {}
    for name, tensor in weights.items():
        is_of_classifier = name.startswith("pixel_classifier.")
        if tensor.dtype == torch.float32 and not is_of_classifier:
            tensor = tensor.half()
        halved[name] = tensor
    return halved


def main() -> None:
    """Keep both runs, and name what was written."""
    Parser(description=__doc__.splitlines()[0]).parse_args()
    missing = [run for run in FIGURES if not (Path("runs") / run / "summary.json").exists()]
    if missing:
        raise InputError(f"runs/{missing[0]}: no finished run; make notebook makes it")
    for run in FIGURES:
        keep_tables(run)
    print(keep_network(OF_NETWORK))


if __name__ == "__main__":
    run_command_line(main)
