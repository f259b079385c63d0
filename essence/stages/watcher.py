"""A thread beside a stage's work that looks for a stop and for its parent's death, and ends the stage that does not.

A stage looks at its stop request itself, between two steps. One long step, a model that loads or a download would make
it deaf meanwhile: an orphan that holds its folder for minutes, and every later run waits for it. So a stop gets a time,
after which the stage ends as if it had been killed, which every stage survives.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time

import psutil

from essence.errors import ExitCode
from essence.progress import StopRequest, parent_is_gone
from essence.settings import StageName
from essence.signals import STOP_SIGNALS

LOOK_EVERY_S = 1.0
GRACE_S = 30.0
"""From a stop to the end of a stage: what it has finished is on disk as it goes."""
TRAIN_GRACE_S = 600.0
"""Of a training, which writes a checkpoint: that of a 4B student with its moments is 48 GB."""
ORPHAN_WAIT_S = TRAIN_GRACE_S + 60.0
"""How long a stage waits for one of a killed run, which has noticed that it is alone and ends within its time."""


class Watcher(threading.Thread):
    """Looks once a second; signals are seen at once, while the main thread is in a long call of C too."""

    def __init__(self, stop: StopRequest, stage: StageName, grace_s: float | None = None) -> None:
        super().__init__(name="essence-watcher", daemon=True)
        self.stop, self.stage = stop, stage
        self.grace_s = grace_s or (TRAIN_GRACE_S if stage == "train" else GRACE_S)
        self._done = threading.Event()

    def watch(self) -> None:
        """Start; to be called by the main thread."""
        self._read, self._write = socket.socketpair()
        for end in (self._read, self._write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self.start()

    def rest(self) -> None:
        """The work is done: what is left, names and hashes, is finished whatever comes."""
        self._done.set()

    def run(self) -> None:
        while not self.stop:
            self._look()
        deadline = time.monotonic() + self.grace_s
        while time.monotonic() < deadline:
            if self._done.wait(LOOK_EVERY_S):
                return
        self._end()

    def _look(self) -> None:
        if select.select([self._read], [], [], LOOK_EVERY_S)[0]:
            for number in self._read.recv(64):
                if number in STOP_SIGNALS:
                    self.stop.ask(signal.Signals(number).name)
        if parent_is_gone():
            self.stop.ask("the death of the process that started it")

    def _end(self) -> None:
        """End what this process has started, and this process."""
        said = f"stopped by {self.stop.signal_name}, not at an end {self.grace_s:g} s later, and so ended at once"
        with contextlib.suppress(OSError):
            os.write(2, f"{self.stage}: {said}; start it again to go on\n".encode())
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(ExitCode.STOPPED)
