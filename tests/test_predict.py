import dataclasses

import numpy as np
import pytest
import tifffile
import torch

import predict
from conftest import disc_slice
from model_unet import UNet
from slices import Path, percentile_window
from config import Config
from stitching import predict_image
from utils import save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "best.safetensors"
    config = Config(base_channels=2, patch_size=32, percentiles=(2.0, 98.0), threshold=0.5)
    save_checkpoint(path, UNet(2).state_dict(), {"config": dataclasses.asdict(config)})
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    for i, size in enumerate([(64, 64), (50, 81), (20, 20)]):
        tifffile.imwrite(path / f"s_{i}.tif", disc_slice(i, size)[0])
    return path


def test_folder(folder, checkpoint, tmp_path, command):
    out = tmp_path / "new" / "masks"
    code, _, err = command("predict", folder, "--checkpoint", checkpoint, "--output", out, "--probabilities",
                           "--device", "cpu")
    assert code == 0, err
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.tif")) == sorted(
        f"{folder}s_{i}.tif" for i in range(3) for folder in ("", "probabilities/"))
    model, settings = predict.load_model(checkpoint, CPU)
    for i in range(3):
        image, mask = tifffile.imread(folder / f"s_{i}.tif"), tifffile.imread(out / f"s_{i}.tif")
        assert mask.shape == image.shape
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        expected = predict_image(model, percentile_window(image, (2.0, 98.0)), CPU, 32)
        probability = tifffile.imread(out / "probabilities" / f"s_{i}.tif")
        np.testing.assert_allclose(probability, expected, atol=1e-6)
        np.testing.assert_array_equal(mask > 0, probability >= settings["threshold"])


def test_one_slice_threshold_and_symmetries(folder, checkpoint, tmp_path, command):
    options = (folder / "s_0.tif", "--checkpoint", checkpoint, "--device", "cpu")
    assert command("predict", *options, "--output", tmp_path / "mask.tif")[0] == 0
    assert command("predict", *options, "--output", tmp_path / "low", "--threshold", 0.01)[0] == 0
    assert command("predict", *options, "--output", tmp_path / "tta", "--tta", "--probabilities")[0] == 0
    assert tifffile.imread(tmp_path / "low" / "s_0.tif").mean() > tifffile.imread(tmp_path / "mask.tif").mean()
    model, _ = predict.load_model(checkpoint, CPU)
    window = percentile_window(tifffile.imread(folder / "s_0.tif"), (2.0, 98.0))
    np.testing.assert_allclose(tifffile.imread(tmp_path / "tta" / "probabilities" / "s_0.tif"),
                               predict_image(model, window, CPU, 32, tta=True), atol=1e-6)


def test_roi_windows_inside_and_leaves_zero_outside(checkpoint, folder, tmp_path, command):
    code, _, err = command("predict", folder / "s_0.tif", "--checkpoint", checkpoint, "--output", tmp_path / "o",
                           "--roi", "8,48,4,60", "--probabilities", "--device", "cpu")
    assert code == 0, err
    probability = tifffile.imread(tmp_path / "o" / "probabilities" / "s_0.tif")
    model, _ = predict.load_model(checkpoint, CPU)
    inside = percentile_window(tifffile.imread(folder / "s_0.tif")[8:48, 4:60], (2.0, 98.0))
    np.testing.assert_allclose(probability[8:48, 4:60], predict_image(model, inside, CPU, 32), atol=1e-6)
    probability[8:48, 4:60] = 0
    assert not probability.any()


def test_a_blank_slice_has_an_empty_mask_and_does_not_stop_the_others(checkpoint, folder, tmp_path, command):
    tifffile.imwrite(folder / "s_1.tif", np.zeros((40, 50), np.uint16))
    code, _, err = command("predict", folder, "--checkpoint", checkpoint, "--output", tmp_path / "o", "--device", "cpu")
    assert code == 0, err
    assert not tifffile.imread(tmp_path / "o" / "s_1.tif").any()
    assert (tmp_path / "o" / "s_2.tif").exists()


def test_one_slice_with_its_probability_beside_it(checkpoint, folder, tmp_path, command):
    options = ("predict", folder / "s_0.tif", "--checkpoint", checkpoint, "--probabilities", "--device", "cpu")
    assert command(*options, "--output", tmp_path / "m.tif")[0] == 0
    assert tifffile.imread(tmp_path / "m_probability.tif").dtype == np.float32
    (folder / "s_0.tif").rename(folder / "x_probability.tif")
    code, _, err = command("predict", folder / "x_probability.tif", *options[2:], "--output", folder / "x.tif")
    assert code == 2
    assert "x_probability.tif: would replace the input" in err


@pytest.mark.parametrize(("arguments", "message"), [
    (["none.tif"], "none.tif: no such file or folder"),
    (["empty"], "empty: holds no .tif slice"),
    (["a.jpg"], "a.jpg: is not a .tif slice"),
    (["in", "--output", "in"], "s_0.tif: would replace the input"),
    (["in", "--threshold", "1.5"], "--threshold 1.5: must be between 0 and 1"),
    (["in", "--roi", "0,100,0,100"], "s_0.tif: is 64×64 px, too small for the ROI"),
    (["in", "--checkpoint", "none.safetensors"], "none.safetensors: no such checkpoint"),
    (["in", "--checkpoint", "other.safetensors"], "other.safetensors: not the weights of this U-Net"),
    (["in", "--device", "toaster"], "device 'toaster' cannot be used"),
    (["in", "--output", "a.jpg"], "check path, rights"),
    (["stack.tif"], r"stack.tif: has shape (3, 8, 8), expected one grey slice"),
])
def test_errors_name_the_file_and_the_cure(folder, checkpoint, tmp_path, command, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").touch()
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    save_checkpoint(tmp_path / "other.safetensors", torch.nn.Linear(2, 2).state_dict(), {"config": {}})
    code, _, err = command("predict", "--checkpoint", checkpoint, "--output", "out", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
