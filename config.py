"""Every setting of a run, what it must satisfy, the published methods as presets, and the profiles."""

import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_unet import ENCODER_BLOCKS, STRIDE
from runtime.files import read_json
from runtime.messages import InputError, breaks_lines
from slices.reading import FOREGROUND, ROI, parse_roi
from slices.windows import parse_outside
from utils import SlidingWindow

LARGEST_COUNT = 10**7  # of epochs, slices and whatever else is counted
PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULES = ("plateau", "cosine", "one_cycle")
CONSISTENCY = ("mse", "bce", "bce_dice")

# The method whose settings are chosen for the material: `training.recipe`.
AUTO = "auto"

# What tables call the methods without a network that every run is compared with.
OTSU = "Otsu"
FOREST = "random forest"

# And the part of a network that classifies pixels alone: fitted before the others are trained.
PIXEL_CLASSIFIER = "pixel classifier"


# --- what a value must satisfy --------------------------------------------------------------------


def option(default: object, text: str, check: Callable[[Any], bool] = lambda value: True) -> Any:
    """Return a field of `Config`: its default, its line of help, and what a value must satisfy."""
    return dataclasses.field(default=default, metadata={"help": text, "check": check})


def between(low: float, high: float = float("inf")) -> Callable[[Any], bool]:
    """Return a check for low ≤ value ≤ high."""
    return lambda value: low <= value <= high


def is_share(value: float) -> bool:
    """Return whether 0 ≤ value ≤ 1."""
    return 0 <= value <= 1


def is_share_below_one(value: float) -> bool:
    """Return whether 0 ≤ value < 1."""
    return 0 <= value < 1


def is_inner_share(value: float) -> bool:
    """Return whether 0 < value < 1."""
    return 0 < value < 1


def is_positive(value: float) -> bool:
    """Return whether value > 0."""
    return value > 0


def one_of(*names: str) -> Callable[[Any], bool]:
    """Return a check for one of these names."""
    return lambda value: value in names


def is_folder_name(text: str) -> bool:
    """Return whether a text can name a folder, on one line and without leaving the parent folder."""
    if not text.strip(".") or breaks_lines(text):
        return False
    return Path(text).name == text


def is_method(name: str) -> bool:
    """Return whether a method of this name exists."""
    return name == "supervised" or name in PRESETS


def is_roi(value: tuple | None) -> bool:
    """Return whether a value is None or (row, end row, column, end column), none of them empty."""
    if value is None:
        return True
    if len(value) != 4 or any(type(number) is not int for number in value):
        return False
    top, bottom, left, right = value
    return 0 <= top < bottom and 0 <= left < right


def are_percentiles(value: tuple) -> bool:
    """Return whether a value is two rising percentiles."""
    return len(value) == 2 and 0 <= value[0] < value[1] <= 100


def is_outside(text: str) -> bool:
    """Return whether a text says what lies outside the sample."""
    return parse_outside(text) is not None


def is_blur_kernel(side: int) -> bool:
    """Return whether a kernel of this side exists: odd, and not of a single pixel."""
    return 3 <= side <= 255 and side % 2 == 1


def are_encoder_blocks(names: tuple) -> bool:
    """Return whether all names are blocks of the encoder."""
    return set(names) <= set(ENCODER_BLOCKS)


