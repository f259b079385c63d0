"""A training of a proof that dies: `python -m essence.stages.prove_killed`, with what it is to train on stdin.

It writes a checkpoint after each step and is killed by SIGKILL, as by a lack of memory or a lost machine, after one
more step: what the resumed training finds is what such an end leaves.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from essence.distill.devices import prepare_device
from essence.distill.proof_trainings import attempt, rows_of_short_training
from essence.distill.trainer import DivergedError
from essence.errors import StageError
from essence.progress import PARENT, Progress, StopRequest, die_with_launcher
from essence.record.record_files import Written
from essence.settings import Resources, TrainSettings
from essence.settings.proving import ProveTrainingSettings

PROGRAM = "essence.stages.prove_killed"
KILLED_AFTER = 2
"""Steps; the checkpoint of the last is not written any more."""
DIVERGED = 3
"""Exit code where loss or gradient was no number before that; the last line of the output says in which step."""


class Doomed(Written):
    """What is trained until it is killed."""

    asked: ProveTrainingSettings
    settings: TrainSettings
    resources: Resources
    work: Path


def train_until_killed(asked: ProveTrainingSettings, settings: TrainSettings, resources: Resources, work: Path) -> None:
    """Have a process of its own train in `work` until it is killed.

    Raises:
        DivergedError: it diverged before.
        StageError: it ended in another way.
    """
    often = resources.model_copy(update={"checkpoint_every_s": 0.0})
    doomed = Doomed(asked=asked, settings=settings, resources=often, work=work)
    ended = subprocess.run(
        [sys.executable, "-m", PROGRAM],
        input=doomed.model_dump_json(),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, PARENT: str(os.getpid())},
        check=False,
    )
    if ended.returncode == DIVERGED:
        raise DivergedError(ended.stdout.splitlines()[-1])
    if ended.returncode != -signal.SIGKILL:
        raise StageError(
            f"a training that was to be killed ended with {ended.returncode}: the log of this stage says why"
        )


class _Dies(Progress):
    """Ends this process, as nothing can prevent, once so many steps are done."""

    def update(self, phase: str, done: int, total: int, unit: str, note: str = "") -> None:
        del phase, total, unit, note
        if done == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    die_with_launcher(signal.SIGKILL)
    doomed = Doomed.model_validate_json(sys.stdin.read())
    device = prepare_device(doomed.resources, 0)
    rows = rows_of_short_training(doomed.asked)
    progress = _Dies(doomed.work.parent / "progress.json")
    try:
        attempt(doomed.asked, doomed.settings, doomed.resources, device, rows, doomed.work, progress, StopRequest())
    except DivergedError as error:
        sys.stdout.write(f"{' '.join(error.problem.split())}\n")
        return DIVERGED
    return 0


if __name__ == "__main__":
    sys.exit(main())
