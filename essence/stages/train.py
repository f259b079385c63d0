"""Distil a teacher into a student on one view of a tokenised data set.

Writes `best/` (the validation that `essence/distill/checkpoint_choice.py` keeps) and `last/`, both Hugging Face
folders, `metrics.jsonl` and `tensorboard/`. All that can be wrong with the inputs is looked for before the first step.
"""

import os
import resource
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from essence.data.truncation import Examples, fingerprint
from essence.distill import preflight
from essence.distill.adapters import add_adapters, count_parameters, merged, save_adapters, try_adapters
from essence.distill.checkpoint import load_weights
from essence.distill.devices import (
    COMPUTE_DTYPES,
    MFU_FORMULA,
    model_flops_utilization,
    peak_of_device,
    prepare_device,
)
from essence.distill.masters import lowers_weights
from essence.distill.once_loaded import load_once
from essence.distill.order import steps_of_training
from essence.distill.pair import check_pair, load_head, read_decoder, think_token_ids
from essence.distill.parity import CheckedObjective, settle
from essence.distill.ranks import Ranks
from essence.distill.row_split import CellRows, load_cell_rows
from essence.distill.storage import TrainResult
from essence.distill.stored_states import ROWS, StoredPads, StoredRows, check_sealed
from essence.distill.teachers import CachedTeacher, TeacherStates, place_teacher
from essence.distill.trainer import train
from essence.errors import InputError, MachineError
from essence.files import GIB
from essence.models.loading import check_model, load_model, load_tokenizer
from essence.models.saving import save_model
from essence.progress import StageContext, StageOutcome
from essence.settings import LossResources, Resources, TrainSettings
from essence.sizes.architecture import (
    FLOPS_FORMULA,
    Architecture,
    distillation_flops,
    forward_flops,
    static_bytes,
)
from essence.sizes.memory import load_of
from essence.sizes.passes import Step
from essence.stages.launch import check_devices

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """All that is known before the first step."""

    device: torch.device
    student: Path
    teacher: Path | None
    """None for plain fine-tuning (`kd_weight` 0)."""
    student_config: dict[str, Any]
    teacher_config: dict[str, Any] | None
    tokenizer_size: int
    eos_id: int
    """Of the student's tokenizer; -1 where it has none."""
    rows: CellRows


def run(settings: TrainSettings, context: StageContext) -> StageOutcome:
    """Train on the inputs `tokens` (`tokens.arrow`), `student` and `teacher` (their folders `model/`).

    Raises:
        InputError: teacher and student do not fit together, a file is damaged, too few rows, no think tokens.
        MachineError: a GPU is asked for and there is none.
        DivergedError: loss or gradient is no longer finite.
        Stopped: asked for; a checkpoint is in `scratch/`.
    """
    return train_as(Ranks.of(os.environ), settings, context)


def train_as(ranks: Ranks, settings: TrainSettings, context: StageContext) -> StageOutcome:
    """Be one of the processes that train together; each returns the outcome, the first one writes the output."""
    if ranks.processes != settings.processes:
        raise MachineError(f"processes = {settings.processes}, but {ranks.processes} were started (WORLD_SIZE)")
    check_devices(settings, context.resources)
    setup = prepare(settings, context, ranks)
    ranks.join(setup.device)
    objective = settle_objective(settings, context.resources, setup, ranks)
    findings = look_first(settings, context, setup, objective.resources) if ranks.first else {}
    # The teacher first: before it is shared out it lies whole on a device, which has no room for both.
    teacher = load_teacher(setup.teacher, settings, ranks, setup.device) if setup.teacher else None
    student = load_student(setup.student, settings, ranks, setup.device)
    parameters = count_parameters(student)
    result = train(
        student,
        teacher,
        setup.rows.training.examples,
        setup.rows.validation.examples,
        settings,
        context.resources.model_copy(update={"loss": objective.resources}),
        context.scratch / "training",
        context.progress,
        context.stop,
        events=context.scratch / "tensorboard",
        ranks=ranks,
        device=setup.device,
        train_places=setup.rows.training.places,
        validation_places=setup.rows.validation.places,
    )
    if ranks.first:
        write_output(result, context.partial, setup.student, settings)
        write_events(context.scratch / "tensorboard", context.partial / "tensorboard")
    told = outcome(settings, context.resources, setup, result, student.config._attn_implementation)
    told.cost.update(peak_memory(ranks))
    ranks.leave()
    findings["objective"] = objective.as_json()
    return replace(told, executed={**told.executed, "parameters": parameters, "preflight": findings})


