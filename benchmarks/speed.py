"""How fast this project is: beside its peers, beside itself without each of its ideas, and beside the machine's limits.

    python benchmarks/speed.py [--device auto] [--base-channels N] [--rounds N] [--races loader,image] [--no-ablation]
        [--output FILE]

Every contender of a race lives in a process of its own. They are called in turn, in another order each round, while
the others wait, so that each round is a paired comparison under the same conditions. The table gives seconds per call,
the ratio to this project (median and range over the rounds), the multiple of the floor that `limits.py` counts and
measures, the memory, and by how much the results differ. It is written to `benchmarks/results/DEVICE.json`, with every
time.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.limits import (  # noqa: E402 - after the path
    Ceilings,
    image_work,
    measure_ceilings,
    step_work,
    wait_for,
)
from config import Config  # noqa: E402
from demo_data import write_demo  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import write_json  # noqa: E402
from runtime.messages import InputError  # noqa: E402
from runtime.run_folder import environment  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
SLICES = 8  # labelled, and as many unlabelled


# --- a contender in its own process ---------------------------------------------------------------------------


def contend(
    pipe: multiprocessing.connection.Connection, race: str, name: str, config: Config
) -> None:
    """Make a contender, do its unit once, then once more for whatever comes; sends (seconds, MB, result)."""
    from benchmarks.contenders import make_contender

    repeat = make_contender(race, name, config)
    device, asked = choose_device(config.device), True
    while asked:
        began = time.perf_counter()
        result = repeat()
        wait_for(device)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
        pipe.send((time.perf_counter() - began, memory / 2**20, result))
        try:
            pipe.recv()
        except EOFError:  # closed: the race is over
            asked = False


def peak_memory() -> int:
    """Largest resident memory of this process so far [bytes]."""
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says includes the parent's
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def process_context() -> multiprocessing.context.BaseContext:
    """Where contenders' processes come from: each is new, but where the system allows it all is imported just once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.contenders"])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    return context


