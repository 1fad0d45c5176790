"""The settings of a run: their defaults, their limits, and that every one of them is used."""

import dataclasses
import json
import re

import pytest
import torch

import train
from config import (
    CPU_PROFILE,
    PRESETS,
    Config,
    describe_profile,
    make_config,
    profile,
    stored_config,
)
from conftest import fingerprint, run, write_data
from runtime.messages import InputError
from training import batches


def test_defaults_are_the_recipe():
    c = Config()
    assert (c.base_channels, c.patch_size, c.batch_size, c.sup_epochs, c.ssl_epochs) == (
        64,
        256,
        4,
        200,
        150,
    )
    assert (c.lr, c.weight_decay, c.plateau_factor, c.plateau_patience, c.min_lr) == (
        1e-3,
        1e-4,
        0.5,
        10,
        1e-6,
    )
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
    with pytest.raises(InputError, match=r"batchsize: no such setting; batch_size\?"):
        make_config(batchsize=1)
    with pytest.raises(InputError, match=r"xyz: no such setting; train\.py --help lists them"):
        make_config(xyz=1)


def test_stored_settings(tmp_path):
    path, config = tmp_path / "config.json", Config(lr=0.5, roi=None)
    path.write_text(json.dumps(dataclasses.asdict(config)))
    assert stored_config(path) == config
    for content, message in (
        ({"xyz": 1}, "config.json: got an unexpected keyword argument 'xyz'; of another version?"),
        ({"lr": -1}, "--lr: -1 is not possible"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=re.escape(message)):
            stored_config(path)


WRONG = {
    "run": ["", "a/b", "..", 3, "a\nb"],
    "method": ["magic", ("best",), {}],
    "seed": [-1, 1.5, True, 2**64],
    "val_fraction": [-0.1, 1.1, "a"],
    "test_fraction": [2.0],
    "fold": [-1],
    "labels": [-1],
    "max_unlabelled": [-1],
    "num_workers": [-2, 999],
    "roi": [(1, 2, 3), (5, 1, 0, 2), "all", ("a", "b", "c", "d"), (8.0, 72, 8, 72)],
    "percentiles": [(99.0, 1.0), (1.0,), (0.0, 101.0), ("a", "b")],
    "mask_foreground": ["grey"],
    "patch_size": [0, "a", 2**40],
    "downsample": [0, 17, 1.5],
    "zoom": [0.5, 3.0],
    "flip_p": [1.5],
    "vertical_flip_p": [-0.5],
    "rotation": [-1.0, 60.0],
    "blur_p": [2.0],
    "blur_limit": [1, 4, 257],
    "motion_blur": [1.5],
    "base_channels": [0, 2000],
    "sup_epochs": [0],
    "ssl_epochs": [-1],
    "steps_per_epoch": [-1],
    "batch_size": [0, 9999],
    "lr": [0.0, -1.0, float("nan"), float("inf"), 10**400],
    "weight_decay": [-1.0, float("inf")],
    "plateau_factor": [0.0, 1.0],
    "plateau_patience": [-1],
    "min_lr": [-1.0],
    "bce_weight": [1.1],
    "freeze": [("up1",)],
    "ema_alpha": [1.0, -0.1],
    "consistency_weight": [-1.0],
    "ramp_epochs": [-1],
    "overlap": [1.0, -0.1],
    "threshold": [0.0, 1.0],
    "foreground_crop": [True, 1.5],
    "unshuffle": [0, 17],
    "pixel_classifier": [1],
    "intensity_p": [1.1],
    "brightness": [-0.1],
    "contrast": [1.5],
    "gamma": [0.5],
    "noise": [2.0],
    "correlated_noise": [-0.1],
    "shading": ["a"],
    "cutout": [-1, 0.5],
    "schedule": ["linear"],
    "weight_average": [1.0],
    "selection": ["test"],
    "validate_every": [0],
    "consistency": ["kl"],
    "confidence": [1.5],
    "cutmix_p": [-0.5],
    "precision": ["half"],
    "nonfinite": ["ignore"],
    "strong_views": [0, 5],
    "feature_dropout": [1.0],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_values_out_of_range_are_rejected(name, value):
    with pytest.raises(
        InputError, match=re.escape(f"--{name.replace('_', '-')}: {value!r} is not possible: ")
    ):
        make_config(**{name: value})


def test_one_meaning_is_one_setting():
    assert Config(percentiles=(1, 99), freeze=("down2", "down1"), lr=1) == Config(
        percentiles=[1.0, 99.0], freeze=["down1", "down2"], lr=1.0
    )
    assert str(Config(percentiles=(1, 99)).percentiles) == "(1.0, 99.0)"


@pytest.mark.parametrize(
    ("size", "factor", "multiple"), [(16, 1, 16), (40, 1, 16), (32, 2, 32), (80, 2, 32)]
)
def test_patches_that_cannot_be_pooled_are_rejected(size, factor, multiple):
    with pytest.raises(
        InputError, match=f"--patch-size {size}: must be a multiple of {multiple} and more"
    ):
        Config(patch_size=size, downsample=factor)
    assert Config(patch_size=2 * multiple, downsample=factor).downsample == factor
    with pytest.raises(InputError, match=f"--patch-size {size}: must be a multiple of"):
        Config(patch_size=size, unshuffle=2 * factor)


def test_an_earlier_version_had_crops_with_foreground_or_without(tmp_path):
    path = tmp_path / "config.json"
    for before, now in ((True, 1.0), (False, 0.0)):
        path.write_text(json.dumps({"foreground_crop": before}))
        assert stored_config(path) == Config(foreground_crop=now)


CHANGES = {  # another value for each field that makes results; all must make a difference
    "method": "supervised",
    "seed": 1,
    "split": "random",
    "val_fraction": 0.125,
    "test_fraction": 0.125,
    "fold": 1,
    "labels": 2,
    "max_unlabelled": 1,
    "roi": (0, 64, 0, 64),
    "percentiles": (5.0, 95.0),
    "mask_foreground": "bright",
    "rim": 1,
    "patch_size": 48,
    "foreground_crop": 0.5,
    "flip_p": 0.0,
    "vertical_flip_p": 1.0,
    "rotation": 45.0,
    "blur_p": 0.0,
    "blur_limit": 15,
    "motion_blur": 1.0,
    "base_channels": 3,
    "pixel_classifier": True,
    "sup_epochs": 4,
    "ssl_epochs": 4,
    "steps_per_epoch": 1,
    "batch_size": 3,
    "precision": "bfloat16",
    "lr": 1e-2,
    "weight_decay": 1.0,
    "bce_weight": 0.9,
    "freeze": (),
    "ema_alpha": 0.5,
    "consistency_weight": 50.0,
    "ramp_epochs": 0,
    "overlap": 0.1,
    "threshold": 0.3,
    "quarter_turns": True,
    "zoom": 1.5,
    "brightness": 0.5,
    "contrast": 0.5,
    "gamma": 2.0,
    "noise": 0.3,
    "correlated_noise": 0.3,
    "shading": 0.3,
    "cutout": 2,
    "schedule": "cosine",
    "weight_average": 0.5,
    "selection": "full",
    "validate_every": 2,
    "warm_start": False,
    "consistency": "bce",
    "confidence": 0.55,
    "hard_labels": True,
    "cutmix_p": 1.0,
    "strong_views": 2,
    "feature_dropout": 0.5,
    "unlabelled_foreground": True,
    "tta": True,
    "forest": True,
}


def test_every_setting_has_a_change_that_shows():
    fields = {field.name for field in dataclasses.fields(Config)}
    elsewhere = {
        "data",
        "run",
        "device",
        "num_workers",
        "nonfinite",
        "intensity_p",
        "downsample",
        "unshuffle",
        "pixel_size",
        "plateau_factor",
        "plateau_patience",
        "min_lr",
        "outside",
        "trust_pairs",
    }
    assert fields == {*CHANGES} | elsewhere  # a new one belongs in CHANGES


@pytest.mark.slow
def test_every_setting_matters(tiny):
    run(tiny)
    base = fingerprint(tiny)
    again = dataclasses.replace(tiny, run="again")
    run(again)
    assert fingerprint(again) == base  # the same settings: the same results
    for name, value in CHANGES.items():
        changed = dataclasses.replace(tiny, **{name: value}, run=name)
        assert getattr(changed, name) != getattr(tiny, name)
        run(changed)
        assert fingerprint(changed) != base, f"{name} makes no difference"
    noisy = [
        dataclasses.replace(tiny, noise=0.3, intensity_p=p, run=f"noisy{p}") for p in (0.5, 1.0)
    ]
    reduced = [
        dataclasses.replace(tiny, patch_size=64, downsample=k, run=f"reduced{k}") for k in (1, 2)
    ]
    reduced.append(dataclasses.replace(tiny, patch_size=64, unshuffle=2, run="unshuffled"))
    stalled = [
        dataclasses.replace(
            tiny, threshold=0.999, run=f"stalled{i}", **changes
        )  # no Dice ever rises
        for i, changes in enumerate(
            [{}, {"plateau_factor": 0.1}, {"plateau_patience": 5}, {"min_lr": 9e-4}]
        )
    ]
    for config in noisy + reduced + stalled:
        run(config)
    assert all(fingerprint(config) != fingerprint(stalled[0]) for config in stalled[1:])
    assert fingerprint(noisy[0]) != fingerprint(noisy[1])
    assert fingerprint(reduced[0]) != fingerprint(reduced[1])
    assert fingerprint(reduced[0]) != fingerprint(reduced[2])


def test_presets_set_their_fields_and_given_ones_win():
    assert make_config() == make_config(method="mean_teacher") == Config()
    for name, changes in PRESETS.items():
        made = make_config(method=name, seed=3)
        assert dataclasses.asdict(made) == dataclasses.asdict(Config()) | changes | {
            "method": name,
            "seed": 3,
        }
    assert make_config(method="fixmatch", confidence=0.5).confidence == 0.5
    assert make_config(method="supervised").method == "supervised"
    with pytest.raises(InputError, match=r"--cutmix-p 1\.0: .*--batch-size 2 or more"):
        make_config(method="cutmix_mt", batch_size=1)
    with pytest.raises(InputError, match="--method: 'magic'"):
        make_config(method="magic")


@pytest.mark.slow
def test_workers_device_and_data_are_used(tiny, monkeypatch, tmp_path):
    run(tiny)
    seen, make_loader = [], batches.make_loader

    def watched(views, options, *more):
        seen.append(options.workers)
        return make_loader(views, options, *more)

    monkeypatch.setattr(batches, "make_loader", watched)
    workers = dataclasses.replace(tiny, num_workers=2, run="workers")
    run(workers)
    assert 2 in seen
    assert fingerprint(workers) == fingerprint(tiny)  # workers do not change results
    with pytest.raises(InputError, match="device 'toaster'"):
        train.prepare(dataclasses.replace(tiny, device="toaster", run="toaster"))
    other = write_data(tmp_path / "other", count=6)
    run(dataclasses.replace(tiny, data=str(other), run="other"))
    assert fingerprint(dataclasses.replace(tiny, run="other")) != fingerprint(tiny)


def test_profiles():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert profile("auto", cuda) == profile("full", cpu) == {}
    assert profile("auto", cpu) == profile("cpu", cuda) == CPU_PROFILE
    small = make_config(method="best", **CPU_PROFILE)
    assert "base_channels 64 → 8" in describe_profile(small, CPU_PROFILE)
    assert "steps_per_epoch 10 → 8" in describe_profile(small, CPU_PROFILE)  # 10 in best, not 0
    assert describe_profile(small, {}) == "full profile"
    assert Config(**CPU_PROFILE).base_channels < Config().base_channels
    with pytest.raises(InputError, match="profile 'CPU': expected auto, full or cpu"):
        profile("CPU", cpu)
