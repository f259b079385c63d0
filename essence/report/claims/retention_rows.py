"""Retention of every arm and cell, as tables and figures show it: computed as the claims are."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from essence.evaluation.statistics import Estimate
from essence.report.claims.contrast import contrast
from essence.report.claims.evidence import LEVEL, Scored, Setting
from essence.report.claims.gather import scored
from essence.report.claims.one_contrast import ratio_of_means
from essence.report.claims.resampling import interval_of
from essence.report.claims.units import side_by_side
from essence.report.results.read import read_results
from essence.report.results.records import FULL, Arm, CellResult, Evaluation, Group, GroupKey, Results

NOWHERE = Setting("", "", "", "", "")
"""Both sides are known to belong together."""


def read_with_retention(run_dir: Path, experiment: str) -> Results:
    """The results of an experiment as its report shows them; RecordError when its plan is missing or damaged."""
    return with_retention(read_results(run_dir, experiment))


def with_retention(results: Results) -> Results:
    """Each arm against the LSP 1.0 arm of its reference group, each cell against the cell of its seed there."""
    full = {group.key: arm for group in results.groups for arm in group.arms if arm.lsp == FULL}
    return replace(results, groups=tuple(_group(group, full) for group in results.groups))


def _group(group: Group, full: dict[GroupKey, Arm]) -> Group:
    reference = full.get(group.reference) if group.reference else None
    return replace(group, arms=tuple(_arm(arm, reference) for arm in group.arms)) if reference else group


def _arm(arm: Arm, reference: Arm) -> Arm:
    by_seed = {cell.seed: cell for cell in reference.cells}
    cells = tuple(_cell(cell, by_seed[cell.seed]) if cell.seed in by_seed else cell for cell in arm.cells)
    pooled = {
        evaluation: replace(
            found,
            scores=tuple(one for cell in cells if (one := cell.score(evaluation)) and one.accuracy),
            retention=_kept(arm.cells, reference.cells, evaluation),
        )
        for evaluation, found in arm.pooled.items()
    }
    return replace(arm, cells=cells, pooled=pooled)


def _cell(cell: CellResult, reference: CellResult) -> CellResult:
    scores = (replace(one, retention=_kept([cell], [reference], one.evaluation)) for one in cell.scores)
    return cell.model_copy(update={"scores": tuple(scores)})


def _kept(cells: Iterable[CellResult], reference: Iterable[CellResult], evaluation: Evaluation) -> Estimate | None:
    """None where either side is not graded; against itself it is 1 without an interval."""
    first, second = (_arms(some, evaluation) for some in (cells, reference))
    compared = side_by_side(NOWHERE, [first, second]) if first and second else ()
    if not compared:
        return None
    found = contrast([compared], ratio_of_means)
    if [arm.stages for arm in first] == [arm.stages for arm in second]:
        return Estimate(found.value, None, None, None, found.problems, "the reference itself")
    return interval_of(found, [compared], ratio_of_means, LEVEL)


def _arms(cells: Iterable[CellResult], evaluation: Evaluation) -> list[Scored]:
    place = NOWHERE._replace(benchmark=evaluation[0])
    return [scored(place, cell, score) for cell in cells if (score := cell.score(evaluation)) and score.accuracy]
