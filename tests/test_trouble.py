"""Training that goes wrong: losses that are no numbers, memory that runs out, run folders that were damaged."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import mean_teacher
import train
from conftest import fingerprint, run, write_split
from runtime import progress
from runtime.checkpoints import load_checkpoint
from runtime.messages import InputError
from training import failures, preparation


def poison(monkeypatch, *bad: int) -> list[int]:
    """These steps, over all phases, get a loss that is not a number."""
    real, count = mean_teacher.step_losses, [0]

    def losses(*arguments):
        supervised, consistency = real(*arguments)
        count[0] += 1
        return supervised * (float("nan") if count[0] in bad else 1.0), consistency

    monkeypatch.setattr(mean_teacher, "step_losses", losses)
    return count


def test_a_loss_that_is_not_a_number_stops_with_the_names_of_its_slices(tiny, monkeypatch):
    data = train.prepare(tiny)
    with monkeypatch.context() as patch:
        poison(patch, 4)  # of six steps in three epochs
        with pytest.raises(
            InputError, match=r"any more in step 4; .* are in runs/base/nonfinite\.json: look"
        ):
            train.train_supervised(tiny, data)
    seen = json.loads((tiny.run_folder / "nonfinite.json").read_text())
    assert list(seen) == ["supervised, step 4"]
    assert len(seen["supervised, step 4"]["labelled"]) == 2
    assert set(seen["supervised, step 4"]["labelled"]) <= {str(s.path) for s in data.train}
    assert (
        len((tiny.run_folder / "sup_metrics.csv").read_text().splitlines()) == 2
    )  # the epoch before
    assert not [p for p in Path("checkpoints/base").glob("best_*") if not load_checkpoint(p)]
    train.train_supervised(tiny, data)  # from the epoch before, and it is no more


def test_steps_can_be_skipped_and_are_counted(tiny, monkeypatch):
    config = dataclasses.replace(tiny, nonfinite="skip", schedule="one_cycle")
    data = train.prepare(config)
    poison(monkeypatch, 3, 4 + 6 + 6)
    train.train_supervised(config, data)
    train.continue_supervised(config, data)
    train.train_semi_supervised(config, data)
    assert pd.read_csv(config.run_folder / "sup_metrics.csv")["skipped"].tolist() == [0, 1, 0]
    assert pd.read_csv(config.run_folder / "continued_metrics.csv")["skipped"].tolist() == [0, 0, 0]
    assert pd.read_csv(config.run_folder / "ssl_metrics.csv")["skipped"].tolist() == [0, 1, 0]
    seen = json.loads((config.run_folder / "nonfinite.json").read_text())
    assert list(seen) == ["supervised, step 3", "mean_teacher, step 4"]
    assert {Path(name).stem for name in seen["mean_teacher, step 4"]["unlabelled"]} <= {
        s.stem for s in data.unlabelled
    }
    assert load_checkpoint(config.checkpoint("ssl_teacher"))
    poison(monkeypatch, 1, 2)
    other = dataclasses.replace(config, run="all", schedule="plateau")
    with pytest.raises(
        InputError, match="not a number any more in step 1;"
    ):  # nothing is left to learn from
        train.train_supervised(other, train.prepare(other))


def test_a_run_that_stopped_can_skip_when_it_goes_on(tiny, monkeypatch):
    data = train.prepare(tiny)
    monkeypatch.setattr(progress, "SAVE_SECONDS", -1.0)  # not only after the first seconds
    with monkeypatch.context() as patch:
        poison(patch, 3)
        with pytest.raises(InputError, match="or --nonfinite skip"):
            train.train_supervised(tiny, data)
        poison(patch, 1)  # the first after that, which is the third
        train.train_supervised(dataclasses.replace(tiny, nonfinite="skip"), data)
    assert pd.read_csv(tiny.run_folder / "sup_metrics.csv")["skipped"].tolist() == [0, 1, 0]


def test_a_long_epoch_is_saved_inside(tiny, monkeypatch):
    """Killed without a word, it goes on from the last step that was saved, and ends as if nothing had been."""
    config = dataclasses.replace(tiny, method="supervised", steps_per_epoch=9, sup_epochs=1)
    run(whole := dataclasses.replace(config, run="whole"))
    data = train.prepare(config)
    monkeypatch.setattr(progress, "SAVE_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        losses, count = mean_teacher.step_losses, []

        def dies(*arguments):
            count.append(1)
            if len(count) == 6:
                raise SystemError
            return losses(*arguments)

        patch.setattr(mean_teacher, "step_losses", dies)
        with pytest.raises(SystemError):
            train.train_supervised(config, data)
        del count[:]
        patch.setattr(mean_teacher, "step_losses", lambda *a: count.append(1) or losses(*a))
        train.train_supervised(config, data)
        assert len(count) == 4
    train.evaluate_run(config, data)
    assert fingerprint(config) == fingerprint(whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_memory_that_runs_out_is_known_on_every_device(tiny, monkeypatch, error):
    def losses(*_):
        raise error

    monkeypatch.setattr(mean_teacher, "step_losses", losses)
    monkeypatch.setattr(failures, "step_losses", losses)
    with pytest.raises(InputError, match=r"--batch-size 2: out of memory; not even 1 fits"):
        train.train_supervised(tiny, train.prepare(tiny))
    with pytest.raises(InputError, match="not even 2 fits"):
        train.train_supervised(
            mixed := dataclasses.replace(tiny, cutmix_p=1.0, run="m"), train.prepare(mixed)
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("phases.json", {"supervised": 3}),
        ("phases.json", {"supervised": {}}),
        ("phases.json", {"supervised": {"best": 3}}),
        ("environment.json", {"packages": 3}),
        ("environment.json", {"packages": ["a"]}),
        ("environment.json", {"data": 3, "code": {}}),
        ("environment.json", {"settings": "a"}),
        ("environment.json", {"settings": {"free": 3}}),
    ],
)
def test_a_damaged_run_folder_is_named(tiny, command, name, content):
    run(dataclasses.replace(tiny, method="supervised", sup_epochs=1))
    (tiny.run_folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name}: .* damaged"):
        run(dataclasses.replace(tiny, method="supervised", sup_epochs=1), resume=True)
    code, _, err = command("train", "--verify", "runs/base")
    assert (code, len(err.splitlines())) == (2, 1)


def test_what_fits_is_said_when_memory_does_not_suffice(tiny, monkeypatch):
    config, real = dataclasses.replace(tiny, batch_size=64), mean_teacher.step_losses

    def losses(config, student, labelled, *rest):
        if len(labelled["strong"]) > limits[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(config, student, labelled, *rest)

    monkeypatch.setattr(mean_teacher, "step_losses", losses)
    monkeypatch.setattr(failures, "step_losses", losses)
    data, limits = train.prepare(config), []
    for limit, words in (
        (37, "37 fits, in a new --run"),
        (0, "not even 1 fits: smaller --patch-size"),
    ):
        limits.append(limit)
        with pytest.raises(InputError, match=f"--batch-size 64: out of memory; {words}"):
            train.train_supervised(config, data)
    assert not list(Path("checkpoints").glob("*/best_*"))


def test_verify(tiny, data_folder, command):
    run(dataclasses.replace(tiny, method="supervised", sup_epochs=1))
    code, out, _ = command("train", "--verify", "runs/base")
    assert (code, out.splitlines()[-1]) == (
        0,
        "runs/base: settings, data, code, weights and versions are those of the run",
    )
    (data_folder / "labeled" / "Original_masks" / "s_mask_01.tif").write_bytes(b"other")
    (data_folder / "unlabeled" / "scan_1.tif").unlink()
    write_split(data_folder, train=["s_00"])
    code, out, _ = command("train", "--verify", "runs/base")
    assert code == 1
    assert [line.rpartition("/")[2] for line in out.splitlines()] == [
        "s_mask_01.tif: has changed",
        "scan_1.tif: is missing",
    ]  # --split blocks reads no split file
    code, _, err = command("train", "--verify", "runs/base", "--lr", 1)
    assert (code, err) == (2, "error: --lr: has no meaning with --verify\n")
    code, _, err = command("train", "--verify", "runs/none")
    assert (code, len(err.splitlines())) == (2, 1)


def test_another_device_is_said_to_give_other_last_digits(tiny, monkeypatch, capsys):
    monkeypatch.setattr(preparation, "choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(preparation, "open_folder", lambda *_: None)
    train.prepare(tiny)
    assert "meta: sums have no fixed order there" in capsys.readouterr().err
