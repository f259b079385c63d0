"""A stage in a container: its log goes into the stage's folder, and the cause of its end is distinguished.

A connection to the engine that is lost says nothing about the container, which lives on while its engine is restarted:
it is looked at before it is judged, and removed only when it has ended.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import requests
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

from essence.engines.docker_log import RECONNECT_S, ContainerLog
from essence.engines.engine import Exit, Launch, ended_by_signal, out_of_memory
from essence.engines.secrets import Token

SIGNAL_BASE = 128
FAILED = 1
WAIT_S = 60.0
"""After that long a connection that waits for an end is made anew: it may have been lost without a word."""
SILENT_S = 600.0
"""How long an engine may be away, as while it is restarted or replaced."""
KILLED_S = 30.0
"""The same once the stage was to be ended."""
LATE_S = 0.5
"""So much later than of the end an engine may hear that it came because memory ran out."""
REMOVAL_S, REMOVAL_POLL_S = 60.0, 0.2
CONFLICT = 409
ENDED = ("exited", "stopped", "dead")
"""States in which a container's process is gone; podman calls one of them stopped."""


class Ended(NamedTuple):
    """How a container's process ended."""

    code: int
    out_of_memory: bool

    @property
    def killed(self) -> bool:
        """True where nothing says why."""
        return self.code == SIGNAL_BASE + signal.SIGKILL and not self.out_of_memory


class DockerStage:
    """A running container, watched by a thread of its own."""

    def __init__(
        self,
        container: Container,
        surroundings: Launch,
        log_start: int,
        mine: bool,
        secret: Token | None = None,
        kills_before: int | None = None,
    ) -> None:
        """kills_before: `memory_kills` of before it was started; None where that is not known."""
        self.container = container
        self.surroundings = surroundings
        self.mine = mine
        """Another live process's container is only waited for."""
        self.secret = secret
        self.kills_before = kills_before
        self._ending: Exit | None = None
        self._killed = threading.Event()
        self._log = ContainerLog(container, surroundings.folder.log, log_start) if mine else None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def poll(self) -> Exit | None:
        return None if self._thread.is_alive() else self._ending

    def stop(self) -> None:
        self._signal("SIGTERM")

    def kill(self) -> None:
        self._signal("SIGKILL")
        self._killed.set()
        if self.mine:
            self._thread.join()

    def _signal(self, name: str) -> None:
        # A container that has ended meanwhile needs no signal.
        with contextlib.suppress(APIError, requests.RequestException):
            if self.mine:
                self.container.kill(signal=name)

    def _watch(self) -> None:
        gone = False
        try:
            found = self._wait()
            gone = found is not None
            if self._log:
                self._log.finish() if gone else self._log.leave()
            self._ending = self._judge(found) if found else Exit(FAILED, self._silence())
        except NotFound:
            # The process that owns it saw it end, and removed it.
            gone, done = True, not self.mine and self.surroundings.folder.done
            self._ending = Exit(0 if done else FAILED, None if done else "its container was removed while it ran")
        except Exception as error:
            # Without an ending the stage would seem to run for ever.
            self._ending = Exit(FAILED, f"what became of its container cannot be told: {error!r}")
            raise
        finally:
            if self._log:
                self._log.leave()
            if gone:
                self._tidy()

    def _wait(self) -> Ended | None:
        """How it ended; None where the engine has been silent for too long. NotFound where it was removed."""
        heard = time.monotonic()
        while time.monotonic() - heard < (KILLED_S if self._killed.is_set() else SILENT_S):
            # What the engine says to this or does not, the container itself is asked next.
            self._try(lambda: self.container.wait(timeout=WAIT_S))
            if self._try(self.container.reload):
                heard = time.monotonic()
                if found := _ended(self.container):
                    return (self._looked_at_again() or found) if found.killed else found
            time.sleep(RECONNECT_S)
        return None

    def _looked_at_again(self) -> Ended | None:
        """How it ended, once the engine has heard why."""
        if not self._killed.wait(LATE_S):
            with contextlib.suppress(NotFound):
                self._try(self.container.reload)
        return _ended(self.container)

    def _try(self, question: Callable[[], object]) -> bool:
        """Whether the engine answers; NotFound where it says that there is no such container."""
        try:
            question()
        except NotFound:
            raise
        except (DockerException, requests.RequestException, ValueError):
            return False
        return True

    def _silence(self) -> str:
        return (
            f"the Docker engine has not answered for {SILENT_S / 60:.0f} minutes; its container may run on: start the "
            "engine, and issue the command again, which takes it over"
        )

    def _judge(self, ended: Ended) -> Exit:
        """Out of memory, a signal from outside, or the stage's own exit code."""
        if ended.code == 0:
            return Exit(0)
        if ended.out_of_memory:
            return Exit(ended.code, out_of_memory(self.surroundings.resources.memory_gib))
        if ended.code - SIGNAL_BASE in signal.valid_signals():
            limit_gib = self.surroundings.resources.memory_gib
            return ended_by_signal(ended.code - SIGNAL_BASE, self.kills_before, limit_gib)
        return Exit(ended.code)

    def _tidy(self) -> None:
        if self.mine:
            with contextlib.suppress(APIError, requests.RequestException):
                remove(self.container)
        if self.secret:
            self.secret.forget()


def _ended(container: Container) -> Ended | None:
    """How it ended, as it was last looked at; None while it runs."""
    state: Any = container.attrs.get("State")
    if not isinstance(state, dict) or state.get("Status") not in ENDED:
        return None
    return Ended(int(state.get("ExitCode", FAILED)), bool(state.get("OOMKilled")))


def remove(container: Container) -> None:
    """Remove a container; one that somebody else is removing is waited for. APIError where it cannot be removed."""
    deadline = time.monotonic() + REMOVAL_S
    while True:
        try:
            container.remove(force=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != CONFLICT or time.monotonic() > deadline:
                raise
            time.sleep(REMOVAL_POLL_S)
        else:
            return
