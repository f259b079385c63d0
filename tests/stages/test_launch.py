"""Two ranks as a stage: killed, stopped, started again; who is who; and what is said when a rank fails."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from support.project import PROJECT

pytest.importorskip("transformers", reason="transformers is not installed")
from essence.distill.trainer import DivergedError
from essence.errors import InputError, MachineError, StageError
from essence.progress import StopRequest
from essence.settings import Spec
from essence.stages import launch
from essence.stages.launch import Node, RankFailure, helps, stopped, why_ended
from support.some_resources import some_optimizer
from support.stage_inputs import train_settings
from support.train_stage import make_spec, make_stage

STEPS = 20
"""Many more than are waited for: an attempt that is disturbed too late has still some to do."""
START_LIMIT_S = 900.0


def two_ranks(**resources: Any) -> Spec:
    optimizer = {**some_optimizer(), "epochs": 4}
    return make_spec(
        train_settings(parallel="ddp", processes=2, compute_dtype="float32", optimizer=optimizer), **resources
    )


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The stage as an engine starts it."""
    command = [sys.executable, "-m", "essence.stages", "train", "--spec", str(folder / "spec.json")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def metrics_of(folder: Path) -> Path:
    return folder / "scratch" / "training" / "metrics.jsonl"


def steps_of(folder: Path) -> int:
    file = metrics_of(folder)
    return file.read_text().count('"kind": "step"') if file.is_file() else 0


def written(folder: Path) -> int:
    """When a step was last written down, in nanoseconds."""
    metrics = metrics_of(folder)
    return metrics.stat().st_mtime_ns if metrics.is_file() else 0


def after(step: int, folder: Path, act: Callable[[psutil.Process], None]) -> int:
    """Start the stage and act on it after a number of training steps; returns its exit code."""
    before = written(folder)
    process = start(folder)
    deadline = time.monotonic() + START_LIMIT_S
    # The attempt before may have gone further than it was asked: this one must have written, too.
    while (steps_of(folder) < step or written(folder) == before) and process.poll() is None:
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
        time.sleep(0.01)
    assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
    ranks = psutil.Process(process.pid).children()
    act(psutil.Process(process.pid))
    code = process.wait(timeout=START_LIMIT_S)
    psutil.wait_procs(ranks, timeout=30)
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    return code


def kill_all(stage: psutil.Process) -> None:
    for process in [stage, *stage.children()]:
        process.kill()


class Disturbance(NamedTuple):
    """What happens to a training after a number of steps."""

    step: int
    act: Callable[[psutil.Process], object]
    code: int
    """That the stage ends with."""
    outcome: str
    """Of the attempt, in the record."""


STAGE_KILLED = Disturbance(1, lambda stage: stage.kill(), -signal.SIGKILL, "killed")
RANK_KILLED = Disturbance(3, lambda stage: stage.children()[1].kill(), 2, "failed")
ALL_KILLED = Disturbance(4, kill_all, -signal.SIGKILL, "killed")
STOPPED = Disturbance(5, lambda stage: stage.send_signal(signal.SIGTERM), 75, "stopped")
ANNOUNCED = Disturbance(6, lambda stage: stage.send_signal(signal.SIGUSR1), 75, "stopped")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # up to seven starts of three processes
@pytest.mark.parametrize(
    "disturbances",
    [
        pytest.param([RANK_KILLED, STOPPED], id="two"),
        pytest.param([STAGE_KILLED, RANK_KILLED, ALL_KILLED, STOPPED, ANNOUNCED], id="five", marks=pytest.mark.nightly),
    ],
)
def test_killed_and_stopped_it_ends_in_the_same_bits(
    prepared: dict[str, Path], tmp_path: Path, disturbances: list[Disturbance]
) -> None:
    undisturbed, folder = (make_stage(tmp_path / name, prepared, two_ranks()) for name in ("one", "two"))
    assert start(undisturbed).wait(timeout=START_LIMIT_S) == 0, (undisturbed / "log.txt").read_text()[-3000:]

    for one in disturbances:
        assert after(one.step, folder, one.act) == one.code
        if one is RANK_KILLED:
            failure = json.loads((folder / "failure.json").read_text())
            assert failure["curable"] and failure["message"] == "rank 1 of 2 was killed by SIGKILL (out of memory?)"
    assert start(folder).wait(timeout=START_LIMIT_S) == 0

    for path in sorted((undisturbed / "output").rglob("*.*")):
        if path.name != "metrics.jsonl" and "tfevents" not in path.name:  # these hold times
            assert (folder / path.relative_to(undisturbed)).read_bytes() == path.read_bytes(), path.name
    manifest = json.loads((folder / "manifest.json").read_text())
    attempts = [attempt["outcome"] for attempt in manifest["identity"]["attempts"]]
    assert attempts == [*(one.outcome for one in disturbances), "finished"]
    assert manifest["results"]["steps"] == STEPS
    executed = manifest["settings"]["executed"]
    assert executed["parallel"] == {"backend": "ddp", "processes": 2, "nodes": 1} | {
        "teacher": "replicated",
        "optimizer": "device",
    }
    assert (
        manifest["results"]["validations"]
        == json.loads((undisturbed / "manifest.json").read_text())["results"]["validations"]
    )


@pytest.mark.slow
def test_what_a_rank_cannot_read_is_the_sentence_of_the_stage(prepared: dict[str, Path], tmp_path: Path) -> None:
    process = start(folder := make_stage(tmp_path, prepared, two_ranks(), teacher=prepared["tokens"]))
    assert process.wait(timeout=START_LIMIT_S) == 2
    failure = json.loads((folder / "failure.json").read_text())
    assert (
        failure["kind"] == "InputError" and failure["curable"] and "no such folder, so no model" in failure["message"]
    )
    assert "Traceback" not in (folder / "log.txt").read_text()


def report(folder: Path, rank: int, kind: str, curable: bool, moment: float) -> None:
    failure = RankFailure(rank=rank, kind=kind, message=f"{kind} of {rank}", cure="" if curable else None, time=moment)
    (folder / f"failure-{rank:05d}.json").write_text(failure.model_dump_json())


def test_the_failure_that_came_first_is_told(tmp_path: Path) -> None:
    report(tmp_path, 0, "ConnectionError", False, 1.0)
    assert isinstance(why_ended({0: 1}, 2, tmp_path), RuntimeError)
    report(tmp_path, 1, "DivergedError", True, 2.0)
    report(tmp_path, 2, "InputError", True, 3.0)
    found = why_ended({0: 1, 1: 2, 2: 2}, 3, tmp_path)
    assert isinstance(found, DivergedError) and str(found) == "DivergedError of 1"
    killed = why_ended({0: 1, 1: -11}, 2, tmp_path)
    assert isinstance(killed, StageError) and str(killed) == "rank 1 of 2 was killed by SIGSEGV"
    assert not isinstance(killed, InputError)


def test_a_rank_that_was_not_up_yet_is_stopped_too() -> None:
    nobody, somebody = StopRequest(), StopRequest()
    somebody.signal_name = "SIGUSR1"
    assert stopped({0: 75, 1: -signal.SIGTERM}, somebody) and stopped({0: 75, 1: 75}, nobody)
    assert not stopped({0: 75, 1: -signal.SIGTERM}, nobody) and not stopped({0: 75, 1: -signal.SIGKILL}, somebody)
    assert not stopped({0: 0, 1: 0}, somebody)


def test_ranks_that_were_started_are_ended_where_the_next_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: object) -> subprocess.Popen[bytes]:
        if started:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[0]

    monkeypatch.setattr(launch, "_start", start)
    with pytest.raises(BlockingIOError):
        launch.run_here(2, 1, tmp_path / "spec.json", StopRequest())
    assert started[0].poll() == -signal.SIGKILL


def test_several_machines_are_told_apart_by_the_batch_system() -> None:
    told = {"SLURM_NODEID": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}
    assert Node.of(2, told) == Node(1, 2, "node-a", 29500)
    assert Node.of(1, told) == Node(0, 1, "127.0.0.1", 0)
    with pytest.raises(MachineError, match=r"nodes = 2, but the environment does not say MASTER_ADDR"):
        Node.of(2, {"NODE_RANK": "0", "MASTER_PORT": "29500"})
    assert helps(two_ranks(nodes=2), told)
    assert not helps(two_ranks(nodes=2), {**told, "SLURM_NODEID": "0"})
    assert not helps(two_ranks(), told)
    assert helps(two_ranks(), {"RANK": "1"}) and not helps(two_ranks(), {"RANK": "0"})
