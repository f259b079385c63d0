"""The objective on hidden states, without ever holding the logits of more than a chunk of labels.

Heads and loss are one function: states and head weights in; the loss, d loss / d states and d loss / d head out. The
gradients are made in the forward pass, where the logits are, and scaled in the backward pass by the gradient that comes
in. So there are four products with the vocabulary (student logits, teacher logits, d states, d head) and no logits are
kept or computed twice. Chunk by chunk:

1. the student's logits of `chunk_rows` labels go into the *store*, the teacher's into a buffer;
2. a block of rows at a time, small enough for a processor's cache, logits become log-softmax in float32 and the store's
   lines become the gradient of the loss in the states' dtype: one log-sum-exp serves CE and KD;
3. d states = store @ head.

When the store holds `gradient_rows` lines, or the labels end, d head = store.T @ states in one product: summed by the
matrix unit in float32 and rounded once. Adding up a bfloat16 d head chunk by chunk instead multiplies its error; with
more labels than `gradient_rows` the parts are therefore summed in float32. With `gradient_rows = 0` the store takes as
many bytes as that sum: a small head has a small store.

Bytes above the inputs, with n = min(N, gradient_rows), c = min(N, chunk_rows), b = 2 for bfloat16:
`V * (b * n + b * c) + d head`; d head is V * H of the weight's dtype, and 4 * V * H more where float32 sums are needed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from essence.distill.objective import FORMULAS, Pair, missing_vocabulary
from essence.settings import LossResources, ObjectiveSettings
from essence.sizes.memory import GPU_BLOCK_ELEMENTS, kept_rows

BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": GPU_BLOCK_ELEMENTS}
"""Logits that are turned into gradients at a time: for each thread of a CPU so few (and at least a line) that they stay
in its own cache, on a GPU enough that its kernels take longer than their launch. Changes speed and memory only."""
PRODUCT_ROWS = 16384
"""Vocabulary entries of d head that are computed at a time where the product is not d head itself."""


@dataclass
class Sums:
    """Weighted sums over the labels seen so far, float32 (float64 where the states are)."""

    ce: Tensor
    kd: Tensor


class ChunkedObjective(torch.autograd.Function):
    """(loss, ce, kd) of states and heads; only the loss has a gradient, and only in the student's states and head."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        settings: ObjectiveSettings,
        resources: LossResources,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in `essence/distill/module.py`; the products run in the dtype of the states."""
        work = _Work(states, head, teacher_states, teacher_head, settings, resources, ctx.needs_input_grad[:2])
        for first in range(0, len(labels), work.store_rows):
            work.add(first, labels, weights)
        ctx.gradients = (work.d_states, work.d_head())
        ce, kd = work.sums.ce, work.sums.kd
        loss = (1.0 - settings.kd_weight) * ce + settings.kd_weight * kd
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the chunked objective's gradients are scaled in place: backward can be called once")
        d_states, d_head = (None if gradient is None else gradient.mul_(d_loss) for gradient in ctx.gradients)
        ctx.gradients = None
        return d_states, d_head, None, None, None, None, None, None


class _Work:
    """The buffers of one call."""

    def __init__(
        self,
        states: Tensor,
        head: Tensor,
        teacher_states: Tensor | None,
        teacher_head: Tensor | None,
        settings: ObjectiveSettings,
        resources: LossResources,
        needed: tuple[bool, ...],
    ) -> None:
        self.states, self.head, self.settings, self.resources = states, head.to(states.dtype), settings, resources
        self.teacher_states, self.teacher_head = teacher_states, None
        if teacher_states is not None and teacher_head is not None:
            missing_vocabulary(head.shape[0], teacher_head.shape[0])
            self.teacher_head = teacher_head.to(teacher_states.dtype)
        self.needed = needed
        self.head_dtype = head.dtype
        labels, vocabulary = states.shape[0], head.shape[0]
        kept = kept_rows(resources, head.shape[1], states.element_size()) if needed[1] else resources.chunk_rows
        self.store_rows = max(1, min(labels, kept))
        self.chunk_rows = min(self.store_rows, resources.chunk_rows)
        self.store = states.new_empty(self.store_rows, vocabulary)
        self.taught = None  # the teacher's logits of a chunk
        if self.teacher_head is not None:
            self.taught = self.teacher_head.new_empty(self.chunk_rows, self.teacher_head.shape[0])
        exact = torch.float64 if states.dtype == torch.float64 else torch.float32
        self.sums = Sums(states.new_zeros((), dtype=exact), states.new_zeros((), dtype=exact))
        self.d_states = torch.zeros_like(states) if needed[0] else None
        self.parts = -(-labels // self.store_rows)
        self.sum_dtype = head.dtype if self.parts == 1 else exact
        self._d_head: Tensor | None = None
        if needed[1] and labels == 0:
            self._d_head = torch.zeros_like(head)

    def add(self, first: int, labels: Tensor, weights: Tensor) -> None:
        """Loss and gradients of the labels of one store."""
        last = min(first + self.store_rows, len(labels))
        for start in range(first, last, self.chunk_rows):
            rows = slice(start, min(start + self.chunk_rows, last))
            lines = self.store[rows.start - first : rows.stop - first]
            torch.mm(self.states[rows], self.head.T, out=lines)
            teacher = None
            if self.taught is not None and self.teacher_states is not None and self.teacher_head is not None:
                teacher = self.taught[: len(lines)]
                torch.mm(self.teacher_states[rows], self.teacher_head.T, out=teacher)
            self._to_gradients(lines, teacher, labels[rows], weights[rows])
            if self.d_states is not None:
                torch.mm(lines, self.head, out=self.d_states[rows])
        if self.needed[1]:
            self._add_to_head(self.store[: last - first], self.states[first:last])

    def _to_gradients(self, lines: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor) -> None:
        size = len(lines) if self.resources.compiled else block_rows(lines)
        body = compiled_block if self.resources.compiled else block_gradient
        for start in range(0, len(lines), size):
            rows = slice(start, start + size)
            block = None if teacher is None else teacher[rows]
            ce, kd = body(lines[rows], block, labels[rows], weights[rows], self.settings)
            self.sums.ce += ce
            self.sums.kd += kd

    def _add_to_head(self, gradients: Tensor, states: Tensor) -> None:
        if self._d_head is None and self.sum_dtype == gradients.dtype:
            self._d_head = gradients.T @ states
            return
        if self._d_head is not None and self.sum_dtype == gradients.dtype:
            self._d_head.addmm_(gradients.T, states)
            return
        if self._d_head is None:
            self._d_head = torch.zeros(self.head.shape, dtype=self.sum_dtype, device=self.head.device)
        for start in range(0, self.head.shape[0], PRODUCT_ROWS):
            entries = slice(start, start + PRODUCT_ROWS)
            self._d_head[entries] += gradients[:, entries].T @ states

    def d_head(self) -> Tensor | None:
        """In the weight's dtype; None where the weight has no gradient."""
        return None if self._d_head is None else self._d_head.to(self.head_dtype)


