"""The SIFs: where they are, the image of each, and its hash, which is computed once and kept beside it."""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from essence.engines.recipes import DIGEST_LABEL, ImageRecipe
from essence.errors import MachineError, RecordError
from essence.files import sha256_file, write_json
from essence.paths import typed_path
from essence.plan.experiment import PROJECT
from essence.record.record_files import read_record
from essence.settings import Record

FOLDER_VARIABLE = "ESSENCE_SIF_FOLDER"
NO_DIGEST = "none"
"""The label of a SIF that was made of no Docker image."""
VERSION_LABEL = "org.label-schema.usage.apptainer.version"


class Attributes(BaseModel):
    """Of a SIF."""

    labels: dict[str, str]


class Data(BaseModel):
    attributes: Attributes


class Inspection(BaseModel):
    """What `apptainer inspect --json --labels` prints."""

    data: Data


class SifRecord(Record):
    """`train-cuda.sif.json` beside `train-cuda.sif`."""

    sha256: str
    bytes: int
    modified_ns: int
    """Size and time of the hashed file: a file with others is hashed again."""
    config_digest: str | None
    """Of the Docker image that it was made of, computed when it was made; null for one made straight from its base."""
    apptainer_version: str
    """That made it."""
    labels: dict[str, str]
    definition_sha256: str | None
    """Of the file in `apptainer/`; null where `make sif` did not make it."""

    def is_of(self, file: Path) -> bool:
        found = file.stat()
        return (self.bytes, self.modified_ns) == (found.st_size, found.st_mtime_ns)


def sif_folder() -> Path:
    """`sif/` of the project, or the folder that ESSENCE_SIF_FOLDER names."""
    return typed_path(FOLDER_VARIABLE, os.environ.get(FOLDER_VARIABLE) or str(PROJECT / "sif"))


def sif_file(image: ImageRecipe) -> Path:
    """Where the SIF of an image lies: `sif/train-cuda.sif`."""
    return sif_folder() / f"{image.environment}-{image.flavour}.sif"


def record_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def program_name() -> str:
    """`apptainer`, or `singularity` (SingularityCE) where that alone is installed."""
    return "singularity" if not shutil.which("apptainer") and shutil.which("singularity") else "apptainer"


def program() -> str:
    """Path of Apptainer; MachineError where there is none."""
    found = shutil.which(program_name())
    if found is None:
        raise MachineError(
            "the apptainer command is not installed here",
            "install Apptainer (on a cluster often: module load apptainer), or run without: --engine local",
        )
    return found


@functools.cache
def version() -> str:
    """Of the Apptainer that is here, as in `1.4.5`."""
    done = subprocess.run([program(), "--version"], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise MachineError(f"apptainer --version fails here: {done.stderr.strip() or done.returncode}")
    return done.stdout.split()[-1]


def missing_sifs(images: Iterable[ImageRecipe], cure: str) -> None:
    """MachineError that names all SIFs which are not there."""
    if absent := [str(file) for file in map(sif_file, images) if not file.is_file()]:
        raise MachineError(
            f"no SIF {' and no SIF '.join(absent)} here",
            f"make them: {cure}, or name their folder with {FOLDER_VARIABLE}",
        )


def found_sif(image: ImageRecipe, cure: str) -> SifRecord:
    """What the SIF of an image is; MachineError when it is absent, damaged, or of another lock or base."""
    missing_sifs([image], cure)
    return checked_sif(sif_file(image), image, cure)


def checked_sif(file: Path, image: ImageRecipe, cure: str) -> SifRecord:
    """What a SIF is; MachineError when it is damaged, or of another lock or base than the image has now."""
    record = read_sif(file)
    said = record.labels.get(DIGEST_LABEL, NO_DIGEST)
    if said != (record.config_digest or NO_DIGEST):
        raise MachineError(
            f"{file}: its label {DIGEST_LABEL} is {said}, which nothing here has computed (the record beside it: "
            f"{record.config_digest or 'none'})",
            f"take {record_file(file).name} along from where it was made, or {cure}",
        )
    image.check_labels(record.labels, str(file), cure)
    return record


def known_sif(file: Path) -> SifRecord | None:
    """The record beside a SIF, where it is of this very file."""
    known = _record_beside(file)
    with contextlib.suppress(FileNotFoundError):
        return known if known and known.is_of(file) else None
    return None


def _record_beside(file: Path) -> SifRecord | None:
    """The record beside a SIF, of whatever file; None where it is absent or damaged."""
    try:
        return read_record(record_file(file), SifRecord, "the record of a SIF")
    except RecordError:
        return None


def read_sif(file: Path) -> SifRecord:
    """The record beside a SIF if it describes this file; else the file is hashed and the record rewritten."""
    known = _record_beside(file)
    if known and known.is_of(file):
        return known
    sha256 = sha256_file(file)
    if known and known.sha256 != sha256 and known.definition_sha256 is not None:
        raise MachineError(
            f"{file}: was edited, or copied in part, since it was made (its sha256 is {sha256[:16]}, in its record "
            f"{known.sha256[:16]})",
            f"make it again, or where another was put there on purpose remove {record_file(file).name}",
        )
    if known and known.sha256 == sha256:
        # The same bytes, copied.
        found = file.stat()
        record = known.model_copy(update={"bytes": found.st_size, "modified_ns": found.st_mtime_ns})
    else:
        # What it was made of is known to who made it: a label is only what somebody wrote.
        record = make_record(file, sha256, None, None)
    with contextlib.suppress(OSError):
        # Where others keep the SIFs, this user may not write.
        write_json(record_file(file), record.model_dump(mode="json"))
    return record


def make_record(file: Path, sha256: str, definition_sha256: str | None, config_digest: str | None) -> SifRecord:
    """Ask Apptainer for the labels of a SIF; MachineError when it is none."""
    labels = inspect_labels(file)
    found = file.stat()
    return SifRecord(
        sha256=sha256,
        bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        config_digest=config_digest,
        apptainer_version=labels.get(VERSION_LABEL, "unknown"),
        labels=labels,
        definition_sha256=definition_sha256,
    )


def inspect_labels(file: Path) -> dict[str, str]:
    """The labels of a SIF, as Apptainer reads them; MachineError when it is none."""
    command = [program(), "inspect", "--json", "--labels", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _no_sif(file, " ".join(done.stderr.split()))
    try:
        return Inspection.model_validate_json(done.stdout).data.attributes.labels
    except ValidationError as error:
        raise _no_sif(file, f"it prints something else than labels: {error.errors()[0]['msg']}") from None


def _no_sif(file: Path, why: str) -> MachineError:
    return MachineError(f"{file}: no SIF that Apptainer can read ({why})", "remove it and make it again")
