"""A part of a stage in a process of its own: its end gives a GPU's memory back to what comes after it.

Models that were trained or decoded with leave memory behind in their process: PyTorch's allocator keeps it, and so do
cycles, compiled layers and captured graphs. The parent holds the stage, passes a stop on and says why the part ended.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from essence.errors import ExitCode, KitError, disk_error
from essence.files import write_json
from essence.progress import PARENT, StageContext, die_with_launcher
from essence.record.live_records import read_whole_spec
from essence.record.record_files import Written, read_record
from essence.record.run_directory import StageFolder
from essence.settings import Spec
from essence.stages.launch import OUTCOME, POLL_S, REPORTS, fresh_reports, report_failure, why_ended

AnyOutcome = TypeVar("AnyOutcome", bound=Written)


def run_apart(program: str, kind: type[AnyOutcome], context: StageContext) -> AnyOutcome:
    """Run a module with the stage's spec, and read what it leaves.

    Raises:
        Stopped: asked for; the part is ended.
        KitError: what the part has raised, or that it was killed.
        RuntimeError: a bug in it; its traceback is in the log.
    """
    reports = fresh_reports(context)
    spec = context.partial.parent / "spec.json"
    process = subprocess.Popen(
        [sys.executable, "-m", program, "--spec", str(spec)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, PARENT: str(os.getpid())},
    )
    try:
        while (code := process.poll()) is None:
            context.stop.check()
            time.sleep(POLL_S)
    finally:
        process.kill()
        process.wait()
    if code:
        context.stop.check()  # a signal to the whole group ended both
        raise why_ended({0: code}, 1, reports)
    return read_record(reports / OUTCOME, kind, "an outcome")


def be_part(program: str, told: str, work: Callable[[Spec, StageFolder], Written]) -> int:
    """What such a module does: the work of a spec, whose outcome is left for the parent; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=told)
    parser.add_argument("--spec", required=True, type=Path, help="the stage's spec.json")
    spec_file = parser.parse_args().spec.resolve()
    die_with_launcher(signal.SIGKILL)
    folder = StageFolder(spec_file.parent)
    reports = folder.scratch / REPORTS
    try:
        outcome = work(read_whole_spec(spec_file), folder)
        write_json(reports / OUTCOME, outcome.model_dump(mode="json"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the stage's process is to know
        said = disk_error(error, folder.path) or error
        report_failure(said, 0, reports)
        return ExitCode.CURABLE if isinstance(said, KitError) else 1
    return 0
