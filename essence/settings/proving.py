"""Settings of the two stages of `invoke prove`: what this machine computes, moves and writes, and whether it is right.

A proof is of a machine at a moment, so the moment is a setting: each has a key, and a folder, of its own.
"""

from typing import Annotated

from pydantic import Field

from essence.settings.base import Count, Few, Record, Size
from essence.settings.evaluation import SamplingSettings
from essence.settings.training import ObjectiveSettings, OptimizerSettings, ParallelLoopSettings

Lengths = Annotated[list[Count], Field(min_length=1)]


class ModelSizes(Record):
    """The sizes of a model, as `Architecture` of `essence/sizes/architecture.py` has them."""

    hidden: Size
    layers: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    intermediate: Size
    vocabulary: Count
    tied: bool
    qk_norm: bool = True
    qkv_bias: bool = False


class ProveTrainingSettings(ParallelLoopSettings):
    """Measure and check what trainings of one pair are made of."""

    taken: str
    """UTC, ISO 8601, to the second: when the proof was asked for."""
    student_sizes: ModelSizes
    """As it is trained; layers are cut until the device has room for it in one process."""
    teacher_sizes: ModelSizes
    machines: Size = 1
    """That a training shares its processes out among; a proof runs on one of them."""
    most_layers: Few
    """Of either model, however much fits."""
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    lengths: Lengths
    """Tokens of a row whose steps are timed."""
    steps: Few
    """Timed at each length; the median counts."""
    disk_mib: Count
    """Written and read to time the disk of the run directory."""
    link_mib: Count
    """Brought together to time the link between ranks."""


class ProveDecodingSettings(SamplingSettings):
    """Measure and check what evaluations are made of, with the model that `prove_training` has left."""

    taken: str
    sequences: Lengths
    """Numbers of sequences that are decoded together."""
    contexts: Lengths
    """Tokens of their prompts."""
    new_tokens: Annotated[int, Field(gt=1, le=10_000)]
    """Tokens of a completion."""
