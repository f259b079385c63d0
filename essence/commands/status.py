"""`invoke status`: how far each cell is, from files alone, so also from another terminal or over ssh."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from essence.atomic import read_json
from essence.errors import RecordError
from essence.report.words import duration
from essence.store import RunDirectory, State, describe_holder, holder_alive

SIGNS: dict[State, str] = {
    "done": "[green]✓[/green]",
    "running": "[cyan]▶[/cyan]",
    "failed": "[bold red]✗[/bold red]",
    "interrupted": "[yellow]‖[/yellow]",
    "left": "[dim]·[/dim]",
}

CELL_COLUMNS = ("cell", "tokenize", "train", "evaluate")


def collect(run_directory: RunDirectory, experiment: str) -> dict[str, Any]:
    """State of every stage and cell of an experiment; RecordError when it never ran here."""
    file = run_directory.plan(experiment)
    if not file.is_file():
        raise not_run_here(run_directory, experiment)
    plan = read_json(file)
    states = {identifier: run_directory.stage(identifier).state() for identifier in plan["stages"]}
    folder = run_directory.experiment(experiment)
    return {
        "experiment": experiment,
        "held_by": describe_holder(folder) if holder_alive(folder) else None,
        "counts": {state: list(states.values()).count(state) for state in SIGNS},
        "cells": [_cell(entry, states) for entry in plan["cells"] + plan["baselines"]],
        "running": [
            {"stage": i, "title": plan["stages"][i]["title"], **(run_directory.stage(i).progress_record() or {})}
            for i, state in states.items()
            if state == "running"
        ],
        "failed": [_failure(run_directory, plan, i) for i, state in states.items() if state == "failed"],
    }


def not_run_here(run_directory: RunDirectory, experiment: str) -> RecordError:
    """The error for an experiment that has no plan in this run directory."""
    ran = ", ".join(run_directory.experiments()) or "none"
    return RecordError(
        f"{experiment} has not run in {run_directory.root} (ran: {ran}); start it: invoke reproduce {experiment}"
    )


def _cell(entry: dict[str, Any], states: dict[str, State]) -> dict[str, Any]:
    stages = dict(entry.get("stages", {}))
    for evaluation in entry["evaluations"]:
        for stage in ("generate", "grade"):
            stages[f"{stage} {evaluation['benchmark']} {evaluation['checkpoint']}"] = evaluation[stage]
    name = entry.get("name") or f"{entry['role']} {entry['model']} as it comes ({entry['protocol']})"
    return {"name": name, "stages": {label: states[identifier] for label, identifier in stages.items()}}


def _failure(run_directory: RunDirectory, plan: dict[str, Any], identifier: str) -> dict[str, Any]:
    folder = run_directory.stage(identifier)
    title = plan["stages"][identifier]["title"]
    return {"stage": identifier, "title": title, "log": str(folder.log), **read_json(folder.failure)}


def print_status(run_directory: RunDirectory, experiment: str, as_json: bool, console: Console) -> int:
    """Print the state of an experiment."""
    state = collect(run_directory, experiment)
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
    return 0


def cell_row(cell: dict[str, Any]) -> list[str]:
    """Name and signs of a cell, by `CELL_COLUMNS`."""
    labels = cell["stages"]
    evaluations = " ".join(SIGNS[s] for label, s in labels.items() if label.startswith(("generate", "grade")))
    firsts = [SIGNS[labels[label]] if label in labels else "" for label in ("tokenize", "train")]
    return [cell["name"], *firsts, evaluations]


def _print_running(state: dict[str, Any], console: Console) -> None:
    for stage in state["running"]:
        part = f"{stage['phase']} {stage['done']}/{stage['total']} {stage['unit']}" if "phase" in stage else "starting"
        left = f", {duration(stage['seconds_left'])} left" if stage.get("seconds_left") is not None else ""
        console.print(f"[cyan]▶[/cyan] {stage['title']}: {part}{left}", highlight=False)
    for stage in state["failed"]:
        first = str(stage["message"]).strip().splitlines()[-1]
        console.print(f"[bold red]✗[/bold red] {stage['title']}: {first}", highlight=False)
        console.print(f"  log: {stage['log']}", highlight=False, soft_wrap=True)
    counts = ", ".join(f"{number} {name}" for name, number in state["counts"].items() if number)
    console.print(
        f"stages: {counts}; {'held by ' + state['held_by'] if state['held_by'] else 'nothing runs'}",
        highlight=False,
        soft_wrap=True,
    )
