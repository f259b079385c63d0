"""What speaks against an accuracy: verdicts that graders do not share, and answers that are not where they belong.

None of it changes a verdict. A count that is large says that the accuracy measures the grader, or the way of writing,
beside the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from essence.data.markers import END_THINK, THINK
from essence.evaluation.graders import BOX

Rows = Sequence[Mapping[str, Any]]


def in_thought_alone(completion: str) -> bool:
    """True when all boxes of a completion are within its thought; one that never ends takes in the rest of the text."""
    thought, ends, answer = completion.rpartition(END_THINK)
    if not ends:
        answer, _, thought = completion.partition(THINK)
    return BOX in thought and BOX not in answer


def verdict_doubts(verdicts: Rows) -> dict[str, Any]:
    """Of lines of verdicts.jsonl: how many the graders judge differently, and how many answers come from no box."""
    others = sorted({grader for verdict in verdicts for grader in verdict["others"]})
    return {
        "graders_disagree": sum(_disputed(verdict["correct"], verdict["others"].values()) for verdict in verdicts),
        "disagreeing": {
            grader: sum(verdict["others"][grader] != verdict["correct"] for verdict in verdicts) for grader in others
        },
        "answers_not_from_a_box": sum(verdict["status"] == "graded" and not verdict["boxed"] for verdict in verdicts),
    }


def sample_doubts(samples: Rows) -> dict[str, Any]:
    """Of lines of samples.jsonl: how many have their boxes within the thought alone."""
    return {"box_in_thought_alone": sum(in_thought_alone(sample["completion"]) for sample in samples)}


def doubt_words(doubts: Mapping[str, Any]) -> str:
    """`graders disagree on 3, answers not taken from a box 12, box inside the thought alone 4`."""
    asked = doubts["disagreeing"]
    disagree = f"graders disagree on {doubts['graders_disagree']}" if asked else "no other grader to compare with"
    return (
        f"{disagree}, answers not taken from a box {doubts['answers_not_from_a_box']}, "
        f"box inside the thought alone {doubts['box_in_thought_alone']}"
    )


def _disputed(correct: bool, others: Iterable[bool]) -> bool:
    return any(other != correct for other in others)
