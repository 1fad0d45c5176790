"""Small data sets that are made on the spot, and a way to call the command lines."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy import ndimage

import mean_teacher
import train
import utils
from config import AUTO, PRESETS, Config, Geometry, Intensity
from datasets import ViewOptions, Views
from model_unet import NormReLU, UNet
from runtime import command_line, devices
from runtime.checkpoints import load_checkpoint, save_checkpoint
from runtime.loaders import to_float
from slices.options import DataOptions
from slices.reading import Slice
from slices.splits import SplitOptions
from slices.windows import percentile_window
from training import pixel_fit, preparation, recipe

hypothesis.settings.register_profile("stress", max_examples=20_000)  # of `make stress`
ROOT = Path(__file__).resolve().parent.parent
SCALE = 1e-4  # physical grey values, as real tomograms have them


def disc_slice(index: int, size: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Grey values float32 and truth uint8 of a noisy slice with three brighter discs."""
    rng = np.random.default_rng([7, index])
    truth = np.zeros(size, np.uint8)
    for _ in range(3):
        centre = tuple(int(c) for c in rng.integers(6, min(size) - 6, 2))
        cv2.circle(truth, centre, int(rng.integers(4, 8)), 1, -1)
    image = SCALE * (2 + 1.2 * truth + 0.3 * rng.standard_normal(size))
    return image.astype(np.float32), truth


def labelled(count: int = 4, size: tuple[int, int] = (96, 80)) -> list[Slice]:
    """Preprocessed noisy slices with three discs each."""
    made = [disc_slice(i, size) for i in range(count)]
    return [
        Slice(Path(f"s{i}.tif"), percentile_window(image), truth)
        for i, (image, truth) in enumerate(made)
    ]


def view_options(
    patch_size: int = 256, geometry: dict | None = None, intensity: dict | None = None, **options
) -> ViewOptions:
    """How views are made, with the recipe's values where nothing else is said."""
    return ViewOptions(
        patch_size,
        geometry=Geometry(**(geometry or {})),
        intensity=Intensity(**(intensity or {})),
        **options,
    )


def data_options(split: str = "auto", part: float = 0.18, **options) -> DataOptions:
    """Which slices are read, with equal shares for validation and test."""
    return DataOptions(SplitOptions(split, part, part), **options)


class EasyViews(Views):
    """Views with the options of `view_options`."""

    def __init__(self, slices, patch_size=256, guides=None, **options):
        super().__init__(slices, view_options(patch_size, **options), guides)


class FloatViews(EasyViews):
    """Views as batches have them: float32, in [0, 1]."""

    def __getitem__(self, key):
        return {name: to_float(tensor) for name, tensor in super().__getitem__(key).items()}


