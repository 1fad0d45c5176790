"""A demo volume from slices to sizes, by the command lines that users have: predicted, killed and continued, measured.

    python benchmarks/whole_volume.py --checkpoint checkpoints/demo_best/best_ssl_teacher.safetensors

Writes the volume with its truth where it is missing; predicts its slices twice, once killed by SIGKILL half-way and
continued, and compares the bytes; predicts along three axes; scores all of it and measures particles of the true and
the predicted masks. Tables, `sizes.png`, and `reference.json` with seconds and peak memory go to runs/reference_volume.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from blocks import BLOCK  # noqa: E402 - after the path
from particles import SMALLEST  # noqa: E402
from utils import choose_device, environment, read_json, run_command_line, write_json  # noqa: E402

RUN = Path("runs/reference_volume")


class Step:
    """One of the command lines in a process of its own; what it prints goes to a file."""

    def __init__(self, log: Path, module: str, *arguments: object):
        self.log, self.begun = log, time.monotonic()
        print("python", f"{module}.py", *arguments)
        with log.open("w") as file:
            self.process = subprocess.Popen([sys.executable, ROOT / f"{module}.py", *map(str, arguments)],
                                            stdout=file, stderr=subprocess.STDOUT)

    def finish(self) -> dict[str, float]:
        """Wait for it: `seconds` and `peak_mb`; ends this script with the status of a process that failed."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            print(self.log.read_text()[-2000:], file=sys.stderr)
            sys.exit(code)
        return {"seconds": round(time.monotonic() - self.begun, 1), "peak_mb": round(usage.ru_maxrss / 1024)}

    def kill_when(self, folder: Path, blocks: int) -> int:
        """Kill it once `folder` holds so many blocks; how many it holds then.

        Raises
        ------
        RuntimeError
            When it ended before.
        """
        while self.process.poll() is None:
            if len(list(folder.glob("0*.npz"))) >= blocks:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                return len(list(folder.glob("0*.npz")))
            time.sleep(0.01)
        raise RuntimeError(f"ended before it could be killed: {self.log.read_text()[-500:]}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sizes_of(table: pd.DataFrame, unit: float = 1.0) -> dict[str, float]:
    """Number of particles, of those that touch no border, and the median diameter of these."""
    whole = table[~table["touches_border"].astype(bool)]
    return {"particles": len(table), "whole": len(whole), "D50": float(whole["diameter"].median() * unit)}


def compare_with_truth(volume: Path, pixel: float) -> dict[str, dict]:
    """Particles that the demo has, those measured on the true mask and on predicted ones, and by how much they differ.

    Of the known particles those of at least `SMALLEST` voxels, as of the measured ones.
    """
    known = pd.read_csv(volume.with_name(f"{volume.stem}_particles.csv"))
    found = {"known": sizes_of(known[known["volume"] >= SMALLEST], pixel)}
    for name in (f"{volume.stem}_truth", "slices", "three_axes"):
        found[name] = sizes_of(pd.read_csv(RUN / f"{name}.csv"))
        found[name] |= {f"{key}_difference": found[name][key] / of - 1 if of else None
                        for key, of in found["known"].items()}
    return found


def scores_of(log: Path) -> dict[str, object]:
    """Means that `evaluate.py` printed, and what it said about the uncertainty."""
    lines = log.read_text().splitlines()
    means = {line.split()[1]: float(line.split()[2]) for line in lines if line.startswith("mean ")}
    return means | {"uncertainty": lines[-1]} if lines[-1].startswith("error rate") else means


def main() -> None:
    """Do all of it, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="as for predict.py")
    parser.add_argument("--volume", type=Path, default=Path("data/volume.tif"), help="made where missing (%(default)s)")
    parser.add_argument("--slices", type=int, default=1000, help="of the volume that is made (%(default)s)")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of it [px] (%(default)s)")
    given = parser.parse_args()
    volume, scratch = given.volume, given.volume.with_name(f"{given.volume.stem}_predicted")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    RUN.mkdir(parents=True, exist_ok=True)
    truth, steps = volume.with_name(f"{volume.stem}_truth.tif"), {}

    def run(name: str, module: str, *arguments: object) -> Path:
        step = Step(scratch / f"{name}.log", module, *arguments)
        steps[name] = step.finish()
        return step.log

    if not volume.exists():
        run("write", "demo_data", "--volume", volume, "--slices", given.slices, "--size", given.size)
    options = volume, "--checkpoint", given.checkpoint
    run("predict", "predict", *options, "--output", scratch / "slices.tif")
    step, part = Step(scratch / "killed.log", "predict", *options, "--output", scratch / "again.tif"), "again.tif.part"
    slices = len(read_json(scratch / "slices.tif.json")["limits"])
    steps["killed"] = {"blocks": step.kill_when(scratch / part, -(-slices // BLOCK) // 2), "of": -(-slices // BLOCK)}
    left = (scratch / "again.tif").exists()
    run("continued", "predict", *options, "--output", scratch / "again.tif")
    same = digest(scratch / "again.tif") == digest(scratch / "slices.tif")
    run("three axes", "predict", *options, "--output", scratch / "three_axes.tif", "--three-axes", "--uncertainty")
    doubt = scratch / "three_axes_uncertainty.tif"
    scores = {name: scores_of(run(f"score {name}", "evaluate", "--pred", scratch / f"{name}.tif", "--truth", truth,
                                  *more)) for name, more in (("slices", ()), ("three_axes", ("--uncertainty", doubt)))}
    run("measure all", "evaluate", "particles", truth, scratch / "slices.tif", scratch / "three_axes.tif", "--split",
        "--output", RUN)
    run("invented", "evaluate", "particles", scratch / "three_axes.tif", "--split", "--uncertainty", doubt, "--truth",
        truth, "--output", scratch / "invented")
    invented = read_json(scratch / "invented" / "summary.json")["masks"]["three_axes"]
    measured = read_json(RUN / "summary.json")
    sizes = compare_with_truth(volume, measured["masks"][truth.stem]["voxel"][-1])
    write_json(RUN / "reference.json", {
        "checkpoint": given.checkpoint.name, "sha256": digest(given.checkpoint), "slices": slices,
        "same bytes after SIGKILL": same, "output before it was continued": left, "steps": steps, "scores": scores,
        "sizes": sizes, "invented": {name: invented[name] for name in ("particles", "invented", "auc")},
        "environment": environment(choose_device("auto"))})
    print(pd.DataFrame(steps).T.to_string(), pd.DataFrame(scores).to_string(), pd.DataFrame(sizes).T.to_string(),
          sep="\n\n")
    print(f"\nkilled with {steps['killed']['blocks']} of {steps['killed']['of']} blocks, continued: "
          f"{'the same bytes' if same else 'OTHER BYTES'}; invented particles: {invented['invented']} of "
          f"{invented['particles']}, AUC {np.float64(invented['auc']):.3f}\n{RUN}")
    sys.exit(0 if same and not left else 1)


if __name__ == "__main__":
    run_command_line(main)
