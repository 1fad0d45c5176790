"""Looking at volumes: the slider in the notebook, and what napari is given."""

import base64
import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile

from conftest import disc_slice
from runtime.messages import InputError
from slices.classes import Classes
from viz import napari_layers
from viz.browser import SliceBrowser, most_uncertain, sample
from volumes.reading import open_volume

ABOUT = {
    "imagej": True,
    "resolution": (50, 50),
    "metadata": {"axes": "ZYX", "spacing": 0.05, "unit": "um"},
}


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """A stack of six slices, the third constant; its mask and its uncertainty."""
    grey, masks = (
        np.stack(parts) for parts in zip(*(disc_slice(i, (40, 50)) for i in range(6)), strict=True)
    )
    grey[2] = 0
    doubt = np.linspace(0, 0.5, masks.size, dtype=np.float32).reshape(masks.shape)
    for name, array in (("grey", grey), ("mask", masks * np.uint8(255)), ("doubt", doubt)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array, **ABOUT)
    return [tmp_path / f"{name}.tif" for name in ("grey", "mask", "doubt")]


def picture(browser: SliceBrowser) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(browser.picture.value, np.uint8), cv2.IMREAD_COLOR)[
        ..., ::-1
    ].astype(int)


def test_labels_are_shown_where_they_are_stated(files, tmp_path):
    mask = tifffile.imread(files[1])
    labels = np.where(mask > 0, np.uint16(7), np.uint16(0))
    labels[:, :4, :4] = 300
    tifffile.imwrite(tmp_path / "labels.tif", labels, **ABOUT)
    image, particles = open_volume(files[0]), open_volume(tmp_path / "labels.tif")
    with pytest.raises(InputError, match="--mask-foreground labels"):
        SliceBrowser(image, particles)
    browser = SliceBrowser(image, particles, mask_foreground="labels")
    np.testing.assert_array_equal(is_tinted(browser, 3), labels[3] > 0)


def is_tinted(browser: SliceBrowser, i: int) -> np.ndarray:
    """Which pixels of a slice have a colour."""
    return np.ptp(browser.read_slice(i).masked, axis=2) > 0


def test_each_class_has_its_colour_and_what_is_not_labelled_none(files, tmp_path):
    classes = Classes(("matrix", "grain", "pore"), (1, 2, 3))
    labels = np.ones(tifffile.imread(files[1]).shape, np.uint8)
    labels[:, :10], labels[:, 10:20], labels[:, :, :5] = 2, 3, 0
    tifffile.imwrite(tmp_path / "labels.tif", labels, **ABOUT)
    doubt = tifffile.imread(files[2])
    tifffile.imwrite(tmp_path / "entropy.tif", doubt / doubt.max(), **ABOUT)
    volumes = [open_volume(files[0]), open_volume(tmp_path / "labels.tif")]
    browser = SliceBrowser(*volumes, open_volume(tmp_path / "entropy.tif"), classes=classes)
    one = browser.read_slice(3)
    added = one.masked - 0.4 * one.image[..., None] / 255  # what colours add to the grey
    for rows, colour in ((np.s_[:10], 1), (np.s_[10:20], 2), (np.s_[20:], 0)):
        expected = 0.6 * np.array(classes.shown_colours[colour]) / 255
        expected = np.broadcast_to(expected, added[rows, 5:].shape)
        np.testing.assert_allclose(added[rows, 5:], expected, atol=1e-12)
    assert not is_tinted(browser, 3)[:, :5].any()
    # An entropy reaches from 0 to 1, a deviation to ½.
    assert most_uncertain(classes) == 1
    assert most_uncertain(Classes(("matrix", "grain"), (1, 2))) == 0.5
    assert picture(browser).shape == (40, 150, 3)
    assert "image/jpeg" in browser._repr_mimebundle_()


def test_a_large_slice_is_shown_as_means_of_blocks(tmp_path):
    large = np.zeros((1, 60, 2500), np.uint8)
    large[:, 20:40] = 200
    tifffile.imwrite(tmp_path / "large.tif", large)
    tifffile.imwrite(tmp_path / "mask.tif", (large > 0) * np.uint8(255))
    browser = SliceBrowser(*[open_volume(tmp_path / name) for name in ("large.tif", "mask.tif")])
    assert picture(browser).shape == (20, 2 * 833, 3)


def test_the_slider_turns_the_pages(files):
    browser = SliceBrowser(*map(open_volume, files))
    assert (browser.slider.value, browser.slider.max) == (3, 5)
    first = picture(browser)
    assert first.shape == (40, 150, 3)
    browser.slider.value = 4
    assert abs(picture(browser) - first).mean() > 3
    one = browser.read_slice(4)
    grey, mask, doubt = one.image, is_tinted(browser, 4), one.uncertainty
    np.testing.assert_array_equal(mask, tifffile.imread(files[1])[4] > 0)
    np.testing.assert_array_equal(doubt, tifffile.imread(files[2])[4])
    shown = picture(browser)
    assert abs(shown[:, :50] - grey[..., None]).mean() < 20  # what JPEG leaves of noise
    assert np.corrcoef(shown[:, :50, 0].ravel(), grey.ravel())[0, 1] > 0.9
    inside = shown[:, 50:100][mask]
    assert (inside[:, 0] > inside[:, 2] + 20).mean() > 0.9  # orange
    browser.slider.value = 2
    assert picture(browser)[:, :40].max() < 12  # beside the mask JPEG blurs


