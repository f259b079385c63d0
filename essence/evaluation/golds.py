"""Try gold answers before anything is generated or graded: one that a grader cannot read makes every verdict void."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

from essence.errors import InputError
from essence.evaluation.benchmarks import Problem
from essence.evaluation.graders import Verdict
from essence.evaluation.grading_pool import Item, answers, unreadable

_READ_BY_ALL = re.compile(r"-?\d{1,18}(?:\.\d{1,18})?")
"""Plain numbers need no grader to try them, which would take seconds to start."""


def golds_of(benchmark: str, problems: Iterable[Problem]) -> list[Item]:
    """The golds of a benchmark, each with its place and no completion yet."""
    return [Item(problem.gold, "", f"{benchmark}, problem {problem.id}") for problem in problems]


def check_golds(golds: Sequence[Item], timeouts_s: Mapping[str, float], workers: int) -> None:
    """InputError that names every gold that one of the graders cannot read within its time.

    timeouts_s: grader -> longest time for one gold.
    """
    tried = list({item.gold: item._replace(completion="") for item in reversed(golds)}.values())[::-1]
    tried = [item for item in tried if not _READ_BY_ALL.fullmatch(item.gold.strip())]
    bad = [sentence for grader, timeout_s in timeouts_s.items() for sentence in _bad(tried, grader, timeout_s, workers)]
    if bad:
        raise InputError("; ".join(bad) + ", wanted: a number or LaTeX", "correct them, or choose another grader")


def _bad(golds: Sequence[Item], grader: str, timeout_s: float, workers: int) -> Iterable[str]:
    if not golds:
        return
    with closing(answers(golds, (grader,), timeout_s, workers)) as answered:
        for item, (answer,) in zip(golds, answered, strict=True):
            if not isinstance(answer, Verdict):
                yield unreadable(item, grader)
            elif answer.status == "timeout":
                yield f"{unreadable(item, grader)} within {timeout_s:g} s"
