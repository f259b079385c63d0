"""The address of an image in a registry: `docker://HOST/NAME@sha256:...`, or `oras://` of a ready SIF.

A tag can be given to other bytes at any time: an image is known by its digest.
"""

import re
from dataclasses import dataclass, replace

from essence.errors import ExperimentError, shortened

IMAGE, SIF = "docker", "oras"
"""Schemes: an image, from which a SIF can be made, and a file that is a SIF."""
LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3})(:\d+)?")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
"""A part of a name in the DNS has 1 to 63 characters."""
_HOST = rf"{_LABEL}(?:\.{_LABEL})*(?::\d{{1,5}})?"
_PATH = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
PLACE = re.compile(rf"{_HOST}(?:/{_PATH})?")
"""A registry, or a folder of names in one."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ADDRESS = re.compile(rf"(?:([a-z]+)://)?({_HOST})/({_PATH})(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(.*))?")
HUB, HUB_HOST = "docker.io", "registry-1.docker.io"
"""Docker's own registry answers under another name than it is called by."""


@dataclass(frozen=True)
class ImageAddress:
    """One manifest of one registry."""

    host: str
    name: str
    digest: str
    scheme: str = IMAGE

    @property
    def repository(self) -> str:
        return f"{self.host}/{self.name}"

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine: as for Docker, without TLS and without a proxy."""
        return is_loopback(self.host)

    def of(self, digest: str) -> "ImageAddress":
        """Another manifest of the same repository."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"

    def typed(self) -> str:
        return f"{self.scheme}://{self}"


@dataclass(frozen=True)
class TaggedAddress:
    """An address without a digest."""

    host: str
    name: str
    tag: str
    scheme: str


def is_loopback(host: str) -> bool:
    return bool(LOOPBACK.fullmatch(host))


def read_address(text: str, where: str) -> ImageAddress | TaggedAddress:
    """What a text names; ExperimentError in the name of `where` for anything but an image in a registry."""
    form = "docker://REGISTRY/NAME@sha256:... (an image) or oras://REGISTRY/NAME@sha256:... (a SIF)"
    if not (found := ADDRESS.fullmatch(text)):
        raise ExperimentError(f"{where} {shortened(text)!r}: no image in a registry", f"write {form}")
    scheme, host, name, tag, digest = found.groups()
    if scheme not in (None, IMAGE, SIF):
        raise ExperimentError(f"{where} {shortened(text)!r}: begins with {scheme}://", f"write {form}")
    if not (is_loopback(host) or "." in host or ":" in host):
        raise ExperimentError(f"{where} {shortened(text)!r}: names no registry", f"write {form}, as in docker.io/...")
    if digest is None:
        return TaggedAddress(host, name, tag or "latest", scheme or IMAGE)
    if not DIGEST.fullmatch(digest):
        raise ExperimentError(
            f"{where} {shortened(text)!r}: the digest {shortened(digest)!r} is none", "wanted sha256: and 64 hex digits"
        )
    return ImageAddress(host, name, digest, scheme or IMAGE)


def check_place(where: str, text: str) -> str:
    """The registry that images are pushed to, as it is; ExperimentError for a text that is none."""
    bare = text.rstrip("/")
    host = bare.split("/")[0]
    if not PLACE.fullmatch(bare) or not (is_loopback(host) or "." in host or ":" in host):
        raise ExperimentError(
            f"{where} {shortened(text)!r}: no registry",
            "write HOST, HOST:PORT or HOST/FOLDER in lower case, without https:// and without a tag, as in "
            "images.example/me",
        )
    return bare
