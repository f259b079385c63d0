"""The objective from hidden states and heads: what the trainer calls, in the form that the resources name."""

import torch
from torch import Tensor

from essence.distill.chunked import ChunkedObjective
from essence.distill.loss import Losses, objective
from essence.distill.top_k import SparseObjective, TopK
from essence.settings import LossResources, ObjectiveSettings


def objective_from_states(
    student_states: Tensor,
    student_head: Tensor,
    teacher_states: Tensor | TopK | None,
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
        teacher_states: shape (N, H of the teacher), or what is stored of its distributions; None where
            `settings.kd_weight` is 0.
        teacher_head: shape (V of the teacher, H of the teacher); V of the teacher >= V.
        labels: int64, shape (N,); below 0 = ignored.
        weights: float32, shape (N,), as `Batch.step_weights` makes them; 0 = ignored.
        settings: the objective.
        resources: plain or chunked; see `essence/distill/chunked.py`. Beside stored distributions always in chunks.

    An ignored line adds exactly nothing to loss and gradients, whatever its states hold, NaN included.

    Raises:
        InputError: the teacher's vocabulary is smaller than the student's.
        ValueError: `settings.kd_weight` is above 0 and there is no teacher.
    """
    if settings.kd_weight == 0.0:
        teacher_states = teacher_head = None
    elif teacher_states is None or (teacher_head is None and not isinstance(teacher_states, TopK)):
        raise ValueError(f"kd_weight = {settings.kd_weight} needs the teacher's states and head")
    ignored = ((labels < 0) | (weights == 0.0)).unsqueeze(1)
    student_states = student_states.masked_fill(ignored, 0.0)
    weights, labels = weights.masked_fill(labels < 0, 0.0), labels.clamp(min=0)
    if not torch.is_grad_enabled():
        student_states, student_head = student_states.detach(), student_head.detach()
    with torch.autocast(student_states.device.type, enabled=False):
        if isinstance(teacher_states, TopK):
            found = SparseObjective.apply(  # type: ignore[no-untyped-call]
                student_states, student_head, teacher_states, labels, weights, settings, resources
            )
            return Losses(*found)
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
