"""The run over a whole volume, in miniature: all steps, a real SIGKILL, and what is written."""

import json

import pandas as pd
import pytest

from benchmarks import whole_volume
from evaluation.metrics import METRICS


@pytest.mark.slow
def test_a_small_volume_from_slices_to_sizes(checkpoint, workplace, command):
    code, out, err = command(
        "benchmarks.whole_volume", "--checkpoint", checkpoint, "--slices", 64, "--size", 192
    )
    assert code == 0, err
    details = json.loads((whole_volume.RUN / "reference.json").read_text())
    assert details["same bytes after SIGKILL"]
    assert 2 <= details["steps"]["killed"]["blocks"] < details["steps"]["killed"]["of"] == 4
    assert "the same bytes" in out
    for name in ("predict", "continued", "three axes, spread", "measure"):
        assert details["steps"][name]["seconds"] > 0
        assert 100 < details["steps"][name]["peak_mb"] < 4000
    assert set(details["scores"]["slices"]) == set(METRICS)
    assert details["scores"]["three axes, total"]["uncertainty"].startswith("error rate ")
    known, measured = details["sizes"]["known"], details["sizes"]["volume_truth"]
    table = pd.read_csv("runs/reference_volume/volume_truth.csv")
    assert measured["particles"] == len(table)
    assert measured["D50"] == pytest.approx(table["diameter"][~table["touches_border"]].median())
    assert measured["D50_difference"] == pytest.approx(measured["D50"] / known["D50"] - 1)
    assert (whole_volume.RUN / "sizes.png").exists()


@pytest.mark.slow
def test_what_ends_before_it_is_killed_and_what_fails(tmp_path, monkeypatch, capfd):
    step = whole_volume.Step(tmp_path / "log", "evaluate", "--help")
    with pytest.raises(RuntimeError, match="ended before it could be killed"):
        step.kill_when(tmp_path, 1)
    with pytest.raises(SystemExit) as stop:
        whole_volume.Step(tmp_path / "log", "evaluate", "particles", tmp_path / "none").finish()
    assert stop.value.code == 2
    assert "none: no such file" in capfd.readouterr().err
