"""What `invoke traces` counted in the rows of a data set: proxies for what the paper asked a judge.

`<experiment>/traces/<data set>.json`, sealed as a manifest is. docs/claims.md has the rules.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from essence.errors import RecordError
from essence.files import read_json, write_json
from essence.record.record_files import Written, as_record, gives_seal, seal_of

TRACES = "traces"
"""Folder of these records within an experiment's."""


class CountedMean(Written):
    """A mean over rows."""

    value: float | None
    """None where no row could be counted."""
    standard_error: float | None
    """None of fewer than two rows."""
    rows: int


class TraceRecord(Written):
    """The counts of one data set."""

    schema_version: Literal[1] = Field(default=1)
    dataset: str
    tokenize_stage: str
    """Whose rows were counted, by the settings in its record."""
    manifest_sha256: str
    """Of that record."""
    rows_kept: int
    """Rows that the stage kept."""
    rows_counted: int
    """Of these, evenly spaced, so many were counted."""
    rows_without_trace: int
    """Counted rows without both markers in order."""
    rows_without_answer: int
    """Of those with a trace, rows whose answer section boxes nothing."""
    rows_with_answer_in_question: int
    rows_with_answer_nowhere: int
    """Rows whose trace never states the final answer as the answer section writes it."""
    first_answer_place: CountedMean
    """Share of the trace's characters before the final answer first appears in it."""
    cues_before_answer: CountedMean
    """Self-reflection cues before that place."""
    same_answer: CountedMean
    """Whether the grader finds the answer section's answer at the end of the trace; 0 or 1."""
    cues_by_tenth: list[float]
    """Mean number of cues in each tenth of the trace's characters."""
    grader: str
    grader_version: str
    seal: str = ""

    def sealed(self) -> dict[str, object]:
        """The record as it is written."""
        record: dict[str, object] = self.model_dump(mode="json")
        return {**record, "seal": seal_of(record)}


def write_trace_record(folder: Path, record: TraceRecord) -> Path:
    """Write the record into an experiment's folder; returns its file."""
    file = folder / TRACES / f"{record.dataset}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record.sealed())
    return file


def read_trace_records(folder: Path) -> tuple[list[TraceRecord], list[str]]:
    """The records of an experiment's folder, and a sentence for each file that cannot be believed."""
    records, refused = [], []
    for file in sorted((folder / TRACES).glob("*.json")):
        try:
            found = read_json(file)
            record = as_record(file.name, found, TraceRecord, "a count of traces")
            if not gives_seal(found):
                raise RecordError("edited after it was written")
            records.append(record)
        except RecordError as error:
            refused.append(f"Not counted: {file.name} in {TRACES}/ ({error}).")
    return records, refused