def look_first(settings: TrainSettings, context: StageContext, setup: Setup, loss: LossResources) -> dict[str, Any]:
    """What can be known without a model: whether the memory will do, and that the rows are those of before."""
    resources, training = context.resources, setup.rows.training.examples
    teacher = Architecture.from_config(setup.teacher_config) if setup.teacher_config else None
    load = load_of(settings, Architecture.from_config(setup.student_config), teacher, loss)
    multiple = settings.pad_to_multiple
    largest = preflight.largest_pass(
        training, steps_of(settings, setup), settings.processes, settings.packing, multiple, resources
    )
    stored = StoredRows(setup.teacher.parent / ROWS) if setup.teacher and settings.teacher != "live" else None
    return {
        "memory": preflight.check_memory(load, largest, multiple, setup.device),
        "teacher_bytes": stored.check(training, resources.threads) if stored else None,
        "data": preflight.check_data(context.scratch / "training", training, setup.rows.validation.examples),
    }


def steps_of(settings: TrainSettings, setup: Setup) -> list[Step]:
    """The steps of all epochs, as the loop takes them."""
    training = setup.rows.training
    epochs = steps_of_training(training.examples, training.places, settings.optimizer, settings.order)
    return [step for epoch in epochs for step in epoch]


def settle_objective(settings: TrainSettings, resources: Resources, setup: Setup, ranks: Ranks) -> CheckedObjective:
    """The loss as it will run, checked on this rank's device with the heads of these models, which then go again."""
    dtype, objective = COMPUTE_DTYPES[settings.compute_dtype], settings.objective
    student = load_head(setup.student, dtype if lowers_weights(settings) else torch.float32, setup.device)
    teacher = load_head(setup.teacher, dtype, setup.device) if setup.teacher else None
    return settle(student, teacher, dtype, objective, resources.loss, ranks)


def load_teacher(folder: Path, settings: TrainSettings, ranks: Ranks, device: torch.device) -> TeacherStates:
    """The teacher that is computed here, in the dtype of the computation, or what a teacher stage has stored."""
    if settings.teacher == "cached":
        return CachedTeacher(folder.parent, device)
    dtype = COMPUTE_DTYPES[settings.compute_dtype]
    offloaded = settings.teacher_placement == "offloaded"
    model = load_once(folder, dtype, ranks, CPU if offloaded else device)
    return place_teacher(model, settings.teacher_placement, dtype, ranks, device)


def peak_memory(ranks: Ranks) -> dict[str, float]:
    """Of all ranks of a training together in main memory, and of the fullest GPU; empty for one process alone."""
    if ranks.processes == 1:
        return {}
    unit = GIB if sys.platform == "darwin" else GIB / 1024  # bytes there, KiB on Linux
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    on_gpu = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0
    found = ranks.all_of((resident, on_gpu))
    gpu = {"peak_gpu_memory_gib": max(one[1] for one in found)} if torch.cuda.is_available() else {}
    return {"peak_memory_gib": sum(one[0] for one in found), **gpu}


def prepare(settings: TrainSettings, context: StageContext, ranks: Ranks) -> Setup:
    """Look at every input before any model is loaded; errors as in `run`."""
    student = context.inputs["student"] / "model"
    teacher = context.inputs["teacher"] / "model" if settings.objective.kd_weight > 0.0 else None
    check_model(student, context.scratch)
    if settings.lora.rank:
        try_adapters(student, settings.lora, settings.seed, context.scratch)
    if teacher and settings.teacher == "live":
        check_model(teacher, context.scratch)
    tokenizer = load_tokenizer(student)
    think_token_ids(tokenizer, student)
    if teacher:
        check_pair(student, teacher)
    if teacher and settings.teacher != "live":
        check_sealed(teacher.parent)
    eos_id = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    rows = load_cell_rows(context.inputs["tokens"] / "tokens.arrow", settings, eos_id)
    setup = Setup(
        device=prepare_device(context.resources, ranks.local_rank),
        student=student,
        teacher=teacher,
        student_config=read_decoder(student),
        teacher_config=read_decoder(teacher) if teacher else None,
        tokenizer_size=len(tokenizer),
        eos_id=eos_id,
        rows=rows,
    )
    check_token_ids(rows.training, rows.validation, setup.student_config["vocab_size"])
    if teacher and settings.teacher != "live":
        StoredPads(teacher.parent).check(rows.training.examples)
    return setup


