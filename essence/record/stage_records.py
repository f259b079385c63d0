"""What each stage adds to the groups of its manifest, and the one way to read a manifest: `read_manifest`.

Required is what every version of the kit has written. What came later is optional: None, or empty, in earlier records.
docs/design.md has the same as a table.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue

from essence.data.row_records import RowCounts, TokenCounts
from essence.errors import RecordError
from essence.files import read_json
from essence.record.manifest import SCHEMA_VERSION, Inputs, Manifest, StageSettings
from essence.record.training_records import TrainData, TrainExecuted, TrainResolved, TrainResults
from essence.record.written import Group, Number, as_record
from essence.settings import StageName

Counts = dict[str, int]


class SourceRecord(Group):
    """Where a download came from; see `Source` of the settings."""

    kind: str | None = None
    name: str = ""
    repository: str | None = None
    commit: str | None = None
    files: list[str] = Field(default_factory=list)
    path: str | None = None
    path_state: str | None = None
    builtin: str | None = None


class DownloadResults(Group):
    files: int | None = None
    bytes: int | None = None
    rows: int | None = None
    """Of a data set that was streamed or made."""
    config: dict[str, JsonValue] | None = None
    """Of a model: its config.json, which is the library's own."""


class DownloadData(Group):
    source: SourceRecord | None = None


class DownloadResolved(Group):
    source: SourceRecord = Field(default_factory=SourceRecord)


class TokenizeResults(RowCounts):
    tokens: int
    statistics: TokenCounts | None = None


class TokenizeData(Group):
    tokens_sha256: str | None = None


class TokenizeExecuted(Group):
    template_sha256: str | None = None
    encoder: str | None = None
    encoder_reason: str | None = None


class TeacherResults(Group):
    rows: int
    tokens: int
    bytes: int
    bytes_per_token: Number | None = None
    files: int | None = None


class TeacherExecuted(Group):
    dtype: str | None = None


class TeacherResolved(Group):
    compute_dtype: str | None = None


class CountAndShare(Group):
    count: int
    share: Number
    cut: int | None = None
    """Of loops: how many were ended by the kit."""


class GenerateResults(Group):
    samples: int
    problems: int
    finish_reasons: Counts
    stop_tokens: Counts = Field(default_factory=dict)
    loops: CountAndShare | None = None
    at_cap: CountAndShare | None = None
    mean_completion_tokens: Number


class GenerateData(Group):
    prompts_sha256: str | None = None


class GenerateExecuted(Group):
    samples_per_problem: int | None = None
    max_new_tokens: int | None = None
    smallest_max_new_tokens: int | None = None
    shortest_prompt_tokens: int | None = None
    longest_prompt_tokens: int | None = None
    stop_loops: bool | None = None
    decoder: str | None = None
    decoder_version: str | None = None
    stop_token_ids: list[int] = Field(default_factory=list)
    template_sha256: str | None = None
    dtype: str | None = None


class BenchmarkResolved(Group):
    name: str | None = None
    problem_field: str | None = None
    answer_field: str | None = None
    answer_type: str | None = None
    prompt: str | None = None
    problems: int | None = None


class GenerateResolved(Group):
    samples: int | None = None
    max_new_tokens: int | None = None
    max_model_tokens: int | None = None
    stop_loops: bool | None = None
    dtype: str | None = None
    temperature: Number | None = None
    seed: int | None = None
    benchmark: BenchmarkResolved = Field(default_factory=BenchmarkResolved)


class ProblemCount(Group):
    """The samples of one problem."""

    problem: str
    correct: int
    samples: int
    tokens: int | None = None
    """Of all its completions; this and the next two are not in records of earlier versions."""
    stopped: int | None = None
    at_cap: int | None = None


class EstimateRecord(Group):
    """An estimate with its interval, as `essence/evaluation/statistics.py` makes it."""

    value: Number | None
    standard_error: Number | None
    low: Number | None
    high: Number | None
    n: int | None = None
    method: str | None = None


