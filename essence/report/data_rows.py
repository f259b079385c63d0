"""The rows of results as data: evaluations from manifests, samples from the lines of stages."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from essence.errors import RecordError
from essence.evaluation.sample_lines import SampleLine, VerdictLine, read_lines
from essence.record.evaluation_records import GradeResults
from essence.record.recount import SAMPLES, VERDICTS
from essence.report.data_columns import EvaluationRow, Place, SampleRow
from essence.report.results.records import Baseline, CellResult, Results, Score

Evaluated = tuple[CellResult | Baseline, Score]


def evaluations(results: Results) -> list[Evaluated]:
    """Every planned evaluation with what it is of: cells in the order of the report, then baselines."""
    cells: list[Evaluated] = [(cell, score) for cell in results.cells for score in cell.scores]
    return cells + [(baseline, score) for baseline in results.baselines for score in baseline.scores]


def evaluation_rows(results: Results) -> Iterator[EvaluationRow]:
    """A row for each planned evaluation, whatever its state."""
    for of, score in evaluations(results):
        row = EvaluationRow(
            place=_place(results, of, score),
            state=score.grade.state,
            generate_stage=score.generate.id,
            grade_stage=score.grade.id,
        )
        row = _with_surroundings(_with_sampling(row, score), of, score)
        row = _with_training(row, of) if isinstance(of, CellResult) else row
        # A number counts only where all that it rests on does: `accuracy` says so.
        yield _with_score(row, score, score.grade.graded.results) if score.accuracy and score.grade.graded else row


def sample_rows(results: Results, of: CellResult | Baseline, score: Score) -> Iterator[SampleRow]:
    """A row for each completion of a graded evaluation.

    Raises:
        InputError: a file of lines is missing or damaged.
        RecordError: the lines are not those that the record of the grading counts.
    """
    assert score.grade.graded
    place, says_boxed = _place(results, of, score), score.grade.graded.results.doubts is not None
    drawn = {
        (line.problem, line.sample): line for line in read_lines(score.generate.folder.output / SAMPLES, SampleLine)
    }
    verdicts = read_lines(score.grade.folder.output / VERDICTS, VerdictLine)
    _check(score, drawn.keys(), verdicts)
    for verdict in verdicts:
        yield _sample_row(place, score, drawn[verdict.problem, verdict.sample], verdict, says_boxed)


def has_lines(score: Score) -> bool:
    """False where nothing is graded, or its samples were left out of this copy of the run."""
    places = ((score.generate, SAMPLES), (score.grade, VERDICTS))
    return score.accuracy is not None and all((stage.folder.output / name).is_file() for stage, name in places)


def _place(results: Results, of: CellResult | Baseline, score: Score) -> Place:
    cell = of if isinstance(of, CellResult) else None
    return Place(
        experiment=results.experiment,
        role="cell" if isinstance(of, CellResult) else of.role,
        name=of.name if isinstance(of, CellResult) else of.model,
        model=of.student if isinstance(of, CellResult) else of.model,
        dataset=cell.dataset if cell else None,
        teacher=cell.teacher if cell else None,
        lsp=cell.lsp if cell else None,
        span=cell.span if cell else None,
        sections=cell.sections if cell else None,
        protocol=of.protocol,
        seed=cell.seed if cell else None,
        train_rows=cell.train_rows if cell else None,
        token_budget=cell.token_budget if cell else None,
        benchmark=score.benchmark,
        checkpoint=score.checkpoint,
    )


def _with_score(row: EvaluationRow, score: Score, results: GradeResults) -> EvaluationRow:
    found, kept = score.accuracy, score.retention
    reasons, statuses = results.finish_reasons, results.statuses
    assert found
    return replace(
        row,
        problems=len(results.per_problem),
        samples=score.samples,
        correct=sum(one.correct for one in results.per_problem),
        accuracy=found.value,
        accuracy_standard_error=found.standard_error,
        accuracy_low=found.low,
        accuracy_high=found.high,
        confidence=results.confidence,
        accuracy_method=found.method,
        retention=kept.value if kept else None,
        retention_low=kept.low if kept else None,
        retention_high=kept.high if kept else None,
        # Of the reasons and statuses that a record counts, one that it does not name is 0; of none, not known.
        stopped=reasons.get("stop", 0) if reasons else None,
        at_cap=reasons.get("length", 0) if reasons else None,
        looped=reasons.get("loop", 0) if reasons else None,
        no_answer=statuses.get("no answer", 0) if statuses else None,
        grader_timeout=statuses.get("timeout", 0) if statuses else None,
        completion_tokens_mean=results.mean_completion_tokens,
        completion_tokens_median=results.median_completion_tokens,
        completion_tokens_most=results.longest_completion_tokens,
    )


def _with_training(row: EvaluationRow, cell: CellResult) -> EvaluationRow:
    row = replace(row, train_stage=cell.train.id)
    manifest = cell.train.training
    if manifest is None:
        return row
    cost, rows, load = manifest.cost, manifest.inputs.data.train, cell.train.load
    return replace(
        row,
        kept_rows=rows.rows if rows else None,
        kept_tokens=rows.tokens if rows else None,
        train_steps=manifest.results.steps,
        best_step=manifest.results.best_step,
        best_validation_ce=manifest.results.best_validation_ce,
        train_wall_s=cost.wall_s,
        train_wall_over_cpu=load.wall_over_cpu,
        train_gpu_busy=load.gpu_busy,
        train_gpu_hours=cost.gpu_hours,
        train_peak_gpu_memory_gib=cost.peak_gpu_memory_gib,
        train_peak_memory_gib=cost.peak_memory_gib,
        train_energy_j=cost.energy_j,
        train_flops=cost.flops,
    )


def _with_sampling(row: EvaluationRow, score: Score) -> EvaluationRow:
    """Costs of the two stages of an evaluation."""
    generated, graded, load = score.generate.generated, score.grade.graded, score.generate.load
    return replace(
        row,
        generate_wall_s=generated.cost.wall_s if generated else None,
        generate_wall_over_cpu=load.wall_over_cpu,
        generate_gpu_busy=load.gpu_busy,
        generate_gpu_hours=generated.cost.gpu_hours if generated else None,
        grade_wall_s=graded.cost.wall_s if graded else None,
        code_commit=graded.code.commit if graded else None,
    )


def _with_surroundings(row: EvaluationRow, of: CellResult | Baseline, score: Score) -> EvaluationRow:
    manifest = (of.train if isinstance(of, CellResult) else score.generate).manifest
    if manifest is None:
        return row
    gpus = Counter(gpu.name or "unknown" for gpu in manifest.hardware.gpus)
    names = ", ".join(f"{number} × {name}" for name, number in gpus.items())
    return replace(row, host=manifest.hardware.host, gpus=names or "none")


def _check(score: Score, drawn: object, verdicts: Sequence[VerdictLine]) -> None:
    """RecordError unless the lines give the counts from which the accuracy in the other table was computed."""
    assert score.grade.graded
    recorded = {one.problem: (one.correct, one.samples) for one in score.grade.graded.results.per_problem}
    right = Counter(line.problem for line in verdicts if line.correct)
    counted = {name: (right[name], number) for name, number in Counter(line.problem for line in verdicts).items()}
    keys = {(line.problem, line.sample) for line in verdicts}
    if counted != recorded or len(keys) != len(verdicts) or keys != drawn:
        raise RecordError(
            f"{score.grade.folder.output / VERDICTS}: not the verdicts that its record and {SAMPLES} of "
            f"{score.generate.id} count",
            f"invoke verify {score.grade.folder.path} names what differs",
        )


def _sample_row(place: Place, score: Score, sample: SampleLine, verdict: VerdictLine, says_boxed: bool) -> SampleRow:
    return SampleRow(
        place=place,
        problem=verdict.problem,
        sample=verdict.sample,
        sample_seed=sample.seed,
        correct=verdict.correct,
        status=verdict.status,
        gold=verdict.gold,
        extracted=verdict.extracted,
        answer=verdict.answer,
        boxed=verdict.boxed if says_boxed else None,
        completion_tokens=sample.tokens,
        finish_reason=sample.finish_reason,
        loop_at=sample.loop_at,
        seconds=sample.seconds,
        generate_stage=score.generate.id,
        grade_stage=score.grade.id,
    )
