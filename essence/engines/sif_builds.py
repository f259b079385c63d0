"""Making SIFs, for Apptainer and for Slurm, of what `sif_sources.py` has found.

Straight from the pinned base it is the same scripts, the same lock and the same definition as of an image.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from essence.engines.apptainer_faults import likely_fault
from essence.engines.engine import CERTIFICATES, NETWORK_VARIABLES
from essence.engines.image_address import ImageAddress
from essence.engines.image_builds import UNPACKED, to_be_made, wheels_gib
from essence.engines.recipes import ImageRecipe
from essence.engines.registry_login import find_login
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
from essence.engines.sif_sources import ImageSource
from essence.errors import MachineError, RecordError
from essence.files import GIB, sha256_file, write_json
from essence.plan.experiment import PROJECT
from essence.record.facts import code_facts
from essence.record.run_directory import hold
from essence.text import memory as readable_gib

MIB = 1 << 20
STANDARD_ERROR = 2
"""Where a build shows how far it is: standard output may be JSON."""
UNFINISHED = ".unfinished-"
COPIES = {"docker-daemon": 3, "docker-archive": 2}
"""How often Apptainer has an image while it makes a SIF of it: of an engine an archive, layers and files, of an archive
layers and files."""
BLOCKS = 1.03
"""Files take more of a disk than bytes, as it is given out in blocks: a third of 3 copies, by 7 %."""
BUILD_VARIABLE = re.compile(
    r"(APPTAINER|SINGULARITY)_(CACHEDIR|CONFIGDIR|TMPDIR|MKSQUASHFS_ARGS|NO_PRIVS|DOCKER_(USERNAME|PASSWORD))"
)
"""What Apptainer is told of this machine: where it works, how it compresses, and a registry's login."""
INSTALLATION = re.compile(r"^%files\n.*?(?=^%environment\n)", re.MULTILINE | re.DOTALL)
"""The sections `%files` and `%post` of a definition."""
WORK_VARIABLES = ("APPTAINER_TMPDIR", "SINGULARITY_TMPDIR", "TMPDIR")
"""Where Apptainer works while it builds, the first that is set."""


def make_sifs(found: Sequence[tuple[ImageRecipe, ImageSource]], say: Callable[[str], None]) -> None:
    """Make what is not there yet; MachineError where the disk is too small, or when a build or its test fails."""
    absent = [(image, source) for image, source in found if not _is_there(image, source)]
    check_sources(absent)
    if direct := [image for image, source in absent if source.config_digest is None]:
        say(f"straight from the base, some minutes each: {to_be_made(direct)}")
    for image, source in absent:
        if source.registry:
            say(f"{image.name}: {readable_gib(source.gib or 0.0)} compressed to be pulled from {source.registry}")
    with working():
        for image, source in found:
            _make(image, source, say)


@contextmanager
def working() -> Iterator[Path]:
    """Hold the folder of the SIFs, without what a killed build left there; HeldError while another one works in it."""
    folder = sif_folder()
    with hold(folder, str(folder), "invoke sif"):
        for left in folder.glob(f"{UNFINISHED}*"):
            left.unlink()
        yield folder


@dataclass(frozen=True)
class Room:
    """What making one SIF takes."""

    name: str
    sif_gib: float
    work_gib: float
    """What Apptainer fetches, copies and unpacks meanwhile, where it works."""


def check_sources(found: Iterable[tuple[ImageRecipe, ImageSource]]) -> None:
    """MachineError where the SIFs, or what Apptainer needs while it makes them, find no room."""
    check_room([_room(image, source) for image, source in found])


def _room(image: ImageRecipe, source: ImageSource) -> Room:
    """In the end the SIF is compressed beside what it is made of, and then moved."""
    size = image.size
    if source.gib is not None:
        return Room(image.name, source.gib, (1 + UNPACKED + 1) * source.gib)
    if source.config_digest is None:
        # The packages' cache and the folder of wheels are gone before it is compressed.
        work_gib = size.base_gib + size.unpacked_gib + size.packages_gib + wheels_gib()
        return Room(image.name, size.compressed_gib, work_gib)
    unpacked_gib = source.unpacked_gib or size.unpacked_gib
    # No SIF is larger than what it holds.
    sif_gib = min(size.compressed_gib, unpacked_gib)
    return Room(image.name, sif_gib, COPIES[source.bootstrap] * BLOCKS * unpacked_gib + sif_gib)


def check_room(rooms: Sequence[Room]) -> None:
    """MachineError where all these SIFs, and what is needed while the largest is made, find no room."""
    if not rooms:
        return
    asked = [(sif_folder(), sum(room.sif_gib for room in rooms)), (_work_folder(), max(r.work_gib for r in rooms))]
    places = [next(path for path in (folder, *folder.absolute().parents) if path.is_dir()) for folder, _ in asked]
    on_one_disk = _on_one_disk(places)
    for (folder, own), here in zip(asked, places, strict=True):
        gib = sum(each for _, each in asked) if on_one_disk else own
        if (free := shutil.disk_usage(here).free / GIB) < gib:
            raise MachineError(
                f"{folder}: {free:.1f} GiB are free, and making {', '.join(room.name for room in rooms)} takes "
                f"about {gib:.1f}",
                f"make room, or name other folders with {FOLDER_VARIABLE} and {WORK_VARIABLES[0]}",
            )


def _on_one_disk(places: Iterable[Path]) -> bool:
    return len({path.stat().st_dev for path in places}) == 1


def _work_folder() -> Path:
    return Path(next(filter(None, map(os.environ.get, WORK_VARIABLES)), tempfile.gettempdir()))


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
        run_apptainer(build_command(temporary, used, image, source), "build", source.registry)
        # Not during the build: there it asks for privileges that a root user does not have everywhere.
        run_apptainer(test_command(temporary), "test")
        record = make_record(temporary, sha256_file(temporary), sha256_file(definition), source.config_digest)
        put_in_place(temporary, file, record, say)
    finally:
        temporary.unlink(missing_ok=True)
        used.unlink(missing_ok=True)


def put_in_place(temporary: Path, file: Path, record: SifRecord, say: Callable[[str], None]) -> None:
    """Give a whole SIF its name and its record."""
    record_file(file).unlink(missing_ok=True)
    temporary.replace(file)
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
    how = ["--force", "--notest", *fetching_words(source.registry)]
    return [program(), "build", *how, *arguments, str(file), str(definition)]


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


def run_apptainer(command: list[str], what: str, registry: ImageAddress | None = None) -> None:
    """Run it; MachineError where it fails. With a registry it is handed the caller's login there."""
    login = find_login(registry.host) if registry else None
    variables = build_environment() | (login.variables() if login else {})
    done = subprocess.run(command, cwd=PROJECT, env=variables, stdout=STANDARD_ERROR, check=False)
    if done.returncode:
        # A test of what was built, or a pull, asks nothing of the machine that a build has not had.
        fault = likely_fault(_work_folder()) if what == "build" and registry is None else None
        cure = f"where that is no answer: {fault[0]}, which makes builds fail; {fault[1]}" if fault else ""
        raise MachineError(f"apptainer {what} ended with code {done.returncode}; what it says is above", cure)


def fetching_words(address: ImageAddress | None) -> list[str]:
    """How Apptainer fetches: no copy stays in the home folder, and a registry of this machine has no TLS."""
    return ["--disable-cache", *(["--no-https"] if address and address.loopback else [])]
