"""Steps of a training on random weights and random rows, through the backend of one process: timed, and counted."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from essence.distill.proof_machine import settle
from essence.distill.ranks import ALONE, Ranks
from essence.distill.schedule import CyclePoint
from essence.distill.teachers import LiveTeacher, TeacherStates
from essence.models.from_sizes import random_model
from essence.settings import EVERY_TOKEN, OrderSettings, Resources, RowsSettings, TrainSettings
from essence.settings.proving import ModelSizes, ProveTrainingSettings
from essence.sizes.architecture import Architecture, distillation_flops
from essence.sizes.memory import USABLE_SHARE, device_bytes, load_of
from essence.sizes.recomputation import Activations, StepReading, choose_activations
from essence.sizes.speeds import StepWork, layers_of_step

SEED = 7
WARMING_STEPS = 2


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
        self.teacher: TeacherStates = LiveTeacher(random_model(pair.teacher, positions, dtype, device, SEED + 1), dtype)
        student = random_model(pair.student, positions, torch.float32, device, SEED)
        if settings.lora.rank:
            add_adapters(student, settings.lora, settings.seed)
        student.train()
        self.recomputed = resources.activation_checkpointing == "on"
        if self.recomputed:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self.packed = settings.packing and use_row_attention(student) and self.teacher.read_packed_rows()
        most_rows = resources.micro_batch_rows
        self.layers = settle_layers(student, self.teacher, settings, self.packed, most_rows, ranks)
        autocast = settings.compute_dtype != "float32" and not lowers_weights(settings)
        distiller = Distiller(student, settings.objective, resources.loss, dtype, autocast)
        self.backend: Backend = make_backend(distiller, settings, ranks, device, None)

    def step(self, parts: Sequence[Sequence[Example]], whole: Sequence[Example] | None = None) -> tuple[float, float]:
        """One optimiser step of this rank's forward passes: the loss of all ranks, and the gradient's norm.

        whole: the rows of the step, those of the other ranks among them; None = there are no others.
        """
        rows = whole or [row for part in parts for row in part]
        loss = 0.0
        for place, part in enumerate(parts, 1):
            batch = Batch.of(part, self.settings.pad_to_multiple, self.device, self.packed)
            weights = batch.step_weights(self.settings.objective.normalisation, rows)
            states = self.teacher.states(batch)
            loss += self.backend.accumulate(batch, weights, states, self.teacher.head, place == len(parts))[0].item()
        total = self.ranks.total(torch.tensor([loss])).item()
        return total, self.backend.step(_point(self.settings))

    def seconds(self, parts: Sequence[Sequence[Example]], steps: int) -> float:
        """Median wall time of a step, after some that only warm up."""
        for _ in range(WARMING_STEPS):
            self.step(parts)
        found = []
        for _ in range(steps):
            settle(self.device)
            started = time.perf_counter()
            self.step(parts)
            settle(self.device)
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    def work(self, parts: Sequence[Sequence[Example]]) -> StepWork:
        """What such a step is, in the terms of the model of time."""
        settings = self.settings
        flops = distillation_flops(
            self.pair.student,
            self.pair.teacher,
            [row.input_ids.size for part in parts for row in part],
            activation_checkpointing=self.recomputed,
            lora=settings.lora,
        )
        trained = sum(p.numel() for p in self.backend.student.parameters() if p.requires_grad)
        student, teacher = self.pair.student.layers, self.pair.teacher.layers
        layers = layers_of_step(student, self.layers.student, teacher, self.layers.teacher)
        return StepWork(float(flops), layers * len(parts), float(trained))


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
    optimizer = asked.optimizer.model_copy(update={"epochs": 1, "batch_rows": 2, "batch_tokens": 0})
    changes = {"student_sizes": student, "teacher_sizes": student, "optimizer": optimizer, "lengths": [48]}
    return asked.model_copy(update={**changes, "lora": asked.lora, "compile_layers": False})


def as_pair(asked: ProveTrainingSettings) -> Pair:
    """Both models whole."""
    return Pair(sizes_of(asked.student_sizes), sizes_of(asked.teacher_sizes))
