"""What a design can decide about a retention before it runs: chance of each verdict, fewest seeds, cheapest design.

The problems are fixed, as in the verdicts. A setting has one arm at the claim's proportion and one at 1.0, each trained
with `seeds` seeds and graded on `benchmarks` benchmarks of `problems` problems with `samples` samples.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import student_t

DIFFICULTY = 1.2
"""Concentration of the Beta distribution of the problems' chances, which end at `EASIEST`."""
EASIEST = 0.8
INTERACTION_SD = 0.1
"""How far a training's share of one problem is from what its accuracy says, as a share of it; assumed."""
MOST_SEEDS = 400
SAMPLES = (4, 8, 16, 32, 64)
QUANTILES = 2_000
SEED = 20_251_224
UNMEASURED = (0.5, 1.0, 2.0, 3.0)
"""Points between two trainings that are shown where no finished run measured it."""


@dataclass(frozen=True)
class Design:
    """Sizes of an experiment, and what is assumed of it."""

    settings: int
    seeds: int
    samples: int
    accuracy: float
    """At 1.0."""
    training_sd: float
    """Of the accuracy of two trainings of one arm, as a share of 1: 0.02 = 2 points."""
    problems: int = 30
    benchmarks: int = 2
    retention: float = 0.91

    @property
    def degrees(self) -> int:
        """Of two trainings or more of an arm; of settings where each was trained once; 0 where there is neither."""
        return 2 * self.settings * (self.seeds - 1) if self.seeds > 1 else self.settings - 1

    @property
    def standard_error(self) -> float:
        """Of the retention."""
        share = self.accuracy / EASIEST
        square = EASIEST**2 * (share**2 + share * (1.0 - share) / (DIFFICULTY + 1.0))
        kept, accuracy2 = self.retention, self.accuracy**2
        trainings = 2.0 * kept**2 * (self.training_sd / self.accuracy) ** 2
        interaction = 2.0 * kept**2 * INTERACTION_SD**2 * square / (self.problems * accuracy2)
        sampling = kept * (self.accuracy - kept * square) + kept**2 * (self.accuracy - square)
        sampling /= self.samples * self.problems * accuracy2
        return math.sqrt((trainings + (interaction + sampling) / self.benchmarks) / (self.settings * self.seeds))


@dataclass(frozen=True)
class Hours:
    """What one training costs, and one sample of each problem of all benchmarks."""

    training: float
    sample: float

    def of(self, design: Design) -> float:
        """Both arms of all settings."""
        return 2 * design.settings * design.seeds * (self.training + self.sample * design.samples)


@dataclass(frozen=True)
class Chances:
    """Of each verdict, where the truth is as reported, clearly outside, and on the edge."""

    reproduced: float
    not_reproduced: float
    wrong_at_the_edge: float


def chances(design: Design, band: tuple[float, float], outside: float, confidence: float = 0.95) -> Chances:
    """Over what is drawn: the value, and the variance that is estimated from the trainings."""
    if not design.degrees:
        return Chances(0.0, 0.0, 0.0)
    return Chances(
        reproduced=_inside(design, band, confidence),
        not_reproduced=_outside(replace(design, retention=outside), band, confidence),
        wrong_at_the_edge=_inside(replace(design, retention=band[0]), band, confidence),
    )


def _inside(design: Design, band: tuple[float, float], confidence: float) -> float:
    """That the whole interval is inside the band."""
    error, margins = design.standard_error, _margins(design, confidence)
    lows, highs = (band[0] - design.retention + margins) / error, (band[1] - design.retention - margins) / error
    pairs = zip(lows, highs, strict=True)
    return float(np.mean([_normal(high) - _normal(low) if high > low else 0.0 for low, high in pairs]))


def _outside(design: Design, band: tuple[float, float], confidence: float) -> float:
    """That the whole interval is outside the band."""
    error, margins = design.standard_error, _margins(design, confidence)
    below, above = (band[0] - design.retention - margins) / error, (band[1] - design.retention + margins) / error
    pairs = zip(below, above, strict=True)
    return float(np.mean([_normal(low) + 1.0 - _normal(high) for low, high in pairs]))


def _margins(design: Design, confidence: float) -> NDArray[np.float64]:
    """Half-widths of the interval, which vary with the variance that is found."""
    quantile = student_t(confidence, design.degrees)
    margins: NDArray[np.float64] = quantile * design.standard_error * _scales(design.degrees)
    return margins


@lru_cache(maxsize=1024)
def _scales(degrees: int) -> NDArray[np.float64]:
    """Quantiles of an estimated standard deviation over the true one."""
    drawn = np.sort(np.random.default_rng(SEED).chisquare(degrees, 50 * QUANTILES))
    scales: NDArray[np.float64] = np.sqrt(drawn[25::50] / degrees)
    return scales


_normal = NormalDist().cdf


def fewest_seeds(design: Design, band: tuple[float, float], assurance: float, confidence: float = 0.95) -> int | None:
    """Seeds of each arm with which a truth as reported is called reproduced often enough; None beyond `MOST_SEEDS`."""

    def enough(seeds: int) -> bool:
        planned = replace(design, seeds=seeds)
        return bool(planned.degrees) and _inside(planned, band, confidence) >= assurance

    low, high = 0, MOST_SEEDS
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def cheapest(
    design: Design, band: tuple[float, float], assurance: float, hours: Hours, confidence: float = 0.95
) -> Design | None:
    """The design of fewest GPU hours over numbers of samples; None where no number of seeds is enough."""
    found = []
    for samples in SAMPLES:
        planned = replace(design, samples=samples)
        seeds = fewest_seeds(planned, band, assurance, confidence)
        if seeds:
            found.append(replace(planned, seeds=seeds))
    return min(found, key=hours.of, default=None)
