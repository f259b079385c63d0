"""Accuracies and their differences, each with an interval whose method is named.

Problems are the sampled units: the samples of one problem are alike, so they are averaged first and the uncertainty
comes from the spread between problems (Miller 2024, arXiv 2411.00640). Plain NumPy; used by stages and by the report.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]
BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_251_224
MAJORITY_DRAWS = 1_000
ROUNDING_VARIANCE = 1e-24
"""Below this, shares differ by rounding alone."""
METHOD_SCORE = "Wilson score interval, problems as clusters: effective sample size p(1-p)/se^2, Student t"
METHOD_T = "Student t, problems as clusters"
METHOD_SEEDS = "; variance of crossed problems and seeds, Satterthwaite degrees of freedom"


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is. What cannot be said is None, and `method` says why."""

    value: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    """Problems, the independent units; not samples."""
    method: str


def accuracy(correct: ArrayLike, confidence: float) -> Estimate:
    """Mean over samples, then over problems (`avg@n`).

    correct: bool or 0/1, [problems, samples]. ValueError for another shape or values outside [0, 1].
    """
    return pooled_accuracy(_matrix(correct, "problems, samples").mean(axis=1)[None, :], confidence)


def pass_at_k(correct: ArrayLike, k: int, confidence: float) -> Estimate:
    """Unbiased pass@k, 1 - C(n - c, k) / C(n, k) a problem (Chen et al. 2021, equation 1), then as an accuracy.

    correct: bool or 0/1, [problems, samples]. ValueError unless 1 <= k <= samples.
    """
    marks = _matrix(correct, "problems, samples")
    samples = marks.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, wanted: 1 to {samples}, the samples of a problem")
    wrong = samples - marks.sum(axis=1)
    drawn = np.arange(k)
    all_wrong = np.clip((wrong[:, None] - drawn) / (samples - drawn), 0.0, 1.0).prod(axis=1)
    return pooled_accuracy(1.0 - all_wrong[None, :], confidence)


def majority_at_k(answers: ArrayLike, correct: ArrayLike, k: int, confidence: float) -> Estimate:
    """maj@k: share of problems whose most frequent answer among k samples is right, then as an accuracy.

    answers: numbers that name an answer within its problem, -1 = none, which does not vote, [problems, samples];
    correct: bool or 0/1 of the same shape; samples of one answer that differ in it stand for it with their mean.
    Of several most frequent answers one is drawn: the share of right ones counts. No answer at all is wrong. With k
    below the number of samples the mean over 1,000 draws of k without repeats, the same draws for every problem.
    ValueError unless 1 <= k <= samples.
    """
    marks, votes = _matrix(correct, "problems, samples"), np.asarray(answers)
    problems, samples = marks.shape
    if votes.shape != marks.shape:
        raise ValueError(f"wanted answers of shape {marks.shape}, found {votes.shape}")
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, wanted: 1 to {samples}, the samples of a problem")
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [rng.choice(samples, k, replace=False) for _ in range(MAJORITY_DRAWS)] if k < samples else [np.arange(k)]
    drawn = np.zeros((len(draws), samples))
    for row, chosen in zip(drawn, draws, strict=True):
        row[chosen] = 1.0
    shares = [_majority(votes[problem], marks[problem], drawn) for problem in range(problems)]
    return pooled_accuracy(np.array(shares)[None, :], confidence)


def _majority(votes: NDArray[np.int64], marks: Matrix, drawn: Matrix) -> float:
    """Share of draws [draws, samples] in which a problem's most frequent answer is right."""
    names = np.unique(votes[votes >= 0])
    if not names.size:
        return 0.0
    cast = (votes[:, None] == names[None, :]).astype(np.float64)
    right = (cast * marks[:, None]).sum(axis=0) / cast.sum(axis=0)
    counts = drawn @ cast
    most = counts.max(axis=1, keepdims=True)
    ahead = (counts == most) & (most > 0)
    return float(((ahead * right).sum(axis=1) / np.maximum(ahead.sum(axis=1), 1)).mean())


def pooled_accuracy(shares: ArrayLike, confidence: float) -> Estimate:
    """Accuracy of a cell over its seeds.

    shares: share of correct samples, [seeds, problems], every seed on the same problems. With one seed the interval is
    over problems alone. It stays inside [0, 1] and keeps a width at 0 % and 100 %, where it takes every problem as one
    trial.
    """
    matrix = _matrix(shares, "seeds, problems")
    value, problems = float(matrix.mean()), matrix.shape[1]
    error, degrees = _standard_error(matrix)
    if error is None:
        return Estimate(value, None, None, None, problems, "no interval: one problem only")
    trials = value * (1.0 - value) / error**2 if error > 0.0 else float(problems)
    low, high = _score_interval(value, trials, student_t(confidence, degrees))
    return Estimate(value, error, low, high, problems, METHOD_SCORE + _seeds_note(matrix))


