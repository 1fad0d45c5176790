"""Slices and volumes predicted from the command line: families, resuming, what is recorded, and errors."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from test_volumes import FAMILIES

import predict
from config import Config
from conftest import disc_slice, prediction, write_stack
from model_unet import UNet
from runtime.checkpoints import load_checkpoint, save_checkpoint
from slices.windows import percentile_window
from utils import SlidingWindow, predict_image, predict_images
from volumes.reading import open_volume

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    for i, size in enumerate([(64, 64), (50, 81), (20, 20)]):
        tifffile.imwrite(path / f"s_{i}.tif", disc_slice(i, size)[0])
    return path


def test_folder(folder, checkpoint, tmp_path, command):
    out = tmp_path / "new" / "masks"
    code, _, err = command(*prediction(folder, checkpoint, out, "--probabilities"))
    assert code == 0, err
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == sorted(
        [
            "prediction.json",
            *(f"{folder}s_{i}.tif" for i in range(3) for folder in ("", "probabilities/")),
        ]
    )
    model, settings = predict.load_model(checkpoint, CPU)
    details = json.loads((out / "prediction.json").read_text())
    assert details["blank"] == 0
    for i in range(3):
        image, mask = tifffile.imread(folder / f"s_{i}.tif"), tifffile.imread(out / f"s_{i}.tif")
        assert mask.shape == image.shape
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        expected = predict_image(
            model, percentile_window(image, (2.0, 98.0)), CPU, SlidingWindow(32)
        )
        probability = tifffile.imread(out / "probabilities" / f"s_{i}.tif")
        np.testing.assert_allclose(probability, expected, atol=3e-4)
        np.testing.assert_array_equal(mask > 0, probability >= settings.threshold)
        low, high = np.percentile(image, (2.0, 98.0))
        assert details["limits"][i] == pytest.approx([low, high])


def test_one_slice_threshold_and_symmetries(folder, checkpoint, tmp_path, command):
    options = (folder / "s_0.tif", "--checkpoint", checkpoint, "--device", "cpu")
    assert command("predict", *options, "--output", tmp_path / "mask.tif")[0] == 0
    assert command("predict", *options, "--output", tmp_path / "low", "--threshold", 0.01)[0] == 0
    assert (
        command("predict", *options, "--output", tmp_path / "tta", "--tta", "--probabilities")[0]
        == 0
    )
    assert (
        tifffile.imread(tmp_path / "low" / "s_0.tif").mean()
        > tifffile.imread(tmp_path / "mask.tif").mean()
    )
    model, _ = predict.load_model(checkpoint, CPU)
    window = percentile_window(tifffile.imread(folder / "s_0.tif"), (2.0, 98.0))
    np.testing.assert_allclose(
        tifffile.imread(tmp_path / "tta" / "probabilities" / "s_0.tif"),
        predict_image(model, window, CPU, SlidingWindow(32, tta=True)),
        atol=3e-4,
    )


def test_roi_windows_inside_and_leaves_zero_outside(checkpoint, folder, tmp_path, command):
    code, _, err = command(
        *prediction(
            folder / "s_0.tif", checkpoint, tmp_path / "o", "--roi", "8,48,4,60", "--probabilities"
        )
    )
    assert code == 0, err
    probability = tifffile.imread(tmp_path / "o" / "probabilities" / "s_0.tif")
    model, _ = predict.load_model(checkpoint, CPU)
    inside = percentile_window(tifffile.imread(folder / "s_0.tif")[8:48, 4:60], (2.0, 98.0))
    np.testing.assert_allclose(
        probability[8:48, 4:60], predict_image(model, inside, CPU, SlidingWindow(32)), atol=3e-4
    )
    probability[8:48, 4:60] = 0
    assert not probability.any()


def test_a_blank_slice_has_an_empty_mask_and_does_not_stop_the_others(
    checkpoint, folder, tmp_path, command
):
    tifffile.imwrite(folder / "s_1.tif", np.zeros((40, 50), np.uint16))
    code, _, err = command(*prediction(folder, checkpoint, tmp_path / "o"))
    assert code == 0, err
    assert not tifffile.imread(tmp_path / "o" / "s_1.tif").any()
    assert (tmp_path / "o" / "s_2.tif").exists()


def test_one_slice_with_its_probability_beside_it(checkpoint, folder, tmp_path, command):
    options = (
        "predict",
        folder / "s_0.tif",
        "--checkpoint",
        checkpoint,
        "--probabilities",
        "--device",
        "cpu",
    )
    assert command(*options, "--output", tmp_path / "m.tif")[0] == 0
    assert tifffile.imread(tmp_path / "m_probability.tif").dtype == np.float16
    (folder / "s_0.tif").rename(folder / "x_probability.tif")
    code, _, err = command(
        "predict", folder / "x_probability.tif", *options[2:], "--output", folder / "x.tif"
    )
    assert code == 2
    assert "x_probability.tif: would replace the input" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tif"], "none.tif: no such file or folder"),
        (["empty"], "empty: holds no slice"),
        (["a.dat"], "a.dat: is not a .tif"),
        (["in", "--output", "in"], "in: would replace the input"),
        (["in", "--output", "."], ": would replace the input"),
        (
            ["in", "--checkpoint", "bare.safetensors"],
            "bare.safetensors: says not how it was trained",
        ),
        (["in", "--threshold", "1.5"], "--threshold 1.5: must be between 0 and 1"),
        (["in", "--roi", "0,100,0,100"], "s_0.tif: is 64×64 px, too small for the ROI"),
        (["in", "--checkpoint", "none.safetensors"], "none.safetensors: no such checkpoint"),
        (
            ["in", "--checkpoint", "other.safetensors"],
            "other.safetensors: not the weights of this U-Net",
        ),
        (["in", "--device", "toaster"], "device 'toaster' cannot be used"),
        (
            ["in", "--output", "a.dat"],
            "a.dat: exists, and was not made from this input with these settings",
        ),
        (["in", "--output", "a.dat/b"], "check path, rights"),
        (["colour.tif"], "colour.tif: has shape (8, 8, 3) and is coloured"),
        (
            ["in", "--uncertainty", "spread"],
            "--uncertainty spread: is that of several predictions; add --tta",
        ),
        (
            ["in", "--checkpoint", "best.safetensors", "wide.safetensors"],
            "wide.safetensors: was trained with patch",
        ),
    ],
)
def test_errors_name_the_file_and_the_cure(
    folder, checkpoint, tmp_path, command, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.dat").touch()
    tifffile.imwrite(
        tmp_path / "colour.tif",
        np.eye(8, dtype=np.uint8)[..., None] * np.uint8([1, 2, 3]),
        photometric="rgb",
    )
    save_checkpoint(
        tmp_path / "wide.safetensors",
        UNet(2).state_dict(),
        {
            "config": dataclasses.asdict(
                Config(base_channels=2, patch_size=64, percentiles=(2.0, 98.0))
            )
        },
    )
    save_checkpoint(
        tmp_path / "other.safetensors", torch.nn.Linear(2, 2).state_dict(), {"config": {}}
    )
    save_checkpoint(tmp_path / "bare.safetensors", UNet(2).state_dict(), {"config": {}})
    code, _, err = command("predict", "--checkpoint", checkpoint, "--output", "out", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]


# --- volumes --------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path) -> Path:
    """An ImageJ stack whose fourth slice is blank."""
    return write_stack(tmp_path, 7, (48, 64), spacing=0.05)


def content(path: Path) -> np.ndarray:
    volume = open_volume(path)
    return np.stack([volume.read(i) for i in range(len(volume))])


def test_a_stack_becomes_a_stack(stack, checkpoint, tmp_path, command):
    out = tmp_path / "mask.tif"
    code, printed, err = command(
        *prediction(stack, checkpoint, out, "--probabilities", "--uncertainty", "spread", "--tta")
    )
    assert (code, printed) == (0, f"{out}\n"), err
    model, _ = predict.load_model(checkpoint, CPU)
    mask, probability, spread = (
        tifffile.imread(tmp_path / f"mask{kind}.tif")
        for kind in ("", "_probability", "_uncertainty")
    )
    for i, one in enumerate(tifffile.imread(stack)):
        expected = (
            np.zeros((2, 48, 64))
            if i == 3
            else next(
                predict_images(
                    model,
                    [percentile_window(one, (2.0, 98.0))],
                    CPU,
                    SlidingWindow(32, tta=True),
                    True,
                )
            )
        )
        np.testing.assert_allclose([probability[i], spread[i]], expected, atol=5e-4)
    np.testing.assert_array_equal(mask, np.where(probability >= 0.5, 255, 0))
    with tifffile.TiffFile(out) as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZYX"
    details = json.loads((tmp_path / "mask.tif.json").read_text())
    assert details["voxel"] == {"X": [0.022, "um"], "Y": [0.022, "um"], "Z": [0.05, "um"]}
    assert [limits is None for limits in details["limits"]] == [i == 3 for i in range(7)]
    assert details["blank"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_uncertainty_of_the_decision(stack, checkpoint, tmp_path, command):
    code, _, err = command(
        *prediction(stack, checkpoint, tmp_path / "m.tif", "--uncertainty", "--probabilities")
    )
    assert code == 0, err
    p, doubt = (
        tifffile.imread(tmp_path / f"m_{kind}.tif") for kind in ("probability", "uncertainty")
    )
    np.testing.assert_allclose(doubt, np.sqrt(p * (1 - p)), atol=1e-3)
    assert 0.4 < doubt.max() <= 0.5
    assert not doubt[3].any()  # blank


def test_one_window_for_the_whole_volume(stack, checkpoint, tmp_path, command):
    out = tmp_path / "mask.tif"
    code, _, err = command(
        *prediction(stack, checkpoint, out, "--window", "volume", "--probabilities")
    )
    assert code == 0, err
    limits = json.loads((tmp_path / "mask.tif.json").read_text())["limits"]
    assert limits[3] is None
    del limits[3]
    assert all(limit == limits[0] for limit in limits)
    grey, (low, high) = tifffile.imread(stack), limits[0]
    assert [low, high] == pytest.approx(np.percentile(grey[grey > 0], (2, 98)), rel=0.02)
    model, _ = predict.load_model(checkpoint, CPU)
    window = np.rint(255 * np.clip((grey[5].astype(float) - low) / (high - low), 0, 1)).astype(
        np.uint8
    )
    np.testing.assert_allclose(
        tifffile.imread(tmp_path / "mask_probability.tif")[5],
        predict_image(model, window, CPU, SlidingWindow(32)),
        atol=5e-4,
    )


def test_averages_over_turns_that_a_network_has_never_seen_are_said(
    folder, checkpoint, tmp_path, command
):
    weights, details = load_checkpoint(checkpoint)
    said = {}
    for turned in (False, True):
        path = tmp_path / f"turned_{turned}.safetensors"
        save_checkpoint(path, weights, {"config": details["config"] | {"quarter_turns": turned}})
        for options in ([], ["--tta"]):
            output = tmp_path / f"out_{turned}_{len(options)}"
            code, _, err = command(*prediction(folder / "s_0.tif", path, output, *options))
            assert code == 0, err
            said[turned, len(options)] = "without quarter turns" in err
    assert said == {(False, 0): False, (False, 1): True, (True, 0): False, (True, 1): False}


def test_several_checkpoints_are_averaged(stack, checkpoint, tmp_path, command):
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_checkpoint(
        other,
        UNet(2).state_dict(),
        {"config": dataclasses.asdict(predict.load_model(checkpoint, CPU)[1])},
    )
    both = ["--uncertainty", "spread", "--checkpoint", checkpoint, other]
    for name, file, options in (
        ("both", checkpoint, both),
        ("one", checkpoint, []),
        ("two", other, []),
    ):
        output = tmp_path / f"{name}.tif"
        code, _, err = command(*prediction(stack, file, output, "--probabilities", *options))
        assert code == 0, err
    both, one, two = (
        tifffile.imread(tmp_path / f"{name}_probability.tif") for name in ("both", "one", "two")
    )
    np.testing.assert_allclose(both, (one + two) / 2, atol=1e-3)
    assert (tifffile.imread(tmp_path / "both_uncertainty.tif") >= abs(one - two) / 2 - 2e-3).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_interrupted_prediction_goes_on_and_gives_the_same_bytes(
    stack, checkpoint, tmp_path, command, monkeypatch, blocks
):
    monkeypatch.setattr("volumes.blocks.BLOCK", 2)
    monkeypatch.setattr("utils.windows_at_once", lambda *_: 5)  # windows of two slices share a pass
    options = ("--checkpoint", checkpoint, "--probabilities", "--device", "cpu")
    assert command("predict", stack, *options, "--output", tmp_path / "whole.tif")[0] == 0
    predict_block, done = predict.predict_block, []

    def stops(*arguments):
        if len(done) == blocks:
            raise KeyboardInterrupt
        done.append(1)
        return predict_block(*arguments)

    monkeypatch.setattr(predict, "predict_block", stops)
    assert command("predict", stack, *options, "--output", tmp_path / "mask.tif")[0] == 130
    assert not (tmp_path / "mask.tif").exists()
    kept = sorted((tmp_path / "mask.tif.part").glob("*.npz"))
    assert len(kept) == blocks
    times = [p.stat().st_mtime_ns for p in kept]
    monkeypatch.setattr(predict, "predict_block", lambda *a: done.append(1) or predict_block(*a))
    assert command(
        "predict", stack, *options[:-3], "--device", "cpu", "--output", tmp_path / "mask.tif"
    )[::2] == (
        2,
        f"error: {tmp_path / 'mask.tif.part'}: was begun with other settings or input (probabilities was True, is "
        "False); give what it was begun with, or delete it, or choose another --output\n",
    )
    assert [p.stat().st_mtime_ns for p in kept] == times
    assert command("predict", stack, *options, "--output", tmp_path / "mask.tif")[0] == 0
    assert len(done) == 4
    for kind in ("", "_probability"):
        assert (tmp_path / f"mask{kind}.tif").read_bytes() == (
            tmp_path / f"whole{kind}.tif"
        ).read_bytes()
    assert not (tmp_path / "mask.tif.part").exists()
    assert command("predict", stack, *options, "--output", tmp_path / "mask.tif")[0] == 0
    assert len(done) == 4  # nothing left to do
    code, _, err = command(
        "predict", stack, *options, "--output", tmp_path / "mask.tif", "--threshold", "0.4"
    )
    assert code == 2
    assert "mask.tif: exists, and was not made from this input with these settings" in err


def test_a_slice_that_cannot_be_read_stops_and_the_rest_is_kept(
    folder, checkpoint, tmp_path, command, monkeypatch
):
    monkeypatch.setattr("volumes.blocks.BLOCK", 1)
    whole = (folder / "s_2.tif").read_bytes()
    (folder / "s_2.tif").write_bytes(whole[:-500])
    options = (
        "predict",
        folder,
        "--checkpoint",
        checkpoint,
        "--output",
        tmp_path / "o",
        "--device",
        "cpu",
    )
    code, _, err = command(*options)
    assert code == 2
    assert f"{folder / 's_2.tif'}: cannot be read" in err
    assert not (tmp_path / "o").exists()
    (folder / "s_2.tif").write_bytes(whole)
    assert command(*options)[0] == 0
    assert len(list((tmp_path / "o").glob("*.tif"))) == 3


def test_a_damaged_block_is_named(stack, checkpoint, tmp_path, command, monkeypatch):
    monkeypatch.setattr(predict, "finish", lambda *_: [])
    options = (
        "predict",
        stack,
        "--checkpoint",
        checkpoint,
        "--output",
        tmp_path / "m.tif",
        "--device",
        "cpu",
    )
    assert command(*options)[0] == 0
    (block,) = (tmp_path / "m.tif.part").glob("*.npz")
    block.write_bytes(block.read_bytes()[:-50])
    monkeypatch.undo()
    code, _, err = command(*options)
    assert code == 2
    assert f"error: {block}: is damaged" in err
    block.unlink()
    assert command(*options)[0] == 0


@pytest.mark.parametrize("name", ["v2.ome.zarr", "v3.zarr", "hyper.tif", "ome.ome.tif"])
def test_other_families(checkpoint, tmp_path, command, name):
    FAMILIES[name][0](tmp_path / name)
    out = tmp_path / "out" / name
    code, _, err = command(*prediction(tmp_path / name, checkpoint, out, "--probabilities"))
    assert code == 0, err
    stem, _, suffix = name.partition(".")
    mask, probability = content(out), content(tmp_path / "out" / f"{stem}_probability.{suffix}")
    np.testing.assert_array_equal(mask, np.where(probability >= 0.5, 255, 0))
    assert open_volume(out).axes == open_volume(tmp_path / name).axes
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [name, f"{name}.json", f"{stem}_probability.{suffix}"]
    )


# --- what lies outside, and windows -----------------------------------------------------------------------------


def with_padding(value: float, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Five slices in whole numbers with a round field of view, and where that ends."""
    rows, columns = np.mgrid[:size, :size]
    outside = np.hypot(rows - (size - 1) / 2, columns - (size - 1) / 2) > 0.47 * size
    stack = np.stack([np.rint(disc_slice(i, (size, size))[0] * 1e7) for i in range(5)])
    return np.where(outside, value, stack), outside


