"""How command lines end: one line and a status, whatever happened, and work in hand is finished."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
import torch

from conftest import ROOT
from runtime import command_line
from runtime.messages import InputError


@pytest.mark.parametrize(
    ("result", "status", "text"),
    [
        (None, 0, ""),
        (1, 1, ""),
        (
            torch.OutOfMemoryError(),
            2,
            "error: the device is out of memory; free it of other work, or take --device cpu\n",
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            2,
            "error: the device is out of memory; free it of other work, or take --device cpu\n",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory"),
            2,
            "error: the device is out of memory; free it of other work, or take --device cpu\n",
        ),
        (
            MemoryError("5 GB"),
            2,
            "error: out of memory (5 GB); smaller slices or windows, or a larger machine\n",
        ),
        (
            PermissionError(13, "Not permitted", "/out"),
            2,
            "error: /out: Not permitted; check path, rights, space\n",
        ),
        (InputError("a.tif: is bad"), 2, "error: a.tif: is bad\n"),
        (InputError("a\nb.tif: is bad"), 2, "error: a\\nb.tif: is bad\n"),
        (KeyboardInterrupt(), 130, "stopped; what was finished is kept\n"),
        (command_line.Terminated(), 143, "stopped; what was finished is kept\n"),
    ],
)
def test_command_lines_end_with_one_line_and_a_status(capsys, result, status, text):
    def main():
        if isinstance(result, BaseException):
            raise result
        return result

    with pytest.raises(SystemExit) as stop:
        command_line.run_command_line(main)
    assert stop.value.code == status
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_work_in_hand(number):
    seen, before = (
        [],
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
    )
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background of a shell it is ignored
    signal.signal(signal.SIGTERM, lambda *_: seen.append("term"))
    try:
        end = pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext()
        with end, command_line.held_back() as came:
            os.kill(os.getpid(), number)
            seen.append(list(came))
        assert seen == [[number], *["term"] * (number == signal.SIGTERM)]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_an_interruption_that_a_library_makes_an_error_of_is_one_still(capsys):
    def main():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:  # noqa: BLE001
            raise InputError("a.tif: cannot be read") from None

    with pytest.raises(SystemExit) as stop:
        command_line.run_command_line(main)
    assert stop.value.code == 143
    assert capsys.readouterr().err == "stopped; what was finished is kept\n"


def test_an_interruption_that_a_library_swallowed_stops_at_the_next_occasion(capsys):
    def main():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        with command_line.held_back() as came:
            assert came == [signal.SIGINT]

    with pytest.raises(SystemExit) as stop:
        command_line.run_command_line(main)
    assert stop.value.code == 130


def test_a_second_ctrl_c_does_not_wait():
    def twice():
        with command_line.held_back():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_wrong_options_are_one_line(capsys):
    def main():
        parser = command_line.Parser(prog="train.py")
        parser.add_argument("--lr", type=float)
        parser.parse_args(["--lr", "fast"])

    with pytest.raises(SystemExit) as stop:
        command_line.run_command_line(main)
    assert (stop.value.code, capsys.readouterr().err) == (
        2,
        "error: argument --lr: invalid float value: 'fast'; python train.py --help lists the options\n",
    )


def test_what_only_a_traceback_explains_gets_one():
    with pytest.raises(ZeroDivisionError):
        command_line.run_command_line(lambda: 1 // 0)


def test_a_signal_counts_though_the_work_failed(capsys):
    def main():
        with command_line.held_back():
            signal.raise_signal(signal.SIGTERM)
            raise InputError("a.tif: is bad")

    with pytest.raises(SystemExit) as stop:
        command_line.run_command_line(main)
    assert (stop.value.code, capsys.readouterr().err) == (
        143,
        "stopped; what was finished is kept\n",
    )


@pytest.mark.parametrize(
    ("shell", "status", "err"),
    [
        ("| true", "0", ""),
        pytest.param(">&-", "0", "", marks=pytest.mark.slow),
        pytest.param("> /dev/full", "2", "check path, rights, space", marks=pytest.mark.slow),
    ],
)
def test_where_the_output_goes(tmp_path, shell, status, err):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from runtime import command_line; "
    code += "command_line.run_command_line("
    code += "lambda: [print('line', flush=True) for _ in range(9999)] and None)"
    result = subprocess.run(
        ["bash", "-c", f'"$0" -W ignore -c "$1" {shell}; echo $? >&2', sys.executable, code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    lines = result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert (lines[-1], err in result.stderr, len(lines)) == (status, True, 1 + bool(err))


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        command_line.run_command_line(lambda: signal.getsignal(signal.SIGTERM) is before[1] and 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
