"""Queue the jobs of what is left, each behind those it needs, and leave: no process stays on the login node.

What is done is skipped, what is in the queue already is not queued again, and the rest is queued, in an order in which
a job comes after all that it needs. So each prefix of the jobs is whole, should Slurm take no more.
"""

import contextlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from essence.engines.slurm import queue
from essence.engines.slurm.job_text import Job, batch_text
from essence.engines.slurm.jobs import is_noted, note_submission
from essence.engines.slurm.queue import NEVER, JobState
from essence.engines.slurm.refusals import refusal
from essence.engines.slurm.site import Site
from essence.errors import SchedulerError, SilentSchedulerError
from essence.files import read_json_lines
from essence.record.attempts import now
from essence.record.run_directory import StageFolder

COMPLETING = "COMPLETING"
TRIES = 3
LOOK_AFTER_S = 2.0
"""How long Slurm may take to show a job that it took without an answer."""


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

    def needed(self, job: Job) -> list[str]:
        """The jobs of the stages that a job reads, but for those that are done."""
        return [self.jobs[stage] for stage in job.after if stage in self.jobs]

    def add(self, job: Job) -> None:
        """Find a stage's job in the queue, or queue one."""
        folder = str(job.surroundings.folder.path)
        active = [state for state in self.queue if state.folder == folder and not state.ended]
        needed = self.needed(job)
        for state in active:
            if state.state == "PENDING" and in_vain(state, needed):
                queue.cancel([state.job])
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
        identifier = self.jobs[job.surroundings.stage_id]
        note_submission(job.surroundings.folder, identifier, self.site_name, self.needed(job), now())

    def _queue(self, job: Job, needed: list[str], ending: list[str]) -> str:
        folder = job.surroundings.folder.path
        text = batch_text(job, self.site)
        there = folder.is_dir()
        job.surroundings.make_folders()
        try:
            return self._submit(folder, text, needed, ending)
        except SilentSchedulerError:
            # The job may be there, and works in this folder.
            raise
        except SchedulerError:
            if not there:
                folder.rmdir()
            raise

    def _submit(self, folder: Path, text: str, needed: list[str], ending: list[str]) -> str:
        """Queue a job; where Slurm does not say whether it has, ask the queue for the folder before trying again."""
        known = {state.job for state in self.queue}
        for attempt in range(TRIES):
            try:
                return queue.submit(text, needed, ending)
            except SilentSchedulerError:
                # Its database may be behind its answer.
                time.sleep(LOOK_AFTER_S)
                with contextlib.suppress(SilentSchedulerError):
                    fresh = [state for state in queue.queue() if state.job not in known and not state.ended]
                    if taken := [state.job for state in fresh if state.folder == str(folder)]:
                        return taken[-1]
                if attempt == TRIES - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def add_all(self, jobs: list[Job]) -> None:
        """Queue all; when a job is refused for good, or on Ctrl-C, those queued so far are cancelled."""
        try:
            for job in jobs:
                self.add(job)
        except SchedulerError as error:
            silent = isinstance(error, SilentSchedulerError)
            if self.jobs and (silent or queue.takes_no_more(str(error))):
                self.refusal = str(error)
            else:
                gone = self._withdraw()
                refused = refusal(self.site, self.site_name, job, error)
                cure = "; ".join(filter(None, (refused.cure, gone)))
                raise SchedulerError(f"{job.surroundings.title}: {refused.problem}", cure) from None
        except BaseException:
            self._withdraw()
            raise

    def _withdraw(self) -> str:
        """Cancel what was queued by this call; how to say so."""
        queued = [self.jobs[job.surroundings.stage_id] for job in self.fresh]
        try:
            queue.cancel(queued)
        except SchedulerError as error:
            return f"{len(queued)} jobs before it are queued still: scancel {' '.join(queued)} ({error})"
        for job in self.fresh:
            _remove_untouched(job.surroundings.folder)
        return f"the {len(queued)} jobs queued before it were cancelled" if queued else ""


def _remove_untouched(folder: StageFolder) -> None:
    """Remove a folder that holds what this call has noted, and nothing of a job that had begun."""
    if list(folder.path.iterdir()) == [folder.jobs] and len(read_json_lines(folder.jobs)) == 1:
        noted = folder.jobs.read_bytes()
        folder.jobs.unlink()
        try:
            folder.path.rmdir()
        except OSError:  # it has written meanwhile, on its way out
            folder.jobs.write_bytes(noted)


def in_vain(state: JobState, needed: list[str]) -> bool:
    """Whether a waiting job waits for one that has failed, or not for the one that now makes what it needs."""
    listed = re.findall(r"after\w+:(\d+)", state.dependency)
    return state.reason == NEVER or "(failed)" in state.dependency or not set(needed) <= set(listed)
