"""`invoke status`: how far each cell is, from files alone, so also from another terminal or over ssh.

Where stages were queued on a cluster, Slurm is asked too; where none answers, the files have to do.
"""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.engines.slurm.jobs import NEVER_STARTED, StageJob
from essence.engines.slurm.snapshot import QueueSnapshot, failure_of_job, look_at_scheduler, state_with_job
from essence.errors import RecordError
from essence.files import read_json
from essence.plan.renewal import earlier_work, renewal_lines
from essence.record.finished import accepted_sentences
from essence.record.run_directory import RunDirectory, StageFolder, State, describe_holder, holder_alive
from essence.text import duration

SIGNS: dict[State, tuple[str, str]] = {
    "done": ("✓", "green"),
    "running": ("▶", "cyan"),
    "failed": ("✗", "bold red"),
    "queued": ("◦", "blue"),
    "interrupted": ("‖", "yellow"),
    "left": ("·", "dim"),
}
"""Sign and its style."""

MOST_QUEUED = 10
"""Jobs that are named; of a large matrix hundreds wait."""
CELL_COLUMNS = ("cell", "tokenize", "train", "evaluate")


def collect(run_directory: RunDirectory, experiment: str, view: QueueSnapshot | None = None) -> dict[str, Any]:
    """State of every stage and cell of an experiment; RecordError when it never ran here.

    `view` is what the scheduler was seen to say, None where none has to do with it.
    """
    file = run_directory.plan(experiment)
    if not file.is_file():
        raise not_run_here(run_directory, experiment)
    plan = read_json(file)
    jobs = view.jobs if view else {}
    states = {i: state_with_job(run_directory.stage(i), jobs.get(i)) for i in plan["stages"]}
    folder = run_directory.experiment(experiment)

    def told(state: State) -> list[tuple[str, dict[str, Any]]]:
        return [(i, {"stage": i, "title": plan["stages"][i]["title"]}) for i, s in states.items() if s == state]

    return {
        "experiment": experiment,
        "held_by": describe_holder(folder) if holder_alive(folder) else None,
        "scheduler": view.as_json() if view else None,
        "counts": {state: list(states.values()).count(state) for state in SIGNS},
        "cells": [_cell(entry, states) for entry in plan["cells"] + plan["baselines"]],
        "running": [
            {**about, **(run_directory.stage(i).progress_record() or {}), **_job(jobs.get(i))}
            for i, about in told("running")
        ],
        "queued": [{**about, **_job(jobs.get(i))} for i, about in told("queued")],
        "blocked": [
            {**about, **_job(jobs[i])} for i, about in told("left") if i in jobs and jobs[i].cause == NEVER_STARTED
        ],
        "failed": [{**about, **_failure(run_directory.stage(i), jobs.get(i))} for i, about in told("failed")],
    }


def collect_with_queue(run_directory: RunDirectory, experiment: str) -> dict[str, Any]:
    """As `collect`, after a look at the queue."""
    return collect(run_directory, experiment, see_queue(run_directory, experiment))


def see_queue(run_directory: RunDirectory, experiment: str) -> QueueSnapshot | None:
    """What the scheduler says of an experiment's stages."""
    file = run_directory.plan(experiment)
    stages = read_json(file)["stages"] if file.is_file() else []
    return look_at_scheduler(run_directory, experiment, stages)


def _job(job: StageJob | None) -> dict[str, Any]:
    return {"scheduler_job": job.as_json()} if job else {}


def not_run_here(run_directory: RunDirectory, experiment: str) -> RecordError:
    """The error for an experiment that has no plan in this run directory."""
    ran = ", ".join(run_directory.experiments()) or "none"
    return RecordError(
        f"{experiment} has not run in {run_directory.root} (ran: {ran})", f"start it: invoke reproduce {experiment}"
    )


def _cell(entry: dict[str, Any], states: dict[str, State]) -> dict[str, Any]:
    stages = dict(entry.get("stages", {}))
    for evaluation in entry["evaluations"]:
        for stage in ("generate", "grade"):
            stages[f"{stage} {evaluation['benchmark']} {evaluation['checkpoint']}"] = evaluation[stage]
    name = entry.get("name") or f"{entry['role']} {entry['model']} as it comes ({entry['protocol']})"
    return {"name": name, "stages": {label: states[identifier] for label, identifier in stages.items()}}


