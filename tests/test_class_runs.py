"""Whole runs on label maps: several classes, partial paint, and both."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import train
import utils_viz
from config import Config
from conftest import TINY, as_options, data_options, fingerprint, run, write_label_maps
from evaluation.annotate_next import rank_unlabelled
from evaluation.class_metrics import Truth
from evaluation.models import Scoring, evaluate_models, validate
from model_unet import UNet
from report import write_report
from runtime.checkpoints import load_checkpoint
from runtime.files import read_json
from slices.classes import Classes
from slices.data_folder import load_data
from slices.fingerprint import take_fingerprints
from slices.options import MASKS, Reading
from slices.reading import Slice
from utils import SlidingWindow
from viz import class_figures, run_page, slice_figures

CLASS_TABLES = ("test_classes.csv", "confusion.csv", "phase_fractions.csv")
SETTINGS = {**TINY, "roi": None}


def config_of(folder, name: str = "base", **settings) -> Config:
    return Config(**{**SETTINGS, "data": str(folder), "run": name, **settings})


@pytest.fixture
def scribbled(tmp_path):
    """Eight slices of three classes, of which a third of the pixels is painted."""
    return write_label_maps(tmp_path / "data/scribbled", share=0.3)


def test_a_run_on_scribbles_trains_scores_and_names_its_classes(workplace, scribbled):
    config = config_of(scribbled, cutmix_p=1.0, forest=True)
    run(config)
    record = {"1": "matrix", "2": "grain", "3": "pore"}
    for path in config.checkpoint_folder.glob("best_*"):
        weights, details = load_checkpoint(path)
        assert details["classes"] == record
        assert UNet.from_weights(weights).outputs == 3

    summary = read_json(config.run_folder / "summary.json")
    assert summary["classes"] == record
    methods = list(summary["full"]["methods"])
    assert methods[:2] == ["Otsu", "random forest"]
    assert set(summary["by_class"]["random forest"]) == {"matrix", "grain", "pore"}
    assert [row["class"] for row in summary["phase_fractions"]] == ["matrix", "grain", "pore"]
    assert sum(row["predicted"] for row in summary["phase_fractions"]) == pytest.approx(1)
    assert summary["full"]["methods"]["Otsu"]["dice"]["mean"] > 0.7
    assert summary["full"]["methods"]["random forest"]["dice"]["mean"] > 0.7
    for name in CLASS_TABLES:
        assert (config.run_folder / name).exists()
    assert not (config.run_folder / "thresholds.csv").exists()
    confusion = pd.read_csv(config.run_folder / "confusion.csv")
    painted = sum(
        np.count_nonzero(tifffile.imread(scribbled / MASKS / f"s_0{i}.tif")) for i in (0, 1)
    )
    assert confusion.groupby("method")["pixels"].sum().unique().tolist() == [painted]

    # The means are those of the classes, without the background.
    table = pd.read_csv(config.run_folder / "test_classes.csv")
    foreground = table[(table["class"] != "matrix") & (table["method"] == "random forest")]
    mean = foreground.groupby("stem")["dice"].mean().mean()
    assert summary["full"]["methods"]["random forest"]["dice"]["mean"] == pytest.approx(mean)


def test_a_run_that_goes_on_ends_with_the_same_bytes(workplace, scribbled):
    run(config_of(scribbled, "whole"))
    config = config_of(scribbled, "parts")
    data = train.prepare(config)
    train.train_supervised(config, data)
    # As after a kill: what was trained is there, and the state of the next phase is not.
    data = train.prepare(config, resume=True)
    train.train_supervised(config, data)
    train.continue_supervised(config, data)
    train.train_semi_supervised(config, data)
    train.evaluate_run(config, data)
    assert fingerprint(config) == fingerprint(config_of(scribbled, "whole"))


def test_two_classes_that_are_painted_everywhere_train_like_a_binary_mask(workplace, tmp_path):
    """The same crops, the same network, the same losses but for the last digits."""
    labels = write_label_maps(tmp_path / "labels", classes={"1": "matrix", "2": "grain"})
    binary = write_label_maps(tmp_path / "binary")
    (binary / "classes.json").unlink()
    for path in (labels / MASKS).iterdir():
        values = tifffile.imread(path)
        tifffile.imwrite(path, np.where(values == 2, 2, 1).astype(np.uint8))
        mask = np.where(values == 2, 255, 0).astype(np.uint8)
        tifffile.imwrite(binary / MASKS / path.name, mask, photometric="minisblack")
    logs = []
    for folder, name in ((labels, "labels"), (binary, "binary")):
        config = config_of(folder, name)
        run(config)
        logs.append(pd.read_csv(config.run_folder / "ssl_metrics.csv"))
        weights, details = load_checkpoint(config.checkpoint("continued"))
        assert UNet.from_weights(weights).outputs == 1
        assert ("classes" in details) == (name == "labels")
    pd.testing.assert_frame_equal(*logs)


def test_two_classes_that_are_painted_in_part_have_one_logit_and_no_class_tables(
    workplace, tmp_path
):
    folder = write_label_maps(tmp_path / "d", share=0.3)
    (folder / "classes.json").write_text('{"1": "matrix", "2": "grain"}')
    for path in (folder / MASKS).iterdir():
        tifffile.imwrite(path, np.minimum(tifffile.imread(path), 2))
    config = config_of(folder)
    run(config)
    weights, details = load_checkpoint(config.checkpoint("ssl_teacher"))
    assert UNet.from_weights(weights).outputs == 1
    assert details["classes"] == {"1": "matrix", "2": "grain"}
    assert not any((config.run_folder / name).exists() for name in CLASS_TABLES)
    assert (config.run_folder / "thresholds.csv").exists()


def test_what_is_not_painted_changes_nothing_of_training_or_scores(workplace, tmp_path):
    """Neither the loss, nor a crop, nor a score may know what a label map holds where it is 0."""
    folder = write_label_maps(tmp_path / "d", share=0.3)
    run(config_of(folder, "one"))
    data = load_data(folder, data_options("blocks", 0.25, reading=Reading(None)))
    # Whoever took 0 for background in a mask would see another mask here.
    spoilt = []
    for s in data.labelled:
        mask = np.where(s.painted, s.mask, 2).astype(np.uint8)
        spoilt.append(dataclasses.replace(s, mask=mask))
    parts = [len(data.train), len(data.val), len(data.test)]
    train_part, val, test = spoilt[: parts[0]], spoilt[parts[0] : -parts[2]], spoilt[-parts[2] :]
    other = dataclasses.replace(data, train=train_part, val=val, test=test)

    config = config_of(folder, "one")
    models = {}
    for name in ("supervised", "continued"):
        weights, _ = load_checkpoint(config.checkpoint(name))
        models[name] = UNet.from_weights(weights)
    device = torch.device("cpu")
    window = SlidingWindow(32)
    scoring = Scoring(window, 0.5, "supervised", 0, data.classes)
    found = []
    for number, slices in enumerate((data, other)):
        folder_of_tables = tmp_path / f"tables{number}"
        evaluate_models(models, slices, folder_of_tables, scoring, device)
        tables = {path.name: path.read_bytes() for path in folder_of_tables.glob("*.csv")}
        scores = validate(models["supervised"], slices.val, device, window, 0.5, class_count=3)
        found.append((tables, scores))
    assert found[0] == found[1]

    again = config_of(folder, "two")
    train.prepare(again)
    train.train_supervised(again, other)
    one, two = (load_checkpoint(c.checkpoint("supervised"))[0] for c in (config, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_validation_looks_at_whole_slices_where_paint_may_lie_anywhere(tmp_path):
    folder = write_label_maps(tmp_path / "d")
    for path in (folder / MASKS).iterdir():
        values = tifffile.imread(path)
        values[8:] = 0
        tifffile.imwrite(path, values)
    data = load_data(folder, data_options("blocks", 0.25, reading=Reading(None)))
    torch.manual_seed(0)
    scores = validate(
        UNet(2, outputs=3).eval(),
        data.val,
        torch.device("cpu"),
        SlidingWindow(32),
        0.5,
        class_count=3,
    )
    assert 0 < scores["dice"] < 1


def test_slices_without_paint_in_their_centre_have_no_row_among_the_patches(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d")
    for i in (0, 1):
        path = folder / MASKS / f"s_0{i}.tif"
        values = tifffile.imread(path)
        values[8:] = 0
        if i == 1:
            values[20:40, 20:40] = 2
        tifffile.imwrite(path, values)
    config = config_of(folder, sup_epochs=1, ssl_epochs=1)
    run(config)
    assert set(pd.read_csv(config.run_folder / "test_patches.csv")["stem"]) == {"s_01"}
    assert set(pd.read_csv(config.run_folder / "test_full.csv")["stem"]) == {"s_00", "s_01"}


def test_what_to_annotate_next_is_said_of_several_classes(workplace, scribbled):
    config = config_of(scribbled)
    run(config)
    data = load_data(scribbled, data_options("blocks", 0.25, reading=Reading(None)))
    table = rank_unlabelled(config, data)
    assert set(table["stem"]) == {"scan_0", "scan_1", "scan_2"}
    assert table["entropy"].between(0, 1).all()


def test_crops_of_unlabelled_slices_lie_on_what_the_model_takes_for_any_class(workplace, scribbled):
    config = config_of(scribbled, unlabelled_foreground=True)
    run(config)
    assert (config.run_folder / "ssl_metrics.csv").exists()


# --- auto ------------------------------------------------------------------------------------------


def test_auto_fits_itself_to_label_maps(workplace, scribbled, command, few_steps):
    options = {
        "data": scribbled,
        "run": "own",
        "base_channels": 2,
        "patch_size": 64,
        "batch_size": 2,
        "split": "blocks",
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        "roi": None,
        "device": "cpu",
        "num_workers": 0,
        "forest": False,
    }
    code, out, err = command("train", *as_options(options), "--minutes=0.01")
    assert code == 0, err
    assert "every pixel: no slice is painted everywhere" in out
    assert "what lies between the paint" in out
    summary = read_json(workplace / "runs/own/summary.json")
    assert set(summary["by_class"]["pixel classifier"]) == {"matrix", "grain", "pore"}
    # It was fitted to each class, from the few pixels that are painted.
    assert summary["full"]["methods"]["pixel classifier"]["dice"]["mean"] > 0.5
    assert (workplace / "runs/own/report.html").exists()


def test_each_class_has_a_fingerprint_and_partial_paint_says_nothing_of_sizes(tmp_path, command):
    whole = write_label_maps(tmp_path / "whole")
    code, out, err = command(
        *("datasets", "fingerprint", whole, "--roi", "none", "--output", tmp_path / "f.json")
    )
    assert code == 0, err
    assert out.index("grain:") < out.index("pore:")
    numbers = json.loads((tmp_path / "f.json").read_text())
    assert list(numbers) == ["grain", "pore"]
    assert 8 < numbers["pore"]["diameter"] < 20

    part = write_label_maps(tmp_path / "part", share=0.3)
    data = load_data(part, data_options("blocks", 0.25, reading=Reading(None)))
    found = take_fingerprints(data.labelled, data.classes)["pore"]
    assert found.diameter is None
    assert found.kept == {}
    assert found.foreground == pytest.approx(numbers["pore"]["foreground"], rel=0.1)
    # What tells a pore, and how the material runs, painted pixels show as well.
    assert found.separation["grey"]["1"] > 0.9
    code, out, err = command("datasets", "fingerprint", part, "--roi", "none")
    assert code == 0, err
    assert "unknown" in out


# --- pictures and the page ---------------------------------------------------------------------------


def test_a_run_on_label_maps_has_its_figures_and_its_page(workplace, scribbled, command):
    config = config_of(scribbled, forest=True)
    run(config)
    code, _, err = command("report", config.run_folder)
    assert code == 0, err
    drawn = {path.stem for path in (config.run_folder / "figures").glob("*.png")}
    assert {"classes", "confusion", "fractions", "calibration", "slice", "views", "worst"} <= drawn
    assert {"methods_s_00", "prediction_s_00"} <= drawn
    # Of several classes none is the one whose sizes are asked for.
    assert "sizes" not in drawn
    page = (config.run_folder / "report.html").read_text()
    assert "the mean over classes but the background, matrix" in page
    assert page.count("data:image/") >= 9
    # No picture is explained as one of binary masks.
    assert run_page.CAPTIONS_OF_CLASSES["methods"] in page
    assert run_page.FIGURES["Where it is right, and wrong"]["methods"] not in page
    summary = read_json(config.run_folder / "summary.json")
    pore = summary["by_class"]["random forest"]["pore"]["dice"]["mean"]
    assert f"{pore:.3f}" in page


def test_classes_may_be_called_like_what_tables_leave_out_or_like_numbers(workplace, tmp_path):
    names = {"1": "nan", "2": "NA", "3": "1.2"}
    folder = write_label_maps(tmp_path / "d", classes=names)
    config = config_of(folder)
    run(config)
    drawn = dict(utils_viz.class_figures(config.run_folder))
    assert set(drawn) == {"classes", "confusion", "fractions"}
    labels = [text.get_text() for text in drawn["confusion"].axes[0].get_xticklabels()]
    assert labels == list(names.values())


def test_a_binary_run_on_partial_paint_draws_no_error_where_nothing_is_known(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d", share=0.3)
    (folder / "classes.json").write_text('{"1": "matrix", "2": "grain"}')
    for path in (folder / MASKS).iterdir():
        tifffile.imwrite(path, np.minimum(tifffile.imread(path), 2))
    config = config_of(folder)
    run(config)
    with np.load(config.run_folder / "predictions.npz") as stored:
        one = slice_figures.PredictedSlice(
            "s",
            stored["image_0"],
            stored["truth_0"].astype(bool),
            np.full(stored["truth_0"].shape, 255, np.uint8),
            0.5,
            "m",
            stored["painted_0"],
        )
        painted = stored["painted_0"]
    everything = np.ones(painted.shape, bool)
    assert (one.where_known(everything) == painted).all()
    write_report(config.run_folder)
    assert not (config.run_folder / "figures/sizes.png").exists()


def test_pictures_tint_what_is_painted_and_nothing_else():
    image = np.full((6, 8), 100, np.uint8)
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 1
    painted = np.zeros((6, 8), bool)
    painted[:3] = True
    legend = class_figures.Legend(["a", "b"], np.array([[1.0, 0, 0], [0, 0, 1.0]]))
    shown = class_figures.colour_classes(image, labels, painted, legend)
    grey = 100 / 255
    np.testing.assert_allclose(shown[5], np.full((8, 3), grey))
    red, blue = shown[0, 0], shown[0, 7]
    assert red[0] > grey > red[2]
    assert blue[2] > grey > blue[0]


def test_a_picture_of_errors_knows_painted_pixels_alone():
    truth = Truth(np.zeros((6, 8), np.uint8), np.eye(6, 8, dtype=bool))
    one = class_figures.LabelledSlice(
        "s", np.zeros((6, 8), np.uint8), truth, {"m": np.ones((6, 8), np.uint8)}
    )
    assert (one.wrong("m") == truth.counted).all()


def test_errors_of_a_slice_are_shown_for_masks_of_either_kind():
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 2
    painted = np.zeros((6, 8), bool)
    painted[:3] = True
    image = np.full((6, 8), 100, np.uint8)
    s = Slice(Path("s.tif"), image, labels, painted=painted)
    decision = labels.copy()
    decision[:, 3] = 1
    classes = Classes(("matrix", "grain", "pore"), (1, 2, 3))
    picture, title = class_figures.picture_of_errors(s, decision, classes)
    is_red = picture[..., 0] > picture[..., 1] + 0.1
    np.testing.assert_array_equal(is_red, painted & (decision != labels))
    assert title == "wrong: red; mean Dice 1.000"
    drawn = class_figures.draw_decisions(s, {"m": decision}, classes)
    assert [panel.get_title() for panel in drawn.axes[:2]] == ["s", "truth"]

    binary = Slice(Path("s.tif"), image, (labels > 0).astype(np.uint8), painted=painted)
    picture, title = class_figures.picture_of_errors(binary, decision > 0, None)
    is_red = picture[..., 0] > picture[..., 1] + 0.1
    np.testing.assert_array_equal(is_red, painted & (decision > 0) & (labels == 0))
    assert title.startswith("FP red, FN cyan")
    drawn = class_figures.draw_decisions(binary, {"m": decision > 0}, None)
    assert drawn.axes[2].get_title() == "m\nDice 0.889"
