"""Batches of views: which slices, in which order, made by which processes, and what is said when one of these dies."""

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from runtime.messages import InputError, WorkerDied, say_once
from runtime.run_folder import leave_to_parent

PREFETCH = 2        # batches that each process has ready
MOST_WORKERS = 4    # processes of one loader, unless more are asked for
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores together, and of the clock
SHM = Path("/dev/shm")  # noqa: S108 - where Linux keeps memory that processes share
SHM_IS_FULL = (f"{SHM}: the shared memory in which loader processes hand over their batches is full; take "
               "--num-workers 0, or give a container more (docker run --shm-size=1g)")


def to_float(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 views and masks → float32 in [0, 1], as `A.Normalize(mean=0, std=1)` gives them."""
    return tensor.float() / 255


# --- how many processes ---------------------------------------------------------------------------------------

def choose_workers(asked: int, device: torch.device) -> int:
    """Return how many processes shall make the views of one loader: as many as were `asked` for, if that is not −1.

    Else none for the CPU, which has better things to do, and for a GPU up to `MOST_WORKERS`, so that two loaders (of
    labelled and of unlabelled slices) in each process of a job share the cores that this job may use.
    """
    if asked >= 0:
        return asked
    if device.type != "cuda":
        return 0
    return min(MOST_WORKERS, max(1, usable_cores() // loaders_here()))


def loaders_here() -> int:
    """Return how many loaders this job has on this machine: two in each of its processes."""
    stated = os.environ.get("LOCAL_WORLD_SIZE", "")
    return 2 * max(1, int(stated) if stated.isdecimal() else 1)


def usable_cores() -> int:
    """Return how many cores this process may use: a batch system or a container often allows fewer than there are.

    A batch system binds a process to some cores (affinity), a container gets a share of the time of all (quota).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return cores


def fit_workers(workers: int, batch_bytes: int, free: float) -> tuple[int, int]:
    """Return how many processes, and batches prefetched by each, fit into `free` bytes of shared memory.

    Batches travel in shared memory: those that are prefetched, one that was handed over, and one that is in use. Fewer
    prefetched come before fewer processes. (0, 0) where not even one process fits.
    """
    for count in range(workers, 0, -1):
        for prefetch in range(PREFETCH, 0, -1):
            if (count * prefetch + 2) * batch_bytes <= free:
                return count, prefetch
    return 0, 0


def shared_memory() -> float:
    """Return the bytes of shared memory that one loader may take; infinite where nothing limits it but the memory.

    A container has 64 MB unless it was started with more. Two loaders in each process of a job get a part each, and a
    fifth stays free.
    """
    if sys.platform != "linux":
        return math.inf
    if not os.access(SHM, os.W_OK):
        return 0.0
    return 0.8 * shutil.disk_usage(SHM).free / loaders_here()


# --- which slices, and what is said when a process dies -------------------------------------------------------

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


class Views(Protocol):
    """A data set of views: of slice `index`, made with `seed`, for the key (index, seed)."""

    slices: list
    item_bytes: int

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return tensors by name."""


class Watched(Dataset):
    """`Views` that say what they are at, so that a process that dies over a slice tells which; errors name the file.

    `at` holds, for each worker, its process number and the slice.
    """

    def __init__(self, views: Views, workers: int):
        self.views = views
        self.at = RawArray("q", 2 * workers) if workers else []
        self.processes: dict[int, multiprocessing.Process] = {}

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        if worker := get_worker_info():
            self.at[2 * worker.id:2 * worker.id + 2] = os.getpid(), key[0]
        try:
            return self.views[key]
        except Exception as error:
            raise InputError(f"{self.views.slices[key[0]].path}: no views can be made of it "
                             f"({type(error).__name__}: {' '.join(str(error).split())})") from error

    def remember_processes(self) -> None:
        """Keep the worker processes, which have just been started, so that it is known how they ended."""
        self.processes = {process.pid: process for process in multiprocessing.active_children()}

    def death(self, error: Exception) -> InputError | None:
        """Return what to say where `error` comes of dead workers; None where it does not.

        torch saw one die, or the thread that copies batches to pinned memory ended because one had, or a pipe to it
        broke, which is seen first.
        """
        signs = ("DataLoader worker", "Pin memory thread exited")
        if not (isinstance(error, OSError | EOFError) or str(error).startswith(signs)):
            return None
        number, index = self.wait_for_a_death(5.0)
        if number is None:
            return None

        # Memory that was promised and is not there: shared memory was full when the worker touched it.
        process = self.processes.get(number)
        if process is not None and hasattr(signal, "SIGBUS") and process.exitcode == -signal.SIGBUS:
            return InputError(SHM_IS_FULL)

        why = " ".join(str(error).split())[:150]
        return WorkerDied(f"{self.views.slices[index].path}: a process died while it made views of this slice ({why}); "
                          "look at the slice, free memory, or take --num-workers 0")

    def wait_for_a_death(self, seconds: float) -> tuple[int, int] | tuple[None, None]:
        """Return process number and slice of a worker that is dead, or dies within so many seconds; None for none."""
        at = {self.at[i]: self.at[i + 1] for i in range(0, len(self.at), 2) if self.at[i]}
        end = time.monotonic() + seconds
        while at and time.monotonic() < end:
            alive = {process.pid for process in multiprocessing.active_children()}
            for number, index in at.items():
                if number not in alive:
                    return number, index
            time.sleep(0.1)
        return None, None


def is_out_of_shared_memory(error: Exception) -> bool:
    """Return whether a worker found no room for a batch in shared memory, and lived to say so."""
    return isinstance(error, RuntimeError) and "shared memory" in str(error)


def make_loader(views: Views, batch_size: int, seed: list[int], start: int = 0, num_workers: int = 0,
                device: torch.device | str = "cpu", rank: int = 0, size: int = 1) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of `views` on `device`, the first of them batch number `start`; of each the part of process
    `rank` of `size`.

    `num_workers` processes make them, or fewer where shared memory does not hold what they prefetch.

    Raises
    ------
    WorkerDied
        Within seconds of the death, naming the slice.
    InputError
        Where no views can be made of a slice.
    """
    draws = Draws(len(views.slices), seed, start * batch_size, batch_size, rank, size)
    workers, prefetch = fit_workers(num_workers, batch_size // size * views.item_bytes, shared_memory())
    if workers < num_workers:
        say_once(f"{SHM} is too small for the batches of {num_workers} loader processes: {workers} of them are started "
                 "(more room: docker run --shm-size=1g)")
    context = "fork" if workers and sys.platform == "linux" else None  # forked workers share the slices
    pin, watched = torch.device(device).type == "cuda", Watched(views, workers)
    try:
        with no_new_handler():
            loaded = iter(DataLoader(watched, batch_size // size, sampler=draws, num_workers=workers,
                                     prefetch_factor=prefetch if workers else None, pin_memory=pin,
                                     multiprocessing_context=context, worker_init_fn=_start_worker))
        watched.remember_processes()
        for batch in loaded:
            yield {name: to_float(tensor.to(device, non_blocking=pin)) for name, tensor in batch.items()}
    except InputError as error:  # of a worker: it comes with the worker's traceback
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        if workers and is_out_of_shared_memory(error):
            raise InputError(SHM_IS_FULL) from None
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
