"""What the records of a run have in common, and the one way to read them: an object, or one sentence on the file.

A record of earlier code may lack a field that is optional here, and one of later code may have more: a `Group` keeps
what it does not know, so that a record is written again as it was read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from essence.errors import RecordError
from essence.files import canonical_json, read_json, sha256_text
from essence.settings import Record
from essence.settings.toml import first_fault

Number = Annotated[int, Field(strict=True)] | float
"""Of what a stage counted or computed: an integer stays one."""
AnyKind = TypeVar("AnyKind")


class Written(Record):
    """A part of a record that stages write, not people: NumPy integers are numbers here. Unknown fields are refused."""

    model_config = ConfigDict(strict=False)


class Group(Written):
    """A part whose fields belong to one stage. It keeps unknown fields, and the order in which fields were given."""

    model_config = ConfigDict(extra="allow")
    _given: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, value: Any, handler: Any) -> Self:
        made: Self = handler(value)
        if isinstance(value, Mapping):
            made._given = tuple(value)
        return made

    @model_serializer(mode="wrap")
    def _as_given(self, handler: Any) -> dict[str, object]:
        full = handler(self)
        return {name: full[name] for name in self._given if name in full}


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
