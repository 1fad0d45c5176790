"""How a command line begins and ends: options, one line for errors, what signals do."""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch

from runtime.devices import is_out_of_memory
from runtime.messages import InputError, one_line

NEGATIVE = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


class Parser(argparse.ArgumentParser):
    """Reads options; says in one line what is wrong with them."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        self._negative_number_matcher = NEGATIVE                # argparse takes -1e3 for an option

    def error(self, message: str) -> NoReturn:
        """`InputError` instead of the whole usage."""
        raise InputError(f"{message}; python {self.prog} --help lists the options")


class Terminated(BaseException):
    """SIGTERM came: what a batch system sends before it takes the machine away."""


_came: list[int] = []  # signals that were to end the command


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: its status; 2 with one line for what the user can mend; 130 for Ctrl-C, 143 for SIGTERM."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a closed one is None
        stream.reconfigure(errors="replace")  # a terminal that knows no arrows or dashes is no reason to stop
    _came.clear()
    before = _handle(_end)
    try:
        status = main() or 0
    except BaseException as error:
        status, line = _ending(error)
        if line is None:
            raise
        try:
            with suppress(AttributeError):  # of a closed one
                sys.stdout.flush()  # a bar's end comes before this line, where both go to one file
        except OSError:
            _forget_output()  # else it fails again at the exit, with another status
        if line:
            print(line, file=sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    raise SystemExit(status)


def _ending(error: BaseException) -> tuple[int, str | None]:
    """Exit status and line for what ended a command; no line where only a traceback helps."""
    if _came or isinstance(error, KeyboardInterrupt | Terminated):      # libraries make other errors of an interruption
        ended = 143 if signal.SIGTERM in _came or isinstance(error, Terminated) else 130
        return ended, "stopped; what was finished is kept"
    if isinstance(error, InputError):
        return 2, f"error: {one_line(error)}"
    if isinstance(error, BrokenPipeError) and error.filename is None:   # `| head` has seen enough
        _forget_output()
        return 141, ""
    if isinstance(error, ConnectionError):
        return 2, f"error: another process of this job is gone ({one_line(error)}); see what it said"
    if isinstance(error, OSError):
        name, why = one_line(error.filename or ""), one_line(error.strerror or error)
        return 2, f"error: {name}: {why}; check path, rights, space"
    of_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) or "ALLOC_FAILED" in str(error)
    if is_out_of_memory(error) and of_gpu:
        return 2, "error: the device is out of memory; free it of other work, or take --device cpu"
    if is_out_of_memory(error):
        why = one_line(error)[:200] or "no more is there"
        return 2, f"error: out of memory ({why}); smaller slices or windows, or a larger machine"
    return 1, None


def _forget_output() -> None:
    """What standard output still holds, or gets, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _handle(handler: Callable) -> dict[int, Callable | int | None]:
    """Let `handler` get Ctrl-C and SIGTERM; the handlers before. Only the main thread may, and gets signals."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def _end(number: int, _frame: object) -> None:
    _came.append(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM only add their number to this list while it is open, so that work in hand can be finished.

    They act at its end. A second Ctrl-C acts at once. One that came before, and that a library swallowed, is in the
    list from the start. Outside the main thread nothing is held back.
    """
    came = list(_came)

    def note(number: int, _frame: object) -> None:
        came.append(number)
        if came.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt
    before = _handle(note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])            # whatever else has happened
