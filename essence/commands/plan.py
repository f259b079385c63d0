"""`invoke plan`: the matrix as a table, with what is done, what is left and what it will cost."""

import json
import sys

from rich.console import Console
from rich.table import Table

from essence.commands.decide import decision_note
from essence.commands.gold_checks import require_readable_golds
from essence.commands.options import select
from essence.engines.machine import this_machine
from essence.engines.readiness import disk_gib, doctor_command, fitting
from essence.engines.selected_run import Options, Run
from essence.errors import PinError
from essence.plan.baselines import BaselineHours, baselines_gpu_hours
from essence.plan.catalogue import missing
from essence.plan.cells import train_settings
from essence.plan.changed_times import moves_optimizer, with_times
from essence.plan.estimate import (
    ASSUMPTIONS,
    HOST_LINK_ASSUMPTION,
    MAIN_MEMORY_ASSUMPTION,
    Estimate,
    estimate,
)
from essence.plan.fit import Fit, activation_lines, fits_of, planned_room
from essence.plan.measured_lengths import lengths_of
from essence.plan.newest_proof import LOCK, NOT_PROVED, NOT_PROVED_PROCESSOR, newest_proof
from essence.plan.renewal import renewal_lines
from essence.plan.rollout_time import LENGTH_ASSUMED, SPEED_ASSUMED
from essence.plan.stage_plan import CellPlan
from essence.plan.stored_teacher import StoredTeacher, stored_teachers
from essence.record.finished_stages import Earlier
from essence.record.plan_record import accepted_sentences
from essence.report.page.rows import rows_lines
from essence.settings import DownloadSettings, StageName


def print_plan(words: Options, as_json: bool, console: Console) -> int:
    """Print the plan; nothing is checked but the input, nothing is written.

    Raises:
        PinError: a local file that a stage is to take in is not there; the plan is printed all the same.
    """
    selection = select(words, baselines=not words.axes())
    require_readable_golds(selection)
    measured = lengths_of(selection.plan, selection.run_directory)
    loaded, runs = selection.loaded, selection.run_directory
    rows = [(plan, estimate(plan, loaded, runs, measured)) for plan in selection.plan.cells]
    if as_json:
        sys.stdout.write(json.dumps(_as_json(selection, rows), indent=2) + "\n")
    else:
        console.print(_table(selection, rows))
        for line in _notes(selection, rows):
            console.print(line, highlight=False, soft_wrap=True)
    _require_local_sources(selection)
    return 0


def _require_local_sources(selection: Run) -> None:
    sources = [stage.settings.source for stage in selection.left() if isinstance(stage.settings, DownloadSettings)]
    lacking = [error for source in sources if source.path and (error := missing(source))]
    if lacking:
        more = f" (and {len(lacking) - 1} more: {doctor_command(selection)})" if len(lacking) > 1 else ""
        raise PinError(f"{selection.name}: {lacking[0].problem}", f"{lacking[0].cure}{more}")


def _stages(selection: Run, plan: CellPlan) -> tuple[int, int]:
    """(done, all) stages of a cell, shared ones included."""
    own = {*plan.stages.values(), *(s for e in plan.evaluations for s in (e.generate, e.grade))}
    return sum(selection.run_directory.stage(identifier).done for identifier in own), len(own)


