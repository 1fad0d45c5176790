"""Do two versions of the code train the same weights? Hashes of a small run of the classic recipe and of `best`.

    python benchmarks/same_bytes.py [--output FILE]

Both train on a small demo with two loader workers. Each run is killed once in its semi-supervised phase, and resumed.
Printed is the SHA-256 of every table and checkpoint, a line each: run this with both versions on the same machine, and
compare the lines. Another processor or another version of PyTorch rounds differently, and gives other hashes.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("mean_teacher", "best")

# A few minutes on two cores: enough epochs for validation, a control, and a state to resume from.
SETTINGS = {
    "device": "cpu",
    "base-channels": 8,
    "patch-size": 128,
    "sup-epochs": 6,
    "ssl-epochs": 4,
    "steps-per-epoch": 10,
    "validate-every": 1,
    "max-unlabelled": 6,
    "num-workers": 2,
}
PATIENCE = 600  # seconds until a run has to have written its first semi-supervised epoch


def start(folder: Path, method: str, *more: str) -> subprocess.Popen:
    """Start training in `folder`; runs and weights go there."""
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--data=demo",
        f"--run={method}",
        f"--method={method}",
    ]
    with (folder / f"{method}.log").open("a") as log:
        return subprocess.Popen(
            [*command, *options, *more], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def train_and_kill_once(folder: Path, method: str) -> None:
    """Train with one method; kill all of its processes after the first semi-supervised epoch, and resume."""
    process = start(folder, method)
    log = folder / "runs" / method / "ssl_metrics.csv"
    begun = time.monotonic()
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        if process.poll() is not None or time.monotonic() - begun > PATIENCE:
            raise SystemExit(
                f"{method}: ended before it could be killed; see {folder / method}.log"
            )
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    if start(folder, method, "--resume").wait() != 0:
        raise SystemExit((folder / f"{method}.log").read_text())


def hashes(folder: Path) -> list[str]:
    """Return a line per table and checkpoint: its hash, and its path."""
    files = [*(folder / "runs").rglob("*.csv"), *(folder / "checkpoints").rglob("*.safetensors")]
    lines = []
    for path in sorted(files):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}")
    return lines


def main() -> None:
    """Train, and print the hashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the hashes to this file, too")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = [sys.executable, str(ROOT / "demo_data.py"), "--output", "demo", "--scans", "6"]
        subprocess.run(demo, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for method in METHODS:
            train_and_kill_once(folder, method)
        lines = hashes(folder)

    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
