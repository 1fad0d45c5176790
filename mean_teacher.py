"""The training step: student, teacher, pseudo-labels, consistency, and the moving average that makes the teacher.

Mean Teacher (Tarvainen & Valpola, 2017, arXiv:1703.01780): the student learns from labelled slices,
and on unlabelled ones to predict what the teacher predicts, which is the exponential moving average
of the student. In the paper both see views that are perturbed alike, of labelled images too; here
the teacher sees a weak view and the student a strong one (UDA, Xie et al., 2020, arXiv:1904.12848),
of unlabelled crops. CutMix, FixMatch and UniMatch differ from this in settings alone
(`config.PRESETS`).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LRScheduler

from config import Config
from losses import (
    class_probabilities,
    consistency_loss,
    draw_boxes,
    draw_kept_channels,
    fill_boxes,
    mix,
    scale_channels,
    segmentation_loss,
)
from model_unet import CHANNELS, UNet, ema_update, freeze
from runtime.checkpoints import load_checkpoint
from runtime.devices import autocast, send
from runtime.messages import InputError


class NotFinite(ArithmeticError):
    """A loss or gradient is not a number; `number` is that of the step."""

    def __init__(self, number: int):
        super().__init__(f"step {number}")
        self.number = number


# --- what takes part in a step --------------------------------------------------------------------


@dataclass
class Training:
    """What takes part in a step.

    Attributes
    ----------
    config : Config
    student : module
        The network that is trained; in a team inside what averages gradients over processes.
    average : UNet or None
        The moving average of its weights: the teacher, or in a supervised phase the model that is
        kept; None where a recipe has none.
    optimizer : torch.optim.Optimizer
    scheduler : torch.optim.lr_scheduler.LRScheduler
    is_semi_supervised : bool
        Whether the average is the teacher of unlabelled slices.
    warm_up : bool
        Whether training began with random weights, which shall not last in the average.
    rank : int
        Number of this process in its team.
    """

    config: Config
    student: torch.nn.Module
    average: UNet | None
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    is_semi_supervised: bool = False
    warm_up: bool = False
    rank: int = 0

    @property
    def teacher(self) -> UNet | None:
        """The model that labels unlabelled slices; None in a supervised phase."""
        return self.average if self.is_semi_supervised else None


def trained_network(training: Training) -> UNet:
    """Return the student itself: in a team it is inside what averages gradients."""
    network: Any = getattr(training.student, "module", training.student)
    return network


def new_network(config: Config, class_count: int = 2, has_offset: bool = False) -> UNet:
    """Return a network with random weights, as the settings and the classes have it; see `UNet` for `has_offset`."""
    return UNet(
        config.base_channels,
        config.downsample,
        config.unshuffle,
        config.pixel_classifier,
        outputs=1 if class_count == 2 else class_count,
        has_offset=has_offset,
    )


def build_models(
    config: Config,
    device: torch.device,
    start: str | None,
    is_semi_supervised: bool,
    class_count: int = 2,
    has_offset: bool = False,
) -> tuple[UNet, UNet | None]:
    """Return the network to train and its moving average, None where a recipe has none.

    Parameters
    ----------
    start : str or None
        The checkpoint to start from, by name; None for random weights.
    is_semi_supervised : bool
        Whether they are student and teacher of a semi-supervised phase. Then a part of the student
        is frozen.
    class_count : int
        Classes of the masks, with the background.
    has_offset : bool
        Whether slices are painted in part, see `UNet`.

    Raises
    ------
    InputError
        When the checkpoint is of another architecture.
    """
    student = new_network(config, class_count, has_offset).to(device)
    if start is not None:
        path = config.checkpoint(start)
        weights, _ = load_checkpoint(path)
        try:
            student.load_state_dict(weights)
        except RuntimeError:
            raise InputError(
                f"{path}: is not of width {config.base_channels} with --downsample {config.downsample}, "
                f"--unshuffle {config.unshuffle} and --pixel-classifier {config.pixel_classifier}, for "
                f"{class_count} classes; was it put there by hand? choose another --run"
            ) from None

    average = None
    if is_semi_supervised or config.weight_average:
        average = copy.deepcopy(student).eval().requires_grad_(False)
    if is_semi_supervised:
        freeze(student, config.freeze)
    return student, average


# --- losses of a step -----------------------------------------------------------------------------


def step_losses(
    config: Config,
    student: torch.nn.Module,
    labelled: dict,
    teacher: UNet | None = None,
    unlabelled: dict | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the supervised and the consistency loss of one step; the latter is 0 without a teacher.

    Only the student gets gradients. All is at the network's resolution: sides P of `patch_size /
    downsample` pixels.

    Parameters
    ----------
    labelled : dict
        `strong` (B, 1, P, P) in [0, 1], `mask` (B, 1, P, P), and `inside` where slices have
        padding; of several classes, or of slices that are painted in part, `mask` (B, K, P, P) with
        the shares of the classes.
    unlabelled : dict, optional
        `weak` (B, 1, P, P), `strong` (B, V, P, P), V strong views of each crop, and `inside`
        likewise.
    generator : torch.Generator
        From which CutMix boxes and dropped channels are drawn.
    """
    if teacher is None:
        logits = among_painted(student, student(labelled["strong"], reduced=True))
        supervised = segmentation_loss(
            logits, labelled["mask"], config.bce_weight, labelled.get("inside")
        )
        return supervised, torch.zeros_like(supervised)
    if unlabelled is None:
        raise ValueError("a teacher without an unlabelled batch")

    # What is random is drawn, on the CPU, before the device has anything to do.
    perturbation = draw_perturbation(config, unlabelled, generator)
    pseudo_label = predict_pseudo_label(teacher, unlabelled["weak"])  # (B, 1 or K, P, P)
    views = mix_strong_views(unlabelled, pseudo_label, perturbation.boxes)

    # All views pass the student as one batch: InstanceNorm treats images singly.
    images = [labelled["strong"], views.images]  # (B, 1, P, P), (V·B, 1, P, P)
    if config.feature_dropout:
        images.append(unlabelled["weak"])  # (B, 1, P, P)
        drop = perturbation.drop_channels
        logits = student(torch.cat(images), drop, reduced=True)  # (B + V·B + B, 1 or K, P, P)
    else:
        logits = student(torch.cat(images), reduced=True)  # (B + V·B, 1 or K, P, P)

    parts = logits.split([len(part) for part in images])

    supervised = segmentation_loss(
        among_painted(student, parts[0]),
        labelled["mask"],
        config.bce_weight,
        labelled.get("inside"),
    )
    consistency = consistency_with(config, parts[1], views.targets, views.inside)
    if config.feature_dropout:
        # The stream with dropped features weighs as much as all strong views together (UniMatch,
        # arXiv:2208.09910).
        of_features = consistency_with(config, parts[2], pseudo_label, unlabelled.get("inside"))
        consistency = 0.5 * consistency + 0.5 * of_features

    return supervised, consistency


