"""Float32 masters and AdamW's moments in main memory, updated there; on the device, bfloat16 weights and sums.

For a student whose masters and moments, 12 bytes a parameter, have no room on its device. Every rank has all bfloat16
weights, and masters and moments of its share of them. Gradients are added up on the devices in float32 and cross as
they do otherwise: once a step under `ddp`, after each pass, to their owner alone, under `zero2`. At the end of a step
the sums go to main memory bucket by bucket, PyTorch's AdamW updates the masters there on all threads of the stage, and
their roundings go back; while one bucket is updated, the next is on its way. The arithmetic is that of masters on the
device (`essence/distill/float32_masters.py`), with the processor's rounding.

DeepSpeed's ZeRO-Offload is not used: it holds a gradient and a rounding of the whole shard in main memory, 18 bytes a
parameter instead of 12, updates all of the shard before any of it goes back, trains no process alone, and its own
optimiser is compiled on first use by a C++ compiler that the images do not have.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from essence.distill.adamw import MOMENTS, adamw, set_cycle
from essence.distill.batches import Batch
from essence.distill.checkpoint import Checkpoint
from essence.distill.devices import COMPUTE_DTYPES
from essence.distill.float32_masters import GradientSums, buckets, lower_weights
from essence.distill.module import Distiller
from essence.distill.ranks import Ranks
from essence.distill.schedule import CyclePoint
from essence.settings import TrainSettings


class Part(NamedTuple):
    """Weights of this rank that are updated together."""

    weights: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    """Of their masters."""


class OwnedSums(GradientSums):
    """Sums of what all ranks find for the weights of this one."""

    def __init__(self, owners: dict[nn.Parameter, int], rank: int, dtype: torch.dtype) -> None:
        """Gradients cross in `dtype`; every rank finds those of the same weights in the same order."""
        super().__init__(owners)
        self.owners, self.rank, self.dtype = owners, rank, dtype

    def _to_add(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for weight, found in super()._to_add():
            sent = found.to(self.dtype)
            dist.reduce(sent, self.owners[weight])
            weight.grad = None
            if self.owners[weight] == self.rank:
                yield weight, sent


class MainMemoryBackend:
    """One rank of a training under `single`, `ddp` or `zero2` whose masters and moments lie in main memory."""

    def __init__(
        self,
        distiller: Distiller,
        settings: TrainSettings,
        ranks: Ranks,
        device: torch.device,
        found: Checkpoint | None,
    ) -> None:
        self.distiller, self.settings, self.ranks, self.device = distiller, settings.optimizer, ranks, device
        self.student = distiller.student.to(device)
        exact, weights = lower_weights(self.student), dict(self.student.named_parameters())
        self.owners = {weights[name]: ranks.owner(place) for place, name in enumerate(exact)}
        self.masters: dict[nn.Parameter, nn.Parameter] = {}
        for name in list(exact):
            master = exact.pop(name)
            if self.owners[weights[name]] == ranks.rank:
                self.masters[weights[name]] = nn.Parameter(master.cpu())
        self.parts = [
            Part(part, adamw([self.masters[weight] for weight in part], self.settings))
            for part in buckets(self.masters)
        ]
        self.optimizer_of = {weight: part.optimizer for part in self.parts for weight in part.weights}
        self.reduce_dtype, self.each_pass = COMPUTE_DTYPES[settings.reduce_dtype], settings.parallel == "zero2"
        shared = self.each_pass and ranks.processes > 1
        self.sums = OwnedSums(self.owners, ranks.rank, self.reduce_dtype) if shared else GradientSums(self.owners)
        if found:
            self._restore_moments(found)

    def accumulate(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        last: bool,
    ) -> Tensor:
        loss, ce, kd = self.distiller(batch, weights, teacher_states, teacher_head)
        loss.backward()
        self.sums.add_up()
        if last and not self.each_pass:
            self.sums.sum_over(self.ranks, self.reduce_dtype)
        return torch.stack([loss.detach(), ce, kd])

    @torch.no_grad()
    def step(self, point: CyclePoint) -> float:
        norm = self._clip()
        there = self._fetch(self.parts[0]) if self.parts else None
        for part, following in zip_longest(self.parts, self.parts[1:]):
            coming = self._fetch(following) if following else None
            if there:
                there.synchronize()
            set_cycle(part.optimizer, point, self.settings)
            part.optimizer.step()
            self._publish(part)
            there = coming
        self.sums.sums.clear()
        if self.ranks.processes > 1:
            for weight, owner in self.owners.items():
                dist.broadcast(weight.data, owner)
        return norm

    def cross_entropy(self, batch: Batch, weights: Tensor) -> Tensor:
        with torch.no_grad():
            ce: Tensor = self.distiller(batch, weights)[1]
        return ce

    def weight(self, parameter: nn.Parameter) -> Tensor:
        master = self.masters.get(parameter)
        return self._of_owner(parameter, None if master is None else master.detach())

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        master = self.masters.get(parameter)
        own = None if master is None else self.optimizer_of[parameter].state[master][name]
        return self._of_owner(parameter, own)

    def _of_owner(self, parameter: nn.Parameter, own: Tensor | None) -> Tensor:
        """What the owner of a weight has of it, float32; its own lies in main memory, and is not copied."""
        if self.ranks.processes == 1 and own is not None:
            return own
        sent = own.to(self.device) if own is not None else torch.empty_like(parameter, dtype=torch.float32)
        dist.broadcast(sent, self.owners[parameter])
        return sent if own is None else own

    def _clip(self) -> float:
        """The gradient's norm, over all weights, and what it asks for done to the sums."""
        sums = [self.sums.sums[weight] for weight in self.owners if weight in self.sums.sums]
        norm = nn.utils.get_total_norm(sums)
        if self.each_pass:
            norm = self.ranks.total(norm.square()).sqrt().to(norm)
        if sums:  # where ranks outnumber weights, some have none
            torch._foreach_mul_(sums, (self.settings.gradient_clip_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm.item()

    def _fetch(self, part: Part) -> torch.cuda.Event | None:
        """Send the sums of some weights to their masters; what to wait for, None where they are there already."""
        for weight in part.weights:
            if (total := self.sums.sums.pop(weight, None)) is not None:
                master = self.masters[weight]
                master.grad = self._staged(master, torch.float32).copy_(total, non_blocking=True)
        return torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

    def _publish(self, part: Part) -> None:
        """Round masters, and send the roundings to the weights that are computed with."""
        for weight in part.weights:
            master = self.masters[weight]
            master.grad = None
            weight.copy_(self._staged(master, weight.dtype).copy_(master), non_blocking=True)

    def _staged(self, master: Tensor, dtype: torch.dtype) -> Tensor:
        """Main memory that a GPU copies to and from while the processor works; PyTorch keeps it until that is done."""
        return torch.empty_like(master, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _restore_moments(self, found: Checkpoint) -> None:
        names = {parameter: name for name, parameter in self.student.named_parameters()}
        for weight, master in self.masters.items():
            self.optimizer_of[weight].state[master] = {
                "step": torch.tensor(float(found.step)),
                **{moment: found.tensor(f"{moment}/{names[weight]}") for moment in MOMENTS},
            }
