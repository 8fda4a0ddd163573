"""The processes that share one run, as torchrun starts them; a group of one without it.

    Group         which process this is, and sums over all of them
    join_group    the environment  ->  Group

Every process holds the same state and draws the same tasks; each learns its share of a
meta-batch, the contributions are summed, and all make the same move. Gloo on a CPU, NCCL on a
GPU. When a process is lost the others notice at their next sum and stop; torchrun then ends or
starts them again (``--max-restarts``), and a restarted run goes on from its checkpoint.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from metanas_training.errors import WorkerLostError
from metanas_training.meta_learner import Contribution

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    restarts: int = 0
    """How often torchrun has started this run again."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items that this process works on."""
        return list(items[self.rank :: self.size])

    def sum(self, part: Contribution) -> Contribution:
        """The sum of every process's contribution; the same bits in each.

        Raises:
            WorkerLostError: another process is gone.
        """
        if self.size == 1:
            return part
        names = sorted(part.values)
        scalars = torch.tensor([part.loss, part.accuracy, part.tasks], dtype=torch.float64, device=self.device)
        flat = torch.cat([*(part.values[name].double().reshape(-1) for name in names), scalars])
        with _translated():
            distributed.all_reduce(flat)
        sizes = [part.values[name].numel() for name in names]
        *parts, scalars = torch.split(flat, [*sizes, 3])
        values = {name: one.view(part.values[name].shape) for name, one in zip(names, parts, strict=True)}
        loss, accuracy, tasks = scalars.tolist()
        return Contribution(values, loss, accuracy, round(tasks))

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process.

        Raises:
            WorkerLostError: another process is gone.
        """
        return bool(self.largest(float(flag)))

    def largest(self, value: float) -> float:
        """The largest ``value`` of all processes.

        Raises:
            WorkerLostError: another process is gone.
        """
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        with _translated():
            distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return shared.item()

    def leave(self) -> None:
        """No more sums."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def join_group(device: str) -> Group:
    """The group that torchrun's environment variables describe.

    Args:
        device: "cpu" or "cuda"; each process takes the CUDA device of its local rank.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group(device=device, restarts=restarts)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://"))
    # torchrun (2.13) keeps one store over its restarts, with the addresses of processes that are gone.
    store = distributed.PrefixStore(f"restart-{restarts}", store)  # type: ignore[attr-defined]
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    return Group(rank=rank, size=size, device=device, restarts=restarts)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise when a peer closes its connection
        raise WorkerLostError(
            f"another process of this run is gone ({str(error).splitlines()[0]}); start the run again with --resume, "
            "or let torchrun do so with --max-restarts"
        ) from error
