"""The page of a run: what it says, that it needs nothing else, and how a browser shows it."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import report
from config import Config
from conftest import TINY, run, write_data
from evaluation.recommendation import recommend_model
from runtime.files import read_json
from runtime.messages import InputError
from training.phases import method_names
from viz import run_page

# Of every figure that a page may have, by its kind.
CAPTIONS = {kind: text for captions in run_page.FIGURES.values() for kind, text in captions.items()}

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that has its page, with names that HTML must not take as its own."""
    root = tmp_path_factory.mktemp("finished")
    data, before = write_data(root / "a <b>&", 8, 3), Path.cwd()
    os.chdir(root)
    try:
        config = Config(**TINY, data=str(data), run="page", pixel_size=0.5)
        run(config)
        report.write_report(config.run_folder)
    finally:
        os.chdir(before)
    return root / "runs" / "page"


def text_of(folder: Path) -> str:
    """The words of the page."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(words))


def test_it_says_what_was_found_and_how(finished):
    text, summary = text_of(finished), read_json(finished / "summary.json")
    for method, scores in summary["full"]["methods"].items():
        mean = scores["dice"]
        assert f"{method} {mean['mean']:.3f} ({mean['low']:.3f}–{mean['high']:.3f})" in text
    best = max(summary["full"]["methods"].items(), key=lambda item: item[1]["dice"]["mean"])
    assert (
        f"Highest mean Dice of full test images: {best[0]}, {best[1]['dice']['mean']:.3f}" in text
    )
    # How good the model is that shall be used, which need not be the best one of the table.
    recommended = recommend_model(finished).name
    (row,) = [row for row, name in method_names("mean_teacher").items() if name == recommended]
    mean = summary["full"]["methods"][row]["dice"]["mean"]
    assert f"in the table {row}, Dice {mean:.3f} on full test images" in text
    assert (
        "With 2 test slices no difference between methods can be significant: it takes 6."
        in text.split("Results")[0]
    )
    assert "Mean Teacher (teacher): " in text.split("Results")[0]
    for title in ("Results", *run_page.FIGURES, "How it was made"):
        assert f" {title} " in text
    assert "Diameters in µm" in text
    assert "a <b>&" in text
    assert "base_channels 2 64 channels at full resolution" in text
    assert read_json(finished / "environment.json")["packages"]["torch"] in text
    for stem in read_json(finished / "split.json")["train"]:
        assert stem in text


def test_it_needs_no_other_file_and_no_network(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|object|embed)\b", page)
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>]{0,30})""", page)
    assert len(sources) == len(CAPTIONS)
    assert all(source.startswith("data:image/") for source in sources)
    assert len(page) < 4e6


def test_every_figure_is_redrawn_with_it(finished):
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    assert names >= {"paired", "curves", "calibration", "worst", "slice", "views", "sizes"}


def test_a_run_without_pictures_or_scores_has_a_page(finished, tmp_path):
    (tmp_path / "old" / "figures").mkdir(parents=True)
    settings = {
        name: value
        for name, value in read_json(finished / "config.json").items()
        if name != "pixel_size"
    }
    (tmp_path / "old" / "config.json").write_text(json.dumps(settings))
    shutil.copy(finished / "sup_metrics.csv", tmp_path / "old")
    shutil.copy(finished / "figures" / "worst.png", tmp_path / "old" / "figures")
    text = text_of(report.write_report(tmp_path / "old").parent)
    assert "nothing can be said about accuracy" in text
    assert CAPTIONS["worst"] in text  # a picture that was drawn before
    assert CAPTIONS["paired"] not in text
    assert "Results" not in text


def test_without_test_slices_no_figure_is_empty(workplace, data_folder):
    settings = {
        **TINY,
        "split": "random",
        "val_fraction": 0.0,
        "test_fraction": 0.0,
        "method": "supervised",
    }
    config = Config(**settings, data=str(data_folder), run="none")
    run(config)
    text = text_of(report.write_report(config.run_folder).parent)
    assert "Recommended: best_" in text
    assert "nothing can be said about accuracy" in text
    assert CAPTIONS["curves"] in text
    assert not [
        kind for kind in ("paired", "worst", "sizes", "calibration") if CAPTIONS[kind] in text
    ]
    assert not [
        title for title in ("Results", "Particle sizes", "Where it is right") if f" {title}" in text
    ]


