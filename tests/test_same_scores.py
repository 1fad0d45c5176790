"""The comparison of scores with and without the ideas that make training faster."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest

import mean_teacher
import train
from benchmarks import same_scores
from conftest import as_options
from runtime import devices
from runtime.checkpoints import load_checkpoint

CHANGES = [
    "without kept memory",
    "without own normalisation",
    "without fused AdamW",
    "without joint averaging",
    "without joint batch",
    "without real freezing",
]


def replaced_functions() -> tuple:
    return (
        train.make_optimizer,
        mean_teacher.ema_update,
        mean_teacher.step_losses,
        train.build_models,
        devices.keep_freed_memory,
    )


def test_a_run_without_any_of_the_ideas_has_the_same_scores(tiny, restored):
    tiny = dataclasses.replace(
        tiny, lr=1e-4
    )  # at a larger rate so small a network amplifies rounding
    before = replaced_functions()
    as_it_is = same_scores.scores(tiny, [])
    assert before == replaced_functions()
    plain = same_scores.scores(dataclasses.replace(tiny, run="plain"), same_scores.changes(tiny))
    after = replaced_functions()
    assert not any(a is b for a, b in zip(before, after, strict=True))
    assert list(as_it_is) == ["supervised", "Mean Teacher (student)", "Mean Teacher (teacher)"]
    assert plain == pytest.approx(as_it_is, abs=5e-3)


def test_every_seed_is_trained_with_all_and_with_none_the_first_without_each(
    command, workplace, data_folder, monkeypatch
):
    asked = []

    def scores(config, left_out):
        asked.append((left_out, config.seed, config.data, config.lr, config.run))
        return {"supervised": 0.5 + config.seed / 10}

    pool = SimpleNamespace(
        submit=lambda function, *arguments: SimpleNamespace(result=lambda: function(*arguments))
    )
    monkeypatch.setattr(same_scores, "scores", scores)
    monkeypatch.setattr(same_scores, "RESULTS", workplace)
    monkeypatch.setattr(same_scores, "ProcessPoolExecutor", lambda *_: contextlib.nullcontext(pool))
    code, out, err = command(
        "benchmarks.same_scores", "--data", "data/discs", "--seeds", 2, *as_options({"lr": 0.5})
    )
    assert code == 0, err
    assert [a[:2] for a in asked] == [
        ([], 0),
        (CHANGES, 0),
        ([], 1),
        (CHANGES, 1),
        *(([c], 0) for c in CHANGES),
    ]
    assert {a[2:4] for a in asked} == {(str(data_folder.resolve()), 0.5)}
    assert len({a[4] for a in asked}) == len(asked)
    table = pd.read_csv(workplace / "same_scores.csv")
    assert table["supervised"].tolist() == [0.5] * 2 + [0.6] * 2 + [0.5] * 6
    assert "0.55" in out


def test_no_seed_is_an_error(command):
    assert command("benchmarks.same_scores", "--seeds", "0")[::2] == (
        2,
        "error: --seeds: expected 1 or more\n",
    )


def test_frozen_blocks_stay_as_they_are_even_where_they_get_gradients(tiny, restored):
    config = dataclasses.replace(tiny, run="r")
    same_scores.scores(config, ["without real freezing"])
    supervised, student = (
        load_checkpoint(config.checkpoint(name))[0] for name in ("supervised", "ssl_student")
    )
    moved = {name.split(".")[0] for name in supervised if not supervised[name].equal(student[name])}
    assert moved.isdisjoint(config.freeze)
    assert {"bottleneck", "up1", "head"} <= moved


def test_another_recipe_is_refused(command):
    assert command("benchmarks.same_scores", "--method=best")[::2] == (
        2,
        "error: --method: the changes are made for the classic recipe, mean_teacher\n",
    )
