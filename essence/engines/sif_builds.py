"""Making SIFs, for Apptainer and for Slurm.

Made of the images of this machine's Docker engine, or of archives that `docker save` wrote on another one. What no
Docker engine has here is made straight from the pinned base: the same scripts, the same lock, the same definition.
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from essence.engines.engine import CERTIFICATES, NETWORK_VARIABLES
from essence.engines.image_builds import UNPACKED, to_be_made
from essence.engines.recipes import ImageRecipe, config_digest
from essence.engines.sif_files import (
    FOLDER_VARIABLE,
    NO_DIGEST,
    SifRecord,
    checked_sif,
    make_record,
    program,
    read_sif,
    record_file,
    sif_file,
    sif_folder,
)
from essence.errors import MachineError, RecordError
from essence.files import GIB, sha256_file, write_json
from essence.plan.experiment import PROJECT
from essence.record.facts import code_facts
from essence.record.run_directory import hold

if TYPE_CHECKING:
    from essence.engines.docker import DockerEngine

MIB = 1 << 20
STANDARD_ERROR = 2
"""Where a build shows how far it is: standard output may be JSON."""
UNFINISHED = ".unfinished-"
BUILD_VARIABLE = re.compile(
    r"(APPTAINER|SINGULARITY)_(CACHEDIR|CONFIGDIR|TMPDIR|MKSQUASHFS_ARGS|NO_PRIVS|DOCKER_(USERNAME|PASSWORD))"
)
"""What Apptainer is told of this machine: where it works, how it compresses, and a registry's login."""
INSTALLATION = re.compile(r"^%files\n.*?(?=^%environment\n)", re.MULTILINE | re.DOTALL)
"""The sections `%files` and `%post` of a definition."""
WORK_VARIABLES = ("APPTAINER_TMPDIR", "SINGULARITY_TMPDIR", "TMPDIR")
"""Where Apptainer works while it builds, the first that is set."""


@dataclass(frozen=True)
class ImageSource:
    """A Docker image, or a base, as Apptainer finds it."""

    bootstrap: str
    address: str
    config_digest: str | None
    """Of the image; None for a base, on which the environment is still to be installed."""


def make_sifs(found: Sequence[tuple[ImageRecipe, ImageSource]], say: Callable[[str], None]) -> None:
    """Make what is not there yet; MachineError where the disk is too small, or when a build or its test fails."""
    if direct := [image for image, source in found if source.config_digest is None and not _is_there(image, source)]:
        check_disk(direct)
        say(f"straight from the base, some minutes each: {to_be_made(direct)}")
    folder = sif_folder()
    with hold(folder, str(folder), "invoke sif"):
        for left in folder.glob(f"{UNFINISHED}*"):
            # Of a build that was killed.
            left.unlink()
        for image, source in found:
            _make(image, source, say)


def check_disk(images: Sequence[ImageRecipe]) -> None:
    """MachineError where these SIFs, or what Apptainer unpacks while it makes the largest, find no room."""
    work = Path(next(filter(None, map(os.environ.get, WORK_VARIABLES)), tempfile.gettempdir()))
    unpacked = UNPACKED * max(image.compressed_gib for image in images)
    asked = [(sif_folder(), sum(image.compressed_gib for image in images)), (work, unpacked)]
    places = [next(path for path in (folder, *folder.absolute().parents) if path.is_dir()) for folder, _ in asked]
    on_one_disk = len({path.stat().st_dev for path in places}) == 1
    for (folder, own), here in zip(asked, places, strict=True):
        gib = sum(each for _, each in asked) if on_one_disk else own
        if (free := shutil.disk_usage(here).free / GIB) < gib:
            raise MachineError(
                f"{folder}: {free:.1f} GiB are free, and making {', '.join(image.name for image in images)} takes "
                f"about {gib:.1f}",
                f"make room, or name other folders with {FOLDER_VARIABLE} and {WORK_VARIABLES[0]}",
            )


def sources(images: Iterable[ImageRecipe], archives: Path | None = None) -> list[tuple[ImageRecipe, ImageSource]]:
    """What each SIF is made of, checked before the first is made: an archive, Docker's image, else the base."""
    if archives is not None:
        return [(image, of_archive(image, archives / f"{image.environment}-{image.flavour}.tar")) for image in images]
    return [(image, _of_engine_or_base(image)) for image in images]


def _of_engine_or_base(image: ImageRecipe) -> ImageSource:
    # Imported here: archives need no client of Docker.
    from essence.engines.docker import DockerEngine

    try:
        return of_engine(image, DockerEngine(image.flavour))
    except MachineError:
        return of_base(image)


