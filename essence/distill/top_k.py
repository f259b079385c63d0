"""The objective against a teacher of whom only the likeliest tokens are known: approximate, and called so everywhere.

Stored are the log-probabilities of the teacher's k likeliest tokens and that of all others together, the remaining
mass. Teacher and student are compared over these k + 1 outcomes: the student's probabilities of the same tokens, and
the sum of all its others. For a divergence D of the whole distributions p and q this is D after the same merging of
outcomes: never more than D(p, q), and equal to it where k is the vocabulary less one. What the teacher says within the
rest is lost, and with it its gradient there. CE is exact.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from essence.distill.objective import FORMULAS, Losses, Pair, missing_vocabulary
from essence.settings import LossResources, ObjectiveSettings

VALUES = ("ids", "log_p", "log_rest")
"""What is stored of each token, `essence/distill/stored_states.py`."""


class TopK(NamedTuple):
    """A teacher's distributions at N labels, at the objective's temperature."""

    ids: Tensor
    """int64, shape (N, k), the likeliest first."""
    log_p: Tensor
    """float32, shape (N, k)."""
    log_rest: Tensor
    """float32, shape (N,): log of the mass of all other tokens."""
    vocabulary: int
    """Of the teacher."""

    def rows(self, rows: slice) -> "TopK":
        return TopK(self.ids[rows], self.log_p[rows], self.log_rest[rows], self.vocabulary)


def likeliest(logits: Tensor, k: int, temperature: float) -> dict[str, Tensor]:
    """What is stored of some logits, shape (N, V) with V above k; by the names in `VALUES`, ids as int32."""
    log_p = log_softmax(logits.float() / temperature, dim=-1)
    kept, ids = log_p.topk(k, dim=-1)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
    return {"ids": ids.to(torch.int32), "log_p": kept, "log_rest": rest}


def sparse_losses(logits: Tensor, top: TopK, labels: Tensor, weights: Tensor, settings: ObjectiveSettings) -> Losses:
    """The weighted objective over some labels; `logits` (N, V) in float32 or float64, the rest as in `objective`."""
    log_student = log_softmax(logits, dim=-1)
    ce = -(log_student.gather(-1, labels.unsqueeze(-1)).squeeze(-1) * weights).sum()
    missing = missing_vocabulary(logits.shape[-1], top.vocabulary)
    softened = log_student
    if missing or settings.temperature != 1.0:
        softened = log_softmax(pad(logits, (0, missing)) / settings.temperature, dim=-1)
    rest = softened.scatter(-1, top.ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    log_q = torch.cat([softened.gather(-1, top.ids), rest], dim=-1)
    log_p = torch.cat([top.log_p, top.log_rest.unsqueeze(-1)], dim=-1).to(log_q.dtype)
    terms = FORMULAS[settings.divergence].terms(Pair.of(log_p, log_q))
    kd = (terms.sum(dim=-1) * weights).sum()
    return Losses((1.0 - settings.kd_weight) * ce + settings.kd_weight * kd, ce.detach(), kd.detach())


class SparseObjective(torch.autograd.Function):
    """The same from states and head, `chunk_rows` labels at a time, so that no more logits than these are held.

    The gradient over a chunk's logits is autograd's; that of the head is summed in float32 (float64 where states are).
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Tensor,
        top: TopK,
        labels: Tensor,
        weights: Tensor,
        settings: ObjectiveSettings,
        resources: LossResources,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if states.dtype == torch.float64 else torch.float32
        low = head.to(states.dtype)
        d_states = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros(head.shape, dtype=exact, device=head.device) if ctx.needs_input_grad[1] else None
        sums = torch.zeros(3, dtype=exact, device=states.device)
        for first in range(0, len(labels), resources.chunk_rows):
            rows = slice(first, first + resources.chunk_rows)
            logits = (states[rows] @ low.T).to(exact).requires_grad_()
            with torch.enable_grad():
                losses = sparse_losses(logits, top.rows(rows), labels[rows], weights[rows], settings)
            sums += torch.stack([part.detach() for part in losses])
            gradient = torch.autograd.grad(losses.loss, logits)[0].to(states.dtype)
            if d_states is not None:
                d_states[rows] = gradient @ low
            if d_head is not None:
                d_head += gradient.T @ states[rows]
        ctx.gradients = (d_states, None if d_head is None else d_head.to(head.dtype))
        loss, ce, kd = sums.unbind()
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_head = (None if one is None else one * d_loss for one in ctx.gradients)
        return d_states, d_head, None, None, None, None, None
