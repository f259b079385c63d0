"""A signal that arrives before a stage has loaded its modules ends it as if it had not started."""

import ctypes
import os
import signal
import sys
from types import FrameType

from essence.errors import ExitCode

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def leave_on_signals() -> None:
    """End at once on a signal that asks for a stop, without a traceback; for the seconds in which modules are imported.

    Nothing is begun then. `StopRequest.install` takes over.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Be sent a signal when the process that started this one dies, within one long operation of C too (Linux).

    Raises:
        SystemExit: it has died before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        raise SystemExit(ExitCode.STOPPED)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    os.write(2, f"stopped by {signal.Signals(number).name} before anything had begun\n".encode())
    os._exit(ExitCode.STOPPED)
