"""Settings of train (objective, optimiser, loop) and of teacher, which stores what a training is taught by."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from essence.settings.base import Count, CountOrZero, Factor, Few, Inside, Record, Seed
from essence.settings.data import RowsSettings, ViewSettings

Parallel = Literal["single", "ddp", "zero2", "zero3"]
"""How processes train together: one alone; the whole student on each; gradients and moments sharded; weights too."""

TeacherPlacement = Literal["replicated", "sharded", "offloaded"]
"""The whole teacher on every device; a share of it on each; in main memory, a layer at a time on the device."""

OptimizerPlacement = Literal["device", "main_memory"]
"""Float32 masters and AdamW's moments beside the weights; or in main memory, where processors update them."""

TeacherForm = Literal["live", "cached"]
"""Computed again by every training; or its states stored once for all of them, which is exact."""

Divergence = Literal["forward_kl", "reverse_kl"]
"""From teacher to student; formulas in essence/distill/objective.py."""


class ObjectiveSettings(Record):
    """`(1 - w) * CE + w * KD` at a temperature."""

    kd_weight: Annotated[float, Field(ge=0.0, le=1.0)]
    temperature: Annotated[float, Field(ge=0.001, le=1000.0)]
    divergence: Divergence
    """What KD is; the paper's is `forward_kl`."""
    normalisation: Literal["row", "token"]
    """Mean over a row's supervised tokens, then over rows (released); or over all supervised tokens of a step."""


class OptimizerSettings(Record):
    """AdamW under a one-cycle schedule."""

    epochs: Few
    batch_rows: Count
    """Effective batch: rows an optimiser step, whatever the number of devices (trap 1)."""
    batch_tokens: CountOrZero = 0
    """Effective batch in tokens instead: a step takes the next rows up to that many tokens; 0 = `batch_rows` rows."""
    max_lr: Annotated[float, Field(gt=0.0, le=10.0)]
    weight_decay: Annotated[float, Field(ge=0.0, le=100.0)]
    adam_beta2: Inside
    adam_epsilon: Annotated[float, Field(ge=1e-30, le=1.0)]
    gradient_clip_norm: Factor
    warmup_share: Inside
    """OneCycleLR's pct_start."""
    start_divisor: Factor
    """The first learning rate is max_lr / start_divisor."""
    end_divisor: Factor
    """The last learning rate is max_lr / start_divisor / end_divisor."""
    beta1_low: Inside
    beta1_high: Inside
    """OneCycleLR cycles beta1 from high to low and back (trap 13)."""


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraSettings(Record):
    """Low-rank adapters (LoRA) beside weights that stay as they are."""

    rank: Annotated[int, Field(ge=0, le=65_536)]
    """0 = no adapters: all weights are trained."""
    alpha: Factor
    """What an adapter adds is multiplied by alpha / rank."""
    targets: Annotated[list[LoraTarget], Field(min_length=1)]
    """Matrices of every layer that get one; kept in alphabetical order, since none changes the result."""

    @field_validator("targets")
    @classmethod
    def in_order(cls, targets: list[LoraTarget]) -> list[LoraTarget]:
        return sorted(set(targets))


NO_ADAPTERS = LoraSettings(rank=0, alpha=1.0, targets=["q_proj"])


class LoopSettings(Record):
    """How the training loop runs."""

    lora: LoraSettings = NO_ADAPTERS
    validations_per_epoch: Few
    compute_dtype: Literal["float32", "bfloat16"]
    compile_layers: bool = False
    """Decoder layers through PyTorch's compiler where they lie whole on their device; changes rounding only."""
    pad_to_multiple: Count
    packing: bool = False
    """Several rows one after the other in a sequence, each seeing itself alone; changes rounding only."""


class ParallelSettings(Record):
    """How many processes train together, and what each holds; the results agree up to rounding."""

    parallel: Parallel = "single"
    processes: Annotated[int, Field(gt=0, le=65_536)] = 1
    """Of all machines together; one for each GPU, where there are GPUs."""
    teacher: TeacherForm = "live"
    """Where a training takes its teacher from."""
    teacher_placement: TeacherPlacement = "replicated"
    optimizer_placement: OptimizerPlacement = "device"
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which gradients cross between processes where a student is trained whole in bfloat16; else float32."""

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.parallel == "single" and self.processes > 1:
            raise ValueError(
                f"parallel = 'single' is one process, but processes = {self.processes}: choose ddp or zero2"
            )
        if self.teacher_placement == "sharded" and self.parallel not in ("zero2", "zero3"):
            raise ValueError(
                f"teacher_placement = 'sharded' needs parallel = 'zero2' or 'zero3', not '{self.parallel}'"
            )
        return self


class ParallelLoopSettings(LoopSettings, ParallelSettings):
    """Both, as far as one allows the other."""

    @model_validator(mode="after")
    def has_masters_to_place(self) -> Self:
        if self.optimizer_placement == "device":
            return self
        asked = "optimizer_placement = 'main_memory' places the float32 masters of bfloat16 weights"
        if self.parallel == "zero3":
            raise ValueError(f"{asked} that lie whole on their device, not under parallel = 'zero3': choose zero2")
        if self.lora.rank:
            raise ValueError(f"{asked}, and adapters (lora.rank = {self.lora.rank}) are float32 and few: leave it out")
        if self.compute_dtype != "bfloat16":
            raise ValueError(f"{asked}, and compute_dtype = '{self.compute_dtype}' has no masters: leave it out")
        return self


class OrderSettings(Record):
    """In which order an epoch reads its rows (`essence/distill/order.py`)."""

    seed: Annotated[int, Field(ge=0)]
    """Epoch e reads them in the order of `torch.randperm` under this seed + e."""
    multiple: Annotated[int, Field(gt=0)]
    """The order is filled up to a multiple of this by rows from its own start, which are read once more (trap 21)."""


class RolloutSettings(Record):
    """How a student that learns from its own words (span `rollout-k`) is let speak."""

    every_steps: Few
    """Optimiser steps whose rollouts are drawn together, with the weights before the first of them; 1 = on-policy at
    every step."""
    temperature: Annotated[float, Field(ge=0.001, le=1000.0)]
    """At which the student's tokens are drawn from its whole vocabulary."""


class TrainSettings(ParallelLoopSettings):
    """One cell: a student distilled from a teacher on a view of a tokenised data set."""

    rows: RowsSettings
    view: ViewSettings
    validation_view: Literal["same", "full"]
    """Released: validation rows are truncated like the training rows (trap 8)."""
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    order: OrderSettings
    rollouts: RolloutSettings | None = None
    """Of a span `rollout-k`; None = the rows' own words are read. Their draws have the seed of the view."""
    checkpoint_ranks: Count
    """Parts of the validation rows, dealt out in turn, that must all improve for a checkpoint to be kept (trap 22);
    1 = the lowest mean. Whatever the number of processes."""
    seed: Seed


class TeacherSettings(Record):
    """A teacher's last hidden states of all training rows of a data set, stored once for the cells that read them."""

    rows: RowsSettings
    """Those of a cell without token budget. Validation rows are split off and not read: validation is CE alone."""
    compute_dtype: Literal["float32", "bfloat16"]
    """Of the computation and of the stored states."""
    packing: bool
    pad_to_multiple: Count
