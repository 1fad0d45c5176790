"""Training: supervised U-Net, its continuation for as many steps, semi-supervision by teacher and student; then tables.

What a step is stands in `mean_teacher`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
from mean_teacher import NotFinite, build_models, largest_batch, make_optimizer, make_scheduler, train_epoch
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.command_line import Parser, Terminated, held_back, run_command_line
from runtime.devices import choose_device, is_out_of_memory
from runtime.files import read_json, remove_leftovers, write_json, write_npz
from runtime.loaders import choose_workers, drawn, make_loader, seed_of
from runtime.messages import PROGRESS_SECONDS, InputError, one_line, quiet_bar
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

LOGS = {"supervised": "sup_metrics.csv", "continued": "continued_metrics.csv", "mean_teacher": "ssl_metrics.csv"}
CONTROL = "supervised continued"
LABELS = {"mean_teacher": "Mean Teacher", "cutmix_mt": "CutMix Mean Teacher", "fixmatch": "FixMatch",
          "unimatch": "UniMatch", "best": "best"}


def method_names(method: str) -> dict[str, str]:
    """Rows of the tables, in their order: name of the trained model → name of its checkpoint."""
    names = {"supervised": "supervised", CONTROL: "continued"}
    if method in LABELS:
        names |= {f"{LABELS[method]} ({kind})": f"ssl_{kind}" for kind in ("student", "teacher")}
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

    Best weights are chosen by validation Dice; the last epoch's where no validation slice has foreground. They are
    written, and a state to go on from, after every epoch, or as often as `progress.SAVE_SHARE` of the time allows; in a
    long one every `SAVE_SECONDS`. Ctrl-C and SIGTERM wait for the step in hand and for the state.
    """
    label = LABELS[config.method] if ssl else CONTROL if phase == "continued" else phase
    if phase in (done_before := read_phases(config.run_folder)):
        for name in done_before[phase]["best"]:
            load_checkpoint(config.checkpoint(name))  # an error here is better than a table without this method
        print(f"{label}: finished before, kept", file=sys.stderr)
        forget_state(state_path(config, phase))       # which a process left that was killed just then
        return
    team = join_team(device := choose_device(config.device))
    seed_everything(config.seed)
    student, average = build_models(config, device, start, ssl)
    models = {"ssl_student": student, "ssl_teacher": average} if ssl else {phase: average or student}
    optimizer = make_optimizer(config, student)
    steps = config.steps_per_epoch or max(1, len(data.train) // config.batch_size)
    scheduler = make_scheduler(config, optimizer, epochs * steps)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    progress = Progress(config, phase, config.run_folder / LOGS[phase],
                        {**models, "student": student, "optimizer": optimizer, "scheduler": scheduler},
                        settings, training_window(data.train))
    progress.restore(device, team.leads, team.wait)
    network, stopped = team.wrap(student), False
    with held_back() as came, tqdm(
            range(progress.epoch(steps), epochs), label, epochs, initial=progress.epoch(steps), unit="epoch",
            mininterval=PROGRESS_SECONDS, file=sys.stderr if sys.stderr.isatty() else sys.stdout,
            disable=not team.leads) as bar, data_of_phase(
            config, data, phase, progress.step, device, team, ssl) as (labelled, unlabelled):
        for epoch in bar:
            lam = config.consistency_weight * cosine_ramp_up(epoch, config.ramp_epochs) if ssl else 0.0
            if not progress.losses:
                progress.rate = optimizer.param_groups[0]["lr"]
            row, short = None, False
            try:
                row = train_epoch(
                    config, network, average, optimizer, scheduler, range(progress.step, (epoch + 1) * steps), labelled,
                    unlabelled, lam, start is None, team.rank, progress.losses,
                    lambda first=epoch * steps: team.leads and (progress.within_epoch(first) or bool(came)))
            except NotFinite as error:
                record_nonfinite_steps(config, data, phase, [error.number])
                raise nonfinite_error(config, phase, error.number) from None
            except (RuntimeError, MemoryError) as error:
                if not (short := is_out_of_memory(error)) and not (came and team.leads):    # else others are gone too
                    raise
            if short:                                                               # here what the step held is free
                raise out_of_memory(config, student, average if ssl else None, team)
            progress.step = epoch * steps + len(progress.losses)
            if row is not None:
                end_epoch(config, data, team, models, scheduler, progress, epoch, epochs, team.mean(row))
                bar.set_postfix_str(progress.shown, refresh=False)
            if stopped := row is None or team.tell(bool(came)):
                break
            if team.leads:
                progress.save_if_due()
        if team.leads and progress.step < epochs * steps:
            progress.save()
        elif team.leads:
            progress.finish(device, {"epochs": epochs, "steps": epochs * steps, "label": label, "processes": team.size,
                                     "parameters": sum(p.numel() for p in student.parameters())})
        forget_what_fitted()                        # beside optimizer and gradients; now their memory is free again
        if not stopped:
            team.wait()
        elif not came:                                                              # the first of the team was told to
            raise Terminated


def record_nonfinite_steps(config: Config, data: Data, phase: str, steps: list[int]) -> None:
    """Add to `nonfinite.json` of the run which slices were in the batches of these steps."""
    streams = {"labelled": (data.train, phase)}
    if phase == "mean_teacher":
        streams["unlabelled"] = data.unlabelled, f"{phase} unlabelled"

    path = nonfinite_file(config)
    recorded = read_json(path) if path.exists() else {}
    for step in steps:
        seen = {}
        for kind, (slices, name) in streams.items():
            indices = drawn(len(slices), config.batch_size, seed_of(config.seed, name), step)
            seen[kind] = [str(slices[i].path) for i in indices]
        recorded[f"{phase}, step {step + 1}"] = seen
    write_json(path, recorded)


def nonfinite_error(config: Config, phase: str, step: int) -> InputError:
    """Return the error that says in which step of a phase numbers ended, and where its slices are named."""
    return InputError(f"{phase}: loss, gradient or weights are not a number any more in step {step + 1}; the "
                      f"slices it saw are in {nonfinite_file(config)}: look at them, lower --lr, or --nonfinite skip")


def nonfinite_file(config: Config) -> Path:
    """Return the file in which a run names the slices of steps whose loss was not a number."""
    return config.run_folder / "nonfinite.json"


def all_finite(models: dict[str, UNet]) -> bool:
    """Return whether all weights are numbers; asked of the device once, not once for each tensor."""
    finite = [tensor.isfinite().all() for model in models.values() for tensor in model.state_dict().values()]
    return bool(torch.stack(finite).all())


def end_epoch(config: Config, data: Data, team: Team, models: dict[str, UNet], scheduler, progress: Progress,
              epoch: int, epochs: int, row: dict) -> None:
    """Validate where it is due, keep the best weights, write the row; in every process of a team."""
    due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == epochs
    if due and not all_finite(models):
        record_nonfinite_steps(config, data, progress.phase, [progress.step - 1])
        raise nonfinite_error(config, progress.phase, progress.step - 1)
    skipped = int(row.pop("skipped"))
    if skipped:
        bad = [i for i, found in enumerate(progress.losses, epoch * len(progress.losses)) if not found.isfinite().all()]
        record_nonfinite_steps(config, data, progress.phase, bad)
    progress.losses.clear()
    scores = team.tell({name: validate(
        model, data.val if due and team.leads else [], choose_device(config.device), config.patch_size,
        config.threshold, config.overlap if config.selection == "full" else None, config.precision)
        for name, model in models.items()})
    current = scores[next(iter(models))]
    row = {"epoch": epoch + 1, **row} | {f"val_{k}": value for k, value in current.items()} | {
        f"teacher_val_{k}": value for k, value in scores.get("ssl_teacher", {}).items()}
    row |= {"lr": progress.rate, "skipped": skipped}
    if due:
        if data.can_choose and config.schedule == "plateau":
            scheduler.step(current["dice"])
        progress.keep_best(models, scores, epoch + 1, data.can_choose)
    if team.leads:
        progress.end_epoch(row)


def out_of_memory(config: Config, student: UNet, teacher: UNet | None, team: Team) -> InputError:
    """The error that says what would fit; tried out, which takes some seconds."""
    least = team.size * (2 if config.cutmix_p else 1)
    fits = team.size * largest_batch(config, student, teacher, config.batch_size // team.size)
    return InputError(f"--batch-size {config.batch_size}: out of memory; " + (
        f"{fits} fits" if fits >= least else f"not even {least} fits: smaller --patch-size or --base-channels, larger "
        "--downsample") + ", in a new --run")


@contextmanager
def data_of_phase(config: Config, data: Data, phase: str, start: int, device: torch.device, team: Team,
                  ssl: bool) -> Iterator[tuple[Iterator[dict], Iterator[dict] | None]]:
    """Labelled and, where `ssl`, unlabelled batches from number `start` on; what makes them ends with the block."""
    # closed where signals wait (`held_back`): what is raised while a loader's processes end is lost in a destructor
    with closing(batches(config, make_dataset(config, data.train, weak=False), phase, start, device, team)) as labelled:
        if not ssl:
            yield labelled, None
            return
        views = make_dataset(config, data.unlabelled, predict_guides(config, data, device), config.strong_views)
        with closing(batches(config, views, f"{phase} unlabelled", start, device, team)) as unlabelled:
            yield labelled, unlabelled


def make_dataset(config: Config, slices: list, guides: list | None = None, strong_views: int = 1,
                 weak: bool = True) -> Views:
    """Weak, where asked for, and strong views of slices with these settings."""
    return Views(slices, config.patch_size, config.foreground_crop, guides, strong_views, config.subset(GEOMETRY),
                 config.subset(INTENSITY), config.downsample, weak)


def batches(config: Config, views: Views, name: str, start: int, device: torch.device, team: Team) -> Iterator[dict]:
    """Endless batches from number `start` on, of each this process's part; `name` sets their order and views apart from
    those of other phases.
    """
    return make_loader(views, config.batch_size, seed_of(config.seed, name), start,
                       choose_workers(config.num_workers, device), device, team.rank, team.size)


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
        train_mean_teacher(config, data)
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
