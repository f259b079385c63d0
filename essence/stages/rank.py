"""One rank of a training: `RANK=1 WORLD_SIZE=2 ... python -m essence.stages.rank --spec runs/stages/.../spec.json`.

Started by `essence/stages/launch.py`, torchrun or srun. Exit codes as those of a stage; why it failed is left in
`scratch/ranks/failure-<rank>.json`, the first rank's outcome in `outcome.json` beside it.
"""

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path

from essence.signals import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()

from essence.distill.ranks import WAITS, Ranks
from essence.errors import ExitCode, KitError, StageError
from essence.files import write_json
from essence.progress import (
    Progress,
    StageContext,
    Stopped,
    StopRequest,
    die_with_launcher,
)
from essence.record.live_records import read_whole_spec
from essence.record.run_directory import StageFolder
from essence.settings import TrainSettings
from essence.stages import train
from essence.stages.launch import HUNG_CURE, OUTCOME, REPORTS, report_failure
from essence.text import duration


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m essence.stages.rank", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spec", required=True, type=Path, help="the stage's spec.json")
    arguments = parser.parse_args()
    # At once: another attempt may start as soon as the stage's process is gone, and must be alone.
    die_with_launcher(signal.SIGKILL)
    stop = StopRequest()
    stop.install()
    return run_rank(arguments.spec.resolve(), stop)


def run_rank(spec_file: Path, stop: StopRequest) -> int:
    """Train as the rank that the environment names; returns the exit code."""
    folder, spec = StageFolder(spec_file.parent), read_whole_spec(spec_file)
    ranks = Ranks.of(os.environ)
    context = StageContext(
        partial=folder.partial,
        inputs={name: StageFolder((folder.path / place).resolve()).output for name, place in spec.inputs.items()},
        resources=spec.resources,
        progress=Progress(folder.progress, watch_gpus=spec.resources.gpus > 0),
        stop=stop,
    )
    reports = context.scratch / REPORTS
    try:
        outcome = train.train_as(ranks, TrainSettings.model_validate(spec.settings), context)
    except Stopped:
        return ExitCode.STOPPED
    except Exception as error:  # noqa: BLE001 - whatever it is, the stage's process is to know
        return report_rank(error, ranks, reports)
    if ranks.first:
        told = outcome.with_gpu_use(context.progress)
        write_json(reports / OUTCOME, told.model_dump(mode="json"))
    return 0


def report_rank(error: Exception, ranks: Ranks, reports: Path) -> int:
    """Leave what ended this rank for the stage's process; returns the exit code."""
    if vain := _waited_in_vain(error, ranks):
        traceback.print_exception(error)
    report_failure(vain or error, ranks.rank, reports)
    return ExitCode.CURABLE if isinstance(vain or error, KitError) else 1


def _waited_in_vain(error: Exception, ranks: Ranks) -> KitError | None:
    """The sentence where gloo gave up on another rank; NCCL ends the process instead (`essence/stages/launch.py`)."""
    if "Timed out waiting" not in str(error):
        return None
    waited = duration(WAITS["gloo"].total_seconds())
    return StageError(f"rank {ranks.rank} of {ranks.processes} waited {waited} for another, which hangs", HUNG_CURE)


if __name__ == "__main__":
    # Not the end of the interpreter: a process group whose other end has died may wait in its threads.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
