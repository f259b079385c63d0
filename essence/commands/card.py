"""`invoke card`: a model card for each trained cell, from the records."""

import contextlib
from pathlib import Path

from rich.console import Console

from essence.commands.matrix_state import not_run_here
from essence.errors import ExperimentError, RecordError
from essence.files import write_atomically
from essence.paths import typed_path
from essence.record.model_card import model_card
from essence.record.plan_record import CellEntry, PlanRecord, plan_of
from essence.record.run_directory import RunDirectory

CARD_FILE = "README.md"


def write_cards(
    run_directory: RunDirectory, experiment: str, text: str | None, output: str | None, console: Console
) -> int:
    """Write the card of every finished training whose cell has `text` in its name; say which are not finished."""
    plan, chosen = cells_named(run_directory, experiment, text)
    root = typed_path("--output", output) if output else cards_folder(run_directory, experiment)
    done = [cell for cell in chosen if run_directory.stage(cell.train).done]
    for cell in done:
        file = card_file(root, cell.name)
        write_atomically(file, model_card(run_directory, plan, cell).text())
        console.print(str(file), highlight=False, soft_wrap=True)
    left = len(chosen) - len(done)
    if left:
        console.print(f"{left} of {len(chosen)} trainings are not finished and have no card", highlight=False)
    return 0 if done else 1


def cards_folder(run_directory: RunDirectory, experiment: str) -> Path:
    """Where the cards of an experiment are."""
    return run_directory.experiment(experiment) / "cards"


def card_file(folder: Path, cell: str) -> Path:
    """The card of a cell."""
    return folder / cell.replace("/", "_") / CARD_FILE


def write_cards_beside(run_directory: RunDirectory, experiment: str) -> None:
    """Write the card of every finished training; none from records that are not as they were written."""
    plan, folder = plan_of(run_directory, experiment), cards_folder(run_directory, experiment)
    for cell in plan.cells:
        if run_directory.stage(cell.train).done:
            with contextlib.suppress(RecordError):  # the report names the record
                write_atomically(card_file(folder, cell.name), model_card(run_directory, plan, cell).text())


def cells_named(run_directory: RunDirectory, experiment: str, text: str | None) -> tuple[PlanRecord, list[CellEntry]]:
    """The plan, and its cells that have `text` in their name; ExperimentError where none has."""
    if not run_directory.plan(experiment).is_file():
        raise not_run_here(run_directory, experiment)
    plan = plan_of(run_directory, experiment)
    chosen = [cell for cell in plan.cells if (text or "") in cell.name]
    if not chosen:
        example = plan.cells[0].name if plan.cells else "none"
        raise ExperimentError(f"--cell {text}: no cell of {experiment} has it in its name (a name: {example})")
    return plan, chosen
