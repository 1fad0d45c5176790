"""Nothing is fetched, sent or looked up, on import or in use, and nothing that came from elsewhere is executed."""

import ast
import os
import subprocess
import sys

import pytest

from conftest import ROOT, TINY, as_options, write_data
from demo_data import write_volume

GUARD = """
import sys
sys.path.insert(0, {root!r})
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") or (
            event in ("socket.connect", "socket.bind") and isinstance(arguments[1], tuple)):    # not between processes
        raise SystemExit(f"network: {{event}} {{arguments[1:]}}")
sys.addaudithook(refuse)
"""
CALLS = """
import importlib
from runtime import command_line
def call(module, *arguments):
    sys.argv = [module, *arguments]
    try:
        command_line.run_command_line(importlib.import_module(module).main)
    except SystemExit as stop:
        if stop.code:
            raise
call("datasets", "check", "data", "--roi", "8,72,8,72")
call("train", *{options!r})
call("report", "runs/r")
teacher = "checkpoints/r/best_ssl_teacher.safetensors"
call("predict", "v.tif", "--checkpoint", teacher, "--output", "m.tif", "--uncertainty")
call("evaluate", "--pred", "m.tif", "--truth", "v_truth.tif", "--uncertainty", "m_uncertainty.tif")
call("evaluate", "particles", "m.tif")
print("all of it")
"""


def offline(code: str, folder) -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GUARD.format(root=str(ROOT)) + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_every_command_line_works_without_a_network(workplace):
    write_data(workplace / "data")
    write_volume(workplace / "v.tif", slices=3, side=64)
    options = as_options(
        {**TINY, "run": "r", "data": "data", "num_workers": 1, "sup_epochs": 1, "ssl_epochs": 1}
    )
    result = offline(CALLS.format(options=options), workplace)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("all of it\n")


def test_the_guard_guards(tmp_path):
    result = offline(
        "import urllib.request; urllib.request.urlopen('http://localhost:9/')", tmp_path
    )
    assert (result.returncode, "network: socket." in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "path",
    [p for folder in (ROOT, ROOT / "benchmarks") for p in sorted(folder.glob("*.py"))],
    ids=lambda path: path.name,
)
def test_nothing_that_was_read_is_executed(path):
    """No pickle but with `weights_only`, no eval, no shell."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name, given = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            assert name not in ("eval", "exec", "os.system", "pd.read_pickle", "__import__"), name
            assert not name.startswith(("pickle.", "marshal.", "joblib.", "shelve.")), name
            assert given.get("allow_pickle", "False") == "False"
            assert given.get("shell", "False") == "False"
            assert name != "torch.load" or given["weights_only"] == "True"
            assert name != "np.load" or "allow_pickle" in given
