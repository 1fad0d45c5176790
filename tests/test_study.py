"""The comparison of methods: what is run, shared and counted, and that a stopped study goes on."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import stats

import train
from benchmarks import study
from conftest import STUDY_SETTINGS
from training import preparation

pytestmark = pytest.mark.slow


def test_variants_share_supervised_models_and_each_has_its_control(plan_file, command, monkeypatch):
    phases, epoch = [], train.mean_losses_of
    monkeypatch.setattr(train, "mean_losses_of", lambda *a: phases.append(1) or epoch(*a))
    code, out, err = command("benchmarks.study", plan_file)
    assert code == 0, err
    assert len(phases) == 2 * (
        2 * 2 + 2 + 2 + 2 * 3
    )  # folds × (supervised + control, two students; all three)
    table = pd.read_csv("runs/study_s/study.csv")
    assert table.groupby(["variant", "role"]).size().to_dict() == {
        ("mt", "Otsu"): 4,
        ("mt", "supervised"): 4,
        ("mt", "supervised continued"): 4,
        ("mt", "student"): 4,
        ("mt", "teacher"): 4,
        ("cm", "Otsu"): 4,
        ("cm", "supervised"): 4,
        ("cm", "supervised continued"): 4,
        ("cm", "student"): 4,
        ("cm", "teacher"): 4,
        ("lr", "Otsu"): 4,
        ("lr", "supervised"): 4,
        ("lr", "supervised continued"): 4,
        ("lr", "student"): 4,
        ("lr", "teacher"): 4,
        ("random forest", "random forest"): 4,
    }
    summary = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    scores = table.set_index(["variant", "role", "fold", "stem"])["dice"].sort_index()
    expected = scores["cm", "student"] - scores["mt", "supervised continued"]
    assert summary.loc[("cm", "student"), "gain"] == pytest.approx(expected.mean(), abs=1e-6)
    change = scores["lr", "teacher"] - scores["mt", "teacher"]
    assert summary.loc[("lr", "teacher"), "change"] == pytest.approx(change.mean(), abs=1e-6)
    assert ("cm", "supervised") not in summary.index  # the same as that of mt
    assert ("lr", "supervised") in summary.index
    assert summary["change"].notna().sum() == 2 + 5  # student and teacher of cm, everything of lr
    folds = change.groupby("fold").mean()
    assert summary.loc[("lr", "teacher"), "change_p"] == pytest.approx(
        stats.ttest_1samp(folds, 0).pvalue, abs=1e-3
    )
    assert "random forest" in out
    assert {p.name for p in Path("runs/study_s/figures").iterdir()} == {
        "budgets.png",
        "gains.png",
        "changes.png",
    }
    monkeypatch.setattr(study, "MANY", 2)
    shutil.rmtree("runs/study_s/figures")
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    assert {p.name for p in Path("runs/study_s/figures").iterdir()} == {"gains.png", "changes.png"}
    details = json.loads(Path("runs/study_s/study.json").read_text())
    assert details["variants"]["cm"] == {"method": "cutmix_mt"}
    assert "command" not in details["environment"]  # it may hold paths of the machine


def test_a_stopped_study_goes_on_and_repeats_nothing(plan_file, command, monkeypatch):
    count, epoch = 0, train.mean_losses_of

    def stopping(*arguments):
        nonlocal count
        count += 1
        if count == 8:  # in the second student
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(train, "mean_losses_of", stopping)
    assert command("benchmarks.study", plan_file)[0] == 130
    first = next(Path("runs").glob("s_mt_l2_f0_s0_*/summary.json"))
    before = first.stat().st_mtime_ns
    assert command("benchmarks.study", plan_file)[0] == 0
    assert first.stat().st_mtime_ns == before
    assert (
        count <= 2 * (2 * 2 + 2 + 2 + 2 * 3) + 2
    )  # at most the epoch that was cut off and one before it
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    stopped = pd.read_csv("runs/study_s/study.csv")
    for folder in (Path("runs"), Path("checkpoints")):
        shutil.rmtree(folder)
    assert command("benchmarks.study", plan_file)[0] == 0  # never stopped: the same rows
    pd.testing.assert_frame_equal(pd.read_csv("runs/study_s/study.csv"), stopped)


def test_rows_are_enough_to_go_on_from(plan_file, command, monkeypatch):
    assert command("benchmarks.study", plan_file)[0] == 0
    rows = Path("runs/study_s/study.csv").read_bytes()
    for folder in [*Path("runs").glob("s_*"), Path("checkpoints")]:
        shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", lambda *a: pytest.fail("trained again"))
        assert command("benchmarks.study", plan_file)[0] == 0
    assert Path("runs/study_s/study.csv").read_bytes() == rows
    before = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    content = json.loads(plan_file.read_text())
    content["variants"]["cm"]["confidence"] = 0.6  # changed: run again, the others are kept
    plan_file.write_text(json.dumps(content))
    assert command("benchmarks.study", plan_file)[0] == 0
    assert sorted(p.name[:-7] for p in Path("runs").glob("s_*")) == [
        "s_cm_l2_f0_s0",
        "s_cm_l2_f1_s0",
    ]
    after = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    assert after.index.tolist() == before.index.tolist()
    others = before.index.get_level_values("variant") != "cm"
    stored = pd.read_csv("runs/study_s/study.csv")
    own = (
        stored[stored["variant"] == "cm"]
        .groupby(["settings", "role"], sort=False)["dice"]
        .mean()
        .unstack()
    )
    gain = (own["student"] - own["supervised continued"]).iloc[2:].mean()
    assert after.loc[("cm", "student"), "gain"] == pytest.approx(
        gain, abs=1e-6
    )  # against the control of its own run
    pd.testing.assert_frame_equal(after[others], before[others])
    assert set(pd.read_csv("runs/study_s/study.csv")["settings"]) > set(
        pd.read_csv(io.BytesIO(rows))["settings"]
    )


def test_without_the_first_variant_nothing_is_compared_with_it(plan_file, command):
    assert command("benchmarks.study", plan_file)[0] == 0
    content = json.loads(plan_file.read_text())
    content["variants"]["mt"]["lr"] = 0.005  # changed, not run yet
    plan_file.write_text(json.dumps(content))
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    summary = pd.read_csv("runs/study_s/summary.csv")
    assert summary.loc[summary["role"] == "teacher", "variant"].tolist() == ["cm", "lr"]
    assert "change" not in summary


def test_summary_needs_no_data_and_says_what_it_lacks(plan_file, command, data_folder):
    assert command("benchmarks.study", plan_file)[0] == 0
    summary = Path("runs/study_s/summary.csv")
    before = summary.read_bytes()
    summary.unlink()
    hidden = data_folder.rename(data_folder.with_name("away"))
    study.content_of.cache_clear()
    code, _, err = command("benchmarks.study", plan_file, "--summary")
    assert code == 0, err
    assert summary.read_bytes() == before
    code, _, err = command("benchmarks.study", plan_file)
    assert (code, err) == (2, f"error: {data_folder}: no such data folder; give it with --data\n")
    Path("runs/study_s/study.json").unlink()
    assert "no such data folder" in command("benchmarks.study", plan_file, "--summary")[2]
    (hidden / "labeled" / "Original_masks" / "s_mask_00.tif").unlink()
    assert (
        "only such of other settings or data"
        in command("benchmarks.study", plan_file, "--summary", "--data", hidden)[2]
    )


def test_other_files_beside_the_rows_are_left_alone(plan_file, command):
    assert command("benchmarks.study", plan_file)[0] == 0
    rows = Path("runs/study_s/study.csv")
    before = rows.read_bytes()
    for name in ("study_backup.csv", "study_notes.csv"):
        rows.with_name(name).write_text("note\nkeep me\n")
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    assert rows.read_bytes() == before
    assert rows.with_name("study_notes.csv").read_text() == "note\nkeep me\n"
    for content, message in (
        ("", "cannot be read as a table"),
        ("stem,dice\na,1\n", "has no column variant"),
    ):
        rows.write_text(content)
        code, _, err = command("benchmarks.study", plan_file, "--summary")
        assert code == 2
        assert f"study.csv: {message}" in err


def test_a_run_that_fails_keeps_no_other_back(plan_file, command):
    content = json.loads(plan_file.read_text())
    content["variants"] = {"wild": {"lr": 3e37}, **content["variants"]}
    plan_file.write_text(json.dumps(content))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 2
    assert "error: 2 of 8 runs failed, the first is s_wild_l2_f0_s0_" in err
    assert "lower --lr" in err
    assert set(pd.read_csv("runs/study_s/summary.csv")["variant"]) == {
        "mt",
        "cm",
        "lr",
        "random forest",
    }
    code, out, err = command("benchmarks.study", plan_file, "--part=1/1")
    assert code == 2
    assert "2 of 2 runs failed" in err  # tried again, they alone
    assert "finished" not in out


def test_the_forest_learns_from_training_slices_alone(data_folder):
    config = train.make_config(**{**STUDY_SETTINGS, "data": str(data_folder)})
    data = preparation.read_slices(config)
    result = study.forest_scores(data, 0)
    turned = [dataclasses.replace(s, mask=1 - s.mask) for s in data.test]
    other = study.forest_scores(dataclasses.replace(data, test=turned), 0)
    assert (other["fraction_predicted"] == result["fraction_predicted"]).all()
    assert result["dice"].mean() > 0.7
    unlearnt = [dataclasses.replace(s, mask=1 - s.mask) for s in data.train]
    assert study.forest_scores(dataclasses.replace(data, train=unlearnt), 0)["dice"].mean() < 0.3


def test_parts_side_by_side_are_the_same_study(plan_file, command, monkeypatch):
    order = ["variant", "fold", "role", "stem"]
    assert command("benchmarks.study", plan_file)[0] == 0
    whole = pd.read_csv("runs/study_s/study.csv").sort_values(order, ignore_index=True)
    for folder in (Path("runs"), Path("checkpoints")):
        shutil.rmtree(folder)
    epochs, epoch = [], train.mean_losses_of
    monkeypatch.setattr(
        train, "mean_losses_of", lambda job, *a: epochs.append(job.config.fold) or epoch(job, *a)
    )
    code, out, err = command("benchmarks.study", plan_file, "--part=2/2")
    assert code == 0, err
    assert "part 2/2: finished; gather the parts with --summary" in out
    assert epochs == [1] * (
        2 * 2 + 2 + 2 + 2 * 3
    )  # as many as for one fold of the whole study: models shared
    assert [p.name for p in Path("runs/study_s").iterdir()] == ["study_2of2.csv"]
    assert command("benchmarks.study", plan_file, "--part=1/2")[0] == 0
    count = len(epochs)
    assert command("benchmarks.study", plan_file, "--part=1/1")[0] == 0  # nothing left to do
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    gathered = pd.read_csv("runs/study_s/study.csv").sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(gathered, whole)
    assert {p.name for p in Path("runs/study_s").iterdir()} == {
        "study.csv",
        "study.json",
        "summary.csv",
        "figures",
    }
    assert command("benchmarks.study", plan_file)[0] == 0
    assert len(epochs) == count


def test_rows_of_a_part_that_still_runs_are_neither_lost_nor_counted_twice(
    plan_file, command, monkeypatch
):
    rows = study.run_rows

    def gathering(details, config):  # after the first run somebody looks at the summary
        if details["variant"] == "cm":
            assert command("benchmarks.study", plan_file, "--summary")[0] == 0
            assert not Path("runs/study_s/study_1of2.csv").exists()
        return rows(details, config)

    monkeypatch.setattr(study, "run_rows", gathering)
    assert command("benchmarks.study", plan_file, "--part=1/2")[0] == 0
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    result = pd.read_csv("runs/study_s/study.csv").groupby(["variant", "role"]).size()
    assert (result == 2).all()
    assert set(result.index.get_level_values("variant")) == {"mt", "cm", "lr", "random forest"}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "../2"])
def test_a_part_is_a_number_of_a_number(plan_file, command, text):
    code, _, err = command("benchmarks.study", plan_file, f"--part={text}")
    assert code == 2
    assert err.startswith(f"error: --part {text}: expected K/N")


def test_a_supervised_phase_is_not_taken_from_a_run_that_lacks_its_log(plan_file, command):
    content = json.loads(plan_file.read_text())
    content["folds"], content["variants"] = [0], {"mt": {"method": "mean_teacher"}}
    plan_file.write_text(json.dumps(content))
    assert command("benchmarks.study", plan_file)[0] == 0
    log = next(Path("runs").glob("s_mt_*")) / "sup_metrics.csv"
    epochs = log.read_text()
    log.unlink()
    content["variants"]["cm"] = {"method": "cutmix_mt"}
    plan_file.write_text(json.dumps(content))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 0, err
    assert (
        len((next(Path("runs").glob("s_cm_*")) / "sup_metrics.csv").read_text().splitlines())
        == len(epochs.splitlines())
        == 1 + STUDY_SETTINGS["sup_epochs"]
    )


def test_changed_settings_and_changed_data_are_run_anew_beside_what_is_there(
    plan_file, command, data_folder
):
    content = json.loads(plan_file.read_text()) | {"folds": [0]}
    plan_file.write_text(json.dumps(content))
    assert command("benchmarks.study", plan_file)[0] == 0
    rows = pd.read_csv("runs/study_s/study.csv")
    content["settings"]["lr"] = 0.02
    content["variants"] = {"cm": {"method": "cutmix_mt"}, "mt": {"method": "mean_teacher"}}
    plan_file.write_text(json.dumps(content))
    assert command("benchmarks.study", plan_file)[0] == 0
    folders = list(Path("runs").glob("s_mt_l2_f0_s0_*"))
    rates = {json.loads((folder / "config.json").read_text())["lr"] for folder in folders}
    assert rates == {0.001, 0.02}
    later = pd.read_csv("runs/study_s/study.csv")
    assert len(later) == len(rows) + 2 * 2 * 5  # two variants, two slices; the forest is known
    summary = pd.read_csv("runs/study_s/summary.csv")
    assert "random forest" in set(summary["variant"])
    mask = next((data_folder / "labeled" / "Original_masks").glob("*_00.tif"))
    painted = tifffile.imread(mask)
    painted[10:14, 10:14] = painted.min()
    tifffile.imwrite(mask, painted)
    study.content_of.cache_clear()
    assert command("benchmarks.study", plan_file)[0] == 0
    again = pd.read_csv("runs/study_s/study.csv")
    assert len(again) == len(later) + 2 * 2 * 5 + 2
    assert len(list(Path("runs").glob("s_mt_l2_f0_s0_*"))) == 3
    shown = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])["dice"]
    assert shown["cm", "supervised"] == pytest.approx(
        again.iloc[len(later) :].query("variant == 'cm' and role == 'supervised'")["dice"].mean(),
        abs=1e-6,
    )


def test_supervised_variants_alone_are_a_study(plan_file, command):
    change = {
        "variants": {
            "few": {"method": "supervised"},
            "more": {"method": "supervised", "sup_epochs": 3},
        },
        "folds": [0],
    }
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | change))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 0, err
    summary = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    assert np.isfinite(summary.loc[("more", "supervised"), ["gain", "change"]].astype(float)).all()


def test_name_data_and_settings_can_be_given(plan_file, command, data_folder):
    content = json.loads(plan_file.read_text()) | {
        "data": "elsewhere",
        "folds": [0],
        "variants": {"mt": {}},
    }
    plan_file.write_text(json.dumps(content))
    code, _, err = command(
        "benchmarks.study", plan_file, "--data", data_folder, "--name", "other", "--lr=0.005"
    )
    assert code == 0, err
    assert (
        json.loads(next(Path("runs").glob("other_mt_l2_f0_s0_*/config.json")).read_text())["lr"]
        == 0.005
    )
    assert Path("runs/study_other/summary.csv").exists()
    code, _, err = command("benchmarks.study", plan_file, "--colour=3")
    assert code == 2
    assert "--colour=3: no such option" in err
