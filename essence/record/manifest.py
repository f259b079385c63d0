"""The manifest: the record of one finished stage. `manifest.schema.json` beside this file is made from it.

Null means that this machine could not tell. A group is never left out. What a stage adds to the groups that all have
is in `stage_records.py`, which also reads a manifest.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import Field, JsonValue, PrivateAttr, SerializeAsAny, model_validator

from essence.record.record_files import Group, Number, Written, gives_seal, seal_of
from essence.settings import StageName

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")


HowEnded = Literal["finished", "stopped", "failed", "killed"]
"""An attempt at a stage."""


class Attempt(Written):
    started: str
    seconds: float
    outcome: HowEnded


class Identity(Written):
    stage: StageName
    key: str
    title: str
    status: Literal["finished"]
    started: str
    """Start of the first attempt, UTC, ISO 8601."""
    finished: str
    attempts: list[Attempt]


class Code(Written):
    version: str
    commit: str | None
    dirty: bool | None
    diff_sha256: str | None
    """The uncommitted changes themselves are in the run directory as `code/<diff_sha256>.diff`."""
    source_sha256: str
    """Hash of the modules of the kit that can change the result."""
    modules: dict[str, str] = Field(default_factory=dict)
    """Each of these modules -> hash of its syntax tree. Earlier records have none."""


class Image(Written):
    engine: str
    engine_version: str | None
    digest: str | None
    base_digest: str | None
    sif_sha256: str | None


class Software(Written):
    lock_sha256: str | None
    python: str
    platform: str
    packages: dict[str, str]
    """Distributions as found inside the environment."""
    variables: dict[str, str]
    """Environment variables from an allow-list."""


class StageInput(Written):
    stage: StageName
    key: str
    manifest_sha256: str


AnyData = TypeVar("AnyData", bound=Group, covariant=True)
AnyResolved = TypeVar("AnyResolved", bound=Group, covariant=True)
AnyExecuted = TypeVar("AnyExecuted", bound=Group, covariant=True)


class Inputs(Written, Generic[AnyData]):
    stages: dict[str, StageInput]
    data: AnyData
    accepted: dict[str, list[str]] = Field(default_factory=dict)
    """Stages of earlier code that the result is built on (`--accept-earlier`), by id -> what changed since."""


class StageSettings(Written, Generic[AnyResolved, AnyExecuted]):
    resolved: AnyResolved
    """As the stage was asked; of earlier code perhaps with settings that are no longer there."""
    executed: AnyExecuted
    """As they came out in the run."""


class Gpu(Group):
    """As nvidia-smi names it."""

    index: str | None = None
    name: str | None = None
    uuid: str | None = None
    driver_version: str | None = None
    memory_gib: Number | None = None


class Hardware(Written):
    host: str
    cpu: str | None
    cpu_count: int | None
    threads: int
    memory_gib: float
    gpus: list[Gpu]
    driver: str | None
    cuda: str | None
    nccl: str | None
    scheduler: dict[str, str]


class CostMore(Group):
    """What a stage counts beside what all do."""

    gpu_busy_share: Number | None = None
    """Of its time, as the GPUs' driver counts; absent without one."""


class Cost(Written):
    wall_s: float
    """Sum over all attempts, killed ones as far as they are known."""
    cpu_s: float
    """Processor time of the last attempt."""
    gpu_hours: float
    peak_memory_gib: float
    """Largest resident memory of the stage's process."""
    peak_gpu_memory_gib: float | None
    energy_j: float | None
    tokens: int | None
    flops: float | None
    flops_formula: str | None
    more: SerializeAsAny[CostMore]
    """What this stage alone counts."""


class OutputFile(Written):
    path: str
    bytes: int
    sha256: str


class Manifest(Written):
    schema_version: Literal[1] = Field(default=1)
    identity: Identity
    code: Code
    image: Image
    software: Software
    inputs: Inputs[Group]
    settings: StageSettings[Group, Group]
    hardware: Hardware
    seeds: dict[str, int]
    results: Group
    cost: Cost
    outputs: list[OutputFile]
    seal: str
    """sha256 of the canonical JSON of everything else: an edited record does not give its seal any more."""
    _read: dict[str, JsonValue] | None = PrivateAttr(default=None)
    _resolved: Mapping[str, JsonValue] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, value: Any, handler: Any) -> Self:
        """Seal and key are hashes of the JSON itself, so that is kept as it was read."""
        made: Self = handler(value)
        if isinstance(value, dict) and isinstance(value.get("identity"), dict):
            made._read, made._resolved = value, value["settings"]["resolved"]
        return made

    @classmethod
    def of(cls, **groups: object) -> Self:
        """A record made of its groups, each an object or as a stage reports it."""
        return cls.model_validate(groups)

    @functools.cached_property
    def as_written(self) -> dict[str, JsonValue]:
        """The JSON that was read; of a record that was made here, that which is written."""
        return self.model_dump(mode="json") if self._read is None else self._read

    @property
    def resolved_json(self) -> Mapping[str, object]:
        """`settings.resolved` as JSON: what the key is a hash of."""
        return self.settings.resolved.model_dump(mode="json") if self._resolved is None else self._resolved

    @functools.cached_property
    def is_sealed(self) -> bool:
        """True when the record is as it was written."""
        return gives_seal(self.as_written)

    @property
    def input_keys(self) -> dict[str, str]:
        """Input name -> key of the stage that was read."""
        return {name: entry.key for name, entry in self.inputs.stages.items()}

    def sealed(self) -> dict[str, object]:
        """The record as it is written."""
        record: dict[str, object] = self.model_dump(mode="json")
        return {**record, "seal": seal_of(record)}


def json_schema() -> str:
    """The published JSON Schema of a manifest."""
    schema = Manifest.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"essence manifest, version {SCHEMA_VERSION}"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
