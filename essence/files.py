"""Small files that a reader sees whole or not at all, and the sentence for one that is damaged; journals."""

import codecs
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from essence.errors import RecordError

GIB = 1 << 30
GZIP = b"\x1f\x8b"
MOST_DIGITS = 300
"""Of an integer in a record: what has more does not fit into a float."""
MOST_BYTES = 1 << 28
"""Of a record: the plan of 500 cells takes under 1 % of it."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new text, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            sync(file)
        temporary.replace(path)
    except BaseException:
        # On a full disk, or on Ctrl-C, nothing half-written stays.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync(file: IO[Any]) -> None:
    """Return only when what was written to an open file would survive a power failure."""
    file.flush()
    os.fsync(file.fileno())


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
        value = json.loads(text, parse_constant=_refuse, parse_int=_integer)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise RecordError(f"{path}: not a file") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: damaged, not valid JSON ({json_fault(error)})") from None
    if not isinstance(value, dict):
        raise RecordError(f"{path}: damaged, holds {type(value).__name__} where an object is expected")
    return value


def _integer(text: str) -> int:
    """An integer that arithmetic can take on; a larger one is damage."""
    value = int(text)
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}")


def append_json_line(path: Path, line: Mapping[str, object]) -> None:
    """Append to a journal of JSON lines, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        # A line torn by a kill stays a line of its own, which no reader takes.
        torn = file.tell() and not path.read_bytes().endswith(b"\n")
        file.write(("\n" if torn else "") + json.dumps(line) + "\n")
        sync(file)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""UTF-32 first: its little-endian mark begins with that of UTF-16."""


def decode_text(content: bytes) -> str:
    """Text of a file; a byte-order mark of UTF-8 is no part of it. ValueError in words for anything but UTF-8."""
    refuse_other_encodings(content)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"byte 0x{content[error.start]:02x} in line {line} is not UTF-8: save it as UTF-8") from None


def json_fault(error: ValueError | RecursionError) -> str:
    """Why Python cannot read a text as JSON, in words that do not speak of Python."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"
    digits = re.match(r"Exceeds the limit \((\d+) digits\)", str(error))
    return f"a number of more than {int(digits[1]):,} digits" if digits else str(error)


def refuse_other_encodings(beginning: bytes) -> None:
    """ValueError where the first bytes are those of gzip, or of UTF-16 or UTF-32, with or without a byte-order mark."""
    if beginning.startswith(GZIP):
        raise ValueError("it is compressed with gzip, wanted: text; unpack it, or let its name end in .gz")
    for mark, name in OTHER_ENCODINGS:
        if beginning.startswith(mark):
            raise ValueError(f"it is {name}, wanted: UTF-8; save it as UTF-8")
    if b"\0" in beginning[:2]:  # TOML and JSON begin with two characters of ASCII, neither of them NUL
        raise ValueError("it is UTF-16 or binary, wanted: UTF-8; save it as UTF-8")


def read_text(path: Path) -> str:
    """Text of a file that a person wrote; ValueError in words where there is none."""
    try:
        return decode_text(path.read_bytes())
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except IsADirectoryError:
        raise ValueError("a folder, wanted: a file") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None


CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """Compact JSON with sorted keys; NaN and infinities are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces of one MiB; OSError names the file, in the middle of it too."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        error.filename = error.filename or str(path)  # only the opening of a file says which
        raise
    return digest.hexdigest()
