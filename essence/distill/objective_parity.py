"""The fast form of the objective against the plain one, on this device with this model's heads, before training."""

import logging
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from essence.distill.module import objective_from_states
from essence.distill.objective import Losses
from essence.distill.ranks import Ranks
from essence.errors import MachineError
from essence.settings import LossResources, ObjectiveSettings

LOG = logging.getLogger(__name__)

LABELS, CHUNK_ROWS, GRADIENT_ROWS = 64, 24, 48
"""Small, and such that chunks, stores and what is left over all occur."""
TOLERANCES = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-3), torch.bfloat16: (1e-3, 3e-2)}
"""Largest relative difference of the loss, and of a gradient in the norm of the whole tensor. In bfloat16 either form
is within 1e-2 of exact gradients."""


@dataclass(frozen=True)
class ParityReport:
    """Relative differences of the fast form from the plain one."""

    loss_plain: float
    loss_fast: float
    loss_difference: float
    states_gradient_difference: float
    head_gradient_difference: float
    loss_tolerance: float
    gradient_tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        gradients = (self.states_gradient_difference, self.head_gradient_difference)
        return self.loss_difference <= self.loss_tolerance and all(g <= self.gradient_tolerance for g in gradients)

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}

    def describe(self) -> str:
        """One sentence with the numbers."""
        return (
            f"loss {self.loss_fast:.6g} chunked, {self.loss_plain:.6g} plain: relative difference "
            f"{self.loss_difference:.1e} (at most {self.loss_tolerance:.0e}); of the gradients of states and head "
            f"{self.states_gradient_difference:.1e} and {self.head_gradient_difference:.1e} "
            f"(at most {self.gradient_tolerance:.0e})"
        )


def parity(
    student_head: Tensor,
    teacher_head: Tensor | None,
    compute_dtype: torch.dtype,
    settings: ObjectiveSettings,
    resources: LossResources,
) -> ParityReport:
    """Run both forms on a few random labels and states.

    Args:
        student_head: shape (V, H), on the device to train on, brought together where it is sharded; gets no gradient.
        teacher_head: shape (V of the teacher, H of the teacher), or None for cross-entropy alone.
        compute_dtype: that of the states in training.
        settings: the objective.
        resources: as for training; whether it is compiled is taken from here, the sizes of chunks are small.
    """
    small = {"chunk_rows": CHUNK_ROWS, "gradient_rows": GRADIENT_ROWS}
    (plain, *expected), (fast, *found) = (
        _run(student_head, teacher_head, compute_dtype, settings, resources.model_copy(update={"form": form, **small}))
        for form in ("plain", "chunked")
    )
    of_loss, of_gradient = TOLERANCES[compute_dtype]
    return ParityReport(
        loss_plain=plain.loss.item(),
        loss_fast=fast.loss.item(),
        loss_difference=_difference(fast.loss.detach(), plain.loss.detach()),
        states_gradient_difference=_difference(found[0], expected[0]),
        head_gradient_difference=_difference(found[1], expected[1]),
        loss_tolerance=of_loss,
        gradient_tolerance=of_gradient,
    )


@dataclass(frozen=True)
class CheckedObjective:
    """The form that a training goes on with, and how it came to it."""

    resources: LossResources
    fell_back: list[str]
    """Why not in the forms that were tried before."""
    parity: ParityReport | None
    """None for the plain form."""

    def as_json(self) -> dict[str, object]:
        """For the manifest."""
        chunked = self.resources.form == "chunked"
        return {
            "form": self.resources.form,
            "compiled": self.resources.compiled and chunked,
            "fell_back": self.fell_back,
            "parity": self.parity.as_json() if self.parity else None,
        }


def settle(
    student_head: Tensor,
    teacher_head: Tensor | None,
    compute_dtype: torch.dtype,
    settings: ObjectiveSettings,
    resources: LossResources,
    ranks: Ranks,
) -> CheckedObjective:
    """Check the form that is asked for on every rank's device; where `resources.fallback` allows, take the next that
    is right: chunked without a compiler, then plain.

    Args are those of `parity`; `ranks` have met already, and each calls this with its own device's heads.

    Raises:
        MachineError: the form is not equal to the plain one, or nothing compiles it, and there is no falling back.
    """
    why: list[str] = []
    report = None
    while resources.form == "chunked":
        reason, report = _try(student_head, teacher_head, compute_dtype, settings, resources)
        failed = int(ranks.total(torch.tensor([float(reason is not None)])).item())
        if not failed:
            break
        reason = reason or f"it failed on {failed} of {ranks.processes} other ranks, whose logs say how"
        if not resources.fallback:
            other = "compiled = false" if resources.compiled else 'form = "plain"'
            raise MachineError(f"{reason}: set {other} or fallback = true in [resources.loss]")
        LOG.warning("%s: going on without, as [resources.loss] fallback allows", reason)
        why.append(reason)
        resources = resources.model_copy(update={"compiled": False} if resources.compiled else {"form": "plain"})
    return CheckedObjective(resources, why, report if resources.form == "chunked" else None)


def _try(
    head: Tensor,
    teacher_head: Tensor | None,
    dtype: torch.dtype,
    settings: ObjectiveSettings,
    resources: LossResources,
) -> tuple[str | None, ParityReport | None]:
    """What is wrong with a form, in words, and what was found where it ran at all."""
    try:
        report = parity(head, teacher_head, dtype, settings, resources)
    except TorchDynamoException as error:
        words = str(error).strip().split("\n")[0]
        return f"the chunked loss cannot be compiled on this machine ({words})", None
    form = "compiled chunked" if resources.compiled else "chunked"
    wrong = f"the {form} loss is not the plain one on {head.device}: {report.describe()}"
    return (None if report.passed else wrong), report


def _run(
    head: Tensor,
    teacher_head: Tensor | None,
    dtype: torch.dtype,
    settings: ObjectiveSettings,
    resources: LossResources,
) -> tuple[Losses, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def states(hidden: int) -> Tensor:
        return torch.randn(LABELS, hidden, generator=generator).to(head.device, dtype)

    with torch.enable_grad():
        student, weight = states(head.shape[1]).requires_grad_(), head.detach().requires_grad_()
        teacher = None if teacher_head is None else states(teacher_head.shape[1])
        labels = torch.randint(head.shape[0], (LABELS,), generator=generator).to(head.device)
        weights = torch.full((LABELS,), 1.0 / LABELS, device=head.device)
        losses = objective_from_states(student, weight, teacher, teacher_head, labels, weights, settings, resources)
        losses.loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and weight.grad is not None
    return losses, student.grad, weight.grad


def _difference(found: Tensor, expected: Tensor) -> float:
    scale = expected.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((found.double() - expected.double()).norm() / scale)
