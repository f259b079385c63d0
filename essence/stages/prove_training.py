"""Prove the training side of a machine: time what a training is made of, and check that it is right.

Models have random weights and the widths of the real ones; layers are cut until one process has room. Leaves the
student in `model/`, for the decoding side. A check that fails is a result, not an error: the stage ends, and `invoke
prove` says what failed.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from essence.data.truncation import Example
from essence.distill.devices import COMPUTE_DTYPES, prepare_device
from essence.distill.preflight import DeviceRoom
from essence.distill.proof_checks import (
    Finding,
    disk_finding,
    layers_finding,
    loss_finding,
    loss_seconds,
    memory_finding,
    ranks_finding,
    training_findings,
)
from essence.distill.proof_machine import (
    copy_bytes_per_s,
    host_bytes_per_s,
    launch_s,
    main_memory_parameter_s,
    product_flops_per_s,
    read_s,
    write_s,
)
from essence.distill.proof_steps import (
    SEED,
    Pair,
    Steps,
    activations_of,
    alone,
    pair_that_fits,
    random_rows,
    rule_bytes,
)
from essence.distill.ranks import ALONE
from essence.models.from_sizes import random_model
from essence.models.saving import save_model
from essence.progress import StageContext
from essence.record.facts import processor_name
from essence.record.outcomes import ProveTrainingOutcome
from essence.record.proof_records import (
    CheckRecord,
    LinkPoint,
    ProductPoint,
    ProveTrainingResults,
    StepCoefficients,
    StepPoint,
)
from essence.record.record_files import read_record
from essence.settings import Resources
from essence.settings.proving import ProveTrainingSettings
from essence.sizes.speeds import ASSUMED, Fit, fitted, step_seconds
from essence.stages.launch import REPORTS, run_here
from essence.stages.prove_rank import LINK, MIB, PROGRAM, LinkOutcome, losses_of
from essence.stages.tiny.toy_tokenizer import END_OF_TEXT, write_tokenizer

PARTS = ("machine", "checks", "steps", "ranks", "model")
MODEL_POSITIONS = 1 << 16
"""Of the model that decoding reads."""
PRODUCT_ROWS = 4


def run(asked: ProveTrainingSettings, context: StageContext) -> ProveTrainingOutcome:
    """Measure and check; reads no input.

    Raises:
        MachineError: GPUs are asked for and there are fewer.
        Stopped: asked for between two parts; nothing is kept.
    """
    device = prepare_device(context.resources, 0)
    _next(context, 0)
    write, read = _disk(context.scratch, asked.disk_mib * MIB)
    products = _products(asked, device)
    _next(context, 1)
    findings = [memory_finding(asked, context.resources, device), disk_finding(asked, context.resources, write)]
    findings += [_compilers_folder(context.scratch), loss_finding(asked, context.resources, device)]
    with tempfile.TemporaryDirectory(prefix="prove-", dir=context.scratch) as work:
        findings += training_findings(asked, context.resources, device, Path(work))
    _next(context, 2)
    pair = pair_that_fits(asked, context.resources, device)
    longest, room = max(asked.lengths), DeviceRoom.of(device, 1)
    chosen = activations_of(pair, alone(asked), context.resources, longest, room.usable)
    resources = chosen.resources(context.resources)
    steps = Steps(pair, alone(asked), resources, device)
    points, fit = _steps(asked, steps, resources, context)
    findings += [layers_finding(steps.layers.at_end(ALONE))] if asked.compile_layers else []
    del steps  # the ranks need the device
    _next(context, 3)
    link, found = _ranks(asked, context, device)
    findings += found
    _next(context, 4)
    saved = _save(asked, pair, context, device)
    _next(context, 5)
    return ProveTrainingOutcome(
        results=ProveTrainingResults(
            checks=[CheckRecord(**one._asdict()) for one in findings],
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name() or "a processor",
            devices=context.resources.gpus,
            student_layers=pair.student.layers,
            teacher_layers=pair.teacher.layers,
            recomputed=chosen.recomputed,
            products=products,
            launch_s=launch_s(device),
            memory_bytes_per_s=copy_bytes_per_s(device),
            host_bytes_per_s=host_bytes_per_s(device),
            main_memory_parameter_s=main_memory_parameter_s(asked.optimizer, device),
            disk_write_bytes_per_s=write,
            disk_read_bytes_per_s=read,
            loss_s_per_token=loss_seconds(asked, context.resources, device),
            save_bytes_per_s=saved,
            steps=points,
            coefficients=StepCoefficients(
                **dict(zip(("flop_s", "layer_s", "parameter_s"), fit.coefficients, strict=True)), error=fit.error
            ),
            link=link,
        ),
        seeds={"weights": SEED},
    )


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


def _compilers_folder(folder: Path) -> Finding:
    """Compilers of kernels keep what they make in the stage's own folder, and load it from there."""
    executable = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    told = (
        f"programs in {folder} can be run"
        if executable
        else f"{folder} is mounted noexec, and kernels are compiled there: name another run directory with --runs"
    )
    return Finding("compilers' folder", executable, told)


