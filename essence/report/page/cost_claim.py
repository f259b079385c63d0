"""The paper's claim on cost, one table per pair: time, memory and FLOPs at LSP 0.1 to 1.0, computed from model sizes.

What a run measured stands in the tables of its groups; this says what the claim rests on, for the sizes of this run and
for a loss that holds all logits beside one that never does. `essence/plan/cost_table.py` states every assumption.
"""

from essence.errors import InputError
from essence.plan.cost_table import CostTable, cost_table
from essence.report.results.records import CellResult, Results
from essence.report.results.stage_reader import StageEvidence
from essence.sizes.architecture import Architecture

DEVICES = 4
"""GPUs of the paper's trainings."""


def claim_tables(results: Results) -> list[CostTable]:
    """A table for each data set and pair of which the models' sizes and the rows' lengths are known here."""
    tables: dict[str, CostTable] = {}
    stages = {stage.id: stage for stage in results.stages}
    for cell in sorted(results.cells, key=lambda cell: -cell.lsp):
        student, teacher = pair_of(cell.train, stages)
        tokens = row_tokens(cell)
        name = f"{cell.dataset}, {cell.teacher} to {cell.student}"
        if name not in tables and student and teacher and tokens:
            tables[name] = cost_table(name, student, teacher, tokens, DEVICES)
    return list(tables.values())


def row_tokens(cell: CellResult) -> int:
    """Mean tokens of a whole training row, from those that a training kept; 0 until one is done.

    Of other spans what is read is no share of the row: they read context too, or an amount.
    """
    if cell.span not in ("left", "schedule"):
        return 0
    read = cell.train.trained_rows
    return round(read.tokens / read.rows / cell.lsp) if read and read.tokens and read.rows else 0


def pair_of(train: StageEvidence, stages: dict[str, StageEvidence]) -> tuple[Architecture | None, Architecture | None]:
    """Sizes of the student and the teacher of a training, as far as they are known here."""
    return _architecture(train, "student", stages), _architecture(train, "teacher", stages)


def _architecture(stage: StageEvidence, role: str, stages: dict[str, StageEvidence]) -> Architecture | None:
    """Of the model that a stage was given, through a stage that has stored what it gives; None where not known."""
    given = stages.get(stage.inputs.get(role, ""))
    config = given.download.results.config if given and given.download else None
    if given and not config and role in given.inputs:
        return _architecture(given, role, stages)
    try:
        return Architecture.from_config(config) if config else None
    except InputError:
        return None