class Doubts(Group):
    """What speaks against an accuracy (essence/evaluation/doubts.py)."""

    graders_disagree: int = 0
    disagreeing: Counts = Field(default_factory=dict)
    answers_not_from_a_box: int = 0
    box_in_thought_alone: int = 0


class GradeResults(Group):
    benchmark: str
    metric: str
    """`aime25 avg@64`."""
    accuracy: Number
    standard_error: Number | None
    interval: Annotated[list[Number | None], Field(min_length=2, max_length=2)]
    """Low, high; nulls for a single problem."""
    confidence: Number
    method: str
    per_problem: list[ProblemCount]
    finish_reasons: Counts
    mean_completion_tokens: Number
    median_completion_tokens: Number | None = None
    longest_completion_tokens: int | None = None
    completion_tokens: EstimateRecord | None = None
    """Mean with its interval over problems; this and the next two are not in records of earlier versions."""
    stop_rate: EstimateRecord | None = None
    cap_rate: EstimateRecord | None = None
    statuses: Counts = Field(default_factory=dict)
    pass_at_k: dict[str, EstimateRecord] = Field(default_factory=dict)
    majority_at_k: dict[str, EstimateRecord] = Field(default_factory=dict)
    doubts: Doubts | None = None


class GradeData(Group):
    samples_sha256: str | None = None


class GradeExecuted(Group):
    grader: str | None = None
    grader_version: str | None = None
    samples_per_problem: int | None = None


class GradeResolved(Group):
    grader: str | None = None
    samples: int | None = None
    confidence: Number | None = None
    benchmark: BenchmarkResolved = Field(default_factory=BenchmarkResolved)


class DownloadManifest(Manifest):
    results: DownloadResults
    inputs: Inputs[DownloadData]
    settings: StageSettings[DownloadResolved, Group]

    @property
    def source(self) -> SourceRecord:
        return self.settings.resolved.source


class TokenizeManifest(Manifest):
    results: TokenizeResults
    inputs: Inputs[TokenizeData]
    settings: StageSettings[Group, TokenizeExecuted]


class TeacherManifest(Manifest):
    results: TeacherResults
    settings: StageSettings[TeacherResolved, TeacherExecuted]


class TrainManifest(Manifest):
    results: TrainResults
    inputs: Inputs[TrainData]
    settings: StageSettings[TrainResolved, TrainExecuted]


class GenerateManifest(Manifest):
    results: GenerateResults
    inputs: Inputs[GenerateData]
    settings: StageSettings[GenerateResolved, GenerateExecuted]


class GradeManifest(Manifest):
    results: GradeResults
    inputs: Inputs[GradeData]
    settings: StageSettings[GradeResolved, GradeExecuted]


MANIFESTS: Mapping[StageName, type[Manifest]] = {
    "download": DownloadManifest,
    "tokenize": TokenizeManifest,
    "teacher": TeacherManifest,
    "train": TrainManifest,
    "generate": GenerateManifest,
    "grade": GradeManifest,
}


def read_manifest(file: Path) -> Manifest:
    """The manifest of a finished stage, as the class of its stage.

    Raises:
        RecordError: it is missing, no JSON, of a newer kit, or of another shape than its stage writes.
    """
    record = read_json(file)
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{file}: written by a newer kit (schema {version}, known up to {SCHEMA_VERSION})", "update the kit"
        )
    identity = record.get("identity")
    stage = identity.get("stage") if isinstance(identity, dict) else None
    kind = next((kind for name, kind in MANIFESTS.items() if name == stage), Manifest)
    return as_record(file, record, kind, f"the manifest of a {stage} stage" if kind is not Manifest else "a manifest")


def intact_manifest(file: Path) -> Manifest:
    """As `read_manifest`; RecordError for a record that was edited after it was written, too."""
    manifest = read_manifest(file)
    if not manifest.is_sealed:
        raise RecordError(f"{file}: edited after it was written: its content does not give its seal")
    return manifest
