"""What `invoke clean` does not remove: folders in which jobs of a scheduler work, or wait to."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from essence.commands.clean import clean
from essence.engines.slurm import queue
from essence.errors import HeldError
from essence.record.run_directory import RunDirectory
from support.processes import wait_for
from support.slurm_node import SlurmNode
from support.synthetic_run import SyntheticRun

FORGOTTEN = "4000000000"
"""A number that no Slurm of the tests gives."""
JOB = "#!/bin/sh\n#SBATCH --job-name=stage\n#SBATCH --chdir={folder}\n#SBATCH --output=/dev/null\n{more}sleep 300\n"


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    """A run with one unfinished training."""
    made = SyntheticRun(tmp_path).write()
    made.leave(made.stage_of(0, "train"))
    return made


def training(run: SyntheticRun) -> Path:
    return run.root / "stages" / run.stage_of(0, "train")


def note(run: SyntheticRun, job: str) -> None:
    """The training was queued as this job."""
    line = {"job": job, "site": "generic", "after": [], "submitted": "2026-01-01T00:00:00+00:00"}
    (training(run) / "jobs.jsonl").write_text(json.dumps(line) + "\n")


def cleaned(run: SyntheticRun) -> int:
    return clean(RunDirectory(run.root), run.experiment, True, Console(file=io.StringIO()))


@pytest.fixture(params=["PENDING", "RUNNING"])
def job(request: pytest.FixtureRequest, slurm: SlurmNode, run: SyntheticRun) -> Iterator[str]:
    """The id of a job in the training's folder that waits, or that runs."""
    del slurm
    held = "#SBATCH --hold\n" if request.param == "PENDING" else ""
    identifier = queue.submit(JOB.format(folder=training(run), more=held))
    wait_for(lambda: request.param in [state.state for state in queue.queue() if state.job == identifier])
    yield identifier
    queue.cancel([identifier])


@pytest.mark.slurm
def test_what_is_queued_or_runs_stays(run: SyntheticRun, job: str) -> None:
    note(run, job)
    with pytest.raises(HeldError, match=f"jobs {job} are queued or running; cancel them first: scancel {job}"):
        cleaned(run)
    assert training(run).is_dir()
    queue.cancel([job])
    wait_for(lambda: all(state.ended for state in queue.queue() if state.job == job))
    assert cleaned(run) == 0 and not training(run).exists()


@pytest.mark.slurm
def test_what_slurm_has_forgotten_goes(run: SyntheticRun, slurm: SlurmNode) -> None:
    del slurm
    note(run, FORGOTTEN)
    assert cleaned(run) == 0 and not training(run).exists()


def test_without_slurm_what_was_not_seen_to_end_stays(
    run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(run, "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HeldError, match=r"jobs 7 .* as far as is known here \(squeue is not on PATH"):
        cleaned(run)
    with (training(run) / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({"ended": {"job": "7", "state": "CANCELLED"}}) + "\n")
    assert cleaned(run) == 0 and not training(run).exists()
