"""Distil a teacher into a student on one view of a tokenised data set.

Writes `best/` (the validation that `essence/distill/checkpoint_choice.py` keeps) and `last/`, both Hugging Face
folders, `metrics.jsonl` and `tensorboard/`. All that can be wrong with the inputs is looked for before the first step.
"""

import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any, TypedDict

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
from essence.distill.first_rank_loading import load_once
from essence.distill.float32_masters import lowers_weights
from essence.distill.metrics import read_rollouts
from essence.distill.objective_parity import CheckedObjective, settle
from essence.distill.order import steps_of_training
from essence.distill.pair_checks import check_pair, load_head, read_decoder, think_token_ids
from essence.distill.prompts import load_rows
from essence.distill.ranks import Ranks
from essence.distill.rollouts import ends_of_turn
from essence.distill.row_split import EntropiesOf
from essence.distill.storage import TrainResult
from essence.distill.stored_states import ROWS, StoredPads, StoredRows, check_sealed
from essence.distill.teachers import CachedTeacher, TeacherStates, place_teacher
from essence.distill.trainer import train
from essence.errors import InputError, MachineError
from essence.files import GIB
from essence.models.loading import check_model, load_model, load_tokenizer
from essence.models.saving import save_model
from essence.progress import StageContext
from essence.record.outcomes import StageCost, TrainOutcome
from essence.record.training_records import (
    LayersFacts,
    MemoryEstimate,
    ObjectiveFacts,
    ParameterCounts,
    Preflight,
    RowsRecord,
    RowsUnchanged,
    SelectionRecord,
    TrainData,
    TrainMore,
)
from essence.settings import LossResources, Resources, TrainSettings
from essence.sizes.architecture import FLOPS_FORMULA, Architecture, distillation_flops, forward_flops, static_bytes
from essence.sizes.memory import load_of
from essence.sizes.rollout_sizes import ROLLOUT_FORMULA, rollout_flops
from essence.sizes.step_rows import Step
from essence.stages.launch import check_devices
from essence.stages.training_facts import Ran, Setup, describe_executed, describe_results

CPU = torch.device("cpu")


def run(settings: TrainSettings, context: StageContext) -> TrainOutcome:
    """Train on the inputs `tokens` (`tokens.arrow`), `student` and `teacher` (their folders `model/`).

    Raises:
        InputError: teacher and student do not fit together, a file is damaged, too few rows, no think tokens.
        MachineError: a GPU is asked for and there is none, or it has too little memory.
        DivergedError: loss or gradient is no longer finite.
        UncompiledError: layers that all ranks run alike cannot be compiled for a pass; another start compiles none.
        Stopped: asked for; a checkpoint is in `scratch/`.
    """
    return train_as(Ranks.of(os.environ), settings, context)


def train_as(ranks: Ranks, settings: TrainSettings, context: StageContext) -> TrainOutcome:
    """Be one of the processes that train together; each returns the outcome, the first one writes the output."""
    if ranks.processes != settings.processes:
        raise MachineError(f"processes = {settings.processes}, but {ranks.processes} were started (WORLD_SIZE)")
    check_devices(settings, context.resources)
    setup = prepare(settings, context, ranks)
    ranks.join(setup.device)
    with preflight.explained_loading():
        objective = settle_objective(settings, context.resources, setup, ranks)
    looked = Preflight(objective=ObjectiveFacts.model_validate(objective.as_json()))
    # What is chosen by memory is the same on every rank.
    room = min(ranks.all_of(preflight.DeviceRoom.of(setup.device, settings.processes)))
    sized = size_up(settings, context.resources, setup, objective.resources, room)
    resources = sized.activations.resources(context.resources).model_copy(update={"loss": objective.resources})
    if ranks.first:
        sys.stdout.write(f"{sized.activations.sentence}\n")
        sys.stdout.flush()
        context.progress.update("load", 0, 2 if setup.teacher else 1, "models", sized.activations.summary)
        memory = preflight.check_memory(sized, settings.pad_to_multiple, room, setup.device, resources.nodes)
        looked = look_first(settings, context, setup, memory)
        looked = looked.model_copy(update={"objective": ObjectiveFacts.model_validate(objective.as_json())})
    with preflight.explained_loading():
        # The teacher first: before it is shared out it lies whole on a device, which has no room for both.
        teacher = load_teacher(setup.teacher, settings, ranks, setup.device) if setup.teacher else None
        student = load_student(setup.student, settings, ranks, setup.device)
    parameters = ParameterCounts(**count_parameters(student))
    with preflight.explained_memory(sized):
        result = train(
            student,
            teacher,
            setup.rows.training.examples,
            setup.rows.validation.examples,
            settings,
            resources,
            context.scratch / "training",
            context.progress,
            context.stop,
            events=context.scratch / "tensorboard",
            ranks=ranks,
            device=setup.device,
            train_places=setup.rows.training.places,
            validation_places=setup.rows.validation.places,
            ends=setup.ends,
        )
    if ranks.first:
        write_output(result, context.partial, setup.student, settings)
        write_events(context.scratch / "tensorboard", context.partial / "tensorboard")
    looked = looked.model_copy(update={"layers": LayersFacts.model_validate(result.layers.as_json())})
    ran = Ran(result, student.config._attn_implementation, parameters, looked, sized.activations)
    executed = describe_executed(settings, resources, setup, ran)
    cost = count_cost(settings, setup, ran, peak_memory(ranks))
    ranks.leave()
    return TrainOutcome(
        results=describe_results(result),
        data=TrainData(
            train=describe_training(settings, setup, result),
            validation=describe(setup.rows.validation),
            positions=SelectionRecord.model_validate(setup.rows.positions.model_dump(mode="json")),
        ),
        executed=executed,
        cost=cost,
        seeds={"train": settings.seed, "split": settings.rows.split_seed, "order": settings.order.seed},
    )


