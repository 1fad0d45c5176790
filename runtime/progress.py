"""How far a phase of training has come: its steps, its log, its best weights, and the state that it can go on from."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from runtime.checkpoints import load_checkpoint, save_checkpoint
from runtime.files import append_row, write_atomically, write_json
from runtime.run_folder import environment, forget_state, hashes, read_phases, restore_state, save_state

SAVE_SHARE = 0.02    # of the time that states may take: else not every epoch has its own
SAVE_SECONDS = 60.0  # at most this much training is lost when a run is killed
FIRST_SECONDS = 15.0  # before the first state: that of the full recipe is 500 MB, and an epoch may take 0.1 s


class Run(Protocol):
    """What has to be known of a run: its folder, its checkpoints, and in what precision it computes."""

    run_folder: Path
    precision: str

    def checkpoint(self, name: str) -> Path:
        """Return the file of the weights called `name`."""


class Progress:
    """What a phase has done so far, on disk and since.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    losses : list of (3,) tensors
        Of the steps of the epoch in hand, as `mean_teacher.train_step` returns them.
    rate : float
        Learning rate with which that epoch began.
    best : dict
        Of each model: validation Dice and epoch of its best weights; None and the last epoch without validation.
    shown : str
        What a progress bar says.
    """

    def __init__(self, run: Run, phase: str, log: Path, stateful: dict, settings: dict | None = None,
                 window: dict | None = None):
        self.run, self.phase, self.log, self.stateful = run, phase, log, stateful
        self.settings = settings or {}          # of the run, which go with the weights
        self.window = window                    # of grey values, which goes with the weights
        self.state = state_path(run, phase)
        self.step, self.losses, self.rate, self.best, self.shown = 0, [], 0.0, {}, ""
        self._kept: dict[str, dict] = {}        # best weights that are not on disk yet
        self._began = self._saved = time.perf_counter()
        self._took: float | None = None         # seconds that the last state took; None before the first

    def epoch(self, steps: int) -> int:
        """The epoch in hand, of so many `steps` each; all of its steps may be done, and its row not written."""
        return (self.step - len(self.losses)) // steps

    @property
    def seconds(self) -> float:
        """Spent in this phase, by earlier processes too."""
        return time.perf_counter() - self._began

    def restore(self, device: torch.device, leads: bool, wait: Callable[[], None]) -> None:
        """Go back to the last state that is whole, with the log as it was then; to the beginning where there is none.

        Every process of a team reads it; when all have, after `wait`, the one that `leads` may write.
        """
        saved = restore_state(self.state, self.stateful)
        text = ""
        if saved:
            self.step, self.rate, text = saved["step"], saved["rate"], saved["log"]
            self.losses = list(saved["losses"].to(device))
            # of the weights on disk, which are written before the state that knows of them
            about = {name: load_checkpoint(self.run.checkpoint(name))[1] for name in saved["best"]}
            self.best = {name: {key: about[name][key] for key in ("val_dice", "epoch")} for name in about}
            self._began -= saved["seconds"]
        wait()
        if leads and text:
            write_atomically(self.log, lambda path: path.write_text(text, encoding="utf-8", newline=""))
        elif leads:
            self.log.unlink(missing_ok=True)

    def end_epoch(self, row: dict) -> None:
        """Add the row of a finished epoch to the log."""
        append_row(self.log, row)
        self.shown = f"loss {row['loss_sup']:.3f}" + (
            f", Dice {row['val_dice']:.3f}" if row.get("val_dice") is not None else "")

    def keep_best(self, models: dict[str, torch.nn.Module], scores: dict, epoch: int, chosen: bool) -> None:
        """Keep the weights of each model that has its best validation Dice so far (or just the last one).

        Of two that are equal the later ones: 0 stands for weights that find nothing, or nothing right, yet.
        """
        for name, model in models.items():
            score = scores[name]["dice"] if chosen else None
            if name not in self.best or not chosen or score >= self.best[name]["val_dice"]:
                self.best[name] = {"val_dice": score, "epoch": epoch}
                self._kept[name] = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def save_if_due(self) -> None:
        """After an epoch: save, unless that would cost more than its share of the time since the last state."""
        interval = FIRST_SECONDS if self._took is None else self._took / SAVE_SHARE
        if time.perf_counter() - self._saved > min(SAVE_SECONDS, interval):
            self.save()

    def add(self, losses: torch.Tensor) -> None:
        """Count a step, of which these are the losses; they stay on the device until the end of the epoch."""
        self.losses.append(losses)
        self.step += 1

    def save_if_a_minute_passed(self) -> None:
        """Save within an epoch, once a minute, if all is still a number."""
        interval = FIRST_SECONDS if self._took is None else SAVE_SECONDS
        if time.perf_counter() - self._saved <= min(SAVE_SECONDS, interval):
            return
        if torch.stack(self.losses).isfinite().all():
            self.save()

    def save(self) -> None:
        """Write the best weights, then the state."""
        began = time.perf_counter()
        self._write_best()
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0, 3)
        log = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        save_state(self.state, self.stateful, {
            "step": self.step, "losses": losses, "rate": self.rate, "best": self.best, "seconds": self.seconds,
            "log": log})
        self._saved = time.perf_counter()
        self._took = self._saved - began

    def finish(self, device: torch.device, about: dict) -> None:
        """Write the best weights and, to `phases.json`, what is known `about` the finished phase; forget its states."""
        self._write_best()
        path = self.run.run_folder / "phases.json"
        weights = {f"best_{name}.safetensors": self.run.checkpoint(name) for name in self.best}
        write_json(path, {**read_phases(self.run.run_folder), self.phase: {
            **about, "seconds": round(self.seconds, 1), "best": self.best, "weights": hashes(weights),
            "environment": environment(device, self.run.precision)}})
        forget_state(self.state)

    def _write_best(self) -> None:
        while self._kept:
            name, weights = next(iter(self._kept.items()))
            save_checkpoint(self.run.checkpoint(name), weights,
                            {"name": name, **self.best[name], "config": self.settings, "window": self.window})
            del self._kept[name]


def state_path(run: Run, phase: str) -> Path:
    """Return where the last state of a phase is kept while it runs."""
    return run.checkpoint("any").with_name(f"last_{phase}.pt")
