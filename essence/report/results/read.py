"""An experiment's results, read from its plan and its manifests, grouped and pooled over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from essence.errors import RecordError
from essence.evaluation.statistics import Estimate, pooled_accuracy
from essence.files import read_json
from essence.record.finished import accepted_sentences
from essence.record.run_directory import RunDirectory
from essence.record.trace_record import read_trace_records
from essence.report.results.records import (
    COST_UNITS,
    FULL,
    Arm,
    Baseline,
    CellResult,
    Evaluation,
    Group,
    GroupKey,
    Pooled,
    Results,
    Score,
)
from essence.report.results.stage_reader import StageEvidence, read_stage
from essence.settings import is_whole

AXES = (
    "name",
    "dataset",
    "teacher",
    "student",
    "lsp",
    "span",
    "sections",
    "protocol",
    "seed",
    "train_rows",
    "token_budget",
)
CONFIDENCE = 0.95
"""Where a manifest does not say."""


def read_results(run_dir: Path, experiment: str) -> Results:
    """Everything the run directory has of an experiment; RecordError when its plan is missing or damaged."""
    run = RunDirectory(run_dir)
    plan = read_json(run.plan(experiment))
    try:
        stages = {name: read_stage(run, name, entry) for name, entry in plan["stages"].items()}
        cells = [_cell(entry, stages) for entry in plan["cells"]]
        refuse_twins(run.plan(experiment), plan)
        baselines = tuple(_baseline(entry, stages) for entry in plan["baselines"])
        accepted = tuple(accepted_sentences(plan["stages"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{run.plan(experiment)}: not a plan of this kit, at {error}") from error
    traces, refused = read_trace_records(run.experiment(experiment))
    return Results(
        run_dir=run_dir,
        experiment=experiment,
        title=str(plan.get("title") or experiment),
        note=str(plan.get("note") or ""),
        groups=group_cells(cells),
        baselines=baselines,
        stages=tuple(stages.values()),
        accepted=(*accepted, *refused),
        traces=tuple(traces),
    )


def refuse_twins(file: Path, plan: dict[str, Any]) -> None:
    """RecordError where a plan has one cell twice: its trainings would count as two seeds."""
    trainings: dict[str, str] = {}
    for name, train in ((entry["name"], entry["stages"]["train"]) for entry in plan["cells"]):
        if name in trainings:
            raise RecordError(f"{file}: two records for one cell, {name}: {trainings[name]} and {train}")
        trainings[name] = train


def _cell(entry: dict[str, Any], stages: dict[str, StageEvidence]) -> CellResult:
    used = list(entry["stages"].values())
    used += [e[stage] for e in entry["evaluations"] for stage in ("generate", "grade")]
    train = stages[entry["stages"]["train"]]
    return CellResult(
        **{axis: entry[axis] for axis in AXES},
        train=train,
        scores=tuple(_score(evaluation, stages, train) for evaluation in entry["evaluations"]),
        stages=tuple(stages[name] for name in dict.fromkeys(used)),
    )


def _baseline(entry: dict[str, Any], stages: dict[str, StageEvidence]) -> Baseline:
    scores = tuple(_score(evaluation, stages) for evaluation in entry["evaluations"])
    return Baseline(entry["role"], entry["model"], entry["protocol"], scores)


def _score(entry: dict[str, Any], stages: dict[str, StageEvidence], *trained: StageEvidence) -> Score:
    """The score of one evaluation; without a number where a record that it rests on counts for nothing."""
    generate, grade = stages[entry["generate"]], stages[entry["grade"]]
    score = Score(entry["benchmark"], entry["checkpoint"], generate, grade)
    rests_on = (generate, grade, *trained)
    if grade.number("results", "accuracy") is None or any(stage.problem for stage in rests_on):
        return score
    try:
        return _graded_score(score, grade.manifest["results"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{grade.folder.manifest}: not the results of a grade stage, at {error}") from error


def _graded_score(score: Score, results: dict[str, Any]) -> Score:
    counts, reasons = results["per_problem"], results["finish_reasons"]
    low, high = results["interval"]
    completions = sum(reasons.values())
    return replace(
        score,
        accuracy=Estimate(
            results["accuracy"], results["standard_error"], low, high, len(counts), str(results["method"])
        ),
        shares={str(c["problem"]): c["correct"] / c["samples"] for c in counts if c["samples"]},
        samples=sum(c["samples"] for c in counts),
        capped_share=reasons.get("length", 0) / completions if completions else None,
        mean_tokens=results["mean_completion_tokens"],
        finish_reasons=dict(reasons),
    )


def group_cells(cells: Iterable[CellResult]) -> tuple[Group, ...]:
    """Cells that differ only in LSP and seed, in the order of the plan; arms from the smallest LSP to the largest."""
    grouped: dict[GroupKey, dict[float, list[CellResult]]] = {}
    for cell in cells:
        key = GroupKey(**{axis: getattr(cell, axis) for axis in GroupKey.__dataclass_fields__})
        grouped.setdefault(key, {}).setdefault(cell.lsp, []).append(cell)
    full = {key: arms[FULL] for key, arms in grouped.items() if FULL in arms}
    groups = []
    for key, arms in grouped.items():
        reference = _reference_key(key, list(full))
        compared = full[reference] if reference else []
        groups.append(Group(key, reference, tuple(_arm(lsp, arms[lsp], compared) for lsp in sorted(arms))))
    return tuple(groups)


def _reference_key(key: GroupKey, full: Sequence[GroupKey]) -> GroupKey | None:
    """The group whose LSP 1.0 arm this one is compared with.

    Its own; else the one that differs only in span, which at LSP 1.0 makes no difference; else the one that differs
    only in its number of rows or its token budget (matched arms). None when there is none, or no single one.
    """
    whole = [other for other in full if is_whole(FULL, other.span)]
    own = [other for other in whole if other == key]
    spans = [other for other in whole if replace(other, span=key.span) == key]
    rows = [
        other
        for other in whole
        if replace(other, span=key.span, train_rows=key.train_rows, token_budget=key.token_budget) == key
    ]
    found = own or spans or rows
    return found[0] if len(found) == 1 else None


def _arm(lsp: float, cells: list[CellResult], compared: list[CellResult]) -> Arm:
    evaluations = dict.fromkeys(score.evaluation for cell in cells for score in cell.scores)
    pooled = {evaluation: _pooled(cells, evaluation) for evaluation in evaluations}
    cost, full = _mean_cost(cells), _mean_cost(compared)
    return Arm(
        lsp=lsp,
        cells=tuple(cells),
        pooled={evaluation: found for evaluation, found in pooled.items() if found},
        cost=cost,
        ratio={word: value / full[word] for word, value in cost.items() if full.get(word)},
    )


def _pooled(cells: list[CellResult], evaluation: Evaluation) -> Pooled | None:
    scores = _graded(cells, evaluation)
    if not scores:
        return None
    capped = [s.capped_share for s in scores if s.capped_share is not None]
    lengths = [s.mean_tokens for s in scores if s.mean_tokens is not None]
    return Pooled(
        accuracy=_accuracy(scores),
        scores=tuple(scores),
        capped_share=sum(capped) / len(capped) if capped else None,
        mean_tokens=sum(lengths) / len(lengths) if lengths else None,
    )


def _graded(cells: Iterable[CellResult], evaluation: Evaluation) -> list[Score]:
    scores = (cell.score(evaluation) for cell in cells)
    return [score for score in scores if score and score.accuracy]


def _accuracy(scores: list[Score]) -> Estimate:
    """Pooled over seeds; a single seed keeps what its manifest says."""
    problems = _common_problems(scores)
    if len(scores) == 1 or not problems:
        assert scores[0].accuracy
        return scores[0].accuracy
    return pooled_accuracy(_matrix(scores, problems), _confidence(scores))


def _common_problems(scores: Iterable[Score]) -> list[str]:
    """Problems that every score has, in order."""
    sets = [score.shares.keys() for score in scores]
    return [problem for problem in sets[0] if all(problem in other for other in sets)] if sets else []


def _matrix(scores: Iterable[Score], problems: list[str]) -> list[list[float]]:
    """Shares of correct samples, [seeds, problems]."""
    return [[score.shares[problem] for problem in problems] for score in scores]


def _confidence(scores: Iterable[Score]) -> float:
    return next((s.confidence for s in scores if s.confidence), CONFIDENCE)


def _mean_cost(cells: Iterable[CellResult]) -> dict[str, float]:
    costs = [cell.cost for cell in cells]
    values = {word: [v for cost in costs if (v := cost.of(word)) is not None] for word in COST_UNITS}
    return {word: sum(known) / len(known) for word, known in values.items() if known}
