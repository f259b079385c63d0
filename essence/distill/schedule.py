"""What happens at which step, from the step's number alone: learning rate, beta1, validation.

Having no state, a schedule needs nothing in a checkpoint. `one_cycle` equals `torch.optim.lr_scheduler.OneCycleLR`
with cosine annealing and momentum cycling (trap 13), whose optimiser step `s` uses the values of `step_num = s`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from essence.settings import OptimizerSettings


class CyclePoint(NamedTuple):
    """What the optimiser uses in one step."""

    lr: float
    beta1: float


def one_cycle(step: int, total_steps: int, settings: OptimizerSettings) -> CyclePoint:
    """Learning rate and beta1 of optimiser step `step`, 0 <= step < total_steps.

    The rate rises from `max_lr / start_divisor` to `max_lr` until step `warmup_share * total_steps - 1` and falls to
    `max_lr / start_divisor / end_divisor` at the last step, along half cosines; beta1 falls and rises against it.
    A warm-up that ends at step 0 or before leaves no rise (PyTorch divides by zero where it ends exactly at 0).
    """
    first_lr = settings.max_lr / settings.start_divisor
    peak = settings.warmup_share * total_steps - 1
    if step <= peak and peak > 0:
        share = step / peak
        return CyclePoint(
            _half_cosine(first_lr, settings.max_lr, share), _half_cosine(settings.beta1_high, settings.beta1_low, share)
        )
    share = (step - peak) / (total_steps - 1 - peak)
    return CyclePoint(
        _half_cosine(settings.max_lr, first_lr / settings.end_divisor, share),
        _half_cosine(settings.beta1_low, settings.beta1_high, share),
    )


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


def validation_steps(epochs: Sequence[int], per_epoch: int) -> frozenset[int]:
    """Numbers of finished steps after which to validate: `per_epoch` times, evenly, the last at the epoch's end.

    Args:
        epochs: optimiser steps of each epoch; where a step is that many tokens, they depend on the epoch's order.
        per_epoch: validations wanted.
    """
    starts = itertools.accumulate(epochs, initial=0)
    return frozenset(
        start + step
        for start, steps in zip(starts, epochs, strict=False)
        for step in {steps * k // per_epoch for k in range(1, per_epoch + 1)} - {0}
    )
