"""`invoke grade`: verdicts on any file of gold answers and completions, without an experiment around it."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args

from rich.console import Console

from essence.errors import InputError, nearest
from essence.experiment import EXPERIMENTS
from essence.local_files import typed_path
from essence.scoring.grade import Item, grade_all
from essence.scoring.graders import PACKAGE, grader_version
from essence.settings import GraderName
from essence.validation import read_toml

FIELDS = ("gold", "completion")
STANDARD_INPUT = "-"


def grade(file: str, grader: str, console: Console) -> int:
    """Write a verdict a line to standard output, in the order of the lines, and a summary to the console.

    Raises InputError for an unknown grader and for a line that cannot be graded, before anything is graded.
    """
    known = get_args(GraderName)
    if grader not in known:
        raise InputError(f"--grader {grader}: unknown{nearest(grader, known)} (known: {', '.join(known)})")
    items = list(_items(file))
    timeout_s = float(read_toml(EXPERIMENTS / "defaults.toml")["grading"]["timeout_s"])
    statuses: Counter[str] = Counter()
    correct = 0
    with closing(grade_all(items, grader, timeout_s, os.cpu_count() or 1)) as verdicts:
        for verdict in verdicts:
            record = {"correct": verdict.correct, "status": verdict.status, "extracted": verdict.extracted}
            sys.stdout.write(json.dumps(record) + "\n")
            statuses[verdict.status] += 1
            correct += verdict.correct
    sys.stdout.flush()
    counts = ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))
    share = f"{correct / len(items):.1%}" if items else "nothing to grade"
    console.print(
        f"{correct} of {len(items)} correct ({share}); {counts}; {grader}, {PACKAGE} {grader_version()}",
        highlight=False,
    )
    return 0


def _items(file: str) -> Iterator[Item]:
    """The lines of a file, or of standard input for `-`; empty lines are left out."""
    name = "standard input" if file == STANDARD_INPUT else file
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if line.strip():
            yield _item(line, f"{name}, line {number}")


def _read(file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == STANDARD_INPUT else typed_path("FILE", file).read_bytes()
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.") from error


def _item(line: str, place: str) -> Item:
    wanted = 'wanted: {"gold": "42", "completion": "..."}'
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: no JSON ({error}), {wanted}.") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: found {type(row).__name__}, {wanted}.")
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            found = type(row[field]).__name__ if field in row else f"no such field{nearest(field, row)}"
            raise InputError(f"{place}: field {field!r}: {found}, {wanted}.")
    return Item(row["gold"], row["completion"], place)
