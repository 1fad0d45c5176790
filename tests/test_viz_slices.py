"""Pictures of slices: panels, scale bars of the right length, errors in words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from conftest import disc_slice
from slices.reading import Slice
from slices.windows import percentile_window
from viz import panels, size_figures, slice_figures
from viz.class_figures import picture_of_errors
from viz.slice_figures import PredictedSlice


def test_errors_are_red_where_too_much_and_cyan_where_missed():
    image = np.full((4, 4), 100, np.uint8)
    truth, prediction = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    truth[0], prediction[:, 0] = True, True
    rgb = slice_figures.error_map(image, truth, prediction)
    assert rgb[2, 0, 0] > 0.7 > 0.3 > rgb[2, 0, 2]  # false positive: red
    assert rgb[0, 2, 2] > 0.7 > 0.3 > rgb[0, 2, 0]  # false negative: cyan
    for pixel in (rgb[0, 0], rgb[3, 3]):
        assert np.ptp(pixel) == 0  # right: grey


@pytest.mark.parametrize(
    ("width", "pixel_size", "length", "label"),
    [
        (768, 0.022, 5 / 0.022, "5 µm"),
        (256, 0.022, 1 / 0.022, "1 µm"),
        (768, 0.0, 200, "200 px"),
        (64, 1e-3, 20, "0.02 µm"),
        (600, 0.0, 200, "200 px"),
        (15, 0.0, 5, "5 px"),
    ],
)
def test_scale_bars_are_round_and_at_most_a_third_as_wide(width, pixel_size, length, label):
    image = np.zeros((40, width), np.uint8)
    panel = slice_figures.draw_methods(image, image > 0, {}, "s", pixel_size).axes[0]
    (bar,) = [child for child in panel.get_children() if isinstance(child, AnchoredSizeBar)]
    assert bar.txt_label.get_text() == label
    assert bar.size_bar.get_children()[0].get_width() == pytest.approx(length)
    assert length <= width / 3


def test_five_panels():
    image, truth = disc_slice(0)
    figure = slice_figures.draw_predictions(
        PredictedSlice(
            "s", percentile_window(image), truth.astype(bool), truth * 0.9, 0.5, "teacher"
        )
    )
    assert len(figure.axes) == 6  # five panels and a colour bar
    assert figure.axes[4].get_title().startswith("Dice 1.000")


def test_errors_in_words():
    truth, prediction = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[2:8, 2:8] = truth[20:30, 20:30] = (
        True  # missed: 36 px; found with a rim of 100 − 81 px missing
    )
    prediction[20:29, 20:29] = True
    prediction[35:38, 2:5] = True  # invented: 9 px
    prediction[20:30, 32:34] = truth[20:30, 32:33] = True  # half of it is true, and it is found
    assert slice_figures.describe_errors(truth, prediction) == (
        "1 of 3 particles missed, 1 invented;\n39 % of wrong pixels at rims"
    )  # 19 + 10 of 19 + 10 + 36 + 9
    assert slice_figures.describe_errors(truth, truth).startswith(
        "0 of 3 particles missed, 0 invented;\n0 %"
    )


def test_worst_slices_one_row_each():
    image, truth = disc_slice(0)
    rows = [
        PredictedSlice(
            f"s{i}", percentile_window(image), truth.astype(bool), truth * 0.9 * i, 0.5, "teacher"
        )
        for i in range(2)
    ]
    figure = slice_figures.draw_worst(rows)
    titles = [axes.get_title() for axes in figure.axes]
    assert next(t for t in titles if t.startswith("Dice")).startswith(
        "Dice 0.000; FP red, FN cyan\n2 of 2 particles"
    )
    assert [t for t in titles if t.startswith("s")] == ["s0", "s1"]


def test_sizes_by_number_and_by_volume():
    some = pd.DataFrame(
        {
            "diameter": [3.0, 1.0, 2.0, 9.0],
            "volume": [27.0, 1.0, 8.0, 729.0],
            "weight": [2.0, 1.0, 1.0, 1.0],
            "touches_border": [False, False, False, True],
        }
    )
    figure = size_figures.draw_sizes({"a": some, "none": some[:0]}, "µm")
    panels = figure.axes
    np.testing.assert_allclose(panels[0].lines[0].get_ydata(), [1 / 4, 2 / 4, 1])
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), [1 / 63, 9 / 63, 1])
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "a: 3 whole particles; D50 2 and 3 µm",
        "none: no whole particle",
    ]
    assert legend.get_title().get_text() == "D50 by number and by volume"
    assert [panel.get_title() for panel in panels] == ["by number of particles", "by their volume"]
    assert panels[0].get_xlabel() == "equivalent diameter [µm]"


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (["truth", "supervised", "supervised continued", "best (student)", "best (teacher)"], True),
        (["a", "b", "c"], False),
    ],
)
def test_a_method_has_its_colour_in_the_distributions_too(names, own):
    some = pd.DataFrame(
        {"diameter": [1.0], "area": [1.0], "weight": [1.0], "touches_border": [False]}
    )
    lines = size_figures.draw_sizes(dict.fromkeys(names, some), "px").axes[1].lines
    colours = [line.get_color() for line in lines][:-1]
    assert len(set(colours)) == len(names)
    assert (colours == [panels.colour_of(name) for name in names]) == own


def test_slices_of_a_volume_with_what_there_is_of_them():
    grey, mask, doubt = (
        np.full((20, 30), 90, np.uint8),
        np.eye(20, 30) > 0,
        np.full((20, 30), 0.2, np.float32),
    )
    for parts, rows in (
        ((grey, mask, doubt), 3),
        ((grey, None, doubt), 2),
        ((grey, None, None), 1),
    ):
        one = slice_figures.SliceOfVolume(*parts)
        panels = slice_figures.draw_volume({4: one, 9: one}, 0.5, "entropy").axes
        bars = 1 if parts[2] is not None else 0
        assert len(panels) == 2 * rows + bars
        assert [p.get_title() for p in panels if p.get_title()] == ["slice 4", "slice 9"]
    shown = panels[0].images[0].get_array()
    np.testing.assert_array_equal(shown, grey)


def test_uncertainty_with_the_error_rates_of_its_tenths():
    truth = np.zeros((20, 30), np.uint8)
    truth[:10] = 1
    decision, doubt = truth.astype(bool), np.zeros((20, 30))
    decision[0, :15], doubt[0] = False, 0.4
    s = Slice(Path("s.tif"), np.full((20, 30), 9, np.uint8), truth)
    table = pd.DataFrame({"error_rate": [0.0] * 9 + [0.3]}, index=range(1, 11))
    left, middle, right, *_ = slice_figures.draw_uncertainty(
        s.image, picture_of_errors(s, decision, None), doubt, {"spread": table}
    ).axes
    assert left.get_title().startswith("FP red, FN cyan; Dice 0.974")
    np.testing.assert_array_equal(middle.images[0].get_array(), doubt)
    assert right.lines[0].get_ydata()[-1] == pytest.approx(30)
    assert right.get_legend().get_texts()[0].get_text() == "spread"
