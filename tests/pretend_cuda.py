"""A GPU that is not there: tensors say that they are on it, and the CPU computes.

`with pretended_gpu() as gpu:` lets `choose_device` find a CUDA device. Tensors that are made with `device="cuda"`,
moved there, or computed from such are remembered as being on it. What a real GPU refuses is refused: an operation
between a tensor on it and one of the CPU (a single number may cross), and NumPy's look at its memory. Whatever would
make the CPU wait for the device is counted in `gpu.waits` by the line of the project that asked for it. All numbers are
those of the CPU, so that a run can be compared with one on it.

What this cannot see: kernels that do not exist, memory, bfloat16 (the GPU is of a kind that has none), and what happens
inside PyTorch's own functions.
"""

import collections
import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

import utils
from runtime import devices

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parent.parent

# Functions that make a tensor from nothing, or from a Python value.
FROM_NOTHING = {
    "empty",
    "zeros",
    "ones",
    "full",
    "tensor",
    "as_tensor",
    "arange",
    "linspace",
    "eye",
    "rand",
    "randn",
    "randint",
    "randperm",
    "empty_strided",
}
# Methods and functions that take their device from a tensor, if it is not stated.
LIKE_ANOTHER = {
    "new_empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_tensor",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
}
FROM_PYTHON_VALUE = {"tensor", "as_tensor", "new_tensor"}

# What a Python program learns about the content of a tensor, it has to wait for.
READS = {
    "item",
    "tolist",
    "__repr__",
    "__format__",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "__contains__",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "equal",
    "allclose",
    "unique",
    "argwhere",
}
# What looks at a tensor without its content, or may have operands on both sides.
HARMLESS = {
    "__hash__",
    "__len__",
    "size",
    "dim",
    "numel",
    "stride",
    "data_ptr",
    "type",
    "is_set_to",
    "load_state_dict",
    "_has_compatible_shallow_copy_type",
    "is_floating_point",
    "is_contiguous",
    "register_hook",
    "untyped_storage",
    "element_size",
}


