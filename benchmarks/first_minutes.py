"""The first minutes on a new device: are its results right, how fast is a step, and which ideas would make it faster?

    python benchmarks/first_minutes.py [--device auto] [--output FILE.json] [--miniature]

Needs neither data nor albumentations nor zarr, so that it runs where little is installed (torch, NumPy, OpenCV,
scikit-image, tifffile, safetensors, tqdm): batches are smooth noise, made on the spot. Each result is printed, and
written to FILE, the moment it is there, most important first; what takes long (compilation) comes last, so that a lease
of the device that ends early costs the least. A measurement that fails is named, and the rest still runs.

Times are medians of three rounds of many steps, the device waited for at the end of each. Beside a step stands the
multiple of its floor (`limits.py`), and how long the CPU takes to ask for one while the device has nothing to do: where
that is as long as the step, the device waits for the CPU.
"""

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mean_teacher  # noqa: E402 - after the path
import model_unet  # noqa: E402
import utils  # noqa: E402
from benchmarks.limits import Ceilings, image_work, measure_ceilings, step_work, wait_for  # noqa: E402
from config import Config, make_config  # noqa: E402
from model_unet import UNet, ema_update  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import autocast, choose_device, resolve_precision  # noqa: E402
from runtime.files import write_json  # noqa: E402

CPU = torch.device("cpu")
IMAGE = 768  # px, side of a predicted image


@dataclass
class Results:
    """What was measured, by name; printed and written as it comes."""

    path: Path | None
    found: dict[str, dict] = field(default_factory=dict)

    def add(self, name: str, /, **values: object) -> None:
        """One measurement."""
        self.found[name] = values
        print(
            f"{name:58s} " + "  ".join(f"{key} {value}" for key, value in values.items()),
            flush=True,
        )
        if self.path:
            write_json(self.path, self.found)

    def attempt(self, name: str, measure: Callable[[], dict]) -> None:
        """One measurement, or why there is none."""
        try:
            values = measure()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other measurements are wanted
            values = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.add(name, **values)


