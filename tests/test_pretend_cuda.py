"""The whole project on a pretended GPU: nothing is on the wrong device, no step waits, and the tables are the CPU's."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import mean_teacher
import predict
import train
import utils
from config import Config, make_config
from conftest import TINY, write_data
from evaluation import annotate_next
from pretend_cuda import GPU, pretended_gpu
from runtime import loaders, progress
from runtime.devices import choose_device
from runtime.messages import InputError
from runtime.team import ALONE
from training import batches, preparation
from volumes.reading import open_volume
from volumes.records import targets

LOGS = ("sup_metrics.csv", "continued_metrics.csv", "ssl_metrics.csv")
METHODS = {"mean_teacher": {}, "unimatch": {}, "best": {"patch_size": 64, "downsample": 2}}


# --- the pretender itself -------------------------------------------------------------------------------------


def test_mixing_devices_is_refused_and_reading_is_a_wait():
    with pretended_gpu() as gpu:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there + 1).device == (there * there).device == GPU
        assert torch.zeros_like(there).is_cuda
        assert not here.is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        assert gpu.waits.total() == 0
        assert float(there.sum()) == 3.0
        assert there.cpu().numpy().tolist() == [1, 1, 1]
        assert gpu.waits.total() == 2


def test_a_copy_is_only_queued_from_pinned_memory():
    with pretended_gpu() as gpu:
        here = torch.ones(3)
        here.to("cuda", non_blocking=True)
        assert gpu.waits.total() == 1
        here.pin_memory().to("cuda", non_blocking=True)
        assert gpu.waits.total() == 1
        torch.tensor([1.0], device="cuda")
        assert gpu.waits.total() == 2
        host = torch.empty(3, pin_memory=True)
        host.copy_(torch.ones(3, device="cuda"), non_blocking=True)
        assert gpu.waits.total() == 2
        host.copy_(torch.ones(3, device="cuda"))
        assert gpu.waits.total() == 3


@pytest.mark.parametrize(
    "read",
    [
        repr,
        str,
        "{}".format,
        torch.where,
        lambda t: bool(t.sum()),
        lambda t: f"{t.sum():.3f}",
        lambda t: torch.repeat_interleave(t.long()),
        lambda t: torch.cuda.synchronize(),
    ],
)
def test_every_way_to_learn_a_number_is_a_wait(read):
    with pretended_gpu() as gpu:
        there = torch.ones(3, device="cuda")
        assert gpu.waits.total() == 0
        read(there)
        assert gpu.waits.total() == 1


def test_what_is_on_its_way_to_the_cpu_may_not_be_read_yet():
    with pretended_gpu():
        there = torch.ones(3, device="cuda")
        for send in (
            lambda: there.to("cpu", non_blocking=True),
            lambda: torch.empty(3, pin_memory=True).copy_(there, non_blocking=True),
        ):
            here, event = send(), torch.cuda.Event()
            event.record()
            with pytest.raises(RuntimeError, match="still on its way"):
                here.numpy()
            event.synchronize()
            assert here.numpy().tolist() == [1, 1, 1]


def test_a_generator_of_the_cpu_draws_nothing_on_it():
    with (
        pretended_gpu(),
        pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"),
    ):
        torch.rand(3, generator=torch.Generator(), device="cuda")


def test_modules_their_copies_and_their_optimizers_are_on_it():
    with pretended_gpu():
        model = torch.nn.Linear(2, 2).to("cuda")
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        model(torch.ones(1, 2, device="cuda")).sum().backward()
        optimizer.step()
        assert model.weight.grad.device == GPU
        assert optimizer.state[model.weight]["exp_avg"].device == GPU
        with pytest.raises(RuntimeError, match="same device"):
            model(torch.ones(1, 2))
    assert torch.ones(1).device.type == "cpu"
    assert not torch.cuda.is_available()


# --- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(workplace) -> Path:
    return write_data(workplace / "data" / "discs")


def settings(folder: Path, method: str, device: str, **more: object) -> Config:
    """Settings of a tiny run, with a learning rate that does not amplify rounding."""
    return make_config(
        **{
            **TINY,
            "ema_alpha": 0.9,
            "lr": 1e-5,
            **METHODS[method],
            "method": method,
            "device": device,
            "data": str(folder),
            "run": f"{method}_{device}",
            **more,
        }
    )


def train_all(config: Config) -> tuple[dict, pd.DataFrame]:
    """All phases: the tables, and what to annotate next."""
    data = train.prepare(config)
    for phase in (train.train_supervised, train.continue_supervised, train.train_semi_supervised):
        phase(config, data)
    return train.evaluate_run(config, data), annotate_next.rank_unlabelled(config, data)


@pytest.mark.parametrize("method", METHODS)
def test_logs_tables_and_ranking_are_those_of_the_cpu(folder, method):
    expected, ranking = train_all(settings(folder, method, "cpu"))
    with pretended_gpu() as gpu:
        result, ranking_there = train_all(settings(folder, method, "cuda"))
    assert gpu.operations > 1000
    for log in LOGS:
        here, there = (
            pd.read_csv(Path("runs") / f"{method}_{device}" / log) for device in ("cpu", "cuda")
        )
        pd.testing.assert_frame_equal(there, here, atol=1e-4, rtol=1e-4)
    for kind in ("full", "patches"):
        assert list(result[kind]["methods"]) == list(expected[kind]["methods"])
        for name, row in expected[kind]["methods"].items():
            assert result[kind]["methods"][name]["dice"]["mean"] == pytest.approx(
                row["dice"]["mean"], abs=5e-3
            )
    assert ranking_there["stem"].tolist() == ranking["stem"].tolist()


def steps_on_the_gpu(folder: Path, gpu, method: str, semi: bool) -> list[int]:
    """Waits of each of four steps, loading included."""
    config, device, waits = settings(folder, method, "cuda"), choose_device("cuda"), []
    phase = train.Phase("mean_teacher", "", "", 4, None, semi)
    job = train.Job(config, preparation.read_slices(config), phase, device, ALONE)
    training = train.open_training(job)
    training.student.train()
    with train.batches_of(job, 0) as (labelled, unlabelled):
        totals = [gpu.waits.total()]
        for number in range(4):
            mean_teacher.train_step(training, number, next(labelled), next(unlabelled), 0.5)
            totals.append(gpu.waits.total())
    waits = [after - before for before, after in itertools.pairwise(totals)]
    assert len(waits) == 4
    return waits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("semi", [False, True])
def test_no_step_waits_for_the_device(folder, method, semi):
    with pretended_gpu() as gpu:
        assert steps_on_the_gpu(folder, gpu, method, semi) == [0, 0, 0, 0], gpu.waits


def test_the_weights_are_asked_once_whether_they_are_numbers(folder):
    with pretended_gpu() as gpu:
        student, average = train.build_models(
            settings(folder, "mean_teacher", "cuda"), GPU, None, True
        )
        before = gpu.waits.total()
        assert train.all_finite({"student": student, "teacher": average})
        assert gpu.waits.total() == before + 1
        student.head.bias.data.fill_(np.nan)
        assert not train.all_finite({"student": student, "teacher": average})


@pytest.mark.parametrize(
    "options",
    [
        predict.Options(),
        predict.Options(tta=True, uncertainty="spread", three_axes=True, probabilities=True),
    ],
    ids=["plain", "everything"],
)
def test_a_volume_is_that_of_the_cpu(folder, checkpoint, options):
    grey = np.random.default_rng(0).integers(0, 255, (12, 40, 50), np.uint8)
    tifffile.imwrite(folder / "v.tif", grey, photometric="minisblack")
    masks = {}
    for device in ("cpu", "cuda"):
        volume = open_volume(folder / "v.tif")
        place = targets(volume, folder / f"mask_{device}.tif", options.kinds)["mask"]
        if device == "cpu":
            predict.predict_volume(
                volume, [checkpoint, checkpoint], place, options, torch.device("cpu")
            )
        else:
            with pretended_gpu() as gpu:
                predict.predict_volume(volume, [checkpoint, checkpoint], place, options, GPU)
            assert gpu.operations > 100
        masks[device] = tifffile.imread(place)
    assert (masks["cpu"] != masks["cuda"]).mean() < 1e-3


def test_a_phase_goes_on_in_the_middle_of_an_epoch(folder, monkeypatch):
    whole, cut = (settings(folder, "best", "cuda", run=run) for run in ("whole", "cut"))
    monkeypatch.setattr(progress, "SAVE_SECONDS", -1.0)  # a state after every step
    with pretended_gpu():
        train.train_supervised(whole, train.prepare(whole))

        data, real, calls = train.prepare(cut), mean_teacher.step_losses, []

        def pulled_out(*arguments):
            calls.append(1)
            if len(calls) == 4:  # the second step of the second epoch
                raise RuntimeError("the plug was pulled out")
            return real(*arguments)

        monkeypatch.setattr(mean_teacher, "step_losses", pulled_out)
        with pytest.raises(RuntimeError, match="plug"):
            train.train_supervised(cut, data)
        monkeypatch.setattr(mean_teacher, "step_losses", real)
        train.train_supervised(cut, data)
    logs = [pd.read_csv(Path("runs") / run / LOGS[0]) for run in ("whole", "cut")]
    pd.testing.assert_frame_equal(*logs)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=["torch", "cuDNN", "cuBLAS", "driver"],
)
def test_when_memory_runs_out_the_error_says_what_fits(folder, monkeypatch, error):
    config, real = settings(folder, "mean_teacher", "cuda", batch_size=4), mean_teacher.step_losses

    def losses(config, student, labelled, *rest):
        if len(labelled["strong"]) > 3:
            raise error
        return real(config, student, labelled, *rest)

    monkeypatch.setattr(mean_teacher, "step_losses", losses)
    with pretended_gpu():
        data = train.prepare(config)
        with pytest.raises(InputError, match="--batch-size 4: out of memory; 3 fits"):
            train.train_supervised(config, data)


# --- faults that must be seen ---------------------------------------------------------------------------------


def test_a_planted_tensor_that_stays_on_the_cpu_is_seen(folder, monkeypatch):
    monkeypatch.setattr(mean_teacher, "send", lambda tensor, device: tensor)
    with pretended_gpu() as gpu, pytest.raises(RuntimeError, match="same device"):
        steps_on_the_gpu(folder, gpu, "best", semi=True)


def test_a_planted_copy_from_memory_that_is_not_pinned_is_seen(folder, monkeypatch):
    monkeypatch.setattr(
        mean_teacher, "send", lambda tensor, device: tensor.to(device, non_blocking=True)
    )
    with pretended_gpu() as gpu:
        assert min(steps_on_the_gpu(folder, gpu, "best", semi=True)) > 0


def test_a_planted_look_at_the_loss_is_seen(folder, monkeypatch):
    real = mean_teacher.segmentation_loss

    def watched(*arguments):
        loss = real(*arguments)
        assert loss.item() > 0
        return loss

    monkeypatch.setattr(mean_teacher, "segmentation_loss", watched)
    with pretended_gpu() as gpu:
        assert steps_on_the_gpu(folder, gpu, "mean_teacher", semi=False) == [1, 1, 1, 1]


def test_a_planted_look_at_the_memory_of_the_device_is_seen(folder, checkpoint, monkeypatch):
    class Impatient:
        def __init__(self, tensor):
            tensor.numpy()

    monkeypatch.setattr(utils, "_HostCopy", Impatient)
    with pretended_gpu():
        model, _ = predict.load_model(checkpoint, GPU)
        with pytest.raises(TypeError, match="to numpy"):
            utils.predict_image(model, np.zeros((32, 32), np.uint8), GPU, utils.SlidingWindow(32))


def test_a_planted_result_that_is_not_waited_for_is_seen(folder, checkpoint, monkeypatch):
    class Unawaited:
        def __init__(self, tensor):
            self.host = torch.empty(tensor.shape, pin_memory=True).copy_(tensor, non_blocking=True)

        def wait(self):
            return self.host.numpy().copy()

    monkeypatch.setattr(utils, "_HostCopy", Unawaited)
    with pretended_gpu():
        model, _ = predict.load_model(checkpoint, GPU)
        with pytest.raises(RuntimeError, match="still on its way"):
            utils.predict_image(model, np.zeros((32, 32), np.uint8), GPU, utils.SlidingWindow(32))


def test_a_planted_batch_that_is_not_sent_is_seen(folder, monkeypatch):
    def make_loader(views, options, start, device):
        return loaders.make_loader(views, options, start, "cpu")

    config = settings(folder, "mean_teacher", "cuda")
    with pretended_gpu():
        data = train.prepare(config)
        monkeypatch.setattr(batches, "make_loader", make_loader)
        with pytest.raises(RuntimeError, match="same device"):
            train.train_supervised(config, data)


def test_a_planted_teacher_on_the_cpu_is_seen(folder, monkeypatch):
    real = train.build_models

    def build(*arguments):
        student, teacher = real(*arguments)
        return student, teacher.to("cpu")

    monkeypatch.setattr(train, "build_models", build)
    with pretended_gpu() as gpu, pytest.raises(RuntimeError, match="same device"):
        steps_on_the_gpu(folder, gpu, "mean_teacher", semi=True)


def test_settings_of_a_run_say_what_a_run_on_it_computes_in(folder):
    config = dataclasses.replace(settings(folder, "mean_teacher", "cuda"), run="about")
    with pretended_gpu():
        train.prepare(config)
    assert '"precision": "float32"' in Path("runs/about/environment.json").read_text()
