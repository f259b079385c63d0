"""`invoke checklist`: fill a venue's checklist, or the artefact appendix, from the records of a run."""

import json
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from essence.commands.claims import record_shown
from essence.commands.matrix_state import not_run_here
from essence.commands.options import check_word
from essence.files import write_atomically
from essence.paths import typed_path
from essence.record.run_directory import RunDirectory
from essence.report.checklist.answers import Answered, answer, as_latex, as_record, as_text
from essence.report.checklist.venues import VENUES, Venue
from essence.report.claims.retention_rows import read_with_retention
from essence.report.claims.verdict import judge
from essence.report.results.records import Results

FORMATS: dict[str, Callable[[Venue, Results, Sequence[Answered]], str]] = {"text": as_text, "latex": as_latex}


def fill_checklist(
    run_directory: RunDirectory, experiment: str, venue: str, format: str, output: str | None, as_json: bool,
    console: Console,
) -> int:  # fmt: skip
    """Print the answers, or write them to a file; ExperimentError for a venue or a format that is not known.

    Verdicts that are shown are a look, which is written down.
    """
    check_word("--venue", "venue", venue, VENUES)
    check_word("--format", "format", format, FORMATS)
    if not run_directory.plan(experiment).is_file():
        raise not_run_here(run_directory, experiment)
    results = read_with_retention(run_directory.root, experiment)
    form = VENUES[venue]
    judged = judge([results]) if any("verdicts" in question.facts for question in form.questions) else []
    answers = answer(form, results, judged)
    if as_json:
        text = json.dumps(as_record(form, results, answers), indent=2) + "\n"
    else:
        text = FORMATS[format](form, results, answers)
    unrecorded = record_shown([results], judged)
    if output is None:
        sys.stdout.write(text)
    else:
        file = typed_path("--output", output)
        write_atomically(file, text)
        console.print(str(file), highlight=False, soft_wrap=True)
    for sentence in unrecorded:  # standard output may be a form that is kept
        sys.stderr.write(f"not written down as a look: {sentence}\n")
    return 0
