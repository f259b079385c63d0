"""Damage and tampering, each told apart in one sentence; what is not there is named, not called damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import invoke

from essence.record.manifest import seal_of
from essence.record.verify import Verification, verify
from essence.store import RunDirectory


@pytest.fixture
def runs(micro: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "runs"
    shutil.copytree(micro, copy)
    return copy


def cells(runs: Path) -> list[dict[str, Any]]:
    record: dict[str, Any] = json.loads((runs / "micro" / "plan.json").read_text(encoding="utf-8"))
    return list(record["cells"])


def folder_of(runs: Path, stage: str, cell: int = 0) -> Path:
    entry = cells(runs)[cell]
    name = entry["stages"].get(stage) or entry["evaluations"][0][stage]
    return runs / "stages" / str(name)


def edit(file: Path, change: Callable[[dict[str, Any]], None], reseal: bool = False) -> None:
    record = json.loads(file.read_text(encoding="utf-8"))
    change(record)
    if reseal:
        record["seal"] = seal_of(record)
    file.write_text(json.dumps(record), encoding="utf-8")


def checked(runs: Path) -> Verification:
    return verify(RunDirectory(runs))


def only(runs: Path) -> str:
    """The one finding."""
    found = checked(runs)
    assert len(found.findings) == 1, found.findings
    return found.findings[0]


def test_an_undisturbed_run_has_no_finding(micro: Path) -> None:
    found = checked(micro)
    assert (found.findings, found.unchecked, found.unfinished) == ([], [], [])


def test_a_result_edited_by_hand(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record["cost"].update(wall_s=0.5))
    assert only(runs) == f"{file}: edited after it was written: its content does not give its seal"


def test_an_accuracy_that_its_verdicts_do_not_give_even_under_a_new_seal(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record["results"].update(accuracy=0.99), reseal=True)
    assert only(runs).startswith(f"{file}: accuracy 0.99 recorded, ")


def test_a_setting_edited_under_a_new_seal_does_not_give_the_key(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record["settings"]["resolved"].update(timeout_s=60.0), reseal=True)
    assert only(runs) == f"{file}: its settings, inputs, environment or source do not give its key"


def test_a_count_that_was_not_executed_as_declared(runs: Path) -> None:
    file = folder_of(runs, "generate") / "manifest.json"
    edit(file, lambda record: record["settings"]["executed"].update(samples_per_problem=1), reseal=True)
    assert f"{file}: samples = 2 declared, 1 executed" in checked(runs).findings


def test_a_swapped_checkpoint_is_named(runs: Path) -> None:
    mine, other = (folder_of(runs, "train", cell) / "output/best/model.safetensors" for cell in (0, 1))
    shutil.copyfile(other, mine)
    swapped = f"{mine}: swapped: it is the file recorded as {folder_of(runs, 'train', 1).name}/"
    assert only(runs).startswith(swapped)


def test_a_truncated_file_of_lines(runs: Path) -> None:
    file = folder_of(runs, "generate") / "output/samples.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 20])
    assert only(runs).startswith(f"{file}: truncated: {len(content) - 20} of {len(content)} bytes")


def test_a_removed_stage_that_another_one_read(runs: Path) -> None:
    train = folder_of(runs, "train")
    shutil.rmtree(train)
    found = checked(runs)
    assert all(f"{train}: no record, but generate-" in finding for finding in found.findings) and found.findings
    assert all(finding.endswith("as 'model': removed") for finding in found.findings)


def test_a_missing_cell_is_unfinished_in_its_experiment(runs: Path) -> None:
    grade = folder_of(runs, "grade")
    shutil.rmtree(grade)
    found = verify(RunDirectory(runs), "micro")
    assert found.findings == [] and found.unfinished == [grade.name]


def test_two_records_of_one_stage(runs: Path) -> None:
    grade = folder_of(runs, "grade")
    copy = grade.with_name("grade-0123456789abcdef")
    shutil.copytree(grade, copy)
    assert only(runs) == f"{copy}: holds the record of {grade.name}: two records of one stage"


def test_a_record_of_a_newer_kit(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record.update(schema_version=9))
    assert only(runs) == f"{file}: written by a newer kit (schema 9, known up to 1): update the kit"


def test_a_damaged_record(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    file.write_text(file.read_text(encoding="utf-8")[:200], encoding="utf-8")
    assert only(runs).startswith(f"{file}: damaged, not valid JSON")


def test_without_the_data_what_could_not_be_checked_is_named(runs: Path) -> None:
    kept = ("samples.jsonl", "verdicts.jsonl")
    for output in runs.glob("stages/*/output"):
        if not any((output / name).is_file() for name in kept):
            shutil.rmtree(output)
    done = invoke("verify", str(runs), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"]
    assert any(line.startswith("download-") and " files of its output, " in line for line in found["unchecked"])
    assert any(line.startswith("train-") for line in found["unchecked"])
