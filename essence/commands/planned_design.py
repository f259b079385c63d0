"""From the planned cells to the design that the planner computes with: settings, seeds, samples, GPU hours."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from essence.engines.selected_run import Run
from essence.errors import ExperimentError
from essence.plan.decision_power import Design, Hours
from essence.plan.estimate import estimate
from essence.plan.stage_plan import CellPlan
from essence.report.claims.definition import Claim

UNKNOWN_PROBLEMS = 30
"""Of a benchmark whose catalogue entry does not say: those of AIME."""


def planned_design(selection: Run, claim: Claim, accuracy: float) -> tuple[Design, Hours | None]:
    """Settings that have both arms on the same rows, the fewest seeds of an arm, and GPU hours where they can be known.

    accuracy: expected at LSP 1.0, as a share of 1. ExperimentError where no setting has both arms, or has no teacher.
    """
    sides = (claim.lsp or 0.0, 1.0)
    both = max((_with_all(arms, sides) for arms in _arms(selection, claim)), key=len, default=[])
    if without_teacher(selection):
        raise ExperimentError(f"{selection.name}: trains without a teacher, so no claim on distillation is about it")
    if not both:
        raise ExperimentError(f"{selection.name}: no setting has cells at LSP {claim.lsp:g} and 1.0 of the same rows")
    cells = [plan for found in both for lsp in sides for plan in found[lsp]]
    benchmarks = judged_benchmarks(cells, claim)
    samples = min((e.samples for plan in cells for e in plan.evaluations if e.benchmark in benchmarks), default=1)
    catalogue, section = selection.loaded.catalogue.benchmarks, selection.loaded.experiment.evaluation
    problems = [section.problems or catalogue[name].problems or UNKNOWN_PROBLEMS for name in benchmarks]
    design = Design(
        settings=len(both),
        seeds=min(len(found[lsp]) for found in both for lsp in sides),
        samples=samples,
        accuracy=accuracy,
        training_sd=0.01,
        problems=min(problems, default=UNKNOWN_PROBLEMS),
        benchmarks=max(1, len(benchmarks)),
        retention=claim.reported or sum(claim.band) / 2.0,
    )
    return design, _hours(selection, cells, samples)


def judged_benchmarks(plans: Sequence[CellPlan], claim: Claim) -> list[str]:
    """Benchmarks that the claim will be judged on: of those that are planned the claim's own, else all of them."""
    planned = [(plan.cell, evaluation.benchmark) for plan in plans for evaluation in plan.evaluations]
    own = {name for cell, name in planned if claim.speaks_of(cell.dataset, cell.teacher, cell.student, name)}
    return sorted(own or {name for _, name in planned})


def without_teacher(selection: Run) -> bool:
    """Whether the cells are plain fine-tuning, of which no claim speaks."""
    return selection.loaded.experiment.training.kd_weight == 0.0


Arms = dict[float, list[CellPlan]]
"""Cells of one setting by proportion."""


def _with_all(arms: list[Arms], sides: tuple[float, ...]) -> list[Arms]:
    return [found for found in arms if all(found.get(lsp) for lsp in sides)]


def _arms(selection: Run, claim: Claim) -> list[list[Arms]]:
    """The settings of each protocol, which are judged apart; those outside the claim only where none is inside.

    Arms of as many tokens instead of the same rows are left out, as the verdict leaves them out.
    """
    plans = [
        plan for plan in selection.plan.cells
        if (plan.cell.span, plan.cell.sections) == (claim.span, claim.sections) and plan.cell.token_budget is None
    ]  # fmt: skip
    inside = [p for p in plans if claim.speaks_of(p.cell.dataset, p.cell.teacher, p.cell.student, "")]
    protocols: dict[str, dict[tuple[Any, ...], Arms]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for plan in inside or plans:
        cell = plan.cell
        setting = (cell.dataset, cell.teacher, cell.student, cell.train_rows)
        protocols[cell.protocol][setting][cell.lsp].append(plan)
    return [list(settings.values()) for settings in protocols.values()]


def _hours(selection: Run, cells: list[CellPlan], samples: int) -> Hours | None:
    """Means over the cells; None where a model's size is not known yet."""
    costs = [estimate(plan, selection.loaded, selection.run_directory) for plan in cells]
    known = [(cost.training_gpu_hours, cost.evaluation_gpu_hours) for cost in costs]
    training = [one for one, _ in known if one is not None]
    evaluation = [one for _, one in known if one is not None]
    if len(training) < len(cells) or len(evaluation) < len(cells):
        return None
    return Hours(sum(training) / len(training), sum(evaluation) / len(evaluation) / samples)
