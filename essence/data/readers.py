"""One function a row format: from a row to its question and answer, or to one named reason why it has none.

A reader takes any JSON value. Markers stay as they are (`data/markers.py` is next). A column that holds turns may also
hold them as JSON text, as some exports of these data sets do.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from essence.data.exchange import Exchange, Reason
from essence.settings import RowFormat

ROLES = ("system", "user", "assistant")


def read_conversation(row: object) -> Exchange | Reason:
    """Bespoke-Stratos, OpenThoughts, Sky-T1: `conversations: [{"from": "user" | "assistant", "value": str}]`.

    The system text in a column of its own is not used, as released.
    """
    return _read_turns(row, "conversations", "from", "value")


def read_messages(row: object) -> Exchange | Reason:
    """Anybody's traces: `messages: [{"role": "user" | "assistant", "content": str}]`."""
    return _read_turns(row, "messages", "role", "content")


def read_synthetic1(row: object) -> Exchange | Reason:
    """SYNTHETIC-1: `prompt: str`, `llm_response: str`, `task_type: str`; only verifiable mathematics, as released."""
    if not isinstance(row, Mapping):
        return Reason.NOT_A_ROW
    if not {"prompt", "llm_response", "task_type"} <= row.keys():
        return Reason.MISSING_COLUMN
    if row["task_type"] != "verifiable_math":
        return Reason.OTHER_TASK if isinstance(row["task_type"], str) else Reason.WRONG_TYPE
    return _exchange(row["prompt"], row["llm_response"])


def read_nemotron(row: object) -> Exchange | Reason:
    """Llama-Nemotron: `input: [{"role", "content"}]`, of which the first, and `output: str`.

    A list of such lists is accepted too, as released; the first message must be the user's.
    """
    messages = _turns(row, "input")
    if isinstance(messages, Reason):
        return messages
    if isinstance(row, Mapping) and "output" not in row:
        return Reason.MISSING_COLUMN
    more = len(messages) > 1
    while messages and isinstance(messages[0], list):
        messages = messages[0]
        more = more or len(messages) > 1
    if not messages:
        return Reason.NOT_TWO_TURNS
    first = messages[0]
    if not isinstance(first, Mapping):
        return Reason.WRONG_TYPE
    if first.get("role") != "user":
        return Reason.WRONG_TURN_ORDER if first.get("role") in ROLES else Reason.UNKNOWN_ROLE
    return _exchange(first.get("content"), _column(row, "output"), Reason.MORE_TURNS if more else None)


READERS: dict[RowFormat, Callable[[object], Exchange | Reason]] = {
    "conversations": read_conversation,
    "messages": read_messages,
    "nemotron": read_nemotron,
    "synthetic1": read_synthetic1,
}


def _read_turns(row: object, column: str, role_key: str, text_key: str) -> Exchange | Reason:
    """A user turn and an assistant turn, with at most a system turn before them."""
    turns = _turns(row, column)
    if isinstance(turns, Reason):
        return turns
    if not all(isinstance(turn, Mapping) for turn in turns):
        return Reason.WRONG_TYPE
    roles = [turn.get(role_key) for turn in turns]
    if any(role not in ROLES for role in roles):
        return Reason.UNKNOWN_ROLE
    remark = None
    if roles[:1] == ["system"]:
        roles, turns, remark = roles[1:], turns[1:], Reason.SYSTEM_TURN
    if len(turns) != 2:
        return Reason.NOT_TWO_TURNS
    if roles != ["user", "assistant"]:
        return Reason.WRONG_TURN_ORDER
    user, assistant = (turn.get(text_key) for turn in turns)
    return _exchange(user, assistant, remark)


def _turns(row: object, column: str) -> list[Any] | Reason:
    """The list in a column, which may be written as JSON text."""
    if not isinstance(row, Mapping):
        return Reason.NOT_A_ROW
    if column not in row:
        return Reason.MISSING_COLUMN
    value = row[column]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return Reason.NOT_JSON
    return value if isinstance(value, list) else Reason.WRONG_TYPE


def _column(row: object, name: str) -> object:
    return row.get(name) if isinstance(row, Mapping) else None


def _exchange(user: object, assistant: object, remark: Reason | None = None) -> Exchange | Reason:
    if not isinstance(user, str) or not isinstance(assistant, str):
        return Reason.NOT_TEXT
    if not (_is_unicode(user) and _is_unicode(assistant)):
        return Reason.NOT_UNICODE
    return Exchange(user, assistant, remark)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
