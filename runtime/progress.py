"""How far a phase of training has come: its steps, its log, its best weights, and the state that it can go on from."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from runtime.checkpoints import load_checkpoint, save_checkpoint
from runtime.files import append_row, write_json, write_text
from runtime.run_folder import (
    environment,
    forget_state,
    hashes,
    read_phases,
    restore_state,
    save_state,
)

# States may take this share of the time: where epochs are shorter than that, not each has a state.
SAVE_SHARE = 0.02
SAVE_SECONDS = 60.0  # at most this much training is lost when a run is killed

# Before the first state: that of the full recipe is 500 MB, and an epoch may take 0.1 s.
FIRST_SECONDS = 15.0


class Run(Protocol):
    """What has to be known of a run: where its files go, and some of its settings."""

    @property
    def run_folder(self) -> Path:
        """Where tables and figures go."""

    @property
    def precision(self) -> str:
        """Of the computation, as it was asked for."""

    @property
    def nonfinite(self) -> str:
        """What becomes of a step whose loss is NaN or infinite: `stop` or `skip`."""

    def checkpoint(self, name: str) -> Path:
        """Return the file of the weights called `name`."""


@dataclass(frozen=True)
class Kept:
    """What a phase keeps.

    Attributes
    ----------
    phase : str
        Its name.
    log : Path
        Its table, a row per epoch.
    stateful : dict
        What a state holds: models, optimizer, schedule, by name.
    settings : dict
        Of the run, which go with the weights.
    window : dict or None
        Of grey values, which goes with the weights.
    classes : dict or None
        Names of the classes of label maps by their values; None where masks are binary.
    """

    phase: str
    log: Path
    stateful: dict
    settings: dict
    window: dict | None = None
    classes: dict | None = None


class Progress:
    """What a phase has done so far, on disk and since.

    Attributes
    ----------
    step : int
        Optimizer steps done.
    losses : list of (3,) tensors
        Of the steps of the epoch in hand, as `mean_teacher.train_step` returns them.
    rate : float
        Learning rate with which that epoch began.
    best : dict
        Of each model: validation Dice and epoch of its best weights; None and the last epoch
        without validation.
    shown : str
        What a progress bar says.
    """

    def __init__(self, run: Run, kept: Kept):
        self.run = run
        self.kept = kept
        self.state_file = state_path(run, kept.phase)
        self.step = 0
        self.losses: list[torch.Tensor] = []
        self.rate = 0.0
        self.best: dict[str, dict] = {}
        self.shown = ""

        # Best weights that are not on disk yet.
        self._unwritten: dict[str, dict] = {}
        self._began = time.perf_counter()
        self._saved = self._began
        # Of the last state; None before the first.
        self._seconds_of_save: float | None = None

    def epoch(self, steps: int) -> int:
        """Return the epoch in hand, of so many `steps` each.

        All of its steps may be done, and its row not written.
        """
        return (self.step - len(self.losses)) // steps

    @property
    def seconds(self) -> float:
        """Spent in this phase, by earlier processes too."""
        return time.perf_counter() - self._began

    def restore(self, device: torch.device, leads: bool, wait: Callable[[], None]) -> None:
        """Go back to the last state that is whole, with the log as it was then, or to the beginning.

        Every process of a team reads it; when all have, after `wait`, the one that `leads` may
        write.
        """
        saved = restore_state(self.state_file, self.kept.stateful)
        log = ""
        if saved is not None:
            log = saved["log"]
            self.step = saved["step"]
            self.rate = saved["rate"]
            self.losses = list(saved["losses"].to(device))
            self._began -= saved["seconds"]
            self.best = {name: self._known_best(name) for name in saved["best"]}

        wait()
        if leads and log:
            write_text(self.kept.log, log)
        elif leads:
            self.kept.log.unlink(missing_ok=True)

    def _known_best(self, name: str) -> dict:
        """Return what is known about the weights on disk, which are written before the state that knows of them."""
        _, details = load_checkpoint(self.run.checkpoint(name))
        return {"val_dice": details["val_dice"], "epoch": details["epoch"]}

    def add(self, losses: torch.Tensor) -> None:
        """Count a step, of which these are the losses.

        They stay on the device until the end of the epoch.
        """
        self.losses.append(losses)
        self.step += 1

    def end_epoch(self, row: dict) -> None:
        """Add the row of a finished epoch to the log."""
        append_row(self.kept.log, row)
        self.shown = f"loss {row['loss_sup']:.3f}"
        if row.get("val_dice") is not None:
            self.shown += f", Dice {row['val_dice']:.3f}"

    def keep_best(
        self, models: Mapping[str, torch.nn.Module], scores: dict, epoch: int, chosen: bool
    ) -> None:
        """Keep the weights of each model that has its best validation Dice so far (or just the last one).

        Of two that are equal the later ones: 0 stands for weights that find nothing, or nothing
        right, yet.

        Parameters
        ----------
        models : dict of str to module
        scores : dict of str to dict
            Validation scores of each.
        epoch : int
            From 1; 0 in a phase that has none.
        chosen : bool
            Whether scores choose; else the last weights are kept.
        """
        for name, model in models.items():
            score = scores[name]["dice"] if chosen else None
            is_better = name not in self.best or score is None
            if is_better or score >= self.best[name]["val_dice"]:
                self.best[name] = {"val_dice": score, "epoch": epoch}
                weights = model.state_dict()
                self._unwritten[name] = {key: tensor.clone() for key, tensor in weights.items()}

    def best_weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return the kept weights of a model."""
        if name in self._unwritten:
            return self._unwritten[name]
        weights, _ = load_checkpoint(self.run.checkpoint(name))
        return weights

    def replace_best(self, name: str, model: torch.nn.Module, score: float | None) -> None:
        """Keep other weights in the place of the best ones of a model, with their validation Dice."""
        self.rescore_best(name, score)
        weights = model.state_dict()
        self._unwritten[name] = {key: tensor.clone() for key, tensor in weights.items()}

    def rescore_best(self, name: str, score: float | None) -> None:
        """Give the kept weights of a model another validation Dice."""
        self.best[name] = {**self.best[name], "val_dice": score}

    # --- states -----------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """Save after an epoch, if the last state was long ago.

        Long ago is `SAVE_SECONDS`, or less where a state takes so little time that it costs no more
        than `SAVE_SHARE`.
        """
        interval = FIRST_SECONDS
        if self._seconds_of_save is not None:
            interval = self._seconds_of_save / SAVE_SHARE
        if self._seconds_since_save() > min(SAVE_SECONDS, interval):
            self.save()

    def save_if_a_minute_passed(self) -> None:
        """Save within an epoch, once a minute, and the first time after `FIRST_SECONDS`.

        Where a run stops at a loss that is NaN or infinite, a state is kept only while there was
        none: from spoilt weights nobody can go on. Where such steps are skipped, the last one has
        to have a loss.
        """
        interval = FIRST_SECONDS if self._seconds_of_save is None else SAVE_SECONDS
        if self._seconds_since_save() <= min(SAVE_SECONDS, interval):
            return
        looked_at = self.losses
        if self.run.nonfinite == "skip":
            looked_at = self.losses[-1:]
        if torch.stack(looked_at).isfinite().all():
            self.save()

    def _seconds_since_save(self) -> float:
        """Return the seconds since the last state, or since the phase was opened."""
        return time.perf_counter() - self._saved

    def save(self) -> None:
        """Write the best weights, then the state."""
        began = time.perf_counter()
        self._write_best()
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0, 3)
        log = self.kept.log
        details = {
            "step": self.step,
            "losses": losses,
            "rate": self.rate,
            "best": self.best,
            "seconds": self.seconds,
            "log": log.read_text(encoding="utf-8") if log.exists() else "",
        }
        save_state(self.state_file, self.kept.stateful, details)
        self._saved = time.perf_counter()
        self._seconds_of_save = self._saved - began

    def finish(self, device: torch.device, details: dict) -> None:
        """Write the best weights, and what is known about the finished phase to `phases.json`; forget its states."""
        self._write_best()
        folder = self.run.run_folder
        weights = {f"best_{name}.safetensors": self.run.checkpoint(name) for name in self.best}
        phase = {
            **details,
            "seconds": round(self.seconds, 1),
            "best": self.best,
            "weights": hashes(weights),
            "environment": environment(device, self.run.precision),
        }
        write_json(folder / "phases.json", {**read_phases(folder), self.kept.phase: phase})
        forget_state(self.state_file)

    def _write_best(self) -> None:
        """Write the best weights that are not on disk yet."""
        while self._unwritten:
            name, weights = next(iter(self._unwritten.items()))
            details = {
                "name": name,
                **self.best[name],
                "config": self.kept.settings,
                "window": self.kept.window,
            }
            if self.kept.classes is not None:
                details["classes"] = self.kept.classes
            save_checkpoint(self.run.checkpoint(name), weights, details)
            del self._unwritten[name]


def state_path(run: Run, phase: str) -> Path:
    """Return where the last state of a phase is kept while it runs."""
    return run.checkpoint("any").with_name(f"last_{phase}.pt")
