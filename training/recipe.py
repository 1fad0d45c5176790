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

import numpy as np

from config import AUTO, PRESETS, STRONG, Config, as_typed, make_config
from evaluation.annotate_next import without_label
from evaluation.models import FOREST_PIXELS
from mean_teacher import Training, build_models, make_optimizer, make_scheduler, train_step
from model_unet import STRIDE
from runtime.devices import choose_device, is_out_of_memory
from runtime.files import read_json
from runtime.messages import InputError
from runtime.team import join_team
from slices.data_folder import Data
from slices.fingerprint import Fingerprint, finest, take_fingerprints
from slices.reading import Slice, natural_key
from training.batches import batches_of
from training.failures import out_of_memory_error
from training.phases import Job, supervised_phase
from training.pixel_fit import CONFIDENCES
from utils import place_windows, probability_of

RECIPE_FILE = "recipe.json"
MINUTES = 10.0  # of a whole run, where nothing else is asked for

# A network that works on means of blocks of this side sees as many times further, for as much time;
# but only where a mask that is made of such blocks has this Dice with the painted one.
BLOCK = 2  # px
LEAST_KEPT = 0.99
MOST_LOST = 0.5  # share of the painted parts of which such a mask may show nothing
VIEW = 256  # pixels of the network's input, along a side

STRENGTH = 0.3  # of perturbations, as a share of those of `best`

# From these on, outlines and texture run in one direction as everybody sees, and not by chance.
DIRECTED = 0.15
TIMES_CHANCE = 2.0
NEAR_AXIS = 10.0  # degrees, by which a flip may turn that direction

SEMI_COST = 2.3  # of a step with unlabelled slices, in steps without
LEAST_STEPS = 100  # of the first phase: with fewer, a network has not begun
MOST_STEPS = 6000  # of the first phase: with more, few slices are learned by heart

# Besides steps and predicted windows, on two cores: reading, rules, the fit of the pixel classifier,
# figures, page; and the random forest, by millions of labelled pixels (63.5 s for 13.0 in the demo).
OTHER_SECONDS = 30.0
FOREST_SECONDS = 5.0
LEAST_SHARE = 0.5  # of the minutes, which training gets in any case
VIEWS_OF_TTA = 8  # flips and quarter turns

# All settings that depend on what the slices are like.
CHOSEN = {
    *("downsample", "patch_size"),
    *("quarter_turns", "flip_p", "vertical_flip_p", "rotation", "tta"),
    *("ssl_epochs", "steps_per_epoch"),
}

