"""Queue the jobs of what is left, each behind those it needs, and leave: no process stays on the login node.

What is done is skipped, what is in the queue already is not queued again, and the rest is queued, in an order in which
a job comes after all that it needs. So each prefix of the jobs is whole, should Slurm take no more.
"""

import json
import re
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from essence.commands import report
from essence.commands.options import whole_plan
from essence.commands.save_plan import save_plan
from essence.engines.engine import fetches
from essence.engines.run import Run
from essence.engines.slurm import queue as scheduler
from essence.engines.slurm.job_text import Job, batch_text
from essence.engines.slurm.jobs import is_noted, note_submission
from essence.engines.slurm.queue import NEVER, JobState
from essence.engines.slurm.site import Site
from essence.engines.slurm.slurm_engine import DEFAULT_SITE, planned_jobs
from essence.errors import MachineError, PinError, SchedulerError
from essence.files import read_json_lines
from essence.plan.catalogue import missing
from essence.record.attempts import now
from essence.record.run_directory import hold
from essence.settings import DownloadSettings

COMPLETING = "COMPLETING"
QUEUEING_WAIT_S = 300.0
"""How long to wait while another experiment's jobs are queued, with which this one may share stages."""
EXIT_PARTLY = 1


@dataclass
class Submission:
    """Jobs as they go into the queue."""

    site: Site
    site_name: str
    queue: list[JobState] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """Stage id -> the job that works on it."""
    fresh: list[Job] = field(default_factory=list)
    """Queued now; the others were in the queue."""
    refusal: str | None = None
    """Why Slurm takes no more jobs now."""

    def add(self, job: Job) -> None:
        """Find a stage's job in the queue, or queue one."""
        folder = str(job.surroundings.folder.path)
        active = [state for state in self.queue if state.folder == folder and not state.ended]
        needed = [self.jobs[stage] for stage in job.after]
        for state in active:
            if state.state == "PENDING" and in_vain(state, needed):
                scheduler.cancel([state.job])
            elif state.state != COMPLETING:
                self.jobs[job.surroundings.stage_id] = state.job
                # One whose submission was killed after Slurm took it.
                if not is_noted(job.surroundings.folder, state.job):
                    self._note(job)
                return
        # One that is just ending either succeeds, and the new job finds that, or the new one takes over.
        ending = [state.job for state in active if state.state == COMPLETING]
        self.jobs[job.surroundings.stage_id] = self._queue(job, needed, ending)
        self.fresh.append(job)
        self._note(job)

    def _note(self, job: Job) -> None:
        """Write down at once which job works on a stage: a killed submission leaves nothing unknown."""
        after = [self.jobs[stage] for stage in job.after]
        note_submission(job.surroundings.folder, self.jobs[job.surroundings.stage_id], self.site_name, after, now())

    def _queue(self, job: Job, needed: list[str], ending: list[str]) -> str:
        folder = job.surroundings.folder.path
        text = batch_text(job, self.site)
        there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return scheduler.submit(text, needed, ending)
        except SchedulerError:
            if not there:
                folder.rmdir()
            raise

    def add_all(self, jobs: list[Job]) -> None:
        """Queue all; when a job is refused for good, or on Ctrl-C, those queued so far are cancelled."""
        try:
            for job in jobs:
                self.add(job)
        except SchedulerError as error:
            if self.jobs and scheduler.takes_no_more(str(error)):
                self.refusal = str(error)
            else:
                gone = self._withdraw()
                sentence = refusal_sentence(self.site, self.site_name, job, str(error))
                raise SchedulerError(f"{job.surroundings.title}: {sentence}{gone}") from None
        except BaseException:
            self._withdraw()
            raise

    def _withdraw(self) -> str:
        """Cancel what was queued by this call; how to say so."""
        queued = [self.jobs[job.surroundings.stage_id] for job in self.fresh]
        try:
            scheduler.cancel(queued)
        except SchedulerError as error:
            return f"; {len(queued)} jobs before it are queued still: scancel {' '.join(queued)} ({error})"
        for job in self.fresh:
            # Only what this call made, and nothing has written to since.
            folder = job.surroundings.folder
            if list(folder.path.iterdir()) == [folder.jobs] and len(read_json_lines(folder.jobs)) == 1:
                folder.jobs.unlink()
                folder.path.rmdir()
        return f"; the {len(queued)} jobs queued before it were cancelled" if queued else ""


