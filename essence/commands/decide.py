"""`invoke plan --decide retention-half`: what the planned cells can decide, the fewest seeds, the cheapest design."""

import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from essence.commands.options import select
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError
from essence.plan.decision_power import UNMEASURED, Chances, Design, Hours, chances, cheapest, fewest_seeds
from essence.plan.estimate import estimate
from essence.plan.stage_plan import CellPlan
from essence.report.claims.definition import Claim, load_claims
from essence.text import percent

OUTSIDE = 0.06
"""How far below what is accepted a truth is whose "not reproduced" is shown: 0.80 for 0.86."""
ACCURACY, ASSURANCE = 0.2, 0.8
"""Where nothing else is asked for."""
PILOT = (
    "Pilot: run two or three seeds of one setting first; `invoke report` then knows how far two trainings differ, and "
    "this command with --training-sd plans the rest"
)


@dataclass(frozen=True)
class Question:
    """What is asked, as numbers."""

    claim: Claim
    training_sd: float | None
    accuracy: float
    assurance: float


@dataclass(frozen=True)
class Line:
    """The design under one standard deviation between trainings."""

    design: Design
    chances: Chances
    fewest_seeds: int | None
    cheapest: Design | None


def question(claim: str, training_sd: float | None, accuracy: float, assurance: float) -> Question:
    """ExperimentError for a claim that is no retention, and for what is no number in its range."""
    claims = {one.id: one for one in load_claims() if one.measure == "retention"}
    if claim not in claims:
        raise ExperimentError(f"--decide {claim!r}: no claim that can be planned for", f"choose {', '.join(claims)}")
    points = None if training_sd is None else _within("--training-sd", training_sd, 0.0, 50.0)
    found = _within("--accuracy", accuracy, 0.0, 0.8)
    return Question(claims[claim], points, found, _within("--assurance", assurance, 0.0, 1.0))


def _within(name: str, value: float, low: float, high: float) -> float:
    if not low < value < high:
        raise ExperimentError(f"{name} {value:g} is not a number between {low:g} and {high:g}", f"as in {name} 0.2")
    return value


def print_decision(words: Options, asked: Question, as_json: bool, console: Console) -> int:
    """Print a row for each standard deviation between trainings."""
    selection = select(words, baselines=False)
    planned, hours = planned_design(selection, asked)
    lines = [_line(planned, sd / 100.0, asked, hours) for sd in _deviations(asked)]
    if as_json:
        rows = [asdict(line) for line in lines]
        record = {"claim": asked.claim.id, "measured_sd": asked.training_sd is not None, "rows": rows,
                  "hours": asdict(hours) if hours else None}  # fmt: skip
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
        return 0
    console.print(_table(planned, lines, asked, hours))
    console.print(can_decide(lines, asked), highlight=False, soft_wrap=True)
    console.print(PILOT, highlight=False, soft_wrap=True)
    return 0


def decision_note(selection: Run) -> list[str]:
    """What the plan can decide of the primary claim, in one line; none where it is not about these cells."""
    claim = next(one for one in load_claims() if one.primary)
    cells = [plan.cell for plan in selection.plan.cells]
    about = any(claim.speaks_of(cell.dataset, cell.teacher, cell.student, "") for cell in cells)
    if not about or not {claim.lsp, 1.0} <= {cell.lsp for cell in cells}:
        return []
    asked = Question(claim, None, ACCURACY, ASSURANCE)
    planned, _ = planned_design(selection, asked)
    band = claim.band
    designs = [replace(planned, training_sd=sd / 100.0) for sd in UNMEASURED]
    lines = [Line(design, chances(design, band, band[0] - OUTSIDE), None, None) for design in designs]
    return [f"{claim.id}: {can_decide(lines, asked)}; invoke plan --decide {claim.id}"]


