"""A part of a stage in a process of its own: what it leaves, why it ended, and a stop."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from essence.errors import DiskError, InputError, StageError
from essence.progress import StageContext, Stopped
from essence.record.record_files import Written
from support.proof_settings import asked, staged
from support.small_disk import mounted

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from essence.stages.apart import run_apart  # noqa: E402

PART = """
import os, signal, sys, time
from pathlib import Path
from essence.errors import InputError
from essence.record.record_files import Written
from essence.stages.apart import be_part
class Found(Written):
    stage: str
def work(spec, folder):
    (folder.path / "pid").write_text(str(os.getpid()))
    how = (folder.path / "how").read_text()
    if how == "cured":
        raise InputError("a file is missing", "fetch it")
    if how == "bug":
        raise ValueError("nobody thought of this")
    if how == "fills":
        with (folder.path / "filling").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    if how == "full":
        raise OSError(28, os.strerror(28), str(folder.path / "checkpoint"))
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "waits":
        time.sleep(600)
    return Found(stage=spec.stage)
sys.exit(be_part("a_part", "A part.", work))
"""


class Found(Written):
    """What the part leaves."""

    stage: str


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a_part.py").write_text(PART, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    return staged(tmp_path / "stage", "prove_training", asked(tmp_path)[0])


def alive(pid: int) -> bool:
    """Not of a process that has ended and waits to be asked for its code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def told(stage: StageContext, how: str) -> StageContext:
    (stage.partial.parent / "how").write_text(how, encoding="utf-8")
    return stage


def test_a_part_leaves_what_it_found(stage: StageContext) -> None:
    (stage.scratch / "ranks").mkdir(parents=True)
    (stage.scratch / "ranks" / "failure-00000.json").write_text("{}", encoding="utf-8")  # of an earlier attempt
    assert run_apart("a_part", Found, told(stage, "found")).stage == "prove_training"


def test_why_a_part_ended_is_what_the_stage_says(stage: StageContext) -> None:
    with pytest.raises(InputError, match="a file is missing") as cured:
        run_apart("a_part", Found, told(stage, "cured"))
    assert cured.value.cure == "fetch it"
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        run_apart("a_part", Found, told(stage, "bug"))
    with pytest.raises(StageError, match=re.escape("killed by SIGKILL (out of memory?)")):
        run_apart("a_part", Found, told(stage, "killed"))


def test_a_stop_ends_the_part(stage: StageContext) -> None:
    """While it works."""
    pid = stage.partial.parent / "pid"

    def ask_once_it_works() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        stage.stop.ask("a test")

    thread = threading.Thread(target=ask_once_it_works, daemon=True)
    thread.start()
    with pytest.raises(Stopped):
        run_apart("a_part", Found, told(stage, "waits"))
    thread.join()
    assert not alive(int(pid.read_text()))


def test_a_full_disk_is_told_by_the_stage(stage: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskError, match="checkpoint: no space is left on its disk"):
        run_apart("a_part", Found, told(stage, "full"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_disk_that_does_not_even_take_the_reason_is_told_too(tmp_path: Path, stage: StageContext) -> None:
    small = tmp_path / "small"
    with mounted(small, "size=64k"):
        shutil.copytree(stage.partial.parent, small / "stage")
        on_it = replace(stage, partial=small / "stage" / stage.partial.name)
        with pytest.raises(DiskError, match="no space is left on its disk"):
            run_apart("a_part", Found, told(on_it, "fills"))


def test_a_part_ends_with_its_stage(stage: StageContext, tmp_path: Path) -> None:
    """A stage that is killed leaves no process on the GPU."""
    told(stage, "waits")
    spec = stage.partial.parent / "spec.json"
    code = (
        "import os, subprocess, sys, time\n"
        f"part = subprocess.Popen([sys.executable, '-m', 'a_part', '--spec', {str(spec)!r}], "
        "env={**os.environ, 'ESSENCE_PARENT': str(os.getpid())})\n"
        f"while not os.path.exists({str(stage.partial.parent / 'pid')!r}): time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False)
    pid, until = int((stage.partial.parent / "pid").read_text()), time.monotonic() + 30.0
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)