def _table(selection: Run, rows: list[tuple[CellPlan, Estimate]]) -> Table:
    shared, labels = split_names([plan.cell.name for plan, _ in rows])
    title = f"{selection.name}: {selection.loaded.experiment.title}" + (f"\n{shared}" if shared else "")
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    table.add_column("cell", overflow="fold")
    fitting_cells = {fit.what: fit.fits for fit in _fits(selection)}
    for heading in ("stages", "rows", "tokens", "train GPU h", "eval GPU h", "GPU GiB", "main GiB", "disk GiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, (plan, cost) in zip(labels, rows, strict=True):
        done, total = _stages(selection, plan)
        tokens = _millions(cost.kept_tokens) + ("" if cost.measured or cost.kept_tokens is None else "~")
        hours = [_number(cost.training_gpu_hours), _number(cost.evaluation_gpu_hours)]
        unfit = "" if fitting_cells.get(f"training {plan.cell.name}", True) else " ✗"
        unfit = f"{' ↻' if cost.recomputed and cost.gpu_memory_gib else ''}{unfit}"
        sizes = [_number(cost.gpu_memory_gib) + unfit, _number(cost.main_memory_gib), _number(cost.disk_gib)]
        table.add_row(label, f"{done}/{total}", f"{cost.rows:,}", tokens, *hours, *sizes)
    return table


def split_names(names: list[str]) -> tuple[str, list[str]]:
    """(what all cell names share, what is left of each): a table of twenty cells need not repeat their data set."""
    parts = [name.split("/") for name in names]
    if len({len(part) for part in parts}) != 1 or len(names) == 1:
        return "", names
    differs = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    shared = "/".join(part for part, other in zip(parts[0], differs, strict=True) if not other)
    labels = ["/".join(p for p, other in zip(part, differs, strict=True) if other) for part in parts]
    return shared, labels


def _notes(selection: Run, rows: list[tuple[CellPlan, Estimate]]) -> list[str]:
    experiment = selection.loaded.experiment
    done = len(selection.wanted) - len(selection.left())
    hours = sum((c.training_gpu_hours or 0) + (c.evaluation_gpu_hours or 0) for _, c in rows)
    stored = _stored(selection)
    hours += sum(one.gpu_hours for one in stored if one.stage)
    baseline_hours = baselines_gpu_hours(selection.plan, selection.run_directory)
    hours += baseline_hours.expected
    baselines = f" and {len(selection.plan.baselines)} untrained models" if selection.plan.baselines else ""
    resources = experiment.resources
    cells = f"{len(rows)} cell{'s' * (len(rows) > 1)}"
    gpus = f"{resources.gpus} GPU{'s' * (resources.gpus > 1)}"
    wants = f"{gpus} of {resources.gpu_memory_gib:.0f} GiB" if resources.gpus else "no GPU"
    lines = [
        f"{cells}{baselines}, {len(selection.wanted)} stages: {done} done, {len(selection.left())} left"
        + (f"; about {hours:.0f} GPU hours in all" if hours else ""),
        f"wants {wants}, about {disk_gib(selection):.1f} GiB of disk; "
        f"this machine has {this_machine(selection.run_directory.root).describe()}",
        f"tokens an epoch{'; ~ = assumed' if any(not c.measured for _, c in rows) else ''}; {_proved(selection)}",
    ]
    lines += _evaluation_lines(selection, [cost for _, cost in rows], baseline_hours)
    lines += _rollout_lines([cost for _, cost in rows])
    fits = _timed_fits(selection)
    lines += [*_fit_lines(selection, fits), *_main_memory_lines(selection, fits), *activation_lines(fits)]
    lines += [one.sentence() for one in stored if resources.gpus or one.stage]
    lines += [*renewal_lines(_renewed(selection)), *_acceptance(selection)]
    lines += decision_note(selection)
    return [*lines, *_rows_lines(selection), *([experiment.note] if experiment.note else [])]


def _proved(selection: Run) -> str:
    """On what the hours rest."""
    gpus = selection.loaded.experiment.resources.gpus
    if proof := newest_proof(selection.run_directory, gpus):
        return proof.sentence(gpus, selection.engine.environment("train").get(LOCK))
    return NOT_PROVED.format(assumptions=ASSUMPTIONS) if gpus else NOT_PROVED_PROCESSOR


def _evaluation_lines(selection: Run, costs: list[Estimate], baselines: BaselineHours) -> list[str]:
    """What evaluations cost at the length that they are estimated with, and at the cap, baselines apart."""
    known = [cost for cost in costs if cost.evaluation_gpu_hours is not None]
    if not known:
        return []
    measured = {cost.completions_measured for cost in known}
    tokens = sum(cost.completion_tokens for cost in known) / len(known)
    how = "as measured" if measured == {True} else "expected" if measured == {False} else "measured where finished"
    here = sum(cost.evaluation_gpu_hours or 0.0 for cost in known)
    most = sum(cost.evaluation_cap_gpu_hours or 0.0 for cost in known)
    cap = selection.loaded.experiment.evaluation.max_new_tokens
    line = (
        f"evaluations at {tokens:,.0f} tokens a completion ({how}): {here:.0f} GPU hours; all at the cap of {cap:,}: "
    )
    line += f"{most:.0f}"
    untrained = f"; untrained models on top: {baselines.expected:.0f}, all at the cap {baselines.cap:.0f}"
    return [line + (untrained if selection.plan.baselines else "")]


def _rollout_lines(costs: list[Estimate]) -> list[str]:
    """What rollouts take, beside what is taught on them; nothing where no student speaks."""
    flops = [cost.rollout_flops for cost in costs if cost.rollout_flops is not None]
    if not flops:
        return []
    hours = [cost.rollout_gpu_hours for cost in costs if cost.rollout_gpu_hours is not None]
    line = f"rollouts of {len(flops)} cells: {sum(flops):.2g} FLOP"
    if not hours:
        return [f"{line} of the above, {LENGTH_ASSUMED}"]
    return [f"{line} and {sum(hours):.1f} GPU hours of the above, {LENGTH_ASSUMED}; {SPEED_ASSUMED}"]


def _fits(selection: Run) -> list[Fit]:
    return fits_of(selection.plan, selection.run_directory, planned_room(selection.loaded))


def _timed_fits(selection: Run) -> list[Fit]:
    return with_times(_fits(selection), selection.plan, selection.run_directory)


def _fit_lines(selection: Run, found: list[Fit]) -> list[str]:
    """What does not fit the machine that `[resources]` describes, and the least change; or that all does."""
    if unfit := [f"does not fit (✗): {fit.sentence()}" for fit in found if not fit.fits]:
        return unfit
    return [fitting(found)] if found and selection.loaded.experiment.resources.gpus else []


def _main_memory_lines(selection: Run, fits: list[Fit]) -> list[str]:
    """On what the hours rest where trainings update in main memory, or would after the least change, unproved.

    Proofs of earlier versions have not measured these updates.
    """
    experiment = selection.loaded.experiment
    moved = any(
        train_settings(plan.cell, experiment).optimizer_placement == "main_memory" for plan in selection.plan.cells
    )
    if not experiment.resources.gpus or not (moved or any(map(moves_optimizer, fits))):
        return []
    proof = newest_proof(selection.run_directory, experiment.resources.gpus)
    results = proof.training.results if proof else None
    if results and results.main_memory_parameter_s:
        return []
    link = "" if results and results.host_bytes_per_s else f" and {HOST_LINK_ASSUMPTION}"
    return [f"not proved: {MAIN_MEMORY_ASSUMPTION}{link}"]


def _renewed(selection: Run) -> list[tuple[StageName, Earlier]]:
    """What is finished in the place of stages that are left."""
    return [(stage.stage, stage.earlier) for stage in selection.left() if stage.earlier]


def _acceptance(selection: Run) -> list[str]:
    """What was accepted, or could be."""
    acceptable = sum(earlier.acceptable for _, earlier in _renewed(selection))
    if acceptable:
        return [f"{acceptable} of them can be taken as they are, and records will say so: add --accept-earlier"]
    return accepted_sentences(stage.entry() for stage in selection.wanted)


def _stored(selection: Run) -> list[StoredTeacher]:
    return stored_teachers(selection.plan.cells, selection.loaded, selection.run_directory)


def _rows_lines(selection: Run) -> list[str]:
    """What became of the rows of each data set that is tokenized already."""
    lines = []
    for stage in selection.wanted:
        if stage.stage == "tokenize" and (found := rows_lines(selection.run_directory.stage(stage.id))):
            lines += [f"{stage.title}: {found[0]}", *found[1:]]
    return lines


def _as_json(selection: Run, rows: list[tuple[CellPlan, Estimate]]) -> dict[str, object]:
    machine = this_machine(selection.run_directory.root)
    return {
        "experiment": selection.name,
        "cells": [
            {
                "name": plan.cell.name,
                "stages_done": _stages(selection, plan)[0],
                "stages": _stages(selection, plan)[1],
                **cost.as_json(),
            }
            for plan, cost in rows
        ],
        "stored_teachers": [one.as_json() for one in _stored(selection)],
        "stages": len(selection.wanted),
        "stages_left": len(selection.left()),
        "renewed": [{"kind": stage, **earlier.as_json()} for stage, earlier in _renewed(selection)],
        "accepted": {s.id: s.earlier.as_json() for s in selection.wanted if s.accepted and s.earlier},
        "fits": [fit.as_json() for fit in _timed_fits(selection)],
        "disk_gib": disk_gib(selection),
        "machine": {
            "gpus": [gpu.model_dump() for gpu in machine.gpus],
            "memory_gib": machine.memory_gib,
            "disk_gib": machine.disk_gib,
        },
        "assumptions": ASSUMPTIONS,
        "proved": _proved(selection),
        "baselines_gpu_hours": baselines_gpu_hours(selection.plan, selection.run_directory)._asdict(),
    }


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2g}"


def _millions(tokens: int | None) -> str:
    if tokens is None:
        return "-"
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:.0f} k"
