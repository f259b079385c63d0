"""A registry of images on this machine, Debian's `docker-registry`, and what tests put into it.

`LocalRegistry.push_bytes` speaks the protocol itself, so that an image can be of any lock, platform or size.
"""

import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
import requests

from essence.engines import registry_image
from essence.engines.recipes import ENVIRONMENT_LABEL, FLAVOUR_LABEL, recipe
from essence.engines.registry import registry
from essence.engines.registry_image import typed_address
from essence.engines.sif_sources import typed_source
from essence.errors import KitError
from essence.settings import EnvironmentName
from support import debian_tools
from support.containers import Apptainer, lacking, need
from support.session_folders import marked, session_folder

START_TIMEOUT_S = 300.0
ZEROS = f"sha256:{'0' * 64}"
USER, PASSWORD = "reader", "open sesame"
HTPASSWD = "reader:$2b$04$zA4eTOOR6gY3h96Lale5oejOOTVawCzvYvB2iqEGS8KecYDFNCNNa\n"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_MANIFEST, OCI_CONFIG, OCI_LAYER = (
    f"application/vnd.oci.image.{what}" for what in ("manifest.v1+json", "config.v1+json", "layer.v1.tar")
)
SELF_TEST = '#!/bin/sh\necho self-test of a tiny image: "$@"\n'


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class LocalRegistry:
    """`127.0.0.1:PORT`, and who may read it."""

    host: str
    account: tuple[str, str] | None = None

    def put(self, name: str, content: bytes) -> str:
        """Upload a blob; its digest."""
        return self.put_file(name, io.BytesIO(content), digest_of(content))

    def put_file(self, name: str, content: IO[bytes], digest: str) -> str:
        """Upload a blob of this digest, which the registry checks."""
        begun = requests.post(f"http://{self.host}/v2/{name}/blobs/uploads/", auth=self.account)
        begun.raise_for_status()
        place = begun.headers["Location"]
        join = "&" if "?" in place else "?"
        headers = {"Content-Type": "application/octet-stream"}
        requests.put(
            f"{place}{join}digest={digest}", data=content, headers=headers, auth=self.account
        ).raise_for_status()
        return digest

    def push_archive(self, name: str, archive: tarfile.TarFile) -> str:
        """An image that Docker has saved, its layers uncompressed as they are there; the digest of its manifest."""

        def member(path: str) -> IO[bytes]:
            found = archive.extractfile(path)
            assert found, path
            return found

        index = json.load(member("manifest.json"))[0]
        config = member(index["Config"]).read()
        unpacked = json.loads(config)["rootfs"]["diff_ids"]
        layers = [
            {
                "mediaType": OCI_LAYER,
                "size": archive.getmember(path).size,
                "digest": self.put_file(name, member(path), d),
            }
            for path, d in zip(index["Layers"], unpacked, strict=True)
        ]
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "size": len(config), "digest": self.put(name, config)},
            "layers": layers,
        }
        return self.put_manifest(name, document)

    def put_manifest(self, name: str, document: dict[str, object], tag: str | None = None) -> str:
        content = json.dumps(document).encode()
        where = f"http://{self.host}/v2/{name}/manifests/{tag or digest_of(content)}"
        headers = {"Content-Type": str(document["mediaType"])}
        requests.put(where, data=content, headers=headers, auth=self.account).raise_for_status()
        return digest_of(content)

    def push_bytes(
        self,
        name: str,
        labels: dict[str, str],
        rootfs: bytes = b"",
        tag: str | None = None,
        architecture: str = "amd64",
    ) -> str:
        """An image of one layer with these labels; the digest of its manifest."""
        unpacked = rootfs or rootfs_of({})
        layer = gzip.compress(unpacked, mtime=0)
        config = configuration(labels, digest_of(unpacked), architecture)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": len(config), "digest": self.put(name, config)},
            "layers": [{"mediaType": LAYER, "size": len(layer), "digest": self.put(name, layer)}],
        }
        return self.put_manifest(name, document, tag)


def configuration(labels: dict[str, str], diff_id: str, architecture: str) -> bytes:
    path = "PATH=/opt/essence/bin:/usr/bin:/bin"
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": [path], "Labels": labels, "Cmd": ["python"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "a test"}],
    }
    return json.dumps(document).encode()


def right_labels(environment: EnvironmentName, flavour: str = "cpu") -> dict[str, str]:
    """Those of an image that was built from the project as it is."""
    image = recipe(environment, flavour)
    return {**image.wanted_labels(), ENVIRONMENT_LABEL: environment, FLAVOUR_LABEL: image.flavour}


