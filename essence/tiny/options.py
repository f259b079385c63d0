"""Options of the built-in sources, as they stand in an experiment's TOML. There are no defaults."""

from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from essence.errors import ExperimentError, InputError
from essence.settings import OptimizerSettings, Record
from essence.validation import validate

Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class DigitOptions(Record):
    """Which numbers are added."""

    smallest_digits: Count
    largest_digits: Count

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

    rows: Count
    seed: Seed


class BenchmarkOptions(DigitOptions):
    """`tiny-benchmark`: problems that no training row has."""

    problems: Count
    seed: Seed


class ModelOptions(DigitOptions, OptimizerSettings):
    """`tiny-teacher` and, with a slip, `tiny-student`: the documents, the architecture, the pre-training."""

    documents: Count
    validation_documents: Count
    """Further documents, not trained on."""
    hidden: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    intermediate: Count
    max_positions: Count
    rope_theta: Annotated[float, Field(gt=0.0)]
    initializer_range: Annotated[float, Field(gt=0.0)]
    pad_to_multiple: Count
    seed: Seed
    """Of the documents and of the first weights."""


class StudentOptions(ModelOptions):
    """`tiny-student`."""

    slip: Count
    """By how much the total of a column is off at most."""


AnyOptions = TypeVar("AnyOptions", bound=Record)


def read_options(record: type[AnyOptions], options: dict[str, Any], builtin: str) -> AnyOptions:
    """`options` as a record; InputError naming the source, the key, the value and what is allowed."""
    try:
        return validate(record, options, f"built-in source '{builtin}'")
    except ExperimentError as error:
        raise InputError(str(error)) from None
