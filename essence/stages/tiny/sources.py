"""The four built-in sources of the tiny experiment, as the download stage calls them.

Each writes what a download of that kind leaves behind, and returns what is worth recording about it. torch and
transformers are imported only where a model is made.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from essence.files import write_atomically
from essence.progress import StageContext
from essence.record.stage_records import DownloadResults
from essence.settings import Option
from essence.stages.tiny.problems import BenchmarkRow, TrainingRow, benchmark_rows, training_rows
from essence.stages.tiny.source_options import BenchmarkOptions, ModelOptions, RowOptions, StudentOptions, read_options
from essence.stages.tiny.toy_tokenizer import END_OF_TEXT, TURN_END

Options = Mapping[str, Option]
"""As an experiment's TOML has them."""


def make_problems(folder: Path, options: Options, context: StageContext) -> DownloadResults:
    """`rows/train.jsonl`: problems with right traces in the Bespoke-Stratos row format."""
    del context
    asked = read_options(RowOptions, options, "tiny-problems")
    rows = training_rows(asked.rows, asked.digits, asked.seed, slip=0)
    _write_lines(folder / "rows" / "train.jsonl", rows)
    return DownloadResults(rows=len(rows))


def make_benchmark(folder: Path, options: Options, context: StageContext) -> DownloadResults:
    """`problems/problems.jsonl`: fields id, problem, answer; none of them in any training row."""
    del context
    asked = read_options(BenchmarkOptions, options, "tiny-benchmark")
    rows = benchmark_rows(asked.problems, asked.digits, asked.seed)
    _write_lines(folder / "problems" / "problems.jsonl", rows)
    return DownloadResults(problems=len(rows))


def make_teacher(folder: Path, options: Options, context: StageContext) -> DownloadResults:
    """`model/`: a chat model trained on right traces."""
    from essence.stages.tiny.toy_models import make_model

    asked = read_options(ModelOptions, options, "tiny-teacher")
    return make_model(folder / "model", asked, 0, TURN_END, context)


def make_student(folder: Path, options: Options, context: StageContext) -> DownloadResults:
    """`model/`: a Base model that knows the format and adds badly."""
    from essence.stages.tiny.toy_models import make_model

    asked = read_options(StudentOptions, options, "tiny-student")
    return make_model(folder / "model", asked, asked.slip, END_OF_TEXT, context)


def _write_lines(path: Path, rows: Iterable[TrainingRow | BenchmarkRow]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


BUILTIN: dict[str, Callable[[Path, Options, StageContext], DownloadResults]] = {
    "tiny-problems": make_problems,
    "tiny-benchmark": make_benchmark,
    "tiny-teacher": make_teacher,
    "tiny-student": make_student,
}
"""Name in an experiment's TOML -> what makes it: output folder of the stage, options, surroundings -> results."""
