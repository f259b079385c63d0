"""Whether a training keeps its activations or computes them again in the backward pass: a choice by memory.

`[resources] activation_checkpointing = "auto"` takes the first of these that fits the device:

1. activations are kept, in passes of at most `micro_batch_tokens`;
2. they are kept in shorter passes, the longest that fit, where the model of time says that this is faster than 3;
3. they are recomputed: a layer's input is kept, and its forward pass runs again in the backward pass.

To 1 and 2 a tenth is added of what grows with the tokens, as the memory rule is right to about that much
(`tests/sizes/test_memory.py`): where it says too little, that is to cost some time and not a training.

A pass gets no shorter than the longest row, nor than `LEAST_PASS_TOKENS`. Recomputation gives the same bits
(`tests/distill/test_trainer.py`, `tests/distill/test_compiled_layers.py`); shorter passes change rounding, as
`micro_batch_tokens` does.

The choice depends on settings, sizes and the whole memory of a device alone, not on what is free of it, and times are
those of the assumed machine: so a plan and a training say the same, and a resumed training what it said before.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from essence.files import GIB
from essence.settings import ActivationCheckpointing, Resources, TrainSettings
from essence.sizes.architecture import Architecture, training_flops
from essence.sizes.host import largest_pass, rows_of_step, trained_parameters
from essence.sizes.memory import BYTES, DeviceLoad, compiled_models, device_bytes, estimate_memory, loading_bytes
from essence.sizes.speeds import (
    ASSUMED,
    Crossing,
    StepWork,
    crossing_bytes,
    crossing_dtype,
    gathers_of_pass,
    layers_of_step,
    step_seconds,
)
from essence.sizes.step_rows import deal

LEAST_PASS_TOKENS = 2048
"""Below it the products of a layer fill a GPU less, of which the model of time knows nothing."""
SPARE = 0.1
"""Of the dynamic memory of kept activations."""


@dataclass(frozen=True)
class StepReading:
    """What a rank reads in a step, on average."""

    rows: float
    row_tokens: float
    longest_row: int
    """Positions of the longest row of the training."""
    passes: Callable[[int], float]
    """Most tokens of a pass -> forward passes of a rank in a step."""


@dataclass(frozen=True)
class Activations:
    """What was chosen, and why."""

    asked: ActivationCheckpointing
    recomputed: bool
    micro_batch_tokens: int
    """Most tokens of a pass; less than `[resources]` has where activations are kept in shorter passes."""
    kept_bytes: int
    """That a device needs for kept activations, in passes of the tokens that `[resources]` has, with some to spare."""
    recomputed_bytes: int
    """That it holds with recomputed ones."""
    usable_bytes: int
    """Of a device."""
    because: str
    """`they fit`."""

    @property
    def shortened(self) -> bool:
        """True where activations are kept in shorter passes than `[resources]` has."""
        return self.asked == "auto" and not self.recomputed and self.kept_bytes > self.usable_bytes

    @property
    def summary(self) -> str:
        """`activations are kept: they fit`."""
        return f"activations are {'recomputed' if self.recomputed else 'kept'}: {self.because}"

    @property
    def sentence(self) -> str:
        """For a log."""
        kept, again, usable = (size / GIB for size in (self.kept_bytes, self.recomputed_bytes, self.usable_bytes))
        return (
            f"{self.summary} (a device needs {kept:.1f} GiB to keep them with some to spare, {again:.1f} to recompute "
            f"them, and {usable:.1f} can be used)"
        )

    def resources(self, resources: Resources) -> Resources:
        """`resources` with the choice made."""
        chosen: ActivationCheckpointing = "on" if self.recomputed else "off"
        changes = {"activation_checkpointing": chosen, "micro_batch_tokens": self.micro_batch_tokens}
        return resources.model_copy(update=changes)


def choose_activations(
    settings: TrainSettings, resources: Resources, load: DeviceLoad, reading: StepReading, usable_bytes: int
) -> Activations:
    """The first form that fits, or the one that `[resources]` names; recomputed where none fits.

    load: with the largest pass of `micro_batch_tokens`.
    """
    asked, tokens = resources.activation_checkpointing, resources.micro_batch_tokens
    kept, again = (replace(load, activation_checkpointing=recomputed) for recomputed in (False, True))
    sizes = (bytes_to_keep(kept), device_bytes(again), usable_bytes)
    if asked != "auto":
        return Activations(asked, asked == "on", tokens, *sizes, f"activation_checkpointing = '{asked}'")
    if sizes[0] <= usable_bytes:
        return Activations(asked, False, tokens, *sizes, "they fit")
    shorter = longest_kept_pass(load, usable_bytes, reading.longest_row, settings.pad_to_multiple)
    if shorter is None:
        return Activations(asked, True, tokens, *sizes, "they do not fit")
    often, seldom = reading.passes(shorter), reading.passes(tokens)
    kept_s = step_seconds(ASSUMED, _work(settings, load, reading, often, recomputed=False))
    again_s = step_seconds(ASSUMED, _work(settings, load, reading, seldom, recomputed=True))
    if kept_s < again_s:
        why = f"they fit in passes of {shorter:,} tokens, which take less time than computing them again"
        return Activations(asked, False, shorter, *sizes, why)
    why = f"they fit in passes of {shorter:,} tokens, which take more time than computing them again"
    return Activations(asked, True, tokens, *sizes, why)


def bytes_to_keep(load: DeviceLoad) -> int:
    """What a device needs for a load with kept activations, with some to spare."""
    memory = estimate_memory(load)
    return max(memory.static + round((1 + SPARE) * memory.dynamic), loading_bytes(load))


def choose_for_full_steps(
    settings: TrainSettings, resources: Resources, load: DeviceLoad, longest: int, usable_bytes: int
) -> tuple[DeviceLoad, Activations]:
    """The choice before any row is known, for steps whose rows all have `longest` tokens, each of them a label.

    load: without its rows; what comes back has them, and activations as they were chosen.
    """
    rows, processes, multiple = rows_of_step(settings, longest), settings.processes, settings.pad_to_multiple

    def passes(tokens: int) -> float:
        shorter = resources.model_copy(update={"micro_batch_tokens": tokens})
        return len(deal([longest] * rows, processes, settings.packing, multiple, shorter)[0])

    reading = StepReading(rows / processes, longest, longest, passes)
    asked = _with_largest_pass(load, settings, longest, resources)
    chosen = choose_activations(settings, resources, asked, reading, usable_bytes)
    load = _with_largest_pass(load, settings, longest, chosen.resources(resources))
    return replace(load, activation_checkpointing=chosen.recomputed), chosen


def _with_largest_pass(load: DeviceLoad, settings: TrainSettings, longest: int, resources: Resources) -> DeviceLoad:
    largest = largest_pass(settings, longest, resources)
    return replace(load, positions=largest.positions, labels=largest.tokens)


def longest_kept_pass(load: DeviceLoad, usable_bytes: int, longest_row: int, multiple: int) -> int | None:
    """Tokens of the longest pass, shorter than that of `load`, whose activations can be kept; None where none is.

    Each of its tokens is taken to be a label, so no pass of so many tokens needs more.
    """
    least = -(-max(longest_row, LEAST_PASS_TOKENS) // multiple)
    lengths = range(least, -(-load.positions // multiple))

    def too_long(length: int) -> bool:
        shorter = replace(load, positions=length * multiple, labels=length * multiple)
        return bytes_to_keep(replace(shorter, activation_checkpointing=False)) > usable_bytes

    fitting = bisect_left(lengths, True, key=too_long)
    return lengths[fitting - 1] * multiple if fitting else None


def _work(
    settings: TrainSettings, load: DeviceLoad, reading: StepReading, passes: float, *, recomputed: bool
) -> StepWork:
    """Of a step, what recomputation and the number of passes change."""
    student, live = load.student, None if load.teacher_stored else load.teacher
    flops = training_flops(student, round(reading.row_tokens), activation_checkpointing=recomputed, lora=settings.lora)
    compiled = compiled_models(settings)
    layers = layers_of_step(student.layers, compiled[0], live.layers if live else 0, compiled[1])
    crossing = crossing_of(settings, student, live, passes, recomputed=recomputed)
    return StepWork(flops * reading.rows, layers * passes, 0.0, crossing_bytes(crossing))


def crossing_of(
    settings: TrainSettings, student: Architecture, live: Architecture | None, passes: float, *, recomputed: bool
) -> Crossing:
    """What brings the ranks of a training together in a step of so many passes.

    live: the teacher that is computed beside the student; None where none is.
    """
    size = BYTES[settings.compute_dtype]
    crossing = crossing_dtype(settings.compute_dtype, settings.reduce_dtype, settings.lora)
    sharded = live if settings.teacher_placement == "sharded" else None
    return Crossing(
        parallel=settings.parallel,
        processes=settings.processes,
        passes=passes,
        gradient_bytes=BYTES[crossing] * trained_parameters(student, settings.lora),
        weight_bytes=size * student.parameters,
        gathers=gathers_of_pass(recomputed),
        teacher_bytes=size * sharded.parameters if sharded else 0.0,
        masters_shared=settings.optimizer_placement == "main_memory",
    )
