"""The unit of replication: one training, with its accuracy averaged over the benchmarks that it was graded on.

Two benchmarks of one training are no two trainings, and the samples of a problem are no replicates at all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, groupby

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import Matrix
from essence.report.claims.evidence import Scored, Setting

Predicate = Callable[[Scored], bool]
Side = dict[str, dict[str, dict[str, float]]]
"""Shares of correct samples by benchmark, training and problem."""


@dataclass(frozen=True)
class Unit:
    """One arm of one setting: trainings that were all graded on the same problems of the same benchmarks."""

    setting: Setting
    """Without its benchmark."""
    lsp: float
    trainings: tuple[str, ...]
    problems: dict[str, tuple[str, ...]] = field(repr=False)
    """By benchmark."""
    shares: dict[str, Matrix] = field(repr=False)
    """By benchmark, [trainings, problems]."""
    samples: int
    stages: tuple[str, ...]
    arms: tuple[Scored, ...] = field(repr=False)

    def on(self, benchmark: str) -> "Unit":
        """The part of one benchmark."""
        problems, shares = {benchmark: self.problems[benchmark]}, {benchmark: self.shares[benchmark]}
        return replace(self, problems=problems, shares=shares)

    @cached_property
    def accuracies(self) -> NDArray[np.float64]:
        """Of each training, averaged over its benchmarks."""
        means = [matrix.sum(axis=1) / matrix.shape[1] for matrix in self.shares.values()]
        values: NDArray[np.float64] = sum(means[1:], start=means[0]) / len(means)
        return values

    @cached_property
    def accuracy(self) -> float:
        """Mean over trainings."""
        return float(self.accuracies.sum()) / len(self.accuracies)


Compared = tuple[Unit, ...]
"""The arms of one setting that a claim compares, in the order that the claim names them."""


def compared(arms: Iterable[Scored], *sides: Predicate) -> list[Compared]:
    """For each setting that has every side, its sides on what they have in common."""
    found = (
        side_by_side(setting, [[arm for arm in group if side(arm)] for side in sides])
        for setting, group in by_setting(arms)
    )
    return [units for units in found if units]


def side_by_side(setting: Setting, members: Sequence[Sequence[Scored]]) -> Compared:
    """The arms of each side as one unit, on the problems that all have in common; empty where there are none."""
    joined = [_joined(arms) for arms in members]
    benchmarks = _benchmarks(joined)
    if not benchmarks:
        return ()
    units = zip(members, joined, strict=True)
    return tuple(_unit(setting, arms, side, joined, benchmarks) for arms, side in units)


def by_setting(arms: Iterable[Scored]) -> Iterator[tuple[Setting, list[Scored]]]:
    """Arms of one setting, whatever the benchmark."""

    def base(arm: Scored) -> Setting:
        return arm.setting._replace(benchmark="", evaluation="")

    for setting, group in groupby(sorted(arms, key=lambda arm: str(base(arm))), key=base):
        yield setting, list(group)


def _joined(arms: Sequence[Scored]) -> Side:
    side: Side = {}
    for arm in arms:
        trainings = side.setdefault(arm.setting.benchmark, {})
        for training, shares in zip(arm.trainings, arm.shares, strict=True):
            trainings.setdefault(training, shares)
    return side


def _benchmarks(sides: Sequence[Side]) -> tuple[str, ...]:
    """Benchmarks that give the most graded trainings, where one training counts with all of them or not at all."""
    common = sorted(set.intersection(*(set(side) for side in sides))) if sides else []
    names = [name for name in common if _problems(sides, name)]
    subsets = [some for size in range(len(names), 0, -1) for some in combinations(names, size)]
    counts = {some: [len(_trainings(side, some)) for side in sides] for some in subsets}
    usable = [some for some in subsets if min(counts[some]) > 0]
    return max(usable, key=lambda some: sum(counts[some]) * len(some), default=())


def _trainings(side: Side, benchmarks: Sequence[str]) -> list[str]:
    return [name for name in side[benchmarks[0]] if all(name in side[benchmark] for benchmark in benchmarks)]


def _problems(sides: Sequence[Side], benchmark: str) -> tuple[str, ...]:
    shares = [one for side in sides for one in side[benchmark].values()]
    return tuple(sorted(set.intersection(*(set(one) for one in shares)))) if shares else ()


def _unit(
    setting: Setting, arms: Sequence[Scored], side: Side, sides: Sequence[Side], benchmarks: Sequence[str]
) -> Unit:
    trainings = _trainings(side, benchmarks)
    problems = {name: _problems(sides, name) for name in benchmarks}
    shares = {
        name: np.array([[side[name][one][problem] for problem in problems[name]] for one in trainings])
        for name in benchmarks
    }
    used = tuple(arm for arm in arms if arm.setting.benchmark in benchmarks)
    stages = tuple(dict.fromkeys(stage for arm in used for stage in arm.stages))
    samples = min(arm.samples for arm in used)
    return Unit(setting, used[0].lsp, tuple(trainings), problems, shares, samples, stages, used)
