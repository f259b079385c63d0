"""What a training knows before its first step and when it is finished, and the manifest's words for both.

What is counted here changes no result: rows, tokens and FLOPs are counted in `essence/stages/train.py`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from essence.distill.float32_masters import lowers_weights
from essence.distill.row_split import CellRows
from essence.distill.storage import TrainResult
from essence.record.training_records import (
    ActivationsFacts,
    MicroBatches,
    ParallelRecord,
    ParameterCounts,
    Preflight,
    RolloutFacts,
    TrainExecuted,
    TrainResults,
    Validation,
    VocabularySizes,
)
from essence.settings import Resources, TrainSettings, rollout_tokens
from essence.sizes.architecture import Architecture
from essence.sizes.recomputation import Activations


@dataclass(frozen=True)
class Setup:
    """All that is known before the first step."""

    device: torch.device
    student: Path
    teacher: Path | None
    """None for plain fine-tuning (`kd_weight` 0)."""
    student_sizes: Architecture
    teacher_sizes: Architecture | None
    tokenizer_size: int
    eos_id: int
    """Of the student's tokenizer; -1 where it has none."""
    rows: CellRows
    ends: frozenset[int] = frozenset()
    """Tokens at which a rollout stops; none where rows are read as they are."""


@dataclass(frozen=True)
class Ran:
    """A finished training, and what only its model and its first look could tell."""

    result: TrainResult
    attention: str
    """The implementation that the student ran with."""
    parameters: ParameterCounts
    preflight: Preflight
    activations: Activations


def describe_results(result: TrainResult) -> TrainResults:
    """The manifest's words for what a training came to."""
    return TrainResults(
        steps=result.steps,
        best_step=result.best_step,
        best_validation_ce=result.best_validation_ce,
        lowest_step=result.lowest_step,
        lowest_validation_ce=result.lowest_validation_ce,
        last_loss=result.last_loss,
        validations=[Validation(**asdict(one)) for one in result.validations],
    )


def describe_executed(settings: TrainSettings, resources: Resources, setup: Setup, ran: Ran) -> TrainExecuted:
    """The manifest's words for the settings as they came out."""
    student, teacher = setup.student_sizes, setup.teacher_sizes
    executed = TrainExecuted(
        batch_rows=min(settings.optimizer.batch_rows, len(setup.rows.training.examples)),
        batch_tokens=settings.optimizer.batch_tokens,
        parallel=ParallelRecord(
            backend=settings.parallel,
            processes=settings.processes,
            nodes=resources.nodes,
            teacher=describe_teacher(settings) if setup.teacher else None,
            optimizer=settings.optimizer_placement,
        ),
        attention=ran.attention,
        micro_batches=describe_micro_batches(resources, ran.result),
        optimizer_steps=ran.result.steps,
        dtype=settings.compute_dtype,
        reduce_dtype=settings.reduce_dtype if lowers_weights(settings) else "float32",
        weights=settings.compute_dtype if lowers_weights(settings) else "float32",
        device=setup.device.type,
        eos_id=setup.eos_id,
        vocabulary=VocabularySizes(
            tokenizer=setup.tokenizer_size,
            student=student.vocabulary,
            teacher=teacher.vocabulary if teacher else None,
        ),
        parameters=ran.parameters,
        preflight=ran.preflight,
        activations=ActivationsFacts(**asdict(ran.activations)),
    )
    rollouts = describe_rollouts(settings, setup, ran.result)
    return executed.plus(rollouts=rollouts) if rollouts else executed


def describe_rollouts(settings: TrainSettings, setup: Setup, result: TrainResult) -> RolloutFacts | None:
    """What the student said of its own; None where it read rows as they are."""
    most, sampled = rollout_tokens(settings.view.span), result.sampled
    if most is None or settings.rollouts is None or sampled is None:
        return None
    return RolloutFacts(
        most_tokens=most,
        every_steps=settings.rollouts.every_steps,
        temperature=settings.rollouts.temperature,
        stop_token_ids=sorted(setup.ends),
        rollouts=sampled.rollouts,
        prompt_tokens=sampled.prompt_tokens,
        tokens=sampled.tokens,
        ended=sampled.ended,
        at_cap=sampled.rollouts - sampled.ended,
    )


def describe_teacher(settings: TrainSettings) -> str:
    """Where the teacher was: `replicated`, `sharded`, `offloaded`; or `cached`."""
    return settings.teacher_placement if settings.teacher == "live" else settings.teacher


def describe_micro_batches(resources: Resources, result: TrainResult) -> MicroBatches:
    """How the rows of the steps were shared out among forward passes, and how well they filled them."""
    return MicroBatches(
        packed=result.packed,
        most_rows=None if result.packed else resources.micro_batch_rows,
        most_tokens=resources.micro_batch_tokens,
        passes=result.passes,
        tokens=result.tokens,
        positions=result.positions,
        fill=result.tokens / max(1, result.positions),
    )
