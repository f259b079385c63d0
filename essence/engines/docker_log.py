"""The output of a container, copied into its stage's log: a copy that fails says nothing about the stage.

The engine may be restarted while containers live on, a stream may be cut, and one may never close. So a copy goes on
where the last one ended, and once the container has ended the whole output is asked for again, for what is lacking.
"""

import contextlib
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import requests
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container
from urllib3.exceptions import HTTPError

RECONNECT_S = 1.0
LAST_COPY_S = 15.0
"""How long an ended container's output may take before it is taken as it is."""
LOST = (APIError, DockerException, requests.RequestException, HTTPError, OSError, ValueError, struct.error)
"""What a stream that breaks off is told by; the last two: within a frame, or while it was read."""


class ContainerLog:
    """Copies the output of one container, in a thread of its own."""

    def __init__(self, container: Container, file: Path, start: int) -> None:
        """`start`: bytes of the file that are of earlier attempts; what follows is overwritten."""
        self.container, self.file, self.start = container, file, start
        self.written = 0
        self.refusal: str | None = None
        """Why the engine gave no output at the last try."""
        self._ended, self._closed = threading.Event(), threading.Event()
        self._stream: Iterator[bytes] | None = None
        self._thread = threading.Thread(target=self._copy, daemon=True)
        with contextlib.suppress(OSError), file.open("ab") as log:
            log.truncate(start)
        self._thread.start()

    def finish(self) -> None:
        """The container has ended: copy what is lacking, within a limited time."""
        self._ended.set()
        self._thread.join(LAST_COPY_S)
        if self._thread.is_alive():
            # A stream that never closes: the rest is asked for anew.
            self._close_stream()
            self._thread.join(LAST_COPY_S)
        self._closed.set()
        if self.refusal and not self.written:
            with contextlib.suppress(OSError), self.file.open("ab") as log:
                log.write(f"the Docker engine gives no output of this container ({self.refusal})\n".encode())

    def leave(self) -> None:
        """Copy no more: the container goes on without this process."""
        self._closed.set()
        self._ended.set()
        self._close_stream()

    def _copy(self) -> None:
        while not self._ended.is_set():
            if not self._copy_once(follow=True):
                return
            self._ended.wait(RECONNECT_S)
        if not self._closed.is_set():
            self._copy_once(follow=False)

    def _copy_once(self, follow: bool) -> bool:
        """Copy from where the last copy ended; False where there is no such container any more."""
        to_skip = self.written
        try:
            self._stream = self.container.logs(stream=True, follow=follow)
            for chunk in self._stream:
                fresh = chunk[to_skip:]
                to_skip = max(0, to_skip - len(chunk))
                if fresh and not self._write(fresh):
                    return True
            self.refusal = None
        except NotFound:
            return False
        except LOST as error:
            self.refusal = " ".join(str(error).split())
        return True

    def _write(self, chunk: bytes) -> bool:
        if self._closed.is_set():
            return False
        # Raised on a full disk: then it is tried again, and the stage itself says what it cannot write.
        with self.file.open("ab") as log:
            log.write(chunk)
        self.written += len(chunk)
        return True

    def _close_stream(self) -> None:
        with contextlib.suppress(*LOST, AttributeError):
            self._stream.close()  # type: ignore[union-attr]
