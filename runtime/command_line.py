"""How a command line begins and ends: options, one line for errors, what signals do."""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from runtime.devices import is_out_of_memory
from runtime.messages import InputError, one_line

NEGATIVE = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
HANDLED = (signal.SIGINT, signal.SIGTERM)

# Exit statuses.
FOR_THE_USER = 2  # something that the user can mend
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM
CLOSED_PIPE = 141

# Signals that were to end the command.
_came: list[int] = []


class Parser(argparse.ArgumentParser):
    """Reads options; says in one line what is wrong with them."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        # argparse takes -1e3 for an option.
        self._negative_number_matcher = NEGATIVE

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` instead of printing the whole usage."""
        raise InputError(f"{message}; python {self.prog} --help lists the options")


class Terminated(BaseException):
    """SIGTERM came: what a batch system sends before it takes the machine away."""


# --- beginning and end ----------------------------------------------------------------------------


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status.

    2 with one line for what the user can mend; 130 for Ctrl-C, 143 for SIGTERM.
    """
    accept_any_terminal()
    _came.clear()
    handlers = set_handlers(end_command)
    try:
        status = main() or 0
    except BaseException as error:
        status, line = describe_end(error)
        if line is None:
            raise
        flush_output()
        if line:
            print(line, file=sys.stderr)
    finally:
        restore_handlers(handlers)

    raise SystemExit(status)


def accept_any_terminal() -> None:
    """Let a terminal that knows no arrows or dashes be no reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        # A stream that was closed is None.
        if stream is not None:
            stream.reconfigure(errors="replace")


def flush_output() -> None:
    """Write what standard output still holds.

    The end of a progress bar comes before the line about an error, where both go to one file. Where
    the output cannot be written to, it is forgotten: else it would fail again at the exit, with
    another status.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        forget_output()


def forget_output() -> None:
    """Let what standard output still holds, or gets, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def describe_end(error: BaseException) -> tuple[int, str | None]:
    """Return exit status and line for what ended a command; no line where only a traceback helps."""
    # Libraries make other errors of an interruption.
    if _came or isinstance(error, KeyboardInterrupt | Terminated):
        was_terminated = signal.SIGTERM in _came or isinstance(error, Terminated)
        status = TERMINATED if was_terminated else INTERRUPTED
        return status, "stopped; what was finished is kept"

    if isinstance(error, InputError):
        return FOR_THE_USER, f"error: {one_line(error)}"
    if isinstance(error, BrokenPipeError) and error.filename is None:
        # Such as `| head`, which has seen enough.
        forget_output()
        return CLOSED_PIPE, ""

    if isinstance(error, ConnectionError):
        why = one_line(error)
        return FOR_THE_USER, f"error: another process of this job is gone ({why}); see what it said"
    if isinstance(error, OSError):
        name = one_line(error.filename or "")
        why = one_line(error.strerror or error)
        return FOR_THE_USER, f"error: {name}: {why}; check path, rights, space"

    if is_out_of_memory(error):
        return FOR_THE_USER, describe_out_of_memory(error)
    return 1, None


def describe_out_of_memory(error: BaseException) -> str:
    """Return the line for memory that ran out, on a GPU or elsewhere."""
    text = str(error)
    is_of_gpu = (
        isinstance(error, torch.OutOfMemoryError) or "CUDA" in text or "ALLOC_FAILED" in text
    )
    if is_of_gpu:
        return "error: the device is out of memory; free it of other work, or take --device cpu"
    why = one_line(error)[:200] or "no more is there"
    return f"error: out of memory ({why}); smaller slices or windows, or a larger machine"


# --- signals --------------------------------------------------------------------------------------


def set_handlers(handler: Callable) -> dict[int, Callable | int | None]:
    """Let a function get Ctrl-C and SIGTERM; return the handlers before.

    Only the main thread may do that, and only it gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in HANDLED}


def restore_handlers(handlers: dict[int, Callable | int | None]) -> None:
    """Let those get Ctrl-C and SIGTERM again that did before."""
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)


def end_command(number: int, _frame: object) -> None:
    """Handle a signal that ends the command."""
    _came.append(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM only add their number to a list while this is open, so that work in hand can be finished.

    They act at its end. A second Ctrl-C acts at once. One that came before, and that a library
    swallowed, is in the list from the start. Outside the main thread nothing is held back.
    """
    came = list(_came)

    def note(number: int, _frame: object) -> None:
        came.append(number)
        if came.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    handlers = set_handlers(note)
    try:
        yield came
    finally:
        restore_handlers(handlers)
        if came:
            # Whatever else has happened.
            signal.raise_signal(came[0])
