"""Whole images predicted through overlapping windows of the training size, overlap metrics, and seeds."""

import functools
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from losses import class_probabilities
from runtime.devices import autocast, is_out_of_memory
from runtime.messages import InputError

# Pixels of the network's input in one forward pass.
WINDOW_PIXELS = {"cuda": 32 * 256**2, "cpu": 4 * 256**2}

LEAST_WEIGHT = 1e-3  # of a pixel at the edge of a window


# --- seeds ----------------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still draw from it
    torch.manual_seed(seed)


# --- overlap metrics ------------------------------------------------------------------------------


def overlap_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return Dice, IoU, precision and recall of one binary image.

    Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN): Taha & Hanbury, 2015,
    doi:10.1186/s12880-015-0068-x. An empty prediction of an empty truth scores 1 in all four;
    otherwise a ratio without a denominator (precision of an empty prediction, say) is 0. `losses`
    follows the same rule.

    Parameters
    ----------
    prediction, truth : (H, W) bool or 0/1 ndarray

    Raises
    ------
    InputError
        When the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise InputError(
            f"prediction is {prediction.shape} px, truth {truth.shape}; they must be of one size"
        )

    prediction = prediction.astype(bool)
    truth = truth.astype(bool)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    if tp + fp + fn == 0:
        return {"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0}
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "precision": tp / max(1, tp + fp),
        "recall": tp / max(1, tp + fn),
    }


# --- windows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlidingWindow:
    """How a whole image is predicted.

    Attributes
    ----------
    patch_size : int
        Side of a window [px]: that of training, because InstanceNorm makes a prediction depend on
        the whole window.
    overlap : float
        Shared fraction of neighbouring windows, 0 to below 1.
    tta : bool
        Whether predictions are averaged over the eight flips and quarter turns of a square
        (test-time augmentation).
    precision : str
        Of convolutions: float32, bfloat16, or auto as in `runtime.devices.resolve_precision`.
    """

    patch_size: int = 256
    overlap: float = 0.5
    tta: bool = False
    precision: str = "auto"


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return the first pixel of each window along one axis.

    The last window ends exactly at the edge.

    Parameters
    ----------
    length, window : int
        Pixels of the axis and of the window; `length` ≥ `window`.
    overlap : float in [0, 1)
        Shared fraction of neighbouring windows.
    """
    stride = max(1, int(window * (1 - overlap)))
    last = length - window
    return [*range(0, last, stride), last]


def place_windows(
    shape: tuple[int, int], patch_size: int, overlap: float
) -> list[tuple[slice, slice]]:
    """Return rows and columns of the windows through which an image is looked at.

    Along a side that is shorter than a window there is one, as long as the window.
    """
    tops, lefts = [window_starts(max(length, patch_size), patch_size, overlap) for length in shape]
    windows = []
    for top in tops:
        for left in lefts:
            windows.append((slice(top, top + patch_size), slice(left, left + patch_size)))
    return windows


@functools.lru_cache(maxsize=4)
def gaussian_window(size: int, device: torch.device) -> torch.Tensor:
    """Return (size, size) float32 weights: a Gaussian with σ = size/8 around the centre, never below 1e-3.

    Smooth weights hide the seams between windows, whose borders see less context: Isensee et al.,
    nnU-Net, Nature Methods 2021, doi:10.1038/s41592-020-01008-z.
    """
    distance = np.arange(size) - (size - 1) / 2
    profile = np.exp(-0.5 * (distance / (size / 8)) ** 2)
    weights = np.maximum(np.outer(profile, profile), LEAST_WEIGHT)
    return torch.from_numpy(weights.astype(np.float32)).to(device)


def windows_at_once(model: torch.nn.Module, patch_size: int, device: torch.device) -> int:
    """Return the windows in one forward pass: on CUDA enough to fill it, else enough that its threads seldom wait."""
    pixels = WINDOW_PIXELS.get(device.type, WINDOW_PIXELS["cpu"])
    side = patch_size // min(factor_of(member) for member in members(model))
    return max(1, pixels // side**2)


def members(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the models of a `ModuleList`, whose predictions are averaged, or the one model."""
    if isinstance(model, torch.nn.ModuleList):
        return list(model)
    return [model]


def factor_of(model: torch.nn.Module) -> int:
    """Return the side of the blocks whose means a network works on [px]."""
    return getattr(model, "factor", 1)


