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

CONCENTRATION = 1.5
"""Of the Beta distribution of the problems' chances: with 20 % solved, most problems of a benchmark are nearly never
solved and a few nearly always, as AIME is by students of 4B; assumed."""
EASIEST = 0.8
"""The chances end here: the hardest sampling leaves no problem solved in every sample; assumed."""
EFFECT_SD = 0.2
"""How far what truncation does to one problem is from what it does to their mean, as a share of it; assumed, and the
same in every training, so that it moves no figure here (`report/claims/simulated_runs.py` draws it)."""
INTERACTION_SD = 0.1
"""How far a training's share of one problem is from what its accuracy says, as a share of it; assumed."""
MOST_SEEDS = 400
SAMPLES = (4, 8, 16, 32, 64)
QUANTILES = 2_000
MANY_DEGREES = 100
"""Of one arm: beyond this the rounding of degrees of freedom changes nothing."""
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
    interaction_sd: float = INTERACTION_SD
    """0 where the standard deviation was measured on trainings, which then holds it."""

    @property
    def degrees(self) -> int:
        """Of two trainings or more of an arm; of settings where each was trained once; 0 where there is neither."""
        return 2 * self.settings * (self.seeds - 1) if self.seeds > 1 else self.settings - 1

    @property
    def standard_error(self) -> float:
        """Of the retention."""
        share = self.accuracy / EASIEST
        square = EASIEST**2 * (share**2 + share * (1.0 - share) / (CONCENTRATION + 1.0))
        kept, accuracy2 = self.retention, self.accuracy**2
        trainings = 2.0 * kept**2 * (self.training_sd / self.accuracy) ** 2
        interaction = 2.0 * kept**2 * self.interaction_sd**2 * square / (self.problems * accuracy2)
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
    margins: NDArray[np.float64] = design.standard_error * _scales(design.settings, design.seeds, confidence)
    return margins


@lru_cache(maxsize=1024)
def _scales(settings: int, seeds: int, confidence: float) -> NDArray[np.float64]:
    """Quantiles of a half-width over the true standard error, as `report/claims/contrast.py` makes it.

    Of several trainings the two arms are put together as Welch does, and the variance between settings counts where it
    is the larger one; of one training of each arm it is that between settings.
    """
    rng, draws = np.random.default_rng(SEED), 50 * QUANTILES
    between = rng.chisquare(settings - 1, draws) / (settings - 1) if settings > 1 else np.zeros(draws)
    if seeds == 1:
        widths = student_t(confidence, settings - 1) * np.sqrt(between)
    else:
        own = settings * (seeds - 1)
        arms = rng.chisquare(own, (2, draws)) / own
        widths = _quantiles(arms, own, confidence) * np.sqrt(np.maximum(arms.mean(axis=0), between))
    scales: NDArray[np.float64] = np.sort(widths)[25::50]
    return scales


def _quantiles(arms: NDArray[np.float64], own: int, confidence: float) -> NDArray[np.float64]:
    """Student's quantile for each draw of the variances of two arms, [2, draws], of `own` degrees of freedom each."""
    if own > MANY_DEGREES:
        return np.full(arms.shape[1], student_t(confidence, 2 * own))
    degrees = np.floor(own * arms.sum(axis=0) ** 2 / (arms**2).sum(axis=0) + 1e-9).astype(int)
    table = np.array([student_t(confidence, max(1, one)) for one in range(2 * own + 1)])
    quantiles: NDArray[np.float64] = table[degrees]
    return quantiles


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
