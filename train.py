"""Training: supervised U-Net, its continuation for as many steps, semi-supervision by teacher and student; then tables.

What a step is stands in `mean_teacher`.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from config import (
    FREE,
    GEOMETRY,
    INTENSITY,
    Config,
    describe_profile,
    make_config,
    parse_value,
    profile,
    stored_config,
)
from datasets import Views
from evaluate import evaluate_models, validate
from evaluation.annotate_next import rank_unlabelled, without_label
from losses import cosine_ramp_up
from mean_teacher import (
    NotFinite,
    Training,
    build_models,
    largest_batch,
    make_optimizer,
    make_scheduler,
    mean_losses,
    train_step,
    trained_network,
    trying_algorithms,
)
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.command_line import Parser, Terminated, held_back, run_command_line
from runtime.devices import choose_device, is_out_of_memory
from runtime.files import read_json, remove_leftovers, write_json, write_npz
from runtime.loaders import choose_workers, drawn, make_loader, seed_of
from runtime.messages import PROGRESS_SECONDS, InputError, WorkerDied, one_line, quiet_bar
from runtime.progress import Progress, state_path
from runtime.run_folder import differences, forget_state, open_run, read_phases
from runtime.team import Team, join_team, leave_team
from slices.data_folder import (
    LEAST_PARTICLE,
    Data,
    Reading,
    describe_data,
    load_data,
    sum_up,
    training_window,
    used_files,
)
from slices.windows import parse_outside, read_grey
from utils import forget_what_fitted, predict_image, seed_everything

CONTROL = "supervised continued"
LABELS = {
    "mean_teacher": "Mean Teacher",
    "cutmix_mt": "CutMix Mean Teacher",
    "fixmatch": "FixMatch",
    "unimatch": "UniMatch",
    "best": "best",
}


# --- phases ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes
    ----------
    name : str
        Its key in `phases.json`, and the name of its weights.
    label : str
        What tables and progress bars call what it trains.
    log : str
        Its table in the run folder, a row per epoch.
    epochs : int
    start : str or None
        The checkpoint that it begins with, by name; None for random weights.
    is_semi_supervised : bool
        Whether a teacher labels unlabelled slices.
    """

    name: str
    label: str
    log: str
    epochs: int
    start: str | None = None
    is_semi_supervised: bool = False


def supervised_phase(config: Config) -> Phase:
    """Return the phase that trains on labelled slices, from random weights: `best_supervised`."""
    return Phase("supervised", "supervised", "sup_metrics.csv", config.sup_epochs)


def control_phase(config: Config) -> Phase:
    """Return the step-matched control of the semi-supervised phase: `best_continued`.

    It starts where that one starts, with optimizer and schedule reset likewise, and takes as many steps.
    """
    start = start_of_second_phase(config)
    return Phase("continued", CONTROL, "continued_metrics.csv", config.ssl_epochs, start)


def semi_supervised_phase(config: Config) -> Phase:
    """Return the phase of student and teacher on all slices, the encoder partly frozen: `best_ssl_*`."""
    start = start_of_second_phase(config)
    label = LABELS[config.method]
    return Phase("mean_teacher", label, "ssl_metrics.csv", config.ssl_epochs, start, is_semi_supervised=True)


def start_of_second_phase(config: Config) -> str | None:
    """Return the checkpoint with which control and semi-supervised phase begin; None for random weights."""
    return "supervised" if config.warm_start else None


def method_names(method: str) -> dict[str, str]:
    """Return the rows of the tables, in their order: name of the trained model → name of its checkpoint."""
    names = {"supervised": "supervised", CONTROL: "continued"}
    if method in LABELS:
        for kind in ("student", "teacher"):
            names[f"{LABELS[method]} ({kind})"] = f"ssl_{kind}"
    return names


def train_supervised(config: Config, data: Data) -> None:
    """Train on labelled slices, from random weights."""
    train_phase(config, data, supervised_phase(config))


