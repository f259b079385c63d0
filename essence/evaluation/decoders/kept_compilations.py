"""What vLLM compiles is kept from one start to the next, in a folder of its environment, and is never half of it.

vLLM writes some of these files in place: a start that is killed can leave one that no later start can read. So each
start leaves a mark until it has succeeded, and where one was left, the next start that is alone begins with nothing.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

KEPT = "ESSENCE_COMPILED"
"""Variable that names the folder; without it vLLM keeps its work where it likes."""
MARK = ".starting-"
LOCK = ".lock"


@contextlib.contextmanager
def kept_compilations() -> Iterator[None]:
    """Around the start of an engine. The folder is this process's to read until the process ends."""
    if KEPT not in os.environ:
        yield
        return
    folder = Path(os.environ[KEPT])
    folder.mkdir(parents=True, exist_ok=True)
    _take(folder)
    mark = folder / f"{MARK}{uuid.uuid4().hex}"
    mark.touch()
    yield
    mark.unlink(missing_ok=True)


def _take(folder: Path) -> None:
    """Share the folder with other engines; alone in it, remove what a failed start left.

    The descriptor stays open: nothing is removed below an engine that runs.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.suppress(OSError):  # on a disk without locks nothing is removed either
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return
        if any(folder.glob(f"{MARK}*")):
            _empty(folder)
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
