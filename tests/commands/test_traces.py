"""`invoke traces` on a finished run: a record that the page shows; edits of it are found."""

import json
from pathlib import Path

import pytest

from essence.commands.terminal import console
from essence.commands.traces import count_traces
from essence.errors import ExperimentError
from essence.record.trace_record import read_trace_records
from essence.report.build import made_from, report_record
from essence.report.results.read import read_results
from support.finished_runs import finish_micro

pytest.importorskip("math_verify", reason="math-verify is not installed")


def test_rows_are_counted_recorded_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finish_micro(tmp_path / "runs").run_directory
    (name,) = run.experiments()
    before = made_from(run.root, name)
    assert count_traces(run, name, 20, True, console()) == 0
    (written,) = json.loads(capsys.readouterr().out)
    (record,), refused = read_trace_records(run.experiment(name))
    assert record.sealed() == written and not refused
    assert record.rows_counted == 20 < record.rows_kept and record.rows_without_trace == 0
    assert record.same_answer.value == 1.0 and record.same_answer.rows == 20
    assert record.first_answer_place.value is not None and 0.0 < record.first_answer_place.value < 1.0
    assert made_from(run.root, name) != before
    judged = report_record(read_results(run.root, name))["claims"]
    assert isinstance(judged, list)
    claims = {claim["id"]: claim for claim in judged}
    shown = claims["first-derivation"]
    assert shown["word"] == "shown, not judged" and shown["ours"]["value"] == record.first_answer_place.value
    with pytest.raises(ExperimentError, match="--rows 0"):
        count_traces(run, name, 0, True, console())


def test_an_edited_count_counts_for_nothing(tmp_path: Path) -> None:
    run = finish_micro(tmp_path / "runs").run_directory
    (name,) = run.experiments()
    count_traces(run, name, 5, False, console())
    (file,) = (run.experiment(name) / "traces").glob("*.json")
    file.write_text(file.read_text().replace('"rows_counted": 5', '"rows_counted": 5000'))
    results = read_results(run.root, name)
    assert not results.traces and any("edited after it was written" in one for one in results.accepted)
