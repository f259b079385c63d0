"""The objective from hidden states and heads: what the trainer calls, in the form that the resources name."""

import torch
from torch import Tensor, nn

from essence.distill.batches import Batch, head_weight, states_at
from essence.distill.chunked import ChunkedObjective
from essence.distill.objective import Losses, objective
from essence.settings import LossResources, ObjectiveSettings


def objective_from_states(
    student_states: Tensor,
    student_head: Tensor,
    teacher_states: Tensor | None,
    teacher_head: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    settings: ObjectiveSettings,
    resources: LossResources,
) -> Losses:
    """The weighted objective over some labels; the losses of a step's parts add up.

    Args:
        student_states: float32, bfloat16 or float64, shape (N, H): last hidden states, one line a label. Their dtype is
            that of the products; the loss is summed in float32, or in float64 where they are.
        student_head: shape (V, H), of any float dtype, which its gradient has too; may be the embedding. Under sharding
            it is brought together by the caller.
        teacher_states: shape (N, H of the teacher); None where `settings.kd_weight` is 0.
        teacher_head: shape (V of the teacher, H of the teacher); V of the teacher >= V.
        labels: int64, shape (N,); below 0 = ignored.
        weights: float32, shape (N,), as `Batch.step_weights` makes them; 0 = ignored.
        settings: the objective.
        resources: plain or chunked; see `essence/distill/chunked.py`.

    An ignored line adds exactly nothing to loss and gradients, whatever its states hold, NaN included.

    Raises:
        InputError: the teacher's vocabulary is smaller than the student's.
        ValueError: `settings.kd_weight` is above 0 and there is no teacher.
    """
    if settings.kd_weight == 0.0:
        teacher_states = teacher_head = None
    elif teacher_states is None or teacher_head is None:
        raise ValueError(f"kd_weight = {settings.kd_weight} needs the teacher's states and head")
    ignored = ((labels < 0) | (weights == 0.0)).unsqueeze(1)
    student_states = student_states.masked_fill(ignored, 0.0)
    weights, labels = weights.masked_fill(labels < 0, 0.0), labels.clamp(min=0)
    if not torch.is_grad_enabled():
        student_states, student_head = student_states.detach(), student_head.detach()
    with torch.autocast(student_states.device.type, enabled=False):
        teacher_states = None if teacher_states is None else teacher_states.masked_fill(ignored, 0.0)
        if resources.form == "chunked":
            found = ChunkedObjective.apply(  # type: ignore[no-untyped-call]
                student_states, student_head, teacher_states, teacher_head, labels, weights, settings, resources
            )
            return Losses(*found)
        logits = student_states @ student_head.to(student_states.dtype).T
        if teacher_states is None or teacher_head is None:
            return objective(logits, None, labels, weights, settings)
        with torch.no_grad():
            teacher_logits = teacher_states @ teacher_head.to(teacher_states.dtype).T
        return objective(logits, teacher_logits, labels, weights, settings)


class Distiller(nn.Module):
    """Computes the losses of a batch from the student's hidden states and head."""

    def __init__(
        self,
        student: nn.Module,
        settings: ObjectiveSettings,
        loss: LossResources,
        compute_dtype: torch.dtype,
        autocast: bool,
    ) -> None:
        """With `autocast` the student's weights are float32, or adapters among others, and products `compute_dtype`."""
        super().__init__()
        self.student = student
        self.objective = HeadObjective(student, settings, loss, compute_dtype)
        self.compute_dtype, self.autocast = compute_dtype, autocast

    def forward(
        self,
        batch: Batch,
        weights: Tensor,
        teacher_states: Tensor | None = None,
        teacher_head: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, CE and KD of a batch, float32 scalars; the loss alone carries a gradient.

        Args:
            batch: N labels.
            weights: share of each label in the loss, float32, shape (N,).
            teacher_states: shape (N, H of the teacher); None = cross-entropy alone, as in validation.
            teacher_head: shape (V of the teacher, H of the teacher).
        """
        with torch.autocast(batch.input_ids.device.type, self.compute_dtype, enabled=self.autocast):
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
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, head = states.to(self.compute_dtype), head_weight(self._student[0])
        if teacher_states is None or teacher_head is None:
            return objective_from_states(states, head, None, None, labels, weights, self.cross_entropy, self.loss)
        teacher_states = teacher_states.to(self.compute_dtype)
        return objective_from_states(
            states, head, teacher_states, teacher_head, labels, weights, self.settings, self.loss
        )