@pytest.mark.parametrize(
    "options",
    [(), ("--three-axes",), ("--window", "volume"), ("--uncertainty",), ("--roi", "10,90,0,96")],
)
def test_padding_changes_nothing_inside_whatever_its_value(checkpoint, tmp_path, command, options):
    masks = []
    for value in (0, -1000, -32768):
        stack, outside = with_padding(value)
        path = tmp_path / f"v{value}.tif"
        tifffile.imwrite(path, stack.astype(np.int16), photometric="minisblack")
        out = tmp_path / f"m{value}.tif"
        code, _, err = command(*prediction(path, checkpoint, out, *options))
        assert code == 0, err
        masks.append(tifffile.imread(out))
        assert not masks[-1][:, outside].any()
        assert "of the pixels lie outside the sample" in err
        inside = tifffile.imread(tmp_path / f"m{value}_inside.tif")
        assert (
            np.mean(inside != ~outside * np.uint8(255)) < 1e-3
        )  # a dark pixel at the edge may count as mixed
        if "--uncertainty" in options:
            assert not tifffile.imread(tmp_path / f"m{value}_uncertainty.tif")[:, outside].any()
    assert masks[0].any()
    for other in masks[1:]:
        np.testing.assert_array_equal(other, masks[0])


def test_without_padding_there_is_no_map_of_the_sample(checkpoint, folder, tmp_path, command):
    code, _, err = command(*prediction(folder, checkpoint, tmp_path / "m"))
    assert code == 0, err
    assert not (tmp_path / "m" / "inside").exists()
    assert "outside" not in err


