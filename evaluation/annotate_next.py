"""Which unlabelled slice to annotate next: a clear one that stands for many others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist

from config import Config
from evaluation.uncertainty import class_uncertainty, slice_uncertainty
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.devices import choose_device
from runtime.files import write_csv
from runtime.messages import InputError, quiet_bar
from slices.data_folder import Data
from slices.reading import Slice
from utils import place_windows, predict_image

MODELS = ("ssl_student", "ssl_teacher")
OVERLAP = 0.25  # of windows: as little as a ranking needs
DEEPEST = ("down4", "bottleneck")  # blocks whose features describe a slice
SYMMETRIES = 8  # of a square

# Each with at most half as many windows at a time, where memory runs out: enough for any number.
ATTEMPTS = 10


def without_label(data: Data) -> list[Slice]:
    """Return the slices that somebody could still annotate.

    Where nothing is unlabelled, the labelled ones stand in for it, and are left out here.
    """
    labelled = {s.path for s in data.train}
    return [s for s in data.unlabelled if s.path not in labelled]


def rank_unlabelled(config: Config, data: Data) -> pd.DataFrame:
    """Write `annotate_next.csv`, and return it: the unlabelled slices, the one to annotate next first.

    They are in the order of `rank_by_coverage`, with the features that the teacher's deepest blocks
    have for a slice. The half with the lower `entropy` comes first: on the demo the least certain
    slices, whose particles are below the noise, taught less than random ones
    (`benchmarks/annotation.py`). To pass over a slice, take the next with a high `coverage_alone`.
    With `config.tta` each model predicts the mean of eight views, which takes eight times as long.

    Raises
    ------
    InputError
        When the run has no student and teacher yet, or no unlabelled slice; as in `probability_of`.
    """
    slices = without_label(data)
    if not slices:
        raise InputError(f"{config.data}: no unlabelled slice to rank")
    device = choose_device(config.device)
    student, teacher = load_student_and_teacher(config, device)

    annotated = []
    features = []
    rows = []
    for s in quiet_bar([*data.train, *slices], "what to annotate next"):
        probability, features_of_slice = describe_slice(config, teacher, s, device)
        if len(annotated) < len(data.train):
            annotated.append(features_of_slice)
            continue
        features.append(features_of_slice)
        of_student = predict_slice(config, student, s, device)
        if probability.ndim == 3:
            inside = s.inside
            uncertainty = class_uncertainty(of_student[:, inside], probability[:, inside])
        else:
            inside = np.s_[...] if s.outside is None else ~s.outside
            uncertainty = slice_uncertainty(
                of_student[inside], probability[inside], config.threshold
            )
        rows.append({"stem": s.stem, "file": str(s.path), **uncertainty})

    table = pd.DataFrame(rows)
    is_clear = (table["entropy"] <= table["entropy"].median()).to_numpy()
    ranking = rank_by_coverage(np.stack(annotated), np.stack(features), preferred=is_clear)
    table = table.iloc[ranking.order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    table.insert(3, "coverage", ranking.coverage)
    table.insert(4, "coverage_alone", ranking.coverage_alone)
    write_csv(config.run_folder / "annotate_next.csv", table)
    return table


def load_student_and_teacher(config: Config, device: torch.device) -> list[UNet]:
    """Return student and teacher of a run; `InputError` where it has none yet."""
    models = []
    for name in MODELS:
        path = config.checkpoint(name)
        if not path.exists():
            raise InputError(f"{path}: missing; train a semi-supervised method first")
        weights, _ = load_checkpoint(path)
        models.append(UNet.from_weights(weights).to(device))

    return models


# --- what a slice is like -------------------------------------------------------------------------


def predict_slice(config: Config, model: UNet, s: Slice, device: torch.device) -> np.ndarray:
    """Return the foreground probability of a slice, (H, W), or those of all classes, (K, H, W).

    Windows overlap as little as a ranking needs.
    """
    window = replace(config.sliding_window, overlap=OVERLAP)
    return predict_image(model, s.image, device, window)


def describe_slice(
    config: Config, teacher: UNet, s: Slice, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a slice shows, as `predict_slice`, and its features, (F,): the mean over all windows and symmetries.

    Where memory runs out on the way, windows are predicted again, a few at a time, and what was
    collected before would count twice. The slice is then described anew, with as many windows at a
    time as have turned out to fit.
    """
    views = len(place_windows(s.image.shape, config.patch_size, OVERLAP))
    if config.tta:
        views *= SYMMETRIES
    for _ in range(ATTEMPTS):
        with collected_features(teacher) as passes:
            probability = predict_slice(config, teacher, s, device)
        features = torch.cat(passes)  # (views, F)
        if len(features) == views:
            return probability, features.mean(0).numpy()

    raise InputError(
        f"{s.path}: memory ran out in each of {ATTEMPTS} attempts to describe this slice; free the "
        "device of other work"
    )


