"""Which job of a scheduler works on a stage, and what became of the last one.

`jobs.jsonl` in the stage's folder: a line when a job is queued, and one when somebody saw how it ended, as Slurm soon
forgets. Lines are only ever added, so that watching and queueing at the same time lose nothing. A job also works in the
stage's folder: one that is in the queue is found by that, whoever queued it.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from essence.engines.slurm.job_text import KEEPS_NOTHING
from essence.engines.slurm.queue import NEVER, JobState, ended, ran_out_of_memory
from essence.errors import ExitCode
from essence.files import append_json_line, read_json_lines
from essence.record.run_directory import StageFolder

UNKNOWN = "UNKNOWN"
"""State of a job that Slurm has forgotten before anybody looked."""
NEVER_STARTED = "dependency never satisfied"
CAUSES = {
    "BOOT_FAIL": "node failure",
    "NODE_FAIL": "node failure",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "DEADLINE": "time-out",
    "TIMEOUT": "time-out",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "FAILED": "job failure",
}
CURES = {
    "node failure": "issue the command again, it goes on from the last checkpoint",
    "cancelled": "issue the command again to go on",
    "time-out": "it had no time to stop at a checkpoint: raise its time or signal_s in the site file",
    "out of memory": "raise its memory_gib in the site file, or resources.memory_gib, where that is above 0",
    "preempted": "issue the command again, it goes on from the last checkpoint",
    NEVER_STARTED: "a stage that it needs did not succeed; cure that one and issue the command again",
    "unknown": "Slurm does not remember it; issue the command again, the log may tell more",
}


@dataclass(frozen=True)
class StageJob:
    """The last job of a stage."""

    state: JobState
    cause: str | None
    """Why it ended without a result: job failure, or one of `CURES`; None while it may still succeed."""
    submitted: str | None = None
    """When it was queued, as written down then."""
    stage: str = ""
    """Its kind."""

    @property
    def sentence(self) -> str:
        """Why it ended, and what cures it."""
        state, words = self.state, f"job {self.state.job}: {self.cause}"
        if self.cause == "job failure" and state.code == ExitCode.STOPPED:
            return f"{words}; it was asked to stop: {CURES['cancelled']}"
        if self.cause == "job failure":
            return f"{words}, " + (f"ended by signal {state.signal}" if state.signal else f"exit code {state.code}")
        if self.cause == "time-out" and self.stage in KEEPS_NOTHING:
            return f"{words}; it cannot go on where it was stopped: raise limits.{self.stage}.time in the site file"
        if self.cause == "node failure" and state.nodes:
            words += f" ({state.nodes})"
        return f"{words}; {CURES[str(self.cause)]}"

    def as_json(self) -> dict[str, object]:
        told = {name: value for name, value in dataclasses.asdict(self.state).items() if name != "folder"}
        return {**told, "cause": self.cause, "submitted": self.submitted}


def note_submission(folder: StageFolder, job: str, site: str, after: Iterable[str], when: str) -> None:
    """Write down that a job was queued, and behind which jobs."""
    append_json_line(folder.jobs, {"job": job, "site": site, "after": list(after), "submitted": when})


def is_noted(folder: StageFolder, job: str) -> bool:
    """Whether it was written down that this job was queued."""
    return any(str(line.get("job")) == job for line in read_json_lines(folder.jobs))


def _note_ending(folder: StageFolder, state: JobState) -> None:
    told = {name: value for name, value in dataclasses.asdict(state).items() if name not in ("folder", "dependency")}
    # A reviewer may look at a folder that is not theirs.
    with contextlib.suppress(OSError):
        append_json_line(folder.jobs, {"ended": told})


def has_jobs(folders: Iterable[StageFolder]) -> bool:
    """Whether any of these stages was ever queued."""
    return any(folder.jobs.is_file() for folder in folders)


def stage_jobs(folders: Mapping[str, StageFolder], queue: list[JobState] | None) -> dict[str, StageJob]:
    """Stage id -> its last job, of stages that have one; with `queue` None from what was written down alone."""
    known = {state.job: state for state in queue or []}
    # The last of two, where one is just ending.
    working = {state.folder: state for state in sorted(known.values(), key=_number) if not state.ended}
    found: dict[str, JobState] = {}
    noted = {stage: _noted(folder) for stage, folder in folders.items()}
    for stage, note in noted.items():
        job = note.job
        if active := working.get(str(folders[stage].path)):
            found[stage] = active
        elif note.ending:
            found[stage] = note.ending
        elif job in known:
            found[stage] = known[job]
            _note_ending(folders[stage], known[job])
    forgotten = {stage: note.job for stage, note in noted.items() if note.job and stage not in found}
    remembered = ended(forgotten.values()) if queue is not None else {}
    for stage, job in forgotten.items():
        found[stage] = remembered.get(job, JobState(job, UNKNOWN))
        if job in remembered:
            _note_ending(folders[stage], remembered[job])
    asked = queue is not None
    return {
        stage: StageJob(state, _cause(state, folders[stage], asked), noted[stage].submitted, stage.split("-")[0])
        for stage, state in found.items()
    }


def _number(state: JobState) -> int:
    digits = re.match(r"\d+", state.job)
    return int(digits[0]) if digits else 0


@dataclass(frozen=True)
class _Noted:
    """The last job that was queued, and how it ended as far as it was seen."""

    job: str = ""
    submitted: str | None = None
    ending: JobState | None = None


def _noted(folder: StageFolder) -> _Noted:
    last = _Noted()
    for line in read_json_lines(folder.jobs):
        if "job" in line:
            last = _Noted(str(line["job"]), str(line["submitted"]))
        elif line["ended"]["job"] == last.job:
            last = dataclasses.replace(last, ending=JobState(**line["ended"]))
    return last


def _cause(state: JobState, folder: StageFolder, asked: bool) -> str | None:
    """Why a job ended without a result; None of one that has not ended, or has succeeded."""
    if state.state == UNKNOWN:
        return "unknown" if asked else None
    if state.reason == NEVER or "(failed)" in state.dependency:
        return NEVER_STARTED
    cause = CAUSES.get(state.state)
    if cause == "job failure" and ran_out_of_memory(state.job, folder.log):
        return "out of memory"
    return cause
