"""Who asks a registry, through what, and what is said where it refuses or does not answer; no password is shown."""

import base64
import json
import os
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest
import requests

from essence.engines.recipes import recipe
from essence.engines.registry import registry
from essence.engines.registry_image import published_image, resolve, typed_address
from essence.engines.registry_login import find_login
from essence.engines.sif_sources import typed_source
from essence.errors import MachineError
from support.image_registry import (
    PASSWORD,
    USER,
    ZEROS,
    LocalRegistry,
    free_port,
    refusal,
    right_labels,
    started_registry,
)

pytestmark = pytest.mark.usefixtures("fresh_registries")
TRAIN = recipe("train", "cpu")


class TokenRegistry(ThreadingHTTPServer):
    """A registry as those of the big hosts: it wants a token, which another address gives for a password."""

    daemon_threads = True

    def __init__(self, behind: LocalRegistry) -> None:
        super().__init__(("127.0.0.1", 0), TokenHandler)
        self.behind, self.host = behind, f"127.0.0.1:{self.server_port}"
        self.realm = f"http://{self.host}/token"
        self.asked: list[str] = []


class TokenHandler(BaseHTTPRequestHandler):
    server: TokenRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        held = self.headers.get("Authorization", "")
        if self.path.startswith("/token"):
            self.server.asked.append(self.path)
            right = held == f"Basic {told(PASSWORD)}"
            self.reply(200 if right else 401, b'{"token": "granted"}' if right else b"{}")
        elif held != "Bearer granted":
            challenge = f'Bearer realm="{self.server.realm}",service="tests",scope="repository:essence-train:pull"'
            self.reply(401, b"{}", {"WWW-Authenticate": challenge})
        else:
            url, accept = f"http://{self.server.behind.host}{self.path}", {"Accept": self.headers["Accept"]}
            found = requests.get(url, headers=accept, timeout=10)
            self.reply(found.status_code, found.content, {"Content-Type": found.headers["Content-Type"]})

    def reply(self, status: int, content: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.registry
def test_a_password_is_taken_from_the_clients_own_login_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started_registry(tmp_path / "registry", secured=True) as secured:
        digest = secured.push_bytes("essence-train", right_labels("train"))
        address = f"docker://{secured.host}/essence-train@{digest}"
        said = str(refusal(address))
        assert f"the registry {secured.host} asks for a login" in said and f"docker login {secured.host}" in said
        for kept in (tmp_path / "docker-config" / "config.json", tmp_path / ".apptainer" / "docker-config.json"):
            log_in(kept, secured.host, PASSWORD)
            assert typed_source(typed_address("", address), None, None)[0] == TRAIN
            registry.cache_clear()
            resolve.cache_clear()
            log_in(kept, secured.host, "wrong-secret")
            said = str(refusal(address))
            assert "refuses the login that is kept here" in said and "wrong-secret" not in said
            kept.unlink()
        monkeypatch.setenv("APPTAINER_DOCKER_USERNAME", USER)
        monkeypatch.setenv("APPTAINER_DOCKER_PASSWORD", PASSWORD)
        registry.cache_clear()
        assert typed_source(typed_address("", address), None, None)[0] == TRAIN
        assert PASSWORD not in repr(find_login(secured.host))


@pytest.mark.registry
def test_a_token_is_fetched_as_docker_does_and_a_password_goes_nowhere_else(
    tmp_path: Path, image_registry: LocalRegistry
) -> None:
    digest = image_registry.push_bytes("essence-train", right_labels("train"))
    server = TokenRegistry(image_registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"docker://{server.host}/essence-train@{digest}"
    kept = tmp_path / "docker-config" / "config.json"
    assert "asks for a login" in refusal(address).problem
    log_in(kept, server.host, PASSWORD)
    assert typed_source(typed_address("", address), None, None)[0] == TRAIN
    assert server.asked[-1] == "/token?service=tests&scope=repository:essence-train:pull"
    registry.cache_clear()
    resolve.cache_clear()
    server.realm, asked = "http://registry.example.org/token", len(server.asked)
    assert "refuses the login" in refusal(address).problem and len(server.asked) == asked
    server.shutdown()
    server.server_close()


def told(password: str) -> str:
    return base64.b64encode(f"{USER}:{password}".encode()).decode()


def log_in(file: Path, host: str, password: str) -> None:
    """What `docker login` and `apptainer registry login` write."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"auths": {host: {"auth": told(password)}}}), encoding="utf-8")


def test_a_login_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "bin" / "docker-credential-broken"
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\necho the secret is x >&2\nexit 3\n", encoding="utf-8")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}{os.pathsep}{os.environ['PATH']}")
    file = tmp_path / "docker-config" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"credHelpers": {"registry.example.org": "broken"}}), encoding="utf-8")
    with pytest.raises(MachineError, match=r"login for registry\.example\.org .* cannot be read") as refused:
        find_login("registry.example.org")
    assert "secret is x" not in str(refused.value)


def test_a_registry_that_does_not_answer_is_named(images_file: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    assert f"the registry {host} does not answer (Connection refused)" in str(
        refusal(f"docker://{host}/essence-train@{ZEROS}")
    )
    images_file.write_text(f'[cpu]\ntrain = "{host}/essence-train@{ZEROS}"\n', encoding="utf-8")
    with pytest.raises(MachineError, match=r"does not answer.*; or build it here: make images FLAVOUR=cpu"):
        published_image(TRAIN)


def test_a_proxy_is_used_and_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://someone:proxy-secret@127.0.0.1:{port}")
    said = str(refusal(f"docker://registry.example.org/essence-train@{ZEROS}"))
    assert f"through the proxy 127.0.0.1:{port}" in said and "NO_PROXY" in said and "proxy-secret" not in said
    # A registry of this machine needs none.
    host = f"127.0.0.1:{free_port()}"
    assert "proxy" not in refusal(f"docker://{host}/essence-train@{ZEROS}").problem
