"""How forward passes become optimiser steps: where the student is and how the ranks' gradients come together."""

import contextlib
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from essence.distill.adamw import MOMENTS, adamw, set_cycle
from essence.distill.batches import Batch
from essence.distill.checkpoint import Checkpoint
from essence.distill.devices import COMPUTE_DTYPES
from essence.distill.float32_masters import Masters, lowers_weights
from essence.distill.main_memory import MainMemoryBackend
from essence.distill.module import Distiller
from essence.distill.ranks import Ranks
from essence.distill.schedule import CyclePoint
from essence.settings import TrainSettings


class Backend(Protocol):
    """The training loop's view of the devices; every rank calls the same methods in the same order."""

    student: nn.Module
    device: torch.device
    ranks: Ranks

    def accumulate(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        last: bool,
    ) -> Tensor:
        """Add a batch's share of the step's gradient; its loss, CE and KD, shape (3,). `last`: no more in this step.

        The gradient of a step is the sum over all batches of all ranks: `weights` make it a mean.
        """

    def step(self, point: CyclePoint) -> float:
        """Clip, update the weights, forget the gradient; returns the gradient's norm before clipping."""

    def cross_entropy(self, batch: Batch, weights: Tensor) -> Tensor:
        """CE of a batch without gradient, a scalar."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """A whole parameter of the student, float32."""

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        """A whole moment (`MOMENTS`) of AdamW for a parameter, after the first step."""


def make_backend(
    distiller: Distiller,
    settings: TrainSettings,
    ranks: Ranks,
    device: torch.device,
    found: Checkpoint | None,
) -> Backend:
    """The backend that the settings name; the student has the weights of `found` already, float32."""
    if settings.optimizer_placement == "main_memory":
        return MainMemoryBackend(distiller, settings, ranks, device, found)
    if settings.parallel in ("zero2", "zero3"):
        from essence.distill.zero import ZeroBackend  # slow to import

        return ZeroBackend(distiller, settings, ranks, device, found)
    return ReplicatedBackend(distiller, settings, ranks, device, found)


class ReplicatedBackend:
    """The whole student on every rank: one process alone, or DDP, whose part the masters have in bfloat16."""

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
        self.masters = Masters(self.student) if lowers_weights(settings) else None
        self.reduce_dtype = COMPUTE_DTYPES[settings.reduce_dtype]
        self.parallel = _ddp(distiller) if ranks.processes > 1 and self.masters is None else None
        self.trained = self.masters.parameters if self.masters else list(self.student.parameters())
        self.optimizer = adamw(self.trained, self.settings)
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
        if self.masters:
            loss, ce, kd = self.distiller(batch, weights, teacher_states, teacher_head)
            loss.backward()
            self.masters.add_up()
            if last:
                self.masters.sum_over(self.ranks, self.reduce_dtype)
            return torch.stack([loss.detach(), ce, kd])
        waits = self.parallel.no_sync() if self.parallel and not last else contextlib.nullcontext()
        with waits:
            loss, ce, kd = (self.parallel or self.distiller)(batch, weights, teacher_states, teacher_head)
            (loss * self.ranks.processes).backward()  # DDP takes the mean over the ranks
        return torch.stack([loss.detach(), ce, kd])

    def step(self, point: CyclePoint) -> float:
        set_cycle(self.optimizer, point, self.settings)
        if self.masters:
            self.masters.take_gradients()
        norm = nn.utils.clip_grad_norm_(self.trained, self.settings.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters:
            self.masters.publish()
        return norm.item()

    def cross_entropy(self, batch: Batch, weights: Tensor) -> Tensor:
        with torch.no_grad():
            ce: Tensor = self.distiller(batch, weights)[1]
        return ce

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return self._master(parameter).detach()

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        moment: Tensor = self.optimizer.state[self._master(parameter)][name]
        return moment

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        return self.masters.of[parameter] if self.masters else parameter

    def _restore_moments(self, found: Checkpoint) -> None:
        trained = [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]
        moments = {
            index: {
                "step": torch.tensor(float(found.step)),
                **{moment: found.tensor(f"{moment}/{name}") for moment in MOMENTS},
            }
            for index, (name, _) in enumerate(trained)
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _ddp(distiller: Distiller) -> DistributedDataParallel:
    # Without this DDP orders its buckets again after the first step, and a resumed run would sum in another order.
    return DistributedDataParallel(distiller, find_unused_parameters=True, forward_sync_buffers=False)
