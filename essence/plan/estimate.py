"""What a cell will cost, before it runs: arithmetic on sizes, with every assumption named here.

After the tokenize stage has run, its counts take the place of the assumed row length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from essence.data.selection import SectionBounds, validation_view
from essence.files import GIB
from essence.paths import local_files
from essence.plan.cells import resources_of, train_settings
from essence.plan.experiment import Experiment
from essence.plan.fit import PlannedLoad, machine_load, planned_load, planned_room
from essence.plan.measured_lengths import measured_lengths
from essence.plan.model_sizes import PROMPT_TOKENS, architecture, mean_row, row_lengths, tokens_read
from essence.plan.newest_proof import speeds_for
from essence.plan.rollout_time import rollouts_of
from essence.plan.stage_plan import CellPlan, PlannedStage
from essence.plan.times import (
    SAVED_FOLDERS,
    Evaluated,
    Lengths,
    Trained,
    evaluation_seconds,
    longest_rank,
    training_time,
)
from essence.record.plan_record import EvaluationEntry
from essence.record.run_directory import RunDirectory
from essence.settings import DownloadSettings, Resources, Source, TrainSettings
from essence.sizes.architecture import (
    Architecture,
    adapter_parameters,
    distillation_flops,
    forward_flops,
)
from essence.sizes.host import main_memory_bytes, trained_parameters
from essence.sizes.memory import BYTES, FLOAT32_BYTES, device_bytes
from essence.sizes.speeds import (
    ACHIEVABLE_FLOPS,
    ASSUMED,
    DECODING_EFFICIENCY,
    MAIN_MEMORY_BANDWIDTH,
    MEMORY_BANDWIDTH,
    TRAINING_UTILIZATION,
    Speeds,
)

SCRATCH_BYTES = 3 * 12 + 4
"""A parameter takes 12 in a checkpoint (weight and two moments); two are kept, one is being written; 4 for the best."""
SECONDS_IN_HOUR = 3600.0

ASSUMPTIONS = (
    f"{ACHIEVABLE_FLOPS / 1e12:.0f} TFLOP/s at {TRAINING_UTILIZATION:.0%} in training; decoding bound by "
    f"{MEMORY_BANDWIDTH / 1e12:.2f} TB/s at {DECODING_EFFICIENCY:.0%}; a link of "
    f"{ASSUMED.link_bytes_per_s / 1e9:.0f} GB/s and a disk that writes {ASSUMED.save_bytes_per_s / 1e9:.0f} GB/s"
)
MAIN_MEMORY_ASSUMPTION = f"updates in main memory at {MAIN_MEMORY_BANDWIDTH / 1e9:.0f} GB/s of it"
HOST_LINK_ASSUMPTION = f"{ASSUMED.host_link_bytes_per_s / 1e9:.0f} GB/s between it and a GPU"
"""Of a machine of which no proof has measured them."""


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
    training_steps: int | None
    training_step_s: float | None
    """Of one step, of the rank that has the most to read."""
    training_steps_gpu_hours: float | None
    """In steps alone."""
    training_gpu_hours: float | None
    """All of it: steps, validations, saving, loading and starting, and rollouts where there are any."""
    rollout_flops: float | None
    """Of a student that learns from its own words, if each rollout has as many tokens as it may; None of the others. A
    part of those of the training, as the next is of its hours."""
    rollout_gpu_hours: float | None
    completion_tokens: float
    """Mean length that evaluations are estimated with: as finished ones measured it, else as the experiment expects."""
    completions_measured: bool
    evaluation_gpu_hours: float | None
    evaluation_cap_gpu_hours: float | None
    """If every completion went on to the cap."""
    gpu_memory_gib: float | None
    """On each device."""
    recomputed: bool | None
    """Activations, in the backward pass; by memory, where the experiment leaves that open."""
    micro_batch_tokens: int | None
    """Most tokens of a pass; less than the experiment has where activations are kept in shorter passes."""
    main_memory_gib: float | None
    """Of one machine."""
    disk_gib: float | None
    """Kept of the training; downloads are shared and counted once."""
    scratch_gib: float | None
    """Taken while it runs."""

    def as_json(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def estimate(
    plan: CellPlan, loaded: Experiment, run_directory: RunDirectory, measured_elsewhere: Lengths | None = None
) -> Estimate:
    """The estimate for one cell.

    measured_elsewhere: lengths of the completions of other cells that are finished, for a cell that has none itself.
    """
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
    planned = planned_load(settings, known, teacher, resources, planned_room(loaded)) if known else None
    flops = _training_flops(settings, planned, kept, row, rows)
    gpus, section = loaded.experiment.resources.gpus, loaded.experiment.evaluation
    speeds = speeds_for(run_directory, gpus)
    trained = trained_of(plan, loaded, run_directory, settings) if gpus else None
    time, devices = training_time(trained, speeds) if trained else None, resources.gpus * resources.nodes
    own = measured_lengths(plan.evaluations, run_directory, section.max_new_tokens) or measured_elsewhere
    lengths = own or Lengths.all_of(section.expected_tokens)
    spoken = rollouts_of(settings, student, row, rows, speeds)
    speaking = spoken.seconds * devices / SECONDS_IN_HOUR if spoken else 0.0
    return Estimate(
        rows=rows,
        row_tokens=row_tokens,
        measured=measured,
        kept_tokens=kept * rows if kept else None,
        training_flops=flops + spoken.flops if flops and spoken else flops,
        training_steps=time.steps if time else None,
        training_step_s=time.step_s if time else None,
        training_steps_gpu_hours=time.steps_s * devices / SECONDS_IN_HOUR if time else None,
        training_gpu_hours=time.seconds * devices / SECONDS_IN_HOUR + speaking if time else None,
        rollout_flops=spoken.flops if spoken else None,
        rollout_gpu_hours=speaking if spoken and gpus else None,
        completion_tokens=lengths.mean,
        completions_measured=own is not None,
        evaluation_gpu_hours=evaluation_gpu_hours(
            plan.evaluations, student, loaded, lengths, speeds, plan.cell.student
        ),
        evaluation_cap_gpu_hours=evaluation_gpu_hours(
            plan.evaluations, student, loaded, Lengths.all_of(section.max_new_tokens), speeds, plan.cell.student
        ),
        gpu_memory_gib=device_bytes(planned.load) / GIB if planned and gpus else None,
        recomputed=planned.activations.recomputed if planned else None,
        micro_batch_tokens=planned.activations.micro_batch_tokens if planned else None,
        main_memory_gib=_main_memory_gib(settings, known, teacher, resources) if gpus else None,
        disk_gib=_saved_bytes(settings, student) / GIB if student else None,
        scratch_gib=SCRATCH_BYTES * trained_parameters(student, settings.lora) / GIB if student else None,
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
    settings: TrainSettings, planned: PlannedLoad | None, kept: int | None, row: SectionBounds | None, rows: int
) -> float | None:
    """None where a size is not known; without a teacher, of plain fine-tuning."""
    if not (planned and kept and row):
        return None
    student, epochs = planned.load.student, settings.optimizer.epochs
    step = distillation_flops(
        student,
        planned.load.teacher,
        [kept],
        activation_checkpointing=planned.activations.recomputed,
        teacher_form=settings.teacher,
        lora=settings.lora,
    )
    validation = forward_flops(student, tokens_read(row, validation_view(settings)))
    validations = epochs * settings.validations_per_epoch * settings.rows.validation_rows
    return float(step * epochs * rows + validation * validations)


def trained_of(
    plan: CellPlan, loaded: Experiment, run_directory: RunDirectory, settings: TrainSettings
) -> Trained | None:
    """What a cell trains under some settings, in the terms of the model of time; None where a size is not known."""
    row, _ = mean_row(plan, loaded, run_directory)
    student = architecture(plan.cell.student, plan.stages["student"], loaded, run_directory)
    taught = settings.objective.kd_weight > 0.0
    teacher = architecture(plan.cell.teacher, plan.stages["teacher"], loaded, run_directory) if taught else None
    if not (row and student and (teacher or not taught)):
        return None
    kept = tokens_read(row, settings.view)
    if not kept:
        return None
    optimizer, limit = settings.optimizer, settings.rows.max_row_tokens
    counted = row_lengths(plan, run_directory)
    step_rows = max(1, optimizer.batch_tokens // kept) if optimizer.batch_tokens else optimizer.batch_rows
    resources = resources_of("train", loaded.experiment, plan.cell)
    chosen = planned_load(settings, student, teacher, resources, planned_room(loaded)).activations
    return Trained(
        settings=settings,
        resources=chosen.resources(resources),
        student=student,
        teacher=teacher,
        rows=rows_trained(settings, kept),
        kept=kept,
        validated=tokens_read(row, validation_view(settings)),
        longest_rank=longest_rank(counted, limit, step_rows, settings.processes),
        recomputed=chosen.recomputed,
    )


def evaluation_gpu_hours(
    evaluations: Sequence[EvaluationEntry],
    model: Architecture | None,
    loaded: Experiment,
    lengths: Lengths,
    speeds: Speeds,
    of: str,
) -> float | None:
    """Of some benchmarks of one model, decoder starts included; None without GPUs, or where a size is not known.

    of: the model by its short name, which `[by_model]` may change the resources of.
    """
    section, resources = loaded.experiment.evaluation, resources_of("generate", loaded.experiment, of)
    problems = [section.problems or loaded.catalogue.benchmarks[one.benchmark].problems for one in evaluations]
    # What bounds vLLM; transformers, one batch after the other on one device, is bound otherwise.
    if model is None or None in problems or section.decoder != "vllm" or not resources.gpus:
        return None
    seconds = sum(
        evaluation_seconds(
            Evaluated(model, number * section.samples, PROMPT_TOKENS, section.batch_sequences, resources),
            lengths,
            speeds,
        )
        for number in problems
        if number
    )
    return seconds * resources.gpus / SECONDS_IN_HOUR


def _main_memory_gib(
    settings: TrainSettings, student: Architecture | None, teacher: Architecture | None, resources: Resources
) -> float | None:
    return main_memory_bytes(machine_load(settings, student, teacher, resources)) / GIB if student else None


def _saved_bytes(settings: TrainSettings, student: Architecture) -> int:
    """Of the folders that a training leaves: whole models, and beside them adapters where there are any."""
    adapters = FLOAT32_BYTES * adapter_parameters(student, settings.lora)
    return SAVED_FOLDERS * (BYTES[settings.compute_dtype] * student.parameters + adapters)
