"""What the arithmetic and the memory of this machine allow: the floor of a training step and of a predicted image.

    python benchmarks/limits.py [--device auto] [--base-channels 64] [--batch-size 4] [--size 768]

Work is counted, not measured: FLOP by torch's own counter, and as bytes every operand of every convolution once,
forward and backward, as if all else (normalisation, ReLU, pooling, interpolation, losses) were fused into them, plus
what the optimizer and the moving average read and write. The ceilings are measured: the fastest of several matrix
products and of several copies. The floor is the larger of FLOP / product rate and bytes / copy rate (roofline:
Williams, Waterman & Patterson, 2009, doi:10.1145/1498765.1498785); nothing that computes these convolutions directly
can be faster.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config  # noqa: E402 - after the path
from mean_teacher import step_losses  # noqa: E402
from model_unet import UNet, freeze  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device, resolve_precision  # noqa: E402
from utils import window_starts  # noqa: E402

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
ADAMW_BYTES = 28  # per weight, float32: reads weight, gradient and both moments, writes weight and both moments
EMA_BYTES = 12  # per weight, float32: reads both weights, writes one


@dataclass(frozen=True)
class Work:
    """What has to be computed: floating-point operations, and elements and bytes that have to move."""

    flop: float
    elements: float  # of convolutions, in the precision that they are computed in
    weight_bytes: float  # of optimizer and moving average, always float32

    def bytes(self, itemsize: int) -> float:
        """Bytes to move when convolutions work on numbers of `itemsize` bytes."""
        return self.elements * itemsize + self.weight_bytes


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best: FLOP/s of a matrix product and bytes/s of a copy (read and write)."""

    flop_per_s: float
    bytes_per_s: float
    itemsize: int  # bytes of a number in the matrix product

    def floor(self, work: Work) -> float:
        """Seconds that `work` takes at least."""
        return max(work.flop / self.flop_per_s, work.bytes(self.itemsize) / self.bytes_per_s)


class CountOperands(TorchDispatchMode):
    """Counts the elements of all operands and results of convolutions, forward and backward."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run `func`, and count when it is a convolution."""
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            for operand in (*args, *(result if isinstance(result, tuple) else (result,))):
                self.elements += operand.numel() if isinstance(operand, torch.Tensor) else 0
        return result


def count(compute: Callable[[], object], updated: int = 0, averaged: int = 0) -> Work:
    """Work of `compute`, which may run on the meta device, and of updating and averaging so many weights."""
    flops, operands = FlopCounterMode(display=False), CountOperands()
    with flops, operands:
        compute()
    return Work(
        flops.get_total_flops(), operands.elements, ADAMW_BYTES * updated + EMA_BYTES * averaged
    )


# --- the three things that take time ---------------------------------------------------------------------------


def step_work(config: Config, semi: bool) -> Work:
    """Work of one training step: supervised, or (`semi`) with teacher, unlabelled batch and frozen blocks."""
    with torch.device("meta"):
        student, teacher = (UNet(config.base_channels, config.downsample) for _ in range(2))
        if semi:
            freeze(student, config.freeze)
        side = config.patch_size // config.downsample
        batch = {
            name: torch.empty(config.batch_size, 1, side, side)
            for name in ("weak", "strong", "mask")
        }
        unlabelled = {
            **batch,
            "strong": torch.empty(config.batch_size, config.strong_views, *batch["weak"].shape[2:]),
        }

    def step() -> None:
        losses = step_losses(
            config,
            student,
            batch,
            *((teacher, unlabelled) if semi else ()),
            generator=torch.Generator(),
        )
        sum(losses).backward()

    weights = [p.numel() for p in student.parameters() if p.requires_grad]
    return count(step, sum(weights), sum(p.numel() for p in teacher.parameters()) if semi else 0)


def image_work(
    base_channels: int, size: int, patch_size: int = 256, overlap: float = 0.5, downsample: int = 1
) -> Work:
    """Work of predicting one square image of `size` pixels through overlapping windows."""
    with torch.device("meta"):
        model, window = (
            UNet(base_channels, downsample).eval(),
            torch.empty(1, 1, patch_size, patch_size),
        )
    with torch.no_grad():
        one = count(lambda: model(window))
    windows = len(window_starts(max(size, patch_size), patch_size, overlap)) ** 2
    return Work(windows * one.flop, windows * one.elements, 0)


# --- what the machine can do -----------------------------------------------------------------------------------


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_seconds(run: Callable[[], object], device: torch.device, least: float = 0.5) -> float:
    """Shortest of the repetitions that fit into `least` seconds (at least three), device waited for."""
    times, end = [], time.perf_counter() + least
    run()
    while len(times) < 3 or time.perf_counter() < end:
        wait_for(device)
        began = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return min(times)


def measure_ceilings(device: torch.device) -> Ceilings:
    """Fastest matrix product (in the precision that `auto` comes to there) and fastest copy of this device."""
    dtype = getattr(torch, resolve_precision(device))
    rates = []
    for n in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        rates.append(2 * n**3 / best_seconds(lambda a=a, b=b: a @ b, device))
    copies = []
    for megabytes in (256, 1024):
        source = torch.zeros(megabytes << 18, device=device)
        target = torch.zeros_like(source)
        copies.append(
            2 * 4 * source.numel() / best_seconds(lambda s=source, t=target: t.copy_(s), device)
        )
    return Ceilings(max(rates), max(copies), torch.finfo(dtype).bits // 8)


def main() -> None:
    """Print work, ceilings and floors."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    parser.add_argument(
        "--base-channels", type=int, default=64, help="width of the network (%(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        help="labelled and unlabelled patches each (%(default)s)",
    )
    parser.add_argument(
        "--size", type=int, default=768, help="side of the image [px] (%(default)s)"
    )
    arguments = parser.parse_args()
    ceilings = measure_ceilings(choose_device(arguments.device))
    print(
        f"matrix product {ceilings.flop_per_s / 1e12:.3g} TFLOP/s, copy {ceilings.bytes_per_s / 1e9:.3g} GB/s"
    )
    config = Config(base_channels=arguments.base_channels, batch_size=arguments.batch_size)
    for name, work in (
        ("supervised step", step_work(config, semi=False)),
        ("Mean Teacher step", step_work(config, semi=True)),
        (f"image of {arguments.size}² px", image_work(arguments.base_channels, arguments.size)),
    ):
        print(
            f"{name:20s} {work.flop / 1e12:8.3f} TFLOP  {work.bytes(ceilings.itemsize) / 1e9:8.3f} GB"
            f"  floor {1e3 * ceilings.floor(work):10.1f} ms"
        )


if __name__ == "__main__":
    run_command_line(main)
