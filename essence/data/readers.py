"""One function per row format: from a row to its question and answer, or to one named reason why it has none.

A reader takes any JSON value. Markers stay as they are (`data/markers.py` is next). A column that holds turns may also
hold them as JSON text, as some exports of these data sets do.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from essence.data.reasons import Exchange, Fault, Reason
from essence.data.thoughts import THOUGHT_FIELDS, fields_beside, type_name, with_thought
from essence.settings import RowFormat

ROLES = ("system", "user", "assistant")
SHOWN_TURNS = 4
SHOWN_COLUMNS = 8
SHOWN_CHARACTERS = 100


def read_conversation(row: object) -> Exchange | Fault:
    """Bespoke-Stratos, OpenThoughts, Sky-T1: `conversations: [{"from": "user" | "assistant", "value": str}]`.

    The system text in a column of its own is not used, as released.
    """
    return _read_turns(row, "conversations", "from", "value")


def read_messages(row: object) -> Exchange | Fault:
    """Anybody's traces: `messages: [{"role": "user" | "assistant", "content": str}]`."""
    return _read_turns(row, "messages", "role", "content")


def read_synthetic1(row: object) -> Exchange | Fault:
    """SYNTHETIC-1: `prompt: str`, `llm_response: str`, `task_type: str`; only verifiable mathematics, as released."""
    if fault := _lacking(row, "prompt", "llm_response", "task_type"):
        return fault
    assert isinstance(row, Mapping)
    if (task := row["task_type"]) != "verifiable_math":
        is_task = isinstance(task, str)
        return Fault(Reason.OTHER_TASK) if is_task else Fault(Reason.WRONG_TYPE, f"task_type: {type_name(task)}")
    return _exchange(row["prompt"], row["llm_response"])


def read_nemotron(row: object) -> Exchange | Fault:
    """Llama-Nemotron: `input: [{"role", "content"}]`, of which the first, and `output: str`.

    A list of such lists is accepted too, as released; the first message must be the user's.
    """
    messages = _turns(row, "input")
    if isinstance(messages, Fault):
        return messages
    if fault := _lacking(row, "output"):
        return fault
    more = len(messages) > 1
    while messages and isinstance(messages[0], list):
        messages = messages[0]
        more = more or len(messages) > 1
    if not messages:
        return Fault(Reason.NOT_TWO_TURNS, "no turn")
    first = messages[0]
    if not isinstance(first, Mapping):
        return Fault(Reason.WRONG_TYPE, f"turn: {type_name(first)}")
    if (role := first.get("role")) != "user":
        return Fault(Reason.WRONG_TURN_ORDER if role in ROLES else Reason.UNKNOWN_ROLE, _named(role))
    if beside := fields_beside(first, ("role", "content")):
        return Fault(Reason.UNKNOWN_FIELD, _named(beside[0]))
    return _exchange(first.get("content"), _column(row, "output"), Reason.MORE_TURNS if more else None)


READERS: dict[RowFormat, Callable[[object], Exchange | Fault]] = {
    "conversations": read_conversation,
    "messages": read_messages,
    "nemotron": read_nemotron,
    "synthetic1": read_synthetic1,
}


def _read_turns(row: object, column: str, role_key: str, text_key: str) -> Exchange | Fault:
    """A user turn and an assistant turn, with at most a system turn before them."""
    turns = _turns(row, column)
    if isinstance(turns, Fault):
        return turns
    if other := [turn for turn in turns if not isinstance(turn, Mapping)]:
        return Fault(Reason.WRONG_TYPE, f"turn: {type_name(other[0])}")
    roles = [turn.get(role_key) for turn in turns]
    if unknown := [role for role in roles if role not in ROLES]:
        return Fault(Reason.UNKNOWN_ROLE, ", ".join(dict.fromkeys(map(_named, unknown[:SHOWN_TURNS]))))
    remark = None
    if roles[:1] == ["system"]:
        roles, turns, remark = roles[1:], turns[1:], Reason.SYSTEM_TURN
    if roles != ["user", "assistant"]:
        reason = Reason.WRONG_TURN_ORDER if len(turns) == 2 else Reason.NOT_TWO_TURNS
        more = f" and {len(roles) - SHOWN_TURNS} more" if len(roles) > SHOWN_TURNS else ""
        return Fault(reason, ", ".join(map(str, roles[:SHOWN_TURNS])) + more if roles else "no turn")
    known = (role_key, text_key)
    for turn, fields in zip(turns, (known, (*known, *THOUGHT_FIELDS)), strict=True):
        if beside := fields_beside(turn, fields):
            return Fault(Reason.UNKNOWN_FIELD, _named(beside[0]))
    user, assistant = turns
    answer = with_thought(assistant, assistant.get(text_key))
    return answer if isinstance(answer, Fault) else _exchange(user.get(text_key), answer, remark, text_key)


def _turns(row: object, column: str) -> list[Any] | Fault:
    """The list in a column, which may be written as JSON text."""
    if fault := _lacking(row, column):
        return fault
    assert isinstance(row, Mapping)
    value = row[column]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return Fault(Reason.NOT_JSON, column)
    return value if isinstance(value, list) else Fault(Reason.WRONG_TYPE, f"{column}: {type_name(value)}")


def _lacking(row: object, *columns: str) -> Fault | None:
    """The fault of a row that has not all of the columns."""
    if not isinstance(row, Mapping):
        return Fault(Reason.NOT_A_ROW, type_name(row))
    lacking = [column for column in columns if column not in row]
    found = ", ".join(map(str, list(row)[:SHOWN_COLUMNS])) or "none"
    return Fault(Reason.MISSING_COLUMN, f"no {lacking[0]}; columns: {found}"[:SHOWN_CHARACTERS]) if lacking else None


def _named(word: object) -> str:
    """A role or a field as it was found, on a short line."""
    return repr(word)[:SHOWN_CHARACTERS] if isinstance(word, str) else type_name(word)


def _column(row: object, name: str) -> object:
    return row.get(name) if isinstance(row, Mapping) else None


def _exchange(user: object, assistant: object, remark: Reason | None = None, field: str = "text") -> Exchange | Fault:
    for whose, text in (("question", user), ("answer", assistant)):
        if not isinstance(text, str):
            return Fault(Reason.NOT_TEXT, f"{field} of the {whose}: {type_name(text)}")
        if not _is_unicode(text):
            return Fault(Reason.NOT_UNICODE)
    assert isinstance(user, str) and isinstance(assistant, str)
    return Exchange(user, assistant, remark)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
