"""`metrics.jsonl`: a line a training step or validation, appended as it happens, cut back on resume."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from essence.atomic import write_atomically


class MetricsLog:
    """Appends records that each hold a `step`; open while it is a context."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def cut_after(self, step: int) -> None:
        """Drop the lines after a step, and a line that a kill left unfinished."""
        if self.path.exists():
            write_atomically(self.path, "".join(self._lines_until(step)))

    def write(self, **values: object) -> None:
        """Append one record; at once visible to a reader."""
        assert self._file is not None, "the log is not open"
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def flush_to_disk(self) -> None:
        """Return only when the lines so far would survive a power failure."""
        assert self._file is not None, "the log is not open"
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsLog":
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _lines_until(self, step: int) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n") or _step(line) > step:
                    return
                yield line


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf  # torn by a power failure
