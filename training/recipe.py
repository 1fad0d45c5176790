"""A recipe for the material at hand: rules from what painted slices are like to the settings of a run.

Every rule is a function that returns some settings and the reason for them, in words. What is given
by hand always wins. nnU-Net showed how far rules that read the data set go (Isensee et al., 2021,
doi:10.1038/s41592-020-01008-z); these are for few labels and for minutes instead of days. What comes
of them on twelve materials is measured by `benchmarks/materials.py`.
"""

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import AUTO, STRONG, Config, make_config
from evaluation.annotate_next import without_label
from mean_teacher import Training, build_models, make_optimizer, make_scheduler, train_step
from runtime.devices import choose_device
from runtime.files import read_json
from runtime.messages import InputError
from runtime.team import ALONE
from slices.data_folder import Data
from slices.fingerprint import Fingerprint, take_fingerprint
from slices.reading import natural_key
from training.batches import batches_of
from training.phases import Job, supervised_phase

RECIPE_FILE = "recipe.json"
MINUTES = 10.0  # of a whole run, where nothing else is asked for

# A network that works on means of blocks of this side sees as many times further, for as much time;
# but only where a mask that is made of such blocks has this Dice with the painted one.
COARSE = 2  # px
LEAST_KEPT = 0.99
VIEW = 256  # pixels of the network's input, along a side

STRENGTH = 0.3  # of perturbations, as a share of those of `best`

# Above this, outlines and texture run in one direction as everybody sees.
DIRECTED = 0.15
NEAR_AXIS = 10.0  # degrees, by which a flip may turn that direction

# Of the time for training: each epoch of the first phase has as many steps as one of the others.
SUPERVISED_EPOCHS = 24
OTHER_EPOCHS = 8
SEMI_COST = 2.3  # of a step with unlabelled slices, in steps without
LEAST_STEPS = 100  # of the first phase: with fewer, a network has not begun
MOST_STEPS = 6000  # of the first phase: with more, few slices are learned by heart

# Of all minutes; the others are left for what follows training: tables, figures, page.
SHARE_OF_TRAINING = 0.75

WARM_UP, TIMED = 2, 5  # steps that are not timed, and that are


# --- what a recipe is -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Some settings that belong together, and why they are what they are.

    Attributes
    ----------
    topic : str
        What they decide, in a word.
    settings : dict
    reason : str
        What was chosen and why, in words, on one line.
    """

    topic: str
    settings: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The settings of a run, and how they were chosen.

    Attributes
    ----------
    config : Config
    choices : list of Choice
    fingerprint : dict
        What the painted slices are like, as `slices.fingerprint.Fingerprint` has it.
    minutes : float
        For the whole run, as it was asked for.
    data : Data or None
        The slices, where they were read for this; they need not be read again.
    """

    config: Config
    choices: list[Choice]
    fingerprint: dict[str, Any]
    minutes: float
    data: Data | None = None

    def describe(self) -> str:
        """Return what was chosen and why, a line each."""
        width = max((len(choice.topic) for choice in self.choices), default=0)
        lines = [f"{choice.topic:{width}}  {choice.reason}" for choice in self.choices]
        return "\n".join(lines)

    def record(self) -> dict:
        """Return what is kept of it beside the settings of a run, as JSON has it."""
        return {
            "minutes": self.minutes,
            "choices": [dataclasses.asdict(choice) for choice in self.choices],
            "fingerprint": self.fingerprint,
        }


