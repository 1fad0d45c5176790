"""One training step for every method, an epoch of them, and the optimizer with its schedule.

Mean Teacher, CutMix, FixMatch and UniMatch differ in settings alone (`config.PRESETS`).
"""

from collections.abc import Iterator

import numpy as np
import torch

from config import Config
from losses import bce_dice_loss, consistency_loss, cutmix_boxes, drop_channels, mix
from model_unet import UNet, ema_update
from utils import autocast


def step_losses(config: Config, student: UNet, labelled: dict, teacher: UNet | None = None,
                unlabelled: dict | None = None, generator: torch.Generator | None = None,
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """Supervised and consistency loss of one step (0 without a teacher); only the student gets gradients.

    All views pass the student as one batch: InstanceNorm treats images singly. Boxes and dropped channels are
    drawn from `generator`. With feature dropout its stream weighs as much as all strong views together (UniMatch,
    arXiv:2208.09910).
    """
    if teacher is None:
        loss = bce_dice_loss(student(labelled["strong"]), labelled["mask"], config.bce_weight)
        return loss, torch.zeros_like(loss)
    weak = unlabelled["weak"]                                                       # (B, 1, P, P)
    with torch.no_grad():
        target = teacher(weak).float().sigmoid()                                    # (B, 1, P, P)
    inputs, targets = [labelled["strong"]], []
    for strong in unlabelled["strong"].split(1, dim=1):                             # V × (B, 1, P, P)
        boxes = cutmix_boxes(len(weak), weak.shape[-1], config.cutmix_p, generator, weak.device)
        inputs.append(mix(strong, boxes))
        targets.append(mix(target, boxes))

    def consistency(logits: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return consistency_loss(logits, goal, config.consistency, config.confidence, config.hard_labels)

    def perturb(features: list[torch.Tensor]) -> list[torch.Tensor]:
        dropped = drop_channels([f[-len(weak):] for f in features], config.feature_dropout, generator)
        return [torch.cat([f[:-len(weak)], d]) for f, d in zip(features, dropped, strict=True)]

    all_views = torch.cat([*inputs, *[weak] * bool(config.feature_dropout)])        # (B + V·B or B + V·B + B, 1, P, P)
    logits = student(all_views, perturb if config.feature_dropout else None)
    supervised = bce_dice_loss(logits[:len(inputs[0])], labelled["mask"], config.bce_weight)
    unsupervised = consistency(logits[len(inputs[0]):][:len(weak) * len(targets)], torch.cat(targets))
    if config.feature_dropout:
        unsupervised = 0.5 * unsupervised + 0.5 * consistency(logits[-len(weak):], target)
    return supervised, unsupervised


def train_epoch(config: Config, student: UNet, average: UNet | None, optimizer: torch.optim.Optimizer, scheduler,
                numbers: range, labelled: Iterator, unlabelled: Iterator | None, lam: float, warm_up: bool,
                rank: int = 0) -> dict[str, float]:
    """One optimizer step for each of `numbers`, counted over the phase; the mean losses.

    `average` is the moving average of the weights; with `unlabelled` batches it is the teacher. Its warm-up keeps
    random first weights from lasting: α is at most (1 + n) / (10 + n) in step n. Of several processes each draws boxes
    and dropped channels of its own, from `rank`.
    """
    student.train()
    alpha = config.weight_average if unlabelled is None else config.ema_alpha
    totals = torch.zeros(2, device=next(student.parameters()).device)  # read once: reading waits for the device
    for number in numbers:
        entropy = [config.seed, *b"step", number, *[rank] * (rank > 0)]
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> 1))
        with autocast(totals.device, config.precision):
            supervised, consistency = step_losses(config, student, next(labelled), average if unlabelled else None,
                                                  next(unlabelled) if unlabelled else None, generator)
        optimizer.zero_grad(set_to_none=True)
        (supervised + lam * consistency).backward()
        optimizer.step()
        if config.schedule != "plateau":
            scheduler.step()
        if average is not None:
            trained = getattr(student, "module", student)                           # inside what averages gradients
            ema_update(average, trained, min(alpha, (1 + number) / (10 + number)) if warm_up else alpha)
        totals += torch.stack([supervised.detach(), consistency.detach()])
    loss_sup, loss_consistency = (totals / len(numbers)).tolist()
    return {"loss_sup": loss_sup} | ({"loss_consistency": loss_consistency, "lam": lam} if unlabelled else {})


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