@contextmanager
def collected_features(model: UNet) -> Iterator[list[torch.Tensor]]:
    """Collect the features of the deepest blocks while this is open.

    Each forward pass appends (B, 48 × base_channels): standard deviation and mean over the window
    of each channel.
    """
    of_block: dict[str, torch.Tensor] = {}
    passes: list[torch.Tensor] = []

    def keep(name: str, output: torch.Tensor) -> None:
        """Keep what a block gives; with the last block a pass is complete."""
        deviation_and_mean = torch.std_mean(output.float(), (2, 3))
        of_block[name] = torch.cat(deviation_and_mean, 1)
        if name == DEEPEST[-1]:
            passes.append(torch.cat([of_block[block] for block in DEEPEST], 1).cpu())

    handles = []
    for name in DEEPEST:
        block = getattr(model, name)
        handles.append(
            block.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        )

    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


# --- the order ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """The order in which slices should be annotated.

    Attributes
    ----------
    order : (N,) int ndarray
        Indices of unlabelled slices, the one to annotate first first.
    coverage : (N,) ndarray in [0, 1]
        In that order: how much of the sum of distances is gone once the slices up to here are
        annotated. 1 throughout where all unlabelled slices are alike.
    coverage_alone : (N,) ndarray in [0, 1]
        In that order: the same for this slice alone. A slice that is like one further up has a low
        place but may have a high value.
    """

    order: np.ndarray
    coverage: np.ndarray
    coverage_alone: np.ndarray


def rank_by_coverage(
    labelled: np.ndarray, unlabelled: np.ndarray, preferred: np.ndarray
) -> Ranking:
    """Rank slices so that every slice soon resembles an annotated one.

    The distance of two slices is that of their features, each of unit variance among the unlabelled
    slices. Every unlabelled slice has a distance to the nearest annotated one, and the next slice
    to annotate is always the one that lowers the sum of these distances most (a greedy choice, as
    in facility location). The first k preferred ones reach at least 1 − 1/e = 63 % of the reduction
    that any k of them could reach (Nemhauser, Wolsey & Fisher, 1978, doi:10.1007/BF01588971).
    Representative slices for annotation: Yang et al., 2017, arXiv:1706.04737; covering the data:
    Sener & Savarese, 2018, arXiv:1708.00489. In image classification typical examples taught more
    than uncertain ones as long as labels were few: Hacohen, Dekel & Weinshall, 2022,
    arXiv:2202.02794.

    Parameters
    ----------
    labelled : (L, F) ndarray
        Features of the annotated slices, at least one.
    unlabelled : (N, F) ndarray
        Features of the slices to choose from.
    preferred : (N,) bool ndarray
        Slices that are chosen before all others. They stand for the others too.
    """
    scale = unlabelled.std(0)
    is_constant = scale <= 1e-6 * np.abs(unlabelled).max(0)
    scale[is_constant] = np.inf
    between = cdist(unlabelled / scale, unlabelled / scale)  # (N, N)
    nearest = cdist(unlabelled / scale, labelled / scale).min(1)  # (N,)
    total = nearest.sum() or 1.0

    # By how much each slice alone would lower the sum of the distances.
    gains = np.array([gain_of(nearest, distances) for distances in between])
    order = []
    sums = []
    for group in (preferred, ~preferred):
        # Gains only fall when others are annotated: what was computed before is an upper bound, and
        # few are computed again (Minoux, 1978).
        bounds = np.where(group, gains, -1)
        while bounds.max() >= 0:
            best = bounds.argmax()
            gain = gain_of(nearest, between[best])
            if gain < bounds[best]:
                bounds[best] = gain
                continue
            bounds[best] = -1
            nearest = np.minimum(nearest, between[best])
            order.append(int(best))
            sums.append(nearest.sum())

    coverage = 1 - np.array(sums) / total
    return Ranking(np.array(order), coverage, gains[order] / total)


def gain_of(nearest: np.ndarray, distances: np.ndarray) -> float:
    """Return by how much the sum of distances to the nearest annotated slice falls with one more slice."""
    return np.maximum(nearest - distances, 0).sum()
