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


def option(default: object, text: str, check: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field of `Config`: its default, its line of help, and what a value must satisfy."""
    return dataclasses.field(default=default, metadata={"help": text, "check": check})


def _between(low: float, high: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: low <= value <= high


def _is_name(text: str) -> bool:
    return bool(text.strip(".")) and Path(text).name == text and not breaks_lines(text)


def _one_of(*names: str) -> Callable[[Any], bool]:
    return set(names).__contains__


MANY = 10**7  # of what is counted, at most


@dataclass(frozen=True)
class Config:
    """Every setting. The defaults are the recipe; an unknown field or a value out of range is an error.

    `method` only names what was chosen: `make_config(method="unimatch")` also sets the fields of that preset.
    """

    data: str = option("data/demo", "data folder")
    run: str = option("demo", "name of runs/NAME and checkpoints/NAME", _is_name)
    method: str = option("mean_teacher", "supervised, mean_teacher, cutmix_mt, fixmatch, unimatch or best: sets the "
                         "fields of that preset that are not given", lambda v: v == "supervised" or v in PRESETS)
    seed: int = option(0, "seed of weights, crops, views and the random split, 0 or more", _between(0, 2**63 - 1))
    device: str = option("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    num_workers: int = option(-1, "processes that make views, up to 256; -1: up to 4 for each of the two "
                              "loaders with CUDA, as cores allow, else none",
                              _between(-1, 256))
    # data
    split: str = option("auto", "random, blocks, a JSON file, or auto: DATA/splits/split.json, else random")
    val_fraction: float = option(0.18, "labelled slices for choosing the checkpoint (4 of 22), 0 to 1", _between(0, 1))
    test_fraction: float = option(0.18, "labelled slices that are only reported on (4 of 22), 0 to 1", _between(0, 1))
    fold: int = option(0, "which block is the test set, with --split blocks, from 0", _between(0, MANY))
    labels: int = option(0, "training slices that keep their label; 0: all, the others become unlabelled",
                         _between(0, MANY))
    max_unlabelled: int = option(0, "unlabelled scans to read; 0: all", _between(0, MANY))
    roi: tuple | None = option(ROI, "row,end row,column,end column [px] of unlabelled scans that are not as large as a "
                               "labelled slice; or none",
                               lambda v: v is None or (len(v) == 4 and all(type(n) is int for n in v)
                                                       and 0 <= v[0] < v[1] and 0 <= v[2] < v[3]))
    percentiles: tuple = option((1.0, 99.5), "two, of the non-zero pixels, become 0 and 1",
                                lambda v: len(v) == 2 and 0 <= v[0] < v[1] <= 100)
    outside: str = option("auto", "grey value outside the sample, such as -1000 or nan; none; or auto: recognise it",
                          lambda v: parse_outside(v) is not None)
    mask_foreground: str = option("auto", "what is foreground in a mask: dark or bright, the side; labels, all above "
                                  "0; or auto, by its values", _one_of(*FOREGROUND))
    trust_pairs: bool = option(False, "take masks whose outlines do not agree with their images")
    # views: geometry of all, intensity of the strong one
    patch_size: int = option(256, "side of patch and window [px], 32, 48, … times --downsample, up to 16384",
                             _between(1, 2**14))
    foreground_crop: bool = option(True, "labelled crops contain foreground")
    flip_p: float = option(0.5, "probability of a horizontal flip", _between(0, 1))
    vertical_flip_p: float = option(0.2, "probability of a vertical flip", _between(0, 1))
    quarter_turns: bool = option(False, "turn by 0, 90, 180 or 270 degrees: material without a preferred direction")
    rotation: float = option(10.0, "largest rotation, 0 to 45 [degrees]", _between(0, 45))
    zoom: float = option(1.0, "largest magnification, 1 to 2; the smallest is its inverse", _between(1, 2))
    blur_p: float = option(0.5, "probability that the strong view is blurred", _between(0, 1))
    blur_limit: int = option(7, "largest blur kernel, odd, 3 to 255 [px]", lambda v: 3 <= v <= 255 and v % 2 == 1)
    motion_blur: float = option(0.5, "share of motion blur among both kinds, 0 to 1", _between(0, 1))
    intensity_p: float = option(0.5, "probability of each of the following perturbations", _between(0, 1))
    brightness: float = option(0.0, "largest shift, as share of the grey range, 0 to 1", _between(0, 1))
    contrast: float = option(0.0, "largest relative change of contrast, 0 to 1", _between(0, 1))
    gamma: float = option(1.0, "largest gamma, 1 to 5; the smallest is its inverse", _between(1, 5))
    noise: float = option(0.0, "largest σ of white noise, as share of the grey range, 0 to 1", _between(0, 1))
    correlated_noise: float = option(0.0, "largest σ of noise correlated over pixels, likewise", _between(0, 1))
    shading: float = option(0.0, "largest σ of slow shading, likewise", _between(0, 1))
    cutout: int = option(0, "largest number of boxes that are blanked, 0 to 20", _between(0, 20))
    # model and optimisation
    base_channels: int = option(64, "channels at full resolution, 1 to 1024; 64 is 31.45 M parameters",
                                _between(1, 1024))
    downsample: int = option(1, "the network works on means of blocks of this side, 1 to 16 [px]: it sees "
                             "as many times further, and costs its square less", _between(1, 16))
    sup_epochs: int = option(200, "epochs of the supervised phase, 1 or more", _between(1, MANY))
    ssl_epochs: int = option(150, "epochs of the semi-supervised phase and of its supervised control, 1 or more",
                             _between(1, MANY))
    steps_per_epoch: int = option(0, "optimiser steps an epoch; 0: one pass over the labelled slices",
                                  _between(0, MANY))
    precision: str = option("auto", "of convolutions, in training and prediction: float32, bfloat16, or auto: "
                            "bfloat16 on a CUDA GPU that has it, else float32",
                            _one_of("auto", "float32", "bfloat16"))
    batch_size: int = option(4, "patches per step, labelled and unlabelled each, 1 to 4096", _between(1, 4096))
    lr: float = option(1e-3, "AdamW learning rate (one_cycle: its peak), above 0", lambda v: v > 0)
    weight_decay: float = option(1e-4, "AdamW weight decay, 0 or more", _between(0))
    schedule: str = option("plateau", "learning rate: plateau, cosine or one_cycle",
                           _one_of("plateau", "cosine", "one_cycle"))
    plateau_factor: float = option(0.5, "plateau: factor when validation Dice stalls, 0 to 1", lambda v: 0 < v < 1)
    plateau_patience: int = option(10, "plateau: validations without a better Dice before that, 0 or more",
                                   _between(0, MANY))
    min_lr: float = option(1e-6, "smallest learning rate, 0 or more", _between(0))
    bce_weight: float = option(0.5, "weight of BCE, 0 to 1; the rest is soft Dice", _between(0, 1))
    weight_average: float = option(0.0, "supervised phases: share of itself that a moving average of the weights "
                                   "keeps each step; it is then what counts; 0: none", lambda v: 0 <= v < 1)
    selection: str = option("patches", "what the checkpoint is chosen on: centre patches or full images",
                            _one_of("patches", "full"))
    validate_every: int = option(1, "epochs between two validations, 1 or more", _between(1, MANY))
    nonfinite: str = option("stop", "what a loss or gradient does that is not a number: stop the run, or skip the "
                            "step, which is counted, and costs time with CUDA", _one_of("stop", "skip"))
    # semi-supervision
    warm_start: bool = option(True, "start from the supervised weights, else from random ones")
    freeze: tuple = option(("down1", "down2", "down3"), "encoder blocks that stay as they are, or none",
                           lambda v: set(v) <= set(ENCODER_BLOCKS))
    ema_alpha: float = option(0.99, "share of itself the teacher keeps each step, 0 to below 1; 0: the student itself",
                              lambda v: 0 <= v < 1)
    consistency: str = option("mse", "consistency loss: mse, bce or bce_dice", _one_of("mse", "bce", "bce_dice"))
    consistency_weight: float = option(1.0, "largest weight of the consistency loss, 0 or more", _between(0))
    ramp_epochs: int = option(10, "epochs over which that weight rises from 0, 0 or more", _between(0, MANY))
    confidence: float = option(0.0, "teacher's certainty from which a pixel counts, 0 to 1; 0.5 or less: all",
                               _between(0, 1))
    hard_labels: bool = option(False, "the teacher's decision is the target, not its probability")
    cutmix_p: float = option(0.0, "probability that a box of the strong view comes from another one", _between(0, 1))
    strong_views: int = option(1, "strong views of each unlabelled crop, 1 to 4", _between(1, 4))
    feature_dropout: float = option(0.0, "share of channels dropped in a third, weak stream; 0: no such stream",
                                    lambda v: 0 <= v < 1)
    unlabelled_foreground: bool = option(False, "unlabelled crops contain what the supervised model "
                                         "takes for foreground")
    # evaluation
    overlap: float = option(0.5, "shared part of neighbouring prediction windows, 0 to below 1", lambda v: 0 <= v < 1)
    threshold: float = option(0.5, "probability from which a pixel is foreground, 0 to 1", lambda v: 0 < v < 1)
    pixel_size: float = option(0.0, "side of a pixel [µm], for particle sizes in the report; 0: sizes in pixels",
                               _between(0, 1e9))
    tta: bool = option(False, "test-time augmentation in the final evaluation: mean over flips and quarter turns")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list):  # as JSON gives it
                object.__setattr__(self, f.name, value := tuple(value))
            wanted = (int, float) if f.type is float else f.type
            try:
                fits = (isinstance(value, wanted) and isinstance(value, bool) == (f.type is bool)
                        and (f.type is not float or math.isfinite(value)) and f.metadata["check"](value))
            except (TypeError, OverflowError):  # a tuple of something that is not a number, an int beyond all floats
                fits = False
            if not fits:
                raise InputError(f"--{f.name.replace('_', '-')}: {value!r} is not possible: {f.metadata['help']}")
            if f.type is float:  # 1 and 1.0 are one setting, and one name in a study
                object.__setattr__(self, f.name, float(value))
        object.__setattr__(self, "percentiles", tuple(map(float, self.percentiles)))  # likewise
        object.__setattr__(self, "freeze", tuple(block for block in ENCODER_BLOCKS if block in self.freeze))
        stride = STRIDE * self.downsample
        if self.patch_size % stride or self.patch_size <= stride:
            raise InputError(f"--patch-size {self.patch_size}: must be a multiple of {stride} and more than that"
                             + f" (16 × --downsample {self.downsample})" * (self.downsample > 1))
        if self.cutmix_p and self.batch_size == 1:
            raise InputError(f"--cutmix-p {self.cutmix_p}: mixes the views of a batch; --batch-size 2 or more")

    @property
    def run_folder(self) -> Path:
        """Where tables and figures go."""
        return Path("runs") / self.run

    def checkpoint(self, name: str) -> Path:
        """File of the best weights called `name`: supervised, continued, ssl_student or ssl_teacher."""
        return Path("checkpoints") / self.run / f"best_{name}.safetensors"

    def subset(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Some of the settings by name."""
        return {name: getattr(self, name) for name in names}


STRONG = {"brightness": 0.2, "contrast": 0.3, "gamma": 1.5, "noise": 0.1, "correlated_noise": 0.1, "shading": 0.1}
FIXMATCH = {"freeze": (), "ema_alpha": 0.0, "consistency": "bce", "hard_labels": True, "confidence": 0.95,
            "cutmix_p": 0.5, **STRONG}
PRESETS = {  # what a published method changes in the recipe
    "mean_teacher": {},                                                        # Tarvainen & Valpola, arXiv:1703.01780
    "cutmix_mt": {"freeze": (), "cutmix_p": 1.0, "confidence": 0.97},          # French et al., arXiv:1906.01916
    "fixmatch": FIXMATCH,                                                      # Sohn et al., arXiv:2001.07685
    "unimatch": {**FIXMATCH, "strong_views": 2, "feature_dropout": 0.5},       # Yang et al., arXiv:2208.09910
    "best": {  # how it was chosen, and what that means for its scores: README, "On real slices"
        "downsample": 4, "patch_size": 768, **STRONG,                          # whole slices; then: every orientation
        "quarter_turns": True, "vertical_flip_p": 0.5, "rotation": 45.0, "zoom": 1.3,
        "schedule": "one_cycle", "lr": 2e-3, "weight_average": 0.99, "steps_per_epoch": 10,
        "selection": "full", "validate_every": 5, "tta": True,
        "freeze": (), "consistency": "bce_dice", "cutmix_p": 1.0, "ramp_epochs": 0},
}
CPU_PROFILE = {"base_channels": 8, "sup_epochs": 30, "ssl_epochs": 12, "steps_per_epoch": 8, "max_unlabelled": 40}
GEOMETRY = ("flip_p", "vertical_flip_p", "rotation", "quarter_turns", "zoom")
INTENSITY = ("blur_p", "blur_limit", "motion_blur", "intensity_p", "brightness", "contrast", "gamma", "noise",
             "correlated_noise", "shading", "cutout")
# a resumed run may change these: results stay the same up to rounding, and what would have stopped it
FREE = ("device", "num_workers", "precision", "nonfinite", "pixel_size")


def profile(name: str, device: torch.device) -> dict:
    """Changes to the recipe: none for `full`, `CPU_PROFILE` for `cpu`; `auto` is `full` with CUDA, else `cpu`."""
    if name not in ("auto", "full", "cpu"):
        raise InputError(f"profile {name!r}: expected auto, full or cpu")
    return CPU_PROFILE if name == "cpu" or (name == "auto" and device.type != "cuda") else {}


def describe_profile(config: Config, changes: dict) -> str:
    """In words, what the `changes` of a profile make of the recipe that `config.method` names."""
    recipe = make_config(method=config.method)
    parts = [f"{name} {getattr(recipe, name)} → {getattr(config, name)}" for name in changes]
    return f"cpu profile, {', '.join(parts)}" if parts else "full profile"


def make_config(**given: Any) -> Config:
    """`Config` with the fields of the preset that `method` names, and those `given`, which win."""
    for name in given:
        if name not in Config.__dataclass_fields__:
            near = difflib.get_close_matches(name, Config.__dataclass_fields__, 1)
            raise InputError(f"{name}: no such setting; " + (f"{near[0]}?" if near else "train.py --help lists them"))
    return Config(**{**PRESETS.get(str(given.get("method", Config.method)), {}), **given})


def stored_config(path: Path) -> Config:
    """The settings that a run keeps in `config.json`; `InputError` for a missing file or an unknown setting."""
    try:
        return Config(**read_json(path))
    except TypeError as error:
        raise InputError(f"{path}: {str(error).removeprefix('Config.__init__() ')}; of another version?") from None


def parse_value(name: str, text: str) -> Any:
    """A field's value from the command line; what cannot be parsed stays text, which `Config` rejects."""
    default = Config.__dataclass_fields__[name].default
    try:
        if name == "roi":
            return parse_roi(text)
        if isinstance(default, tuple):
            return () if text == "none" else tuple(type(default[0])(part) for part in text.split(","))
        return {"true": True, "false": False}[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError):
        return text


def parse_settings(options: list[str]) -> dict[str, Any]:
    """Fields of `Config` from `--name=value` arguments, as the benchmarks take them."""
    given = {}
    for option in options:
        name, sign, value = option.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not sign or name not in Config.__dataclass_fields__:
            raise InputError(f"{option}: no such option; settings of train.py are written as --name=value here")
        given[name] = parse_value(name, value)
    return given
