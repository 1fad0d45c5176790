import copy
import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import train
from conftest import TINY, as_options, disc_slice, write_data, write_split
from datasets import Views
from model_unet import ENCODER_BLOCKS, UNet
from slices import Path, Slice, percentile_window
from train import Config
from utils import InputError, load_checkpoint, overlap_metrics

RUN_FILES = ["config.json", "continued_metrics.csv", "environment.json", "phases.json", "predictions.npz",
             "samples.npz", "split.json", "ssl_metrics.csv", "summary.json", "sup_metrics.csv", "test_full.csv",
             "test_patches.csv"]


def run(config: Config, resume: bool = False) -> None:
    data = train.prepare(config, resume)
    train.train_supervised(config, data)
    if config.method == "mean_teacher":
        train.continue_supervised(config, data)
        train.train_mean_teacher(config, data)
    train.evaluate_run(config, data)


def fingerprint(config: Config) -> dict[str, str]:
    """Everything a run produced that does not depend on the clock."""
    found = {}
    for path in sorted(config.run_folder.glob("*.csv")):
        found[path.name] = pd.read_csv(path).drop(columns=["seconds", "lam"], errors="ignore").to_csv()
    for path in sorted((Path("checkpoints") / config.run).glob("*")):
        weights, _ = load_checkpoint(path)
        found[path.name] = str({name: tensor.double().sum().item() for name, tensor in weights.items()})
    return found


@pytest.fixture
def tiny(workplace, data_folder) -> Config:
    return Config(**TINY, data=str(data_folder), run="base")


# --- settings -------------------------------------------------------------------------------------------------

def test_defaults_are_the_recipe():
    c = Config()
    assert (c.base_channels, c.patch_size, c.batch_size, c.sup_epochs, c.ssl_epochs) == (64, 256, 4, 200, 150)
    assert (c.lr, c.weight_decay, c.plateau_factor, c.plateau_patience, c.min_lr) == (1e-3, 1e-4, 0.5, 10, 1e-6)
    assert (c.ema_alpha, c.ramp_epochs, c.consistency_weight, c.bce_weight) == (0.99, 10, 1.0, 0.5)
    assert (c.flip_p, c.vertical_flip_p, c.rotation, c.blur_p) == (0.5, 0.2, 10.0, 0.5)
    assert (c.freeze, c.overlap, c.threshold) == (("down1", "down2", "down3"), 0.5, 0.5)
    assert (c.roi, c.percentiles) == ((370, 1138, 200, 968), (1.0, 99.5))
    assert [round(f * 22) for f in (c.val_fraction, c.test_fraction)] == [4, 4]


def test_settings_are_frozen_and_unknown_ones_raise():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1.0
    with pytest.raises(TypeError, match="learning_rate"):
        Config(learning_rate=1.0)


