"""Damage and tampering, each distinguished in one sentence; missing files are named, not called damage."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from essence.commands.compare import resolve
from essence.errors import RecordError
from essence.record.record_files import seal_of
from essence.record.recount import result_findings
from essence.record.run_directory import RunDirectory
from essence.record.stage_records import read_manifest
from essence.record.verification import Verification, verify
from support.project import invoke
from support.synthetic_run import SyntheticRun

NO_ESTIMATE = {"value": 0.99, "standard_error": 0.1, "low": 0.9, "high": 1.0, "n": 3, "method": "none"}


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


def test_a_cap_is_what_the_prompt_leaves_of_the_model_s_tokens(runs: Path) -> None:
    """As released, completions may have as many tokens as the model reads, which no prompt leaves."""
    file = folder_of(runs, "generate") / "manifest.json"
    executed = json.loads(file.read_text(encoding="utf-8"))["settings"]["executed"]
    cap, shortest = executed["max_new_tokens"], executed["shortest_prompt_tokens"]
    assert cap == 160 - shortest < 160
    edit(file, lambda record: record["settings"]["executed"].update(max_new_tokens=160), reseal=True)
    assert f"{file}: max_new_tokens = {cap} declared, 160 executed" in checked(runs).findings


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


def test_a_missing_cell_is_named_and_a_finding_where_a_report_was_made_from_it(runs: Path) -> None:
    grade = folder_of(runs, "grade")
    shutil.rmtree(grade)
    cell = cells(runs)[0]["name"]
    sentence = f"micro: {cell}: missing, not finished: {grade.name}"
    for experiment in ("micro", None):
        found = verify(RunDirectory(runs), experiment)
        assert found.findings == [] and found.unfinished == [sentence]
    manifest = grade / "manifest.json"
    report = runs / "micro/report/report.json"
    done = invoke("verify", str(runs))
    assert done.returncode == 1 and f"✗ {manifest}: removed: {report} was made from it" in done.stdout
    assert sentence in done.stdout
    shutil.rmtree(report.parent)
    done = invoke("verify", str(runs))
    assert done.returncode == 0 and sentence in done.stdout


def test_two_records_of_one_stage(runs: Path) -> None:
    grade = folder_of(runs, "grade")
    copy = grade.with_name("grade-0123456789abcdef")
    shutil.copytree(grade, copy)
    assert only(runs) == f"{copy}: holds the record of {grade.name}: two records of one stage"


def test_two_records_for_one_cell(runs: Path) -> None:
    file = runs / "micro/plan.json"
    first, second = folder_of(runs, "train", 0).name, folder_of(runs, "train", 1).name
    edit(file, lambda plan: plan["cells"][1].update(name=plan["cells"][0]["name"]))
    sentence = f"{file}: two records for one cell, {cells(runs)[0]['name']}: {first} and {second}"
    assert sentence in checked(runs).findings
    done = invoke("report", "--experiment", "micro", "--runs", str(runs))
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_a_plan_that_says_otherwise_than_its_trainings(runs: Path) -> None:
    file = runs / "micro/plan.json"
    edit(file, lambda plan: plan["cells"][0].update(lsp=0.9))
    cell, train = cells(runs)[0]["name"], folder_of(runs, "train").name
    assert only(runs) == f"{file}: {cell} says lsp = 0.9, but {train} trained with 0.5"


def test_two_images_of_one_environment(runs: Path) -> None:
    images = {"generate": "sha256:" + "1" * 64, "grade": "sha256:" + "2" * 64}
    for stage, digest in images.items():
        edit(folder_of(runs, stage) / "manifest.json", lambda m, d=digest: m["image"].update(digest=d), reseal=True)
    sentence = f"digest of its image is {images['grade']}, but {folder_of(runs, 'generate').name} was planned for the"
    assert any(sentence in finding for finding in checked(runs).findings)


@pytest.mark.parametrize(
    ("stage", "group", "change", "sentence"),
    [
        ("grade", "results", {"interval": [0.0, 0.01]}, "interval high 0.01 recorded, "),
        ("grade", "results", {"statuses": {"graded": 1}}, "status graded 1 recorded, "),
        ("grade", "results", {"finish_reasons": {"stop": 1}}, "finish reason stop 1 recorded, "),
        ("grade", "results", {"mean_completion_tokens": 1.5}, "mean_completion_tokens 1.5 recorded, "),
        ("grade", "results", {"longest_completion_tokens": 1}, "longest_completion_tokens 1 recorded, "),
        ("grade", "results", {"stop_rate": NO_ESTIMATE}, "stop_rate value 0.99 recorded, "),
        ("grade", "results", {"cap_rate": NO_ESTIMATE}, "cap_rate value 0.99 recorded, "),
        ("grade", "results", {"completion_tokens": NO_ESTIMATE}, "completion_tokens value 0.99 recorded, "),
        ("generate", "results", {"mean_completion_tokens": 1.5}, "mean_completion_tokens 1.5 recorded, "),
        ("train", "results", {"last_loss": 0.5}, "last_loss 0.5 recorded, "),
        ("train", "results", {"best_validation_ce": 0.1}, "best_validation_ce 0.1 recorded, "),
        ("train", "inputs", {"data": {"train": {"rows": 95}}}, "train_rows = 96 declared, 95 executed"),
        ("train", "seeds", {"train": 7}, "seed 1 declared, 7 used"),
        ("grade", "results", {"benchmark": "aime25"}, "benchmark.name = tiny-sums declared, aime25 executed"),
    ],
)
def test_a_number_that_its_files_do_not_give_even_under_a_new_seal(
    runs: Path, stage: str, group: str, change: dict[str, Any], sentence: str
) -> None:
    file = folder_of(runs, stage) / "manifest.json"
    edit(file, lambda record: record[group].update(change), reseal=True)
    assert any(f"{file}: {sentence}" in finding for finding in checked(runs).findings), checked(runs).findings


@pytest.mark.parametrize("name", ["tokens", "stopped", "at_cap"])
def test_ends_of_a_problem_that_the_samples_do_not_give_even_under_a_new_seal(runs: Path, name: str) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda m: m["results"]["per_problem"][0].update({name: 77}), reseal=True)
    assert f"{file}: problem " in only(runs) and "(tokens, stopped, at cap)" in only(runs)


@pytest.mark.parametrize("measure", ["pass", "majority"])
def test_votes_that_the_verdicts_do_not_give_even_under_a_new_seal(runs: Path, measure: str) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda m: next(iter(m["results"][f"{measure}_at_k"].values())).update(value=0.99), reseal=True)
    assert f"{file}: {'pass' if measure == 'pass' else 'maj'}@1 value 0.99 recorded, " in only(runs)


@pytest.mark.parametrize("stage", ["download", "tokenize", "train", "generate", "grade"])
def test_a_record_without_what_its_stage_writes_is_findings_and_no_traceback(runs: Path, stage: str) -> None:
    """Each key of each group taken away, or given another type, under a new seal: never a traceback, never silence."""
    folder = next((runs / "stages").glob(f"{stage}-*"))
    whole = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for group in ("settings", "inputs", "results", "seeds", "identity"):
        for key in whole[group]:
            for value in (None, "x", [], {}):
                record = json.loads(json.dumps(whole))
                record[group][key] = value
                record["seal"] = seal_of(record)
                (folder / "manifest.json").write_text(json.dumps(record), encoding="utf-8")
                verify(RunDirectory(runs), stages=[folder.name])
                if record["seal"] != whole["seal"] and stage != "grade":  # no stage reads a grade
                    name = next(e for e in runs.glob("stages/*/manifest.json") if folder.name[-16:] in e.read_text()
                                and e.parent != folder).parent.name  # fmt: skip
                    assert verify(RunDirectory(runs), stages=[name]).findings
                    break


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"cost": NaN}', "not valid JSON (holds NaN)"),
        (b"[" * 100_000, "not valid JSON (nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON (a number of more than 4,300 digits"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[]", "holds list where an object is expected"),
    ],
)
def test_a_record_that_is_no_json(runs: Path, content: bytes, sentence: str) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    file.write_bytes(content)
    assert only(runs).startswith(f"{file}: damaged, ") and sentence in only(runs)


@pytest.mark.slow
def test_other_commands_on_a_damaged_record(runs: Path) -> None:
    """They say what they can; none ends in a traceback."""
    (folder_of(runs, "grade") / "manifest.json").write_text("[" * 100_000, encoding="utf-8")
    said = {}
    for command in ("status", "report", "claims", "card"):
        done = invoke(command, "--experiment", "micro", "--runs", str(runs))
        assert "Traceback" not in done.stderr, done.stderr
        said[command] = done.returncode, done.stdout + done.stderr
    assert [code for code, _ in said.values()] == [0, 0, 0, 2]
    assert all("damaged, not valid JSON" in said[command][1] for command in ("report", "claims", "card"))
    done = invoke("compare", f"{runs}/micro:lsp-0.50", f"{runs}/micro:lsp-1.00")
    assert done.returncode == 2 and "damaged, not valid JSON" in done.stderr


def test_an_output_outside_of_its_folder(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    outside = {"path": "../../../../../../etc/hostname", "bytes": 1, "sha256": "ab" * 32}
    edit(file, lambda record: record["outputs"].append(outside), reseal=True)
    assert only(runs) == f"{file}: output '../../../../../../etc/hostname' lies outside of its folder"
    target = runs.parent / "out.tar.gz"
    done = invoke("export", "--experiment", "micro", "--runs", str(runs), "--output", str(target))
    assert done.returncode == 2 and "lies outside of its folder" in done.stderr and not target.exists()


@pytest.mark.parametrize("file", ["report.html", "figures/flops.svg", "report.json"])
def test_a_report_edited_by_hand(runs: Path, file: str) -> None:
    path = runs / "micro/report" / file
    assert path.is_file(), sorted(path.parent.iterdir())
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    done = invoke("verify", str(runs))
    assert done.returncode == 1 and f"{path}: edited after it was written" in done.stdout


def test_a_report_of_other_records(runs: Path) -> None:
    """A rewritten record, intact in itself, is not the one that the report was made from."""
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record["cost"].update(wall_s=0.5), reseal=True)
    assert checked(runs).findings == []
    done, report = invoke("verify", str(runs)), runs / "micro/report/report.json"
    assert done.returncode == 1 and f"{file}: changed since {report} was made from it" in done.stdout


def test_an_interval_of_another_method_is_none_of_this_kit(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record["results"].update(interval=[0.3, 0.4], method="by eye"), reseal=True)
    found = checked(runs).findings
    assert any(finding.startswith(f"{file}: method by eye recorded") for finding in found)
    assert any(finding.startswith(f"{file}: interval low 0.3 recorded") for finding in found)


def test_a_record_of_a_newer_kit(runs: Path) -> None:
    file = folder_of(runs, "grade") / "manifest.json"
    edit(file, lambda record: record.update(schema_version=9))
    assert only(runs) == f"{file}: written by a newer kit (schema 9, known up to 1); update the kit"


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


def test_completions_with_separators_of_lines_are_read_whole(tmp_path: Path) -> None:
    """U+2028 and U+0085 end no line of JSON; texts of models hold them."""
    run = SyntheticRun(tmp_path, lsps=(1.0,), seeds=(1,)).write()
    folder = RunDirectory(tmp_path).stage(run.stage_of(0, "generate"))
    file = folder.output / "samples.jsonl"
    manifest = read_manifest(folder.manifest)
    before = list(result_findings(folder, manifest))
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    lines[0]["completion"] = "one\u2028two\u2029three\u0085four"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert list(result_findings(folder, manifest)) == before


@pytest.mark.parametrize("change", [{"evaluations": None}, {"stages": []}])
def test_a_plan_of_another_shape_is_a_finding_and_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    run = SyntheticRun(tmp_path, lsps=(1.0,), seeds=(1,)).write()
    run.plan["cells"][0] |= change
    run.plan["cells"][0] = {name: value for name, value in run.plan["cells"][0].items() if value is not None}
    run.write_plan()
    file = tmp_path / "tiny/plan.json"
    assert any(finding.startswith(f"{file}: not a plan of this kit") for finding in checked(tmp_path).findings)
    with ExitStack() as unpacked, pytest.raises(RecordError, match="not a plan of this kit"):
        resolve(str(tmp_path / "tiny"), unpacked)
