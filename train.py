"""Training: supervised U-Net, its continuation for as many steps, semi-supervision by teacher and student; then tables.

What a step is stands in `mean_teacher`; what a phase is, what its batches are and how a run is
prepared stands in `training`.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from config import (
    AUTO,
    FREE,
    PRESETS,
    Config,
    as_typed,
    describe_profile,
    make_config,
    parse_value,
    profile,
)
from evaluation.annotate_next import rank_unlabelled, without_label
from evaluation.models import Scoring, evaluate_models, validate
from evaluation.recommendation import kept_weights, recommend_model
from losses import cosine_ramp_up
from mean_teacher import (
    NotFinite,
    Training,
    build_models,
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
from runtime.messages import PROGRESS_SECONDS, InputError, WorkerDied, one_line
from runtime.progress import Kept, Progress, state_path
from runtime.run_folder import forget_state, read_phases
from runtime.team import join_team, leave_team
from slices.data_folder import Data, sum_up, training_window
from training.batches import batches_of
from training.class_fractions import (
    describe_fractions,
    fractions_of_run,
    measure_fractions,
    painted_fractions,
    sample_pixels,
    score_alike,
    score_samples,
)
from training.failures import nonfinite_error, out_of_memory_error, record_nonfinite_steps
from training.phases import (
    CONTROL,
    Job,
    Phase,
    control_phase,
    method_names,
    pixel_classifier_phase,
    semi_supervised_phase,
    supervised_phase,
)
from training.pixel_fit import (
    CONFIDENCES,
    classifier_of,
    fitted_network,
    steps_of_fit,
    take_classifier,
    with_confidence,
)
from training.preparation import SCANS_ON_CPU, find_recipe, prepare, verify
from training.recipe import CHOSEN, MINUTES, WEAK, Recipe
from utils import SlidingWindow, forget_what_fitted, seed_everything


def train_pixel_classifier(config: Config, data: Data) -> None:
    """Fit the pixel classifier of the network, in seconds, where it has one.

    `best_pixel_classifier` is a whole network that answers what the classifier says: a method of
    its own. Phases that begin with random weights take their classifier from it.
    """
    if not config.pixel_classifier:
        return

    phase = pixel_classifier_phase()
    device = choose_device(config.device)
    job = Job(config, data, phase, device, join_team(device))
    if job.team.leads and not keep_finished(config, phase):
        progress = open_progress(job, {})
        seed_everything(config.seed)
        fitted = fitted_network(
            config, data.train, device, data.class_count, data.is_painted_in_part
        )
        models = {phase.name: fitted}
        progress.step = steps_of_fit()
        progress.keep_best(models, validate_models(job, models, data.val), 0, data.can_choose)
        finish_phase(job, progress, classifier_of(models[phase.name]))
    job.team.wait()


def train_supervised(config: Config, data: Data) -> None:
    """Train on labelled slices, from random weights; beside a pixel classifier, where the network has one."""
    train_pixel_classifier(config, data)
    train_phase(config, data, supervised_phase(config))


def continue_supervised(config: Config, data: Data) -> None:
    """Train the step-matched control."""
    train_phase(config, data, control_phase(config))


def train_semi_supervised(config: Config, data: Data) -> None:
    """Train student and teacher on all slices."""
    train_phase(config, data, semi_supervised_phase(config))


# --- the training loop ----------------------------------------------------------------------------


def train_phase(config: Config, data: Data, phase: Phase) -> None:  # noqa: C901, PLR0912 - one loop, to be seen whole
    """Train one phase to its end, from its last saved state where there is one; leave a finished phase alone.

    Best weights are chosen by validation Dice; the last epoch's where no validation slice has
    foreground. They are written, and a state to go on from, after every epoch or, where epochs are
    short or long, as often as `runtime.progress` says. Ctrl-C and SIGTERM wait for the step in hand
    and for the state; what they raise comes when all is saved.
    """
    if keep_finished(config, phase):
        return

    # Where training stands: at the beginning, or where the last state was saved.
    device = choose_device(config.device)
    team = join_team(device)
    job = Job(config, data, phase, device, team)
    training, progress = begin_or_go_on(job)

    steps = job.steps_per_epoch
    is_stopped = False
    with (
        held_back() as signals,
        epochs_bar(job, progress.epoch(steps)) as epochs,
        batches_of(job, progress.step) as (labelled, unlabelled),
    ):
        for epoch in epochs:
            weight = consistency_weight(config, phase, epoch)
            end = (epoch + 1) * steps
            if progress.step == epoch * steps:
                progress.rate = training.optimizer.param_groups[0]["lr"]

            training.student.train()
            ran_out_of_memory = False
            try:
                with trying_algorithms():
                    for number in range(progress.step, end):
                        losses = train_step(
                            training, number, next(labelled), next(unlabelled), weight
                        )
                        progress.add(losses)
                        if team.leads:
                            progress.save_if_a_minute_passed()
                        # Other processes of a team end where they wait for this one.
                        if team.leads and signals:
                            break
            except (WorkerDied, RuntimeError, MemoryError) as error:
                ran_out_of_memory = is_out_of_memory(error)
                # Whoever tells this process to stop often ends its workers and the others of its
                # team, too. That is no error.
                if not ran_out_of_memory and not (team.leads and signals):
                    raise
            if ran_out_of_memory:
                # Outside the handler, what the failed step held is free again.
                raise out_of_memory_error(job, training)

            if progress.step < end:
                is_stopped = True
                break
            end_epoch(job, training, progress, epoch)
            epochs.set_postfix_str(progress.shown, refresh=False)
            is_stopped = team.tell(bool(signals))
            if is_stopped:
                break
            if team.leads:
                progress.save_if_due()

        if team.leads:
            save_or_finish(job, training, progress)
        # Validation ran beside an optimizer and gradients; their memory is free now.
        forget_what_fitted()
        # A signal that came is raised again where this block ends.
        if not is_stopped:
            team.wait()
        elif not signals:
            # The first process of the team was told to stop.
            raise Terminated


def keep_finished(config: Config, phase: Phase) -> bool:
    """Return whether a phase was trained to its end before; say so, and check that its weights are there.

    A state that it left is removed.

    Raises
    ------
    InputError
        Where weights are missing or damaged: better here than a table without this method.
    """
    finished = read_phases(config.run_folder)
    if phase.name not in finished:
        return False

    for name in finished[phase.name]["best"]:
        load_checkpoint(config.checkpoint(name))
    print(f"{phase.label}: finished before, kept", file=sys.stderr)

    # A process that was killed just after the phase had ended left its state.
    forget_state(state_path(config, phase.name))
    return True


def begin_or_go_on(job: Job) -> tuple[Training, Progress]:
    """Return where a phase stands: at its beginning, or at its last saved state."""
    seed_everything(job.config.seed)
    training = open_training(job)
    stateful = {
        **kept_models(job.phase, training),
        "student": training.student,
        "optimizer": training.optimizer,
        "scheduler": training.scheduler,
    }
    progress = open_progress(job, stateful)
    progress.restore(job.device, job.team.leads, job.team.wait)
    training.student = job.team.wrap(training.student)
    return training, progress


def open_training(job: Job) -> Training:
    """Return student, average, optimizer and schedule at the beginning of a phase."""
    config, phase = job.config, job.phase
    student, average = build_models(
        config,
        job.device,
        phase.start,
        phase.is_semi_supervised,
        job.data.class_count,
        job.data.is_painted_in_part,
    )
    if begins_with_classifier(job):
        weights, _ = load_checkpoint(config.checkpoint("pixel_classifier"))
        fitted = UNet.from_weights(weights)
        for model in (student, average):
            if model is not None:
                take_classifier(model, fitted)
    fractions = fractions_of_run(config.run_folder)
    if fractions is not None:
        # Supervised weights know it; a phase that begins with random ones is told.
        for model in (student, average):
            if model is not None and model.class_offset is not None:
                model.class_offset.copy_(fractions.offset(model.outputs))
    optimizer = make_optimizer(config, student)
    return Training(
        config=config,
        student=student,
        average=average,
        optimizer=optimizer,
        scheduler=make_scheduler(config, optimizer, phase.epochs * job.steps_per_epoch),
        is_semi_supervised=phase.is_semi_supervised,
        warm_up=phase.start is None,
        rank=job.team.rank,
    )


def begins_with_classifier(job: Job) -> bool:
    """Return whether a phase begins with random weights beside a fitted pixel classifier."""
    return job.config.pixel_classifier and job.phase.start is None


def kept_models(phase: Phase, training: Training) -> dict[str, UNet]:
    """Return the models whose best weights are kept, by the names of their checkpoints."""
    if training.teacher is not None:
        return {"ssl_student": trained_network(training), "ssl_teacher": training.teacher}
    if training.average is not None:
        return {phase.name: training.average}
    return {phase.name: trained_network(training)}


def open_progress(job: Job, stateful: dict[str, Any]) -> Progress:
    """Return how far a phase has come: nowhere, before its state is restored.

    `stateful` is what a state of it holds: models, optimizer, schedule, by name.
    """
    config, phase = job.config, job.phase
    # What is stored with weights is what made them: not what may change from call to call.
    settings = dataclasses.asdict(config)
    for name in FREE:
        del settings[name]
    log = config.run_folder / phase.log
    window = training_window(job.data.train)
    classes = job.data.classes
    record = None if classes is None else classes.by_value().record()
    return Progress(config, Kept(phase.name, log, stateful, settings, window, record))


def epochs_bar(job: Job, first: int) -> tqdm:
    """Return the epochs of a phase from `first` on, with a progress bar in one process of a team."""
    phase = job.phase
    return tqdm(
        range(first, phase.epochs),
        phase.label,
        phase.epochs,
        initial=first,
        unit="epoch",
        leave=False,
        mininterval=PROGRESS_SECONDS,
        file=progress_stream(),
        disable=not job.team.leads,
    )


def progress_stream() -> TextIO:
    """Return where progress is shown: in a terminal standard error, else, as in a notebook, standard output."""
    return sys.stderr if sys.stderr.isatty() else sys.stdout


def consistency_weight(config: Config, phase: Phase, epoch: int) -> float:
    """Return λ, the weight of the consistency loss in an epoch."""
    if not phase.is_semi_supervised:
        return 0.0
    return config.consistency_weight * cosine_ramp_up(epoch, config.ramp_epochs)


def save_or_finish(job: Job, training: Training, progress: Progress) -> None:
    """Save the state of a phase that was stopped, or write what is known about one that has come to its end."""
    phase = job.phase
    steps = phase.epochs * job.steps_per_epoch
    if progress.step < steps:
        # Where a run stops at a loss of NaN, it does so here: from such a state nobody can go on.
        if progress.losses and job.config.nonfinite == "stop":
            mean_losses_of(job, progress)
        progress.save()
        return

    finish_phase(job, progress, trained_network(training))


def finish_phase(job: Job, progress: Progress, network: torch.nn.Module) -> None:
    """Write what is known about a phase that has come to its end, and say what it did."""
    details: dict[str, Any] = {
        "epochs": job.phase.epochs,
        "steps": progress.step,
        "label": job.phase.label,
        "processes": job.team.size,
        "parameters": sum(tensor.numel() for tensor in network.parameters()),
    }
    if measures_fractions(job):
        details["fractions"] = correct_fractions(job, progress)
    progress.finish(job.device, details)
    lines = [describe_finished_phase(job, progress)]
    if "fractions" in details:
        lines.append(describe_fractions(details["fractions"]))
    for line in lines:
        if line:
            tqdm.write(line, file=progress_stream())


def measures_fractions(job: Job) -> bool:
    """Return whether a phase finds out how much each class fills: where paint is partial, and nobody knows yet."""
    return job.data.is_painted_in_part and fractions_of_run(job.config.run_folder) is None


def correct_fractions(job: Job, progress: Progress) -> dict:
    """Let the kept weights know how much each class fills, and score them so; return the record of that.

    What they had before is left out, so that a phase whose end was interrupted may end once more.
    """
    data, config = job.data, job.config
    # From here on nothing is trained: who was killed goes on from this state.
    progress.save()
    (name,) = progress.best
    model = UNet.from_weights(progress.best_weights(name)).to(job.device)
    window = validation_window(config)
    samples = sample_pixels(model, data.val or data.train, job.device, window)
    fractions = measure_fractions(samples, painted_fractions(data.train, data.class_count))
    if model.class_offset is not None:
        model.class_offset.copy_(fractions.offset(model.outputs))

    score = None
    # Only scores that take the same fractions can be compared, and those of all later models are
    # measured with a better network than the pixel classifier.
    if data.can_choose and name != "pixel_classifier":
        score = score_samples(samples, fractions, config.threshold)["dice"]
    progress.replace_best(name, model, score)
    return fractions.record(data.class_names)


def describe_finished_phase(job: Job, progress: Progress) -> str:
    """Return what a finished phase did, in a line: steps, seconds, and which weights are kept."""
    kept = []
    for name, best in progress.best.items():
        weights = f"weights of epoch {best['epoch']}"
        if job.phase.is_semi_supervised:
            weights = f"{name.removeprefix('ssl_')} of epoch {best['epoch']}"
        if not job.phase.epochs:
            weights = "its weights"
        if best["val_dice"] is not None:
            weights += f" (validation Dice {best['val_dice']:.3f})"
        kept.append(weights)

    label = job.phase.label
    return f"{label}: {progress.step} steps in {progress.seconds:.0f} s; kept: {', '.join(kept)}"


# --- the end of an epoch --------------------------------------------------------------------------


def end_epoch(job: Job, training: Training, progress: Progress, epoch: int) -> None:
    """Validate where it is due, keep the best weights, and write the row of an epoch.

    Every process of a team calls this: they average their losses, and learn the scores.
    """
    config, phase, team = job.config, job.phase, job.team
    means = mean_losses_of(job, progress)
    models = kept_models(phase, training)
    is_due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == phase.epochs
    if is_due and not all_finite(models):
        last_step = progress.step - 1
        record_nonfinite_steps(job, [last_step])
        raise nonfinite_error(job, last_step)

    means = team.mean(means)
    skipped = int(means["skipped"])
    if skipped:
        record_nonfinite_steps(job, nonfinite_steps(progress))
    progress.losses.clear()

    if is_due and job.data.can_choose:
        models, scores = choose_candidates(job, progress, models)
    else:
        scores = score_models(job, models, is_due)
    if is_due:
        if job.data.can_choose and config.schedule == "plateau":
            trained = "ssl_student" if phase.is_semi_supervised else phase.name
            training.scheduler.step(scores[trained]["dice"])
        progress.keep_best(models, scores, epoch + 1, job.data.can_choose)

    if team.leads:
        progress.end_epoch(epoch_row(job, progress, epoch, means, scores))


def epoch_row(job: Job, progress: Progress, epoch: int, means: dict, scores: dict) -> dict:
    """Return the row of an epoch in the log: its losses, the validation scores, the learning rate."""
    phase = job.phase
    row = {"epoch": epoch + 1, "loss_sup": means["loss_sup"]}
    if phase.is_semi_supervised:
        row["loss_consistency"] = means["loss_consistency"]
        row["lam"] = consistency_weight(job.config, phase, epoch)

    trained = "ssl_student" if phase.is_semi_supervised else phase.name
    for metric, value in scores[trained].items():
        row[f"val_{metric}"] = value
    for metric, value in scores.get("ssl_teacher", {}).items():
        row[f"teacher_val_{metric}"] = value

    row["lr"] = progress.rate
    row["skipped"] = int(means["skipped"])
    return row


def mean_losses_of(job: Job, progress: Progress) -> dict[str, float]:
    """Return the mean losses of the steps of the epoch in hand so far.

    Raises
    ------
    InputError
        Where a loss or gradient is not a number; `nonfinite.json` names the slices.
    """
    first = progress.step - len(progress.losses)
    try:
        return mean_losses(progress.losses, first, job.config.nonfinite)
    except NotFinite as error:
        record_nonfinite_steps(job, [error.number])
        raise nonfinite_error(job, error.number) from None


def nonfinite_steps(progress: Progress) -> list[int]:
    """Return the steps of the epoch in hand whose losses are not numbers."""
    first = progress.step - len(progress.losses)
    steps = []
    for i, losses in enumerate(progress.losses):
        if not losses.isfinite().all():
            steps.append(first + i)
    return steps


def validate_models(
    job: Job, models: dict[str, UNet], slices: list
) -> dict[str, dict[str, float | None]]:
    """Return the validation scores of each model; None for each metric where there is no slice.

    Networks that learn from partial paint are scored as they are once they are corrected for it, see
    `training.class_fractions`.
    """
    config, data = job.config, job.data
    window = validation_window(config)
    if data.is_painted_in_part and slices:
        painted = painted_fractions(data.train, data.class_count)
        samples = {
            name: sample_pixels(model, slices, job.device, window) for name, model in models.items()
        }
        return score_alike(samples, painted, config.threshold, fractions_of_run(config.run_folder))

    whole_images = config.selection == "full"
    scores = {}
    for name, model in models.items():
        scores[name] = validate(
            model, slices, job.device, window, config.threshold, whole_images, data.class_count
        )
    return scores


def validation_window(config: Config) -> SlidingWindow:
    """Return through which windows validation looks: without the mean over flips and turns, which takes too long."""
    return dataclasses.replace(config.sliding_window, tta=False)


def score_models(
    job: Job, models: dict[str, UNet], is_due: bool = True
) -> dict[str, dict[str, Any]]:
    """Return the validation scores of each model, in every process of a team; None for each where none are due."""
    val = job.data.val if is_due and job.team.leads else []
    return job.team.tell(validate_models(job, models, val))


def choose_candidates(
    job: Job, progress: Progress, models: dict[str, UNet]
) -> tuple[dict[str, UNet], dict[str, dict[str, Any]]]:
    """Return models as they validate best, and their scores.

    While a network is trained from random weights, its pixel classifier speaks softly; how much it
    should count in the end depends on the material, so that one of `CONFIDENCES` is chosen.

    As long as a phase measures how much each class fills, the best weights so far are scored once
    more: a score that takes the fractions of one network cannot be compared with that of another.
    """
    candidates: dict[str, dict[str, UNet]] = {}
    for name, model in models.items():
        candidates[name] = {name: model}
        if begins_with_classifier(job):
            candidates[name] = {
                f"{name}, {confidence}": with_confidence(model, confidence)
                for confidence in CONFIDENCES
            }

    scored = {key: model for of_name in candidates.values() for key, model in of_name.items()}
    so_far = {}
    if measures_fractions(job):
        so_far = {name: f"{name} so far" for name in progress.best}
        if job.team.leads:
            for name, key in so_far.items():
                scored[key] = UNet.from_weights(progress.best_weights(name)).to(job.device)
    scores = score_models(job, scored)
    for name, key in so_far.items():
        progress.rescore_best(name, scores[key]["dice"])

    chosen, of_chosen = {}, {}
    for name, of_name in candidates.items():
        best = max(of_name, key=lambda key: scores[key]["dice"])
        chosen[name], of_chosen[name] = of_name[best], scores[best]
    return chosen, of_chosen


def all_finite(models: dict[str, UNet]) -> bool:
    """Return whether all weights are numbers.

    The device is asked once, not once for each tensor.
    """
    finite = []
    for model in models.values():
        for tensor in model.state_dict().values():
            finite.append(tensor.isfinite().all())
    return bool(torch.stack(finite).all())


# --- a run ----------------------------------------------------------------------------------------


def run(
    config: Config, resume: bool = False, remark: str = "", recipe: Recipe | None = None
) -> None:
    """Do all of a run: every phase, the tables, what to annotate next, the page.

    Parameters
    ----------
    config : Config
    resume : bool
        Whether a run that has been begun is gone on with.
    remark : str
        Printed first.
    recipe : Recipe, optional
        How the settings were chosen, to be kept with them.
    """
    # This module imports what draws figures: a second that a typing error need not wait for.
    from report import write_report

    team = join_team(choose_device(config.device))
    if team.leads and remark:
        print(remark)
    data = prepare(config, resume, recipe)
    if team.leads:
        print(f"{config.data}: {sum_up(data)}")

    train_supervised(config, data)
    if config.is_semi_supervised:
        continue_supervised(config, data)
        train_semi_supervised(config, data)
    leave_team(team)
    if not team.leads:
        return

    tables = evaluate_run(config, data)
    for method, scores in tables["full"]["methods"].items():
        print(f"{method:28s} full-image test Dice {scores['dice']['mean']:.4f}")
    chosen = recommend_model(config.run_folder)
    print(f"recommended: {config.checkpoint(chosen.name)}, {chosen.reason}")
    if config.is_semi_supervised and without_label(data):
        # Without averages over flips and turns, which take eight times as long.
        ranking = rank_unlabelled(dataclasses.replace(config, tta=False), data)
        print(f"annotate next: {ranking['file'][0]} (ranking: annotate_next.csv)")

    try:
        page = write_report(config.run_folder)
    except (OSError, MemoryError, ValueError) as error:
        # All results are on disk, and stay.
        print(
            f"{config.run_folder}: its figures and page could not be drawn ({one_line(str(error))}); "
            f"python report.py {config.run_folder} tries again",
            file=sys.stderr,
        )
        print(f"results: {config.run_folder}")
        return

    print(f"results: {config.run_folder}; all of them on one page: {page}")


def evaluate_run(config: Config, data: Data) -> dict:
    """Write tables of every trained method on the test slices.

    See `evaluation.models.evaluate_models` for the files and the result.
    """
    if not data.test:
        print(
            "no test slice: nothing can be said about accuracy; label more slices", file=sys.stderr
        )

    device = choose_device(config.device)
    trained = kept_weights(config.run_folder)
    models = {}
    for method, name in method_names(config.method).items():
        if name in trained:
            weights, _ = load_checkpoint(config.checkpoint(name))
            models[method] = UNet.from_weights(weights).to(device)

    forest_seed = config.seed if config.forest else None
    scoring = Scoring(config.sliding_window, config.threshold, CONTROL, forest_seed, data.classes)
    return evaluate_models(models, data, config.run_folder, scoring, device)


def launch(
    config: Config, processes: int, resume: bool = False, recipe: Recipe | None = None
) -> None:
    """Train with several processes, one per GPU, from a notebook: `launch(config, 4)`.

    The processes are forks of the notebook's kernel, which must not have used a GPU itself: a fork
    cannot.

    Raises
    ------
    InputError
        When this process has used CUDA already.
    """
    if torch.cuda.is_initialized():
        raise InputError(
            "launch: this notebook has used the GPU already, and its processes could not; restart "
            "the kernel, and launch before anything else chooses a device"
        )

    from accelerate import notebook_launcher

    notebook_launcher(run, (config, resume, "", recipe), num_processes=processes)


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Return the options of the command line: those of the command, and every setting."""
    parser = Parser(
        description="Train a U-Net on few labelled slices, then also on the others.",
        epilog="Switches are true or false. Other methods than auto and the classic recipe, and the "
        "CPU profile, have some other defaults: config.json of a run holds what it was made with.",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="VALUE",
        help=f"--method auto: about how long the run may take ({MINUTES:g})",
    )
    parser.add_argument(
        "--profile",
        choices=["auto", "full", "cpu"],
        help="other methods: full, the recipe; cpu, a small version; auto, full with CUDA, else cpu "
        "(auto)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run; finished phases are kept"
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="runs/NAME",
        help="only say whether data, code, weights and versions at hand are those of that run: 0, or "
        "1 with a line for each difference",
    )
    for field in dataclasses.fields(Config):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=f"{field.metadata['help']} ({describe_default(field)})",
        )

    return parser


