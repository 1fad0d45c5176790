"""Training: supervised U-Net, its continuation for as many steps, semi-supervision by teacher and student; then tables.

What a step is stands in `steps`.
"""

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from annotate import rank_unlabelled, without_label
from config import FREE, GEOMETRY, INTENSITY, Config, describe_profile, make_config, parse_value, profile
from datasets import Data, Views, describe_data, load_data, make_loader
from evaluate import evaluate_models, validate
from losses import cosine_ramp_up
from model_unet import UNet, freeze
from slices import read_image
from steps import make_optimizer, make_scheduler, train_epoch
from stitching import predict_image
from team import Team, join_team, leave_team
from utils import (
    PROGRESS_SECONDS, InputError, append_row, choose_device, environment, keep_rows, load_checkpoint, open_run,
    read_json, restore_state, run_command_line, save_checkpoint, save_state, seed_everything, write_json, write_npz,
)

SAVE_SECONDS = 60.0  # at most this much training is lost when a run is stopped
LOGS = {"supervised": "sup_metrics.csv", "continued": "continued_metrics.csv", "mean_teacher": "ssl_metrics.csv"}
CONTROL = "supervised continued"
LABELS = {"mean_teacher": "Mean Teacher", "cutmix_mt": "CutMix Mean Teacher", "fixmatch": "FixMatch",
          "unimatch": "UniMatch", "best": "best recipe"}


def method_names(method: str) -> dict[str, str]:
    """Rows of the tables, in their order: name of the trained model → name of its checkpoint."""
    names = {"supervised": "supervised", CONTROL: "continued"}
    if method in LABELS:
        names |= {f"{LABELS[method]} student": "ssl_student", f"{LABELS[method]} teacher": "ssl_teacher"}
    return names


# --- phases ---------------------------------------------------------------------------------------------------

def train_supervised(config: Config, data: Data) -> None:
    """From random weights on the labelled slices: `best_supervised`, `sup_metrics.csv`."""
    train_phase(config, data, "supervised", config.sup_epochs)


def continue_supervised(config: Config, data: Data) -> None:
    """The step-matched control: `best_continued`, `continued_metrics.csv`.

    It starts where the semi-supervised phase starts, with optimizer and schedule reset likewise, and takes as many
    steps.
    """
    train_phase(config, data, "continued", config.ssl_epochs, "supervised" if config.warm_start else None)


def train_mean_teacher(config: Config, data: Data) -> None:
    """Student and EMA teacher on all slices, encoder partly frozen: `best_ssl_*`, `ssl_metrics.csv`."""
    train_phase(config, data, "mean_teacher", config.ssl_epochs, "supervised" if config.warm_start else None, ssl=True)