def test_what_is_outside_is_not_scored_and_cuts_particles(checkpoint, tmp_path, command):
    stack, outside = with_padding(-1000)
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    command(*prediction(tmp_path / "v.tif", checkpoint, tmp_path / "m.tif"))
    truth = tifffile.imread(tmp_path / "m.tif")
    truth[:, outside] = 255  # whatever is said of what nobody can know
    tifffile.imwrite(tmp_path / "t.tif", truth, photometric="minisblack")
    code, out, err = command(
        "evaluate", "--pred", tmp_path / "m.tif", "--truth", tmp_path / "t.tif"
    )
    assert code == 0, err
    assert "mean dice         1.0000" in out
    assert "what lies outside is not scored" in out
    code, out, _ = command("evaluate", "particles", tmp_path / "m.tif", "--output", tmp_path / "p")
    assert code == 0
    assert json.loads((tmp_path / "p" / "summary.json").read_text())["masks"]["m"]["fov"].endswith(
        "m_inside.tif"
    )


@pytest.fixture
def trained(checkpoint, tmp_path) -> Path:
    """A checkpoint that knows the grey values of its training slices."""
    weights, details = load_checkpoint(checkpoint)
    window = {
        "low": 1500.0,
        "high": 3500.0,
        "contrast": 2000.0,
        "least_contrast": 1800.0,
        "most_contrast": 2200.0,
    }
    save_checkpoint(tmp_path / "knows.safetensors", weights, {**details, "window": window})
    return tmp_path / "knows.safetensors"


