"""Whole runs: what they leave, what the control gets, and that test slices decide nothing."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tifffile
import torch

import mean_teacher
import train
from config import CPU_PROFILE, Config
from conftest import TINY, as_options, fingerprint, run, write_data, write_split
from runtime import progress
from runtime.checkpoints import load_checkpoint
from runtime.messages import InputError

RUN_FILES = [
    ".lock",
    "calibration.csv",
    "config.json",
    "continued_metrics.csv",
    "environment.json",
    "phases.json",
    "predictions.npz",
    "samples.npz",
    "split.json",
    "ssl_metrics.csv",
    "summary.json",
    "sup_metrics.csv",
    "test_full.csv",
    "test_patches.csv",
    "thresholds.csv",
]


# --- phases and runs ------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_design_names(tiny):
    tiny = dataclasses.replace(tiny, forest=True)
    run(tiny)
    assert sorted(p.name for p in tiny.run_folder.iterdir()) == RUN_FILES
    assert sorted(p.name for p in Path("checkpoints/base").iterdir()) == [
        f"best_{n}.safetensors" for n in ("continued", "ssl_student", "ssl_teacher", "supervised")
    ]
    header = (tiny.run_folder / "sup_metrics.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,loss_sup,val_dice,val_iou,")
    header = (tiny.run_folder / "ssl_metrics.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,loss_sup,loss_consistency,lam,val_dice,val_iou,")
    lam = pd.read_csv(tiny.run_folder / "ssl_metrics.csv")["lam"].tolist()
    assert lam == [0, pytest.approx(0.5), 1]
    table = pd.read_csv(tiny.run_folder / "test_full.csv")
    assert table["method"].unique().tolist() == [
        "Otsu",
        "random forest",
        "supervised",
        "supervised continued",
        "Mean Teacher (student)",
        "Mean Teacher (teacher)",
    ]
    assert table.groupby("method").size().unique().tolist() == [2]
    summary = json.loads((tiny.run_folder / "summary.json").read_text())
    assert [p["method"] for p in summary["full"]["paired"]] == [
        "supervised",
        "Mean Teacher (student)",
        "Mean Teacher (teacher)",
    ]


def test_control_takes_as_many_steps_as_mean_teacher_from_the_same_weights(tiny, monkeypatch):
    data, starts = train.prepare(tiny), []
    step = train.train_step

    def watched(training, *rest):
        if not training.optimizer.state:
            starts.append(
                (
                    training.student.head.weight.detach().clone(),
                    training.optimizer.param_groups[0]["lr"],
                )
            )
        return step(training, *rest)

    monkeypatch.setattr(train, "train_step", watched)
    train.train_supervised(tiny, data)
    train.continue_supervised(tiny, data)
    train.train_semi_supervised(tiny, data)
    phases = json.loads((tiny.run_folder / "phases.json").read_text())
    assert phases["continued"]["steps"] == phases["mean_teacher"]["steps"] == 6
    (_, _), (control, lr1), (student, lr2) = starts
    assert torch.equal(control, student)
    assert lr1 == lr2 == tiny.lr


def test_best_checkpoint_is_the_best_validation_epoch(tiny):
    config = dataclasses.replace(tiny, sup_epochs=8)
    train.train_supervised(config, train.prepare(config))
    log = pd.read_csv(config.run_folder / "sup_metrics.csv")
    details = load_checkpoint(config.checkpoint("supervised"))[1]
    assert details["epoch"] == log["epoch"][log["val_dice"].idxmax()]
    assert details["val_dice"] == pytest.approx(log["val_dice"].max(), abs=1e-6)
    assert Config(**details["config"], device="cpu", num_workers=0, forest=False) == config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "weight_average": 0.9,
            "schedule": "one_cycle",
            "validate_every": 2,
            "selection": "full",
            "cutmix_p": 1.0,
            "consistency": "bce_dice",
            "quarter_turns": True,
            "noise": 0.1,
            "strong_views": 2,
            "feature_dropout": 0.5,
        },
    ],
)
def test_stopping_and_resuming_gives_the_run_that_was_not_stopped(tiny, monkeypatch, changes):
    tiny = dataclasses.replace(tiny, **changes)
    whole = dataclasses.replace(tiny, run="whole")
    run(whole)
    monkeypatch.setattr(progress, "SAVE_SECONDS", -1.0)  # a state after every epoch
    for stop_at in (3, 9, 16):  # in each of the three phases
        count, step = 0, mean_teacher.step_losses

        def stopping(*arguments, stop_at=stop_at, step=step):
            nonlocal count
            count += 1
            if count == stop_at:
                raise KeyboardInterrupt
            return step(*arguments)

        config = dataclasses.replace(tiny, run=f"stopped{stop_at}")
        monkeypatch.setattr(mean_teacher, "step_losses", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(config)
        monkeypatch.setattr(mean_teacher, "step_losses", step)
        run(config, resume=True)
        assert fingerprint(config) == fingerprint(whole)


def test_finished_phases_are_kept(tiny, capsys):
    run(tiny)
    before = {p: p.stat().st_mtime_ns for p in Path("checkpoints/base").iterdir()}
    with pytest.raises(InputError, match="holds a run already"):
        train.prepare(tiny)
    with pytest.raises(InputError, match=r"lr was 0\.001, now 0\.1"):
        train.prepare(dataclasses.replace(tiny, lr=0.1), resume=True)
    run(tiny, resume=True)
    assert {p: p.stat().st_mtime_ns for p in Path("checkpoints/base").iterdir()} == before
    assert "Mean Teacher: finished before, kept" in capsys.readouterr().err
    tiny.checkpoint("continued").unlink()
    with pytest.raises(InputError, match=r"best_continued\.safetensors: no such checkpoint"):
        run(tiny, resume=True)


def test_resuming_on_other_data_is_an_error(tiny, data_folder):
    run(tiny)
    painted = data_folder / "labeled" / "Original_masks" / "s_mask_03.tif"
    before = painted.read_bytes()
    mask = tifffile.imread(painted)
    mask[10:14, 10:14] = mask.min()
    tifffile.imwrite(painted, mask)
    with pytest.raises(InputError, match="slices, masks or split changed since"):
        train.prepare(tiny, resume=True)
    painted.write_bytes(before)
    run(tiny, resume=True)
    for folder in ("Original_images", "Original_masks"):
        for path in (data_folder / "labeled" / folder).glob("*_00.tif"):
            path.rename(path.with_stem(path.stem[:-2] + "50"))  # another order, another split
    with pytest.raises(InputError, match="slices, masks or split changed since"):
        train.prepare(tiny, resume=True)


def test_weights_of_a_run_whose_folder_is_gone_are_not_taken_up(tiny):
    run(tiny)
    shutil.rmtree(tiny.run_folder)
    with pytest.raises(InputError, match="checkpoints/base: holds weights of another run"):
        train.prepare(dataclasses.replace(tiny, lr=0.5))
    assert tiny.checkpoint("supervised").exists()


def test_only_methods_of_this_run_are_reported(tiny):
    config = dataclasses.replace(tiny, method="supervised", forest=True)
    run(config)
    config.checkpoint("continued").write_bytes(config.checkpoint("supervised").read_bytes())
    train.evaluate_run(config, train.prepare(config, resume=True))
    assert pd.read_csv(config.run_folder / "test_full.csv")["method"].unique().tolist() == [
        "Otsu",
        "random forest",
        "supervised",
    ]


@pytest.mark.parametrize(
    ("method", "steps"), [("supervised", 4), ("mean_teacher", 4), ("mean_teacher", 1)]
)  # after a single step the loss is still fine
def test_what_is_not_a_number_stops_the_run(tiny, method, steps):
    config = dataclasses.replace(
        tiny, method=method, sup_epochs=1, ssl_epochs=1, steps_per_epoch=steps
    )
    data = train.prepare(config)
    if method == "mean_teacher":
        train.train_supervised(config, data)
    phase = train.train_supervised if method == "supervised" else train.train_semi_supervised
    name = "supervised" if method == "supervised" else "ssl_student"
    with pytest.raises(InputError, match=r"not (a number|numbers any more).* lower --lr"):
        phase(dataclasses.replace(config, lr=3e37), data)
    assert not config.checkpoint(name).exists()


def test_test_slices_decide_nothing(tiny):
    """Other test masks, other scores; the same curves, checkpoints, Otsu and forest."""
    results = []
    for name, turn in (("a", lambda mask: mask), ("b", lambda mask: 1 - mask)):
        config = dataclasses.replace(tiny, run=name, sup_epochs=6, ssl_epochs=6, forest=True)
        data = train.prepare(config)
        data = dataclasses.replace(
            data, test=[dataclasses.replace(s, mask=turn(s.mask)) for s in data.test]
        )
        train.train_supervised(config, data)
        train.continue_supervised(config, data)
        train.train_semi_supervised(config, data)
        summary = train.evaluate_run(config, data)
        tables = {"test_full.csv", "test_patches.csv", "calibration.csv", "thresholds.csv"}
        kept = {key: value for key, value in fingerprint(config).items() if key not in tables}
        results.append(
            (
                kept,
                summary["otsu"] | {"seconds": None},
                summary["forest"] | {"seconds": None},
                pd.read_csv(config.run_folder / "test_full.csv")["dice"].tolist(),
            )
        )
    assert results[0][:3] == results[1][:3]
    assert results[0][3] != results[1][3]


def test_a_best_that_the_saved_state_does_not_know_stays_the_best(tiny, monkeypatch):
    """Stopped after the weights of epoch 3 were written, before its state; then the epochs turn out worse."""
    config, scores = dataclasses.replace(tiny, sup_epochs=4), iter([0.2, 0.5, 0.9, None, 0.4, 0.3])
    epochs, append, save = [], progress.append_row, progress.save_state

    def score(*arguments):
        if (dice := next(scores)) is None:
            raise KeyboardInterrupt
        return {"dice": dice, "iou": dice}

    monkeypatch.setattr(train, "validate", score)
    monkeypatch.setattr(progress, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(
        progress, "append_row", lambda path, row: epochs.append(row["epoch"]) or append(path, row)
    )
    monkeypatch.setattr(
        progress,
        "save_state",
        lambda path, parts, details: details["step"] > 4 or save(path, parts, details),
    )
    data = train.prepare(config)
    with pytest.raises(KeyboardInterrupt):
        train.train_supervised(config, data)
    train.train_supervised(config, data)
    assert epochs == [1, 2, 3, 3, 4]
    details = load_checkpoint(config.checkpoint("supervised"))[1]
    assert (details["epoch"], details["val_dice"]) == (3, 0.9)
    best = json.loads((config.run_folder / "phases.json").read_text())["supervised"]["best"]
    assert best == {"supervised": {"val_dice": 0.9, "epoch": 3}}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_slices_is_enough(workplace, count, capsys):
    config = Config(
        **{**TINY, "val_fraction": 0.18, "test_fraction": 0.18, "roi": None},
        data=str(write_data(workplace / "few", count=count, scans=1)),
    )
    run(config)
    assert config.checkpoint("ssl_teacher").exists()
    assert ("no test slice" in capsys.readouterr().err) == (count < 3)


# --- command line ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_line(workplace, data_folder, command):
    options = as_options(
        {**TINY, "data": data_folder, "run": "cli", "freeze": (), "foreground_crop": 0.5}
    )
    code, out, err = command("train", *options)
    assert code == 0, err
    assert "cpu profile, base_channels 64 → 2" in out
    assert re.search(r"Mean Teacher \(teacher\) +full-image test Dice 0\.\d{4}", out)
    stored = Config(**json.loads((Path("runs") / "cli" / "config.json").read_text()))
    assert stored == Config(
        **{
            **CPU_PROFILE,
            **TINY,
            "data": str(data_folder),
            "run": "cli",
            "freeze": (),
            "foreground_crop": 0.5,
        }
    )
    code, _, err = command("train", *options)
    assert code == 2
    assert "holds a run already; add --resume" in err
    assert command("train", *options, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lr=fast", "--lr: 'fast' is not possible"),
        ("--freeze=up1", r"--freeze: \('up1',\) is not possible"),
        ("--foreground-crop=maybe", "--foreground-crop: 'maybe'"),
        ("--data=nowhere", "nowhere: no such folder"),
        ("--percentiles=1,x", "--percentiles: '1,x'"),
        ("--roi=1,2", "--roi"),
        ("--device=toaster", "device 'toaster'"),
        ("--batch-size=2.5", "--batch-size: '2.5'"),
        ("--split=none.json", "none.json: cannot be read as JSON"),
    ],
)
def test_command_line_errors_are_one_line(workplace, data_folder, command, option, message):
    code, _, err = command("train", *as_options({**TINY, "data": data_folder}), option)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err)
    assert not Path("runs").exists()


def test_split_file_of_the_data_set_is_used(tiny, data_folder):
    write_split(data_folder, train=["s_00", "s_01", "s_02"], val=["s_03"], test=["s_04"])
    data = train.prepare(dataclasses.replace(tiny, split="auto"))
    assert [[s.stem for s in part] for part in (data.train, data.val, data.test)] == [
        ["s_00", "s_01", "s_02"],
        ["s_03"],
        ["s_04"],
    ]
