"""Check that a report is what its run directory gives: the last link of the chain from download to report.

Its files against the hashes in `report.json`, the records it was made from against those that are there, and its
numbers and words against what the same records give now.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, JsonValue

from essence.errors import RecordError
from essence.files import read_json, sha256_file
from essence.record.record_files import Group, as_record, gives_seal
from essence.record.recount import METRICS
from essence.record.run_directory import RunDirectory
from essence.record.stage_checks import EDITED, inside
from essence.report.build import SCHEMA_VERSION, made_from, report_record
from essence.report.claims.retention_rows import read_with_retention

CHECKED_BEFORE = ("made_from", "records", "files", "seal")
"""Parts of `report.json` that are no numbers and words; the first two are compared before those are."""
OF_A_PROOF = ("predicted_steps",)
"""Comes from the newest proof of a machine as well, which is no record of the run, and is replaced by a later one."""


class GroupRecord(Group):
    """A group in report.json."""

    figures: list[JsonValue] = Field(default_factory=list)


class ReportRecord(Group):
    """report.json, as far as it is looked at by name; the rest is compared part by part."""

    made_from: str
    records: dict[str, str]
    """Stage id -> sha256 of its manifest."""
    files: dict[str, str]
    """Path beside report.json -> sha256."""
    groups: list[GroupRecord]


def report_findings(run_directory: RunDirectory, experiment: str) -> tuple[list[str], list[str]]:
    """What is wrong and what could not be checked of an experiment's report; nothing where it has none."""
    file = run_directory.report(experiment) / "report.json"
    if not file.is_file():
        return [], []
    try:
        written = read_json(file)
        if written.get("schema_version") != SCHEMA_VERSION:
            return [], [f"{file}: made by another version of the kit; `invoke report` rewrites it"]
        if not gives_seal(written):
            return [f"{file}: {EDITED}"], []
        report = as_record(file, written, ReportRecord, "a report")
        findings = [*_files(file.parent, report), *_records(run_directory, file, report)]
        if findings:
            return findings, []
        if report.made_from != made_from(run_directory.root, experiment):
            return [], [f"{file}: its words and numbers, made by another version of the kit or before later stages"]
        gone = without_steps(run_directory, report)
        unchecked = [f"{file}: its claims, which read {METRICS} of {', '.join(gone)}"] if gone else []
        return list(_numbers(run_directory, experiment, file, report, bool(gone))), unchecked
    except RecordError as error:
        return [str(error)], []


def _files(folder: Path, report: ReportRecord) -> Iterator[str]:
    """The page, figures and samples that lie beside `report.json`."""
    for path, digest in report.files.items():
        file = folder / path
        if not inside(path) or not file.is_file():
            yield f"{file}: missing"
        elif sha256_file(file) != digest:
            yield f"{file}: edited after it was written: content differs from its sha256 in report.json"
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"report.json"}
    yield from (f"{folder / path}: not in report.json" for path in sorted(present - report.files.keys()))


def _records(run_directory: RunDirectory, file: Path, report: ReportRecord) -> Iterator[str]:
    for identifier, digest in report.records.items():
        manifest = run_directory.stage(identifier).manifest
        if not manifest.is_file():
            yield f"{manifest}: removed: {file} was made from it"
        elif sha256_file(manifest) != digest:
            yield f"{manifest}: changed since {file} was made from it"


def without_steps(run_directory: RunDirectory, report: ReportRecord) -> list[str]:
    """Trainings whose steps are not here, as where outputs were left out: claims on time are measured on them."""
    trainings = sorted(identifier for identifier in report.records if identifier.startswith("train-"))
    return [one for one in trainings if not (run_directory.stage(one).output / METRICS).is_file()]


def _numbers(
    run_directory: RunDirectory, experiment: str, file: Path, report: ReportRecord, without_claims: bool
) -> Iterator[str]:
    """Figures are named in the report by what was drawn, which is not drawn again here."""
    made = report_record(read_with_retention(run_directory.root, experiment))
    again = as_record(file, json.loads(json.dumps({**made, "files": {}}, allow_nan=False)), ReportRecord, "a report")
    written, computed = (one.model_dump(exclude={"groups": {"__all__": {"figures"}}}) for one in (report, again))
    parts = dict.fromkeys([*computed, *written])
    aside = (*CHECKED_BEFORE, *OF_A_PROOF, *(("claims", "questions") if without_claims else ()))
    differing = [p for p in parts if p not in aside and written.get(p) != computed.get(p)]
    if differing:
        yield f"{file}: {', '.join(differing)} not what the records give: `invoke report` rewrites it"
