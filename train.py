"""Training: supervised U-Net, its compute-matched continuation, Mean Teacher; then the tables."""

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from datasets import Data, Views, describe_data, load_data, make_loader, parse_roi
from evaluate import evaluate_models, validate
from losses import bce_dice_loss, consistency_mse, cosine_ramp_up
from model_unet import ENCODER_BLOCKS, STRIDE, UNet, ema_update, freeze
from slices import ROI, read_image
from utils import (
    InputError, append_row, choose_device, environment, keep_rows, load_checkpoint, open_run, read_json, restore_state,
    run_command_line, save_checkpoint, save_state, seed_everything, write_json, write_npz,
)


def option(default: object, text: str, check: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field of `Config`: its default, its line of help, and what a value must satisfy."""
    return dataclasses.field(default=default, metadata={"help": text, "check": check})


def _between(low: float, high: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: low <= value <= high


@dataclass(frozen=True)
class Config:
    """Every setting. The defaults are the recipe; an unknown field or a value out of range is an error."""

    data: str = option("data/demo", "data folder")
    run: str = option("demo", "name of runs/NAME and checkpoints/NAME", lambda v: v.strip(".") and Path(v).name == v)
    method: str = option("mean_teacher", "supervised or mean_teacher", {"supervised", "mean_teacher"}.__contains__)
    seed: int = option(0, "seed of weights, crops, views and the random split, 0 or more", _between(0, 2**63 - 1))
    device: str = option("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    num_workers: int = option(-1, "processes that make views; -1: 4 with CUDA, else none", _between(-1))
    # data
    split: str = option("auto", "random, blocks, a JSON file, or auto: DATA/splits/split.json, else random")
    val_fraction: float = option(0.18, "labelled slices for choosing the checkpoint (4 of 22), 0 to 1", _between(0, 1))
    test_fraction: float = option(0.18, "labelled slices that are only reported on (4 of 22), 0 to 1", _between(0, 1))
    fold: int = option(0, "which block is the test set, with --split blocks, from 0", _between(0))
    labels: int = option(0, "training slices that keep their label; 0: all, the others become unlabelled", _between(0))
    max_unlabelled: int = option(0, "unlabelled scans to read; 0: all", _between(0))
    roi: tuple | None = option(ROI, "row,end row,column,end column of the unlabelled scans [px], or none",
                               lambda v: v is None or (len(v) == 4 and 0 <= v[0] < v[1] and 0 <= v[2] < v[3]))
    percentiles: tuple = option((1.0, 99.5), "two, of the non-zero pixels, become 0 and 1",
                                lambda v: len(v) == 2 and 0 <= v[0] < v[1] <= 100)
    mask_foreground: str = option("auto", "side of a mask: auto, dark, bright", {"auto", "dark", "bright"}.__contains__)
    # views
    patch_size: int = option(256, "side of patch and window [px], 32, 48, …", lambda v: v > STRIDE and v % STRIDE == 0)
    foreground_crop: bool = option(True, "labelled crops contain foreground")
    flip_p: float = option(0.5, "probability of a horizontal flip", _between(0, 1))
    vertical_flip_p: float = option(0.2, "probability of a vertical flip", _between(0, 1))
    rotation: float = option(10.0, "largest rotation, 0 to 45 [degrees]", _between(0, 45))
    blur_p: float = option(0.5, "probability that the strong view is blurred", _between(0, 1))
    blur_limit: int = option(7, "largest blur kernel, odd, 3 or more [px]", lambda v: v >= 3 and v % 2 == 1)
    # model and optimisation
    base_channels: int = option(64, "channels at full resolution, 1 or more; 64 is 31.45 M parameters", _between(1))
    sup_epochs: int = option(200, "epochs of the supervised phase, 1 or more", _between(1))
    ssl_epochs: int = option(150, "epochs of Mean Teacher and of the supervised continuation, 1 or more", _between(1))
    steps_per_epoch: int = option(0, "optimiser steps an epoch; 0: one pass over the labelled slices", _between(0))
    batch_size: int = option(4, "patches per step, labelled and unlabelled each, 1 or more", _between(1))
    lr: float = option(1e-3, "AdamW learning rate, above 0", lambda v: v > 0)
    weight_decay: float = option(1e-4, "AdamW weight decay, 0 or more", _between(0))
    plateau_factor: float = option(0.5, "rate factor when validation Dice stalls, 0 to 1", lambda v: 0 < v < 1)
    plateau_patience: int = option(10, "epochs without a better validation Dice before that, 0 or more", _between(0))
    min_lr: float = option(1e-6, "smallest learning rate, 0 or more", _between(0))
    bce_weight: float = option(0.5, "weight of BCE, 0 to 1; the rest is soft Dice", _between(0, 1))
    # Mean Teacher
    freeze: tuple = option(("down1", "down2", "down3"), "encoder blocks that stay as they are, or none",
                           lambda v: set(v) <= set(ENCODER_BLOCKS))
    ema_alpha: float = option(0.99, "share of itself the teacher keeps each step, 0 to below 1", lambda v: 0 <= v < 1)
    consistency_weight: float = option(1.0, "largest weight of the consistency loss, 0 or more", _between(0))
    ramp_epochs: int = option(10, "epochs over which that weight rises from 0, 0 or more", _between(0))
    # evaluation
    overlap: float = option(0.5, "shared part of neighbouring prediction windows, 0 to below 1", lambda v: 0 <= v < 1)
    threshold: float = option(0.5, "probability from which a pixel is foreground, 0 to 1", lambda v: 0 < v < 1)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list):  # as JSON gives it
                object.__setattr__(self, f.name, value := tuple(value))
            wanted = (int, float) if f.type is float else f.type
            try:
                fits = (isinstance(value, wanted) and isinstance(value, bool) == (f.type is bool)
                        and (f.type is not float or math.isfinite(value)) and f.metadata["check"](value))
            except TypeError:  # a tuple of something that is not a number
                fits = False
            if not fits:
                raise InputError(f"--{f.name.replace('_', '-')}: {value!r} is not possible: {f.metadata['help']}")

    @property
    def run_folder(self) -> Path:
        """Where tables and figures go."""
        return Path("runs") / self.run

    def checkpoint(self, name: str) -> Path:
        """File of the best weights called `name`: supervised, continued, ssl_student or ssl_teacher."""
        return Path("checkpoints") / self.run / f"best_{name}.safetensors"

    def views(self, slices: list) -> Views:
        """Weak and strong views of slices with these settings."""
        return Views(slices, self.patch_size, self.flip_p, self.vertical_flip_p, self.rotation, self.blur_p,
                     self.blur_limit, self.foreground_crop)


FREE = ("device", "num_workers")  # settings that a resumed run may change: results stay the same up to rounding
CPU_PROFILE = {"base_channels": 8, "sup_epochs": 54, "ssl_epochs": 13, "steps_per_epoch": 8, "max_unlabelled": 40}
PROGRESS_SECONDS = 0.5 if sys.stderr.isatty() else 10.0  # between two updates of a bar: a log keeps every one
SAVE_SECONDS = 60.0  # at most this much training is lost when a run is stopped
LOGS = {"supervised": "sup_metrics.csv", "continued": "continued_metrics.csv", "mean_teacher": "ssl_metrics.csv"}
CONTROL = "supervised continued"
METHODS = {"supervised": "supervised", CONTROL: "continued",
           "Mean Teacher student": "ssl_student", "Mean Teacher teacher": "ssl_teacher"}  # in tables: checkpoint


def profile(name: str, device: torch.device) -> dict:
    """Changes to the recipe: none for `full`, `CPU_PROFILE` for `cpu`; `auto` is `full` with CUDA, else `cpu`."""
    if name not in ("auto", "full", "cpu"):
        raise InputError(f"profile {name!r}: expected auto, full or cpu")
    return CPU_PROFILE if name == "cpu" or (name == "auto" and device.type != "cuda") else {}


# --- one step -------------------------------------------------------------------------------------------------

def step_losses(config: Config, student: nn.Module, labelled: dict, teacher: nn.Module | None = None,
                unlabelled: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Supervised and consistency loss of one step (0 without a teacher); only the student gets gradients.

    Labelled and unlabelled strong views pass the student as one batch: InstanceNorm treats images singly.
    """
    if teacher is None:
        loss = bce_dice_loss(student(labelled["strong"]), labelled["mask"], config.bce_weight)
        return loss, torch.zeros_like(loss)
    count = len(labelled["strong"])
    logits = student(torch.cat([labelled["strong"], unlabelled["strong"]]))      # (2B, 1, P, P)
    with torch.no_grad():
        target = teacher(unlabelled["weak"])                                    # (B, 1, P, P)
    supervised = bce_dice_loss(logits[:count], labelled["mask"], config.bce_weight)
    return supervised, consistency_mse(logits[count:], target)


# --- phases ---------------------------------------------------------------------------------------------------

def train_supervised(config: Config, data: Data) -> None:
    """From random weights on the labelled slices: `best_supervised`, `sup_metrics.csv`."""
    train_phase(config, data, "supervised", config.sup_epochs)


def continue_supervised(config: Config, data: Data) -> None:
    """The compute-matched control: `best_continued`, `continued_metrics.csv`.

    It starts where Mean Teacher starts, with optimizer and schedule reset likewise, and takes as many steps.
    """
    train_phase(config, data, "continued", config.ssl_epochs, start="supervised")


def train_mean_teacher(config: Config, data: Data) -> None:
    """Student and EMA teacher from the supervised weights, encoder partly frozen: `best_ssl_*`, `ssl_metrics.csv`."""
    train_phase(config, data, "mean_teacher", config.ssl_epochs, start="supervised", ssl=True)


def train_phase(config: Config, data: Data, phase: str, epochs: int, start: str | None = None,
                ssl: bool = False) -> None:
    """Train one phase to its end, from its last saved state where there is one; a finished phase is left alone.

    Best weights are chosen by validation Dice (without validation slices: the last epoch's) and written at
    once; a state to go on from is written at most every `SAVE_SECONDS`.
    """
    phases = config.run_folder / "phases.json"  # finished phases: steps, seconds, best epochs
    done_before = read_json(phases) if phases.exists() else {}
    if phase in done_before:
        for name in done_before[phase]["best"]:
            load_checkpoint(config.checkpoint(name))  # an error here is better than a table without this method
        print(f"{phase}: finished before, kept", file=sys.stderr)
        return
    device = choose_device(config.device)
    seed_everything(config.seed)
    student, teacher = UNet(config.base_channels).to(device), None
    models = {phase: student}
    if start is not None:
        student.load_state_dict(load_checkpoint(config.checkpoint(start))[0])
    if ssl:
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        freeze(student, config.freeze)
        models = {"ssl_student": student, "ssl_teacher": teacher}
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=config.lr,
                                  weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience, min_lr=config.min_lr)
    stateful = {**models, "optimizer": optimizer, "scheduler": scheduler}
    state, log = Path("checkpoints") / config.run / f"last_{phase}.pt", config.run_folder / LOGS[phase]
    done, best, seconds = restore_state(state, stateful)
    keep_rows(log, done)
    steps = config.steps_per_epoch or max(1, len(data.train) // config.batch_size)
    workers = config.num_workers if config.num_workers >= 0 else 4 if device.type == "cuda" else 0
    labelled, unlabelled = (
        make_loader(config.views(part), config.batch_size, [config.seed, *name.encode()], done * steps, workers, device)
        for part, name in ((data.train, phase), (data.unlabelled, f"{phase} unlabelled")))
    began = saved = time.perf_counter()
    bar = tqdm(range(done, epochs), phase, epochs, initial=done, unit="epoch", mininterval=PROGRESS_SECONDS,
               file=sys.stderr if sys.stderr.isatty() else sys.stdout)
    for epoch in bar:
        lam = config.consistency_weight * cosine_ramp_up(epoch, config.ramp_epochs) if ssl else 0.0
        row = {"epoch": epoch + 1, **train_epoch(config, student, optimizer, steps, labelled, lam, teacher, unlabelled)}
        if not math.isfinite(row["loss_sup"]):
            raise InputError(f"{phase}: the loss is not a number any more in epoch {epoch + 1}; lower --lr")
        scores = {name: validate(model, data.val, device, config.patch_size, config.batch_size, config.threshold)
                  for name, model in models.items()}
        current = scores["ssl_student" if ssl else phase]
        row |= {f"val_{name}": value for name, value in current.items()}
        row |= {f"teacher_val_{name}": value for name, value in scores.get("ssl_teacher", {}).items()}
        row["lr"] = optimizer.param_groups[0]["lr"]
        if data.val:
            scheduler.step(current["dice"])
        keep_best(config, models, scores, best, epoch + 1, bool(data.val))
        now = time.perf_counter()
        append_row(log, row | {"seconds": seconds + now - began})
        bar.set_postfix_str(f"loss {row['loss_sup']:.3f}, Dice {current['dice']:.3f}", refresh=False)
        if now - saved > SAVE_SECONDS:
            save_state(state, stateful, epoch + 1, best, seconds + now - began)
            saved = time.perf_counter()
    write_json(phases, {**done_before, phase: {
        "epochs": epochs, "steps": epochs * steps, "seconds": round(seconds + time.perf_counter() - began, 1),
        "best": best, "parameters": sum(p.numel() for p in student.parameters()), "environment": environment(device)}})
    state.unlink(missing_ok=True)


def train_epoch(config: Config, student: UNet, optimizer: torch.optim.Optimizer, steps: int, labelled, lam: float,
                teacher: UNet | None, unlabelled) -> dict[str, float]:
    """`steps` optimizer steps; the mean losses, and with a teacher the consistency loss and its weight."""
    student.train()
    totals = torch.zeros(2, device=next(student.parameters()).device)  # read once: reading waits for the device
    for _ in range(steps):
        supervised, consistency = step_losses(config, student, next(labelled), teacher,
                                              next(unlabelled) if teacher else None)
        optimizer.zero_grad(set_to_none=True)
        (supervised + lam * consistency).backward()
        optimizer.step()
        if teacher:
            ema_update(teacher, student, config.ema_alpha)
        totals += torch.stack([supervised.detach(), consistency.detach()])
    loss_sup, loss_consistency = (totals / steps).tolist()
    return {"loss_sup": loss_sup} | ({"loss_consistency": loss_consistency, "lam": lam} if teacher else {})


def keep_best(config: Config, models: dict[str, UNet], scores: dict, best: dict, epoch: int, chosen: bool) -> None:
    """Write each model that has its best validation Dice so far (or just the last one), and note it in `best`."""
    for name, model in models.items():
        score = scores[name]["dice"] if chosen else None
        if name not in best or not chosen or score > best[name]["val_dice"]:
            best[name] = {"val_dice": score, "epoch": epoch}
            save_checkpoint(config.checkpoint(name), model,
                            {"name": name, **best[name], "config": dataclasses.asdict(config)})


# --- a run ----------------------------------------------------------------------------------------------------

def prepare(config: Config, resume: bool = False) -> Data:
    """Read the data and open the run folder; `split.json` and `samples.npz` (for the figures) are written to it."""
    data = load_data(config.data, config.split, config.val_fraction, config.test_fraction, config.fold,
                     config.labels, config.seed, config.roi, config.percentiles, config.mask_foreground,
                     config.max_unlabelled)
    weights = list((Path("checkpoints") / config.run).glob("*.*"))
    if weights and not (config.run_folder / "config.json").exists():
        raise InputError(f"{weights[0].parent}: holds weights of another run; move them away, or choose another --run")
    open_run(config.run_folder, json.loads(json.dumps(dataclasses.asdict(config))), choose_device(config.device),
             resume, FREE)
    split, known = config.run_folder / "split.json", describe_data(data)
    if split.exists() and read_json(split) != known:
        raise InputError(f"{config.data}: slices, masks or split changed since {split}; choose another --run")
    write_json(split, known)
    first, views = data.train[0], {}
    for kind, slices in (("labelled", data.train), ("unlabelled", data.unlabelled)):
        batch = next(make_loader(config.views(slices), 8, [config.seed, *b"figure"]))
        views |= {f"{kind}_{name}": (tensor[:, 0] * 255).round().byte().numpy() for name, tensor in batch.items()}
    write_npz(config.run_folder / "samples.npz", raw=read_image(first.path), image=first.image, mask=first.mask,
              percentiles=np.array(config.percentiles), **views)
    return data


def evaluate_run(config: Config, data: Data) -> dict:
    """Tables of every trained method on the test slices; see `evaluate.evaluate_models` for the files and result."""
    if not data.test:
        print("no test slice: nothing can be said about accuracy; label more slices", file=sys.stderr)
    device = choose_device(config.device)
    trained = [name for phase in read_json(config.run_folder / "phases.json").values() for name in phase["best"]]
    models = {method: UNet.from_weights(load_checkpoint(config.checkpoint(name))[0]).to(device)
              for method, name in METHODS.items() if name in trained}
    return evaluate_models(models, data.test, data.train, config.run_folder, CONTROL, device, config.patch_size,
                           config.overlap, config.batch_size, config.threshold)


def parse_value(name: str, text: str) -> Any:
    """A field's value from the command line; what cannot be parsed stays text, which `Config` rejects."""
    default = Config.__dataclass_fields__[name].default
    try:
        if name == "roi":
            return parse_roi(text)
        if isinstance(default, tuple):
            return () if text == "none" else tuple(type(default[0])(part) for part in text.split(","))
        return {"true": True, "false": False}[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError):
        return text


def main() -> None:
    """Train, evaluate, and say where the results are."""
    parser = argparse.ArgumentParser(description="Train a supervised U-Net and Mean Teacher on few labelled slices.")
    parser.add_argument("--profile", default="auto", choices=["auto", "full", "cpu"],
                        help="full: the recipe; cpu: a small version; auto: full with CUDA, else cpu")
    parser.add_argument("--resume", action="store_true", help="go on with a run; finished phases are kept")
    for f in dataclasses.fields(Config):
        parser.add_argument(f"--{f.name.replace('_', '-')}", metavar="VALUE", default=argparse.SUPPRESS,
                            help=f"{f.metadata['help']} (default: {f.default})")
    given = vars(parser.parse_args())
    changes, resume = profile(given.pop("profile"), choose_device(given.get("device", "auto"))), given.pop("resume")
    config = Config(**changes | {name: parse_value(name, text) for name, text in given.items()})
    if changes:
        print("cpu profile: " + ", ".join(f"{k} {getattr(Config, k)} → {getattr(config, k)}" for k in changes))
    data = prepare(config, resume)
    train_supervised(config, data)
    if config.method == "mean_teacher":
        continue_supervised(config, data)
        train_mean_teacher(config, data)
    for method, scores in evaluate_run(config, data)["full"]["methods"].items():
        print(f"{method:22s} full-image test Dice {scores['dice']['mean']:.4f}")
    print(f"results: {config.run_folder}; draw the figures with: python utils_viz.py {config.run_folder}")


if __name__ == "__main__":
    run_command_line(main)
