"""The simulated annotator: what it adds, what it is scored on, and that finished trainings are kept."""

import json
from pathlib import Path

import pandas as pd
import pytest

import train
from benchmarks import annotation
from config import make_config
from conftest import as_options
from demo_data import truth_folder_of, write_demo
from slices.masks import read_mask
from slices.reading import crop_roi

SETTINGS = {
    "base_channels": 2,
    "patch_size": 64,
    "sup_epochs": 2,
    "ssl_epochs": 2,
    "steps_per_epoch": 1,
    "split": "blocks",
    "batch_size": 2,
    "device": "cpu",
    "num_workers": 0,
}


@pytest.mark.slow
def test_first_least_certain_and_random_slices_are_added_and_scored_elsewhere(
    workplace, command, monkeypatch
):
    write_demo(Path("data/demo"), scans=5, labelled=6)
    monkeypatch.setattr(
        annotation, "digest", lambda *a: "123456789012"
    )  # it may look like a number
    trained = []
    phase = train.train_supervised
    monkeypatch.setattr(
        annotation,
        "train_supervised",
        lambda config, data: trained.append((config.run, data.train)) or phase(config, data),
    )
    options = ["--seeds=1", "--random=1", "--held-out=2", *as_options(SETTINGS)]
    code, out, err = command("benchmarks.annotation", *options)
    assert code == 0, err
    assert "\nfirst − random: " in out
    assert "\nleast certain − random: " in out
    rows = pd.read_csv(annotation.RESULTS, keep_default_na=False, dtype={"settings": str})
    assert rows.groupby("how", sort=False).size().to_dict() == {
        "none": 2,
        "first": 2,
        "least certain": 2,
        "random": 2,
    }
    settings = json.loads(
        (annotation.RESULTS.parent / f"{rows['settings'].iloc[0]}.json").read_text()
    )
    assert settings == {**settings, **SETTINGS, "labels": 2, "data": "demo", "max_unlabelled": 40}
    assert "seed" not in settings
    base = trained[0][0]
    table = pd.read_csv(f"runs/{base}/annotate_next.csv")
    ranking = table["stem"].tolist()
    scored = set(rows["stem"])
    assert len(ranking) == 3
    assert not scored & set(ranking)
    added = rows.drop_duplicates("how").set_index("how")["added"]
    assert added["none"] == ""
    assert added["first"] == ranking[0]
    assert added["least certain"] == table.sort_values("entropy")["stem"].iloc[-1]
    assert added["random"] in ranking
    config = make_config(data="data/demo", **SETTINGS)
    for run, slices in trained[1:]:
        stem = run.removeprefix(f"{base}_")
        assert len(slices) == 3
        assert slices[-1].stem == stem
        truth = read_mask(truth_folder_of(Path("data/demo")) / f"{stem}.png")
        assert (slices[-1].mask == crop_roi(truth, config.roi)).all()
    trained.clear()
    other = rows[rows["how"] == "first"].assign(
        added="another", dice=0.0
    )  # of an earlier ranking, say
    pd.concat([rows, other]).to_csv(annotation.RESULTS, index=False)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", lambda *a: pytest.fail("trained again"))
        again = command("benchmarks.annotation", *options)
    assert again[0] == 0
    assert "another" not in again[1]
    assert again[1].splitlines()[-2:] == out.splitlines()[-2:]
    assert [run for run, _ in trained] == [base]  # looked at, found finished
    assert command("benchmarks.annotation", *options, "--colour=1")[0] == 2
    assert command("benchmarks.annotation", *options, "--held-out=4")[0] == 2
    assert command("benchmarks.annotation", *options, "--seed=5")[0] == 2  # not taken for --seeds
    code, out, err = command("benchmarks.annotation", *options, "--held-out=1", "--random=2")
    assert code == 0, err  # other scans: other rows
    both = pd.read_csv(annotation.RESULTS, keep_default_na=False)
    assert len(both) == len(rows) + len(other) + 1 * (1 + 2 + 2)
    assert set(both.loc[both["held_out"] == 1, "stem"]).isdisjoint(
        both.loc[both["held_out"] == 1, "added"]
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seeds=0", "--seeds 0: expected 1 or more"),
        ("--random=0", "--random 0: expected 1 or more"),
        ("--held-out=-1", "--held-out -1: expected 1 or more"),
        ("--method=supervised", "--method supervised: has no teacher"),
    ],
)
def test_options_without_a_result_are_refused(workplace, command, option, message):
    code, _, err = command("benchmarks.annotation", option)
    assert code == 2
    assert err.startswith(f"error: {message}")
