"""One training step at the sizes of real models, counted on fake tensors: `Counting` says what of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from essence.data.truncation import Example
from essence.distill.adamw import adamw
from essence.distill.batches import Batch, model_states
from essence.distill.chunked import BLOCK_ELEMENTS
from essence.distill.float32_masters import Masters
from essence.distill.module import Distiller
from essence.distill.teachers import LiveTeacher
from essence.models.from_sizes import random_model
from essence.plan.cells import train_settings
from essence.plan.experiment import load
from essence.sizes.architecture import BFLOAT16_BYTES, Architecture
from essence.sizes.memory import estimate_memory, load_of
from support.compiled_counts import LayerCounts, count_layer
from support.live_bytes import LiveBytes
from support.step_counts import Counting, StepCounts

CPU = torch.device("cpu")
MOST_POSITIONS = 32768


@dataclass(frozen=True)
class CountedStep:
    """A step of one pass over one row, on one device that holds all of it."""

    in_pass: StepCounts
    """Teacher, student, loss and backward pass, with what they add to the sums of gradients."""
    update: StepCounts
    """Clipping, AdamW, and rounding the masters where there are any."""
    peak_bytes: int
    """Of live tensors above weights, masters and moments, in the second step."""
    later_peak_bytes: int
    """Above the sums of gradients too, in a second pass of that step: what the memory rule calls dynamic."""


def counted_step(
    student: Architecture, teacher: Architecture, tokens: int, masters: bool, recomputed: bool
) -> CountedStep:
    """The second step on a row of `tokens` tokens as `bespoke` trains, which finds the optimiser's state made.

    Args:
        student: its sizes.
        teacher: the same; bfloat16, whole.
        tokens: of the row; all but the first are labels.
        masters: bfloat16 weights over float32 masters; False = float32 weights under autocast, as before them.
        recomputed: whether layers are computed again in the backward pass.
    """
    loaded = load("bespoke")
    settings, resources = train_settings(loaded.cells()[-1], loaded.experiment), loaded.experiment.resources
    row = whole_row(tokens)
    batch = Batch.of([row], settings.pad_to_multiple, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True), blocks_of_a_gpu():
        taught = LiveTeacher(fake_model(teacher, torch.bfloat16), torch.bfloat16)
        learning = fake_model(student, torch.float32).train()
        if recomputed:
            learning.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        weights = batch.step_weights(settings.objective.normalisation, [row])
        distiller = Distiller(learning, settings.objective, resources.loss, torch.bfloat16, autocast=not masters)
        held = Masters(learning) if masters else None
        trained = held.parameters if held else list(learning.parameters())
        optimizer = adamw(trained, settings.optimizer)
        for _ in range(2):
            in_pass, peak = count_pass(distiller, batch, weights, taught, held)
            _, later_peak = count_pass(distiller, batch, weights, taught, held)
            update = count_update(trained, optimizer, held, settings.optimizer.gradient_clip_norm)
    return CountedStep(in_pass, update, peak, later_peak)


def whole_row(tokens: int) -> Example:
    """All but its first token are labels."""
    supervised = np.ones(tokens, dtype=np.bool_)
    supervised[0] = False
    return Example(0, np.zeros(tokens, dtype=np.int32), supervised)


@dataclass(frozen=True)
class CompiledStep:
    """A step in bfloat16 whose decoder layers are compiled, without the update: parts, and how often each is there."""

    around: StepCounts
    """All but the layers, operation by operation."""
    student: LayerCounts
    teacher: LayerCounts
    often: tuple[int, int]
    """Layers of student and teacher."""
    summed: StepCounts
    """Adding the gradients of the student's layers to their sums."""
    peak_elsewhere: int
    """At another moment than the loss, with recomputed layers: the most, whatever their number."""
    peak_around: int
    """Of live tensors at the loss, without what is kept of layers, above weights, masters, moments and sums."""
    input_bytes: int
    """Of what comes into a layer of the student."""
    eager_bytes: int
    """What is kept of a layer that runs as it is, with what comes in."""

    def launches(self, recomputed: bool) -> int:
        return sum(times * part.launches for part, times in self._parts(recomputed))

    def bytes_beside_products(self, recomputed: bool) -> int:
        return sum(times * part.bytes_beside_products for part, times in self._parts(recomputed))

    def peak_bytes(self, recomputed: bool) -> int:
        """At the loss, where what is kept of all layers is held at once: inputs, and more without recomputation."""
        kept = self.input_bytes + (0 if recomputed else self.student.kept_bytes)
        return max(self.peak_around + self.often[0] * kept, self.peak_elsewhere)

    @property
    def eager_peak_bytes(self) -> int:
        """At the loss, with layers that run as they are and are kept."""
        return self.peak_around + self.often[0] * self.eager_bytes

    def _parts(self, recomputed: bool) -> list[tuple[StepCounts, int]]:
        """With each layer of the student computed again in the backward pass, or not."""
        assert self.student.backward is not None
        forward = self.often[0] * (2 if recomputed else 1)
        parts = [(self.around, 1), (self.summed, 1), (self.student.forward, forward)]
        return [*parts, (self.student.backward, self.often[0]), (self.teacher.forward, self.often[1])]


