"""Where things are in a data folder, and how its files are read."""

from dataclasses import dataclass

from slices.reading import ROI
from slices.splits import SplitOptions

IMAGES = "labeled/Original_images"
MASKS = "labeled/Original_masks"
UNLABELLED = "unlabeled"

PERCENTILES = (1.0, 99.5)


@dataclass(frozen=True)
class Reading:
    """How the files of a data folder are read.

    Attributes
    ----------
    roi : (row, end row, column, end column) or None
        Crop of the unlabelled scans [px]; those as large as a labelled slice are used as they are.
    percentiles : (low, high)
        Of the grey values of the sample, which become 0 and 255.
    mask_foreground : {"auto", "dark", "bright", "labels"}
        As in `slices.mask_values.read_mask_as`.
    outside : {"auto", "none"} or float
        Grey value outside the field of view, as in `slices.windows.mark_outside`.
    trust_pairs : bool
        Whether masks are taken even though their outlines do not agree with their images.
    rim : int
        Paint of training slices within so many pixels of another class counts as not painted.
    """

    roi: tuple[int, int, int, int] | None = ROI
    percentiles: tuple[float, float] = PERCENTILES
    mask_foreground: str = "auto"
    outside: str | float = "auto"
    trust_pairs: bool = False
    rim: int = 0


@dataclass(frozen=True)
class DataOptions:
    """Which slices of a data folder are read, and how.

    Attributes
    ----------
    split : SplitOptions
        Which labelled slices train, choose the checkpoint and test.
    labels : int
        Training slices that keep their label, evenly spaced; 0: all. The others join the
        unlabelled.
    max_unlabelled : int
        Unlabelled scans to read, evenly spaced; 0: all.
    reading : Reading
    """

    split: SplitOptions = SplitOptions()
    labels: int = 0
    max_unlabelled: int = 0
    reading: Reading = Reading()
