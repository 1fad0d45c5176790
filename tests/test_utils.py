import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

import utils
from model_unet import UNet
from utils import InputError

CPU = torch.device("cpu")


# --- metrics --------------------------------------------------------------------------------------------------

@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_overlap_metrics_agree_with_scikit_learn(seed, p, q):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((9, 7)) < p, rng.random((9, 7)) < q
    found = utils.overlap_metrics(prediction, truth)
    empty = float(not (prediction.any() or truth.any()))  # our documented convention
    for name, reference in (("dice", f1_score), ("iou", jaccard_score), ("precision", precision_score),
                            ("recall", recall_score)):
        assert found[name] == pytest.approx(reference(truth.ravel(), prediction.ravel(), zero_division=empty))


def test_sizes_must_agree():
    with pytest.raises(InputError, match="one size"):
        utils.overlap_metrics(np.zeros((2, 3)), np.zeros((3, 2)))


# --- device, seeds --------------------------------------------------------------------------------------------

def test_devices():
    assert utils.choose_device("cpu") == CPU
    assert utils.choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("toaster", "cuda:99", "meta"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used"):
            utils.choose_device(name)


def test_seeding():
    def draws():
        utils.seed_everything(5)
        return torch.rand(3).tolist(), np.random.rand(3).tolist()  # noqa: NPY002
    assert draws() == draws()


# --- files ----------------------------------------------------------------------------------------------------

def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    utils.write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        utils.write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_csv_log(tmp_path):
    path = tmp_path / "log.csv"
    for epoch in (1, 2, 3):
        utils.append_row(path, {"epoch": epoch, "loss_sup": epoch / 3})
    assert path.read_text().splitlines() == ["epoch,loss_sup", "1,0.333333", "2,0.666667", "3,1"]
    utils.keep_rows(path, 1)
    assert path.read_text().splitlines() == ["epoch,loss_sup", "1,0.333333"]
    utils.keep_rows(path, 0)
    assert not path.exists()


def test_run_folder(tmp_path):
    folder = tmp_path / "runs" / "a"
    utils.open_run(folder, {"lr": 1.0, "device": "cpu"}, CPU, resume=False)
    about = json.loads((folder / "environment.json").read_text())
    assert about["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert about["git_commit"] is None or len(about["git_commit"]) == 40
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        utils.open_run(folder, {"lr": 1.0, "device": "cpu"}, CPU, resume=False)
    made = (folder / "environment.json").read_text()
    utils.open_run(folder, {"lr": 1.0, "device": "cuda"}, CPU, resume=True, free=("device",))
    assert (folder / "environment.json").read_text() == made  # who made the run, not who looked at it
    with pytest.raises(InputError, match=r"lr was 1.0, now 2.0"):
        utils.open_run(folder, {"lr": 2.0, "device": "cpu"}, CPU, resume=True)
    assert json.loads((folder / "config.json").read_text())["lr"] == 1.0


def test_checkpoints_keep_weights_and_what_is_known_about_them(tmp_path):
    model = UNet(2)
    utils.save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), {"epoch": 3, "config": {"roi": None}})
    weights, about = utils.load_checkpoint(tmp_path / "a.safetensors")
    assert about == {"epoch": 3, "config": {"roi": None}}
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_other_files_are_no_checkpoints(tmp_path):
    from safetensors.torch import save_file
    torch.save(UNet(2).state_dict(), tmp_path / "pickle.pt")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    utils.save_checkpoint(tmp_path / "good.safetensors", UNet(2).state_dict(), {})
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-100])
    for name in ("pickle.pt", "other.safetensors", "short.safetensors"):
        with pytest.raises(InputError, match=f"{name}: not a checkpoint of this project"):
            utils.load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="no such checkpoint"):
        utils.load_checkpoint(tmp_path / "none.safetensors")


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(InputError, match=r"last.pt: cannot be resumed from"):
        utils.restore_state(tmp_path / "last.pt", {"student": UNet(2)})


@pytest.mark.parametrize(("result", "status", "text"), [
    (None, 0, ""), (1, 1, ""),
    (torch.OutOfMemoryError(), 2, "error: the device is out of memory; smaller --batch-size, or --device cpu\n"),
    (PermissionError(13, "Not permitted", "/out"), 2, "error: /out: Not permitted; check path, rights, space\n"),
    (InputError("a.tif: is bad"), 2, "error: a.tif: is bad\n"),
    (KeyboardInterrupt(), 130, "stopped; what was finished is kept\n")])
def test_command_lines_end_with_one_line_and_a_status(capsys, result, status, text):
    def main():
        if isinstance(result, BaseException):
            raise result
        return result
    with pytest.raises(SystemExit) as stop:
        utils.run_command_line(main)
    assert stop.value.code == status
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(("device", "precision", "enabled"), [
    ("cpu", "auto", False), ("cpu", "float32", False), ("cpu", "bfloat16", True), ("cuda", "float32", False)])
def test_precision(device, precision, enabled):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CUDA is asked for where there is none
        context = utils.autocast(torch.device(device), precision)
    assert context._enabled == enabled
    assert context.fast_dtype == torch.bfloat16


def test_freed_memory_is_kept_with_glibc_and_nothing_breaks_elsewhere(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda *pair: calls.append(pair))
    monkeypatch.setattr(utils.sys, "platform", "linux")
    monkeypatch.setattr(utils.ctypes, "CDLL", lambda name: library)
    utils.choose_device("cpu")
    assert calls == [(-4, 0), (-1, -1), (-2, 2**28)]               # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    monkeypatch.setattr(utils.ctypes, "CDLL", lambda name: SimpleNamespace())
    utils.keep_freed_memory()
    monkeypatch.setattr(utils.sys, "platform", "darwin")
    monkeypatch.setattr(utils.ctypes, "CDLL", lambda name: pytest.fail("there is no glibc"))
    utils.keep_freed_memory()