def continue_supervised(config: Config, data: Data) -> None:
    """Train the step-matched control."""
    train_phase(config, data, control_phase(config))


def train_semi_supervised(config: Config, data: Data) -> None:
    """Train student and teacher on all slices."""
    train_phase(config, data, semi_supervised_phase(config))


# --- the training loop -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Job:
    """A phase, as this process trains it: settings, data, device, and the processes that share it."""

    config: Config
    data: Data
    phase: Phase
    device: torch.device
    team: Team

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch: one pass over the labelled slices, unless another number is set."""
        return self.config.steps_per_epoch or max(1, len(self.data.train) // self.config.batch_size)


def train_phase(config: Config, data: Data, phase: Phase) -> None:
    """Train one phase to its end, from its last saved state where there is one; leave a finished phase alone.

    Best weights are chosen by validation Dice; the last epoch's where no validation slice has foreground. They are
    written, and a state to go on from, after every epoch, or as often as `progress.SAVE_SHARE` of the time allows; in a
    long one every `SAVE_SECONDS`. Ctrl-C and SIGTERM wait for the step in hand and for the state.
    """
    if is_finished(config, phase):
        return

    device = choose_device(config.device)
    team = join_team(device)
    job = Job(config, data, phase, device, team)
    seed_everything(config.seed)
    training = open_training(job)
    progress = open_progress(job, training)
    progress.restore(device, team.leads, team.wait)
    training.student = team.wrap(training.student)

    steps = job.steps_per_epoch
    is_stopped = False
    with (
        held_back() as signals,
        epochs_bar(job, progress.epoch(steps)) as epochs,
        batches_of(job, progress.step) as (labelled, unlabelled),
    ):
        for epoch in epochs:
            first, end = epoch * steps, (epoch + 1) * steps
            weight = consistency_weight(config, phase, epoch)
            if progress.step == first:
                progress.rate = training.optimizer.param_groups[0]["lr"]

            is_cut_short = has_no_memory = False
            training.student.train()
            try:
                with trying_algorithms():
                    for number in range(progress.step, end):
                        progress.add(train_step(training, number, next(labelled), next(unlabelled), weight))
                        if team.leads:
                            progress.save_if_a_minute_passed()
                        if team.leads and signals:
                            break
            except (WorkerDied, RuntimeError, MemoryError) as error:
                # Whoever tells this process to stop often ends its workers, and the others of its team, too.
                is_cut_short = True
                has_no_memory = is_out_of_memory(error)
                if not has_no_memory and not (team.leads and signals):
                    raise
            if has_no_memory:                           # Here, what the step that failed held is free again.
                raise out_of_memory_error(job, training)

            means = {} if is_cut_short else mean_losses_of(job, progress, first)
            is_whole = progress.step == end
            if is_whole:
                end_epoch(job, training, progress, epoch, means)
                epochs.set_postfix_str(progress.shown, refresh=False)
            is_stopped = not is_whole or team.tell(bool(signals))
            if is_stopped:
                break
            if team.leads:
                progress.save_if_due()

        if team.leads:
            save_or_finish(job, training, progress)
        forget_what_fitted()                            # Beside an optimizer and gradients; their memory is free now.
        if not is_stopped:
            team.wait()
        elif not signals:
            raise Terminated                            # The first process of the team was told to stop.


def is_finished(config: Config, phase: Phase) -> bool:
    """Return whether a phase was trained to its end before, which is said; its weights have to be there."""
    finished = read_phases(config.run_folder)
    if phase.name not in finished:
        return False

    # An error here is better than a table without this method.
    for name in finished[phase.name]["best"]:
        load_checkpoint(config.checkpoint(name))
    print(f"{phase.label}: finished before, kept", file=sys.stderr)

    # A process that was killed just after the phase had ended left its state.
    forget_state(state_path(config, phase.name))
    return True


def open_training(job: Job) -> Training:
    """Return student, average, optimizer and schedule at the beginning of a phase."""
    config, phase = job.config, job.phase
    student, average = build_models(config, job.device, phase.start, phase.is_semi_supervised)
    optimizer = make_optimizer(config, student)
    scheduler = make_scheduler(config, optimizer, phase.epochs * job.steps_per_epoch)
    return Training(config, student, average, optimizer, scheduler, phase.is_semi_supervised,
                    warm_up=phase.start is None, rank=job.team.rank)


def kept_models(phase: Phase, training: Training) -> dict[str, UNet]:
    """Return the models whose best weights are kept, by the names of their checkpoints."""
    if phase.is_semi_supervised:
        return {"ssl_student": trained_network(training), "ssl_teacher": training.average}
    return {phase.name: training.average or trained_network(training)}


def open_progress(job: Job, training: Training) -> Progress:
    """Return how far a phase has come: nowhere, before its state is restored."""
    config = job.config
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    stateful = {
        **kept_models(job.phase, training),
        "student": training.student,
        "optimizer": training.optimizer,
        "scheduler": training.scheduler,
    }
    log = config.run_folder / job.phase.log
    return Progress(config, job.phase.name, log, stateful, settings, training_window(job.data.train))


def epochs_bar(job: Job, first: int) -> tqdm:
    """Return the epochs of a phase from `first` on, with a progress bar in one process of a team."""
    phase = job.phase
    return tqdm(range(first, phase.epochs), phase.label, phase.epochs, initial=first, unit="epoch",
                mininterval=PROGRESS_SECONDS, file=sys.stderr if sys.stderr.isatty() else sys.stdout,
                disable=not job.team.leads)


def consistency_weight(config: Config, phase: Phase, epoch: int) -> float:
    """Return λ, the weight of the consistency loss in an epoch."""
    if not phase.is_semi_supervised:
        return 0.0
    return config.consistency_weight * cosine_ramp_up(epoch, config.ramp_epochs)


def save_or_finish(job: Job, training: Training, progress: Progress) -> None:
    """Save the state of a phase that was stopped; write what is known about one that has come to its end."""
    phase = job.phase
    steps = phase.epochs * job.steps_per_epoch
    if progress.step < steps:
        progress.save()
        return

    parameters = sum(tensor.numel() for tensor in trained_network(training).parameters())
    progress.finish(job.device, {"epochs": phase.epochs, "steps": steps, "label": phase.label,
                                 "processes": job.team.size, "parameters": parameters})


# --- the end of an epoch -----------------------------------------------------------------------------------------

def mean_losses_of(job: Job, progress: Progress, first: int) -> dict[str, float]:
    """Return the mean losses of the steps of an epoch so far, which began with step `first`.

    Raises
    ------
    InputError
        Where a loss, gradient or weight is not a number; `nonfinite.json` names the slices.
    """
    if not progress.losses:
        return {}
    try:
        return mean_losses(progress.losses, first, job.config.nonfinite)
    except NotFinite as error:
        record_nonfinite_steps(job, [error.number])
        raise nonfinite_error(job, error.number) from None


def end_epoch(job: Job, training: Training, progress: Progress, epoch: int, means: dict[str, float]) -> None:
    """Validate where it is due, keep the best weights, and write the row of an epoch; in every process of a team."""
    config, phase, team = job.config, job.phase, job.team
    models = kept_models(phase, training)
    is_due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == phase.epochs
    if is_due and not all_finite(models):
        record_nonfinite_steps(job, [progress.step - 1])
        raise nonfinite_error(job, progress.step - 1)

    means = team.mean(means)
    skipped = int(means["skipped"])
    if skipped:
        first = progress.step - len(progress.losses)
        bad = [first + i for i, losses in enumerate(progress.losses) if not losses.isfinite().all()]
        record_nonfinite_steps(job, bad)
    progress.losses.clear()

    scores = team.tell(validate_models(job, models, job.data.val if is_due and team.leads else []))
    current = scores[next(iter(models))]

    row = {"epoch": epoch + 1, "loss_sup": means["loss_sup"]}
    if phase.is_semi_supervised:
        row["loss_consistency"] = means["loss_consistency"]
        row["lam"] = consistency_weight(config, phase, epoch)
    row |= {f"val_{metric}": value for metric, value in current.items()}
    row |= {f"teacher_val_{metric}": value for metric, value in scores.get("ssl_teacher", {}).items()}
    row |= {"lr": progress.rate, "skipped": skipped}

    if is_due:
        if job.data.can_choose and config.schedule == "plateau":
            training.scheduler.step(current["dice"])
        progress.keep_best(models, scores, epoch + 1, job.data.can_choose)
    if team.leads:
        progress.end_epoch(row)


def validate_models(job: Job, models: dict[str, UNet], slices: list) -> dict[str, dict[str, float | None]]:
    """Return the validation scores of each model; None for each metric where there is no slice."""
    config = job.config
    overlap = config.overlap if config.selection == "full" else None
    scores = {}
    for name, model in models.items():
        scores[name] = validate(model, slices, job.device, config.patch_size, config.threshold, overlap,
                                config.precision)
    return scores


def all_finite(models: dict[str, UNet]) -> bool:
    """Return whether all weights are numbers; asked of the device once, not once for each tensor."""
    finite = [tensor.isfinite().all() for model in models.values() for tensor in model.state_dict().values()]
    return bool(torch.stack(finite).all())


# --- what ends a phase early -------------------------------------------------------------------------------------

def record_nonfinite_steps(job: Job, steps: list[int]) -> None:
    """Add to `nonfinite.json` of the run which slices were in the batches of these steps."""
    config, phase = job.config, job.phase
    streams = {"labelled": (job.data.train, phase.name)}
    if phase.is_semi_supervised:
        streams["unlabelled"] = job.data.unlabelled, unlabelled_stream(phase)

    path = nonfinite_file(config)
    recorded = read_json(path) if path.exists() else {}
    for step in steps:
        seen = {}
        for kind, (slices, stream) in streams.items():
            indices = drawn(len(slices), config.batch_size, seed_of(config.seed, stream), step)
            seen[kind] = [str(slices[i].path) for i in indices]
        recorded[f"{phase.name}, step {step + 1}"] = seen
    write_json(path, recorded)


def nonfinite_error(job: Job, step: int) -> InputError:
    """Return the error that says in which step numbers ended, and where its slices are named."""
    return InputError(f"{job.phase.name}: loss, gradient or weights are not a number any more in step {step + 1}; the "
                      f"slices it saw are in {nonfinite_file(job.config)}: look at them, lower --lr, or --nonfinite "
                      "skip")


def nonfinite_file(config: Config) -> Path:
    """Return the file in which a run names the slices of steps whose loss was not a number."""
    return config.run_folder / "nonfinite.json"


def out_of_memory_error(job: Job, training: Training) -> InputError:
    """Return the error that says which batch would fit into memory; that is tried out, which takes some seconds."""
    config, team = job.config, job.team
    least = team.size * (2 if config.cutmix_p else 1)
    part = config.batch_size // team.size
    fits = team.size * largest_batch(config, trained_network(training), training.teacher, part)

    cure = f"{fits} fits"
    if fits < least:
        cure = f"not even {least} fits: smaller --patch-size or --base-channels, larger --downsample"
    return InputError(f"--batch-size {config.batch_size}: out of memory; {cure}, in a new --run")


# --- batches -----------------------------------------------------------------------------------------------------

@contextmanager
def batches_of(job: Job, start: int) -> Iterator[tuple[Iterator[dict], Iterator[dict | None]]]:
    """Yield the labelled and the unlabelled batches of a phase, from number `start` on.

    In a supervised phase the latter are None. The processes that make them end with the block: what is raised while
    they do would be lost in a destructor.
    """
    config, data, phase = job.config, job.data, job.phase
    views = make_dataset(config, data.train, weak=False)
    with closing(batches(job, views, phase.name, start)) as labelled:
        if not phase.is_semi_supervised:
            yield labelled, itertools.repeat(None)
            return

        guides = predict_guides(config, data, job.device)
        views = make_dataset(config, data.unlabelled, guides, config.strong_views)
        with closing(batches(job, views, unlabelled_stream(phase), start)) as unlabelled:
            yield labelled, unlabelled


def unlabelled_stream(phase: Phase) -> str:
    """Return the name on which the order and the views of the unlabelled batches of a phase depend."""
    return f"{phase.name} unlabelled"


def batches(job: Job, views: Views, stream: str, start: int) -> Iterator[dict]:
    """Return endless batches from number `start` on, of each this process's part.

    The name of the stream sets their order and views apart from those of other phases.
    """
    config, team = job.config, job.team
    workers = choose_workers(config.num_workers, job.device)
    return make_loader(views, config.batch_size, seed_of(config.seed, stream), start, workers, job.device, team.rank,
                       team.size)


def make_dataset(config: Config, slices: list, guides: list | None = None, strong_views: int = 1,
                 weak: bool = True) -> Views:
    """Weak, where asked for, and strong views of slices with these settings."""
    return Views(slices, config.patch_size, config.foreground_crop, guides, strong_views, config.subset(GEOMETRY),
                 config.subset(INTENSITY), config.downsample, weak)


def predict_guides(config: Config, data: Data, device: torch.device) -> list[np.ndarray] | None:
    """Where the supervised model sees foreground in each unlabelled slice, (H, W) bool; None where not asked for.

    With `warm_start` that model is the teacher as it starts; a teacher that starts from random weights knows nothing.
    """
    if not config.unlabelled_foreground:
        return None
    model = UNet.from_weights(load_checkpoint(config.checkpoint("supervised"))[0]).to(device)
    return [predict_image(model, s.image, device, config.patch_size, 0.25, precision=config.precision)
            >= config.threshold
            for s in quiet_bar(data.unlabelled, "foreground of the unlabelled")]


# --- a run ----------------------------------------------------------------------------------------------------

def read_slices(config: Config) -> Data:
    """The data that these settings name, read, preprocessed and split."""
    reading = Reading(config.roi, config.percentiles, config.mask_foreground, parse_outside(config.outside),
                      config.trust_pairs)
    return load_data(config.data, config.split, config.val_fraction, config.test_fraction, config.fold, config.labels,
                     config.seed, config.max_unlabelled, reading)


def prepare(config: Config, resume: bool = False) -> Data:
    """Read the data and open the run folder; `split.json` and `samples.npz` (for the figures) are written to it.

    Until this process ends, no other may work in that folder.
    """
    data, team = read_slices(config), join_team(device := choose_device(config.device))
    part = team.part_of_batch(config.batch_size)
    if config.cutmix_p and part == 1:
        raise InputError(f"--batch-size {config.batch_size}: leaves one sample to each of {team.size} processes, and "
                         f"--cutmix-p mixes the samples of a process; --batch-size {2 * team.size} or more")
    if config.nonfinite == "skip" and team.size > 1:
        raise InputError("--nonfinite skip: is for one process; others would not know of the skipped step")
    if team.leads:
        if device.type != "cpu" or team.size > 1:
            print(f"{f'{team.size} processes' if team.size > 1 else device.type}: sums have no fixed order there; the "
                  "same seed gives the same results but for the last digits (one process with --device cpu: the same "
                  "bytes)", file=sys.stderr)
        open_folder(config, data, resume)
        for note in [*data.notes, *note_on_blocks(config, data)]:
            print(note, file=sys.stderr)
    team.wait()
    return data


def open_folder(config: Config, data: Data, resume: bool) -> None:
    """What `prepare` writes."""
    weights = list((Path("checkpoints") / config.run).glob("*.*"))
    if weights and not (config.run_folder / "config.json").exists():
        raise InputError(f"{weights[0].parent}: holds weights of another run; move them away, or choose another --run")
    path = config.run_folder / "config.json"
    is_of_earlier_version = path.exists() and "outside" not in read_json(path)
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    defaults = json.loads(json.dumps(dataclasses.asdict(Config())))
    free = (*FREE, "data")                          # a folder may move; that its pixels stayed is compared below
    open_run(config.run_folder, settings, choose_device(config.device), resume, free,
             used_files(config.data, config.split, config.max_unlabelled), defaults)
    remove_leftovers(Path("checkpoints") / config.run)
    split, known = config.run_folder / "split.json", describe_data(data)
    if split.exists() and read_json(split) != known:
        if is_of_earlier_version:
            raise InputError(f"{config.data}: slices, masks or split are not those of {split}: they changed, or this "
                             "version takes something else for padding or foreground than the earlier one that began "
                             "the run; choose another --run")
        raise InputError(f"{config.data}: slices, masks or split changed since {split}; choose another --run")
    write_json(split, known)
    stored = read_json(config.run_folder / "config.json")
    if stored["data"] != config.data:
        write_json(config.run_folder / "config.json", stored | {"data": config.data})
    first, views = data.train[0], {}
    for kind, slices in (("labelled", data.train), ("unlabelled", data.unlabelled)):
        batch = next(make_loader(make_dataset(config, slices), 8, [config.seed, *b"figure", *kind.encode()]))
        if config.downsample > 1:
            views["patch_size"] = np.array(config.patch_size)
        views |= {f"{kind}_{name}": (tensor[:, 0] * 255).round().byte().numpy() for name, tensor in batch.items()}
    raw = read_grey(first.path, parse_outside(config.outside)).image
    write_npz(config.run_folder / "samples.npz", raw=raw, image=first.image, mask=first.mask,
              percentiles=np.array(config.percentiles), **views)


def note_on_blocks(config: Config, data: Data) -> list[str]:
    """Return a line where most particles are too small for a network that works on block means."""
    if config.downsample == 1:
        return []
    diameters = [component_diameters(s.mask) for s in data.train]
    diameters = np.concatenate(diameters)
    if not len(diameters) or np.median(diameters) >= LEAST_PARTICLE * config.downsample:
        return []
    fitting = max(1, int(np.median(diameters) / LEAST_PARTICLE))
    return [f"half of the labelled particles are less than {np.median(diameters):.1f} px across, which is "
            f"{np.median(diameters) / config.downsample:.1f} blocks of --downsample {config.downsample}: --downsample "
            f"{fitting} shows them better"]


def component_diameters(mask: np.ndarray) -> np.ndarray:
    """Return the diameters of the circles as large as the connected components of a mask [px], (N,)."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel())[1:]
    return np.sqrt(4 * areas / np.pi)


