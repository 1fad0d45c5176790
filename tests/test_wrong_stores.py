"""Checkpoints and zarr volumes that are damaged, made by others, or made to do harm."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import save_file

import train
from config import Config
from conftest import disc_slice
from model_unet import UNet
from runtime.checkpoints import save_checkpoint
from runtime.messages import InputError
from wrong_files import IMAGES, MASKS, SPLITS, Attack, tiff

# --- checkpoints ----------------------------------------------------------------------------------------------


def stored(**changes: object) -> dict:
    """What a checkpoint says of itself."""
    return {"config": {**dataclasses.asdict(Config(patch_size=32)), **changes}}


def odd_weights(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**UNet(2).state_dict(), **changes}


CHECKPOINTS = {
    "missing": (lambda p: None, "no such checkpoint"),
    "a folder": (lambda p: p.mkdir(), "no such checkpoint"),
    "empty": (lambda p: p.touch(), "not a checkpoint of this project"),
    "a pickle that runs code": (
        lambda p: torch.save({"a": Attack()}, p),
        "not a checkpoint of this project",
    ),
    "of another project": (
        lambda p: save_file({"a": torch.zeros(2)}, p),
        "not a checkpoint of this project",
    ),
    "a header of 8 EB": (
        lambda p: p.write_bytes(b"\xff" * 7 + b"\x7f{}"),
        "not a checkpoint of this project",
    ),
    "settings that are no object": (
        lambda p: save_file(UNet(2).state_dict(), p, {"about": "[]"}),
        "no object",
    ),
    "no settings": (
        lambda p: save_checkpoint(p, UNet(2).state_dict(), {}),
        "says not how it was trained",
    ),
    "a window that is no number": (
        lambda p: save_checkpoint(p, UNet(2).state_dict(), stored(patch_size="a")),
        "--patch-size: 'a' is not possible",
    ),
    "a window that cannot be": (
        lambda p: save_checkpoint(p, UNet(2).state_dict(), stored(patch_size=33)),
        "--patch-size 33: must be a multiple",
    ),
    "percentiles the wrong way": (
        lambda p: save_checkpoint(p, UNet(2).state_dict(), stored(percentiles=[9, 1])),
        "--percentiles",
    ),
    "layers missing": (
        lambda p: save_checkpoint(p, {"down1.0.weight": torch.zeros(2, 1, 3, 3)}, stored()),
        "not the weights of this U-Net",
    ),
    "layers of two widths": (
        lambda p: save_checkpoint(
            p, odd_weights(**{"down1.0.weight": torch.zeros(3, 1, 3, 3)}), stored()
        ),
        "not the weights of this U-Net",
    ),
    "a reduction that cannot be": (
        lambda p: save_checkpoint(p, odd_weights(downsample=torch.tensor(10**9)), stored()),
        "not the weights of this U-Net",
    ),
    "weights that are no numbers": (
        lambda p: save_checkpoint(
            p, odd_weights(**{"head.bias": torch.tensor([np.nan])}), stored()
        ),
        "its weights are not numbers",
    ),
    "cut off": (
        lambda p: (
            save_checkpoint(p, UNet(2).state_dict(), stored()),
            p.write_bytes(p.read_bytes()[:-9]),
        ),
        "not a checkpoint of this project",
    ),
    "a flipped bit": (
        lambda p: (
            save_checkpoint(p, UNet(2).state_dict(), stored()),
            p.write_bytes(p.read_bytes()[:-1] + b"?"),
        ),
        "was damaged since",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(refused, workplace, case):
    write, said = CHECKPOINTS[case]
    path = workplace / "best.safetensors"
    write(path)
    tiff()(workplace / "a.tif")
    refused(
        said,
        "predict",
        workplace / "a.tif",
        "--checkpoint",
        path,
        "--device",
        "cpu",
        "--output",
        "out",
        details=str(path),
    )


def test_a_supervised_model_of_another_width(refused, tiny):
    data = train.prepare(tiny)
    train.train_supervised(tiny, data)
    save_checkpoint(tiny.checkpoint("supervised"), UNet(3).state_dict(), stored())
    with pytest.raises(InputError, match=r"best_supervised\.safetensors: is not of width 2"):
        train.continue_supervised(tiny, data)


# --- zarr -----------------------------------------------------------------------------------------------------


def zarr_with(path: Path, change, **options: object) -> None:
    """A zarr array of version 2 whose metadata are changed."""
    zarr.create_array(
        path, data=np.stack([disc_slice(0)[0]] * 2), chunks=(1, 64, 64), zarr_format=2, **options
    )
    details = json.loads((path / ".zarray").read_text())
    change(details)
    (path / ".zarray").write_text(json.dumps(details))


ZARRS = {
    "pickles": (
        lambda p: zarr_with(p, lambda a: a.update(filters=[{"id": "pickle", "protocol": 5}])),
        "pickle",
    ),
    "objects": (
        lambda p: zarr_with(
            p, lambda a: a.update(dtype="|O", filters=[{"id": "pickle"}], fill_value=None)
        ),
        "pickle|cannot be read",
    ),
    "text": (
        lambda p: zarr_with(p, lambda a: a.update(dtype="<U4", fill_value="")),
        "holds .* values|cannot be read",
    ),
    "chunks of 16 GB": (
        lambda p: zarr_with(p, lambda a: a.update(chunks=[2**20, 64, 64])),
        "has chunks of",
    ),
    "10¹² slices": (
        lambda p: zarr_with(p, lambda a: a.update(shape=[10**12, 64, 64])),
        "claims to have the shape",
    ),
    "slices of 4 TB": (
        lambda p: zarr_with(p, lambda a: a.update(shape=[2, 10**6, 10**6])),
        "claims to have the",
    ),
    "negative shape": (
        lambda p: zarr_with(p, lambda a: a.update(shape=[-2, 64, 64])),
        "cannot be read|has axes",
    ),
    "no metadata": (
        lambda p: (p.mkdir(), (p / ".zarray").write_text("{")),
        "cannot be read as zarr",
    ),
    "channels": (
        lambda p: zarr.create_array(
            p,
            data=np.zeros((3, 8, 8, 2), np.uint8),
            zarr_format=3,
            dimension_names=["z", "y", "x", "c"],
        ),
        "one grey channel",
    ),
    "a chunk cut off": (
        lambda p: (zarr_with(p, lambda a: None), (p / "1.0.0").write_bytes(b"\x02\x01")),
        "slice 1: cannot be read",
    ),
    "a group": (
        lambda p: zarr.create_group(p).create_array("a", shape=(2, 8, 8), dtype="u1"),
        "without OME-Zarr",
    ),
}


@pytest.mark.parametrize("case", ZARRS)
def test_zarrs(refused, workplace, checkpoint, case):
    write, said = ZARRS[case]
    path = workplace / "v.zarr"
    write(path)
    call = ("predict", path, "--checkpoint", checkpoint, "--device", "cpu", "--output")
    refused(said, *call, workplace / "out.zarr", details=str(path))
    refused(rf"{said}|holds \d+ values", "evaluate", "particles", path, details=str(path))


def test_the_corpus_is_large():
    assert len(IMAGES) + len(MASKS) + len(SPLITS) + len(CHECKPOINTS) + len(ZARRS) >= 120
