"""What a SIF is made of: an archive, the image of a Docker engine, one of a registry, or the base.

Each is known before anything is made: the digest of the configuration is computed from the archive, by the engine, or
from the registry's manifest, and the labels are checked.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from essence.engines.image_address import IMAGE, ImageAddress
from essence.engines.image_builds import ENVIRONMENTS, UNPACKED
from essence.engines.recipes import (
    ENVIRONMENT_LABEL,
    FLAVOUR_LABEL,
    SIZES,
    ImageRecipe,
    check_digest_label,
    config_digest,
    recipe,
)
from essence.errors import ExperimentError, MachineError
from essence.files import GIB

if TYPE_CHECKING:
    from essence.engines.docker import DockerEngine
    from essence.engines.registry_image import RegistryImage


GZIP = b"\x1f\x8b"
"""How a layer begins that containerd's store has kept compressed."""


@dataclass(frozen=True)
class ImageSource:
    """A Docker image, or a base, as Apptainer finds it."""

    bootstrap: str
    address: str
    config_digest: str | None
    """Of the image; None for a base, on which the environment is still to be installed."""
    registry: ImageAddress | None = None
    """Where the image is fetched from; None = it is here, or there is a base alone."""
    gib: float | None = None
    """Compressed, where the registry says so."""
    unpacked_gib: float | None = None
    """Of an image or an archive that is here."""


def sources(images: Iterable[ImageRecipe], archives: Path | None = None) -> list[tuple[ImageRecipe, ImageSource]]:
    """What each SIF is made of, checked before the first is made: an archive; Docker's image, else the published one,
    else the base."""
    if archives is not None:
        return [(image, of_archive(image, archives / f"{image.environment}-{image.flavour}.tar")) for image in images]
    return [(image, _first_there(image)) for image in images]


def _first_there(image: ImageRecipe) -> ImageSource:
    # Imported here: archives need no client of Docker or of a registry.
    from essence.engines.docker import DockerEngine
    from essence.engines.registry_image import published_image

    try:
        return of_engine(image, DockerEngine(image.flavour))
    except MachineError:
        found = published_image(image)
    return of_registry(found) if found else of_base(image)


def typed_source(address: ImageAddress, flavour: str | None, only: str | None) -> tuple[ImageRecipe, ImageSource]:
    """The image of a registry that `--from` names, and which one of the kit it is.

    Raises:
        ExperimentError: it is another one than was asked for.
        MachineError: it is not there, or of another lock, base or source than the project has.
    """
    from essence.engines.registry_image import resolve

    found = resolve(address)
    image = labelled_image(found.labels, str(address), flavour, only)
    found.check(image, made_here(image))
    return image, of_registry(found)


def made_here(image: ImageRecipe) -> str:
    """What cures a SIF or an image of another state of the project."""
    return f"check out the commit that it was built from, or make it here: make sif FLAVOUR={image.flavour}"


def labelled_image(labels: dict[str, str], found: str, flavour: str | None, only: str | None) -> ImageRecipe:
    """Which image of the kit something is, by its labels; an error where it is none, or another than was asked for."""
    environment = next((name for name in ENVIRONMENTS if name == labels.get(ENVIRONMENT_LABEL)), None)
    said = labels.get(FLAVOUR_LABEL, "absent")
    if environment is None or (environment, said) not in SIZES:
        raise MachineError(
            f"{found} is none of the kit's images: its label {ENVIRONMENT_LABEL} is "
            f"{labels.get(ENVIRONMENT_LABEL, 'absent')}, its label {FLAVOUR_LABEL} is {said}",
            "name one that invoke images --push pushed, or a SIF of one",
        )
    image = recipe(environment, said)
    if only not in (None, environment) or recipe(environment, flavour or said) != image:
        wanted = f"{only or environment}, flavour {flavour or said}"
        raise ExperimentError(f"{found} is {image.name}, asked for: {wanted}", "leave out --only and --flavour")
    return image


def of_registry(found: "RegistryImage") -> ImageSource:
    """The image by the digest of its manifest."""
    return ImageSource(IMAGE, str(found.address), found.config_digest, found.address, found.compressed_gib)


def of_base(image: ImageRecipe) -> ImageSource:
    """The pinned base: by digest alone, as Apptainer takes no tag beside it."""
    name, digest = image.base.split("@")
    return ImageSource(IMAGE, f"{name.rpartition(':')[0]}@{digest}", None)


def of_engine(image: ImageRecipe, engine: "DockerEngine") -> ImageSource:
    """The image as Docker has it, by its id: a tag could change hands while it is read."""
    found = engine.built(image.environment)
    digest = config_digest(engine.client, found)
    return ImageSource("docker-daemon", str(found.id), digest, unpacked_gib=found.attrs["Size"] / GIB)


def of_archive(image: ImageRecipe, archive: Path) -> ImageSource:
    """The image as `docker save` wrote it."""
    cure = f"docker save --output {archive.name} {image.name}, where the image was built"
    if not archive.is_file():
        raise MachineError(f"no archive {archive} here", f"write it: {cure}")
    try:
        with tarfile.open(archive) as tar:
            index = json.load(_member(tar, "manifest.json"))[0]
            name = index["Config"]
            configuration = _member(tar, name).read()
            labels = json.loads(configuration)["config"].get("Labels") or {}
            compressed = any(_member(tar, layer).read(len(GZIP)) == GZIP for layer in index.get("Layers") or [])
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise MachineError(f"{archive}: no archive of an image ({error})", f"write it again: {cure}") from None
    digest = hashlib.sha256(configuration).hexdigest()
    if (named := Path(name).name.removesuffix(".json")) != digest:
        raise MachineError(
            f"{archive}: names its configuration {named}, whose bytes have {digest}", f"write it again: {cure}"
        )
    image.check_labels(labels, str(archive), cure)
    check_digest_label(labels, f"sha256:{digest}", str(archive), cure)
    gib = archive.stat().st_size / GIB * (UNPACKED if compressed else 1)
    return ImageSource("docker-archive", str(archive), f"sha256:{digest}", unpacked_gib=gib)


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file
