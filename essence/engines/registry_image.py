"""What an image of a registry is, before it is pulled.

All of it is computed from the registry's manifest and configuration, whose digests are asked for and checked. Labels
say what an image was built from; one that names another lock, base or source than the project has is refused.
"""

import functools
import platform
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from essence.engines.image_address import ImageAddress, read_address
from essence.engines.published_images import published, published_file
from essence.engines.recipes import ImageRecipe, check_digest_label
from essence.engines.registry import INDEXES, registry
from essence.errors import ExperimentError, MachineError
from essence.files import GIB

SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
Document = TypeVar("Document", bound=BaseModel)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
IMAGES = ("linux", "amd64")
"""The platform of the kit's own."""


class Descriptor(BaseModel):
    """Something else that a manifest names."""

    media_type: str = Field("", alias="mediaType")
    digest: str
    size: int
    platform: "Platform | None" = None


class Platform(BaseModel):
    architecture: str = ""
    os: str = ""


class ManifestDocument(BaseModel):
    """A manifest, or an index of those of several platforms."""

    config: Descriptor | None = None
    layers: list[Descriptor] = Field(default_factory=list)
    manifests: list[Descriptor] = Field(default_factory=list)


class Settings(BaseModel):
    labels: dict[str, str] | None = Field(None, alias="Labels")


class RootFiles(BaseModel):
    diff_ids: list[str] = Field(default_factory=list)


class Configuration(BaseModel):
    """What an image is: its digest is that of these bytes."""

    architecture: str = ""
    os: str = ""
    config: Settings = Field(default_factory=lambda: Settings(Labels=None))
    rootfs: RootFiles = Field(default_factory=RootFiles)


@dataclass(frozen=True)
class RegistryImage:
    """An image of this machine's platform, as the registry has it."""

    address: ImageAddress
    config_digest: str
    configuration: Configuration
    layers: tuple[Descriptor, ...]

    @property
    def labels(self) -> dict[str, str]:
        return self.configuration.config.labels or {}

    @property
    def compressed_gib(self) -> float:
        return sum(layer.size for layer in self.layers) / GIB

    def missing_gib(self, present: set[str]) -> float:
        """Compressed, without the layers whose digest is `present`, unpacked as an engine knows them."""
        layers = zip(self.layers, self.configuration.rootfs.diff_ids, strict=False)
        return sum(layer.size for layer, unpacked in layers if unpacked not in present) / GIB

    def check(self, image: ImageRecipe, cure: str) -> None:
        """MachineError where its labels name another lock, base or source, or another digest than its bytes have."""
        image.check_labels(self.labels, str(self.address), cure)
        check_digest_label(self.labels, self.config_digest, str(self.address), cure)


def published_image(image: ImageRecipe) -> RegistryImage | None:
    """The published image, of the lock, base and source that the project has now; None = it is built.

    Raises:
        MachineError: it is not there, or of another state of the project.
    """
    if not (address := published(image)):
        return None
    cure = f"build it here: make images FLAVOUR={image.flavour}, or remove its line from {published_file()}"
    try:
        found = resolve(address)
    except MachineError as error:
        raise MachineError(error.problem, f"{error.cure}; or {cure}") from None
    found.check(image, cure)
    return found


def typed_address(where: str, text: str) -> ImageAddress:
    """An address by digest; of one by tag the refusal says which digest the tag has now."""
    found = read_address(text, where)
    if isinstance(found, ImageAddress):
        return found
    digest = registry(found.host).digest_of(found)
    raise ExperimentError(
        f"{where} {text}: a tag can be given to another image at any time",
        f"name the digest, which is now {found.scheme}://{found.host}/{found.name}@{digest}",
    )


@functools.cache
def resolve(address: ImageAddress) -> RegistryImage:
    """Ask the registry what an image is; of an index that of this machine's platform.

    Raises:
        MachineError: the registry or the image is not there, it is of another platform, or no image.
    """
    manifest, address = _manifest(address)
    if manifest.config is None or any(layer.media_type == SIF_LAYER for layer in manifest.layers):
        what = "a SIF" if manifest.layers else "no image"
        raise MachineError(f"{address} is {what}", "name an image; a SIF is fetched with --from oras://...")
    absent = "the registry has lost a part of it: push it again"
    content = registry(address.host).blob(address.name, manifest.config.digest, absent)
    configuration = read_document(Configuration, content, f"{address}: its configuration")
    _check_platform(address, {(configuration.os, configuration.architecture)})
    return RegistryImage(address, manifest.config.digest, configuration, tuple(manifest.layers))


@functools.cache
def resolve_sif(address: ImageAddress) -> Descriptor:
    """The one file of `oras://`: its digest is the sha256 of the SIF."""
    manifest, address = _manifest(address)
    if [layer.media_type for layer in manifest.layers] != [SIF_LAYER]:
        raise MachineError(f"{address} is no SIF", f"of an image a SIF is made: --from docker://{address}")
    return manifest.layers[0]


def _manifest(address: ImageAddress) -> tuple[ManifestDocument, ImageAddress]:
    content, media_type = registry(address.host).manifest(address.name, address.digest)
    document = read_document(ManifestDocument, content, str(address))
    if media_type not in INDEXES and not document.manifests:
        return document, address
    platforms = {
        (one.platform.os, one.platform.architecture): one.digest
        for one in document.manifests
        if one.platform and one.platform.os != "unknown"  # notes on the others, as on their origin
    }
    _check_platform(address, set(platforms))
    return _manifest_of(address.of(platforms[_here()]))


def _manifest_of(address: ImageAddress) -> tuple[ManifestDocument, ImageAddress]:
    content, _ = registry(address.host).manifest(address.name, address.digest)
    return read_document(ManifestDocument, content, str(address)), address


def _check_platform(address: ImageAddress, platforms: set[tuple[str, str]]) -> None:
    if _here() not in platforms:
        found = " and ".join("/".join(one) for one in sorted(platforms)) or "no platform"
        # Elsewhere none can be built: their versions are locked for this platform.
        built = ", or build it here: make images" if _here() == IMAGES else ""
        raise MachineError(
            f"{address} is of {found}, this machine needs {'/'.join(_here())}",
            f"take a machine of that kind{built}",
        )


def _here() -> tuple[str, str]:
    """Containers run on Linux, whatever starts them."""
    machine = platform.machine()
    return "linux", ARCHITECTURES.get(machine, machine)


def read_document(kind: type[Document], content: bytes, what: str) -> Document:
    """A manifest or a configuration; MachineError where it is none."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise MachineError(f"{what}: no manifest of an image ({error.errors()[0]['msg']})", "push it again") from None
