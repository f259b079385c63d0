"""A registry of images, read by the OCI distribution protocol: manifests and configurations, none of the layers.

What is asked for by its digest is hashed here, so that an image is known by bytes, whatever somebody wrote in a label.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md
"""

import functools
import hashlib
import http
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ValidationError
from requests.utils import get_environ_proxies, parse_dict_header

from essence.engines.image_address import HUB, HUB_HOST, TaggedAddress, is_loopback
from essence.engines.registry_login import Login, find_login, how_to_log_in
from essence.errors import MachineError, shortened

ANSWER_S = (10.0, 60.0)
"""How long to wait for a connection, and for each piece of an answer."""
MOST_BYTES = 1 << 23
"""Of a manifest or a configuration; registries take at most 4 MiB."""
PIECE_BYTES = 1 << 16
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
REASON = re.compile(r"\[Errno -?\d+\] ([^'\")\]]+)")
ANYTHING = "*/*"


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0] or "of no type"


class Granted(BaseModel):
    """What the server that a registry names answers to a login."""

    token: str | None = None
    access_token: str | None = None


class Registry:
    """One registry, asked as who is logged in here."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.session = requests.Session()
        # Of the caller's variables only proxies and certificates are taken, not a password from ~/.netrc.
        self.session.trust_env = False
        certificates = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
        self.session.verify = certificates or True
        self.base = f"{'http' if is_loopback(host) else 'https'}://{HUB_HOST if host == HUB else host}"

    def check_answer(self) -> None:
        """MachineError unless the registry answers, and to this user."""
        self._get("/v2/", ANYTHING, f"the registry {self.host}", "name a registry of images, as in images.example/me")

    def manifest(self, name: str, digest: str) -> tuple[bytes, str]:
        """The manifest of that digest, or the index, and its media type."""
        cure = "take a digest that is there, as invoke images --push printed it"
        path, what = f"/v2/{_path(self.host, name)}/manifests/{digest}", f"{self.host}/{name}@{digest}"
        answer = self._get(path, ", ".join((*INDEXES, *MANIFESTS)), what, cure)
        return _of_digest(answer, digest, what), answer.media_type

    def blob(self, name: str, digest: str, cure: str) -> bytes:
        """A small one, as a configuration is."""
        what = f"{self.host}/{name}: the configuration {digest}"
        path = f"/v2/{_path(self.host, name)}/blobs/{digest}"
        return _of_digest(self._get(path, ANYTHING, what, cure), digest, what)

    def digest_of(self, address: TaggedAddress) -> str:
        """What a tag stands for now."""
        what = f"{self.host}/{address.name}:{address.tag}"
        path = f"/v2/{_path(self.host, address.name)}/manifests/{address.tag}"
        answer = self._get(path, ", ".join((*INDEXES, *MANIFESTS)), what, "name an image that is there")
        return f"sha256:{hashlib.sha256(answer.content).hexdigest()}"

    def _get(self, path: str, accept: str, what: str, absent: str) -> Answer:
        """An answer with 200; MachineError for any other, with the cure `absent` where there is no such thing."""
        answer = self._ask(f"{self.base}{path}", {"Accept": accept})
        login = None
        if answer.status == http.HTTPStatus.UNAUTHORIZED:
            login = find_login(self.host)
            self._identify(answer.headers.get("WWW-Authenticate", ""), login)
            answer = self._ask(f"{self.base}{path}", {"Accept": accept})
        if answer.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            raise self._refused(login)
        if answer.status == http.HTTPStatus.NOT_FOUND:
            raise MachineError(f"{what} is not there: the registry has no such image", absent)
        if answer.status == http.HTTPStatus.TOO_MANY_REQUESTS:
            raise MachineError(f"the registry {self.host} has been asked too often", "wait, or log in to it")
        if answer.status != http.HTTPStatus.OK:
            raise MachineError(
                f"the registry {self.host} answers {answer.status} {shortened(answer.reason)}",
                "try again later",
            )
        return answer

    def _ask(self, url: str, headers: Mapping[str, str], login: Login | None = None) -> Answer:
        proxies = {} if is_loopback(self.host) else get_environ_proxies(url)
        account = (login.user, login.password) if login else None
        try:
            with self.session.get(
                url, headers=headers, auth=account, proxies=proxies, timeout=ANSWER_S, stream=True
            ) as answer:
                return Answer(answer.status_code, answer.reason or "", answer.headers, _read(answer))
        except (OSError, ValueError) as error:  # requests' own are of the first kind, of a malformed address the second
            raise self._silent(error, proxies.get("https") or proxies.get("all")) from None

    def _identify(self, challenge: str, login: Login | None) -> None:
        """Do what a registry asks for, as docker does: a password, or a token that another server gives for one."""
        kind, _, told = challenge.partition(" ")
        if kind.lower() == "basic" and login:
            self.session.auth = (login.user, login.password)
            return
        fields = parse_dict_header(told) if kind.lower() == "bearer" else {}
        try:
            realm = urlsplit(fields.get("realm") or "")
        except ValueError:  # brackets that hold no address
            raise self._refused(login) from None
        if realm.scheme != "https" and not is_loopback(realm.netloc):
            # Nowhere else does a password go.
            raise self._refused(login)
        query = "&".join(f"{key}={fields[key]}" for key in ("service", "scope") if fields.get(key))
        # An earlier token is not for this server.
        self.session.headers.pop("Authorization", None)
        answer = self._ask(f"{realm.geturl()}?{query}", {}, login)
        try:
            granted = Granted.model_validate_json(answer.content)
        except ValidationError:
            raise self._refused(login) from None
        if not (token := granted.token or granted.access_token):
            raise self._refused(login)
        self.session.headers["Authorization"] = f"Bearer {token}"

    def _refused(self, login: Login | None) -> MachineError:
        asks = "asks for a login, as some do for what is not there, too"
        done = "refuses the login that is kept here" if login else asks
        return MachineError(f"the registry {self.host} {done}", f"log in: {how_to_log_in(self.host)}")

    def _silent(self, error: Exception, proxy: str | None) -> MachineError:
        through, cure = "", "check its name and this machine's network"
        if proxy:
            # Without what else it may hold, as a password.
            where = proxy.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
            through = f" through the proxy {where}"
            cure = "check HTTPS_PROXY, or name the registry in NO_PROXY"
        if isinstance(error, requests.exceptions.SSLError):
            cure = "name a file with all certificates that are to be trusted, its own among them, in SSL_CERT_FILE"
        return MachineError(f"the registry {self.host} does not answer{through} ({_reason(error)})", cure)


@functools.cache
def registry(host: str) -> Registry:
    """The same for the whole of a command: a token is asked for once."""
    return Registry(host)


def _read(answer: requests.Response) -> bytes:
    """The body; OSError where it is larger than anything that is asked for here."""
    content = b""
    for piece in answer.iter_content(PIECE_BYTES):
        content += piece
        if len(content) > MOST_BYTES:
            raise OSError(f"more than {MOST_BYTES >> 20} MiB where a manifest is expected")
    return content


def _of_digest(answer: Answer, digest: str, what: str) -> bytes:
    """The bytes; MachineError where they are others than were asked for."""
    if (found := hashlib.sha256(answer.content).hexdigest()) != digest.removeprefix("sha256:"):
        raise MachineError(
            f"{what}: other bytes came (sha256:{found}, {shortened(answer.media_type)})",
            "something between here and the registry, such as a proxy's page, answers instead",
        )
    return answer.content


def _path(host: str, name: str) -> str:
    return f"library/{name}" if host == HUB and "/" not in name else name


def _reason(error: Exception) -> str:
    """Why there was no answer, without addresses, which may hold a password."""
    if isinstance(error, requests.exceptions.Timeout):
        return f"nothing for {ANSWER_S[0]:.0f} to {ANSWER_S[1]:.0f} seconds"
    if found := REASON.search(str(error)):
        return found[1]
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not one that this machine trusts, or it speaks no TLS"
    return str(error) if not isinstance(error, requests.RequestException) else type(error).__name__
