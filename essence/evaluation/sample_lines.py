"""JSON lines that survive a kill: appended in whole pieces, read back up to the first damaged line.

Both samples.jsonl and verdicts.jsonl are written this way, so that a killed stage goes on where it was.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from essence.errors import InputError
from essence.files import sync


def recover_lines(path: Path) -> list[dict[str, Any]]:
    """Return a file's intact records and cut off what a kill left behind them; no file is an empty list.

    A line counts when it ends in a newline and is a JSON object. The first that does not, and all after it, go.
    """
    if not path.exists():
        return []
    records, intact_bytes = _intact(path.read_bytes())
    os.truncate(path, intact_bytes)
    return records


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a finished file; InputError when it is missing or a line of it is damaged."""
    if not path.is_file():
        raise InputError(f"{path} is missing: the stage that writes it has to run first.")
    content = path.read_bytes()
    records, intact_bytes = _intact(content)
    if intact_bytes != len(content):
        raise InputError(f"{path} is damaged after line {len(records)}: delete that stage's folder and run it again.")
    return records


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records as one write, on disk when this returns."""
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    with path.open("ab") as file:
        file.write(text.encode("utf-8"))
        sync(file)


def _intact(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Records before the first damaged line, and how many bytes they take."""
    records: list[dict[str, Any]] = []
    intact_bytes = 0
    for line in content.splitlines(keepends=True):
        record = _parsed(line)
        if record is None:
            break
        records.append(record)
        intact_bytes += len(line)
    return records, intact_bytes


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of one line, or None where it is torn."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
