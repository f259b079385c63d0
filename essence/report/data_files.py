"""Write the rows of results beside the report: CSV with the standard library, Parquet where pyarrow is."""

import contextlib
import csv
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from essence.errors import MachineError
from essence.files import flush_to_disk
from essence.record.run_directory import RunDirectory
from essence.report.data_columns import Column, EvaluationRow, Row, SampleRow, Value, columns_of, values_of
from essence.report.data_rows import evaluation_rows, evaluations, has_lines, sample_rows
from essence.report.results.records import Results

CSV, PARQUET = "csv", "parquet"
EVALUATIONS, SAMPLE_TABLE = "evaluations", "samples"
"""Stems of the two files."""


class CsvWriter:
    """Comma-separated, UTF-8, a header; what is not known is empty, truth is `true` or `false`.

    Rows end in CR LF: the csv module quotes the characters of the line's end alone, and readers end a row at each.
    """

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\r\n")
        self._writer.writerow([column.name for column in columns])

    def add(self, rows: Sequence[Row]) -> None:
        self._writer.writerows([_as_text(value) for value in values_of(row)] for row in rows)

    def close(self) -> None:
        self._file.close()


class ParquetWriter:
    """A row group for each piece that is added; types and meanings are in the schema."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        self._schema = pa.schema(
            pa.field(
                column.name,
                kinds[column.kind],
                nullable=column.may_be_empty,
                metadata={"unit": column.told.unit, "meaning": column.told.meaning},
            )
            for column in columns
        )
        self._table, self._writer = pa.Table, pq.ParquetWriter(path, self._schema)

    def add(self, rows: Sequence[Row]) -> None:
        if rows:
            by_column = zip(*map(values_of, rows), strict=True)
            arrays = dict(zip(self._schema.names, map(list, by_column), strict=True))
            self._writer.write_table(self._table.from_pydict(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


WRITERS: dict[str, type[CsvWriter] | type[ParquetWriter]] = {CSV: CsvWriter, PARQUET: ParquetWriter}


def check_formats(formats: Iterable[str]) -> None:
    """MachineError where a format needs a library that this environment does not have."""
    if PARQUET in formats and importlib.util.find_spec("pyarrow") is None:
        raise MachineError(
            "--parquet needs pyarrow, which this environment (make setup-host) does not have",
            "make setup makes one that has it, .venv-train/bin/invoke of make setup-gpu has it, and --csv needs none",
        )


def write_data(results: Results, formats: Sequence[str]) -> list[Path]:
    """Write evaluations and samples in each format beside the report folder, all or none; returns the files.

    Raises:
        MachineError: pyarrow is not here.
        InputError, RecordError: lines of samples are damaged or not those of their record.
    """
    check_formats(formats)
    folder = RunDirectory(results.run_dir).experiment(results.experiment)
    with _all_or_none(folder, formats) as partials:
        _write(EvaluationRow, [list(evaluation_rows(results))], {name: partials[EVALUATIONS, name] for name in formats})
        _write(SampleRow, _sample_pieces(results), {name: partials[SAMPLE_TABLE, name] for name in formats})
    return [folder / f"{stem}.{name}" for stem, name in partials]


def without_lines(results: Results) -> list[str]:
    """Ids of graded evaluations whose samples are not here, as in a copy without them: they have no rows."""
    return [score.grade.id for _, score in evaluations(results) if score.accuracy and not has_lines(score)]


def _sample_pieces(results: Results) -> Iterator[Sequence[Row]]:
    """The rows of one evaluation after the other: only those of one are in memory."""
    for of, score in evaluations(results):
        if has_lines(score):
            yield list(sample_rows(results, of, score))


def _write(kind: type[Row], pieces: Iterable[Sequence[Row]], files: dict[str, Path]) -> None:
    with contextlib.ExitStack() as stack:
        writers = [WRITERS[name](file, columns_of(kind)) for name, file in files.items()]
        for writer in writers:
            stack.callback(writer.close)
        for piece in pieces:
            for writer in writers:
                writer.add(piece)


@contextlib.contextmanager
def _all_or_none(folder: Path, formats: Sequence[str]) -> Iterator[dict[tuple[str, str], Path]]:
    """Places to write to, named finally at the end; nothing stays of what was cut off."""
    partials = {
        (stem, name): folder / f".{stem}.{os.getpid()}.{name}"
        for stem in (EVALUATIONS, SAMPLE_TABLE)
        for name in formats
    }
    try:
        yield partials
        for (stem, name), partial in partials.items():
            flush_to_disk(partial)
            partial.replace(folder / f"{stem}.{name}")
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _as_text(value: Value) -> str | int | float:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
