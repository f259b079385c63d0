"""Stage `grade`: a verdict a sample in verdicts.jsonl, and the accuracy with its interval; without torch."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from essence.errors import InputError, StageError
from essence.record.canonical import sha256_file
from essence.scoring.benchmarks import Problem, read_problems
from essence.scoring.grade import Item, Verdict, grade_all, grader_version
from essence.scoring.lines import append_lines, read_lines, recover_lines
from essence.scoring.statistics import accuracy
from essence.settings import GradeSettings
from essence.stages.context import StageContext, StageOutcome

SAMPLES_FILE = "samples.jsonl"
VERDICTS_FILE = "verdicts.jsonl"
VERDICTS_A_WRITE = 64


def run(settings: GradeSettings, context: StageContext) -> StageOutcome:
    """Grade; inputs `samples` (output of a generate stage) and `problems`.

    Raises InputError for samples that are not the same number of each problem or for a gold that cannot be parsed,
    StageError when the verdicts are not those of the samples, and Stopped between two writes.
    """
    samples_file = context.inputs["samples"] / SAMPLES_FILE
    samples = read_lines(samples_file)
    problems = read_problems(context.inputs["problems"] / "problems", settings.benchmark)
    samples_per_problem = _samples_per_problem(samples, problems)
    _grade(samples, {problem.id: problem.gold for problem in problems}, settings, context)
    verdicts = read_lines(context.partial / VERDICTS_FILE)
    if [(v["problem"], v["sample"]) for v in verdicts] != [(s["problem"], s["sample"]) for s in samples]:
        raise StageError(f"{VERDICTS_FILE} is not of the samples in {samples_file}: delete the stage's folder.")
    return StageOutcome(
        results=_results(settings, problems, samples, verdicts, samples_per_problem),
        data={"samples_sha256": sha256_file(samples_file)},
        executed={
            "grader": settings.grader,
            "grader_version": grader_version(settings.grader),
            "samples_per_problem": samples_per_problem,
        },
    )


def _samples_per_problem(samples: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> int:
    """How many samples every problem has; InputError unless each has the same, one or more."""
    marked = {(sample["problem"], sample["sample"]) for sample in samples}
    if len(marked) != len(samples):
        raise InputError(f"{SAMPLES_FILE} has {len(samples) - len(marked)} samples twice, wanted: each once.")
    counts = Counter(problem for problem, _ in marked)
    unknown = counts.keys() - {problem.id for problem in problems}
    if unknown:
        raise InputError(f"{SAMPLES_FILE} has samples of a problem that the benchmark lacks: {min(unknown)!r}.")
    found = {counts[problem.id] for problem in problems}
    if len(found) != 1 or 0 in found:
        raise InputError(
            f"{SAMPLES_FILE} has {min(found)} to {max(found)} samples a problem, wanted: the same number, at least one."
        )
    return found.pop()


def _grade(
    samples: Sequence[dict[str, Any]], golds: dict[str, str], settings: GradeSettings, context: StageContext
) -> None:
    """Append the verdicts that are missing to verdicts.jsonl, in the order of the samples."""
    path = context.partial / VERDICTS_FILE
    done = len(recover_lines(path))
    rest = samples[done:]
    items = [Item(golds[sample["problem"]], sample["completion"]) for sample in rest]
    context.progress.update("grade", done, len(samples), "samples")
    records: list[dict[str, Any]] = []
    with closing(grade_all(items, settings.grader, settings.timeout_s, context.resources.threads)) as graded:
        for sample, item, verdict in zip(rest, items, graded, strict=True):
            records.append(_record(sample, item.gold, verdict))
            done += 1
            context.progress.update("grade", done, len(samples), "samples")
            if len(records) == VERDICTS_A_WRITE or done == len(samples):
                append_lines(path, records)
                records.clear()
                context.stop.check()


def _record(sample: dict[str, Any], gold: str, verdict: Verdict) -> dict[str, Any]:
    """A line of verdicts.jsonl."""
    return {
        "problem": sample["problem"],
        "sample": sample["sample"],
        "gold": gold,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "status": verdict.status,
    }


def _results(
    settings: GradeSettings,
    problems: Sequence[Problem],
    samples: Sequence[dict[str, Any]],
    verdicts: Sequence[dict[str, Any]],
    samples_per_problem: int,
) -> dict[str, Any]:
    """The results group of the manifest (docs/design.md)."""
    correct: dict[str, list[bool]] = {problem.id: [] for problem in problems}
    for verdict in verdicts:
        correct[verdict["problem"]].append(verdict["correct"])
    estimate = accuracy(np.array([correct[problem.id] for problem in problems]), settings.confidence)
    statuses = Counter(verdict["status"] for verdict in verdicts)
    reasons = Counter(sample["finish_reason"] for sample in samples)
    return {
        "benchmark": settings.benchmark.name,
        "metric": f"{settings.benchmark.name} avg@{samples_per_problem}",
        "accuracy": estimate.value,
        "standard_error": estimate.standard_error,
        "interval": [estimate.low, estimate.high],
        "confidence": settings.confidence,
        "method": estimate.method,
        "per_problem": [{"problem": id, "correct": sum(marks), "samples": len(marks)} for id, marks in correct.items()],
        "statuses": {status: statuses[status] for status in ("graded", "no answer", "timeout")},
        "finish_reasons": {reason: reasons[reason] for reason in ("stop", "length", "loop")},
        "mean_completion_tokens": sum(sample["tokens"] for sample in samples) / len(samples),
    }
