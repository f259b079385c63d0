"""One question with its answer, and the rules that the rows of all formats must keep."""

from dataclasses import dataclass
from enum import StrEnum

EXACT_REPLACEMENTS = (
    ("<|begin_of_thought|>", "<think>"),
    ("<|end_of_thought|>", "</think>"),
    ("<|begin_of_solution|>\n\n", ""),
    ("\n\n<|end_of_solution|>", ""),
)
"""As released. Solution markers with other newlines around them stay in the text; `has_solution_marker` finds them."""


class Reason(StrEnum):
    """Why a row gives no conversation."""

    NO_CONVERSATION = "no list of turns under 'conversations'"
    NO_PAIR = "no question and answer under the format's columns"
    OTHER_TASK = "task_type is not verifiable_math"
    NOT_TWO_TURNS = "not one user turn and one assistant turn"
    UNKNOWN_ROLE = "unknown role"
    NOT_TEXT = "content is not text"
    NOT_UNICODE = "text with half a surrogate pair"
    """Valid in JSON, but no Unicode text: no tokenizer takes it."""
    EMPTY_QUESTION = "empty question"
    EMPTY_ANSWER = "empty answer"
    NO_OPENING_MARKER = "no opening thought marker"
    NO_CLOSING_MARKER = "no closing thought marker"
    TWO_CLOSING_MARKERS = "two closing thought markers"
    """The Qwen chat template silently drops everything between the first and the last."""
    WRONG_ORDER = "closing thought marker before the opening one"


@dataclass(frozen=True)
class Exchange:
    """One question and its full answer: `<think>` thought `</think>` answer."""

    user: str
    assistant: str


def replace_markers(text: str) -> str:
    """The published data sets' thought and solution markers to `<think>` and `</think>`, by exact strings."""
    for old, new in EXACT_REPLACEMENTS:
        text = text.replace(old, new)
    return text


def has_solution_marker(text: str) -> bool:
    """Whether the exact replacement left a solution marker, because of other newlines around it."""
    return "<|begin_of_solution|>" in text or "<|end_of_solution|>" in text


def check_exchange(user: str, assistant: str) -> Exchange | Reason:
    """The rules that all formats share, on an assistant text whose markers are already `<think>` and `</think>`."""
    if not (_is_unicode(user) and _is_unicode(assistant)):
        return Reason.NOT_UNICODE
    opening, closing = assistant.find("<think>"), assistant.find("</think>")
    if not user.strip():
        return Reason.EMPTY_QUESTION
    if not assistant.strip():
        return Reason.EMPTY_ANSWER
    if opening < 0:
        return Reason.NO_OPENING_MARKER
    if closing < 0:
        return Reason.NO_CLOSING_MARKER
    if assistant.count("</think>") > 1:
        return Reason.TWO_CLOSING_MARKERS
    if closing < opening:
        return Reason.WRONG_ORDER
    if not assistant[closing + len("</think>") :].strip():
        return Reason.EMPTY_ANSWER
    return Exchange(user, assistant)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