def outputs_of(model: torch.nn.Module) -> int:
    """Return how many probabilities a model gives of a pixel: 1 of foreground, or one for each class of several."""
    return getattr(members(model)[0], "outputs", 1)


# --- what a model says of windows -----------------------------------------------------------------


@torch.inference_mode()
def window_moments(
    model: torch.nn.Module,
    windows: torch.Tensor,
    tta: bool = False,
    with_square: bool = False,
    precision: str = "auto",
) -> torch.Tensor:
    """Return the probability p of foreground in windows, or those of all classes, and perhaps p², where the model is.

    Means are over the models of a `ModuleList` and, with `tta`, over the eight flips and quarter
    turns of a square.

    Parameters
    ----------
    model : module
        (B, 1, P, P) in [0, 1] → (B, C, P, P) logits, C as `outputs_of`; in eval mode.
    windows : (B, P, P) uint8 tensor
    tta, precision
        As in `SlidingWindow`.
    with_square : bool
        Whether the mean of p² is returned, too, of several classes that of their sum.

    Returns
    -------
    (B, C, P, P) float32 tensor
        Or (B, C + 1, P, P).
    """
    x = windows[:, None].float() / 255  # (B, 1, P, P)
    symmetries = [(0, False)]
    if tta:
        symmetries = [(turns, flipped) for turns in range(4) for flipped in (False, True)]

    outputs = outputs_of(model)
    total = x.new_zeros(len(x), outputs + int(with_square), *x.shape[2:])
    with autocast(x.device, precision):
        for member in members(model):
            for turns, flipped in symmetries:
                logits = member(turn(x, turns, flipped))
                p = turn_back(class_probabilities(logits), turns, flipped)
                total[:, :outputs] += p
                if with_square:
                    total[:, outputs:] += p.square().sum(1, keepdim=True)

    return total / (len(symmetries) * len(members(model)))


def turn(x: torch.Tensor, turns: int, flipped: bool) -> torch.Tensor:
    """Return (…, P, P) flipped from left to right, or not, and turned by so many quarters."""
    if flipped:
        x = x.flip(-1)
    return torch.rot90(x, turns, (-2, -1))


def turn_back(x: torch.Tensor, turns: int, flipped: bool) -> torch.Tensor:
    """Return (…, P, P) as it was before `turn`."""
    x = torch.rot90(x, -turns, (-2, -1))
    if flipped:
        x = x.flip(-1)
    return x


# How many windows fitted into memory where too many were tried, by what a window needs.
_fitting: dict[tuple, int] = {}


def forget_what_fitted() -> None:
    """Try as many windows as ever again: for when memory that was taken has been given back."""
    _fitting.clear()


def moments_that_fit(
    model: torch.nn.Module,
    windows: torch.Tensor,
    tta: bool = False,
    with_square: bool = False,
    precision: str = "auto",
) -> torch.Tensor:
    """Return `window_moments`, computed in as many parts as the memory of the device asks for.

    Where it does not hold so many windows, half of them are tried, and that number is remembered:
    the next call for such a model and such windows does not run out of memory again.

    Raises
    ------
    RuntimeError, MemoryError
        When memory does not hold a single window, or something else is wrong.
    """
    sizes = [size_of(member) for member in members(model)]
    need = (windows.device, windows.shape[-1], with_square, precision, *sizes)

    parts = []
    done = 0
    while done < len(windows):
        count = min(len(windows) - done, _fitting.get(need, len(windows)))
        some = windows[done : done + count]
        part = moments_or_none(model, some, tta, with_square, precision)
        if part is None:
            _fitting[need] = (count + 1) // 2
        else:
            parts.append(part)
            done += count

    return torch.cat(parts)


def size_of(model: torch.nn.Module) -> tuple[int, int]:
    """Return what decides how much memory a window takes: blocks and weights of a model."""
    weights = 0
    if isinstance(model, torch.nn.Module):
        weights = sum(weight.numel() for weight in model.parameters())
    return factor_of(model), weights


def moments_or_none(
    model: torch.nn.Module,
    windows: torch.Tensor,
    tta: bool,
    with_square: bool,
    precision: str,
) -> torch.Tensor | None:
    """Return `window_moments`, or None where memory holds some of these windows perhaps, but not all."""
    try:
        return window_moments(model, windows, tta, with_square, precision)
    except (RuntimeError, MemoryError) as error:
        if len(windows) == 1 or not is_out_of_memory(error):
            raise

    # Here the error is gone, and with it what held the memory of the attempt.
    if windows.is_cuda:
        torch.cuda.empty_cache()
    return None


