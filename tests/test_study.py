"""The comparison of methods: what is run, shared and counted, and that a stopped study goes on."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import stats

import train
from benchmarks import study, study_statistics
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
        ("mt", "teacher"): 4, ("cm", "Otsu"): 4, ("cm", "supervised"): 4, ("cm", "supervised continued"): 4,
        ("cm", "student"): 4, ("cm", "teacher"): 4, ("lr", "Otsu"): 4, ("lr", "supervised"): 4,
        ("lr", "supervised continued"): 4, ("lr", "student"): 4, ("lr", "teacher"): 4,
        ("random forest", "random forest"): 4}
    summary = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    scores = table.set_index(["variant", "role", "fold", "stem"])["dice"].sort_index()
    expected = scores["cm", "student"] - scores["mt", "supervised continued"]
    assert summary.loc[("cm", "student"), "gain"] == pytest.approx(expected.mean(), abs=1e-6)
    change = scores["lr", "teacher"] - scores["mt", "teacher"]
    assert summary.loc[("lr", "teacher"), "change"] == pytest.approx(change.mean(), abs=1e-6)
    assert ("cm", "supervised") not in summary.index        # the same as that of mt
    assert ("lr", "supervised") in summary.index
    assert summary["change"].notna().sum() == 2 + 5         # student and teacher of cm, everything of lr
    folds = change.groupby("fold").mean()
    assert summary.loc[("lr", "teacher"), "change_p"] == pytest.approx(stats.ttest_1samp(folds, 0).pvalue, abs=1e-3)
    assert "random forest" in out
    assert {p.name for p in Path("runs/study_s/figures").iterdir()} == {"budgets.png", "gains.png", "changes.png"}
    monkeypatch.setattr(study, "MANY", 2)
    shutil.rmtree("runs/study_s/figures")
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    assert {p.name for p in Path("runs/study_s/figures").iterdir()} == {"gains.png", "changes.png"}
    about = json.loads(Path("runs/study_s/study.json").read_text())
    assert about["variants"]["cm"] == {"method": "cutmix_mt"}
    assert "command" not in about["environment"]           # it may hold paths of the machine


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
    first = next(Path("runs").glob("s_mt_l2_f0_s0_*/summary.json"))
    before = first.stat().st_mtime_ns
    assert command("benchmarks.study", plan_file)[0] == 0
    assert first.stat().st_mtime_ns == before
    assert count <= 2 * (2 * 2 + 2 + 2 + 2 * 3) + 2          # at most the epoch that was cut off and one before it
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    stopped = pd.read_csv("runs/study_s/study.csv")
    for folder in (Path("runs"), Path("checkpoints")):
        shutil.rmtree(folder)
    assert command("benchmarks.study", plan_file)[0] == 0    # never stopped: the same rows
    pd.testing.assert_frame_equal(pd.read_csv("runs/study_s/study.csv"), stopped)


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
    assert sorted(p.name[:-7] for p in Path("runs").glob("s_*")) == ["s_cm_l2_f0_s0", "s_cm_l2_f1_s0"]
    after = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    assert after.index.tolist() == before.index.tolist()
    others = before.index.get_level_values("variant") != "cm"
    stored = pd.read_csv("runs/study_s/study.csv")
    own = stored[stored["variant"] == "cm"].groupby(["settings", "role"], sort=False)["dice"].mean().unstack()
    gain = (own["student"] - own["supervised continued"]).iloc[2:].mean()
    assert after.loc[("cm", "student"), "gain"] == pytest.approx(gain, abs=1e-6)   # against the control of its own run
    pd.testing.assert_frame_equal(after[others], before[others])
    assert set(pd.read_csv("runs/study_s/study.csv")["settings"]) > set(pd.read_csv(io.BytesIO(rows))["settings"])


def test_without_the_first_variant_nothing_is_compared_with_it(plan_file, command):
    assert command("benchmarks.study", plan_file)[0] == 0
    content = json.loads(plan_file.read_text())
    content["variants"]["mt"]["lr"] = 0.005                  # changed, not run yet
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
    assert "only such of other settings or data" in command(
        "benchmarks.study", plan_file, "--summary", "--data", hidden)[2]


def test_other_files_beside_the_rows_are_left_alone(plan_file, command):
    assert command("benchmarks.study", plan_file)[0] == 0
    rows = Path("runs/study_s/study.csv")
    before = rows.read_bytes()
    for name in ("study_backup.csv", "study_notes.csv"):
        rows.with_name(name).write_text("note\nkeep me\n")
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    assert rows.read_bytes() == before
    assert rows.with_name("study_notes.csv").read_text() == "note\nkeep me\n"
    for content, message in (("", "cannot be read as a table"), ("stem,dice\na,1\n", "has no column variant")):
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
    assert set(pd.read_csv("runs/study_s/summary.csv")["variant"]) == {"mt", "cm", "lr", "random forest"}
    code, out, err = command("benchmarks.study", plan_file, "--part=1/1")
    assert code == 2
    assert "2 of 2 runs failed" in err                       # tried again, they alone
    assert "finished" not in out


def test_the_forest_learns_from_training_slices_alone(data_folder):
    config = train.make_config(**{**SETTINGS, "data": str(data_folder)})
    data = train.read_slices(config)
    found = study.forest_scores(data, 0)
    turned = [dataclasses.replace(s, mask=1 - s.mask) for s in data.test]
    other = study.forest_scores(dataclasses.replace(data, test=turned), 0)
    assert (other["fraction_predicted"] == found["fraction_predicted"]).all()
    assert found["dice"].mean() > 0.7
    unlearnt = [dataclasses.replace(s, mask=1 - s.mask) for s in data.train]
    assert study.forest_scores(dataclasses.replace(data, train=unlearnt), 0)["dice"].mean() < 0.3


def test_parts_side_by_side_are_the_same_study(plan_file, command, monkeypatch):
    order = ["variant", "fold", "role", "stem"]
    assert command("benchmarks.study", plan_file)[0] == 0
    whole = pd.read_csv("runs/study_s/study.csv").sort_values(order, ignore_index=True)
    for folder in (Path("runs"), Path("checkpoints")):
        shutil.rmtree(folder)
    epochs, epoch = [], train.train_epoch
    monkeypatch.setattr(train, "train_epoch", lambda config, *a: epochs.append(config.fold) or epoch(config, *a))
    code, out, err = command("benchmarks.study", plan_file, "--part=2/2")
    assert code == 0, err
    assert "part 2/2: finished; gather the parts with --summary" in out
    assert epochs == [1] * (2 * 2 + 2 + 2 + 2 * 3)           # as many as for one fold of the whole study: models shared
    assert [p.name for p in Path("runs/study_s").iterdir()] == ["study_2of2.csv"]
    assert command("benchmarks.study", plan_file, "--part=1/2")[0] == 0
    count = len(epochs)
    assert command("benchmarks.study", plan_file, "--part=1/1")[0] == 0        # nothing left to do
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    gathered = pd.read_csv("runs/study_s/study.csv").sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(gathered, whole)
    assert {p.name for p in Path("runs/study_s").iterdir()} == {"study.csv", "study.json", "summary.csv", "figures"}
    assert command("benchmarks.study", plan_file)[0] == 0
    assert len(epochs) == count


def test_rows_of_a_part_that_still_runs_are_neither_lost_nor_counted_twice(plan_file, command, monkeypatch):
    rows = study.run_rows

    def gathering(about, config):                            # after the first run somebody looks at the summary
        if about["variant"] == "cm":
            assert command("benchmarks.study", plan_file, "--summary")[0] == 0
            assert not Path("runs/study_s/study_1of2.csv").exists()
        return rows(about, config)
    monkeypatch.setattr(study, "run_rows", gathering)
    assert command("benchmarks.study", plan_file, "--part=1/2")[0] == 0
    assert command("benchmarks.study", plan_file, "--summary")[0] == 0
    found = pd.read_csv("runs/study_s/study.csv").groupby(["variant", "role"]).size()
    assert (found == 2).all()
    assert set(found.index.get_level_values("variant")) == {"mt", "cm", "lr", "random forest"}


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
    assert len((next(Path("runs").glob("s_cm_*")) / "sup_metrics.csv").read_text().splitlines()) \
        == len(epochs.splitlines()) == 1 + SETTINGS["sup_epochs"]


def test_changed_settings_and_changed_data_are_run_anew_beside_what_is_there(plan_file, command, data_folder):
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
    assert len(later) == len(rows) + 2 * 2 * 5              # two variants, two slices; the forest is known
    summary = pd.read_csv("runs/study_s/summary.csv")
    assert "random forest" in set(summary["variant"])
    mask = next((data_folder / "labeled" / "Original_masks").glob("*_00.tif"))
    tifffile.imwrite(mask, np.flipud(tifffile.imread(mask)))
    study.content_of.cache_clear()
    assert command("benchmarks.study", plan_file)[0] == 0
    again = pd.read_csv("runs/study_s/study.csv")
    assert len(again) == len(later) + 2 * 2 * 5 + 2
    assert len(list(Path("runs").glob("s_mt_l2_f0_s0_*"))) == 3
    shown = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])["dice"]
    assert shown["cm", "supervised"] == pytest.approx(
        again.iloc[len(later):].query("variant == 'cm' and role == 'supervised'")["dice"].mean(), abs=1e-6)


def simulated(rng, gain=0.0, fold=0.0, training=0.0, slice_=0.0, rest=0.01, folds=3, seeds=3, slices=6):
    """Scores whose gain over the control varies from fold to fold, training to training and slice to slice."""
    rows = []
    for f in range(folds):
        level, region, own = rng.normal(0.5, 0.05, slices), rng.normal(0, fold), rng.normal(0, slice_, slices)
        for seed in range(seeds):
            shift = gain + region + rng.normal(0, training)
            rows += [{"stem": f"f{f}s{i}", "fold": f, "seed": seed, "control": level[i],
                      "dice": level[i] + shift + own[i] + rng.normal(0, rest)} for i in range(slices)]
    return pd.DataFrame(rows)


def test_interval_and_test_of_a_known_gain():
    rng = np.random.default_rng(0)
    table = simulated(rng, gain=0.05, rest=0.02)
    found = study_statistics.paired(table)
    gains = table["dice"] - table["control"]
    assert found["gain"] == pytest.approx(gains.mean())
    assert 0.03 < found["gain_low"] < 0.05 < found["gain_high"] < 0.07
    first, second, third = gains.groupby(table["fold"]).mean()
    error = np.std([first, second, third], ddof=1) / np.sqrt(3)
    assert found["p"] == pytest.approx(2 * stats.t.sf(found["gain"] / error, 2))
    assert found["p"] < 0.05
    assert study_statistics.paired(simulated(rng))["p"] > 0.05
    shuffled = table.sample(frac=1, random_state=1)
    assert study_statistics.paired(shuffled) == pytest.approx(found)


@pytest.mark.parametrize(("luck", "least"), [
    ({"training": 0.02}, 0.9), ({"slice_": 0.03}, 0.9), ({"fold": 0.02}, 0.65)])
def test_what_a_fold_a_training_or_a_slice_shares_is_no_repeated_evidence(luck, least):
    """Without a gain, the test keeps its promise, and the interval covers zero as often as three folds allow.

    An interval that takes all values as independent covers it in 56, 70 and 25 % of the cases.
    """
    rng, covered, false = np.random.default_rng(0), 0, 0
    for _ in range(200):
        found = study_statistics.paired(simulated(rng, **luck, rest=0.002), draws=400)
        covered += found["gain_low"] < 0 < found["gain_high"]
        false += found["p"] < 0.05
    assert covered / 200 > least
    assert false / 200 < 0.1


def test_every_fold_counts_as_one():
    table = simulated(np.random.default_rng(0), folds=2)
    table.loc[table["fold"] == 0, "dice"] = table["control"] + 0.1
    table.loc[table["fold"] == 1, "dice"] = table["control"]
    fewer = table[(table["fold"] == 0) | table["stem"].isin(["f1s0", "f1s1"])]
    assert study_statistics.paired(fewer)["gain"] == pytest.approx(0.05)


def test_too_few_values_have_no_interval():
    one = simulated(np.random.default_rng(0), folds=1, seeds=1, slices=1)
    assert np.isnan(study_statistics.bootstrap(one, "dice")).all()
    single = study_statistics.paired(simulated(np.random.default_rng(0), folds=1))
    assert single["gain_low"] < single["gain"] < single["gain_high"]
    assert np.isnan(single["p"])
    same = simulated(np.random.default_rng(0)).assign(dice=0.5, control=0.5)
    assert np.isnan(study_statistics.paired(same)["p"])                 # a variant that changes nothing


def test_a_misspelt_key_is_an_error(plan_file, command):
    plan_file.write_text(plan_file.read_text().replace('"seeds"', '"sedes"'))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 2
    assert "sedes" in err
    good = json.loads(plan_file.read_text().replace("sedes", "seeds"))
    for change, message in (
            ({"variants": None}, "study: variants is None, expected a filled dict"),
            ({"variants": []}, "study: variants is [], expected a filled dict"),
            ({"variants": {"mt": "mean_teacher"}}, "study: mt is 'mean_teacher', expected settings by name"),
            ({"variants": {"mt": {"lrr": 1}}}, "study: mt: lrr is no setting of train.py"),
            ({"settings": {"fold": 1}}, "study: settings: fold is set by the study itself"),
            ({"labels": 2}, "study: labels is 2, expected a filled list"),
            ({"seeds": ["a"]}, "study: seeds is ['a'], expected whole numbers"),
            ({"folds": []}, "study: folds is [], expected a filled list"),
            ({"settings": None}, "study: settings is None, expected a filled dict"),
            ({"settings": {"split": "random"}}, "study: settings: split is 'random'; a study is made of folds"),
            ({"variants": {"": {}}}, "study: a variant has no name"),
            ({"variants": {"random forest": {}}}, "study: 'random forest' is the pixel classifier")):
        plan_file.write_text(json.dumps(good | change))
        code, _, err = command("benchmarks.study", plan_file)
        assert code == 2
        assert err.startswith(f"error: {message}"), err
    del good["variants"]
    plan_file.write_text(json.dumps(good))
    assert "study: missing variants" in command("benchmarks.study", plan_file)[2]
    plan_file.write_text(json.dumps(good | {"variants": {"mt": {}}}))
    assert "--fold: is set by the study itself" in command("benchmarks.study", plan_file, "--fold=1")[2]


@pytest.mark.parametrize(("change", "message"), [
    ({"folds": [0, 9]}, "fold"), ({"labels": [2, 50]}, "--labels 50: there are 4 training slices"),
    ({"settings": {**SETTINGS, "test_fraction": 0.0}}, "study: fold 0 has no test slice")])
def test_what_cannot_be_run_is_said_before_anything_is_trained(plan_file, command, monkeypatch, change, message):
    monkeypatch.setattr(train, "train_epoch", lambda *a: pytest.fail("trained"))
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | change))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 2
    assert message in err
    assert not list(Path("runs").glob("s_*"))


def test_supervised_variants_alone_are_a_study(plan_file, command):
    change = {"variants": {"few": {"method": "supervised"}, "more": {"method": "supervised", "sup_epochs": 3}},
              "folds": [0]}
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | change))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 0, err
    summary = pd.read_csv("runs/study_s/summary.csv").set_index(["variant", "role"])
    assert np.isfinite(summary.loc[("more", "supervised"), ["gain", "change"]].astype(float)).all()


def test_one_number_is_one_setting(plan_file):
    content = json.loads(plan_file.read_text()) | {"variants": {"a": {"rotation": 45}, "b": {"rotation": 45.0}}}
    (_, first), (_, second) = study.plan(content)[:2]
    assert study.digest(first) == study.digest(second)


def test_name_data_and_settings_can_be_given(plan_file, command, data_folder):
    content = json.loads(plan_file.read_text()) | {"data": "elsewhere", "folds": [0], "variants": {"mt": {}}}
    plan_file.write_text(json.dumps(content))
    code, _, err = command("benchmarks.study", plan_file, "--data", data_folder, "--name", "other", "--lr=0.005")
    assert code == 0, err
    assert json.loads(next(Path("runs").glob("other_mt_l2_f0_s0_*/config.json")).read_text())["lr"] == 0.005
    assert Path("runs/study_other/summary.csv").exists()
    code, _, err = command("benchmarks.study", plan_file, "--colour=3")
    assert code == 2
    assert "--colour=3: no such option" in err


@pytest.mark.parametrize("name", ["few_labels", "ablation"])
def test_study_files_can_be_planned_and_share_supervised_phases(name):
    runs = study.plan(json.loads((study.ROOT / "benchmarks" / f"{name}.json").read_text()), "data")
    first, second = (config for _, config in runs[:2])
    assert len({config.run for _, config in runs}) == len(runs)
    assert study.digest(first, content="data") != study.digest(second, content="data")
    shared = [study.digest(config, study.SEMI, "data") for _, config in runs]
    assert shared[0] in shared[1:]
    for _, config in runs:                                   # a setting without effect is no variant
        assert not config.unlabelled_foreground or config.patch_size < 768
        assert config.schedule != "plateau" or config.plateau_patience < config.sup_epochs // config.validate_every - 1
