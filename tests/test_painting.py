"""The study of painted shares sums up its rows, and strips of paint lie where something is to be seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from benchmarks import painting, strips
from benchmarks.painting import MEAN, RECOMMENDED, Place, is_known, rows_of, summarise
from config import FOREST, Config
from conftest import TINY, run, write_label_maps
from phantoms.scribbles import GATHERED, SPREAD
from runtime.files import write_json
from runtime.messages import InputError
from slices.data_folder import load_data
from slices.options import IMAGES, MASKS, DataOptions, Reading
from training.phases import CONTROL
from viz.study_figures import draw_painting


def rows() -> pd.DataFrame:
    """Rows of two shares, two seeds and two methods, whose Dice is known."""
    made = []
    for share, factor in ((0.03, 0.9), (1.0, 1.0)):
        for seed, shift in ((0, -0.1), (1, 0.1)):
            for method, dice in ((FOREST, 0.4), ("teacher", 0.8)):
                for name, of_class in (
                    ("matrix", 1.0),
                    ("grain", dice + shift),
                    (MEAN, dice + shift),
                ):
                    for stem in ("a", "b"):
                        place = {"share": share, "seed": seed, "method": method, "stem": stem}
                        place["strokes"] = SPREAD
                        # A run recommends what validates best, which may be another method each time.
                        place["recommended"] = (method == "teacher") == (seed == 0)
                        made.append({**place, "class": name, "dice": factor * of_class})
    return pd.DataFrame(made)


def test_scores_are_means_over_seeds_beside_those_of_full_paint():
    summary = summarise(rows()).set_index(["share", "method"])
    teacher = summary.loc[(0.03, "teacher")]
    assert teacher[MEAN] == pytest.approx(0.72)
    assert teacher["of full paint"] == pytest.approx(0.9)
    assert (teacher["lowest"], teacher["highest"]) == pytest.approx((0.63, 0.81))
    assert teacher["seeds"] == 2
    assert summary.loc[(1.0, FOREST), "of full paint"] == pytest.approx(1)


def test_what_each_run_recommends_has_a_row():
    summary = summarise(rows()).set_index(["share", "method"])
    # The teacher's 0.7 with one seed, and the forest's 0.5 with the other.
    assert summary.loc[(1.0, "recommended"), MEAN] == pytest.approx(0.6)
    assert summary.loc[(0.03, "recommended"), "of full paint"] == pytest.approx(0.9)


def test_a_slice_without_a_class_does_not_count_in_its_mean():
    table = rows()
    table.loc[(table["class"] == "grain") & (table["stem"] == "b"), "dice"] = np.nan
    summary = summarise(table).set_index(["share", "method"])
    assert summary.loc[(1.0, "teacher"), "grain"] == pytest.approx(0.8)


def test_the_figure_has_a_panel_for_the_mean_and_for_each_class_but_the_background():
    figure = draw_painting(summarise(rows()))
    assert [panel.get_title() for panel in figure.axes] == ["mean over classes", "grain"]
    shares = figure.axes[1].lines[0].get_xdata()
    assert shares.tolist() == [0.03, 1.0]


def test_what_has_rows_is_not_run_again_whatever_its_part():
    assert is_known(Place(0.03, 1), rows())
    assert not is_known(Place(0.1, 1), rows())
    assert not is_known(Place(0.03, 1, GATHERED), rows())


def test_some_shares_are_painted_with_both_kinds_of_strokes():
    places = painting.places_of(painting.SHARES, (0, 1))
    assert len(places) == 2 * len(painting.SHARES) + 2
    assert places[-2:] == [Place(0.03, 0, GATHERED), Place(0.03, 1, GATHERED)]
    names = {place.folder_name for place in places}
    assert len(names) == len(places)


def test_other_strokes_stand_beside_the_same_share_and_the_same_full_paint():
    gathered = rows()
    gathered = gathered[gathered["share"] == 0.03].assign(strokes=GATHERED)
    gathered["dice"] *= 0.5
    summary = summarise(pd.concat([rows(), gathered]))
    found = summary.set_index(["share", "strokes", "method"])["of full paint"]
    assert found[(0.03, SPREAD, "teacher")] == pytest.approx(0.9)
    assert found[(0.03, GATHERED, "teacher")] == pytest.approx(0.45)
    panel = draw_painting(summary[summary["method"] != RECOMMENDED]).axes[1]
    assert len(panel.lines) == 4


def test_shares_that_cannot_be_are_refused():
    assert painting.shares_of("") == [*painting.SHARES]
    assert painting.shares_of("0.5,1") == [0.5, 1.0]
    for text in ("0", "3", "a"):
        with pytest.raises(InputError, match="--shares"):
            painting.shares_of(text)


def test_slices_of_another_study_are_refused(tmp_path):
    place = Place(0.03, 2)
    made = {"seed": 2, "scans": painting.SCANS, "labelled": painting.LABELLED, "painted": 0.03}
    made["strokes"] = SPREAD
    write_json(tmp_path / "demo.json", made)
    painting.check_slices(tmp_path, place)
    with pytest.raises(InputError, match=r"another painted than 0\.1"):
        painting.check_slices(tmp_path, Place(0.1, 2))
    with pytest.raises(InputError, match="another strokes than gathered"):
        painting.check_slices(tmp_path, Place(0.03, 2, GATHERED))


def test_a_run_has_a_row_for_each_class_and_for_their_mean(workplace, tmp_path):
    folder = write_label_maps(tmp_path / "d", share=0.3)
    config = Config(**{**TINY, "roi": None, "data": str(folder), "run": "r", "forest": False})
    run(config)
    made = rows_of(Place(0.3, 0), config)
    assert set(made["method"]) >= {"supervised", CONTROL, "student", "teacher"}
    of_teacher = made[made["method"] == "teacher"].groupby("class")["dice"].mean()
    assert made[made["recommended"]]["method"].nunique() == 1
    foreground = of_teacher.drop([MEAN, "matrix"])
    assert of_teacher[MEAN] == pytest.approx(foreground.mean())


# --- strips ---------------------------------------------------------------------------------------


def test_a_strip_lies_where_there_is_foreground():
    mask = np.zeros((100, 40), np.uint8)
    mask[70:80] = 1
    for seed in range(20):
        kept = strips.keep_strip(mask, 0.1, np.random.default_rng(seed))
        painted = np.flatnonzero((kept > 0).all(axis=1))
        assert len(painted) == 10
        assert (np.diff(painted) == 1).all()
        assert not kept[np.setdiff1d(np.arange(100), painted)].any()
        np.testing.assert_array_equal(kept[painted], mask[painted] + 1)
        assert mask[painted].mean() >= 0.05
    assert (strips.keep_strip(mask, 1.0, np.random.default_rng(0)) > 0).all()


def test_test_slices_stay_painted(data_folder, tmp_path):
    data = strips.read_split(data_folder, fold=1)
    strips.write_folder(data, tmp_path / "s", 0.2, seed=0)
    read = load_data(tmp_path / "s", DataOptions(reading=Reading(roi=None)))
    assert [s.stem for s in read.test] == [s.stem for s in data.test]
    assert all(s.painted is None for s in read.test)
    for s in read.train:
        assert s.counted.mean() == pytest.approx(0.2, abs=0.01)
    first = data.train[0]
    copied = tmp_path / "s" / IMAGES / first.path.name
    assert copied.read_bytes() == Path(first.path).read_bytes()
    labels = tifffile.imread(tmp_path / "s" / MASKS / f"{first.stem}.tif")
    assert set(np.unique(labels)) == {0, 1, 2}
