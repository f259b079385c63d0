"""`metrics.jsonl`: a line per training step or validation, appended as it happens, cut back on resume.

The same numbers go to TensorBoard's files (`essence/distill/event_files.py`).
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from essence.distill.event_files import EventFiles
from essence.files import sync, write_atomically


class MetricsLog:
    """Appends records that each hold a `kind` and a `step`; open while it is a context."""

    def __init__(self, path: Path, events: Path | None = None) -> None:
        """`events`: folder for TensorBoard's files; None = none are written."""
        self.path, self._events = path, events
        self._last_step = 0
        self._file: TextIO | None = None
        self._board: EventFiles | None = None

    def cut_after(self, step: int) -> None:
        """Drop the lines and events after a step, and a line that a kill left unfinished."""
        self._last_step = step
        if self.path.exists():
            write_atomically(self.path, "".join(self._lines_until(step)))

    def write(self, **values: object) -> None:
        """Append one record; at once visible to a reader."""
        assert self._file is not None, "the log is not open"
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()
        if self._board:
            self._board.write(values)

    def flush_to_disk(self) -> None:
        """Return only when the lines so far would survive a power failure."""
        assert self._file is not None, "the log is not open"
        sync(self._file)

    def __enter__(self) -> "MetricsLog":
        self._file = self.path.open("a", encoding="utf-8")
        if self._events:
            self._board = EventFiles(self._events, self._last_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board:
            self._board.close()

    def _lines_until(self, step: int) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n") or _step(line) > step:
                    return
                yield line


def read_rollouts(path: Path) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the student's own, of every rollout in the order of the steps."""
    found: list[tuple[int, int]] = []
    with path.open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            if line["kind"] == "rollouts":
                found += zip(line["prompt_tokens"], line["tokens"], strict=True)
    return found


def progress_note(record: Mapping[str, float | None]) -> str:
    """What a person sees of a step while it runs: `loss 1.2346 (CE 1.1000, KD 1.3692), 3,412 tokens/s, 12.3 GiB`."""
    kd = f", KD {record['kd']:.4f}" if record["kd"] is not None else ""
    speed = (record["tokens"] or 0) / max(record["seconds"] or 0.0, 1e-9)
    return (
        f"loss {record['loss']:.4f} (CE {record['ce']:.4f}{kd}), {speed:,.0f} tokens/s, "
        f"{record['peak_memory_gib']:.1f} GiB"
    )


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf  # torn by a power failure
