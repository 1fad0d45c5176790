"""Where the models are unsure, and with it which unlabelled slice to annotate next."""

import numpy as np
import pandas as pd
from tqdm import tqdm

from config import Config
from datasets import Data
from model_unet import UNet
from slices import Slice
from utils import InputError, choose_device, load_checkpoint, predict_image, write_atomically

MODELS = ("ssl_student", "ssl_teacher")


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """−p log₂ p − (1 − p) log₂(1 − p) [bit] of each probability of foreground; 0 where it is 0 or 1."""
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def slice_uncertainty(student: np.ndarray, teacher: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """How unsure two models are about one slice.

    `entropy` of their mean probability [bit per pixel] and `disagreement` (mean absolute difference) of all pixels;
    `fraction_predicted`. Entropy of an averaged prediction: Lakshminarayanan et al., 2017, arXiv:1612.01474; over
    test-time views: Wang et al., 2019, doi:10.1016/j.neucom.2019.01.103. It is not divided by the predicted foreground:
    that would rank slices by how little of it they have.

    Parameters
    ----------
    student, teacher : (H, W) ndarrays in [0, 1]
        Foreground probabilities.
    """
    mean = (student + teacher) / 2
    return {"entropy": float(binary_entropy(mean).mean()), "disagreement": float(np.abs(student - teacher).mean()),
            "fraction_predicted": float(np.mean(mean >= threshold))}


def without_label(data: Data) -> list[Slice]:
    """The slices that somebody could still annotate; where nothing is unlabelled, the labelled ones stand in for it."""
    labelled = {s.path for s in data.train}
    return [s for s in data.unlabelled if s.path not in labelled]


def rank_unlabelled(config: Config, data: Data) -> pd.DataFrame:
    """Write `annotate_next.csv`: the unlabelled slices by falling entropy of student and teacher; the table.

    With `config.tta` each model predicts the mean of eight views, which takes eight times as long. Neighbours of a
    slice are near-copies of it: annotate the first one, train again, and rank again, rather than taking the first few
    at once.

    Raises
    ------
    InputError
        When the run has no student and teacher yet, or no unlabelled slice.
    """
    slices = without_label(data)
    if not slices:
        raise InputError(f"{config.data}: no unlabelled slice to rank")
    device = choose_device(config.device)
    for name in MODELS:
        if not config.checkpoint(name).exists():
            raise InputError(f"{config.checkpoint(name)}: missing; train a semi-supervised method first")
    models = [UNet.from_weights(load_checkpoint(config.checkpoint(name))[0]).to(device) for name in MODELS]
    rows = []
    for s in tqdm(slices, "what to annotate next", unit="slice", leave=False):
        student, teacher = (predict_image(m, s.image, device, config.patch_size, 0.25, config.batch_size, config.tta)
                            for m in models)
        rows.append({"stem": s.stem, "file": str(s.path), **slice_uncertainty(student, teacher, config.threshold)})
    table = pd.DataFrame(rows).sort_values("entropy", ascending=False, ignore_index=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    write_atomically(config.run_folder / "annotate_next.csv", lambda path: table.to_csv(path, index=False))
    return table
