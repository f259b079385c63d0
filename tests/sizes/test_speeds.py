"""The model of time: what it is made of, and that a fit finds the coefficients that made what was measured."""

from dataclasses import replace

import numpy as np
import pytest

from essence.sizes.speeds import (
    ASSUMED,
    DecodeWork,
    StepWork,
    cache_bytes,
    decoding_seconds,
    fitted,
    step_seconds,
)
from support.paper_sizes import QWEN3


def test_a_fit_finds_what_made_the_times() -> None:
    speeds = replace(ASSUMED, flop_s=2e-15, layer_s=1e-3, parameter_s=3e-11)
    work = [StepWork(flops, layers, 4e9) for flops, layers in ((1e13, 72), (5e13, 72), (1e14, 72), (2e13, 144))]
    found = fitted([one[:3] for one in work], [step_seconds(speeds, one) for one in work])
    assert found.coefficients == pytest.approx((2e-15, 1e-3, 3e-11)) and found.error < 1e-9


def test_no_coefficient_is_below_zero_and_the_error_is_told() -> None:
    """A column that has nothing in it, and one that would take time away."""
    work = [(1.0, 10.0, 0.0), (2.0, 8.0, 0.0), (3.0, 5.0, 0.0)]
    found = fitted(work, [1.0, 2.1, 3.3])
    assert min(found.coefficients) >= 0.0 and found.coefficients[1] == found.coefficients[2] == 0.0
    assert found.coefficients[0] == pytest.approx(1.05, abs=0.05) and 0.0 < found.error < 0.1


def test_noise_of_some_percent_moves_a_prediction_by_as_much() -> None:
    draws = np.random.default_rng(1)
    work = [StepWork(flops, layers, 4e9) for flops in (1e13, 5e13, 1e14, 2e14) for layers in (72.0, 144.0)]
    seconds = [step_seconds(ASSUMED, one) * (1.0 + 0.03 * draws.standard_normal()) for one in work]
    found = fitted([one[:3] for one in work], seconds)
    far = StepWork(1.5e14, 72.0, 4e9)
    predicted = sum(one * other for one, other in zip(found.coefficients, far[:3], strict=True))
    assert predicted == pytest.approx(step_seconds(ASSUMED, far), rel=0.06)


def test_a_step_of_nothing_to_read_takes_the_fixed_time() -> None:
    """What no shorter row saves; and what crosses between ranks comes on top."""
    fixed = step_seconds(ASSUMED, StepWork(0.0, 72.0, 1e9))
    assert fixed == pytest.approx(72 * ASSUMED.layer_s + 1e9 * ASSUMED.parameter_s) and fixed > 0.03
    assert step_seconds(ASSUMED, StepWork(0.0, 72.0, 1e9, 150e9)) == pytest.approx(fixed + 1.0)


def test_an_update_in_main_memory_takes_what_copies_or_arithmetic_take() -> None:
    """They go on beside each other: 4e9 parameters at 34 bytes and 100 GB/s, or at 6 bytes and a slow link."""
    work = StepWork(0.0, 72.0, 0.0, main_memory_parameters=4e9)
    beside = step_seconds(ASSUMED, work) - step_seconds(ASSUMED, StepWork(0.0, 72.0, 0.0))
    assert beside == pytest.approx(4e9 * 34 / 100e9)
    slow = replace(ASSUMED, host_link_bytes_per_s=5e9)
    assert step_seconds(slow, work) - step_seconds(ASSUMED, work) == pytest.approx(4e9 * (6 / 5e9 - 34 / 100e9))


def test_a_step_of_decoding_reads_the_weights_once_and_every_cache() -> None:
    model = QWEN3["4b"]
    assert cache_bytes(model, 1) == 2 * 2 * 36 * 8 * 128
    one, many = (DecodeWork(model.parameters, n, n * cache_bytes(model, 6000)) for n in (1, 64))
    times = [decoding_seconds(ASSUMED, work) for work in (one, many)]
    assert times[0] < times[1] < 20 * times[0] and times[1] / 64 < times[0] / 3
