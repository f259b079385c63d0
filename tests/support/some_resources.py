"""Resources and objective for tests: those of the miniature, so that a new field needs no change in every test file."""

from typing import Any

from essence.plan.cells import part
from essence.plan.experiment import load
from essence.settings import ObjectiveSettings, Resources


def some_resources(**changes: Any) -> Resources:
    """The miniature's resources with some of them changed."""
    fields = part(load("tiny").experiment.resources, Resources)
    return Resources.model_validate({**fields, **changes})


def some_objective(**changes: Any) -> ObjectiveSettings:
    """The miniature's objective with some of it changed."""
    fields = part(load("tiny").experiment.training, ObjectiveSettings)
    return ObjectiveSettings.model_validate({**fields, **changes})
