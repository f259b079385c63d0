"""The rows of a data set, from the files that it lies in.

A data set lies in a folder as `.jsonl`, Parquet or `.json` files (a list of rows). They are read in the order of their
names, a row's position counts through all of them, and only a `.json` file is held in memory as a whole.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from essence.errors import InputError

PARQUET_BATCH_ROWS = 512


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
