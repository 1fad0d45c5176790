"""Student and teacher, one training step for every method, an epoch of them, and the optimizer with its schedule.

Mean Teacher, CutMix, FixMatch and UniMatch differ in settings alone (`config.PRESETS`).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from config import Config
from losses import (
    bce_dice_loss,
    consistency_loss,
    draw_boxes,
    draw_kept_channels,
    fill_boxes,
    mix,
    scale_channels,
)
from model_unet import CHANNELS, UNet, ema_update, freeze
from runtime.checkpoints import load_checkpoint
from runtime.devices import autocast, is_out_of_memory, send
from runtime.messages import InputError, WorkerDied


class NotFinite(ArithmeticError):
    """A loss or gradient is not a number; `number` is that of the step."""

    def __init__(self, number: int):
        super().__init__(f"step {number}")
        self.number = number


def build_models(config: Config, device: torch.device, start: str | None, ssl: bool) -> tuple[UNet, UNet | None]:
    """Network to train, from the checkpoint `start` or random weights, and its moving average where there is one."""
    student = UNet(config.base_channels, config.downsample).to(device)
    if start is not None:
        path = config.checkpoint(start)
        try:
            student.load_state_dict(load_checkpoint(path)[0])
        except RuntimeError:
            raise InputError(f"{path}: is not of width {config.base_channels} and --downsample {config.downsample}; "
                             "was it put there by hand? choose another --run") from None
    average = copy.deepcopy(student).eval().requires_grad_(False) if ssl or config.weight_average else None
    if ssl:
        freeze(student, config.freeze)
    return student, average


def step_losses(config: Config, student: UNet, labelled: dict, teacher: UNet | None = None,
                unlabelled: dict | None = None, generator: torch.Generator | None = None,
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """Supervised and consistency loss of one step (0 without a teacher); only the student gets gradients.

    All is at the network's resolution: sides P of `patch_size / downsample` pixels. All views pass the student as one
    batch: InstanceNorm treats images singly. Boxes and dropped channels are drawn from `generator`. With feature
    dropout its stream weighs as much as all strong views together (UniMatch, arXiv:2208.09910).
    """
    if teacher is None:
        logits = student(labelled["strong"], reduced=True)
        loss = bce_dice_loss(logits, labelled["mask"], config.bce_weight, labelled.get("inside"))
        return loss, torch.zeros_like(loss)

    weak = unlabelled["weak"]                                                       # (B, 1, P, P)
    strong_views = unlabelled["strong"].split(1, dim=1)                             # V × (B, 1, P, P)
    count, size = len(weak), weak.shape[-1]

    # What is random is drawn before the teacher is asked, so that it travels to the device while that computes.
    boxes = []
    if config.cutmix_p:
        boxes = [send(draw_boxes(count, size, config.cutmix_p, generator), weak.device) for _ in strong_views]
    kept_channels = []
    if config.feature_dropout:
        channels = tuple(config.base_channels * multiple for multiple in CHANNELS)
        kept_channels = [send(factors, weak.device) for factors in
                         draw_kept_channels(count, channels, config.feature_dropout, generator)]

    with torch.no_grad():
        pseudo_label = teacher(weak, reduced=True).float().sigmoid()                # (B, 1, P, P)

    # Some unlabelled slices do not show the sample everywhere: then batches say where they do.
    inside = unlabelled.get("inside")                                               # (B, 1, P, P), or None

    inputs, targets, insides = [labelled["strong"]], [], []
    for i, strong in enumerate(strong_views):
        target, counted = pseudo_label, inside
        if boxes:
            filled = fill_boxes(boxes[i], size)
            strong, target = mix(strong, filled), mix(target, filled)
            counted = None if inside is None else mix(inside, filled)
        inputs.append(strong)
        targets.append(target)
        insides.append(counted)

    def perturb(features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Drop channels of the last B images, which are the weak views."""
        dropped = scale_channels([f[-count:] for f in features], kept_channels)
        return [torch.cat([f[:-count], d]) for f, d in zip(features, dropped, strict=True)]

    def consistency(logits: torch.Tensor, goal: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
        return consistency_loss(logits, goal, config.consistency, config.confidence, config.hard_labels, counted)

    if config.feature_dropout:
        logits = student(torch.cat([*inputs, weak]), perturb, reduced=True)         # (B + V·B + B, 1, P, P)
    else:
        logits = student(torch.cat(inputs), reduced=True)                           # (B + V·B, 1, P, P)

    first, last = len(labelled["strong"]), len(labelled["strong"]) + count * len(targets)
    supervised = bce_dice_loss(logits[:first], labelled["mask"], config.bce_weight, labelled.get("inside"))
    unsupervised = consistency(logits[first:last], torch.cat(targets), None if inside is None else torch.cat(insides))
    if config.feature_dropout:
        unsupervised = 0.5 * unsupervised + 0.5 * consistency(logits[last:], pseudo_label, inside)
    return supervised, unsupervised


@contextmanager
def trying_algorithms() -> Iterator[None]:
    """While it is open, cuDNN tries its algorithms for each shape that this process has not met, and keeps the fastest.

    All steps have the same shapes. Predictions have not: windows come in batches of many sizes, each to be tried.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def train_epoch(config: Config, student: UNet, average: UNet | None, optimizer: torch.optim.Optimizer, scheduler,
                numbers: range, labelled: Iterator, unlabelled: Iterator | None, lam: float, warm_up: bool,
                rank: int = 0, losses: list[torch.Tensor] | None = None, stop: Callable[[], bool] = lambda: False,
                ) -> dict[str, float] | None:
    """One optimizer step for each of `numbers`, counted over the phase; the mean losses, None if `stop` said so before.

    `average` is the moving average of the weights; with `unlabelled` batches it is the teacher. Its warm-up keeps
    random first weights from lasting: α is at most (1 + n) / (10 + n) in step n. Of several processes each draws boxes
    and dropped channels of its own, from `rank`.

    Each step adds both losses and the norm of the gradient, a tensor of three, to `losses`, which may hold those of
    earlier steps of this epoch. They are read at the end: reading waits for the device.

    Raises
    ------
    NotFinite
        At the end of the epoch, for the first step with a loss or gradient that is not a number; where those are
        skipped, for an epoch of nothing else.
    """
    student.train()
    weights = [p for p in student.parameters() if p.requires_grad]
    alpha = config.weight_average if unlabelled is None else config.ema_alpha
    losses = [] if losses is None else losses
    first = numbers.start - len(losses)                                             # step of the epoch
    with trying_algorithms():
        for number in numbers:
            try:
                batch, other = next(labelled), next(unlabelled) if unlabelled else None
            except WorkerDied:
                if stop():                                                          # it was told to stop too
                    break
                raise

            entropy = [config.seed, *b"step", number, *[rank] * (rank > 0)]
            seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(seed >> 1))
            with autocast(weights[0].device, config.precision):
                supervised, consistency = step_losses(config, student, batch, average if unlabelled else None, other,
                                                      generator)
            optimizer.zero_grad(set_to_none=True)
            (supervised + lam * consistency).backward()
            norm = get_total_norm([p.grad for p in weights if p.grad is not None])
            losses.append(torch.stack([supervised.detach(), consistency.detach(), norm]))

            if config.nonfinite == "stop" or losses[-1].isfinite().all():
                optimizer.step()
                if average is not None:
                    trained = getattr(student, "module", student)                   # inside what averages gradients
                    ema_update(average, trained, min(alpha, (1 + number) / (10 + number)) if warm_up else alpha)
            if config.schedule != "plateau":
                scheduler.step()
            if stop():
                break

    if not losses:
        return None
    found = torch.stack(losses).cpu().double()                                      # (steps, 3)
    finite = found.isfinite().all(1)
    if not finite.all() and (config.nonfinite == "stop" or not finite.any()):
        raise NotFinite(first + int(finite.logical_not().nonzero()[0]))
    if first + len(losses) < numbers.stop:
        return None
    loss_sup, loss_consistency, _ = found[finite].mean(0).tolist()
    row = {"loss_sup": loss_sup} | ({"loss_consistency": loss_consistency, "lam": lam} if unlabelled else {})
    return row | {"skipped": len(found) - int(finite.sum())}


# --- what fits ------------------------------------------------------------------------------------------------

def largest_batch(config: Config, student: UNet, teacher: UNet | None, fails: int) -> int:
    """The largest batch, below one that `fails`, of which a step fits into the memory of the device; 0 for none."""
    fits = 0
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if step_fits(config, student, teacher, middle) else (fits, middle)
    return fits


def step_fits(config: Config, student: UNet, teacher: UNet | None, batch: int) -> bool:
    """Whether a step of this batch size, forward and backward, finds enough memory; tried on grey patches."""
    side = config.patch_size // config.downsample
    patch = torch.full((batch, 1, side, side), 0.5, device=next(student.parameters()).device)
    labelled = {"strong": patch, "mask": patch.round()}
    unlabelled = teacher and {"weak": patch, "strong": patch.expand(-1, config.strong_views, -1, -1)}
    try:
        with autocast(patch.device, config.precision):
            losses = step_losses(config, student, labelled, teacher, unlabelled, torch.Generator())
        sum(losses).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        student.zero_grad(set_to_none=True)
        if patch.is_cuda:
            torch.cuda.empty_cache()
    return True


# --- optimizer ------------------------------------------------------------------------------------------------

def make_optimizer(config: Config, model: UNet) -> torch.optim.Optimizer:
    """AdamW over what is not frozen, all weights in one kernel where the device has it."""
    weights = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(weights, config.lr, weight_decay=config.weight_decay,
                             fused=weights[0].device.type in ("cpu", "cuda"))


def make_scheduler(config: Config, optimizer: torch.optim.Optimizer, steps: int):
    """Learning rate over a phase of `steps` steps: plateau steps with each validation, the others with each step.

    One-cycle: Smith & Topin, 2018, arXiv:1708.07120; cosine: Loshchilov & Hutter, 2017, arXiv:1608.03983.
    """
    if config.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience, min_lr=config.min_lr)
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=min(config.min_lr, config.lr))
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps + 1)