def check_token_ids(training: Examples, validation: Examples, vocabulary: int) -> None:
    """InputError when a token has no embedding: the tokens were made with another model's tokenizer."""
    largest = max(
        max(int(example.input_ids.max()), example.pad or 0) for example in (*training.examples, *validation.examples)
    )
    if largest >= vocabulary:
        raise InputError(
            f"tokens.arrow holds token id {largest}, but the student knows {vocabulary}: tokenise with its tokenizer"
        )


def load_student(folder: Path, settings: TrainSettings, ranks: Ranks, device: torch.device) -> Any:
    """The student with float32 masters, or frozen, with adapters to be trained."""
    if not settings.lora.rank:
        return load_once(folder, torch.float32, ranks, device)
    # DeepSpeed brings weights of one dtype together.
    sharded = settings.parallel in ("zero2", "zero3")
    dtype = torch.float32 if sharded else COMPUTE_DTYPES[settings.compute_dtype]
    student = load_once(folder, dtype, ranks, device)
    add_adapters(student, settings.lora, settings.seed)
    return student


def write_output(result: TrainResult, partial: Path, student_folder: Path, settings: TrainSettings) -> None:
    """`last/`, `best/` and `metrics.jsonl`; the student is read again, since an engine may hold it in pieces.

    What was trained in bfloat16 is saved so, since nothing is trained on from here. Adapters are merged into these
    models in float32, and are beside them too, in `last-adapter/` and `best-adapter/`.
    """
    for name, weights in (("last", result.last_weights), ("best", result.best_weights or result.last_weights)):
        student = load_model(student_folder, torch.float32, CPU)
        wrapped = add_adapters(student, settings.lora, settings.seed) if settings.lora.rank else None
        load_weights(student, weights)
        if wrapped is not None:
            save_adapters(wrapped, partial / f"{name}-adapter")
            student = merged(wrapped)
        student.to(COMPUTE_DTYPES[settings.compute_dtype])
        save_model(student, partial / name, tokenizer_from=student_folder)
    shutil.copyfile(result.metrics, partial / "metrics.jsonl")


def write_events(events: Path, folder: Path) -> None:
    """Copy TensorBoard's files, in the order of the attempts, under names without host and process."""
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(events.glob("events.out.tfevents.*"))):
        shutil.copyfile(path, folder / f"events.out.tfevents.{number:04d}")


def describe(part: Examples, epochs: int = 1) -> dict[str, Any]:
    """The manifest's words for some examples; of readings, numbers are those of an epoch, on average."""
    each = epochs if part.places.readings else 1
    return {
        "rows": len({example.row for example in part.examples}) if part.places.readings else len(part.examples),
        "tokens": round(part.tokens / each),
        "supervised_tokens": round(part.supervised_tokens / each),
        "sha256": fingerprint(part.examples),
        "skipped": part.skipped,
        "noted": part.noted,
        "readings": len(part.examples) if part.places.readings else None,
    }


