"""The commands of the README and of the pages in docs/ do what they say; with small data in the place of theirs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import demo_data
from config import FOREST, OTSU
from conftest import ROOT, TINY, as_options, write_data
from runtime.files import read_json
from viz.run_files import results_table

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
BLOCKS = (
    "\n".join(re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S)).replace("\\\n", "").splitlines()
)
COMMANDS = [line for line in BLOCKS if line.startswith("python ")]


def words_of(start: str, **names: object) -> list[str]:
    """The one command that begins so, without `[options]`, with other values for some of its words."""
    (line,) = [line for line in COMMANDS if line.startswith(f"python {start}")]
    text = re.sub(r"\[.*?\]|#.*", "", line).removeprefix("python ")
    for name, value in names.items():
        text = text.replace(name, str(value))
    script, *words = shlex.split(text)
    return [script.removesuffix(".py"), *words]


@pytest.fixture
def place(workplace, monkeypatch) -> Path:
    """An empty folder with the checkpoint that comes with the project."""
    (workplace / "checkpoints").mkdir()
    (workplace / "checkpoints" / "reference_demo_auto").symlink_to(
        ROOT / "checkpoints" / "reference_demo_auto"
    )
    return workplace


def test_own_data(place, command):
    write_data(place / "data" / "mine", size=(128, 128))
    roi = "8,136,8,136"
    code, out, err = command(*words_of("datasets.py check", NAME="mine"), "--roi", roi)
    assert code == 0, out + err
    options = as_options({**TINY, "method": "auto", "patch_size": 128, "roi": (8, 136, 8, 136)})
    code, out, err = command(*words_of("train.py", NAME="mine"), *options)
    assert code == 0, err
    page = Path(re.search(r"all of them on one page: (\S+)", out)[1])
    assert page == Path("runs/mine/report.html")
    assert "auto (teacher)" in page.read_text(encoding="utf-8")
    names = {"NAME": "mine"}
    code, _, err = command(*words_of("predict.py data/NAME", **names), "--roi", roi)
    assert code == 0, err
    assert len(list((place / "masks").glob("*.tif"))) == 3
    code, _, err = command(*words_of("evaluate.py particles masks"))
    assert code == 0, err
    measured = pd.read_csv(place / "masks_particles" / "masks.csv")
    assert {"diameter", "area", "slice"} <= set(measured)
    code, _, err = command(*words_of("evaluate.py --pred masks", **names, DIR="masks"))
    assert code == 0, err
    assert "median_diameter_um_predicted" in pd.read_csv("table.csv")


@pytest.mark.slow
def test_a_volume_before_anything_was_trained(place, command, monkeypatch):
    write = demo_data.write_volume
    monkeypatch.setattr(
        demo_data, "write_volume", lambda output, *_: write(output, slices=12, side=384)
    )
    (place / "data").mkdir()
    for start in (
        "demo_data.py --volume",
        "predict.py data/volume.tif",
        "evaluate.py --pred mask.tif",
        "evaluate.py particles mask.tif data",
    ):
        code, out, err = command(*words_of(start))
        assert code == 0, err
        if "--pred" in start:
            assert float(re.search(r"mean dice\s+(\S+)", out)[1]) > 0.6
    assert {"mask.tif", "mask.tif.json", "mask_uncertainty.tif", "mask_particles"} <= {
        p.name for p in place.iterdir()
    }
    tables = {
        name: pd.read_csv(place / "mask_particles" / f"{name}.csv")
        for name in ("mask", "volume_truth")
    }
    assert all(len(table) and np.isfinite(table["diameter"]).all() for table in tables.values())


@pytest.mark.slow
def test_on_several_devices(place):
    """The launchers' lines, with one process without a GPU in the place of several with one."""
    data = write_data(place / "data" / "mine", size=(128, 128), scans=0)
    options = " ".join(
        as_options({**TINY, "patch_size": 128, "sup_epochs": 1, "ssl_epochs": 1, "batch_size": 4})
    )
    launched = [line for line in BLOCKS if re.match(r"accelerate|torchrun|srun", line)]
    assert len(launched) == 4
    for i, line in enumerate(line for line in launched if " train.py " in line):
        text = line.strip().removeprefix("srun bash -c '").replace("--multi_gpu", "--cpu")
        text = re.sub(
            r"--(num_machines|machine_rank|main_process_\w+|batch-size) \S+|#.*|'$|--device cpu",
            "",
            text,
        )
        text = re.sub(r"(--num_processes|--nproc_per_node) \d", r"\1 1", text)
        for name, value in {
            "data/NAME": data,
            "NAME": f"r{i}",
            " train.py": f" {ROOT}/train.py",
        }.items():
            text = text.replace(name, str(value))
        launcher, *words = shlex.split(
            f"{text} {options}" + ("" if "--data" in text else f" --data {data}")
        )
        done = subprocess.run(
            [Path(sys.executable).with_name(launcher), *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"all of them on one page: runs/r{i}/report.html" in done.stdout


def test_targets_of_make():
    text = TEXT + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M))
    assert len(targets) >= 10
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_no_command_is_forgotten():
    """Of those in the text `--verify` runs in test_run_folder, `report.py` in test_report, benchmarks in files of
    their own.
    """
    known = (
        "datasets.py check",
        "train.py --data",
        "predict.py data/",
        "evaluate.py",
        "demo_data.py --volume",
    )
    assert len(COMMANDS) >= 9
    assert not [line for line in COMMANDS if not line.removeprefix("python ").startswith(known)]
    texts = [
        (ROOT / f"{folder}README.md").read_text(encoding="utf-8")
        for folder in ("runs/", "benchmarks/", "data/", "checkpoints/", "tests/")
    ]
    named = re.findall(r"python (\S+)\.py", "".join([TEXT, *texts]))
    assert not [name for name in named if not (ROOT / f"{name}.py").exists()]
    for module, option in re.findall(r"`(?:python )?(\w+)\.py[^`]*? (--[a-z-]+)", TEXT):
        if (ROOT / f"{module}.py").exists():
            text = "".join(
                (ROOT / f"{name}.py").read_text()
                for name in (module, "particles/command", "config")
            )
            assert f'"{option}"' in text or f"    {option[2:].replace('-', '_')}:" in text, (
                f"{module}.py {option}"
            )