def probability_of(
    model: torch.nn.Module,
    batch: np.ndarray,
    device: torch.device,
    tta: bool = False,
    precision: str = "auto",
) -> np.ndarray:
    """Return the foreground probability of equally sized square images, or the probabilities of all classes.

    Parameters
    ----------
    model : module
        As in `window_moments`.
    batch : (B, P, P) uint8 ndarray
    device : torch.device
    tta, precision
        As in `SlidingWindow`.

    Returns
    -------
    (B, P, P) float32 ndarray
        Or (B, K, P, P).

    Raises
    ------
    InputError
        When the model's output is not a number.
    """
    count = windows_at_once(model, batch.shape[-1], device)
    moments = []
    for windows in torch.from_numpy(np.ascontiguousarray(batch)).split(count):
        moments.append(moments_that_fit(model, windows.to(device), tta, precision=precision))
    probabilities = torch.cat(moments)  # (B, C, P, P)
    if probabilities.shape[1] == 1:
        probabilities = probabilities[:, 0]
    return checked(probabilities.cpu().numpy())


def checked(probability: np.ndarray) -> np.ndarray:
    """Return the same probability; `InputError` when it is not a number."""
    if np.isnan(probability).any():
        raise InputError("the model's output is not a number; train again with a lower --lr")
    return probability


def decide(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Return the class of each pixel: (H, W) bool of the probability of foreground, uint8 of those of all classes.

    Parameters
    ----------
    probability : (H, W) or (K, H, W) ndarray
    threshold : float
        Probability from which a pixel is foreground; of several classes the most probable one is
        taken.
    """
    if probability.ndim == 2:
        return probability >= threshold
    return probability.argmax(axis=0).astype(np.uint8)


# --- whole images ---------------------------------------------------------------------------------


def predict_image(
    model: torch.nn.Module,
    image: np.ndarray,
    device: torch.device,
    sliding_window: SlidingWindow = SlidingWindow(),
) -> np.ndarray:
    """Return the foreground probability of a whole image, or the probabilities of all classes.

    By overlapping windows, blended with Gaussian weights. The last window of a row or column ends at
    the edge; an image smaller than a window is mirrored at its edges.

    Parameters
    ----------
    model : module
        As in `probability_of`.
    image : (H, W) uint8 ndarray
    device : torch.device
    sliding_window : SlidingWindow

    Returns
    -------
    (H, W) float32 ndarray in [0, 1]
        Or (K, H, W).

    Raises
    ------
    InputError
        When the model's output is not a number.
    """
    return next(predict_images(model, [image], device, sliding_window))


def predict_images(
    model: torch.nn.Module,
    images: Iterable[np.ndarray],
    device: torch.device,
    sliding_window: SlidingWindow = SlidingWindow(),
    with_spread: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the probabilities of each of many images, in their order; see `predict_image`.

    Windows of consecutive images share forward passes, and while the CPU waits for one result the
    device works on the next image. Memory does not grow with the number of images: two are open, or
    as many as share a forward pass. An error of `images` comes after the results of the images
    before it.

    Parameters
    ----------
    model, device, sliding_window
        As in `predict_image`.
    images : iterable of (H, W) uint8 ndarrays
    with_spread : bool
        Whether (2, H, W) or (K + 1, H, W) are yielded: also the standard deviation over all that was
        averaged, which is models of a `ModuleList`, overlapping windows and, with `tta`, symmetries.
        Of several classes it is the root of half the sum of their variances, which is the same for
        two.
    """
    stitcher = _Stitcher(model, device, sliding_window, with_spread)
    images = iter(images)
    failure = None
    while True:
        try:
            image = next(images)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised below
            failure = error
            break
        stitcher.add(image)
        yield from stitcher.pop_finished(keep=1)

    stitcher.predict_waiting()
    yield from stitcher.pop_finished()
    if failure is not None:
        raise failure


class _Stitcher:
    """Predict windows of consecutive images together, and blend them image by image."""

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device,
        sliding_window: SlidingWindow,
        with_spread: bool,
    ):
        self.model = model
        self.device = device
        self.sliding_window = sliding_window
        self.with_spread = with_spread
        self.planes = outputs_of(model) + int(with_spread)
        self.batch = windows_at_once(model, sliding_window.patch_size, device)
        self.canvases: deque[_Canvas] = deque()
        self.waiting: list[tuple[_Canvas, tuple[slice, slice]]] = []

    def add(self, image: np.ndarray) -> None:
        """Open an image, and predict its windows as soon as they fill a forward pass."""
        canvas = _Canvas(image, self.device, self.sliding_window, self.planes)
        self.canvases.append(canvas)
        for window in canvas.windows:
            self.waiting.append((canvas, window))
            if len(self.waiting) == self.batch:
                self.predict_waiting()

    @torch.inference_mode()
    def predict_waiting(self) -> None:
        """Predict the windows that wait, and blend them into their images."""
        if not self.waiting:
            return
        windows = torch.stack([canvas.pixels[window] for canvas, window in self.waiting])
        moments = moments_that_fit(
            self.model,
            windows,
            self.sliding_window.tta,
            self.with_spread,
            self.sliding_window.precision,
        )
        for (canvas, window), of_window in zip(self.waiting, moments, strict=True):
            canvas.blend(window, of_window, self.with_spread)
        self.waiting.clear()

    def pop_finished(self, keep: int = 0) -> Iterator[np.ndarray]:
        """Yield the results of the first images that are finished, and close them, but for the last `keep`.

        The last image is kept while others follow: the device works on it while the CPU waits for
        the one before.
        """
        while len(self.canvases) > keep and self.canvases[0].left == 0:
            yield checked(self.canvases.popleft().result.wait())


