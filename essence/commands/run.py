"""`invoke run`, `invoke reproduce`: check, write down what will run, run it, say how it ended."""

import contextlib
import errno
import json
import shutil
import sys
from functools import partial
from typing import TypedDict

from rich.console import Console
from rich.text import Text

from essence.commands import report
from essence.commands.gold_checks import require_readable_golds
from essence.commands.options import select, whole_plan
from essence.commands.queue_jobs import print_jobs, queue_left
from essence.commands.save_plan import save_plan
from essence.commands.screen import RunDisplay
from essence.commands.terminal import teller
from essence.engines.capacity import Capacity
from essence.engines.engine import surroundings
from essence.engines.image_builds import to_be_made
from essence.engines.readiness import make_ready
from essence.engines.runner import Runner, Summary, last_lines
from essence.engines.selected_run import Options, Run
from essence.errors import ExitCode, MachineError, disk_error
from essence.plan.stage_plan import Plan, PlannedStage
from essence.record.live_records import FailureRecord, look_at
from essence.record.run_directory import RunDirectory, StageFolder, hold
from essence.report.page.rows import rows_lines

LOG_LINES = 8
SMALLEST_FREE_BYTES = 1 << 14


def run(words: Options, whole: bool, dry_run: bool, as_json: bool, console: Console) -> int:
    """Run the chosen cells, or with `whole` the matrix with its baselines; the exit code."""
    selection = select(words, baselines=whole)
    if queue := selection.engine.queue:
        return (
            print_jobs(selection, queue, as_json) if dry_run else queue_left(selection, queue, whole, as_json, console)
        )
    if dry_run:
        return print_dry_run(selection, as_json, console)
    command = words.typed(whole)
    if selection.why and not as_json:
        console.print(f"engine {selection.engine.name}: {selection.why}", highlight=False, soft_wrap=True)
    make_ready(selection, teller(console))
    require_readable_golds(selection)
    folder = selection.run_directory.experiment(selection.name)
    with hold(folder, f"run directory {folder}", command):
        summary = run_held(selection, whole_plan(selection), console)
        report.write_once_graded(selection.run_directory, selection.name, selection.wanted, console)
    return say(selection, summary, command, console, as_json)


def run_held(selection: Run, plan: Plan, console: Console) -> Summary:
    """Write down the plan and the resolved settings, then run what is wanted."""
    code = save_plan(plan, selection)
    capacity = Capacity.of_this_machine(selection)
    for remark in filter(None, (capacity.gpus.remark(), capacity.remark(selection.left()))):
        console.print(Text(remark, style="yellow"), soft_wrap=True)
    at_once = capacity.at_once(selection.left())
    found = partial(_found, selection.run_directory)
    with RunDisplay(console, selection.wanted, selection.left(), at_once, found) as display:
        return Runner(selection.engine, selection.run_directory, selection.wanted, capacity, code, display).run()


def _found(run_directory: RunDirectory, stage: PlannedStage) -> list[str]:
    """Lines on a stage that has just finished."""
    return rows_lines(run_directory.stage(stage.id)) if stage.stage == "tokenize" else []


def say(selection: Run, summary: Summary, command: str, console: Console, as_json: bool) -> int:
    """The table, what failed and why, and the command that goes on from here."""
    if as_json:
        sys.stdout.write(_summary_json(selection, summary) + "\n")
    else:
        say_failures(selection, summary, command, console)
        _say_end(selection, summary, command, console)
    return exit_code(selection, summary)


def exit_code(selection: Run, summary: Summary) -> int:
    """How the command ends; with CURABLE where every stage that failed says in one sentence what is wrong."""
    if summary.interrupted:
        return ExitCode.INTERRUPTED
    if summary.complete:
        return ExitCode.DONE
    failed = [_sentence(selection.run_directory.stage(identifier)) for identifier in summary.failed]
    return ExitCode.CURABLE if failed and all(failed) else ExitCode.FAILED


