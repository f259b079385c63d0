"""Stage `grade`: a verdict a sample in verdicts.jsonl, and the accuracy with its interval; without torch."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from essence.errors import InputError, StageError
from essence.record.canonical import sha256_file
from essence.scoring.benchmarks import Problem, read_problems
from essence.scoring.grade import Item, grade_all
from essence.scoring.graders import PACKAGE, Verdict, grader_version
from essence.scoring.lines import append_lines, read_lines, recover_lines
from essence.scoring.summary import summary
from essence.settings import GradeSettings
from essence.stages.context import StageContext, StageOutcome

SAMPLES_FILE = "samples.jsonl"
VERDICTS_FILE = "verdicts.jsonl"
VERDICTS_A_WRITE = 64


def run(settings: GradeSettings, context: StageContext) -> StageOutcome:
    """Grade; inputs `samples` (output of a generate stage) and `problems`.

    Raises InputError for samples that are not the same number of each problem or for a gold that cannot be parsed,
    StageError when the grader or the number of samples is not the declared one or the verdicts are not those of the
    samples, and Stopped between two writes.
    """
    _check_grader(settings)
    samples_file = context.inputs["samples"] / SAMPLES_FILE
    samples = read_lines(samples_file)
    problems = read_problems(context.inputs["problems"] / "problems", settings.benchmark)
    samples_per_problem = _samples_per_problem(samples, problems)
    if samples_per_problem != settings.samples:
        raise StageError(
            f"{samples_file} holds {samples_per_problem} samples of each problem of {settings.benchmark.name}, "
            f"declared: {settings.samples}; run the generate stage again."
        )
    _grade(samples, {problem.id: problem.gold for problem in problems}, settings, context)
    verdicts = read_lines(context.partial / VERDICTS_FILE)
    if [(v["problem"], v["sample"]) for v in verdicts] != [(s["problem"], s["sample"]) for s in samples]:
        raise StageError(f"{VERDICTS_FILE} is not of the samples in {samples_file}: delete the stage's folder.")
    return StageOutcome(
        results=summary(settings, [problem.id for problem in problems], samples, verdicts),
        data={"samples_sha256": sha256_file(samples_file)},
        executed={
            "grader": settings.grader,
            "grader_version": f"{PACKAGE} {grader_version()}",
            "samples_per_problem": samples_per_problem,
        },
    )


def _check_grader(settings: GradeSettings) -> None:
    """The grader is of the declared version, since other versions judge some completions otherwise."""
    if grader_version() != settings.math_verify:
        raise StageError(
            f"{PACKAGE} {grader_version()} is installed, declared: {settings.math_verify} ([grading] math_verify); "
            "run `make setup`, or declare the installed one."
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
    items = [
        Item(
            golds[sample["problem"]],
            sample["completion"],
            f"{settings.benchmark.name}, problem {sample['problem']}",
        )
        for sample in rest
    ]
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
        "answer": verdict.answer,
        "correct": verdict.correct,
        "status": verdict.status,
    }
