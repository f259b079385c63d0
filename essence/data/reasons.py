"""One question with its answer, and the names of all that can be wrong with a row."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a row is not used, or what is odd about one that is used all the same (`data/accept.py` decides)."""

    # No question and answer can be read: no protocol can use the row.
    NOT_A_ROW = "not an object with columns"
    MISSING_COLUMN = "a column of the format is missing"
    WRONG_TYPE = "a column is of a wrong type"
    NOT_JSON = "a column that should hold turns is text, but not JSON"
    UNKNOWN_ROLE = "unknown role"
    NOT_TWO_TURNS = "not one user turn and one assistant turn"
    WRONG_TURN_ORDER = "turns in a wrong order"
    UNKNOWN_FIELD = "unknown field of a turn"
    """Such as the calls of a tool: it would be lost."""
    TWO_THOUGHTS = "two thoughts in a turn"
    """In two fields that differ, or in a field beside markers."""
    NOT_TEXT = "content is not text"
    NOT_UNICODE = "text with half a surrogate pair"
    """Valid in JSON, but no Unicode text: no tokenizer takes it."""
    OVER_LONG = "longer than max_row_characters"
    # Not wanted, which is no fault of the row.
    OTHER_TASK = "task_type is not verifiable_math"
    CONTAMINATED = "question of an evaluation problem"
    # A text that the chat template garbles, or that teaches nothing.
    EMPTY_QUESTION = "empty question"
    EMPTY_THOUGHT = "empty thought"
    EMPTY_ANSWER = "empty answer"
    NO_THOUGHT = "no thought markers"
    NO_OPENING_MARKER = "thought never opened"
    NO_CLOSING_MARKER = "thought never closed"
    TWO_OPENING_MARKERS = "two opening thought markers"
    TWO_CLOSING_MARKERS = "two closing thought markers"
    """The Qwen chat template silently drops everything between the first and the last."""
    WRONG_MARKER_ORDER = "thought closed before it is opened"
    TEXT_BEFORE_THOUGHT = "text before the thought"
    """The Qwen chat template silently drops it."""
    UNPAIRED_SOLUTION_MARKERS = "solution markers are not one pair after the thought"
    MARKER_IN_QUESTION = "thought marker in the question"
    """Sections begin at the first marker of the rendered row."""
    CHAT_MARKUP = "markup of the chat template in the text"
    MORE_TURNS = "further turns after the one that is read"
    DUPLICATE = "same question and answer as an earlier row"
    # Worth knowing; the row is used.
    SYSTEM_TURN = "system turn, which is not rendered"
    MARKER_LEFT = "solution marker that the exact replacement missed"


NOT_WANTED = frozenset({Reason.OTHER_TASK, Reason.CONTAMINATED})
"""Reasons that say nothing against a data set, so they do not count towards `max_rejected_share`."""
NOTES = frozenset({Reason.SYSTEM_TURN, Reason.MARKER_LEFT})
"""What never rejects a row."""


@dataclass(frozen=True)
class Fault:
    """Why no question and answer can be read from a row."""

    reason: Reason
    seen: str = ""
    """Role, field or type that was found, by name."""


@dataclass(frozen=True)
class Exchange:
    """One question and its full answer, thought included."""

    user: str
    assistant: str
    remark: Reason | None = None
    """What the reader saw that is no reason to give up."""
