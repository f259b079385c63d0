"""One function a row format: from a row to question and answer texts, or to one named reason why not."""

from collections.abc import Callable, Mapping

from essence.data.exchange import Exchange, Reason, check_exchange, replace_markers
from essence.settings import RowFormat


def read_conversation(row: object) -> Exchange | Reason:
    """Bespoke-Stratos, OpenThoughts, Sky-T1: `conversations: [{"from": "user" | "assistant", "value": str}]`.

    The system text beside it is not used, as released.
    """
    turns = row.get("conversations") if isinstance(row, Mapping) else None
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return Reason.NO_CONVERSATION
    roles = [turn.get("from") for turn in turns]
    if any(role not in ("user", "assistant") for role in roles):
        return Reason.UNKNOWN_ROLE
    if roles != ["user", "assistant"]:
        return Reason.NOT_TWO_TURNS
    user, assistant = (turn.get("value") for turn in turns)
    if not isinstance(user, str) or not isinstance(assistant, str):
        return Reason.NOT_TEXT
    return check_exchange(user, replace_markers(assistant))


def read_synthetic1(row: object) -> Exchange | Reason:
    """SYNTHETIC-1: `prompt: str`, `llm_response: str`, `task_type: str`; only verifiable mathematics, as released."""
    if not isinstance(row, Mapping) or not {"prompt", "llm_response", "task_type"} <= row.keys():
        return Reason.NO_PAIR
    if row["task_type"] != "verifiable_math":
        return Reason.OTHER_TASK
    return _check_pair(row["prompt"], row["llm_response"])


def read_nemotron(row: object) -> Exchange | Reason:
    """Llama-Nemotron: `input: [{"role", "content"}]`, of which the first, and `output: str`.

    A list in the list is accepted too, as released; the first message must be the user's.
    """
    first = row.get("input") if isinstance(row, Mapping) else None
    while isinstance(first, list) and first:
        first = first[0]
    if not isinstance(row, Mapping) or not isinstance(first, Mapping) or "output" not in row:
        return Reason.NO_PAIR
    if first.get("role") != "user":
        return Reason.UNKNOWN_ROLE
    return _check_pair(first.get("content"), row["output"])


def _check_pair(user: object, assistant: object) -> Exchange | Reason:
    if not isinstance(user, str) or not isinstance(assistant, str):
        return Reason.NOT_TEXT
    return check_exchange(user, assistant)


READERS: dict[RowFormat, Callable[[object], Exchange | Reason]] = {
    "conversations": read_conversation,
    "nemotron": read_nemotron,
    "synthetic1": read_synthetic1,
}