def size_up(
    settings: TrainSettings, resources: Resources, setup: Setup, loss: LossResources, room: preflight.DeviceRoom
) -> preflight.SizedUp:
    """What a device will hold of this training, and how it holds activations."""
    load = load_of(settings, setup.student_sizes, setup.teacher_sizes, loss)
    steps, training = steps_of(settings, setup), setup.rows.training.examples
    return preflight.size_up(settings, resources, load, training, steps, room.usable, setup.device)


def look_first(settings: TrainSettings, context: StageContext, setup: Setup, memory: dict[str, int]) -> Preflight:
    """What can be known without a model: that the memory will do, and that the rows are those of before."""
    training = setup.rows.training.examples
    stored = StoredRows(setup.teacher.parent / ROWS) if setup.teacher and settings.teacher != "live" else None
    teacher_bytes = stored.check(training, context.resources.threads) if stored else None
    rows = preflight.check_data(context.scratch / "training", training, setup.rows.validation.examples)
    found = MemoryEstimate.model_validate(memory)
    return Preflight(memory=found, teacher_bytes=teacher_bytes, data=RowsUnchanged.model_validate(rows))


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


class Peaks(TypedDict, total=False):
    """Memory of a training of several processes."""

    peak_memory_gib: float
    """All of them together."""
    peak_gpu_memory_gib: float
    """On the fullest GPU; absent without one."""


def peak_memory(ranks: Ranks) -> Peaks:
    """Of all ranks of a training; empty for one process alone, which its caller measures."""
    if ranks.processes == 1:
        return {}
    unit = GIB if sys.platform == "darwin" else GIB / 1024  # bytes there, KiB on Linux
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    on_gpu = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0
    found = ranks.all_of((resident, on_gpu))
    peaks: Peaks = {"peak_memory_gib": sum(one[0] for one in found)}
    return {**peaks, "peak_gpu_memory_gib": max(one[1] for one in found)} if torch.cuda.is_available() else peaks


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
    rows = load_rows(
        context.inputs["tokens"] / "tokens.arrow", settings, eos_id, student, stored_entropies(settings, teacher)
    )
    setup = Setup(
        device=prepare_device(context.resources, ranks.local_rank),
        student=student,
        teacher=teacher,
        student_sizes=Architecture.from_config(read_decoder(student)),
        teacher_sizes=Architecture.from_config(read_decoder(teacher)) if teacher else None,
        tokenizer_size=len(tokenizer),
        eos_id=eos_id,
        rows=rows,
        ends=ends_of_turn(student, tokenizer) if settings.rollouts else frozenset(),
    )
    check_token_ids(rows.training, rows.validation, setup.student_sizes.vocabulary)
    if teacher and settings.teacher != "live":
        StoredPads(teacher.parent).check(rows.training.examples)
    return setup


