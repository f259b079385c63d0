"""What `invoke status` says of a run directory: the state of each stage and cell, why one failed, who works."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from essence.commands.status import print_status
from essence.errors import RecordError
from essence.record.run_directory import RunDirectory, hold
from essence.text import duration
from support.synthetic_run import SyntheticRun


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,)).write()


def printed(run: SyntheticRun) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    assert print_status(RunDirectory(run.root), run.experiment, False, console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def state(run: SyntheticRun, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `--json` prints."""
    assert print_status(RunDirectory(run.root), run.experiment, True, Console(file=io.StringIO())) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def row(run: SyntheticRun, name: str) -> str:
    return next(line for line in printed(run).splitlines() if line.startswith(name)).removeprefix(name)


def test_an_experiment_that_never_ran_here_names_those_that_did(run: SyntheticRun) -> None:
    with pytest.raises(RecordError, match=r"bespoke has not run in \S+ \(ran: tiny\)"):
        print_status(RunDirectory(run.root), "bespoke", False, Console(file=io.StringIO()))


def test_a_finished_run(run: SyntheticRun, capsys: pytest.CaptureFixture[str]) -> None:
    found = state(run, capsys)
    assert found["counts"]["done"] == len(run.plan["stages"]) == sum(found["counts"].values())
    cells = [entry["name"] for entry in run.plan["cells"]]
    as_they_come = [f"{role} tiny-{role} as it comes (corrected)" for role in ("student", "teacher")]
    assert [cell["name"] for cell in found["cells"]] == [*cells, *as_they_come]
    assert {state for cell in found["cells"] for state in cell["stages"].values()} == {"done"}
    assert found["failed"] == found["running"] == found["queued"] == found["blocked"] == []
    assert f"stages: {len(run.plan['stages'])} done; nothing runs" in printed(run)


def test_a_failed_training_is_named_with_its_reason_and_log_and_its_evaluations_are_left(
    run: SyntheticRun, capsys: pytest.CaptureFixture[str]
) -> None:
    train, generate, grade = (run.stage_of(0, stage) for stage in ("train", "generate", "grade"))
    run.leave(generate, grade)
    run.fail(train, "step 7: the loss is nan\nin rows [12]")
    found = state(run, capsys)
    (failed,) = found["failed"]
    log = str(RunDirectory(run.root).stage(train).log)
    assert (failed["stage"], failed["curable"], failed["log"]) == (train, True, log)
    counts = {name: number for name, number in found["counts"].items() if number}
    assert counts == {"done": len(run.plan["stages"]) - 3, "failed": 1, "left": 2}
    first, second = (list(cell["stages"].items()) for cell in found["cells"][:2])
    assert dict(first)["train"] == "failed" and [value for _, value in first[-2:]] == ["left", "left"]
    assert {value for _, value in second} == {"done"}
    said = printed(run)
    assert f"{run.plan['stages'][train]['title']}: in rows [12]" in said and f"log: {log}" in said
    signs = row(run, run.plan["cells"][0]["name"]).split()
    assert signs == ["✓", "✗", "·", "·"]


def test_what_was_begun_and_is_not_worked_on_is_interrupted(
    run: SyntheticRun, capsys: pytest.CaptureFixture[str]
) -> None:
    grade = run.stage_of(1, "grade")
    run.leave(grade)
    (RunDirectory(run.root).stage(grade).attempts).write_text("")
    assert state(run, capsys)["counts"]["interrupted"] == 1
    assert row(run, run.plan["cells"][1]["name"]).split() == ["✓", "✓", "✓", "‖"]


def test_what_runs_is_shown_with_its_progress_and_its_holder(
    run: SyntheticRun, capsys: pytest.CaptureFixture[str]
) -> None:
    train, runs = run.stage_of(0, "train"), RunDirectory(run.root)
    run.leave(train, run.stage_of(0, "generate"), run.stage_of(0, "grade"))
    title = run.plan["stages"][train]["title"]
    with hold(runs.stage(train).path, "the stage", "a test"), hold(runs.experiment("tiny"), "tiny", "a test"):
        assert f"{title}: starting" in printed(run)
        progress = {"phase": "train", "done": 40, "total": 120, "unit": "steps", "note": "", "seconds_left": 600.0}
        runs.stage(train).progress.write_text(json.dumps({**progress, "updated": 0.0, "pid": 1, "gpus": []}))
        assert f"{title}: train 40/120 steps, {duration(600.0)} left" in printed(run)
        found = state(run, capsys)
    assert [stage["stage"] for stage in found["running"]] == [train] and "(a test)" in found["held_by"]
    assert state(run, capsys)["held_by"] is None


def test_nothing_has_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = SyntheticRun(tmp_path, finished=False).write()
    assert state(run, capsys)["counts"]["left"] == len(run.plan["stages"])
    assert "left; nothing runs" in printed(run)
