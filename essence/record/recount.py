"""Results computed again from the files that a stage wrote: samples, verdicts, training metrics."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from essence.distill.checkpoint_choice import choose
from essence.errors import RecordError
from essence.evaluation.doubts import sample_doubts, verdict_doubts
from essence.evaluation.sample_lines import SampleLine, VerdictLine, read_lines
from essence.evaluation.scores import answer_numbers, completion_facts, ending_estimates, problem_marks
from essence.evaluation.statistics import accuracy, majority_at_k, pass_at_k
from essence.files import sha256_file
from essence.record.evaluation_records import EstimateRecord, GenerateResults, GradeResults
from essence.record.live_records import Live
from essence.record.manifest import Manifest
from essence.record.record_files import Number
from essence.record.run_directory import StageFolder, stage_id
from essence.record.stage_records import GenerateManifest, GradeManifest, TrainManifest, read_manifest
from essence.record.training_records import RolloutFacts, TrainResults

CLOSE = 1e-9
SAMPLES, VERDICTS, METRICS = "samples.jsonl", "verdicts.jsonl", "metrics.jsonl"


class StepLine(Live):
    """A line of metrics.jsonl: one optimiser step."""

    kind: Literal["step"]
    step: int
    loss: Number | None = None
    seconds: Number | None = None


class ValidationLine(Live):
    """A line of metrics.jsonl: one look at the validation rows."""

    kind: Literal["validation"]
    step: int
    ce: Number | None = None
    parts: list[Number] | None = None


class RolloutsLine(Live):
    """A line of metrics.jsonl: what the student said for the step with that number."""

    kind: Literal["rollouts"]
    step: int
    prompt_tokens: list[int]
    tokens: list[int]
    ended: list[bool]


MetricLine = StepLine | ValidationLine | RolloutsLine
METRIC_LINE: TypeAdapter[MetricLine] = TypeAdapter(MetricLine)


def result_findings(folder: StageFolder, manifest: Manifest) -> Iterator[str]:
    """True when the results follow from the lines that were written; nothing where these are not here.

    RecordError or InputError for a line that is damaged.
    """
    found: list[str] = []
    if isinstance(manifest, TrainManifest) and (folder.output / METRICS).is_file():
        metrics = read_metrics(folder.output / METRICS)
        found += [*_training(manifest.results, metrics), *_rollouts(manifest.settings.executed.rollouts, metrics)]
    elif isinstance(manifest, GenerateManifest) and (folder.output / SAMPLES).is_file():
        lines = read_lines(folder.output / SAMPLES, SampleLine)
        yield from _twice(folder.output / SAMPLES, lines)
        found += _completions(manifest.results, lines)
    elif isinstance(manifest, GradeManifest) and (folder.output / VERDICTS).is_file():
        verdicts = read_lines(folder.output / VERDICTS, VerdictLine)
        yield from _twice(folder.output / VERDICTS, verdicts)
        samples = _samples_read(folder, manifest)
        found += [*_verdicts(manifest.results, verdicts), *_votes(manifest.results, verdicts)]
        found += [*_endings(manifest.results, samples), *_doubts(manifest.results, verdicts, samples)]
    yield from (f"{folder.manifest}: {finding}" for finding in found)


def read_metrics(file: Path) -> list[MetricLine]:
    """The lines of metrics.jsonl; RecordError for one that is damaged."""
    lines: list[MetricLine] = []
    for number, line in enumerate(metric_lines(file), 1):
        if line is None:
            raise RecordError(f"{file}: line {number} is damaged, wanted: a step or a validation")
        lines.append(line)
    return lines


def metric_lines(file: Path) -> Iterator[MetricLine | None]:
    """The lines of metrics.jsonl, None for one that is damaged; OSError where there is no file."""
    for line in file.read_bytes().splitlines():
        try:
            yield METRIC_LINE.validate_python(json.loads(line), strict=True)
        except (ValueError, RecursionError):  # ValidationError is a ValueError
            yield None


def _samples_read(folder: StageFolder, manifest: GradeManifest) -> list[SampleLine]:
    """The completions that were graded; none where they are not here or not as recorded."""
    entry = manifest.inputs.stages.get("samples")
    if entry is None:
        return []
    read = StageFolder(folder.path.parent / stage_id(entry.stage, entry.key))
    file = read.output / SAMPLES
    try:
        recorded = {output.path: output.sha256 for output in read_manifest(read.manifest).outputs}
        intact = recorded.get(file.name) == sha256_file(file)
    except (RecordError, OSError):
        return []
    return read_lines(file, SampleLine) if intact else []


def _twice(file: Path, lines: Sequence[SampleLine | VerdictLine]) -> Iterator[str]:
    samples = Counter((line.problem, line.sample) for line in lines)
    name, count = max(samples.items(), key=lambda item: item[1], default=(("", 0), 0))
    if count > 1:
        yield f"{file}: sample {name[1]} of problem {name[0]} is there {count} times"


def _training(results: TrainResults, lines: Sequence[MetricLine]) -> Iterator[str]:
    """Of a step written twice, after a resume, the later counts."""
    steps = {line.step: line.loss for line in lines if isinstance(line, StepLine)}
    validations = {line.step: line for line in lines if isinstance(line, ValidationLine)}
    checks = {step: line.ce for step, line in validations.items()}
    yield from _differs("steps", results.steps, max(steps, default=0), METRICS)
    yield from _differs("last_loss", results.last_loss, steps.get(results.steps), METRICS)
    recorded = {check.step: check.ce for check in results.validations}
    for step in sorted(recorded.keys() | checks.keys()):
        yield from _differs(f"validation at step {step}", recorded.get(step), checks.get(step), METRICS)
    best = None if results.best_step is None else recorded.get(results.best_step)
    yield from _differs("best_validation_ce", results.best_validation_ce, best, "the validations")
    yield from _chosen(results, [validations[step] for step in sorted(validations)])


def _rollouts(recorded: RolloutFacts | None, lines: Sequence[MetricLine]) -> Iterator[str]:
    """What a student said of its own; of a step written twice, after a resume, the later counts."""
    steps = {line.step: line for line in lines if isinstance(line, RolloutsLine)}
    if recorded is None:
        if steps:
            yield f"rollouts: none recorded, {len(steps)} steps of them in {METRICS}"
        return
    for name, value, counted in (
        ("rollouts", recorded.rollouts, sum(len(line.tokens) for line in steps.values())),
        ("prompt tokens of rollouts", recorded.prompt_tokens, sum(sum(line.prompt_tokens) for line in steps.values())),
        ("tokens of rollouts", recorded.tokens, sum(sum(line.tokens) for line in steps.values())),
        ("rollouts that ended", recorded.ended, sum(sum(line.ended) for line in steps.values())),
    ):
        yield from _differs(name, value, counted, METRICS)


def _chosen(results: TrainResults, validations: list[ValidationLine]) -> Iterator[str]:
    """The step that is kept and that of the lowest mean, by their rules, from the losses that were written down.

    Records of an earlier version hold no losses by rank; nothing can be said of them.
    """
    parts = [line.parts for line in validations if line.parts is not None]
    means = [line.ce for line in validations if line.ce is not None]
    if not validations or not len(parts) == len(means) == len(validations):
        return
    kept, lowest = choose(parts), min(range(len(means)), key=means.__getitem__)
    counted = {
        "best_step": (results.best_step, None if kept is None else validations[kept].step),
        "lowest_step": (results.lowest_step, validations[lowest].step),
        "lowest_validation_ce": (results.lowest_validation_ce, means[lowest]),
    }
    for name, (recorded, value) in counted.items():
        yield from _differs(name, recorded, value, METRICS)


def _completions(results: GenerateResults, lines: Sequence[SampleLine]) -> Iterator[str]:
    tokens = sum(line.tokens for line in lines) / len(lines) if lines else 0.0
    problems = len({line.problem for line in lines})
    yield from _differs("samples", results.samples, len(lines), SAMPLES)
    yield from _differs("problems", results.problems, problems, SAMPLES)
    yield from _differs("mean_completion_tokens", results.mean_completion_tokens, tokens, SAMPLES)
    reasons = Counter(line.finish_reason for line in lines)
    yield from _counts("finish reason", results.finish_reasons, reasons, SAMPLES)


def _counts(what: str, recorded: Mapping[str, int], counted: Mapping[str, int], source: str) -> Iterator[str]:
    for name in sorted(recorded.keys() | counted.keys()):
        yield from _differs(f"{what} {name}", recorded.get(name, 0), counted.get(name, 0), source)


def _by_problem(lines: Sequence[VerdictLine]) -> dict[str, list[VerdictLine]]:
    found: dict[str, list[VerdictLine]] = {}
    for line in lines:
        found.setdefault(line.problem, []).append(line)
    return found


def _verdicts(results: GradeResults, lines: Sequence[VerdictLine]) -> Iterator[str]:
    marks = {problem: [line.correct for line in found] for problem, found in _by_problem(lines).items()}
    recorded = {one.problem: (one.correct, one.samples) for one in results.per_problem}
    counted = {problem: (sum(found), len(found)) for problem, found in marks.items()}
    for problem in sorted(recorded.keys() | counted.keys()):
        if recorded.get(problem) != counted.get(problem):
            first = f"{recorded.get(problem)} recorded, {counted.get(problem)} in {VERDICTS}"
            yield f"problem {problem}: (correct, samples) {first}"
            break
    yield from _counts("status", results.statuses, Counter(line.status for line in lines), VERDICTS)
    yield from _score(results, list(marks.values()))


def _score(results: GradeResults, marks: list[list[bool]]) -> Iterator[str]:
    """Accuracy, its error and interval, and by what method."""
    if not marks or len({len(found) for found in marks}) != 1:
        return
    estimate, (low, high) = accuracy(marks, results.confidence), results.interval
    yield from _differs("accuracy", results.accuracy, estimate.value, VERDICTS)
    yield from _differs("method", results.method, estimate.method, VERDICTS)
    yield from _differs("standard_error", results.standard_error, estimate.standard_error, VERDICTS)
    yield from _differs("interval low", low, estimate.low, VERDICTS)
    yield from _differs("interval high", high, estimate.high, VERDICTS)


def _votes(results: GradeResults, lines: Sequence[VerdictLine]) -> Iterator[str]:
    """pass@k and maj@k, those that are recorded."""
    of_problem = _by_problem(lines)
    if not lines or len({len(found) for found in of_problem.values()}) != 1:
        return
    correct = [[line.correct for line in found] for found in of_problem.values()]
    answers = [answer_numbers(found) for found in of_problem.values()]
    for name, k, recorded in _recorded_votes(results):
        if name.startswith("pass"):
            computed = pass_at_k(correct, k, results.confidence)
        else:
            computed = majority_at_k(answers, correct, k, results.confidence)
        yield from _differs(f"{name} value", recorded.value, computed.value, VERDICTS)
        yield from _differs(f"{name} standard_error", recorded.standard_error, computed.standard_error, VERDICTS)
        yield from _differs(f"{name} low", recorded.low, computed.low, VERDICTS)
        yield from _differs(f"{name} high", recorded.high, computed.high, VERDICTS)


def _recorded_votes(results: GradeResults) -> Iterator[tuple[str, int, EstimateRecord]]:
    """(`pass@4`, 4, what is recorded)."""
    for name, recorded in {**results.pass_at_k, **results.majority_at_k}.items():
        _, _, k = name.partition("@")
        if not k.isdecimal() or len(k) > 9:
            raise RecordError(f"{name}: found where pass@k or maj@k is wanted")
        yield name, int(k), recorded


def _endings(results: GradeResults, samples: Sequence[SampleLine]) -> Iterator[str]:
    """How completions ended and how long they are."""
    if not samples:
        return
    counted = completion_facts(samples)
    yield from _counts("finish reason", results.finish_reasons, counted["finish_reasons"], SAMPLES)
    for name, recorded, value in (
        ("mean_completion_tokens", results.mean_completion_tokens, counted["mean_completion_tokens"]),
        ("median_completion_tokens", results.median_completion_tokens, counted["median_completion_tokens"]),
        ("longest_completion_tokens", results.longest_completion_tokens, counted["longest_completion_tokens"]),
    ):
        yield from _differs(name, recorded, value, SAMPLES)
    yield from _ending_estimates(results, samples)


def _ending_estimates(results: GradeResults, samples: Sequence[SampleLine]) -> Iterator[str]:
    """Length, stop rate and cap hits of each problem, and their intervals; records of earlier versions have none."""
    recorded = {name: getattr(results, name) for name in ("completion_tokens", "stop_rate", "cap_rate")}
    named = {one.problem: one for one in results.per_problem}
    if None in recorded.values() or {sample.problem for sample in samples} != named.keys():
        return
    marks = problem_marks({problem: one.correct for problem, one in named.items()}, samples)
    for mark in marks:
        one = named[mark["problem"]]
        written, counted = (one.tokens, one.stopped, one.at_cap), (mark["tokens"], mark["stopped"], mark["at_cap"])
        if written != counted:
            yield f"problem {one.problem}: (tokens, stopped, at cap) {written} recorded, {counted} in {SAMPLES}"
            return
    computed = ending_estimates(marks, results.confidence)
    for name, value in (
        ("completion_tokens", computed["completion_tokens"]),
        ("stop_rate", computed["stop_rate"]),
        ("cap_rate", computed["cap_rate"]),
    ):
        for part in ("value", "standard_error", "low", "high", "method"):
            yield from _differs(f"{name} {part}", getattr(recorded[name], part), getattr(value, part), SAMPLES)


def _doubts(results: GradeResults, lines: Sequence[VerdictLine], samples: Sequence[SampleLine]) -> Iterator[str]:
    """What speaks against the accuracy; records of earlier versions have none of it."""
    doubts = results.doubts
    if doubts is None:
        return
    of = verdict_doubts(lines)
    yield from _differs("graders_disagree", doubts.graders_disagree, of["graders_disagree"], VERDICTS)
    yield from _differs("disagreeing", doubts.disagreeing, of["disagreeing"], VERDICTS)
    yield from _differs("answers_not_from_a_box", doubts.answers_not_from_a_box, of["answers_not_from_a_box"], VERDICTS)
    if samples:
        counted = sample_doubts(sample.completion for sample in samples)["box_in_thought_alone"]
        yield from _differs("box_in_thought_alone", doubts.box_in_thought_alone, counted, SAMPLES)


def _differs(name: str, recorded: object, value: object, source: str) -> Iterator[str]:
    equal = recorded == value
    if not equal and isinstance(recorded, int | float) and isinstance(value, int | float):
        with contextlib.suppress(OverflowError):  # an integer that no float holds is close to none
            equal = math.isclose(recorded, value, rel_tol=CLOSE, abs_tol=CLOSE)
    if not equal:
        yield f"{name} {recorded} recorded, {value} from {source}"