def refusal_sentence(site: Site, name: str, job: Job, words: str) -> str:
    """A refusal of Slurm's with the key of the site file that it is about."""
    stage = job.surroundings.stage
    if scheduler.takes_no_more(words):
        return f"{words}; the limit on queued jobs is reached: issue the command again once some have ended"
    if re.search("account", words, re.IGNORECASE):
        value = f"account = '{site.account}', partition = '{site.partition}'"
        return f"{words}; {value} in site {name}: set one that you may use (sacctmgr show associations user=$USER)"
    if re.search("partition", words, re.IGNORECASE):
        there = ", ".join(scheduler.partitions())
        return f"{words}; partition = '{site.partition}' in site {name}: set one of those here ({there})"
    if re.search("configuration|memory|cpu|node|gres|time", words, re.IGNORECASE):
        limits = site.limits[stage]
        asked = f"limits.{stage} = {limits.time}, {limits.memory_gib} GiB, {limits.cpus} cores"
        gpus = job.surroundings.resources.gpus
        asked += f", gpu_type = '{site.gpu_type}' with {gpus} GPUs" if gpus else ""
        return f"{words}; {asked} in site {name}: ask for what a node has (sinfo --Node --long)"
    return words


def in_vain(state: JobState, needed: list[str]) -> bool:
    """Whether a waiting job waits for one that has failed, or not for the one that now makes what it needs."""
    listed = re.findall(r"after\w+:(\d+)", state.dependency)
    return state.reason == NEVER or "(failed)" in state.dependency or not set(needed) <= set(listed)


def queue_left(selection: Run, site: Site, whole: bool, as_json: bool, console: Console) -> int:
    """Queue what is left; with nothing left, write the report. Returns the exit code."""
    left = selection.left()
    run_directory = selection.run_directory
    check_downloads(selection)
    planned_jobs(selection, site, check=True)
    command = selection.words.typed(whole)
    submission = Submission(site, selection.words.site or DEFAULT_SITE)
    if left:
        scheduler.queue()  # nothing is written where no Slurm answers
    folder = run_directory.experiment(selection.name)
    queueing, what = run_directory.queueing, f"the queueing of jobs in {run_directory.root}"
    with hold(folder, f"run directory {folder}", command), hold(queueing, what, command, QUEUEING_WAIT_S):
        if left:
            # Before the look at what is left: a job that ends in between is then not queued again.
            submission.queue = scheduler.queue()
        jobs = planned_jobs(selection, site, check=True)
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
    return EXIT_PARTLY if submission.refusal else 0


def check_downloads(selection: Run) -> None:
    """MachineError when something is left that jobs cannot do, PinError for a local path that is not there."""
    left = selection.left()
    if downloads := sum(fetches(stage) for stage in left):
        raise MachineError(
            f"{selection.name}: {downloads} downloads are left, and compute nodes have no network; first, where there "
            f"is one: {selection.words.fetching()}"
        )
    for stage in left:
        if isinstance(stage.settings, DownloadSettings) and (sentence := missing(stage.settings.source)):
            raise PinError(f"{selection.name}: {sentence}")


def _as_json(selection: Run, submission: Submission, jobs: list[Job]) -> dict[str, Any]:
    fresh = {job.surroundings.stage_id for job in submission.fresh}
    told = [
        {
            "stage": job.surroundings.stage_id,
            "title": job.surroundings.title,
            "job": submission.jobs[job.surroundings.stage_id],
            "after": [submission.jobs[stage] for stage in job.after],
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
            after = " ".join(submission.jobs[stage] for stage in job.after)
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
