"""Whole images predicted through overlapping windows of the training size, overlap metrics, and seeds."""

import functools
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from runtime.devices import autocast, is_out_of_memory
from runtime.messages import InputError

WINDOW_PIXELS = {"cuda": 32 * 256**2, "cpu": 4 * 256**2}  # of the network's input in one forward pass


# --- seeds ----------------------------------------------------------------------------------------------------

def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still draw from it
    torch.manual_seed(seed)


# --- overlap metrics ------------------------------------------------------------------------------------------

def overlap_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice, IoU, precision and recall of one binary image.

    Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN): Taha & Hanbury, 2015,
    doi:10.1186/s12880-015-0068-x. An empty prediction of an empty truth scores 1 in all four; otherwise a
    ratio without a denominator (precision of an empty prediction, say) is 0. `losses` follows the same rule.

    Parameters
    ----------
    prediction, truth : (H, W) bool or 0/1 ndarray

    Raises
    ------
    InputError
        When the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise InputError(f"prediction is {prediction.shape} px, truth {truth.shape}; they must be of one size")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    if tp + fp + fn == 0:
        return {"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0}
    return {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn),
            "precision": tp / max(1, tp + fp), "recall": tp / max(1, tp + fn)}


# --- sliding windows ------------------------------------------------------------------------------------------

def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixel of each window along one axis; the last window ends exactly at the edge.

    Parameters
    ----------
    length, window : int
        Pixels of the axis and of the window; `length` ≥ `window`.
    overlap : float in [0, 1)
        Shared fraction of neighbouring windows.
    """
    stride = max(1, int(window * (1 - overlap)))
    return [*range(0, length - window, stride), length - window]


@functools.lru_cache(maxsize=4)
def gaussian_window(size: int, device: torch.device) -> torch.Tensor:
    """(size, size) float32 weights: a Gaussian with σ = size/8 around the centre, never below 1e-3.

    Smooth weights hide the seams between windows, whose borders see less context: Isensee et al., nnU-Net,
    Nature Methods 2021, doi:10.1038/s41592-020-01008-z.
    """
    profile = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2)
    return torch.from_numpy(np.maximum(np.outer(profile, profile), 1e-3).astype(np.float32)).to(device)


def place_windows(shape: tuple[int, int], patch_size: int, overlap: float) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows through which an image of `shape`, filled up to one window, is looked at."""
    rows, columns = (window_starts(max(length, patch_size), patch_size, overlap) for length in shape)
    return [(slice(top, top + patch_size), slice(left, left + patch_size)) for top in rows for left in columns]


