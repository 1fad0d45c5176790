"""The house: what may import what, and that the three lists of packages agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

# From the ground up: what stands in a layer may import what stands below it, and in a room its neighbours.
LAYERS = [
    {"runtime"},
    {"model_unet", "losses", "utils", "views"},
    {"slices"},
    {"config", "datasets", "viz", "volumes"},
    {"evaluation", "mean_teacher", "utils_viz"},
    {"demo_data", "particles", "predict"},
    {"evaluate", "view"},
    {"report"},
    {"train"},
]
PLACES = {name: floor for floor, layer in enumerate(LAYERS) for name in layer}
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


def modules() -> list[Path]:
    """The modules of the story and those in rooms."""
    return sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))])


ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
MODULES = {path.relative_to(ROOT).as_posix(): path for path in modules()}


def test_every_module_and_room_has_its_place():
    assert {name.partition("/")[0].removesuffix(".py") for name in MODULES} == set(PLACES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    own = name.partition("/")[0].removesuffix(".py")
    for other in imports_of(MODULES[name]) & set(PLACES) - {own}:
        assert PLACES[other] < PLACES[own], f"{name} imports {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_of_a_room_import_each_other_in_a_circle(room):
    arrows = {path.stem: neighbours_of(path, room) for path in (ROOT / room).glob("*.py")}
    while arrows:
        free = [name for name, others in arrows.items() if not others & arrows.keys()]
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in free}


def neighbours_of(path: Path, room: str) -> set[str]:
    """The modules of its own room that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == room:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith(f"{room}."):
            found.add(node.module.split(".")[1])
    return found - {path.stem}


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


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
    used = {names.get(n, n) for path in MODULES.values() for n in imports_of(path)}
    assert used - set(PLACES) - set(sys.stdlib_module_names) - OPTIONAL <= declared


def test_readme_names_every_file():
    readme = (ROOT / "README.md").read_text()
    for name in PLACES:
        assert (f"`{name}/`" if name in ROOMS else f"`{name}.py`") in readme
    for command in re.findall(r"python (\w+)\.py", readme):
        assert (ROOT / f"{command}.py").exists()


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([a-z_.]+)\.(\w+)`", text)
    assert len(named) > 12
    for module, name in named:
        if name not in ("py", "md", "yml", "toml", "json"):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b.* = |^    {name}: ",
                             (ROOT / f"{module.replace('.', '/')}.py").read_text(), re.M), f"{module}.{name}"
    for file in re.findall(r"`((?:tests|benchmarks)/\w+\.\w+)`", text):
        assert (ROOT / file).exists(), file