def train_phase(config: Config, data: Data, phase: str, epochs: int, start: str | None = None,
                ssl: bool = False) -> None:
    """Train one phase to its end, from its last saved state where there is one; a finished phase is left alone.

    Best weights are chosen by validation Dice (without validation slices: the last epoch's). They are written, and a
    state to go on from, every `SAVE_SECONDS` and at the end.
    """
    phases = config.run_folder / "phases.json"  # finished phases: steps, seconds, best epochs
    done_before = read_json(phases) if phases.exists() else {}
    if phase in done_before:
        for name in done_before[phase]["best"]:
            load_checkpoint(config.checkpoint(name))  # an error here is better than a table without this method
        print(f"{phase}: finished before, kept", file=sys.stderr)
        return
    team = join_team(device := choose_device(config.device))
    seed_everything(config.seed)
    student, average = build_models(config, device, start, ssl)
    models = {"ssl_student": student, "ssl_teacher": average} if ssl else {phase: average or student}
    optimizer = make_optimizer(config, student)
    steps = config.steps_per_epoch or max(1, len(data.train) // config.batch_size)
    scheduler = make_scheduler(config, optimizer, epochs * steps)
    stateful = {**models, "student": student, "optimizer": optimizer, "scheduler": scheduler}
    state, log = Path("checkpoints") / config.run / f"last_{phase}.pt", config.run_folder / LOGS[phase]
    done, best, seconds = go_on(config, state, stateful, log, team)
    network, kept = team.wrap(student), {}
    labelled, unlabelled = data_of_phase(config, data, phase, done * steps, device, team, ssl)
    shown, saved = "", (began := time.perf_counter())
    bar = tqdm(range(done, epochs), phase, epochs, initial=done, unit="epoch", mininterval=PROGRESS_SECONDS,
               file=sys.stderr if sys.stderr.isatty() else sys.stdout, disable=not team.leads)
    for epoch in bar:
        lam = config.consistency_weight * cosine_ramp_up(epoch, config.ramp_epochs) if ssl else 0.0
        rate = optimizer.param_groups[0]["lr"]
        row = {"epoch": epoch + 1, **team.mean(train_epoch(
            config, network, average, optimizer, scheduler, range(epoch * steps, (epoch + 1) * steps), labelled,
            unlabelled, lam, start is None, team.rank))}
        due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == epochs
        check_numbers(phase, row, models if due else {})
        scores = team.tell({name: validate(
            model, data.val if due and team.leads else [], device, config.patch_size, config.threshold,
            config.overlap if config.selection == "full" else None) for name, model in models.items()})
        current = scores[next(iter(models))]
        row |= {f"val_{name}": value for name, value in current.items()} | {
            f"teacher_val_{k}": value for k, value in scores.get("ssl_teacher", {}).items()} | {"lr": rate}
        if due:
            if data.val and config.schedule == "plateau":
                scheduler.step(current["dice"])
            keep_best(models, scores, best, kept, epoch + 1, bool(data.val))
            shown = f", Dice {current['dice']:.3f}" if data.val else ""
        now = time.perf_counter()
        if not team.leads:
            continue
        append_row(log, row | {"seconds": seconds + now - began})
        bar.set_postfix_str(f"loss {row['loss_sup']:.3f}{shown}", refresh=False)
        if now - saved > SAVE_SECONDS:
            write_best(config, best, kept)
            save_state(state, stateful, epoch + 1, best, seconds + now - began)
            saved = time.perf_counter()
    if team.leads:
        write_best(config, best, kept)
        write_json(phases, {**done_before, phase: {
            "epochs": epochs, "steps": epochs * steps, "seconds": round(seconds + time.perf_counter() - began, 1),
            "best": best, "label": LABELS[config.method] if ssl else phase, "processes": team.size,
            "environment": environment(device), "parameters": sum(p.numel() for p in student.parameters())}})
        state.unlink(missing_ok=True)
    team.wait()


def go_on(config: Config, state: Path, stateful: dict, log: Path, team: Team) -> tuple[int, dict, float]:
    """Put a stopped phase back: epochs done, best scores and seconds; 0, none and 0 of a new one."""
    done, best, seconds = restore_state(state, stateful)
    best = written_best(config, best)
    team.wait()                                             # all have read it before the first writes
    if team.leads:
        keep_rows(log, done)
    return done, best, seconds


def data_of_phase(config: Config, data: Data, phase: str, start: int, device: torch.device, team: Team,
                  ssl: bool) -> tuple[Iterator[dict], Iterator[dict] | None]:
    """Labelled and, in the semi-supervised phase, unlabelled batches from number `start` on."""
    labelled = batches(config, make_dataset(config, data.train), phase, start, device, team)
    if not ssl:
        return labelled, None
    unlabelled = make_dataset(config, data.unlabelled, predict_guides(config, data, device), config.strong_views)
    return labelled, batches(config, unlabelled, f"{phase} unlabelled", start, device, team)


def build_models(config: Config, device: torch.device, start: str | None, ssl: bool) -> tuple[UNet, UNet | None]:
    """Network to train, from the checkpoint `start` or random weights, and its moving average where there is one."""
    student = UNet(config.base_channels, config.downsample).to(device)
    if start is not None:
        student.load_state_dict(load_checkpoint(config.checkpoint(start))[0])
    average = copy.deepcopy(student).eval().requires_grad_(False) if ssl or config.weight_average else None
    if ssl:
        freeze(student, config.freeze)
    return student, average


def make_dataset(config: Config, slices: list, guides: list | None = None, strong_views: int = 1) -> Views:
    """Weak and strong views of slices with these settings."""
    return Views(slices, config.patch_size, config.foreground_crop, guides, strong_views,
                 config.subset(GEOMETRY), config.subset(INTENSITY))


def batches(config: Config, views: Views, name: str, start: int, device: torch.device, team: Team) -> Iterator[dict]:
    """Endless batches from number `start` on, of each this process's part; `name` sets their order and views apart from
    those of other phases.
    """
    workers = config.num_workers if config.num_workers >= 0 else 4 if device.type == "cuda" else 0
    return make_loader(views, config.batch_size, [config.seed, *name.encode()], start, workers, device, team.rank,
                       team.size)


def predict_guides(config: Config, data: Data, device: torch.device) -> list[np.ndarray] | None:
    """Where the supervised model sees foreground in each unlabelled slice, (H, W) bool; None where not asked for.

    With `warm_start` that model is the teacher as it starts; a teacher that starts from random weights knows nothing.
    """
    if not config.unlabelled_foreground:
        return None
    model = UNet.from_weights(load_checkpoint(config.checkpoint("supervised"))[0]).to(device)
    return [predict_image(model, s.image, device, config.patch_size, 0.25) >= config.threshold
            for s in tqdm(data.unlabelled, "foreground of the unlabelled", unit="slice", leave=False)]


def check_numbers(phase: str, row: dict[str, float], models: dict[str, UNet]) -> None:
    """`InputError` where a value of an epoch's row or a weight is not a number any more."""
    weights = (tensor for model in models.values() for tensor in model.state_dict().values())
    if not all(map(math.isfinite, row.values())) or not all(tensor.isfinite().all() for tensor in weights):
        raise InputError(f"{phase}: loss or weights are not numbers any more in epoch {row['epoch']}; lower --lr")


def written_best(config: Config, best: dict) -> dict:
    """Score and epoch of the best weights on disk: they are written before the state that knows of `best`."""
    about = {name: load_checkpoint(config.checkpoint(name))[1] for name in best}
    return {name: {key: about[name][key] for key in ("val_dice", "epoch")} for name in best}


def keep_best(models: dict[str, UNet], scores: dict, best: dict, kept: dict, epoch: int, chosen: bool) -> None:
    """Copy the weights of each model that has its best validation Dice so far (or just the last one) to `kept`."""
    for name, model in models.items():
        score = scores[name]["dice"] if chosen else None
        if name not in best or not chosen or score > best[name]["val_dice"]:
            best[name] = {"val_dice": score, "epoch": epoch}
            kept[name] = {key: tensor.clone() for key, tensor in model.state_dict().items()}


def write_best(config: Config, best: dict, kept: dict) -> None:
    """Write the weights that are in `kept`, and forget them."""
    while kept:
        name, weights = kept.popitem()
        save_checkpoint(config.checkpoint(name), weights,
                        {"name": name, **best[name], "config": dataclasses.asdict(config)})


# --- a run ----------------------------------------------------------------------------------------------------

def read_slices(config: Config) -> Data:
    """The data that these settings name, read, preprocessed and split."""
    return load_data(config.data, config.split, config.val_fraction, config.test_fraction, config.fold, config.labels,
                     config.seed, config.roi, config.percentiles, config.mask_foreground, config.max_unlabelled)


def prepare(config: Config, resume: bool = False) -> Data:
    """Read the data and open the run folder; `split.json` and `samples.npz` (for the figures) are written to it."""
    data, team = read_slices(config), join_team(choose_device(config.device))
    team.part_of_batch(config.batch_size)
    if team.leads:
        open_folder(config, data, resume)
    team.wait()
    return data


def open_folder(config: Config, data: Data, resume: bool) -> None:
    """What `prepare` writes."""
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
        batch = next(make_loader(make_dataset(config, slices), 8, [config.seed, *b"figure", *kind.encode()]))
        views |= {f"{kind}_{name}": (tensor[:, 0] * 255).round().byte().numpy() for name, tensor in batch.items()}
    write_npz(config.run_folder / "samples.npz", raw=read_image(first.path), image=first.image, mask=first.mask,
              percentiles=np.array(config.percentiles), **views)


def evaluate_run(config: Config, data: Data) -> dict:
    """Tables of every trained method on the test slices; see `evaluate.evaluate_models` for the files and result."""
    if not data.test:
        print("no test slice: nothing can be said about accuracy; label more slices", file=sys.stderr)
    device = choose_device(config.device)
    trained = [name for phase in read_json(config.run_folder / "phases.json").values() for name in phase["best"]]
    models = {method: UNet.from_weights(load_checkpoint(config.checkpoint(name))[0]).to(device)
              for method, name in method_names(config.method).items() if name in trained}
    return evaluate_models(models, data.test, data.train, config.run_folder, CONTROL, device, config.patch_size,
                           config.overlap, config.threshold, config.tta)


def main() -> None:
    """Train, evaluate, and say where the results are."""
    parser = argparse.ArgumentParser(description="Train a U-Net on few labelled slices, then also on the others.")
    parser.add_argument("--profile", default="auto", choices=["auto", "full", "cpu"],
                        help="full: the recipe; cpu: a small version; auto: full with CUDA, else cpu")
    parser.add_argument("--resume", action="store_true", help="go on with a run; finished phases are kept")
    for f in dataclasses.fields(Config):
        parser.add_argument(f"--{f.name.replace('_', '-')}", metavar="VALUE", default=argparse.SUPPRESS,
                            help=f"{f.metadata['help']} (default: {f.default})")
    given = vars(parser.parse_args())
    changes, resume = profile(given.pop("profile"), choose_device(given.get("device", "auto"))), given.pop("resume")
    config = make_config(**changes | {name: parse_value(name, text) for name, text in given.items()})
    run(config, resume, describe_profile(config, changes))


def run(config: Config, resume: bool = False, remark: str = "") -> None:
    """All of a run: every phase, the tables, what to annotate next. Also for `accelerate.notebook_launcher`."""
    team = join_team(choose_device(config.device))
    if team.leads and remark:
        print(remark)
    data = prepare(config, resume)
    train_supervised(config, data)
    if config.method != "supervised":
        continue_supervised(config, data)
        train_mean_teacher(config, data)
    leave_team(team)
    if not team.leads:
        return
    for method, scores in evaluate_run(config, data)["full"]["methods"].items():
        print(f"{method:28s} full-image test Dice {scores['dice']['mean']:.4f}")
    if config.method != "supervised" and without_label(data):
        print(f"annotate next: {rank_unlabelled(config, data)['file'][0]} (ranking: annotate_next.csv)")
    print(f"results: {config.run_folder}; draw the figures with: python utils_viz.py {config.run_folder}")


if __name__ == "__main__":
    run_command_line(main)