# --- settings that travel together ----------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """The geometry that weak view, strong views and mask of a crop have in common.

    Attributes
    ----------
    flip_p, vertical_flip_p : float
        Probabilities of a horizontal and of a vertical flip.
    rotation : float
        Largest rotation to either side, 0 to 45 [degrees].
    quarter_turns : bool
        Whether crops are also turned by 0, 90, 180 or 270 degrees.
    zoom : float
        Largest magnification, 1 or more; the smallest is its inverse.
    """

    flip_p: float = 0.5
    vertical_flip_p: float = 0.2
    rotation: float = 10.0
    quarter_turns: bool = False
    zoom: float = 1.0


@dataclass(frozen=True)
class Intensity:
    """What makes a strong view strong: perturbations of its grey values.

    Attributes
    ----------
    blur_p, blur_limit, motion_blur : float, int, float
        Probability of Gaussian or motion blur, its largest kernel [px], and the share of motion
        blur among both.
    intensity_p : float
        Probability of each of the following.
    brightness, contrast : float
        Largest shift, as a share of the grey range, and largest relative change of contrast.
    gamma : float
        Largest exponent, 1 or more; the smallest is its inverse. 1 is off.
    noise, correlated_noise, shading : float
        Largest standard deviation of white noise, of noise correlated over a few pixels and of
        slow shading, as a share of the grey range.
    cutout : int
        Largest number of boxes that are filled with one random grey value.
    """

    blur_p: float = 0.5
    blur_limit: int = 7
    motion_blur: float = 0.5
    intensity_p: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0
    correlated_noise: float = 0.0
    shading: float = 0.0
    cutout: int = 0


# --- the settings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are the recipe of the Mean Teacher.

    `method` only names what was chosen; `make_config(method="unimatch")` also sets the fields of
    that preset.

    Raises
    ------
    TypeError
        When a field is unknown.
    InputError
        When a value is of another type or out of range.
    """

    data: str = option("data/demo", "data folder")
    run: str = option("demo", "name of runs/NAME and checkpoints/NAME", is_folder_name)
    method: str = option(
        "mean_teacher",
        "auto: looks at the painted slices and chooses; or supervised, mean_teacher, cutmix_mt, "
        "fixmatch, unimatch, best: sets the fields of that preset that are not given",
        is_method,
    )
    seed: int = option(
        0, "seed of weights, crops, views and the random split, 0 or more", between(0, 2**63 - 1)
    )
    device: str = option("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    num_workers: int = option(
        -1,
        "processes that make views, up to 256; -1: up to 4 for each of the two loaders with CUDA, "
        "as cores allow, else none",
        between(-1, 256),
    )

    # Data
    split: str = option(
        "auto", "random, blocks, a JSON file, or auto: DATA/splits/split.json, else random"
    )
    val_fraction: float = option(
        0.18, "labelled slices for choosing the checkpoint (4 of 22), 0 to 1", is_share
    )
    test_fraction: float = option(
        0.18, "labelled slices that are only reported on (4 of 22), 0 to 1", is_share
    )
    fold: int = option(
        0, "which block is the test set, with --split blocks, from 0", between(0, LARGEST_COUNT)
    )
    labels: int = option(
        0,
        "training slices that keep their label; 0: all, the others become unlabelled",
        between(0, LARGEST_COUNT),
    )
    max_unlabelled: int = option(0, "unlabelled scans to read; 0: all", between(0, LARGEST_COUNT))
    roi: tuple | None = option(
        ROI,
        "row,end row,column,end column [px] of unlabelled scans that are not as large as a "
        "labelled slice; or none",
        is_roi,
    )
    percentiles: tuple = option(
        (1.0, 99.5),
        "LOW,HIGH: percentiles of the grey values of the sample that become black and white",
        are_percentiles,
    )
    outside: str = option(
        "auto",
        "grey value outside the sample, such as -1000 or nan; none; or auto: recognise it",
        is_outside,
    )
    mask_foreground: str = option(
        "auto",
        "what is foreground in a mask: dark or bright, the side; labels, all above 0; or auto, by "
        "its values",
        one_of(*FOREGROUND),
    )
    trust_pairs: bool = option(False, "take masks whose outlines do not agree with their images")
    rim: int = option(
        0,
        "training paint within so many pixels of another class counts as not painted, for rough outlines [px]",
        between(0, 1000),
    )

    # Views: patches, the geometry of all of them, the intensity of the strong ones
    patch_size: int = option(
        256,
        "side of patch and window [px], 32, 48, … times --downsample and --unshuffle, up to 16384",
        between(1, 2**14),
    )
    foreground_crop: float = option(
        1.0,
        "share of labelled crops that contain foreground, 0 to 1; the others come from anywhere",
        is_share,
    )
    flip_p: float = option(Geometry.flip_p, "probability of a horizontal flip", is_share)
    vertical_flip_p: float = option(
        Geometry.vertical_flip_p, "probability of a vertical flip", is_share
    )
    quarter_turns: bool = option(
        Geometry.quarter_turns,
        "turn by 0, 90, 180 or 270 degrees: material without a preferred direction",
    )
    rotation: float = option(
        Geometry.rotation, "largest rotation, 0 to 45 [degrees]", between(0, 45)
    )
    zoom: float = option(
        Geometry.zoom, "largest magnification, 1 to 2; the smallest is its inverse", between(1, 2)
    )
    blur_p: float = option(
        Intensity.blur_p, "probability that the strong view is blurred", is_share
    )
    blur_limit: int = option(
        Intensity.blur_limit, "largest blur kernel, odd, 3 to 255 [px]", is_blur_kernel
    )
    motion_blur: float = option(
        Intensity.motion_blur, "share of motion blur among both kinds, 0 to 1", is_share
    )
    intensity_p: float = option(
        Intensity.intensity_p, "probability of each of the following perturbations", is_share
    )
    brightness: float = option(
        Intensity.brightness, "largest shift, as share of the grey range, 0 to 1", is_share
    )
    contrast: float = option(
        Intensity.contrast, "largest relative change of contrast, 0 to 1", is_share
    )
    gamma: float = option(
        Intensity.gamma, "largest gamma, 1 to 5; the smallest is its inverse", between(1, 5)
    )
    noise: float = option(
        Intensity.noise, "largest σ of white noise, as share of the grey range, 0 to 1", is_share
    )
    correlated_noise: float = option(
        Intensity.correlated_noise,
        "largest σ of noise correlated over pixels, likewise",
        is_share,
    )
    shading: float = option(Intensity.shading, "largest σ of slow shading, likewise", is_share)
    cutout: int = option(
        Intensity.cutout, "largest number of boxes that are blanked, 0 to 20", between(0, 20)
    )

    # Model and optimisation
    base_channels: int = option(
        64, "channels at full resolution, 1 to 1024; 64 is 31.45 M parameters", between(1, 1024)
    )
    downsample: int = option(
        1,
        "the network works on means of blocks of this side, 1 to 16 [px]: it sees as many times "
        "further, and costs its square less",
        between(1, 16),
    )
    unshuffle: int = option(
        1,
        "the network takes blocks of this side as channels, 1 to 16 [px]: it costs its square less, "
        "and loses no pixel",
        between(1, 16),
    )
    pixel_classifier: bool = option(
        False,
        "add a small network that classifies each pixel by grey value, edges and texture at several "
        "scales",
    )
    sup_epochs: int = option(
        200, "epochs of the supervised phase, 1 or more", between(1, LARGEST_COUNT)
    )
    ssl_epochs: int = option(
        150,
        "epochs of the semi-supervised phase and of its supervised control; 0: neither of them",
        between(0, LARGEST_COUNT),
    )
    steps_per_epoch: int = option(
        0,
        "optimiser steps an epoch; 0: one pass over the labelled slices",
        between(0, LARGEST_COUNT),
    )
    precision: str = option(
        "auto",
        "of convolutions, in training and prediction: float32, bfloat16, or auto: bfloat16 on a "
        "CUDA GPU that has it, else float32",
        one_of(*PRECISIONS),
    )
    batch_size: int = option(
        4, "patches per step, labelled and unlabelled each, 1 to 4096", between(1, 4096)
    )
    lr: float = option(1e-3, "AdamW learning rate (one_cycle: its peak), above 0", is_positive)
    weight_decay: float = option(1e-4, "AdamW weight decay, 0 or more", between(0))
    schedule: str = option(
        "plateau", "learning rate: plateau, cosine or one_cycle", one_of(*SCHEDULES)
    )
    plateau_factor: float = option(
        0.5, "plateau: factor when validation Dice stalls, 0 to 1", is_inner_share
    )
    plateau_patience: int = option(
        10,
        "plateau: validations without a better Dice before that, 0 or more",
        between(0, LARGEST_COUNT),
    )
    min_lr: float = option(1e-6, "smallest learning rate, 0 or more", between(0))
    bce_weight: float = option(0.5, "weight of BCE, 0 to 1; the rest is soft Dice", is_share)
    weight_average: float = option(
        0.0,
        "supervised phases: share of itself that a moving average of the weights keeps each step; "
        "it is then what counts; 0: none",
        is_share_below_one,
    )
    selection: str = option(
        "patches",
        "what the checkpoint is chosen on: centre patches or full images",
        one_of("patches", "full"),
    )
    validate_every: int = option(
        1, "epochs between two validations, 1 or more", between(1, LARGEST_COUNT)
    )
    nonfinite: str = option(
        "stop",
        "what a loss or gradient does that is not a number: stop the run, or skip the step, which "
        "is counted, and costs time with CUDA",
        one_of("stop", "skip"),
    )

    # Semi-supervision
    warm_start: bool = option(True, "start from the supervised weights, else from random ones")
    freeze: tuple = option(
        ("down1", "down2", "down3"),
        "encoder blocks that stay as they are, or none",
        are_encoder_blocks,
    )
    ema_alpha: float = option(
        0.99,
        "share of itself the teacher keeps each step, 0 to below 1; 0: the student itself",
        is_share_below_one,
    )
    consistency: str = option(
        "mse", f"consistency loss: {', '.join(CONSISTENCY)}", one_of(*CONSISTENCY)
    )
    consistency_weight: float = option(
        1.0, "largest weight of the consistency loss, 0 or more", between(0)
    )
    ramp_epochs: int = option(
        10, "epochs over which that weight rises from 0, 0 or more", between(0, LARGEST_COUNT)
    )
    confidence: float = option(
        0.0, "teacher's certainty from which a pixel counts, 0 to 1; 0.5 or less: all", is_share
    )
    hard_labels: bool = option(False, "the teacher's decision is the target, not its probability")
    cutmix_p: float = option(
        0.0, "probability that a box of the strong view comes from another one", is_share
    )
    strong_views: int = option(1, "strong views of each unlabelled crop, 1 to 4", between(1, 4))
    feature_dropout: float = option(
        0.0,
        "share of channels dropped in a third, weak stream; 0: no such stream",
        is_share_below_one,
    )
    unlabelled_foreground: bool = option(
        False, "unlabelled crops contain what the supervised model takes for foreground"
    )

    # Evaluation
    overlap: float = option(
        0.5, "shared part of neighbouring prediction windows, 0 to below 1", is_share_below_one
    )
    threshold: float = option(
        0.5, "probability from which a pixel is foreground, 0 to 1", is_inner_share
    )
    pixel_size: float = option(
        0.0,
        "side of a pixel [µm], for particle sizes in the report; 0: sizes in pixels",
        between(0, 1e9),
    )
    forest: bool = option(
        True, "also score a random forest on features of pixels, as ilastik has it"
    )
    tta: bool = option(
        False, "test-time augmentation in the final evaluation: mean over flips and quarter turns"
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = checked_value(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

        # One setting has one name in a study: 1 and 1.0, and blocks in any order, are the same.
        percentiles = tuple(float(percentile) for percentile in self.percentiles)
        object.__setattr__(self, "percentiles", percentiles)
        frozen = tuple(block for block in ENCODER_BLOCKS if block in self.freeze)
        object.__setattr__(self, "freeze", frozen)

        self._check_patch_size()
        if self.cutmix_p and self.batch_size == 1:
            raise InputError(
                f"--cutmix-p {self.cutmix_p}: mixes the views of a batch; --batch-size 2 or more"
            )

    def _check_patch_size(self) -> None:
        """Raise `InputError` where the network cannot take patches of this size."""
        stride = STRIDE
        factors = [str(STRIDE)]
        for name in ("downsample", "unshuffle"):
            factor = getattr(self, name)
            stride *= factor
            if factor > 1:
                factors.append(f"--{name} {factor}")
        if self.patch_size % stride == 0 and self.patch_size > stride:
            return

        message = (
            f"--patch-size {self.patch_size}: must be a multiple of {stride} and more than that"
        )
        if len(factors) > 1:
            message += f" ({' × '.join(factors)})"
        raise InputError(message)

    @property
    def is_semi_supervised(self) -> bool:
        """Whether a second phase learns from unlabelled slices, beside its control."""
        return self.method != "supervised" and self.ssl_epochs > 0

    @property
    def run_folder(self) -> Path:
        """Where tables and figures go."""
        return Path("runs") / self.run

    @property
    def checkpoint_folder(self) -> Path:
        """Where weights go."""
        return Path("checkpoints") / self.run

    def checkpoint(self, name: str) -> Path:
        """Return the file of the best weights of a method.

        `pixel_classifier`, `supervised`, `continued`, `ssl_student` or `ssl_teacher`.
        """
        return self.checkpoint_folder / f"best_{name}.safetensors"

    def subset(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return some of the settings by name."""
        return {name: getattr(self, name) for name in names}

    @property
    def geometry(self) -> Geometry:
        """The geometry of all views."""
        return Geometry(**self.subset(tuple(Geometry.__dataclass_fields__)))

    @property
    def intensity(self) -> Intensity:
        """The perturbations of strong views."""
        return Intensity(**self.subset(tuple(Intensity.__dataclass_fields__)))

    @property
    def sliding_window(self) -> SlidingWindow:
        """How whole images are predicted, in the evaluation at the end."""
        return SlidingWindow(self.patch_size, self.overlap, self.tta, self.precision)


def checked_value(field: dataclasses.Field, value: Any) -> Any:
    """Return the value of a field as `Config` keeps it: tuples for the lists of JSON, floats for whole numbers.

    Raises
    ------
    InputError
        When it is of another type or out of range.
    """
    if isinstance(value, list):
        value = tuple(value)
    if not is_possible(field, value):
        name = field.name.replace("_", "-")
        raise InputError(f"--{name}: {value!r} is not possible: {field.metadata['help']}")
    if field.type is float:
        value = float(value)
    return value


def is_possible(field: dataclasses.Field, value: Any) -> bool:
    """Return whether a value is of the type of a field and passes its check."""
    wanted: Any = (int, float) if field.type is float else field.type
    if not isinstance(value, wanted):
        return False

    # In Python True is a number, too.
    if isinstance(value, bool) != (field.type is bool):
        return False

    # A tuple may hold what is not a number, and a whole number may be larger than any float.
    try:
        if field.type is float and not math.isfinite(value):
            return False
        return field.metadata["check"](value)
    except (TypeError, OverflowError):
        return False


# --- presets and profiles -------------------------------------------------------------------------

STRONG = {
    "brightness": 0.2,
    "contrast": 0.3,
    "gamma": 1.5,
    "noise": 0.1,
    "correlated_noise": 0.1,
    "shading": 0.1,
}
FIXMATCH = {
    "freeze": (),
    "ema_alpha": 0.0,
    "consistency": "bce",
    "hard_labels": True,
    "confidence": 0.95,
    "cutmix_p": 0.5,
    **STRONG,
}

# What `best` was tuned to, and `auto` begins with.
WELL_TRIED: dict[str, Any] = {
    "schedule": "one_cycle",
    "lr": 2e-3,
    "weight_average": 0.99,
    "selection": "full",
    "tta": True,
    "freeze": (),
    "consistency": "bce_dice",
    "cutmix_p": 1.0,
    "ramp_epochs": 0,
    "zoom": 1.3,
    "validate_every": 5,
}

# What a published method changes in the recipe.
PRESETS: dict[str, dict[str, Any]] = {
    # Tarvainen & Valpola, 2017, arXiv:1703.01780
    "mean_teacher": {},
    # French et al., 2020, arXiv:1906.01916
    "cutmix_mt": {"freeze": (), "cutmix_p": 1.0, "confidence": 0.97},
    # Sohn et al., 2020, arXiv:2001.07685
    "fixmatch": FIXMATCH,
    # Yang et al., 2023, arXiv:2208.09910
    "unimatch": {**FIXMATCH, "strong_views": 2, "feature_dropout": 0.5},
    # How this one was chosen, and what that means for its scores: docs/accuracy.md
    "best": {
        **WELL_TRIED,
        **STRONG,
        "downsample": 4,
        "patch_size": 768,
        "quarter_turns": True,
        "vertical_flip_p": 0.5,
        "rotation": 45.0,
        "steps_per_epoch": 10,
    },
    # What it is for any material; `training.recipe` adds what it chooses for the one at hand
    AUTO: {
        **WELL_TRIED,
        "sup_epochs": 24,
        "ssl_epochs": 8,
        "base_channels": 16,
        "unshuffle": 2,
        "pixel_classifier": True,
        "foreground_crop": 0.33,
        "overlap": 0.25,
    },
}

CPU_PROFILE = {
    "base_channels": 8,
    "sup_epochs": 30,
    "ssl_epochs": 12,
    "steps_per_epoch": 8,
    "max_unlabelled": 40,
}

# A resumed run may change these. Another device or precision changes digits, which is said when a
# run goes on; `nonfinite` lets a run go on that stopped at a loss of NaN; `forest` adds a row to the
# tables or takes it away; the others change nothing.
FREE = ("device", "num_workers", "precision", "nonfinite", "pixel_size", "forest")


def profile(name: str, device: torch.device) -> dict:
    """Return what a profile changes in the recipe.

    Nothing for `full`, `CPU_PROFILE` for `cpu`; `auto` is `full` with CUDA, else `cpu`.
    """
    if name not in ("auto", "full", "cpu"):
        raise InputError(f"profile {name!r}: expected auto, full or cpu")
    if name == "auto":
        name = "full" if device.type == "cuda" else "cpu"
    return CPU_PROFILE if name == "cpu" else {}


def describe_profile(config: Config, changes: dict) -> str:
    """Say what the `changes` of a profile make of the recipe that `config.method` names."""
    if not changes:
        return "full profile"
    recipe = make_config(method=config.method)
    parts = [f"{name} {getattr(recipe, name)} → {getattr(config, name)}" for name in changes]
    return f"cpu profile, {', '.join(parts)}"


def make_config(**given: Any) -> Config:
    """Return `Config` with the fields of the preset that `method` names, and those `given`, which win.

    Raises
    ------
    InputError
        When a field is unknown, or a value not possible.
    """
    fields = Config.__dataclass_fields__
    for name in given:
        if name not in fields:
            similar = difflib.get_close_matches(name, fields, 1)
            cure = f"{similar[0]}?" if similar else "train.py --help lists them"
            raise InputError(f"{name}: no such setting; {cure}")

    method = str(given.get("method", Config.method))
    preset = PRESETS.get(method, {})
    return Config(**{**preset, **given})


def stored_config(path: Path) -> Config:
    """Return the settings that a run keeps in `config.json`.

    Raises
    ------
    InputError
        When the file is missing, or holds a setting that is unknown.
    """
    settings = read_json(path)
    # In earlier versions either all crops contained foreground, or none had to.
    if isinstance(settings.get("foreground_crop"), bool):
        settings["foreground_crop"] = float(settings["foreground_crop"])
    try:
        return Config(**settings)
    except TypeError as error:
        why = str(error).removeprefix("Config.__init__() ")
        raise InputError(f"{path}: {why}; of another version?") from None


# --- settings as text -----------------------------------------------------------------------------


def parse_value(name: str, text: str) -> Any:
    """Return a field's value from the command line.

    What cannot be parsed stays text, which `Config` rejects.
    """
    default: Any = Config.__dataclass_fields__[name].default
    try:
        if name == "roi":
            return parse_roi(text)
        if isinstance(default, tuple):
            return parse_tuple(text, type(default[0]))
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        return text


def parse_tuple(text: str, kind: type) -> tuple:
    """Return the values between commas; () for `none`."""
    if text == "none":
        return ()
    return tuple(kind(part) for part in text.split(","))


def as_typed(value: object) -> str:
    """Return a value of a field as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def parse_settings(options: list[str]) -> dict[str, Any]:
    """Return fields of `Config` from `--name=value` arguments, as the benchmarks take them.

    Raises
    ------
    InputError
        When an argument is written otherwise, or names no field.
    """
    settings = {}
    for argument in options:
        name, sign, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not sign or name not in Config.__dataclass_fields__:
            raise InputError(
                f"{argument}: no such option; settings of train.py are written as --name=value here"
            )
        settings[name] = parse_value(name, value)

    return settings