def verify(folder: Path) -> int:
    """Say whether data, code, weights and versions at hand are those of a run: 0, or 1 with a line for each difference.
    """
    config = stored_config(folder / "config.json")
    weights = {path.name: path for path in (Path("checkpoints") / config.run).glob("best_*.safetensors")}
    lines = differences(folder, choose_device(config.device), used_files(config.data, config.split,
                                                                       config.max_unlabelled), weights,
                        config.precision)
    print("\n".join(map(one_line, lines)) or f"{folder}: data, code, weights and versions are those of the run")
    return int(bool(lines))


def evaluate_run(config: Config, data: Data) -> dict:
    """Tables of every trained method on the test slices; see `evaluate.evaluate_models` for the files and result."""
    if not data.test:
        print("no test slice: nothing can be said about accuracy; label more slices", file=sys.stderr)
    device = choose_device(config.device)
    trained = [name for phase in read_phases(config.run_folder).values() for name in phase["best"]]
    models = {method: UNet.from_weights(load_checkpoint(config.checkpoint(name))[0]).to(device)
              for method, name in method_names(config.method).items() if name in trained}
    return evaluate_models(models, data.test, data.train, config.run_folder, CONTROL, device, config.patch_size,
                           config.overlap, config.threshold, config.tta, config.precision)


