"""What `speed.py` lets run against each other: this project, this project without one of its ideas, and the peers.

A contender is made from settings, in a process of its own, and returns a function. Each call of it does one unit of
work, some steps or batches or one image, and returns what must be the same for all contenders that compute the same.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mean_teacher  # noqa: E402 - after the path
import train  # noqa: E402
import utils  # noqa: E402
from benchmarks import peers  # noqa: E402
from benchmarks.peers import Repeat  # noqa: E402
from config import Config  # noqa: E402
from datasets import Views, view_options  # noqa: E402
from model_unet import NormReLU, UNet  # noqa: E402
from runtime import devices  # noqa: E402
from runtime.loaders import PREFETCH, LoaderOptions, make_loader  # noqa: E402
from slices.data_folder import load_data  # noqa: E402
from slices.options import DataOptions, Reading  # noqa: E402
from slices.splits import SplitOptions  # noqa: E402

BATCHES = 8  # of one call, labelled and unlabelled, where no workers load
STEPS = {
    "cuda": 20,
    "cpu": 1,
}  # of one call, likewise: a GPU takes milliseconds, which a single wait would drown
IMAGE = 768  # px, side of the predicted image
NO_SCHEDULE = SimpleNamespace(step=lambda: None)  # the learning rate stays as it is


def per_call(count: int, config: Config) -> int:
    """Of so many batches or steps; more where workers load, who go on while other contenders run."""
    return max(count, 10 * PREFETCH * config.num_workers)


def steps_per_call(config: Config, is_given: bool = False) -> int:
    """Steps of one call; with `given` batches, which no worker loads."""
    steps_at_least = STEPS.get(devices.choose_device(config.device).type, STEPS["cpu"])
    return steps_at_least if is_given else per_call(steps_at_least, config)


# --- this project ---------------------------------------------------------------------------------------------


def our_batches(
    config: Config,
    part: str,
    workers: int,
    device: torch.device,
    weak: bool = True,
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of all labelled or all unlabelled slices of the folder, read once; `weak`: with weak views."""
    split = SplitOptions("blocks", 0.0, 0.0)
    data = load_data(Path(config.data), DataOptions(split, reading=Reading(roi=config.roi)))
    slices = data.train if part == "labelled" else data.unlabelled
    views = Views(slices, view_options(config, has_weak_view=weak))
    seed = [config.seed, *part.encode()]
    return make_loader(views, LoaderOptions(config.batch_size, seed, workers), 0, device)


def batches_of_a_step(
    config: Config, part: str, workers: int, device: torch.device
) -> Iterator[dict]:
    """As `train.py` has them: training on labelled crops takes no weak view."""
    return our_batches(config, part, workers, device, weak=part == "unlabelled")


def our_step(config: Config, labelled: Iterator, unlabelled: Iterator | None, count: int) -> Repeat:
    """`count` steps as `train.py` takes them; their mean losses."""
    utils.seed_everything(config.seed)
    is_semi_supervised = unlabelled is not None
    student, average = train.build_models(
        config, devices.choose_device(config.device), None, is_semi_supervised
    )
    optimizer = mean_teacher.make_optimizer(config, student)
    training = mean_teacher.Training(
        config, student, average, optimizer, NO_SCHEDULE, is_semi_supervised
    )
    batches = unlabelled or itertools.repeat(None)
    first = itertools.count(0, count)

    def some() -> np.ndarray:
        start = next(first)
        losses = []
        student.train()
        with mean_teacher.trying_algorithms():
            for number in range(start, start + count):
                step = mean_teacher.train_step(
                    training, number, next(labelled), next(batches), config.consistency_weight
                )
                losses.append(step)
        means = mean_teacher.mean_losses(losses, start, config.nonfinite)
        return np.array([means["loss_sup"], means["loss_consistency"]])

    return some


# --- the four kinds of work -----------------------------------------------------------------------------------


def loader(batches: Callable, config: Config, count: int | None = None) -> Repeat:
    """Labelled and unlabelled batches, alternately; means and mean squares of the views."""
    count = count or per_call(BATCHES, config)
    device = devices.choose_device(config.device)
    parts = [
        batches(config, part, max(0, config.num_workers), device)
        for part in ("labelled", "unlabelled")
    ]

    def some() -> np.ndarray:
        result = [
            torch.stack([view.mean(), view.square().mean()])
            for _ in range(count)
            for part in parts
            for batch in [next(part)]
            for view in (batch["weak"], batch["strong"])
        ]
        return torch.stack(result).cpu().numpy()

    return some


def training(
    step: Callable, batches: Callable, config: Config, semi: bool, is_given: bool = False
) -> Repeat:
    """Training steps, loading included; with `given` always on the first batch, so without loading."""
    device = devices.choose_device(config.device)
    parts = [
        batches(config, part, max(0, config.num_workers), device)
        for part in ("labelled", "unlabelled")[: 1 + semi]
    ]
    if is_given:
        parts = [itertools.repeat(next(part)) for part in parts]
    return step(config, *(parts if semi else [*parts, None]), steps_per_call(config, is_given))


