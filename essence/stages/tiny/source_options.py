"""Options of the built-in sources, as they are in an experiment's TOML. There are no defaults."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from essence.errors import ExperimentError, InputError
from essence.settings import Factor, OptimizerSettings, Option, Record, Seed, Size
from essence.settings.toml import validate

Digits = Annotated[int, Field(gt=0, le=100)]
Many = Annotated[int, Field(gt=0, le=10_000_000)]
"""Of what the kit makes: rows, problems, documents."""


class DigitOptions(Record):
    """Which numbers are added."""

    smallest_digits: Digits
    largest_digits: Digits

    @model_validator(mode="after")
    def in_order(self) -> "DigitOptions":
        if self.smallest_digits > self.largest_digits:
            raise ValueError(
                f"smallest_digits = {self.smallest_digits} is above largest_digits = {self.largest_digits}"
            )
        return self

    @property
    def digits(self) -> range:
        """Numbers of digits, each as likely as the others."""
        return range(self.smallest_digits, self.largest_digits + 1)


class RowOptions(DigitOptions):
    """`tiny-problems`: training rows."""

    rows: Many
    seed: Seed


class BenchmarkOptions(DigitOptions):
    """`tiny-benchmark`: problems that no training row has."""

    problems: Many
    seed: Seed


class ModelOptions(DigitOptions, OptimizerSettings):
    """`tiny-teacher` and, with a slip, `tiny-student`: the documents, the architecture, the pre-training."""

    documents: Many
    validation_documents: Many
    """Further documents, not trained on."""
    hidden: Size
    layers: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    intermediate: Size
    max_positions: Size
    rope_theta: Factor
    initializer_range: Annotated[float, Field(gt=0.0, le=1000.0)]
    pad_to_multiple: Size
    seed: Seed
    """Of the documents and of the first weights."""


class StudentOptions(ModelOptions):
    """`tiny-student`."""

    slip: Digits
    """By how much the total of a column is off at most."""


OPTIONS: dict[str, type[Record]] = {
    "tiny-problems": RowOptions,
    "tiny-benchmark": BenchmarkOptions,
    "tiny-teacher": ModelOptions,
    "tiny-student": StudentOptions,
}
"""Built-in source -> its options."""

AnyOptions = TypeVar("AnyOptions", bound=Record)


def read_options(record: type[AnyOptions], options: Mapping[str, Option], builtin: str) -> AnyOptions:
    """`options` as a record; InputError naming the source, the key, the value and what is allowed."""
    try:
        return validate(record, dict(options), f"built-in source '{builtin}'")
    except ExperimentError as error:
        raise InputError(error.problem, error.cure) from None