class _Canvas:
    """An image, mirrored at its edges where it is smaller than a window, and the weighted sum of its windows."""

    def __init__(
        self,
        image: np.ndarray,
        device: torch.device,
        sliding_window: SlidingWindow,
        planes: int,
    ):
        self.patch_size = sliding_window.patch_size
        missing = [max(0, self.patch_size - length) for length in image.shape]
        before = [pixels // 2 for pixels in missing]
        around = [(first, pixels - first) for first, pixels in zip(before, missing, strict=True)]
        padded = np.pad(image, around, mode="reflect")
        (top, left), (height, width) = before, image.shape
        self.inside = (slice(top, top + height), slice(left, left + width))

        self.windows = place_windows(padded.shape, self.patch_size, sliding_window.overlap)
        self.left = len(self.windows)
        self.pixels = torch.from_numpy(padded).to(device)  # (H, W) uint8
        self.total = torch.zeros((planes, *padded.shape), device=device)
        self.weight = torch.zeros(padded.shape, device=device)

    def blend(self, window: tuple[slice, slice], moments: torch.Tensor, with_spread: bool) -> None:
        """Add the moments of a window, (planes, P, P).

        With the last one the result sets off to the CPU.
        """
        weights = gaussian_window(self.patch_size, moments.device)
        self.total[:, *window] += weights * moments
        self.weight[window] += weights
        self.left -= 1
        if self.left == 0:
            self.result = _HostCopy(self._combine(with_spread))

    def _combine(self, with_spread: bool) -> torch.Tensor:
        """Return the probability of the image, (H, W), or those of all classes; behind them the standard deviation."""
        moments = (self.total / self.weight)[:, *self.inside]
        if not with_spread:
            return moments[0] if len(moments) == 1 else moments
        mean, mean_square = moments[:-1], moments[-1]
        variance = (mean_square - mean.square().sum(0)).clamp_(0)
        if len(mean) > 1:
            variance /= 2
        return torch.cat([mean, variance.sqrt_()[None]])


class _HostCopy:
    """A copy of a tensor on its way to the CPU."""

    def __init__(self, tensor: torch.Tensor):
        self.arrived = None
        if tensor.device.type != "cuda":
            # It is copied when it is asked for: until then the device may go on.
            self.host = tensor
            return
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.host.copy_(tensor, non_blocking=True)
        self.arrived = torch.cuda.Event()
        self.arrived.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> np.ndarray:
        """Return the values as soon as they are here."""
        if self.arrived is None:
            return self.host.cpu().numpy()
        self.arrived.synchronize()
        # Pinned memory is scarce: it is given back with the tensor.
        return self.host.numpy().copy()