def _loads(asked: ProveTrainingSettings, vocabulary: int) -> Iterator[list[list[Example]]]:
    """Forward passes of the steps that are timed: one row at each length, and two passes of the shortest."""
    for length in asked.lengths:
        yield [random_rows([length], vocabulary)]
    yield [[row] for row in random_rows([min(asked.lengths)] * 2, vocabulary)]


def _steps(
    asked: ProveTrainingSettings, steps: Steps, resources: Resources, context: StageContext
) -> tuple[list[StepPoint], Fit]:
    """Time them, and what they give together."""
    pair, settings, device, timed = steps.pair, steps.settings, steps.device, []
    for parts in _loads(asked, pair.student.vocabulary):
        context.stop.check()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = steps.seconds(parts, asked.steps)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        timed.append((parts, steps.work(parts), seconds, peak))
    fit = fitted([work[:3] for _, work, _, _ in timed], [seconds for _, _, seconds, _ in timed])
    points = [
        StepPoint(
            rows=len(parts),
            tokens=parts[0][0].input_ids.size,
            passes=len(parts),
            flops=work.flops,
            seconds=seconds,
            fitted_s=sum(one * other for one, other in zip(fit.coefficients, work[:3], strict=True)),
            assumed_s=step_seconds(ASSUMED, work),
            peak_bytes=peak,
            rule_bytes=rule_bytes(pair, settings, resources, parts[0][0].input_ids.size),
        )
        for parts, work, seconds, peak in timed
    ]
    return points, fit


def _ranks(
    asked: ProveTrainingSettings, context: StageContext, device: torch.device
) -> tuple[LinkPoint | None, list[Finding]]:
    """What several processes bring together, and whether they train as one does; nothing where one process trains."""
    here = -(-asked.processes // asked.machines)
    count = min(here, context.resources.gpus or here)
    if count < 2:
        return None, []
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reports = context.scratch / REPORTS
    reports.mkdir(exist_ok=True)
    (reports / LINK).unlink(missing_ok=True)
    codes = run_here(count, 1, context.partial.parent / "spec.json", context.stop, PROGRAM)
    if any(codes.values()):
        context.stop.check()
        told = f"{count} ranks ended with the exit codes {sorted(codes.values())}: the log of this stage says why"
        return None, [Finding("ranks", False, told)]
    outcome = read_record(reports / LINK, LinkOutcome, "a link")
    expected = losses_of(asked, context.resources, device, ALONE, count)
    return outcome.link, [ranks_finding([float(loss) for loss in outcome.losses], expected, asked)]


def _save(asked: ProveTrainingSettings, pair: Pair, context: StageContext, device: torch.device) -> float:
    """Write the student as a training does; bytes a second."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tokenizer, folder = context.scratch / "tokenizer", context.partial / "model"
    write_tokenizer(tokenizer, END_OF_TEXT)
    model = random_model(pair.student, MODEL_POSITIONS, COMPUTE_DTYPES[asked.compute_dtype], device, SEED)
    started = time.perf_counter()
    save_model(model, folder, tokenizer_from=tokenizer)
    seconds = time.perf_counter() - started
    return sum(file.stat().st_size for file in folder.iterdir()) / seconds
