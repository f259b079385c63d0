"""`invoke claims`: the claims of the paper, and apart from them the kit's own questions, on a whole run directory."""

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from essence.errors import RecordError, disk_error
from essence.record.run_directory import RunDirectory
from essence.report.claims.claim_record import claim_record
from essence.report.claims.verdict import ClaimVerdict, judge, judge_questions, record_verdicts
from essence.report.page.claims_table import claim_rows, print_claims
from essence.report.page.questions_table import print_questions, question_record
from essence.report.results.read import read_results
from essence.report.results.records import Results
from essence.report.results.run_facts import builtin_sources


def print_all_claims(run_directory: RunDirectory, experiment: str | None, as_json: bool, console: Console) -> int:
    """Judge claims and questions on one experiment, or on all; miniatures are left out where there is anything else."""
    names = [experiment] if experiment else run_directory.experiments()
    if not names:
        raise RecordError(f"{run_directory.root}: no experiment was run here: invoke reproduce tiny")
    read = [read_results(run_directory.root, name) for name in names]
    real = [results for results in read if not builtin_sources(results)]
    used = read if experiment else real or read
    judged = judge(used)
    questions = judge_questions(used)
    unrecorded = record_shown(used, [*judged, *questions])
    refused = {stage.id: stage.problem for one in used for stage in one.refused}
    if as_json:
        record = {
            "experiments": [one.experiment for one in used],
            "not_counted": refused,
            "claims": [claim_record(one).model_dump() for one in judged],
            "questions": [question_record(one) for one in questions],
        }
        sys.stdout.write(json.dumps(record, indent=2, allow_nan=False) + "\n")
    else:
        print_claims(claim_rows(judged), console)
        console.print()
        print_questions(questions, console)
        for identifier, problem in refused.items():
            console.print(Text.assemble(("not counted:", "bold red"), f" {identifier}: {problem}"), soft_wrap=True)
        console.print(f"Measured on: {', '.join(one.experiment for one in used)}", highlight=False)
    for sentence in unrecorded:
        console.print(f"not written down as a look: {sentence}", highlight=False, soft_wrap=True)
    return 0


def record_shown(used: Sequence[Results], judged: Sequence[ClaimVerdict]) -> list[str]:
    """Write the look down in each experiment; why not, where one refuses: the verdicts stand all the same."""
    refused = []
    for one in used:
        try:
            record_verdicts([one], judged)
        except OSError as error:
            sentence = disk_error(error, one.run_dir)
            refused.append(sentence.problem if sentence else str(error))
    return refused
