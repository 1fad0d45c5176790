"""Settings that are chosen for a material: by rules with reasons, within a time, and the same when a run goes on."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

import mean_teacher
import train
from config import AUTO, STRONG, Config, make_config, stored_config
from conftest import as_options, labelled, write_data
from evaluation.recommendation import (
    kept_weights,
    recommend,
    recommend_model,
    recommended_checkpoint,
)
from runtime.checkpoints import load_checkpoint, save_checkpoint
from runtime.files import read_json
from runtime.messages import InputError
from slices.data_folder import Data
from slices.fingerprint import Fingerprint, take_fingerprint
from training import failures, preparation, recipe
from training.preparation import find_recipe
from training.recipe import Pace
from viz.run_page import changes

# Of a run of seconds on slices of 64 pixels.
SMALL = {
    "base_channels": 2,
    "batch_size": 2,
    "patch_size": 64,
    "downsample": 1,
    "roi": (8, 72, 8, 72),
    "split": "blocks",
    "val_fraction": 0.25,
    "test_fraction": 0.25,
    "device": "cpu",
    "forest": False,
    "num_workers": 0,
}


def like(**numbers) -> Fingerprint:
    """A fingerprint of discs with some other numbers."""
    return dataclasses.replace(take_fingerprint(labelled(2)), **numbers)


# --- rules ----------------------------------------------------------------------------------------------------


def test_thin_things_are_seen_pixel_by_pixel_and_large_ones_by_means():
    for dice, downsample in ((0.98, 1), (0.995, 2)):
        kept = {"1": 1.0, "2": dice}
        choice = recipe.choose_resolution(like(kept=kept), 1000, {})
        assert choice.settings == {"downsample": downsample, "patch_size": 256 * downsample}
        assert f"{dice:.3f}" in choice.reason
        given = recipe.choose_resolution(like(kept=kept), 1000, {"downsample": 4})
        assert given.settings == {"downsample": downsample, "patch_size": 1024}
        mentioned = recipe.mention_given(given, {"downsample": 4})
        assert mentioned.reason == f"{choice.reason}; but --downsample 4, as given"
        small = recipe.choose_resolution(like(kept=kept), 100, {})
        assert small.settings["patch_size"] == 128


def test_small_parts_are_seen_pixel_by_pixel_where_large_ones_would_not_need_it():
    for lost, downsample in ((0.1, 2), (0.9, 1)):
        choice = recipe.choose_resolution(like(kept={"2": 0.998}, lost={"2": lost}), 1000, {})
        assert choice.settings["downsample"] == downsample
        assert ("nothing of 90 % of the parts" in choice.reason) == (downsample == 1)


def test_views_are_turned_as_far_as_the_material_allows():
    everywhere = recipe.choose_orientations(like(coherence=0.02)).settings
    assert everywhere["quarter_turns"]
    assert everywhere["rotation"] == 45
    assert everywhere.get("tta", True)
    along_rows = recipe.choose_orientations(like(coherence=0.5, direction=176.0)).settings
    assert not along_rows["quarter_turns"]
    assert not along_rows["tta"]
    assert along_rows["flip_p"] == 0.5
    oblique = recipe.choose_orientations(like(coherence=0.5, direction=40.0)).settings
    assert oblique["flip_p"] == oblique["vertical_flip_p"] == 0
    by_chance = recipe.choose_orientations(like(coherence=0.5, coherence_by_chance=0.3))
    assert by_chance.settings == everywhere
    assert "beyond chance (0.50; by chance 0.30)" in by_chance.reason


def test_perturbations_can_be_weaker():
    none = recipe.weaker(STRONG, 0.0)
    assert none == {name: getattr(Config(), name) for name in STRONG}
    assert recipe.weaker(STRONG, 1.0) == STRONG
    assert recipe.weaker(STRONG, 0.5)["gamma"] == 1.25


def steps_of(minutes: float, pace: Pace, monkeypatch, **settings) -> tuple[int, str]:
    """Steps of an epoch that are chosen for a network of some pace, and the reason."""
    monkeypatch.setattr(recipe, "measure_pace", lambda *_: pace)
    config = make_config(**{**SMALL, "method": AUTO, **settings})
    slices = labelled(4)
    choice = recipe.choose_steps(config, Data(slices[:1], slices[1:2], slices[2:3], []), minutes)
    assert list(choice.settings) == ["steps_per_epoch"]
    return choice.settings["steps_per_epoch"], choice.reason


@pytest.mark.parametrize("ssl_epochs", [0, 8, 24])
@pytest.mark.parametrize("sup_epochs", [24, 96])
def test_training_and_predictions_fit_into_the_minutes(monkeypatch, sup_epochs, ssl_epochs):
    minutes, pace = 10, Pace(step=0.2, window=0.05)
    settings = {"sup_epochs": sup_epochs, "ssl_epochs": ssl_epochs}
    steps, reason = steps_of(minutes, pace, monkeypatch, **settings)
    config = make_config(**{**SMALL, "method": AUTO, **settings})
    slices = labelled(4)
    data = Data(slices[:1], slices[1:2], slices[2:3], [])
    phases = sup_epochs + ssl_epochs * (1 + recipe.SEMI_COST)
    seconds = steps * phases * pace.step + recipe.windows_of_run(config, data) * pace.window
    assert 0.9 * 60 * minutes < seconds + recipe.OTHER_SECONDS < 1.1 * 60 * minutes
    # Where a forest takes 50 s of the minutes, so much less is left for training.
    monkeypatch.setattr(
        recipe, "FOREST_SECONDS", 50 * 10**6 / sum(s.image.size for s in slices[:3])
    )
    fewer, _ = steps_of(minutes, pace, monkeypatch, **settings, forest=True)
    assert (steps - fewer) * phases * pace.step == pytest.approx(50, rel=0.5)
    assert f"{steps * sup_epochs} supervised" in reason
    assert ("with unlabelled" in reason) == bool(ssl_epochs)
    assert "in about 10 minutes; one takes 0.2 s" in reason


def test_every_prediction_of_a_run_is_counted():
    # A slice of 96 pixels is one window of 128.
    config = make_config(
        **{**SMALL, "patch_size": 128, "method": AUTO, "sup_epochs": 10, "ssl_epochs": 5}
    )
    train_slice, val, test, *others = labelled(5)
    validations = 1 + 3 * 2 + 3 * 1  # each fifth epoch; three confidences; control and two models
    of_test = 5 * 8
    assert recipe.windows_of_run(config, Data([train_slice], [val], [test], others)) == (
        validations + of_test + 2 * (1 + len(others))
    )
    alone = dataclasses.replace(config, ssl_epochs=0, tta=False)
    assert recipe.windows_of_run(alone, Data([train_slice], [val], [test], [])) == 1 + 3 * 2 + 2


def test_too_few_or_too_many_steps_are_said(monkeypatch):
    slow, reason = steps_of(1, Pace(60.0, 1.0), monkeypatch)
    assert slow * 24 >= recipe.LEAST_STEPS
    phases = 24 + 8 * (1 + recipe.SEMI_COST)
    assert int(re.search(r"it takes about (\d+) minutes", reason)[1]) >= slow * phases
    fast, reason = steps_of(60, Pace(0.001, 0.001), monkeypatch)
    assert fast * 24 <= 1.1 * recipe.MOST_STEPS
    assert "it takes less than 60 minutes" in reason


def test_an_epoch_has_a_step_however_many_epochs_there_are(monkeypatch):
    # 0 would stand for all training slices.
    steps, reason = steps_of(0.2, Pace(0.1, 0.01), monkeypatch, sup_epochs=400)
    assert steps == 1
    assert reason.startswith("400 supervised")
    assert "it takes about" in reason


def test_that_everything_else_takes_longer_than_short_minutes_is_said(monkeypatch):
    steps, reason = steps_of(1, Pace(0.03, 0.001), monkeypatch)
    assert steps > 1
    assert re.search(r"take half of the 1 minutes; .* it takes about 1\.\d;", reason), reason


@pytest.mark.parametrize("longest", [4, 64, 96, 1000])
@pytest.mark.parametrize("given", [{}, {"unshuffle": 1}, {"unshuffle": 3}, {"downsample": 8}])
@pytest.mark.parametrize("dice", [0.98, 0.995])
def test_the_chosen_window_is_one_that_the_network_can_take(longest, given, dice):
    choice = recipe.choose_resolution(like(kept={"2": dice}), longest, given)
    make_config(**{**choice.settings, **given, "method": AUTO})


def test_how_many_unlabelled_slices_there_are_is_said_where_not_all_are_read():
    data = Data(labelled(1), [], [], [])
    data = dataclasses.replace(data, unlabelled=labelled(5)[1:])
    most = {"max_unlabelled": 40}
    assert "40 of 60 scans are read" in recipe.choose_consistency(data, most, 60).reason
    for scans, found in ((most, 40), ({}, 60)):
        assert "are read" not in recipe.choose_consistency(data, scans, found).reason


def test_what_does_not_fit_into_memory_is_said_when_steps_are_timed(monkeypatch, few_steps):
    losses_of_step = mean_teacher.step_losses

    def losses_of_small_batches(config, student, labelled, *rest):
        if len(labelled["strong"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return losses_of_step(config, student, labelled, *rest)

    for module in (mean_teacher, failures):
        monkeypatch.setattr(module, "step_losses", losses_of_small_batches)
    config = make_config(**{**SMALL, "method": AUTO, "batch_size": 4})
    with pytest.raises(InputError, match=r"--batch-size 4: out of memory; 2 fits"):
        recipe.measure_pace(config, Data(labelled(1), [], [], []))


def test_every_setting_that_rules_choose_is_known_as_such(data_folder, workplace, few_steps):
    chosen = find_recipe({**SMALL, "data": str(data_folder)}, 0.01)
    directed = recipe.choose_orientations(like(coherence=0.5, direction=40.0))
    alone = recipe.choose_consistency(Data(labelled(1), [], [], []), {"max_unlabelled": 40})
    for choice in [*chosen.choices, directed, alone]:
        assert set(choice.settings) <= {*recipe.CHOSEN, *recipe.WEAK, "max_unlabelled"}


def test_what_the_test_slices_are_like_is_not_looked_at():
    slices = labelled(4)
    spoilt = dataclasses.replace(slices[3], mask=np.ones_like(slices[3].mask))
    data = [Data(slices[:2], slices[2:3], [test], slices[:1]) for test in (slices[3], spoilt)]
    assert recipe.look_at(data[0]) == recipe.look_at(data[1])
    assert recipe.look_at(data[0]).slices == 3


def test_the_reasons_of_a_run_are_read_only_as_they_are_written(tmp_path):
    config = make_config(method=AUTO)
    assert recipe.read_recipe(tmp_path, config).minutes is None
    kept = {"minutes": 3, "choices": [], "fingerprint": {}}
    wrong = [
        {"minutes": "x"},
        {"choices": [{"topic": 1, "settings": {}, "reason": ""}]},
        {"choices": [{"topic": "steps", "settings": 3, "reason": ""}]},
        {"choices": [{"topic": "steps"}]},
    ]
    for change in wrong:
        (tmp_path / "recipe.json").write_text(json.dumps(kept | change))
        with pytest.raises(InputError, match="is not what a run writes"):
            recipe.read_recipe(tmp_path, config)
    (tmp_path / "recipe.json").write_text(json.dumps(kept))
    assert recipe.read_recipe(tmp_path, config).minutes == 3


def test_what_was_chosen_need_not_be_possible_without_what_was_given(tmp_path):
    choice = {"topic": "resolution", "settings": {"downsample": 2, "patch_size": 64}, "reason": ""}
    record = {"minutes": 3, "choices": [choice], "fingerprint": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(record))
    config = make_config(method=AUTO, downsample=1, patch_size=64)
    assert changes(tmp_path, config) == {"downsample": (1, 2)}


# --- a run ----------------------------------------------------------------------------------------------------


def test_a_run_chooses_says_why_and_keeps_it(workplace, data_folder, command, few_steps):
    options = as_options({**SMALL, "data": data_folder, "run": "own"})
    code, out, err = command("train", *options, "--minutes=0.01")
    assert code == 0, err
    lines = out.splitlines()
    chosen = lines[: next(i for i, line in enumerate(lines) if line.startswith(str(data_folder)))]
    assert 3 <= len(chosen) <= 6
    stored = stored_config(workplace / "runs/own/config.json")
    assert stored.method == AUTO
    kept = read_json(workplace / "runs/own/recipe.json")
    for choice, line in zip(kept["choices"], chosen, strict=True):
        assert line == f"{choice['topic']:13}  {choice['reason']}"
        for name, value in choice["settings"].items():
            assert getattr(stored, name) == SMALL.get(name, value)
    page = (workplace / "runs/own/report.html").read_text()
    assert all(choice["topic"] in page for choice in kept["choices"])
    # Its first lines name what was given, not what was chosen for the slices.
    assert "batch_size 2 instead of 4" in page
    assert f"steps_per_epoch {stored.steps_per_epoch} instead" not in page
    # Rows are explained where they are, and only there.
    assert "Pixel classifier: the part of the network" in page
    assert "Random forest:" not in page
    assert re.search(r"Recommended: best_\w+, the \w+", page)
    assert re.search(r"recommended: checkpoints/own/best_\w+\.safetensors, the ", out)
    # Done again, it asks for --resume, which keeps what was chosen.
    code, _, err = command("train", *options)
    assert code == 2
    assert "add --resume" in err
    code, out, err = command("train", *options, "--resume")
    assert code == 0, err
    assert out.splitlines()[: len(chosen)] == chosen
    assert err.count("finished before, kept") == 4


def test_a_run_that_was_begun_keeps_its_steps(workplace, data_folder, few_steps, monkeypatch):
    given = {**SMALL, "data": str(data_folder), "run": "own"}
    first = find_recipe(given, 0.01)
    preparation.prepare(first.config, recipe=first)
    monkeypatch.setattr(recipe, "measure_pace", lambda *_: pytest.fail("steps were timed again"))
    for minutes in (None, 0.01):
        again = find_recipe(given, minutes)
        assert again.config == first.config
        assert again.describe() == first.describe()
    with pytest.raises(InputError, match=r"its steps were chosen for 0\.01 minutes"):
        find_recipe(given, 5.0)
    with pytest.raises(InputError, match=r"lr was 0\.002, now 0\.1"):
        preparation.prepare(find_recipe({**given, "lr": 0.1}).config, resume=True)
    (workplace / "runs/own/recipe.json").write_text(json.dumps({"minutes": 1}))
    with pytest.raises(InputError, match=r"recipe\.json: is not what a run writes"):
        find_recipe(given)
    (workplace / "runs/own/recipe.json").unlink()
    assert find_recipe(given).config == first.config
    settings = workplace / "runs/own/config.json"
    for content in ({}, {**read_json(settings), "steps_per_epoch": 7}):
        settings.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"config\.json: was edited since the run was begun"):
            find_recipe(given)


def test_steps_that_are_given_are_not_chosen(data_folder, workplace, few_steps, monkeypatch):
    """0 stands for one pass over the painted slices."""
    monkeypatch.setattr(recipe, "measure_pace", lambda *_: pytest.fail("steps were timed"))
    for steps in (0, 7):
        given = {**SMALL, "data": str(data_folder), "run": "own", "steps_per_epoch": steps}
        chosen = find_recipe(given, 0.01)
        assert chosen.config.steps_per_epoch == steps
        assert "steps" not in [choice.topic for choice in chosen.choices]


def test_what_is_given_stands_in_the_reasons(data_folder, workplace, few_steps):
    given = {**SMALL, "data": str(data_folder), "sup_epochs": 3, "ssl_epochs": 0, "noise": 0.2}
    reasons = {choice.topic: choice.reason for choice in find_recipe(given, 0.01).choices}
    assert re.match(r"\d+ supervised", reasons["steps"])
    assert int(reasons["steps"].split()[0]) % 3 == 0
    assert "--noise 0.2" in reasons["perturbations"]
    assert "--ssl-epochs 0" in reasons["consistency"]
    assert "--" not in reasons["orientations"]


def test_a_run_goes_on_where_another_number_of_scans_would_be_read(
    data_folder, workplace, few_steps, monkeypatch
):
    given = {**SMALL, "data": str(data_folder), "run": "own"}
    monkeypatch.setattr(preparation, "SCANS_ON_CPU", 0)
    first = find_recipe(given, 0.01)
    preparation.prepare(first.config, recipe=first)
    monkeypatch.setattr(preparation, "SCANS_ON_CPU", 1)
    assert find_recipe(given).config == first.config
    fewer = find_recipe({**given, "run": "fewer"}, 0.01)
    assert fewer.config.max_unlabelled == 1
    reasons = {choice.topic: choice.reason for choice in fewer.choices}
    assert "--max-unlabelled 0" in reasons["consistency"]


def test_what_is_given_wins(data_folder, workplace, few_steps):
    given = {
        **SMALL,
        "data": str(data_folder),
        "sup_epochs": 3,
        "noise": 0.2,
        "quarter_turns": False,
    }
    chosen = find_recipe({**given, "unshuffle": 1}, 0.01).config
    assert chosen == dataclasses.replace(chosen, **given, unshuffle=1)


def test_without_other_slices_there_is_one_phase(tmp_path, workplace, command, few_steps):
    folder = write_data(tmp_path / "alone", scans=0)
    options = as_options({**SMALL, "data": folder, "run": "own"})
    code, out, err = command("train", *options, "--minutes=0.01")
    assert code == 0, err
    assert "no: there are no unlabelled slices" in out
    phases = list(read_json(workplace / "runs/own/phases.json"))
    assert phases == ["pixel_classifier", "supervised"]
    assert re.search(r"recommended: \S+best_(supervised|pixel_classifier)\.safetensors", out)
    assert "annotate next" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes=0"], "--minutes 0: must be above 0"),
        (["--minutes=nan"], "--minutes nan: must be above 0"),
        (["--minutes=soon"], "argument --minutes: invalid float value: 'soon'"),
        (["--minutes=5", "--method=best"], "--minutes: has a meaning with --method auto only"),
        (["--profile=cpu"], "--profile: has no meaning with --method auto"),
        (["--downsample=much"], "--downsample: 'much' is not possible"),
        (["--downsample=0"], "--downsample: 0 is not possible"),
        (["--downsample=3", "--patch-size=100"], "--patch-size 100: must be a multiple of 96"),
    ],
)
def test_wrong_options_are_one_line(workplace, data_folder, command, options, message):
    code, _, err = command("train", f"--data={data_folder}", "--run=x", "--roi=none", *options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (workplace / "runs/x").exists()


def test_the_classifier_is_a_method_of_its_own_beside_the_trained_network(
    data_folder, workplace, few_steps, monkeypatch
):
    # So that the network stands alone, too; and steps that change it and teach it nothing.
    monkeypatch.setattr(train, "CONFIDENCES", (0.0,))
    given = {**SMALL, "data": str(data_folder), "run": "own", "lr": 1e-9}
    chosen = find_recipe(given, 0.01)
    config = chosen.config
    data = preparation.prepare(config, recipe=chosen)
    train.train_supervised(config, data)
    kept = kept_weights(config.run_folder)
    assert kept["pixel_classifier"]["val_dice"] > 0.5 > kept["supervised"]["val_dice"]
    assert recommend_model(config.run_folder).name == "pixel_classifier"
    weights, _ = load_checkpoint(config.checkpoint("pixel_classifier"))
    assert not weights["head.weight"].any()

    # What is trained further is the network, not the classifier with an empty one.
    train.continue_supervised(config, data)
    begun, _ = load_checkpoint(config.checkpoint("supervised"))
    continued, _ = load_checkpoint(config.checkpoint("continued"))
    assert begun["head.weight"].any()
    torch.testing.assert_close(continued["head.weight"], begun["head.weight"], atol=1e-6, rtol=0)
    rows = train.evaluate_run(config, data)["full"]["methods"]
    assert list(rows) == ["Otsu", "pixel classifier", "supervised", "supervised continued"]


def test_without_validation_what_was_trained_is_recommended(data_folder, workplace, few_steps):
    given = {**SMALL, "data": str(data_folder), "run": "own", "val_fraction": 0.0}
    chosen = find_recipe(given, 0.01)
    consistency = next(choice for choice in chosen.choices if choice.topic == "consistency")
    assert "no validation slice tells whether it pays" in consistency.reason
    config = chosen.config
    train.train_supervised(config, preparation.prepare(config, recipe=chosen))
    kept = kept_weights(config.run_folder)
    assert kept["supervised"] == {"val_dice": None, "epoch": config.sup_epochs}
    assert kept["pixel_classifier"] == {"val_dice": None, "epoch": 0}
    # Nothing says that the classifier should count more than in training.
    weights, _ = load_checkpoint(config.checkpoint("supervised"))
    assert weights["pixel_classifier.confidence"] == 0.25
    assert recommend_model(config.run_folder).name == "supervised"


def test_what_was_chosen_goes_with_a_run(data_folder, workplace, few_steps):
    config = make_config(**{**SMALL, "data": str(data_folder), "run": "own", "method": AUTO})
    with pytest.raises(InputError, match="its settings are chosen for the slices"):
        preparation.prepare(config)


def test_validation_says_how_much_the_classifier_counts_in_the_end(
    data_folder, workplace, few_steps, monkeypatch
):
    given = {**SMALL, "data": str(data_folder), "run": "own", "ssl_epochs": 0, "validate_every": 1}
    chosen = find_recipe(given, 0.01)
    config = chosen.config
    data = preparation.prepare(config, recipe=chosen)
    asked = []

    def best_with_a_half(_, models, *_is_due):
        scores = {}
        for name, model in models.items():
            confidence = model.pixel_classifier.confidence.item()
            asked.append(confidence)
            scores[name] = {"dice": 1 - abs(confidence - 0.5), "iou": None}
        return scores

    monkeypatch.setattr(train, "score_models", best_with_a_half)
    train.train_supervised(config, data)
    assert asked == 4 * [0.25, 0.5, 1.0]  # in each epoch
    weights, details = load_checkpoint(config.checkpoint("supervised"))
    assert weights["pixel_classifier.confidence"] == 0.5
    assert details["val_dice"] == 1


# --- which model to use ---------------------------------------------------------------------------------------


def test_semi_supervision_is_recommended_only_where_it_does_not_lose():
    scores = {"supervised": 0.80, "continued": 0.84, "ssl_student": 0.83, "ssl_teacher": 0.84}
    assert recommend(scores).name == "ssl_teacher"  # as good as the control
    assert recommend({**scores, "ssl_teacher": 0.8399}).name == "continued"
    assert recommend({**scores, "ssl_student": 0.85}).name == "ssl_student"
    assert recommend({**scores, "supervised": 0.86}).name == "supervised"
    assert "the control 0.840" in recommend(scores).reason


def test_without_validation_nothing_says_that_semi_supervision_helped():
    unknown = dict.fromkeys(("supervised", "continued", "ssl_student", "ssl_teacher"))
    assert recommend(unknown).name == "continued"
    assert recommend({"supervised": None}).name == "supervised"
    # A run that was stopped early has only this one.
    assert recommend({"pixel_classifier": None}).name == "pixel_classifier"


def test_a_folder_of_checkpoints_stands_for_the_recommended_one(tmp_path):
    model = train.UNet(2)
    for name, dice in (("supervised", 0.7), ("continued", 0.9), ("ssl_teacher", 0.8)):
        path = tmp_path / f"best_{name}.safetensors"
        save_checkpoint(path, model.state_dict(), {"val_dice": dice})
    path, reason = recommended_checkpoint(tmp_path)
    assert path.name == "best_continued.safetensors"
    assert reason.startswith("the control: Dice 0.900 on validation slices")
    with pytest.raises(InputError, match="no such checkpoint, and no folder"):
        recommended_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"val_dice": "0.9"}, "its validation Dice, 0.9, is none"),
        ({"val_dice": 5.0}, "its validation Dice, 5.0, is none"),
        ({"val_dice": 0.9, "name": "ssl_teacher"}, "holds best_ssl_teacher"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_seems_is_not_recommended(tmp_path, details, message):
    path = tmp_path / "best_supervised.safetensors"
    save_checkpoint(path, train.UNet(2).state_dict(), details)
    with pytest.raises(InputError, match=message):
        recommended_checkpoint(tmp_path)


def test_the_preset_alone_is_possible():
    assert make_config(method=AUTO).is_semi_supervised
    assert not make_config(method=AUTO, ssl_epochs=0).is_semi_supervised
    assert not make_config(method="supervised").is_semi_supervised