def windows_at_once(model: torch.nn.Module, patch_size: int, device: torch.device) -> int:
    """Windows in one forward pass: on CUDA enough to fill it, else enough that its threads seldom wait."""
    side = patch_size // min(getattr(member, "factor", 1) for member in members(model))
    return max(1, WINDOW_PIXELS.get(device.type, WINDOW_PIXELS["cpu"]) // side**2)


def members(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The models of a `ModuleList`, whose predictions are averaged, or the one model."""
    return list(model) if isinstance(model, torch.nn.ModuleList) else [model]


@torch.inference_mode()
def window_moments(model: torch.nn.Module, windows: torch.Tensor, tta: bool = False, square: bool = False,
                   precision: str = "auto") -> torch.Tensor:
    """(B, P, P) uint8 windows → (B, 1, P, P) float32 foreground probability p, both where the model is.

    With `square` (B, 2, P, P): also the mean of p². Means are over the models of a `ModuleList` and, with `tta`, over
    the eight flips and quarter turns of a square (test-time augmentation). `precision` as in `utils.autocast`.
    """
    x = windows[:, None].float() / 255                                              # (B, 1, P, P)
    total = x.new_zeros(len(x), 1 + square, *x.shape[2:])
    views = [(turns, flip) for turns in range(4) for flip in (False, True)] if tta else [(0, False)]
    with autocast(x.device, precision):
        for member, (turns, flip) in itertools.product(members(model), views):
            view = member(torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1)))
            back = torch.rot90(view.float().sigmoid(), -turns, (-2, -1))
            back = back.flip(-1) if flip else back
            total[:, :1] += back
            if square:
                total[:, 1:] += back.square()
    return total / (len(views) * len(members(model)))


_fitting: dict[tuple, int] = {}  # how many windows fitted where too many were tried, by what a window needs


def forget_what_fitted() -> None:
    """Try as many windows as ever again: for when memory that was taken has been given back."""
    _fitting.clear()


def moments_that_fit(model: torch.nn.Module, windows: torch.Tensor, tta: bool = False, square: bool = False,
                     precision: str = "auto") -> torch.Tensor:
    """Return `window_moments`, computed in as many parts as the memory of the device asks for.

    Where it does not hold so many windows, half of them are tried, and that number is remembered: the next call for
    such a model and such windows does not run out of memory again.

    Raises
    ------
    RuntimeError, MemoryError
        When memory does not hold a single window, or something else is wrong.
    """
    sizes = [(getattr(member, "factor", 1), sum(weight.numel() for weight in member.parameters()))
             for member in members(model) if isinstance(member, torch.nn.Module)]
    need = (windows.device, windows.shape[-1], square, precision, *sizes)

    parts, done = [], 0
    while done < len(windows):
        count = min(len(windows) - done, _fitting.get(need, len(windows)))
        part = moments_or_none(model, windows[done:done + count], tta, square, precision)
        if part is None:
            _fitting[need] = (count + 1) // 2
        else:
            parts.append(part)
            done += count
    return torch.cat(parts)


def moments_or_none(model: torch.nn.Module, windows: torch.Tensor, tta: bool, square: bool,
                    precision: str) -> torch.Tensor | None:
    """Return `window_moments`, or None where memory holds some of these windows perhaps, but not all."""
    try:
        return window_moments(model, windows, tta, square, precision)
    except (RuntimeError, MemoryError) as error:
        if len(windows) == 1 or not is_out_of_memory(error):
            raise

    # Here the error is gone, and with it what held the memory of the attempt.
    if windows.is_cuda:
        torch.cuda.empty_cache()
    return None


def probability_of(model: torch.nn.Module, batch: np.ndarray, device: torch.device, tta: bool = False,
                   precision: str = "auto") -> np.ndarray:
    """Foreground probability of equally sized square images.

    Parameters
    ----------
    model : module
        (B, 1, P, P) in [0, 1] → (B, 1, P, P) logits; in eval mode.
    batch : (B, P, P) uint8 ndarray
    tta : bool
        Average over the eight flips and quarter turns of a square (test-time augmentation).
    precision : str
        Of convolutions: float32, bfloat16, or auto as in `utils.resolve_precision`.

    Returns
    -------
    (B, P, P) float32 ndarray

    Raises
    ------
    InputError
        When the model's output is not a number.
    """
    some = torch.from_numpy(np.ascontiguousarray(batch)).split(windows_at_once(model, batch.shape[-1], device))
    found = torch.cat([moments_that_fit(model, windows.to(device), tta, precision=precision) for windows in some])
    return checked(found[:, 0].cpu().numpy())


def checked(probability: np.ndarray) -> np.ndarray:
    """The same; `InputError` when it is not a number."""
    if np.isnan(probability).any():
        raise InputError("the model's output is not a number; train again with a lower --lr")
    return probability


class Canvas:
    """An image, mirrored at its edges where it is smaller than a window, and the sum of what its windows said."""

    def __init__(self, image: np.ndarray, patch_size: int, overlap: float, device: torch.device, spread: bool = False):
        self.shape, self.patch_size = image.shape, patch_size
        missing = [max(0, patch_size - length) for length in image.shape]
        self.corner = missing[0] // 2, missing[1] // 2
        padded = np.pad(image, [(m // 2, m - m // 2) for m in missing], mode="reflect")
        self.windows = place_windows(padded.shape, patch_size, overlap)
        self.left = len(self.windows)
        self.pixels = torch.from_numpy(padded).to(device)                    # (H, W) uint8
        self.total = torch.zeros((1 + spread, *padded.shape), device=device)
        self.weight = torch.zeros(padded.shape, device=device)

    def add(self, window: tuple[slice, slice], moments: torch.Tensor) -> None:
        """Blend the (1 or 2, P, P) moments of a window in; with the last one the result sets off to the CPU."""
        weights = gaussian_window(self.patch_size, moments.device)
        self.total[:, *window] += weights * moments
        self.weight[window] += weights
        self.left -= 1
        if self.left == 0:
            (top, left), (height, width) = self.corner, self.shape
            found = (self.total / self.weight)[:, top:top + height, left:left + width]
            if len(found) == 1:
                self.result = to_host(found[0])
            else:
                self.result = to_host(torch.stack([found[0], (found[1] - found[0].square()).clamp_(0).sqrt_()]))


def to_host(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Start copying a tensor to the CPU; call what this returns to wait for the copy and get it."""
    if tensor.device.type != "cuda":
        return lambda: tensor.cpu().numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def arrive() -> np.ndarray:
        arrived.synchronize()
        return host.numpy().copy()
    return arrive


def predict_images(model: torch.nn.Module, images: Iterable[np.ndarray], device: torch.device, patch_size: int = 256,
                   overlap: float = 0.5, tta: bool = False, spread: bool = False, precision: str = "auto",
                   ) -> Iterator[np.ndarray]:
    """Foreground probability of each of many images, in their order; see `predict_image`.

    With `spread` (2, H, W): also the standard deviation over all that was averaged, which is models of a `ModuleList`,
    overlapping windows and, with `tta`, symmetries.

    Windows of consecutive images share forward passes, and while the CPU waits for one result the device works on the
    next image. Memory does not grow with the number of images: two are open, or as many as share a forward pass. An
    error of `images` comes after the results of the images before it.
    """
    batch, opened, waiting, failures = windows_at_once(model, patch_size, device), deque(), [], []

    def until_failure() -> Iterator[np.ndarray]:
        try:
            yield from images
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised below
            failures.append(error)

    @torch.inference_mode()
    def compute() -> None:
        windows = torch.stack([canvas.pixels[window] for canvas, window in waiting])
        found = moments_that_fit(model, windows, tta, spread, precision)
        for (canvas, window), moments in zip(waiting, found, strict=True):
            canvas.add(window, moments)
        waiting.clear()

    for image in until_failure():
        opened.append(Canvas(image, patch_size, overlap, device, spread))
        for window in opened[-1].windows:
            waiting.append((opened[-1], window))
            if len(waiting) == batch:
                compute()
        while len(opened) > 1 and opened[0].left == 0:
            yield checked(opened.popleft().result())
    if waiting:
        compute()
    for canvas in opened:
        yield checked(canvas.result())
    if failures:
        raise failures[0]


def predict_image(model: torch.nn.Module, image: np.ndarray, device: torch.device, patch_size: int = 256,
                  overlap: float = 0.5, tta: bool = False, precision: str = "auto") -> np.ndarray:
    """Foreground probability of a whole image, by overlapping windows blended with Gaussian weights.

    InstanceNorm makes a prediction depend on the whole window, so windows have the size used in training. The
    last window of a row or column ends at the edge; an image smaller than a window is mirrored at its edges.

    Parameters
    ----------
    model, tta, precision
        As in `probability_of`.
    image : (H, W) uint8 ndarray
    patch_size, overlap : int, float
        Window side [px], shared fraction of neighbouring windows.

    Returns
    -------
    (H, W) float32 ndarray in [0, 1]

    Raises
    ------
    InputError
        When the model's output is not a number.
    """
    return next(predict_images(model, [image], device, patch_size, overlap, tta, precision=precision))