def outcome(
    settings: TrainSettings, resources: Resources, setup: Setup, result: TrainResult, attention: str
) -> StageOutcome:
    """What the manifest is given; `attention` is the implementation that the student ran with."""
    batch_rows = min(settings.optimizer.batch_rows, len(setup.rows.training.examples))
    return StageOutcome(
        results={
            "steps": result.steps,
            "best_step": result.best_step,
            "best_validation_ce": result.best_validation_ce,
            "lowest_step": result.lowest_step,
            "lowest_validation_ce": result.lowest_validation_ce,
            "last_loss": result.last_loss,
            "validations": [asdict(one) for one in result.validations],
        },
        data={
            "train": describe(setup.rows.training, settings.optimizer.epochs),
            "validation": describe(setup.rows.validation),
            "positions": setup.rows.positions.model_dump(mode="json"),
        },
        executed={
            "batch_rows": batch_rows,
            "batch_tokens": settings.optimizer.batch_tokens,
            "parallel": {
                "backend": settings.parallel,
                "processes": settings.processes,
                "nodes": resources.nodes,
                "teacher": describe_teacher(settings) if setup.teacher else None,
            },
            "attention": attention,
            "micro_batches": describe_micro_batches(resources, result),
            "optimizer_steps": result.steps,
            "dtype": settings.compute_dtype,
            "reduce_dtype": settings.reduce_dtype if lowers_weights(settings) else "float32",
            "weights": settings.compute_dtype if lowers_weights(settings) else "float32",
            "device": setup.device.type,
            "eos_id": setup.eos_id,
            "vocabulary": {
                "tokenizer": setup.tokenizer_size,
                "student": setup.student_config["vocab_size"],
                "teacher": setup.teacher_config["vocab_size"] if setup.teacher_config else None,
            },
        },
        cost=count_cost(settings, setup, result),
        seeds={"train": settings.seed, "split": settings.rows.split_seed, "order": settings.order.seed},
    )


def describe_teacher(settings: TrainSettings) -> str:
    """Where the teacher was: `replicated`, `sharded`, `offloaded`; or `cached`."""
    return settings.teacher_placement if settings.teacher == "live" else settings.teacher


def describe_micro_batches(resources: Resources, result: TrainResult) -> dict[str, Any]:
    """How the rows of the steps were shared out among forward passes, and how well they filled them."""
    most_rows = None if result.packed else resources.micro_batch_rows
    return {
        "packed": result.packed,
        "most_rows": most_rows,
        "most_tokens": resources.micro_batch_tokens,
        "passes": result.passes,
        "tokens": result.tokens,
        "positions": result.positions,
        "fill": result.tokens / max(1, result.positions),
    }


def count_cost(settings: TrainSettings, setup: Setup, result: TrainResult) -> dict[str, Any]:
    """Tokens and FLOPs of the whole training, from the lengths of the rows."""
    student = Architecture.from_config(setup.student_config)
    teacher = Architecture.from_config(setup.teacher_config) if setup.teacher_config else None
    training = distillation_flops(
        student,
        teacher,
        lengths_read(settings, setup),
        activation_checkpointing=settings.activation_checkpointing,
        teacher_form=settings.teacher,
        lora=settings.lora,
    )
    validation = sum(forward_flops(student, example.input_ids.size) for example in setup.rows.validation.examples)
    validation_flops = validation * len(result.validations)
    return {
        "tokens": result.tokens,
        "flops": training + validation_flops,
        "flops_formula": FLOPS_FORMULA,
        "training_flops": training,
        "validation_flops": validation_flops,
        "validation_tokens": setup.rows.validation.tokens * len(result.validations),
        "training_s": result.seconds,
        "tokens_per_s": result.tokens / result.seconds if result.seconds else None,
        "energy_j": result.energy_j,
        **describe_utilization(settings, setup, result, student, teacher, settings.processes),
        "static_memory_bytes": static_bytes(student, teacher, settings.compute_dtype, settings.teacher, settings.lora),
    }


def lengths_read(settings: TrainSettings, setup: Setup) -> list[int]:
    """Tokens of every row in the order in which the steps of all epochs read them."""
    examples = setup.rows.training.examples
    return [examples[index].input_ids.size for step in steps_of(settings, setup) for index in step]


def describe_utilization(
    settings: TrainSettings,
    setup: Setup,
    result: TrainResult,
    student: Architecture,
    teacher: Architecture | None,
    devices: int,
) -> dict[str, Any]:
    """MFU of the training steps; null where the device's peak is not known."""
    lengths = lengths_read(settings, setup)
    needed = distillation_flops(
        student, teacher, lengths, activation_checkpointing=False, teacher_form=settings.teacher, lora=settings.lora
    )
    peak = peak_of_device(setup.device)
    used = model_flops_utilization(needed, result.seconds, setup.device, devices)
    return {
        "mfu": used,
        "mfu_formula": MFU_FORMULA,
        "peak_flops": peak.flops if peak else None,
        "peak_flops_source": peak.source if peak else None,
    }
