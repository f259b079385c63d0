"""Prove the training side of a machine: time what a training is made of, and check that it is right.

Models have random weights and the widths of the real ones; layers are cut until one process has room. Leaves the
student in `model/`, for the decoding side. A check that fails is a result, not an error: the stage ends, and `invoke
prove` says what failed.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from essence.distill.devices import COMPUTE_DTYPES, prepare_device
from essence.distill.proof_checks import (
    Finding,
    disk_finding,
    explained_measuring,
    loss_finding,
    loss_seconds,
    memory_finding,
)
from essence.distill.proof_equalities import attention_finding, repeat_findings
from essence.distill.proof_machine import (
    copy_bytes_per_s,
    give_back,
    host_bytes_per_s,
    launch_s,
    main_memory_parameter_s,
    product_flops_per_s,
    read_s,
    write_s,
)
from essence.distill.proof_steps import SEED, Pair, pair_that_fits
from essence.distill.proof_trainings import Stepped, ranks_finding, training_findings
from essence.distill.ranks import ALONE
from essence.errors import KitError, MachineError
from essence.files import GIB
from essence.models.from_sizes import random_model
from essence.models.saving import save_model
from essence.progress import StageContext
from essence.record.facts import processor_name
from essence.record.outcomes import ProveTrainingOutcome, StageCost
from essence.record.proof_records import CheckRecord, ProductPoint, ProveTrainingResults, StepPoint
from essence.record.record_files import read_record
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.speeds import moved_and_updated_s
from essence.stages import prove_alone
from essence.stages.apart import run_apart
from essence.stages.launch import OUTCOME, fresh_reports, run_here, why_ended
from essence.stages.nccl_log import nccl_channels, nccl_tells
from essence.stages.prove_killed import train_until_killed
from essence.stages.prove_place import place_findings
from essence.stages.prove_rank import MIB, PROGRAM, RanksOutcome, steps_of
from essence.stages.prove_steps import (
    exposed_byte_s,
    fit_of,
    ranks_here,
    step_points,
)
from essence.stages.tiny.toy_tokenizer import END_OF_TEXT, write_tokenizer

PARTS = ("machine", "checks", "steps", "ranks", "model")
MODEL_POSITIONS = 1 << 16
"""Of the model that decoding reads."""
PRODUCT_ROWS = 4
LONGEST_BUG = 300
"""Characters of a bug's text in a line of the command; the log has all."""


@explained_measuring()
def run(asked: ProveTrainingSettings, context: StageContext) -> ProveTrainingOutcome:
    """Measure and check; reads no input.

    Raises:
        MachineError: GPUs are asked for and there are fewer, or one ran out of memory.
        Stopped: asked for between two parts; nothing is kept.
    """
    gpus = context.resources.gpus
    if gpus > (seen := torch.cuda.device_count()):
        raise MachineError(
            f"resources.gpus = {gpus}, but PyTorch {torch.__version__} sees {seen} GPUs here",
            "give the stage as many GPUs, or lower gpus with --gpus",
        )
    device = prepare_device(context.resources, 0)
    _next(context, 0)
    write, read = _disk(context.scratch, asked.disk_mib * MIB)
    products = _products(asked, device)
    _next(context, 1)
    findings = [memory_finding(asked, context.resources, device), disk_finding(asked, context.resources, write)]
    findings += place_findings(context.scratch, context.engine, context.resources)
    findings += [loss_finding(asked, context.resources, device)]
    findings += [attention_finding(asked, device), *repeat_findings(asked, context.resources, device)]
    with tempfile.TemporaryDirectory(prefix="prove-", dir=context.scratch) as work:
        findings += training_findings(asked, context.resources, device, Path(work), train_until_killed)
    _next(context, 2)
    pair = pair_that_fits(asked, context.resources, device)
    give_back(device)
    measured = run_apart(prove_alone.PROGRAM, prove_alone.AloneOutcome, context)
    fit = fit_of(measured.steps)
    _next(context, 3)
    ranks, found = _ranks(asked, context, device)
    findings += found
    _next(context, 4)
    saved = _save(asked, pair, context, device)
    parameter_s, host = main_memory_parameter_s(asked.optimizer, device), host_bytes_per_s(device)
    update_s = moved_and_updated_s(parameter_s, host) if host else parameter_s
    byte_s = exposed_byte_s(fit, ranks.steps, update_s) if ranks else 0.0
    points, coefficients = step_points(measured.steps, ranks.steps if ranks else [], byte_s, update_s)
    _next(context, 5)
    return ProveTrainingOutcome(
        results=ProveTrainingResults(
            checks=[*(CheckRecord(**one._asdict()) for one in findings), *measured.checks],
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name() or "a processor",
            devices=context.resources.gpus,
            student_layers=pair.student.layers,
            teacher_layers=pair.teacher.layers,
            recomputed=measured.recomputed,
            products=products,
            launch_s=launch_s(device),
            memory_bytes_per_s=copy_bytes_per_s(device),
            host_bytes_per_s=host,
            main_memory_parameter_s=parameter_s,
            disk_write_bytes_per_s=write,
            disk_read_bytes_per_s=read,
            loss_s_per_token=loss_seconds(asked, context.resources, device),
            save_bytes_per_s=saved,
            checkpoint_bytes_per_s=ranks.checkpoint_bytes_per_s if ranks else measured.checkpoint_bytes_per_s,
            validation=measured.validation,
            steps=points,
            coefficients=coefficients,
            link=ranks.link.model_copy(update={"exposed_byte_s": byte_s}) if ranks else None,
        ),
        seeds={"weights": SEED},
        cost=StageCost(peak_gpu_memory_gib=_peak_gib(points)),
    )


