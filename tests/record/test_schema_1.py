"""A run directory of an earlier layout of the kit is read, reported, verified and compared."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from essence.commands.compare import compare
from essence.commands.report import print_report
from essence.commands.status import print_status
from essence.commands.verify import print_verification, verify_with_reports
from essence.record.run_directory import RunDirectory
from essence.report.results.read import read_results
from support.finished_runs import finish_micro, unpack_schema_1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return unpack_schema_1(tmp_path_factory.mktemp("schema-1"))


def console() -> Console:
    return Console(file=io.StringIO(), width=10_000)


def test_it_is_verified_without_a_finding(run: RunDirectory) -> None:
    found = verify_with_reports(run, None)
    assert found.findings == [] and found.unfinished == [] and found.stages == 15 and found.accepted == []


def test_an_edited_number_is_found(run: RunDirectory, tmp_path: Path) -> None:
    edited = unpack_schema_1(tmp_path)
    manifest = next(edited.stages.glob("grade-*/manifest.json"))
    record = json.loads(manifest.read_text())
    record["results"]["accuracy"] = 0.99
    manifest.write_text(json.dumps(record))
    assert print_verification(tmp_path, None, True, console()) == 1


def test_it_is_reported(tmp_path: Path) -> None:
    run = unpack_schema_1(tmp_path)
    assert print_report(run, "micro", (), False, console()) == 0
    record = json.loads((run.report("micro") / "report.json").read_text())
    assert record["done"] and len(record["records"]) == 15
    (group,) = read_results(run.root, "micro").groups
    assert [arm.lsp for arm in group.arms] == [0.5, 1.0]
    assert verify_with_reports(run, None).findings == []


def test_its_status_names_it_as_work_of_earlier_code(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_status(run, "micro", True, console()) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["counts"]["done"] == 15
    of_code = [entry["kind"] for entry in state["renewed"]]
    assert sorted(of_code) == sorted(["download"] * 4 + ["tokenize"] + ["train"] * 2 + ["generate", "grade"] * 4)
    assert state["renewed"][0]["causes"] == ["the kit's source changed (the record does not say where)"]


def test_it_is_compared_with_a_run_of_the_present_code(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_micro(tmp_path / "runs")
    assert compare(str(run.root), str(tmp_path / "runs"), True, console()) == 0
    record = json.loads(capsys.readouterr().out)
    assert {one["word"] for one in record["results"]} == {"equal"}
    assert "code" in {cause["kind"] for cause in record["causes"]}
