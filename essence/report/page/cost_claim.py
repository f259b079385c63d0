"""The paper's claim on cost, one table per pair: time, memory and FLOPs at LSP 0.1 to 1.0, computed from model sizes.

What a run measured stands in the tables of its groups; this says what the claim rests on, for the sizes of this run and
for a loss that holds all logits beside one that never does. `essence/plan/cost_table.py` states every assumption.
"""

from dataclasses import dataclass
from typing import Any

from essence import text
from essence.errors import InputError
from essence.plan.cost_table import CostRow, cost_table, finding
from essence.report.results.records import CellResult, Results
from essence.report.results.stage_reader import StageEvidence
from essence.sizes.architecture import Architecture

DEVICES = 4
"""GPUs of the paper's trainings."""
CLAIM_COLUMNS = (
    "LSP", "Tokens", "FLOPs", "Time", "Static GiB", "Dynamic GiB", "Memory", "Dynamic GiB, chunked", "Memory, chunked",
)  # fmt: skip


@dataclass(frozen=True)
class ClaimTable:
    """One pair on one data set."""

    title: str
    finding: str
    rows: tuple[tuple[str, ...], ...]
    """A cell for each of `CLAIM_COLUMNS`."""
    costs: tuple[CostRow, ...]


def claim_tables(results: Results) -> list[ClaimTable]:
    """A table for each data set and pair of which the models' sizes and the rows' lengths are known here."""
    tables: dict[str, ClaimTable] = {}
    stages = {stage.id: stage for stage in results.stages}
    for cell in sorted(results.cells, key=lambda cell: -cell.lsp):
        student, teacher = (_architecture(cell.train, role, stages) for role in ("student", "teacher"))
        tokens = row_tokens(cell)
        title = f"{cell.dataset}, {cell.teacher} to {cell.student}"
        if title not in tables and student and teacher and tokens:
            costs = cost_table(student, teacher, tokens, DEVICES)
            shown = f"{title}: a row of {tokens:,} tokens on {DEVICES} GPUs"
            tables[title] = ClaimTable(shown, finding(costs), tuple(map(_shown, costs)), tuple(costs))
    return list(tables.values())


def row_tokens(cell: CellResult) -> int:
    """Mean tokens of a whole training row, from those that a training kept; 0 until one is done.

    Of other spans what is read is no share of the row: they read context too, or an amount.
    """
    if cell.span not in ("left", "schedule"):
        return 0
    kept, rows = (cell.train.number("inputs", "data", "train", name) for name in ("tokens", "rows"))
    return round(kept / rows / cell.lsp) if kept and rows else 0


def _architecture(stage: StageEvidence, role: str, stages: dict[str, StageEvidence]) -> Architecture | None:
    """Of the model that a stage was given, through a stage that has stored what it gives; None where not known."""
    given = stages.get(stage.inputs.get(role, ""))
    config: Any = given.look("results", "config") if given else None
    if given and not config and role in given.inputs:
        return _architecture(given, role, stages)
    try:
        return Architecture.from_config(config) if isinstance(config, dict) else None
    except InputError:
        return None


def _shown(row: CostRow) -> tuple[str, ...]:
    return (
        text.proportion(row.lsp),
        f"{row.tokens:,}",
        f"{row.flops_ratio:.3f}",
        f"{row.time_ratio:.2f} to {row.time_ratio_exposed:.2f}",
        f"{row.static_gib:.3g}",
        f"{row.dynamic_gib:.3g}",
        f"{row.memory_ratio:.2f}",
        f"{row.chunked_dynamic_gib:.3g}",
        f"{row.chunked_memory_ratio:.2f}",
    )
