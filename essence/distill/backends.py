"""How forward passes become optimiser steps: where the model lies, how gradients come together, what is stored."""

from typing import Protocol

import torch
from torch import Tensor, nn

from essence.distill import checkpoint
from essence.distill.batches import Batch
from essence.distill.checkpoint import Checkpoint
from essence.distill.distiller import Distiller
from essence.distill.schedule import CyclePoint
from essence.settings import OptimizerSettings


class Backend(Protocol):
    """The training loop's view of the devices; every rank calls the same methods in the same order."""

    device: torch.device

    def accumulate(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        last: bool,
    ) -> Tensor:
        """Add a batch's share of the step's gradient; its loss, CE and KD, shape (3,). `last`: no more in this step."""

    def step(self, point: CyclePoint) -> float:
        """Clip, update the weights, forget the gradient; returns the gradient's norm before clipping."""

    def cross_entropy(self, batch: Batch, weights: Tensor) -> Tensor:
        """CE of a batch without gradient, a scalar."""

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint needs."""

    def weights(self) -> dict[str, Tensor]:
        """The student's parameters by name, tied ones once."""

    def restore(self, found: Checkpoint) -> None:
        """Put the tensors of `tensors` back."""


def adamw(student: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """The optimiser, one group; its learning rate and betas are set before every step."""
    return torch.optim.AdamW(
        student.parameters(),
        betas=(settings.beta1_high, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_cycle(optimizer: torch.optim.Optimizer, point: CyclePoint, settings: OptimizerSettings) -> None:
    """Learning rate and beta1 of the coming step."""
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = point.lr, (point.beta1, settings.adam_beta2)


class SingleBackend:
    """One process on one device."""

    def __init__(self, distiller: Distiller, settings: OptimizerSettings) -> None:
        self.distiller, self.settings = distiller, settings
        self.student = distiller.student
        self.device = next(self.student.parameters()).device
        self.optimizer = adamw(self.student, settings)

    def accumulate(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        last: bool,
    ) -> Tensor:
        del last
        loss, ce, kd = self.distiller(batch, weights, teacher_states, teacher_head)
        loss.backward()
        return torch.stack([loss.detach(), ce, kd])

    def step(self, point: CyclePoint) -> float:
        set_cycle(self.optimizer, point, self.settings)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def cross_entropy(self, batch: Batch, weights: Tensor) -> Tensor:
        with torch.no_grad():
            ce: Tensor = self.distiller(batch, weights)[1]
        return ce

    def tensors(self) -> dict[str, Tensor]:
        return checkpoint.training_tensors(self.student, self.optimizer)

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.student.named_parameters()}

    def restore(self, found: Checkpoint) -> None:
        checkpoint.restore_training(self.student, self.optimizer, found)
