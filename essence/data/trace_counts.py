"""Counts in a worked answer that need no judge: where its final answer first appears, and cues of self-reflection.

The rules are those of docs/claims.md; they are proxies for what the paper asked a language model.
"""

import re
from dataclasses import dataclass

from essence.data.markers import END_THINK, THINK
from essence.data.reasons import Exchange
from essence.data.token_statistics import boxes

CUES = re.compile(
    r"\b(?:wait|hmm+|alternatively|hold on|on second thought|double[- ]check(?:ing)?|let me (?:re-?)?check"
    r"|let me verify|let me reconsider|let me try|let me think again|is that right|that(?:'|’)?s not right"
    r"|i made a mistake)\b",
    re.IGNORECASE,
)
TENTHS = 10


@dataclass(frozen=True)
class Worked:
    """The parts of one row; `answer` is the content of its answer section's last box, None where nothing is boxed."""

    question: str
    trace: str
    answer: str | None


def worked(exchange: Exchange) -> Worked | None:
    """None where the row has not both markers in order."""
    _, opening, rest = exchange.assistant.partition(THINK)
    trace, closing, section = rest.partition(END_THINK)
    if not opening or not closing or not trace.strip():
        return None
    return Worked(exchange.user, trace.strip(), final_answer(section))


def final_answer(section: str) -> str | None:
    """Content of the last box that is not empty; None where there is none."""
    held = [content.strip() for _, content in boxes(section, 0) if content.strip()]
    return held[-1] if held else None


def first_written(text: str, answer: str) -> int:
    """Index at which an answer first stands in a text as it is written, white space apart; -1 where it does not.

    The earliest of the three places of docs/arms.md: what is written there may be no result yet.

    No letter or digit is joined to it, nor a decimal point or a comma with a digit behind it: 5 is not in 15 or 5.3.
    """
    signs = [re.escape(sign) for sign in "".join(answer.split())]
    found = re.search(r"(?<![\w])(?<!\d[.,])" + r"\s*".join(signs) + r"(?![\w])(?![.,]\d)", text)
    return found.start() if found else -1


def cue_places(trace: str) -> list[int]:
    """Index of each cue."""
    return [found.start() for found in CUES.finditer(trace)]


def by_tenth(trace: str, places: list[int]) -> list[int]:
    """Of some indices, how many lie in each tenth of the text."""
    counts = [0] * TENTHS
    for place in places:
        counts[min(TENTHS - 1, TENTHS * place // len(trace))] += 1
    return counts
