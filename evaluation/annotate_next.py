"""Which unlabelled slice to annotate next: a clear one that stands for many others."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist

from config import Config
from evaluation.uncertainty import slice_uncertainty
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.devices import choose_device
from runtime.files import write_atomically
from runtime.messages import InputError, quiet_bar
from slices.data_folder import Data
from slices.reading import Slice
from utils import place_windows, predict_image

MODELS = ("ssl_student", "ssl_teacher")
OVERLAP = 0.25  # of windows
ATTEMPTS = 10  # each with at most half as many windows at a time, where memory runs out: enough for any number
DEEPEST = ("down4", "bottleneck")  # blocks whose features describe a slice


def without_label(data: Data) -> list[Slice]:
    """The slices that somebody could still annotate; where nothing is unlabelled, the labelled ones stand in for it."""
    labelled = {s.path for s in data.train}
    return [s for s in data.unlabelled if s.path not in labelled]


@contextmanager
def collected_features(model: UNet) -> Iterator[list[torch.Tensor]]:
    """While it is open, each forward pass appends (B, 48 × base_channels): standard deviation and mean over the window
    of each channel of the deepest blocks.
    """
    found, passes = {}, []

    def keep(name: str, output: torch.Tensor) -> None:
        found[name] = torch.cat(torch.std_mean(output.float(), (2, 3)), 1)
        if name == DEEPEST[-1]:
            passes.append(torch.cat([found[block] for block in DEEPEST], 1).cpu())

    handles = [getattr(model, name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
               for name in DEEPEST]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def rank_by_coverage(labelled: np.ndarray, unlabelled: np.ndarray, preferred: np.ndarray,
                     ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order in which slices should be annotated, so that every slice soon resembles an annotated one.

    The distance of two slices is that of their features, each of unit variance among the unlabelled slices. Every
    unlabelled slice has a distance to the nearest annotated one, and the next slice to annotate is always the one that
    lowers the sum of these most (facility location: depots are placed so that every customer is near one). The first k
    preferred ones reach at least 1 − 1/e = 63 % of the reduction that any k of them could reach (Nemhauser, Wolsey &
    Fisher, 1978, doi:10.1007/BF01588971). Representative slices for annotation: Yang et al., 2017, arXiv:1706.04737;
    covering the data: Sener & Savarese, 2018, arXiv:1708.00489. In image classification typical examples taught more
    than uncertain ones as long as labels were few: Hacohen, Dekel & Weinshall, 2022, arXiv:2202.02794.

    Parameters
    ----------
    labelled : (L, F) ndarray
        Features of the annotated slices, at least one.
    unlabelled : (N, F) ndarray
        Features of the slices to choose from.
    preferred : (N,) bool ndarray
        Slices that are chosen before all others. They stand for the others too.

    Returns
    -------
    order : (N,) int ndarray
        Indices of unlabelled slices, the one to annotate first first.
    coverage : (N,) ndarray in [0, 1]
        In that order: how much of the sum of distances is gone once the slices up to here are annotated. 1 throughout
        where all unlabelled slices are alike.
    alone : (N,) ndarray in [0, 1]
        In that order: the same for this slice alone. A slice that is like one further up has a low place but may have
        a high value.
    """
    scale = unlabelled.std(0)
    scale[scale <= 1e-6 * np.abs(unlabelled).max(0)] = np.inf  # constant features say nothing
    between = cdist(unlabelled / scale, unlabelled / scale)                                     # (N, N)
    nearest = cdist(unlabelled / scale, labelled / scale).min(1)                                # (N,)
    total = nearest.sum() or 1.0
    gains = np.array([np.maximum(nearest - distances, 0).sum() for distances in between])
    order, left = [], []
    for group in (preferred, ~preferred):
        bounds = np.where(group, gains, -1)  # gains only fall: few are computed again (Minoux, 1978)
        while bounds.max() >= 0:
            best = bounds.argmax()
            gain = np.maximum(nearest - between[best], 0).sum()
            if gain < bounds[best]:
                bounds[best] = gain
                continue
            order.append(int(best))
            bounds[best] = -1
            nearest = np.minimum(nearest, between[best])
            left.append(nearest.sum())
    return np.array(order), 1 - np.array(left) / total, gains[order] / total


def predict_slice(config: Config, model: UNet, s: Slice, device: torch.device) -> np.ndarray:
    """Foreground probability of a slice, (H, W), through windows that overlap as little as a ranking needs."""
    return predict_image(model, s.image, device, config.patch_size, OVERLAP, config.tta, config.precision)


def describe_slice(config: Config, teacher: UNet, s: Slice, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of a slice, (H, W), and its features, (F,): the mean over all windows and symmetries.

    Where memory runs out on the way, windows are predicted again, a few at a time, and what was collected before would
    count twice. The slice is then described anew, with as many windows at a time as have turned out to fit.
    """
    views = len(place_windows(s.image.shape, config.patch_size, OVERLAP)) * (8 if config.tta else 1)
    for _ in range(ATTEMPTS):
        with collected_features(teacher) as passes:
            probability = predict_slice(config, teacher, s, device)
        features = torch.cat(passes)                                            # (views, F)
        if len(features) == views:
            return probability, features.mean(0).numpy()
    raise InputError(f"{s.path}: memory ran out in each of {ATTEMPTS} attempts to describe this slice; free the device "
                     "of other work")


def rank_unlabelled(config: Config, data: Data) -> pd.DataFrame:
    """Write `annotate_next.csv`: the unlabelled slices, the one to annotate next first; the table.

    They are in the order of `rank_by_coverage`, with the features that the teacher's deepest blocks have for a slice.
    The half with the lower `entropy` comes first: on the demo the least certain slices, whose particles are below the
    noise, taught less than random ones (`benchmarks/annotation.py`). To pass over a slice, take the next with a high
    `coverage_alone`. With `config.tta` each model predicts the mean of eight views, which takes eight times as long.

    Raises
    ------
    InputError
        When the run has no student and teacher yet, or no unlabelled slice; as in `probability_of`.
    """
    slices = without_label(data)
    if not slices:
        raise InputError(f"{config.data}: no unlabelled slice to rank")
    device = choose_device(config.device)
    for name in MODELS:
        if not config.checkpoint(name).exists():
            raise InputError(f"{config.checkpoint(name)}: missing; train a semi-supervised method first")
    student, teacher = (UNet.from_weights(load_checkpoint(config.checkpoint(name))[0]).to(device) for name in MODELS)

    rows, features = [], []
    for s in quiet_bar([*data.train, *slices], "what to annotate next"):
        probability, described = describe_slice(config, teacher, s, device)
        features.append(described)
        if len(features) > len(data.train):
            of_student = predict_slice(config, student, s, device)
            inside = np.s_[...] if s.outside is None else ~s.outside
            rows.append({"stem": s.stem, "file": str(s.path),
                         **slice_uncertainty(of_student[inside], probability[inside], config.threshold)})
    features, table = np.stack(features), pd.DataFrame(rows)
    certain = (table["entropy"] <= table["entropy"].median()).to_numpy()
    order, coverage, alone = rank_by_coverage(*np.split(features, [len(data.train)]), certain)
    table = table.iloc[order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    table.insert(3, "coverage", coverage)
    table.insert(4, "coverage_alone", alone)
    write_atomically(config.run_folder / "annotate_next.csv", lambda path: table.to_csv(path, index=False))
    return table
