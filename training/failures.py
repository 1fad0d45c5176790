"""What ends a phase early: losses that are NaN or infinite, and memory that does not suffice."""

from pathlib import Path

import torch

from config import Config
from mean_teacher import Training, step_losses, trained_network
from model_unet import UNet
from runtime.devices import autocast, is_out_of_memory
from runtime.files import read_json, write_json
from runtime.loaders import drawn, seed_of
from runtime.messages import InputError
from training.phases import Job


def record_nonfinite_steps(job: Job, steps: list[int]) -> None:
    """Add to `nonfinite.json` of the run which slices were in the batches of these steps."""
    path = nonfinite_file(job.config)
    recorded = read_json(path) if path.exists() else {}
    for step in steps:
        recorded[f"{job.phase.name}, step {step + 1}"] = files_of_step(job, step)
    write_json(path, recorded)


def files_of_step(job: Job, step: int) -> dict[str, list[str]]:
    """Return the files of the slices in the batches of a step, labelled and unlabelled."""
    config, phase = job.config, job.phase
    streams = {"labelled": (job.data.train, phase.name)}
    if phase.is_semi_supervised:
        streams["unlabelled"] = (job.data.unlabelled, phase.unlabelled_stream)

    files = {}
    for kind, (slices, stream) in streams.items():
        indices = drawn(len(slices), config.batch_size, seed_of(config.seed, stream), step)
        files[kind] = [str(slices[i].path) for i in indices]
    return files


def nonfinite_error(job: Job, step: int) -> InputError:
    """Return the error that says in which step numbers ended, and where its slices are named."""
    return InputError(
        f"{job.phase.name}: loss, gradient or weights are not a number any more in step {step + 1}; "
        f"the slices it saw are in {nonfinite_file(job.config)}: look at them, lower --lr, or "
        "--nonfinite skip"
    )


def nonfinite_file(config: Config) -> Path:
    """Return the file in which a run names the slices of steps whose loss was not a number."""
    return config.run_folder / "nonfinite.json"


def out_of_memory_error(job: Job, training: Training) -> InputError:
    """Return the error that says which batch would fit into memory.

    That is tried out, which takes some seconds.
    """
    config, team = job.config, job.team
    least = team.size * (2 if config.cutmix_p else 1)
    part = config.batch_size // team.size
    network = trained_network(training)
    fits = team.size * largest_batch(config, network, training.teacher, part)

    cure = f"{fits} fits"
    if fits < least:
        cure = (
            f"not even {least} fits: smaller --patch-size or --base-channels, larger --downsample"
        )

    return InputError(f"--batch-size {config.batch_size}: out of memory; {cure}, in a new --run")


# --- what fits into memory ------------------------------------------------------------------------


def largest_batch(
    config: Config, student: torch.nn.Module, teacher: UNet | None, fails: int
) -> int:
    """Return the largest batch, below one that `fails`, of which a step fits into the memory of the device.

    It is found by bisection, and 0 where not even a single patch fits.
    """
    fits = 0
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if step_fits(config, student, teacher, middle):
            fits = middle
        else:
            fails = middle

    return fits


def step_fits(config: Config, student: torch.nn.Module, teacher: UNet | None, batch: int) -> bool:
    """Return whether a step of this batch size, forward and backward, finds enough memory.

    It is tried on grey patches.
    """
    masks = getattr(student, "outputs", 1)
    side = config.patch_size // config.downsample
    patch = torch.full((batch, 1, side, side), 0.5, device=next(student.parameters()).device)
    labelled = {"strong": patch, "mask": patch.round().expand(-1, masks, -1, -1)}
    unlabelled = None
    if teacher is not None:
        unlabelled = {"weak": patch, "strong": patch.expand(-1, config.strong_views, -1, -1)}

    try:
        with autocast(patch.device, config.precision):
            supervised, consistency = step_losses(
                config, student, labelled, teacher, unlabelled, torch.Generator()
            )
        (supervised + consistency).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        student.zero_grad(set_to_none=True)
        if patch.is_cuda:
            torch.cuda.empty_cache()

    return True