def write_data(
    root: Path, count: int = 8, scans: int = 3, size: tuple[int, int] = (64, 64)
) -> Path:
    """A data folder with painted masks, and unlabelled scans 16 pixels larger than the slices."""
    for folder in ("labeled/Original_images", "labeled/Original_masks", "unlabeled"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, truth = disc_slice(i, size)
        tifffile.imwrite(root / "labeled/Original_images" / f"s_{i:02d}.tif", image)
        painted = np.where(truth == 1, np.float32(-SCALE), image)
        tifffile.imwrite(root / "labeled/Original_masks" / f"s_mask_{i:02d}.tif", painted)
    for i in range(scans):
        image, _ = disc_slice(100 + i, (size[0] + 16, size[1] + 16))
        tifffile.imwrite(root / "unlabeled" / f"scan_{i}.tif", (image * 1e8).astype(np.uint16))
    return root


def class_slice(index: int, size: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Grey values float32 and label map uint8 of a noisy slice: 1 matrix, 2 bright grains, 3 dark pores."""
    rng = np.random.default_rng([8, index])
    values = np.ones(size, np.uint8)
    for value, row, column in ((2, 1, 1), (3, 1, 3), (3, 3, 1), (2, 3, 3)):
        y = row * size[0] // 4 + int(rng.integers(-5, 6))
        x = column * size[1] // 4 + int(rng.integers(-5, 6))
        cv2.circle(values, (x, y), int(rng.integers(5, 9)), value, -1)
    brightness = np.array([0, 0, 1.2, -1.2])[values]
    image = SCALE * (4 + brightness + 0.3 * rng.standard_normal(size))
    return image.astype(np.float32), values


def write_label_maps(
    root: Path, count: int = 8, share: float = 1.0, classes: dict | None = None
) -> Path:
    """A data folder of `class_slice` with three scans; a share of the pixels of label maps is painted."""
    for folder in ("labeled/Original_images", "labeled/Original_masks", "unlabeled"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = classes or {"1": "matrix", "2": "grain", "3": "pore"}
    (root / "classes.json").write_text(json.dumps(names))
    for i in range(count):
        image, values = class_slice(i)
        values *= np.random.default_rng(i).random(values.shape) < share
        tifffile.imwrite(root / "labeled/Original_images" / f"s_{i:02d}.tif", image)
        tifffile.imwrite(root / "labeled/Original_masks" / f"s_{i:02d}.tif", values)
    for i in range(3):
        image, _ = class_slice(100 + i)
        tifffile.imwrite(root / "unlabeled" / f"scan_{i}.tif", image)
    return root


@pytest.fixture
def data_folder(tmp_path) -> Path:
    return write_data(tmp_path / "data" / "discs")


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current folder, so that runs/ and checkpoints/ land there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """Call `python MODULE.py ARGUMENTS…` in this process: (exit status, standard output, standard error)."""

    def call(module: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *map(str, arguments)])
        code = command_line.run_command_line
        with pytest.raises(SystemExit) as stop:
            code(importlib.import_module(module).main)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


TINY = {
    "method": "mean_teacher",
    "base_channels": 2,
    "patch_size": 32,
    "sup_epochs": 3,
    "ssl_epochs": 3,
    "steps_per_epoch": 2,
    "batch_size": 2,
    "plateau_patience": 0,
    "ramp_epochs": 2,
    "blur_p": 1.0,
    "roi": (8, 72, 8, 72),
    "split": "blocks",
    "val_fraction": 0.25,
    "test_fraction": 0.25,
    "device": "cpu",
    "forest": False,  # which takes longer than all the rest; tests/test_forest.py has it
    "num_workers": 0,
}


def prediction(source: Path, checkpoint: Path, output: Path, *options: object) -> list:
    """Return the command line that predicts a source on the CPU."""
    return [
        "predict",
        source,
        *("--checkpoint", checkpoint),
        *("--output", output),
        *("--device", "cpu"),
        *options,
    ]


def write_stack(folder: Path, depth: int, shape: tuple[int, int], spacing: float = 0.022) -> Path:
    """Write `stack.tif`, an ImageJ stack of noisy slices with discs, of which the fourth is blank.

    Its pixels have 0.022 µm; `spacing` is the distance of slices [µm].
    """
    grey = np.stack([disc_slice(i, shape)[0] for i in range(depth)])
    grey[3] = 0
    path = folder / "stack.tif"
    tifffile.imwrite(
        path,
        grey,
        imagej=True,
        resolution=(1 / 0.022, 1 / 0.022),
        metadata={"axes": "ZYX", "spacing": spacing, "unit": "um"},
    )
    return path


def as_options(settings: dict) -> list[str]:
    """Config fields as command-line options."""
    options = []
    for name, value in settings.items():
        text = (
            "none"
            if value in (None, ())
            else ",".join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
        )
        options.append(f"--{name.replace('_', '-')}={text}")
    return options


def write_split(root: Path, **parts: list[str]) -> Path:
    path = root / "splits" / "split.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(parts))
    return path


def run(config: Config, resume: bool = False) -> None:
    """All phases of a run, as the command line takes them."""
    data = train.prepare(config, resume)
    train.train_supervised(config, data)
    if config.method != "supervised":
        train.continue_supervised(config, data)
        train.train_semi_supervised(config, data)
    train.evaluate_run(config, data)


def fingerprint(config: Config) -> dict[str, str]:
    """Everything a run produced that does not depend on the clock."""
    result = {}
    for path in sorted(config.run_folder.glob("*.csv")):
        result[path.name] = pd.read_csv(path).drop(columns=["lam"], errors="ignore").to_csv()
    for path in sorted((Path("checkpoints") / config.run).glob("*")):
        weights, _ = load_checkpoint(path)
        result[path.name] = str(
            {name: tensor.double().sum().item() for name, tensor in weights.items()}
        )
    return result


@pytest.fixture
def tiny(workplace, data_folder) -> Config:
    return Config(**TINY, data=str(data_folder), run="base")


@pytest.fixture
def restored(monkeypatch):
    """Whatever an ablation of the benchmarks replaces is put back."""
    for where, name in (
        (mean_teacher, "make_optimizer"),
        (train, "make_optimizer"),
        (mean_teacher, "ema_update"),
        (mean_teacher, "step_losses"),
        (train, "build_models"),
        (devices, "keep_freed_memory"),
        (utils, "predict_image"),
        (utils, "windows_at_once"),
        (NormReLU, "forward"),
        (mean_teacher, "autocast"),
        (utils, "autocast"),
    ):
        monkeypatch.setattr(where, name, getattr(where, name))


@pytest.fixture
def few_steps(monkeypatch):
    """The fewest steps that a recipe may have, of which there are hardly any."""
    monkeypatch.setattr(recipe, "LEAST_STEPS", 20)
    monkeypatch.setitem(PRESETS[AUTO], "sup_epochs", 4)
    monkeypatch.setitem(PRESETS[AUTO], "ssl_epochs", 2)
    monkeypatch.setattr(recipe, "TIMED", 1)
    monkeypatch.setattr(pixel_fit, "STEPS", 100)


STUDY_SETTINGS = {
    **{k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()},
    "sup_epochs": 2,
    "ssl_epochs": 2,
}


@pytest.fixture
def plan_file(workplace, data_folder) -> Path:
    path = workplace / "study.json"
    path.write_text(
        json.dumps(
            {
                "name": "s",
                "data": str(data_folder),
                "labels": [2],
                "folds": [0, 1],
                "seeds": [0],
                "settings": STUDY_SETTINGS,
                "variants": {
                    "mt": {"method": "mean_teacher"},
                    "cm": {"method": "cutmix_mt"},
                    "lr": {"method": "mean_teacher", "lr": 0.01},
                },
            }
        )
    )
    return path


@pytest.fixture(scope="session")
def blobs() -> np.ndarray:
    """(40, 50, 60) bool: many components of all sizes, some touching by a corner."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 50, 60)), 2)
    return noise > 1.2 * noise.std()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "best.safetensors"
    config = Config(base_channels=2, patch_size=32, percentiles=(2.0, 98.0), threshold=0.5)
    save_checkpoint(path, UNet(2).state_dict(), {"config": dataclasses.asdict(config)})
    return path


# --- wrong input ---------------------------------------------------------------------------------------------


@pytest.fixture
def refused(command, workplace, monkeypatch):
    """A command line must end with one line that says `what`, and leave nothing behind."""

    def check(what: str, module: str, *arguments: object, details: str = "") -> None:
        before = {p for p in workplace.rglob("*") if not p.is_dir()}
        code, _, err = command(module, *arguments)
        lines = [
            line
            for line in re.split(r"[\r\n]+", err)
            if line.strip() and not re.search(r"\d%\|", line)
        ]
        assert code == 2, err
        assert len(lines) == 1, err
        assert lines[0].strip().startswith(f"error: {details}"), err
        assert re.search(what, lines[0]), err
        left = {p for p in workplace.rglob("*") if not p.is_dir()} - before
        assert not [p for p in left if p.name != ".lock"]
        assert not (workplace / "attacked").exists()

    return check


@pytest.fixture
def fine(command, monkeypatch):
    """A command line must succeed; training itself is left out."""
    monkeypatch.setattr(train, "run", lambda config, *_: preparation.read_slices(config) and None)

    def check(module: str, *arguments: object) -> str:
        code, out, err = command(module, *arguments)
        assert code == 0, err
        return out

    return check
