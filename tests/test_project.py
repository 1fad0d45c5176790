"""The house: what may import what, and that the three lists of packages agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

# From the ground up: what stands in a layer may import what stands below it, and in a room its
# neighbours. A module of a room may stand elsewhere than the room.
LAYERS = [
    {"losses", "pixel_classifier", "runtime"},
    {"model_unet", "utils"},
    {"evaluation/class_metrics", "evaluation/metrics", "slices"},
    {"config"},
    {"phantoms", "views", "viz", "volumes"},
    {"datasets", "evaluation", "mean_teacher", "utils_viz"},
    {"demo_data", "particles", "predict", "training", "viz/browser", "viz/napari_layers"},
    {"evaluate", "view", "viz/run_page"},
    {"report"},
    {"train"},
]
PLACES = {name: floor for floor, layer in enumerate(LAYERS) for name in layer}
OPTIONAL = {"napari", "dask"}  # of `make view`
CONDA_NAMES = {"torch": "pytorch", "opencv-python-headless": "opencv"}

ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def modules() -> list[Path]:
    """The modules of the story and those in rooms."""
    in_rooms = [path for room in ROOMS for path in (ROOT / room).glob("*.py")]
    return sorted([*ROOT.glob("*.py"), *in_rooms])


MODULES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in modules()}


def room_of(name: str) -> str:
    """The room of a module, or the module itself at the door."""
    return name.partition("/")[0]


def floor_of(name: str) -> int:
    return PLACES.get(name, PLACES[room_of(name)])


def imports_of(path: Path) -> set[str]:
    """What a module imports: packages, modules of the story, and modules of rooms as `room/module`."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ROOMS:
            result |= {f"{node.module}/{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and room_of(node.module.replace(".", "/")) in ROOMS:
            result.add(node.module.replace(".", "/"))
        elif isinstance(node, ast.ImportFrom):
            result.add(node.module.split(".")[0])
    return result


def test_every_module_and_room_has_its_place():
    assert {room_of(name) for name in MODULES} == {room_of(name) for name in PLACES}
    assert {name for name in PLACES if "/" in name} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    for other in imports_of(MODULES[name]) & set(MODULES):
        is_neighbour = room_of(other) == room_of(name)
        assert is_neighbour or floor_of(other) < floor_of(name), f"{name} imports {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_of_a_room_import_each_other_in_a_circle(room):
    arrows = {}
    for name in MODULES:
        if room_of(name) == room:
            arrows[name] = imports_of(MODULES[name]) & set(MODULES)
    while arrows:
        free = [name for name, others in arrows.items() if not others & arrows.keys()]
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in free}


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
    assert re.findall(r"^  - (\S+)$", text.split("dependencies:")[0], re.M) == [
        "conda-forge",
        "nodefaults",
    ]


PIN_FILES = {
    "run": ["requirements.txt"],
    "dev": ["requirements.txt", "requirements/dev.txt"],
    "bench": ["requirements.txt", "requirements/dev.txt", "requirements/bench.txt"],
    "view": ["requirements.txt", "requirements/view.txt"],
    "audit": ["requirements.txt", "requirements/audit.txt"],
}


def pinned_names(files: list[str]) -> list[str]:
    """Return the names of the packages that some files pin: twice where versions differ by platform."""
    names = []
    for file in files:
        names += set(re.findall(r"^([a-z0-9-]+)==", (ROOT / file).read_text(), re.M))
    return names


@pytest.mark.parametrize("group", PIN_FILES)
def test_pins_cover_what_is_asked_for_and_no_package_is_in_two_files(group):
    names = pinned_names(PIN_FILES[group])
    wanted = list(project()["project"]["dependencies"])
    if group != "run":
        # A group may include another one, which is a table then.
        wanted += [r for r in project()["dependency-groups"][group] if isinstance(r, str)]
    assert {re.match(r"[\w-]+", requirement)[0] for requirement in wanted} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", sorted({file for files in PIN_FILES.values() for file in files}))
def test_pins_have_hashes_and_no_addresses(file):
    text = (ROOT / file).read_text()
    assert "://" not in text
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


def test_every_import_is_declared():
    declared = {re.match(r"[\w-]+", r)[0] for r in project()["project"]["dependencies"]}
    names = {
        "cv2": "opencv-python-headless",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
        "mpl_toolkits": "matplotlib",
        "PIL": "pillow",
    }
    used = {names.get(n, n) for path in MODULES.values() for n in imports_of(path)}
    ours = set(MODULES) | set(ROOMS)
    assert used - ours - set(sys.stdlib_module_names) - OPTIONAL <= declared


def test_contributing_names_every_module_and_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in {room_of(name) for name in PLACES}:
        assert (f"`{name}/`" if name in ROOMS else f"`{name}.py`") in text


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([a-z_.]+)\.(\w+)`", text)
    assert len(named) > 12
    for module, name in named:
        if name not in ("py", "md", "yml", "toml", "json", "ipynb", "npz"):
            assert re.search(
                rf"^(def|class) {name}\b|^{name}\b.* = |^    {name}: ",
                (ROOT / f"{module.replace('.', '/')}.py").read_text(),
                re.M,
            ), f"{module}.{name}"
    for file in re.findall(r"`((?:tests|benchmarks)/\w+\.\w+)`", text):
        assert (ROOT / file).exists(), file
