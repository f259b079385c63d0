"""Resources for tests: those of the miniature, so that a new field needs no change in every test file."""

from typing import Any

from essence.experiment import load, part
from essence.settings import Resources


def some_resources(**changes: Any) -> Resources:
    """The miniature's resources with some of them changed."""
    fields = part(load("tiny").experiment.resources, Resources)
    return Resources.model_validate({**fields, **changes})
