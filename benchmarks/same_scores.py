"""Does any of the ideas that make training faster change the scores? Trained with and without them, on the demo.

    python benchmarks/same_scores.py [--data data/demo] [--seeds 3] [--any-setting=value …]

The classic recipe at the size of the CPU profile: as it is and without all of the ideas for every seed, without each of
them for the first. Full-image test Dice of supervised model and teacher go to `benchmarks/results/same_scores.csv`. A
difference between two rows of one seed is rounding that training has amplified; what it means, the seeds say.
"""

import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import RESULTS, process_context  # noqa: E402 - after the path
from config import CPU_PROFILE, Config, make_config, parse_settings  # noqa: E402
from demo_data import write_demo  # noqa: E402
from runtime.command_line import Parser, run_command_line  # noqa: E402
from runtime.devices import choose_device  # noqa: E402
from runtime.files import write_atomically  # noqa: E402
from runtime.messages import InputError  # noqa: E402

AS_IT_IS, PLAIN = "as it is", "without all of them"


def changes(config: Config) -> list[str]:
    """Names of the ideas to leave out, each by itself."""
    from benchmarks.contenders import ablations

    return [
        name
        for name in ablations("Mean Teacher step alone", choose_device(config.device))
        if "without" in name
    ]


def scores(config: Config, left_out: list[str]) -> dict[str, float]:
    """Mean full-image test Dice by model, of a run without some of the ideas; in a process of its own."""
    import train
    from benchmarks.contenders import ABLATIONS

    for name in left_out:
        ABLATIONS["Mean Teacher step alone"][name]()
    data = train.prepare(config)
    train.train_supervised(config, data)
    train.train_semi_supervised(config, data)
    methods = train.evaluate_run(config, data)["full"]["methods"]
    return {name: result["dice"]["mean"] for name, result in methods.items() if name != "Otsu"}


def main() -> None:
    """Train all of it and print the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="data folder (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="of the runs with all and with none (%(default)s)"
    )
    arguments, options = parser.parse_known_args()
    if arguments.seeds < 1:
        raise InputError("--seeds: expected 1 or more")
    settings = parse_settings(options)
    if settings.get("method", "mean_teacher") != "mean_teacher":
        raise InputError("--method: the changes are made for the classic recipe, mean_teacher")
    if not arguments.data.exists() and arguments.data == Path("data/demo"):
        write_demo(arguments.data)
    data, rows, context = arguments.data.resolve(), [], process_context()
    trained = [(change, seed) for seed in range(arguments.seeds) for change in (AS_IT_IS, PLAIN)]
    ideas = changes(make_config(**{**CPU_PROFILE, **settings}))
    left_out = {AS_IT_IS: [], PLAIN: ideas} | {idea: [idea] for idea in ideas}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs and weights go there
        for change, seed in [*trained, *((idea, 0) for idea in ideas)]:
            config = make_config(
                **{
                    **CPU_PROFILE,
                    **settings,
                    "data": str(data),
                    "seed": seed,
                    "run": f"{change.replace(' ', '_')}_{seed}",
                }
            )
            with ProcessPoolExecutor(1, context) as pool:
                rows.append(
                    {
                        "change": change,
                        "seed": seed,
                        **pool.submit(scores, config, left_out[change]).result(),
                    }
                )
            print(rows[-1], flush=True)
            table = pd.DataFrame(rows)
            write_atomically(
                RESULTS / "same_scores.csv",
                lambda path, t=table: t.to_csv(path, index=False, float_format="%.5f"),
            )
    print(table.groupby("change", sort=False).mean().drop(columns="seed").round(4).to_string())


if __name__ == "__main__":
    run_command_line(main)
