"""Records of a stage that runs or has failed: holder, progress, attempts, failure, spec.

Every one of these files can be half of another version, or gone at any moment; what a reader needs has a default.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from essence.errors import RecordError
from essence.files import read_json, read_json_lines
from essence.record.manifest import HowEnded
from essence.record.record_files import Number, as_record, read_record
from essence.settings import SETTINGS, Record, Spec
from essence.settings.spec import AnySettings

AnyLive = TypeVar("AnyLive", bound=BaseModel)


class Live(Record):
    """A record of the moment; fields of other versions are left out."""

    model_config = ConfigDict(extra="ignore")


class Holder(Live):
    """holder.json: who works in a folder."""

    pid: int
    host: str
    since: float
    """Unix time."""
    command: str = ""
    pid_namespace: str | None = None
    """In a container numbers of processes mean others than outside; None in earlier records and off Linux."""


class GpuUse(Live):
    """One GPU at one moment."""

    busy_percent: float
    memory_gib: float
    total_gib: float


class GivenGpus(Live):
    """gpus.json: which GPUs of its machine a stage was given."""

    names: tuple[str, ...] = ()
    """As CUDA_VISIBLE_DEVICES names them."""


class ProgressRecord(Live):
    """progress.json: how far a stage is."""

    phase: str = "starting"
    done: Number = 0
    total: Number = 1
    unit: str = ""
    note: str = ""
    seconds_left: float | None = None
    updated: float
    """Unix time."""
    pid: int | None = None
    gpus: list[GpuUse] = Field(default_factory=list)


class FailureRecord(Live):
    """failure.json: why the last attempt failed."""

    kind: str = ""
    curable: bool = False
    message: str = ""
    time: str | None = None

    @property
    def last_line(self) -> str:
        """The last line of the message, which of a traceback is the error itself."""
        lines = self.message.strip().splitlines()
        return lines[-1] if lines else ""


class SourceSpec(Live):
    """Of a download: a local path that was taken in."""

    path: str | None = None


class SettingsSpec(Live):
    source: SourceSpec | None = None


class StageSpec(Live):
    """spec.json as far as it is read again, of any version; `Spec` is what a stage reads."""

    stage: str = ""
    title: str = ""
    settings: SettingsSpec = Field(default_factory=SettingsSpec)
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input name -> stage folder, relative."""
    environment: dict[str, str] = Field(default_factory=dict)
    source_sha256: str = ""
    modules: dict[str, str] = Field(default_factory=dict)
    """Empty in earlier specs."""


class LastRun(Live):
    """last.json: the experiment that was run last."""

    experiment: str


class FilePath(Live):
    path: str


class ResolvedFile(Live):
    """experiment.json: the file that an experiment was read from."""

    file: FilePath


class Whereabouts(Live):
    """The file of an experiment, and the same from the run directory."""

    path: str
    from_run_directory: str | None = None


class ResolvedExperiment(Live):
    """experiment.json, as far as it is compared with an experiment of the same name."""

    file: Whereabouts | None = None
    experiment: dict[str, JsonValue]
    catalogue: dict[str, JsonValue]


class AttemptLine(Live):
    """A line of attempts.jsonl: a start, or an end."""

    started: str | None = None
    unix: float = 0.0
    ended: HowEnded | None = None
    seconds: float = 0.0


def read_whole_spec(file: Path) -> Spec:
    """All that a stage is given; RecordError where spec.json is missing, damaged or of another kit.

    `settings` are those of the stage (`stage_settings`).
    """
    return read_record(file, Spec, "a spec")


def stage_settings(file: Path, spec: Spec) -> AnySettings:
    """The settings of the stage that `spec`, read from `file`, is for; RecordError for those of another kit."""
    return as_record(file, spec.settings, SETTINGS[spec.stage], f"settings of a {spec.stage} stage")


def read_spec(file: Path) -> StageSpec:
    """What spec.json says of a stage; RecordError where it is missing, damaged or of another shape."""
    return read_record(file, StageSpec, "a spec")


def read_failure(file: Path) -> FailureRecord:
    """Why the last attempt failed; RecordError where nothing says so."""
    return read_record(file, FailureRecord, "a failure")


def look_at(file: Path, kind: type[AnyLive]) -> AnyLive | None:
    """A record of the moment; None where it is gone or cannot be read, which the next moment may change."""
    try:
        return kind.model_validate(read_json(file), strict=True)
    except (RecordError, ValidationError):
        return None


def read_attempt_lines(file: Path) -> Iterator[AttemptLine]:
    """The lines of attempts.jsonl that are whole."""
    for line in read_json_lines(file):
        try:
            yield AttemptLine.model_validate(line, strict=True)
        except ValidationError:
            continue
