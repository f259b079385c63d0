"""A file system in one file, for what an engine writes: removing it is removing one file, not hundreds of thousands.

On a file system that tells its device of every freed block, removing them took minutes after the last test.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("mkfs.ext4", "mount", "umount")
MAKE = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", "-N", "4000000"]
MOUNT = ["mount", "-o", "loop,noatime,barrier=0,noinit_itable"]
"""No journal and no barrier: after a crash nobody reads it."""
UNMOUNT_S = 30.0


@contextmanager
def scratch_disk(folder: Path) -> Iterator[bool]:
    """`folder` as the root of an empty file system of its own where the machine can mount one, else as it is;
    whether it is one.

    The file beside it is sparse: it takes what is written, and can grow to what is free.
    """
    folder.mkdir()
    file = folder.with_suffix(".ext4")
    mounted = _mount(file, folder)
    try:
        yield mounted
    finally:
        if mounted:
            _unmount(folder)
        file.unlink(missing_ok=True)


def _mount(file: Path, folder: Path) -> bool:
    if not all(map(shutil.which, PROGRAMS)):
        return False
    with file.open("wb") as empty:
        os.truncate(empty.fileno(), shutil.disk_usage(folder).free)
    return all(
        subprocess.run(step, capture_output=True, check=False).returncode == 0
        for step in ([*MAKE, str(file)], [*MOUNT, str(file), str(folder)])
    )


def _unmount(folder: Path) -> None:
    """As soon as the last process of an engine has left it."""
    deadline = time.monotonic() + UNMOUNT_S
    while subprocess.run(["umount", "--recursive", folder], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            subprocess.run(["umount", "--lazy", folder], check=True)
            return
        time.sleep(0.1)
