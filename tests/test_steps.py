"""One training step: what its losses are made of, and what moves."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import mean_teacher
import train
from config import Config, make_config
from conftest import TINY, FloatViews, disc_slice
from losses import (
    bce_dice_loss,
    consistency_loss,
    draw_boxes,
    draw_kept_channels,
    fill_boxes,
    mix,
    scale_channels,
)
from model_unet import CHANNELS, ENCODER_BLOCKS, UNet
from runtime.checkpoints import load_checkpoint
from slices.reading import Slice
from slices.windows import percentile_window
from utils import overlap_metrics


def semi_batches() -> tuple[UNet, UNet, dict, dict]:
    torch.manual_seed(0)
    student, teacher = UNet(2), UNet(2).eval()
    labelled = {
        "strong": torch.rand(2, 1, 32, 32),
        "mask": (torch.rand(2, 1, 32, 32) > 0.5).float(),
    }
    unlabelled = {"weak": torch.rand(2, 1, 32, 32), "strong": torch.rand(2, 2, 32, 32)}
    return student, teacher, labelled, unlabelled


def test_two_strong_views_count_as_the_mean_of_each():
    student, teacher, labelled, unlabelled = semi_batches()
    config = Config(consistency="bce", confidence=0.51)
    both = mean_teacher.step_losses(
        config, student, labelled, teacher, unlabelled, torch.Generator()
    )
    one, two = (
        mean_teacher.step_losses(
            config, student, labelled, teacher, {**unlabelled, "strong": view}, torch.Generator()
        )
        for view in unlabelled["strong"].split(1, dim=1)
    )
    torch.testing.assert_close(both[0], one[0])
    torch.testing.assert_close(both[1], (one[1] + two[1]) / 2)


def test_feature_dropout_weighs_as_much_as_the_strong_views():
    student, teacher, labelled, unlabelled = semi_batches()
    views, target = unlabelled["strong"], teacher(unlabelled["weak"]).sigmoid()
    strong = sum(consistency_loss(student(v), target) for v in views.split(1, dim=1)) / 2
    factors = draw_kept_channels(
        2, tuple(2 * c for c in CHANNELS), 0.5, torch.Generator().manual_seed(1)
    )
    expected = scale_channels(student.encode(unlabelled["weak"]), factors)
    weak = consistency_loss(student.decode(expected), target)
    config = Config(feature_dropout=0.5, base_channels=2)
    supervised, loss = mean_teacher.step_losses(
        config, student, labelled, teacher, unlabelled, torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(
        supervised, bce_dice_loss(student(labelled["strong"]), labelled["mask"])
    )
    torch.testing.assert_close(loss, 0.5 * strong + 0.5 * weak)


def test_cutmix_mixes_image_and_target_with_the_same_boxes():
    student, teacher, labelled, unlabelled = semi_batches()
    boxes = fill_boxes(draw_boxes(2, 32, 1.0, torch.Generator().manual_seed(4)), 32)
    view = unlabelled["strong"][:, :1]
    expected = consistency_loss(
        student(mix(view, boxes)), mix(teacher(unlabelled["weak"]).sigmoid(), boxes)
    )
    _, loss = mean_teacher.step_losses(
        Config(cutmix_p=1.0),
        student,
        labelled,
        teacher,
        {**unlabelled, "strong": view},
        torch.Generator().manual_seed(4),
    )
    torch.testing.assert_close(loss, expected)


def test_average_warms_up_from_random_weights_only(tiny, monkeypatch):
    config, alphas, update = (
        dataclasses.replace(tiny, weight_average=0.9),
        [],
        mean_teacher.ema_update,
    )

    def watched(average, student, alpha):
        alphas.append(alpha)
        update(average, student, alpha)

    monkeypatch.setattr(mean_teacher, "ema_update", watched)
    data = train.prepare(config)
    train.train_supervised(config, data)
    assert alphas == [(1 + n) / (10 + n) for n in range(6)]
    alphas.clear()
    train.continue_supervised(config, data)
    train.train_semi_supervised(config, data)
    assert alphas == [0.9] * 6 + [0.99] * 6


@pytest.mark.parametrize(
    ("schedule", "first", "last"), [("cosine", 1.0, 0.0), ("one_cycle", 0.04, 0.0)]
)
def test_schedules_run_over_the_whole_phase(schedule, first, last):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=0.01)
    scheduler, rates = (
        mean_teacher.make_scheduler(Config(lr=0.01, schedule=schedule), optimizer, 50),
        [],
    )
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"] / 0.01)
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last, abs=0.02)
    assert max(rates) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_one_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    made = [disc_slice(i, (96, 96)) for i in range(4)]
    slices = [
        Slice(Path(f"{i}"), percentile_window(image), truth)
        for i, (image, truth) in enumerate(made)
    ]
    items = [FloatViews(slices, 64)[i, i] for i in range(4)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    model = UNet(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = mean_teacher.step_losses(Config(), model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prediction = model(batch["strong"]).detach().sigmoid().numpy() >= 0.5
    truth = batch["mask"].numpy() > 0
    assert (
        np.mean([overlap_metrics(p, t)["dice"] for p, t in zip(prediction, truth, strict=True)])
        > 0.95
    )


def test_frozen_blocks_are_bit_identical_and_the_others_move(tiny):
    config = dataclasses.replace(tiny, weight_decay=0.5)
    data = train.prepare(config)
    train.train_supervised(config, data)
    train.train_semi_supervised(config, data)
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
    step = mean_teacher.step_losses

    def watched(config, student, labelled, teacher, *rest):
        if teacher:
            seen.append(
                (
                    teacher.training,
                    any(p.requires_grad for p in teacher.parameters()),
                    student.down4.training,
                    student.down1.training,
                )
            )
        return step(config, student, labelled, teacher, *rest)

    monkeypatch.setattr(mean_teacher, "step_losses", watched)
    train.train_supervised(tiny, data)
    train.train_semi_supervised(tiny, data)
    assert seen == [(False, False, True, False)] * 6


@pytest.mark.parametrize("method", ["mean_teacher", "unimatch"])
def test_half_precision_trains_like_full_precision(tiny, method):
    """The path that CUDA takes by default, here on a CPU."""
    losses = []
    for precision in ("float32", "bfloat16"):
        settings = dict(TINY, method=method, precision=precision)
        config = make_config(**settings, data=tiny.data, run=precision)
        data = train.prepare(config)
        train.train_supervised(config, data)
        train.train_semi_supervised(config, data)
        table = pd.read_csv(config.run_folder / "ssl_metrics.csv")
        losses.append(table[["loss_sup", "loss_consistency"]].to_numpy())
        weights, _ = load_checkpoint(config.checkpoint("ssl_teacher"))
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    np.testing.assert_allclose(*losses, rtol=0.1, atol=0.02)
    assert not np.array_equal(*losses)
