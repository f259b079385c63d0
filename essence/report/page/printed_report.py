"""What `invoke report` prints: claims, questions, the tables of each group, and what a miniature is not."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.record.machine_load import WALL_OVER_CPU
from essence.report.claims.retention_rows import read_with_retention
from essence.report.claims.verdict import judge, judge_questions
from essence.report.page.claims_table import claim_rows, print_claims
from essence.report.page.endings import ending_rows, terminal_endings
from essence.report.page.findings import not_compared
from essence.report.page.questions_table import print_questions
from essence.report.page.statement import what_it_is
from essence.report.page.table import COLUMNS, Column, Row, arm_rows, cells_text, missing_lines
from essence.report.results.run_facts import builtin_sources

WIDE_TERMINAL = 118
"""Columns that a table with everything in one line needs."""


def print_results(run_dir: Path, experiment: str, console: Console) -> None:
    """Print the tables of an experiment, as far as it is: one for each group and benchmark, then what is missing."""
    results = read_with_retention(run_dir, experiment)
    for sentence in results.accepted:
        console.print(Text(sentence), soft_wrap=True)
    print_claims(claim_rows(judge([results])), console)
    console.print()
    print_questions(judge_questions([results]), console)
    console.print()
    for group in results.groups:
        for evaluation in group.evaluations:
            title = f"{group.key.label}; {evaluation[0]}, {evaluation[1]} checkpoint"
            console.print(Text(title, style="bold"))
            console.print(terminal_table(arm_rows(results, group, evaluation), console.width))
            if endings := ending_rows(results, group, evaluation):
                console.print(terminal_endings(endings))
            for sentence in not_compared(group):
                console.print(Text(sentence, style="dim"))
            console.print()
    if any(cell.train.load.words for cell in results.cells):
        console.print(Text(f"Costs: against LSP 1.0. Time: ({WALL_OVER_CPU}), or how busy the GPUs were.", style="dim"))
    if builtin_sources(results):
        for sentence in what_it_is(results):
            console.print(Text(sentence, style="dim"))
    missing = missing_lines(results)
    if missing:
        console.print(Text("Not done", style="bold"))
        for line in missing:
            console.print(Text(f"  {line}"), soft_wrap=True)


def terminal_table(rows: Sequence[Row], width: int) -> Table:
    """A line a row; on a narrow terminal intervals stand under their numbers and lengths are left to the page."""
    narrow = width < WIDE_TERMINAL
    columns = [column for column in COLUMNS if not (narrow and column.title == "Length")]
    table = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 0, 0, 1) if narrow else (0, 1))
    table.add_column("LSP", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    table.add_column("Cells", justify="right", no_wrap=True)
    for row in rows:
        numbers = [_terminal_number(row, column, "\n" if narrow else " ") for column in columns]
        label = row.label.split()[0] if narrow else row.label
        style = "" if row.role == "arm" else "dim"
        table.add_row(*(Text(text) for text in (label, *numbers, cells_text(row))), style=style)
    return table


def _terminal_number(row: Row, column: Column, separator: str) -> str:
    main, small, load = column.main(row), column.small(row), column.load(row)
    if column.source == "trains":
        # The ratio to LSP 1.0 says more than the absolute cost, which the page has.
        beside = f"{separator}({load.removeprefix(f'{WALL_OVER_CPU} ')})" if load else ""
        return f"{small or main}{beside}"
    return f"{main}{separator}{small}" if small else main
