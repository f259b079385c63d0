"""Check a run directory against its own records: every hash, every schema, the chain from download to report.

Findings are sentences; none means that everything that could be checked is as recorded. What could not be checked, as
where only the records were copied and not the data, is named and is no finding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from essence.errors import InputError, RecordError
from essence.files import sha256_file
from essence.record.archive import left_out
from essence.record.manifest import Manifest
from essence.record.plan_coverage import Plans, plan_findings, read_plans, unfinished_lines
from essence.record.plan_record import accepted_sentences
from essence.record.recount import result_findings
from essence.record.run_directory import RunDirectory, StageFolder
from essence.record.stage_checks import (
    absent_inputs,
    changed_inputs,
    executed_findings,
    file_findings,
    image_findings,
    key_findings,
    seal_findings,
)
from essence.record.stage_records import read_manifest


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
    """A sentence for each cell or baseline that lacks something, and for each stage that no plan here speaks of."""
    accepted: list[str] = field(default_factory=list)
    """What was taken from earlier code; no finding."""

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "ok": not self.findings}


def verify(run_directory: RunDirectory, experiment: str | None = None, stages: list[str] | None = None) -> Verification:
    """Verify the named stages, those of one experiment, or all that are in the run directory or are planned there."""
    if not run_directory.root.is_dir():
        raise RecordError(f"{run_directory.root}: no such run directory")
    found = Verification()
    plans = read_plans(run_directory, found.findings)
    names = _stage_ids(run_directory, plans, experiment) if stages is None else stages
    done = [folder for name in names if (folder := run_directory.stage(name)).done]
    if not (done or names or found.findings):
        raise RecordError(f"{run_directory.root}: holds no stages", "is it a run directory?")
    absent = left_out(run_directory.root)
    records = dict(_records(done, found))
    known, planned = _known_files(records), {name for plan in plans.values() for name in plan.stages}
    for folder, manifest in records.items():
        _verify_stage(folder, manifest, known, absent, found)
        _verify_chain(folder, manifest, planned, found)
    if stages is None:
        asked = {name: plan for name, plan in plans.items() if experiment in (None, name)}
        _verify_plans(run_directory, asked, records, found)
        found.unfinished += unfinished_lines(run_directory, asked, names)
        for name, plan in asked.items():
            found.accepted += [f"{name}: {line}" for line in accepted_sentences(plan.stages.values())]
    found.findings += _code_findings(run_directory, records)
    return found


def _stage_ids(run_directory: RunDirectory, plans: Plans, experiment: str | None) -> list[str]:
    if experiment is not None:
        return sorted(plans[experiment].stages) if experiment in plans else []
    present = {p.name for p in run_directory.stages.glob("*-*") if p.is_dir()}
    return sorted(present.union(*(plan.stages for plan in plans.values())))


def _records(folders: list[StageFolder], found: Verification) -> Iterator[tuple[StageFolder, Manifest]]:
    """The records that can be read and have the published shape; of the others, why not."""
    for folder in folders:
        found.stages += 1
        try:
            yield folder, read_manifest(folder.manifest)
        except RecordError as error:
            found.findings.append(str(error))


def _known_files(records: dict[StageFolder, Manifest]) -> dict[str, str]:
    """sha256 of every recorded file -> `train-3fa9.../last/model.safetensors`."""
    return {
        entry.sha256: f"{folder.path.name}/{entry.path}"
        for folder, manifest in records.items()
        for entry in manifest.outputs
    }


def _verify_stage(
    folder: StageFolder, manifest: Manifest, known: dict[str, str], absent: set[str], found: Verification
) -> None:
    findings = list(seal_findings(folder, manifest))
    expected = [e for e in manifest.outputs if f"stages/{folder.path.name}/output/{e.path}" not in absent]
    not_here = [entry for entry in manifest.outputs if entry not in expected]
    if not folder.output.is_dir():
        expected, not_here = [], manifest.outputs
    if not_here:
        size = sum(entry.bytes for entry in not_here)
        found.unchecked.append(f"{folder.path.name}: {len(not_here)} files of its output, {size} bytes")
    findings += file_findings(folder, expected, known)
    found.files += len(expected)
    found.bytes += sum(entry.bytes for entry in expected)
    if folder.spec.is_file():
        findings += _sentences(folder, manifest, key_findings)
    else:
        found.unchecked.append(f"{folder.path.name}: its key, spec.json is not here")
    findings += _sentences(folder, manifest, executed_findings)
    if not any(str(folder.output) in finding for finding in findings):  # damaged lines are named by their hash
        findings += _sentences(folder, manifest, result_findings)
    found.findings += findings


def _sentences(
    folder: StageFolder, manifest: Manifest, check: Callable[[StageFolder, Manifest], Iterable[str]]
) -> list[str]:
    """What a check finds; a file of the stage that cannot be read is a finding itself."""
    sentences: list[str] = []
    try:
        sentences.extend(check(folder, manifest))
    except (RecordError, InputError) as error:
        sentences.append(f"{folder.path}: {error}")
    return sentences


def _verify_chain(folder: StageFolder, manifest: Manifest, planned: set[str], found: Verification) -> None:
    """An input that a plan here speaks of was removed; one of another run directory was not copied."""
    found.findings += changed_inputs(folder, manifest)
    for name, identifier in absent_inputs(folder, manifest).items():
        sentence = f"{folder.path.parent / identifier}: no record, but {folder.path.name} read it as '{name}'"
        if identifier in planned:
            found.findings.append(f"{sentence}: removed")
        else:
            found.unchecked.append(sentence)


def _verify_plans(
    run_directory: RunDirectory, plans: Plans, records: dict[StageFolder, Manifest], found: Verification
) -> None:
    for name, plan in plans.items():
        mine = {folder: manifest for folder, manifest in records.items() if folder.path.name in plan.stages}
        found.findings += plan_findings(run_directory.plan(name), plan, {f.path.name: m for f, m in mine.items()})
        try:
            found.findings += image_findings(mine)
        except RecordError as error:  # a spec
            found.findings.append(str(error))


def _code_findings(run_directory: RunDirectory, records: dict[StageFolder, Manifest]) -> Iterator[str]:
    """Whether the uncommitted changes that a stage ran with are the ones that were kept."""
    for sha256 in sorted({m.code.diff_sha256 for m in records.values() if m.code.diff_sha256}):
        file = run_directory.code / f"{sha256}.diff"
        if not file.is_file():
            yield f"{file}: missing: the uncommitted changes that stages ran with"
        elif sha256_file(file) != sha256:
            yield f"{file}: content differs from its name"
