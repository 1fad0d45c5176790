"""The study of materials says which recipe is better where, from its rows."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.materials import Place, is_known, summarise, wins
from config import FOREST, OTSU
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
    marks = {marks.get_label(): marks.get_offsets() for marks in two.collections[1:]}
    assert list(marks) == ["auto", "auto: control", "auto: teacher", "best", OTSU, FOREST]
    assert marks["auto"][:, 0].tolist() == pytest.approx([0.92, 0.9])
    of_auto = five.collections[1].get_offsets()
    assert np.ma.getmaskarray(of_auto)[0, 0]
    assert of_auto[1].tolist() == pytest.approx([0.9, 1])
