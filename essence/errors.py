"""Failures that the user can cure: one class a failure; the message says what, where, what was found, what cures it.

The commands print the message without a traceback and exit with 2. Anything else is a bug and keeps its traceback.
"""

import contextlib
import difflib
import enum
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self


class ExitCode(enum.IntEnum):
    """How a command or a stage ends; docs/troubleshooting.md has the table."""

    DONE = 0
    FAILED = 1
    """A stage failed without a cure that the kit knows, or a file differs; a traceback, where the kit has a bug."""
    CURABLE = 2
    """One sentence says what is wrong and what to do; of a run, one for every stage that failed."""
    STOPPED = 75
    """Of a stage alone: stopped on request with everything kept, so it can be started again."""
    INTERRUPTED = 130
    """Ctrl-C."""


class KitError(Exception):
    """Base of every failure that the user can cure: what is wrong, and what to do about it where that is known."""

    def __init__(self, problem: str, cure: str = "") -> None:
        super().__init__(problem, cure)  # both, so that one that comes from another process has both
        self.problem, self.cure = problem, cure

    def __str__(self) -> str:
        return f"{self.problem}; {self.cure}" if self.cure else self.problem

    def reworded(self, change: Callable[[str], str]) -> Self:
        """The same failure in other words, as where it names a copy of the user's file."""
        return type(self)(change(self.problem), change(self.cure))


class ExperimentError(KitError):
    """An experiment file holds a key or a value that is not allowed."""


class PinError(KitError):
    """A model or data set has no commit yet, or is not known."""


class MachineError(KitError):
    """This machine lacks what the run needs."""


class HeldError(KitError):
    """Somebody else is working on the same run directory or stage."""


class InputError(KitError):
    """An input of a stage (model, rows, problems) is missing, damaged or of another shape."""


class StageError(KitError):
    """A stage ended with an error; its log says which."""


class RecordError(KitError):
    """A record (manifest, spec, run directory) is missing, damaged or made by a newer schema."""


class SchedulerError(KitError):
    """Slurm does not answer, or refuses a job."""


class SilentSchedulerError(SchedulerError):
    """The scheduler did not answer in time: what was asked of it may have been done or not."""


class DiskError(KitError):
    """A path cannot be used: its disk is full, or may not be written to, or it is no folder."""


MAKE_ROOM = "make room there, or name another run directory with --runs"
DISK = {
    errno.ENOSPC: "no space is left on its disk",
    errno.EDQUOT: "the quota of its disk is used up",
    errno.EFBIG: "the file is larger than its disk or this process may have",
    errno.EROFS: "its disk is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "its disk does not answer (input/output error)",
    errno.ESTALE: "its disk has been taken away (stale file handle)",
    errno.ENAMETOOLONG: "the name is longer than its file system allows",
    errno.ENOTDIR: "a part of the path is a file, where a folder is wanted",
    errno.EEXIST: "a file has that name, where a folder is wanted",
    errno.EISDIR: "a folder has that name, where a file is wanted",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "this machine has too many open files",
}
TEMPORARY = (
    "make room there, or name another folder for temporary files with TMPDIR (in a Docker container it is memory: "
    "resources.memory_gib)"
)
SHARE = (
    "have its owner let the group write (chmod -R g+rwX, and umask 002 for all who share it), or name another run "
    "directory with --runs"
)
CURES = {
    errno.EIO: "look whether its disk is well, or choose another path",
    errno.ESTALE: "wait until its disk is back, or choose another path",
    errno.EACCES: SHARE,
    errno.EPERM: SHARE,
    errno.EROFS: "name another run directory with --runs",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ENOTDIR: "name a folder",
    errno.EEXIST: "name a folder, or move that file away",
    errno.EISDIR: "name a file, or move that folder away",
    errno.ELOOP: "mend the links, or choose another path",
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "end other processes",
}
"""What cures it, where it is not MAKE_ROOM."""
LONGEST_PLACE = 200
"""Letters of a path that are shown."""


OS_ERROR = re.compile(r"\(os error (\d+)\)")


def disk_error(error: BaseException, where: object) -> DiskError | None:
    """The sentence for a path or disk that refused; libraries that write by themselves report it in words only."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := OS_ERROR.search(str(error))):
        number = int(told[1])  # of a library in Rust
    if "No space left on device" in str(error):
        number = errno.ENOSPC
    if number not in DISK:
        return None
    place = str(getattr(error, "filename", None) or where)
    if len(place) > LONGEST_PLACE:
        place = f"{place[: LONGEST_PLACE // 2]}...{place[-LONGEST_PLACE // 2 :]}"
    temporary = tempfile.gettempdir()
    own_place = Path(place).is_relative_to(temporary) and not Path(str(where)).is_relative_to(temporary)
    cure = TEMPORARY if number in (errno.ENOSPC, errno.EDQUOT) and own_place else CURES.get(number, MAKE_ROOM)
    return DiskError(f"{place}: {DISK[number]}{_owner(place, number)}", cure)


def _owner(place: str, number: int | None) -> str:
    """Whose a path is that this user may not write to, or the first folder above it that is there."""
    if number not in (errno.EACCES, errno.EPERM):
        return ""
    path = Path(place).absolute()
    with contextlib.suppress(OSError, KeyError):  # KeyError: an owner without a name
        there = next(one for one in (path, *path.parents) if os.access(one, os.F_OK))
        return f" (it belongs to {there.owner()})" if there.stat().st_uid != os.getuid() else ""
    return ""


def nearest(found: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest allowed word, or an empty string."""
    close = difflib.get_close_matches(str(found), [str(word) for word in allowed], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


LONGEST_SHOWN = 100
"""Characters of a value in a message."""


def shortened(text: str) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
