"""Devices, scores, files that are whole or not there, and checkpoints that tell when they were damaged."""

import errno
import json
import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

import utils
from conftest import ROOT
from model_unet import UNet
from pretend_cuda import pretended_gpu
from runtime import checkpoints, devices, files, messages
from runtime.messages import InputError

CPU = torch.device("cpu")


# --- metrics --------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_overlap_metrics_agree_with_scikit_learn(seed, p, q):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((9, 7)) < p, rng.random((9, 7)) < q
    result = utils.overlap_metrics(prediction, truth)
    empty = float(not (prediction.any() or truth.any()))  # our documented convention
    for name, reference in (
        ("dice", f1_score),
        ("iou", jaccard_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        assert result[name] == pytest.approx(
            reference(truth.ravel(), prediction.ravel(), zero_division=empty)
        )


def test_sizes_must_agree():
    with pytest.raises(InputError, match="one size"):
        utils.overlap_metrics(np.zeros((2, 3)), np.zeros((3, 2)))


# --- device, seeds --------------------------------------------------------------------------------------------


def test_devices():
    assert devices.choose_device("cpu") == CPU
    assert devices.choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("toaster", "cuda:99", "meta"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used"):
            devices.choose_device(name)


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine on which PyTorch finds no GPU, whatever is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(messages, "_said", set())
    ask = devices.nvidia_driver
    ask.cache_clear()
    yield monkeypatch
    ask.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        (
            "13.2",
            "535.183.01",
            "driver 535.183.01 is here, .* CUDA 13.2 and needs a driver of version 580 or newer",
        ),
        ("12.6", "470.82", "driver 470.82 is here, .* needs a driver of version 525 or newer"),
        (
            "13.2",
            "590.44",
            "driver 590.44 is here, but cannot be used, so the CPU is: torch does not say why",
        ),
        ("99.0", "600.1", "needs a newer driver"),
        (None, "580.65.06", "was built without CUDA"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_once(no_gpu, capsys, cuda, driver, said):
    no_gpu.setattr(devices, "nvidia_driver", lambda: driver)
    no_gpu.setattr(torch.version, "cuda", cuda)
    for _ in range(2):
        assert devices.choose_device("auto").type == "cpu"
    err = capsys.readouterr().err
    assert re.search(said, err)
    assert err.count("\n") == 1


def test_a_driver_that_is_new_enough_is_not_blamed(no_gpu, capsys):
    def unavailable():
        warnings.warn(
            "CUDA initialization: Unexpected error\nfrom cudaGetDeviceCount()",
            UserWarning,
            stacklevel=1,
        )
        return False

    no_gpu.setattr(torch.cuda, "is_available", unavailable)
    no_gpu.setattr(devices, "nvidia_driver", lambda: "590.44")
    no_gpu.setattr(torch.version, "cuda", "13.2")
    assert devices.choose_device("auto").type == "cpu"
    assert capsys.readouterr().err == (
        "an NVIDIA GPU with driver 590.44 is here, but cannot be used, so the CPU is: "
        "CUDA initialization: Unexpected error from cudaGetDeviceCount()\n"
    )


def test_a_gpu_that_is_too_old_for_this_build_is_left_alone_by_auto(no_gpu, capsys):
    real = torch.ones

    def ones(*arguments, device=None):
        if str(device).startswith("cuda"):
            raise torch.AcceleratorError(
                "CUDA error: no kernel image is available for execution on the device"
            )
        return real(*arguments, device=device)

    no_gpu.setattr(torch.cuda, "is_available", lambda: True)
    no_gpu.setattr(torch, "ones", ones)
    assert devices.choose_device("auto").type == "cpu"
    assert (
        "has no kernels for, so the CPU is used: install a build for an older CUDA"
        in capsys.readouterr().err
    )
    with pytest.raises(InputError, match="device 'cuda' cannot be used"):
        devices.choose_device("cuda")


def test_a_gpu_that_is_busy_is_no_reason_to_choose_auto_again(no_gpu):
    no_gpu.setattr(torch.cuda, "is_available", lambda: True)
    for message in ("CUDA error: all CUDA-capable devices are busy or unavailable", ""):

        def ones(*_, message=message, **__):
            raise RuntimeError(message)

        no_gpu.setattr(torch, "ones", ones)
        with pytest.raises(
            InputError, match=r"cannot be used \(.+\); free it of other work, or take --device cpu"
        ):
            devices.choose_device("auto")


def test_a_gpu_that_a_variable_hides_is_told_so(no_gpu, capsys):
    no_gpu.setattr(devices, "nvidia_driver", lambda: "590.44")
    no_gpu.setattr(torch.version, "cuda", "13.2")
    no_gpu.setenv("CUDA_VISIBLE_DEVICES", "99")
    devices.choose_device("auto")
    assert "so the CPU is: CUDA_VISIBLE_DEVICES is '99'" in capsys.readouterr().err


def test_in_a_job_the_first_process_speaks_for_all(monkeypatch, capsys):
    monkeypatch.setattr(messages, "_said", set())
    monkeypatch.setenv("RANK", "3")
    messages.say_once("something")
    monkeypatch.setenv("RANK", "0")
    messages.say_once("something")
    assert capsys.readouterr().err == "something\n"


@pytest.mark.parametrize("hidden", ["", "-1", None])
def test_nothing_is_said_where_there_is_no_gpu_or_it_was_hidden(no_gpu, capsys, hidden):
    no_gpu.setattr(devices, "nvidia_driver", lambda: None if hidden is None else "535.1")
    if hidden is not None:
        no_gpu.setenv("CUDA_VISIBLE_DEVICES", hidden)
    devices.choose_device("auto")
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia/version"), reason="there is a driver")
@pytest.mark.parametrize(
    ("printed", "status", "expected"),
    [
        ("580.65.06\n580.65.06\n", 0, "580.65.06"),
        ("", 9, None),
        ("No devices were found\n", 0, None),
        ("5x\n", 0, None),
        ("garbage 1.2\n", 0, None),
        ("\377\376\200\n", 0, None),
        ("1580.65\n", 0, None),
    ],
)
def test_the_driver_is_what_nvidia_smi_says(no_gpu, tmp_path, printed, status, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\necho asked >> {tmp_path}/asked\nprintf '{printed}'\nexit {status}\n"
    )
    program.chmod(0o755)
    no_gpu.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for _ in range(3):
        assert devices.nvidia_driver() == expected
        devices.choose_device("auto")
    assert (tmp_path / "asked").read_text().count("asked") == 1  # it may take seconds


def test_a_process_that_was_forked_from_one_with_a_gpu_is_refused_in_one_line(monkeypatch):
    def forked(*_, **__):
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, …"
        )

    monkeypatch.setattr(torch, "ones", forked)
    with pytest.raises(
        InputError, match="the notebook has used the GPU before it started this process; restart"
    ):
        devices.choose_device("cuda")


def test_float32_on_cuda_is_not_rounded_to_ten_bits(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pretended_gpu():
        devices.choose_device("cuda")
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("has_it", [True, False])
def test_what_auto_precision_comes_to(monkeypatch, has_it):
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return has_it or including_emulation

    with pretended_gpu():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        gpu = torch.device("cuda")
        assert devices.resolve_precision(gpu) == ("bfloat16" if has_it else "float32")
        assert asked == [False]  # emulated it is slower than float32
        assert devices.resolve_precision(gpu, "float32") == "float32"
        assert devices.resolve_precision(gpu, "bfloat16") == "bfloat16"
    assert devices.resolve_precision(CPU) == "float32"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("DataLoader worker is out of shared memory"), False),
        (InputError("--batch-size 4: out of memory; 2 fits"), False),
    ],
)
def test_in_how_many_ways_memory_runs_out(error, expected):
    assert devices.is_out_of_memory(error) == expected


def test_seeding():
    def draws():
        utils.seed_everything(5)
        return torch.rand(3).tolist(), np.random.rand(3).tolist()  # noqa: NPY002

    assert draws() == draws()


# --- files ----------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_names_its_file_and_folders_need_not_be_flushed(tmp_path, monkeypatch):
    def fails(number):
        def flush(file):
            if os.path.isdir(f"/dev/fd/{file}") == (number == errno.EINVAL):
                raise OSError(number, os.strerror(number))

        return flush

    monkeypatch.setattr(files.os, "fsync", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as error:
        files.write_json(tmp_path / "a.json", {})
    assert error.value.filename == str(tmp_path / "a.json")
    monkeypatch.setattr(
        files.os, "fsync", fails(errno.EINVAL)
    )  # of a folder, on some network file systems
    files.write_json(tmp_path / "a.json", {})
    assert files.read_json(tmp_path / "a.json") == {}


def test_csv_log(tmp_path):
    path = tmp_path / "log.csv"
    for epoch in (1, 2, 3):
        files.append_row(path, {"epoch": epoch, "loss_sup": epoch / 3})
    assert path.read_text().splitlines() == ["epoch,loss_sup", "1,0.333333", "2,0.666667", "3,1"]


def test_checkpoints_keep_weights_and_what_is_known_about_them(tmp_path):
    model = UNet(2)
    checkpoints.save_checkpoint(
        tmp_path / "a.safetensors", model.state_dict(), {"epoch": 3, "config": {"roi": None}}
    )
    weights, details = checkpoints.load_checkpoint(tmp_path / "a.safetensors")
    assert details == {"epoch": 3, "config": {"roi": None}}
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_other_files_are_no_checkpoints(tmp_path):
    from safetensors.torch import save_file

    torch.save(UNet(2).state_dict(), tmp_path / "pickle.pt")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    checkpoints.save_checkpoint(tmp_path / "good.safetensors", UNet(2).state_dict(), {})
    (tmp_path / "short.safetensors").write_bytes(
        (tmp_path / "good.safetensors").read_bytes()[:-100]
    )
    for name in ("pickle.pt", "other.safetensors", "short.safetensors"):
        with pytest.raises(InputError, match=f"{name}: not a checkpoint of this project"):
            checkpoints.load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoints.load_checkpoint(tmp_path / "none.safetensors")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """One flipped bit in a weight, which safetensors reads without a word."""
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, {**UNet(2, downsample=2).state_dict()}, {})
    content = bytearray(path.read_bytes())
    assert checkpoints.load_checkpoint(path)[1] == {}
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="was damaged since it was written"):
        checkpoints.load_checkpoint(path)