def among_painted(student: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Return the logits that a network has for pixels that somebody painted: without its `class_offset`."""
    offset = getattr(getattr(student, "module", student), "class_offset", None)
    return logits if offset is None else logits - offset[None, :, None, None]


@dataclass(frozen=True)
class Perturbation:
    """What is drawn for the unlabelled batch of a step.

    Attributes
    ----------
    boxes : list of tensors
        Of each strong view the CutMix boxes of its B crops; empty without CutMix.
    kept_channels : list of tensors
        Of each level of the encoder factors (B, C, 1, 1): 0 for dropped channels; empty without
        feature dropout.
    """

    boxes: list[torch.Tensor]
    kept_channels: list[torch.Tensor]

    def drop_channels(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Drop channels of the last B images of a batch, which are the weak views."""
        count = len(self.kept_channels[0])
        dropped = scale_channels([level[-count:] for level in features], self.kept_channels)
        return [
            torch.cat([level[:-count], last]) for level, last in zip(features, dropped, strict=True)
        ]


def draw_perturbation(
    config: Config, unlabelled: dict, generator: torch.Generator | None
) -> Perturbation:
    """Draw the CutMix boxes and the dropped channels of a step, and send them to the device of the batch."""
    weak = unlabelled["weak"]  # (B, 1, P, P)
    strong_views = unlabelled["strong"].shape[1]
    count, size = len(weak), weak.shape[-1]

    boxes = []
    if config.cutmix_p:
        for _ in range(strong_views):
            boxes.append(send(draw_boxes(count, size, config.cutmix_p, generator), weak.device))

    kept_channels = []
    if config.feature_dropout:
        channels = tuple(config.base_channels * multiple for multiple in CHANNELS)
        for factors in draw_kept_channels(count, channels, config.feature_dropout, generator):
            kept_channels.append(send(factors, weak.device))

    return Perturbation(boxes, kept_channels)


def predict_pseudo_label(teacher: UNet, weak: torch.Tensor) -> torch.Tensor:
    """Return the probabilities that the teacher gives the weak views: float32, no gradient.

    (B, 1, P, P), those of foreground; of several classes (B, K, P, P).
    """
    with torch.no_grad():
        return class_probabilities(teacher(weak, reduced=True))


@dataclass(frozen=True)
class StrongViews:
    """All strong views of an unlabelled batch, with what the student shall predict from them.

    Attributes
    ----------
    images : (V·B, 1, P, P) tensor
    targets : (V·B, 1, P, P) or (V·B, K, P, P) tensor
    inside : (V·B, 1, P, P) tensor, or None
        1 where there is sample; None where there is sample everywhere.
    """

    images: torch.Tensor
    targets: torch.Tensor
    inside: torch.Tensor | None


def mix_strong_views(
    unlabelled: dict, pseudo_label: torch.Tensor, boxes: list[torch.Tensor]
) -> StrongViews:
    """Return the strong views, with CutMix boxes filled from other crops of the batch, and their targets likewise.

    CutMix: Yun et al., 2019, arXiv:1905.04899; for consistency: French et al., 2020,
    arXiv:1906.01916.
    """
    inside = unlabelled.get("inside")
    size = pseudo_label.shape[-1]

    # Where nothing is padding, no view has an entry in `insides`.
    images, targets, insides = [], [], []
    for i, view in enumerate(unlabelled["strong"].split(1, dim=1)):  # (B, 1, P, P)
        planes = [view, pseudo_label]
        if inside is not None:
            planes.append(inside)
        if boxes:
            filled = fill_boxes(boxes[i], size)
            planes = [mix(plane, filled) for plane in planes]
        images.append(planes[0])
        targets.append(planes[1])
        insides += planes[2:]

    return StrongViews(
        torch.cat(images), torch.cat(targets), torch.cat(insides) if insides else None
    )


def consistency_with(
    config: Config, logits: torch.Tensor, target: torch.Tensor, inside: torch.Tensor | None
) -> torch.Tensor:
    """Return the consistency loss of a recipe: how far the student is from the pseudo-label."""
    return consistency_loss(
        logits, target, config.consistency, config.confidence, config.hard_labels, inside
    )


# --- a step ---------------------------------------------------------------------------------------


def train_step(
    training: Training,
    number: int,
    labelled: dict,
    unlabelled: dict | None = None,
    weight: float = 0.0,
) -> torch.Tensor:
    """Take an optimizer step, and move the average after the student.

    Parameters
    ----------
    number : int
        Of the step, counted over the phase from 0: what is random depends on it and the seed alone.
    labelled, unlabelled : dict
        Batches, see `step_losses`.
    weight : float
        λ, of the consistency loss.

    Returns
    -------
    (3,) tensor
        Both losses and the norm of the gradient, on the device: reading them waits for it.
    """
    config, student = training.config, training.student
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad]

    generator = generator_of_step(config.seed, number, training.rank)
    with autocast(weights[0].device, config.precision):
        supervised, consistency = step_losses(
            config, student, labelled, training.teacher, unlabelled, generator
        )

    training.optimizer.zero_grad(set_to_none=True)
    (supervised + weight * consistency).backward()
    # The norm is not clipped: it shows a gradient that is NaN while the losses still are numbers.
    norm = get_total_norm([parameter.grad for parameter in weights if parameter.grad is not None])
    losses = torch.stack([supervised.detach(), consistency.detach(), norm])

    # Only a recipe that skips bad steps asks the device whether this is one.
    if config.nonfinite == "stop" or losses.isfinite().all():
        training.optimizer.step()
        update_average(training, number)

    # The schedule counts skipped steps, too: it ends with the phase.
    if config.schedule != "plateau":
        training.scheduler.step()
    return losses


