"""What Docker's builds have kept on the disk of their engine, of what building the kit's images takes."""

from collections.abc import Iterable

import requests
from pydantic import BaseModel, Field, ValidationError

import docker
from essence.engines.recipes import ImageRecipe
from essence.files import GIB

INSTALLING, PACKAGES = "sh /run/install.sh /locks/", "cached mount "
"""How BuildKit describes what the kit's Dockerfiles leave: the step that installs a lock, and a cache of packages."""
SAME_SIZE = 0.2
"""By how much of its size a layer may differ from an environment that it is taken to hold."""
ASKED = {"type": "build-cache", "verbose": "1"}
"""Of an engine whose API is 1.42 or later, what builds have kept alone: images and volumes take long to count. From
1.52 on it tells of each record only where that is asked for."""


class CacheRecord(BaseModel):
    """Something that builds have kept, as an engine tells of it."""

    description: str = Field("", alias="Description")
    size_bytes: int = Field(0, alias="Size")


class CacheUsage(BaseModel):
    items: list[CacheRecord] | None = Field(None, alias="Items")


class DiskUsage(BaseModel):
    """The answer to `GET /system/df`; from API 1.53 on the records are in `BuildCacheUsage` alone."""

    records: list[CacheRecord] | None = Field(None, alias="BuildCache")
    usage: CacheUsage | None = Field(None, alias="BuildCacheUsage")


def build_cache(client: docker.DockerClient) -> list[CacheRecord]:
    """All that builds have kept; nothing where the engine does not say, so that a build is asked for all it takes.

    An engine may refuse: it is counting already, something is pruned meanwhile, a proxy does not let it be asked.
    """
    api = client.api
    try:
        answer = api.get(f"{api.base_url}/v{api.api_version}/system/df", params=ASKED, timeout=api.timeout)
        answer.raise_for_status()
        found = DiskUsage.model_validate_json(answer.content)
    except (requests.RequestException, ValidationError):
        return []
    return found.records or (found.usage.items if found.usage else None) or []


def kept_gib(records: Iterable[CacheRecord], images: Iterable[ImageRecipe]) -> float:
    """Of what building images takes, what a build that was cut off or pruned away has left: packages and environments.

    Packages may be of another flavour or of older locks, beside those that serve.
    """
    images, records = list(images), [record for record in records if INSTALLING in record.description]
    layers = [record for record in records if not record.description.startswith(PACKAGES)]
    packages = sum(record.size_bytes for record in records if record.description.startswith(PACKAGES)) / GIB
    installed = sum(_installed_gib(layers, image) for image in images)
    return min(packages, sum(image.size.packages_gib for image in images)) + installed


def _installed_gib(layers: Iterable[CacheRecord], image: ImageRecipe) -> float:
    """Of one layer that holds its environment; which flavour a layer is of, its size alone tells."""
    wanted = image.size.installed_gib
    sizes = [layer.size_bytes / GIB for layer in layers if f"{INSTALLING}{image.environment}-" in layer.description]
    return min(wanted, max((size for size in sizes if abs(size - wanted) <= SAME_SIZE * wanted), default=0.0))
