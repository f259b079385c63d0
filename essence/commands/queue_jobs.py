"""`invoke run --engine slurm`: queue the jobs of what is left and end; with `--dry-run` print them as a shell text."""

import json
import shlex
import sys
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from essence.commands import report
from essence.commands.gold_checks import require_readable_golds
from essence.commands.options import whole_plan
from essence.commands.save_plan import save_plan
from essence.engines.engine import fetches
from essence.engines.selected_run import Run
from essence.engines.slurm.job_text import Job, batch_text, submit_text
from essence.engines.slurm.slurm_engine import SlurmEngine
from essence.engines.slurm.submit import Submission
from essence.errors import ExitCode, MachineError, PinError
from essence.plan.catalogue import missing
from essence.plan.expected_times import expected_seconds
from essence.record.run_directory import hold
from essence.settings import DownloadSettings

QUEUEING_WAIT_S = 300.0
"""How long to wait while another experiment's jobs are queued, with which this one may share stages."""


class UnqueuedJob(TypedDict):
    """A job as `--dry-run --json` prints it."""

    id: str
    """Of its stage."""
    title: str
    after: list[str]
    """Stages whose jobs must have succeeded before."""
    text: str


class QueuedJob(TypedDict):
    """A job that is in the queue now, as `--json` prints it."""

    stage: str
    title: str
    job: str
    """Slurm's id."""
    after: list[str]
    queued_now: bool


class Queueing(TypedDict):
    """What `--json` prints of a submission."""

    experiment: str
    jobs: list[QueuedJob]
    done_before: int
    """Stages."""
    not_taken: int
    """Jobs that Slurm took no more of."""
    refusal: str | None
    """What Slurm said to the first of these; None where it took all."""


def planned_jobs(selection: Run, engine: SlurmEngine) -> list[Job]:
    """A job for each stage that is left and needs no network, once for all cells that share it."""
    launches = engine.launches(selection.left(), selection.run_directory)
    expected = expected_seconds(selection.plan, selection.run_directory)
    return [engine.job(launch, expected.get(launch.stage_id)) for launch in launches]


def print_jobs(selection: Run, engine: SlurmEngine, as_json: bool) -> int:
    """Print the jobs; nothing is checked but the input, nothing is written."""
    jobs = [(job, batch_text(job, engine.site)) for job in planned_jobs(selection, engine)]
    if as_json:
        known = {job.surroundings.stage_id for job, _ in jobs}
        told: list[UnqueuedJob] = [
            {
                "id": job.surroundings.stage_id,
                "title": job.surroundings.title,
                "after": [stage for stage in job.after if stage in known],
                "text": text,
            }
            for job, text in jobs
        ]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write(submit_text(jobs) + _about(selection, engine, len(jobs)))
    return 0


def _about(selection: Run, engine: SlurmEngine, jobs: int) -> str:
    lines = [f"# {selection.name}: {jobs} jobs (site {engine.site_name})"]
    if downloads := sum(fetches(stage) for stage in selection.left()):
        lines.append(f"# first, where there is a network: {downloads} downloads: {selection.fetching()}")
    return "\n".join(lines) + "\n"


def queue_left(selection: Run, engine: SlurmEngine, whole: bool, as_json: bool, console: Console) -> int:
    """Queue what is left; with nothing left, write the report. Returns the exit code."""
    left = selection.left()
    run_directory = selection.run_directory
    check_downloads(selection)
    if left:
        engine.check(left)  # nothing is written where an image is missing, or no Slurm answers
        require_readable_golds(selection)
    command = selection.words.typed(whole)
    folder = run_directory.experiment(selection.name)
    queueing, what = run_directory.queueing, f"the queueing of jobs in {run_directory.root}"
    with hold(folder, f"run directory {folder}", command), hold(queueing, what, command, QUEUEING_WAIT_S):
        # Before the look at what is left: a job that ends in between is then not queued again.
        submission = engine.submission() if left else Submission(engine.site, engine.site_name)
        jobs = planned_jobs(selection, engine)
        save_plan(whole_plan(selection), selection)
        with console.status(f"queueing {len(jobs)} jobs"):
            submission.add_all(jobs)
        if not jobs:
            report.write_once_graded(run_directory, selection.name, selection.wanted, console)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(selection, submission, jobs), indent=2) + "\n")
    elif jobs:
        _say(selection, submission, jobs, command, console)
    else:
        report.print_tables(run_directory, selection.name, console)
        console.print(f"\n{selection.name}: all {len(selection.wanted)} stages were done before.", highlight=False)
    return ExitCode.FAILED if submission.refusal else 0


def check_downloads(selection: Run) -> None:
    """MachineError when something is left that jobs cannot do, PinError for a local path that is not there."""
    left = selection.left()
    if downloads := sum(fetches(stage) for stage in left):
        raise MachineError(
            f"{selection.name}: {downloads} downloads are left, and compute nodes have no network",
            f"first, where there is one: {selection.fetching()}",
        )
    for stage in left:
        if isinstance(stage.settings, DownloadSettings) and (error := missing(stage.settings.source)):
            raise PinError(f"{selection.name}: {error.problem}", error.cure)


def _as_json(selection: Run, submission: Submission, jobs: list[Job]) -> Queueing:
    fresh = {job.surroundings.stage_id for job in submission.fresh}
    told: list[QueuedJob] = [
        {
            "stage": job.surroundings.stage_id,
            "title": job.surroundings.title,
            "job": submission.jobs[job.surroundings.stage_id],
            "after": submission.needed(job),
            "queued_now": job.surroundings.stage_id in fresh,
        }
        for job in jobs
        if job.surroundings.stage_id in submission.jobs
    ]
    return {
        "experiment": selection.name,
        "jobs": told,
        "done_before": len(selection.wanted) - len(jobs),
        "not_taken": len(jobs) - len(told),
        "refusal": submission.refusal,
    }


def _say(selection: Run, submission: Submission, jobs: list[Job], command: str, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("job", "stage", "after", ""):
        table.add_column(heading, overflow="fold")
    fresh = {job.surroundings.stage_id for job in submission.fresh}
    for job in jobs:
        if identifier := submission.jobs.get(job.surroundings.stage_id):
            after = " ".join(submission.needed(job))
            said = "queued" if job.surroundings.stage_id in fresh else "was in the queue"
            table.add_row(identifier, job.surroundings.title, after, said)
    console.print(table, highlight=False)
    console.print(f"\n{_counts(selection, submission, jobs)}", highlight=False, soft_wrap=True)
    if submission.refusal:
        console.print(f"Slurm takes no more now ({submission.refusal}); later, the rest: {command}", soft_wrap=True)
    words = ["invoke", "status", "--experiment", selection.name]
    words += ["--runs", selection.words.runs] if selection.words.runs else []
    console.print(f"how far it is: {shlex.join(words)}", highlight=False, soft_wrap=True)
    console.print(f"once all have ended, the report; or what failed, again: {command}", highlight=False, soft_wrap=True)


def _counts(selection: Run, submission: Submission, jobs: list[Job]) -> str:
    there = len(submission.jobs) - len(submission.fresh)
    text = f"{selection.name}: {len(submission.fresh)} jobs queued"
    text += f", {there} were in the queue" if there else ""
    text += f", {left} not taken" if (left := len(jobs) - len(submission.jobs)) else ""
    return text + f", {len(selection.wanted) - len(jobs)} of {len(selection.wanted)} stages done before"