WARM_UP, TIMED = 2, 10  # steps that are not timed, and that are


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
    minutes : float or None
        For the whole run, as it was asked for; None where the file that says so is gone.
    data : Data or None
        The slices, where they were read for this; they need not be read again.
    """

    config: Config
    choices: list[Choice]
    fingerprint: dict[str, Any]
    minutes: float | None
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
        return Recipe(config, [], {}, None)

    kept = read_json(path)
    try:
        choices = [checked_choice(choice) for choice in kept["choices"]]
        minutes = None if kept["minutes"] is None else float(kept["minutes"])
        return Recipe(config, choices, kept["fingerprint"], minutes)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not what a run writes ({error}); remove it") from None


def checked_choice(kept: dict) -> Choice:
    """Return a choice as it was kept; `TypeError` where its parts are something else."""
    choice = Choice(**kept)

    if not isinstance(choice.topic, str) or not isinstance(choice.reason, str):
        raise TypeError(f"{choice.topic}: topic and reason must be words")
    if not isinstance(choice.settings, dict):
        raise TypeError(f"{choice.topic}: its settings must have names")
    return choice


# --- from the data to the settings ----------------------------------------------------------------


def configure(
    given: dict[str, Any],
    data: Data,
    minutes: float = MINUTES,
    scans: dict[str, int] | None = None,
    found: int = 0,
) -> Recipe:
    """Return a recipe for some slices: look at them, apply the rules, count the steps.

    Parameters
    ----------
    given : dict
        Settings that were chosen by hand, which win.
    data : Data
    minutes : float
        For the whole run, on the device that the settings name.
    scans : dict, optional
        `max_unlabelled` with which the slices were read, where nobody gave it.
    found : int
        How many unlabelled scans there are, read or not.
    """
    fingerprint = look_at(data)
    choices = [
        choose_resolution(fingerprint, longest_side(data), given),
        choose_orientations(fingerprint),
        choose_perturbations(),
        choose_consistency(data, scans or {}, found),
    ]
    # Last: how long a step takes depends on all other settings.
    if "steps_per_epoch" not in given:
        choices.append(choose_steps(settings_of(choices, given), data, minutes))
    config = settings_of(choices, given)
    choices = [mention_given(choice, given) for choice in choices]
    return Recipe(config, choices, dataclasses.asdict(fingerprint), minutes, data)


def settings_of(choices: list[Choice], given: dict[str, Any]) -> Config:
    """Return the settings of `auto` with what was chosen, and with what was given, which wins."""
    chosen: dict[str, Any] = {}
    for choice in choices:
        chosen |= choice.settings
    return make_config(**{**chosen, **given, "method": AUTO})


def mention_given(choice: Choice, given: dict[str, Any]) -> Choice:
    """Return a choice whose reason also says which of its settings are others, because they were given."""
    others = []
    for name, value in choice.settings.items():
        if name in given and given[name] != value:
            others.append(f"--{name.replace('_', '-')} {as_typed(given[name])}")
    if not others:
        return choice
    reason = f"{choice.reason}; but {', '.join(others)}, as given"
    return dataclasses.replace(choice, reason=reason)


def look_at(data: Data) -> Fingerprint:
    """Return what the painted slices are like that training may know: not those of the test.

    Of several classes that one is described which needs the finest resolution.
    """
    known = sorted([*data.train, *data.val], key=lambda s: natural_key(s.stem))
    return finest(list(take_fingerprints(known, data.classes).values()))


def longest_side(data: Data) -> int:
    """Return the longest side of any slice that is trained on [px]."""
    return max(max(s.image.shape) for s in [*data.train, *data.unlabelled])


# --- the rules ------------------------------------------------------------------------------------


def choose_resolution(fingerprint: Fingerprint, longest: int, given: dict[str, Any]) -> Choice:
    """Choose the side of the blocks whose means the network works on: 2 px where masks survive that, else 1.

    Windows have `VIEW` pixels of the network's input along a side, or fewer where slices have, whose
    longest side has `longest` pixels.
    """
    if fingerprint.kept:
        kept = fingerprint.kept[str(BLOCK)]
        lost = fingerprint.lost.get(str(BLOCK), 0.0)
        text = f"a mask of {BLOCK}×{BLOCK} px blocks keeps a Dice of {kept:.3f}"
        if kept < LEAST_KEPT:
            text += f" (less than {LEAST_KEPT})"
        if lost > MOST_LOST:
            text += f", and shows nothing of {100 * lost:.0f} % of the parts"
        if kept >= LEAST_KEPT and lost <= MOST_LOST:
            chosen, reason = BLOCK, f"means of {BLOCK}×{BLOCK} px: {text}"
        else:
            chosen, reason = 1, f"every pixel: {text}"
    else:
        chosen = 1
        reason = "every pixel: no slice is painted everywhere, so nobody knows how thin things are"

    # Its window, or that of the resolution that was given: a multiple of what one pixel of the
    # deepest level stands for, and more than that.
    unshuffle = given.get("unshuffle", PRESETS[AUTO]["unshuffle"])
    downsample = given.get("downsample", chosen)
    unit = STRIDE * downsample * unshuffle
    blocks = min(VIEW * downsample // unit, math.ceil(longest / unit))
    patch_size = unit * max(2, blocks)
    return Choice("resolution", {"downsample": chosen, "patch_size": patch_size}, reason)


def choose_orientations(fingerprint: Fingerprint) -> Choice:
    """Choose how views may be turned: all ways where nothing has a direction, else so that it is kept."""
    coherence, direction = fingerprint.coherence, fingerprint.direction
    by_chance = fingerprint.coherence_by_chance or 0.0
    if coherence < max(DIRECTED, TIMES_CHANCE * by_chance):
        settings: dict[str, Any] = {
            "quarter_turns": True,
            "vertical_flip_p": 0.5,
            "rotation": 45.0,
        }
        text = f"all: no direction is preferred ({coherence:.2f} of 1)"
        if coherence >= DIRECTED:
            text = f"all: no direction is preferred beyond chance ({coherence:.2f}; by chance {by_chance:.2f})"
        return Choice("orientations", settings, text)

    # A flip turns a direction of 20° into one of 160°.
    from_axis = min(direction % 90, 90 - direction % 90)
    flips = 0.5 if from_axis <= NEAR_AXIS else 0.0
    settings = {
        "quarter_turns": False,
        "flip_p": flips,
        "vertical_flip_p": flips,
        "rotation": 10.0,
        # Nor are predictions averaged over ways in which a network has not seen things.
        "tta": False,
    }
    kept = "flips and small turns" if flips else "small turns only"
    reason = f"{kept}: things run at {direction:.0f}° to rows ({coherence:.2f} of 1)"
    return Choice("orientations", settings, reason)


def choose_perturbations() -> Choice:
    """Choose how far the grey values of views may be changed: little, whatever the material is."""
    reason = (
        f"noise, contrast, brightness of training crops vary by {100 * STRENGTH:.0f} % of what 'best' "
        "does, for every material: more hides fine texture"
    )
    return Choice("perturbations", WEAK, reason)


def weaker(perturbations: dict[str, float], share: float) -> dict[str, float]:
    """Return perturbations of grey values that reach a share as far; the largest gamma, 1, is none."""
    settings = {}
    for name, reach in perturbations.items():
        none = 1.0 if name == "gamma" else 0.0
        settings[name] = round(none + share * (reach - none), 4)
    return settings


WEAK = weaker(STRONG, STRENGTH)


def choose_consistency(data: Data, scans: dict[str, int], found: int = 0) -> Choice:
    """Choose whether to learn from unlabelled slices: where there are some.

    Parameters
    ----------
    data : Data
    scans : dict
        `max_unlabelled`, where nobody gave it; else empty.
    found : int
        How many unlabelled scans there are, read or not.
    """
    unlabelled = len(without_label(data))
    sources = [f"{unlabelled} unlabelled slices"] if unlabelled else []
    if any(s.painted is not None for s in data.train):
        sources.append("what lies between the paint")
    if not sources:
        settings = {**scans, "ssl_epochs": 0}
        return Choice("consistency", settings, "no: there are no unlabelled slices")

    reason = f"yes: also learns from {' and '.join(sources)}"
    most = scans.get("max_unlabelled", found)
    if found > most:
        reason += f" (on a CPU, {most} of {found} scans are read; --max-unlabelled 0: all)"
    if data.can_choose:
        reason += "; validation slices tell in the end whether it paid"
    else:
        reason += "; no validation slice tells whether it pays, so the control is recommended"
    settings = {**scans, "ssl_epochs": PRESETS[AUTO]["ssl_epochs"]}
    return Choice("consistency", settings, reason)


# --- as many steps as the minutes allow -----------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How fast a network is on a device.

    Attributes
    ----------
    step : float
        Of supervised training, with the making of its views [s].
    window : float
        Of a prediction [s].
    """

    step: float
    window: float


