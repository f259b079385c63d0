"""Images between a Docker engine and a registry: pushed by name, pulled by digest; the engine's own login is used."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import requests
from docker.errors import APIError, DockerException, ImageNotFound, StreamParseError
from pydantic import BaseModel, Field, ValidationError
from urllib3.exceptions import HTTPError

import docker
from essence.engines.image_address import IMAGE, ImageAddress, TaggedAddress
from essence.engines.image_builds import UNPACKED
from essence.engines.recipes import ImageRecipe, config_digest, remember_digest
from essence.engines.registry import registry
from essence.engines.registry_image import RegistryImage, resolve
from essence.errors import MachineError
from essence.files import GIB
from essence.text import memory as readable_gib

TOLD_EVERY_S = 10.0
"""How often it is said how far a transfer is."""
MOVING = ("Downloading", "Pushing")
"""States of a layer whose bytes are counted; what is unpacked afterwards is counted anew."""


class Detail(BaseModel):
    current: float | None = None


class Event(BaseModel):
    """One line of what an engine answers while it transfers an image."""

    id: str = ""
    status: str = ""
    error: str = ""
    detail: Detail = Field(default_factory=Detail, alias="progressDetail")


def push(
    client: docker.DockerClient, image: ImageRecipe, built: Any, place: str, say: Callable[[str], None]
) -> ImageAddress:
    """Push a built image as `place/essence-train:cuda`; the address by the digest that the registry answers.

    Raises:
        MachineError: the registry does not answer, refuses, or holds something else than was pushed.
    """
    repository, _, tag = f"{place}/{image.name}".rpartition(":")
    host, _, name = repository.partition("/")
    registry(host).check_answer()
    built.tag(repository, tag)
    say(f"{image.name}: to be pushed to {repository}:{tag}")
    asked = partial(client.api.push, repository, tag, stream=True, decode=True)
    _follow(_events(asked, f"{repository}:{tag}", "push"), f"{image.name}: pushed so far:", say)
    # The registry's own words, by which the image will be known; an engine does not always tell them.
    address = ImageAddress(host, name, registry(host).digest_of(TaggedAddress(host, name, tag, IMAGE)))
    found, ours = resolve(address), config_digest(client, built)
    if found.config_digest != ours:
        raise MachineError(f"{address} has the configuration {found.config_digest}, pushed was {ours}", "push it again")
    return found.address


def images_here(client: docker.DockerClient, labels: Sequence[str] = ()) -> Iterator[Any]:
    """The images with these labels, `name=value`; one that somebody removes meanwhile is none of them."""
    for known in client.api.images(filters={"label": list(labels)} if labels else None):
        with contextlib.suppress(ImageNotFound):
            yield client.images.get(known["Id"])


def check_room(client: docker.DockerClient, found: RegistryImage) -> float:
    """GiB that are still to come, compressed; MachineError where the engine's disk, if it is here, has no room."""
    layers = {layer for image in images_here(client) for layer in image.attrs["RootFS"].get("Layers") or []}
    gib = found.missing_gib(layers)
    check_disk(client, UNPACKED * gib, f"{found.address} takes", "make room there, as with docker system prune")
    return gib


def check_disk(client: docker.DockerClient, gib: float, what: str, cure: str) -> None:
    """MachineError where the engine keeps its images on a disk of this machine that has no room for so much.

    what: as in "making essence-train:cuda takes"
    """
    place = Path(str(client.info().get("DockerRootDir") or "/nonexistent"))
    # A folder of the same name here says nothing of another machine's disk.
    of_this_machine = str(client.api.base_url).startswith(("http+docker://localhost", "http+unix://"))
    if of_this_machine and place.is_dir() and (free := shutil.disk_usage(place).free / GIB) < gib:
        raise MachineError(f"{place}: {free:.1f} GiB are free, and {what} about {gib:.1f}", cure)


def pull(client: docker.DockerClient, image: ImageRecipe, found: RegistryImage, say: Callable[[str], None]) -> None:
    """Pull a checked image by digest, and give it the kit's name once it is whole.

    Raises:
        MachineError: Docker cannot pull it, or other bytes came.
    """
    address = found.address
    gib = readable_gib(check_room(client, found))
    say(f"{image.name}: {gib} compressed to be pulled from {address}")
    asked = partial(client.api.pull, address.repository, tag=address.digest, stream=True, decode=True)
    _follow(_events(asked, str(address), "pull"), f"{image.name}: of {gib} pulled so far:", say)
    here = client.images.get(str(address))
    if here.id == address.digest:
        # Containerd's store: which configuration this manifest names was read from its bytes.
        remember_digest(here.id, found.config_digest)
    if (digest := config_digest(client, here)) != found.config_digest:
        raise MachineError(f"{address}: {digest} came, wanted {found.config_digest}", "remove it and pull it again")
    repository, _, tag = image.name.rpartition(":")
    here.tag(repository, tag)
    say(f"{image.name}: {digest}")


def _follow(events: Iterator[Event], what: str, say: Callable[[str], None]) -> None:
    """Wait for the end of a transfer, and say now and then how much has gone."""
    gone: dict[str, float] = {}
    told = time.monotonic()
    for event in events:
        if event.status in MOVING:
            gone[event.id] = event.detail.current or 0.0
        if time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            say(f"{what} {readable_gib(sum(gone.values()) / GIB)}")


def _events(ask: Callable[[], Iterator[Any]], what: str, verb: str) -> Iterator[Event]:
    """What the engine says; MachineError where it refuses, says that it failed, or stops to answer."""
    try:
        for line in ask():
            try:
                event = Event.model_validate(line)
            except ValidationError:
                continue
            if event.error:
                raise _failed(event.error, what, verb)
            yield event
    except APIError as error:
        raise _failed(str(error.explanation or error), what, verb) from None
    except (DockerException, requests.RequestException) as error:
        raise _failed(str(error), what, verb) from None
    except (HTTPError, StreamParseError, OSError) as error:
        told = " ".join(str(error).split())
        cure = "look whether the engine still runs, and issue the command again"
        raise MachineError(f"{what}: Docker's answer broke off before the {verb} had ended ({told})", cure) from None


def _failed(reason: str, what: str, verb: str) -> MachineError:
    cure = "the engine has a network, proxy and certificates of its own: look at its log"
    if "no space left" in reason:
        cure = "make room on the engine's disk, as with docker system prune"
    return MachineError(f"{what}: Docker cannot {verb} it ({' '.join(reason.split())})", cure)
