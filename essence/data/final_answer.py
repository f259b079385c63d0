"""Where a row first states its own final answer as a result, boxed or not: by its text alone, without a model.

The final answer is what the last box at or behind `<think>` holds. It is *stated* where it stands as a word of its own
behind a sign or a word of a result (`=`, `is`, `gives`, `answer`, a box). The bare number elsewhere is not: `2` stands
in most thoughts long before it is found. The last box states it, so a row with a box has a place.
"""

import re

from essence.data.token_statistics import boxes

BEFORE_CHARACTERS = 32
STATES = re.compile(
    r"(?:=|≈|→|⇒|\\approx|\\boxed\{|\b(?:is|are|be|equals?|gives?|gets?|got|yields?|obtain|have|therefore|thus|answer|"
    r"result|total|option|choose))[\s:$*_({\[\\]*(?:\\text\{|\\\(|\$)?$",
    re.IGNORECASE,
)


def first_stated_as_result(text: str, start: int) -> int:
    """Index of the last character of the first statement of the final answer at or after `start`; -1 where none is.

    `start` is the index of `<think>`, -1 where it is absent: what stands before it (the question) is not looked at.
    """
    held = [(closing, content) for closing, content in boxes(text, start) if content.strip()] if start >= 0 else []
    if not held:
        return -1
    answer = held[-1][1].strip()
    place = text.find(answer, start)
    while place >= 0:
        if _stands_alone(text, place, place + len(answer)) and STATES.search(
            text, max(0, place - BEFORE_CHARACTERS), place
        ):
            return place + len(answer) - 1
        place = text.find(answer, place + 1)
    return held[-1][0]


def _stands_alone(text: str, start: int, stop: int) -> bool:
    """Whether no letter or digit touches text[start:stop], nor a point or comma of a longer number."""
    before, after = text[max(0, start - 2) : start], text[stop : stop + 2]
    if before[-1:].isalnum() or after[:1].isalnum() or before[-1:] == "-":
        return False
    if before[-1:] in (".", ",") and before[:1].isdigit():
        return False
    return not (after[:1] in (".", ",", "/", "^") and after[1:2].isalnum())
