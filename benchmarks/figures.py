"""Every figure of the reference results again, from the tables in runs/ and benchmarks/results alone: `make figures`.

    python benchmarks/figures.py

Figures of slices need the arrays that a run keeps beside its tables, and that are not part of the repository; where
these are, in runs of your own, `python utils_viz.py runs/NAME` draws those, too.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import whole_volume  # noqa: E402 - after the path
from benchmarks.scaling import draw_scaling  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.files import read_json  # noqa: E402
from utils_viz import draw_run  # noqa: E402


def main() -> None:
    """Draw, and name what was drawn."""
    Parser(description=__doc__.splitlines()[0]).parse_args()
    for settings in sorted(Path("runs").glob("reference_*/config.json")):
        print(f"{settings.parent / 'figures'}: {', '.join(draw_run(settings.parent))}")
    for study in sorted((ROOT / "benchmarks").glob("*.json")):
        if not (Path("runs") / f"study_{study.stem}").exists():  # of which only a table is kept
            continue
        script = "materials.py" if study.stem == "materials" else "study.py"
        subprocess.run(
            [sys.executable, ROOT / "benchmarks" / script, study, "--summary"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        print(f"{Path('runs') / f'study_{study.stem}' / 'figures'}: {study.name}")
    whole_volume.draw(f"{whole_volume.VOLUME.stem}_truth")
    print(whole_volume.RUN / "sizes.png")
    for stored in sorted(Path("benchmarks/results").glob("*_scaling.json")):
        result = read_json(stored)
        draw_scaling(pd.DataFrame(result["table"]), result["processor"], stored.with_suffix(".png"))
        print(stored.with_suffix(".png"))


if __name__ == "__main__":
    run_command_line(main)
