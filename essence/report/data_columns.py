"""The results as rows for a data frame: one for each evaluation, one for each sample of it.

The two records here are the one place where the columns are named, typed and explained: `invoke report --csv` and
`--parquet` write them, and docs/results-as-data.md has the table that `columns_of` gives. None is what is not known.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple, get_args, get_type_hints


class Told(NamedTuple):
    """What a column holds."""

    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a row is about: the columns that both kinds of rows begin with."""

    experiment: Annotated[str, Told("", "name of the experiment")]
    role: Annotated[str, Told("", "`cell`: trained; `student`, `teacher`, `model`: evaluated as it comes")]
    name: Annotated[str, Told("", "name of the cell, or of the model")]
    model: Annotated[str, Told("", "short name of the model: of a cell its student")]
    dataset: Annotated[str | None, Told("", "short name of the data set; as all of training, empty where none was")]
    teacher: Annotated[str | None, Told("", "short name of the teacher")]
    lsp: Annotated[float | None, Told("share", "lead-span proportion")]
    span: Annotated[str | None, Told("", "which part of a sequence is read")]
    sections: Annotated[str | None, Told("", "which tokens are labels")]
    protocol: Annotated[str, Told("", "`released` or `corrected`")]
    seed: Annotated[int | None, Told("", "seed of the cell")]
    train_rows: Annotated[int | None, Told("rows", "training rows asked for, where the cell says")]
    token_budget: Annotated[
        int | None, Told("tokens", "tokens to read an epoch: rows in order until so many are read, none is cut for it")
    ]
    benchmark: Annotated[str, Told("", "short name of the benchmark")]
    checkpoint: Annotated[str, Told("", "`best` or `last` of a training, `model` of a baseline")]


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One model on one benchmark; planned ones that are not graded have a state and no numbers."""

    place: Place
    state: Annotated[str, Told("", "of the grading: `done`, `running`, `failed`, `interrupted` or `left`")]
    problems: Annotated[int | None, Told("problems", "problems graded")] = None
    samples: Annotated[int | None, Told("completions", "completions graded, of all problems")] = None
    correct: Annotated[int | None, Told("completions", "those that are right")] = None
    accuracy: Annotated[float | None, Told("share", "mean over samples, then over problems (avg@n)")] = None
    accuracy_standard_error: Annotated[float | None, Told("share", "over problems")] = None
    accuracy_low: Annotated[float | None, Told("share", "lower end of its interval")] = None
    accuracy_high: Annotated[float | None, Told("share", "upper end of its interval")] = None
    confidence: Annotated[float | None, Told("share", "level of that interval")] = None
    accuracy_method: Annotated[str | None, Told("", "how the interval was computed")] = None
    retention: Annotated[float | None, Told("share", "accuracy over that of its seed at LSP 1.0")] = None
    retention_low: Annotated[float | None, Told("share", "lower end of its 95 % interval over problems")] = None
    retention_high: Annotated[float | None, Told("share", "upper end")] = None
    stopped: Annotated[int | None, Told("completions", "ended by a stop token")] = None
    at_cap: Annotated[int | None, Told("completions", "cut off at the token cap")] = None
    looped: Annotated[int | None, Told("completions", "cut because they looped")] = None
    no_answer: Annotated[int | None, Told("completions", "no answer could be read; wrong")] = None
    grader_timeout: Annotated[int | None, Told("completions", "the grader gave no verdict; wrong")] = None
    completion_tokens_mean: Annotated[float | None, Told("tokens", "a completion")] = None
    completion_tokens_median: Annotated[float | None, Told("tokens", "a completion")] = None
    completion_tokens_most: Annotated[int | None, Told("tokens", "the longest completion")] = None
    kept_rows: Annotated[int | None, Told("rows", "training rows read")] = None
    kept_tokens: Annotated[int | None, Told("tokens", "of the training rows after truncation")] = None
    train_steps: Annotated[int | None, Told("steps", "optimiser steps")] = None
    best_step: Annotated[int | None, Told("steps", "step of the checkpoint `best`")] = None
    best_validation_ce: Annotated[float | None, Told("nats", "validation cross-entropy a token at that step")] = None
    train_wall_s: Annotated[float | None, Told("s", "wall time of the training, over all attempts")] = None
    train_wall_over_cpu: Annotated[float | None, Told("ratio", "wall over processor time of a single attempt")] = None
    train_gpu_busy: Annotated[float | None, Told("share", "of the looks at its GPUs, how busy they were")] = None
    train_gpu_hours: Annotated[float | None, Told("h", "GPUs held × wall time")] = None
    train_peak_gpu_memory_gib: Annotated[float | None, Told("GiB", "largest memory of one GPU")] = None
    train_peak_memory_gib: Annotated[float | None, Told("GiB", "largest resident memory of the process")] = None
    train_energy_j: Annotated[float | None, Told("J", "energy, where the driver reports it")] = None
    train_flops: Annotated[float | None, Told("FLOP", "computed from sizes and lengths, not measured")] = None
    generate_wall_s: Annotated[float | None, Told("s", "wall time of the sampling")] = None
    generate_wall_over_cpu: Annotated[float | None, Told("ratio", "as of the training")] = None
    generate_gpu_busy: Annotated[float | None, Told("share", "as of the training")] = None
    generate_gpu_hours: Annotated[float | None, Told("h", "as of the training")] = None
    grade_wall_s: Annotated[float | None, Told("s", "wall time of the grading")] = None
    host: Annotated[str | None, Told("", "machine of the training, of a baseline that of the sampling")] = None
    gpus: Annotated[str | None, Told("", "its GPUs by name, `none` where it had none")] = None
    code_commit: Annotated[str | None, Told("", "commit of the kit that graded")] = None
    train_stage: Annotated[str | None, Told("", "folder in `stages/` whose manifest has these numbers")] = None
    generate_stage: Annotated[str, Told("", "as above, of the sampling")]
    grade_stage: Annotated[str, Told("", "as above, of the grading")]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One completion with its verdict. Its text is in samples.jsonl of `generate_stage`."""

    place: Place
    problem: Annotated[str, Told("", "id of the problem")]
    sample: Annotated[int, Told("", "number of the completion of this problem, from 0")]
    sample_seed: Annotated[int, Told("", "seed it was drawn with")]
    correct: Annotated[bool, Told("", "the verdict")]
    status: Annotated[str, Told("", "`graded`, `no answer`, or `timeout`; what is not graded counts as wrong")]
    gold: Annotated[str, Told("", "the benchmark's answer")]
    extracted: Annotated[str | None, Told("", "answer as it stands in the completion")]
    answer: Annotated[str | None, Told("", "as parsed: equal answers have the same")]
    boxed: Annotated[bool | None, Told("", "the answer was taken from a box; empty in earlier records")]
    completion_tokens: Annotated[int, Told("tokens", "with the stop token")]
    finish_reason: Annotated[str, Told("", "`stop`, `length` (at the cap) or `loop` (cut)")]
    loop_at: Annotated[int | None, Told("tokens", "where a loop is complete; empty where there is none")]
    seconds: Annotated[float, Told("s", "time of generation, of a batch shared out")]
    generate_stage: Annotated[str, Told("", "folder in `stages/` that has its text")]
    grade_stage: Annotated[str, Told("", "folder in `stages/` that has the verdict")]