def main() -> int | None:
    """Train, evaluate, and say where the results are; or `--verify` a run."""
    parser = Parser(description="Train a U-Net on few labelled slices, then also on the others.")
    parser.add_argument("--profile", default="auto", choices=["auto", "full", "cpu"],
                        help="full: the recipe; cpu: a small version; auto: full with CUDA, else cpu")
    parser.add_argument("--resume", action="store_true", help="go on with a run; finished phases are kept")
    parser.add_argument("--verify", type=Path, metavar="runs/NAME", help="only say whether data, code, weights and "
                        "versions at hand are those of that run: 0, or 1 with a line for each difference")
    for f in dataclasses.fields(Config):
        parser.add_argument(f"--{f.name.replace('_', '-')}", metavar="VALUE", default=argparse.SUPPRESS,
                            help=f"{f.metadata['help']} (default: {f.default})")
    given = vars(parser.parse_args())
    if folder := given.pop("verify"):
        if extra := [name for name, value in given.items() if value not in (False, "auto")]:
            raise InputError(f"--{extra[0].replace('_', '-')}: has no meaning with --verify")
        return verify(folder)
    changes, resume = profile(given.pop("profile"), choose_device(given.get("device", "auto"))), given.pop("resume")
    config = make_config(**changes | {name: parse_value(name, text) for name, text in given.items()})
    return run(config, resume, describe_profile(config, changes))