def choose_steps(config: Config, data: Data, minutes: float) -> Choice:
    """Choose as many steps as the time allows that is left beside all predictions of a run.

    Epochs are those of the settings: each has the same number of steps.
    """
    pace = measure_pace(config, data)
    most = 60 * minutes
    besides = OTHER_SECONDS + seconds_of_forest(config, data)
    besides += pace.window * windows_of_run(config, data)
    for_training = max(most - besides, LEAST_SHARE * most)
    wanted = steps_that_fit(for_training, pace.step, config)

    # An epoch has at least one step: 0 would stand for all training slices.
    least = max(1, math.ceil(LEAST_STEPS / config.sup_epochs))
    limit = max(least, MOST_STEPS // config.sup_epochs)
    steps = min(max(round_to_two_digits(wanted), least), limit)
    seconds = besides + steps * seconds_of_steps(pace.step, config)
    expected = f"{seconds / 60:.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"

    reason = f"{steps * config.sup_epochs} supervised"
    if config.ssl_epochs:
        reason += f" and {steps * config.ssl_epochs} with unlabelled slices"
    if wanted < least:
        why = "fewer would teach nothing" if least > 1 else "each epoch has at least one"
        reason += f": {why}, so it takes about {expected} minutes"
    elif wanted > limit:
        reason += f": more would be learned by heart, so it takes less than {minutes:g} minutes"
    elif for_training > most - besides:
        reason += (
            f", which take half of the {minutes:g} minutes; with tables and page it takes about "
            f"{expected}"
        )
    else:
        reason += f" in about {minutes:g} minutes"
    reason += f"; one takes {pace.step:.2g} s"
    return Choice("steps", {"steps_per_epoch": steps}, reason)


def seconds_of_forest(config: Config, data: Data) -> float:
    """Return about how long the random forest of the tables takes [s]; 0 where there will be none."""
    pixels = sum(s.image.size for s in data.labelled)
    if not config.forest or pixels > FOREST_PIXELS:
        return 0.0
    return FOREST_SECONDS * pixels / 10**6


def steps_that_fit(seconds: float, step: float, config: Config) -> float:
    """Return how many steps an epoch may have for training to take so many seconds, if a step takes `step`."""
    return seconds / seconds_of_steps(step, config)


def seconds_of_steps(step: float, config: Config) -> float:
    """Return how long training takes with one step in each epoch, if a supervised one takes `step` [s]."""
    # The control takes as many steps as the semi-supervised phase.
    return step * (config.sup_epochs + config.ssl_epochs * (1 + SEMI_COST))


def round_to_two_digits(steps: float) -> int:
    """Return whole steps, of which no more than the first two digits are not 0."""
    unit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return unit * round(steps / unit)


def windows_of_run(config: Config, data: Data) -> int:
    """Return how many windows a run predicts: in validation, on test slices, and for what to annotate next."""

    def windows(slices: list[Slice]) -> int:
        window = config.sliding_window
        sizes = [s.image.shape for s in slices]
        return sum(len(place_windows(size, window.patch_size, window.overlap)) for size in sizes)

    supervised = math.ceil(config.sup_epochs / config.validate_every)
    others = math.ceil(config.ssl_epochs / config.validate_every)
    # The pixel classifier; each confidence of it; control, student and teacher.
    validations = 1 + len(CONFIDENCES) * supervised + 3 * others
    count = validations * windows(data.val)

    models = 5 if config.ssl_epochs else 2
    count += models * (VIEWS_OF_TTA if config.tta else 1) * windows(data.test)
    if config.ssl_epochs:
        count += 2 * windows([*data.train, *without_label(data)])
    return count


def measure_pace(config: Config, data: Data) -> Pace:
    """Return how long a step, with the making of its views, and a window take: means of a few.

    In a team that is the part of a step which this process does.

    Raises
    ------
    InputError
        When the device has too little memory for a step, or processes cannot share a batch evenly.
    """
    device = choose_device(config.device)
    team = join_team(device)
    # The same error as in training, but before anything is timed.
    team.part_of_batch(config.batch_size)
    job = Job(config, data, supervised_phase(config), device, team)

    student, average = build_models(
        config, device, start=None, is_semi_supervised=False, class_count=data.class_count
    )
    optimizer = make_optimizer(config, student)
    scheduler = make_scheduler(config, optimizer, WARM_UP + TIMED)
    training = Training(config, student, average, optimizer, scheduler, warm_up=True)
    return Pace(step=time_step(job, training), window=time_window(job, training))


def time_step(job: Job, training: Training) -> float:
    """Return how long a step of supervised training takes [s].

    Raises
    ------
    InputError
        When memory runs out; it says which batch fits.
    """
    training.student.train()
    seconds = []
    ran_out_of_memory = False
    with batches_of(job, 0) as (labelled, _):
        try:
            for number in range(WARM_UP + TIMED):
                begun = time.perf_counter()
                losses = train_step(training, number, next(labelled))
                # Reading a loss waits for the device.
                losses.sum().item()
                seconds.append(time.perf_counter() - begun)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            ran_out_of_memory = True

    if ran_out_of_memory:
        # Outside the handler, what the failed step held is free again.
        raise out_of_memory_error(job, training)
    return statistics.mean(seconds[WARM_UP:])


def time_window(job: Job, training: Training) -> float:
    """Return how long the prediction of a window takes [s]."""
    training.student.eval()
    side = job.config.patch_size
    batch = np.zeros((job.config.batch_size, side, side), np.uint8)

    seconds = []
    for _ in range(WARM_UP + TIMED):
        begun = time.perf_counter()
        probability_of(training.student, batch, job.device, precision=job.config.precision)
        seconds.append((time.perf_counter() - begun) / len(batch))

    return statistics.mean(seconds[WARM_UP:])
