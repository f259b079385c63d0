"""`invoke doctor`: what is missing for an experiment, with what cures it, before anything is queued."""

import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence.commands.gold_checks import gold_checks
from essence.commands.options import select
from essence.engines.readiness import checks
from essence.engines.requirement import Requirement
from essence.engines.selected_run import Options
from essence.errors import ExitCode


def doctor(words: Options, offline: bool, as_json: bool, console: Console) -> int:
    """Look at everything that the chosen cells need; 0, or 2 when something is missing. Nothing is written."""
    selection = select(words, baselines=not words.axes())
    found = [*checks(selection, thorough=True, offline=offline), *gold_checks(selection)]
    missing = sum(not check.met for check in found)
    if as_json:
        told = {
            "experiment": selection.name,
            "engine": selection.engine.name,
            "engine_reason": selection.why,
            "flavour": selection.flavour if selection.contained else None,
            "stages_left": len(selection.left()),
            "ready": not missing,
            "checks": [check.as_json() for check in found],
        }
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        console.print(_table(found))
        why = f": {selection.why}" if selection.why else ""
        end = f"{missing} of {len(found)} things are missing" if missing else "nothing is missing"
        console.print(f"{selection.name} (engine {selection.engine.name}{why}): {end}", highlight=False, soft_wrap=True)
    return ExitCode.CURABLE if missing else 0


def _table(found: list[Requirement]) -> Table:
    table = Table(box=None, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("here", overflow="fold")
    table.add_column("cure", overflow="fold")
    for check in found:
        sign = Text("✓", "green") if check.met else Text("✗", "bold red")
        here = check.problem() if not check.met else f"{check.found}{f' ({check.wanted})' * bool(check.wanted)}"
        table.add_row(sign, Text(check.name), Text(here), Text(check.cure))
    return table
