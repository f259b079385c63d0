"""Folders of a session of tests below the temporary folder, with what runs there and is mounted there.

A session that is killed removes nothing: its engine goes on, and its mounted disk holds ten GiB after all of its files
are gone. The next session that makes such a folder ends and removes that. A lock tells which sessions live.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

PREFIX = "ess-"
LOCK = "session.lock"
END_TIMEOUT_S = 60.0


@contextmanager
def session_folder(kind: str = "") -> Iterator[Path]:
    """A new folder with a short path, as sockets need one; what killed sessions left is removed first."""
    place = Path(tempfile.gettempdir())
    with FileLock(place / f"{PREFIX}folders.lock"):
        for folder in abandoned(place):
            end(folder)
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))
        lock = FileLock(folder / LOCK)
        lock.acquire(blocking=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def bridge_of(folder: Path) -> str:
    """Name of the one bridge of networks that belongs to a folder."""
    return folder.name.replace("-", "")


def abandoned(place: Path) -> list[Path]:
    """Folders whose session has ended."""
    found = []
    for file in place.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(Timeout), FileLock(file, blocking=False):
            found.append(file.parent)
    return found


def end(folder: Path) -> None:
    """Kill what runs there, unmount what is mounted there, and remove the rest."""
    running = [process for process in psutil.process_iter() if belongs(process, folder)]
    for process in running:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(running, END_TIMEOUT_S)
    for point in reversed(mounted(Path("/proc/self"), folder)):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    if (Path("/sys/class/net") / bridge_of(folder)).exists():
        subprocess.run(["ip", "link", "delete", bridge_of(folder)], capture_output=True, check=False)
    # What could not be unmounted stays as it is.
    if not mounted(Path("/proc/self"), folder):
        shutil.rmtree(folder, ignore_errors=True)


def belongs(process: psutil.Process, folder: Path) -> bool:
    """Whether it is a server or a helper with a file there in its arguments, a daemon of Slurm, or in a container."""
    with suppress(psutil.Error, OSError):
        if any(f"{folder}/" in word for word in process.cmdline()):
            return True
        if process.name().startswith("slurm"):
            return process.environ().get("SLURM_CONF", "").startswith(f"{folder}/")
        return rooted(Path("/proc") / str(process.pid), folder)
    return False


def rooted(process: Path, folder: Path) -> bool:
    """Whether the root of its file system is made of layers that lie there."""
    lines = (process / "mountinfo").read_text().splitlines()
    return any(line.split()[4] == "/" and f"={folder}/" in line for line in lines)


def mounted(process: Path, folder: Path) -> list[str]:
    """Places at or below the folder where something is mounted, in the order in which that was done."""
    points = [line.split()[4] for line in (process / "mountinfo").read_text().splitlines()]
    return [point for point in points if os.path.commonpath([point, folder]) == str(folder)]
