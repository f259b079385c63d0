"""What a cell will cost, before it runs: arithmetic on sizes, with every assumption named here.

After the tokenize stage has run, its counts take the place of the assumed row length.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from essence.data.selection import SectionBounds, validation_view
from essence.files import GIB
from essence.paths import local_files
from essence.plan.cells import resources_of, train_settings
from essence.plan.experiment import Experiment
from essence.plan.fit import machine_load, planned_load
from essence.plan.model_sizes import PROMPT_TOKENS, architecture, mean_row, tokens_read
from essence.plan.stage_plan import CellPlan, PlannedStage
from essence.record.run_directory import RunDirectory
from essence.settings import DownloadSettings, Resources, Source, TrainSettings
from essence.sizes.architecture import (
    Architecture,
    adapter_parameters,
    distillation_flops,
    forward_flops,
)
from essence.sizes.host import main_memory_bytes
from essence.sizes.memory import BYTES, FLOAT32_BYTES, device_bytes

ACHIEVABLE_FLOPS = 790e12
"""Dense bfloat16 FLOP/s that an H100 or H200 reaches in matrix products."""
TRAINING_UTILIZATION = 0.4
"""Share of it that a training step is assumed to reach."""
MEMORY_BANDWIDTH = 3.35e12
"""Bytes/s of an H100; decoding reads every key and value once a token."""
DECODING_EFFICIENCY = 0.65
SAVED_FOLDERS = 2
"""best/ and last/, in the dtype of the computation."""
SCRATCH_BYTES = 3 * 12 + 4
"""A parameter takes 12 in a checkpoint (weight and two moments); two are kept, one is being written; 4 for the best."""

ASSUMPTIONS = (
    f"{ACHIEVABLE_FLOPS / 1e12:.0f} TFLOP/s at {TRAINING_UTILIZATION:.0%} in training; decoding bound by "
    f"{MEMORY_BANDWIDTH / 1e12:.2f} TB/s at {DECODING_EFFICIENCY:.0%}; row length assumed until it is tokenized"
)


@dataclass(frozen=True)
class Estimate:
    """One cell; None = not known yet (a model that has not been made or downloaded)."""

    rows: int
    row_tokens: float | None
    """Mean tokens of a whole row."""
    measured: bool
    """True when `row_tokens` was counted by the tokenize stage."""
    kept_tokens: int | None
    """Tokens read in one epoch."""
    training_flops: float | None
    training_gpu_hours: float | None
    evaluation_gpu_hours: float | None
    gpu_memory_gib: float | None
    """On each device."""
    main_memory_gib: float | None
    """Of one machine."""
    disk_gib: float | None
    """Kept of the training; downloads are shared and counted once."""
    scratch_gib: float | None
    """Taken while it runs."""

    def as_json(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def estimate(plan: CellPlan, loaded: Experiment, run_directory: RunDirectory) -> Estimate:
    """The estimate for one cell."""
    settings = train_settings(plan.cell, loaded.experiment)
    row, measured = mean_row(plan, loaded, run_directory)
    row_tokens = float(row.lengths[0]) if row else None
    student = architecture(plan.cell.student, plan.stages["student"], loaded, run_directory)
    taught = settings.objective.kd_weight > 0.0
    teacher = architecture(plan.cell.teacher, plan.stages["teacher"], loaded, run_directory) if taught else None
    known = student if teacher or not taught else None
    resources = resources_of("train", loaded.experiment, plan.cell)
    kept = tokens_read(row, settings.view) if row else None
    rows = rows_trained(settings, kept)
    flops = _training_flops(settings, known, teacher, kept, row, rows)
    gpus = loaded.experiment.resources.gpus
    return Estimate(
        rows=rows,
        row_tokens=row_tokens,
        measured=measured,
        kept_tokens=kept * rows if kept else None,
        training_flops=flops,
        training_gpu_hours=flops / (ACHIEVABLE_FLOPS * TRAINING_UTILIZATION) / 3600 if flops and gpus else None,
        evaluation_gpu_hours=_evaluation_gpu_hours(plan, student, loaded) if gpus else None,
        gpu_memory_gib=_gpu_memory_gib(settings, known, teacher, resources) if gpus else None,
        main_memory_gib=_main_memory_gib(settings, known, teacher, resources) if gpus else None,
        disk_gib=_saved_bytes(settings, student) / GIB if student else None,
        scratch_gib=SCRATCH_BYTES * _trained(settings, student) / GIB if student else None,
    )


def download_gib(stages: Iterable[PlannedStage], loaded: Experiment, run_directory: RunDirectory) -> float:
    """Disk for the downloads among these stages: the files of a local path, a repository's model in bfloat16.

    Repositories of rows and problems are small beside them, and not counted.
    """
    found = [(stage.id, stage.settings.source) for stage in stages if isinstance(stage.settings, DownloadSettings)]
    return sum(_download_bytes(stage, source, loaded, run_directory) for stage, source in found) / GIB


def _download_bytes(stage: str, source: Source, loaded: Experiment, run_directory: RunDirectory) -> int:
    if source.path:
        return sum(path.stat().st_size for path in local_files(Path(source.path), source.files))
    model = architecture(source.name, stage, loaded, run_directory) if source.kind == "model" else None
    return 2 * model.parameters if model else 0


def rows_trained(settings: TrainSettings, kept: int | None) -> int:
    """Rows trained on; with a token budget, as many as it pays for."""
    rows, budget = settings.rows.train_rows, settings.rows.token_budget
    return min(rows, max(1, budget // kept)) if budget and kept else rows


def _training_flops(
    settings: TrainSettings,
    student: Architecture | None,
    teacher: Architecture | None,
    kept: int | None,
    row: SectionBounds | None,
    rows: int,
) -> float | None:
    """None where a size is not known; without a teacher, of plain fine-tuning."""
    if not (student and kept and row):
        return None
    checkpointing, epochs = settings.activation_checkpointing, settings.optimizer.epochs
    step = distillation_flops(
        student,
        teacher,
        [kept],
        activation_checkpointing=checkpointing,
        teacher_form=settings.teacher,
        lora=settings.lora,
    )
    validation = forward_flops(student, tokens_read(row, validation_view(settings)))
    validations = epochs * settings.validations_per_epoch * settings.rows.validation_rows
    return float(step * epochs * rows + validation * validations)


def _evaluation_gpu_hours(plan: CellPlan, student: Architecture | None, loaded: Experiment) -> float | None:
    """Tokens a second <= bandwidth / (mean context * bytes of keys and values a token)."""
    section = loaded.experiment.evaluation
    problems = [section.problems or loaded.catalogue.benchmarks[e.benchmark].problems for e in plan.evaluations]
    # What bounds vLLM; transformers, one batch after the other on one device, is bound otherwise.
    if student is None or None in problems or section.decoder != "vllm":
        return None
    completions = sum(p for p in problems if p) * section.samples
    cache_bytes = 2 * 2 * student.layers * student.kv_heads * student.head_dim
    context = PROMPT_TOKENS + section.expected_tokens / 2
    tokens_per_s = MEMORY_BANDWIDTH * DECODING_EFFICIENCY / (context * cache_bytes)
    return completions * section.expected_tokens / tokens_per_s / 3600


def _gpu_memory_gib(
    settings: TrainSettings, student: Architecture | None, teacher: Architecture | None, resources: Resources
) -> float | None:
    """The formula of the preflight, for a step whose rows are all as long as is let in, each token a label."""
    return device_bytes(planned_load(settings, student, teacher, resources)[0]) / GIB if student else None


def _main_memory_gib(
    settings: TrainSettings, student: Architecture | None, teacher: Architecture | None, resources: Resources
) -> float | None:
    return main_memory_bytes(machine_load(settings, student, teacher, resources)) / GIB if student else None


def _trained(settings: TrainSettings, student: Architecture) -> int:
    """Parameters that a checkpoint holds: all of the student, or its adapters alone."""
    return adapter_parameters(student, settings.lora) if settings.lora.rank else student.parameters


def _saved_bytes(settings: TrainSettings, student: Architecture) -> int:
    """Of the folders that a training leaves: whole models, and beside them adapters where there are any."""
    adapters = FLOAT32_BYTES * adapter_parameters(student, settings.lora)
    return SAVED_FOLDERS * (BYTES[settings.compute_dtype] * student.parameters + adapters)
