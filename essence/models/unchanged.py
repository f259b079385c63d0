"""What was read of a model folder counts as long as no file of it changes: a stage looks at the same ones many times.

A tokenizer of 150,000 tokens takes a second to read, and a training asked for it nine times before its first step.
"""

import uuid
from pathlib import Path

State = tuple[tuple[str, int, int, int], ...]
"""Of each file: name, inode, bytes, nanoseconds of its last change."""


def state_of(folder: Path) -> State:
    """What tells one state of a folder's files, and of those one folder below, from another.

    Where it cannot be told (a file goes while it is looked at, a name that no file can have), one that never comes
    again: then the folder is read anew, and who reads it says what is wrong.
    """
    try:
        return tuple(sorted(_file(path) for path in (*folder.glob("*"), *folder.glob("*/*"))))
    except (OSError, ValueError):  # ValueError: a name with a NUL, from Python 3.13 on
        return ((uuid.uuid4().hex, 0, 0, 0),)


def _file(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except OSError:  # a link to nothing
        found = path.lstat()
    return (str(path), found.st_ino, found.st_size, max(found.st_mtime_ns, found.st_ctime_ns))