def test_the_table_of_materials_is_that_of_the_committed_study():
    summary = pd.read_csv(ROOT / "runs" / "study_materials" / "summary.csv")
    tables = [summary[summary["labels"] == count].set_index("material") for count in (1, 2, 5)]
    assert [len(table) for table in tables] == [12, 12, 12]
    for name in [*tables[0].index, "mean"]:
        cells = [name]
        for table in tables:
            scores = table.mean() if name == "mean" else table.loc[name]
            if table is tables[0]:
                # A threshold learns nothing from labels: it stands there once.
                cells += [f"{scores[OTSU]:.3f}"]
            ways = [FOREST, "best", "auto: control"]
            cells += [f"{scores[way]:.3f}" for way in ways if not np.isnan(scores[way])]
            cells += [f"**{scores['auto']:.3f}**"]
        row = f"| {' | '.join(cells)} |"
        assert row in TEXT, row


def test_tables_are_those_of_the_committed_runs():
    for run in ("reference_demo", "reference_demo_auto"):
        full, patches = (results_table(ROOT / "runs" / run, kind) for kind in ("full", "patches"))
        for method in full.index:
            row = f"| {full['dice'][method]} | {patches['dice'][method]} | {full['surface_dice'][method]} |"
            assert row in TEXT, f"{run}, {method}: {row}"
    study = pd.read_csv(ROOT / "runs" / "study_few_labels" / "summary.csv")
    assert len(study) > 20
    for row in study.itertuples():
        assert f"{row.dice:.3f} ({row.low:.3f}–{row.high:.3f})" in TEXT, row
        if row.role == "teacher" and row.variant == "best":
            assert (
                f"{row.gain:+.3f} ({row.gain_low:.3f}–{row.gain_high:.3f}), p = {row.p:.2f}".replace(
                    "(-", "(−"
                )
                in TEXT
            ), row
    measured = read_json(ROOT / "runs" / "reference_volume" / "summary.json")["masks"]
    for name, result in measured.items():
        cells = f"| {result['particles']} | "
        (line,) = [line for line in TEXT.splitlines() if cells in line]
        assert line.endswith(f"| {result['D50_volume']:.2f} µm |"), name
