"""The live view, on run directories whose files change between two looks."""

import io
import json
import time
from pathlib import Path

import pytest
from conftest import invoke
from rich.console import Console
from synthetic_run import SyntheticRun

from essence.commands.watch import Watch, is_over, screen, watch
from essence.store import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path).write()


def terminal(height: int = 40, width: int = 110) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def drawn(run: SyntheticRun, height: int = 40) -> str:
    console = terminal(height)
    console.print(screen(Watch(RunDirectory(run.root), run.experiment).look(), height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def start(run: SyntheticRun, stage: str) -> None:
    """Make a stage look as if this very process worked on it."""
    import os
    import socket

    folder = run.root / "stages" / stage
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "command": "test"}
    (folder / "holder.json").write_text(json.dumps(holder))
    progress = {
        "phase": "train", "done": 40, "total": 120, "unit": "steps", "note": "loss 1.234, 9,800 tokens/s, 31.2 GiB",
        "seconds_left": 600.0, "updated": time.time(), "pid": os.getpid(),
    }  # fmt: skip
    (folder / "progress.json").write_text(json.dumps(progress))


def test_a_running_training_is_shown_with_its_note(run: SyntheticRun) -> None:
    train = run.stage_of(0, "train")
    run.leave(train, run.stage_of(0, "generate"), run.stage_of(0, "grade"))
    start(run, train)
    shown = drawn(run)
    assert "40/120" in shown and "loss 1.234, 9,800 tokens/s, 31.2 GiB" in shown and "10.0" in shown


def test_what_is_left_is_estimated_from_what_is_finished(run: SyntheticRun) -> None:
    run.leave(run.stage_of(0, "generate"), run.stage_of(0, "grade"))
    state = Watch(RunDirectory(run.root), run.experiment).look()
    assert state["seconds_left"] == pytest.approx(9.0 + 2.0)


def test_a_failure_is_shown_first_with_its_log(run: SyntheticRun) -> None:
    run.fail(run.stage_of(7, "train"), "no GPU here")
    shown = drawn(run, height=16)
    assert "no GPU here" in shown and "log.txt" in shown
    cells = [line for line in shown.splitlines() if "/lsp-" in line and "train" not in line]
    assert "lsp-1.00" in cells[0] and "more" in shown
    assert len(shown.splitlines()) <= 16


def test_it_ends_when_everything_is_done(run: SyntheticRun) -> None:
    manifest = run.root / "stages" / run.stage_of(0, "grade") / "manifest.json"
    record = manifest.read_text()
    manifest.unlink()
    looks = []

    def finish(_: float) -> None:
        looks.append(1)
        manifest.write_text(record)

    assert watch(RunDirectory(run.root), run.experiment, terminal(), pause=finish) == 0
    assert looks == [1]


def test_it_ends_when_something_failed_and_nobody_works(run: SyntheticRun) -> None:
    run.fail(run.stage_of(0, "grade"), "no space left")
    assert watch(RunDirectory(run.root), run.experiment, terminal()) == 1


def test_it_goes_on_while_somebody_works(run: SyntheticRun) -> None:
    run.fail(run.stage_of(0, "grade"), "no space left")
    run.leave(run.stage_of(1, "train"))
    start(run, run.stage_of(1, "train"))
    assert not is_over(Watch(RunDirectory(run.root), run.experiment).look())


def test_the_command_watches_a_finished_run_and_ends(run: SyntheticRun) -> None:
    done = invoke("status", "--watch", "--experiment", run.experiment, "--runs", str(run.root))
    assert done.returncode == 0 and "lsp-0.25" in done.stdout
