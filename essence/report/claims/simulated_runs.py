"""Made-up runs of a design, judged as real ones are: how often each verdict comes, and whether rightly.

Chances of solving a problem are `EASIEST` x Beta; truncation acts on each problem of each setting a little differently,
around what the claim says; a training lies `training_sd` from its arm's mean on all benchmarks alike, and a little from
that on each problem. The truth is what the problems as they are keep. The constants are those of the planner's formulas
(`essence/plan/decision_power.py`).
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from essence.evaluation.statistics import Matrix
from essence.plan.decision_power import CONCENTRATION, EASIEST, EFFECT_SD, Chances, Design
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import LEVEL, Setting
from essence.report.claims.one_contrast import contrast_of, ratio_of_means, replicates_of
from essence.report.claims.outcome import Measured
from essence.report.claims.units import Compared, Unit
from essence.report.claims.verdict import Verdict, decide

LARGEST_CHANCE = 0.97
"""No problem is solved for certain."""


@dataclass(frozen=True)
class Shares:
    """Of the verdicts on made-up runs of one design."""

    words: Counter[Verdict]
    covered: int
    """Of how many the interval holds the truth."""

    @property
    def runs(self) -> int:
        return self.words.total()

    def of(self, word: Verdict) -> float:
        return self.words[word] / self.runs

    def error(self, share: float) -> float:
        """Monte-Carlo standard error of a share of these runs."""
        return float((share * (1.0 - share) / self.runs) ** 0.5)


def shares(design: Design, claim: Claim, runs: int, rng: np.random.Generator, level: float = LEVEL) -> Shares:
    """How a claim on retention is judged in made-up runs whose truth is `design.retention`."""
    judged = [judge_made_up(claim, made_up(design, rng), level) for _ in range(runs)]
    return Shares(Counter(word for word, _ in judged), sum(_holds(one, design.retention) for _, one in judged))


def shares_of(design: Design, claim: Claim, runs: int, seed: int, level: float = LEVEL) -> Shares:
    """As `shares`, of runs that are the same at each call."""
    return shares(design, claim, runs, np.random.default_rng(seed), level)


def simulated_chances(
    design: Design, claim: Claim, outside: float, runs: int, seed: int, level: float = LEVEL
) -> Chances:
    """What `chances` of the planner computes: of each verdict where the truth is as reported, outside, at the edge."""
    if not design.degrees:
        return Chances(0.0, 0.0, 0.0)
    true, below, edge = (
        shares_of(replace(design, retention=kept), claim, runs, seed, level)
        for kept in (design.retention, outside, claim.band[0])
    )
    return Chances(true.of("reproduced"), below.of("not reproduced"), edge.of("reproduced"))


def judge_made_up(claim: Claim, settings: list[Compared], level: float = LEVEL) -> tuple[Verdict, Measured]:
    """The verdict as the report gives it on a ratio of means, at an interval of this level."""
    found, estimate = contrast_of(claim, settings, ratio_of_means, level)
    measured = Measured(
        estimate, len(settings), (), trainings=found.trainings, why_open=found.why_open, replicates=replicates_of(found)
    )
    return decide(measured, claim.band), measured


def made_up(design: Design, rng: np.random.Generator) -> list[Compared]:
    """One run: of each setting the arm of which the claim speaks, and that at 1.0."""
    truth = _chances(design, rng)[:, :, None]
    runs = (design.settings, 2, design.seeds)
    common = 1.0 + design.training_sd / design.accuracy * rng.standard_normal((*runs, 1, 1))
    own = 1.0 + design.interaction_sd * rng.standard_normal((*runs, design.benchmarks, design.problems))
    drawn = rng.binomial(design.samples, np.clip(truth * common * own, 0.0, 1.0)) / design.samples
    return [
        (_unit(design, place, 0, drawn[place, 0]), _unit(design, place, 1, drawn[place, 1]))
        for place in range(design.settings)
    ]


def _chances(design: Design, rng: np.random.Generator) -> Matrix:
    """Of solving a problem, in the mean over trainings, [settings, arms, benchmarks, problems]."""
    share = design.accuracy / EASIEST
    size = (design.benchmarks, design.problems)
    whole = EASIEST * rng.beta(CONCENTRATION * share, CONCENTRATION * (1.0 - share), size)
    whole = np.clip(whole * design.accuracy / whole.mean(), 0.0, LARGEST_CHANCE)
    effects = 1.0 + EFFECT_SD * rng.standard_normal((design.settings, *size))
    half = whole * np.clip(effects, 0.0, None)
    half *= design.retention * whole.mean() / half.mean(axis=(1, 2), keepdims=True)
    both: Matrix = np.stack([half, np.broadcast_to(whole, half.shape)], axis=1)
    return both


def _unit(design: Design, place: int, arm: int, drawn: Matrix) -> Unit:
    """From the shares of one arm of one setting, [seeds, benchmarks, problems]."""
    problems = _problems(design.benchmarks, design.problems)
    trainings = tuple(f"{place}-{arm}-{seed}" for seed in range(design.seeds))
    by_name = {name: drawn[:, number] for number, name in enumerate(problems)}
    setting = Setting(f"data-{place}", "teacher", "student", "released", "")
    return Unit(setting, (0.5, 1.0)[arm], trainings, problems, by_name, design.samples, (), ())


@lru_cache
def _problems(benchmarks: int, count: int) -> dict[str, tuple[str, ...]]:
    """Names of the problems of each benchmark."""
    names = tuple(f"p{number}" for number in range(count))
    return {f"benchmark-{number}": names for number in range(benchmarks)}


def _holds(measured: Measured, truth: float) -> bool:
    low, high = measured.estimate.low, measured.estimate.high
    return low is not None and high is not None and low <= truth <= high
