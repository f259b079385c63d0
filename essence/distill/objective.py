"""The objective, plain and exact: full logits, float32, log-softmax.

Source: "Distilling the Essence", training objective `(1 - w) * CE + w * KD`. CE is the cross-entropy of the row's own
tokens; KD is the teacher's, `-sum_v p_teacher(v) log p_student(v)`: forward KL without the teacher's entropy, which has
the gradient of KL(teacher || student) and another value. Both are a mean over the supervised tokens of a row, then a
mean over rows, so every row weighs the same whatever its length. `[training] divergence = "reverse_kl"` puts
KL(student || teacher) in the place of KD; `normalisation = "token"` makes both a mean over all supervised tokens of a
step.

This is the reference; `essence/distill/chunked.py` computes the same without holding the logits.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from essence.errors import InputError
from essence.settings import Divergence, ObjectiveSettings


class Losses(NamedTuple):
    """Scalars, float32 (float64 where the logits are); `loss` alone carries a gradient."""

    loss: Tensor
    ce: Tensor
    kd: Tensor
    """Zero where there is no teacher."""


def objective(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    settings: ObjectiveSettings,
) -> Losses:
    """The weighted objective over the supervised tokens of some rows.

    Args:
        student_logits: float, shape (N, student vocabulary): one line a supervised token, of any number of rows.
        teacher_logits: float, shape (N, teacher vocabulary), or None where `settings.kd_weight` is 0.
        labels: int64, shape (N,): the tokens that follow in the rows; below 0 = ignored.
        weights: float, shape (N,): share of each token in the mean, as `Batch.step_weights` makes them; 0 = ignored.
            They need not sum to 1 here: the losses of a batch's parts add up to the loss of the batch.
        settings: the divergence, its weight and its temperature, which softens teacher and student alike. KD is not
            multiplied by the square of the temperature, as the paper's is not.

    A teacher with a larger (padded) vocabulary is met by padding the student's logits with zeros, as released; CE is
    taken before that. Log-softmax keeps the loss and its gradient finite where probabilities underflow (trap 12).

    Raises:
        InputError: the teacher's vocabulary is smaller than the student's.
        ValueError: `settings.kd_weight` is above 0 and there are no teacher logits.
    """
    student_logits, weights = _at_least_float32(student_logits), weights.masked_fill(labels < 0, 0.0)
    log_student = log_softmax(student_logits, dim=-1)
    labels = labels.clamp(min=0)
    ce = -(log_student.gather(-1, labels.unsqueeze(-1)).squeeze(-1) * weights).sum()
    if settings.kd_weight == 0.0:
        return Losses(ce, ce.detach(), torch.zeros_like(ce.detach()))
    if teacher_logits is None:
        raise ValueError(f"kd_weight = {settings.kd_weight} needs the teacher's logits")
    softened = _softened_student(student_logits, log_student, teacher_logits.shape[-1], settings.temperature)
    log_teacher = log_softmax(_at_least_float32(teacher_logits) / settings.temperature, dim=-1)
    terms = FORMULAS[settings.divergence].terms(Pair.of(log_teacher, softened))
    kd = (terms.sum(dim=-1) * weights).sum()
    loss = (1.0 - settings.kd_weight) * ce + settings.kd_weight * kd
    return Losses(loss, ce.detach(), kd.detach())


def cross_entropy_of_rows(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """CE alone, for validation: the weighted sum over supervised tokens; shapes as in `objective`."""
    log_probabilities = log_softmax(_at_least_float32(logits), dim=-1)
    return -(log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1) * weights).sum()


def _softened_student(logits: Tensor, log_student: Tensor, teacher_vocabulary: int, temperature: float) -> Tensor:
    """The student's log-probabilities over the teacher's vocabulary; shares CE's log-softmax where they are equal."""
    missing = missing_vocabulary(logits.shape[-1], teacher_vocabulary)
    if missing == 0 and temperature == 1.0:
        return log_student
    return log_softmax(pad(logits, (0, missing)) / temperature, dim=-1)


def missing_vocabulary(student: int, teacher: int) -> int:
    """Entries that the student's vocabulary lacks; InputError where the teacher's is the smaller one."""
    if teacher < student:
        raise InputError(
            f"the teacher's vocabulary ({teacher}) is smaller than the student's ({student}): "
            "choose a teacher of the same model family"
        )
    return teacher - student


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


class Pair(NamedTuple):
    """Teacher (p) and student (q) over a vocabulary, each of shape (N, vocabulary)."""

    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor

    @classmethod
    def of(cls, log_p: Tensor, log_q: Tensor) -> "Pair":
        return cls(log_p, log_p.exp(), log_q, log_q.exp())


Line = Callable[[Pair], Tensor]


class Formula(NamedTuple):
    """A divergence; both functions keep the shape."""

    terms: Line
    slopes: Line


FORMULAS: dict[Divergence, Formula] = {
    "forward_kl": Formula(lambda x: -x.p * x.log_q, lambda x: -x.p),
    "reverse_kl": Formula(
        lambda x: x.q * (x.log_q - x.log_p),
        lambda x: x.q * (x.log_q - x.log_p + 1.0),
    ),
}
