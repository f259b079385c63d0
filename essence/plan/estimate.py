"""What a cell will cost, before it runs: arithmetic on sizes, with every assumption named here.

After the tokenize stage has run, its counts take the place of the assumed row length.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from essence.data.selection import SectionBounds, select, validation_view
from essence.errors import InputError, RecordError
from essence.files import GIB, read_json
from essence.paths import local_files
from essence.plan.cells import train_settings
from essence.plan.experiment import Experiment
from essence.plan.stage_plan import CellPlan, PlannedStage
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import DownloadManifest, RowTokens, TokenizeManifest, read_manifest
from essence.settings import DownloadSettings, Resources, Source, TrainSettings, ViewSettings, first_tokens
from essence.sizes.architecture import (
    Architecture,
    adapter_parameters,
    distillation_flops,
    forward_flops,
)
from essence.sizes.memory import estimate_memory, load_of
from essence.sizes.passes import deal, shape

ACHIEVABLE_FLOPS = 790e12
"""Dense bfloat16 FLOP/s that an H100 or H200 reaches in matrix products."""
TRAINING_UTILIZATION = 0.4
"""Share of it that a training step is assumed to reach."""
MEMORY_BANDWIDTH = 3.35e12
"""Bytes/s of an H100; decoding reads every key and value once a token."""
DECODING_EFFICIENCY = 0.65
PROMPT_TOKENS = 200
SAVED_BYTES = 2 * 4
"""A parameter in best/ and last/, which are float32."""
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
        gpu_memory_gib=_gpu_memory_gib(settings, known, teacher, loaded.experiment.resources) if gpus else None,
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


def tokens_read(row: SectionBounds, view: ViewSettings) -> int:
    """Tokens of one row that a view reads; of a drawn place, those of the middle one."""
    return int(select(row, view).tokens(row.lengths)[0])


def longest_read(settings: TrainSettings) -> int:
    """The most tokens that a view reads of a row: of the longest, which is taken to be all chain of thought.

    Where a row decides how much is read of it, one row may be read whole; `first-k` reads a prompt too.
    """
    longest, view = settings.rows.max_row_tokens - 1, settings.view
    if view.span in ("random-span", "to-first-answer", "schedule"):
        return longest
    prompt = PROMPT_TOKENS if first_tokens(view.span) else 0
    return min(longest, prompt + tokens_read(_row(0, longest, 0), view))


def rows_trained(settings: TrainSettings, kept: int | None) -> int:
    """Rows trained on; with a token budget, as many as it pays for."""
    rows, budget = settings.rows.train_rows, settings.rows.token_budget
    return min(rows, max(1, budget // kept)) if budget and kept else rows


def mean_row(plan: CellPlan, loaded: Experiment, run_directory: RunDirectory) -> tuple[SectionBounds | None, bool]:
    """A row of mean length and mean sections, and whether they were counted; assumed rows are all chain of thought.

    Counts are of all rows, of which the longest are not trained on: the mean is that of rows under the limit, by the
    histogram of their lengths, with sections in equal parts.
    """
    folder = run_directory.stage(plan.stages["tokenize"])
    if folder.done:
        manifest = read_manifest(folder.manifest)
        if isinstance(manifest, TokenizeManifest) and (counted := manifest.results.statistics):
            limit, rows = loaded.experiment.data[plan.cell.dataset].max_row_tokens, max(1, manifest.results.rows_kept)
            mean = sum(counted.section_tokens.values()) / rows
            shorter = _mean_below(counted.row_tokens, limit, mean) / mean / rows if mean else 0.0
            tokens = {name: int(number * shorter) for name, number in counted.section_tokens.items()}
            thought = tokens.get("cot", 0) + tokens.get("unknown", 0)
            answer = int((counted.tokens_to_first_answer or 0) * shorter) - 1
            return _row(tokens.get("prompt", 0), thought, tokens.get("answer", 0), answer), True
    assumed = loaded.catalogue.datasets[plan.cell.dataset].mean_row_tokens
    return (_row(0, assumed, 0) if assumed else None), False


def _mean_below(row_tokens: RowTokens, limit: int, mean: float) -> float:
    """Mean length of the rows shorter than a limit, from bins that count with their middle; `mean` is that of all."""
    if row_tokens.largest is None or row_tokens.largest < limit:
        return mean
    width, weighted, rows = row_tokens.bin_tokens, 0.0, 0.0
    for place, count in enumerate(row_tokens.histogram):
        first = place * width
        inside = count * min(1.0, max(0.0, (limit - first) / width))
        weighted += inside * (first + min(limit, first + width)) / 2
        rows += inside
    return weighted / rows if rows else min(mean, float(limit))


def _row(prompt: int, thought: int, answer: int, stated: int = -1) -> SectionBounds:
    """A row by the tokens of its sections, and by the index at which the final answer is first stated."""
    length = prompt + thought + answer
    return SectionBounds.of(length, prompt, prompt + thought - 1, min(stated, length - 1))


def architecture(name: str, stage: str | None, loaded: Experiment, run_directory: RunDirectory) -> Architecture | None:
    """From the model that `stage` brought in, from a local folder, or as the catalogue says."""
    folder, pin = run_directory.stage(stage) if stage else None, loaded.catalogue.models[name]
    try:
        if folder and folder.done:
            manifest = read_manifest(folder.manifest)
            config = manifest.results.config if isinstance(manifest, DownloadManifest) else None
            return Architecture.from_config(config) if config else None
        if pin.path and not pin.architecture:
            return Architecture.from_config(read_json(Path(pin.path) / "config.json"))
    except (InputError, RecordError):
        return None
    return Architecture(**pin.architecture.model_dump()) if pin.architecture else None


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
    if not student:
        return None
    longest = longest_read(settings)
    optimizer, multiple = settings.optimizer, settings.pad_to_multiple
    rows = max(1, optimizer.batch_tokens // longest) if optimizer.batch_tokens else optimizer.batch_rows
    passes = deal([longest] * rows, settings.processes, settings.packing, multiple, resources)[0]
    largest = max(shape([longest] * rows, part, settings.packing, multiple) for part in passes if part)
    load = load_of(settings, student, teacher, resources.loss)
    return estimate_memory(replace(load, positions=largest.positions, labels=largest.tokens)).total / GIB


def _trained(settings: TrainSettings, student: Architecture) -> int:
    """Parameters that a checkpoint holds: all of the student, or its adapters alone."""
    return adapter_parameters(student, settings.lora) if settings.lora.rank else student.parameters


def _saved_bytes(settings: TrainSettings, student: Architecture) -> int:
    """Of the folders that a training leaves: whole models, and beside them adapters where there are any."""
    return SAVED_BYTES * (student.parameters + adapter_parameters(student, settings.lora))
