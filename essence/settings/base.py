"""What every record of the kit has in common, and the kinds of numbers and names that its fields hold.

A boolean, a quoted number and a decimal where an integer is wanted are refused by every record, and so are NaN and the
infinities. Each number that a person writes has a lower and an upper bound: the kinds below, or the field's own.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    model_serializer,
    model_validator,
)


class Record(BaseModel):
    """A record that refuses unknown keys and values of another type, and is never changed after it was made."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        strict=True,
        allow_inf_nan=False,
        defer_build=True,  # a command validates few of the hundred kinds: each is built at its first use
    )


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

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; what is changed counts as given, and is written last where it is new."""
        made = super().model_copy(update=update, deep=deep)
        made._given = tuple(dict.fromkeys((*self._given, *(update or {}))))
        return made

    def plus(self, **fields: object) -> Self:
        """The same with further fields, which are written last."""
        return self.model_validate({**self.model_dump(), **fields})

    @model_serializer(mode="wrap")
    def _as_given(self, handler: Any) -> dict[str, object]:
        full = handler(self)
        return {name: full[name] for name in self._given if name in full}


Number = Annotated[int, Field(strict=True)] | float
"""Of what a stage counted or computed: an integer stays one."""
LARGEST_COUNT = 2**31 - 1
"""Positions, token ids and lengths are 32-bit numbers in the arrays that hold them."""
LARGEST_SEED = 2**63 - 1
"""The largest integer that TOML guarantees, and that every generator of random numbers takes."""

Count = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Size = Annotated[int, Field(gt=0, le=10_000_000)]
"""Of a part of a model."""
Few = Annotated[int, Field(gt=0, le=10_000)]
"""Of what takes minutes each: epochs, validations, threads."""
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Inside = Annotated[float, Field(gt=0.0, lt=1.0)]
"""A share that is neither nothing nor all."""
Factor = Annotated[float, Field(ge=1e-9, le=1e9)]
"""A positive number that arithmetic in float32 takes."""
Seconds = Annotated[float, Field(ge=0.0, le=366 * 86_400.0)]
Gib = Annotated[float, Field(ge=0.0, le=1_000_000.0)]

LONGEST_NAME = 64
NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


def check_name(name: str) -> str:
    """A short name becomes a part of paths, cell names and keys, so it has few characters; ValueError otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"a name has 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-', and no '.' at its beginning"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
"""Short name of a model, data set or benchmark."""