WRONG = {
    "run": ["", "a/b", "..", 3], "method": ["magic"], "seed": [-1, 1.5, True, 2**64], "val_fraction": [-0.1, 1.1, "a"],
    "test_fraction": [2.0], "fold": [-1], "labels": [-1], "max_unlabelled": [-1], "num_workers": [-2],
    "roi": [(1, 2, 3), (5, 1, 0, 2), "all", ("a", "b", "c", "d")],
    "percentiles": [(99.0, 1.0), (1.0,), (0.0, 101.0), ("a", "b")],
    "mask_foreground": ["grey"], "patch_size": [16, 40, 0], "flip_p": [1.5], "vertical_flip_p": [-0.5],
    "rotation": [-1.0, 60.0], "blur_p": [2.0], "blur_limit": [1, 4], "base_channels": [0], "sup_epochs": [0],
    "ssl_epochs": [0], "steps_per_epoch": [-1], "batch_size": [0], "lr": [0.0, -1.0, float("nan"), float("inf")],
    "weight_decay": [-1.0, float("inf")], "plateau_factor": [0.0, 1.0], "plateau_patience": [-1], "min_lr": [-1.0],
    "bce_weight": [1.1], "freeze": [("up1",)], "ema_alpha": [1.0, -0.1], "consistency_weight": [-1.0],
    "ramp_epochs": [-1], "overlap": [1.0, -0.1], "threshold": [0.0, 1.0], "foreground_crop": [1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_values_out_of_range_are_rejected(name, value):
    with pytest.raises(InputError, match=re.escape(f"--{name.replace('_', '-')}: {value!r} is not possible: ")):
        Config(**{name: value})


CHANGES = {  # another value for each field that makes results; all must make a difference
    "method": "supervised", "seed": 1, "split": "random", "val_fraction": 0.125, "test_fraction": 0.125, "fold": 1,
    "labels": 2, "max_unlabelled": 1, "roi": (0, 64, 0, 64), "percentiles": (5.0, 95.0), "mask_foreground": "bright",
    "patch_size": 48, "foreground_crop": False, "flip_p": 0.0, "vertical_flip_p": 1.0, "rotation": 45.0, "blur_p": 0.0,
    "blur_limit": 15, "base_channels": 3, "sup_epochs": 4, "ssl_epochs": 4, "steps_per_epoch": 1, "batch_size": 3,
    "lr": 1e-2, "weight_decay": 1.0, "plateau_factor": 0.1, "plateau_patience": 5, "min_lr": 9e-4, "bce_weight": 0.9,
    "freeze": (), "ema_alpha": 0.5, "consistency_weight": 50.0, "ramp_epochs": 0, "overlap": 0.1, "threshold": 0.3,
}


def test_every_setting_matters(tiny):
    fields = {f.name for f in dataclasses.fields(Config)}
    assert fields == {*CHANGES, "data", "run", "device", "num_workers"}  # a new field needs a line in CHANGES
    run(tiny)
    base = fingerprint(tiny)
    again = dataclasses.replace(tiny, run="again")
    run(again)
    assert fingerprint(again) == base                                    # the same settings: the same results
    for name, value in CHANGES.items():
        changed = dataclasses.replace(tiny, **{name: value}, run=name)
        assert getattr(changed, name) != getattr(tiny, name)
        run(changed)
        assert fingerprint(changed) != base, f"{name} makes no difference"


def test_workers_device_and_data_are_used(tiny, monkeypatch, tmp_path):
    run(tiny)
    seen, make_loader = [], train.make_loader

    def watched(*arguments, **options):
        seen.extend(arguments[4:5])
        return make_loader(*arguments, **options)
    monkeypatch.setattr(train, "make_loader", watched)
    workers = dataclasses.replace(tiny, num_workers=2, run="workers")
    run(workers)
    assert 2 in seen
    assert fingerprint(workers) == fingerprint(tiny)                     # workers do not change results
    with pytest.raises(InputError, match="device 'toaster'"):
        train.prepare(dataclasses.replace(tiny, device="toaster", run="toaster"))
    other = write_data(tmp_path / "other", count=6)
    run(dataclasses.replace(tiny, data=str(other), run="other"))
    assert fingerprint(dataclasses.replace(tiny, run="other")) != fingerprint(tiny)


def test_profiles():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert train.profile("auto", cuda) == train.profile("full", cpu) == {}
    assert train.profile("auto", cpu) == train.profile("cpu", cuda) == train.CPU_PROFILE
    assert Config(**train.CPU_PROFILE).base_channels < Config().base_channels
    with pytest.raises(InputError, match="profile 'CPU': expected auto, full or cpu"):
        train.profile("CPU", cpu)


# --- steps ----------------------------------------------------------------------------------------------------

def test_ema_equals_its_closed_form_and_covers_buffers():
    torch.manual_seed(0)
    class WithBuffers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            self.norm = torch.nn.BatchNorm1d(2)
    teacher = WithBuffers()
    start, alpha, steps = copy.deepcopy(teacher.state_dict()), 0.9, 12
    students = []
    for n in range(steps):
        student = WithBuffers()
        student.norm.running_mean.fill_(n)
        student.norm.num_batches_tracked.fill_(7 + n)
        students.append(student.state_dict())
        train.ema_update(teacher, student, alpha)
    for name, value in teacher.state_dict().items():
        if not value.is_floating_point():
            assert value == 7 + steps - 1
            continue
        closed = alpha**steps * start[name] + sum(
            (1 - alpha) * alpha ** (steps - 1 - n) * s[name] for n, s in enumerate(students))
        torch.testing.assert_close(value, closed)


def test_student_batch_may_be_shared_because_images_do_not_mix():
    torch.manual_seed(0)
    model = UNet(2).train()
    a, b = torch.rand(2, 1, 32, 32), torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(model(torch.cat([a, b])), torch.cat([model(a), model(b)]))


def test_one_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    made = [disc_slice(i, (96, 96)) for i in range(4)]
    slices = [Slice(Path(f"{i}"), percentile_window(image), truth) for i, (image, truth) in enumerate(made)]
    items = [Views(slices, 64)[i, i] for i in range(4)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    model = UNet(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = train.step_losses(Config(), model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prediction = model(batch["strong"]).detach().sigmoid().numpy() >= 0.5
    truth = batch["mask"].numpy() > 0
    assert np.mean([overlap_metrics(p, t)["dice"] for p, t in zip(prediction, truth, strict=True)]) > 0.95


def test_frozen_blocks_are_bit_identical_and_the_others_move(tiny):
    config = dataclasses.replace(tiny, weight_decay=0.5)
    data = train.prepare(config)
    train.train_supervised(config, data)
    train.train_mean_teacher(config, data)
    before = load_checkpoint(config.checkpoint("supervised"))[0]
    for name in ("ssl_student", "ssl_teacher"):
        after = load_checkpoint(config.checkpoint(name))[0]
        for key, value in before.items():
            frozen = key.split(".")[0] in config.freeze
            same = torch.equal(after[key], value)
            if frozen and name == "ssl_student":
                assert same
            elif frozen:
                torch.testing.assert_close(after[key], value, rtol=1e-6, atol=0)
            else:
                assert not same
    assert set(config.freeze) < set(ENCODER_BLOCKS)


def test_teacher_stays_in_eval_mode_without_gradients(tiny, monkeypatch):
    data, seen = train.prepare(tiny), []
    step = train.step_losses

    def watched(config, student, labelled, teacher=None, unlabelled=None):
        if teacher:
            seen.append((teacher.training, any(p.requires_grad for p in teacher.parameters()), student.down4.training,
                         student.down1.training))
        return step(config, student, labelled, teacher, unlabelled)
    monkeypatch.setattr(train, "step_losses", watched)
    train.train_supervised(tiny, data)
    train.train_mean_teacher(tiny, data)
    assert seen == [(False, False, True, False)] * 6


# --- phases and runs ------------------------------------------------------------------------------------------

def test_a_run_leaves_what_the_design_names(tiny):
    run(tiny)
    assert sorted(p.name for p in tiny.run_folder.iterdir()) == RUN_FILES
    assert sorted(p.name for p in Path("checkpoints/base").iterdir()) == [
        f"best_{n}.safetensors" for n in ("continued", "ssl_student", "ssl_teacher", "supervised")]
    header = (tiny.run_folder / "sup_metrics.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,loss_sup,val_dice,val_iou,")
    header = (tiny.run_folder / "ssl_metrics.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,loss_sup,loss_consistency,lam,val_dice,val_iou,")
    lam = pd.read_csv(tiny.run_folder / "ssl_metrics.csv")["lam"].tolist()
    assert lam == [0, pytest.approx(0.5), 1]
    table = pd.read_csv(tiny.run_folder / "test_full.csv")
    assert table["method"].unique().tolist() == [
        "Otsu", "supervised", "supervised continued", "Mean Teacher student", "Mean Teacher teacher"]
    assert table.groupby("method").size().unique().tolist() == [2]
    summary = json.loads((tiny.run_folder / "summary.json").read_text())
    assert [p["method"] for p in summary["full"]["paired"]] == [
        "supervised", "Mean Teacher student", "Mean Teacher teacher"]


def test_control_takes_as_many_steps_as_mean_teacher_from_the_same_weights(tiny, monkeypatch):
    data, starts = train.prepare(tiny), []
    epoch = train.train_epoch

    def watched(config, student, optimizer, *rest):
        if not optimizer.state:
            starts.append((student.head.weight.detach().clone(), optimizer.param_groups[0]["lr"]))
        return epoch(config, student, optimizer, *rest)
    monkeypatch.setattr(train, "train_epoch", watched)
    train.train_supervised(tiny, data)
    train.continue_supervised(tiny, data)
    train.train_mean_teacher(tiny, data)
    phases = json.loads((tiny.run_folder / "phases.json").read_text())
    assert phases["continued"]["steps"] == phases["mean_teacher"]["steps"] == 6
    (_, _), (control, lr1), (student, lr2) = starts
    assert torch.equal(control, student)
    assert lr1 == lr2 == tiny.lr


def test_best_checkpoint_is_the_best_validation_epoch(tiny):
    config = dataclasses.replace(tiny, sup_epochs=8)
    train.train_supervised(config, train.prepare(config))
    log = pd.read_csv(config.run_folder / "sup_metrics.csv")
    about = load_checkpoint(config.checkpoint("supervised"))[1]
    assert about["epoch"] == log["epoch"][log["val_dice"].idxmax()]
    assert about["val_dice"] == pytest.approx(log["val_dice"].max(), abs=1e-6)
    assert Config(**about["config"]) == config


def test_stopping_and_resuming_gives_the_run_that_was_not_stopped(tiny, monkeypatch):
    whole = dataclasses.replace(tiny, run="whole")
    run(whole)
    monkeypatch.setattr(train, "SAVE_SECONDS", -1.0)  # a state after every epoch
    for stop_at in (3, 9, 16):                        # in each of the three phases
        count, step = 0, train.step_losses

        def stopping(*arguments, stop_at=stop_at, step=step):
            nonlocal count
            count += 1
            if count == stop_at:
                raise KeyboardInterrupt
            return step(*arguments)
        config = dataclasses.replace(tiny, run=f"stopped{stop_at}")
        monkeypatch.setattr(train, "step_losses", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(config)
        monkeypatch.setattr(train, "step_losses", step)
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
    assert "mean_teacher: finished before, kept" in capsys.readouterr().err
    tiny.checkpoint("continued").unlink()
    with pytest.raises(InputError, match=r"best_continued\.safetensors: no such checkpoint"):
        run(tiny, resume=True)


def test_resuming_on_other_data_is_an_error(tiny, data_folder):
    run(tiny)
    painted = data_folder / "labeled" / "Original_masks" / "s_mask_03.tif"
    before = painted.read_bytes()
    tifffile.imwrite(painted, disc_slice(99)[1])
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
    config = dataclasses.replace(tiny, method="supervised")
    run(config)
    config.checkpoint("continued").write_bytes(config.checkpoint("supervised").read_bytes())
    train.evaluate_run(config, train.prepare(config, resume=True))
    assert pd.read_csv(config.run_folder / "test_full.csv")["method"].unique().tolist() == ["Otsu", "supervised"]


def test_a_loss_that_is_not_a_number_stops_the_run(tiny):
    config = dataclasses.replace(tiny, lr=1e30)
    with pytest.raises(InputError, match=r"supervised: the loss is not a number any more in epoch \d; lower --lr"):
        train.train_supervised(config, train.prepare(config))
    assert not pd.read_csv(config.run_folder / "sup_metrics.csv")["loss_sup"].isna().any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_slices_is_enough(workplace, count, capsys):
    config = Config(**{**TINY, "val_fraction": 0.18, "test_fraction": 0.18, "roi": None},
                    data=str(write_data(workplace / "few", count=count, scans=1)))
    run(config)
    assert config.checkpoint("ssl_teacher").exists()
    assert ("no test slice" in capsys.readouterr().err) == (count < 3)


# --- command line ---------------------------------------------------------------------------------------------

def test_command_line(workplace, data_folder, command):
    options = as_options({**TINY, "data": data_folder, "run": "cli", "freeze": (), "foreground_crop": False})
    code, out, err = command("train", *options)
    assert code == 0, err
    assert "cpu profile: base_channels 64 → 2" in out
    assert re.search(r"Mean Teacher teacher +full-image test Dice 0\.\d{4}", out)
    stored = Config(**json.loads((Path("runs") / "cli" / "config.json").read_text()))
    assert stored == Config(**{**train.CPU_PROFILE, **TINY, "data": str(data_folder), "run": "cli", "freeze": (),
                               "foreground_crop": False})
    code, _, err = command("train", *options)
    assert code == 2
    assert "holds a run already; add --resume" in err
    assert command("train", *options, "--resume")[0] == 0


@pytest.mark.parametrize(("option", "message"), [
    ("--lr=fast", "--lr: 'fast' is not possible"), ("--freeze=up1", r"--freeze: \('up1',\) is not possible"),
    ("--foreground-crop=maybe", "--foreground-crop: 'maybe'"), ("--data=nowhere", "nowhere/.*: no .tif slice found"),
    ("--percentiles=1,x", "--percentiles: '1,x'"), ("--roi=1,2", "--roi"), ("--device=toaster", "device 'toaster'"),
    ("--batch-size=2.5", "--batch-size: '2.5'"), ("--split=none.json", "none.json: cannot be read as JSON")])
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
        ["s_00", "s_01", "s_02"], ["s_03"], ["s_04"]]
