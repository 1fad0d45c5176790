"""The processes that share a job, one per device: started by `accelerate launch` or `torchrun`, else this one alone.

Hugging Face Accelerate sets up torch.distributed: nccl between GPUs, gloo between CPUs.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from runtime.messages import InputError

# Collective timeout: the first process may write a volume for hours, while the others wait.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """One process among those that share a job.

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
        """Wait until all processes are here (a barrier)."""
        if self.engine is not None:
            self.engine.wait_for_everyone()

    def share(self, things: list) -> list:
        """Return those of some things that are this process's part: every `size`-th."""
        return things[self.rank :: self.size]

    def tell(self, value: Any) -> Any:
        """Return what the first process holds, in all of them (a broadcast)."""
        if self.engine is None:
            return value
        from accelerate.utils import broadcast_object_list

        (value,) = broadcast_object_list([value])
        return value

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return means over the processes."""
        if self.engine is None:
            return values
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self.engine.device)
        means = self.engine.reduce(mine, "mean").tolist()
        return dict(zip(values, means, strict=True))

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, with gradients averaged over the processes in each backward pass."""
        if self.engine is None:
            return model
        return self.engine.prepare_model(model)

    def part_of_batch(self, batch_size: int) -> int:
        """Return the samples of a batch that are this process's.

        Raises
        ------
        InputError
            Where they cannot be shared evenly.
        """
        if batch_size % self.size:
            raise InputError(
                f"--batch-size {batch_size}: cannot be shared by {self.size} processes; choose a "
                "multiple of that"
            )

        return batch_size // self.size


ALONE = Team()


def join_team(device: torch.device) -> Team:
    """Return the team that a launcher has started this process in, or one of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE

    # Accelerate takes a second to import, for which a process alone need not wait.
    from accelerate import Accelerator, InitProcessGroupKwargs

    engine = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    return Team(engine.process_index, engine.num_processes, engine)


def leave_team(team: Team) -> None:
    """Say good-bye, so that the launcher sees no process go unexpectedly."""
    if team.engine is not None:
        team.engine.end_training()
