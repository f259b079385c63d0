"""Steps of a training on random weights and random rows, through the backend of the settings: timed, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from essence.data.truncation import Example
from essence.distill.adapters import add_adapters
from essence.distill.attention import use_row_attention
from essence.distill.backends import Backend, make_backend
from essence.distill.batches import Batch
from essence.distill.compiled_layers import settle_layers
from essence.distill.devices import COMPUTE_DTYPES, memory_bytes
from essence.distill.float32_masters import lowers_weights
from essence.distill.module import Distiller
from essence.distill.proof_machine import seconds_of
from essence.distill.proof_timing import Marks, Timed, timed
from essence.distill.ranks import ALONE, Ranks
from essence.distill.schedule import CyclePoint
from essence.distill.teachers import TeacherStates, place_teacher
from essence.models.from_sizes import random_model
from essence.settings import EVERY_TOKEN, OrderSettings, Resources, RowsSettings, TrainSettings
from essence.settings.proving import ModelSizes, ProveTrainingSettings
from essence.sizes.architecture import Architecture, distillation_flops, forward_flops
from essence.sizes.host import trained_parameters
from essence.sizes.memory import USABLE_SHARE, device_bytes, load_of
from essence.sizes.recomputation import Activations, StepReading, choose_activations, crossing_of
from essence.sizes.speeds import StepWork, crossing_bytes, layers_of_step

SEED = 7
WARMING_STEPS = 2
SMALL_MAX_LR = 1e-2
"""Of the small models, in the place of the settings' rate: by that a few steps would change less than rounding."""


@dataclass(frozen=True)
class Pair:
    """The sizes that are trained here."""

    student: Architecture
    teacher: Architecture


def sizes_of(asked: ModelSizes, layers: int | None = None) -> Architecture:
    """As the settings have them, or with fewer layers."""
    whole = Architecture(**asked.model_dump())
    return whole if layers is None else replace(whole, layers=min(layers, whole.layers))


def alone(asked: ProveTrainingSettings, **changes: object) -> TrainSettings:
    """A training of one process with all that the proof is asked for; rows are handed to it, and none are selected."""
    shared = {name: getattr(asked, name) for name in TrainSettings.model_fields if name in type(asked).model_fields}
    placed = {"teacher_placement": "replicated", "optimizer_placement": "device", "teacher": "live"}
    one = {"parallel": "single", "processes": 1, **placed}
    rows = RowsSettings(max_row_tokens=max(asked.lengths) + 1, train_rows=1, validation_rows=1, split_seed=SEED)
    fields = {
        **shared,
        **one,
        "rows": rows,
        "view": EVERY_TOKEN,
        "validation_view": "same",
        "order": OrderSettings(seed=SEED, multiple=1),
        "checkpoint_ranks": 1,
        "seed": SEED,
    }
    return TrainSettings.model_validate({**fields, **changes})


def random_rows(lengths: Sequence[int], vocabulary: int, seed: int = SEED) -> list[Example]:
    """Rows of random tokens, each but the first a label."""
    draws = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths):
        supervised = np.ones(length, dtype=np.bool_)
        supervised[0] = False
        rows.append(Example(number, draws.integers(0, vocabulary, length, dtype=np.int32), supervised))
    return rows


def pair_that_fits(asked: ProveTrainingSettings, resources: Resources, device: torch.device) -> Pair:
    """The pair with as many layers as one process has room for on this device; at least one."""
    usable = int(memory_bytes(device) * USABLE_SHARE[device.type])
    settings = alone(asked)
    for layers in range(min(asked.most_layers, max(asked.student_sizes.layers, asked.teacher_sizes.layers)), 1, -1):
        pair = Pair(sizes_of(asked.student_sizes, layers), sizes_of(asked.teacher_sizes, layers))
        chosen = activations_of(pair, settings, resources, max(asked.lengths), usable)
        if (chosen.recomputed_bytes if chosen.recomputed else chosen.kept_bytes) <= usable:
            return pair
    return Pair(sizes_of(asked.student_sizes, 1), sizes_of(asked.teacher_sizes, 1))


def activations_of(
    pair: Pair, settings: TrainSettings, resources: Resources, positions: int, usable_bytes: int
) -> Activations:
    """Kept or recomputed, where the longest forward pass is a row of so many positions."""
    load = replace(load_of(settings, pair.student, pair.teacher, resources.loss), positions=positions, labels=positions)
    reading = StepReading(1.0, positions, positions, lambda _: 1.0)
    return choose_activations(settings, resources, load, reading, usable_bytes)


def rule_bytes(pair: Pair, settings: TrainSettings, resources: Resources, positions: int) -> int:
    """What the memory rule gives for one forward pass of so many positions.

    resources: with activations kept or recomputed.
    """
    load = load_of(settings, pair.student, pair.teacher, resources.loss)
    recomputed = resources.activation_checkpointing == "on"
    return device_bytes(replace(load, activation_checkpointing=recomputed, positions=positions, labels=positions))


