"""Folders of a session of tests below the temporary folder, with what runs there and is mounted there.

A session that is killed removes nothing: its engine goes on, and its mounted disk holds ten GiB after all of its files
are gone. The next session of the same user that makes such a folder ends and removes that. A lock tells which sessions
live, a variable in their environment which processes are theirs.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

PREFIX = "ess-"
LOCK = "session.lock"
MARK = "ESSENCE_TEST_SESSION"
TIMEOUT_S = 600.0
END_TIMEOUT_S = 30.0


@contextmanager
def session_folder(kind: str = "") -> Iterator[Path]:
    """A new folder with a short path, as sockets need one; what killed sessions left is removed first."""
    place = Path(tempfile.gettempdir()).resolve()
    with FileLock(place / f"{PREFIX}folders-{os.geteuid()}.lock", timeout=TIMEOUT_S):
        for folder in abandoned(place):
            end(folder)
        folder = Path(tempfile.mkdtemp(dir=place, prefix=f"{PREFIX}{kind}"))
        lock = FileLock(folder / LOCK)
        lock.acquire(blocking=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def marked(folder: Path) -> dict[str, str]:
    """The environment of a server that belongs to a folder, and of all that it starts."""
    return {**os.environ, MARK: str(folder)}


def bridge_of(folder: Path) -> str:
    """Name of the one bridge of networks that belongs to a folder."""
    return folder.name.replace("-", "")


def abandoned(place: Path) -> list[Path]:
    """Folders of this user whose session has ended."""
    found = []
    for file in place.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(Timeout, OSError):
            if file.stat().st_uid == os.geteuid():
                with FileLock(file, blocking=False):
                    found.append(file.parent)
    return found


def end(folder: Path) -> None:
    """Kill what runs there, unmount what is mounted there, and remove the rest."""
    running = processes_of(folder)
    for process in running:
        with suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + END_TIMEOUT_S
    while any(map(works, running)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for point in reversed(mounted(folder)):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    if (Path("/sys/class/net") / bridge_of(folder)).exists():
        subprocess.run(["ip", "link", "delete", bridge_of(folder)], capture_output=True, check=False)
    # A disk whose file is removed while it is mounted would keep its room.
    if not mounted(folder):
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Servers that were started with the folder's mark, what they started, and what runs in containers there."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder) or rooted(process, folder):
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())


def rooted(process: psutil.Process, folder: Path) -> bool:
    """Whether the root of its file system is made of layers that lie there."""
    lines = (Path("/proc") / str(process.pid) / "mountinfo").read_text().splitlines()
    return any(line.split()[4] == "/" and f"={folder}/" in line for line in lines)


def works(process: psutil.Process) -> bool:
    """Whether it still runs: one that has ended stays a zombie where nobody asks for its exit code."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def mounted(folder: Path) -> list[str]:
    """Places at or below the folder where something is mounted, in the order in which that was done."""
    told = Path("/proc/self/mountinfo")
    points = [line.split()[4] for line in told.read_text().splitlines()] if told.is_file() else []
    return [point for point in points if os.path.commonpath([point, folder]) == str(folder)]
