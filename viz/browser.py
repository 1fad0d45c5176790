"""A slider over the slices of a volume, in the notebook."""

import base64
import io

import cv2
import ipywidgets
import matplotlib as mpl
import numpy as np

from slices.reading import as_floats
from slices.windows import apply_window, grey_limits, mark_outside
from viz.panels import PAINTED, tint
from viz.slice_figures import SliceOfVolume, draw_volume
from volumes.volume import Volume, masks_of_volume, refuse_unlike
from volumes.voxel_size import sides_in_um

PERCENTILES = (1.0, 99.5)
SAMPLED = 4  # slices that stand for all
MOST_UNCERTAIN = 0.5  # standard deviation of a decision, at most
SLIDER_QUALITY = 50  # of the JPEG that the slider shows
PAGE_QUALITY = 38  # of the JPEG that a page without a kernel shows
PAGE_DPI = 76


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
    """A slider over the slices of a volume: image, mask (orange) and uncertainty (0 to ½) side by side.

    Where no kernel runs, as in a notebook on a web page, a few slices are shown instead.

    Parameters
    ----------
    image, mask, uncertainty : Volume
        Of one shape; mask and uncertainty may be None.
    mask_foreground : {"auto", "dark", "bright", "labels"}
        As in `slices.mask_values.MaskInfo`.

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
    ):
        check_alike(image, mask, uncertainty)
        self.image = image
        self.uncertainty = uncertainty
        self.masks = None
        if mask is not None:
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
        """Return slice `i` in 8 bit, its mask and its uncertainty."""
        name = self.image.names[i]
        grey = mark_outside(as_floats(self.image.read(i), name), name)
        low, high = grey_limits(grey, PERCENTILES)
        if high > low:
            image = apply_window(grey, low, high)
        else:
            image = np.zeros(grey.image.shape, np.uint8)

        mask = None if self.masks is None else self.masks[i].astype(bool)
        uncertainty = None if self.uncertainty is None else self.uncertainty.read(i)
        return SliceOfVolume(image, mask, uncertainty)

    def turn(self, _: dict | None = None) -> None:
        """Show the slice at which the slider stands."""
        one = self.read_slice(self.slider.value)
        panels = [np.repeat(one.image[..., None], 3, 2) / 255]
        if one.mask is not None:
            panels.append(tint(one.image, one.mask, PAINTED))
        if one.uncertainty is not None:
            share = np.clip(one.uncertainty.astype(float) / MOST_UNCERTAIN, 0, 1)
            panels.append(mpl.colormaps["viridis"](share)[..., :3])

        row = (255 * np.concatenate(panels, 1)).astype(np.uint8)
        blue_first = row[..., ::-1]
        quality = [cv2.IMWRITE_JPEG_QUALITY, SLIDER_QUALITY]
        _, encoded = cv2.imencode(".jpg", blue_first, quality)
        self.picture.value = encoded.tobytes()

    def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
        slices = {i: self.read_slice(i) for i in sample(self.image)}
        sides = sides_in_um(self.image.voxel)
        pixel_size = sides.get("X", sides.get("Y", 0.0))
        figure = draw_volume(slices, MOST_UNCERTAIN, pixel_size)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpeg", dpi=PAGE_DPI, pil_kwargs={"quality": PAGE_QUALITY})
        return {
            **super()._repr_mimebundle_(**options),
            "image/jpeg": base64.b64encode(buffer.getvalue()).decode(),
            "text/plain": f"a slider over {len(self.image)} slices; run this cell to use it",
        }
