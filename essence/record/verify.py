"""Check a run directory against its own records: every hash, every schema, the chain from download to report.

Findings are sentences; none means that everything that could be checked is as recorded. What could not be checked, as
where only the records were copied and not the data, is named and is no finding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from essence.atomic import read_json
from essence.errors import RecordError
from essence.record.canonical import sha256_file
from essence.record.checks import (
    Manifest,
    absent_inputs,
    changed_inputs,
    executed_findings,
    file_findings,
    key_findings,
    result_findings,
    schema_findings,
    seal_findings,
)
from essence.record.export import left_out
from essence.store import RunDirectory, StageFolder


@dataclass
class Verification:
    """What was checked and what was found."""

    stages: int = 0
    files: int = 0
    bytes: int = 0
    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """What is not here and could therefore not be checked."""
    unfinished: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "ok": not self.findings}


def verify(run_directory: RunDirectory, experiment: str | None = None, stages: list[str] | None = None) -> Verification:
    """Verify the named stages, those of one experiment, or all that lie in the run directory."""
    if not run_directory.root.is_dir():
        raise RecordError(f"{run_directory.root}: no such run directory")
    names = _stage_ids(run_directory, experiment) if stages is None else stages
    folders = [run_directory.stage(name) for name in names]
    found = Verification(unfinished=[folder.path.name for folder in folders if not folder.done])
    absent = left_out(run_directory.root)
    records = dict(_records([folder for folder in folders if folder.done], found))
    known, planned = _known_files(records), _planned(run_directory)
    for folder, manifest in records.items():
        _verify_stage(folder, manifest, known, absent, found)
        _verify_chain(folder, manifest, planned, found)
    found.findings += _code_findings(run_directory, records)
    if not found.stages and not found.unfinished and not found.findings:
        raise RecordError(f"{run_directory.root}: holds no stages; is it a run directory?")
    return found


def _stage_ids(run_directory: RunDirectory, experiment: str | None) -> list[str]:
    if experiment is None:
        return sorted(p.name for p in run_directory.stages.glob("*-*") if p.is_dir())
    return sorted(read_json(run_directory.plan(experiment))["stages"])


def _records(folders: list[StageFolder], found: Verification) -> Iterator[tuple[StageFolder, Manifest]]:
    """The records that can be read and have the published shape; of the others, why not."""
    for folder in folders:
        found.stages += 1
        try:
            manifest = read_json(folder.manifest)
            wrong = list(schema_findings(folder.manifest, manifest))
        except RecordError as error:
            wrong = [str(error)]
        found.findings += wrong
        if not wrong:
            yield folder, manifest


def _known_files(records: dict[StageFolder, Manifest]) -> dict[str, str]:
    """sha256 of every recorded file -> `train-3fa9.../last/model.safetensors`."""
    return {
        entry["sha256"]: f"{folder.path.name}/{entry['path']}"
        for folder, manifest in records.items()
        for entry in manifest["outputs"]
    }


def _verify_stage(
    folder: StageFolder, manifest: Manifest, known: dict[str, str], absent: set[str], found: Verification
) -> None:
    findings = list(seal_findings(folder, manifest))
    expected = [e for e in manifest["outputs"] if f"stages/{folder.path.name}/output/{e['path']}" not in absent]
    not_here = [entry for entry in manifest["outputs"] if entry not in expected]
    if not folder.output.is_dir():
        expected, not_here = [], manifest["outputs"]
    if not_here:
        size = sum(entry["bytes"] for entry in not_here)
        found.unchecked.append(f"{folder.path.name}: {len(not_here)} files of its output, {size} bytes")
    findings += file_findings(folder, expected, known)
    found.files += len(expected)
    found.bytes += sum(entry["bytes"] for entry in expected)
    if folder.spec.is_file():
        findings += key_findings(folder, manifest)
    else:
        found.unchecked.append(f"{folder.path.name}: its key, spec.json is not here")
    findings += executed_findings(folder, manifest)
    if not any(str(folder.output) in finding for finding in findings):  # damaged lines are named by their hash
        findings += result_findings(folder, manifest)
    found.findings += findings


def _verify_chain(folder: StageFolder, manifest: Manifest, planned: set[str], found: Verification) -> None:
    """An input that a plan here speaks of was removed; one of another run directory was not copied."""
    found.findings += changed_inputs(folder, manifest)
    for name, identifier in absent_inputs(folder, manifest).items():
        sentence = f"{folder.path.parent / identifier}: no record, but {folder.path.name} read it as '{name}'"
        if identifier in planned:
            found.findings.append(f"{sentence}: removed")
        else:
            found.unchecked.append(sentence)


def _code_findings(run_directory: RunDirectory, records: dict[StageFolder, Manifest]) -> Iterator[str]:
    """Whether the uncommitted changes that a stage ran with are the ones that were kept."""
    for sha256 in sorted({str(m["code"]["diff_sha256"]) for m in records.values() if m["code"]["diff_sha256"]}):
        file = run_directory.code / f"{sha256}.diff"
        if not file.is_file():
            yield f"{file}: missing: the uncommitted changes that stages ran with"
        elif sha256_file(file) != sha256:
            yield f"{file}: content differs from its name"


def _planned(run_directory: RunDirectory) -> set[str]:
    """Ids of all stages that any plan in the run directory speaks of."""
    return {name for e in run_directory.experiments() for name in read_json(run_directory.plan(e))["stages"]}