def test_slices_unlike_those_of_training_are_named(trained, tmp_path, command):
    stack, _ = with_padding(-1000)
    stack[3] = np.where(stack[3] == -1000, -1000, 2200 + (stack[3] - 2200) * 4)
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    options = (tmp_path / "v.tif", "--checkpoint", trained, "--device", "cpu")
    code, _, err = command("predict", *options, "--output", tmp_path / "m.tif")
    assert code == 0, err
    assert "v.tif, slice 3: 1 of 5 slices do not look like those of training: contrast" in err
    assert "--window training" in err
    record = json.loads((tmp_path / "m.tif.json").read_text())
    assert list(record["slices"]["unlike_training"]) == ["v.tif, slice 3"]
    code, _, err = command(
        "predict", *options, "--output", tmp_path / "t.tif", "--window", "training"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "t.tif.json").read_text())["limits"] == [[1500.0, 3500.0]] * 5
    code, _, err = command(
        "predict", *options, "--output", tmp_path / "w.tif", "--window", "1500,3500"
    )
    assert code == 0, err
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "w.tif"), tifffile.imread(tmp_path / "t.tif")
    )


def test_slices_in_other_units_than_those_of_training_get_no_wrong_advice(
    trained, tmp_path, command
):
    stack, outside = with_padding(0)
    tifffile.imwrite(
        tmp_path / "v.tif",
        np.where(outside, 0, stack / 1e7).astype(np.float32),
        photometric="minisblack",
    )
    options = (tmp_path / "v.tif", "--checkpoint", trained, "--device", "cpu")
    code, _, err = command("predict", *options, "--output", tmp_path / "m.tif")
    assert code == 0, err
    assert "5 of 5 slices have grey values in other units than those of training" in err
    assert "--window training" not in err
    code, _, err = command(
        "predict", *options, "--output", tmp_path / "t.tif", "--window", "training"
    )
    assert code == 0, err
    assert "--window training is wrong for them" in err


