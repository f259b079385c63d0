"""Estimates: known values, edge cases, and the coverage of the intervals."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from essence.evaluation.statistics import (
    Estimate,
    accuracy,
    difference,
    majority_at_k,
    pass_at_k,
    pooled_accuracy,
    pooled_amount,
    student_t,
)

PROBLEMS, SAMPLES, TRIALS = 30, 64, 2_000


def interval(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 10, 2.2281),
        (0.95, 29, 2.0452),
        (0.99, 5, 4.0321),
        (0.9, 1318, 1.6460),
    ],
)
def test_student_t(confidence: float, degrees: int, quantile: float) -> None:
    assert student_t(confidence, degrees) == pytest.approx(quantile, abs=1e-4)


def test_mean_over_samples_then_problems() -> None:
    estimate = accuracy([[1, 1], [1, 0], [0, 0], [1, 0]], 0.95)
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(np.std([1, 0.5, 0, 0.5], ddof=1) / 2)
    assert estimate.n == 4
    assert "problems as clusters" in estimate.method


@pytest.mark.parametrize("solved", [0, 1])
def test_all_or_nothing_keeps_a_width_inside_the_unit_interval(solved: int) -> None:
    low, high = interval(accuracy(np.full((PROBLEMS, SAMPLES), solved), 0.95))
    assert high - low == pytest.approx(0.1224, abs=1e-4)
    assert (low, high)[solved] == solved


def test_shares_that_differ_by_rounding_are_alike() -> None:
    alike = pooled_accuracy(np.full((3, PROBLEMS), 0.3), 0.95)
    assert alike.standard_error == 0.0
    assert interval(alike) == pytest.approx((0.162, 0.487), abs=1e-3)
    assert difference(np.full((1, PROBLEMS), 0.3), np.full((1, PROBLEMS), 0.1), 0.95).low is None


def test_one_problem_has_no_interval() -> None:
    assert accuracy([[1, 0]], 0.95) == Estimate(0.5, None, None, None, 1, "no interval: one problem only")


@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (0.5, 0.5), (0.3, 0.7), (1.0, 9.0)])
def test_accuracy_covers(a: float, b: float) -> None:
    """2,000 simulated benchmarks of 30 problems x 64 samples: 93-97 %."""
    rng = np.random.default_rng(20)
    shares = rng.binomial(SAMPLES, rng.beta(a, b, (TRIALS, PROBLEMS))) / SAMPLES
    intervals = [interval(pooled_accuracy(row[None], 0.95)) for row in shares]
    covered = np.mean([low <= a / (a + b) <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.97


def test_pooled_seeds_cover() -> None:
    """Crossed problems and seeds, each seed with an effect of its own."""
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(1_000):
        problems, seeds = rng.beta(2.0, 2.0, PROBLEMS), rng.uniform(-0.1, 0.1, (3, 1))
        shares = rng.binomial(16, np.clip(problems + seeds, 0.0, 1.0)) / 16
        low, high = interval(pooled_accuracy(shares, 0.95))
        covered.append(low <= 0.5 <= high)
    assert 0.93 <= np.mean(covered) <= 0.985


def test_seeds_that_differ_widen_the_interval() -> None:
    base = np.linspace(0.2, 0.8, PROBLEMS)
    alike = pooled_accuracy(np.stack([base, base, base]), 0.95)
    apart = pooled_accuracy(np.stack([base - 0.1, base, base + 0.1]), 0.95)
    assert alike.value == pytest.approx(apart.value)
    assert alike.standard_error == pytest.approx(accuracy(base[:, None], 0.95).standard_error)
    assert interval(apart)[1] - interval(apart)[0] > 1.5 * (interval(alike)[1] - interval(alike)[0])


def test_pass_at_k_is_the_mean_over_all_draws() -> None:
    marks = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    for k in range(1, 6):
        draws = [marks[:, list(chosen)].any(axis=1) for chosen in combinations(range(5), k)]
        assert pass_at_k(marks, k, 0.95).value == pytest.approx(np.mean(draws))
    assert pass_at_k(marks, 1, 0.95).value == pytest.approx(accuracy(marks, 0.95).value)
    with pytest.raises(ValueError, match="k is 6, wanted: 1 to 5"):
        pass_at_k(marks, 6, 0.95)


def test_difference_is_paired() -> None:
    reference = np.linspace(0.1, 0.9, PROBLEMS)[None]
    cell = reference - 0.05 + np.tile([[0.01, -0.01]], PROBLEMS // 2)
    estimate = difference(cell, reference, 0.95)
    low, high = interval(estimate)
    assert estimate.value == pytest.approx(-0.05)
    assert -0.06 < low < estimate.value < high < -0.04
    same = difference(reference, reference, 0.95)
    assert (same.value, same.low, same.high) == (0.0, None, None)
    assert same.method == "no interval: every problem differs by the same amount"


def test_lengths_cover_over_problems_and_trainings_that_differ() -> None:
    """Tokens of completions: skewed, some problems longer than others, each training with a factor of its own."""
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(1_000):
        problems, trainings = rng.gamma(4.0, 250.0, PROBLEMS), rng.uniform(0.8, 1.2, (3, 1))
        tokens = (problems * trainings)[..., None] * rng.lognormal(-0.045, 0.3, (3, PROBLEMS, 4))
        low, high = interval(pooled_amount(tokens.mean(axis=2), 0.95))
        covered.append(low <= 1000.0 <= high)
    assert 0.9 <= np.mean(covered) <= 0.985


def test_an_amount_has_the_error_of_a_share_and_no_upper_end() -> None:
    shares = np.random.default_rng(5).random((2, PROBLEMS))
    amount, share = pooled_amount(1000.0 * shares, 0.95), pooled_accuracy(shares, 0.95)
    assert amount.standard_error == pytest.approx(1000.0 * (share.standard_error or 0.0))
    assert amount.value == pytest.approx(1000.0 * (share.value or 0.0)) and (amount.high or 0.0) > 500.0
    assert pooled_amount([[0.0, 0.0, 9.0]], 0.95).low == 0.0
    assert pooled_amount([[7.0, 7.0]], 0.95).low is None and "same of every" in pooled_amount([[7.0, 7.0]], 0.95).method
    assert pooled_amount([[7.0]], 0.95).method == "no interval: one problem only"
    for wrong in ([7.0, 8.0], [[]], [[-1.0, 2.0]], [[float("nan"), 2.0]]):
        with pytest.raises(ValueError, match="wanted amounts of at least 0"):
            pooled_amount(wrong, 0.95)


def test_refused_shapes_and_values() -> None:
    with pytest.raises(ValueError, match=r"wanted a matrix \[problems, samples\], found shape \(3,\)"):
        accuracy([1, 0, 1], 0.95)
    with pytest.raises(ValueError, match="wanted values from 0 to 1"):
        pooled_accuracy([[0.5, 50.0]], 0.95)
    with pytest.raises(ValueError, match="wanted values from 0 to 1"):
        pooled_accuracy([[0.5, np.nan]], 0.95)
    with pytest.raises(ValueError, match="the same problems, found 2 and 3"):
        difference([[0.5, 0.5]], [[0.5, 0.5, 0.5]], 0.95)
    with pytest.raises(ValueError, match="as many seeds on both sides"):
        difference([[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], 0.95)


def test_the_host_side_can_use_it_without_torch() -> None:
    code = "import sys, essence.evaluation.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_majority_counts_votes_and_shares_ties() -> None:
    answers = [[0, 0, 1, -1], [0, 1, 1, 0], [-1, -1, -1, -1], [0, 1, 2, 2]]
    correct = [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert majority_at_k(answers, correct, 4, 0.95).value == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    one = majority_at_k(answers, correct, 1, 0.95)
    assert one.value == pytest.approx(accuracy(correct, 0.95).value, abs=0.02)
    assert one == majority_at_k(answers, correct, 1, 0.95)


def test_majority_of_some_is_the_mean_over_all_draws() -> None:
    answers, correct = np.array([[0, 0, 1, 1, 2, -1]]), np.array([[1, 1, 0, 0, 0, 0]])
    shares = []
    for chosen in combinations(range(6), 3):
        votes = [answers[0, i] for i in chosen if answers[0, i] >= 0]
        ahead = [name for name in set(votes) if votes.count(name) == max(map(votes.count, votes))]
        shares.append((0 in ahead) / len(ahead))
    found = majority_at_k(np.repeat(answers, 2, axis=0), np.repeat(correct, 2, axis=0), 3, 0.95)
    assert found.value == pytest.approx(np.mean(shares), abs=0.04)


def test_majority_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"wanted answers of shape \(1, 2\), found \(1, 3\)"):
        majority_at_k([[0, 1, 2]], [[1, 0]], 1, 0.95)
    with pytest.raises(ValueError, match="k is 3, wanted: 1 to 2"):
        majority_at_k([[0, 1]], [[1, 0]], 3, 0.95)
