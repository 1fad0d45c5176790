"""Keep a strip of each painted mask, and hide the rest: a data folder of label maps, made of one of binary masks.

    python benchmarks/strips.py SOURCE DEST [--share 0.1] [--fold 0] [--seed 0]

The labelled slices are split into contiguous blocks (the FOLD-th third tests, a ninth of all validates). Of each
training and validation slice a band of rows over its whole width stays painted, with both classes in it: that share of
the rows, at a height that is drawn, and drawn again while less than half as much foreground lies in it as in the
slice on average: nobody paints where there is nothing. Test slices stay painted everywhere. With `--share 1` the same
folder is written with all of the paint, for comparison.
"""

import sys
from pathlib import Path

import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from demo_data import make_folders, new_folders  # noqa: E402 - after the path
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.files import write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from slices.classes import CLASSES_FILE  # noqa: E402
from slices.data_folder import Data, load_data  # noqa: E402
from slices.options import IMAGES, MASKS, DataOptions, Reading  # noqa: E402
from slices.reading import Slice  # noqa: E402
from slices.splits import SplitOptions  # noqa: E402

CLASSES = {"1": "matrix", "2": "particle"}
VALIDATION = 0.11
TEST = 0.33
DRAWS = 1000  # of a strip, at most


def read_split(source: Path, fold: int) -> Data:
    """Return the labelled slices of a data folder, split into contiguous blocks."""
    split = SplitOptions("blocks", VALIDATION, TEST, fold)
    return load_data(source, DataOptions(split, reading=Reading(roi=None)))


def keep_strip(mask: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Return the label map of a mask of which a band of rows is painted: (H, W) uint8, 0 elsewhere.

    Parameters
    ----------
    mask : (H, W) ndarray
        Foreground.
    share : float
        Of the rows, above 0.
    generator : numpy.random.Generator
        From which the height of the band is drawn.
    """
    labels = mask.astype(bool).astype(np.uint8) + 1
    rows = max(1, round(share * len(mask)))
    if rows >= len(mask):
        return labels
    for _ in range(DRAWS):
        top = int(generator.integers(0, len(mask) - rows + 1))
        if mask[top : top + rows].astype(bool).mean() >= 0.5 * mask.astype(bool).mean():
            break
    kept = np.zeros_like(labels)
    kept[top : top + rows] = labels[top : top + rows]
    return kept


def write_folder(data: Data, target: Path, share: float, seed: int) -> None:
    """Write the slices of a split as a data folder, with strips of the paint of all but the test slices."""
    with new_folders(target) as (folder,):
        make_folders(folder)
        write_json(folder / CLASSES_FILE, CLASSES)
        split = {}
        for role, slices in (("train", data.train), ("val", data.val), ("test", data.test)):
            split[role] = [s.stem for s in slices]
            for s in slices:
                write_slice(folder, s, 1.0 if role == "test" else share, seed)
        write_json(folder / "splits" / "split.json", split)


def write_slice(folder: Path, s: Slice, share: float, seed: int) -> None:
    """Write a slice as it is stored, and its label map."""
    generator = np.random.default_rng([seed, *s.stem.encode()])
    labels = keep_strip(np.asarray(s.mask), share, generator)
    (folder / IMAGES / s.path.name).write_bytes(s.path.read_bytes())
    tifffile.imwrite(folder / MASKS / f"{s.stem}.tif", labels, compression="zlib")


def main() -> None:
    """Write the folder."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="data folder with binary masks")
    parser.add_argument("target", type=Path, help="data folder to write")
    parser.add_argument("--share", type=float, default=0.1, help="of the rows (%(default)g)")
    parser.add_argument("--fold", type=int, default=0, help="which block tests (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the strips (%(default)s)")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1:
        raise InputError(f"--share {arguments.share:g}: must be above 0, and at most 1")
    data = read_split(arguments.source, arguments.fold)
    write_folder(data, arguments.target, arguments.share, arguments.seed)
    print(f"{arguments.target}: {len(data.train)} slices to train on, {len(data.test)} to test")


if __name__ == "__main__":
    run_command_line(main)
