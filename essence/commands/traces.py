"""`invoke traces`: count in the rows of tokenized data sets what the paper asked a judge; proxies, labelled so."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from essence.commands.matrix_state import not_run_here
from essence.data.accept import AcceptedRows
from essence.data.reasons import Exchange
from essence.data.trace_counts import TENTHS, Worked, by_tenth, cue_places, first_written, worked
from essence.errors import ExperimentError, RecordError
from essence.evaluation.graders import Verdict
from essence.evaluation.graders_apart import grader_version, require_installed
from essence.evaluation.grading_pool import Item, answers
from essence.files import sha256_file
from essence.plan.experiment import EXPERIMENTS
from essence.record.manifest import Manifest
from essence.record.plan_record import plan_of
from essence.record.record_files import as_record
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import TokenizeManifest, read_manifest
from essence.record.trace_record import CountedMean, TraceRecord, write_trace_record
from essence.settings import TokenizeSettings
from essence.settings.toml import read_toml
from essence.text import percent

GRADER = "math-verify"


@dataclass
class Tally:
    """What was counted, row by row."""

    rows: int = 0
    without_trace: int = 0
    without_answer: int = 0
    in_question: int = 0
    nowhere: int = 0
    places: list[float] = field(default_factory=list)
    cues_before: list[float] = field(default_factory=list)
    tenths: list[int] = field(default_factory=lambda: [0] * TENTHS)
    items: list[Item] = field(default_factory=list)
    """Traces to be graded against their final answer."""

    def add(self, row: Worked | None) -> None:
        self.rows += 1
        if row is None:
            self.without_trace += 1
            return
        cues = cue_places(row.trace)
        self.tenths = [a + b for a, b in zip(self.tenths, by_tenth(row.trace, cues), strict=True)]
        if row.answer is None:
            self.without_answer += 1
            return
        self.items.append(Item(f"\\boxed{{{row.answer}}}", row.trace))
        place = first_written(row.trace, row.answer)
        if first_written(row.question, row.answer) >= 0:
            self.in_question += 1
        elif place < 0:
            self.nowhere += 1
        else:
            self.places.append(place / len(row.trace))
            self.cues_before.append(float(sum(cue < place for cue in cues)))


def count_traces(run: RunDirectory, experiment: str, rows: int, as_json: bool, console: Console) -> int:
    """Write a record for each data set of the experiment that is tokenized; ExperimentError where none is."""
    if rows < 1:
        raise ExperimentError(f"--rows {rows} is no number of rows", "as in --rows 1000")
    if not run.plan(experiment).is_file():
        raise not_run_here(run, experiment)
    require_installed(GRADER)
    stages = _tokenized(run, experiment)
    if not stages:
        raise ExperimentError(
            f"no data set of {experiment} is tokenized in {run.root}, so there are no rows to count in",
            f"invoke run --experiment {experiment} --only tokenize",
        )
    records = []
    for dataset, stage in stages.items():
        with console.status(f"counting in rows of {dataset}"):
            records.append(_record(run, dataset, stage, rows))
        file = write_trace_record(run.experiment(experiment), records[-1])
        if not as_json:
            console.print("\n".join(_lines(records[-1], file)), highlight=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps([record.sealed() for record in records], indent=2) + "\n")
    return 0


def _tokenized(run: RunDirectory, experiment: str) -> dict[str, str]:
    """Data set -> its first tokenize stage that is done."""
    found: dict[str, str] = {}
    for cell in plan_of(run, experiment).cells:
        stage = cell.stages.get("tokenize")
        if stage and run.stage(stage).done:
            found.setdefault(cell.dataset, stage)
    return found


def _record(run: RunDirectory, dataset: str, stage: str, rows: int) -> TraceRecord:
    folder = run.stage(stage)
    manifest = read_manifest(folder.manifest)
    if not isinstance(manifest, TokenizeManifest):
        raise RecordError(f"{folder.manifest}: the record of another stage, wanted: tokenize")
    kept = manifest.results.rows_kept
    tally = Tally()
    for exchange in _spaced(_rows(run, folder.path / "spec.json", manifest), kept, min(rows, kept)):
        tally.add(worked(exchange))
    same = list(_same_answers(tally.items))
    graded = max(1, tally.rows - tally.without_trace)
    return TraceRecord(
        dataset=dataset,
        tokenize_stage=stage,
        manifest_sha256=sha256_file(folder.manifest),
        rows_kept=kept,
        rows_counted=tally.rows,
        rows_without_trace=tally.without_trace,
        rows_without_answer=tally.without_answer,
        rows_with_answer_in_question=tally.in_question,
        rows_with_answer_nowhere=tally.nowhere,
        first_answer_place=_mean(tally.places),
        cues_before_answer=_mean(tally.cues_before),
        same_answer=_mean(same),
        cues_by_tenth=[count / graded for count in tally.tenths],
        grader=GRADER,
        grader_version=grader_version(GRADER),
    )


def _rows(run: RunDirectory, spec: Path, manifest: Manifest) -> Iterator[tuple[int, Exchange]]:
    """The rows as the stage took them, in its order; RecordError where a download of its is gone."""
    settings = as_record(spec.with_name("manifest.json"), manifest.resolved_json, TokenizeSettings, "tokenize settings")
    inputs = {name: run.stage(f"{one.stage}-{one.key[:16]}") for name, one in manifest.inputs.stages.items()}
    gone = [str(folder.path) for folder in inputs.values() if not folder.output.is_dir()]
    if gone:
        raise RecordError(f"{gone[0]}: removed: the rows behind {spec.parent.name} cannot be read again")
    fields = settings.decontamination.problem_fields
    problems = {name: inputs[f"problems-{name}"].output / "problems" for name in fields}
    return iter(AcceptedRows(inputs["rows"].output / "rows", settings, problems))


def _spaced(rows: Iterator[tuple[int, Exchange]], kept: int, wanted: int) -> Iterator[Exchange]:
    """Row `i * kept // wanted` for each i."""
    places = (i * kept // wanted for i in range(wanted))
    place = next(places, None)
    for number, (_, exchange) in enumerate(rows):
        if number == place:
            yield exchange
            place = next(places, None)


def _same_answers(items: Sequence[Item]) -> Iterator[float]:
    """1 or 0 for each final answer that the grader can read."""
    timeout_s = float(read_toml(EXPERIMENTS / "defaults.toml")["grading"]["timeout_s"])
    with closing(answers(items, (GRADER,), timeout_s, os.cpu_count() or 1)) as answered:
        for (answer,) in answered:
            if isinstance(answer, Verdict):
                yield float(answer.correct)


def _mean(values: Sequence[float]) -> CountedMean:
    count = len(values)
    if not count:
        return CountedMean(value=None, standard_error=None, rows=0)
    mean = sum(values) / count
    if count < 2:
        return CountedMean(value=mean, standard_error=None, rows=1)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return CountedMean(value=mean, standard_error=math.sqrt(variance / count), rows=count)


def _lines(record: TraceRecord, file: Path) -> Iterator[str]:
    place, before, same = record.first_answer_place, record.cues_before_answer, record.same_answer
    yield f"{record.dataset}: {record.rows_counted:,} of {record.rows_kept:,} rows counted; proxies, no judge was asked"
    yield f"  final answer first appears at {percent(place.value)} of the trace (mean of {place.rows:,} rows)"
    yield f"  self-reflection cues before it: {_number(before.value)}; by tenth of the trace: " + ", ".join(
        f"{count:.2f}" for count in record.cues_by_tenth
    )
    yield f"  same answer at the end of the trace as in the answer section: {percent(same.value)} of {same.rows:,} rows"
    left = {
        "without a trace": record.rows_without_trace,
        "without a boxed answer": record.rows_without_answer,
        "whose question holds the answer": record.rows_with_answer_in_question,
        "whose trace never states it": record.rows_with_answer_nowhere,
    }
    yield "  rows " + ", ".join(f"{words}: {count:,}" for words, count in left.items())
    yield f"  {file}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}"
