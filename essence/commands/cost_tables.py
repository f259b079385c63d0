"""`invoke plan --costs`: time, memory and FLOPs at LSP 0.1 to 1.0 for each pair of an experiment, computed."""

import json
import sys

from rich.console import Console
from rich.table import Table

from essence.commands.options import select
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError
from essence.plan.cost_table import CostRow, as_json, cost_table, finding
from essence.plan.estimate import estimate
from essence.plan.model_sizes import architecture

COLUMNS = (
    "LSP",
    "tokens",
    "FLOPs",
    "time",
    "static GiB",
    "dynamic GiB",
    "memory",
    "dynamic, chunked",
    "memory, chunked",
)


def print_costs(words: Options, as_json_text: bool, console: Console) -> int:
    """Print a table for each pair and data set of the chosen cells; nothing is checked but the input."""
    tables = pair_tables(select(words, baselines=False))
    if as_json_text:
        records = [{"name": name, "rows": as_json(rows), "finding": finding(rows)} for name, rows in tables.items()]
        sys.stdout.write(json.dumps(records, indent=2) + "\n")
        return 0
    for name, rows in tables.items():
        console.print(_table(name, rows))
        console.print(finding(rows) + "\n", highlight=False, soft_wrap=True)
    return 0


def pair_tables(selection: Run) -> dict[str, list[CostRow]]:
    """`dataset/teacher_student` -> its table; ExperimentError where no pair's sizes are known yet."""
    tables: dict[str, list[CostRow]] = {}
    devices = max(2, selection.loaded.experiment.resources.gpus)
    for plan in selection.plan.cells:
        cell = plan.cell
        name = f"{cell.dataset}/{cell.teacher}_{cell.student}"
        student = architecture(cell.student, plan.stages["student"], selection.loaded, selection.run_directory)
        teacher = architecture(cell.teacher, plan.stages.get("teacher"), selection.loaded, selection.run_directory)
        tokens = estimate(plan, selection.loaded, selection.run_directory).row_tokens
        if name not in tables and student and teacher and tokens:
            tables[name] = cost_table(student, teacher, int(tokens), devices)
    if not tables:
        raise ExperimentError(
            f"{selection.name}: the sizes of no pair are known yet: add `architecture` and `mean_row_tokens` to the "
            "pins, or run --only tokenize first"
        )
    return tables


def _table(name: str, rows: list[CostRow]) -> Table:
    title = f"{name}: a row of {rows[-1].tokens:,} tokens at each LSP, computed; ratios against LSP 1.0"
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.lsp:.1f}",
            f"{row.tokens:,}",
            f"{row.flops_ratio:.3f}",
            f"{row.time_ratio:.2f}-{row.time_ratio_exposed:.2f}",
            f"{row.static_gib:.1f}",
            f"{row.dynamic_gib:.1f}",
            f"{row.memory_ratio:.2f}",
            f"{row.chunked_dynamic_gib:.1f}",
            f"{row.chunked_memory_ratio:.2f}",
        )
    return table
