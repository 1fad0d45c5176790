"""The reference runs: they are small, and their figures come from their tables; what cannot be run says so."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from matplotlib.image import imread

from benchmarks import reference_runs
from benchmarks.keep_reference import halve
from conftest import ROOT
from model_unet import UNet

RESULTS = ("runs", "benchmarks/results")
OF_SLICES = (
    r"slice|views|worst|(methods|prediction)_.*|sizes"  # figures that need more than the tables
)


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    return listed or [
        str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.*")
    ]


@pytest.mark.slow
def test_every_figure_is_drawn_again_from_the_tables(workplace, command):
    drawn, tables = [], {}
    for name in tracked(*RESULTS):
        if (path := ROOT / name).suffix == ".png":
            drawn += [name] * (not re.fullmatch(OF_SLICES, path.stem) or "volume" in name)
        else:
            (workplace / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, workplace / name)
            tables[name] = path.read_bytes()
    code, _, err = command("benchmarks.figures")
    assert code == 0, err
    assert len(drawn) > 10
    for name in drawn:
        again, before = imread(workplace / name), imread(ROOT / name)
        assert again.shape == before.shape, name
        assert abs(again - before).mean() < 0.02, name  # fonts may be others
    assert all((workplace / name).read_bytes() == content for name, content in tables.items())


def test_results_are_small_and_their_models_too():
    sizes = {
        folder: sum((ROOT / name).stat().st_size for name in tracked(folder))
        for folder in ("runs", "checkpoints")
    }
    assert sizes["runs"] <= 5_000_000
    assert sizes["checkpoints"] <= 4_000_000


def test_a_network_in_half_precision_says_the_same(tmp_path):
    torch.manual_seed(0)
    network = UNet(8, unshuffle=2, pixel_classifier=True).eval()
    weights = network.state_dict()
    halved = halve(weights)
    assert {halved[name].dtype for name in halved if "up1" in name} == {torch.float16}
    for name in weights:
        if name.startswith("pixel_classifier."):
            assert torch.equal(halved[name], weights[name])
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        difference = UNet.from_weights(halved)(x).sigmoid() - network(x).sigmoid()
    assert 0 < difference.abs().max() < 0.01


def test_the_page_of_a_reference_run_says_how_it_was_made():
    for settings in (ROOT / "runs").glob("reference_demo*/config.json"):
        details = json.loads((settings.parent / "environment.json").read_text())
        assert details["command"] == "notebook"
        assert not details["git_dirty"]
        assert details["git_commit"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-demo"], "error: --no-demo: leaves nothing to run without --real DIR"),
        (["--real", "somewhere", "--folds", "0"], "error: --folds 0: expected 1 or more"),
    ],
)
def test_what_cannot_be_run(workplace, command, options, message):
    code, _, err = command("benchmarks.reference_runs", *options)
    assert code == 2
    assert err.strip() == message


@pytest.mark.slow
def test_a_failed_step_ends_with_its_status(workplace, capfd):
    with pytest.raises(SystemExit) as stop:
        reference_runs.call("evaluate", "--pred", "nowhere", "--truth", "nowhere")
    assert stop.value.code == 2
    assert capfd.readouterr().err.startswith("error: nowhere")
