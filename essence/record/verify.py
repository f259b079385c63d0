"""Check a run directory against its own records: every hash, every schema, the chain from input to output.

Findings are sentences; an empty list means that everything that could be checked is as recorded.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from essence.atomic import read_json
from essence.errors import RecordError
from essence.record.canonical import canonical_json, sha256_file, sha256_text
from essence.record.manifest import SCHEMA_FILE, SCHEMA_VERSION
from essence.store import RunDirectory, StageFolder, stage_id


@dataclass
class Verification:
    """What was checked and what was found."""

    stages: int = 0
    files: int = 0
    bytes: int = 0
    findings: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        counts = {"stages": self.stages, "files": self.files, "bytes": self.bytes}
        return {**counts, "ok": not self.findings, "findings": self.findings, "unfinished": self.unfinished}


def verify(run_directory: RunDirectory, experiment: str | None = None) -> Verification:
    """Verify the stages of one experiment, or all that lie in the run directory."""
    if not run_directory.root.is_dir():
        raise RecordError(f"{run_directory.root}: no such run directory")
    verification = Verification()
    for identifier in _stage_ids(run_directory, experiment):
        folder = run_directory.stage(identifier)
        if folder.done:
            _verify_stage(folder, verification)
        else:
            verification.unfinished.append(identifier)
    if not verification.stages and not verification.unfinished:
        raise RecordError(f"{run_directory.root}: holds no stages; is it a run directory?")
    return verification


def _stage_ids(run_directory: RunDirectory, experiment: str | None) -> list[str]:
    if experiment is None:
        return sorted(p.name for p in run_directory.stages.glob("*-*") if p.is_dir())
    return sorted(read_json(run_directory.plan(experiment))["stages"])


def _verify_stage(folder: StageFolder, verification: Verification) -> None:
    verification.stages += 1
    try:
        manifest = read_json(folder.manifest)
    except RecordError as error:
        verification.findings.append(str(error))
        return
    findings = _schema_findings(folder.manifest, manifest)
    if not findings:
        findings = [
            *_output_findings(folder, manifest, verification),
            *_chain_findings(folder, manifest),
            *_key_findings(folder, manifest),
        ]
    verification.findings += findings


def _schema_findings(file: Path, manifest: dict[str, Any]) -> list[str]:
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return [
            f"{file}: written by a newer kit (schema {version}, this one reads up to {SCHEMA_VERSION}); update the kit"
        ]
    validator = jsonschema.Draft202012Validator(read_json(SCHEMA_FILE))
    errors = sorted(validator.iter_errors(manifest), key=lambda error: list(map(str, error.path)))
    return [f"{file}: {'.'.join(map(str, error.path)) or 'manifest'}: {error.message}" for error in errors[:3]]


def _output_findings(folder: StageFolder, manifest: dict[str, Any], verification: Verification) -> list[str]:
    findings = []
    recorded = {entry["path"]: entry for entry in manifest["outputs"]}
    for path, entry in recorded.items():
        file = folder.output / path
        if not file.is_file():
            findings.append(f"{file}: missing")
            continue
        size = file.stat().st_size
        verification.files += 1
        verification.bytes += size
        if size != entry["bytes"]:
            findings.append(f"{file}: {size} bytes, {entry['bytes']} recorded")
        elif sha256_file(file) != entry["sha256"]:
            findings.append(f"{file}: content differs from the recorded sha256 {entry['sha256'][:16]}...")
    found = {p.relative_to(folder.output).as_posix() for p in folder.output.rglob("*") if p.is_file()}
    return findings + [f"{folder.output / path}: not in the record" for path in sorted(found - recorded.keys())]


def _chain_findings(folder: StageFolder, manifest: dict[str, Any]) -> list[str]:
    """Every input is the very stage that was read."""
    findings = []
    for name, entry in manifest["inputs"]["stages"].items():
        file = folder.path.parent / stage_id(entry["stage"], entry["key"]) / "manifest.json"
        if not file.is_file():
            findings.append(f"{folder.manifest}: its input '{name}' ({file.parent.name}) is not here")
        elif sha256_file(file) != entry["manifest_sha256"]:
            findings.append(f"{file}: changed since {folder.path.name} read it as '{name}'")
    return findings


def _key_findings(folder: StageFolder, manifest: dict[str, Any]) -> list[str]:
    """The key is the hash of what the spec and the record say, and the folder is named after it."""
    spec = read_json(folder.spec)
    determines = {
        "stage": spec["stage"],
        "settings": manifest["settings"]["resolved"],
        "inputs": {name: entry["key"] for name, entry in manifest["inputs"]["stages"].items()},
        "environment": spec["environment"],
        "source": manifest["code"]["source_sha256"],
    }
    key = sha256_text(canonical_json(determines))
    identity = manifest["identity"]
    if key != identity["key"]:
        return [f"{folder.manifest}: its settings, inputs, environment or source do not give its key"]
    if folder.path.name != stage_id(identity["stage"], key):
        return [f"{folder.path}: holds the record of {stage_id(identity['stage'], key)}"]
    return []
