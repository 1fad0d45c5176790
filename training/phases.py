"""The phases of a run, and the methods that they make."""

from dataclasses import dataclass

import torch

from config import AUTO, PIXEL_CLASSIFIER, Config
from runtime.messages import InputError
from runtime.team import Team
from slices.data_folder import Data

CONTROL = "supervised continued"
LABELS = {
    "mean_teacher": "Mean Teacher",
    "cutmix_mt": "CutMix Mean Teacher",
    "fixmatch": "FixMatch",
    "unimatch": "UniMatch",
    "best": "best",
    AUTO: "auto",
}


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes
    ----------
    name : str
        Its key in `phases.json`, on which the order of its batches depends, too. The
        semi-supervised phase is called `mean_teacher` whatever the method. `train.kept_models`
        names the weights.
    label : str
        What tables and progress bars call what it trains.
    log : str
        Its table in the run folder, a row per epoch; none is written where there are no epochs.
    epochs : int
        0 where it is not divided into any.
    start : str or None
        The checkpoint that it begins with, by name; None for random weights.
    is_semi_supervised : bool
        Whether a teacher labels unlabelled slices.
    """

    name: str
    label: str
    log: str
    epochs: int
    start: str | None = None
    is_semi_supervised: bool = False

    @property
    def unlabelled_stream(self) -> str:
        """The name on which the order and the views of the unlabelled batches depend."""
        return f"{self.name} unlabelled"


def pixel_classifier_phase() -> Phase:
    """Return the phase that fits the pixel classifier of a network, before all others: `best_pixel_classifier`."""
    return Phase("pixel_classifier", PIXEL_CLASSIFIER, "pixel_classifier_metrics.csv", 0)


def supervised_phase(config: Config) -> Phase:
    """Return the phase that trains on labelled slices, from random weights: `best_supervised`."""
    return Phase("supervised", "supervised", "sup_metrics.csv", config.sup_epochs)


def control_phase(config: Config) -> Phase:
    """Return the step-matched control of the semi-supervised phase: `best_continued`.

    It starts where that one starts, with optimizer and schedule reset likewise, and takes as many
    steps. No block of it is frozen: it is the supervised recipe, trained for longer.
    """
    start = start_of_second_phase(config)
    return Phase("continued", CONTROL, "continued_metrics.csv", config.ssl_epochs, start)


def semi_supervised_phase(config: Config) -> Phase:
    """Return the phase of student and teacher on all slices: `best_ssl_student`, `best_ssl_teacher`.

    Blocks of the encoder that `config.freeze` names are frozen in the student.

    Raises
    ------
    InputError
        Where the method is `supervised`, and has no such phase.
    """
    if config.method not in LABELS:
        raise InputError(f"--method {config.method}: has no semi-supervised phase")
    return Phase(
        "mean_teacher",
        LABELS[config.method],
        "ssl_metrics.csv",
        config.ssl_epochs,
        start_of_second_phase(config),
        is_semi_supervised=True,
    )


def start_of_second_phase(config: Config) -> str | None:
    """Return the checkpoint with which control and semi-supervised phase begin; None for random weights."""
    return "supervised" if config.warm_start else None


def method_names(method: str) -> dict[str, str]:
    """Return the rows of the tables, in their order: name of the trained model → name of its checkpoint."""
    names = {
        PIXEL_CLASSIFIER: "pixel_classifier",
        "supervised": "supervised",
        CONTROL: "continued",
    }
    if method in LABELS:
        for kind in ("student", "teacher"):
            names[f"{LABELS[method]} ({kind})"] = f"ssl_{kind}"
    return names


@dataclass(frozen=True)
class Job:
    """A phase, as this process trains it: settings, data, device, and the processes that share it."""

    config: Config
    data: Data
    phase: Phase
    device: torch.device
    team: Team

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch: one pass over the labelled slices, unless another number is set."""
        one_pass = max(1, len(self.data.train) // self.config.batch_size)
        return self.config.steps_per_epoch or one_pass
