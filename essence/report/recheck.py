"""Check that a report is what its run directory gives: the last link of the chain from download to report.

Its files against the hashes in `report.json`, the records it was made from against those that are there, and its
numbers and words against what the same records give now.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essence.errors import RecordError
from essence.files import read_json, sha256_file
from essence.record.manifest import seal_of
from essence.record.run_directory import RunDirectory
from essence.report.build import SCHEMA_VERSION, made_from, report_record
from essence.report.claims.kept import read_with_retention

CHECKED_BEFORE = ("made_from", "records", "files", "seal")
"""Parts of `report.json` that are no numbers and words; the first two are compared before those are."""


def report_findings(run_directory: RunDirectory, experiment: str) -> tuple[list[str], list[str]]:
    """What is wrong and what could not be checked of an experiment's report; nothing where it has none."""
    file = run_directory.report(experiment) / "report.json"
    if not file.is_file():
        return [], []
    try:
        report = read_json(file)
        if report.get("schema_version") != SCHEMA_VERSION:
            return [], [f"{file}: made by another version of the kit; `invoke report` writes it again"]
        if report["seal"] != seal_of(report):
            return [f"{file}: edited after it was written: its content does not give its seal"], []
        findings = [*_files(file.parent, report), *_records(run_directory, file, report)]
        if findings:
            return findings, []
        if report["made_from"] != made_from(run_directory.root, experiment):
            return [], [f"{file}: its words and numbers, made by another version of the kit or before later stages"]
        return list(_numbers(run_directory, experiment, file, report)), []
    except RecordError as error:
        return [str(error)], []
    except (KeyError, TypeError, AttributeError) as error:
        return [f"{file}: not a report of this kit, at {error!r}"], []


def _files(folder: Path, report: dict[str, Any]) -> Iterator[str]:
    """The page, figures and samples that are beside `report.json`."""
    for path, digest in report["files"].items():
        file = folder / path
        if not file.is_file():
            yield f"{file}: missing"
        elif sha256_file(file) != digest:
            yield f"{file}: edited after it was written: content differs from its sha256 in report.json"
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"report.json"}
    yield from (f"{folder / path}: not in report.json" for path in sorted(present - report["files"].keys()))


def _records(run_directory: RunDirectory, file: Path, report: dict[str, Any]) -> Iterator[str]:
    for identifier, digest in report["records"].items():
        manifest = run_directory.stage(identifier).manifest
        if not manifest.is_file():
            yield f"{manifest}: removed: {file} was made from it"
        elif sha256_file(manifest) != digest:
            yield f"{manifest}: changed since {file} was made from it"


def _numbers(run_directory: RunDirectory, experiment: str, file: Path, report: dict[str, Any]) -> Iterator[str]:
    """Figures are named in the report by what was drawn, which is not drawn again here."""
    made = json.loads(json.dumps(report_record(read_with_retention(run_directory.root, experiment)), allow_nan=False))
    written, computed = ({**record, "groups": _without_figures(record["groups"])} for record in (report, made))
    parts = dict.fromkeys([*computed, *written])
    differing = [p for p in parts if p not in CHECKED_BEFORE and written.get(p) != computed.get(p)]
    if differing:
        yield f"{file}: {', '.join(differing)} not what the records give: `invoke report` writes it again"


def _without_figures(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "figures"} for group in groups]
