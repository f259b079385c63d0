"""Any number computed from the accuracies of several arms, with its interval.

Problems are resampled together for all arms of a benchmark, since they all answer the same ones; seeds for each arm on
its own. So a comparison keeps its pairing, and arms of two benchmarks stay independent.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import (
    BOOTSTRAP_RESAMPLES,
    BOOTSTRAP_SEED,
    Estimate,
    Matrix,
    expanded_tail,
    resampled_means,
)
from essence.report.claims.advice import VarianceParts
from essence.report.claims.evidence import Scored

Statistic = Callable[[Matrix], NDArray[np.float64]]
"""From accuracies [arms, resamples] to one number a resample, [resamples]."""
METHOD = f"bootstrap over problems (joint for all arms of a benchmark) and seeds, {BOOTSTRAP_RESAMPLES} resamples"
BASIC = f"basic {METHOD}"
SAMPLING_DRAWS = 2_000


def estimate(
    arms: Sequence[Scored], statistic: Statistic, *, extreme: bool = False, least: float = -np.inf
) -> Estimate:
    """The statistic of some arms with its interval; ends are None where resamples leave it undefined.

    extreme: it is the largest or smallest of several numbers. Chance alone drives such a one outwards, in the arms as
        they are by about as much as in resamples of them once more: the interval is the basic one, which takes that
        off again, and holds the value itself. (The percentile interval of a largest change holds the truth hardly ever
        where nothing changes.)
    least: no value can be below it.
    """
    matrices = _matrices(arms)
    points = np.array([[matrix.mean()] for matrix in matrices])
    value = float(statistic(points)[0])
    problems = sum({arm.setting.benchmark: m.shape[1] for arm, m in zip(arms, matrices, strict=True)}.values())
    if not np.isfinite(value):
        return Estimate(None, None, None, None, problems, "undefined: the reference solves nothing")
    if problems < 2:
        return Estimate(value, None, None, None, problems, "no interval: one problem only")
    draws = statistic(_resampled(arms, matrices))
    tail = expanded_tail(arms[0].confidence, problems)
    low, high = np.quantile(draws, [tail, 1.0 - tail], method="inverted_cdf")
    if extreme:
        low, high = max(least, min(value, 2.0 * value - high)), max(value, 2.0 * value - low)
    bounded = bool(np.isfinite(draws).all())
    error = float(draws.std(ddof=1)) if bounded else None
    note = "" if bounded else "; some resampled references solve nothing"
    return Estimate(value, error, _finite(low), _finite(high), problems, (BASIC if extreme else METHOD) + note)


def spread_of(arms: Sequence[Scored], statistic: Statistic, total: float | None) -> VarianceParts | None:
    """Where the variance of a statistic comes from; None where resamples leave it undefined.

    total: variance of the bootstrap over problems and seeds.
    """
    matrices = _matrices(arms)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    rows = [_binomial_means(rng, matrix, arm.samples) for arm, matrix in zip(arms, matrices, strict=True)]
    drawn = statistic(np.array(rows))
    over_problems = statistic(_resampled(arms, [matrix.mean(axis=0, keepdims=True) for matrix in matrices]))
    if total is None or not (np.isfinite(drawn).all() and np.isfinite(over_problems).all()):
        return None
    samples = min(max(1, arm.samples) for arm in arms)
    # Shares of few samples lie too far apart, so binomial draws from them vary too little, by (n - 1) / n.
    sampling = float(drawn.var(ddof=1)) * samples / (samples - 1) if samples > 1 else 0.0
    problems = sum({arm.setting.benchmark: m.shape[1] for arm, m in zip(arms, matrices, strict=True)}.values())
    seeds = min(len(matrix) for matrix in matrices)
    return VarianceParts(samples, seeds, problems, total, float(over_problems.var(ddof=1)), sampling)


def _binomial_means(rng: np.random.Generator, matrix: Matrix, samples: int) -> NDArray[np.float64]:
    drawn = rng.binomial(max(1, samples), np.clip(matrix, 0.0, 1.0), size=(SAMPLING_DRAWS, *matrix.shape))
    means: NDArray[np.float64] = drawn.mean(axis=(1, 2)) / max(1, samples)
    return means


def _matrices(arms: Sequence[Scored]) -> list[Matrix]:
    """Shares [seeds, problems] of each arm, on the problems that all arms of its benchmark have."""
    common: dict[str, set[str]] = {}
    for arm in arms:
        for seed in arm.shares:
            common[arm.setting.benchmark] = common.get(arm.setting.benchmark, set(seed)) & set(seed)
    ordered = {benchmark: sorted(problems) for benchmark, problems in common.items()}
    return [np.array([[s[p] for p in ordered[arm.setting.benchmark]] for s in arm.shares]) for arm in arms]


def _resampled(arms: Sequence[Scored], matrices: Sequence[Matrix]) -> Matrix:
    """Mean accuracies [arms, resamples]."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn: dict[str, NDArray[np.int64]] = {}
    rows = []
    for arm, matrix in zip(arms, matrices, strict=True):
        if arm.setting.benchmark not in drawn:
            size = (BOOTSTRAP_RESAMPLES, matrix.shape[1])
            drawn[arm.setting.benchmark] = rng.integers(matrix.shape[1], size=size)
        rows.append(resampled_means(rng, matrix, drawn[arm.setting.benchmark]))
    return np.array(rows)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
