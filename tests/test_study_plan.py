"""What a study file may say, and what it makes of it: errors come before any training."""

import json
from pathlib import Path

import pytest

import train
from benchmarks import study
from conftest import STUDY_SETTINGS


def test_a_misspelt_key_is_an_error(plan_file, command):
    plan_file.write_text(plan_file.read_text().replace('"seeds"', '"sedes"'))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 2
    assert "sedes" in err
    good = json.loads(plan_file.read_text().replace("sedes", "seeds"))
    for change, message in (
        ({"variants": None}, "study: variants is None, expected a filled dict"),
        ({"variants": []}, "study: variants is [], expected a filled dict"),
        (
            {"variants": {"mt": "mean_teacher"}},
            "study: mt is 'mean_teacher', expected settings by name",
        ),
        ({"variants": {"mt": {"lrr": 1}}}, "study: mt: lrr is no setting of train.py"),
        ({"settings": {"fold": 1}}, "study: settings: fold is set by the study itself"),
        ({"labels": 2}, "study: labels is 2, expected a filled list"),
        ({"seeds": ["a"]}, "study: seeds is ['a'], expected whole numbers"),
        ({"folds": []}, "study: folds is [], expected a filled list"),
        ({"settings": None}, "study: settings is None, expected a filled dict"),
        (
            {"settings": {"split": "random"}},
            "study: settings: split is 'random'; a study is made of folds",
        ),
        ({"variants": {"": {}}}, "study: a variant has no name"),
        ({"variants": {"random forest": {}}}, "study: 'random forest' is the pixel classifier"),
    ):
        plan_file.write_text(json.dumps(good | change))
        code, _, err = command("benchmarks.study", plan_file)
        assert code == 2
        assert err.startswith(f"error: {message}"), err
    del good["variants"]
    plan_file.write_text(json.dumps(good))
    assert "study: missing variants" in command("benchmarks.study", plan_file)[2]
    plan_file.write_text(json.dumps(good | {"variants": {"mt": {}}}))
    assert (
        "--fold: is set by the study itself"
        in command("benchmarks.study", plan_file, "--fold=1")[2]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": [0, 9]}, "fold"),
        ({"labels": [2, 50]}, "--labels 50: there are 4 training slices"),
        ({"settings": {**STUDY_SETTINGS, "test_fraction": 0.0}}, "study: fold 0 has no test slice"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_trained(
    plan_file, command, monkeypatch, change, message
):
    monkeypatch.setattr(train, "train_step", lambda *a: pytest.fail("trained"))
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | change))
    code, _, err = command("benchmarks.study", plan_file)
    assert code == 2
    assert message in err
    assert not list(Path("runs").glob("s_*"))


def test_one_number_is_one_setting(plan_file):
    content = json.loads(plan_file.read_text()) | {
        "variants": {"a": {"rotation": 45}, "b": {"rotation": 45.0}}
    }
    (_, first), (_, second) = study.plan(content)[:2]
    assert study.digest(first) == study.digest(second)


@pytest.mark.parametrize("name", ["few_labels", "ablation"])
def test_study_files_can_be_planned_and_share_supervised_phases(name):
    runs = study.plan(json.loads((study.ROOT / "benchmarks" / f"{name}.json").read_text()), "data")
    first, second = (config for _, config in runs[:2])
    assert len({config.run for _, config in runs}) == len(runs)
    assert study.digest(first, content="data") != study.digest(second, content="data")
    shared = [study.digest(config, study.SEMI, "data") for _, config in runs]
    assert shared[0] in shared[1:]
    for _, config in runs:  # a setting without effect is no variant
        assert not config.unlabelled_foreground or config.patch_size < 768
        assert (
            config.schedule != "plateau"
            or config.plateau_patience < config.sup_epochs // config.validate_every - 1
        )
