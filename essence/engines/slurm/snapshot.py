"""What a scheduler adds to what the files of a run tell: which stages wait, and why a job ended without a result."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from essence.engines.runner import last_lines
from essence.engines.slurm import queue
from essence.engines.slurm.jobs import NEVER_STARTED, UNKNOWN, StageJob, has_jobs, stage_jobs
from essence.engines.slurm.slurm_engine import SlurmEngine
from essence.errors import SchedulerError
from essence.record.live_records import FailureRecord, Live, look_at
from essence.record.run_directory import RunDirectory, StageFolder, State, held_from_here

LOG_LINES = 8
OF_SLURM = ("srun:", "slurmstepd")
"""How lines of a log begin that tell of an end and not of its reason."""


class EngineName(Live):
    """experiment.json: the engine that an experiment was run with."""

    engine: str | None = None


class JobFailure(FailureRecord):
    """Why a job left no result."""

    job: str
    cause: str | None


@dataclass(frozen=True)
class QueueSnapshot:
    """One look at the queue."""

    jobs: dict[str, StageJob] = field(default_factory=dict)
    """Stage id -> its last job, of stages that are not done."""
    silent: str | None = None
    """Why no Slurm answers."""

    def as_json(self) -> dict[str, object]:
        return {"answers": self.silent is None, "message": self.silent}


def look_at_scheduler(run_directory: RunDirectory, experiment: str, stages: Iterable[str]) -> QueueSnapshot | None:
    """Jobs of the stages that are not done; None when no scheduler has to do with this run."""
    folders = {identifier: run_directory.stage(identifier) for identifier in stages}
    left = {identifier: folder for identifier, folder in folders.items() if not folder.done}
    if not left or not (has_jobs(left.values()) or _engine(run_directory, experiment) == SlurmEngine.name):
        return None
    try:
        return QueueSnapshot(stage_jobs(left, queue.queue()))
    except SchedulerError as error:
        return QueueSnapshot(stage_jobs(left, None), str(error))


def _engine(run_directory: RunDirectory, experiment: str) -> str | None:
    resolved = look_at(run_directory.resolved(experiment), EngineName)
    return resolved.engine if resolved else None


def state_with_job(folder: StageFolder, job: StageJob | None) -> State:
    """State of a stage, from its files and its last job."""
    files = folder.state()
    if files == "done" or job is None or job.state.state == UNKNOWN:
        return files
    if job.cause == NEVER_STARTED:
        return "left"
    if not job.state.ended:
        return "queued" if job.state.waiting else "running"
    # A process on another machine may have been heard of just before its job ended.
    if job.cause is None or (files == "running" and held_from_here(folder.path)):
        return files
    return "failed"


def failure_of_job(folder: StageFolder, job: StageJob) -> JobFailure:
    """What `failure.json` says, if this job wrote it, or else the scheduler; with the cause by name."""
    number, cause = job.state.job, job.cause
    told = JobFailure(kind="Job", curable=True, message=job.sentence, time=None, job=number, cause=cause)
    if cause != "job failure":
        return told
    failure = look_at(folder.failure, FailureRecord)
    if failure and (failure.time or "") >= (job.submitted or ""):
        message = f"{failure.last_line} ({job.sentence})"
        return JobFailure.model_validate({**failure.model_dump(), "message": message, "job": number, "cause": cause})
    if lines := [line for line in last_lines(folder.log, LOG_LINES) if not line.startswith(OF_SLURM)]:
        return told.model_copy(update={"message": f"{job.sentence}: {lines[-1]}"})
    return told