def read_recipe(folder: Path, config: Config) -> Recipe:
    """Return the recipe with which a run was begun; without reasons where its file is gone.

    Raises
    ------
    InputError
        Where the file is not what a run writes.
    """
    path = folder / RECIPE_FILE
    if not path.exists():
        return Recipe(config, [], {}, MINUTES)

    kept = read_json(path)
    try:
        choices = [Choice(**choice) for choice in kept["choices"]]
        return Recipe(config, choices, kept["fingerprint"], kept["minutes"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is not what a run writes ({error}); remove it") from None


# --- from the data to the settings ----------------------------------------------------------------


def configure(given: dict[str, Any], data: Data, minutes: float = MINUTES) -> Recipe:
    """Return a recipe for some slices: look at them, apply the rules, count the steps.

    Parameters
    ----------
    given : dict
        Settings that were chosen by hand, which win.
    data : Data
    minutes : float
        For the whole run, on the device that the settings name.
    """
    fingerprint = look_at(data)
    choices = [
        choose_resolution(fingerprint, given),
        choose_orientations(fingerprint),
        choose_perturbations(),
    ]
    settings: dict[str, Any] = {}
    for choice in choices:
        settings |= choice.settings
    config = make_config(**{**settings, **given, "method": AUTO})

    choices += choose_steps(config, data, minutes)
    for choice in choices:
        settings |= choice.settings
    config = make_config(**{**settings, **given, "method": AUTO})
    choices = [mention_given(choice, given) for choice in choices]
    return Recipe(config, choices, dataclasses.asdict(fingerprint), minutes, data)


def mention_given(choice: Choice, given: dict[str, Any]) -> Choice:
    """Return a choice whose reason also says which of its settings are others, because they were given."""
    others = []
    for name, value in choice.settings.items():
        if name in given and given[name] != value:
            others.append(f"--{name.replace('_', '-')} {given[name]}")
    if not others:
        return choice
    reason = f"{choice.reason}; but {', '.join(others)}, as given"
    return dataclasses.replace(choice, reason=reason)


def look_at(data: Data) -> Fingerprint:
    """Return what the painted slices are like that training may know: not those of the test."""
    known = sorted([*data.train, *data.val], key=lambda s: natural_key(s.stem))
    return take_fingerprint(known)


# --- the rules ------------------------------------------------------------------------------------


def choose_resolution(fingerprint: Fingerprint, given: dict[str, Any]) -> Choice:
    """Choose the side of the blocks whose means the network works on: 2 px where masks survive that, else 1."""
    kept = fingerprint.kept[str(COARSE)]
    downsample = COARSE if kept >= LEAST_KEPT else 1
    text = f"a mask of {COARSE}×{COARSE} px blocks keeps a Dice of {kept:.3f}"
    if given.get("downsample", downsample) != downsample:
        downsample = given["downsample"]
        reason = f"means of {downsample}×{downsample} px, as given; {text}"
    elif downsample == 1:
        reason = f"every pixel: {text}, less than {LEAST_KEPT}"
    else:
        reason = f"means of {downsample}×{downsample} px: {text}"
    return Choice("resolution", {"downsample": downsample, "patch_size": VIEW * downsample}, reason)


def choose_orientations(fingerprint: Fingerprint) -> Choice:
    """Choose how views may be turned: all ways where nothing has a direction, else so that it is kept."""
    coherence, direction = fingerprint.coherence, fingerprint.direction
    if coherence < DIRECTED:
        settings = {"quarter_turns": True, "vertical_flip_p": 0.5, "rotation": 45.0}
        return Choice(
            "orientations", settings, f"all: no direction is preferred ({coherence:.2f} of 1)"
        )

    # A flip turns a direction of 20° into one of 160°.
    from_axis = min(direction % 90, 90 - direction % 90)
    flips = 0.5 if from_axis <= NEAR_AXIS else 0.0
    settings = {"quarter_turns": False, "flip_p": flips, "vertical_flip_p": flips, "rotation": 10.0}
    kept = "flips and small turns" if flips else "small turns only"
    reason = f"{kept}: things run at {direction:.0f}° to rows ({coherence:.2f} of 1)"
    return Choice("orientations", settings, reason)


def choose_perturbations() -> Choice:
    """Choose how far the grey values of views may be changed: little, whatever the material is."""
    reason = f"{100 * STRENGTH:.0f} % of those of `best`: more noise would hide a fine texture"
    return Choice("perturbations", weaker(STRONG, STRENGTH), reason)


def weaker(perturbations: dict[str, float], share: float) -> dict[str, float]:
    """Return perturbations of grey values that reach a share as far; the largest gamma, 1, is none."""
    settings = {}
    for name, reach in perturbations.items():
        none = 1.0 if name == "gamma" else 0.0
        settings[name] = round(none + share * (reach - none), 4)
    return settings


def choose_steps(config: Config, data: Data, minutes: float) -> list[Choice]:
    """Choose whether to learn from unlabelled slices, and as many steps as the time allows."""
    unlabelled = without_label(data)
    if unlabelled:
        ssl_epochs = OTHER_EPOCHS
        reason = (
            f"yes: {len(unlabelled)} slices are unlabelled; the validation slices tell in the end "
            "whether it paid"
        )
    else:
        ssl_epochs = 0
        reason = "no: there are no unlabelled slices"
    semi = Choice("consistency", {"ssl_epochs": ssl_epochs}, reason)

    seconds = seconds_per_step(config, data)
    steps_per_epoch = steps_that_fit(minutes, seconds, ssl_epochs)
    supervised = steps_per_epoch * SUPERVISED_EPOCHS
    text = f"{supervised} supervised"
    if ssl_epochs:
        text += f" and {steps_per_epoch * ssl_epochs} with unlabelled slices"
    reason = f"{text} in about {minutes:g} minutes: one takes {seconds:.2g} s"
    settings = {"sup_epochs": SUPERVISED_EPOCHS, "steps_per_epoch": steps_per_epoch}
    return [semi, Choice("steps", settings, reason)]


def steps_that_fit(minutes: float, seconds: float, ssl_epochs: int) -> int:
    """Return how many steps an epoch may have, so that a whole run takes about so many minutes.

    Rounded to two digits, so that a run done again has the same number in spite of a clock that is
    never quite the same.
    """
    # The control takes as many steps as the semi-supervised phase.
    epochs = SUPERVISED_EPOCHS + ssl_epochs * (1 + SEMI_COST)
    steps = 60 * minutes * SHARE_OF_TRAINING / seconds / epochs
    least, most = LEAST_STEPS / SUPERVISED_EPOCHS, MOST_STEPS / SUPERVISED_EPOCHS
    steps = min(max(steps, least), most)
    unit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return unit * round(steps / unit)


def seconds_per_step(config: Config, data: Data) -> float:
    """Return how long a supervised step takes: the median of a few, with the making of its views."""
    device = choose_device(config.device)
    job = Job(config, data, supervised_phase(config), device, ALONE)
    student, average = build_models(config, device, start=None, is_semi_supervised=False)
    optimizer = make_optimizer(config, student)
    scheduler = make_scheduler(config, optimizer, WARM_UP + TIMED)
    training = Training(config, student, average, optimizer, scheduler, warm_up=True)
    training.student.train()

    times = []
    with batches_of(job, 0) as (labelled, _):
        for number in range(WARM_UP + TIMED):
            begun = time.perf_counter()
            losses = train_step(training, number, next(labelled))
            # Reading a loss waits for the device.
            losses.sum().item()
            times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:])
