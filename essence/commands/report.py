"""`invoke report`: write the report of what there is, and print its table."""

import sys

from rich.console import Console

from essence.commands.status import not_run_here
from essence.report.results import read_results
from essence.report.table import terminal_report
from essence.store import RunDirectory


def print_report(run_directory: RunDirectory, experiment: str, as_json: bool, console: Console) -> int:
    """Write report.html, report.md, report.json and the figures."""
    if not run_directory.plan(experiment).is_file():
        raise not_run_here(run_directory, experiment)
    write(run_directory, experiment, console)
    if as_json:
        sys.stdout.write((run_directory.report(experiment) / "report.json").read_text(encoding="utf-8"))
    else:
        print_tables(run_directory, experiment, console)
    return 0


def write(run_directory: RunDirectory, experiment: str, console: Console) -> None:
    """Write the report anew."""
    # Imported here: drawing takes seconds to import, and a run that finds everything done draws nothing.
    from essence.report.build import write_report

    with console.status("writing the report"):
        write_report(run_directory.root, experiment)


def is_current(run_directory: RunDirectory, experiment: str) -> bool:
    """Whether the report was written after the plan and after every manifest that it shows."""
    report = run_directory.report(experiment) / "report.json"
    if not report.is_file():
        return False
    manifests = (run_directory.stage(p.name).manifest for p in run_directory.stages.glob("*-*"))
    read = [run_directory.plan(experiment), *manifests]
    return all(file.stat().st_mtime <= report.stat().st_mtime for file in read if file.is_file())


def print_tables(run_directory: RunDirectory, experiment: str, console: Console) -> None:
    """The tables of the report, and where the page lies."""
    console.print(terminal_report(read_results(run_directory.root, experiment)))
    console.print(f"Report: {run_directory.report(experiment) / 'report.html'}", highlight=False, soft_wrap=True)
