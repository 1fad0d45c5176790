"""Where the time of a whole run goes: seconds per phase and, in each, per part.

    python benchmarks/full_run.py --output FILE.json [--profile full] --data=DIR --run=NAME [--any-setting=value]
    python benchmarks/full_run.py --output FILE.json [--minutes 10] --data=DIR --run=NAME --method=auto [...]

Trains as `train.py` with the same settings does, and times its parts from outside. A part is what the program waits for
there: on a GPU a training step is only asked for, so what the device takes for the steps of an epoch shows in `steps`,
which is the time that no other part explains. FILE is written after each phase.
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import report  # noqa: E402
import train  # noqa: E402
from config import AUTO, Config, make_config, parse_settings, profile  # noqa: E402
from runtime import progress  # noqa: E402 - after the path
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment  # noqa: E402
from training import batches  # noqa: E402
from training.preparation import find_recipe  # noqa: E402
from training.recipe import MINUTES, Recipe  # noqa: E402

PHASES = {
    "train_supervised": "supervised",
    "continue_supervised": "control",
    "train_semi_supervised": "semi-supervised",
}
REST = {
    "prepare": "reading the data",
    "evaluate_run": "tables",
    "rank_unlabelled": "what to annotate next",
}


class Clock:
    """Seconds by phase and part. What is measured inside something else is not counted there again."""

    def __init__(self, path: Path, details: dict):
        self.path, self.details = path, details
        self.seconds: dict[str, dict[str, float]] = {}
        self.phase, self.inner = "", 0.0

    def add(self, part: str, seconds: float) -> None:
        """Count seconds to a part of the phase in hand."""
        parts = self.seconds.setdefault(self.phase, {})
        parts[part] = parts.get(part, 0.0) + seconds

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens while this is open."""
        outer, self.inner, began = self.inner, 0.0, time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.add(name, seconds - self.inner)
            self.inner = outer + seconds

    def timed(self, function: Callable, part: str) -> Callable:
        """`function`, with its time counted to `part`."""

        def call(*arguments, **options):
            with self.part(part):
                return function(*arguments, **options)

        return call

    def timed_phase(self, function: Callable, phase: str, part: str) -> Callable:
        """`function`, which is a phase of its own: what its parts do not explain is `part`. Written when it ends."""

        def call(*arguments, **options):
            self.phase = phase
            with self.part(part):
                result = function(*arguments, **options)
            self.phase = "other"
            self.write()
            return result

        return call

    def timed_items(self, make: Callable, part: str) -> Callable:
        """`make`, which returns an iterator, with the time that each of its items is waited for counted to `part`."""

        def items(*arguments, **options):
            made = make(*arguments, **options)
            try:
                while True:
                    with self.part(part):
                        item = next(made, None)
                    if item is None:
                        return
                    yield item
            finally:
                made.close()

        return items

    def write(self) -> None:
        """Write what is known so far."""
        phases = {
            phase: {part: round(seconds, 2) for part, seconds in parts.items()}
            for phase, parts in self.seconds.items()
        }
        totals = {phase: round(sum(parts.values()), 2) for phase, parts in phases.items()}
        write_json(
            self.path,
            {
                **self.details,
                "seconds": round(sum(totals.values()), 2),
                "phases": totals,
                "parts": phases,
            },
        )


def watch(clock: Clock) -> None:
    """Let the parts of a run be timed by `clock`."""
    for name, phase in PHASES.items():
        setattr(train, name, clock.timed_phase(getattr(train, name), phase, "steps"))
    for name, phase in REST.items():
        setattr(train, name, clock.timed_phase(getattr(train, name), phase, phase))
    report.write_report = clock.timed_phase(
        report.write_report, "page and figures", "page and figures"
    )
    batches.make_loader = clock.timed_items(batches.make_loader, "waiting for batches")
    train.train_pixel_classifier = clock.timed(train.train_pixel_classifier, "pixel classifier")
    train.validate = clock.timed(train.validate, "validation")
    progress.save_state = clock.timed(progress.save_state, "states")
    progress.save_checkpoint = clock.timed(progress.save_checkpoint, "weights")


def settings_of_run(
    settings: dict, arguments: argparse.Namespace, clock: Clock
) -> tuple[Config, Recipe | None]:
    """Return the settings of a run, and how they were chosen where they are those of `auto`."""
    # What is timed is the networks; a forest learns on the CPU.
    settings = {"forest": False, **settings}
    if settings.get("method") != AUTO:
        if arguments.minutes is not None:
            raise InputError("--minutes: has a meaning with --method=auto only")
        device = choose_device(settings.get("device", "auto"))
        usual = profile(arguments.profile or "full", device)
        return make_config(**{**usual, **settings}), None
    if arguments.profile is not None:
        raise InputError("--profile: has no meaning with --method=auto; --minutes has")
    # Nothing is written yet: where the run is refused, the seconds of an earlier one stay.
    clock.phase = "finding the recipe"
    with clock.part("finding the recipe"):
        recipe = find_recipe(settings, arguments.minutes)
    return recipe.config, recipe


def main() -> None:
    """Train, time, and write where the time went."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="write the seconds to this .json file"
    )
    parser.add_argument(
        "--profile", choices=["full", "cpu"], help="as of train.py (full); not of auto"
    )
    parser.add_argument("--minutes", type=float, help=f"of a run of auto ({MINUTES:g})")
    arguments, options = parser.parse_known_args()
    settings = parse_settings(options)
    # An error before the run, not after it.
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    clock = Clock(arguments.output, {})
    config, recipe = settings_of_run(settings, arguments, clock)
    clock.details["environment"] = environment(choose_device(config.device), config.precision)
    clock.details["settings"] = dataclasses.asdict(config)
    watch(clock)
    train.run(config, recipe=recipe)
    clock.write()
    for phase, parts in clock.seconds.items():
        shown = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
        print(f"{phase:22s} {sum(parts.values()):7.1f} s: {shown}")


if __name__ == "__main__":
    run_command_line(main)
