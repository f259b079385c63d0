"""What each stage adds to the groups of its manifest, and the one way to read a manifest: `read_manifest`.

Required is what every version of the kit has written. What came later is optional: None, or empty, in earlier records.
docs/design.md has the same as a table.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, JsonValue

from essence.data.row_records import RowCounts, TokenCounts
from essence.errors import RecordError
from essence.files import read_json
from essence.record.evaluation_records import (
    GenerateData,
    GenerateExecuted,
    GenerateResolved,
    GenerateResults,
    GradeData,
    GradeExecuted,
    GradeResolved,
    GradeResults,
)
from essence.record.manifest import SCHEMA_VERSION, Inputs, Manifest, StageSettings
from essence.record.proof_records import ProveDecodingResults, ProveResolved, ProveTrainingResults
from essence.record.record_files import Group, Number, as_record
from essence.record.training_records import RowsRecord, TrainData, TrainExecuted, TrainResolved, TrainResults
from essence.settings import PositionsRecord, StageName


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
    rows_wanted: int | None = None
    """Of a data set that was streamed."""
    problems: int | None = None
    """Of a benchmark that was made."""
    parameters: int | None = None
    """Of a model that was made, as what follows: its pre-training."""
    steps: int | None = None
    tokens: int | None = None
    last_loss: Number | None = None
    validation_ce: Number | None = None
    pretraining_s: Number | None = None
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
    rows_without_think_start: int | None = None
    rows_without_think_end: int | None = None


class TeacherResults(Group):
    rows: int
    tokens: int
    bytes: int
    bytes_per_token: Number | None = None
    files: int | None = None


class TeacherData(Group):
    rows: RowsRecord | None = None
    positions: PositionsRecord | None = None


class TeacherExecuted(Group):
    """Of the last attempt alone."""

    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    packed: bool | None = None
    tokens: int | None = None
    fill: Number | None = None
    """None where all was read by earlier attempts."""


class TeacherResolved(Group):
    compute_dtype: str | None = None


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
    inputs: Inputs[TeacherData]
    settings: StageSettings[TeacherResolved, TeacherExecuted]


class TrainManifest(Manifest):
    results: TrainResults
    inputs: Inputs[TrainData]
    settings: StageSettings[TrainResolved, TrainExecuted]

    @property
    def recomputed(self) -> bool | None:
        """Whether activations were computed again in the backward pass; None where the record does not say."""
        found = self.settings.executed.activations
        return found.recomputed if found else self.settings.resolved.activation_checkpointing


class GenerateManifest(Manifest):
    results: GenerateResults
    inputs: Inputs[GenerateData]
    settings: StageSettings[GenerateResolved, GenerateExecuted]


class GradeManifest(Manifest):
    results: GradeResults
    inputs: Inputs[GradeData]
    settings: StageSettings[GradeResolved, GradeExecuted]


class ProveTrainingManifest(Manifest):
    results: ProveTrainingResults
    settings: StageSettings[ProveResolved, Group]


class ProveDecodingManifest(Manifest):
    results: ProveDecodingResults
    settings: StageSettings[ProveResolved, Group]


MANIFESTS: Mapping[StageName, type[Manifest]] = {
    "download": DownloadManifest,
    "tokenize": TokenizeManifest,
    "teacher": TeacherManifest,
    "train": TrainManifest,
    "generate": GenerateManifest,
    "grade": GradeManifest,
    "prove_training": ProveTrainingManifest,
    "prove_decoding": ProveDecodingManifest,
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
