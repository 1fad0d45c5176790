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
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from runtime.messages import InputError, WorkerDied, say_once
from runtime.run_folder import leave_to_parent

PREFETCH = 2  # batches that each process has ready
MOST_WORKERS = 4  # processes of one loader, unless more are asked for
USED_SHARE = 0.8  # of shared memory: the rest stays free
DEATH_SECONDS = 5.0  # in which a process that has died is noticed

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores together, and of the clock
SHM = Path("/dev/shm")  # noqa: S108 - where Linux keeps memory that processes share
SHM_IS_FULL = (
    f"{SHM}: the shared memory in which loader processes hand over their batches is full; take "
    "--num-workers 0, or give a container more (docker run --shm-size=1g)"
)
SIGNS_OF_DEATH = (
    "DataLoader worker",
    "Pin memory thread exited",
)  # with which torch's errors begin


def to_float(tensor: torch.Tensor) -> torch.Tensor:
    """Return uint8 views and masks as float32 in [0, 1], as `A.Normalize(mean=0, std=1)` gives them."""
    return tensor.float() / 255


# --- how many processes ---------------------------------------------------------------------------


def choose_workers(asked: int, device: torch.device) -> int:
    """Return how many processes shall make the views of one loader: as many as were `asked` for, if that is not −1.

    Else none for the CPU, which has better things to do, and for a GPU up to `MOST_WORKERS`, so
    that two loaders (of labelled and of unlabelled slices) in each process of a job share the cores
    that this job may use.
    """
    if asked >= 0:
        return asked
    if device.type != "cuda":
        return 0
    return min(MOST_WORKERS, max(1, usable_cores() // loaders_here()))


def loaders_here() -> int:
    """Return how many loaders this job has on this machine: two in each of its processes."""
    stated = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(stated) if stated.isdecimal() else 1
    return 2 * max(1, processes)


def usable_cores() -> int:
    """Return how many cores this process may use: a batch system or a container often allows fewer than there are.

    A batch system binds a process to some cores (affinity), a container gets a share of the time of
    all (quota).
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1

    try:
        quota, period = QUOTA.read_text().split()
        allowed = int(quota) // int(period)
    except (OSError, ValueError):
        # There are no control groups, or they say "max": no limit.
        return cores

    return max(1, min(cores, allowed))


def fit_workers(workers: int, batch_bytes: int, free: float) -> tuple[int, int]:
    """Return how many processes, and batches prefetched by each, fit into `free` bytes of shared memory.

    Batches travel in shared memory: those that are prefetched, one that was handed over, and one
    that is in use. Fewer prefetched come before fewer processes. (0, 0) where not even one process
    fits.
    """
    for count in range(workers, 0, -1):
        for prefetch in range(PREFETCH, 0, -1):
            if (count * prefetch + 2) * batch_bytes <= free:
                return count, prefetch

    return 0, 0


def shared_memory() -> float:
    """Return the bytes of shared memory that one loader may take; infinite where only the memory limits it.

    A container has 64 MB unless it was started with more. Two loaders in each process of a job get
    a part each, and a fifth stays free.
    """
    if sys.platform != "linux":
        return math.inf
    if not os.access(SHM, os.W_OK):
        return 0.0
    return USED_SHARE * shutil.disk_usage(SHM).free / loaders_here()


# --- which slices ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoaderOptions:
    """Which batches a loader gives, and by how many processes they are made.

    Attributes
    ----------
    batch_size : int
        Of the whole team.
    seed : list of int
        On which the order and the views depend.
    workers : int
        Processes that make views.
    rank, size : int
        Of this process in its team: it gets part number `rank` of each batch, cut into `size`.
    """

    batch_size: int
    seed: list[int]
    workers: int = 0
    rank: int = 0
    size: int = 1

    @property
    def part(self) -> int:
        """Samples of a batch that are this process's."""
        return self.batch_size // self.size


class Draws(Sampler):
    """Endless (index, seed) pairs: one shuffled pass over `count` slices after another, from draw `start` on.

    A draw depends on the seed and its number alone, never on workers or what was drawn before. Of
    every batch of draws, each process of a team gets its part.
    """

    def __init__(self, count: int, options: LoaderOptions, start: int = 0):
        self.count = count
        self.options = options
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seed = self.options.seed
        known_pass = None
        for number in itertools.count(self.start):
            if self.rank_of_draw(number) != self.options.rank:
                continue
            pass_number, position = divmod(number, self.count)
            if pass_number != known_pass:
                order = np.random.default_rng([*seed, 0, pass_number]).permutation(self.count)
                known_pass = pass_number
            seed_of_views = np.random.SeedSequence([*seed, 1, number]).generate_state(1)[0]
            yield int(order[position]), int(seed_of_views)

    def rank_of_draw(self, number: int) -> int:
        """Return the process of a team that gets a draw: the first part of a batch is that of process 0."""
        place = number % self.options.batch_size
        return place // self.options.part


def seed_of(seed: int, name: str) -> list[int]:
    """Return what the order and the views of the batches called `name` depend on."""
    return [seed, *name.encode()]


def drawn(count: int, batch_size: int, seed: list[int], number: int) -> list[int]:
    """Return the slices in batch `number`."""
    draws = Draws(count, LoaderOptions(batch_size, seed), number * batch_size)
    return [index for index, _ in itertools.islice(draws, batch_size)]


# --- what is said when a process dies -------------------------------------------------------------


class SeededViews(Protocol):
    """A data set of views, such as `datasets.Views`: of slice `index`, made with `seed`, for the key (index, seed)."""

    slices: list

    @property
    def item_bytes(self) -> int:
        """Bytes of an item, all its tensors together."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return tensors by name."""


class Watched(Dataset):
    """`SeededViews` that say what they are at, so that a process that dies over a slice tells which.

    `at` holds, for each worker, its process number and the slice. Errors name the file.
    """

    def __init__(self, views: SeededViews, workers: int):
        self.views = views
        self.at = RawArray("q", 2 * workers) if workers else []
        self.processes: dict[int, multiprocessing.Process] = {}

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, _ = key
        worker = get_worker_info()
        if worker is not None:
            self.at[2 * worker.id : 2 * worker.id + 2] = os.getpid(), index
        try:
            return self.views[key]
        except Exception as error:
            why = " ".join(str(error).split())
            raise InputError(
                f"{self.views.slices[index].path}: no views can be made of it "
                f"({type(error).__name__}: {why})"
            ) from error

    def remember_processes(self) -> None:
        """Keep the worker processes, which have just been started, so that it is known how they ended."""
        self.processes = {process.pid: process for process in multiprocessing.active_children()}

    def death(self, error: Exception) -> InputError | None:
        """Return what to say where an error comes of dead workers; None where it does not.

        torch saw one die, or the thread that copies batches to pinned memory ended because one had,
        or a pipe to it broke, which is seen first.
        """
        is_of_pipe = isinstance(error, OSError | EOFError)
        if not is_of_pipe and not str(error).startswith(SIGNS_OF_DEATH):
            return None
        number, index = self.wait_for_a_death(DEATH_SECONDS)
        if number is None:
            return None
        if self.died_of_full_memory(number):
            return InputError(SHM_IS_FULL)

        why = " ".join(str(error).split())[:150]
        return WorkerDied(
            f"{self.views.slices[index].path}: a process died while it made views of this slice "
            f"({why}); look at the slice, free memory, or take --num-workers 0"
        )

    def died_of_full_memory(self, number: int) -> bool:
        """Return whether a worker ended because memory that was promised was not there when it was touched."""
        process = self.processes.get(number)
        if process is None or not hasattr(signal, "SIGBUS"):
            return False
        return process.exitcode == -signal.SIGBUS

    def wait_for_a_death(self, seconds: float) -> tuple[int, int] | tuple[None, None]:
        """Return process number and slice of a worker that is dead, or dies within so many seconds.

        Both are None where no worker does.
        """
        slice_of = {}
        for i in range(0, len(self.at), 2):
            number, index = self.at[i : i + 2]
            if number:
                slice_of[number] = index

        end = time.monotonic() + seconds
        while slice_of and time.monotonic() < end:
            alive = {process.pid for process in multiprocessing.active_children()}
            for number, index in slice_of.items():
                if number not in alive:
                    return number, index
            time.sleep(0.1)

        return None, None


def is_out_of_shared_memory(error: Exception) -> bool:
    """Return whether a worker found no room for a batch in shared memory, and lived to say so."""
    return isinstance(error, RuntimeError) and "shared memory" in str(error)


# --- batches --------------------------------------------------------------------------------------


def make_loader(
    views: SeededViews,
    options: LoaderOptions,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Generator[dict[str, torch.Tensor], None, None]:
    """Yield endless batches of views on a device, of each the part of this process.

    As many processes make them as are asked for, or fewer where shared memory does not hold what
    they prefetch.

    Parameters
    ----------
    views : SeededViews
    options : LoaderOptions
    start : int
        Number of the first batch.
    device : torch.device or str

    Raises
    ------
    WorkerDied
        Within seconds of the death, naming the slice.
    InputError
        Where no views can be made of a slice.
    """
    workers, prefetch = fit_workers(
        options.workers, options.part * views.item_bytes, shared_memory()
    )
    if workers < options.workers:
        say_once(
            f"{SHM} is too small for the batches of {options.workers} loader processes: {workers} of "
            "them are started (more room: docker run --shm-size=1g)"
        )

    watched = Watched(views, workers)
    is_pinned = torch.device(device).type == "cuda"
    # Forked workers share the slices.
    context = "fork" if workers and sys.platform == "linux" else None
    try:
        with no_new_handler():
            loader = DataLoader(
                watched,
                options.part,
                sampler=Draws(len(views.slices), options, start * options.batch_size),
                num_workers=workers,
                prefetch_factor=prefetch if workers else None,
                pin_memory=is_pinned,
                multiprocessing_context=context,
                worker_init_fn=start_worker,
            )
            loaded = iter(loader)
        watched.remember_processes()
        for batch in loaded:
            yield {
                name: to_float(tensor.to(device, non_blocking=is_pinned))
                for name, tensor in batch.items()
            }
    except InputError as error:
        # Of a worker: it comes with the worker's traceback.
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        if workers and is_out_of_shared_memory(error):
            raise InputError(SHM_IS_FULL) from None
        raise watched.death(error) or error from None


@contextmanager
def no_new_handler() -> Iterator[None]:
    """Keep torch from raising the death of a worker wherever the program just is.

    That may be inside a lock, which then stays locked for good. torch also looks for the dead,
    every five seconds, when it waits for a batch.
    """
    if not hasattr(signal, "SIGCHLD"):
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    is_main_thread = threading.current_thread() is threading.main_thread()
    if handler is not None and is_main_thread:
        signal.signal(signal.SIGCHLD, handler)


def start_worker(_worker: int) -> None:
    """Prepare a process that makes views."""
    # Else every worker starts as many threads as there are cores.
    cv2.setNumThreads(0)
    leave_to_parent()
    # Ctrl-C reaches every process: the first one decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
