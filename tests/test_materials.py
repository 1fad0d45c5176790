"""The study of materials says which recipe is better where, from its rows."""

import pandas as pd
import pytest

from benchmarks.materials import Place, is_known, summarise, wins
from config import FOREST, OTSU


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