def of_base(image: ImageRecipe) -> ImageSource:
    """The pinned base: by digest alone, as Apptainer takes no tag beside it."""
    name, digest = image.base.split("@")
    return ImageSource("docker", f"{name.rpartition(':')[0]}@{digest}", None)


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


def _make(image: ImageRecipe, source: ImageSource, say: Callable[[str], None]) -> None:
    file, definition = sif_file(image), _definition(image)
    made_of = f"{image.name} {source.config_digest}" if source.config_digest else image.base
    if found := _is_there(image, source):
        say(f"{file}: is there, of {f'{image.name} {found.config_digest}' if found.config_digest else made_of}")
        return
    say(f"{file}: of {made_of}")
    temporary = file.with_name(f"{UNFINISHED}{file.name}")
    used = temporary.with_suffix(".def")
    try:
        used.write_text(definition_text(definition.read_text(encoding="utf-8"), source), encoding="utf-8")
        _run(build_command(temporary, used, image, source), "build")
        # Not during the build: there it asks for privileges that a root user does not have everywhere.
        _run(test_command(temporary), "test")
        record = make_record(temporary, sha256_file(temporary), sha256_file(definition), source.config_digest)
        record_file(file).unlink(missing_ok=True)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
        used.unlink(missing_ok=True)
    write_json(record_file(file), record.model_dump(mode="json"))
    say(f"{file}: {record.bytes / MIB:.0f} MiB, sha256 {record.sha256}")


def _definition(image: ImageRecipe) -> Path:
    return PROJECT / "apptainer" / f"{image.environment}.def"


def _is_there(image: ImageRecipe, source: ImageSource) -> SifRecord | None:
    """The record of a SIF that need not be made: of this source, this definition and the project as it is."""
    file = sif_file(image)
    if not file.is_file():
        return None
    try:
        found = read_sif(file)
    except (MachineError, RecordError):
        return None
    # Without a Docker engine one of an image stays: it has more to be known by than one of a base.
    same = source.config_digest in (None, found.config_digest)
    made_so = found.definition_sha256 == sha256_file(_definition(image))
    return found if same and made_so and _is_current(file, image) else None


def _is_current(file: Path, image: ImageRecipe) -> bool:
    """Whether a SIF is of the lock, base and source that the project has now; of an image its digest says so, too."""
    try:
        checked_sif(file, image, "")
    except MachineError:
        return False
    return True


def build_command(file: Path, definition: Path, image: ImageRecipe, source: ImageSource) -> list[str]:
    """The build as an argv, from the project's folder."""
    told = {
        "BOOTSTRAP": source.bootstrap,
        "FROM": source.address,
        "FLAVOUR": image.flavour,
        "CONFIG_DIGEST": source.config_digest or NO_DIGEST,
        "COMMIT": code_facts(PROJECT)[0]["commit"] or "unknown",
        "LOCK_SHA256": image.lock_sha256,
        "BASE": image.base,
        "SOURCE_SHA256": image.source_sha256,
    }
    if source.config_digest is None:
        given = {"CERTIFICATES": "SSL_CERT_FILE", "WHEELS": "PIP_FIND_LINKS"}
        told |= {name: os.environ[variable] for name, variable in given.items() if os.environ.get(variable)}
    arguments = [word for name, value in told.items() for word in ("--build-arg", f"{name}={value}")]
    return [program(), "build", "--force", "--notest", *arguments, str(file), str(definition)]


def definition_text(text: str, source: ImageSource) -> str:
    """The definition as it is for a base; of an image without what installs the environment, which is there."""
    return text if source.config_digest is None else INSTALLATION.sub("", text)


def test_command(file: Path) -> list[str]:
    """The self-test in `%test`, with nothing of this machine inside."""
    return [program(), "test", "--containall", "--cleanenv", "--no-home", "--no-privs", str(file)]


def build_environment() -> dict[str, str]:
    """What Apptainer sees while it builds: `%post` would inherit all of the caller's variables."""
    names = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "DOCKER_HOST", "DOCKER_CONFIG", CERTIFICATES, *NETWORK_VARIABLES)
    own = {name: os.environ[name] for name in names if name in os.environ}
    return own | {name: value for name, value in os.environ.items() if BUILD_VARIABLE.fullmatch(name)}


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=PROJECT, env=build_environment(), stdout=STANDARD_ERROR, check=False)
    if done.returncode:
        raise MachineError(f"apptainer {what} ended with code {done.returncode}; what it says is above")
