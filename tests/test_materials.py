"""The study of materials says which recipe is better where, from its rows."""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import materials
from benchmarks.materials import Place, is_known, plan, role_of, summarise, wins
from config import AUTO, FOREST, OTSU
from conftest import STUDY_SETTINGS
from runtime.files import read_json
from runtime.messages import InputError
from training.phases import CONTROL, method_names
from viz.study_figures import draw_materials


def rows() -> pd.DataFrame:
    """Rows of two materials: on the second one the forest is better."""
    made = []
    for material, forest in (("sand", 0.8), ("foam", 0.95)):
        place = {"material": material, "labels": 2, "seed": 0, "stem": "a"}
        for variant, method, dice, recommended in (
            ("auto", OTSU, 0.5, False),
            ("auto", FOREST, forest, False),
            ("auto", "supervised continued", 0.9, material == "foam"),
            ("auto", "teacher", 0.92, material == "sand"),
            ("best", "teacher", 0.915, True),
        ):
            made.append(
                {
                    **place,
                    "variant": variant,
                    "method": method,
                    "dice": dice,
                    "recommended": recommended,
                }
            )
    return pd.DataFrame(made)


def test_what_is_recommended_is_compared():
    summary = summarise(rows(), ["auto", "best"]).set_index("material")
    assert summary["auto"].to_dict() == pytest.approx({"sand": 0.92, "foam": 0.9})
    assert summary["auto: control"].to_dict() == pytest.approx({"sand": 0.9, "foam": 0.9})
    counted = wins(summary.reset_index(), "auto").set_index("against")
    assert counted.loc[FOREST, ["better", "worse"]].tolist() == [1, 1]
    assert counted.loc[FOREST, "least"] == pytest.approx(-0.05)
    assert counted.loc["best", ["better", "worse"]].tolist() == [0, 1]


def test_what_was_not_tried_changes_no_order():
    without_best = rows()[
        lambda table: (table["variant"] == "auto") | (table["material"] == "foam")
    ]
    summary = summarise(without_best, ["auto", "best"])
    assert summary["material"].tolist() == ["sand", "foam"]
    assert summary["best"].isna().tolist() == [True, False]


def test_materials_stand_in_the_order_of_the_study():
    study = {"materials": {"sand": {}, "foam": {}}}
    mixed = rows().sort_values("dice")
    ordered = materials.in_order_of(study, mixed)
    assert ordered["material"].tolist() == ["sand"] * 5 + ["foam"] * 5
    assert sorted(ordered["dice"]) == sorted(mixed["dice"])


def test_what_has_rows_is_not_run_again():
    assert is_known(Place("sand", 2, 0, "auto"), rows())
    assert not is_known(Place("sand", 5, 0, "auto"), rows())


def test_the_figure_begins_with_the_material_that_gains_most():
    both = pd.concat([rows(), rows().assign(labels=5).query("material == 'foam'")])
    figure = draw_materials(summarise(both, ["auto", "best"]))
    two, five = figure.axes
    assert [t.get_text() for t in two.get_yticklabels()] == ["sand", "foam"]
    assert [panel.get_title() for panel in (two, five)] == [
        "2 labelled slices",
        "5 labelled slices",
    ]
    marks = {marks.get_label(): marks.get_offsets() for marks in two.collections}
    assert list(marks) == ["auto", "auto: control", "auto: teacher", "best", OTSU, FOREST]
    assert marks["auto"][:, 0].tolist() == pytest.approx([0.92, 0.9])
    of_auto = five.collections[0].get_offsets()
    assert np.ma.getmaskarray(of_auto)[0, 0]
    assert of_auto[1, 0] == pytest.approx(0.9)


def test_marks_of_the_same_score_do_not_hide_each_other_in_the_figure():
    same = rows().assign(dice=0.9)
    figure = draw_materials(summarise(same, ["auto", "best"]))
    heights = np.array([marks.get_offsets()[:, 1] for marks in figure.axes[0].collections])
    assert (np.diff(heights, axis=0) > 0.1).all()
    # And each mark stands in the row of its own material.
    assert (np.abs(heights - [0, 1]) < 0.5).all()


# --- what is run ----------------------------------------------------------------------------------

STUDY = {
    "labels": [2, 5],
    "seeds": [0, 1],
    "materials": {"sand": {}, "foam": {}},
    "variants": {"auto": {}, "best": {}},
}


def asked(**options: str) -> argparse.Namespace:
    """What the command line asks for."""
    return argparse.Namespace(
        **{"study": "study.json", "seeds": "", "labels": "", "variants": "", **options}
    )


def test_all_materials_of_a_budget_are_run_before_the_next():
    places = plan(STUDY, asked())
    assert len(set(places)) == len(places) == 16
    assert [place.name for place in places[:5]] == [
        "materials_sand_auto_l2_s0",
        "materials_foam_auto_l2_s0",
        "materials_sand_best_l2_s0",
        "materials_foam_best_l2_s0",
        "materials_sand_auto_l5_s0",
    ]


