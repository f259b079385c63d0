"""The attempts at one stage, as lines of `attempts.jsonl`: what a killed, stopped or failed attempt has cost counts."""

import datetime
import time
from pathlib import Path
from typing import Literal

from essence.errors import RecordError
from essence.files import append_json_line, read_json, read_json_lines
from essence.record.manifest import Attempt

Outcome = Literal["finished", "stopped", "failed", "killed"]


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class AttemptJournal:
    """Begins an attempt when made; `end` closes it. An attempt that was never closed was killed."""

    def __init__(self, file: Path, progress: Path) -> None:
        self.file = file
        lines = read_json_lines(self.file)
        if lines and "started" in lines[-1]:
            append_json_line(self.file, {"ended": "killed", "seconds": _heard_of(progress, lines[-1]["unix"])})
        self.unix = time.time()
        append_json_line(self.file, {"started": now(), "unix": self.unix})

    def end(self, outcome: Outcome) -> None:
        append_json_line(self.file, {"ended": outcome, "seconds": round(time.time() - self.unix, 3)})

    def attempts(self) -> list[Attempt]:
        """All attempts, the running one as finished now."""
        lines = read_json_lines(self.file)
        last = {"ended": "finished", "seconds": round(time.time() - self.unix, 3)}
        starts = [line for line in lines if "started" in line]
        ends = [line for line in lines if "ended" in line]
        return [
            Attempt(started=start["started"], seconds=end["seconds"], outcome=end["ended"])
            for start, end in zip(starts, [*ends, last], strict=False)
        ]


def _heard_of(progress: Path, started: float) -> float:
    """Seconds from the start of a killed attempt to its last sign of life."""
    try:
        return round(max(0.0, float(read_json(progress)["updated"]) - started), 3)
    except RecordError:
        return 0.0
