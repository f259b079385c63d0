"""Settings of train: objective, optimiser, loop."""

from typing import Annotated, Literal

from pydantic import Field

from essence.settings.base import Record
from essence.settings.data import RowsSettings, ViewSettings


class ObjectiveSettings(Record):
    """`(1 - w) * CE + w * KD` at a temperature."""

    kd_weight: Annotated[float, Field(ge=0.0, le=1.0)]
    temperature: Annotated[float, Field(gt=0.0)]


class OptimizerSettings(Record):
    """AdamW under a one-cycle schedule."""

    epochs: Annotated[int, Field(gt=0)]
    batch_rows: Annotated[int, Field(gt=0)]
    """Effective batch: rows an optimiser step, whatever the number of devices (trap 1)."""
    max_lr: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)]
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)]
    adam_epsilon: Annotated[float, Field(gt=0.0)]
    gradient_clip_norm: Annotated[float, Field(gt=0.0)]
    warmup_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """OneCycleLR's pct_start."""
    start_divisor: Annotated[float, Field(gt=0.0)]
    """The first learning rate is max_lr / start_divisor."""
    end_divisor: Annotated[float, Field(gt=0.0)]
    """The last learning rate is max_lr / start_divisor / end_divisor."""
    beta1_low: Annotated[float, Field(gt=0.0, lt=1.0)]
    beta1_high: Annotated[float, Field(gt=0.0, lt=1.0)]
    """OneCycleLR cycles beta1 from high to low and back (trap 13)."""


class LoopSettings(Record):
    """How the training loop runs."""

    validations_per_epoch: Annotated[int, Field(gt=0)]
    compute_dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool
    pad_to_multiple: Annotated[int, Field(gt=0)]
    packing: bool
    """Several rows one after the other in a sequence, each seeing itself alone; changes rounding only."""


class TrainSettings(LoopSettings):
    """One cell: a student distilled from a teacher on a view of a tokenised data set."""

    rows: RowsSettings
    view: ViewSettings
    validation_view: Literal["same", "full"]
    """Released: validation rows are truncated like the training rows (trap 8)."""
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    seed: Annotated[int, Field(ge=0)]