def test_air_is_named_and_left_blank_where_that_is_wanted(checkpoint, tmp_path, command):
    stack, _ = with_padding(-1000)
    stack[4] = 2000 + np.random.default_rng(0).normal(0, 30, stack[4].shape)
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    options = (tmp_path / "v.tif", "--checkpoint", checkpoint, "--device", "cpu")
    code, _, err = command("predict", *options, "--output", tmp_path / "m.tif")
    assert code == 0, err
    assert "v.tif, slice 4: 1 of 5 slices have little contrast" in err
    assert "they can be left blank by --blank auto" in err
    code, _, err = command("predict", *options, "--output", tmp_path / "b.tif", "--blank", "auto")
    assert code == 0, err
    blank, mask = tifffile.imread(tmp_path / "b.tif"), tifffile.imread(tmp_path / "m.tif")
    assert not blank[4].any()
    np.testing.assert_array_equal(blank[:4], mask[:4])
    assert json.loads((tmp_path / "b.tif.json").read_text())["blank"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--window", "training"),
            "--window training: the checkpoint does not say which grey values",
        ),
        (("--window", "dark"), "--window dark: expected slice, volume, training, or"),
        (("--window", "5,2"), "--window 5,2: LOW must be below HIGH"),
        (("--outside", "black"), "--outside black: expected auto, none, or the grey value"),
    ],
)
def test_wrong_windows(checkpoint, folder, tmp_path, command, options, message):
    code, _, err = command(*prediction(folder, checkpoint, tmp_path / "m", *options))
    assert code == 2
    assert message in err.splitlines()[-1]


