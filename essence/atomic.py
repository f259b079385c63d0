"""Small files that a reader sees whole or not at all, and the sentence for one that is damaged; journals."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from essence.errors import RecordError

MOST_BYTES = 1 << 28
"""Of a record: the plan of 500 cells takes under 1 % of it."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new text, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # On a full disk, or on Ctrl-C, nothing half-written stays.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder, so that a power failure after a rename cannot leave an empty file under its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; RecordError when the file is missing, damaged or larger than any record is.

    Stricter than the `json` module: NaN and infinities, half a surrogate pair, and nesting or numbers beyond what
    Python takes are damage, so that whatever is read can be hashed and printed.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise RecordError(f"{path}: {size} bytes, no record is larger than {MOST_BYTES}: not of this kit")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=_refuse)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise RecordError(f"{path}: not a file") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: damaged, not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecordError(f"{path}: damaged, holds {type(value).__name__} where an object is expected")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}")


def append_json_line(path: Path, line: dict[str, Any]) -> None:
    """Append to a journal of JSON lines, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        # A line torn by a kill stays a line of its own, which no reader takes.
        torn = file.tell() and not path.read_bytes().endswith(b"\n")
        file.write(("\n" if torn else "") + json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
