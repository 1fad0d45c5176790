"""One page that says what a run found and how: `runs/NAME/report.html`, which needs no other file and no network.

python report.py runs/NAME          writes it again, and all figures, from what is stored in the
folder
"""

from pathlib import Path

from matplotlib.figure import Figure

from config import stored_config
from runtime.command_line import Parser, run_command_line
from runtime.files import write_text
from runtime.messages import InputError
from utils_viz import draw_run
from viz.run_files import blaming
from viz.run_page import make_page


def write_report(run: Path, figures: dict[str, Figure] | None = None) -> Path:
    """Write the page of a run; return its path.

    Parameters
    ----------
    run : Path
    figures : dict of name to Figure, optional
        Those of `draw_run`, which are drawn where not given.

    Raises
    ------
    InputError
        Where the folder holds no run.
    """
    run = Path(run)
    config = stored_config(run / "config.json")
    with blaming(run):
        if figures is None:
            figures = draw_run(run)
        page = make_page(run, config, figures)

    path = run / "report.html"
    write_text(path, page)
    return path


def main() -> None:
    """Write the page of a run again."""
    parser = Parser(description="Write runs/NAME/report.html again, and its figures.")
    parser.add_argument("run", type=Path, help="runs/NAME")
    run = parser.parse_args().run
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    print(write_report(run))


if __name__ == "__main__":
    run_command_line(main)
