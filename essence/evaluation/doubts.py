"""What speaks against an accuracy: verdicts that graders do not share, and answers that are not where they belong.

None of it changes a verdict. A count that is large says that the accuracy measures the grader, or the way of writing,
beside the model.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypedDict

from essence.data.markers import END_THINK, THINK
from essence.evaluation.graders import BOX


class VerdictDoubts(TypedDict):
    """Of verdicts."""

    graders_disagree: int
    """Verdicts that not all graders share."""
    disagreeing: dict[str, int]
    """Other grader -> verdicts that it does not share."""
    answers_not_from_a_box: int


class SampleDoubts(TypedDict):
    """Of completions."""

    box_in_thought_alone: int


class DoubtCounts(VerdictDoubts, SampleDoubts):
    """Of both."""


class Judged(Protocol):
    """A verdict, with what the other graders say."""

    @property
    def correct(self) -> bool: ...
    @property
    def status(self) -> str: ...
    @property
    def boxed(self) -> bool: ...
    @property
    def others(self) -> dict[str, bool]: ...


def in_thought_alone(completion: str) -> bool:
    """True when all boxes of a completion are within its thought; one that never ends takes in the rest of the text."""
    thought, ends, answer = completion.rpartition(END_THINK)
    if not ends:
        answer, _, thought = completion.partition(THINK)
    return BOX in thought and BOX not in answer


def verdict_doubts(verdicts: Sequence[Judged]) -> VerdictDoubts:
    """How many the graders judge differently, and how many answers come from no box."""
    others = sorted({grader for verdict in verdicts for grader in verdict.others})
    return {
        "graders_disagree": sum(_disputed(verdict.correct, verdict.others.values()) for verdict in verdicts),
        "disagreeing": {
            grader: sum(verdict.others[grader] != verdict.correct for verdict in verdicts) for grader in others
        },
        "answers_not_from_a_box": sum(verdict.status == "graded" and not verdict.boxed for verdict in verdicts),
    }


def sample_doubts(completions: Iterable[str]) -> SampleDoubts:
    """How many completions have their boxes within the thought alone."""
    return {"box_in_thought_alone": sum(in_thought_alone(text) for text in completions)}


def _disputed(correct: bool, others: Iterable[bool]) -> bool:
    return any(other != correct for other in others)
