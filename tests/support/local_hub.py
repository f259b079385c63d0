"""A hub on this machine that answers the few requests of huggingface_hub and breaks connections on request.

It serves the files of one data set repository at one commit: their list, their sizes, and their bytes by range.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/rows"


class LocalHub(ThreadingHTTPServer):
    """What was asked for, what was sent, and when to break."""

    daemon_threads = True

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Handler)
        self.folder, self.address = folder, address
        self.authorizations: set[str] = set()
        """What was sent as Authorization."""
        self.ranges: list[tuple[str, int, int]] = []
        """(file, first byte, bytes sent) of every answer."""
        self.breaks_at: list[int] = []
        """Total numbers of bytes sent after which the connection is cut in the middle of a body."""
        self.dead_after: int | None = None
        """Total number of bytes sent after which it stops answering."""
        self.waits_at: int | None = None
        """Total number of bytes sent after which nothing more is sent until `go_on`."""
        self.go_on = threading.Event()
        self.sent = 0
        self.turn = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Cut connections are what this server is for."""

    def files(self) -> dict[str, Path]:
        return {p.relative_to(self.folder).as_posix(): p for p in sorted(self.folder.rglob("*")) if p.is_file()}


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        wanted = json.loads(asked).get("paths", []) if asked.startswith(b"{") else []
        self._json([entry for entry in self._entries() if entry["path"] in wanted])

    def _answer(self, body: bool) -> None:
        api = f"/api/datasets/{REPOSITORY}"
        self.server.authorizations.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if self._dead():
            self._hang_up()
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self._json(self._entries())
        elif path in (api, f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.server.files()]
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"):
            self._file(path.partition(f"/resolve/{COMMIT}/")[2], body)
        else:
            self.send_error(404)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _dead(self) -> bool:
        return self.server.dead_after is not None and self.server.sent >= self.server.dead_after

    def _entries(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
            for name, file in self.server.files().items()
        ]

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, name: str, body: bool) -> None:
        file = self.server.files().get(name)
        if file is None:
            self.send_error(404)
            return
        size = file.stat().st_size
        first, last = _range(self.headers.get("Range"), size)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self._send(name, file, first, last - first + 1)

    def _send(self, name: str, file: Path, first: int, length: int) -> None:
        """Send the bytes, or as many as there are before the next break."""
        if self.server.waits_at is not None and self.server.sent > self.server.waits_at:
            self.server.go_on.wait(600)
        with self.server.turn, file.open("rb") as source:
            source.seek(first)
            limits = [*self.server.breaks_at, *([self.server.dead_after] if self.server.dead_after is not None else [])]
            next_break = min((at for at in limits if at > self.server.sent), default=None)
            allowed = length if next_break is None else min(length, next_break - self.server.sent)
            self.server.ranges.append((name, first, allowed))
            self.server.sent += allowed
            self.wfile.write(source.read(allowed))
            self.wfile.flush()
            if allowed < length:
                self._hang_up()


def _range(header: str | None, size: int) -> tuple[int, int]:
    if not header:
        return 0, size - 1
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), min(int(last), size - 1) if last else size - 1


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def local_hub(folder: Path, address: str = "127.0.0.1") -> Iterator[LocalHub]:
    """Serve a folder while the context lasts."""
    with LocalHub(folder, address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
