"""From a checkpoint of several classes to label maps, probabilities, scores and particles of one class."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from config import Config
from conftest import class_slice, prediction, write_label_maps
from model_unet import UNet
from runtime.checkpoints import save_checkpoint
from runtime.files import read_json
from slices.options import IMAGES, MASKS

RECORD = {"1": "matrix", "2": "grain", "5": "pore"}


def save(path: Path, record: dict | None, outputs: int, seed: int = 0) -> Path:
    """Write a small network with random weights, whose classes are named."""
    torch.manual_seed(seed)
    model = UNet(2, outputs=outputs)
    if outputs == 3:
        # So that every class is predicted somewhere, whatever the other weights are.
        with torch.no_grad():
            model.head.weight.copy_(3 * torch.tensor([[0, 0], [1, -1], [-1, 1]])[..., None, None])
            model.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    config = Config(base_channels=2, patch_size=32, threshold=0.5)
    details = {"config": dataclasses.asdict(config), "name": path.stem.removeprefix("best_")}
    if record is not None:
        details["classes"] = record
    save_checkpoint(path, model.state_dict(), details)
    return path


@pytest.fixture
def classes3(tmp_path) -> Path:
    return save(tmp_path / "best_continued.safetensors", RECORD, 3)


@pytest.fixture
def stack(tmp_path) -> Path:
    path = tmp_path / "stack.tif"
    grey = np.stack([class_slice(i)[0] for i in range(4)])
    tifffile.imwrite(path, grey, imagej=True, metadata={"axes": "ZYX"})
    return path


def predicted(command, source: Path, checkpoint: Path, out: Path, *options) -> dict:
    """Predict, and return the record."""
    code, _, err = command(*prediction(source, checkpoint, out, *options))
    assert code == 0, err
    record = out / "prediction.json" if out.is_dir() else out.with_name(f"{out.name}.json")
    return read_json(record)


# --- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--three-axes",), ("--tta",)])
def test_a_label_map_holds_the_most_probable_class(command, stack, classes3, tmp_path, options):
    out = tmp_path / "out.tif"
    record = predicted(command, stack, classes3, out, "--probabilities", "--uncertainty", *options)
    assert record["classes"] == RECORD
    labels = tifffile.imread(out)
    p = tifffile.imread(tmp_path / "out_probability.tif").astype(np.float32)
    assert labels.shape == (4, 64, 64)
    assert p.shape == (4, 3, 64, 64)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=2e-3)
    values = np.array([1, 2, 5], np.uint8)
    np.testing.assert_array_equal(labels, values[p.argmax(axis=1)])
    assert set(np.unique(labels)) == {1, 2, 5}
    doubt = tifffile.imread(tmp_path / "out_uncertainty.tif")
    entropy = -(p * np.log(np.maximum(p, 1e-7))).sum(axis=1) / np.log(3)
    np.testing.assert_allclose(doubt, np.clip(entropy, 0, 1), atol=4e-3)
    shares = [np.mean(labels == value) for value in values]
    assert list(record["fractions"].values()) == pytest.approx(shares)


def test_three_axes_average_the_probabilities_of_all_classes(command, stack, classes3, tmp_path):
    """Voxel by voxel: along the slices, and along rows and columns of the same windowed grey values."""
    predicted(command, stack, classes3, tmp_path / "one.tif", "--probabilities")
    predicted(command, stack, classes3, tmp_path / "three.tif", "--probabilities", "--three-axes")
    spread = ("--uncertainty", "spread", "--three-axes", "--probabilities")
    predicted(command, stack, classes3, tmp_path / "spread.tif", *spread)
    one, three = (
        tifffile.imread(tmp_path / f"{name}_probability.tif") for name in ("one", "three")
    )
    assert np.abs(one - three).mean() > 1e-3
    deviation = tifffile.imread(tmp_path / "spread_uncertainty.tif")
    assert deviation.shape == (4, 64, 64)
    # Of three predictions the mean lies at most √2 of their joint deviation from any of them.
    distance = np.sqrt(((one - three) ** 2).sum(axis=1) / 2)
    assert (distance <= np.sqrt(2) * deviation + 5e-3).all()


def test_outside_the_sample_and_the_region_nothing_is_labelled(command, classes3, tmp_path):
    image, _ = class_slice(0)
    image[:, :16] = np.nan
    tifffile.imwrite(tmp_path / "s.tif", image)
    predicted(command, tmp_path / "s.tif", classes3, tmp_path / "o.tif", "--uncertainty")
    labels = tifffile.imread(tmp_path / "o.tif")
    assert (labels[:, :16] == 0).all()
    assert (labels[:, 16:] > 0).all()
    assert not tifffile.imread(tmp_path / "o_uncertainty.tif")[:, :16].any()
    image, _ = class_slice(0)
    tifffile.imwrite(tmp_path / "t.tif", image)
    predicted(command, tmp_path / "t.tif", classes3, tmp_path / "r.tif", "--roi", "8,56,8,56")
    labels = tifffile.imread(tmp_path / "r.tif")
    assert (labels[8:56, 8:56] > 0).all()
    labels[8:56, 8:56] = 0
    assert not labels.any()


def test_two_named_classes_have_values_too(command, stack, tmp_path):
    checkpoint = save(tmp_path / "two.safetensors", {"3": "matrix", "300": "pore"}, 1)
    for threshold in ("0.5", "0.9"):
        out = tmp_path / f"o{threshold}.tif"
        predicted(command, stack, checkpoint, out, "--probabilities", "--threshold", threshold)
        labels = tifffile.imread(out)
        assert labels.dtype == np.uint16
        p = tifffile.imread(out.with_name(f"o{threshold}_probability.tif"))
        assert p.shape == (4, 2, 64, 64)
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=2e-3)
        np.testing.assert_array_equal(labels, np.where(p[:, 1] >= np.float32(threshold), 300, 3))


def test_an_interrupted_prediction_goes_on_with_the_same_classes(
    command, stack, classes3, tmp_path
):
    first = predicted(command, stack, classes3, tmp_path / "o.tif")
    code, _, _ = command(*prediction(stack, classes3, tmp_path / "o.tif"))
    assert code == 0
    assert read_json(tmp_path / "o.tif.json") == first


# --- what is refused -------------------------------------------------------------------------------


def test_models_of_other_classes_are_not_averaged(refused, command, stack, classes3, tmp_path):
    binary = save(tmp_path / "binary.safetensors", None, 1)
    others = save(tmp_path / "others.safetensors", {"1": "a", "2": "b", "3": "c"}, 3)
    for other, what in ((binary, "binary masks"), (others, "the classes 1 a, 2 b, 3 c")):
        code, _, err = command(
            *("predict", stack, "--checkpoint", classes3, other),
            *("--output", tmp_path / "o.tif", "--device", "cpu"),
        )
        assert code == 2
        assert f"was trained for {what}" in err


@pytest.mark.parametrize(
    ("record", "outputs", "what"),
    [
        (None, 3, "says not which classes it was trained for"),
        ({"1": "a", "2": "b"}, 3, "names 2 classes, but the network has 3 outputs"),
        ({"1": "a", "2": "b", "3": "c"}, 1, "names 3 classes, but the network has 1 outputs"),
        ({"0": "a", "2": "b"}, 1, "gives 0 a name"),
        (["a", "b"], 3, "says not which classes"),
    ],
)
def test_a_checkpoint_that_does_not_know_its_classes_is_refused(
    command, stack, tmp_path, record, outputs, what
):
    path = save(tmp_path / "odd.safetensors", record, outputs)
    code, _, err = command(*prediction(stack, path, tmp_path / "o.tif"))
    assert code == 2
    assert what in err


def test_a_threshold_has_no_meaning_for_several_classes(command, stack, classes3, tmp_path):
    code, _, err = command(*prediction(stack, classes3, tmp_path / "o.tif", "--threshold", "0.4"))
    assert code == 2
    assert "--threshold: has no meaning for several classes" in err


# --- scores ----------------------------------------------------------------------------------------


@pytest.fixture
def scored(command, classes3, tmp_path) -> tuple[Path, Path]:
    """A folder of predicted label maps, and the data folder of true ones, half of them painted."""
    data = write_label_maps(tmp_path / "data", 3, 0.5, {"1": "pore", "2": "grain", "3": "matrix"})
    predicted(command, data / IMAGES, classes3, tmp_path / "pred", "--uncertainty")
    return tmp_path / "pred", data


def test_predictions_are_scored_class_by_class_by_their_names(command, scored, tmp_path):
    """The model numbers its classes in another way than the data folder does."""
    pred, data = scored
    out = tmp_path / "scores.csv"
    code, text, err = command(
        *("evaluate", "--pred", pred, "--truth", data / MASKS, "--output", out),
        *("--uncertainty", pred / "uncertainty"),
    )
    assert code == 0, err
    assert "mean without pore" in text
    assert "that tenth holds" in text
    table = pd.read_csv(out).set_index(["stem", "class"])
    assert len(table) == 3 * 3
    for name, value, true_value in (("pore", 5, 1), ("grain", 2, 2), ("matrix", 1, 3)):
        truth = tifffile.imread(data / MASKS / "s_01.tif")
        labels = tifffile.imread(pred / "s_01.tif")
        found = (labels == value) & (truth > 0)
        true = truth == true_value
        dice = 2 * np.count_nonzero(found & true) / (found.sum() + true.sum())
        assert table.loc[("s_01", name), "dice"] == pytest.approx(dice)
        assert table.loc[("s_01", name), "fraction_truth"] == pytest.approx(
            true.sum() / np.count_nonzero(truth)
        )


def test_volumes_are_scored_where_slices_are_painted(command, stack, classes3, tmp_path):
    predicted(command, stack, classes3, tmp_path / "o.tif")
    truth = np.zeros((4, 64, 64), np.uint8)
    truth[2] = class_slice(2)[1]
    truth[truth == 3] = 5
    tifffile.imwrite(tmp_path / "truth.tif", truth, imagej=True, metadata={"axes": "ZYX"})
    names = tmp_path / "names.json"
    names.write_text(json.dumps(RECORD))
    arguments = ("evaluate", "--pred", tmp_path / "o.tif", "--truth", tmp_path / "truth.tif")
    code, _, err = command(*arguments)
    assert code == 2
    assert "does not say what its values mean" in err
    code, _, err = command(*arguments, "--classes", names, "--output", tmp_path / "s.csv")
    assert code == 0, err
    assert set(pd.read_csv(tmp_path / "s.csv")["stem"]) == {"o_0002"}


def test_what_was_not_predicted_is_said_and_not_scored(command, classes3, tmp_path):
    data = write_label_maps(tmp_path / "data", 2, 1.0, RECORD)
    for path in (data / MASKS).iterdir():
        values = tifffile.imread(path)
        tifffile.imwrite(path, np.where(values == 3, 5, values).astype(np.uint8))
    options = ("--roi", "0,64,0,40")
    predicted(command, data / IMAGES, classes3, tmp_path / "pred", *options)
    labels = tifffile.imread(tmp_path / "pred/s_00.tif")
    labels[:10] = 0
    tifffile.imwrite(tmp_path / "pred/s_00.tif", labels)
    code, text, err = command("evaluate", "--pred", tmp_path / "pred", "--truth", data / MASKS)
    assert code == 0, err
    assert "400 painted pixels were not predicted" in text


def test_sides_of_different_kinds_are_not_compared(command, scored, stack, tmp_path):
    pred, data = scored
    binary = save(tmp_path / "binary.safetensors", None, 1)
    predicted(command, data / IMAGES, binary, tmp_path / "bin")
    code, _, err = command("evaluate", "--pred", tmp_path / "bin", "--truth", data / MASKS)
    assert code == 2
    assert "bin: holds binary masks, but" in err
    (data / "classes.json").write_text('{"1": "pore", "2": "grain", "3": "crack"}')
    code, _, err = command("evaluate", "--pred", pred, "--truth", data / MASKS)
    assert code == 2
    assert "they must have the same names" in err
    (data / "classes.json").write_text('{"1": "pore", "2": "grain", "3": "matrix"}')
    for option, value in (("--mask-foreground", "dark"), ("--pixel-size", "2")):
        code, _, err = command("evaluate", "--pred", pred, "--truth", data / MASKS, option, value)
        assert code == 2
        assert err.startswith(f"error: {option}")


def test_label_maps_of_other_programs_are_scored_with_the_names_of_the_truth(command, tmp_path):
    data = write_label_maps(tmp_path / "data", 2)
    other = tmp_path / "other"
    other.mkdir()
    for path in (data / MASKS).iterdir():
        tifffile.imwrite(other / path.name, tifffile.imread(path))
    code, text, err = command("evaluate", "--pred", other, "--truth", data / MASKS)
    assert code == 0, err
    assert "1.0000" in text


# --- particles -------------------------------------------------------------------------------------


def discs(path: Path, value: int, others: int) -> None:
    """A label map with three discs of one class, and one of another, all else of class 1."""
    labels = np.ones((100, 120), np.uint8)
    for row, column in ((20, 20), (20, 80), (70, 50)):
        cv2.circle(labels, (column, row), 8, value, -1)
    cv2.circle(labels, (90, 70), 12, others, -1)
    tifffile.imwrite(path, labels, photometric="minisblack")


def test_the_particles_of_one_class_are_measured(command, tmp_path):
    discs(tmp_path / "m.tif", 5, 2)
    (tmp_path / "classes.json").write_text(json.dumps(RECORD))
    for given, count in (("pore", 3), ("5", 3), ("grain", 1)):
        out = tmp_path / given
        arguments = ("evaluate", "particles", tmp_path / "m.tif", "--class", given)
        code, _, err = command(*arguments, "--output", out)
        assert code == 0, err
        table = pd.read_csv(out / "m.csv")
        assert len(table) == count
        assert read_json(out / "summary.json")["masks"]["m"]["class"] == given


def test_particles_of_label_maps_need_a_class_that_there_is(command, tmp_path):
    discs(tmp_path / "m.tif", 5, 2)
    arguments = ("evaluate", "particles", tmp_path / "m.tif")
    code, _, err = command(*arguments, "--class", "pore")
    assert code == 2
    assert "does not say which classes its values are; name them with --classes" in err
    names = tmp_path / "names.json"
    names.write_text(json.dumps(RECORD))
    code, _, err = command(*arguments, "--classes", names)
    assert code == 2
    assert "choose a class with --class NAME: 1 matrix, 2 grain, 5 pore" in err
    code, _, err = command(*arguments, "--classes", names, "--class", "crack")
    assert code == 2
    assert "--class crack: no class has this name" in err
    assert not (tmp_path / "m_particles").exists()


def test_things_in_partial_paint_are_not_measured(command, tmp_path):
    """They would seem to end where the paint does."""
    discs(tmp_path / "m.tif", 5, 2)
    labels = tifffile.imread(tmp_path / "m.tif")
    labels[:, 60:] = 0
    tifffile.imwrite(tmp_path / "m.tif", labels, photometric="minisblack")
    (tmp_path / "classes.json").write_text(json.dumps(RECORD))
    code, _, err = command("evaluate", "particles", tmp_path / "m.tif", "--class", "pore")
    assert code == 2
    assert "50.0% of its pixels are not labelled" in err


def test_particles_of_a_prediction_lie_in_what_was_looked_at(command, classes3, tmp_path):
    image, _ = class_slice(0)
    image[:, :16] = np.nan
    tifffile.imwrite(tmp_path / "s.tif", image)
    predicted(command, tmp_path / "s.tif", classes3, tmp_path / "o.tif")
    code, _, err = command(
        *("evaluate", "particles", tmp_path / "o.tif", "--class", "grain"),
        *("--output", tmp_path / "p", "--smallest", "1"),
    )
    assert code == 0, err
    labels = tifffile.imread(tmp_path / "o.tif")
    (table,) = read_json(tmp_path / "p/summary.json")["masks"].values()
    inside = labels[:, 16:]
    assert table["fraction"] == pytest.approx(np.mean(inside == 2))
    sizes = pd.read_csv(tmp_path / "p/o.csv")["voxels"]
    assert sizes.sum() == np.count_nonzero(labels == 2)


# --- napari ----------------------------------------------------------------------------------------


def test_napari_shows_label_maps_with_names_and_colours(command, scored, monkeypatch):
    layers = {}

    class Viewer:
        def add_image(self, data, name, **options):
            layers[name] = SimpleNamespace(data=data, **options)

        add_labels = add_image

    napari = ModuleType("napari")
    napari.Viewer = lambda **_: Viewer()
    napari.run = lambda: None
    monkeypatch.setitem(sys.modules, "napari", napari)
    pred, data = scored
    code, _, err = command(
        "view", data / IMAGES, "--mask", pred, "--uncertainty", pred / "uncertainty"
    )
    assert code == 0, err
    labels = layers["classes"]
    expected = np.stack([tifffile.imread(pred / f"s_{i:02d}.tif") for i in range(3)])
    np.testing.assert_array_equal(labels.data.compute(), expected)
    assert labels.features["class"].tolist() == ["not labelled", "matrix", "grain", "pore"]
    assert labels.features["index"].tolist() == [0, 1, 2, 5]
    assert set(labels.colormap) == {None, 1, 2, 5}
    assert layers["uncertainty"].contrast_limits == (0, 1)


def test_a_file_of_another_program_beside_masks_is_no_record(command, tmp_path):
    """Such as annotations that are called like the masks: they neither stop a score nor make a prediction of it."""
    data = write_label_maps(tmp_path / "data", 2)
    (data / MASKS).with_name("Original_masks.json").write_text("[1, 2]")
    shutil.copytree(data / MASKS, tmp_path / "other")
    code, out, err = command("evaluate", "--pred", tmp_path / "other", "--truth", data / MASKS)
    assert code == 0, err
    assert "1.0000" in out
    discs(tmp_path / "m.tif", 5, 2)
    labels = tifffile.imread(tmp_path / "m.tif")
    labels[:, 60:] = 0
    tifffile.imwrite(tmp_path / "m.tif", labels, photometric="minisblack")
    (tmp_path / "m.tif.json").write_text('{"images": []}')
    (tmp_path / "classes.json").write_text(json.dumps(RECORD))
    code, _, err = command("evaluate", "particles", tmp_path / "m.tif", "--class", "pore")
    assert code == 2
    assert "50.0% of its pixels are not labelled" in err
