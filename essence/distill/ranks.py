"""The processes that train together: who this one is, and what all of them agree on.

A process that finds `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` in its environment is that rank, whoever
started it (the kit, torchrun, srun); one that does not is alone.
"""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from essence.distill.rank_variables import rank_variable

WAITS = {"gloo": datetime.timedelta(hours=2), "nccl": datetime.timedelta(minutes=15)}
"""Longest wait of a rank for the others, by backend; a rank that died ends them all sooner.

gloo carries what is in main memory, `Ranks.wait` too: there the others may be loading a model, compiling, validating or
writing a checkpoint. On the GPUs, under NCCL, ranks meet after the same work, so what is late there hangs. Work of
unlike length before a collective of the GPUs (one rank loads, each reads a checkpoint) ends with `Ranks.wait`.
"""


@dataclass(frozen=True)
class Ranks:
    """This process among `processes`."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    """Index among the processes of this machine, and of its GPU."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Ranks":
        """As the environment says; alone where it says nothing."""
        rank = rank_variable(environment, "RANK", "0")
        processes = rank_variable(environment, "WORLD_SIZE", "1")
        return cls(rank, processes, rank_variable(environment, "LOCAL_RANK", str(rank)))

    @property
    def first(self) -> bool:
        """True when this process writes what is written once."""
        return self.rank == 0

    def owner(self, place: int) -> int:
        """Rank that has the one at this place of what is shared out: each has every so-many-th."""
        return place % self.processes

    def join(self, device: torch.device) -> None:
        """Meet the others; returns when all are there. Nothing where this process is alone or has met them before."""
        if "RANK" in os.environ and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=WAITS["gloo"])
            limit_waits(dist.group.WORLD)

    def leave(self) -> None:
        """Let go of the others."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def total(self, values: Tensor) -> Tensor:
        """Sum over all ranks, float64 on the CPU; the same on every rank."""
        summed = values.detach().to("cpu", torch.float64)
        if self.processes > 1:
            dist.all_reduce(summed)
        return summed

    def all_of(self, value: Any) -> list[Any]:
        """A small value of every rank, in order."""
        if self.processes == 1:
            return [value]
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.total(torch.zeros(1))


def limit_waits(group: Any) -> Any:
    """The same group, whose backends wait as `WAITS` says; PyTorch gives all backends of a group one time."""
    for device in group._device_types:
        backend = group._get_backend(device)
        backend = getattr(backend, "wrapped_pg", backend)  # under TORCH_DISTRIBUTED_DEBUG=DETAIL
        if backend.name() in WAITS:
            backend._set_default_timeout(WAITS[backend.name()])
    return group


ALONE = Ranks()
