"""`invoke card`: a model card for each trained cell, from the records."""

from pathlib import Path
from typing import Any

from rich.console import Console

from essence.atomic import read_json, write_atomically
from essence.commands.status import not_run_here
from essence.errors import ExperimentError
from essence.record.card import model_card
from essence.store import RunDirectory

CARD_FILE = "README.md"


def write_cards(
    run_directory: RunDirectory, experiment: str, text: str | None, output: str | None, console: Console
) -> int:
    """Write the card of every finished training whose cell has `text` in its name; say which are not finished."""
    plan, chosen = cells_named(run_directory, experiment, text)
    root = Path(output).expanduser().resolve() if output else run_directory.experiment(experiment) / "cards"
    done = [entry for entry in chosen if run_directory.stage(entry["stages"]["train"]).done]
    for entry in done:
        file = root / entry["name"].replace("/", "_") / CARD_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, model_card(run_directory, plan, entry).text())
        console.print(str(file), highlight=False, soft_wrap=True)
    left = len(chosen) - len(done)
    if left:
        console.print(f"{left} of {len(chosen)} trainings are not finished and have no card", highlight=False)
    return 0 if done else 1


def cells_named(
    run_directory: RunDirectory, experiment: str, text: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The plan, and its cells that have `text` in their name; ExperimentError where none has."""
    if not run_directory.plan(experiment).is_file():
        raise not_run_here(run_directory, experiment)
    plan = read_json(run_directory.plan(experiment))
    chosen = [entry for entry in plan["cells"] if (text or "") in entry["name"]]
    if not chosen:
        example = plan["cells"][0]["name"] if plan["cells"] else "none"
        raise ExperimentError(f"--cell {text}: no cell of {experiment} has it in its name (a name: {example})")
    return plan, chosen
