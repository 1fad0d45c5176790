"""The comparison of methods: what is run, shared and counted, and that a stopped study goes on."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest

import train
from benchmarks import study
from conftest import TINY
from slices import Path

SETTINGS = {**{k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}, "sup_epochs": 2, "ssl_epochs": 2}


@pytest.fixture
def plan_file(workplace, data_folder) -> Path:
    path = workplace / "study.json"
    path.write_text(json.dumps({
        "name": "s", "data": str(data_folder), "labels": [2], "folds": [0, 1], "seeds": [0],
        "settings": SETTINGS, "variants": {"mt": {"method": "mean_teacher"}, "cm": {"method": "cutmix_mt"},
                                           "lr": {"method": "mean_teacher", "lr": 0.01}}}))
    return path


def test_variants_share_supervised_models_and_each_has_its_control(plan_file, command, monkeypatch):
    phases, phase = [], train.train_epoch
    monkeypatch.setattr(train, "train_epoch", lambda *a: phases.append(1) or phase(*a))
    code, out, err = command("benchmarks.study", plan_file)
    assert code == 0, err
    assert len(phases) == 2 * (2 * 2 + 2 + 2 + 2 * 3)       # folds × (supervised + control, two students; all three)
    table = pd.read_csv("runs/study_s/study.csv")
    assert table.groupby(["variant", "role"]).size().to_dict() == {
        ("mt", "Otsu"): 4, ("mt", "supervised"): 4, ("mt", "supervised continued"): 4, ("mt", "student"): 4,
        ("mt", "teacher"): 4, ("cm", "student"): 4, ("cm", "teacher"): 4, ("lr", "Otsu"): 4, ("lr", "supervised"): 4,
        ("lr", "supervised continued"): 4, ("lr", "student"): 4, ("lr", "teacher"): 4,
        ("random forest", "random forest"): 4}
    summary = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    scores = table.set_index(["variant", "role", "fold", "stem"])["dice"].sort_index()
    expected = scores["cm", "student"] - scores["mt", "supervised continued"]
    assert summary.loc[("cm", "student"), "gain"] == pytest.approx(expected.mean(), abs=1e-6)
    change = scores["lr", "teacher"] - scores["mt", "teacher"]
    assert summary.loc[("lr", "teacher"), "change"] == pytest.approx(change.mean(), abs=1e-6)
    assert summary["change"].notna().sum() == 2 + 5         # student and teacher of cm, everything of lr
    assert "random forest" in out
    assert {p.name for p in Path("runs/study_s/figures").iterdir()} == {"budgets.png", "gains.png", "changes.png"}


def test_a_stopped_study_goes_on_and_repeats_nothing(plan_file, command, monkeypatch):
    count, phase = 0, train.train_epoch

    def stopping(*arguments):
        nonlocal count
        count += 1
        if count == 8:                                       # in the second student
            raise KeyboardInterrupt
        return phase(*arguments)
    monkeypatch.setattr(train, "train_epoch", stopping)
    assert command("benchmarks.study", plan_file)[0] == 130
    first = Path("runs/s_mt_l2_f0_s0/summary.json")
    before = first.stat().st_mtime_ns
    assert command("benchmarks.study", plan_file)[0] == 0
    assert first.stat().st_mtime_ns == before
    assert count <= 2 * (2 * 2 + 2 + 2 + 2 * 3) + 2          # at most the epoch that was cut off and one before it
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0


def test_rows_are_enough_to_go_on_from(plan_file, command, monkeypatch):
    assert command("benchmarks.study", plan_file)[0] == 0
    rows = Path("runs/study_s/study.csv").read_bytes()
    for folder in [*Path("runs").glob("s_*"), Path("checkpoints")]:
        shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", lambda *a: pytest.fail("trained again"))
        assert command("benchmarks.study", plan_file)[0] == 0
    assert Path("runs/study_s/study.csv").read_bytes() == rows
    before = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    content = json.loads(plan_file.read_text())
    content["variants"]["cm"]["confidence"] = 0.6            # changed: run again, the others are kept
    plan_file.write_text(json.dumps(content))
    assert command("benchmarks.study", plan_file)[0] == 0
    assert sorted(p.name for p in Path("runs").glob("s_*")) == ["s_cm_l2_f0_s0", "s_cm_l2_f1_s0"]
    after = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    assert after.index.tolist() == before.index.tolist()
    others = before.index.get_level_values("variant") != "cm"
    pd.testing.assert_frame_equal(after[others], before[others])
    assert set(pd.read_csv("runs/study_s/study.csv")["settings"]) > set(pd.read_csv(io.BytesIO(rows))["settings"])



def test_interval_and_test_of_a_known_gain():
    rng = np.random.default_rng(0)
    rows = [{"stem": f"s{i}", "seed": s, "control": 0.5, "dice": 0.55 + rng.normal(0, 0.02)}
            for i in range(18) for s in range(3)]
    found = study.paired(pd.DataFrame(rows))
    assert found["gain_low"] < 0.05 < found["gain_high"]
    assert 0.02 < found["gain_low"] < found["gain_high"] < 0.08
    assert found["p"] < 0.001
    some = study.paired(pd.DataFrame(rows[:-2]))             # one slice of which two seeds are not there yet
    assert some["gain"] == pytest.approx(found["gain"], abs=0.005)
    assert some["gain_low"] > 0
    for row in rows:
        row["dice"] = 0.5 + rng.normal(0, 0.02)
    assert study.paired(pd.DataFrame(rows))["p"] > 0.01


def test_a_misspelt_key_is_an_error(plan_file, command):
    plan_file.write_text(plan_file.read_text().replace('"seeds"', '"sedes"'))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 2
    assert "sedes" in err
    content = json.loads(plan_file.read_text().replace("sedes", "seeds"))
    del content["variants"]
    plan_file.write_text(json.dumps(content))
    assert "study: missing variants" in command("benchmarks.study", plan_file)[2]


def test_name_data_and_settings_can_be_given(plan_file, command, data_folder):
    content = json.loads(plan_file.read_text()) | {"data": "elsewhere", "folds": [0], "variants": {"mt": {}}}
    plan_file.write_text(json.dumps(content))
    code, _, err = command("benchmarks.study", plan_file, "--data", data_folder, "--name", "other", "--lr=0.005")
    assert code == 0, err
    assert json.loads(Path("runs/other_mt_l2_f0_s0/config.json").read_text())["lr"] == 0.005
    assert Path("runs/study_other/summary.csv").exists()
    code, _, err = command("benchmarks.study", plan_file, "--colour=3")
    assert code == 2
    assert "--colour=3: no such option" in err