def compiled_step(student: Architecture, teacher: Architecture, tokens: int) -> CompiledStep:
    """A step on one row of `tokens` tokens in a pass, as `counted_step` has it; one layer of each model is planned."""
    two, three = (
        counted_step(at_depth(student, depth), at_depth(teacher, depth), tokens, True, False) for depth in (2, 3)
    )

    def without_layers(of_two: int, of_three: int) -> int:
        """Each layer adds the same; with one alone the peak is not at the loss."""
        return 3 * of_two - 2 * of_three

    around = StepCounts(
        without_layers(two.in_pass.launches, three.in_pass.launches),
        without_layers(two.in_pass.bytes_beside_products, three.in_pass.bytes_beside_products),
    )
    few = counted_step(at_depth(student, 2), at_depth(teacher, 2), tokens, True, True)
    layers = compiled_layer(student, tokens, trained=True), compiled_layer(teacher, tokens, trained=False)
    return CompiledStep(
        around,
        *layers,
        (student.layers, teacher.layers),
        collected(student),
        few.later_peak_bytes,
        without_layers(two.later_peak_bytes, three.later_peak_bytes),
        positions_of(tokens) * student.hidden * BFLOAT16_BYTES,
        three.later_peak_bytes - two.later_peak_bytes,
    )


def positions_of(tokens: int) -> int:
    """Of a row in a pass, padded as `bespoke` pads it."""
    loaded = load("bespoke")
    multiple = train_settings(loaded.cells()[-1], loaded.experiment).pad_to_multiple
    return -(-tokens // multiple) * multiple


def rule_bytes(student: Architecture, teacher: Architecture, tokens: int, recomputed: bool) -> int:
    """What the memory rule has for a pass of one such row on one device, above weights, masters, moments and sums."""
    loaded = load("bespoke")
    settings, resources = train_settings(loaded.cells()[-1], loaded.experiment), loaded.experiment.resources
    one_row = {"packed": False, "positions": positions_of(tokens), "labels": tokens - 1}
    alone = {"parallel": "single", "devices": 1, "teacher_placement": "replicated"}
    given = replace(load_of(settings, student, teacher, resources.loss), **one_row, **alone)
    return estimate_memory(replace(given, activation_checkpointing=recomputed)).dynamic


def compiled_layer(sizes: Architecture, tokens: int, trained: bool) -> LayerCounts:
    """A decoder layer in bfloat16 that reads one row of `tokens` tokens, as the compiler plans it."""
    pad_to = train_settings((loaded := load("bespoke")).cells()[-1], loaded.experiment).pad_to_multiple
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = fake_model(at_depth(sizes, 1), torch.bfloat16).train(trained).requires_grad_(trained)
        batch = Batch.of([whole_row(tokens)], pad_to, CPU)
        with torch.set_grad_enabled(trained):
            return count_layer(model.model.layers[0], lambda: model_states(model, batch))


def collected(sizes: Architecture) -> StepCounts:
    """Adding the gradients of one pass of all layers to the float32 sums, which are empty; the last layer's first."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        layers = fake_model(sizes, torch.float32).model.layers
        held = Masters(layers)
        with Counting() as counting:
            for weight in reversed(list(layers.parameters())):
                weight.grad = torch.empty_like(weight)
                held._collect(weight)
            held.add_up()
    return counting.found


@contextmanager
def blocks_of_a_gpu() -> Iterator[None]:
    """Logits become gradients in blocks as large as on a GPU; those of a CPU have a few lines for each thread."""
    before, threads = BLOCK_ELEMENTS["cpu"], torch.get_num_threads()
    BLOCK_ELEMENTS["cpu"] = BLOCK_ELEMENTS["cuda"]
    torch.set_num_threads(1)
    try:
        yield
    finally:
        BLOCK_ELEMENTS["cpu"] = before
        torch.set_num_threads(threads)


def count_pass(
    distiller: Distiller, batch: Batch, weights: Tensor, teacher: LiveTeacher, held: Masters | None
) -> tuple[StepCounts, int]:
    """(counts, peak bytes) of one forward and backward pass."""
    with LiveBytes() as live, Counting() as counting:
        distiller(batch, weights, teacher.states(batch), teacher.head)[0].backward()
        if held:
            held.add_up()
    return counting.found, live.peak


def count_update(
    trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, held: Masters | None, clip_norm: float
) -> StepCounts:
    if held:
        held.take_gradients()
    with Counting() as counting:
        nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if held:
            held.publish()
    return counting.found


def at_depth(model: Architecture, layers: int) -> Architecture:
    """The same widths with fewer layers: counts are linear in their number."""
    return replace(model, layers=layers)


def fake_model(sizes: Architecture, dtype: torch.dtype) -> Any:
    """A model of these sizes as the kit makes one; it reads far more positions than are counted."""
    return random_model(sizes, MOST_POSITIONS, dtype, CPU, 0)
