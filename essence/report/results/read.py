"""An experiment's results, read from its plan and its manifests, grouped and pooled over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from essence.errors import RecordError
from essence.evaluation.statistics import Estimate, pooled_accuracy, pooled_amount
from essence.record.evaluation_records import GradeResults
from essence.record.plan_record import BaselineEntry, CellEntry, EvaluationEntry, accepted_sentences, plan_of
from essence.record.run_directory import RunDirectory
from essence.record.trace_record import TRACES, read_trace_records
from essence.report.results.cost_forms import TrainingForm, unlike
from essence.report.results.records import (
    COST_UNITS,
    ENDINGS,
    FULL,
    Arm,
    Baseline,
    CellResult,
    Ending,
    Evaluation,
    Group,
    GroupKey,
    Pooled,
    Results,
    Score,
)
from essence.report.results.stage_reader import StageEvidence, read_stage
from essence.settings import is_whole

CONFIDENCE = 0.95
"""Where a manifest does not say."""


def read_results(run_dir: Path, experiment: str) -> Results:
    """Everything the run directory has of an experiment; RecordError when its plan is missing or damaged."""
    run = RunDirectory(run_dir)
    plan = plan_of(run, experiment)
    for twin in plan.twins():
        raise RecordError(f"{run.plan(experiment)}: {twin}")
    stages = {name: read_stage(run, name, entry) for name, entry in plan.stages.items()}
    counted, refused = read_trace_records(run.experiment(experiment))
    traces = [one for one in counted if one.tokenize_stage in stages]
    refused += [
        f"Not counted: {one.dataset}.json in {TRACES}/ (of {one.tokenize_stage}, which the plan no longer names: "
        "`invoke traces` counts again)."
        for one in counted
        if one.tokenize_stage not in stages
    ]
    return Results(
        run_dir=run_dir,
        experiment=experiment,
        title=plan.title or experiment,
        note=plan.note,
        groups=group_cells(_cell(entry, stages) for entry in plan.cells),
        baselines=tuple(_baseline(entry, stages) for entry in plan.baselines),
        stages=tuple(stages.values()),
        accepted=(*accepted_sentences(plan.stages.values()), *refused),
        traces=tuple(traces),
    )


def _cell(entry: CellEntry, stages: dict[str, StageEvidence]) -> CellResult:
    used = [*entry.stages.values(), *(name for one in entry.evaluations for name in one.stages.values())]
    train = stages[entry.train]
    scores = tuple(_score(evaluation, stages, train) for evaluation in entry.evaluations)
    parts = {"train": train, "scores": scores, "stages": tuple(stages[name] for name in dict.fromkeys(used))}
    return CellResult.model_validate({**entry.axes(), "name": entry.name, **parts})


def _baseline(entry: BaselineEntry, stages: dict[str, StageEvidence]) -> Baseline:
    scores = tuple(_score(evaluation, stages) for evaluation in entry.evaluations)
    return Baseline(entry.role, entry.model, entry.protocol, scores)


def _score(entry: EvaluationEntry, stages: dict[str, StageEvidence], *trained: StageEvidence) -> Score:
    """The score of one evaluation; without a number where a record that it rests on counts for nothing."""
    generate, grade = stages[entry.generate], stages[entry.grade]
    score = Score(entry.benchmark, entry.checkpoint, generate, grade)
    if grade.graded is None or any(stage.problem for stage in (generate, grade, *trained)):
        return score
    return _graded_score(score, grade.graded.results)


def _graded_score(score: Score, results: GradeResults) -> Score:
    counts, reasons = results.per_problem, results.finish_reasons
    low, high = results.interval
    completions = sum(reasons.values())
    return replace(
        score,
        accuracy=Estimate(results.accuracy, results.standard_error, low, high, len(counts), results.method),
        shares={one.problem: one.correct / one.samples for one in counts if one.samples},
        samples=sum(one.samples for one in counts),
        capped_share=reasons.get("length", 0) / completions if completions else None,
        mean_tokens=results.mean_completion_tokens,
        finish_reasons=reasons,
        endings=_endings(results),
        ending_means=_ending_means(results),
    )


def _endings(results: GradeResults) -> dict[Ending, Estimate]:
    """As recorded; none in records of earlier versions."""
    recorded = zip(ENDINGS, (results.completion_tokens, results.stop_rate, results.cap_rate), strict=True)
    return {
        name: Estimate(one.value, one.standard_error, one.low, one.high, one.n or 0, one.method or "")
        for name, one in recorded
        if one
    }


def _ending_means(results: GradeResults) -> dict[Ending, dict[str, float]]:
    """Of each problem, where every problem has them."""
    sums: dict[Ending, dict[str, int | None]] = {
        "length": {one.problem: one.tokens for one in results.per_problem},
        "stopped": {one.problem: one.stopped for one in results.per_problem},
        "capped": {one.problem: one.at_cap for one in results.per_problem},
    }
    samples = {one.problem: one.samples for one in results.per_problem if one.samples}
    return {
        name: {problem: (of[problem] or 0) / count for problem, count in samples.items()}
        for name, of in sums.items()
        if samples and None not in of.values()
    }


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
    both = [word for word in cost if full.get(word)]
    apart = {word: why for word in both if (why := unlike(word, _forms(cells, word), _forms(compared, word)))}
    return Arm(
        lsp=lsp,
        cells=tuple(cells),
        pooled={evaluation: found for evaluation, found in pooled.items() if found},
        cost=cost,
        ratio={word: cost[word] / full[word] for word in both if word not in apart},
        unlike=apart,
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
        endings={name: found for name in ENDINGS if (found := _ending(scores, name))},
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


def _ending(scores: list[Score], name: Ending) -> Estimate | None:
    """Pooled over seeds as the accuracy is; None where a score has none."""
    means = [score.ending_means.get(name, {}) for score in scores]
    problems = [problem for problem in means[0] if all(problem in other for other in means)]
    if len(scores) == 1 or not problems:
        return scores[0].endings.get(name) if len(scores) == 1 else None
    pooled = pooled_amount if name == "length" else pooled_accuracy
    return pooled([[one[problem] for problem in problems] for one in means], _confidence(scores))


def _common_problems(scores: Iterable[Score]) -> list[str]:
    """Problems that every score has, in order."""
    sets = [score.shares.keys() for score in scores]
    return [problem for problem in sets[0] if all(problem in other for other in sets)] if sets else []


def _matrix(scores: Iterable[Score], problems: list[str]) -> list[list[float]]:
    """Shares of correct samples, [seeds, problems]."""
    return [[score.shares[problem] for problem in problems] for score in scores]


def _confidence(scores: Iterable[Score]) -> float:
    return next((s.confidence for s in scores if s.confidence), CONFIDENCE)


def _forms(cells: Iterable[CellResult], word: str) -> list[TrainingForm]:
    """Of the trainings whose cost is known."""
    return [cell.form for cell in cells if cell.cost.of(word) is not None]


def _mean_cost(cells: Iterable[CellResult]) -> dict[str, float]:
    costs = [cell.cost for cell in cells]
    values = {word: [v for cost in costs if (v := cost.of(word)) is not None] for word in COST_UNITS}
    return {word: sum(known) / len(known) for word, known in values.items() if known}