def test_only_what_is_asked_for_is_run():
    places = plan(STUDY, asked(seeds="1", labels="5,2", variants="best"))
    assert [(place.material, place.labels) for place in places] == [
        ("sand", 5),
        ("foam", 5),
        ("sand", 2),
        ("foam", 2),
    ]
    assert {(place.seed, place.variant) for place in places} == {(1, "best")}
    with pytest.raises(InputError, match=r"--variants worst: not in study\.json"):
        plan(STUDY, asked(variants="worst"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "has no name"),
        ({"name": "../x"}, "name: must be that of a folder"),
        ({"variants": ["auto"]}, "has no variants"),
        ({"variants": {"auto": {}}}, "auto: has no method"),
        ({"materials": {"sand": 1}}, "sand: must have settings"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(workplace, command, change, message):
    study = {"name": "x", **STUDY, "variants": {"auto": {"method": AUTO}}}
    Path("study.json").write_text(json.dumps(study | change))
    code, _, err = command("benchmarks.materials", "study.json")
    assert code == 2
    assert err.startswith("error: study.json: ")
    assert message in err
    assert not list(workplace.glob("**/runs"))


@pytest.mark.parametrize("option", ["--labels=a", "--seeds=1,,", "--minutes=0"])
def test_wrong_options_of_a_study_leave_nothing(workplace, command, option):
    study = {"name": "x", **STUDY, "variants": {"auto": {"method": AUTO}}}
    Path("study.json").write_text(json.dumps(study))
    code, _, err = command("benchmarks.materials", "study.json", option)
    assert code == 2
    assert err.startswith("error: ")
    assert not list(workplace.glob("runs/*/study.json"))


def test_slices_of_another_seed_are_not_taken_for_those_of_the_study(tmp_path):
    (tmp_path / "sand").mkdir()
    (tmp_path / "sand" / "material.json").write_text('{"seed": 0}')
    study = {"materials": {"sand": {}}, "data_seed": 1}
    with pytest.raises(InputError, match="its slices were made with --seed 0"):
        materials.write_missing_materials(study, tmp_path)
    materials.write_missing_materials(study | {"data_seed": 0}, tmp_path)


def test_rows_of_other_settings_do_not_mix_with_these(tmp_path):
    study = {"materials": {"sand": {}}, "variants": {"auto": {"method": AUTO}}}
    materials.write_record(tmp_path, study, 1.0)
    materials.check_same_settings(tmp_path, study | {"materials": {"foam": {}}})
    other = {"materials": {"sand": {}}, "variants": {"auto": {"method": AUTO, "lr": 1.0}}}
    with pytest.raises(InputError, match=r"auto: .* holds runs of it with other settings"):
        materials.check_same_settings(tmp_path, other)
    materials.write_record(tmp_path, study | {"data_seed": 2}, 1.0)
    with pytest.raises(InputError, match=r"data_seed 3: .* holds runs on slices of 2"):
        materials.check_same_settings(tmp_path, study | {"data_seed": 3})


@pytest.mark.parametrize("method", ["auto", "best", "mean_teacher"])
def test_the_same_model_has_the_same_name_in_all_variants(method):
    roles = {role_of(name, method_names(method)) for name in method_names(method)}
    assert {"supervised", CONTROL, "student", "teacher"} <= roles
    assert role_of(FOREST, method_names(method)) == FOREST


def test_a_study_is_run_once_and_summed_up(
    workplace, data_folder, few_steps, command, capsys, monkeypatch
):
    settings = {**STUDY_SETTINGS, "patch_size": 64}
    del settings["method"]
    study = {
        "name": "discs",
        "labels": [2],
        "seeds": [0],
        "materials": {data_folder.name: settings},
        "variants": {"auto": {"method": AUTO}, "classic": {"method": "mean_teacher"}},
    }
    (workplace / "study.json").write_text(json.dumps(study))
    options = ["study.json", "--data", data_folder.parent, "--minutes", "0.01"]
    code, _, err = command("benchmarks.materials", *options, "--part", "1/2")
    assert code == 0, err
    code, _, err = command("benchmarks.materials", *options, "--part", "2/2")
    assert code == 0, err

    # Of a run that is gone on with, the phases count that were trained before.
    place = Place(data_folder.name, labels=2, seed=0, variant="auto")
    phases = read_json(workplace / "runs" / place.name / "phases.json")
    phases["supervised"]["seconds"] = 5000
    (workplace / "runs" / place.name / "phases.json").write_text(json.dumps(phases))
    again = materials.run_one(place, study, data_folder.parent, 0.01)
    assert (again["seconds"] > 5000).all()

    # What has rows is not run again, and runs of other minutes do not mix with these.
    monkeypatch.setattr(materials, "run_one", lambda *_: pytest.fail("was run again"))
    code, _, err = command("benchmarks.materials", *options)
    assert code == 0, err
    code, _, err = command("benchmarks.materials", *options[:-1], "0.02")
    assert code == 2
    assert "holds runs of 0.01" in err

    # Summed up twice, and with the files of the parts beside it, no row is there twice.
    folder = workplace / "runs" / "study_discs"
    for _ in range(2):
        code, out, err = command("benchmarks.materials", "study.json", "--summary")
        assert code == 0, err
        assert "minutes of a run: auto" in out
    rows = pd.read_csv(folder / "rows.csv")
    parts = [pd.read_csv(folder / f"rows_{part}of2.csv") for part in (1, 2)]
    assert len(rows) == sum(len(part) for part in parts)
    assert not rows.duplicated(["variant", "method", "stem"]).any()
    assert (folder / "figures" / "materials.png").exists()

    # One model of each run is recommended, on all test slices; the forest stands in the first variant.
    slices = rows["stem"].nunique()
    recommended = rows[rows["recommended"]]
    assert recommended.groupby("variant").size().to_dict() == {"auto": slices, "classic": slices}
    assert recommended.groupby("variant")["method"].nunique().eq(1).all()
    assert set(rows.loc[rows["method"] == FOREST, "variant"]) == {"auto"}
    summary = pd.read_csv(folder / "summary.csv").iloc[0]
    of_auto = recommended.loc[recommended["variant"] == "auto", "dice"]
    assert summary["auto"] == pytest.approx(of_auto.mean(), abs=1e-3)
