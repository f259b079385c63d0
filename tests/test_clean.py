"""What `invoke clean` does not remove: folders in which jobs of a scheduler work, or wait to."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import SyntheticRun

from essence.commands.clean import clean
from essence.engines import scheduler
from essence.engines.scheduler import JobState
from essence.errors import HeldError, SchedulerError
from essence.store import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    """A run of which one training was queued as job 7."""
    made = SyntheticRun(tmp_path).write()
    made.leave(made.stage_of(0, "train"))
    note = {"job": "7", "site": "generic", "after": [], "submitted": "2026-01-01T00:00:00+00:00"}
    (made.root / "stages" / made.stage_of(0, "train") / "jobs.jsonl").write_text(json.dumps(note) + "\n")
    return made


def cleaned(run: SyntheticRun) -> int:
    return clean(RunDirectory(run.root), run.experiment, True, Console(file=io.StringIO()))


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_what_is_queued_or_runs_stays(run: SyntheticRun, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.root / "stages" / run.stage_of(0, "train")
    monkeypatch.setattr(scheduler, "queue", lambda: [JobState("7", state, folder=str(folder))])
    with pytest.raises(HeldError, match="jobs 7 are queued or running; cancel them first: scancel 7"):
        cleaned(run)
    assert folder.is_dir()


def test_without_slurm_what_was_not_seen_to_end_stays(run: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> list[JobState]:
        raise SchedulerError("squeue is not on PATH")

    monkeypatch.setattr(scheduler, "queue", silent)
    with pytest.raises(HeldError, match=r"jobs 7 .* as far as is known here \(squeue is not on PATH\)"):
        cleaned(run)
    folder = run.root / "stages" / run.stage_of(0, "train")
    with (folder / "jobs.jsonl").open("a") as file:
        file.write(json.dumps({"ended": {"job": "7", "state": "CANCELLED"}}) + "\n")
    assert cleaned(run) == 0 and not folder.exists()


def test_what_slurm_has_forgotten_goes(run: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "queue", list)
    monkeypatch.setattr(scheduler, "ended", lambda _: {})
    assert cleaned(run) == 0 and not (run.root / "stages" / run.stage_of(0, "train")).exists()