def other_network(make: Callable[[], torch.nn.Module], config: Config) -> Repeat:
    """Supervised steps of another network on this project's batches."""
    device = devices.choose_device(config.device)
    batches = our_batches(config, "labelled", max(0, config.num_workers), device)
    return peers.network_step(make(), config, batches, steps_per_call(config))


def image(predict: Callable, config: Config, plain: bool = True, side: int | None = None) -> Repeat:
    """One image of smooth noise through windows; its probability."""
    device = devices.choose_device(config.device)
    utils.seed_everything(config.seed)
    model = UNet(config.base_channels).eval()
    model = (peers.plain_unet(model) if plain else model).to(device)
    picture = smooth_image(side or IMAGE)
    return lambda: predict(model, picture, device, config.patch_size, config.overlap)


def our_image(
    model: UNet, picture: np.ndarray, device: torch.device, patch_size: int, overlap: float
) -> np.ndarray:
    """The probability of an image, as this project predicts it."""
    return utils.predict_image(model, picture, device, utils.SlidingWindow(patch_size, overlap))


def smooth_image(side: int) -> np.ndarray:
    """(side, side) uint8: grey values as a slice has them."""
    noise = cv2.GaussianBlur(
        np.random.default_rng(0).normal(size=(side, side)).astype(np.float32), (0, 0), 3
    )
    return (110 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def stream(config: Config, slices: int) -> Repeat:
    """Many images, one after the other, none of them kept; their mean probabilities."""
    device = devices.choose_device(config.device)
    utils.seed_everything(config.seed)
    model, picture = UNet(config.base_channels).eval().to(device), smooth_image(IMAGE)
    return lambda: np.array(
        [
            p.mean()
            for p in utils.predict_images(
                model,
                (picture.copy() for _ in range(slices)),
                device,
                config.sliding_window,
            )
        ]
    )


OURS, PLAIN = "this project", "plain loop"
RACES = {  # name → contender → how it is made from settings
    "loader": {
        OURS: partial(loader, our_batches),
        "plain loader": partial(loader, peers.plain_batches),
    },
    "supervised step": {
        OURS: partial(training, our_step, batches_of_a_step, semi=False),
        PLAIN: partial(training, peers.plain_step, peers.plain_batches, semi=False),
        "MONAI BasicUNet": lambda config: other_network(
            lambda: peers.monai_unet(config.base_channels), config
        ),
        "smp Unet, resnet34": lambda config: other_network(peers.smp_unet, config),
    },
    "Mean Teacher step": {
        OURS: partial(training, our_step, batches_of_a_step, semi=True),
        PLAIN: partial(training, peers.plain_step, peers.plain_batches, semi=True),
    },
    "Mean Teacher step alone": {
        OURS: partial(training, our_step, batches_of_a_step, semi=True, is_given=True),
        PLAIN: partial(training, peers.plain_step, our_batches, semi=True, is_given=True),
    },
    "image": {
        OURS: partial(image, our_image, plain=False),
        "one window at a time": partial(image, peers.one_window_at_a_time),
        "MONAI sliding windows": partial(image, peers.monai_windows),
    },
}


def work_of(race: str, config: Config) -> tuple[int, str]:
    """How much one call does, and of what."""
    if race == "loader":
        return 2 * per_call(BATCHES, config), "batches"
    if race == "image":
        return 1, f"image of {IMAGE}² px"
    return steps_per_call(config, "alone" in race), "steps"


# --- this project without one of its ideas --------------------------------------------------------------------


def without_kept_memory() -> None:
    """Freed memory goes back to the system."""
    devices.keep_freed_memory = lambda: None


def without_own_normalisation() -> None:
    """InstanceNorm and ReLU as PyTorch has them, channels first."""
    build = train.build_models
    train.build_models = lambda *a: tuple(m and peers.plain_unet(m) for m in build(*a))


def without_channels_last() -> None:
    """The normalisation that training uses, channels first."""
    NormReLU.forward = lambda self, x: torch.relu_(torch.group_norm(x, x.shape[1]))


def without_bfloat16() -> None:
    """All in float32, as on a CPU."""
    mean_teacher.autocast = utils.autocast = lambda *_: contextlib.nullcontext()


def with_single_windows() -> None:
    """A forward pass for each window."""
    utils.windows_at_once = lambda *_: 1


def with_compiled_prediction() -> None:
    """The model through torch.compile; the first call, not timed, compiles."""
    predict = utils.predict_image

    def compiled(model: UNet, *arguments: object) -> np.ndarray:
        if model._compiled_call_impl is None:
            model.compile(dynamic=False)
        return predict(model, *arguments)

    utils.predict_image = compiled


def without_fused_optimizer() -> None:
    """One call for each of AdamW's operations on all weights."""
    mean_teacher.make_optimizer = train.make_optimizer = lambda config, model: torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        config.lr,
        weight_decay=config.weight_decay,
    )


def without_joint_average() -> None:
    """Moving average of each weight by itself."""

    def update(teacher: UNet, student: UNet, alpha: float) -> None:
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                t.lerp_(s, 1 - alpha)

    mean_teacher.ema_update = update