def test_a_model_that_finds_no_particle(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "r")
    with np.load(finished / "predictions.npz") as stored:
        arrays = {
            name: array * 0 if name.startswith("Mean Teacher") else array
            for name, array in stored.items()
        }
    np.savez(tmp_path / "r" / "predictions.npz", **arrays)
    assert " Mean Teacher (teacher) 0 0 " in text_of(report.write_report(tmp_path / "r").parent)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", '{"full": 3}'),
        ("phases.json", "[]"),
        ("split.json", "7"),
        ("predictions.npz", "no"),
        ("config.json", '{"colour": 1}'),
        ("annotate_next.csv", "a\n1\n"),
    ],
)
def test_damaged_files_are_named(finished, tmp_path, command, name, content):
    shutil.copytree(finished, tmp_path / "r")
    (tmp_path / "r" / name).write_text(content)
    (tmp_path / "r" / "report.html").unlink()
    code, _, err = command("report", tmp_path / "r")
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith(f"error: {tmp_path / 'r'}")
    assert not (tmp_path / "r" / "report.html").exists()


def test_the_command(finished, command, tmp_path):
    shutil.copytree(finished, tmp_path / "r")
    code, out, _ = command("report", tmp_path / "r")
    assert (code, out) == (0, f"{tmp_path / 'r' / 'report.html'}\n")
    code, _, err = command("report", tmp_path / "none")
    assert (code, err) == (2, f"error: {tmp_path / 'none'}: no such run folder\n")


def test_settings_that_differ_from_the_recipe_are_marked(tmp_path):
    table = run_page.settings_table(tmp_path, Config(lr=0.5, freeze=(), method="supervised"))
    rows = {row[0]: row[1:3] for i, row in enumerate(table.rows) if i in table.marked}
    assert rows == {"lr": ["0.5", "0.001"], "freeze": ["none", "down1,down2,down3"]}


# --- in a browser ---------------------------------------------------------------------------------------------

MEASURE = """<script>addEventListener("load", () => {
  const images = [...document.images], style = getComputedStyle(document.body);
  document.title = [document.documentElement.scrollWidth, innerWidth, images.filter(i => i.naturalWidth > 0).length,
    style.backgroundColor, style.color, Math.max(...images.map(i => i.getBoundingClientRect().right))].join("|")
})</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_all_of_it(finished, tmp_path, width, scheme):
    page = tmp_path / "page.html"
    text = (finished / "report.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'browser'}",
        f"--window-size={width},1500",
        *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
    ]

    def browse(*more: str) -> str:
        command = [CHROMIUM, *options, *more, page.as_uri()]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True
        ).stdout

    title = html.unescape(re.search(r"<title>(.*?)</title>", browse("--dump-dom"))[1])
    needed, there, images, background, ink, right = title.split("|")
    assert (there, images) == (str(width), str(len(CAPTIONS)))
    assert int(needed) <= width  # nothing is cut off, the page does not move sideways
    assert float(right) <= width
    assert (background, ink) == {
        "light": ("rgb(255, 255, 255)", "rgb(28, 32, 36)"),
        "dark": ("rgb(21, 24, 27)", "rgb(228, 231, 234)"),
    }[scheme]
    browse(f"--screenshot={tmp_path / 'shot.png'}")
    shot = imread(tmp_path / "shot.png")[..., :3]
    assert shot.shape[1] == width
    assert abs(shot[5, 5].mean() - {"light": 1.0, "dark": 0.094}[scheme]) < 0.01
    assert shot.std() > 0.05


def test_a_figure_of_another_kind_is_not_taken_for_one(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("sizes_unlabelled", "methods_s_01", "methods_s_00"):
        (tmp_path / "figures" / f"{name}.png").touch()
    assert run_page.find_figure(tmp_path, {}, "sizes") is None
    assert run_page.find_figure(tmp_path, {}, "methods") == "methods_s_00"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        report.write_report(tmp_path)
