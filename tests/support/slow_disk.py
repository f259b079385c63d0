"""A disk that writes slowly: a folder behind bindfs, which lets so many bytes a second through."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.debian_tools import bindfs
from support.processes import wait_for


def slow_disk_obstacle() -> str | None:
    """Why there can be none here."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "a slow disk needs root and /dev/fuse"
    return None


@contextmanager
def slow_disk(folder: Path, bytes_per_s: int) -> Iterator[None]:
    """An empty folder on a disk that every user of this machine finds slow to write to; it is read at full speed."""
    behind = folder.with_name(f"{folder.name}-behind")
    for each in (folder, behind):
        each.mkdir()
    words = [found] if (found := shutil.which("bindfs")) else bindfs()
    process = subprocess.Popen([*words, "-f", f"--write-rate={bytes_per_s}", str(behind), str(folder)])
    try:
        wait_for(lambda: folder.is_mount() or process.poll() is not None)
        assert process.poll() is None, "bindfs ended"
        yield
    finally:
        if folder.is_mount():
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        process.terminate()
        process.wait()