def _say_end(selection: Run, summary: Summary, command: str, console: Console) -> None:
    if (selection.run_directory.report(selection.name) / "report.html").is_file():
        report.print_tables(selection.run_directory, selection.name, console)
    count = len(selection.wanted)
    if summary.interrupted:
        console.print(Text("\n").append_text(to_go_on(command)), soft_wrap=True)
    elif summary.complete:
        before = "were done before" if not summary.finished else f"are done ({len(summary.finished)} in this run)"
        console.print(f"\n{selection.name}: all {count} stages {before}.", highlight=False)


def say_failures(selection: Run, summary: Summary, command: str, console: Console) -> None:
    titles = {stage.id: stage.title for stage in selection.wanted}
    for identifier in summary.failed:
        folder = selection.run_directory.stage(identifier)
        console.print(Text.assemble(("\nFailed:", "bold red"), f" {titles[identifier]}"))
        for line in _why(folder):
            console.print(Text(f"  {line}"), soft_wrap=True)
        console.print(Text(f"  log: {folder.log}"), soft_wrap=True)
    if summary.failed:
        waiting = f"; {len(summary.blocked)} stages wait for them" if summary.blocked else ""
        again = Text.assemble(f"\n{len(summary.failed)} failed{waiting}. To try again: ", (command, "bold"))
        console.print(again, soft_wrap=True)


def to_go_on(command: str) -> Text:
    """What an interrupted run says last."""
    return Text.assemble("Stopped. What is finished stays finished; to go on: ", (command, "bold"))


def _why(folder: StageFolder) -> list[str]:
    """The sentence of a failure that can be cured; for any other, the last lines of the log."""
    sentence = _sentence(folder)
    return sentence.splitlines() if sentence else last_lines(folder.log, LOG_LINES)


def _sentence(folder: StageFolder) -> str | None:
    """What a stage that failed says of a failure that can be cured; None for any other."""
    failure = look_at(folder.failure, FailureRecord)
    if failure and failure.curable:
        return failure.message
    if shutil.disk_usage(folder.path).free < SMALLEST_FREE_BYTES:
        return str(disk_error(OSError(errno.ENOSPC, ""), folder.path))
    return None


def _summary_json(selection: Run, summary: Summary) -> str:
    fields = ("done_before", "finished", "failed", "blocked", "interrupted", "complete")
    return json.dumps({"experiment": selection.name, **{name: getattr(summary, name) for name in fields}}, indent=2)


def _made_first(selection: Run) -> list[str]:
    """The images that a run would make, where an engine answers that can be asked."""
    with contextlib.suppress(MachineError):
        selection.engine.check([])
        lacking = selection.engine.lacking(selection.left())
        return [to_be_made(lacking)] if lacking else []
    return []


class CommandLine(TypedDict):
    """A stage that would be started, as `--dry-run --json` prints it."""

    id: str
    title: str
    command: str


def print_dry_run(selection: Run, as_json: bool, console: Console) -> int:
    """Every command line that would be started, in order; nothing is written and nothing is checked but the input."""
    lines: list[CommandLine] = []
    for stage in selection.left():
        rendered = selection.engine.render(surroundings(stage, selection.run_directory))
        lines.append({"id": stage.id, "title": stage.title, "command": rendered})
    if as_json:
        sys.stdout.write(json.dumps(lines, indent=2) + "\n")
        return 0
    for line in lines:
        console.print(f"# {line['title']}", style="dim", highlight=False, soft_wrap=True)
        console.print(line["command"], markup=False, highlight=False, soft_wrap=True)
    for made in _made_first(selection):
        console.print(f"# {made}", style="dim", highlight=False, soft_wrap=True)
    done = len(selection.wanted) - len(lines)
    cells = len(selection.plan.cells)
    if selection.why:
        console.print(
            f"# engine {selection.engine.name}: {selection.why}", style="dim", highlight=False, soft_wrap=True
        )
    end = f"# {selection.name}: {cells} cells, {len(selection.wanted)} stages, {done} done, {len(lines)} would run"
    console.print(end + f" (engine {selection.engine.name})", style="dim", highlight=False)
    return 0
