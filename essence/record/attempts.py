"""The attempts at one stage, as lines of `attempts.jsonl`: what a killed, stopped or failed attempt has cost counts."""

import datetime
import time
from pathlib import Path

from essence.files import append_json_line
from essence.record.live_records import ProgressRecord, look_at, read_attempt_lines
from essence.record.manifest import Attempt, HowEnded


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class AttemptJournal:
    """Begins an attempt when made; `end` closes it. An attempt that was never closed was killed."""

    def __init__(self, file: Path, progress: Path) -> None:
        self.file = file
        lines = list(read_attempt_lines(self.file))
        if lines and lines[-1].started:
            append_json_line(self.file, {"ended": "killed", "seconds": _heard_of(progress, lines[-1].unix)})
        self.unix = time.time()
        append_json_line(self.file, {"started": now(), "unix": self.unix})

    def end(self, outcome: HowEnded) -> None:
        append_json_line(self.file, {"ended": outcome, "seconds": round(time.time() - self.unix, 3)})

    def attempts(self) -> list[Attempt]:
        """All attempts, the running one as finished now."""
        lines = list(read_attempt_lines(self.file))
        starts = [line.started for line in lines if line.started]
        ends: list[tuple[HowEnded, float]] = [(line.ended, line.seconds) for line in lines if line.ended]
        ends.append(("finished", round(time.time() - self.unix, 3)))
        return [
            Attempt(started=start, seconds=seconds, outcome=outcome)
            for start, (outcome, seconds) in zip(starts, ends, strict=False)
        ]


def _heard_of(progress: Path, started: float) -> float:
    """Seconds from the start of a killed attempt to its last sign of life."""
    last = look_at(progress, ProgressRecord)
    return round(max(0.0, last.updated - started), 3) if last else 0.0
