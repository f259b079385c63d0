"""`locks/images.toml`: the images that somebody has published for this project, by digest."""

import os
from pathlib import Path

from pydantic import Field

from essence.engines.image_address import IMAGE, ImageAddress, TaggedAddress, read_address
from essence.engines.machine import refusal
from essence.engines.recipes import LOCKS, ImageRecipe
from essence.errors import DISK, DiskError, ExperimentError
from essence.files import write_atomically
from essence.paths import typed_path
from essence.settings import EnvironmentName, Record
from essence.settings.toml import read_toml, validate

FILE_VARIABLE = "ESSENCE_IMAGES_FILE"
"""Names another file than locks/images.toml, as for the registry of a laboratory."""
HEADER = """\
# The published images, by the digests that the registry answered: `invoke images --flavour cpu --push REGISTRY` writes
# these lines. A run pulls what stands here, and builds the rest. The image of downloads is of cpu in both flavours.
"""


class PublishedFile(Record):
    """`locks/images.toml`: flavour -> environment -> `REGISTRY/essence-train@sha256:...`."""

    cpu: dict[EnvironmentName, str] = Field(default_factory=dict)
    cuda: dict[EnvironmentName, str] = Field(default_factory=dict)

    def text(self) -> str:
        sections = (("cpu", self.cpu), ("cuda", self.cuda))
        lines = [f"\n[{flavour}]\n{published_lines(found)}" for flavour, found in sections]
        return HEADER + "".join(lines)


def published_lines(found: dict[EnvironmentName, str]) -> str:
    return "".join(f'{environment} = "{address}"\n' for environment, address in sorted(found.items()))


def published_file() -> Path:
    return typed_path(FILE_VARIABLE, os.environ.get(FILE_VARIABLE) or str(LOCKS / "images.toml"))


def read_published() -> PublishedFile:
    """The file; ExperimentError where it is absent or says something else."""
    file = published_file()
    return validate(PublishedFile, read_toml(file), str(file))


def read_to_publish() -> PublishedFile:
    """The file before a line is written; without one it is begun. Called first before anything is pushed.

    Raises:
        ExperimentError: the file says something else.
        DiskError: this user cannot write it.
    """
    file = published_file()
    if refused := refusal(file.parent.absolute()):
        raise DiskError(f"{file}: {DISK[refused]}", f"name another file with {FILE_VARIABLE}")
    return read_published() if file.exists() else PublishedFile()


def publish(image: ImageRecipe, address: ImageAddress) -> None:
    """Write where an image is to be had from now on."""
    known = read_to_publish()
    of_flavour: dict[EnvironmentName, str] = getattr(known, image.flavour)
    of_flavour[image.environment] = str(address)
    write_atomically(published_file(), known.text())


def published(image: ImageRecipe) -> ImageAddress | None:
    """Where an image is to be had; None = nobody has published it: it is built."""
    text = getattr(read_published(), image.flavour).get(image.environment)
    if not text:
        return None
    found = read_address(text, f"{published_file()}: {image.flavour}.{image.environment} =")
    if isinstance(found, TaggedAddress) or found.scheme != IMAGE:
        raise ExperimentError(
            f"{published_file()}: {image.flavour}.{image.environment} = {text!r}: wanted an image by its digest",
            "write REGISTRY/NAME@sha256:..., as invoke images --push prints it",
        )
    return found
