"""Thoughts that are in a field of their own beside the answer, and whether a text holds a thought at all.

Chat servers and their exports put the thought of an assistant turn into `reasoning_content`, `reasoning` or another
field. It is read as if it stood before the answer, between the markers. What a turn holds beside role, text and thought
cannot be rendered, so the row is rejected and the field named: nothing is lost unseen.
"""

from collections.abc import Mapping
from typing import Any

from essence.data.markers import BEGIN_SOLUTION, END_SOLUTION, END_THINK, THINK, THOUGHT_MARKERS
from essence.data.reasons import Fault, Reason

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "chain_of_thought", "cot")
MARKERS = (THINK, END_THINK, *(marker for marker, _ in THOUGHT_MARKERS), BEGIN_SOLUTION, END_SOLUTION)


def fields_beside(turn: Mapping[str, Any], known: tuple[str, ...]) -> list[str]:
    """Fields of a turn that hold something and are not among the known ones; tables fill absent ones with nothing."""
    return [key for key, value in turn.items() if key not in known and not _is_nothing(value)]


def with_thought(turn: Mapping[str, Any], text: object) -> object | Fault:
    """The text of an assistant turn, with the thought of its own field before it if there is one."""
    given = {key: turn[key] for key in THOUGHT_FIELDS if not _is_nothing(turn.get(key))}
    if not given or not isinstance(text, str):
        return text
    name, thought = next(iter(given.items()))
    for key, value in given.items():
        if not isinstance(value, str):
            return Fault(Reason.NOT_TEXT, f"{key}: {type_name(value)}")
        if value != thought:
            return Fault(Reason.TWO_THOUGHTS, f"{name} and {key}")
    if any(marker in part for marker in MARKERS for part in (thought, text)):
        return Fault(Reason.TWO_THOUGHTS, f"markers and {name}")
    return f"{THINK}\n{thought.strip()}\n{END_THINK}\n\n{text.strip()}"


def holds_thought(text: str) -> bool:
    """True when something comes between the markers, or on the inner side of the only one there is."""
    before, closing, _ = text.partition(END_THINK)
    if closing:
        return bool(before.rpartition(THINK)[2].strip())
    return bool(text.partition(THINK)[2].strip())


def type_name(value: object) -> str:
    """The type of a value in the words of JSON."""
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "text", list: "list"}
    return names.get(type(value), "object" if isinstance(value, Mapping) else type(value).__name__)


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})
