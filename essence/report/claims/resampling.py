"""The interval of one training of each arm: over problems alone, for these trainings and no others."""

from collections.abc import Sequence

import numpy as np

from essence.evaluation.statistics import BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED, Estimate, expanded_tail
from essence.report.claims.contrast import ONE_TRAINING, Contrast, Statistic
from essence.report.claims.units import Compared

METHOD = f"for these trainings alone: bootstrap over problems, {BOOTSTRAP_RESAMPLES} resamples"
SOME_UNDEFINED = "; undefined in some resamples, whose reference solves nothing"


def interval_of(found: Contrast, settings: Sequence[Compared], statistic: Statistic, level: float) -> Estimate:
    """The interval of a contrast; of one training of each arm in one setting that over problems, beside no verdict."""
    if found.why_open == ONE_TRAINING and found.value is not None:
        return over_problems(settings[0], statistic, found.value, level)
    return found.estimate(level)


def over_problems(units: Compared, statistic: Statistic, value: float, confidence: float) -> Estimate:
    """Problems are resampled for all arms together, since they all answer the same ones; an end may be None."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    benchmarks = list(units[0].shares)
    sizes = {name: len(units[0].problems[name]) for name in benchmarks}
    problems = sum(sizes.values())
    if min(sizes.values()) < 2:
        return Estimate(value, None, None, None, problems, "no interval: one problem only")
    drawn = {name: rng.integers(size, size=(BOOTSTRAP_RESAMPLES, size)) for name, size in sizes.items()}
    means = [
        np.mean([unit.shares[name].mean(axis=0)[drawn[name]].mean(axis=1) for name in benchmarks], axis=0)
        for unit in units
    ]
    values = statistic(np.array([means]))
    tail = expanded_tail(confidence, problems)
    low, high = (float(end) for end in np.quantile(values, [tail, 1.0 - tail], method="inverted_cdf"))
    bounded = bool(np.isfinite(values).all())
    error = float(values.std(ddof=1)) if bounded else None
    lower, upper = (end if np.isfinite(end) else None for end in (low, high))
    return Estimate(value, error, lower, upper, problems, METHOD + ("" if bounded else SOME_UNDEFINED))
