"""Look at a volume, its masks and its uncertainty: in napari, or with a slider in the notebook.

    make view IMAGE=volume.tif MASK=mask.tif UNCERTAINTY=mask_uncertainty.tif       (installs napari)
    python view.py IMAGE [--mask MASK] [--uncertainty MAP]
"""

import base64
import io
from dataclasses import replace
from pathlib import Path

import cv2
import ipywidgets
import matplotlib as mpl
import numpy as np

from particles.measuring import voxel_of
from runtime.command_line import Parser, run_command_line
from runtime.messages import InputError
from slices.reading import FOREGROUND, as_floats
from slices.windows import Grey, apply_window, grey_limits, mark_outside
from viz.slice_figures import draw_volume, tint
from volumes.reading import Volume, masks_of_volume, open_volume, refuse_unlike, say_remarks
from volumes.voxel_size import relative_sides, sides_in_um

PERCENTILES = (1.0, 99.5)
SAMPLED = 4  # slices that stand for all
MOST = 0.5  # standard deviation of a probability, at most


def check_alike(image: Volume, *others: Volume | None) -> None:
    """`InputError` where one of the others does not have the shape of the image."""
    for other in (other for other in others if other is not None):
        refuse_unlike(other, image)


def sample(volume: Volume, count: int = SAMPLED) -> list[int]:
    """Numbers of slices, evenly spaced, not at the ends."""
    return sorted({int((i + 0.5) * len(volume) / count) for i in range(count)})


# --- a slider in the notebook ---------------------------------------------------------------------------------

