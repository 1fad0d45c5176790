"""Three axes: planes across a volume, their average with the slices, and that nothing is computed twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import predict
from conftest import disc_slice, prediction, write_stack
from runtime.messages import InputError
from slices.windows import Grey, apply_window, percentile_window
from utils import SlidingWindow, predict_images
from volumes import blocks, three_axes
from volumes.volume import Volume
from volumes.voxel_size import read_voxel

CPU = torch.device("cpu")
SHAPE = 9, 40, 52


@pytest.fixture
def stack(tmp_path) -> Path:
    """A stack whose fourth slice is blank."""
    return write_stack(tmp_path, SHAPE[0], SHAPE[1:])


def expected(grey: np.ndarray, model) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread over three axes of a windowed volume, by its three transpositions, all of them in memory."""
    along = []
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        turned = grey.transpose(order)
        result = np.zeros((2, *turned.shape))
        for i, plane in enumerate(turned):
            if plane.min() != plane.max():
                result[:, i] = next(
                    predict_images(
                        model, [plane], CPU, SlidingWindow(32, tta=True), with_spread=True
                    )
                )
        along.append([part.transpose(np.argsort(order)) for part in result])
    means, deviations = np.array(along).swapaxes(0, 1)
    mean = means.mean(0)
    spread = np.sqrt(np.maximum((means**2 + deviations**2).mean(0) - mean**2, 0))
    blank = grey.min((1, 2)) == grey.max((1, 2))
    mean[blank] = spread[blank] = 0
    return mean, spread


@pytest.mark.parametrize(
    ("roi", "window", "kind"),
    [
        ((4, 36, 2, 50), "slice", "spread"),
        pytest.param(None, "slice", "spread", marks=pytest.mark.slow),
        pytest.param(None, "volume", "total", marks=pytest.mark.slow),
    ],
)
def test_the_average_of_three_axes(
    stack, checkpoint, tmp_path, command, monkeypatch, roi, window, kind
):
    monkeypatch.setattr("volumes.blocks.BLOCK", 4)
    out = tmp_path / "mask.tif"
    code, _, err = command(
        *prediction(
            stack,
            checkpoint,
            out,
            "--three-axes",
            "--tta",
            "--probabilities",
            "--uncertainty",
            kind,
            "--window",
            window,
            *(["--roi", ",".join(map(str, roi))] if roi else []),
        )
    )
    assert code == 0, err
    top, bottom, left, right = roi or (0, SHAPE[1], 0, SHAPE[2])
    raw = tifffile.imread(stack)[:, top:bottom, left:right]
    limits = next(x for x in json.loads((tmp_path / "mask.tif.json").read_text())["limits"] if x)
    grey = np.stack(
        [
            np.zeros_like(one, np.uint8)
            if one.max() == 0
            else percentile_window(one, (2.0, 98.0))
            if window == "slice"
            else apply_window(Grey(one), *limits)
            for one in raw
        ]
    )
    p, spread = expected(grey, predict.load_model(checkpoint, CPU)[0])
    mask, *maps = (
        tifffile.imread(tmp_path / f"mask{kind}.tif")
        for kind in ("", "_probability", "_uncertainty")
    )
    for result, wanted in zip(
        maps, (p, spread if kind == "spread" else np.sqrt(p * (1 - p))), strict=True
    ):
        np.testing.assert_allclose(result[:, top:bottom, left:right], wanted, atol=2e-3)
        result[:, top:bottom, left:right] = 0
        assert not result.any()
    np.testing.assert_array_equal(
        mask, np.where(tifffile.imread(tmp_path / "mask_probability.tif") >= 0.5, 255, 0)
    )
    assert 0 < mask.mean() < 255
    assert not (tmp_path / "mask.tif.part").exists()