Row = EvaluationRow | SampleRow
Value = str | int | float | bool | None


class Column(NamedTuple):
    """One column of a kind of rows."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    may_be_empty: bool
    told: Told


TYPE_WORDS: dict[type, str] = {str: "text", int: "integer", float: "number", bool: "true or false"}


def columns_of(kind: type[Row]) -> list[Column]:
    """The columns of a kind of rows, in their order."""
    return [*_columns(Place), *_columns(kind)]


def _columns(kind: type[Row] | type[Place]) -> Iterator[Column]:
    hints = get_type_hints(kind, include_extras=True)
    for name in (field.name for field in fields(kind) if field.name != "place"):
        hint, told = get_args(hints[name])
        kinds = [one for one in get_args(hint) or (hint,) if one is not types.NoneType]
        yield Column(name, kinds[0], len(get_args(hint)) > 1, told)


def markdown_of(kind: type[Row] | type[Place]) -> list[str]:
    """The columns as a GitHub table, for docs/results-as-data.md."""
    lines = ["| column | type | unit | what it holds |", "|---|---|---|---|"]
    for column in _columns(kind):
        empty = ", may be empty" if column.may_be_empty else ""
        name = f"{TYPE_WORDS[column.kind]}{empty}"
        lines.append(f"| `{column.name}` | {name} | {column.told.unit} | {column.told.meaning} |")
    return lines


def values_of(row: Row) -> list[Value]:
    """The values of a row in the order of its columns."""
    return [getattr(part, column.name) for part in (row.place, row) for column in _columns(type(part))]