class Contender:
    """A contender in its process: `call` has it do its unit once."""

    def __init__(self, race: str, name: str, config: Config):
        context = process_context()
        self.name, (self.pipe, theirs) = name, context.Pipe()
        self.process = context.Process(target=contend, args=(theirs, race, name, config))
        self.process.start()
        theirs.close()

    def receive(self) -> tuple[float, float, np.ndarray]:
        """Seconds, peak memory [MB] and result of the unit under way."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            raise InputError(f"{self.name}: its process ended; the reason stands above") from None

    def call(self) -> None:
        """Ask for one more unit; `receive` says whether it could be asked."""
        with contextlib.suppress(OSError):
            self.pipe.send(True)

    def end(self) -> None:
        """Let the process end, and wait for that."""
        self.pipe.close()
        self.process.join()


def run_race(race: str, names: list[str], config: Config, rounds: int) -> pd.DataFrame:
    """A row per contender and round: `race`, `contender`, `round`, `seconds`, `memory_mb`, `difference`.

    Round 0 warms up, and takes what compilation takes. `difference` is the largest one between the results of a round
    and those of the first contender. One whose process ends has a round without numbers, and no more; without the first
    there is nothing to compare, which is an `InputError`.
    """
    contenders, rows, rng = {}, [], np.random.default_rng(0)

    def run(name: str) -> tuple[float, float, np.ndarray | float]:
        try:
            if name in contenders:
                contenders[name].call()
            else:
                contenders[name] = Contender(race, name, config)
            return contenders[name].receive()
        except InputError as error:
            contenders.pop(name).end()
            if name == names[0]:
                raise
            print(f"{race}: {error}", file=sys.stderr)
            return np.nan, np.nan, np.nan

    try:
        for number in range(rounds + 1):
            order = rng.permutation(list(contenders)) if number else names
            outcome = {
                name: run(name) for name in order
            }  # one after the other: they share the cores
            for name, (seconds, memory, result) in outcome.items():
                rows.append(
                    {
                        "race": race,
                        "contender": name,
                        "round": number,
                        "seconds": seconds,
                        "memory_mb": memory,
                        "difference": float(np.abs(result - outcome[names[0]][2]).max()),
                    }
                )
    finally:
        for contender in contenders.values():
            contender.end()
    return pd.DataFrame(rows)


# --- the table ------------------------------------------------------------------------------------------------


def summarise_races(rows: pd.DataFrame, floors: dict[str, float]) -> pd.DataFrame:
    """Per race and contender: median `seconds`, `ratio` to the first contender (median, `low`, `high` over the
    `rounds`), `floor` (multiple of it), `memory_mb` and the largest `difference`; round 0 counts for memory alone.
    """
    table, times = (
        [],
        rows.pivot(index=["race", "contender"], columns="round", values="seconds").drop(columns=0),
    )
    first = rows.groupby("race")["contender"].first()
    for (race, name), some in rows.groupby(["race", "contender"], sort=False):
        timed = times.loc[race, name]
        ratio = timed / times.loc[race, first[race]]
        table.append(
            {
                "race": race,
                "contender": name,
                "seconds": timed.median(),
                "ratio": ratio.median(),
                "low": ratio.min(),
                "high": ratio.max(),
                "rounds": int(timed.notna().sum()),
                "floor": timed.median() / floors[race] if race in floors else None,
                "memory_mb": some["memory_mb"].max(),
                "difference": some.dropna(subset="seconds")["difference"].max(skipna=False),
            }
        )
    return pd.DataFrame(table)


def floors_of(config: Config, ceilings: Ceilings) -> dict[str, float]:
    """Race → seconds of one call at the limit of the machine."""
    from benchmarks.contenders import IMAGE, work_of

    supervised, semi = (ceilings.floor(step_work(config, semi)) for semi in (False, True))
    once = {
        "supervised step": supervised,
        "Mean Teacher step": semi,
        "Mean Teacher step alone": semi,
    }
    return {race: seconds * work_of(race, config)[0] for race, seconds in once.items()} | {
        "image": ceilings.floor(
            image_work(config.base_channels, IMAGE, config.patch_size, config.overlap)
        )
    }


def describe(table: pd.DataFrame) -> str:
    """The table as text."""
    shown = table.assign(
        ratio=[
            f"{r:.2f} ({low:.2f}–{high:.2f})"
            for r, low, high in zip(table["ratio"], table["low"], table["high"], strict=True)
        ]
    )
    formats = {
        "seconds": "{:.4g}".format,
        "floor": "{:.3g}".format,
        "memory_mb": "{:.0f}".format,
        "difference": "{:.1e}".format,
    }
    return shown.drop(columns=["low", "high"]).to_string(index=False, formatters=formats, na_rep="")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of everything that measures."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (%(default)s)")
    parser.add_argument(
        "--base-channels", type=int, default=0, help="width; 0: 64 on CUDA, else 16 (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=4, help="labelled and unlabelled each (%(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=-1,
        help="of a loader; -1: 4 on CUDA, else none (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, help="file (default: benchmarks/results/DEVICE….json)"
    )


def output_of(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, device: torch.device, kind: str
) -> Path:
    """Where results go: with the default options alone to the file named after the device."""
    if arguments.output is not None:
        return arguments.output
    changed = [
        name
        for name, value in vars(arguments).items()
        if name != "device" and value != parser.get_default(name)
    ]
    if changed:
        raise InputError(f"--{changed[0].replace('_', '-')}: needs an --output of its own")
    return RESULTS / f"{file_name(device)}{kind}.json"


def demo_settings(arguments: argparse.Namespace, folder: Path) -> Config:
    """The classic recipe on a small demo that is written to `folder`."""
    cuda = choose_device(arguments.device).type == "cuda"
    write_demo(folder / "demo", scans=SLICES, labelled=SLICES)
    return Config(
        data=str(folder / "demo"),
        device=arguments.device,
        batch_size=arguments.batch_size,
        base_channels=arguments.base_channels or (64 if cuda else 16),
        num_workers=arguments.workers if arguments.workers >= 0 else 4 if cuda else 0,
    )


def main() -> None:
    """Run the races and print the table."""
    from benchmarks.contenders import RACES, ablations, work_of

    parser = Parser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument(
        "--rounds", type=int, default=5, help="repetitions of each race (%(default)s)"
    )
    parser.add_argument(
        "--races", default=",".join(RACES), help="which ones, by comma (%(default)s)"
    )
    parser.add_argument(
        "--no-ablation", action="store_true", help="leave out this project without one of its ideas"
    )
    arguments = parser.parse_args()
    races, device, began = (
        chosen(arguments.races, RACES, "race"),
        choose_device(arguments.device),
        time.perf_counter(),
    )
    if arguments.rounds < 1:
        raise InputError("--rounds: expected 1 or more")
    path, details = output_of(parser, arguments, device, ""), environment(device)
    ceilings = measure_ceilings(device)
    with tempfile.TemporaryDirectory() as folder:
        config, rows = demo_settings(arguments, Path(folder)), pd.DataFrame()
        floors = floors_of(config, ceilings)
        for number, race in enumerate(races, 1):
            names = [*RACES[race], *(() if arguments.no_ablation else ablations(race, device))]
            rows = pd.concat([rows, run_race(race, names, config, arguments.rounds)])
            table = summarise_races(rows, floors)
            partial = path.with_suffix(".partial.json")
            write_json(
                partial,
                {
                    "processor": processor(device),
                    "environment": details,
                    "seconds": round(time.perf_counter() - began, 1),
                    "settings": shown(config),
                    "call": {name: work_of(name, config) for name in races[:number]},
                    "ceilings": dataclasses.asdict(ceilings),
                    "floors": floors,
                    "table": records(table),
                    "rounds": records(rows),
                },
            )
    partial.replace(path)
    print(describe(table))
    print(f"{processor(device)}; {time.perf_counter() - began:.0f} s; {path}")


def chosen(arguments: str, known: Iterable[str], kind: str) -> list[str]:
    """The races or axes of an option, in their own order; `InputError` for others."""
    asked = arguments.split(",")
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise InputError(f"no such {kind}: {', '.join(unknown)}")
    return [name for name in known if name in asked]


def shown(config: Config) -> dict:
    """The settings, without the folder that is gone afterwards."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "data"}


def records(table: pd.DataFrame) -> list[dict]:
    """Rows as JSON has them: what is not a number is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def processor(device: torch.device) -> str:
    """Name of the device: that of the GPU, or the CPU's model and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    result = re.search(r"model name\s*: (.*)", listed.read_text()) if listed.exists() else None
    return f"{result[1] if result else 'CPU'}, {torch.get_num_threads()} cores"


def file_name(device: torch.device) -> str:
    """The processor's name without what a file's name cannot have."""
    return re.sub(r"[^a-z0-9]+", "_", processor(device).lower()).strip("_")


if __name__ == "__main__":
    run_command_line(main)
