"""Batches of views: which slices, in which order, made by which processes, and what is said when one of these dies."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from datasets import Views
from run_folder import leave_to_parent
from utils import InputError


def to_float(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """uint8 tensor → float32: masks as they are, views in [0, 1] as `A.Normalize(mean=0, std=1)` gives them."""
    return tensor.float() if name == "mask" else tensor.float() / 255


class Draws(Sampler):
    """Endless (index, seed) pairs: one shuffled pass over `count` slices after another, from draw `start` on.

    A draw depends on `seed` and its number alone, never on workers or what was drawn before. Of every `batch` draws,
    process `rank` of `size` gets its part.
    """

    def __init__(self, count: int, seed: list[int], start: int = 0, batch: int = 1, rank: int = 0, size: int = 1):
        self.count, self.seed, self.start, self.batch, self.rank, self.size = count, seed, start, batch, rank, size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        known = None
        for number in itertools.count(self.start):
            if number % self.batch * self.size // self.batch != self.rank:
                continue
            turn, position = divmod(number, self.count)
            if turn != known:
                order, known = np.random.default_rng([*self.seed, 0, turn]).permutation(self.count), turn
            yield int(order[position]), int(np.random.SeedSequence([*self.seed, 1, number]).generate_state(1)[0])


def seed_of(seed: int, name: str) -> list[int]:
    """What the order and the views of the batches called `name` depend on."""
    return [seed, *name.encode()]


def drawn(count: int, batch_size: int, seed: list[int], number: int) -> list[int]:
    """The slices in batch `number`."""
    return [index for index, _ in itertools.islice(Draws(count, seed, number * batch_size), batch_size)]


class WorkerDied(InputError):
    """A process that makes views is gone: killed for memory, by a crash, or because the whole job was told to stop."""


class Watched(Dataset):
    """`Views` that say what they are at, so that a process that dies over a slice tells which; errors name the file.

    `at` holds, for each worker, its process number and the slice.
    """

    def __init__(self, views: Views, workers: int):
        self.views, self.at = views, RawArray("q", 2 * max(1, workers))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        if worker := get_worker_info():
            self.at[2 * worker.id:2 * worker.id + 2] = os.getpid(), key[0]
        try:
            return self.views[key]
        except Exception as error:
            raise InputError(f"{self.views.slices[key[0]].path}: no views can be made of it "
                             f"({type(error).__name__}: {' '.join(str(error).split())})") from error

    def death(self, error: Exception) -> WorkerDied | None:
        """What to say where `error` comes of dead workers: torch saw one, or a pipe to it broke, which is seen first.
        """
        at = {self.at[i]: self.at[i + 1] for i in range(0, len(self.at), 2) if self.at[i]}
        of_worker = isinstance(error, OSError | EOFError) or str(error).startswith("DataLoader worker")
        for _ in range(50 * bool(at and of_worker)):
            alive = {process.pid for process in multiprocessing.active_children()}
            if dead := [index for number, index in at.items() if number not in alive]:
                why = " ".join(str(error).split())[:150]
                path = self.views.slices[dead[0]].path
                return WorkerDied(f"{path}: a process died while it made views of this slice ({why}); look at the "
                                  "slice, free memory, or take --num-workers 0")
            time.sleep(0.1)
        return None


def make_loader(views: Views, batch_size: int, seed: list[int], start: int = 0, num_workers: int = 0,
                device: torch.device | str = "cpu", rank: int = 0, size: int = 1) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of `views` on `device`, the first of them batch number `start`; of each the part of process
    `rank` of `size`.

    Raises
    ------
    WorkerDied
        Within seconds of the death, naming the slice.
    InputError
        Where no views can be made of a slice.
    """
    draws = Draws(len(views.slices), seed, start * batch_size, batch_size, rank, size)
    context = "fork" if num_workers and sys.platform == "linux" else None  # forked workers share the slices
    pin, watched = torch.device(device).type == "cuda", Watched(views, num_workers)
    try:
        with no_new_handler():
            loaded = iter(DataLoader(watched, batch_size // size, sampler=draws, num_workers=num_workers,
                                     pin_memory=pin, multiprocessing_context=context, worker_init_fn=_start_worker))
        for batch in loaded:
            yield {name: to_float(name, tensor.to(device, non_blocking=pin)) for name, tensor in batch.items()}
    except InputError as error:  # of a worker: it comes with the worker's traceback
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        raise watched.death(error) or error from None


@contextmanager
def no_new_handler() -> Iterator[None]:
    """Keep torch from raising the death of a worker wherever the program just is, such as inside a lock, which then
    stays locked for good; it also looks for the dead, every five seconds, when it waits for a batch.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # else every worker starts as many threads as there are cores
    leave_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the first one decides when to stop