def test_slices_of_other_families_become_tiffs(checkpoint, tmp_path, command):
    (tmp_path / "in").mkdir()
    for i, suffix in enumerate((".png", ".bmp", ".tif")):
        grey = np.clip(np.rint(disc_slice(i)[0] * 4e5), 0, 255).astype(np.uint8)
        path = tmp_path / "in" / f"s_{i}{suffix}"
        tifffile.imwrite(path, grey) if suffix == ".tif" else cv2.imwrite(str(path), grey)
    code, _, err = command(*prediction(tmp_path / "in", checkpoint, tmp_path / "m"))
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "m").glob("*.tif")) == [
        "s_0.tif",
        "s_1.tif",
        "s_2.tif",
    ]
    shutil.copy(tmp_path / "in" / "s_0.png", tmp_path / "in" / "s_2.png")
    code, _, err = command(
        "predict", tmp_path / "in", "--checkpoint", checkpoint, "--output", tmp_path / "n"
    )
    assert code == 2
    assert "holds s_2.png, s_2.tif, of which one slice was saved twice" in err


def test_constant_slices_of_a_padded_volume_show_no_sample(checkpoint, tmp_path, command):
    stack, outside = with_padding(-1000)
    stack[0] = -1000
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    code, _, err = command(*prediction(tmp_path / "v.tif", checkpoint, tmp_path / "m.tif"))
    assert code == 0, err
    inside = tifffile.imread(tmp_path / "m_inside.tif")
    assert not inside[0].any()
    assert inside[1][~outside].mean() > 250


