"""`invoke plan --decide retention-half`: what the planned cells can decide, the fewest seeds, the cheapest design."""

import json
import sys
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from essence.commands.options import select
from essence.commands.planned_design import judged_benchmarks, planned_design, without_teacher
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError
from essence.plan.decision_power import UNMEASURED, Chances, Design, Hours, chances, cheapest, fewest_seeds
from essence.plan.fit import activations_of_trainings
from essence.report.claims.decidable_claims import foreseen
from essence.report.claims.definition import Claim, load_claims
from essence.report.claims.evidence import LEVEL
from essence.report.claims.gather import gather
from essence.report.claims.interim_looks import Look, level_of, read_looks
from essence.report.claims.pilot import CONFIDENCE, Pilot, find_pilot
from essence.report.claims.simulated_runs import shares_of, simulated_chances
from essence.report.results.read import read_results
from essence.text import percent

OUTSIDE = 0.06
"""How far below what is accepted a truth is whose "not reproduced" is shown: 0.80 for 0.86."""
ACCURACY, ASSURANCE = 0.2, 0.8
"""Where nothing else is asked for or was measured."""
LOWEST, HIGHEST = 0.001, 0.79
"""Accuracies that can be planned with: below the easiest problem's chance."""
MADE_UP_RUNS, SEED = 100, 20_251_224
"""Of each truth, judged by the report's own functions."""
PILOT = (
    "Pilot: run two or three seeds of one setting first; this command then finds in the run directory how far two "
    "trainings differ, and plans the rest with it"
)


@dataclass(frozen=True)
class Question:
    """What is asked, as numbers; None = as measured, or as assumed where nothing was."""

    claim: Claim
    training_sd: float | None
    """In points."""
    accuracy: float | None
    assurance: float


@dataclass(frozen=True)
class Known:
    """What is known before the run: one standard deviation between trainings for each row, and how sure a word is."""

    deviations: dict[str, float]
    """By what it is; as shares of 1."""
    accuracy: float
    pilot: Pilot | None = None
    level: float = LEVEL
    """Of the intervals that the planned trainings will be judged by."""
    look: int = 1


@dataclass(frozen=True)
class Line:
    """The design under one standard deviation between trainings."""

    name: str
    design: Design
    chances: Chances
    """Computed."""
    simulated: Chances
    """From made-up runs."""
    fewest_seeds: int | None
    cheapest: Design | None
    cheapest_reproduced: float | None
    """Chance that the cheapest design calls a true claim reproduced, from made-up runs."""


def question(claim: str, training_sd: float | None, accuracy: float | None, assurance: float) -> Question:
    """ExperimentError for a claim that is no retention, and for what is no number in its range."""
    claims = {one.id: one for one in load_claims() if one.measure == "retention"}
    if claim not in claims:
        raise ExperimentError(f"--decide {claim!r}: no claim that can be planned for", f"choose {', '.join(claims)}")
    points = None if training_sd is None else _within("--training-sd", training_sd, 50.0, "2, in points")
    found = None if accuracy is None else _within("--accuracy", accuracy, 0.8, "0.2")
    return Question(claims[claim], points, found, _within("--assurance", assurance, 1.0, "0.8"))


def _within(name: str, value: float, high: float, example: str) -> float:
    if not 0.0 < value < high:
        raise ExperimentError(f"{name} {value:g} is not a number between 0 and {high:g}", f"as in {name} {example}")
    return value


def print_decision(words: Options, asked: Question, as_json: bool, console: Console) -> int:
    """Print a row for each standard deviation between trainings."""
    selection = select(words, baselines=False)
    known = what_is_known(selection, asked)
    planned, hours = planned_design(selection, asked.claim, known.accuracy)
    if as_json:
        lines = _lines(planned, asked, known, hours)
        rows = [asdict(line) for line in lines]
        record = {"claim": asked.claim.id, "measured_sd": asked.training_sd is not None or known.pilot is not None,
                  "pilot": asdict(known.pilot) if known.pilot else None, "confidence": known.level, "rows": rows,
                  "hours": asdict(hours) if hours else None}  # fmt: skip
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
        return 0
    with console.status("judging made-up runs"):
        lines = _lines(planned, asked, known, hours)
    console.print(_table(planned, lines, asked, known, hours))
    for sentence in _sentences(lines, asked, known):
        console.print(sentence, highlight=False, soft_wrap=True)
    return 0