def stored_entropies(settings: TrainSettings, teacher: Path | None) -> EntropiesOf | None:
    """Where the span `teacher-entropy` looks up how sure the teacher is of each token; None for every other span.

    Raises:
        InputError: the teacher is none that a teacher stage has stored.
    """
    if settings.view.span != "teacher-entropy" or settings.view.lsp == 1.0:
        return None
    if teacher is None or settings.teacher == "live":
        raise InputError(
            f"span 'teacher-entropy' reads what a teacher stage has stored, but teacher = '{settings.teacher}' and "
            f"kd_weight = {settings.objective.kd_weight:g}: use teacher = 'cached'"
        )
    return StoredRows(teacher.parent / ROWS).entropies


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


def describe(part: Examples, epochs: int = 1) -> RowsRecord:
    """The manifest's words for some examples; of readings, numbers are those of an epoch, on average."""
    each = epochs if part.places.readings else 1
    return RowsRecord(
        rows=len({example.row for example in part.examples}) if part.places.readings else len(part.examples),
        tokens=round(part.tokens / each),
        supervised_tokens=round(part.supervised_tokens / each),
        sha256=fingerprint(part.examples),
        skipped=part.skipped,
        noted=part.noted,
        readings=len(part.examples) if part.places.readings else None,
    )


def describe_training(settings: TrainSettings, setup: Setup, result: TrainResult) -> RowsRecord:
    """The manifest's words for the training rows; of rollouts, what an epoch read and taught on average."""
    told, sampled = describe(setup.rows.training, settings.optimizer.epochs), result.sampled
    if sampled is None:
        return told
    epochs, read = settings.optimizer.epochs, sampled.prompt_tokens + sampled.tokens
    return told.plus(tokens=round(read / epochs), supervised_tokens=round(sampled.tokens / epochs))


def count_cost(settings: TrainSettings, setup: Setup, ran: Ran, peaks: Peaks) -> StageCost:
    """Tokens and FLOPs of the whole training, from the lengths of the rows; MFU of its steps."""
    result = ran.result
    student, teacher = setup.student_sizes, setup.teacher_sizes
    training = distillation_flops(
        student,
        teacher,
        lengths_read(settings, setup, result),
        activation_checkpointing=ran.activations.recomputed,
        teacher_form=settings.teacher,
        lora=settings.lora,
    )
    validation = sum(forward_flops(student, example.input_ids.size) for example in setup.rows.validation.examples)
    validation_flops = validation * len(result.validations)
    peak = peak_of_device(setup.device)
    more = TrainMore(
        training_flops=training,
        validation_flops=validation_flops,
        validation_tokens=setup.rows.validation.tokens * len(result.validations),
        training_s=result.seconds,
        tokens_per_s=result.tokens / result.seconds if result.seconds else None,
        mfu=utilization(settings, setup, result),
        mfu_formula=MFU_FORMULA,
        peak_flops=peak.flops if peak else None,
        peak_flops_source=peak.source if peak else None,
        static_memory_bytes=static_bytes(student, teacher, settings.compute_dtype, settings.teacher, settings.lora),
    )
    spoken = 0
    if result.sampled:
        spoken = sum(rollout_flops(student, *one) for one in read_rollouts(result.metrics))
        hours = result.sampled.seconds / 3600 if setup.device.type == "cuda" else None
        more = more.plus(rollout_flops=spoken, rollout_s=result.sampled.seconds, rollout_gpu_hours=hours)
    return StageCost(
        tokens=result.tokens,
        flops=training + validation_flops + spoken,
        flops_formula=f"{FLOPS_FORMULA}; {ROLLOUT_FORMULA}" if result.sampled else FLOPS_FORMULA,
        energy_j=result.energy_j,
        more=more,
        **peaks,
    )


def lengths_read(settings: TrainSettings, setup: Setup, result: TrainResult) -> list[int]:
    """Tokens of every row in the order in which the steps of all epochs read them."""
    if result.sampled:
        return [prompt + tokens for prompt, tokens in read_rollouts(result.metrics)]
    examples = setup.rows.training.examples
    return [examples[index].input_ids.size for step in steps_of(settings, setup) for index in step]


def utilization(settings: TrainSettings, setup: Setup, result: TrainResult) -> float | None:
    """MFU of the training steps; None where the device's peak is not known."""
    needed = distillation_flops(
        setup.student_sizes,
        setup.teacher_sizes,
        lengths_read(settings, setup, result),
        activation_checkpointing=False,
        teacher_form=settings.teacher,
        lora=settings.lora,
    )
    return model_flops_utilization(needed, result.seconds, setup.device, settings.processes)
