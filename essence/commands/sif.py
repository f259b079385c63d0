"""`invoke sif`: a SIF of each Docker image of a flavour, for Apptainer and for Slurm.

The images come from the Docker engine of this machine, or where there is none from archives that `docker save` wrote on
another one.
"""

import json
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console

from essence.commands.images import ENVIRONMENTS
from essence.commands.options import check_word
from essence.engines import FLAVOURS
from essence.engines.recipes import ImageRecipe, config_digest, recipe
from essence.engines.sif_files import make_record, program, read_sif, record_file, sif_file, sif_folder
from essence.errors import MachineError, RecordError
from essence.files import sha256_file, write_json
from essence.paths import typed_path
from essence.plan.experiment import PROJECT
from essence.record.run_directory import hold
from essence.settings import EnvironmentName

if TYPE_CHECKING:
    from essence.engines.docker import DockerEngine

MIB = 1 << 20
UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class ImageSource:
    """A Docker image as Apptainer finds it."""

    bootstrap: str
    address: str
    config_digest: str


def build(flavour: str, only: str | None, archives: str | None, console: Console) -> int:
    """Make what is not there yet; MachineError without Apptainer or image, or when a build or its test fails."""
    check_word("--flavour", "flavour", flavour, FLAVOURS)
    check_word("--only", "environment", only, ENVIRONMENTS)
    program()
    chosen = [name for name in ENVIRONMENTS if only in (None, name)]
    found = sources(chosen, flavour, typed_path("--archives", archives) if archives else None)
    folder = sif_folder()
    with hold(folder, str(folder), "invoke sif"):
        for left in folder.glob(f"{UNFINISHED}*.sif"):
            # Of a build that was killed.
            left.unlink()
        for image, source in found:
            _make(image, source, console)
    return 0


def sources(
    names: Iterable[EnvironmentName], flavour: str, archives: Path | None
) -> list[tuple[ImageRecipe, ImageSource]]:
    """All images, checked before the first SIF is made."""
    images = [recipe(name, flavour) for name in names]
    if archives is not None:
        return [(image, of_archive(image, archives / f"{image.environment}-{image.flavour}.tar")) for image in images]
    # Imported here: archives need no client of Docker.
    from essence.engines.docker import DockerEngine

    engine = DockerEngine(flavour)
    try:
        engine.check([])
    except MachineError as error:
        why = str(error).split(";")[0]
        raise MachineError(
            why, "start it, name one with DOCKER_HOST, or give what docker save wrote elsewhere: --archives FOLDER"
        ) from None
    return [(image, of_engine(image, engine)) for image in images]


def of_engine(image: ImageRecipe, engine: "DockerEngine") -> ImageSource:
    """The image as Docker has it, by its id: a tag could change hands while it is read."""
    found = engine.built(image.environment)
    return ImageSource("docker-daemon", str(found.id), config_digest(engine.client, found))


def of_archive(image: ImageRecipe, archive: Path) -> ImageSource:
    """The image as `docker save` wrote it."""
    cure = f"docker save --output {archive.name} {image.name}, where the image was built"
    if not archive.is_file():
        raise MachineError(f"no archive {archive} here", f"write it: {cure}")
    try:
        with tarfile.open(archive) as tar:
            name = json.load(_member(tar, "manifest.json"))[0]["Config"]
            labels = json.load(_member(tar, name))["config"].get("Labels") or {}
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise MachineError(f"{archive}: no archive of an image ({error})", f"write it again: {cure}") from None
    image.check_labels(labels, str(archive), cure)
    return ImageSource("docker-archive", str(archive), f"sha256:{Path(name).name.removesuffix('.json')}")


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file


def _make(image: ImageRecipe, source: ImageSource, console: Console) -> None:
    file = sif_file(image)
    definition = PROJECT / "apptainer" / f"{image.environment}.def"
    wanted = (source.config_digest, sha256_file(definition))
    if file.is_file():
        try:
            found = read_sif(file)
        except (MachineError, RecordError):
            found = None
        if found and (found.config_digest, found.definition_sha256) == wanted:
            console.print(f"{file}: is there, of {image.name} {source.config_digest}", highlight=False, soft_wrap=True)
            return
    console.print(f"{file}: of {image.name} {source.config_digest}", highlight=False, soft_wrap=True)
    temporary = file.with_name(f"{UNFINISHED}{file.name}")
    try:
        _run(build_command(temporary, definition, source), "build")
        # Not during the build: there it asks for privileges that a root user does not have everywhere.
        _run(test_command(temporary), "test")
        record = make_record(temporary, sha256_file(temporary), wanted[1])
        record_file(file).unlink(missing_ok=True)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(record_file(file), record.model_dump(mode="json"))
    console.print(f"{file}: {record.bytes / MIB:.0f} MiB, sha256 {record.sha256}", highlight=False, soft_wrap=True)


def build_command(file: Path, definition: Path, source: ImageSource) -> list[str]:
    """The build as an argv."""
    told = {"BOOTSTRAP": source.bootstrap, "FROM": source.address, "CONFIG_DIGEST": source.config_digest}
    arguments = [word for name, value in told.items() for word in ("--build-arg", f"{name}={value}")]
    return [program(), "build", "--force", "--notest", *arguments, str(file), str(definition)]


def test_command(file: Path) -> list[str]:
    """The self-test in `%test`, with nothing of this machine inside."""
    return [program(), "test", "--containall", "--cleanenv", "--no-home", "--no-privs", str(file)]


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise MachineError(f"apptainer {what} ended with code {done.returncode}; what it says is above")