def decision_note(selection: Run) -> list[str]:
    """What the plan can and cannot decide, in one line; below it what it would take for the primary claim."""
    if without_teacher(selection):
        return []
    claims, resources = load_claims(), selection.loaded.experiment.resources
    activations = activations_of_trainings(selection.plan, selection.run_directory)
    note = foreseen(selection.plan.cells, resources, claims, activations)
    if not note:
        return []
    claim = next(one for one in claims if one.primary)
    try:
        planned, hours = planned_design(selection, claim, ACCURACY)
    except ExperimentError:
        return [note]
    return [note, f"{claim.id}: {_power_note(planned, claim, hours)}: invoke plan --decide {claim.id}"]


def _power_note(planned: Design, claim: Claim, hours: Hours | None) -> str:
    """Where two trainings differ by 1 and 2 points: the chance of a true claim, and the seeds that would do."""
    parts = []
    for points in (1, 2):
        design = replace(planned, training_sd=points / 100.0)
        chance = chances(design, claim.band, claim.band[0] - OUTSIDE).reproduced
        seeds = fewest_seeds(design, claim.band, ASSURANCE)
        cost = f" ({hours.of(replace(design, seeds=seeds)):,.0f} GPU h)" if hours and seeds else ""
        parts.append(
            f"{percent(chance, 0)} that a true claim is called reproduced, {seeds or 'no number of'} seeds{cost} for "
            f"{percent(ASSURANCE, 0)}, where two trainings differ by {points} point{'s' * (points > 1)}"
        )
    return "; ".join(parts)


def what_is_known(selection: Run, asked: Question) -> Known:
    """What was typed, else what finished trainings of the run directory show, else what is assumed."""
    pilot = None if asked.training_sd is not None else _pilot(selection, asked.claim)
    accuracy = asked.accuracy or (min(max(pilot.accuracy, LOWEST), HIGHEST) if pilot else ACCURACY)
    if asked.training_sd is not None:
        return Known({f"{asked.training_sd:g} points": asked.training_sd / 100.0}, accuracy)
    if pilot is None:
        return Known({f"{sd:g} points (not measured)": sd / 100.0 for sd in UNMEASURED}, accuracy)
    found = {
        f"{100 * pilot.training_sd:.2g} points (found)": pilot.training_sd,
        f"{100 * pilot.upper_sd:.2g} points ({CONFIDENCE:.0%} limit)": pilot.upper_sd,
    }
    look = _next_look(selection, asked.claim, pilot)
    return Known(found, accuracy, pilot, level_of(look), look)


def _pilot(selection: Run, claim: Claim) -> Pilot | None:
    """Of the settings and benchmarks that are planned and judged, else of any that the claim is about."""
    root = selection.run_directory
    evidence = gather([read_results(root.root, name) for name in root.experiments()])
    cells = [plan.cell for plan in selection.plan.cells]
    planned = claim.anywhere.model_copy(
        update={
            "datasets": sorted({cell.dataset for cell in cells}),
            "pairs": sorted({f"{cell.teacher}_{cell.student}" for cell in cells}),
            "benchmarks": judged_benchmarks(selection.plan.cells, claim),
        }
    )
    some = [evidence.under(name) for name in dict.fromkeys(cell.protocol for cell in cells)]
    found = (find_pilot(one, about) for about in (planned, claim) for one in some)
    return next((pilot for pilot in found if pilot), None)


