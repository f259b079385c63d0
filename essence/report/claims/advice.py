"""What would decide an undecided claim: the fewest replicates that do so with assurance.

The truth is not known, so it is drawn from what the estimate says of it. For each draw new data are drawn, with a
variance estimated from them, and judged. The smallest number that decides in `ASSURANCE` of the draws is named.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from essence.evaluation.statistics import BOOTSTRAP_SEED, student_t
from essence.report.claims.interim_looks import level_of
from essence.report.claims.outcome import Measured, Replicates

ASSURANCE = 0.8
MOST_TIMES = 1000
"""Beyond this many times as many, no number is given."""
DRAWS = 4_000
ONE_PAIR = "no interval: one pair of runs"
DECLARE = "a second seed of each arm would measure that, or training_sd_points in experiments/claims.toml declare it"
Band = tuple[float, float]


@dataclass(frozen=True)
class Advice:
    """Numbers that would decide, and the sentence."""

    sentence: str
    wanted: dict[str, int]
    """`seeds` or `runs` (pairs); empty where no number can be named."""


def advise(measured: Measured, band: Band) -> Advice:
    """What would decide."""
    estimate, now = measured.estimate, measured.replicates
    if measured.why_open:
        return Advice(f"{measured.why_open}{'; ' + DECLARE if measured.trainings == 1 else ''}", {})
    if estimate.value is None or (estimate.low is None and estimate.high is None):
        more = "; a second seed gives an interval" if estimate.method == ONE_PAIR else ""
        return Advice(estimate.method + more, {})
    if estimate.standard_error == 0.0:
        return Advice("what is counted has a range over runs, which more runs do not narrow", {})
    if now is None:
        one = "one training of each arm" if measured.trainings == 1 else "contrasts that must all hold"
        return Advice(f"more seeds of each arm; how many cannot be said from {one}", {})
    level = level_of(measured.look + 1)  # what is added is judged at the next look
    count = _fewest(estimate.value, now, band, level)
    if count is None:
        return Advice("too near the edge of what is accepted for any number of runs worth naming to decide", {})
    name = "runs" if now.unit == "pairs of runs" else "seeds"
    instead = f"{count:,} {now.unit} instead of {now.count}"
    return Advice(f"{instead} would decide with {ASSURANCE:.0%} assurance", {name: count})


def _fewest(value: float, now: Replicates, band: Band, level: float) -> int | None:
    """The smallest number above those that are there which decides often enough."""
    low, high = now.count, now.count
    while assurance(value, now, band, high, level) < ASSURANCE:
        low, high = high, high * 2
        if high > now.count * MOST_TIMES:
            return None
    high = max(high, now.count + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if assurance(value, now, band, middle, level) >= ASSURANCE else (middle, high)
    return high


@lru_cache(maxsize=4096)
def assurance(value: float, now: Replicates, band: Band, count: int, level: float) -> float:
    """Chance that new data of `count` replicates decide, over what the truth and the variance may be."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    degrees = max(1, round(now.degrees * (count - 1) / (now.count - 1)))
    spread = now.standard_deviation * np.sqrt(now.degrees / rng.chisquare(now.degrees, DRAWS))
    truth = value + spread / np.sqrt(now.count) * rng.standard_normal(DRAWS)
    found = truth + spread / np.sqrt(count) * rng.standard_normal(DRAWS)
    margin = student_t(level, degrees) * spread * np.sqrt(rng.chisquare(degrees, DRAWS) / degrees / count)
    inside = (found - margin >= band[0]) & (found + margin <= band[1])
    outside = (found + margin < band[0]) | (found - margin > band[1])
    return float((inside | outside).mean())