def planned_design(selection: Run, asked: Question) -> tuple[Design, Hours | None]:
    """Settings that have both arms, the fewest seeds of an arm, and GPU hours where they can be estimated."""
    arms: dict[tuple[Any, ...], dict[float, list[CellPlan]]] = defaultdict(lambda: defaultdict(list))
    for plan in selection.plan.cells:
        cell = plan.cell
        setting = (cell.dataset, cell.teacher, cell.student, cell.span, cell.sections, cell.protocol)
        arms[setting][cell.lsp].append(plan)
    both = [found for found in arms.values() if found.get(asked.claim.lsp or 0.0) and found.get(1.0)]
    if not both:
        raise ExperimentError(f"{selection.name}: no setting has cells at LSP {asked.claim.lsp:g} and 1.0")
    cells = [plan for found in both for lsp in (asked.claim.lsp or 0.0, 1.0) for plan in found[lsp]]
    seeds = min(len(found[lsp]) for found in both for lsp in (asked.claim.lsp or 0.0, 1.0))
    benchmarks = {evaluation.benchmark for plan in cells for evaluation in plan.evaluations}
    samples = min((e.samples for plan in cells for e in plan.evaluations), default=1)
    catalogue, section = selection.loaded.catalogue.benchmarks, selection.loaded.experiment.evaluation
    problems = [section.problems or catalogue[name].problems or 30 for name in benchmarks]
    retention = asked.claim.reported or sum(asked.claim.band) / 2.0
    design = Design(
        len(both), seeds, samples, asked.accuracy, 0.01, min(problems, default=30), max(1, len(benchmarks)), retention
    )
    return design, _hours(selection, cells, samples)


def _hours(selection: Run, cells: list[CellPlan], samples: int) -> Hours | None:
    """Means over the cells; None where a model's size is not known yet."""
    costs = [estimate(plan, selection.loaded, selection.run_directory) for plan in cells]
    known = [(cost.training_gpu_hours, cost.evaluation_gpu_hours) for cost in costs]
    training = [one for one, _ in known if one is not None]
    evaluation = [one for _, one in known if one is not None]
    if len(training) < len(cells) or len(evaluation) < len(cells):
        return None
    return Hours(sum(training) / len(training), sum(evaluation) / len(evaluation) / samples)


def _deviations(asked: Question) -> tuple[float, ...]:
    return UNMEASURED if asked.training_sd is None else (asked.training_sd,)


def _line(planned: Design, sd: float, asked: Question, hours: Hours | None) -> Line:
    design, band = replace(planned, training_sd=sd), asked.claim.band
    return Line(
        design,
        chances(design, band, band[0] - OUTSIDE),
        fewest_seeds(design, band, asked.assurance),
        cheapest(design, band, asked.assurance, hours or Hours(1.0, 0.0)) if hours else None,
    )


def _table(planned: Design, lines: list[Line], asked: Question, hours: Hours | None) -> Table:
    title = (
        f"{asked.claim.title}\nplanned: {planned.settings} settings, {planned.seeds} seeds of each arm, "
        f"{planned.samples} samples, {planned.benchmarks} benchmarks; accuracy {percent(planned.accuracy)} at 1.0; "
        f"95 % intervals, assurance {percent(asked.assurance)}"
    )
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    edges = asked.claim.band[0], asked.claim.band[0] - OUTSIDE
    for name in ("sd", "reproduced if true", f"not if {edges[1]:.2f}", f"wrong at {edges[0]:.2f}", "seeds", "cheapest"):
        table.add_column(name, justify="right")
    for line in lines:
        shown = line.chances
        sd = f"{100 * line.design.training_sd:g} points" + ("" if asked.training_sd else " (not measured)")
        seeds = "none" if line.fewest_seeds is None else f"{line.fewest_seeds}"
        if hours and line.fewest_seeds:
            seeds += f" ({hours.of(replace(line.design, seeds=line.fewest_seeds)):,.0f} GPU h)"
        best = line.cheapest
        cost = f"{best.seeds} x {best.samples} samples ({hours.of(best):,.0f} GPU h)" if best and hours else "-"
        words = (percent(shown.reproduced), percent(shown.not_reproduced), percent(shown.wrong_at_the_edge))
        table.add_row(sd, *words, seeds, cost)
    return table


def can_decide(lines: list[Line], asked: Question) -> str:
    """In one line, what the plan as it is can and cannot decide."""
    design = lines[0].design
    if not design.degrees:
        return "as planned it cannot say reproduced or not: one training of each arm in one setting gives no interval"
    enough = [line for line in lines if line.chances.reproduced >= asked.assurance]
    if not enough:
        return f"as planned a true claim is called reproduced in less than {percent(asked.assurance)} in every row"
    most = 100 * max(line.design.training_sd for line in enough)
    return f"as planned a true claim is called reproduced where two trainings differ by at most {most:g} points"
