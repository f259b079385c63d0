"""The live view, on run directories whose files change between two looks."""

import io
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from essence import progress
from essence.commands.watch import Watch, screen, short_names, watch
from essence.files import GIB
from essence.record.run_directory import RunDirectory
from support.project import invoke
from support.synthetic_run import SyntheticRun


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path).write()


def terminal(height: int = 40, width: int = 110) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def drawn(run: SyntheticRun, height: int = 40, width: int = 110) -> str:
    console = terminal(height, width)
    console.print(screen(Watch(RunDirectory(run.root), run.experiment).look(), height, width))
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
        "gpus": [{"busy_percent": busy, "memory_gib": 31.2, "total_gib": 79.6} for busy in (90.0, 96.0)],
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
    assert state.seconds_left == pytest.approx(9.0 + 2.0)


def test_what_runs_counts_with_what_it_says_itself(run: SyntheticRun) -> None:
    train = run.stage_of(0, "train")
    run.leave(train, run.stage_of(0, "generate"), run.stage_of(0, "grade"))
    start(run, train)
    state = Watch(RunDirectory(run.root), run.experiment).look()
    assert state.seconds_left == pytest.approx(600.0 + 9.0 + 2.0)


def test_a_failure_is_shown_first_with_its_log(run: SyntheticRun) -> None:
    run.fail(run.stage_of(7, "train"), "no GPU here")
    shown = drawn(run, height=16)
    assert "no GPU here" in shown and "log.txt" in shown.replace("\n  ", "")  # a long path takes two lines
    cells = shown[shown.index("cell ") :].splitlines()
    assert cells[1].startswith("lsp-1.00 seed-2") and "more" in shown
    assert len(shown.splitlines()) < 16


def test_a_small_terminal_holds_running_failed_and_cells(run: SyntheticRun) -> None:
    for cell in (0, 1):
        train = run.stage_of(cell, "train")
        run.leave(train, run.stage_of(cell, "generate"), run.stage_of(cell, "grade"))
        start(run, train)
    for cell in (4, 5, 6, 7):
        run.fail(run.stage_of(cell, "grade"), "no answer of the grader, " * 20)
    shown = drawn(run, height=24, width=80)
    assert len(shown.splitlines()) < 24 and max(map(len, shown.splitlines())) <= 80
    assert "train lsp-0.25 seed-1" in shown and "2 GPUs 93 % busy on average, the fullest 31.2 of 79.6 GiB" in shown
    assert "more failed: invoke status" in shown and "log.txt" in shown


def test_names_of_cells_are_the_parts_in_which_they_differ() -> None:
    names = ["a/x_y/lsp-0.50/p+cot+a/seed-1", "a/x_y/lsp-1.00/p+cot+a/seed-1", "teacher x as it comes"]
    assert list(short_names(names).values()) == ["lsp-0.50", "lsp-1.00", "teacher x as it comes"]
    assert short_names(["a/b/seed-1"]) == {"a/b/seed-1": "a/b/seed-1"}


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
    assert not Watch(RunDirectory(run.root), run.experiment).look().matrix.is_over


def test_it_goes_on_while_slurm_does_not_answer(run: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run.fail(run.stage_of(0, "grade"), "no space left")
    waiting = run.stage_of(1, "train")
    run.leave(waiting)
    note = {"job": "7", "site": "generic", "after": [], "submitted": "2026-01-01T00:00:00+00:00"}
    (run.root / "stages" / waiting / "jobs.jsonl").write_text(json.dumps(note) + "\n")

    squeue = run.root / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    matrix = Watch(RunDirectory(run.root), run.experiment).look().matrix
    assert "no scheduler answers" in matrix.who_works and not matrix.is_over


def test_the_command_watches_a_finished_run_and_ends(run: SyntheticRun) -> None:
    done = invoke("status", "--watch", "--experiment", run.experiment, "--runs", str(run.root))
    assert done.returncode == 0 and "lsp-0.25" in done.stdout


def test_brackets_of_a_message_are_printed_as_they_are(run: SyntheticRun) -> None:
    """What a library says of a lost peer reads like markup that nothing opens."""
    message = "RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:534] closed by peer [red]"
    run.fail(run.stage_of(0, "train"), message)
    done = invoke("status", "--experiment", run.experiment, "--runs", str(run.root))
    assert done.returncode == 0, done.stderr
    assert message in done.stdout


def no_such_gpu(name: str) -> int:
    raise RuntimeError(f"{name}: a part of a GPU")


DRIVER = SimpleNamespace(
    NVMLError=RuntimeError,
    nvmlInit=lambda: None,
    nvmlDeviceGetCount=lambda: 3,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetHandleByUUID=no_such_gpu,
    nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(used=index * GIB, total=80 * GIB),
    nvmlDeviceGetUtilizationRates=lambda index: SimpleNamespace(gpu=30 * index),
)
"""The part of NVML that is used: three GPUs, each busier than the one before."""


@pytest.mark.parametrize(
    ("visible", "busy"), [(None, [0, 30, 60]), ("2,0", [60, 0]), ("", []), ("MIG-1", [])], ids=repr
)
def test_the_gpus_told_are_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, busy: list[int]
) -> None:
    """There is no driver here: the stand-in answers as documented by NVML."""
    monkeypatch.setitem(sys.modules, "pynvml", DRIVER)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    progress._handles.cache_clear()
    assert [gpu["busy_percent"] for gpu in progress.gpu_use()] == busy
    progress._handles.cache_clear()