def generator_of_step(seed: int, number: int, rank: int) -> torch.Generator:
    """Return the source of what is random in a step: each process of a team has its own."""
    entropy = [seed, *b"step", number]
    if rank > 0:
        entropy.append(rank)
    drawn = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(drawn >> 1))


def update_average(training: Training, number: int) -> None:
    """Move the moving average towards the student: average ← α · average + (1 − α) · student.

    Where training began with random weights, α is at most (1 + n) / (10 + n) in step n, so that
    these do not last. That warm-up is the one of TensorFlow's ExponentialMovingAverage; the paper
    takes a smaller α in the first epochs instead.
    """
    if training.average is None:
        return

    alpha = training.config.weight_average
    if training.is_semi_supervised:
        alpha = training.config.ema_alpha
    if training.warm_up:
        alpha = min(alpha, (1 + number) / (10 + number))
    ema_update(training.average, trained_network(training), alpha)


@contextmanager
def trying_algorithms() -> Iterator[None]:
    """Let cuDNN try its algorithms for each shape that this process has not met, and keep the fastest.

    All steps have the same shapes. Predictions have not: windows come in batches of many sizes,
    each to be tried.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def mean_losses(losses: list[torch.Tensor], first: int, nonfinite: str) -> dict[str, float]:
    """Return the mean losses of an epoch, and how many steps were left out because a loss was NaN or infinite.

    Parameters
    ----------
    losses : list of (3,) tensors
        As `train_step` returns them.
    first : int
        Number of the first step.
    nonfinite : {"stop", "skip"}
        Whether a loss or gradient that is not a number is an error.

    Returns
    -------
    dict
        `loss_sup`, `loss_consistency`, `skipped`.

    Raises
    ------
    NotFinite
        For the first step that is not a number; where those are skipped, for an epoch of nothing
        else.
    """
    table = torch.stack(losses).cpu().double()  # (steps, 3); waits for the device
    finite = table.isfinite().all(1)
    if not finite.all() and (nonfinite == "stop" or not finite.any()):
        raise NotFinite(first + int(finite.logical_not().nonzero()[0]))

    loss_sup, loss_consistency, _ = table[finite].mean(0).tolist()
    return {
        "loss_sup": loss_sup,
        "loss_consistency": loss_consistency,
        "skipped": len(table) - int(finite.sum()),
    }


# --- optimizer ------------------------------------------------------------------------------------


def make_optimizer(config: Config, model: UNet) -> torch.optim.Optimizer:
    """Return AdamW over the weights that are not frozen, updated in one kernel where the device has it.

    Loshchilov & Hutter, 2019, arXiv:1711.05101.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_fused = weights[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(weights, config.lr, weight_decay=config.weight_decay, fused=is_fused)


def make_scheduler(config: Config, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the schedule of the learning rate over a phase of so many steps.

    Plateau steps with each validation, the others with each step. One-cycle: Smith & Topin, 2018,
    arXiv:1708.07120; cosine: Loshchilov & Hutter, 2017, arXiv:1608.03983.
    """
    if config.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            min_lr=config.min_lr,
        )

    if config.schedule == "cosine":
        lowest = min(config.min_lr, config.lr)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lowest)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps + 1)
