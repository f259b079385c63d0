"""The student with its objective as one module: what DDP and DeepSpeed wrap, so that one forward pass is one call."""

import torch
from torch import Tensor, nn

from essence.distill.batches import Batch, head_weight, states_at
from essence.distill.objective import objective_from_states
from essence.distill.top_k import TopK
from essence.settings import LossResources, ObjectiveSettings

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Distiller(nn.Module):
    """Computes the losses of a batch from the student's hidden states and head."""

    def __init__(
        self, student: nn.Module, settings: ObjectiveSettings, loss: LossResources, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = HeadObjective(student, settings, loss, compute_dtype)
        self.compute_dtype = compute_dtype

    def forward(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | TopK | None = None,
        teacher_head: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, CE and KD of a batch, float32 scalars; the loss alone carries a gradient.

        Args:
            batch: N labels.
            weights: share of each label in the loss, float32, shape (N,).
            teacher_states: shape (N, H of the teacher), or what is stored of its distributions;
                None = cross-entropy alone, as in validation.
            teacher_head: shape (V of the teacher, H of the teacher).
        """
        lower = self.compute_dtype != torch.float32
        with torch.autocast(batch.input_ids.device.type, self.compute_dtype, enabled=lower):
            states = states_at(self.student, batch)
            losses: tuple[Tensor, Tensor, Tensor] = self.objective(
                states, batch.labels, weights, teacher_states, teacher_head
            )
        return losses


class HeadObjective(nn.Module):
    """The objective on states; a module, since ZeRO-3 brings a weight together where a module asks for it."""

    def __init__(
        self, student: nn.Module, settings: ObjectiveSettings, loss: LossResources, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.settings, self.loss, self.compute_dtype = settings, loss, compute_dtype
        self.cross_entropy = settings.model_copy(update={"kd_weight": 0.0})
        self._student = (student,)  # in a tuple: its weights are the student's, not this module's

    def forward(
        self,
        states: Tensor,
        labels: Tensor,
        weights: Tensor,
        teacher_states: Tensor | TopK | None,
        teacher_head: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, head = states.to(self.compute_dtype), head_weight(self._student[0])
        if isinstance(teacher_states, TopK):
            return objective_from_states(states, head, teacher_states, None, labels, weights, self.settings, self.loss)
        if teacher_states is None or teacher_head is None:
            return objective_from_states(states, head, None, None, labels, weights, self.cross_entropy, self.loss)
        teacher_states = teacher_states.to(self.compute_dtype)
        return objective_from_states(
            states, head, teacher_states, teacher_head, labels, weights, self.settings, self.loss
        )
