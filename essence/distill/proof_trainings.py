"""Short trainings of small models beside each other: resumed, packed, in bfloat16, and on several ranks.

What has a bound is compared with a training that is nobody's fast form: uninterrupted, rows one by one, one process,
float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from essence.data.truncation import Example
from essence.distill.adapters import add_adapters
from essence.distill.devices import COMPUTE_DTYPES
from essence.distill.proof_checks import (
    MOVED_BOUNDS,
    Distance,
    Finding,
    Went,
    compared,
    exact_float32,
    numbers_apart,
)
from essence.distill.proof_steps import SEED, alone, as_pair, random_rows, small
from essence.distill.storage import TrainResult
from essence.distill.teachers import LiveTeacher
from essence.distill.trainer import DivergedError, train
from essence.models.from_sizes import random_model
from essence.progress import Progress, StopRequest
from essence.settings import Resources, TrainSettings
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.memory import Dtype

PACKED_BOUNDS = {"float32": 1e-5, "bfloat16": 2e-3}
"""Largest relative difference of the losses."""
CURVE_BOUND = 2e-2
"""The same of steps in bfloat16 beside those in float32."""
RANKS_BOUNDS = {"float32": 1e-5, "bfloat16": 1e-3}
NORMS_BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
"""Of four processes and one on a CPU, measured 2e-6 and 0.015; a sum where a mean is meant is three times too long."""
SMALL_ROWS = 8
Interrupted = Callable[[ProveTrainingSettings, TrainSettings, Resources, Path], None]
"""Trains in a folder until something ends it on its way; DivergedError where it diverges before."""


class Trained(NamedTuple):
    """A short training."""

    went: Went
    diverged: str = ""
    """What ended it, where loss or gradient was no number any more; then there is nothing to compare."""


def training_findings(
    asked: ProveTrainingSettings, resources: Resources, device: torch.device, work: Path, interrupted: Interrupted
) -> list[Finding]:
    """Resumed as uninterrupted, packed as one by one, bfloat16 as float32: by short trainings of small models."""
    little, dtype = small(asked), asked.compute_dtype
    held = asked.optimizer_placement
    whole = _trained(little, resources, device, work / "whole", packing=False, optimizer_placement=held)
    resumed = _trained(
        little, resources, device, work / "resumed", interrupted, packing=False, optimizer_placement=held
    )
    packed = _trained(little, resources, device, work / "packed", packing=True, optimizer_placement=held)
    other: Dtype = "bfloat16" if dtype == "float32" else "float32"
    second = _trained(little, resources, device, work / other, packing=False, compute_dtype=other)
    exact, lowered = (whole, second) if dtype == "float32" else (second, whole)
    return [
        _compared(
            "resume",
            "a training that was killed and resumed and one that was not",
            (resumed, whole),
            Distance.again(dtype, device),
            "resumed results would be others: report the versions of this machine",
        ),
        _compared(
            "packing",
            "trainings on packed rows and on rows one by one",
            (packed, whole),
            Distance(PACKED_BOUNDS[dtype], MOVED_BOUNDS[dtype]),
            "set packing = false in [training]",
        ),
        _compared(
            "bfloat16",
            "trainings in bfloat16 and in float32",
            (lowered, exact),
            Distance(CURVE_BOUND, MOVED_BOUNDS["bfloat16"]),
            'set compute_dtype = "float32" in [training]',
        ),
    ]


def _compared(name: str, what: str, pair: tuple[Trained, Trained], most: Distance, cure: str) -> Finding:
    """One that diverged is a fault, and is quoted."""
    found, expected = pair
    if diverged := found.diverged or expected.diverged:
        return Finding(name, False, f"{what} cannot be compared, one diverged ({diverged}): {cure}")
    return compared(name, what, (found.went, expected.went), most, cure)


def _trained(
    asked: ProveTrainingSettings,
    resources: Resources,
    device: torch.device,
    work: Path,
    interrupted: Interrupted | None = None,
    **changes: object,
) -> Trained:
    """Train on a few rows of many lengths; with `interrupted` in two attempts, the second from what the first left."""
    settings, rows = alone(asked, **changes), rows_of_short_training(asked)
    progress, stop = Progress(work.parent / "progress.json"), StopRequest()
    try:
        if interrupted:
            interrupted(asked, settings, resources, work)
        result = attempt(asked, settings, resources, device, rows, work, progress, stop)
    except DivergedError as error:
        return Trained(Went([], [], []), error.problem)
    lines = [json.loads(line) for line in result.metrics.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    after, first = load_file(result.last_weights), dict(_student(asked, settings, device).named_parameters())
    return Trained(Went(losses, [first[name].detach().cpu() for name in after], list(after.values())))


def rows_of_short_training(asked: ProveTrainingSettings) -> list[Example]:
    """A few rows of many lengths."""
    return random_rows([asked.lengths[0] - 5 * row for row in range(SMALL_ROWS)], asked.student_sizes.vocabulary)


@exact_float32()
def attempt(
    asked: ProveTrainingSettings,
    settings: TrainSettings,
    resources: Resources,
    device: torch.device,
    rows: list[Example],
    work: Path,
    progress: Progress,
    stop: StopRequest,
) -> TrainResult:
    """The trainer itself, from its newest checkpoint on."""
    dtype = COMPUTE_DTYPES[settings.compute_dtype]
    teacher = LiveTeacher(random_model(as_pair(asked).teacher, _positions(settings), dtype, device, SEED + 1), dtype)
    student = _student(asked, settings, device)
    return train(student, teacher, rows, [], settings, resources, work, progress, stop, device=device)


def _student(asked: ProveTrainingSettings, settings: TrainSettings, device: torch.device) -> nn.Module:
    """As it is before the first step."""
    student = random_model(as_pair(asked).student, _positions(settings), torch.float32, device, SEED)
    if settings.lora.rank:
        add_adapters(student, settings.lora, settings.seed)
    return student


def _positions(settings: TrainSettings) -> int:
    return 2 * settings.rows.max_row_tokens


class Stepped(NamedTuple):
    """What a few steps gave: the losses of all ranks, and the gradients' norms."""

    losses: list[float]
    norms: list[float]


def ranks_finding(found: Stepped, expected: Stepped, asked: ProveTrainingSettings) -> Finding:
    """Steps of several processes beside those of one.

    Norms too: the optimiser makes little of how long a gradient is, and losses are near where it is N times too long.
    """
    losses, norms = (numbers_apart(*both) for both in zip(found, expected, strict=True))
    of_losses, of_norms = RANKS_BOUNDS[asked.compute_dtype], NORMS_BOUNDS[asked.compute_dtype]
    told = f"{asked.parallel} and one process differ by {losses:.1e} in losses, at most {of_losses:.0e} is right, "
    told += f"and by {norms:.1e} in the gradients' norms, at most {of_norms:.0e}"
    passed = losses <= of_losses and norms <= of_norms
    cure = f": set parallel to another backend than {asked.parallel} in [training]"
    return Finding("ranks", passed, told if passed else told + cure)
