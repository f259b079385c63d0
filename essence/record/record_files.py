"""What the records of a run have in common, and the one way to read them: an object, or one sentence on the file.

A record of earlier code may lack a field that is optional here, and one of later code may have more: a `Group` keeps
what it does not know, so that a record is written again as it was read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from essence.errors import RecordError
from essence.files import canonical_json, read_json, sha256_text
from essence.settings.base import Group as Group
from essence.settings.base import Number as Number
from essence.settings.base import Written as Written
from essence.settings.toml import first_fault

AnyKind = TypeVar("AnyKind")


def read_record(file: Path, kind: type[AnyKind], what: str) -> AnyKind:
    """A JSON file as a record.

    Raises:
        RecordError: the file is missing, no JSON, or of another shape; the sentence names the file, the place in it,
            what was found and what is wanted.
    """
    return as_record(file, read_json(file), kind, what)


def as_record(where: object, value: Mapping[str, object], kind: type[AnyKind], what: str) -> AnyKind:
    """What was read from `where` as a record; RecordError as `read_record`. what: `a manifest`, `a plan`."""
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise RecordError(f"{where}: not {what} of this kit: {first_fault(kind, value, error)}") from None


def seal_of(record: Mapping[str, object]) -> str:
    """The seal that a record should have: hex sha256 of the canonical JSON of everything else."""
    return sha256_text(canonical_json({name: value for name, value in record.items() if name != "seal"}))


def gives_seal(record: Mapping[str, object]) -> bool:
    """True when a record is as it was written: its content gives the seal that it has."""
    return record.get("seal") == seal_of(record)
