"""Read a benchmark's problems and render its prompt.

A download stage leaves a benchmark's files as they were published in `problems/`; which fields hold what is said by the
experiment's TOML (`BenchmarkSettings`), so a new benchmark needs no code here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from essence.data.row_files import read_files
from essence.errors import InputError, nearest
from essence.settings import BenchmarkSettings

PLACEHOLDER = "{problem}"
ID_FIELDS = ("id", "unique_id")
_GSM8K_ANSWER = re.compile(r"####\s*(\S.*?)\s*$")
_NUMBER = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)(\.\d+)?")
"""Sign, digits with or without commas between thousands, decimals."""


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark."""

    id: str
    """The row's own `id` or `unique_id` where every row has one and none repeats, else its index from 0."""
    problem: str
    gold: str
    """The answer as text, read as `answer_type` says."""


def read_problems(folder: Path, settings: BenchmarkSettings) -> list[Problem]:
    """Read the problems in `folder`, whose files are those that rows may be in, as many as are asked for.

    Raises InputError for a missing folder or field, a problem that is no text, an empty answer, or fewer problems than
    `settings.problems`.
    """
    rows = [row for file, found in read_files(folder) for row in _rows(file, found, settings)]
    wanted = settings.problems if settings.problems is not None else len(rows)
    if not rows or wanted > len(rows):
        raise InputError(f"{folder} holds {len(rows)} problems of {settings.name}, wanted: {max(wanted, 1)}.")
    return [
        Problem(id, row.problem, _gold(row.answer, id, settings))
        for id, row in zip(_ids(rows), rows[:wanted], strict=False)
    ]


def render_prompt(prompt: str, problem: str) -> str:
    """Put a problem into a benchmark's prompt; InputError unless `{problem}` is in it exactly once."""
    found = prompt.count(PLACEHOLDER)
    if found != 1:
        raise InputError(f"The prompt holds {PLACEHOLDER} {found} times, wanted: once; prompt: {prompt[:80]!r}.")
    return prompt.replace(PLACEHOLDER, problem)


@dataclass(frozen=True)
class _Row:
    """What is used of a row, whatever fields it has."""

    problem: str
    answer: object
    names: tuple[object, ...]
    """What is in each of `ID_FIELDS`, None where it has no such field."""


def _rows(file: Path, found: Iterable[object], settings: BenchmarkSettings) -> Iterator[_Row]:
    """The rows of one file; InputError for one that lacks a field or whose problem is no text."""
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise InputError(f"{file}, row {number}: found {type(row).__name__}, wanted an object with fields.")
        for key in ("problem_field", "answer_field"):
            field = getattr(settings, key)
            if row.get(field) is None:
                raise InputError(
                    f"{file}, row {number}: no field {field!r} ({key} of benchmark {settings.name}); "
                    f"fields found: {', '.join(map(str, row))}{nearest(field, map(str, row))}",
                    "name the files that hold the problems with `files`, where this is none of them",
                )
        problem = _text(row[settings.problem_field], f"{file}, row {number}: field {settings.problem_field!r}")
        yield _Row(problem, row[settings.answer_field], tuple(row.get(field) for field in ID_FIELDS))


def _text(problem: object, where: str) -> str:
    """The problem; InputError unless it is a text that a tokenizer takes."""
    if not isinstance(problem, str):
        raise InputError(f"{where} holds {type(problem).__name__}, wanted: the problem as text.")
    if not problem.strip():
        raise InputError(f"{where} is empty, wanted: the problem as text.")
    try:
        problem.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a surrogate pair, which no tokenizer takes.") from None
    return problem


def _ids(rows: list[_Row]) -> list[str]:
    """A name a row, taken over all rows so that a limit on their number renames none."""
    for values in zip(*(row.names for row in rows), strict=True):
        if None not in values and max(Counter(map(str, values)).values()) == 1:
            return [str(value) for value in values]
    return [str(index) for index in range(len(rows))]


def _gold(value: object, id: str, settings: BenchmarkSettings) -> str:
    """The answer as text, whatever type the file gives it.

    `integer`: no leading zeros, no `.0`, no commas; `number`: the same, decimals allowed; `gsm8k`: the number that
    follows `####`; `latex`: as published.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refused(settings, id, f"holds {type(value).__name__}", "a text or a number")
    text = str(value).strip()
    if settings.answer_type == "gsm8k":
        marked = _GSM8K_ANSWER.search(text)
        if marked is None:
            raise _refused(settings, id, f"ends in {text[-40:]!r}", "a solution that ends in `#### ` and a number")
        text = marked.group(1)
    if not text:
        raise _refused(settings, id, "is empty", "an answer")
    return text if settings.answer_type == "latex" else _number(text, id, settings)


def _number(text: str, id: str, settings: BenchmarkSettings) -> str:
    """`025`, `27.0` and `2,125` as `25`, `27` and `2125`."""
    wanted = "an integer" if settings.answer_type == "integer" else "a number"
    parts = _NUMBER.fullmatch(text)
    if parts is None:
        raise _refused(settings, id, f"holds {text[:40]!r}", f"{wanted} (answer_type = {settings.answer_type!r})")
    sign, digits, decimals = parts.groups()
    decimals = (decimals or "").rstrip("0").removesuffix(".")
    if decimals and settings.answer_type == "integer":
        raise _refused(settings, id, f"holds {text[:40]!r}", "an integer (answer_type = 'integer')")
    whole = digits.replace(",", "").lstrip("0") or "0"
    return f"{'-' if sign == '-' and (whole != '0' or decimals) else ''}{whole}{decimals}"


def _refused(settings: BenchmarkSettings, id: str, found: str, wanted: str) -> InputError:
    return InputError(f"{settings.name}, problem {id}: field {settings.answer_field!r} {found}, wanted: {wanted}.")
