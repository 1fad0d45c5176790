"""What a phase saves and finds again."""

import json
from pathlib import Path

import pytest
import torch

from config import Config
from model_unet import UNet
from runtime import progress
from runtime.checkpoints import load_checkpoint
from runtime.progress import Kept, Progress

CPU = torch.device("cpu")


@pytest.fixture
def phase(workplace):
    """A phase that has just begun: (progress, model)."""
    Path("runs/r").mkdir(parents=True)
    model = UNet(2)
    return begin(model), model


def begin(model: UNet) -> Progress:
    """Return the progress of a phase that trains `model`."""
    kept = Kept("supervised", Path("runs/r/log.csv"), {"student": model}, settings={})
    return Progress(Config(run="r"), kept)


def again(model: UNet) -> Progress:
    """Return the progress as another process restores it."""
    restored = begin(model)
    restored.restore(CPU, True, lambda: None)
    return restored


def test_everything_comes_back(phase):
    first, model = phase
    first.end_epoch({"epoch": 1, "loss_sup": 0.5, "val_dice": 0.25})
    first.keep_best({"supervised": model}, {"supervised": {"dice": 0.25}}, 1, True)
    first.step, first.rate, first.losses = 7, 0.125, [torch.tensor([1.0, 2.0, 3.0])]
    first.save()
    with Path("runs/r/log.csv").open("a") as log:
        log.write("2,0.4")  # a row that the state does not know of, and half of it
    other = UNet(2)
    restored = again(other)
    assert (restored.step, restored.rate, restored.best) == (
        7,
        0.125,
        {"supervised": {"val_dice": 0.25, "epoch": 1}},
    )
    assert torch.equal(torch.stack(restored.losses), torch.stack(first.losses))
    assert Path("runs/r/log.csv").read_text() == "epoch,loss_sup,val_dice\n1,0.5,0.25\n"
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert first.seconds > 0.0
    assert restored.seconds > 0.0
    assert first.shown == "loss 0.500, Dice 0.250"


def test_a_log_without_a_state_is_begun_again(phase):
    Path("runs/r/log.csv").write_text("epoch\n1\n")
    restored = again(UNet(2))
    assert (restored.step, restored.losses, restored.best) == (0, [], {})
    assert not Path("runs/r/log.csv").exists()


def test_the_better_weights_are_kept_and_without_validation_the_last(phase):
    first, model = phase
    for epoch, dice in enumerate((0.3, 0.5, 0.4), 1):
        torch.nn.init.constant_(model.head.bias, epoch)
        first.keep_best(
            {"a": model, "b": model}, {"a": {"dice": dice}, "b": {"dice": -dice}}, epoch, True
        )
        first.keep_best({"c": model}, {"c": {"dice": None}}, epoch, False)
    first.finish(CPU, {"steps": 3})
    for name, epoch in (("a", 2), ("b", 1), ("c", 3)):
        weights, details = load_checkpoint(Path(f"checkpoints/r/best_{name}.safetensors"))
        assert weights["head.bias"].item() == details["epoch"] == epoch
    stored = json.loads(Path("runs/r/phases.json").read_text())["supervised"]
    assert stored["best"]["a"] == {"val_dice": 0.5, "epoch": 2}
    assert set(stored["weights"]) == {f"best_{name}.safetensors" for name in "abc"}
    assert stored["steps"] == 3


@pytest.mark.parametrize(
    ("took", "ago", "saves"),
    [
        (None, 14.0, False),
        (None, 16.0, True),
        (0.0, 0.01, True),
        (0.1, 4.0, False),
        (0.1, 6.0, True),
        (10.0, 59.0, False),
        (10.0, 61.0, True),
    ],
)
def test_states_cost_their_share_of_the_time_and_at_most_a_minute_is_lost(
    phase, monkeypatch, took, ago, saves
):
    first, _ = phase
    first._seconds_of_save, first._saved = took, progress.time.perf_counter() - ago
    saved = []
    monkeypatch.setattr(first, "save", lambda: saved.append(1))
    first.save_if_due()
    assert bool(saved) == saves


@pytest.mark.parametrize(
    ("nonfinite", "losses", "saves"),
    [
        ("stop", [1.0, 2.0], True),
        ("stop", [float("nan"), 2.0], False),
        ("skip", [float("nan"), 2.0], True),
        ("skip", [1.0, float("inf")], False),
    ],
)
def test_within_an_epoch_no_spoilt_state_is_kept(workplace, monkeypatch, nonfinite, losses, saves):
    kept = Kept("supervised", Path("runs/r/log.csv"), {"student": UNet(2)}, settings={})
    first = Progress(Config(run="r", nonfinite=nonfinite), kept)
    for loss in losses:
        first.add(torch.full((3,), loss))
    first._saved -= 100.0
    saved = []
    monkeypatch.setattr(first, "save", lambda: saved.append(1))
    first.save_if_a_minute_passed()
    assert bool(saved) == saves
