"""How sure a teacher is of each token of a row: the entropy of its distribution for it."""

import torch
from torch import Tensor

LOGITS_HELD = 1 << 26
"""At a time: 441 tokens of a vocabulary of 151,936, 256 MiB in float32."""


def entropies(states: Tensor, head: Tensor) -> Tensor:
    """Of the distribution for each token of a row, in nats, rounded to float16.

    Logits are products in the dtype of the states, as in a training; the sums are in float32. Nothing comes before the
    first token: its entropy is 0, as of a token that the teacher is sure of.

    Args:
        states: last hidden states of the row's tokens, shape (L, H).
        head: weight of the output layer, shape (V, H).

    Returns:
        float16, shape (L,), on the device of the states.
    """
    found, rows = torch.zeros(len(states), device=states.device), max(1, LOGITS_HELD // len(head))
    for start in range(0, len(states) - 1, rows):
        before = states[start : min(start + rows, len(states) - 1)]
        logs = (before @ head.to(states.dtype).T).float().log_softmax(-1)
        found[start + 1 : start + 1 + len(before)] = -(logs.exp() * logs).sum(-1)
    return found.clamp_min(0.0).half()
