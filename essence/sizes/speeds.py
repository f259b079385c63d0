"""The one model of time: what a step of a training and a step of decoding take, from sizes and a machine's speeds.

```
training step = flop_s * FLOPs + layer_s * layers * passes + parameter_s * parameters + link bytes / link
              + max(moved bytes / host link, main_memory_parameter_s * parameters updated in main memory)
decoding step = weight_s * parameters + sequence_s * n + cache_byte_s * n * context * bytes of keys and values a token
```

FLOPs and passes are those of the rank that has the most to read; layers are of both models, parameters those that are
trained on a device. The fixed terms are what no shorter row saves: starting kernels layer by layer, and the optimiser.
Until `invoke prove` has measured a machine its speeds are assumed. Plain Python and NumPy; the host uses it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np

from essence.settings import LoraSettings, Parallel
from essence.sizes.architecture import BFLOAT16_BYTES, Architecture

Dtype = Literal["float32", "bfloat16"]
ACHIEVABLE_FLOPS = 790e12
"""Dense bfloat16 FLOP/s that an H100 or H200 reaches in matrix products."""
TRAINING_UTILIZATION = 0.4
"""Share of it that a training step is assumed to reach."""
MEMORY_BANDWIDTH = 3.35e12
"""Bytes/s of an H100; decoding reads every key and value once a token."""
DECODING_EFFICIENCY = 0.65
UPDATE_BYTES = 46
"""That AdamW and the clipping of gradients move a parameter, counted as float32 numbers and bfloat16 copies."""
MOVED_BYTES, MAIN_MEMORY_UPDATE_BYTES = 6, 34
"""Of a parameter that is updated in main memory: a float32 sum there and a bfloat16 weight back; and what the update
reads and writes there: sum, master and moments, the rounding, and what crosses."""
MAIN_MEMORY_BANDWIDTH = 100e9
"""Bytes/s that eight threads of a server reach."""
LAUNCHES_OF_A_LAYER, LAUNCH_S = 52, 5e-6
"""Kernels that a step starts in a layer of either model where layers are compiled (3,706 in 72, counted), and what
starting one takes."""
AS_IT_IS = 3.0
"""Compiled layers that one starts as many kernels as that is not compiled (10,653 in 72, counted)."""


@dataclass(frozen=True)
class Speeds:
    """Seconds of a machine for one of each thing."""

    flop_s: float
    """A FLOP of a training step."""
    layer_s: float
    """A compiled layer of either model in one forward pass and what follows from it, whatever the length."""
    parameter_s: float
    """The update of a parameter."""
    link_bytes_per_s: float
    """Between the GPUs of a machine, as an all-reduce is counted: its bytes over its seconds."""
    host_link_bytes_per_s: float
    """Between a GPU and main memory."""
    main_memory_parameter_s: float
    """The update of a parameter in main memory by the threads of one process."""
    checkpoint_bytes_per_s: float
    """Of a checkpoint, from the devices to the disk."""
    save_bytes_per_s: float
    """Of weights alone."""
    validation_factor: float
    """Seconds of a validation over what the terms of a step give for it."""
    disk_read_bytes_per_s: float
    weight_s: float
    """A parameter in a step of decoding."""
    sequence_s: float
    """A sequence in a step of decoding."""
    cache_byte_s: float
    """A byte of keys and values in a step of decoding."""
    decoder_start_s: float
    """With what an earlier start has compiled, where that was measured."""

    def as_json(self) -> dict[str, float]:
        return asdict(self)


ASSUMED = Speeds(
    flop_s=1.0 / (ACHIEVABLE_FLOPS * TRAINING_UTILIZATION),
    layer_s=LAUNCHES_OF_A_LAYER * LAUNCH_S,
    parameter_s=UPDATE_BYTES / (MEMORY_BANDWIDTH * DECODING_EFFICIENCY),
    link_bytes_per_s=150e9,
    host_link_bytes_per_s=25e9,
    main_memory_parameter_s=MAIN_MEMORY_UPDATE_BYTES / MAIN_MEMORY_BANDWIDTH,
    checkpoint_bytes_per_s=1e9,
    save_bytes_per_s=1e9,
    validation_factor=1.0,
    disk_read_bytes_per_s=2e9,
    weight_s=BFLOAT16_BYTES / (MEMORY_BANDWIDTH * DECODING_EFFICIENCY),
    sequence_s=5e-6,
    cache_byte_s=1.0 / (MEMORY_BANDWIDTH * DECODING_EFFICIENCY),
    decoder_start_s=120.0,
)
"""Of a host with H100 GPUs, NVLink and a local disk."""


class StepWork(NamedTuple):
    """What one device does in an optimiser step."""

    flops: float
    layer_passes: float
    """Layers of both models as `layers_of_step` counts them, times forward passes."""
    parameters: float
    """That it updates."""
    link_bytes: float = 0.0
    main_memory_parameters: float = 0.0
    """That its process updates in main memory."""


def layers_of_step(student: int, student_compiled: bool, teacher: int, teacher_compiled: bool) -> float:
    """Layers of both models; one that is not compiled takes the fixed time of `AS_IT_IS` that are."""
    return student * (1.0 if student_compiled else AS_IT_IS) + teacher * (1.0 if teacher_compiled else AS_IT_IS)


class Crossing(NamedTuple):
    """What brings ranks together in a step."""

    parallel: Parallel
    processes: int
    passes: float
    """Of each rank."""
    gradient_bytes: float
    """Of all that is trained, in the dtype that it crosses in."""
    weight_bytes: float
    """Of the whole student, in the dtype of the computation."""
    gathers: int
    """How often ZeRO-3 brings a weight together in a pass, see `gathers_of_pass`."""
    teacher_bytes: float = 0.0
    """Of a teacher that lies in shards."""
    masters_shared: bool = False
    """Under DDP: each weight has one owner in main memory, who sends it to the others."""


def gathers_of_pass(recomputed: bool) -> int:
    """How often ZeRO-3 brings a weight together: forward, backward, and recomputation of activations between them."""
    return 3 if recomputed else 2


def crossing_dtype(compute_dtype: Dtype, reduce_dtype: Dtype, lora: LoraSettings) -> Dtype:
    """That gradients cross between ranks in: `reduce_dtype` where the weights that are trained are bfloat16."""
    return reduce_dtype if compute_dtype == "bfloat16" and lora.rank == 0 else "float32"


def crossing_bytes(of: Crossing) -> float:
    """Bytes of a step, as an all-reduce of so many takes time; a gather, or a scatter, takes half of one.

    Gradients are brought together once, under ZeRO in every pass.
    """
    if of.processes == 1:
        return 0.0
    sharded = of.parallel in ("zero2", "zero3")
    sent = of.gradient_bytes * (1.0 + (of.passes - 1) / 2 if sharded else 1.0)
    sent += of.weight_bytes * of.gathers * of.passes / 2 if of.parallel == "zero3" else 0.0
    sent += of.weight_bytes / 2 if of.masters_shared and not sharded else 0.0
    return sent + of.teacher_bytes * of.passes / 2


class DecodeWork(NamedTuple):
    """What one copy of a model does in a step of decoding."""

    parameters: float
    sequences: float
    cache_bytes: float
    """Of keys and values that are read, all sequences together."""


def step_seconds(speeds: Speeds, work: StepWork) -> float:
    """Of one optimiser step; what crosses between ranks is taken to hide behind nothing."""
    computed = speeds.flop_s * work.flops + speeds.layer_s * work.layer_passes + speeds.parameter_s * work.parameters
    updated = work.main_memory_parameters * moved_and_updated_s(
        speeds.main_memory_parameter_s, speeds.host_link_bytes_per_s
    )
    return computed + work.link_bytes / speeds.link_bytes_per_s + updated


def moved_and_updated_s(main_memory_parameter_s: float, host_link_bytes_per_s: float) -> float:
    """Seconds of a parameter that is updated in main memory: it crosses and is updated beside each other."""
    return max(MOVED_BYTES / host_link_bytes_per_s, main_memory_parameter_s)


def decoding_seconds(speeds: Speeds, work: DecodeWork) -> float:
    """Of one step, which gives each sequence a token."""
    weights, sequences = speeds.weight_s * work.parameters, speeds.sequence_s * work.sequences
    return weights + sequences + speeds.cache_byte_s * work.cache_bytes


def cache_bytes(model: Architecture, tokens: float, element_bytes: int = BFLOAT16_BYTES) -> float:
    """Keys and values of so many tokens."""
    return 2.0 * element_bytes * model.layers * model.kv_heads * model.head_dim * tokens


class Fit(NamedTuple):
    """Coefficients, none below zero, and the largest relative difference of what they give from what was measured."""

    coefficients: tuple[float, ...]
    error: float


def fitted(work: Sequence[Sequence[float]], seconds: Sequence[float]) -> Fit:
    """The coefficients, one for each column of `work`, whose sums are closest to the seconds, relatively.

    A coefficient that would be below zero is left out, the most negative first, and the others are fitted again.
    """
    measured = np.asarray(seconds, dtype=np.float64)
    relative = np.asarray(work, dtype=np.float64) / measured[:, None]
    scale = np.abs(relative).max(axis=0)
    kept = [column for column in range(relative.shape[1]) if scale[column] > 0.0]
    found = np.zeros(relative.shape[1])
    while kept:
        scaled = relative[:, kept] / scale[kept]
        solution = np.linalg.lstsq(scaled, np.ones(len(measured)), rcond=None)[0]
        if solution[worst := int(solution.argmin())] >= 0.0:
            found[kept] = solution / scale[kept]
            break
        del kept[worst]
    error = float(np.abs(relative @ found - 1.0).max())
    return Fit(tuple(float(value) for value in found), error)
