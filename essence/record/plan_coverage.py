"""The plan against the records: every cell once, with the settings in its name, and the missing stages."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from essence.errors import RecordError
from essence.record.manifest import Manifest
from essence.record.plan_record import CellEntry, EvaluationEntry, PlanRecord, plan_of
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import GradeManifest, TrainManifest
from essence.record.training_records import TrainResolved

Plans = dict[str, PlanRecord]
"""plan.json by experiment."""


def read_plans(run_directory: RunDirectory, findings: list[str]) -> Plans:
    """The plans that can be read; of the others, a sentence is added to `findings`."""
    plans: Plans = {}
    for name in run_directory.experiments():
        try:
            plans[name] = plan_of(run_directory, name)
        except RecordError as error:
            findings.append(str(error))
    return plans


def plan_findings(file: Path, plan: PlanRecord, records: Mapping[str, Manifest]) -> Iterator[str]:
    """Whether each cell stands once and its records were made for it.

    records: manifests by stage id, as far as they are here.
    """
    yield from (f"{file}: {sentence}" for sentence in plan.twins())
    for cell in plan.cells:
        trained = records.get(cell.train)
        if isinstance(trained, TrainManifest):
            yield from _axes(file, cell, trained.settings.resolved)
    for entry in plan.entries:
        for evaluation in entry.evaluations:
            yield from _evaluation(file, evaluation, records)
    for identifier, stage in plan.stages.items():
        if identifier in records and records[identifier].identity.key != stage.key:
            yield f"{file}: {identifier} is planned with key {stage.key}, its record has another"


def _axes(file: Path, cell: CellEntry, resolved: TrainResolved) -> Iterator[str]:
    view = resolved.view
    axes: dict[str, tuple[object, object]] = {
        "lsp": (cell.lsp, view.lsp),
        "span": (cell.span, view.span),
        "sections": (cell.sections, view.sections),
        "seed": (cell.seed, resolved.seed),
    }
    for axis, (planned, trained) in axes.items():
        if planned != trained:
            yield f"{file}: {cell.name} says {axis} = {planned}, but {cell.train} trained with {trained}"


def _evaluation(file: Path, evaluation: EvaluationEntry, records: Mapping[str, Manifest]) -> Iterator[str]:
    """The grade stage is of the planned benchmark and of the completions that the plan names."""
    grade = records.get(evaluation.grade)
    if not isinstance(grade, GradeManifest):
        return
    if grade.results.benchmark != evaluation.benchmark:
        yield f"{file}: {evaluation.grade} graded {grade.results.benchmark}, planned: {evaluation.benchmark}"
    read = grade.input_keys.get("samples", "")
    planned = evaluation.generate.rsplit("-", 1)[-1]
    if not read.startswith(planned):
        yield f"{file}: {evaluation.grade} graded samples of {read[:16]}, planned: {evaluation.generate}"


def unfinished_lines(run_directory: RunDirectory, plans: Plans, names: list[str]) -> list[str]:
    """A sentence for each cell or baseline with a stage that has no record, and for each other unfinished stage."""
    left = {name for name in names if not run_directory.stage(name).done}
    lines, told = [], set[str]()
    for experiment, plan in plans.items():
        for entry in plan.entries:
            stages = dict.fromkeys(entry.stages.values())
            stages |= dict.fromkeys(name for one in entry.evaluations for name in one.stages.values())
            missing = [name for name in stages if name in left]
            told.update(missing)
            if missing:
                what = entry.title if isinstance(entry, CellEntry) else f"{entry.title} as it comes"
                lines.append(f"{experiment}: {what}: missing, not finished: {', '.join(missing)}")
    return lines + sorted(f"{name}: not finished" for name in left - told)
