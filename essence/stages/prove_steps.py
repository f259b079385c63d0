"""What a proof times of trainings, in one process and in each of several ranks: steps, a validation, a checkpoint."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from essence.data.truncation import Example
from essence.distill.backends import Backend
from essence.distill.checkpoint import State
from essence.distill.preflight import DeviceRoom
from essence.distill.proof_steps import Steps, random_rows, rule_bytes
from essence.distill.proof_timing import Timed
from essence.distill.ranks import Ranks
from essence.distill.storage import Storage
from essence.progress import StopRequest
from essence.record.proof_records import StepCoefficients, StepParts, StepPoint, ValidationPoint
from essence.record.record_files import Number, Written
from essence.settings import Resources
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.host import CHECKPOINT_BYTES, trained_parameters
from essence.sizes.speeds import ASSUMED, Fit, StepWork, fitted, step_seconds

logger = logging.getLogger(__name__)

TERMS = 3
"""Of the model of time that steps of one process are made of: FLOPs, layers, parameters."""
SPARE_DISK = 2.0
"""A checkpoint is timed where there is room for so many of it: a proof is not to fill a disk."""


class Load(NamedTuple):
    """One kind of step that is timed."""

    parts: list[list[Example]]
    """Rows of its forward passes, one in each."""
    recomputed: bool


class MeasuredStep(Written):
    """One kind of step, and what it took; ranks tell it to the stage."""

    ranks: int
    recomputed: bool
    rows: int
    tokens: int
    """Of each row."""
    work: list[Number]
    """The fields of `StepWork`."""
    seconds: Number
    parts: StepParts
    peak_bytes: int | None
    """None on a CPU, as the next; of several ranks, of the one that has most."""
    reserved_bytes: int | None
    rule_bytes: int

    @property
    def terms(self) -> StepWork:
        return StepWork(*map(float, self.work))


def ranks_here(asked: ProveTrainingSettings, resources: Resources) -> int:
    """Processes of a training that a proof runs on this machine."""
    here = -(-asked.processes // asked.machines)
    return min(here, resources.gpus or here)


def loads_of(lengths: Sequence[int], vocabulary: int, recomputed: bool) -> Iterator[Load]:
    """One row at each length, and two passes of the shortest."""
    for length in lengths:
        yield Load([random_rows([length], vocabulary)], recomputed)
    yield Load([[row] for row in random_rows([min(lengths)] * 2, vocabulary)], recomputed)


def other_form(
    steps: Steps, resources: Resources, lengths: Sequence[int], recomputed: bool, repeats: int, stop: StopRequest
) -> list[MeasuredStep]:
    """With activations in the form that was not chosen, as far as the device has room for it.

    The chosen form has been measured, and all that is needed: where memory runs out here, that is told to the log.
    """
    usable, found = DeviceRoom.of(steps.device, 1).usable, list[MeasuredStep]()
    for load in loads_of(lengths, steps.pair.student.vocabulary, recomputed):
        if _rule(steps, resources, load) > usable:
            continue
        try:
            found.append(_measured(steps, resources, load, repeats, stop))
        except torch.OutOfMemoryError:
            form = "recomputed" if recomputed else "kept"
            logger.warning("steps with %s activations ended at %d tokens: no memory is left", form, _tokens(load))
            break
    return found


def measured_steps(
    steps: Steps, resources: Resources, loads: Sequence[Load], repeats: int, stop: StopRequest
) -> list[MeasuredStep]:
    """Time them; Stopped where a stop was asked for between two."""
    return [_measured(steps, resources, load, repeats, stop) for load in loads]


def _measured(steps: Steps, resources: Resources, load: Load, repeats: int, stop: StopRequest) -> MeasuredStep:
    stop.check()
    steps.recompute(load.recomputed)
    on_gpu = steps.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(steps.device)
    took = steps.timed(load.parts, repeats)
    memory = torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved
    peak, reserved = (max(steps.ranks.all_of(most(steps.device))) for most in memory) if on_gpu else (None, None)
    return MeasuredStep(
        ranks=steps.ranks.processes,
        recomputed=load.recomputed,
        rows=len(load.parts),
        tokens=_tokens(load),
        work=list(steps.work(load.parts)),
        seconds=took.seconds,
        parts=_parts(took),
        peak_bytes=peak,
        reserved_bytes=reserved,
        rule_bytes=_rule(steps, resources, load),
    )


def _tokens(load: Load) -> int:
    """Of each row."""
    return int(load.parts[0][0].input_ids.size)


def _parts(took: Timed) -> StepParts:
    seconds = {f"{name}_s": value for name, value in took.parts.items()}
    return StepParts(**seconds, communication_s=took.communication_s, host_gap_s=took.host_gap_s)


def _rule(steps: Steps, resources: Resources, load: Load) -> int:
    """What the memory rule says of a device in such a step."""
    form = resources.model_copy(update={"activation_checkpointing": "on" if load.recomputed else "off"})
    return rule_bytes(steps.pair, steps.settings, form, max(sum(row.input_ids.size for row in p) for p in load.parts))


def fit_of(alone: Sequence[MeasuredStep]) -> Fit:
    """The coefficients that the steps of one process give together."""
    return fitted([one.terms[:TERMS] for one in alone], [float(one.seconds) for one in alone])


def computed_s(fit: Fit, work: StepWork) -> float:
    """Of a step by the coefficients, without what crosses between ranks and what is updated in main memory."""
    return sum(each * amount for each, amount in zip(fit.coefficients, work[:TERMS], strict=True))


def exposed_byte_s(fit: Fit, together: Sequence[MeasuredStep], update_s: float) -> float:
    """Seconds that a byte which crosses adds to a step of several ranks: by least squares of relative differences.

    update_s: of a parameter in main memory, what crosses to it included.
    """
    weighed = []
    for one in together:
        work, seconds = one.terms, float(one.seconds)
        left = seconds - computed_s(fit, work) - update_s * work.main_memory_parameters
        weighed.append((work.link_bytes / seconds, left / seconds))
    square = sum(size * size for size, _ in weighed)
    return max(0.0, sum(size * left for size, left in weighed) / square) if square else 0.0


def step_points(
    alone: Sequence[MeasuredStep], together: Sequence[MeasuredStep], byte_s: float, update_s: float
) -> tuple[list[StepPoint], StepCoefficients]:
    """The record of all, beside what the fit gives for each."""
    fit, points = fit_of(alone), []
    for one in [*alone, *together]:
        work = one.terms
        own = computed_s(fit, work) + byte_s * work.link_bytes + update_s * work.main_memory_parameters
        points.append(
            StepPoint(
                ranks=one.ranks,
                recomputed=one.recomputed,
                rows=one.rows,
                tokens=one.tokens,
                passes=one.rows,
                flops=work.flops,
                seconds=one.seconds,
                fitted_s=own,
                assumed_s=step_seconds(ASSUMED, work),
                peak_bytes=one.peak_bytes,
                reserved_bytes=one.reserved_bytes,
                rule_bytes=one.rule_bytes,
                parts=one.parts,
            )
        )
    names = ("flop_s", "layer_s", "parameter_s")
    error = max(abs(float(point.fitted_s) / float(point.seconds) - 1.0) for point in points)
    return points, StepCoefficients(**dict(zip(names, fit.coefficients, strict=True)), error=error)


def validation_point(steps: Steps, tokens: int, fit: Fit) -> ValidationPoint:
    """A row of so many tokens, as validations read it."""
    row = random_rows([tokens], steps.pair.student.vocabulary)[0]
    expected = computed_s(fit, steps.validation_work(row))
    return ValidationPoint(rows=1, tokens=tokens, seconds=steps.validation_s(row), fitted_s=expected)


def checkpoint_bytes_per_s(steps: Steps, resources: Resources, folder: Path) -> float | None:
    """Bytes a second of a checkpoint that the backend of these steps writes; None where the disk has too little room.

    All ranks call it; the moments are there after a step. The folder goes again.
    """
    expected = CHECKPOINT_BYTES * trained_parameters(steps.pair.student, steps.settings.lora)
    roomy = shutil.disk_usage(folder.parent).free >= SPARE_DISK * expected
    if not all(steps.ranks.all_of(roomy)):
        return None
    try:
        seconds = _write(folder, resources, steps.ranks, steps.backend)
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        steps.ranks.wait()
        return size / seconds
    finally:
        if steps.ranks.first:
            shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, resources: Resources, ranks: Ranks, backend: Backend) -> float:
    with Storage(folder, resources, ranks) as storage:
        ranks.wait()
        started = time.perf_counter()
        storage.write(State(step=1), backend)
        ranks.wait()
        return time.perf_counter() - started
