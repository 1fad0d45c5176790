"""The house: what may import what, and that the three lists of packages agree."""

import ast
import re
import sys
import tomllib

import pytest

from conftest import ROOT

MAY_IMPORT = {
    "model_unet": set(), "losses": set(), "utils": set(), "views": set(), "team": {"utils"},
    "commands": {"utils"}, "slices": {"utils"},
    "splits": {"slices", "utils"},
    "config": {"model_unet", "slices", "utils", "windows"},
    "windows": {"slices", "utils"},
    "masks": {"slices", "utils"},
    "pairing": {"slices"},
    "data_folder": {"masks", "pairing", "slices", "splits", "utils", "windows"},
    "datasets": {"commands", "data_folder", "slices", "utils", "views", "windows"},
    "viz_slices": {"utils"},
    "utils_viz": {"commands", "utils", "viz_slices"},
    "stitching": {"utils"},
    "voxel_size": set(),
    "volumes": {"masks", "slices", "utils", "voxel_size"},
    "write_volumes": {"slices", "volumes", "voxel_size"},
    "outputs": {"blocks", "slices", "utils", "volumes", "write_volumes"},
    "components": set(),
    "blocks": {"utils", "volumes", "voxel_size"},
    "sizes": {"uncertainty"},
    "field_of_view": {"outputs", "slices", "utils", "volumes"},
    "particles": {"commands", "components", "field_of_view", "outputs", "sizes", "slices", "uncertainty", "utils",
                  "viz_slices", "volumes", "voxel_size"},
    "evaluate": {"commands", "data_folder", "field_of_view", "masks", "outputs", "pairing", "particles", "slices",
                 "stitching", "uncertainty", "utils", "volumes"},
    "loaders": {"datasets", "run_folder", "utils"},
    "run_folder": {"utils"},
    "progress": {"config", "data_folder", "loaders", "model_unet", "run_folder", "utils"},
    "steps": {"config", "losses", "model_unet", "utils"},
    "train": {"annotate", "commands", "config", "data_folder", "datasets", "evaluate", "loaders", "losses",
              "model_unet", "progress", "report", "run_folder", "steps", "stitching", "team", "utils", "windows"},
    "report": {"commands", "config", "evaluate", "particles", "sizes", "utils", "utils_viz", "viz_slices"},
    "predict": {"blocks", "commands", "config", "model_unet", "outputs", "slices", "stitching", "team", "utils",
                "volumes", "windows"},
    "uncertainty": {"stitching"},
    "annotate": {"config", "data_folder", "model_unet", "slices", "stitching", "uncertainty", "utils"},
    "view": {"commands", "particles", "slices", "utils", "viz_slices", "volumes", "voxel_size", "windows"},
    "demo_data": {"commands", "slices", "splits", "utils"},
}
OPTIONAL = {"napari", "dask"}  # of `make view`
CONDA_NAMES = {"torch": "pytorch", "opencv-python-headless": "opencv"}


def imports_of(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_modules_are_those_of_the_design():
    assert {p.stem for p in ROOT.glob("*.py")} == set(MAY_IMPORT)
    assert {p.stem[5:] for p in (ROOT / "tests").glob("test_*.py")} == {
        *MAY_IMPORT, "notebook", "project", "study", "study_plan", "study_statistics", "annotation",
        "ceiling", "on_gpu", "pretend_cuda", "reference_runs", "speed", "same_scores", "predict_process",
        "particles_command", "whole_volume",
        "readme", "survival", "trouble", "wrong_input", "wrong_stores", "fuzz", "offline"}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_one_way(module):
    assert imports_of(ROOT / f"{module}.py") & set(MAY_IMPORT) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_say_what_they_are(module):
    path = ROOT / f"{module}.py"
    assert ast.get_docstring(ast.parse(path.read_text()))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_conda_environment_is_the_same_set():
    text = (ROOT / "environment.yml").read_text()
    listed = re.findall(r"^  - (\S+)$", text.split("dependencies:")[1], re.M)
    wanted = [f"python{project()['project']['requires-python']}"]
    for requirement in project()["project"]["dependencies"]:
        name, rest = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        wanted.append(CONDA_NAMES.get(name, name) + rest)
    assert sorted(listed) == sorted(wanted)
    assert re.findall(r"^  - (\S+)$", text.split("dependencies:")[0], re.M) == ["conda-forge", "nodefaults"]


def pinned(file: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, pin in re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / file).read_text(), re.M):
        found.setdefault(name, set()).add(pin)
    return found


def test_pins_cover_the_project_with_hashes_and_without_addresses():
    run, dev, bench = (pinned(f"requirements{kind}.txt") for kind in ("", "-dev", "-bench"))
    direct = [re.match(r"[\w-]+", r)[0] for r in project()["project"]["dependencies"]]
    assert set(direct) <= set(run)
    assert all(dev[name] == pin for name, pin in run.items())
    assert {re.match(r"[\w-]+", r)[0] for r in project()["dependency-groups"]["dev"]} <= set(dev)
    assert all(bench[name] == pin for name, pin in dev.items())
    beside = [r for r in project()["dependency-groups"]["bench"] if isinstance(r, str)]
    assert {re.match(r"[\w-]+", r)[0] for r in beside} <= set(bench)
    assert all(pin == bench[name] for name, pin in pinned("requirements-audit.txt").items() if name in bench)
    view = pinned("requirements-view.txt")
    assert all(view[name] == pin for name, pin in run.items())
    assert "napari" in view
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-bench.txt", "requirements-view.txt",
                 "requirements-audit.txt"):
        text = (ROOT / file).read_text()
        assert "://" not in text
        entries = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
        assert all("--hash=sha256:" in entry for entry in entries)


def test_every_import_is_declared():
    declared = {re.match(r"[\w-]+", r)[0] for r in project()["project"]["dependencies"]}
    names = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "mpl_toolkits": "matplotlib"}
    used = {names.get(n, n) for m in MAY_IMPORT for n in imports_of(ROOT / f"{m}.py")}
    assert used - set(MAY_IMPORT) - set(sys.stdlib_module_names) - OPTIONAL <= declared


def test_readme_names_every_file():
    readme = (ROOT / "README.md").read_text()
    for module in MAY_IMPORT:
        assert f"`{module}.py`" in readme
    for command in re.findall(r"python (\w+)\.py", readme):
        assert command in MAY_IMPORT


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([a-z_]+)\.(\w+)`", text)
    assert len(named) > 12
    for module, name in named:
        if name not in ("py", "md", "yml", "toml", "json"):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b.* = |^    {name}: ",
                             (ROOT / f"{module}.py").read_text(), re.M), f"{module}.{name}"
    for file in re.findall(r"`((?:tests|benchmarks)/\w+\.\w+)`", text):
        assert (ROOT / file).exists(), file
