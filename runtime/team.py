"""The processes that share a job, one per device: started by `accelerate launch` or `torchrun`, else this one alone.

Hugging Face Accelerate sets up torch.distributed: nccl between GPUs, gloo between CPUs.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from runtime.messages import InputError


@dataclass(frozen=True)
class Team:
    """This process among those that share a job.

    Attributes
    ----------
    rank, size : int
        Its number, from 0, and how many there are.
    engine : accelerate.Accelerator or None
        None where this process is alone.
    """

    rank: int = 0
    size: int = 1
    engine: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.engine:
            self.engine.wait_for_everyone()

    def share(self, things: list) -> list:
        """Those of `things` that are this process's part: every `size`-th."""
        return things[self.rank::self.size]

    def tell(self, value: Any) -> Any:
        """What the first process holds, for all."""
        if self.engine:
            from accelerate.utils import broadcast_object_list
            (value,) = broadcast_object_list([value])
        return value

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes."""
        if not self.engine:
            return values
        local = torch.tensor(list(values.values()), dtype=torch.float64, device=self.engine.device)
        return dict(zip(values, self.engine.reduce(local, "mean").tolist(), strict=True))

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, with gradients averaged over the processes in each backward pass."""
        return self.engine.prepare_model(model) if self.engine else model

    def part_of_batch(self, batch_size: int) -> int:
        """Samples of a batch that are this process's; `InputError` where they cannot be shared evenly."""
        if batch_size % self.size:
            raise InputError(f"--batch-size {batch_size}: cannot be shared by {self.size} processes; "
                             "choose a multiple of that")
        return batch_size // self.size


ALONE = Team()
PATIENCE = timedelta(days=7)  # with which all wait for what the first one does alone, such as writing a volume


def join_team(device: torch.device) -> Team:
    """The team that a launcher has started this process in, or one of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import Accelerator, InitProcessGroupKwargs  # takes a second, which a process alone need not wait
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    engine = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patience])
    return Team(engine.process_index, engine.num_processes, engine)


def leave_team(team: Team) -> None:
    """Say good-bye, so that the launcher sees no process go unexpectedly."""
    if team.engine:
        team.engine.end_training()