def test_a_volume_alone_and_a_single_slice(files, tmp_path):
    assert picture(SliceBrowser(open_volume(files[0]))).shape == (40, 50, 3)
    tifffile.imwrite(tmp_path / "one.tif", disc_slice(0, (40, 50))[0])
    browser = SliceBrowser(open_volume(tmp_path / "one.tif"))
    assert browser.slider.max == 0
    assert "image/jpeg" in browser._repr_mimebundle_()


def test_without_a_kernel_there_is_a_picture_of_several_slices(files):
    bundle = SliceBrowser(*map(open_volume, files))._repr_mimebundle_()
    assert bundle["text/plain"] == "a slider over 6 slices; run this cell to use it"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    shown = cv2.imdecode(
        np.frombuffer(base64.b64decode(bundle["image/jpeg"]), np.uint8), cv2.IMREAD_COLOR
    )
    assert shown.shape[1] > 600
    assert shown.std() > 20


def test_numbers_of_sampled_slices():
    assert sample(range(1000)) == [125, 375, 625, 875]
    assert sample(range(2)) == [0, 1]


def test_scale_of_the_axes(files, tmp_path):
    assert napari_layers.voxel_scale(open_volume(files[0])) == pytest.approx([0.05, 0.02, 0.02])
    tifffile.imwrite(
        tmp_path / "time.tif",
        np.zeros((2, 3, 8, 8), np.uint8),
        imagej=True,
        resolution=(50, 50),
        metadata={"axes": "TZYX", "unit": "um"},
    )
    assert napari_layers.voxel_scale(open_volume(tmp_path / "time.tif")) == pytest.approx(
        [1, 0.02, 0.02, 0.02]
    )
    tifffile.imwrite(
        tmp_path / "plain.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack"
    )
    assert napari_layers.voxel_scale(open_volume(tmp_path / "plain.tif")) == [1, 1, 1]


class Viewer:
    """Takes down what napari's viewer would show."""

    def __init__(self, **options):
        self.layers, self.options = {}, options

    def add_image(self, data, name, **options):
        self.layers[name] = SimpleNamespace(data=data, **options)

    add_labels = add_image


@pytest.fixture
def napari(monkeypatch) -> ModuleType:
    module = ModuleType("napari")
    module.viewers = []
    module.Viewer = lambda **options: module.viewers.append(Viewer(**options)) or module.viewers[-1]
    module.run = lambda: module.viewers.append("ran")
    monkeypatch.setitem(sys.modules, "napari", module)
    return module


def test_layers_are_lazy_and_hold_what_the_files_hold(files, command, napari, monkeypatch):
    code, _, err = command("view", files[0], "--mask", files[1], "--uncertainty", files[2])
    assert code == 0, err
    viewer, ran = napari.viewers
    assert ran == "ran"
    assert list(viewer.layers) == ["image", "uncertainty", "mask"]
    image, doubt, mask = viewer.layers.values()
    grey = tifffile.imread(files[0])
    np.testing.assert_array_equal(image.data[4].compute(), grey[4])
    np.testing.assert_array_equal(image.data[:, 7, 3:9].compute(), grey[:, 7, 3:9])
    np.testing.assert_array_equal(mask.data.compute(), tifffile.imread(files[1]) // 255)
    np.testing.assert_array_equal(doubt.data[5].compute(), tifffile.imread(files[2])[5])
    low, high = image.contrast_limits
    assert grey.min() <= low < high <= grey.max()
    assert image.scale == pytest.approx([0.05, 0.02, 0.02])
    read, volume = [], open_volume(files[0])
    lazy = napari_layers.as_dask(
        dataclasses.replace(volume, read=lambda i: read.append(i) or volume.read(i))
    )
    read.clear()
    lazy[3].compute()
    assert read == [3]


def test_points_in_time_keep_their_axis(tmp_path, napari):
    stack = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    tifffile.imwrite(tmp_path / "t.tif", stack, imagej=True, metadata={"axes": "TZYX"})
    np.testing.assert_array_equal(
        napari_layers.as_dask(open_volume(tmp_path / "t.tif")).compute(), stack
    )


def test_what_does_not_belong_together_is_refused(files, tmp_path, command, napari):
    tifffile.imwrite(
        tmp_path / "short.tif", np.zeros((2, 40, 50), np.uint8), photometric="minisblack"
    )
    code, _, err = command("view", files[0], "--mask", tmp_path / "short.tif")
    assert code == 2
    assert "short.tif: has shape (2, 40, 50), " in err
    with pytest.raises(InputError, match=r"short.tif: has shape"):
        SliceBrowser(open_volume(files[0]), open_volume(tmp_path / "short.tif"))
    assert command("view", tmp_path / "none.tif")[0] == 2
    assert not napari.viewers


@pytest.mark.skipif(
    importlib.util.find_spec("napari") is not None, reason="napari is installed here"
)
def test_without_napari_the_cure_is_named(files, command):
    code, _, err = command("view", files[0])
    assert code == 2
    assert "napari: not installed; `make view IMAGE=…`" in err
