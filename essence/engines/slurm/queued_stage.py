"""A stage whose job is in the queue, as a runner sees it that waits for it."""

import time

from essence.engines.engine import Exit, Launch
from essence.engines.slurm import queue
from essence.engines.slurm.jobs import StageJob, stage_jobs
from essence.errors import SchedulerError

ASK_EVERY_S = 5.0
"""Slurm's controller serves everybody on the cluster."""
END_WAIT_S = 120.0
FAILED = 1


class QueuedStage:
    """The job of a stage: it waits, runs, may be queued again, and ends."""

    def __init__(self, job: str, launch: Launch) -> None:
        self.job, self.launch = job, launch
        self.next_question_s = 0.0

    def poll(self) -> Exit | None:
        """None while the job may still succeed, and where Slurm does not answer for now."""
        if time.monotonic() < self.next_question_s:
            return None
        self.next_question_s = time.monotonic() + ASK_EVERY_S
        try:
            found = self._look()
        except SchedulerError:
            return None
        if found is None or not (found.state.ended or found.cause):
            return None
        if found.cause is None:
            return Exit(0)
        return Exit(found.state.code or FAILED, found.sentence)

    def _look(self) -> StageJob | None:
        stage = self.launch.stage_id
        return stage_jobs({stage: self.launch.folder}, queue.queue()).get(stage)

    def stop(self) -> None:
        """Slurm sends SIGTERM, and SIGKILL after its KillWait: a checkpoint that takes longer is an earlier one."""
        queue.cancel([self.job])

    def kill(self) -> None:
        """Cancel the job; returns when it has ended."""
        self.stop()
        deadline = time.monotonic() + END_WAIT_S
        while time.monotonic() < deadline:
            self.next_question_s = 0.0
            if self.poll() is not None:
                return
            time.sleep(1.0)
