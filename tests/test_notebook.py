"""The notebook, executed in a miniature configuration, and the committed copy."""

import json
import re

import nbformat
import numpy as np
import papermill
import pytest
import tifffile

from conftest import ROOT, class_slice, write_label_maps, write_split
from demo_data import write_demo, write_volume
from runtime.files import read_json
from slices.options import MASKS

NOTEBOOK = ROOT / "main_freezelayers.ipynb"
MINIATURE = {
    "base_channels": 2,
    "patch_size": 128,
    "sup_epochs": 2,
    "ssl_epochs": 2,
    "steps_per_epoch": 1,
    "batch_size": 2,
    "device": "cpu",
    "num_workers": 0,
}


def execute(folder, **parameters):
    """Execute the notebook in a folder with data/mini and data/v.tif; return the outputs of its cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        notebook = papermill.execute_notebook(
            str(NOTEBOOK),
            str(folder / "out.ipynb"),
            cwd=str(folder),
            progress_bar=False,
            parameters={
                "DATA": "data/mini",
                "RUN": "mini",
                "MINUTES": 0.01,
                "SETTINGS": MINIATURE,
                "VOLUME": "data/v.tif",
                **parameters,
            },
        )
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    return outputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs_from_top_to_bottom(tmp_path):
    folder = tmp_path
    write_demo(folder / "data" / "mini", scans=2, labelled=6)
    write_volume(folder / "data" / "v.tif", slices=20, side=96)
    outputs = execute(folder)
    pictures = [o for o in outputs if "image/jpeg" in o.get("data", {})]
    assert len(pictures) >= 16
    assert all(len(p["data"]["image/jpeg"]) > 5000 for p in pictures)
    text = json.dumps(outputs)
    for expected in (
        "no problem found",
        "U-Net of width 2",
        "Mean Teacher (teacher)",
        "auto (teacher)",
        "orientations",
        "painted slices",
        "chosen: ",
        "**classic**, width 2",
        "**auto**, width 2",
        "Highest mean Dice of full test images",
        "**Applied**",
    ):
        assert expected in text
    figures = {p.name for p in (folder / "runs" / "mini" / "figures").iterdir()}
    assert {"slice.png", "views.png", "curves.png", "paired.png"} < figures
    of_auto = {p.name for p in (folder / "runs" / "mini_auto").rglob("*.*")}
    assert {
        "views.png",
        "curves.png",
        "calibration.png",
        "worst.png",
        "sizes.png",
        "annotate_next.csv",
        "recipe.json",
    } < of_auto
    assert {"v.tif", "v_uncertainty.tif", "v.tif.json"} <= of_auto
    widgets = [
        o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    assert "image/jpeg" in widgets[0]["data"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs_on_label_maps_that_are_painted_in_part(tmp_path):
    folder = write_label_maps(tmp_path / "data" / "mini", share=0.5)
    # Little of the matrix is painted in training slices, so that probabilities are corrected; slices
    # for validation are painted everywhere, so that how much each class fills is known.
    split = {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7]}
    write_split(
        folder, **{part: [f"s_{i:02d}" for i in numbers] for part, numbers in split.items()}
    )
    for i in split["val"]:
        tifffile.imwrite(folder / MASKS / f"s_{i:02d}.tif", class_slice(i)[1])
    for i in split["train"]:
        path = folder / MASKS / f"s_{i:02d}.tif"
        values = tifffile.imread(path)
        is_dropped = (values == 1) & (np.random.default_rng(0).random(values.shape) < 0.9)
        tifffile.imwrite(path, np.where(is_dropped, np.uint8(0), values))
    truth = tmp_path / "data" / "mini_truth"
    truth.mkdir()
    for i in range(3):
        tifffile.imwrite(truth / f"scan_{i}.tif", class_slice(100 + i)[1])
    drawn = [class_slice(200 + i) for i in range(20)]
    tifffile.imwrite(folder.parent / "v.tif", np.array([image for image, _ in drawn]))
    labels = np.array([labels for _, labels in drawn])
    tifffile.imwrite(folder.parent / "v_truth.tif", labels)

    settings = {**MINIATURE, "patch_size": 64, "roi": None}
    outputs = execute(tmp_path, PHASE="pore", SETTINGS=settings)
    text = json.dumps(outputs)
    for expected in (
        "no problem found",
        "1 matrix, 2 grain",
        "mean Dice of the slices",
    ):
        assert expected in text
    # The step by hand is the one of training, but for the order of sums.
    difference = re.search(r"differ by (\S+) \(student\)", text).group(1)
    assert float(difference) < 1e-6
    phases = read_json(tmp_path / "runs" / "mini" / "phases.json")
    assert phases["supervised"]["fractions"]["is_corrected"]
    # Scores and sizes on the scans, whose truth is there.
    assert "truth of these scans is not known" not in text
    figures = {p.name for p in (tmp_path / "runs" / "mini_auto").rglob("*.*")}
    assert {"classes.png", "confusion.png", "fractions.png", "sizes_unlabelled.png"} <= figures
    predicted = tifffile.imread(tmp_path / "runs" / "mini_auto" / "volume" / "v.tif")
    assert predicted.shape == labels.shape
    assert set(np.unique(predicted)) <= {1, 2, 3}


def test_committed_notebook_keeps_the_house_rules():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert NOTEBOOK.stat().st_size <= 2**20
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    prose = sum(len(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose > 0.4 * (prose + sum(len(cell.source) for cell in code))
    # Of the outputs only what is text: pictures are long random words, in which any path may stand.
    texts = [cell.source for cell in notebook.cells]
    for cell in code:
        for output in cell.outputs:
            texts.append(output.get("text", ""))
            texts += [v for kind, v in output.get("data", {}).items() if kind.startswith("text/")]
    for path in ("/root", "/home", "/work", "/tmp"):
        assert path not in "\n".join(map(str, texts))