@dataclass(frozen=True)
class Bench:
    """Where and how large everything is measured.

    Attributes
    ----------
    width, patch : int
        Base channels of the network, and side of a patch at its own resolution [px].
    batches : tuple of int
        Batch sizes, labelled and unlabelled each.
    steps, rounds : int
        Timed together, and how often.
    images : int
        Predicted in a stream.
    """

    device: torch.device
    width: int = 64
    patch: int = 256
    batches: tuple[int, ...] = (4, 16)
    steps: int = 20
    rounds: int = 3
    images: int = 40

    def config(self, method: str, **settings: object) -> Config:
        """Settings of a method, of this size."""
        recipe = make_config(method=method)
        side = min(self.patch, recipe.patch_size // recipe.downsample)
        return make_config(
            **{
                "method": method,
                "device": str(self.device),
                "base_channels": self.width,
                "patch_size": side * recipe.downsample,
                **settings,
            }
        )


# --- batches and steps ----------------------------------------------------------------------------------------


def make_batch(config: Config, device: torch.device) -> dict[str, torch.Tensor]:
    """Smooth noise in 8 bit: `weak`, `strong` views and the `mask` of what is bright, as a loader gives them."""
    side = config.patch_size // config.downsample
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(config.batch_size, 1 + config.strong_views, side, side, generator=generator)
    smooth = F.avg_pool2d(noise, 9, stride=1, padding=4)
    smooth = 0.45 + 0.2 * (smooth - smooth.mean()) / smooth.std()
    grain = 0.02 * torch.randn(smooth.shape, generator=generator)
    views = ((smooth + grain).clamp(0, 1) * 255).round() / 255
    mask = (F.avg_pool2d(views[:, :1], 5, stride=1, padding=2) > 0.5).float()
    batch = {"weak": views[:, :1], "strong": views[:, 1:], "mask": mask}
    return {name: tensor.to(device) for name, tensor in batch.items()}


@dataclass
class Training:
    """A student, its teacher and everything that a step needs, without data."""

    config: Config
    device: torch.device
    semi: bool

    def __post_init__(self):
        torch.manual_seed(0)
        self.student, self.average = mean_teacher.build_models(
            self.config, self.device, None, self.semi
        )
        self.optimizer = mean_teacher.make_optimizer(self.config, self.student)
        no_schedule = types.SimpleNamespace(step=lambda: None)
        self.step = mean_teacher.Training(
            self.config, self.student, self.average, self.optimizer, no_schedule, self.semi
        )
        batch = make_batch(self.config, self.device)
        labelled = {"strong": batch["strong"][:, :1].contiguous(), "mask": batch["mask"]}
        self.labelled = itertools.repeat(labelled)
        self.unlabelled = itertools.repeat(batch if self.semi else None)
        self.first = 0

    def run(self, count: int, after_each: Callable[[], None] = lambda: None) -> float:
        """Take so many steps; seconds until the device has done them. `after_each` is called when one was asked for."""
        numbers = range(self.first, self.first + count)
        wait_for(self.device)
        began = time.perf_counter()
        self.student.train()
        losses = []
        with mean_teacher.trying_algorithms():
            for number in numbers:
                labelled, unlabelled = next(self.labelled), next(self.unlabelled)
                losses.append(mean_teacher.train_step(self.step, number, labelled, unlabelled, 0.5))
                after_each()
        mean_teacher.mean_losses(losses, self.first, self.config.nonfinite)
        wait_for(self.device)
        self.first += count
        return time.perf_counter() - began

    def ask(self) -> float:
        """Seconds that the CPU takes to ask for one step of a device that has nothing else to do."""
        wait_for(self.device)
        began, asked = time.perf_counter(), []
        self.run(1, lambda: asked.append(time.perf_counter() - began))
        return asked[0]


def time_step(
    bench: Bench,
    config: Config,
    semi: bool,
    ceilings: Ceilings | None = None,
    change: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    prepare: Callable[[Training], None] = lambda training: None,
) -> dict:
    """Milliseconds of a step, of the CPU's part in it, and what `change` or `prepare` makes of them."""
    with change():
        training = Training(config, bench.device, semi)
        prepare(training)
        training.run(3)  # algorithms are chosen, kernels are loaded
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = (
            statistics.median(training.run(bench.steps) for _ in range(bench.rounds)) / bench.steps
        )
        asked = statistics.median(training.ask() for _ in range(5))
    result = {"ms": round(1e3 * seconds, 2), "ms of the CPU": round(1e3 * asked, 2)}
    if ceilings:
        result["× floor"] = round(seconds / ceilings.floor(step_work(config, semi)), 2)
    if bench.device.type == "cuda":
        result["MB"] = torch.cuda.max_memory_allocated() >> 20
    return result


# --- is it right? ---------------------------------------------------------------------------------------------


def one_step(config: Config, device: torch.device, precision: str) -> dict[str, torch.Tensor]:
    """Losses, gradient, averaged weights and predicted probability of one step from fixed weights, as float64."""
    training = Training(config, device, semi=True)
    labelled, unlabelled = next(training.labelled), next(training.unlabelled)
    generator = torch.Generator().manual_seed(3)
    with autocast(device, precision):
        losses = mean_teacher.step_losses(
            config, training.student, labelled, training.average, unlabelled, generator
        )
    sum(losses).backward()
    gradients = [p.grad.flatten() for p in training.student.parameters() if p.grad is not None]
    # A plain gradient step: AdamW's first step is the sign of the gradient, which a rounding error can turn.
    with torch.no_grad():
        for p in training.student.parameters():
            if p.grad is not None:
                p.sub_(0.1 * p.grad)
    ema_update(training.average, training.student, 0.5)
    weights = [p.flatten() for p in training.average.parameters()]
    grey = (unlabelled["weak"][:, 0] * 255).round().byte()
    probability = utils.window_moments(training.average, grey, precision=precision)
    result = {
        "losses": torch.stack(losses).detach(),
        "gradient": torch.cat(gradients),
        "average": torch.cat(weights),
        "probability": probability,
    }
    return {name: tensor.double().cpu() for name, tensor in result.items()}


def parity(bench: Bench, precision: str) -> dict:
    """How far a step and a prediction on the device are from those of the CPU in float32."""
    config = bench.config(
        "unimatch",
        base_channels=min(16, bench.width),
        batch_size=2,
        confidence=0.0,
        hard_labels=False,
        consistency="bce_dice",
    )
    expected, result = one_step(config, CPU, "float32"), one_step(config, bench.device, precision)

    def relative(name: str) -> str:
        return f"{float((result[name] - expected[name]).norm() / expected[name].norm()):.1e}"

    largest = float((result["probability"] - expected["probability"]).abs().max())
    return {
        "losses": relative("losses"),
        "gradient": relative("gradient"),
        "average": relative("average"),
        "largest difference of a probability": f"{largest:.1e}",
    }


def waits(bench: Bench, method: str, semi: bool) -> dict:
    """The lines at which two steps made the CPU wait for the device, as CUDA itself reports them.

    The end of an epoch, where the losses are read, is left out.
    """
    training, marks = (
        Training(bench.config(method, base_channels=min(8, bench.width)), bench.device, semi),
        [],
    )
    training.run(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.run(2, lambda: marks.append(len(caught)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = {
        "/".join(Path(w.filename).parts[-2:]) + f":{w.lineno}"
        for w in caught[: marks[-1]]
        if "called a synchronizing" in str(w.message)
    }
    return {"at": sorted(lines) or "none"}


# --- images ---------------------------------------------------------------------------------------------------


def images_per_second(bench: Bench, factor: int, tta: bool, ceilings: Ceilings | None) -> dict:
    """A stream of images through windows of half overlap, files not counted."""
    patch = bench.patch if factor == 1 else bench.config("best").patch_size
    side = min(IMAGE, 4 * patch)
    model = UNet(bench.width, factor).to(bench.device).eval()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (side, side), np.uint8) for _ in range(4)]

    def predict(count: int) -> float:
        began = time.perf_counter()
        stream = itertools.islice(itertools.cycle(pictures), count)
        window = utils.SlidingWindow(patch, 0.5, tta)
        for probability in utils.predict_images(model, stream, bench.device, window):
            probability.mean()
        wait_for(bench.device)
        return (time.perf_counter() - began) / count

    predict(4)
    seconds = statistics.median(predict(bench.images) for _ in range(bench.rounds))
    result = {"side": side, "images/s": round(1 / seconds, 1), "ms": round(1e3 * seconds, 2)}
    if ceilings and not tta:
        floor = ceilings.floor(image_work(bench.width, side, patch, 0.5, factor))
        result["× floor"] = round(seconds / floor, 2)
    return result


# --- candidates: what might make a step faster ----------------------------------------------------------------


@contextlib.contextmanager
def replaced(where: object, name: str, value: object) -> Iterator[None]:
    """Let a name stand for something else while this is open."""
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def time_without_trying(bench: Bench, batch: int) -> dict:
    """A Mean Teacher step with cuDNN's own guess of the fastest algorithm, not the fastest of those tried.

    In a process of its own: what was tried for a shape is kept for the rest of a process.
    """
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--device",
            str(bench.device),
            "--untried",
            str(batch),
            *["--miniature"] * (bench.width < 64),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    return json.loads(done.stdout.splitlines()[-1])


def with_first_convolution_in_half_precision() -> contextlib.AbstractContextManager:
    """The convolution that sees grey values as all others."""
    return replaced(model_unet.FirstConv, "forward", torch.nn.Conv2d.forward)


def with_joins_in_float32() -> contextlib.AbstractContextManager:
    """Skip and interpolated features in the precision that autocast gives them."""

    def join(coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.cat([skip, fine], dim=1)

    return replaced(model_unet, "_upsample_and_concatenate", join)


def in_channels_last(training: Training) -> None:
    """Weights and, following them, activations with the channels of a pixel side by side."""
    for model in filter(None, (training.student, training.average)):
        model.to(memory_format=torch.channels_last)


def compiled(mode: str | None) -> Callable[[Training], None]:
    """Both networks through torch.compile."""

    def prepare(training: Training) -> None:
        for model in filter(None, (training.student, training.average)):
            model.compile(dynamic=False, mode=mode)

    return prepare


def time_graph(bench: Bench, config: Config) -> dict:
    """A Mean Teacher step recorded once as a CUDA graph, and played again: the CPU only says go.

    Nothing may be drawn on the CPU in it, so this is the classic recipe alone, with the same batch each time.
    """
    training = Training(config, bench.device, semi=True)
    labelled, unlabelled = next(training.labelled), next(training.unlabelled)
    weights = [p for p in training.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, config.lr, weight_decay=config.weight_decay, fused=True, capturable=True
    )

    def step() -> torch.Tensor:
        with autocast(bench.device, config.precision):
            losses = mean_teacher.step_losses(
                config, training.student, labelled, training.average, unlabelled
            )
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        norm = mean_teacher.get_total_norm([p.grad for p in weights])
        optimizer.step()
        ema_update(training.average, training.student, config.ema_alpha)
        return torch.stack([*(loss.detach() for loss in losses), norm])

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside), mean_teacher.trying_algorithms():
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def play() -> float:
        wait_for(bench.device)
        began = time.perf_counter()
        for _ in range(bench.steps):
            graph.replay()
        wait_for(bench.device)
        return (time.perf_counter() - began) / bench.steps

    play()
    return {"ms": round(1e3 * statistics.median(play() for _ in range(bench.rounds)), 2)}


def time_compiled(bench: Bench, mode: str | None) -> dict:
    """A Mean Teacher step of compiled networks, and the seconds that it took to compile and measure them."""
    began = time.perf_counter()
    result = time_step(bench, bench.config("mean_teacher"), True, prepare=compiled(mode))
    return {**result, "s in all": round(time.perf_counter() - began)}


# --- all of it ------------------------------------------------------------------------------------------------


def describe_ceilings(device: torch.device, limits: list[Ceilings]) -> dict:
    """What the device does at best, which is also added to `limits`."""
    limits.append(measure_ceilings(device))
    return {
        "TFLOP/s": round(limits[0].flop_per_s / 1e12, 1),
        "GB/s": round(limits[0].bytes_per_s / 1e9, 1),
    }


def measure_all(bench: Bench, results: Results) -> None:
    """Everything, most important first."""
    cuda = bench.device.type == "cuda"
    results.add(
        "device",
        name=torch.cuda.get_device_name(bench.device) if cuda else "CPU",
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version(),
        precision=resolve_precision(bench.device),
    )

    for precision in ("float32", "bfloat16"):
        results.attempt(
            f"beside the CPU in float32: {precision}", lambda p=precision: parity(bench, p)
        )

    limits: list[Ceilings] = []
    results.attempt("ceilings", lambda: describe_ceilings(bench.device, limits))
    ceilings = limits[0] if limits else None
    kinds = {
        "supervised": ("mean_teacher", False),
        "Mean Teacher": ("mean_teacher", True),
        "best": ("best", True),
        "UniMatch": ("unimatch", True),
    }
    for (name, (method, semi)), batch in itertools.product(kinds.items(), bench.batches):
        config = bench.config(method, batch_size=batch)
        results.attempt(
            f"step, {name}, batch {batch}" + f"+{batch}" * semi,
            lambda c=config, s=semi: time_step(bench, c, s, ceilings),
        )
    wide = bench.config("mean_teacher", base_channels=2 * bench.width)
    results.attempt(
        f"step, Mean Teacher, batch {wide.batch_size}+{wide.batch_size}, width {wide.base_channels}",
        lambda: time_step(bench, wide, True, ceilings),
    )

    for factor, tta in ((1, False), (4, False), (4, True)):
        results.attempt(
            f"images, downsample {factor}{', eight symmetries' if tta else ''}",
            lambda f=factor, t=tta: images_per_second(bench, f, t, ceilings),
        )
    if cuda:
        for name, (method, semi) in kinds.items():
            results.attempt(
                f"waits in two steps, {name}", lambda m=method, s=semi: waits(bench, m, s)
            )

    for batch in bench.batches:
        results.attempt(
            f"candidate, Mean Teacher {batch}+{batch}: cudnn.benchmark off",
            lambda b=batch: time_without_trying(bench, b),
        )
    changes = {
        "first convolution in half precision": {"change": with_first_convolution_in_half_precision},
        "joins in float32": {"change": with_joins_in_float32},
        "channels last": {"prepare": in_channels_last},
    }
    for (name, options), batch in itertools.product(changes.items(), bench.batches):
        config = bench.config("mean_teacher", batch_size=batch)
        results.attempt(
            f"candidate, Mean Teacher {batch}+{batch}: {name}",
            lambda c=config, o=options: time_step(bench, c, True, None, **o),
        )
    if cuda:
        results.attempt(
            "candidate, Mean Teacher, all in float32",
            lambda: time_step(bench, bench.config("mean_teacher", precision="float32"), True),
        )
        for batch in bench.batches:
            config = bench.config("mean_teacher", batch_size=batch)
            results.attempt(
                f"candidate, Mean Teacher {batch}+{batch}: CUDA graph",
                lambda c=config: time_graph(bench, c),
            )
        for name, mode in (
            ("torch.compile", None),
            ("torch.compile, reduce-overhead", "reduce-overhead"),
        ):
            results.attempt(
                f"candidate, Mean Teacher 4+4: {name}", lambda m=mode: time_compiled(bench, m)
            )


def main() -> None:
    """Measure, print and write."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    parser.add_argument(
        "--output", type=Path, help="write the results to this .json file, each as it comes"
    )
    parser.add_argument(
        "--miniature", action="store_true", help="all of it on a tiny network: does it run?"
    )
    parser.add_argument(
        "--untried",
        type=int,
        metavar="BATCH",
        help="only time a Mean Teacher step of this batch "
        "size, with algorithms that were not tried; one line of JSON",
    )
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    bench = Bench(device)
    if arguments.miniature:
        bench = Bench(device, width=2, patch=32, batches=(2,), steps=2, rounds=1, images=4)
    if arguments.untried:
        with replaced(mean_teacher, "trying_algorithms", contextlib.nullcontext):
            print(
                json.dumps(
                    time_step(
                        bench, bench.config("mean_teacher", batch_size=arguments.untried), True
                    )
                )
            )
        return
    measure_all(bench, Results(arguments.output))


if __name__ == "__main__":
    run_command_line(main)
