"""A number computed from the accuracies of trainings, with an interval that knows how far two trainings differ.

The statistic is linearised (delta method): a training weighs with the gradient of its arm. How far trainings of one
arm of one setting lie apart is pooled over settings, and the arms are put together as Welch does. Two estimands: the
benchmarks' problems as they are, of which the verdicts speak, and other problems like these.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import ROUNDING_VARIANCE, Estimate, Matrix, student_t, student_two_sided
from essence.report.claims.units import Compared

Statistic = Callable[[Matrix], NDArray[np.float64]]
"""From accuracies [settings, sides, any number] to one value for each of the last."""
STEP = 1e-6
"""Of the accuracies, for the gradient."""
ONE_TRAINING = "one training of each arm: how much another training would differ is not in the interval"
ALL_EQUAL = "all trainings of an arm score the same: how far two trainings differ cannot be measured"
OVER_SETTINGS, DECLARED = "over settings", "with a declared"
OTHER_PROBLEMS = "delta method, problems and trainings as drawn"
UNDEFINED = "undefined: the reference solves nothing"


class Spread(NamedTuple):
    """A variance and its degrees of freedom."""

    variance: float
    degrees: int


@dataclass(frozen=True)
class Contrast:
    """A statistic over some settings; `why_open` says why its interval decides nothing."""

    value: float | None
    spread: Spread | None
    """With the problems as they are."""
    method: str
    problems: int
    trainings: int
    """Of an arm, the fewest."""
    most_trainings: int
    """Of an arm."""
    why_open: str = ""

    @property
    def error(self) -> float | None:
        return None if self.spread is None else math.sqrt(self.spread.variance)

    def estimate(self, confidence: float) -> Estimate:
        """On the benchmarks' own problems."""
        return self.interval(self.spread, confidence, self.method)

    def outside(self, band: tuple[float, float]) -> float:
        """Two-sided p of the nearest value that counts as reproduced; 1 inside the band."""
        if self.value is None or self.spread is None or self.why_open:
            return 1.0
        distance = max(band[0] - self.value, self.value - band[1], 0.0)
        return student_two_sided(distance / (self.error or math.inf), self.spread.degrees)

    def interval(self, spread: Spread | None, confidence: float, method: str) -> Estimate:
        """Student's, with another variance than its own."""
        if self.value is None or spread is None or self.why_open == ALL_EQUAL:
            return Estimate(self.value, None, None, None, self.problems, method)
        error = math.sqrt(spread.variance)
        margin = student_t(confidence, spread.degrees) * error
        return Estimate(self.value, error, self.value - margin, self.value + margin, self.problems, method)


def contrast(
    settings: Sequence[Compared], statistic: Statistic, training_sd: float | None = None, *, over_settings: bool = True
) -> Contrast:
    """The statistic over some settings, each with the same sides.

    training_sd: standard deviation of the accuracy between two trainings of one arm, declared, used where every arm of
        the only setting was trained once.
    over_settings: it is over all settings together, so that settings are replicates too; else it is of one of them,
        and the others only tell how far two trainings differ.
    """
    means = _means(settings)
    value = float(statistic(means[..., None])[0])
    problems = sum(len(names) for names in _problems(settings).values())
    counts = [len(unit.trainings) for units in settings for unit in units]
    fewest, most = min(counts), max(counts)
    if not math.isfinite(value):
        return Contrast(None, None, UNDEFINED, problems, fewest, most, UNDEFINED)
    gradient = _gradient(statistic, means)
    between = _between(means, gradient) if over_settings else None
    over_problems = _over_problems(settings, gradient) if training_sd is not None else None
    spread, method, why_open = _spread(_within(settings, gradient), between, gradient, over_problems, training_sd)
    if spread and spread.variance <= ROUNDING_VARIANCE:
        why_open = why_open or ALL_EQUAL
    return Contrast(value, spread, method, problems, fewest, most, why_open)


def on_other_problems(
    found: Contrast, settings: Sequence[Compared], statistic: Statistic, confidence: float
) -> Estimate | None:
    """The interval of a contrast over these settings on other problems like theirs; None where it is not known.

    It has more degrees of freedom than the one on these problems, and must not be narrower for that.
    """
    if found.value is None or found.spread is None:
        return None
    gradient = _gradient(statistic, _means(settings))
    over_problems = _over_problems(settings, gradient)
    if over_problems is None:
        return None
    spread = _both(found.spread, over_problems, _counted_twice(settings, gradient))
    others, own = found.interval(spread, confidence, OTHER_PROBLEMS), found.estimate(confidence)
    if others.low is not None and own.low is not None and own.low < others.low:
        return replace(own, method=OTHER_PROBLEMS)
    return others


def _means(settings: Sequence[Compared]) -> Matrix:
    """Accuracies, [settings, sides]."""
    return np.array([[unit.accuracy for unit in units] for units in settings])


def _gradient(statistic: Statistic, means: Matrix) -> Matrix:
    """By central differences, [settings, sides]."""
    steps = STEP * np.eye(means.size).reshape(*means.shape, means.size)
    gradient: Matrix = (statistic(means[..., None] + steps) - statistic(means[..., None] - steps)) / (2.0 * STEP)
    return gradient.reshape(means.shape)


