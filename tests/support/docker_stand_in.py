"""A stand-in for a Docker engine: answers the real client as the API documents it, and breaks off where it is told to.

Faults are hit in turn: each call of the kind takes the next one of its list, and afterwards all goes well.
"""

import http.server
import json
import re
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlparse

CUT, HANG, ERROR, GONE = "cut", "hang", "error", "gone"
"""What a call does instead: breaks off, stays open, answers 500, answers 404."""
HANG_S = 30.0


@dataclass
class StandIn:
    """One container, and the images that are there."""

    output: list[bytes] = field(default_factory=list)
    """What it has written, a chunk each."""
    status: str = "running"
    code: int = 0
    heard_of_memory_after: int | None = None
    """Looks at the ended container until it is told that memory ran out; None = it did not."""
    security: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    """Every name by which the engine knows an image, and its id."""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Id of an image -> its labels."""
    root: str = "/nowhere"
    disk_usage: object = None
    """What it answers when it is asked for the use of its disk."""
    queries: list[str] = field(default_factory=list)
    """How it was."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """wait, logs, json (inspect), delete, create, df -> what happens at each call."""
    created: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    removed: bool = False

    def end(self, code: int) -> None:
        self.status, self.code = "exited", code
        self.ended.set()

    def memory_ran_out(self) -> bool:
        """What it knows at this look."""
        if self.heard_of_memory_after is None or not self.ended.is_set():
            return False
        self.heard_of_memory_after -= 1
        return self.heard_of_memory_after < 0

    def fault(self, kind: str) -> str | None:
        self.calls.append(kind)
        waiting = self.faults.get(kind, [])
        return waiting.pop(0) if waiting else None


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the API that the kit uses."""

    protocol_version = "HTTP/1.1"
    engine: StandIn

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def answer(self, value: object, code: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def broken(self, kind: str) -> bool:
        """Whether this call breaks off."""
        found = self.engine.fault(kind)
        if found == CUT:
            self.close_connection = True
            self.connection.close()
        elif found == HANG:
            time.sleep(HANG_S)
        elif found in (ERROR, GONE):
            what = "No such image: it" if kind == "create" else f"stand-in: {kind}"
            self.answer({"message": what}, 500 if found == ERROR else 404)
        elif found is not None and found.isdigit():
            self.answer({"message": "removal of container is already in progress"}, int(found))
        return found is not None

    def do_GET(self) -> None:
        path, engine = re.sub(r"^/v[0-9.]+", "", urlparse(self.path).path), self.engine
        if path in ("/version", "/_ping"):
            return self.answer({"Version": "28.5.2", "ApiVersion": "1.51", "MinAPIVersion": "1.24"})
        if path == "/info":
            root = {"DockerRootDir": engine.root}
            return self.answer({"SecurityOptions": engine.security, "DriverStatus": [], **root})
        if path == "/system/df":
            engine.queries.append(urlparse(self.path).query)
            return None if self.broken("df") else self.answer(engine.disk_usage)
        if found := re.fullmatch(r"/images/(.+)/json", path):
            known = {**engine.images, **{image: image for image in engine.images.values()}}
            if found[1] not in known:
                return self.answer({"message": f"No such image: {found[1]}"}, 404)
            labels = {"Labels": engine.labels.get(known[found[1]], {})}
            return self.answer({"Id": known[found[1]], "RepoTags": list(engine.images), "Config": labels})
        if path in ("/containers/json", "/images/json"):
            return self.answer([])
        if re.fullmatch(r"/containers/\w+/json", path):
            return None if self.broken("json") else self.inspect()
        return self.logs() if path.endswith("/logs") else self.answer({"message": f"unknown: {path}"}, 404)

    def inspect(self) -> None:
        engine = self.engine
        if engine.removed:
            return self.answer({"message": "No such container: c1"}, 404)
        state = {"Status": engine.status, "ExitCode": engine.code, "OOMKilled": engine.memory_ran_out(), "Pid": 1}
        return self.answer({"Id": "c1", "State": state, "Config": {"Labels": {}, "Tty": False}, "Name": "/c1"})

    def logs(self) -> None:
        """Frames as of a container without a terminal: a byte for the stream, three of zeros, the size."""
        fault = self.engine.fault("logs")
        if fault in (ERROR, GONE):
            return self.answer({"message": "configured logging driver does not support reading"}, 501)
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.raw-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        follow, sent = parse_qs(urlparse(self.path).query).get("follow") == ["1"], 0
        while True:
            for chunk in self.engine.output[sent:]:
                self.wfile.write(struct.pack(">BxxxL", 1, len(chunk)) + chunk)
                sent += 1
                if fault == CUT:
                    self.wfile.write(b"\1\0\0")  # within the head of the next frame
                    return None
            self.wfile.flush()
            if not follow or (self.engine.ended.is_set() and sent == len(self.engine.output)):
                break
            time.sleep(0.01)
        if fault == HANG:
            time.sleep(HANG_S)
        return None

    def do_POST(self) -> None:
        path = re.sub(r"^/v[0-9.]+", "", urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/containers/create":
            if not self.broken("create"):
                self.engine.created.append(json.loads(body))
                self.answer({"Id": "c1", "Warnings": []}, 201)
        elif path.endswith("/wait"):
            if not self.broken("wait"):
                self.engine.ended.wait()
                self.answer({"StatusCode": self.engine.code})
        else:
            self.send_response(204)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_DELETE(self) -> None:
        if not self.broken("delete"):
            self.engine.removed = True
            self.send_response(204)
            self.send_header("Content-Length", "0")
            self.end_headers()


class Server(http.server.ThreadingHTTPServer):
    """One whose clients may go away."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing: a connection was broken on purpose."""


class Serving:
    """The stand-in behind an address."""

    def __init__(self) -> None:
        self.engine = StandIn()
        handler = type("Bound", (Handler,), {"engine": self.engine})
        self.server = Server(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.address = f"tcp://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.engine.ended.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
