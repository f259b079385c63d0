"""A ready SIF out of a registry (`oras://`), known by its own hash, which the registry's manifest names.

What image it was made of is only said by its label. That counts where the repository that the SIF is in holds a
configuration of that digest, with the same lock, base and source: push the SIF beside its image.
"""

import os
from collections.abc import Callable
from pathlib import Path

from essence.engines.image_address import DIGEST, ImageAddress
from essence.engines.recipes import DIGEST_LABEL, ImageRecipe
from essence.engines.registry import registry
from essence.engines.registry_image import Configuration, read_document, resolve_sif
from essence.engines.sif_builds import (
    UNFINISHED,
    Room,
    check_room,
    fetching_words,
    put_in_place,
    run_apptainer,
    test_command,
    working,
)
from essence.engines.sif_files import NO_DIGEST, SifRecord, known_sif, make_record, program, sif_file
from essence.engines.sif_sources import labelled_image, made_here
from essence.errors import MachineError
from essence.files import GIB, sha256_file
from essence.text import memory as readable_gib


def fetch_sif(address: ImageAddress, flavour: str | None, only: str | None, say: Callable[[str], None]) -> None:
    """Put the SIF in its place, checked and tested.

    Raises:
        ExperimentError: it is another environment than was asked for.
        MachineError: it is not there, does not fit on the disk, is damaged, or of another state of the project.
    """
    file = resolve_sif(address)
    sha256 = file.digest.removeprefix("sha256:")
    with working() as folder:
        if here := _whole(folder, sha256, address, flavour, only):
            say(f"{here}: is there, sha256 {sha256}")
            return
        check_room([Room(str(address), file.size / GIB, work_gib=0.0)])
        say(f"{address}: {readable_gib(file.size / GIB)} to be fetched")
        temporary = folder / f"{UNFINISHED}{sha256[:12]}.sif"
        try:
            run_apptainer(pull_command(temporary, address), "pull", address)
            record = _checked(temporary, address, sha256)
            image = labelled_image(record.labels, str(address), flavour, only)
            image.check_labels(record.labels, str(address), made_here(image))
            _check_digest(record, address, image)
            run_apptainer(test_command(temporary), "test")
            put_in_place(temporary, sif_file(image), record, say)
        finally:
            temporary.unlink(missing_ok=True)


def pull_command(file: Path, address: ImageAddress) -> list[str]:
    return [program(), "pull", "--force", *fetching_words(address), str(file), f"oras://{address}"]


def _whole(folder: Path, sha256: str, address: ImageAddress, flavour: str | None, only: str | None) -> Path | None:
    """The SIF of these bytes under its own name, which a run would take; None where it is to be fetched.

    The errors are those of `fetch_sif`: what would be refused once it has come is refused before.
    """
    for file in sorted(folder.glob("*.sif")):
        if (record := known_sif(file)) is None or record.sha256 != sha256:
            continue
        image = labelled_image(record.labels, str(address), flavour, only)
        image.check_labels(record.labels, str(address), made_here(image))
        # One that came by hand has no record of its digest until its repository has confirmed it.
        confirmed = record.labels.get(DIGEST_LABEL, NO_DIGEST) == (record.config_digest or NO_DIGEST)
        if file == sif_file(image) and confirmed:
            return file
    return None


def _checked(file: Path, address: ImageAddress, sha256: str) -> SifRecord:
    """The record of what came, with the digest that its label names; MachineError where other bytes came."""
    if (found := sha256_file(file)) != sha256:
        raise MachineError(f"{address}: other bytes came (sha256 {found}), wanted {sha256}", "issue the command again")
    os.chmod(file, 0o755)  # noqa: PTH101, S103  as Apptainer makes them: others may run it
    record = make_record(file, sha256, None, None)
    said = record.labels.get(DIGEST_LABEL, NO_DIGEST)
    return record.model_copy(update={"config_digest": None if said == NO_DIGEST else said})


def _check_digest(record: SifRecord, address: ImageAddress, image: ImageRecipe) -> None:
    """MachineError where the label names a digest that no image beside the SIF has."""
    if record.config_digest is None:
        return
    what = f"{address}: its label {DIGEST_LABEL} is {record.config_digest}"
    cure = f"push it into the repository of its image, or {made_here(image)}"
    if not DIGEST.fullmatch(record.config_digest):
        raise MachineError(f"{what}, which is no digest", cure)
    try:
        content = registry(address.host).blob(address.name, record.config_digest, cure)
    except MachineError as error:
        raise MachineError(f"{what}, which {address.repository} cannot confirm ({error.problem})", cure) from None
    labels = read_document(Configuration, content, f"{address.repository}: {record.config_digest}").config.labels
    image.check_labels(labels or {}, f"{what}, and the image of that digest", cure)
