"""`invoke plan --costs`: time, memory and FLOPs at LSP 0.1 to 1.0 for each pair of an experiment, computed."""

import json
import sys

from rich.console import Console
from rich.table import Table

from essence.commands.options import select
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError
from essence.plan.cost_table import COLUMNS, CostTable, cost_table
from essence.plan.estimate import estimate
from essence.plan.model_sizes import architecture


def print_costs(words: Options, as_json_text: bool, console: Console) -> int:
    """Print a table for each pair and data set of the chosen cells; nothing is checked but the input."""
    tables = pair_tables(select(words, baselines=False))
    if as_json_text:
        records = [{"name": table.name, **table.as_json()} for table in tables]
        sys.stdout.write(json.dumps(records, indent=2) + "\n")
        return 0
    for table in tables:
        console.print(_terminal_table(table))
        console.print(table.finding + "\n", highlight=False, soft_wrap=True)
    return 0


def pair_tables(selection: Run) -> list[CostTable]:
    """A table for each `dataset/teacher_student`; ExperimentError where no pair's sizes are known yet."""
    tables: dict[str, CostTable] = {}
    devices = max(2, selection.loaded.experiment.resources.gpus)
    for plan in selection.plan.cells:
        cell = plan.cell
        name = f"{cell.dataset}/{cell.teacher}_{cell.student}"
        student = architecture(cell.student, plan.stages["student"], selection.loaded, selection.run_directory)
        teacher = architecture(cell.teacher, plan.stages.get("teacher"), selection.loaded, selection.run_directory)
        tokens = estimate(plan, selection.loaded, selection.run_directory).row_tokens
        if name not in tables and student and teacher and tokens:
            tables[name] = cost_table(name, student, teacher, int(tokens), devices)
    if not tables:
        raise ExperimentError(
            f"{selection.name}: the sizes of no pair are known yet: add `architecture` and `mean_row_tokens` to the "
            "pins, or run --only tokenize first"
        )
    return list(tables.values())


def _terminal_table(costs: CostTable) -> Table:
    title = f"{costs.title}, computed; ratios against LSP 1.0"
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in costs.lines:
        table.add_row(*line)
    return table
