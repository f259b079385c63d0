"""What a killed session of tests leaves: the next one ends and removes it, and leaves alone what a living one uses."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from support.processes import wait_for
from support.project import PROJECT
from support.session_folders import LOCK, bridge_of, mounted, session_folder, works

SESSION = """
import subprocess, sys, time
from support.scratch_disk import scratch_disk
from support.session_folders import marked, session_folder
with session_folder() as folder, scratch_disk(folder / "data") as is_mounted:
    sleep = "import time; time.sleep(600)"
    helps = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}], env={{}})"
    server = subprocess.Popen([sys.executable, "-c", helps], env=marked(folder))
    print(folder, server.pid, int(is_mounted), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another folder for temporary files: a session that runs beside this one is left alone."""
    with tempfile.TemporaryDirectory() as name:
        # Where a link leads, as on some machines.
        (Path(name) / "real").mkdir()
        place = Path(name) / "link"
        place.symlink_to("real")
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        monkeypatch.setenv("TMPDIR", str(place))
        yield place


@contextmanager
def session() -> Iterator[tuple[subprocess.Popen[str], Path, psutil.Process, bool]]:
    """Another process with a folder, a disk in it, and a server that has a helper; whether the disk is mounted."""
    command = [sys.executable, "-c", SESSION]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        try:
            folder, server, is_mounted = process.stdout.readline().split()
            yield process, Path(folder), psutil.Process(int(server)), bool(int(is_mounted))
        finally:
            process.kill()


def test_the_next_session_ends_and_removes_what_a_killed_one_left(place: Path) -> None:
    with session() as (process, folder, server, is_mounted):
        assert mounted(folder) == ([f"{folder}/data"] if is_mounted else [])
        wait_for(server.children)
        helper = server.children()[0]
        # Somebody reads what the session wrote.
        reader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"{folder}/log"])
        process.kill()
        process.wait()
        assert server.is_running() and folder.is_dir()
        with session_folder() as another:
            assert not folder.exists() and not mounted(folder)
            assert not works(server) and not works(helper)
            assert another.is_dir() and reader.poll() is None
        reader.kill()
        reader.wait()
    assert not another.exists()


def test_a_living_session_and_other_folders_are_left_alone(place: Path) -> None:
    (place / "ess-of-somebody").mkdir()
    with session() as (process, folder, server, _), session_folder("kind-"):
        assert process.poll() is None and works(server) and (folder / "data").is_dir()
        assert (place / "ess-of-somebody").is_dir()
        process.kill()
        process.wait()
        with session_folder():
            assert not folder.exists() and not works(server)


def test_folders_of_another_user_are_left_alone(place: Path) -> None:
    """One that can be looked into, as Slurm's can, and has a lock that nobody holds."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = place / "ess-slurm-another"
    folder.mkdir(mode=0o755)
    (folder / LOCK).touch(mode=0o600)
    os.chown(folder / LOCK, 65534, 65534)
    with session_folder():
        assert (folder / LOCK).is_file()


def test_a_bridge_has_a_name_that_a_network_takes(place: Path) -> None:
    with session_folder() as folder:
        # The kernel takes 15 characters.
        assert len(bridge_of(folder)) <= 15 and bridge_of(folder).startswith("ess")
