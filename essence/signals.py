"""What a stage does with a signal that comes before its modules are there: it ends, as if it had not been started."""

import os
import signal
from types import FrameType

EXIT_STOPPED = 75
"""Stopped on request with everything kept: start it again."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def leave_on_signals() -> None:
    """End at once on a signal that asks for a stop, without a traceback; for the seconds in which modules are imported.

    Nothing is begun then. `StopRequest.install` takes over.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    os.write(2, f"stopped by {signal.Signals(number).name} before anything had begun\n".encode())
    os._exit(EXIT_STOPPED)