def block_rows(lines: Tensor) -> int:
    """Lines of logits that `block_gradient` is given at a time; a CPU's threads share operations out by lines."""
    rows = max(1, BLOCK_ELEMENTS.get(lines.device.type, 1 << 22) // lines.shape[1])
    return rows * torch.get_num_threads() if lines.device.type == "cpu" else rows


def block_gradient(
    logits: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    """Put d loss / d logits in the place of some lines of student logits; returns their weighted CE and KD.

    Args:
        logits: shape (n, V), overwritten.
        teacher: shape (n, V of the teacher), or None; may be overwritten.
        labels: int64, shape (n,), none below 0.
        weights: shape (n,).
        settings: the objective.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weights = weights.to(exact).unsqueeze(1)
    labels = labels.unsqueeze(1)
    share = settings.kd_weight
    student = logits.to(exact)
    log_sum = torch.logsumexp(student, dim=1, keepdim=True)
    ce = ((log_sum - student.gather(1, labels)) * weights).sum()
    if teacher is None:
        gradient, kd = student.sub_(log_sum).exp_().mul_(weights), ce.new_zeros(())
    elif _is_papers(logits, teacher, settings):
        p = torch.softmax(teacher.to(exact), dim=1)
        kd = ((log_sum - torch.linalg.vecdot(p, student).unsqueeze(1)) * weights).sum()
        gradient = student.sub_(log_sum).exp_()  # the paper's own case: one log-sum-exp, no further pass
        gradient.sub_(p, alpha=share).mul_(weights)
    else:
        slope, kd = _divergence(student, log_sum, teacher.to(exact), weights, settings)
        gradient = student.sub_(log_sum).exp_().mul_((1.0 - share) * weights).add_(slope, alpha=share)
    gradient.scatter_add_(1, labels, (share - 1.0 if teacher is not None else -1.0) * weights)
    logits.copy_(gradient)
    return ce, kd


def _divergence(
    student: Tensor, log_sum: Tensor, teacher: Tensor, weights: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    """Weighted d KD / d logits, shape (n, V), and the weighted KD of some lines, at any temperature.

    Where the teacher's vocabulary is larger, the student's logits there are zeros: all have one log-probability.
    """
    vocabulary, missing = student.shape[1], teacher.shape[1] - student.shape[1]
    softened = student / settings.temperature
    if missing or settings.temperature != 1.0:
        log_sum = torch.logsumexp(softened, dim=1, keepdim=True)
    if missing:
        log_sum = torch.logaddexp(log_sum, torch.full_like(log_sum, float(missing)).log())
    log_p = torch.log_softmax(teacher / settings.temperature, dim=1)
    formula = FORMULAS[settings.divergence]
    known = Pair.of(log_p[:, :vocabulary], softened.sub_(log_sum))
    slopes = formula.slopes(known)
    value = formula.terms(known).sum(1, keepdim=True)
    total = slopes.sum(1, keepdim=True)
    if missing:
        padded = Pair.of(log_p[:, vocabulary:], (-log_sum).expand(-1, missing))
        value += formula.terms(padded).sum(1, keepdim=True)
        total += formula.slopes(padded).sum(1, keepdim=True)
    gradient = slopes - known.q * total
    return gradient.mul_(weights / settings.temperature), (value * weights).sum()


def _is_papers(logits: Tensor, teacher: Tensor, settings: ObjectiveSettings) -> bool:
    """True when this is the paper's own case, in which CE and KD share one log-sum-exp."""
    same = teacher.shape[1] == logits.shape[1]
    return settings.divergence == "forward_kl" and settings.temperature == 1.0 and same


def fusable_gradient(
    logits: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    """`block_gradient` as a compiler likes it: in the paper's case three passes over the logits, nothing in between.

    Reductions that PyTorch has as one operation (log-sum-exp, softmax) are several for the compiler, which then writes
    what is between them to memory; spelt out they fuse.
    """
    if teacher is None or not _is_papers(logits, teacher, settings):
        return block_gradient(logits, teacher, labels, weights, settings)
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    student, taught = logits.to(exact), teacher.to(exact)
    weights, labels, share = weights.to(exact).unsqueeze(1), labels.unsqueeze(1), settings.kd_weight
    largest, largest_taught = student.amax(1, keepdim=True), taught.amax(1, keepdim=True)
    p = (taught - largest_taught).exp()
    sum_taught, mean = p.sum(1, keepdim=True), (p * student).sum(1, keepdim=True)
    log_sum = largest + (student - largest).exp().sum(1, keepdim=True).log()
    log_sum_taught = largest_taught + sum_taught.log()
    ce = ((log_sum - student.gather(1, labels)) * weights).sum()
    kd = ((log_sum - mean / sum_taught) * weights).sum()
    its_own = (torch.arange(logits.shape[1], device=logits.device) == labels).to(exact)
    difference = (student - log_sum).exp() - share * (taught - log_sum_taught).exp() - (1.0 - share) * its_own
    logits.copy_(difference * weights)
    return ce, kd


compiled_block: Any = torch.compile(fusable_gradient, dynamic=None)
"""The same through PyTorch's compiler, which is first asked for when it is first called."""