@pytest.mark.parametrize("stop", ["slices", "cut", "rows", "columns", "gather"])
def test_interrupted_anywhere_it_goes_on_and_gives_the_same_bytes(
    stack, checkpoint, tmp_path, command, monkeypatch, stop
):
    monkeypatch.setattr("volumes.blocks.BLOCK", 4)
    options = (
        "predict",
        stack,
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--three-axes",
        "--uncertainty",
        "spread",
        "--output",
    )
    assert command(*options, tmp_path / "whole.tif")[0] == 0
    written, write = [], blocks.Blocks.write

    def note(self, block, result):
        name = self.folder.name if self.folder.suffix != ".part" else "slices"
        if name == stop and block.start == 4:
            raise KeyboardInterrupt
        written.append((name, block.start))
        write(self, block, result)

    def stops(*_):
        raise KeyboardInterrupt

    opened, count = three_axes.open_memmap, []

    def stops_midway(path, mode, *more):
        count.append(path.parent.name)
        if count.count("rows" if stop == "gather" else "mask.tif.part") == 5:
            raise KeyboardInterrupt
        return opened(path, mode, *more)

    monkeypatch.setattr(blocks.Blocks, "write", note)
    if stop in ("cut", "gather"):
        monkeypatch.setattr(three_axes, "open_memmap", stops_midway)
    assert command(*options, tmp_path / "mask.tif")[0] == 130
    assert not (tmp_path / "mask.tif").exists()
    stop = None
    monkeypatch.setattr(three_axes, "open_memmap", opened)
    assert command(*options, tmp_path / "mask.tif")[0] == 0
    assert sorted(written) == sorted({*written})  # nothing was computed twice
    assert {name for name, _ in written} == {"slices", "rows", "columns"}
    for kind in ("", "_uncertainty"):
        assert (tmp_path / f"mask{kind}.tif").read_bytes() == (
            tmp_path / f"whole{kind}.tif"
        ).read_bytes()


def test_a_roi_of_the_size_of_the_slices_is_all_of_them(stack, checkpoint, tmp_path, command):
    options = (
        "predict",
        stack,
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--three-axes",
        "--output",
    )
    assert command(*options, tmp_path / "whole.tif")[0] == 0
    code, _, err = command(*options, tmp_path / "roi.tif", "--roi", "5,45,5,57")
    assert code == 0, err
    np.testing.assert_array_equal(
        *(tifffile.imread(tmp_path / f"{name}.tif") for name in ("whole", "roi"))
    )


def test_space_on_the_disk_is_taken_at_once(tmp_path):
    three_axes.new_array(tmp_path / "a.npy", np.uint8, (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 10**6
    assert not np.load(tmp_path / "a.npy").any()


def volume_of(shape, axes="ZYX", **voxel) -> Volume:
    return Volume(
        Path("v.tif"), "tiff", axes, shape, [""] * int(np.prod(shape[:-2])), lambda _: None, voxel
    )


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (volume_of((4, 5), "YX"), "axes YX"),
        (volume_of((2, 3, 4, 5), "TZYX"), "axes TZYX"),
        (volume_of((3, 4, 5), "TYX"), "axes TYX"),
        (volume_of((1, 4, 5)), "shape .1, 4, 5."),
        (
            volume_of((3, 4, 5), X=(0.022, "um"), Y=(0.022, "um"), Z=(50, "nm")),
            "X 0.022 um, Y 0.022 um, Z 50 nm",
        ),
    ],
)
def test_volumes_that_cannot_be_cut_along_three_axes(volume, message):
    with pytest.raises(InputError, match=message):
        three_axes.check_cubes(volume)


def test_cubes_in_different_units():
    three_axes.check_cubes(
        volume_of((3, 4, 5), **read_voxel({"X": (0.022, "um"), "Z": (22, "nm")}, "v")[0])
    )
    three_axes.check_cubes(volume_of((3, 4, 5)))
    three_axes.check_cubes(volume_of((3, 4, 5), "QYX"))


def test_slices_of_different_size_are_named(checkpoint, tmp_path, command):
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(40, 40), (40, 41)]):
        tifffile.imwrite(tmp_path / "in" / f"s_{i}.tif", disc_slice(i, size)[0])
    code, _, err = command(*prediction(tmp_path / "in", checkpoint, tmp_path / "o", "--three-axes"))
    assert code == 2
    assert (
        "s_1.tif: is (40, 41) px, the first slice (40, 40); --three-axes needs slices of one size"
        in err
    )
