"""The divergences of the objective, each one line of one formula.

With p the teacher's probabilities, q the student's and s the student's logits, a divergence is a sum over the
vocabulary of terms of log p and log q, and

```
D = sum_v term_v        slope_v = d D / d log q_v        d D / d s = slope - q * sum_v slope_v
```

| name | D | source |
|---|---|---|
| forward_kl | -sum p log q: KL(p, q) without the teacher's entropy, which has no gradient | the paper |
| reverse_kl | KL(q, p) | MiniLLM |
| jsd | b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q | generalised JSD of GKD |
| skew_kl | KL(p, a p + (1 - a) q) | DistiLLM |
| total_variation | sum abs(p - q) / 2 | f-divergence with f(x) = abs(x - 1) / 2 |
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from essence.settings import Divergence, ObjectiveSettings


class Pair(NamedTuple):
    """Teacher (p) and student (q) over a vocabulary, each of shape (N, vocabulary)."""

    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor

    @classmethod
    def of(cls, log_p: Tensor, log_q: Tensor) -> "Pair":
        return cls(log_p, log_p.exp(), log_q, log_q.exp())

    def log_mixture(self, share_of_p: float) -> Tensor:
        """log(share p + (1 - share) q), finite where both underflow."""
        return torch.logaddexp(self.log_p + math.log(share_of_p), self.log_q + math.log1p(-share_of_p))


Line = Callable[[Pair, ObjectiveSettings], Tensor]


class Formula(NamedTuple):
    """A divergence; both functions keep the shape."""

    terms: Line
    slopes: Line


FORMULAS: dict[Divergence, Formula] = {
    "forward_kl": Formula(lambda x, _: -x.p * x.log_q, lambda x, _: -x.p),
    "reverse_kl": Formula(
        lambda x, _: x.q * (x.log_q - x.log_p),
        lambda x, _: x.q * (x.log_q - x.log_p + 1.0),
    ),
    "jsd": Formula(
        lambda x, o: _jsd_term(x, x.log_mixture(o.jsd_beta), o.jsd_beta),
        lambda x, o: (1.0 - o.jsd_beta) * x.q * (x.log_q - x.log_mixture(o.jsd_beta)),
    ),
    "skew_kl": Formula(
        lambda x, o: x.p * (x.log_p - x.log_mixture(o.skew_alpha)),
        lambda x, o: (o.skew_alpha - 1.0) * torch.exp(x.log_p + x.log_q - x.log_mixture(o.skew_alpha)),
    ),
    "total_variation": Formula(
        lambda x, _: 0.5 * (x.p - x.q).abs(),
        lambda x, _: 0.5 * torch.sign(x.q - x.p) * x.q,
    ),
}


def _jsd_term(x: Pair, log_m: Tensor, beta: float) -> Tensor:
    return beta * x.p * (x.log_p - log_m) + (1.0 - beta) * x.q * (x.log_q - log_m)
