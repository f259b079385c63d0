"""One contrast over some settings, as what a claim or a question is measured to be, and the statistics it is of."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import Estimate, Matrix
from essence.report.claims.contrast import Contrast, Statistic, contrast, on_other_problems
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Scored
from essence.report.claims.outcome import Measured, Replicates
from essence.report.claims.resampling import interval_of
from essence.report.claims.units import Compared


def measured_on(
    claim: Claim, evidence: Evidence, settings: Sequence[Compared], statistic: Statistic, note: str = ""
) -> Measured:
    """One contrast; of one training of each arm in one setting the interval over problems stands beside no verdict."""
    found, estimate = contrast_of(claim, settings, statistic, evidence.level)
    others = on_other_problems(found, settings, statistic, evidence.level)
    return Measured(
        estimate, count_settings(settings), stages_of(settings), note, found.trainings, fewest_samples(settings),
        found.why_open, outside=found.outside(claim.band), other_problems=others, replicates=replicates_of(found),
        rests_on=trainings_of(settings), most_trainings=found.most_trainings,
    )  # fmt: skip


def contrast_of(
    claim: Claim, settings: Sequence[Compared], statistic: Statistic, level: float
) -> tuple[Contrast, Estimate]:
    """What a verdict goes by."""
    declared = None if claim.training_sd_points is None else claim.training_sd_points / 100.0
    found = contrast(settings, statistic, declared)
    return found, interval_of(found, settings, statistic, level)


def replicates_of(found: Contrast) -> Replicates | None:
    """What the advice draws anew: trainings of each arm; None where their number says nothing of the error."""
    if found.trainings < 2 or not found.error or not found.spread:
        return None
    return Replicates(found.error * found.trainings**0.5, found.trainings, found.spread.degrees, "seeds of each arm")


def difference(first: int, second: int) -> Statistic:
    """Of two sides, mean over settings."""

    def statistic(means: Matrix) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = (means[:, first] - means[:, second]).mean(axis=0)
        return mean

    return statistic


def ratio_of_means(means: Matrix) -> NDArray[np.float64]:
    """Of the first side over the second, each over all settings; infinite where the second solves nothing."""
    upper, lower = means[:, 0].mean(axis=0), means[:, 1].mean(axis=0)
    ratio = np.full(upper.shape, np.inf)
    np.divide(upper, lower, out=ratio, where=lower > 0.0)
    return ratio


def is_whole_rows(arm: Scored) -> bool:
    """Whether an arm was trained on whole rows."""
    return arm.whole


def count_settings(settings: Sequence[Compared]) -> int:
    """As the paper counts: each benchmark is a setting of its own."""
    return sum(len(units[0].shares) for units in settings)


def fewest_samples(settings: Sequence[Compared]) -> int:
    """Of a problem, in any arm."""
    return min(unit.samples for units in settings for unit in units)


def stages_of(settings: Sequence[Compared]) -> tuple[str, ...]:
    """Ids of the stages that some settings rest on, each once."""
    return tuple(dict.fromkeys(stage for units in settings for unit in units for stage in unit.stages))


def trainings_of(settings: Sequence[Compared]) -> tuple[str, ...]:
    """Ids of their trainings, each once."""
    return tuple(dict.fromkeys(name for units in settings for unit in units for name in unit.trainings))
