"""`invoke plan --costs`: time, memory and FLOPs at LSP 0.1 to 1.0 for each pair of an experiment, computed.

The experiment's own form of the training stands beside the released one; a line says what starting decoders takes.
"""

import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from essence.commands.options import select
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError
from essence.plan.cells import train_settings
from essence.plan.cost_table import COLUMNS, CostTable, cost_table
from essence.plan.decoder_starts import DecoderStarts, decoder_starts
from essence.plan.estimate import estimate, trained_of
from essence.plan.model_sizes import architecture
from essence.plan.newest_proof import speeds_for
from essence.plan.our_costs import OUR_COLUMNS, OurCosts, our_costs
from essence.plan.stage_plan import CellPlan


class PairCosts(NamedTuple):
    """One pair on one data set."""

    released: CostTable
    ours: OurCosts | None
    """None where the cell is not taught, so that there is no such training."""
    starts: DecoderStarts | None
    """None where the hours of evaluations are not known."""


def print_costs(words: Options, as_json_text: bool, console: Console) -> int:
    """Print a table for each pair and data set of the chosen cells; nothing is checked but the input."""
    tables = pair_tables(select(words, baselines=False))
    if as_json_text:
        records = [
            {
                "name": one.released.name,
                **one.released.as_json(),
                "ours": one.ours.as_json() if one.ours else None,
                "decoder_starts": one.starts.as_json() if one.starts else None,
            }
            for one in tables
        ]
        sys.stdout.write(json.dumps(records, indent=2) + "\n")
        return 0
    for one in tables:
        for table in _tables(one):
            console.print(table)
        told = [one.released.finding, *(part.finding for part in (one.ours, one.starts) if part)]
        console.print("\n".join(told) + "\n", highlight=False, soft_wrap=True)
    return 0


def pair_tables(selection: Run) -> list[PairCosts]:
    """A table for each `dataset/teacher_student`; ExperimentError where no pair's sizes are known yet."""
    tables: dict[str, PairCosts] = {}
    cells: dict[str, list[CellPlan]] = {}
    for plan in selection.plan.cells:
        cells.setdefault(_name(plan), []).append(plan)
    devices = max(2, selection.loaded.experiment.resources.gpus)
    for plan in selection.plan.cells:
        cell = plan.cell
        name = _name(plan)
        student = architecture(cell.student, plan.stages["student"], selection.loaded, selection.run_directory)
        teacher = architecture(cell.teacher, plan.stages.get("teacher"), selection.loaded, selection.run_directory)
        tokens = estimate(plan, selection.loaded, selection.run_directory).row_tokens
        if name not in tables and student and teacher and tokens:
            released = cost_table(name, student, teacher, int(tokens), devices)
            starts = decoder_starts(selection.plan, cells[name], selection.run_directory)
            tables[name] = PairCosts(released, _ours(plan, selection, int(tokens)), starts)
    if not tables:
        raise ExperimentError(
            f"{selection.name}: the sizes of no pair are known yet: add `architecture` and `mean_row_tokens` to the "
            "pins, or run --only tokenize first"
        )
    return list(tables.values())


def _name(plan: CellPlan) -> str:
    return f"{plan.cell.dataset}/{plan.cell.teacher}_{plan.cell.student}"


def _ours(plan: CellPlan, selection: Run, row_tokens: int) -> OurCosts | None:
    loaded, run_directory = selection.loaded, selection.run_directory
    trained = trained_of(plan, loaded, run_directory, train_settings(plan.cell, loaded.experiment))
    speeds = speeds_for(run_directory, loaded.experiment.resources.gpus)
    return our_costs(trained, row_tokens, speeds) if trained and trained.teacher else None


def _tables(costs: PairCosts) -> Iterator[Table]:
    title = f"{costs.released.title}, computed; ratios against LSP 1.0"
    yield _table(title, list(COLUMNS), costs.released.lines)
    if costs.ours:
        yield _table("the same as this experiment trains", list(OUR_COLUMNS), costs.ours.lines)


def _table(title: str, headings: list[str], lines: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table
