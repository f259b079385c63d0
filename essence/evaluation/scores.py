"""What the verdicts of one benchmark come to: accuracy, pass@k, maj@k, and beside them how the completions ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.doubts import DoubtCounts, sample_doubts, verdict_doubts
from essence.evaluation.sample_lines import SampleLine, VerdictLine
from essence.evaluation.statistics import (
    Estimate,
    accuracy,
    majority_at_k,
    pass_at_k,
    pooled_accuracy,
    pooled_amount,
)
from essence.settings import GradeSettings

STATUSES = ("graded", "no answer", "timeout")
FINISH_REASONS = ("stop", "length", "loop")
"""Shown even where no completion ended so."""
NO_VOTE = -1


class ProblemMarks(TypedDict):
    """The samples of one problem."""

    problem: str
    correct: int
    samples: int
    tokens: int
    """Of all its completions."""
    stopped: int
    """Completions that the model ended itself."""
    at_cap: int
    """Completions cut off at the token cap."""


class EndingEstimates(TypedDict):
    """How completions end, with intervals over problems: see `ending_estimates`."""

    completion_tokens: Estimate
    stop_rate: Estimate
    cap_rate: Estimate


class CompletionFacts(TypedDict):
    """How completions ended, and how long they are."""

    finish_reasons: dict[str, int]
    mean_completion_tokens: float
    median_completion_tokens: float
    longest_completion_tokens: int


class Summary(CompletionFacts, EndingEstimates):
    """The results of a grade stage (docs/design.md)."""

    benchmark: str
    metric: str
    accuracy: float | None
    standard_error: float | None
    interval: list[float | None]
    confidence: float
    method: str
    pass_at_k: dict[str, Estimate]
    majority_at_k: dict[str, Estimate]
    per_problem: list[ProblemMarks]
    statuses: dict[str, int]
    doubts: DoubtCounts


def summary(
    settings: GradeSettings, problems: Sequence[str], samples: Sequence[SampleLine], verdicts: Sequence[VerdictLine]
) -> Summary:
    """What the verdicts come to. problems: ids; as many samples and verdicts of each."""
    of_problem: dict[str, list[VerdictLine]] = {problem: [] for problem in problems}
    for verdict in verdicts:
        of_problem[verdict.problem].append(verdict)
    correct = np.array([[verdict.correct for verdict in rows] for rows in of_problem.values()])
    answers = np.array([answer_numbers(rows) for rows in of_problem.values()])
    estimate = accuracy(correct, settings.confidence)
    name, samples_per_problem = settings.benchmark.name, correct.shape[1]
    sizes = [k for k in settings.pass_at if k <= samples_per_problem]
    marks = problem_marks({problem: int(row.sum()) for problem, row in zip(of_problem, correct, strict=True)}, samples)
    return {
        "benchmark": name,
        "metric": f"{name} avg@{samples_per_problem}",
        "accuracy": estimate.value,
        "standard_error": estimate.standard_error,
        "interval": [estimate.low, estimate.high],
        "confidence": settings.confidence,
        "method": estimate.method,
        "pass_at_k": {f"pass@{k}": pass_at_k(correct, k, settings.confidence) for k in sizes},
        "majority_at_k": {f"maj@{k}": majority_at_k(answers, correct, k, settings.confidence) for k in sizes},
        "per_problem": marks,
        "statuses": _counts([verdict.status for verdict in verdicts], STATUSES),
        "doubts": {**verdict_doubts(verdicts), **sample_doubts(sample.completion for sample in samples)},
        **completion_facts(samples),
        **ending_estimates(marks, settings.confidence),
    }


def problem_marks(correct: Mapping[str, int], samples: Sequence[SampleLine]) -> list[ProblemMarks]:
    """Sums over the samples of each problem. correct: problem -> how many of its samples are right."""
    of_problem: dict[str, list[SampleLine]] = {problem: [] for problem in correct}
    for sample in samples:
        of_problem[sample.problem].append(sample)
    return [
        {
            "problem": problem,
            "correct": correct[problem],
            "samples": len(lines),
            "tokens": sum(line.tokens for line in lines),
            "stopped": sum(line.finish_reason == "stop" for line in lines),
            "at_cap": sum(line.finish_reason == "length" for line in lines),
        }
        for problem, lines in of_problem.items()
    ]


def ending_estimates(marks: Sequence[ProblemMarks], confidence: float) -> EndingEstimates:
    """Mean tokens of a completion, share that stopped by itself, share at the cap: means over problems, as accuracy."""

    def means(sums: Sequence[int]) -> NDArray[np.float64]:
        return np.array([[total / one["samples"] for total, one in zip(sums, marks, strict=True)]])

    return {
        "completion_tokens": pooled_amount(means([one["tokens"] for one in marks]), confidence),
        "stop_rate": pooled_accuracy(means([one["stopped"] for one in marks]), confidence),
        "cap_rate": pooled_accuracy(means([one["at_cap"] for one in marks]), confidence),
    }


def answer_numbers(verdicts: Sequence[VerdictLine]) -> NDArray[np.int64]:
    """A number for each distinct answer of one problem, -1 for none, [samples].

    Two answers are one where both equal the gold, or where they parse to the same expression; `0.5` and `1/2` are two
    unless right.
    """
    numbers: dict[str | bool, int] = {}
    found = [True if v.correct else v.answer for v in verdicts]
    return np.array([NO_VOTE if key is None else numbers.setdefault(key, len(numbers)) for key in found])


def completion_facts(samples: Sequence[SampleLine]) -> CompletionFacts:
    """How completions ended and how long they are: a student that never stops shows here before it does in accuracy."""
    tokens = [sample.tokens for sample in samples]
    return {
        "finish_reasons": _counts([sample.finish_reason for sample in samples], FINISH_REASONS),
        "mean_completion_tokens": fmean(tokens),
        "median_completion_tokens": median(tokens),
        "longest_completion_tokens": max(tokens),
    }


def _counts(values: Sequence[str], always: Sequence[str]) -> dict[str, int]:
    counts = Counter(values)
    return {value: counts[value] for value in (*always, *sorted(counts.keys() - set(always)))}
