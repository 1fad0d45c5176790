"""Look at a volume, its masks and its uncertainty in napari.

make view IMAGE=volume.tif MASK=mask.tif UNCERTAINTY=mask_uncertainty.tif       (installs napari)
python view.py IMAGE [--mask MASK] [--uncertainty MAP]
"""

from pathlib import Path

from runtime.command_line import Parser, run_command_line
from runtime.messages import InputError
from slices.reading import FOREGROUND
from viz.browser import check_alike
from viz.napari_layers import add_layers
from volumes.reading import open_volume
from volumes.records import classes_beside
from volumes.volume import Volume, say_remarks


def make_parser() -> Parser:
    """Return the options of the command line."""
    parser = Parser(description="Look at a volume, its masks and its uncertainty in napari.")
    parser.add_argument(
        "image", type=Path, help=".tif slice or stack, folder of slices, zarr array or OME-Zarr"
    )
    parser.add_argument("--mask", type=Path, help="what predict.py wrote for it")
    parser.add_argument(
        "--uncertainty", type=Path, help="what predict.py --uncertainty wrote for it"
    )
    parser.add_argument(
        "--mask-foreground",
        default="auto",
        choices=FOREGROUND,
        help="what is foreground in the mask: the dark or the bright side, labels (all above 0), or "
        "auto, by its values (%(default)s)",
    )
    return parser


def open_optional(path: Path | None) -> Volume | None:
    """Return the volume at a path; None for no path."""
    if path is None:
        return None
    return open_volume(path)


def main() -> None:
    """Open napari."""
    arguments = make_parser().parse_args()
    image = open_volume(arguments.image)
    mask = open_optional(arguments.mask)
    uncertainty = open_optional(arguments.uncertainty)
    check_alike(image, mask, uncertainty)
    classes = None if arguments.mask is None else classes_beside(arguments.mask)
    say_remarks(image)
    try:
        import napari
    except ImportError:
        raise InputError(
            "napari: not installed; `make view IMAGE=…` or pip install napari[pyqt6] does it"
        ) from None

    viewer = napari.Viewer(title=str(arguments.image))
    add_layers(viewer, image, mask, uncertainty, arguments.mask_foreground, classes)
    napari.run()


if __name__ == "__main__":
    run_command_line(main)