def rootfs_of(files: dict[str, bytes]) -> bytes:
    """A layer: executable files by path, and the folders that Apptainer wants."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("dev", "etc", "proc", "sys", "tmp", "root", "var", "var/tmp", "run", "home"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def tiny_rootfs() -> bytes:
    """A shell that is one file, and a Python that is a script: what can be started, and passes its self-test."""
    files = {"bin/sh": debian_tools.busybox().read_bytes(), "opt/essence/bin/python": SELF_TEST.encode()}
    return rootfs_of({**files, "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"})


def pushed_sif(apptainer: Apptainer, file: Path, place: str) -> str:
    """What `apptainer push` makes of a SIF; its address by digest."""
    subprocess.run(
        [str(apptainer.program), "push", "--no-https", str(file), f"oras://{place}"], check=True, capture_output=True
    )
    with pytest.raises(KitError, match="now oras://") as told:
        typed_address("", f"oras://{place}")
    return str(told.value).rpartition("oras://")[2]


@contextmanager
def started_registry(folder: Path, secured: bool = False) -> Iterator[LocalRegistry]:
    """Debian's registry with its files below a folder; `secured`: it asks everyone for a password."""
    need("registry", lacking("docker-registry"))
    folder.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{free_port()}"
    (folder / "htpasswd").write_text(HTPASSWD, encoding="utf-8")
    asks = f"auth:\n  htpasswd:\n    realm: tests\n    path: {folder}/htpasswd\n" if secured else ""
    (folder / "config.yml").write_text(
        "version: 0.1\nlog:\n  accesslog:\n    disabled: true\n  level: error\n"
        f"storage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: {host}\n{asks}",
        encoding="utf-8",
    )
    with (folder / "log").open("wb") as log:
        command = ["docker-registry", "serve", str(folder / "config.yml")]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=marked(folder))
        try:
            wait_for(host, server, folder / "log")
            yield LocalRegistry(host, (USER, PASSWORD) if secured else None)
        finally:
            server.terminate()
            server.wait(START_TIMEOUT_S)


def wait_for(host: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            requests.get(f"http://{host}/v2/", timeout=5)
            return
        except requests.ConnectionError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)


@pytest.fixture(scope="session")
def image_registry() -> Iterator[LocalRegistry]:
    with session_folder("registry-") as folder, started_registry(folder) as one:
        yield one


@pytest.fixture
def images_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty list of published images, in place of locks/images.toml."""
    file = tmp_path / "images.toml"
    file.write_text("[cpu]\n\n[cuda]\n", encoding="utf-8")
    monkeypatch.setenv("ESSENCE_IMAGES_FILE", str(file))
    return file


@pytest.fixture
def known_registries() -> Iterator[None]:
    """No answers of an earlier test."""
    for known in (registry, registry_image.resolve, registry_image.resolve_sif):
        known.cache_clear()
    yield
    registry.cache_clear()


@pytest.fixture
def fresh_registries(known_registries: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login and no proxy of this machine, too."""
    for name in [name for name in os.environ if re.search("proxy|(APPTAINER|SINGULARITY)_DOCKER", name, re.I)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.setenv("HOME", str(tmp_path))


def refusal(address: str) -> KitError:
    """What `invoke sif --from` answers before it fetches anything."""
    with pytest.raises(KitError) as refused:
        typed_source(typed_address("--from", address), None, None)
    said = str(refused.value)
    assert refused.value.cure and "\n" not in said and "Traceback" not in said, said
    return refused.value


class Gate(ThreadingHTTPServer):
    """Hands requests on to a registry, but holds back the bytes of a layer until it is opened."""

    daemon_threads = True

    def __init__(self, behind: LocalRegistry, held_back: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.held_back = behind, held_back
        """Answers of more bytes than that are held back."""
        self.open, self.reached = threading.Event(), threading.Event()
        self.host = f"127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever was killed has cut its connection."""


class _Handler(BaseHTTPRequestHandler):
    server: Gate
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        passed = {name: self.headers[name] for name in ("Accept", "Range") if name in self.headers}
        passed["Accept-Encoding"] = "identity"
        url = f"http://{self.server.behind.host}{self.path}"
        found = requests.request(self.command, url, headers=passed, allow_redirects=True, timeout=60)
        self.send_response(found.status_code)
        for name in ("Content-Type", "Content-Length", "Docker-Content-Digest", "Docker-Distribution-Api-Version"):
            if name in found.headers:
                self.send_header(name, found.headers[name])
        self.end_headers()
        if self.command == "GET":
            if "/blobs/" in self.path and len(found.content) > self.server.held_back:
                self.server.reached.set()
                self.server.open.wait(1200)
            self.wfile.write(found.content)


@contextmanager
def started_gate(behind: LocalRegistry, held_back: int) -> Iterator[Gate]:
    gate = Gate(behind, held_back)
    thread = threading.Thread(target=gate.serve_forever, daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        gate.open.set()
        gate.shutdown()
        gate.server_close()
        thread.join()