def _failure(folder: StageFolder, job: StageJob | None) -> dict[str, Any]:
    why = failure_of_job(folder, job) if job and job.cause else read_json(folder.failure)
    return {"log": str(folder.log), **why}


def print_status(run_directory: RunDirectory, experiment: str, as_json: bool, console: Console) -> int:
    """Print the state of an experiment."""
    state = collect_with_queue(run_directory, experiment)
    planned = read_json(run_directory.plan(experiment))["stages"]
    renewed = earlier_work(run_directory, planned)
    state["renewed"] = [{"kind": stage, **earlier.as_json()} for stage, earlier in renewed]
    state["accepted"] = {name: entry["accepted"] for name, entry in planned.items() if "accepted" in entry}
    if as_json:
        sys.stdout.write(json.dumps(state, indent=2) + "\n")
        return 0
    table = Table(title=f"{experiment} in {run_directory.root}", title_justify="left", box=None, pad_edge=False)
    for heading in CELL_COLUMNS:
        table.add_column(heading)
    for cell in state["cells"]:
        table.add_row(*cell_row(cell))
    console.print(table)
    _print_running(state, console)
    for line in [*renewal_lines(renewed), *accepted_sentences(planned.values())]:
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def cell_row(cell: dict[str, Any]) -> list[Text]:
    """Name and signs of a cell, by `CELL_COLUMNS`."""
    labels = cell["stages"]
    evaluations = [_sign(state) for label, state in labels.items() if label.startswith(("generate", "grade"))]
    firsts = [_sign(labels[label]) if label in labels else Text() for label in ("tokenize", "train")]
    return [Text(cell["name"]), *firsts, Text(" ").join(evaluations)]


def _sign(state: State) -> Text:
    return Text(*SIGNS[state])


def _print_running(state: dict[str, Any], console: Console) -> None:
    def line(sign: State, text: str) -> None:
        console.print(Text.assemble(SIGNS[sign], f" {text}"), soft_wrap=True)

    for stage in state["running"]:
        part = f"{stage['phase']} {stage['done']}/{stage['total']} {stage['unit']}" if "phase" in stage else "starting"
        left = f", {duration(stage['seconds_left'])} left" if stage.get("seconds_left") is not None else ""
        line("running", f"{stage['title']}: {part}{left}{job_words(stage)}")
    for text in queued_lines(state["queued"]):
        line("queued", text)
    for stage in state["failed"]:
        first = str(stage["message"]).strip().splitlines()[-1]
        line("failed", f"{stage['title']}: {first}")
        console.print(Text(f"  log: {stage['log']}"), soft_wrap=True)
    for stage in state["blocked"]:
        line("left", f"{stage['title']}: {NEVER_STARTED}{job_words(stage)}")
    counts = ", ".join(f"{number} {name}" for name, number in state["counts"].items() if number)
    console.print(f"stages: {counts}; {who_works(state)}", highlight=False, soft_wrap=True)


def queued_lines(stages: list[dict[str, Any]], most: int = MOST_QUEUED) -> list[str]:
    """A line for each stage that only waits for the cluster, and how many wait for other stages first."""
    turns = [stage for stage in stages if stage["scheduler_job"]["reason"] != "Dependency"]
    lines = [f"{stage['title']}: queued{job_words(stage)}" for stage in turns[:most]]
    rest = len(stages) - len(lines)
    if rest and lines:
        lines.append(f"{rest} more queued{' behind those' if len(turns) <= most else ''}")
    elif rest:
        lines.append(f"{rest} queued behind what runs")
    return lines


def job_words(stage: dict[str, Any]) -> str:
    """`, job 12 (Priority), queued again 2 times`, for a stage that a scheduler has."""
    job = stage.get("scheduler_job")
    if not job:
        return ""
    reason = f" ({job['reason']})" if job["reason"] and not job["cause"] else ""
    again = f", queued again {job['restarts']} {'time' if job['restarts'] == 1 else 'times'}"
    return f", job {job['job']}{reason}{again if job['restarts'] else ''}"


def who_works(state: dict[str, Any]) -> str:
    """Who holds the run directory, or the state of the queue."""
    if state["held_by"]:
        return f"held by {state['held_by']}"
    if state["scheduler"] and not state["scheduler"]["answers"]:
        return f"shown from files alone, as no scheduler answers: {state['scheduler']['message']}"
    return "Slurm has them" if state["queued"] or (state["scheduler"] and state["running"]) else "nothing runs"
