"""The closed form against PyTorch's scheduler."""

import warnings

import pytest
import torch

from essence.distill.schedule import one_cycle, validation_steps
from essence.settings import OptimizerSettings

SETTINGS = OptimizerSettings(
    epochs=2,
    batch_rows=4,
    batch_tokens=0,
    max_lr=4e-6,
    weight_decay=0.05,
    adam_beta2=0.999,
    adam_epsilon=1e-8,
    gradient_clip_norm=1.0,
    warmup_share=0.1,
    start_divisor=25.0,
    end_divisor=1e4,
    beta1_low=0.85,
    beta1_high=0.95,
)


@pytest.mark.parametrize("total", [1, 2, 3, 9, 11, 20, 97, 4000])
@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_equals_pytorch(total: int, warmup: float) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scheduler is stepped without the optimizer
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-6, total_steps=total, pct_start=warmup)
        settings = SETTINGS.model_copy(update={"warmup_share": warmup})
        for step in range(total):
            point, group = one_cycle(step, total, settings), optimizer.param_groups[0]
            assert point.lr == pytest.approx(group["lr"], rel=1e-12, abs=1e-20)
            assert point.beta1 == pytest.approx(group["betas"][0], rel=1e-12)
            if step + 1 < total:
                scheduler.step()


def test_ends_and_peak() -> None:
    assert one_cycle(0, 4000, SETTINGS) == pytest.approx((4e-6 / 25, 0.95))
    assert one_cycle(399, 4000, SETTINGS) == pytest.approx((4e-6, 0.85))
    assert one_cycle(3999, 4000, SETTINGS) == pytest.approx((4e-6 / 25 / 1e4, 0.95))


def test_warm_up_that_ends_at_step_0_starts_at_the_peak() -> None:
    """PyTorch divides by zero at 10 steps and a share of 0.1."""
    assert one_cycle(0, 10, SETTINGS) == pytest.approx((4e-6, 0.85))


def test_steps() -> None:
    ten = validation_steps([2000, 2000], 10)
    assert sorted(ten) == list(range(200, 4001, 200))
    assert sorted(validation_steps([3, 3], 10)) == [1, 2, 3, 4, 5, 6]
    assert sorted(validation_steps([4, 6, 1], 2)) == [2, 4, 7, 10, 11]