def test_a_sparse_slice_of_a_padded_volume_shows_sample(checkpoint, tmp_path, command):
    """One bright particle in a clean matrix: both percentiles are alike, and the slice is not constant."""
    stack, outside = with_padding(-1000)
    stack[2] = np.where(outside, -1000, 1500)
    stack[2, 40:44, 40:44] = 3000
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    code, _, err = command(
        *prediction(tmp_path / "v.tif", checkpoint, tmp_path / "m.tif", "--window", "1000,3500")
    )
    assert code == 0, err
    assert tifffile.imread(tmp_path / "m_inside.tif")[2][~outside].mean() > 250


def test_a_slice_without_padding_among_others_is_named(checkpoint, tmp_path, command):
    stack, outside = with_padding(-1000)
    stack[3, outside] = np.random.default_rng(0).normal(1500, 300, np.count_nonzero(outside))
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    code, _, err = command(*prediction(tmp_path / "v.tif", checkpoint, tmp_path / "m.tif"))
    assert code == 0, err
    assert (
        "v.tif, slice 3, v.tif, slice 4: what lies outside the sample changes suddenly there" in err
    )
    assert "first from 31% to 0% of the slice" in err


def test_a_map_of_the_sample_that_was_left_behind_is_refused(checkpoint, tmp_path, command):
    stack, _ = with_padding(-1000)
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    options = (
        tmp_path / "v.tif",
        "--checkpoint",
        checkpoint,
        "--device",
        "cpu",
        "--output",
        tmp_path / "m.tif",
    )
    assert command("predict", *options)[0] == 0
    for name in ("m.tif", "m.tif.json"):
        (tmp_path / name).unlink()
    code, _, err = command("predict", *options, "--outside", "none")
    assert code == 2
    assert "m_inside.tif: is left from an earlier prediction" in err


def test_a_stated_value_may_have_an_exponent_and_is_missed_where_it_is_not(
    checkpoint, tmp_path, command
):
    stack, _ = with_padding(-1000)
    tifffile.imwrite(tmp_path / "v.tif", stack.astype(np.int16), photometric="minisblack")
    options = (tmp_path / "v.tif", "--checkpoint", checkpoint, "--device", "cpu")
    code, _, err = command("predict", *options, "--output", tmp_path / "m.tif", "--outside", "-1e3")
    assert code == 0, err
    assert "lie outside the sample" in err
    code, _, err = command(
        "predict", *options, "--output", tmp_path / "n.tif", "--outside", "-2000"
    )
    assert code == 0, err
    assert "no slice holds -2000 at its border" in err