def launch(config: Config, processes: int, resume: bool = False) -> None:
    """Train with several processes, one per GPU, from a notebook: `launch(config, 4)`.

    The processes are forks of the notebook's kernel, which must not have used a GPU itself: a fork cannot.

    Raises
    ------
    InputError
        When this process has used CUDA already.
    """
    if torch.cuda.is_initialized():
        raise InputError("launch: this notebook has used the GPU already, and its processes could not; restart the "
                         "kernel, and launch before anything else chooses a device")
    from accelerate import notebook_launcher
    notebook_launcher(run, (config, resume), num_processes=processes)


def run(config: Config, resume: bool = False, remark: str = "") -> None:
    """All of a run: every phase, the tables, what to annotate next."""
    from report import write_report  # which imports what draws figures: a second that a typing error need not wait for
    team = join_team(choose_device(config.device))
    if team.leads and remark:
        print(remark)
    data = prepare(config, resume)
    if team.leads:
        print(f"{config.data}: {sum_up(data)}")
    train_supervised(config, data)
    if config.method != "supervised":
        continue_supervised(config, data)
        train_semi_supervised(config, data)
    leave_team(team)
    if not team.leads:
        return
    for method, scores in evaluate_run(config, data)["full"]["methods"].items():
        print(f"{method:28s} full-image test Dice {scores['dice']['mean']:.4f}")
    if config.method != "supervised" and without_label(data):
        print(f"annotate next: {rank_unlabelled(config, data)['file'][0]} (ranking: annotate_next.csv)")
    try:
        page = write_report(config.run_folder)
    except (OSError, MemoryError, ValueError) as error:         # all results are on disk, and stay
        print(f"{config.run_folder}: its figures and page could not be drawn ({one_line(str(error))}); python "
              f"report.py {config.run_folder} tries again", file=sys.stderr)
        print(f"results: {config.run_folder}")
        return
    print(f"results: {config.run_folder}; all of them on one page: {page}")


if __name__ == "__main__":
    run_command_line(main)