class SliceBrowser(ipywidgets.VBox):
    """A slider over the slices of a volume; image, mask (orange) and uncertainty (0 to ½) side by side.

    Where no kernel runs, as in a notebook on a web page, a few slices are shown instead.

    Parameters
    ----------
    image, mask, uncertainty : Volume
        Of one shape; mask and uncertainty may be None.
    mask_foreground : {"auto", "dark", "bright", "labels"}
        As in `slices.masks.read_mask_as`.

    Raises
    ------
    InputError
        When they are not of one shape.
    """

    def __init__(self, image: Volume, mask: Volume | None = None, uncertainty: Volume | None = None,
                 mask_foreground: str = "auto"):
        check_alike(image, mask, uncertainty)
        self.image, self.uncertainty = image, uncertainty
        self.masks = None if mask is None else masks_of_volume(mask, mask_foreground)
        self.slider = ipywidgets.IntSlider(len(image) // 2, 0, len(image) - 1, description="slice",
                                           continuous_update=False, layout={"width": "60%"})
        self.picture = ipywidgets.Image(format="jpeg")
        super().__init__([self.slider, self.picture])
        self.slider.observe(self.turn, "value")
        self.turn()

    def slices(self, i: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Slice `i` in 8 bit, its mask and its uncertainty, (H, W) each."""
        name = self.image.names[i]
        seen = mark_outside(as_floats(self.image.read(i), name), name)
        low, high = grey_limits(seen, PERCENTILES)
        grey = apply_window(seen, low, high) if high > low else np.zeros(seen.image.shape, np.uint8)

        mask = None if self.masks is None else self.masks[i].astype(bool)
        uncertainty = None if self.uncertainty is None else self.uncertainty.read(i)
        return grey, mask, uncertainty

    def turn(self, _: dict | None = None) -> None:
        """Show the slice at which the slider stands."""
        grey, mask, uncertainty = self.slices(self.slider.value)
        panels = [np.repeat(grey[..., None], 3, 2) / 255]
        if mask is not None:
            panels.append(tint(grey, mask, (0.9, 0.6, 0.0)))
        if uncertainty is not None:
            panels.append(mpl.colormaps["viridis"](np.clip(uncertainty.astype(float) / MOST, 0, 1))[..., :3])
        row = (255 * np.concatenate(panels, 1)).astype(np.uint8)
        _, coded = cv2.imencode(".jpg", row[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 50])
        self.picture.value = coded.tobytes()

    def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
        chosen, buffer = sample(self.image), io.BytesIO()
        (_, _, width), unit = voxel_of(self.image, None, None)
        figure = draw_volume({i: self.slices(i) for i in chosen}, MOST, width if unit == "µm" else 0.0)
        figure.savefig(buffer, format="jpeg", dpi=76, pil_kwargs={"quality": 38})
        return {**super()._repr_mimebundle_(**options), "image/jpeg": base64.b64encode(buffer.getvalue()).decode(),
                "text/plain": f"a slider over {len(self.image)} slices; run this cell to use it"}


# --- napari ---------------------------------------------------------------------------------------------------

def lazy(volume: Volume) -> "dask.array.Array":  # noqa: F821 - comes with napari
    """The slices as a dask array of the volume's shape; each is read when it is looked at."""
    import dask.array
    from dask import delayed
    first = volume.read(0)

    def read(i: int) -> np.ndarray:
        found = volume.read(i)
        if found.shape != first.shape:
            raise InputError(f"{volume.names[i]}: is {found.shape} px, the first slice {first.shape}")
        return found

    slices = [dask.array.from_delayed(delayed(read)(i), first.shape, first.dtype) for i in range(len(volume))]
    return dask.array.stack(slices).reshape(volume.shape)


def voxel_scale(volume: Volume) -> list[float]:
    """Distance of neighbours along each axis [µm], or relative to a pixel's side; 1 for points in time."""
    known = sides_in_um(volume.voxel) or relative_sides(volume.voxel)
    side = known.get("X", 1.0)
    return [known.get(axis, 1.0 if axis == "T" else side) for axis in volume.axes]


def add_layers(viewer: "napari.Viewer", image: Volume, mask: Volume | None,  # noqa: F821 - not imported unless used
               uncertainty: Volume | None, mask_foreground: str = "auto") -> None:
    """Add image, masks as labels, and uncertainty (0 to ½), whose slices are read when they are looked at."""
    seen = [mark_outside(as_floats(image.read(i), image.names[i]), image.names[i]).values()[::7] for i in sample(image)]
    low, high = grey_limits(Grey(np.concatenate(seen), skip_zeros=False), PERCENTILES)
    scale = voxel_scale(image)
    viewer.add_image(lazy(image), name="image", scale=scale, colormap="gray",
                     contrast_limits=(low, max(high, low + 1e-6)))
    if uncertainty is not None:
        viewer.add_image(lazy(uncertainty).astype(np.float32), name="uncertainty", scale=scale, colormap="magma",
                         contrast_limits=(0, MOST), blending="additive", visible=mask is None)
    if mask is not None:
        masks = masks_of_volume(mask, mask_foreground)
        viewer.add_labels(lazy(replace(mask, read=masks.__getitem__)), name="mask", scale=scale, opacity=0.4)


def main() -> None:
    """Open napari."""
    parser = Parser(description="Look at a volume, its masks and its uncertainty in napari.")
    parser.add_argument("image", type=Path, help=".tif slice or stack, folder of slices, zarr array or OME-Zarr")
    parser.add_argument("--mask", type=Path, help="what predict.py wrote for it")
    parser.add_argument("--uncertainty", type=Path, help="what predict.py --uncertainty wrote for it")
    parser.add_argument("--mask-foreground", default="auto", choices=FOREGROUND, help="what is foreground in the mask: "
                        "the dark or the bright side, labels (all above 0), or auto, by its values (%(default)s)")
    given = parser.parse_args()
    image, *others = (path and open_volume(path) for path in (given.image, given.mask, given.uncertainty))
    check_alike(image, *others)
    say_remarks(image)
    try:
        import napari
    except ImportError:
        raise InputError("napari: not installed; `make view IMAGE=…` or pip install napari[pyqt6] does it") from None
    viewer = napari.Viewer(title=str(given.image))
    add_layers(viewer, image, *others, given.mask_foreground)
    napari.run()


if __name__ == "__main__":
    run_command_line(main)
