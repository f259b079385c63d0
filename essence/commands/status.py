"""`invoke status`: the state of each cell, from files alone, so also from another terminal or over ssh.

Where stages were queued on a cluster, Slurm is asked too; where none answers, the files have to do.
"""

import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.commands.matrix_state import CellState, MatrixState, StageView, collect, planned, see_queue
from essence.commands.progress_bars import left_words
from essence.engines.slurm.jobs import NEVER_STARTED
from essence.plan.renewal import earlier_work, renewal_lines
from essence.record.plan_record import accepted_sentences
from essence.record.run_directory import RunDirectory, State

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


def print_status(run_directory: RunDirectory, experiment: str, as_json: bool, console: Console) -> int:
    """Print the state of an experiment."""
    state = collect(run_directory, experiment, see_queue(run_directory, experiment))
    stages = planned(run_directory, experiment).stages
    renewed = earlier_work(run_directory, stages)
    if as_json:
        record = {
            **state.as_json(),
            "renewed": [{"kind": stage, **earlier.as_json()} for stage, earlier in renewed],
            "accepted": {name: one.accepted.model_dump() for name, one in stages.items() if one.accepted},
        }
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
        return 0
    table = Table(title=f"{experiment} in {run_directory.root}", title_justify="left", box=None, pad_edge=False)
    for heading in CELL_COLUMNS:
        table.add_column(heading)
    for cell in state.cells:
        table.add_row(*cell_row(cell))
    console.print(table)
    _print_running(state, console)
    for line in [*renewal_lines(renewed), *accepted_sentences(stages.values())]:
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def cell_row(cell: CellState) -> list[Text]:
    """Name and signs of a cell, by `CELL_COLUMNS`."""
    labels = cell.stages
    evaluations = [_sign(state) for label, state in labels.items() if label.startswith(("generate", "grade"))]
    firsts = [_sign(labels[label]) if label in labels else Text() for label in ("tokenize", "train")]
    return [Text(cell.name), *firsts, Text(" ").join(evaluations)]


def _sign(state: State) -> Text:
    return Text(*SIGNS[state])


def _print_running(state: MatrixState, console: Console) -> None:
    def line(sign: State, text: str) -> None:
        console.print(Text.assemble(SIGNS[sign], f" {text}"), soft_wrap=True)

    for stage in state.running:
        at = stage.progress
        part = f"{at.phase} {at.done}/{at.total} {at.unit}" if at else "starting"
        line("running", f"{stage.title}: {part}{left_words(at)}{stage.gpu_words}{stage.job_words}")
    for text in queued_lines(state.queued):
        line("queued", text)
    for stage in state.failed:
        line("failed", f"{stage.title}: {stage.reason}")
        console.print(Text(f"  log: {stage.log}"), soft_wrap=True)
    for stage in state.blocked:
        line("left", f"{stage.title}: {NEVER_STARTED}{stage.job_words}")
    console.print(f"stages: {state.count_words}; {state.who_works}", highlight=False, soft_wrap=True)


def queued_lines(stages: list[StageView], most: int = MOST_QUEUED) -> list[str]:
    """A line for each stage that only waits for the cluster, and how many wait for other stages first."""
    turns = [stage for stage in stages if not (stage.job and stage.job.state.reason == "Dependency")]
    lines = [f"{stage.title}: queued{stage.job_words}" for stage in turns[:most]]
    rest = len(stages) - len(lines)
    if rest and lines:
        lines.append(f"{rest} more queued{' behind those' if len(turns) <= most else ''}")
    elif rest:
        lines.append(f"{rest} queued behind what runs")
    return lines
