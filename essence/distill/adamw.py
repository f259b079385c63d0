"""AdamW as every backend uses it."""

from collections.abc import Iterable

import torch
from torch import nn

from essence.distill.schedule import CyclePoint
from essence.settings import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of every parameter, beside the number of steps."""


def adamw(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """The optimiser of those that are trained, one group; rate and betas are set before every step."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        betas=(settings.beta1_high, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_cycle(optimizer: torch.optim.Optimizer, point: CyclePoint, settings: OptimizerSettings) -> None:
    """Learning rate and beta1 of the coming step."""
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = point.lr, (point.beta1, settings.adam_beta2)
