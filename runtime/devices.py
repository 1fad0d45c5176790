"""The device that trains and predicts: which one, in what precision, and what it says when memory runs out."""

import ctypes
import functools
import os
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from runtime.messages import InputError, one_line, say_once

OLDEST_DRIVER = {
    11: 450,
    12: 525,
    13: 580,
}  # for each CUDA: NVIDIA, CUDA compatibility, minor versions
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # as malloc.h numbers them


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that `name` stands for: `auto` is CUDA, else MPS, else the CPU.

    `cuda:1` as torch names it.

    Of several processes on one machine, each gets a GPU of its own. On CUDA float32 means IEEE
    float32 from then on: torch lets cuDNN round the operands of float32 convolutions to 10 bits
    (TF32) unless it is told otherwise.

    Where `auto` comes to the CPU although there is an NVIDIA GPU, one line on standard error says
    why.

    Raises
    ------
    InputError
        When the device is not here, cannot be used by this build of PyTorch, or belongs to the
        parent of this process.
    """
    if name == "auto":
        return choose_automatically()
    return use_device(name, "choose auto, cpu, cuda or mps")


def use_device(name: str, cure: str) -> torch.device:
    """Return a device that is known by name, ready for use.

    The `cure` ends the error where it cannot be used.
    """
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"

    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not supported")
        torch.ones(
            1, device=device
        )  # fills one number: a GPU that this build has no kernels for fails here
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "forked subprocess" in why:
            raise InputError(
                f"device {name!r}: the notebook has used the GPU before it started this process; restart "
                "its kernel, and launch the processes before anything chooses a device"
            ) from None
        raise InputError(f"device {name!r} cannot be used ({why}); {cure}") from None

    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def choose_automatically() -> torch.device:
    """Return the best device that can be used; see `choose_device`."""
    with warnings.catch_warnings(
        record=True
    ) as caught:  # torch tells of a driver that is too old in several lines
        warnings.simplefilter("always")
        available = torch.cuda.is_available()

    if available:
        try:
            return use_device("cuda", "free it of other work, or take --device cpu")
        except InputError as error:
            if "no kernel image" not in str(error):
                raise
            say_once(
                "the NVIDIA GPU of this machine is of a kind that this build of PyTorch has no kernels for, so "
                f"the CPU is used: install a build for an older CUDA than {torch.version.cuda}"
            )
            return choose_device("cpu")

    if torch.backends.mps.is_available():
        return choose_device("mps")
    say_why_no_gpu(" ".join(str(caught[0].message).split()) if caught else "")
    return choose_device("cpu")


def say_why_no_gpu(reason: str) -> None:
    """Say, once, why PyTorch cannot use an NVIDIA GPU of this machine.

    Nothing is said where there is none, or where it was hidden.

    `reason` is what torch said of it, if anything.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return
    driver = nvidia_driver()
    if driver is None:
        return

    if torch.version.cuda is None:
        cure = (
            "this PyTorch was built without CUDA; install the build for CUDA that pytorch.org names"
        )
    else:
        needed = OLDEST_DRIVER.get(int(torch.version.cuda.split(".")[0]))
        if needed is not None and int(driver.split(".")[0]) >= needed:
            hidden = "" if visible is None else f"CUDA_VISIBLE_DEVICES is {one_line(visible)!r}; "
            cure = hidden + (one_line(reason) or "torch does not say why; nvidia-smi may")
        else:
            wanted = f"a driver of version {needed} or newer" if needed else "a newer driver"
            cure = (
                f"this PyTorch is built for CUDA {torch.version.cuda} and needs {wanted}; update the driver, or "
                "install a build of PyTorch for an older CUDA"
            )

    say_once(
        f"an NVIDIA GPU with driver {driver} is here, but cannot be used, so the CPU is: {cure}"
    )


@functools.cache
def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver of this machine, such as 535.183.01.

    The result is None where there is no such GPU.

    It is asked for once in a process: the program may take seconds to answer.
    """
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            timeout=10,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        answer = ""

    with suppress(OSError):  # a container may have the device, but not the program
        answer += "\n" + Path("/proc/driver/nvidia/version").read_text(errors="replace")
    found = re.search(r"(?<![\w.])\d{3}(\.\d+){1,2}(?![\w.])", answer)
    return found[0] if found else None


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """Return what convolutions are computed in: `float32` or `bfloat16`.

    `auto` is bfloat16 on a CUDA GPU that has it.

    GPUs before Ampere (Turing: RTX 20, T4) have none in hardware; torch would emulate it, slower
    than float32.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    with torch.cuda.device(device):  # the question below is about the current device
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Return a context in which convolutions are computed in `precision`, as `resolve_precision` understands it.

    Weights, normalisation statistics and losses stay float32.
    """
    half = resolve_precision(device, precision) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a small tensor of the CPU on `device`, without making the CPU wait for what is computed there.

    A copy from ordinary memory waits; one from memory that the operating system may not move
    (pinned) is only queued.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for its next tensors, where the C library is glibc.

    Else every large tensor is mapped anew, and the kernel fills its pages with zeros first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 << 20)):
            mallopt(parameter, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on whatever device.

    CUDA says so in several ways: torch's own allocator raises `OutOfMemoryError`; cuDNN and cuBLAS,
    which take memory of their own, say ALLOC_FAILED; the driver's answer comes as
    `AcceleratorError`, as many other faults do.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
