"""The state of every stage and cell of an experiment, from files, and from Slurm if it runs some."""

from collections.abc import Iterator
from dataclasses import dataclass

from essence.engines.slurm.jobs import NEVER_STARTED, StageJob
from essence.engines.slurm.snapshot import QueueSnapshot, failure_of_job, look_at_scheduler, state_with_job
from essence.errors import RecordError
from essence.record.live_records import FailureRecord, GivenGpus, ProgressRecord, look_at, read_failure
from essence.record.plan_record import BaselineEntry, CellEntry, PlanRecord, plan_of
from essence.record.run_directory import RunDirectory, StageFolder, State, describe_holder, holder_alive

STATES: tuple[State, ...] = ("done", "running", "failed", "queued", "interrupted", "left")


@dataclass(frozen=True)
class StageView:
    """A stage that something happens to."""

    id: str
    title: str
    log: str
    job: StageJob | None = None
    progress: ProgressRecord | None = None
    """Of a running stage, once it has said how far it is."""
    failure: FailureRecord | None = None
    gpus: tuple[str, ...] = ()
    """Of a running stage of this machine."""

    @property
    def gpu_words(self) -> str:
        """`, on GPUs 4, 5`."""
        return f", on GPU{'s' * (len(self.gpus) > 1)} {', '.join(self.gpus)}" if self.gpus else ""

    @property
    def job_words(self) -> str:
        """`, job 12 (Priority), queued again 2 times`, for a stage that a scheduler has."""
        if self.job is None:
            return ""
        state = self.job.state
        reason = f" ({state.reason})" if state.reason and not self.job.cause else ""
        again = f", queued again {state.restarts} {'time' if state.restarts == 1 else 'times'}"
        return f", job {state.job}{reason}{again if state.restarts else ''}"

    @property
    def reason(self) -> str:
        """The last line of why it failed."""
        return self.failure.last_line if self.failure else ""

    def as_json(self) -> dict[str, object]:
        record: dict[str, object] = {"stage": self.id, "title": self.title}
        if self.progress:
            record |= self.progress.model_dump()
        if self.gpus:
            record["given_gpus"] = list(self.gpus)
        if self.failure:
            record |= {"log": self.log, **self.failure.model_dump(exclude_unset=True)}
        elif self.job:
            record["scheduler_job"] = self.job.as_json()
        return record


@dataclass(frozen=True)
class CellState:
    """A cell or baseline."""

    name: str
    stages: dict[str, State]
    """`train`, `grade aime25 best` -> its state."""

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "stages": self.stages}


@dataclass(frozen=True)
class MatrixState:
    """One look at an experiment."""

    experiment: str
    held_by: str | None
    scheduler: QueueSnapshot | None
    """None where no scheduler has to do with it."""
    counts: dict[State, int]
    cells: list[CellState]
    running: list[StageView]
    queued: list[StageView]
    blocked: list[StageView]
    """Jobs that will never start."""
    failed: list[StageView]

    @property
    def who_works(self) -> str:
        """Who holds the run directory, or how the queue stands."""
        if self.held_by:
            return f"held by {self.held_by}"
        if self.scheduler and self.scheduler.silent is not None:
            return f"shown from files alone, as no scheduler answers: {self.scheduler.silent}"
        return "Slurm has them" if self.queued or (self.scheduler and self.running) else "nothing runs"

    @property
    def is_over(self) -> bool:
        """True when no stage can change state: all are done, or one failed and nothing runs or is queued.

        While a scheduler that has to do with it does not answer, its queue is unknown.
        """
        left = sum(number for name, number in self.counts.items() if name != "done")
        silent = self.scheduler is not None and self.scheduler.silent is not None
        works = self.held_by or self.running or self.queued or silent
        return left == 0 or (self.counts["failed"] > 0 and not works)

    @property
    def count_words(self) -> str:
        """`3 done, 1 running`."""
        return ", ".join(f"{number} {name}" for name, number in self.counts.items() if number)

    def as_json(self) -> dict[str, object]:
        stages = {"running": self.running, "queued": self.queued, "blocked": self.blocked, "failed": self.failed}
        return {
            "experiment": self.experiment,
            "held_by": self.held_by,
            "scheduler": self.scheduler.as_json() if self.scheduler else None,
            "counts": self.counts,
            "cells": [cell.as_json() for cell in self.cells],
            **{name: [stage.as_json() for stage in views] for name, views in stages.items()},
        }


def collect(run: RunDirectory, experiment: str, view: QueueSnapshot | None = None) -> MatrixState:
    """The state of an experiment; RecordError when it never ran here.

    `view` is what the scheduler was seen to say, None where none has to do with it.
    """
    plan = planned(run, experiment)
    jobs = view.jobs if view else {}
    states = {i: state_with_job(run.stage(i), jobs.get(i)) for i in plan.stages}
    folder = run.experiment(experiment)
    views = {i: _view(run.stage(i), plan, jobs.get(i), state) for i, state in states.items()}

    def of(state: State) -> Iterator[StageView]:
        return (views[i] for i, found in states.items() if found == state)

    return MatrixState(
        experiment=experiment,
        held_by=describe_holder(folder) if holder_alive(folder) else None,
        scheduler=view,
        counts={state: list(states.values()).count(state) for state in STATES},
        cells=[_cell(entry, states) for entry in plan.entries],
        running=list(of("running")),
        queued=list(of("queued")),
        blocked=[stage for stage in of("left") if stage.job and stage.job.cause == NEVER_STARTED],
        failed=list(of("failed")),
    )


def see_queue(run: RunDirectory, experiment: str) -> QueueSnapshot | None:
    """What the scheduler says of an experiment's stages."""
    return look_at_scheduler(run, experiment, planned(run, experiment).stages)


def planned(run: RunDirectory, experiment: str) -> PlanRecord:
    """The plan of an experiment; RecordError when it never ran here."""
    if not run.plan(experiment).is_file():
        raise not_run_here(run, experiment)
    return plan_of(run, experiment)


def not_run_here(run: RunDirectory, experiment: str) -> RecordError:
    """The error for an experiment that has no plan in this run directory."""
    ran = ", ".join(run.experiments()) or "none"
    return RecordError(
        f"{experiment} has not run in {run.root} (ran: {ran})", f"start it: invoke reproduce {experiment}"
    )


def _view(folder: StageFolder, plan: PlanRecord, job: StageJob | None, state: State) -> StageView:
    name = folder.path.name
    given = look_at(folder.given_gpus, GivenGpus) if state == "running" and job is None else None
    return StageView(
        id=name,
        title=plan.stages[name].title,
        log=str(folder.log),
        job=job,
        progress=folder.progress_record() if state == "running" else None,
        failure=_failure(folder, job) if state == "failed" else None,
        gpus=given.names if given else (),
    )


def _failure(folder: StageFolder, job: StageJob | None) -> FailureRecord:
    if job and job.cause:
        return failure_of_job(folder, job)
    try:
        return read_failure(folder.failure)
    except RecordError as error:
        return FailureRecord(kind="RecordError", message=str(error))


def _cell(entry: CellEntry | BaselineEntry, states: dict[str, State]) -> CellState:
    stages = dict(entry.stages)
    for evaluation in entry.evaluations:
        stages |= {f"{stage} {evaluation.name}": name for stage, name in evaluation.stages.items()}
    name = entry.name if isinstance(entry, CellEntry) else f"{entry.title} as it comes ({entry.protocol})"
    return CellState(name, {label: states[identifier] for label, identifier in stages.items()})
