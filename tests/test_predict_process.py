"""Prediction in a process of its own: how much memory it takes, and that it can be killed at any time."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch

from config import Config
from conftest import ROOT, disc_slice
from model_unet import UNet
from runtime.checkpoints import save_checkpoint


def start(script: str, *arguments: object) -> subprocess.Popen:
    """`predict.main` with arguments, after `script`, in a new process."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import predict; from volumes import blocks; {script}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


PEAK = (
    "predict.main(); import re; from pathlib import Path; "
    "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory from /proc")
def test_memory_does_not_grow_with_the_number_of_slices(tmp_path):
    torch.manual_seed(0)
    config = Config(base_channels=2, patch_size=512, downsample=8)
    save_checkpoint(
        tmp_path / "best.safetensors",
        UNet(2, 8).state_dict(),
        {"config": dataclasses.asdict(config)},
    )
    grey, peaks = disc_slice(0, (512, 512))[0], {}
    for count in (50, 500):
        path = tmp_path / f"{count}.tif"
        tifffile.imwrite(
            path,
            itertools.repeat(grey, count),
            shape=(count, 512, 512),
            dtype=np.float32,
            photometric="minisblack",
        )
        with start(
            PEAK,
            path,
            "--checkpoint",
            tmp_path / "best.safetensors",
            "--output",
            tmp_path / f"m{count}.tif",
            "--device",
            "cpu",
        ) as process:
            peaks[count] = int(process.communicate(timeout=300)[0].splitlines()[-1]) / 1024
        assert tifffile.imread(tmp_path / f"m{count}.tif", key=count - 1).shape == (512, 512)
    assert peaks[500] - peaks[50] < 100, peaks  # MB


def test_killed_halfway_and_continued_gives_the_same_bytes(checkpoint, tmp_path):
    grey = np.stack([disc_slice(i, (64, 64))[0] for i in range(12)])
    tifffile.imwrite(tmp_path / "stack.tif", grey, photometric="minisblack")
    slow = (
        "blocks.BLOCK = 2; import time; block = predict.predict_block; "
        "predict.predict_block = lambda *a: (time.sleep(0.3), block(*a))[1]; predict.main()"
    )
    options = (
        tmp_path / "stack.tif",
        "--checkpoint",
        checkpoint,
        "--probabilities",
        "--device",
        "cpu",
        "--output",
    )
    with start("blocks.BLOCK = 2; predict.main()", *options, tmp_path / "whole.tif") as process:
        assert process.wait(120) == 0
    part = tmp_path / "mask.tif.part"
    kept = {}
    for blocks in (1, 3):  # killed twice
        with start(slow, *options, tmp_path / "mask.tif") as process:
            for _ in range(1200):
                if len(list(part.glob("0*.npz"))) >= blocks:
                    break
                time.sleep(0.05)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "mask.tif").exists()
        now = {p: p.stat().st_mtime_ns for p in part.glob("0*.npz")}
        assert now.items() >= kept.items()  # nothing was computed again
        kept = now
        assert blocks <= len(kept) < 6
    with start("blocks.BLOCK = 2; predict.main()", *options, tmp_path / "mask.tif") as process:
        assert process.wait(120) == 0
    for kind in ("", "_probability"):
        assert (tmp_path / f"mask{kind}.tif").read_bytes() == (
            tmp_path / f"whole{kind}.tif"
        ).read_bytes()
    assert not part.exists()