def describe_default(field: dataclasses.Field) -> str:
    """Return in words what a setting is where nobody gives it: with `auto`, and in the classic recipe."""
    usual = as_typed(field.default)
    if field.name == "method":
        return f"default: {AUTO}"
    if field.name == "max_unlabelled":
        return f"auto: {SCANS_ON_CPU} on a CPU, else {usual}"
    if field.name in CHOSEN:
        return f"auto: chosen for the slices; classic recipe: {usual}"

    of_auto = as_typed((PRESETS[AUTO] | WEAK).get(field.name, field.default))
    if of_auto != usual:
        return f"auto: {of_auto}; classic recipe: {usual}"
    return f"default: {usual}"


def main() -> int | None:
    """Train, evaluate, and say where the results are; or `--verify` a run."""
    parser = make_parser()
    options = vars(parser.parse_args())
    folder = options.pop("verify")
    if folder is not None:
        refuse_other_options(parser, options)
        return verify(folder)

    resume = options.pop("resume")
    minutes = options.pop("minutes")
    name = options.pop("profile")
    settings = {field: parse_value(field, text) for field, text in options.items()}
    if settings.get("method", AUTO) == AUTO:
        if name is not None:
            raise InputError("--profile: has no meaning with --method auto; --minutes has")
        recipe = shared_recipe(settings, minutes)
        run(recipe.config, resume, recipe.describe(), recipe)
        return None

    if minutes is not None:
        raise InputError("--minutes: has a meaning with --method auto only; others count epochs")
    changes = profile(name or "auto", choose_device(options.get("device", "auto")))
    config = make_config(**{**changes, **settings})
    run(config, resume, describe_profile(config, changes))
    return None


def shared_recipe(settings: dict, minutes: float | None) -> Recipe:
    """Return the recipe for the material: that of the first process, in all of a team."""
    team = join_team(choose_device(settings.get("device", Config.device)))
    recipe = find_recipe(settings, minutes) if team.leads else None
    if team.size > 1 and recipe is not None:
        # Each process reads the slices itself.
        recipe = dataclasses.replace(recipe, data=None)
    return team.tell(recipe)


def refuse_other_options(parser: Parser, options: dict) -> None:
    """Raise `InputError` where other options stand beside `--verify`."""
    for name, value in options.items():
        # Settings of a run have no default here: they are only there where they were given.
        is_setting = name in Config.__dataclass_fields__
        if is_setting or value != parser.get_default(name):
            option = name.replace("_", "-")
            raise InputError(f"--{option}: has no meaning with --verify")


if __name__ == "__main__":
    run_command_line(main)
