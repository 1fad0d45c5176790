"""A slider over the slices of a volume, in the notebook."""

import base64
import io

import cv2
import ipywidgets
import matplotlib as mpl
import numpy as np

from slices.classes import Classes
from slices.reading import as_floats
from slices.windows import apply_window, grey_limits, mark_outside
from viz.label_colours import legend_of_classes, tint_labels
from viz.panels import block_of, reduced
from viz.slice_figures import SliceOfVolume, draw_volume
from volumes.volume import Volume, label_maps_of_volume, masks_of_volume, refuse_unlike
from volumes.voxel_size import sides_in_um

PERCENTILES = (1.0, 99.5)
SAMPLED = 4  # slices that stand for all
MOST_UNCERTAIN = 0.5  # standard deviation of a decision, at most
SLIDER_QUALITY = 50  # of the JPEG that the slider shows
PAGE_QUALITY = 38  # of the JPEG that a page without a kernel shows
PAGE_DPI = 76


def most_uncertain(classes: Classes | None) -> float:
    """Return the largest uncertainty: of a deviation ½, of an entropy 1."""
    return MOST_UNCERTAIN if classes is None or classes.is_binary else 1.0


def check_alike(image: Volume, *others: Volume | None) -> None:
    """Raise `InputError` where one of the others does not have the shape of the image."""
    for other in others:
        if other is not None:
            refuse_unlike(other, image)


def sample(volume: Volume, count: int = SAMPLED) -> list[int]:
    """Return numbers of slices, evenly spaced, not at the ends."""
    places = {int((i + 0.5) * len(volume) / count) for i in range(count)}
    return sorted(places)


class SliceBrowser(ipywidgets.VBox):
    """A slider over the slices of a volume: image, mask and uncertainty side by side.

    Foreground is orange, and the uncertainty reaches from 0 to ½; more than two classes have their
    own colours, and reach to 1. Where no kernel runs, as in a notebook on a web page, a few slices
    are shown instead.

    Parameters
    ----------
    image, mask, uncertainty : Volume
        Of one shape; mask and uncertainty may be None.
    mask_foreground : {"auto", "dark", "bright", "labels"}
        As in `slices.mask_values.MaskInfo`.
    classes : Classes or None
        Of the label maps in `mask`; None where it holds binary masks.

    Raises
    ------
    InputError
        When they are not of one shape.
    """

    def __init__(
        self,
        image: Volume,
        mask: Volume | None = None,
        uncertainty: Volume | None = None,
        mask_foreground: str = "auto",
        classes: Classes | None = None,
    ):
        check_alike(image, mask, uncertainty)
        self.image = image
        self.uncertainty = uncertainty
        self.classes = classes
        self.masks = self.label_maps = None
        if mask is not None and classes is not None:
            self.label_maps = label_maps_of_volume(mask, classes)
        elif mask is not None:
            self.masks = masks_of_volume(mask, mask_foreground)

        self.slider = ipywidgets.IntSlider(
            value=len(image) // 2,
            min=0,
            max=len(image) - 1,
            description="slice",
            continuous_update=False,
            layout={"width": "60%"},
        )
        self.picture = ipywidgets.Image(format="jpeg")
        super().__init__([self.slider, self.picture])
        self.slider.observe(self.turn, "value")
        self.turn()

    def read_slice(self, i: int) -> SliceOfVolume:
        """Return slice `i` in 8 bit, tinted with its mask, and its uncertainty."""
        name = self.image.names[i]
        grey = mark_outside(as_floats(self.image.read(i), name), name)
        low, high = grey_limits(grey, PERCENTILES)
        if high > low:
            image = apply_window(grey, low, high)
        else:
            image = np.zeros(grey.image.shape, np.uint8)

        masked = None
        if self.label_maps is not None:
            one = self.label_maps[i]
            masked = tint_labels(image, one.classes, self.classes, one.painted)
        elif self.masks is not None:
            masked = tint_labels(image, self.masks[i], None)
        uncertainty = None if self.uncertainty is None else self.uncertainty.read(i)
        return SliceOfVolume(image, masked, uncertainty)

    def turn(self, _: dict | None = None) -> None:
        """Show the slice at which the slider stands; of a large one means of blocks of pixels."""
        one = self.read_slice(self.slider.value)
        block = block_of(one.image.shape)
        panels = [np.repeat(reduced(one.image, block)[..., None], 3, 2) / 255]
        if one.masked is not None:
            panels.append(one.masked)
        if one.uncertainty is not None:
            share = one.uncertainty.astype(np.float32) / most_uncertain(self.classes)
            shown = np.clip(reduced(share, block), 0, 1)
            panels.append(mpl.colormaps["viridis"](shown)[..., :3])

        row = (255 * np.concatenate(panels, 1)).astype(np.uint8)
        blue_first = row[..., ::-1]
        quality = [cv2.IMWRITE_JPEG_QUALITY, SLIDER_QUALITY]
        _, encoded = cv2.imencode(".jpg", blue_first, quality)
        self.picture.value = encoded.tobytes()

    def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
        slices = {i: self.read_slice(i) for i in sample(self.image)}
        sides = sides_in_um(self.image.voxel)
        pixel_size = sides.get("X", sides.get("Y", 0.0))
        most = most_uncertain(self.classes)
        measure = "standard deviation of the decision"
        if most > MOST_UNCERTAIN:
            measure = "entropy, as a share of the largest"
        legend = None
        if self.classes is not None and not self.classes.is_binary:
            legend = legend_of_classes(self.classes)
        figure = draw_volume(slices, most, measure, pixel_size, legend)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpeg", dpi=PAGE_DPI, pil_kwargs={"quality": PAGE_QUALITY})
        return {
            **super()._repr_mimebundle_(**options),
            "image/jpeg": base64.b64encode(buffer.getvalue()).decode(),
            "text/plain": f"a slider over {len(self.image)} slices; run this cell to use it",
        }
