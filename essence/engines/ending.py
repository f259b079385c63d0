"""How the end of a stage by a signal is told: which one, and whether it was because memory had run out."""

import signal
from pathlib import Path

from essence.engines.contract import Ending

VMSTAT = Path("/proc/vmstat")


def memory_kills() -> int | None:
    """How many processes the kernel has killed so far because memory ran out; None where it does not count them."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def ended_by_signal(number: int, kills_before: int | None, limit_gib: float = 0.0) -> Ending:
    """The ending by a signal: because of memory where the kernel has killed for it since the stage began.

    `limit_gib` is what the stage was allowed to take, 0 = anything.
    """
    name, now = signal.Signals(number).name, memory_kills()
    if number != signal.SIGKILL:
        return Ending(-number, f"killed by {name}")
    if kills_before is None or now is None:
        return Ending(-number, f"killed by {name} (out of memory?)")
    return Ending(-number, out_of_memory(limit_gib) if now > kills_before else f"killed by {name}")


def out_of_memory(limit_gib: float) -> str:
    """The sentence for memory that ran out."""
    had = f"it may take {limit_gib:g} GiB (resources.memory_gib)" if limit_gib else "the machine has no more"
    return f"killed because memory ran out: {had}"