def _spread(
    within: Spread | None,
    between: Spread | None,
    gradient: Matrix,
    over_problems: Spread | None,
    declared: float | None,
) -> tuple[Spread | None, str, str]:
    """With its method, and why nothing can be decided by it."""
    if within:
        variance = max(within.variance, between.variance if between else 0.0)
        name = "pooled within arms" if variance == within.variance else "between settings, the larger one"
        return Spread(variance, within.degrees), f"Student t over trainings, variance {name}", ""
    if between:
        return between, f"Student t {OVER_SETTINGS}, one training of each arm in each", ""
    if declared is not None and over_problems:
        variance = over_problems.variance + float((gradient**2).sum()) * declared**2
        method = f"Student t over problems, {DECLARED} {100 * declared:g} points between two trainings"
        return Spread(variance, over_problems.degrees), method, ""
    return None, "no interval over trainings: one training of each arm", ONE_TRAINING


def _within(settings: Sequence[Compared], gradient: Matrix) -> Spread | None:
    """Variance between trainings of one arm and setting: for each side pooled over settings; None with one each."""
    pooled = [_pooled([units[side].accuracies for units in settings]) for side in range(gradient.shape[1])]
    known = [one for one in pooled if one.degrees]
    if not known:
        return None
    widest = max(known)  # stands in for a side that was trained once everywhere
    counts = np.array([[len(unit.trainings) for unit in units] for units in settings])
    weights = (gradient**2 / counts).sum(axis=0)
    parts = [
        Spread(float(weight) * (one if one.degrees else widest).variance, (one if one.degrees else widest).degrees)
        for weight, one in zip(weights, pooled, strict=True)
    ]
    return _welch(parts)


def _pooled(groups: Sequence[NDArray[np.float64]]) -> Spread:
    degrees = sum(len(group) - 1 for group in groups)
    apart = (group - group.sum() / len(group) for group in groups)
    squares = sum(float(np.vdot(one, one)) for one in apart)
    return Spread(squares / degrees if degrees else 0.0, degrees)


def _welch(parts: Sequence[Spread]) -> Spread:
    """Sum of variances with Satterthwaite's degrees of freedom, rounded down."""
    total = sum(part.variance for part in parts)
    squares = sum(part.variance**2 / part.degrees for part in parts)
    degrees = total**2 / squares if squares > 0.0 else float(sum(part.degrees for part in parts))
    return Spread(total, max(1, math.floor(degrees + 1e-9)))


def _between(means: Matrix, gradient: Matrix) -> Spread | None:
    """Variance of the sum of what each setting adds; None of a single one."""
    count = len(means)
    if count < 2:
        return None
    added = (gradient * means).sum(axis=1)
    return Spread(float(added.var(ddof=1)) * count, count - 1)


def _over_problems(settings: Sequence[Compared], gradient: Matrix) -> Spread | None:
    """Variance that comes from problems, which all arms of a benchmark share, and from the samples of each."""
    added: dict[str, dict[tuple[str, ...], Matrix]] = defaultdict(dict)
    for units, row in zip(settings, gradient, strict=True):
        for unit, weight in zip(units, row, strict=True):
            for name, matrix in unit.shares.items():
                problems = unit.problems[name]
                adds = float(weight) / len(unit.shares) / matrix.size * matrix.sum(axis=0)
                added[name][problems] = added[name].get(problems, 0.0) + adds
    values = [_of_each_problem(one) for one in added.values()]
    if any(len(one) < 2 for one in values):
        return None
    return _welch([Spread(float(one.var(ddof=1)) * len(one), len(one) - 1) for one in values])


def _of_each_problem(added: dict[tuple[str, ...], Matrix]) -> Matrix:
    """Sums by problem, also where settings have not all of them in common."""
    total: dict[str, float] = defaultdict(float)
    for problems, values in added.items():
        for problem, value in zip(problems, values, strict=True):
            total[problem] += float(value)
    return np.array(list(total.values()))


def _counted_twice(settings: Sequence[Compared], gradient: Matrix) -> float:
    """What both variances hold: the rest after problem and training, from arms of two trainings or more."""
    rest = 0.0
    for units, row in zip(settings, gradient, strict=True):
        for unit, weight in zip(units, row, strict=True):
            for matrix in unit.shares.values():
                trainings, problems = matrix.shape
                if trainings > 1 and problems > 1:
                    by_training = matrix - matrix.sum(axis=1, keepdims=True) / problems
                    left = by_training - by_training.sum(axis=0) / trainings
                    mean_square = float(np.vdot(left, left)) / ((trainings - 1) * (problems - 1))
                    rest += float(weight) ** 2 * mean_square / matrix.size / len(unit.shares) ** 2
    return rest


def _both(trainings: Spread, problems: Spread, twice: float) -> Spread:
    joint = _welch([trainings, problems])
    largest = max(trainings.variance, problems.variance, joint.variance - twice)
    return Spread(largest, joint.degrees)


def _problems(settings: Sequence[Compared]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = defaultdict(set)
    for units in settings:
        for unit in units:
            for benchmark, problems in unit.problems.items():
                names[benchmark].update(problems)
    return names
