"""Settings for tests that say what they change alone, so that a new field needs no change in every test file."""

from typing import Any

from essence.plan.cells import part
from essence.plan.experiment import load
from essence.settings import ObjectiveSettings, Resources, ViewSettings


def some_resources(**changes: Any) -> Resources:
    """The miniature's resources with some of them changed."""
    fields = part(load("tiny").experiment.resources, Resources)
    return Resources.model_validate({**fields, **changes})


def some_objective(**changes: Any) -> ObjectiveSettings:
    """The miniature's objective with some of it changed."""
    fields = part(load("tiny").experiment.training, ObjectiveSettings)
    return ObjectiveSettings.model_validate({**fields, **changes})


def some_view(**changes: Any) -> ViewSettings:
    """Whole rows, all of it supervised, with some of it changed."""
    whole = {
        "lsp": 1.0,
        "span": "left",
        "sections": "p+cot+a",
        "cot_includes_next_token": False,
        "supervise_end_of_sequence": True,
        "keep_context": False,
        "left_pad_multiple": 0,
        "misordered_markers": "skip",
    }
    return ViewSettings.model_validate({**whole, **changes})


def some_optimizer() -> dict[str, Any]:
    """Two epochs of steps of four rows, at a rate that toy models learn at."""
    return {
        "epochs": 2,
        "batch_rows": 4,
        "max_lr": 1e-2,
        "weight_decay": 0.05,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "gradient_clip_norm": 1.0,
        "warmup_share": 0.3,
        "start_divisor": 25.0,
        "end_divisor": 1e4,
        "beta1_low": 0.85,
        "beta1_high": 0.95,
    }