def without_joint_batch() -> None:
    """Labelled and unlabelled views pass the student one after the other."""
    joint = mean_teacher.step_losses

    def losses(
        config: Config,
        student: UNet,
        labelled: dict,
        teacher: UNet | None,
        unlabelled: dict | None,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        supervised, nothing = joint(config, student, labelled)
        if teacher is None:
            return supervised, nothing
        with torch.no_grad():
            target = teacher(unlabelled["weak"], reduced=True).float().sigmoid()
        return supervised, mean_teacher.consistency_loss(
            student(unlabelled["strong"], reduced=True), target
        )

    mean_teacher.step_losses = losses


def without_real_freezing() -> None:
    """Frozen blocks stay out of the optimizer, but get gradients."""
    build = train.build_models

    def models(*arguments: object) -> tuple[UNet, UNet]:
        student, teacher = build(*arguments)
        frozen = {id(p) for p in student.parameters() if not p.requires_grad}
        make = mean_teacher.make_optimizer
        mean_teacher.make_optimizer = train.make_optimizer = lambda config, model: _without(
            make(config, model), frozen
        )
        return student.requires_grad_(True), teacher

    train.build_models = models


def _without(optimizer: torch.optim.Optimizer, left_out: set[int]) -> torch.optim.Optimizer:
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if id(p) not in left_out]
    return optimizer


def with_channels_last() -> None:
    """The whole student in channels last, too."""
    build = train.build_models
    train.build_models = lambda *a: tuple(
        m and m.to(memory_format=torch.channels_last) for m in build(*a)
    )


def with_compilation() -> None:
    """Student and teacher through torch.compile; the first call, not timed, compiles."""
    build = train.build_models

    def models(*arguments: object) -> tuple[UNet, UNet]:
        student, teacher = build(*arguments)
        for model in (student, teacher):
            model.compile(dynamic=False)
        return student, teacher

    train.build_models = models


ABLATIONS = {  # race → what is changed in this project
    "Mean Teacher step alone": {
        "without kept memory": without_kept_memory,
        "without own normalisation": without_own_normalisation,
        "without fused AdamW": without_fused_optimizer,
        "without joint averaging": without_joint_average,
        "without joint batch": without_joint_batch,
        "without real freezing": without_real_freezing,
        "without bfloat16": without_bfloat16,
        "with channels last": with_channels_last,
        "with torch.compile": with_compilation,
    },
    "image": {
        "without kept memory": without_kept_memory,
        "without channels last": without_channels_last,
        "without bfloat16": without_bfloat16,
        "with a pass per window": with_single_windows,
        "with torch.compile": with_compiled_prediction,
    },
}
ONLY_ON = {
    "cpu": ("without kept memory", "without own normalisation", "without channels last"),
    "cuda": ("without bfloat16",),
}  # elsewhere they change nothing


def ablations(race: str, device: torch.device) -> list[str]:
    """Names of the changes that change something on this device."""
    elsewhere = {name for kind, names in ONLY_ON.items() if kind != device.type for name in names}
    return [name for name in ABLATIONS.get(race, ()) if name not in elsewhere]


# --- scaling --------------------------------------------------------------------------------------------------


def changed(make: Callable[[Config], Repeat], field: str) -> Callable[[Config, int], Repeat]:
    """`make` with one setting replaced by a value."""
    return lambda config, value: make(dataclasses.replace(config, **{field: value}))


_step = partial(training, our_step, batches_of_a_step, semi=True, is_given=True)
SCALES = {  # axis → values, what is done with each, and what one call is
    "batch size": ((1, 2, 4, 8, 16), changed(_step, "batch_size"), "Mean Teacher step"),
    "base channels": (
        (4, 8, 16, 32, 64, 128),
        changed(_step, "base_channels"),
        "Mean Teacher step",
    ),
    "image side [px]": (
        (256, 512, 768, 1024, 1536),
        lambda config, side: image(utils.predict_image, config, plain=False, side=side),
        "image",
    ),
    "slices": ((1, 4, 16), stream, "stream of images"),
    "workers": (
        (0, 1, 2, 4),
        changed(partial(loader, our_batches, count=40), "num_workers"),
        "80 batches of views",
    ),
}


SLOW_ON_A_CPU = {"base channels": (64, 128)}  # a minute and more for a step of the larger ones


def values_of(axis: str, device: torch.device) -> tuple[int, ...]:
    """The values of an axis that are measured on this device."""
    values, _, _ = SCALES[axis]
    left_out = SLOW_ON_A_CPU.get(axis, ()) if device.type == "cpu" else ()
    return tuple(value for value in values if value not in left_out)


def make_contender(race: str, name: str, config: Config) -> Repeat:
    """What `name` stands for in a race, in its ablation, or (a number) on an axis of `SCALES`."""
    if race in SCALES:
        return SCALES[race][1](config, int(name))
    change = ABLATIONS.get(race, {}).get(name)
    if change:
        change()
    return RACES[race][OURS if change else name](config)
