"""What a cell will cost, before it runs: arithmetic on sizes, with every assumption named here.

After the tokenize stage has run, its counts take the place of the assumed row length.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from essence.atomic import read_json
from essence.distill.cost import (
    Architecture,
    distillation_flops,
    forward_flops,
    sharded_static_bytes,
    static_bytes,
)
from essence.errors import InputError, RecordError
from essence.experiment import LoadedExperiment, train_settings
from essence.plan import CellPlan
from essence.settings import TrainSettings
from essence.store import RunDirectory

GIB = 1 << 30
ACHIEVABLE_FLOPS = 790e12
"""Dense bfloat16 FLOP/s that an H100 or H200 reaches in matrix products."""
TRAINING_UTILIZATION = 0.4
"""Share of it that a training step is assumed to reach."""
MEMORY_BANDWIDTH = 3.35e12
"""Bytes/s of an H100; decoding reads every key and value once a token."""
DECODING_EFFICIENCY = 0.65
PROMPT_TOKENS = 200
LOSS_BYTES_PER_LOGIT = 29
"""Peak of the plain loss, forward and backward, in bytes a token and vocabulary entry."""
SAVED_FOLDERS = 2
"""best/ and last/."""
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
    """Whether `row_tokens` was counted by the tokenize stage."""
    kept_tokens: int | None
    """Tokens read in one epoch."""
    training_flops: float | None
    training_gpu_hours: float | None
    evaluation_gpu_hours: float | None
    gpu_memory_gib: float | None
    """On each device."""
    disk_gib: float | None
    """Kept of the training; downloads are shared and counted once."""
    scratch_gib: float | None
    """Taken while it runs."""

    def as_json(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def estimate(plan: CellPlan, loaded: LoadedExperiment, run_directory: RunDirectory) -> Estimate:
    """The estimate for one cell."""
    settings = train_settings(plan.cell, loaded.experiment)
    row_tokens, measured = _row_tokens(plan, loaded, run_directory)
    student = _architecture(plan.cell.student, plan.stages["student"], loaded, run_directory)
    teacher = _architecture(plan.cell.teacher, plan.stages["teacher"], loaded, run_directory)
    kept = max(1, int(row_tokens * plan.cell.lsp)) if row_tokens else None
    flops = _training_flops(settings, student, teacher, kept, row_tokens)
    gpus = loaded.experiment.resources.gpus
    return Estimate(
        rows=settings.rows.train_rows,
        row_tokens=row_tokens,
        measured=measured,
        kept_tokens=kept * settings.rows.train_rows if kept else None,
        training_flops=flops,
        training_gpu_hours=flops / (ACHIEVABLE_FLOPS * TRAINING_UTILIZATION) / 3600 if flops and gpus else None,
        evaluation_gpu_hours=_evaluation_gpu_hours(plan, student, loaded) if gpus else None,
        gpu_memory_gib=_gpu_memory_gib(settings, student, teacher, plan.cell.lsp, gpus) if gpus else None,
        disk_gib=_saved_bytes(settings) * student.parameters / GIB if student else None,
        scratch_gib=SCRATCH_BYTES * student.parameters / GIB if student else None,
    )


def download_gib(plans: list[CellPlan], loaded: LoadedExperiment, run_directory: RunDirectory) -> float:
    """Disk for the models of these cells that are still to come, in bfloat16."""
    names = {
        (name, stage)
        for p in plans
        for name, stage in ((p.cell.student, p.stages["student"]), (p.cell.teacher, p.stages["teacher"]))
    }
    left = [(name, stage) for name, stage in names if not run_directory.stage(stage).done]
    models = [_architecture(name, stage, loaded, run_directory) for name, stage in left]
    return sum(2 * model.parameters for model in models if model) / GIB


def _row_tokens(plan: CellPlan, loaded: LoadedExperiment, run_directory: RunDirectory) -> tuple[float | None, bool]:
    folder = run_directory.stage(plan.stages["tokenize"])
    if folder.done:
        results = read_json(folder.manifest)["results"]
        return results["tokens"] / max(1, results["rows_kept"]), True
    assumed = loaded.catalogue.datasets[plan.cell.dataset].mean_row_tokens
    return (float(assumed) if assumed else None), False


def _architecture(name: str, stage: str, loaded: LoadedExperiment, run_directory: RunDirectory) -> Architecture | None:
    """From the model that is here, from a local folder, or as the catalogue tells."""
    folder, pin = run_directory.stage(stage), loaded.catalogue.models[name]
    try:
        if folder.done:
            return Architecture.from_config(read_json(folder.manifest)["results"]["config"])
        if pin.path and not pin.architecture:
            return Architecture.from_config(read_json(Path(pin.path) / "config.json"))
    except (InputError, RecordError):
        return None
    return pin.architecture


def _training_flops(
    settings: TrainSettings,
    student: Architecture | None,
    teacher: Architecture | None,
    kept: int | None,
    row_tokens: float | None,
) -> float | None:
    if not (student and teacher and kept and row_tokens):
        return None
    checkpointing, epochs = settings.activation_checkpointing, settings.optimizer.epochs
    row = distillation_flops(student, teacher, [kept], activation_checkpointing=checkpointing)
    validation = forward_flops(student, kept if settings.validation_view == "same" else int(row_tokens))
    validations = epochs * settings.validations_per_epoch * settings.rows.validation_rows
    return float(row * epochs * settings.rows.train_rows + validation * validations)


def _evaluation_gpu_hours(plan: CellPlan, student: Architecture | None, loaded: LoadedExperiment) -> float | None:
    """Tokens a second <= bandwidth / (mean context * bytes of keys and values a token)."""
    section = loaded.experiment.evaluation
    problems = [section.problems or loaded.catalogue.benchmarks[e.benchmark].problems for e in plan.evaluations]
    if student is None or None in problems:
        return None
    completions = sum(p for p in problems if p) * section.samples
    cache_bytes = 2 * 2 * student.layers * student.kv_heads * student.head_dim
    context = PROMPT_TOKENS + section.expected_tokens / 2
    tokens_per_s = MEMORY_BANDWIDTH * DECODING_EFFICIENCY / (context * cache_bytes)
    return completions * section.expected_tokens / tokens_per_s / 3600


def _gpu_memory_gib(
    settings: TrainSettings, student: Architecture | None, teacher: Architecture | None, lsp: float, gpus: int
) -> float | None:
    """Static memory and the loss of the longest row that is let in."""
    if not (student and teacher):
        return None
    static = (
        sharded_static_bytes(student, teacher, gpus)
        if gpus > 1
        else static_bytes(student, teacher, settings.compute_dtype)
    )
    longest = int((settings.rows.max_row_tokens - 1) * lsp)
    return (static + LOSS_BYTES_PER_LOGIT * longest * student.vocabulary) / GIB


def _saved_bytes(settings: TrainSettings) -> int:
    """Bytes a parameter of the folders that a training leaves."""
    return SAVED_FOLDERS * (2 if settings.compute_dtype == "bfloat16" else 4)
