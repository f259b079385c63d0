"""What would decide an undecided claim: how many samples a problem, seeds, problems or pairs of runs instead of those.

The interval's variance is taken apart into what more samples a problem, more seeds and more problems would each take
away, and put together again for larger numbers. Where one seed or one sample is all there is, nothing is known about
what more of them would do, and nothing is said.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from essence.evaluation.statistics import Estimate, student_t

MOST_TIMES = 1000
"""Beyond this many times as many, no number is given."""
CONFIDENCE = 0.95
UNDEFINED = "undefined in resamples: the reference solves so little that some of them solve nothing"
ONE_PAIR = "no interval: one pair of runs"
Band = tuple[float, float]


@dataclass(frozen=True)
class VarianceParts:
    """Where the variance of a number computed from accuracies comes from."""

    samples: int
    """Of a problem, the fewest of any arm."""
    seeds: int
    """The fewest of any arm."""
    problems: int
    total: float
    """Variance of the bootstrap over problems and seeds."""
    over_problems: float
    """Variance of the bootstrap over problems alone; holds the sampling variance once."""
    sampling: float
    """Variance that comes from the number of samples, binomial in each problem and seed."""

    def variance(self, samples: float = 1.0, seeds: float = 1.0) -> float:
        """Expected of the same bootstrap with so many times as many samples a problem, and seeds."""
        sampling, count = self.sampling / samples, self.seeds * seeds
        between_problems = max(0.0, self.over_problems - self.sampling)
        over_seeds = (count - 1.0) / count * (self._between_seeds() + 2.0 * sampling)
        return between_problems + (sampling + over_seeds) / seeds

    def _between_seeds(self) -> float:
        """Resampling seeds counts what is left after problem and seed twice more (both ways of resampling)."""
        if self.seeds < 2:
            return 0.0
        return max(0.0, (self.total - self.over_problems) * self.seeds / (self.seeds - 1) - 2.0 * self.sampling)


@dataclass(frozen=True)
class Advice:
    """Numbers that would decide, and the sentence."""

    sentence: str
    wanted: dict[str, int]
    """`samples` a problem, `seeds`, `problems`, `runs` (pairs): what is not there would not decide alone."""


def advise(estimate: Estimate, band: Band, spread: VarianceParts | None) -> Advice:
    """What would bring the interval to one side of every edge of the band, the value staying where it is."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        more = "; a second seed gives an interval" if estimate.method == ONE_PAIR else ""
        return Advice(estimate.method + more, {})
    if estimate.standard_error is None:
        return Advice(f"cannot be said: {UNDEFINED}", {})
    if spread is None and estimate.standard_error == 0.0:
        return Advice("what is counted has a range over runs, which more runs do not narrow", {})
    inside = estimate.low < estimate.value < estimate.high  # a largest value is driven to the end of its interval
    middle = estimate.value if inside else (estimate.low + estimate.high) / 2.0
    shrink = wanted_shrink(middle, estimate.low, estimate.high, band)
    if shrink <= 1.0 / MOST_TIMES:
        return Advice("too near the edge of what is accepted for any number of runs to decide", {})
    return _of_runs(estimate, shrink) if spread is None else _of_samples(spread, shrink)


def wanted_shrink(value: float, low: float, high: float, band: Band) -> float:
    """By what the variance is to be multiplied so that no edge of the band lies inside the interval any more."""
    shrinks = [1.0]
    for edge in band:
        if math.isfinite(edge) and low < edge < high:
            reach = value - low if edge < value else high - value
            shrinks.append(((value - edge) / reach) ** 2 if reach > 0.0 else 0.0)
    return min(shrinks)


def _of_runs(estimate: Estimate, shrink: float) -> Advice:
    """Pairs of runs until Student's interval is as short as wanted."""
    error = estimate.standard_error or 0.0
    spread = error * math.sqrt(estimate.n)
    reach = student_t(CONFIDENCE, estimate.n - 1) * error * math.sqrt(shrink)
    runs = _fewest(lambda n: student_t(CONFIDENCE, n - 1) * spread / math.sqrt(n) <= reach, estimate.n)
    if runs is None:
        return Advice("no number of runs that is worth naming would decide", {})
    return Advice(f"about {runs:,} pairs of runs instead of {estimate.n} would decide", {"runs": runs})


def _of_samples(spread: VarianceParts, shrink: float) -> Advice:
    """Samples and seeds, each alone; problems where neither would."""
    goal = shrink * spread.variance()
    wanted: dict[str, int] = {}
    if spread.sampling > 0.0:
        samples = _fewest(lambda n: spread.variance(samples=n / spread.samples) <= goal, spread.samples)
        wanted |= {"samples": samples} if samples else {}
    if spread.seeds > 1:
        seeds = _fewest(lambda n: spread.variance(seeds=n / spread.seeds) <= goal, spread.seeds)
        wanted |= {"seeds": seeds} if seeds else {}
    now = {"samples": f"samples a problem instead of {spread.samples}", "seeds": f"seeds instead of {spread.seeds}"}
    if wanted:
        parts = [f"about {count:,} {now[name]}" for name, count in wanted.items()]
        return Advice(f"{' or '.join(parts)} would decide", wanted)
    problems = math.ceil(spread.problems / shrink)
    alone = "more samples or seeds alone" if spread.seeds > 1 else "more samples alone"
    instead = f"about {problems:,} problems instead of {spread.problems} would"
    return Advice(f"{alone} would not decide; {instead}", {"problems": problems})


def _fewest(enough: Callable[[int], bool], now: int) -> int | None:
    """The smallest number above `now` that is enough, up to `MOST_TIMES` as many."""
    low, high = now, now * MOST_TIMES
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
