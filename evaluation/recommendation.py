"""Which of a run's models to use: one of semi-supervision only where validation does not speak against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.checkpoints import load_checkpoint
from runtime.messages import InputError
from runtime.run_folder import read_phases

# Names of checkpoints and what they are called. Of models that are as good, the first is taken.
MODELS = {
    "ssl_teacher": "the teacher",
    "ssl_student": "the student",
    "continued": "the control",
    "supervised": "the supervised model",
    "pixel_classifier": "the pixel classifier",
}

# What is taken where no validation slice can tell, of those that there are. A run that was stopped may have few.
UNJUDGED = ("continued", "supervised", "pixel_classifier", "ssl_teacher", "ssl_student")


@dataclass(frozen=True)
class Recommendation:
    """A model, and why it is recommended.

    Attributes
    ----------
    name : str
        Of its checkpoint: `ssl_teacher` is that of `best_ssl_teacher.safetensors`.
    reason : str
        In words.
    """

    name: str
    reason: str


def recommend(scores: Mapping[str, float | None]) -> Recommendation:
    """Return which model to use: the one with the highest validation Dice.

    A model that learned from unlabelled slices is so only taken where it does not lose to its
    control. Where no validation slice has foreground, nothing says that it helped, and the control
    is taken.

    Parameters
    ----------
    scores : dict of str to float or None
        Validation Dice of the kept weights by the names of their checkpoints, some of `MODELS`.
    """
    known = {name: score for name in MODELS if (score := scores.get(name)) is not None}
    if not known:
        name = next(name for name in UNJUDGED if name in scores)
        return Recommendation(
            name, f"{MODELS[name]}: no validation slice says that another is better"
        )

    name = max(known, key=lambda candidate: known[candidate])
    reason = f"{MODELS[name]}: Dice {known[name]:.3f} on validation slices"
    others = [f"{MODELS[other]} {score:.3f}" for other, score in known.items() if other != name]
    if others:
        reason += f" ({', '.join(others)})"
    return Recommendation(name, reason)


def kept_weights(run: Path) -> dict[str, dict]:
    """Return epoch and validation Dice of the weights that a run kept, by the names of their checkpoints."""
    kept: dict[str, dict] = {}
    for phase in read_phases(run).values():
        kept |= phase["best"]
    return kept


def recommend_model(run: Path) -> Recommendation:
    """Return which model of a finished run to use."""
    return recommend({name: best["val_dice"] for name, best in kept_weights(run).items()})


def recommended_checkpoint(folder: Path) -> tuple[Path, str]:
    """Return the checkpoint to use of those in `checkpoints/NAME`, and in words why.

    Raises
    ------
    InputError
        Where there is none, or one of them is damaged.
    """
    scores = {}
    for name in MODELS:
        path = folder / f"best_{name}.safetensors"
        if path.exists():
            _, details = load_checkpoint(path)
            scores[name] = validation_dice(path, details)
    if not scores:
        raise InputError(
            f"{folder}: no such checkpoint, and no folder of a run's; give one of checkpoints/, or a file in it"
        )
    chosen = recommend(scores)
    return folder / f"best_{chosen.name}.safetensors", chosen.reason


def validation_dice(path: Path, details: dict) -> float | None:
    """Return the validation Dice that a checkpoint states, None where it states none.

    Raises
    ------
    InputError
        Where it is no Dice, or the checkpoint was renamed: then it would be taken for another model.
    """
    dice = details.get("val_dice")
    if dice is not None and not (isinstance(dice, int | float) and 0 <= dice <= 1):
        raise InputError(
            f"{path}: its validation Dice, {dice}, is none; take it from a copy of the run"
        )
    name = details.get("name", path.stem.removeprefix("best_"))
    if path.stem != f"best_{name}":
        raise InputError(
            f"{path}: holds best_{name}; give it its name back, or give one file instead of the folder"
        )
    return dice
