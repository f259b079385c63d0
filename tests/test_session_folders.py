"""What a killed session of tests leaves: the next one ends and removes it, and leaves alone what a living one uses."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from support.containers import CAP_SYS_ADMIN, capabilities
from support.project import PROJECT
from support.scratch_disk import PROGRAMS
from support.session_folders import bridge_of, mounted, session_folder

SESSION = """
import subprocess, sys, time
from support.scratch_disk import scratch_disk
from support.session_folders import session_folder
with session_folder() as folder, scratch_disk(folder / "data"):
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"{folder}/server.conf"])
    print(folder, server.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another folder for temporary files: a session that runs beside this one is left alone."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@contextmanager
def session() -> Iterator[tuple[subprocess.Popen[str], Path, psutil.Process]]:
    """Another process with a folder, a disk in it, and a server."""
    command = [sys.executable, "-c", SESSION]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        try:
            folder, server = process.stdout.readline().split()
            yield process, Path(folder), psutil.Process(int(server))
        finally:
            process.kill()


def test_the_next_session_ends_and_removes_what_a_killed_one_left(place: Path) -> None:
    mounts = bool(capabilities() >> CAP_SYS_ADMIN & 1) and all(map(shutil.which, PROGRAMS))
    with session() as (process, folder, server):
        assert mounted(Path("/proc/self"), folder) == ([f"{folder}/data"] if mounts else [])
        process.kill()
        process.wait()
        assert server.is_running() and folder.is_dir()
        with session_folder() as another:
            assert not folder.exists() and not mounted(Path("/proc/self"), folder)
            assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
            assert another.is_dir()
    assert not another.exists()


def test_a_living_session_and_other_folders_are_left_alone(place: Path) -> None:
    (place / "ess-of-somebody").mkdir()
    with session() as (process, folder, server), session_folder("kind-"):
        assert process.poll() is None and server.is_running() and (folder / "data").is_dir()
        assert (place / "ess-of-somebody").is_dir()
        server.kill()
        process.kill()
        process.wait()
        with session_folder():
            assert not folder.exists()


def test_a_bridge_has_a_name_that_a_network_takes(place: Path) -> None:
    with session_folder() as folder:
        # The kernel takes 15 characters.
        assert len(bridge_of(folder)) <= 15 and bridge_of(folder).startswith("ess")
