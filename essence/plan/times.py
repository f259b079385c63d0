"""How long a training and an evaluation take on paper, with all that they do: the terms of `essence/sizes/speeds.py`.

A training: its steps (of the rank that has the most to read, with a fixed cost a step and a pass), validations,
saving, checkpoints, loading and starting. An evaluation: starting the decoder, and steps that each give the sequences
under way a token; what a token costs grows with the tokens behind it, so the mean square of the lengths counts too.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from essence.data.row_records import RowTokens
from essence.files import GIB
from essence.settings import Resources, TrainSettings
from essence.sizes.architecture import (
    BFLOAT16_BYTES,
    FLOAT32_BYTES,
    Architecture,
    distillation_flops,
    forward_flops,
)
from essence.sizes.host import DECODING_BYTES, trained_parameters
from essence.sizes.memory import BYTES, compiled_models
from essence.sizes.recomputation import crossing_of
from essence.sizes.speeds import (
    Crossing,
    DecodeWork,
    Speeds,
    StepWork,
    cache_bytes,
    crossing_bytes,
    decoding_seconds,
    layers_of_step,
    step_seconds,
)
from essence.sizes.step_rows import deal

START_S = 60.0
"""Assumed of a training before its first step: libraries, ranks that meet, the look at the loss."""
COMPILING_S = 60.0
"""Assumed of the decoder layers, where they are compiled."""
SPREAD_OF_ROWS = 0.45
"""Standard deviation of the lengths of rows over their mean, assumed until they are counted."""
DRAWN_STEPS = 512
"""Of which the mean longest rank is taken."""
LARGEST_ROW = 2.0
"""Of an assumed length, in means: rows are under a limit."""
CHECKPOINT_BYTES = 12
SAVED_FOLDERS = 2
"""best/ and last/, in the dtype of the computation."""


class Lengths(NamedTuple):
    """Tokens of completions."""

    mean: float
    mean_square: float

    @classmethod
    def all_of(cls, tokens: float) -> "Lengths":
        """Every one as long."""
        return cls(tokens, tokens * tokens)


@dataclass(frozen=True)
class TrainingTime:
    """Seconds of one training on all its devices together."""

    steps: int
    step_s: float
    """Of one step."""
    validation_s: float
    saving_s: float
    """Best weights, checkpoints and the folders at the end."""
    start_s: float
    """Until the first step, loading both models included."""

    @property
    def steps_s(self) -> float:
        return self.steps * self.step_s

    @property
    def seconds(self) -> float:
        return self.steps_s + self.validation_s + self.saving_s + self.start_s


@dataclass(frozen=True)
class Trained:
    """What is trained, and on how much."""

    settings: TrainSettings
    resources: Resources
    student: Architecture
    teacher: Architecture | None
    """None for plain fine-tuning."""
    rows: int
    kept: int
    """Tokens read of a mean row."""
    validated: int
    """Tokens read of a mean validation row."""
    longest_rank: float
    """Tokens of the rank that has the most of a step, over the mean rank's."""
    recomputed: bool
    """Activations, in the backward pass."""

    @property
    def step_rows(self) -> int:
        optimizer = self.settings.optimizer
        return max(1, optimizer.batch_tokens // self.kept) if optimizer.batch_tokens else optimizer.batch_rows

    @property
    def live(self) -> Architecture | None:
        """The teacher, where each training computes it."""
        return self.teacher if self.settings.teacher == "live" else None

    @property
    def trained(self) -> int:
        return trained_parameters(self.student, self.settings.lora)


def training_time(of: Trained, speeds: Speeds) -> TrainingTime:
    """The time of a training whose rows are all of the mean length, but for the longest rank of a step."""
    settings = of.settings
    steps = settings.optimizer.epochs * math.ceil(of.rows / of.step_rows)
    validations = settings.optimizer.epochs * settings.validations_per_epoch
    step = step_seconds(speeds, step_work(of))
    validation = validations * speeds.validation_factor * step_seconds(speeds, validation_work(of))
    return TrainingTime(
        steps, step, validation, _saving_s(of, speeds, steps, steps * step, validations), _start_s(of, speeds)
    )


def validation_work(of: Trained) -> StepWork:
    """What each rank does in a validation: forward alone, without a teacher. ZeRO-3 gathers each weight once a pass."""
    settings, passes = of.settings, validation_passes(of)
    layers = layers_of_step(of.student.layers, compiled_models(settings)[0], 0, False)
    weights = BYTES[settings.compute_dtype] * of.student.parameters
    gathered = Crossing(settings.parallel, settings.processes, passes, 0.0, weights, gathers=1)
    return StepWork(
        flops=forward_flops(of.student, of.validated) * settings.rows.validation_rows / settings.processes,
        layer_passes=layers * passes / 3,
        parameters=0.0,
        link_bytes=crossing_bytes(gathered),
    )


def validation_passes(of: Trained) -> int:
    """Forward passes of each rank in a validation; rows of another of `checkpoint_ranks` are dealt out apart."""
    settings, multiple = of.settings, of.settings.pad_to_multiple
    rows, ranks = settings.rows.validation_rows, settings.checkpoint_ranks
    shares = Counter(rows // ranks + (rank < rows % ranks) for rank in range(ranks))
    return sum(
        times * len(deal([of.validated] * own, settings.processes, settings.packing, multiple, of.resources)[0])
        for own, times in shares.items()
        if own
    )


def step_work(of: Trained) -> StepWork:
    """What the rank with the most to read does in a step."""
    settings, processes = of.settings, of.settings.processes
    passes = len(deal([of.kept] * of.step_rows, processes, settings.packing, settings.pad_to_multiple, of.resources)[0])
    flops = distillation_flops(
        of.student,
        of.teacher,
        [of.kept],
        activation_checkpointing=of.recomputed,
        teacher_form=settings.teacher,
        lora=settings.lora,
    )
    student, teacher = compiled_models(settings)
    layers = layers_of_step(of.student.layers, student, of.live.layers if of.live else 0, teacher)
    moved = settings.optimizer_placement == "main_memory"
    shared = processes if moved or settings.parallel in ("zero2", "zero3") else 1
    return StepWork(
        flops=flops * of.step_rows / processes * of.longest_rank,
        layer_passes=layers * passes,
        parameters=0.0 if moved else of.trained / shared,
        link_bytes=crossing_bytes(crossing_of(settings, of.student, of.live, passes, recomputed=of.recomputed)),
        main_memory_parameters=of.trained / shared if moved else 0.0,
    )


def _saving_s(of: Trained, speeds: Speeds, steps: int, steps_s: float, validations: int) -> float:
    """Best weights after each validation at most, checkpoints as often as is asked for, two folders at the end."""
    every = of.resources.checkpoint_every_s
    # One after every step at most, which 0 asks for.
    checkpoints = 1 + (min(steps, int(steps_s / every)) if every else steps)
    saved = FLOAT32_BYTES * (validations + 1) * of.trained
    saved += SAVED_FOLDERS * BYTES[of.settings.compute_dtype] * of.student.parameters
    written = CHECKPOINT_BYTES * checkpoints * of.trained
    return saved / speeds.save_bytes_per_s + written / speeds.checkpoint_bytes_per_s


def _start_s(of: Trained, speeds: Speeds) -> float:
    read = BFLOAT16_BYTES * (of.student.parameters + (of.live.parameters if of.live else 0))
    compiling = COMPILING_S if of.settings.compile_layers else 0.0
    return START_S + compiling + read / speeds.disk_read_bytes_per_s


def longest_rank(counted: RowTokens | None, limit: int, step_rows: int, processes: int) -> float:
    """Tokens of the rank that has the most of a step's rows, over the mean rank's, over many steps.

    counted: lengths of rows, of which those under `limit` are trained on; None = a spread is assumed.
    """
    if processes == 1:
        return 1.0
    draws = np.random.default_rng(0)
    lengths = _drawn(counted, limit, step_rows * DRAWN_STEPS, draws).reshape(DRAWN_STEPS, step_rows)
    shares = np.zeros((DRAWN_STEPS, processes))
    for column in np.sort(lengths, axis=1)[:, ::-1].T:  # as rows are dealt: the longest to who has the least
        shares[np.arange(DRAWN_STEPS), shares.argmin(axis=1)] += column
    return float((shares.max(axis=1) / shares.mean(axis=1)).mean())


def _drawn(
    counted: RowTokens | None, limit: int, number: int, draws: np.random.Generator
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    if counted is None:
        return np.clip(draws.normal(1.0, SPREAD_OF_ROWS, number), 0.1, LARGEST_ROW)
    middles = (np.arange(len(counted.histogram)) + 0.5) * counted.bin_tokens
    weights = np.where(middles < limit, np.asarray(counted.histogram, dtype=np.float64), 0.0)
    if not weights.sum():
        return np.ones(number)
    return draws.choice(middles, number, p=weights / weights.sum())


@dataclass(frozen=True)
class Evaluated:
    """What is decoded, and with what."""

    model: Architecture
    completions: int
    prompt_tokens: int
    batch_sequences: int
    resources: Resources


def evaluation_seconds(of: Evaluated, lengths: Lengths, speeds: Speeds) -> float:
    """Of one evaluation on all the GPUs of its stage, starting the decoder included."""
    width = of.resources.tensor_parallel
    copies = max(1, of.resources.gpus // width)
    context = of.prompt_tokens + lengths.mean_square / (2 * lengths.mean)
    share = math.ceil(of.completions / copies)
    together = max(1, min(of.batch_sequences, share, _room(of, context)))
    work = DecodeWork(of.model.parameters / width, together, together * cache_bytes(of.model, context) / width)
    steps = share * lengths.mean / together
    return speeds.decoder_start_s + steps * decoding_seconds(speeds, work)


def _room(of: Evaluated, context: float) -> int:
    """Sequences of that many tokens whose keys and values a copy's GPUs hold."""
    width = of.resources.tensor_parallel
    held = of.resources.gpu_memory_gib * GIB * of.resources.decoder_memory_share * width
    free = held - BFLOAT16_BYTES * of.model.parameters - DECODING_BYTES * width
    return int(free / cache_bytes(of.model, context)) if free > 0.0 else 1