class Steps:
    """Models on a device and the backend that trains one of them."""

    def __init__(
        self,
        pair: Pair,
        settings: TrainSettings,
        resources: Resources,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.pair, self.settings, self.device, self.ranks = pair, settings, device, ranks
        positions = settings.rows.max_row_tokens + settings.pad_to_multiple
        dtype = COMPUTE_DTYPES[settings.compute_dtype]
        model = random_model(pair.teacher, positions, dtype, device, SEED + 1)
        self.teacher: TeacherStates = place_teacher(model, settings.teacher_placement, dtype, ranks, device)
        self.student = random_model(pair.student, positions, torch.float32, device, SEED)
        if settings.lora.rank:
            add_adapters(self.student, settings.lora, settings.seed)
        self.student.train()
        self.recompute(resources.activation_checkpointing == "on")
        self.packed = settings.packing and use_row_attention(self.student) and self.teacher.read_packed_rows()
        most_rows = resources.micro_batch_rows
        self.layers = settle_layers(self.student, self.teacher, settings, self.packed, most_rows, ranks)
        autocast = settings.compute_dtype != "float32" and not lowers_weights(settings)
        distiller = Distiller(self.student, settings.objective, resources.loss, dtype, autocast)
        self._marks: Marks | None = None
        distiller.register_forward_hook(lambda *_: self._mark("forward"))
        self.backend: Backend = make_backend(distiller, settings, ranks, device, None)

    def recompute(self, recomputed: bool) -> None:
        """Have activations computed again in the backward pass from the next step on, or kept."""
        self.recomputed, student = recomputed, cast(Any, self.student)
        if recomputed:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            student.gradient_checkpointing_disable()

    def step(
        self, parts: Sequence[Sequence[Example]], whole: Sequence[Example] | None = None, marks: Marks | None = None
    ) -> tuple[float, float]:
        """One optimiser step of this rank's forward passes: the loss of all ranks, and the gradient's norm.

        whole: the rows of the step, those of the other ranks among them; None = there are no others.
        marks: to be made between the parts of the step; None = none.
        """
        rows = whole or [row for part in parts for row in part]
        self._marks, shares = marks, []
        self._mark("teacher")  # the beginning
        for place, part in enumerate(parts, 1):
            batch = Batch.of(part, self.settings.pad_to_multiple, self.device, self.packed)
            weights = batch.step_weights(self.settings.objective.normalisation, rows)
            states = self.teacher.states(batch)
            self._mark("teacher")
            shares.append(self.backend.accumulate(batch, weights, states, self.teacher.head, place == len(parts)))
            self._mark("backward")
        total = self.ranks.total(torch.stack(shares).sum(0)[:1].cpu()).item()
        norm = self.backend.step(_point(self.settings))
        self._mark("optimizer")
        return total, norm

    def _mark(self, part: str) -> None:
        if self._marks:
            self._marks.mark(part)

    def timed(self, parts: Sequence[Sequence[Example]], steps: int) -> Timed:
        """Time a step in which every rank has passes like these, after some that only warm up."""
        whole = [row for part in parts for row in part] * self.ranks.processes
        return timed(lambda marks: self.step(parts, whole, marks), self.device, WARMING_STEPS, steps)

    def validation_s(self, row: Example) -> float:
        """Seconds of a row whose loss alone is computed, as validations do it."""
        batch = Batch.of([row], self.settings.pad_to_multiple, self.device, self.packed)
        weights = batch.step_weights(self.settings.objective.normalisation, [row])
        self.student.eval()
        try:
            return seconds_of(lambda: self.backend.cross_entropy(batch, weights), self.device)
        finally:
            self.student.train()

    def validation_work(self, row: Example) -> StepWork:
        """What that is, in the terms of the model of time."""
        layers = layers_of_step(self.pair.student.layers, self.layers.student, 0, False)
        return StepWork(forward_flops(self.pair.student, row.input_ids.size), layers / 3, 0.0)

    def work(self, parts: Sequence[Sequence[Example]]) -> StepWork:
        """What such a step is for each rank, in the terms of the model of time."""
        settings, pair, passes = self.settings, self.pair, len(parts)
        flops = distillation_flops(
            pair.student,
            pair.teacher,
            [row.input_ids.size for part in parts for row in part],
            activation_checkpointing=self.recomputed,
            lora=settings.lora,
        )
        trained = trained_parameters(pair.student, settings.lora)
        moved = settings.optimizer_placement == "main_memory"
        updated = trained / (settings.processes if moved or settings.parallel in ("zero2", "zero3") else 1)
        layers = layers_of_step(pair.student.layers, self.layers.student, pair.teacher.layers, self.layers.teacher)
        crossing = crossing_of(settings, pair.student, pair.teacher, passes, recomputed=self.recomputed)
        return StepWork(
            flops=float(flops),
            layer_passes=layers * passes,
            parameters=0.0 if moved else updated,
            link_bytes=crossing_bytes(crossing),
            main_memory_parameters=updated if moved else 0.0,
        )


def _point(settings: TrainSettings) -> CyclePoint:
    """The top of the cycle: a rate that changes weights, as a training's."""
    return CyclePoint(settings.optimizer.max_lr, settings.optimizer.beta1_low)


def small(asked: ProveTrainingSettings) -> ProveTrainingSettings:
    """The same proof of two models of a few thousand weights, whose arithmetic can be looked at in a second.

    Their layers are not compiled, which takes longer than all else; the steps that are timed prove those of real width.
    """
    sizes = ModelSizes(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=128, vocabulary=512, tied=True
    )
    kind = {"qk_norm": asked.student_sizes.qk_norm, "qkv_bias": asked.student_sizes.qkv_bias}
    student = ModelSizes(**{**sizes.model_dump(), **kind})
    changed = {"epochs": 1, "batch_rows": 2, "batch_tokens": 0, "max_lr": SMALL_MAX_LR}
    optimizer = asked.optimizer.model_copy(update=changed)
    changes = {"student_sizes": student, "teacher_sizes": student, "optimizer": optimizer, "lengths": [48]}
    return asked.model_copy(update={**changes, "compile_layers": False})


def as_pair(asked: ProveTrainingSettings) -> Pair:
    """Both models whole."""
    return Pair(sizes_of(asked.student_sizes), sizes_of(asked.teacher_sizes))
