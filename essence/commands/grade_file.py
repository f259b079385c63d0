"""`invoke grade`: verdicts on any file of gold answers and completions, without an experiment around it."""

import json
import os
import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import get_args

from rich.console import Console

from essence.commands.graded_lines import Lines
from essence.errors import InputError, nearest
from essence.evaluation.doubts import sample_doubts, verdict_doubts
from essence.evaluation.golds import check_golds
from essence.evaluation.graders import PACKAGE
from essence.evaluation.graders_apart import grader_version, installed_graders, require_installed
from essence.evaluation.grading_pool import grade_by_each
from essence.plan.experiment import EXPERIMENTS
from essence.record.evaluation_records import Doubts
from essence.settings import GraderName
from essence.settings.toml import read_toml


@dataclass(frozen=True)
class GradedLine:
    """A line of the output."""

    correct: bool
    status: str
    extracted: str | None
    boxed: bool
    others: dict[str, bool]


def grade(file: str, grader: str, console: Console) -> int:
    """Write a verdict a line to standard output, in the order of the lines, and a summary to the console.

    Raises InputError for an unknown grader, and for a line or a gold that cannot be graded, before anything is written;
    MachineError for a grader that is not installed.
    """
    known = get_args(GraderName)
    if grader not in known:
        raise InputError(f"--grader {grader}: unknown{nearest(grader, known)} (known: {', '.join(known)})")
    require_installed(grader)
    lines = Lines(file)
    timeout_s = float(read_toml(EXPERIMENTS / "defaults.toml")["grading"]["timeout_s"])
    workers = os.cpu_count() or 1
    check_golds(lines.items, {grader: timeout_s}, workers)
    graders = (grader, *(other for other in installed_graders() if other != grader))
    records = []
    with closing(grade_by_each(lines.items, graders, timeout_s, workers)) as graded:
        for verdict, *others in graded:
            said = {name: other.correct for name, other in zip(graders[1:], others, strict=True)}
            record = GradedLine(verdict.correct, verdict.status, verdict.extracted, verdict.boxed, said)
            # Escaped, so that no terminal and no lone surrogate can stop it.
            sys.stdout.write(json.dumps(asdict(record)) + "\n")
            records.append(record)
    sys.stdout.flush()
    _summarise(lines, records, grader, console)
    return 0


def _summarise(lines: Lines, records: list[GradedLine], grader: str, console: Console) -> None:
    correct = sum(record.correct for record in records)
    statuses = Counter(record.status for record in records)
    counts = ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))
    doubts = Doubts(**verdict_doubts(records), **sample_doubts(item.completion for item in lines.items))
    told = [
        f"{correct} of {len(records)} correct ({correct / len(records):.1%}); {counts}; {grader}, "
        f"{PACKAGE} {grader_version(grader)}",
        doubts.words,
        *lines.notes(),
    ]
    for line in told:
        console.print(line, highlight=False, soft_wrap=True)
