"""`invoke report`: write the report of what there is, and print its table."""

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from essence.commands.card import write_cards_beside
from essence.commands.matrix_state import not_run_here
from essence.files import read_json
from essence.plan.stage_plan import PlannedStage
from essence.record.run_directory import RunDirectory
from essence.report.claims.retention_rows import read_with_retention
from essence.report.data_files import check_formats, without_lines, write_data
from essence.report.page.picture_numbers import PICTURE
from essence.report.page.printed_report import print_results

MOST_NAMED = 3


def print_report(
    run_directory: RunDirectory, experiment: str, formats: Sequence[str], as_json: bool, console: Console
) -> int:
    """Write report.html, report.md, report.json and the figures; beside them the results as data in these formats."""
    if not run_directory.plan(experiment).is_file():
        raise not_run_here(run_directory, experiment)
    check_formats(formats)
    write(run_directory, experiment, console)
    if formats:
        write_rows(run_directory, experiment, formats, console)
    if as_json:
        # Written again, without letters that a terminal may lack.
        sys.stdout.write(json.dumps(read_json(run_directory.report(experiment) / "report.json"), indent=2) + "\n")
    else:
        print_tables(run_directory, experiment, console)
    return 0


def write_rows(run_directory: RunDirectory, experiment: str, formats: Sequence[str], console: Console) -> None:
    """Write the results as data; what is left out is said on standard error, so that JSON stays JSON."""
    results = read_with_retention(run_directory.root, experiment)
    with console.status("writing the results as data"):
        files = write_data(results, formats)
    for file in files:
        sys.stderr.write(f"{file}\n")
    if left_out := without_lines(results):
        listed = ", ".join(left_out[:MOST_NAMED])
        more = f" and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
        sys.stderr.write(f"no samples here of {len(left_out)} graded evaluations, so no rows: {listed}{more}\n")


def write(run_directory: RunDirectory, experiment: str, console: Console) -> None:
    """Write the report and the model cards, unless it was made from just what is there now."""
    # Imported here: drawing takes seconds to import, and a run that finds everything done draws nothing.
    from essence.report.build import report_is_current, write_report

    if not report_is_current(run_directory.root, experiment):
        with console.status("writing the report"):
            write_report(run_directory.root, experiment)
            write_cards_beside(run_directory, experiment)


def write_once_graded(
    run_directory: RunDirectory, experiment: str, stages: list[PlannedStage], console: Console
) -> None:
    """The report of what there is, once one of these stages is a grading that is done."""
    if any(run_directory.stage(stage.id).done for stage in stages if stage.stage == "grade"):
        write(run_directory, experiment, console)


def print_tables(run_directory: RunDirectory, experiment: str, console: Console) -> None:
    """The tables of the report, and the paths of its pictures and the page."""
    print_results(run_directory.root, experiment, console)
    for picture in sorted((run_directory.report(experiment) / "figures").glob(f"{PICTURE}*.png")):
        console.print(f"Picture: {picture}, with its numbers as CSV beside it", highlight=False, soft_wrap=True)
    console.print(f"Report: {run_directory.report(experiment) / 'report.html'}", highlight=False, soft_wrap=True)
