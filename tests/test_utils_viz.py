"""Plots of tables: every line that should be there, and every figure of a run from its folder alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from matplotlib.image import imread

import utils_viz
from config import Config
from conftest import TINY, run
from runtime.messages import InputError
from viz import run_files, study_figures


def has_ink(path: Path) -> bool:
    """Whether every quarter of a picture shows something."""
    picture = imread(path)[..., :3]
    half = [n // 2 for n in picture.shape[:2]]
    quarters = [
        picture[a, b]
        for a in (np.s_[: half[0]], np.s_[half[0] :])
        for b in (np.s_[: half[1]], np.s_[half[1] :])
    ]
    return all(q.std() > 0.01 for q in quarters)


def test_every_figure_is_drawn_from_the_run_folder_alone(
    workplace, data_folder, command, monkeypatch
):
    config = Config(**TINY, data=str(data_folder), run="a")
    run(config)
    for path in [*data_folder.rglob("*.tif"), *Path("checkpoints/a").iterdir()]:
        path.unlink()
    monkeypatch.setattr(tifffile, "imread", lambda *a: pytest.fail("figures must not read slices"))
    code, out, err = command("utils_viz", "runs/a")
    assert code == 0, err
    names = [
        "slice",
        "views",
        "curves",
        "paired",
        "calibration",
        "worst",
        "methods_s_00",
        "methods_s_01",
        "prediction_s_00",
        "prediction_s_01",
    ]
    files = sorted(Path("runs/a/figures").iterdir())
    assert {f"{name}.png" for name in names} <= {file.name for file in files}
    assert f"{len(files)} figures" in out
    assert all(has_ink(path) for path in files)


def test_older_runs_with_the_first_columns_only(workplace):
    folder = Path("runs/old")
    folder.mkdir(parents=True)
    (folder / "sup_metrics.csv").write_text(
        "epoch,loss_sup,val_dice,val_iou\n1,0.7,0.2,0.1\n2,0.5,0.6,0.4\n"
    )
    (folder / "ssl_metrics.csv").write_text(
        "epoch,loss_sup,loss_consistency,lam,val_dice,val_iou\n1,0.4,0.01,0.0,0.6,0.4\n2,0.4,0.02,0.5,0.7,0.5\n"
    )
    figures = utils_viz.draw_run(folder)
    assert list(figures) == ["curves"]
    panels = figures["curves"].axes
    assert [len(p.lines) for p in panels] == [2, 2, 1, 0, 1]  # the last is the axis of λ
    assert [t.get_text() for t in panels[3].texts] == ["not recorded"]
    np.testing.assert_allclose(panels[1].lines[1].get_ydata(), [0.6, 0.7])


def test_nothing_to_draw(tmp_path, command):
    with pytest.raises(InputError, match="holds nothing to draw"):
        utils_viz.draw_run(tmp_path)
    assert command("utils_viz", tmp_path / "none")[0] == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sup_metrics.csv", b""),
        ("test_full.csv", b""),
        ("predictions.npz", b"junk"),
        ("samples.npz", b"PK\x03\x04 "),
    ],
)
def test_damaged_files_are_named(tmp_path, command, name, content):
    (tmp_path / name).write_bytes(content)
    code, _, err = command("utils_viz", tmp_path)
    assert code == 2
    assert f"{name}: cannot be read" in err


@pytest.mark.parametrize(
    ("name", "column"),
    [("sup_metrics.csv", "epoch"), ("test_full.csv", "method"), ("calibration.csv", "method")],
)
def test_tables_without_a_column_are_named(tmp_path, command, name, column):
    (tmp_path / "thresholds.csv").write_text("method,threshold,dice\na,0.5,0.7\n")
    (tmp_path / name).write_text("stem,dice,predicted,observed,pixels\na,1,1,1,1\n")
    code, _, err = command("utils_viz", tmp_path)
    assert code == 2
    assert f"{name}: has no column {column}" in err
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"summary\.json: has no 'full'"):
        run_files.results_table(tmp_path)


def test_paired_plot_shows_every_score_and_the_means():
    table = pd.DataFrame(
        [
            {"method": m, "stem": f"s{i}", "dice": v}
            for m, values in {"b": [0.5, 0.7], "a": [0.6, 0.9]}.items()
            for i, v in enumerate(values)
        ]
    )
    low = table[table["method"] == "b"].assign(method="Otsu", dice=0.1)
    panel = utils_viz.draw_paired({"full": pd.concat([low, table])}).axes[0]
    assert panel.get_title() == "full (Otsu: 0.100)"
    assert [t.get_text() for t in panel.get_xticklabels()] == ["b", "a"]
    shown = sorted(float(y) for c in panel.collections for y in c.get_offsets()[:, 1])
    assert shown == [0.5, 0.6, 0.7, 0.9]
    assert [t.get_text() for t in panel.texts] == ["0.600", "0.750"]


def test_results_table_as_text(workplace, data_folder):
    settings = dict(TINY, method="supervised")
    config = Config(**settings, data=str(data_folder), run="a")
    run(dataclasses.replace(config))
    for kind in ("full", "patches"):
        table = run_files.results_table(config.run_folder, kind)
        assert table.index.tolist() == ["Otsu", "supervised"]
        assert table["dice"].str.fullmatch(r"\d\.\d{3} \(\d\.\d{3}–\d\.\d{3}\)").all()


def test_calibration_plot_shows_bins_errors_and_best_thresholds():
    bins = pd.DataFrame(
        {
            "method": "a student",
            "predicted": [0.1, 0.8, np.nan],
            "observed": [0.2, 0.5, np.nan],
            "pixels": [30, 10, 0],
        }
    )
    thresholds = pd.DataFrame({"method": "a student", "threshold": [0.4, 0.5], "dice": [0.7, 0.6]})
    left, right = utils_viz.draw_calibration(bins, thresholds, 0.4).axes
    assert right.lines[-1].get_xdata() == [0.4, 0.4]
    np.testing.assert_allclose(left.lines[1].get_xydata(), [[0.1, 0.2], [0.8, 0.5]])
    assert left.get_legend().get_texts()[0].get_text() == "a student: ECE 0.150"
    assert right.get_legend().get_texts()[0].get_text() == "a student: best 0.700 at 0.40"


def study_summary() -> pd.DataFrame:
    rows = []
    for labels in (0, 2):
        for variant, role in (
            ("mt", "Otsu"),
            ("mt", "supervised"),
            ("mt", "supervised continued"),
            ("mt", "student"),
            ("cm", "Otsu"),
            ("cm", "student"),
        ):
            row = {
                "labels": labels,
                "variant": variant,
                "role": role,
                "dice": 0.7,
                "low": 0.6,
                "high": 0.75,
            }
            rows.append(
                row
                | (
                    {"gain": 0.02, "gain_low": -0.01, "gain_high": 0.04}
                    if role == "student"
                    else {}
                )
            )
            rows[-1] |= {
                f"change{k}": rows[-1].get(f"gain{k}", np.nan) - 0.05 if variant == "cm" else np.nan
                for k in ("", "_low", "_high")
            }
    return pd.DataFrame(rows)


def test_budget_plot_has_all_labels_last_and_names_the_rivals():
    figure = study_figures.draw_budgets(study_summary())
    left, right = figure.axes
    assert [t.get_text() for t in left.get_xticklabels()] == ["2", "all"]
    assert left.get_title() == "Otsu 0.70"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "mt: supervised continued",
        "mt: student",
        "cm: student",
    ]
    assert [bars.get_label() for bars in right.containers] == ["mt: student", "cm: student"]
    assert list(right.containers[0].lines[0].get_ydata()) == [0.02, 0.02]
    assert all(np.all(np.diff(bars.lines[0].get_xdata()) > 0) for bars in right.containers)


def test_bars_of_equal_values_have_no_length_whatever_rounding_makes_of_them():
    equal = study_summary().assign(low=0.7 + 1e-16, gain_low=0.02 + 1e-17, gain_high=0.02 - 1e-17)
    assert equal["low"].iloc[0] > equal["dice"].iloc[0]
    study_figures.draw_budgets(equal)
    study_figures.draw_ablation(equal, role="student")


def test_ablation_bars_show_gain_interval_and_score():
    first, second = study_figures.draw_ablation(study_summary(), role="student").axes
    assert [bar.get_width() for bar in first.patches] == [0.02, 0.02]
    assert [t.get_text() for t in first.get_yticklabels()] == ["mt", "cm"]
    assert [t.get_text() for t in first.texts] == ["0.700", "0.700"]
    assert second.get_title().startswith("all labelled")
    summary = study_summary()
    partly = summary[(summary["labels"] == 0) | (summary["variant"] == "cm")]
    first, _ = study_figures.draw_ablation(partly, role="student").axes
    assert [(t.get_text(), t.xy[1]) for t in first.texts] == [("0.700", 0), ("not run", 1)]
    left, _ = study_figures.draw_ablation(summary, "change", "mt", "student").axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["cm"]
    assert left.patches[0].get_width() == pytest.approx(-0.03)
    assert left.get_xlabel().endswith("that of mt")


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("samples.npz", lambda p: np.savez(p, a=np.zeros(3)), r"samples\.npz: holds other things"),
        (
            "predictions.npz",
            lambda p: np.savez(p, a=np.zeros(3)),
            r"predictions\.npz: holds other things",
        ),
        (
            "predictions.npz",
            lambda p: p.write_bytes(b"PK\x03\x04" + bytes(60)),
            r"predictions\.npz: cannot be read",
        ),
        (
            "test_full.csv",
            lambda p: p.write_text("method,stem,dice\n1,2,3\n"),
            "holds other things",
        ),
        (
            "test_full.csv",
            lambda p: p.write_text("method,stem\na,b\n"),
            r"test_full\.csv: has no column dice",
        ),
        ("sup_metrics.csv", lambda p: p.write_bytes(b""), r"sup_metrics\.csv: cannot be read"),
    ],
)
def test_what_no_run_wrote_is_named(tmp_path, name, write, said):
    write(tmp_path / name)
    with pytest.raises(InputError, match=said):
        utils_viz.draw_run(tmp_path)
