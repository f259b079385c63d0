"""A stage in a container: its log goes into the stage's folder, and the cause of its end is distinguished."""

import contextlib
import signal
import threading

import requests
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from essence.engines.engine import Exit, Launch, ended_by_signal, memory_kills, out_of_memory
from essence.engines.secrets import Token

SIGNAL_BASE = 128
FAILED = 1


class DockerStage:
    """A running container, watched by a thread of its own."""

    def __init__(
        self,
        container: Container,
        surroundings: Launch,
        log_start: int,
        mine: bool,
        secret: Token | None = None,
    ) -> None:
        self.container = container
        self.surroundings = surroundings
        self.log_start = log_start
        self.mine = mine
        """Another live process's container is only waited for."""
        self.secret = secret
        self.memory_kills = memory_kills()
        self._ending: Exit | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def poll(self) -> Exit | None:
        return None if self._thread.is_alive() else self._ending

    def stop(self) -> None:
        self._signal("SIGTERM")

    def kill(self) -> None:
        self._signal("SIGKILL")
        if self.mine:
            self._thread.join()

    def _signal(self, name: str) -> None:
        # A container that has ended meanwhile needs no signal.
        with contextlib.suppress(APIError, requests.RequestException):
            if self.mine:
                self.container.kill(signal=name)

    def _watch(self) -> None:
        try:
            if self.mine:
                self._copy_log()
            code = int(self.container.wait()["StatusCode"])
            self._ending = self._judge(code)
        except NotFound:
            # The process that owns it saw it end, and removed it.
            done = not self.mine and self.surroundings.folder.done
            self._ending = Exit(0 if done else FAILED, None if done else "its container was removed while it ran")
        except (APIError, requests.RequestException) as error:
            self._ending = Exit(FAILED, f"the Docker engine went away while the stage ran: {error}")
        except OSError as error:
            self._ending = Exit(FAILED, f"its log cannot be written: {error}")
        except Exception as error:
            # Without an ending the stage would seem to run for ever.
            self._ending = Exit(FAILED, f"what became of its container cannot be told: {error!r}")
            raise
        finally:
            self._tidy()

    def _copy_log(self) -> None:
        """The whole output of the container; a part that a killed process had copied is overwritten."""
        with self.surroundings.folder.log.open("ab") as log:
            log.truncate(self.log_start)
            for chunk in self.container.logs(stream=True, follow=True):
                log.write(chunk)
                log.flush()

    def _judge(self, code: int) -> Exit:
        """Out of memory, a signal from outside, or the stage's own exit code."""
        if code == 0:
            return Exit(0)
        self.container.reload()
        if self.container.attrs["State"]["OOMKilled"]:
            return Exit(code, out_of_memory(self.surroundings.resources.memory_gib))
        if code - SIGNAL_BASE in signal.valid_signals():
            return ended_by_signal(code - SIGNAL_BASE, self.memory_kills)
        return Exit(code)

    def _tidy(self) -> None:
        if self.mine:
            with contextlib.suppress(APIError, requests.RequestException):
                self.container.remove(force=True)
        if self.secret:
            self.secret.forget()