def test_settings_in_a_checkpoint_that_were_changed_are_refused(tmp_path):
    """An editor that keeps the length leaves a file that safetensors reads without a word."""
    path = tmp_path / "a.safetensors"
    details = {"config": {"patch_size": 320, "percentiles": (0.5, 99.5)}, "window": {"low": 0.1}}
    checkpoints.save_checkpoint(path, UNet(2).state_dict(), details)
    assert checkpoints.load_checkpoint(path)[1]["window"] == {"low": 0.1}
    content = path.read_bytes()
    assert content.count(b": 320,") == 1
    path.write_bytes(content.replace(b": 320,", b": 640,"))
    with pytest.raises(InputError, match="its settings were changed since it was written"):
        checkpoints.load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b"[1]", b"", b'{"a": 1']
)
def test_what_is_no_json_object_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: (cannot be read as JSON|holds a list)"):
        files.read_json(tmp_path / "a.json")


def test_only_one_process_holds_a_lock(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        assert files.lock(file)
        other = "import sys; from runtime import files; sys.exit(7 if files.lock(open(sys.argv[1], 'w')) else 3)"
        run = [sys.executable, "-c", other, str(tmp_path / "lock")]
        assert subprocess.run(run, cwd=ROOT).returncode == 3
    assert subprocess.run(run, cwd=ROOT).returncode == 7


def test_names_cannot_break_a_line():
    assert messages.one_line("a\nb\x1b[2J\udcff ü→") == r"a\nb\x1b[2J\udcff ü→"


@pytest.mark.parametrize(
    ("device", "precision", "enabled"),
    [
        ("cpu", "auto", False),
        ("cpu", "float32", False),
        ("cpu", "bfloat16", True),
        ("cuda", "float32", False),
    ],
)
def test_precision(device, precision, enabled):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CUDA is asked for where there is none
        context = devices.autocast(torch.device(device), precision)
    assert context._enabled == enabled
    assert context.fast_dtype == torch.bfloat16


def test_freed_memory_is_kept_with_glibc_and_nothing_breaks_elsewhere(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *pair: calls.append(pair))
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: library)
    devices.choose_device("cpu")
    assert calls == [(-4, 0), (-1, -1), (-2, 2**28)]  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace())
    devices.keep_freed_memory()
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: pytest.fail("there is no glibc"))
    devices.keep_freed_memory()
