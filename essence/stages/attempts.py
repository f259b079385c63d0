"""The attempts at one stage, as lines of `attempts.jsonl`: what a killed, stopped or failed attempt has cost counts."""

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from essence.atomic import read_json
from essence.errors import RecordError
from essence.record.manifest import Attempt

Outcome = Literal["finished", "stopped", "failed", "killed"]


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class AttemptJournal:
    """Begins an attempt when made; `end` closes it. An attempt that was never closed was killed."""

    def __init__(self, file: Path, progress: Path) -> None:
        self.file = file
        lines = self._lines()
        if lines and "started" in lines[-1]:
            self._append({"ended": "killed", "seconds": _heard_of(progress, lines[-1]["unix"])})
        self.unix = time.time()
        self._append({"started": now(), "unix": self.unix})

    def end(self, outcome: Outcome) -> None:
        self._append({"ended": outcome, "seconds": round(time.time() - self.unix, 3)})

    def attempts(self) -> list[Attempt]:
        """All attempts, the running one as finished now."""
        lines = self._lines()
        last = {"ended": "finished", "seconds": round(time.time() - self.unix, 3)}
        starts = [line for line in lines if "started" in line]
        ends = [line for line in lines if "ended" in line]
        return [
            Attempt(started=start["started"], seconds=end["seconds"], outcome=end["ended"])
            for start, end in zip(starts, [*ends, last], strict=False)
        ]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def _append(self, line: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            # A line torn by a kill stays a line of its own, which no reader takes.
            torn = file.tell() and not self.file.read_bytes().endswith(b"\n")
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _heard_of(progress: Path, started: float) -> float:
    """Seconds from the start of a killed attempt to its last sign of life."""
    try:
        return round(max(0.0, float(read_json(progress)["updated"]) - started), 3)
    except RecordError:
        return 0.0