def _peak_gib(points: Sequence[StepPoint]) -> float | None:
    """The most that a GPU held: the processes that trained on it are not this one. None on a CPU."""
    return max((point.peak_bytes / GIB for point in points if point.peak_bytes), default=None)


def _next(context: StageContext, part: int) -> None:
    """Say which part begins; Stopped where a stop was asked for."""
    context.stop.check()
    context.progress.update("prove", part, len(PARTS), "parts", PARTS[part] if part < len(PARTS) else "")


def _disk(folder: Path, size: int) -> tuple[float, float]:
    """Bytes a second, written and read, of a file in the run directory, which goes again."""
    file = folder / "disk"
    try:
        return size / write_s(file, size), size / read_s(file)
    finally:
        file.unlink(missing_ok=True)


def _products(asked: ProveTrainingSettings, device: torch.device) -> list[ProductPoint]:
    """The student's widest product in a layer, at the lengths that are timed."""
    inner, columns, dtype = (
        asked.student_sizes.hidden,
        asked.student_sizes.intermediate,
        COMPUTE_DTYPES[asked.compute_dtype],
    )
    return [
        ProductPoint(
            rows=rows,
            inner=inner,
            columns=columns,
            flops_per_s=product_flops_per_s(rows, inner, columns, dtype, device),
        )
        for rows in asked.lengths[:PRODUCT_ROWS]
    ]


def _ranks(
    asked: ProveTrainingSettings, context: StageContext, device: torch.device
) -> tuple[RanksOutcome | None, list[Finding]]:
    """What several processes found, and whether they train as one does; nothing where one process trains."""
    count = ranks_here(asked, context.resources)
    if count < 2:
        return None, []
    reports = fresh_reports(context)
    spec, told = context.partial.parent / "spec.json", nccl_tells(reports)
    codes = run_here(count, 1, spec, context.stop, PROGRAM, told)
    if any(codes.values()):
        context.stop.check()
        return None, [Finding("ranks", False, _why(why_ended(codes, count, reports)))]
    outcome = read_record(reports / OUTCOME, RanksOutcome, "an outcome")
    link = outcome.link.model_copy(update={"over": nccl_channels(reports)})
    expected = steps_of(asked, context.resources, device, ALONE, count)
    together = Stepped(*(list(map(float, numbers)) for numbers in (outcome.losses, outcome.norms)))
    found = [ranks_finding(together, expected, asked)]
    return outcome.model_copy(update={"link": link}), found


def _why(ended: Exception) -> str:
    """In one sentence, with what cures it."""
    if isinstance(ended, KitError):
        return f"{ended.problem}: {ended.cure}" if ended.cure else ended.problem
    return f"{' '.join(str(ended).split())[:LONGEST_BUG]}: report it, with the log of this stage"


def _save(asked: ProveTrainingSettings, pair: Pair, context: StageContext, device: torch.device) -> float:
    """Write the student as a training does; bytes a second."""
    give_back(device)
    tokenizer, folder = context.scratch / "tokenizer", context.partial / "model"
    write_tokenizer(tokenizer, END_OF_TEXT)
    model = random_model(pair.student, MODEL_POSITIONS, COMPUTE_DTYPES[asked.compute_dtype], device, SEED)
    started = time.perf_counter()
    save_model(model, folder, tokenizer_from=tokenizer)
    seconds = time.perf_counter() - started
    return sum(file.stat().st_size for file in folder.iterdir()) / seconds
