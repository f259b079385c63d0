"""The manifest: the record of one finished stage. `manifest.schema.json` beside this file is made from it.

Null means that this machine could not tell. A group is never left out.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from essence.files import canonical_json, sha256_text
from essence.settings import Record, StageName

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")


class Written(Record):
    """A part of a manifest: stages write it, not people, so NumPy integers are numbers and old records stay legible."""

    model_config = ConfigDict(strict=False)


class Attempt(Written):
    started: str
    seconds: float
    outcome: Literal["finished", "stopped", "failed", "killed"]


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


class Inputs(Written):
    stages: dict[str, StageInput]
    data: dict[str, Any]
    accepted: dict[str, list[str]] = Field(default_factory=dict)
    """Stages of earlier code that the result is built on (`--accept-earlier`), by id -> what changed since."""


class StageSettings(Written):
    resolved: dict[str, Any]
    executed: dict[str, Any]


class Hardware(Written):
    host: str
    cpu: str | None
    cpu_count: int | None
    threads: int
    memory_gib: float
    gpus: list[dict[str, Any]]
    driver: str | None
    cuda: str | None
    nccl: str | None
    scheduler: dict[str, str]


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
    more: dict[str, Any]


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
    inputs: Inputs
    settings: StageSettings
    hardware: Hardware
    seeds: dict[str, int]
    results: dict[str, Any]
    cost: Cost
    outputs: list[OutputFile]
    seal: str
    """sha256 of the canonical JSON of everything else: an edited record does not give its seal any more."""

    def sealed(self) -> dict[str, Any]:
        """The record as it is written."""
        record = self.model_dump(mode="json")
        return {**record, "seal": seal_of(record)}


def seal_of(record: dict[str, Any]) -> str:
    """The seal that a record should have; hex sha256."""
    return sha256_text(canonical_json({name: value for name, value in record.items() if name != "seal"}))


def json_schema() -> str:
    """The published JSON Schema of a manifest."""
    schema = Manifest.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"essence manifest, version {SCHEMA_VERSION}"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