class PretendedGPU(TorchFunctionMode):
    """See the module. `waits`: how often each line made the CPU wait; `operations`: how many ran on the device."""

    def __init__(self):
        super().__init__()
        self.on_gpu, self.pinned = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.in_flight = WeakTensorKeyDictionary()  # on the CPU, but the copy was only queued
        self.waits: collections.Counter[str] = collections.Counter()
        self.operations = 0

    # --- what is where ---------------------------------------------------------------------------------------

    def put(self, result):
        """Remember all tensors of a result as being on the device."""
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.on_gpu[leaf] = True
        return result

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor in self.on_gpu

    def arrive(self) -> None:
        """All that was queued is done."""
        self.in_flight = WeakTensorKeyDictionary()

    def synchronize(self, *_) -> None:
        """`torch.cuda.synchronize()`."""
        self.note_wait("synchronize()")

    def note_wait(self, what: str) -> None:
        """Count a wait at the innermost line of the project, tests left out; what was under way has arrived then."""
        self.arrive()
        for frame, line in traceback.walk_stack(sys._getframe(1)):
            path = Path(frame.f_code.co_filename)
            if path.parent in (ROOT, ROOT / "benchmarks"):
                self.waits[f"{path.name}:{line} {what}"] += 1
                return
        self.waits[f"elsewhere: {what}"] += 1

    # --- what a call does --------------------------------------------------------------------------------------

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        mine = [tensor for tensor in tensors if self.holds(tensor)]

        if name not in HARMLESS | {"__get__", "copy_", "pin_memory"} and any(
            t in self.in_flight for t in tensors
        ):
            raise RuntimeError(
                f"{name} reads what is still on its way from the device: wait for an event first"
            )
        if name == "__get__":
            return self.get_attribute(func, args, bool(mine))
        if name == "__set__":
            return self.set_attribute(func, args)
        if name in FROM_NOTHING | LIKE_ANOTHER or (
            name != "to" and kwargs.get("device") is not None
        ):
            return self.make(func, name, args, kwargs, bool(mine))
        if name in ("to", "cpu", "cuda"):
            return self.move(name, args, kwargs)
        if name == "copy_":
            return self.copy(func, args, kwargs)

        if not mine or name in HARMLESS:
            return func(*args, **kwargs)
        if name in ("numpy", "__array__"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        counts = (name in ("where", "repeat_interleave") and len(args) == 1) or (
            name == "repeat_interleave" and len(mine) > 1
        )
        if name in READS or counts:  # how many elements the result has, has to be known
            self.note_wait(f".{name}()")
            result = func(*args, **kwargs)
            return self.put(result) if counts else result
        if name in ("__getitem__", "__setitem__", "index_put_") and any(
            t.dtype == torch.bool for t in tensors[1:]
        ):
            self.note_wait("a mask as index")  # how many elements it selects has to be known

        strangers = [tensor for tensor in tensors if tensor.dim() > 0 and not self.holds(tensor)]
        if strangers:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
                f"and cpu! ({name})"
            )
        self.operations += 1
        return self.put(func(*args, **kwargs))

    def get_attribute(self, func, args: tuple, mine: bool):
        """`tensor.device`, `tensor.grad` …"""
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if mine and attribute == "device":
            return GPU
        if mine and attribute in ("is_cuda", "is_cpu"):
            return attribute == "is_cuda"
        result = func(*args)
        return self.put(result) if mine else result

    def set_attribute(self, func, args: tuple):
        """`tensor.data = …` moves a tensor to where the other one is: so a module goes to a device."""
        result = func(*args)
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if attribute == "data":
            self.on_gpu.pop(args[0], None)
            if self.holds(args[1]):
                self.put(args[0])
        return result

    def make(self, func, name: str, args: tuple, kwargs: dict, mine: bool):
        """A new tensor, on the device that is stated, else on that of the tensor that it is made like."""
        stated = kwargs.get("device")
        there = (
            torch.device(stated).type == "cuda"
            if stated is not None
            else mine and name in LIKE_ANOTHER
        )
        generator = kwargs.get("generator")
        if there and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if stated is not None:
            kwargs["device"] = "cpu"
        pinned = kwargs.pop("pin_memory", False)
        result = func(*args, **kwargs)
        if pinned:
            self.pinned[result] = True
        if not there:
            return result
        if name in FROM_PYTHON_VALUE:
            self.note_wait(f"{name}(…, device=cuda): a copy from memory that is not pinned")
        return self.put(result)

    def move(self, name: str, args: tuple, kwargs: dict):
        """`tensor.to(…)`, `.cpu()`, `.cuda()`: a copy waits, unless it is from pinned memory and told not to."""
        tensor, asked = args[0], [*args[1:], *kwargs.values()]
        here = self.holds(tensor)
        there = {"cuda": True, "cpu": False}.get(name, here)
        dtype = next((a for a in asked if isinstance(a, torch.dtype)), tensor.dtype)
        for a in asked:
            if isinstance(a, torch.Tensor):
                there, dtype = self.holds(a), a.dtype
            elif isinstance(a, torch.device | str):
                there = torch.device(a).type == "cuda"

        with torch._C.DisableTorchFunction():
            result = tensor.to(dtype)
            if here != there and result is tensor:
                result = (
                    tensor.data.clone()
                    if isinstance(tensor, torch.nn.Parameter)
                    else tensor.clone()
                )
        if here != there:
            queued = kwargs.get("non_blocking", False) and (here or tensor in self.pinned)
            if not queued:
                self.note_wait(f".{name}(…) to the {'GPU' if there else 'CPU'}")
            elif here:
                self.in_flight[result] = True
        return self.put(result) if there else result

    def copy(self, func, args: tuple, kwargs: dict):
        """`target.copy_(source)` works across devices, and waits unless memory is pinned and it is told not to."""
        target, source = args[:2]
        crosses = self.holds(target) != self.holds(source)
        memory = source if self.holds(target) else target
        queued = kwargs.get("non_blocking", False) and memory in self.pinned
        if crosses and not queued:
            self.note_wait("copy_ between devices")
        result = func(*args, **kwargs)
        if crosses and queued and memory is target:
            self.in_flight[target] = True
        return result


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Let this process find a GPU while this is open; see the module."""
    gpu = PretendedGPU()
    copy_parameter = torch.nn.Parameter.__deepcopy__

    def deepcopy(parameter, memo):
        result = copy_parameter(parameter, memo)
        return gpu.put(result) if gpu.holds(parameter) else result

    def pin_memory(tensor, *_):
        gpu.pinned[tensor] = True
        return tensor

    class Event:
        """An event of a stream; waiting for it is how a prediction gets its results."""

        def record(self, _stream=None) -> None:
            pass

        def synchronize(self) -> None:
            gpu.arrive()

    nothing = contextlib.nullcontext()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for name, answer in {
            "is_available": True,
            "is_bf16_supported": False,
            "get_device_name": "pretended GPU",
            "current_stream": None,
            "empty_cache": None,
            "device": nothing,
            "max_memory_allocated": 0,
        }.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        for name, answer in {
            "is_available": True,
            "set_device_index": None,
            "current_device_index": 0,
            "current_accelerator": GPU,
        }.items():
            patch.setattr(torch.accelerator, name, lambda *_, answer=answer, **__: answer)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "synchronize", gpu.synchronize)
        patch.setattr(
            torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None
        )
        patch.setattr(torch.Tensor, "pin_memory", pin_memory)
        patch.setattr(torch.nn.Parameter, "__deepcopy__", deepcopy)
        patch.setattr(
            torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32
        )  # put back at the end
        patch.setattr(utils, "_fitting", {})
        patch.setattr(devices, "keep_freed_memory", lambda: None)
        warnings.filterwarnings("ignore", ".*pin_memory.*")
        utils.gaussian_window.cache_clear()  # what it holds was made on another device of the same name
        try:
            with gpu:
                yield gpu
        finally:
            utils.gaussian_window.cache_clear()
