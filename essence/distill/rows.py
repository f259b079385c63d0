"""From the rows of a data set to question and answer texts, or to one named reason why not.

A data set lies in a folder as `.jsonl`, Parquet or `.json` files (a list of rows). They are read in the order of their
names, a row's position counts through all of them, and only a `.json` file is held in memory as a whole.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from essence.errors import InputError
from essence.settings import RowFormat

Row = Mapping[str, Any]
PARQUET_BATCH_ROWS = 512
EXAMPLES_KEPT = 5
EXAMPLE_CHARACTERS = 200

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


@dataclass
class Rejections:
    """Rejected rows, counted by reason, with a few of each to look at."""

    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, reason: Reason, position: int, row: object) -> None:
        entry = self.reasons.setdefault(reason.value, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES_KEPT:
            text = json.dumps(row, ensure_ascii=False, default=str)
            entry["examples"].append({"position": position, "row": text[:EXAMPLE_CHARACTERS]})

    @property
    def count(self) -> int:
        return sum(entry["count"] for entry in self.reasons.values())

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """`{reason: {"count": n, "examples": [{"position", "row"}]}}`, sorted by reason."""
        return dict(sorted(self.reasons.items()))


def read_rows(folder: Path) -> Iterator[object]:
    """Every row of a folder's data files, in order of file name, then of the file.

    Raises:
        InputError: there is no data file, or one is damaged; names file and line.
    """
    for path in data_files(folder):
        yield from _FILE_READERS[path.suffix](path)


def count_rows(folder: Path) -> int:
    """How many rows `read_rows` will give, without parsing them where that can be helped; for showing progress."""
    return sum(_FILE_COUNTERS[path.suffix](path) for path in data_files(folder))


def data_files(folder: Path) -> list[Path]:
    """The files that `read_rows` reads; what lies in hidden folders is not data. InputError where there are none."""
    found = [path for path in folder.rglob("*") if path.suffix in _FILE_READERS and path.is_file()]
    files = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    if not files:
        raise InputError(f"{folder}: no rows: expected files ending in {', '.join(_FILE_READERS)}")
    return files


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


def _json_lines(path: Path) -> Iterator[object]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def _json_list(path: Path) -> Iterator[object]:
    rows = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    yield from rows


def _parquet(path: Path) -> Iterator[object]:
    with _open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            yield from batch.to_pylist()


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged Parquet file ({error}): download it again") from None


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _count_parquet(path: Path) -> int:
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _parse(text: str, where: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}): download it again") from None
    return value


_FILE_READERS: dict[str, Callable[[Path], Iterator[object]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".parquet": _parquet,
}
_FILE_COUNTERS: dict[str, Callable[[Path], int]] = {
    ".jsonl": _count_lines,
    ".json": lambda path: sum(1 for _ in _json_list(path)),
    ".parquet": _count_parquet,
}
