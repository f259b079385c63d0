"""How far two trainings of one arm differ, as finished runs show it: what a pilot of two seeds is for.

A standard deviation that was found on few degrees of freedom is as likely too small as too large, and a plan made with
it decides too rarely. The plan goes by its one-sided upper limit of `CONFIDENCE` instead (Browne 1995, Statistics in
Medicine 14, 1933-1940: the plan then has the power asked for in as many cases).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Scored
from essence.report.claims.units import Unit, by_setting, side_by_side

CONFIDENCE = 0.8


@dataclass(frozen=True)
class Pilot:
    """What finished trainings say; accuracies as shares of 1."""

    training_sd: float
    """Of the accuracy of two trainings of one arm at LSP 1.0, without what sampling the answers adds."""
    upper_sd: float
    """Its upper limit of `CONFIDENCE`."""
    degrees: int
    accuracy: float
    """At 1.0."""
    datasets: tuple[str, ...]
    trainings: tuple[str, ...]
    """Ids."""

    def sentence(self) -> str:
        """What was found, on how much it rests, and what is planned with."""
        some = f"{self.degrees} degree{'s' * (self.degrees != 1)} of freedom ({len(self.trainings)} trainings)"
        return (
            f"Between two trainings: {100 * self.training_sd:.2g} points, found on {some} of {', '.join(self.datasets)}"
            f"; with {CONFIDENCE:.0%} confidence at most {100 * self.upper_sd:.2g}, which the plan goes by"
        )


def find_pilot(evidence: Evidence, claim: Claim) -> Pilot | None:
    """What the arms that the claim compares show."""
    return pilot_of(list(_arms(evidence.of(claim), claim)))


def pilot_of(units: Sequence[Unit]) -> Pilot | None:
    """Of some arms, those that were trained with several seeds; None where there are none.

    The standard deviation is that of accuracies over their arm's mean, pooled over arms, times the accuracy at 1.0.
    """
    several = [unit for unit in units if len(unit.trainings) > 1 and unit.accuracy > 0.0]
    if not several:
        return None
    degrees = sum(len(unit.trainings) - 1 for unit in several)
    variance = sum(float((_relative(unit) ** 2).sum()) for unit in several) / degrees
    if variance == 0.0:  # how far two differ cannot be measured on trainings that score the same
        return None
    sampling = sum((len(unit.trainings) - 1) * _sampling(unit) for unit in several) / degrees
    accuracy = float(np.mean([unit.accuracy for unit in units if unit.lsp == 1.0] or [_mean(several)]))
    upper = variance * degrees / chi_square_quantile(1.0 - CONFIDENCE, degrees)
    found, limit = (accuracy * math.sqrt(max(0.0, one - sampling)) for one in (variance, upper))
    datasets = tuple(dict.fromkeys(unit.setting.dataset for unit in several))
    trainings = tuple(dict.fromkeys(name for unit in several for name in unit.trainings))
    return Pilot(found, limit, degrees, accuracy, datasets, trainings)


def _arms(arms: Sequence[Scored], claim: Claim) -> Iterator[Unit]:
    sides: tuple[Callable[[Scored], bool], ...] = (
        lambda arm: arm.lsp == claim.lsp and not arm.whole,
        lambda arm: arm.whole,
    )
    for setting, group in by_setting(arms):
        for side in sides:
            if members := [arm for arm in group if side(arm)]:
                yield from side_by_side(setting, [members])


def _relative(unit: Unit) -> NDArray[np.float64]:
    """How far each training is from the mean of its arm, as a share of it."""
    apart: NDArray[np.float64] = unit.accuracies / unit.accuracy - 1.0
    return apart


def _sampling(unit: Unit) -> float:
    """Variance of a training's accuracy over its arm's mean that comes from the samples of its problems alone."""
    if unit.samples < 2:
        return 0.0
    parts = [(m * (1.0 - m) / (unit.samples - 1)).mean(axis=0).sum() / m.shape[1] ** 2 for m in unit.shares.values()]
    return float(sum(parts)) / len(parts) ** 2 / unit.accuracy**2


def _mean(units: Sequence[Unit]) -> float:
    return float(np.mean([unit.accuracy for unit in units]))


def chi_square_quantile(share: float, degrees: int) -> float:
    """x with P(X <= x) = share, by bisection."""
    low, high = 0.0, degrees + 20.0 * math.sqrt(2.0 * degrees) + 20.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _chi_square(middle, degrees) < share else (low, middle)
    return (low + high) / 2.0


def _chi_square(x: float, degrees: int) -> float:
    """P(X <= x): the series of the incomplete gamma function (Abramowitz and Stegun 6.5.29)."""
    if x <= 0.0:
        return 0.0
    half, a = x / 2.0, degrees / 2.0
    term = math.exp(a * math.log(half) - half - math.lgamma(a + 1.0))
    total, place = 0.0, a
    while term > 1e-17:
        total += term
        place += 1.0
        term *= half / place
    return total
