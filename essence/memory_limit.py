"""How much main memory this process may take, where that is less than the machine has.

A limit is that of a control group, the process's own or one above it, in either version of control groups. Apptainer
shows its containers no control groups, so an engine also hands a stage the limit that it set.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "ESSENCE_MEMORY_BYTES"
"""The limit that an engine set for a stage."""
GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def memory_limit_bytes() -> int | None:
    """The least of all limits; None where nothing limits this process."""
    told = os.environ.get(VARIABLE, "")
    return min([*([int(told)] if told.isdigit() else []), *_of_groups()], default=None)


def _of_groups() -> Iterator[int]:
    """Limits of the process's groups; without one the first version names a number larger than any memory."""
    for file in _limit_files():
        with contextlib.suppress(OSError):
            limit = file.read_text(encoding="ascii").strip()
            if limit.isdigit():
                yield int(limit)


def _limit_files() -> Iterator[Path]:
    """Of the process's group and each above it. A container has its own group where others have the uppermost."""
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for number, controllers, group in (line.split(":", 2) for line in lines):
        if number == "0":
            root, name = ROOT, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = ROOT / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = Path(group.lstrip("/"))
        yield from (root / place / name for place in (own, *own.parents))
