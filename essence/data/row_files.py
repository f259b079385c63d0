"""The rows of a data set, from the files that it is in.

A data set is in a folder as JSON lines (`.jsonl`), JSON (`.json`: a list of rows, or one row per line), either of them
also with `.gz`, or Parquet. The files are read in the order of their names, and a row's position counts through all of
them. No file is ever held in memory as a whole.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from essence.errors import InputError
from essence.files import json_fault, refuse_other_encodings

PARQUET_BATCH_ROWS = 512
CHUNK_CHARACTERS = 1 << 20
LARGEST_OBJECT_BYTES = 1 << 24
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json")
"""What tools of the hub write beside the rows."""
_SPACE = re.compile(r"[ \t\n\r]*")


def read_rows(folder: Path) -> Iterator[object]:
    """Every row of a folder's data files, in order of file name, then of the file.

    Raises:
        InputError: there is no data file, or one is damaged; names file and, where there are lines, the line.
    """
    for _, rows in read_files(folder):
        yield from rows


def read_files(folder: Path) -> Iterator[tuple[Path, Iterator[object]]]:
    """(file, its rows) in order of file name; InputError as of `read_rows`."""
    for path in data_files(folder):
        yield path, _READERS[kind_of(path)](path)


def count_rows(folder: Path) -> int:
    """How many rows `read_rows` will give, without parsing them where that can be helped; for showing progress."""
    return sum(_COUNTERS[kind_of(path)](path) for path in data_files(folder))


def data_files(folder: Path) -> list[Path]:
    """The files that `read_rows` reads, or the one file that is named itself; what is in hidden folders is not data.

    InputError where there are none.
    """
    if folder.is_file() and is_data_file(folder):
        return [folder]
    found = [path for path in folder.rglob("*") if is_data_file(path) and path.is_file()]
    files = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    if not files:
        raise InputError(f"{folder}: no rows: expected files ending in {', '.join(_READERS)}")
    return files


def no_rows_error(path: Path, found: str) -> InputError:
    """For a file that is beside rows and holds none itself."""
    return InputError(f"{path} is no file of rows", f"remove it, or name the files with `files` ({found})")


def is_data_file(path: Path) -> bool:
    """True when a file of this name holds rows."""
    return path.name not in NOT_ROWS and any(path.name.endswith(kind) for kind in _READERS)


def may_be_settings(path: Path) -> bool:
    """True when a file of this name may hold something other than rows: JSON lines and Parquet never do."""
    return kind_of(path) in (".json", ".json.gz")


def kind_of(path: Path) -> str:
    """The ending that says how a data file is read."""
    return next(kind for kind in _READERS if path.name.endswith(kind))


def _json_lines(path: Path) -> Iterator[object]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield _parse(line, f"{path}:{number}")


def _json(path: Path) -> Iterator[object]:
    """A list of rows, or one row per line: whichever the first character says.

    InputError for one object over several lines, which is how settings are written.
    """
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig")
        first = text.read(1)
        while first.isspace():
            first = text.read(1)
        if first == "[":
            yield from _JsonList(text, path)
            return
    if first == "{" and _is_one_object(path):
        raise no_rows_error(path, "one object over several lines; wanted: a list of rows, or a row on each line")
    yield from _json_lines(path)


def _is_one_object(path: Path) -> bool:
    """True when a file is one JSON object whose first line is none; such a file is small, or it is damaged."""
    with _opened(path) as file:
        first, rest = file.readline(), file.read(LARGEST_OBJECT_BYTES)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        try:
            json.loads(first + rest)
        except (ValueError, RecursionError):
            return False
        return True
    return False


class _JsonList:
    """The values of a JSON list after its opening bracket, with one stretch of text in memory at a time."""

    def __init__(self, text: io.TextIOBase, path: Path) -> None:
        self._text, self._path = text, path
        self._window, self._at = "", 0

    def __iter__(self) -> Iterator[object]:
        if self._next_character() == "]":
            return self._check_end()
        while True:
            yield self._value()
            separator = self._next_character()
            if separator == "]":
                return self._check_end()
            if separator != ",":
                raise self._damaged(f"found {separator!r} between two rows, wanted a comma")
            self._at += 1
            self._next_character()

    def _value(self) -> object:
        """The value that begins here; one that the window cuts off is read again with more of the file."""
        decoder = json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self._window, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._read_on():
                    raise self._damaged(json_fault(error)) from None
                continue
            if end == len(self._window) and self._read_on():
                continue  # a number may go on
            self._at = end
            return cast(object, value)

    def _next_character(self) -> str:
        """The next one that is no white space, or nothing at the end of the file."""
        while True:
            space = _SPACE.match(self._window, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        """Drop what was used and read as much again as is left, a chunk at least; whether there was more."""
        left = self._window[self._at :]
        more = self._text.read(max(CHUNK_CHARACTERS, len(left)))
        self._window, self._at = left + more, 0
        return bool(more)

    def _check_end(self) -> None:
        self._at += 1  # the closing bracket
        if self._next_character():
            raise self._damaged("text after the list of rows")

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self._path}: not valid JSON ({why}): mend it or download it again")


def _parquet(path: Path) -> Iterator[object]:
    with _open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            yield from batch.to_pylist()


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path} needs pyarrow, which this environment lacks", "use JSON lines (.jsonl)") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: text that is no UTF-8
        raise InputError(f"{path}: damaged Parquet file ({error}): download it again") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            _check_encoding(cast(io.BufferedReader, file), path)
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged ({error}): mend it or download it again") from None


def _check_encoding(file: io.BufferedReader, path: Path) -> None:
    try:
        refuse_other_encodings(file.peek(4)[:4])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _count_lines(path: Path) -> int:
    with _opened(path) as file:
        return sum(1 for line in file if line.removeprefix(codecs.BOM_UTF8).strip())


def _count_json(path: Path) -> int:
    return sum(1 for _ in _json(path))


def _count_parquet(path: Path) -> int:
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _parse(line: bytes, where: str) -> object:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({json_fault(error)}): mend it or download it again") from None
    return value


_READERS: dict[str, Callable[[Path], Iterator[object]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
}
_COUNTERS: dict[str, Callable[[Path], int]] = {
    ".jsonl": _count_lines,
    ".jsonl.gz": _count_lines,
    ".json": _count_json,
    ".json.gz": _count_json,
    ".parquet": _count_parquet,
}
