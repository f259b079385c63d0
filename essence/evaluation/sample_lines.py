"""Lines of samples.jsonl and verdicts.jsonl: appended in whole pieces, read back up to the first damaged line.

So a killed stage goes on where it was.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from essence.errors import InputError
from essence.files import sync


@dataclass(frozen=True)
class SampleLine:
    """One completion."""

    problem: str
    sample: int
    """Number of the sample, from 0."""
    seed: int
    prompt_sha256: str
    completion: str
    """Without the stop token; the think markers are kept."""
    tokens: int
    """With the stop token."""
    finish_reason: str
    """`stop`, `length`, or `loop`: cut, where the settings allow it."""
    stop_token: int | None
    """Its id; None where no stop token ended the completion."""
    loop_at: int | None
    """Tokens at which a loop is complete."""
    seconds: float


@dataclass(frozen=True)
class VerdictLine:
    """What the graders say about one completion."""

    problem: str
    sample: int
    gold: str
    extracted: str | None
    answer: str | None
    """As parsed: equal answers have the same."""
    correct: bool
    status: str
    """`graded`, `no answer`, or `timeout`: too long, out of memory, or the grader died."""
    boxed: bool = False
    """True when the answer was taken from a box; earlier versions did not say."""
    others: dict[str, bool] = field(default_factory=dict)
    """Another grader -> whether it calls the completion right."""


Line = SampleLine | VerdictLine
AnyLine = TypeVar("AnyLine", SampleLine, VerdictLine)


def recover_lines(path: Path, kind: type[AnyLine]) -> list[AnyLine]:
    """Return a file's intact lines and cut off what a kill left behind them; no file is an empty list.

    A line counts when it ends in a newline and is a JSON object of its kind. The first that does not, and all after it,
    are removed.
    """
    if not path.exists():
        return []
    lines, intact_bytes = _intact(path.read_bytes(), kind)
    os.truncate(path, intact_bytes)
    return lines


def read_lines(path: Path, kind: type[AnyLine]) -> list[AnyLine]:
    """Read a finished file; InputError when it is missing or a line of it is damaged."""
    if not path.is_file():
        raise InputError(f"{path} is missing: the stage that writes it has to run first.")
    content = path.read_bytes()
    lines, intact_bytes = _intact(content, kind)
    if intact_bytes != len(content):
        raise InputError(f"{path} is damaged after line {len(lines)}: delete that stage's folder and run it again.")
    return lines


def append_lines(path: Path, lines: Iterable[Line]) -> None:
    """Append lines as one write, on disk when this returns."""
    with path.open("ab") as file:
        file.write(text_of(lines).encode("utf-8"))
        sync(file)


def text_of(lines: Iterable[Line]) -> str:
    """Lines as they are written."""
    return "".join(json.dumps(asdict(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _intact(content: bytes, kind: type[AnyLine]) -> tuple[list[AnyLine], int]:
    """Lines before the first damaged one, and how many bytes they take."""
    reader, lines = TypeAdapter(kind), list[AnyLine]()
    intact_bytes = 0
    for line in content.splitlines(keepends=True):  # bytes, since texts are also split at U+2028 and U+0085
        parsed = _parsed(line, reader)
        if parsed is None:
            break
        lines.append(parsed)
        intact_bytes += len(line)
    return lines, intact_bytes


def _parsed(line: bytes, reader: TypeAdapter[AnyLine]) -> AnyLine | None:
    """One line, or None where it is torn or of another kind."""
    if not line.endswith(b"\n"):
        return None
    try:
        return reader.validate_python(json.loads(line))
    except (ValueError, RecursionError):  # ValidationError is a ValueError
        return None
