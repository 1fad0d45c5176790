"""A demo volume from slices to sizes, by the command lines that users have: predicted, killed and continued, measured.

    python benchmarks/whole_volume.py --checkpoint checkpoints/demo_auto/best_ssl_teacher.safetensors

Writes the volume with its truth where it is missing; predicts its slices twice, once killed by SIGKILL half-way and
continued, and compares the bytes; predicts along three axes; scores all of it and measures particles of the true and
the predicted masks. Tables, `sizes.png`, and `reference.json` with seconds and peak memory go to runs/reference_volume.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evaluation.uncertainty import SMALLEST  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import read_json, write_atomically, write_json  # noqa: E402
from runtime.run_folder import environment  # noqa: E402
from viz.size_figures import draw_sizes  # noqa: E402
from volumes.blocks import BLOCK  # noqa: E402 - after the path

RUN, VOLUME = Path("runs/reference_volume"), Path("data/volume.tif")
SURE = 0.45  # mean uncertainty of a particle, at most; chosen on the volume of seed 0


class Step:
    """One of the command lines in a process of its own; what it prints goes to a file."""

    def __init__(self, log: Path, module: str, *arguments: object):
        self.log, self.begun = log, time.monotonic()
        print("python", f"{module}.py", *arguments)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / f"{module}.py", *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def finish(self) -> dict[str, float]:
        """Wait for it: `seconds` and `peak_mb`; ends this script with the status of a process that failed."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            print(self.log.read_text()[-2000:], file=sys.stderr)
            sys.exit(code)
        return {
            "seconds": round(time.monotonic() - self.begun, 1),
            "peak_mb": round(usage.ru_maxrss / 1024),
        }

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
    return {
        "particles": len(table),
        "whole": len(whole),
        "D50": float(whole["diameter"].median() * unit),
    }


def compare_with_truth(volume: Path, pixel: float) -> dict[str, dict]:
    """Particles that the demo has, those measured on the true mask and on predicted ones, and by how much they differ.

    Of the known particles those of at least `SMALLEST` voxels, as of the measured ones.
    """
    known = pd.read_csv(volume.with_name(f"{volume.stem}_particles.csv"))
    result = {"known": sizes_of(known[known["volume"] >= SMALLEST], pixel)}
    for name in (f"{volume.stem}_truth", "slices", "three_axes", "three_axes_sure"):
        result[name] = sizes_of(pd.read_csv(RUN / f"{name}.csv"))
        result[name] |= {
            f"{key}_difference": result[name][key] / of - 1 if of else None
            for key, of in result["known"].items()
        }
    return result


def draw(truth: str) -> None:
    """`sizes.png` with the sure particles beside the others; `truth` names the table of the true mask."""
    names = {
        "true mask": truth,
        "slice by slice": "slices",
        "three axes": "three_axes",
        "three axes, sure particles": "three_axes_sure",
    }
    figure = draw_sizes(
        {name: pd.read_csv(RUN / f"{file}.csv") for name, file in names.items()}, "µm"
    )
    write_atomically(RUN / "sizes.png", lambda path: figure.savefig(path, dpi=110, format="png"))


def scores_of(log: Path) -> dict[str, object]:
    """Means that `evaluate.py` printed, and what it said about the uncertainty."""
    lines = log.read_text().splitlines()
    means = {line.split()[1]: float(line.split()[2]) for line in lines if line.startswith("mean ")}
    return means | {"uncertainty": lines[-1]} if lines[-1].startswith("error rate") else means


def main() -> None:
    """Do all of it, and print what came out."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="as for predict.py")
    parser.add_argument(
        "--volume", type=Path, default=VOLUME, help="made where missing (%(default)s)"
    )
    parser.add_argument(
        "--slices", type=int, default=1000, help="of the volume that is made (%(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=512, help="rows and columns of it [px] (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of it (%(default)s)")
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
        run(
            "write",
            "demo_data",
            "--volume",
            volume,
            "--slices",
            given.slices,
            "--size",
            given.size,
            "--seed",
            given.seed,
        )
    options = volume, "--checkpoint", given.checkpoint
    run("predict", "predict", *options, "--output", scratch / "slices.tif")
    step, part = (
        Step(scratch / "killed.log", "predict", *options, "--output", scratch / "again.tif"),
        "again.tif.part",
    )
    slices = len(read_json(scratch / "slices.tif.json")["limits"])
    steps["killed"] = {
        "blocks": step.kill_when(scratch / part, -(-slices // BLOCK) // 2),
        "of": -(-slices // BLOCK),
    }
    left = (scratch / "again.tif").exists()
    run("continued", "predict", *options, "--output", scratch / "again.tif")
    same = digest(scratch / "again.tif") == digest(scratch / "slices.tif")
    doubts = {kind: scratch / f"{kind}_uncertainty.tif" for kind in ("total", "spread")}
    for kind in doubts:
        run(
            f"three axes, {kind}",
            "predict",
            *options,
            "--output",
            scratch / f"{kind}.tif",
            "--three-axes",
            "--uncertainty",
            kind,
        )
    scores = {
        "slices": scores_of(
            run("score slices", "evaluate", "--pred", scratch / "slices.tif", "--truth", truth)
        )
    }
    scores |= {
        f"three axes, {kind}": scores_of(
            run(
                f"score {kind}",
                "evaluate",
                "--pred",
                scratch / f"{kind}.tif",
                "--truth",
                truth,
                "--uncertainty",
                doubt,
            )
        )
        for kind, doubt in doubts.items()
    }
    three = (scratch / "total.tif").rename(scratch / "three_axes.tif")
    run(
        "measure",
        "evaluate",
        "particles",
        truth,
        scratch / "slices.tif",
        three,
        "--split",
        "--output",
        RUN,
    )
    invented = {}
    for name, more in {
        **{kind: (doubt,) for kind, doubt in doubts.items()},
        "sure": (doubts["total"], "--max-uncertainty", SURE),
    }.items():
        run(
            f"measure {name}",
            "evaluate",
            "particles",
            three,
            "--split",
            "--truth",
            truth,
            "--output",
            scratch / name,
            "--uncertainty",
            *more,
        )
        details = read_json(scratch / name / "summary.json")["masks"]["three_axes"]
        invented[name] = {key: details[key] for key in ("particles", "invented", "auc")}
    shutil.copy(scratch / "sure" / "three_axes.csv", RUN / "three_axes_sure.csv")
    sizes = compare_with_truth(
        volume, read_json(RUN / "summary.json")["masks"][truth.stem]["voxel"][-1]
    )
    draw(truth.stem)
    write_json(
        RUN / "reference.json",
        {
            "checkpoint": given.checkpoint.name,
            "sha256": digest(given.checkpoint),
            "slices": slices,
            "same bytes after SIGKILL": same,
            "output before it was continued": left,
            "steps": steps,
            "scores": scores,
            "sizes": sizes,
            "invented": invented,
            "sure": SURE,
            "environment": environment(choose_device("auto")),
        },
    )
    for result in (steps, scores, sizes, invented):
        print(pd.DataFrame(result).T.to_string(), end="\n\n")
    print(
        f"killed with {steps['killed']['blocks']} of {steps['killed']['of']} blocks, continued: "
        f"{'the same bytes' if same else 'OTHER BYTES'}\n{RUN}"
    )
    sys.exit(0 if same and not left else 1)


if __name__ == "__main__":
    run_command_line(main)