def _next_look(selection: Run, claim: Claim, pilot: Pilot) -> int:
    """Which look the next judgement is, where the planned trainings join those that were judged."""
    root = selection.run_directory
    looks = read_looks(read_results(root.root, name) for name in root.experiments())
    trainings = sorted({*pilot.trainings, *(plan.stages["train"] for plan in selection.plan.cells)})
    protocols = dict.fromkeys(plan.cell.protocol for plan in selection.plan.cells)
    return max(
        looks.number(Look(claim=claim.id, protocol=name, evidence="planned", trainings=trainings)) for name in protocols
    )


def _lines(planned: Design, asked: Question, known: Known, hours: Hours | None) -> list[Line]:
    return [_line(planned, name, sd, asked, known, hours) for name, sd in known.deviations.items()]


def _line(planned: Design, name: str, sd: float, asked: Question, known: Known, hours: Hours | None) -> Line:
    interaction = 0.0 if known.pilot else planned.interaction_sd
    design = replace(planned, training_sd=sd, interaction_sd=interaction)
    band, level = asked.claim.band, known.level
    best = cheapest(design, band, asked.assurance, hours, level) if hours else None
    return Line(
        name,
        design,
        chances(design, band, band[0] - OUTSIDE, level),
        simulated_chances(design, asked.claim, band[0] - OUTSIDE, MADE_UP_RUNS, SEED, level),
        fewest_seeds(design, band, asked.assurance, level),
        best,
        shares_of(best, asked.claim, MADE_UP_RUNS, SEED, level).of("reproduced") if best else None,
    )


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"


def _table(planned: Design, lines: list[Line], asked: Question, known: Known, hours: Hours | None) -> Table:
    title = (
        f"{asked.claim.title}\nplanned: {_count(planned.settings, 'setting')}, {_count(planned.seeds, 'seed')} of each "
        f"arm, {_count(planned.samples, 'sample')} of a problem, {_count(planned.benchmarks, 'benchmark')}; accuracy "
        f"{percent(planned.accuracy)} at 1.0; {percent(known.level)} intervals, assurance {percent(asked.assurance)}"
    )
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    edges = asked.claim.band[0], asked.claim.band[0] - OUTSIDE
    for name in ("sd", "reproduced if true", f"not if {edges[1]:.2f}", f"wrong at {edges[0]:.2f}", "seeds", "cheapest"):
        table.add_column(name, justify="right")
    for line in lines:
        seeds = "none" if line.fewest_seeds is None else f"{line.fewest_seeds}"
        if hours and line.fewest_seeds:
            seeds += f" ({hours.of(replace(line.design, seeds=line.fewest_seeds)):,.0f} GPU h)"
        best = line.cheapest
        cost = f"{best.seeds} x {best.samples} samples ({hours.of(best):,.0f} GPU h)" if best and hours else "-"
        shown = zip(asdict(line.chances).values(), asdict(line.simulated).values(), strict=True)
        table.add_row(line.name, *(f"{percent(a)} / {percent(b)}" for a, b in shown), seeds, cost)
    return table


def _sentences(lines: list[Line], asked: Question, known: Known) -> list[str]:
    """What the rows mean, and what to do next."""
    found = [f"Chances: computed / in {MADE_UP_RUNS} made-up runs that the report's own functions judged"]
    if known.look > 1:
        found.append(f"These trainings were judged before, so the next look has a {percent(known.level)} interval")
    found.append(can_decide(lines, asked))
    if known.pilot:
        return [*found, known.pilot.sentence()]
    return [*found, PILOT] if asked.training_sd is None else found


def can_decide(lines: list[Line], asked: Question) -> str:
    """In one line, what the plan as it is can and cannot decide."""
    if not lines[0].design.degrees:
        return "as planned it cannot say reproduced or not: one training of each arm in one setting gives no interval"
    enough = [line for line in lines if line.chances.reproduced >= asked.assurance]
    if not enough:
        return f"as planned a true claim is called reproduced in less than {percent(asked.assurance)} in every row"
    most = 100 * max(line.design.training_sd for line in enough)
    return f"as planned a true claim is called reproduced where two trainings differ by at most {most:.2g} points"