def pooled_amount(amounts: ArrayLike, confidence: float) -> Estimate:
    """Mean of an amount that is never below 0 (tokens of a completion), over seeds as `pooled_accuracy`; Student's t.

    amounts: mean over the samples of a problem, [seeds, problems], every seed on the same problems. ValueError for
    another shape or amounts below 0.
    """
    matrix = np.asarray(amounts, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or not (matrix >= 0.0).all():
        raise ValueError(f"wanted amounts of at least 0, [seeds, problems], found shape {matrix.shape}")
    value, problems = float(matrix.mean()), matrix.shape[1]
    error, degrees = _standard_error(matrix)
    if not error:
        reason = "one problem only" if error is None else "the same of every problem"
        return Estimate(value, error, None, None, problems, f"no interval: {reason}")
    margin = student_t(confidence, degrees) * error
    return Estimate(value, error, max(0.0, value - margin), value + margin, problems, METHOD_T + _seeds_note(matrix))


def difference(cell: ArrayLike, reference: ArrayLike, confidence: float) -> Estimate:
    """Accuracy of a cell minus that of a reference on the same problems.

    cell, reference: shares of correct samples, both [seeds, problems].
    """
    first, second = _paired(cell, reference)
    if len(first) != len(second):
        raise ValueError(f"a difference needs as many seeds on both sides; found {len(first)} and {len(second)}")
    matrix = first - second
    value, problems = float(matrix.mean()), matrix.shape[1]
    error, degrees = _standard_error(matrix)
    if not error:
        reason = "one problem only" if error is None else "every problem differs by the same amount"
        return Estimate(value, error, None, None, problems, f"no interval: {reason}")
    margin = student_t(confidence, degrees) * error
    return Estimate(value, error, value - margin, value + margin, problems, METHOD_T + _seeds_note(matrix))


@lru_cache(maxsize=1024)
def student_t(confidence: float, degrees: int) -> float:
    """Two-sided quantile: P(|T| <= t) = confidence, by bisection on the closed form for whole degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        if _share_within(angle, degrees) < confidence:
            low = angle
        else:
            high = angle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def student_two_sided(t: float, degrees: int) -> float:
    """P(|T| >= t)."""
    return max(0.0, 1.0 - _share_within(math.atan(abs(t) / math.sqrt(degrees)), degrees))


def _share_within(angle: float, degrees: int) -> float:
    """P(|T| <= t) for angle = atan(t / sqrt(degrees)) (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, squared = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= squared * (power - 1) / power
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def _standard_error(matrix: Matrix) -> tuple[float | None, int]:
    """Standard error of the mean of [seeds, problems] and its degrees of freedom; None for a single problem."""
    if matrix.shape[1] == 1:
        return None, 0
    variance, degrees = _variance_of_mean(matrix)
    return (math.sqrt(variance) if variance > ROUNDING_VARIANCE else 0.0), degrees


def _variance_of_mean(matrix: Matrix) -> tuple[float, int]:
    """Variance of the mean of [seeds, problems], two problems or more, and its degrees of freedom.

    Several seeds: two-way random effects, variance (MS_problems + MS_seeds - MS_rest) / (seeds * problems), where a
    seed component below 0 is taken as 0.
    """
    seeds, problems = matrix.shape
    by_problem = matrix.mean(axis=0)
    ms_problems = float(seeds * by_problem.var(ddof=1))
    if seeds == 1:
        return ms_problems / problems, problems - 1
    by_seed = matrix.mean(axis=1)
    ms_seeds = float(problems * by_seed.var(ddof=1))
    rest = matrix - by_problem[None, :] - by_seed[:, None] + matrix.mean()
    ms_rest = float((rest**2).sum() / ((seeds - 1) * (problems - 1)))
    if ms_seeds <= ms_rest:
        return ms_problems / matrix.size, problems - 1
    total = ms_problems + ms_seeds - ms_rest
    spread = ms_problems**2 / (problems - 1) + ms_seeds**2 / (seeds - 1)
    spread += ms_rest**2 / ((seeds - 1) * (problems - 1))
    return total / matrix.size, max(1, int(total**2 / spread))


def _score_interval(share: float, trials: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share, at an effective number of trials."""
    shrink = quantile**2 / trials
    centre = (share + shrink / 2) / (1 + shrink)
    margin = math.sqrt(shrink * share * (1 - share) + shrink**2 / 4) / (1 + shrink)
    return max(0.0, centre - margin), min(1.0, centre + margin)


def expanded_tail(confidence: float, problems: int) -> float:
    """Percentile that makes up for a bootstrap being too narrow for few units (Hesterberg 2015, arXiv 1411.5279)."""
    quantile = math.sqrt(problems / (problems - 1)) * student_t(confidence, problems - 1)
    return NormalDist().cdf(-quantile)


def _matrix(values: ArrayLike, axes: str) -> Matrix:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"wanted a matrix [{axes}], found shape {matrix.shape}")
    if not ((matrix >= 0.0) & (matrix <= 1.0)).all():
        raise ValueError(f"wanted values from 0 to 1, found {matrix.min()} to {matrix.max()}")
    return matrix


def _paired(cell: ArrayLike, reference: ArrayLike) -> tuple[Matrix, Matrix]:
    first, second = _matrix(cell, "seeds, problems"), _matrix(reference, "seeds, problems")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"wanted the same problems, found {first.shape[1]} and {second.shape[1]}")
    return first, second


def _seeds_note(matrix: Matrix) -> str:
    return METHOD_SEEDS if len(matrix) > 1 else ""
