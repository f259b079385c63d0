"""`tokens.arrow`: a data set rendered and tokenised once, which spans and sections are views on.

Arrow IPC file, written in record batches and read through a memory map, so neither side holds it in memory. Columns:
`position` int64 (of the row in its data set), `input_ids` list<int32> (the whole row), `think_start` and `think_end`
int32 (index of the first `<think>` and `</think>`, -1 where absent), `answer` int32 (index of the token with which the
final answer is first stated, -1 where none is found; files of earlier versions have no such column).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from essence.data.selection import Indices, SectionBounds
from essence.data.truncation import Entropies, Example, SkipReason, Tokens, make_examples
from essence.errors import InputError
from essence.files import flush_to_disk
from essence.settings import ViewSettings

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("think_start", pa.int32()),
        ("think_end", pa.int32()),
        ("answer", pa.int32()),
    ]
)


@dataclass(frozen=True)
class TokenRow:
    """One rendered row."""

    position: int
    input_ids: Tokens
    think_start: int
    think_end: int
    boxed: int = -1
    """Index of the token that closes the first statement of the boxed answer, -1 where nothing is boxed; counted in
    the statistics, not kept in the file."""
    answer: int = -1
    """Index of the token with which the final answer is first stated, -1 where none is found."""


class TokenWriter:
    """Writes `path` under a temporary name; it appears whole when the context ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._digest = hashlib.sha256()
        self._writer: Any = None

    def __enter__(self) -> "TokenWriter":
        self._writer = pa.ipc.new_file(str(self._temporary), SCHEMA)
        return self

    def write(self, rows: Sequence[TokenRow]) -> None:
        """Append one record batch."""
        if not rows:
            return
        columns = {
            "position": pa.array([row.position for row in rows], pa.int64()),
            "input_ids": _lists([row.input_ids for row in rows]),
            "think_start": pa.array([row.think_start for row in rows], pa.int32()),
            "think_end": pa.array([row.think_end for row in rows], pa.int32()),
            "answer": pa.array([row.answer for row in rows], pa.int32()),
        }
        self._writer.write_batch(pa.record_batch(columns, SCHEMA))
        for row in rows:
            head = [row.position, row.input_ids.size, row.think_start, row.think_end]
            self._digest.update(np.array(head, dtype="<i8").tobytes())
            self._digest.update(row.input_ids.astype("<i4", copy=False).tobytes())

    @property
    def sha256(self) -> str:
        """Of the rows, however batched: position, length, think_start, think_end as int64, then the ids as int32.

        The column `answer` is not in it: it follows from the text, and tells no two sets of tokens apart.
        """
        return self._digest.hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is None:
            flush_to_disk(self._temporary)
            self._temporary.replace(self._path)


class TokenTable:
    """`tokens.arrow` as memory-mapped columns; rows are sliced, never copied."""

    def __init__(self, path: Path) -> None:
        """Open the file; InputError when it is missing or damaged."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: missing or damaged ({error}): run the tokenize stage again") from None
        self.positions: Indices = _column(batches, "position", np.int64)
        self._ids: list[Tokens] = [batch.column("input_ids").values.to_numpy() for batch in batches]
        offsets = [batch.column("input_ids").offsets.to_numpy() for batch in batches]
        self._batches = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])
        self._starts = np.concatenate([np.zeros(0, np.int32), *(each[:-1] for each in offsets)])
        self.lengths: Indices = np.concatenate([np.zeros(0, np.int64), *(np.diff(each) for each in offsets)])
        starts, ends = (_column(batches, name, np.int64) for name in ("think_start", "think_end"))
        known = "answer" in reader.schema.names
        answers = _column(batches, "answer", np.int64) if known else None
        self.bounds = SectionBounds(self.lengths, starts, ends, answers)
        self._path = path

    def __len__(self) -> int:
        return int(self.positions.size)

    def input_ids(self, index: int) -> Tokens:
        """Tokens of one row; int32, shape (L,)."""
        return next(self.rows(np.array([index])))

    def rows(self, indices: Indices) -> Iterator[Tokens]:
        """Tokens of some rows, in the given order; int32, shape (L,) each."""
        starts = self._starts[indices]
        stops = starts + self.lengths[indices]
        for batch, start, stop in zip(self._batches[indices].tolist(), starts.tolist(), stops.tolist(), strict=True):
            yield self._ids[batch][start:stop]

    def examples(
        self,
        indices: Indices,
        view: ViewSettings,
        eos_id: int,
        kept: Indices | None = None,
        entropies: Iterable[Entropies] | None = None,
    ) -> Iterator[Example | SkipReason]:
        """A view of some rows, in the given order; `kept` as in `select`, `entropies` as in `make_examples`.

        Raises:
            InputError: the view ends at the final answer, and the file is of a version that did not look for it.
        """
        if view.span == "to-first-answer" and self.bounds.answers is None:
            raise InputError(
                f"{self._path}: no column 'answer', which span 'to-first-answer' reads: run the tokenize stage again"
            )
        bounds = self.bounds.at(indices)
        return make_examples(self.positions[indices], self.rows(indices), bounds, view, eos_id, kept, entropies)


def _lists(rows: Sequence[Tokens]) -> Any:
    offsets = np.cumsum([0, *(row.size for row in rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def _column(batches: Sequence[Any], name: str, dtype: type) -> NDArray[Any]:
    parts = [batch.column(name).to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, dtype), *parts])
