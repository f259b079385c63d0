"""The report, from a made-up run directory to its files."""

import json
from pathlib import Path

import pytest

from essence.errors import RecordError
from essence.evaluation.statistics import pooled_accuracy
from essence.report.build import report_record, write_report
from essence.report.claims.retention_rows import read_with_retention
from essence.report.claims.verdict import judge
from essence.report.page.endings import ENDING_COLUMNS, ending_rows
from essence.report.page.findings import findings
from essence.report.page.table import arm_rows, cell_rows, missing_lines
from essence.report.results.read import read_results
from essence.report.results.records import Results
from essence.report.results.run_facts import environment_facts
from essence.text import NOTHING, SPACE, percent
from support.report_files import files
from support.synthetic_run import PROBLEMS, SAMPLES, SyntheticRun

EVALUATION = ("sums-test", "best")
ENDING_RESULTS = ("completion_tokens", "stop_rate", "cap_rate")
EARLIER = ("problem", "correct", "samples")
"""What records had of each problem before ends of completions were counted by problem."""


def read(run: SyntheticRun) -> Results:
    return read_with_retention(run.root, run.experiment)


def sentences(run: SyntheticRun) -> str:
    results = read(run)
    return " ".join(findings(results, results.groups[0], EVALUATION, judge([results]))).replace(SPACE, " ")


def test_cells_that_differ_in_lsp_and_seed_form_a_group(run: SyntheticRun) -> None:
    results = read(run)
    assert len(results.groups) == 1
    assert [arm.lsp for arm in results.groups[0].arms] == [0.25, 0.5, 0.75, 1.0]
    assert [len(arm.cells) for arm in results.groups[0].arms] == [2, 2, 2, 2]
    assert results.done
    assert missing_lines(results) == []


def test_pooled_accuracy_is_the_mean_over_seeds_and_comes_with_an_interval(run: SyntheticRun) -> None:
    arm = read(run).groups[0].arms[1]
    pooled = arm.pooled[EVALUATION]
    each = [score.accuracy.value for score in pooled.scores if score.accuracy]
    assert pooled.accuracy.value == pytest.approx(sum(filter(None, each)) / 2)
    assert pooled.accuracy.low is not None and pooled.accuracy.high is not None
    assert pooled.accuracy.low < pooled.accuracy.value < pooled.accuracy.high
    assert sum(score.samples for score in pooled.scores) == 2 * PROBLEMS * SAMPLES


def test_retention_is_the_ratio_to_lsp_one(run: SyntheticRun) -> None:
    group = read(run).groups[0]
    half, full = group.arms[1].pooled[EVALUATION], group.arms[3].pooled[EVALUATION]
    assert half.retention and half.accuracy.value and full.accuracy.value
    assert half.retention.value == pytest.approx(half.accuracy.value / full.accuracy.value)
    assert full.retention and full.retention.value == 1.0
    seeds = [score.retention.value for score in full.scores if score.retention]
    assert seeds == [1.0, 1.0]


def test_costs_are_ratios_to_lsp_one(run: SyntheticRun) -> None:
    half = read(run).groups[0].arms[1]
    assert half.ratio["tokens"] == pytest.approx(0.5)
    assert half.ratio["flops"] == pytest.approx(0.475)
    assert half.cost["memory"] == pytest.approx(0.575)


def test_device_memory_counts_where_there_is_a_device(run: SyntheticRun) -> None:
    train = run.stage_of(0, "train")
    cost = json.loads((run.root / "stages" / train / "manifest.json").read_text())["cost"]
    run.damage(train, cost={**cost, "peak_gpu_memory_gib": 38.5})
    assert read(run).cells[0].cost.peak_memory_gib == 38.5


def test_how_completions_end_stands_beside_the_accuracy(run: SyntheticRun) -> None:
    results = read(run)
    rows = ending_rows(results, results.groups[0], EVALUATION)
    assert [row.label for row in rows] == ["untrained student", "0.25", "0.50", "0.75", "1.00", "teacher"]
    total = PROBLEMS * SAMPLES
    capped = round(total * 0.2 * (1.1 - 0.25))
    shown = dict(zip(ENDING_COLUMNS, rows[1].numbers, strict=True))
    assert shown["At the cap"] == percent(capped / total)
    assert shown["Stopped"] == percent(1 - capped / total)
    assert (shown["Mean tokens"], shown["Longest"]) == ("66", NOTHING)
    assert set(rows[1].intervals) == {"Stopped", "At the cap", "Mean tokens"}


def test_length_and_stop_rate_have_the_intervals_that_an_accuracy_has(run: SyntheticRun) -> None:
    results = read(run)
    arm, score = results.groups[0].arms[0], results.groups[0].arms[0].cells[0].scores[0]
    stopped, length = arm.pooled[EVALUATION].endings["stopped"], arm.pooled[EVALUATION].endings["length"]
    means = [one.scores[0].ending_means["stopped"] for one in arm.cells]
    assert stopped == pooled_accuracy([list(one.values()) for one in means], 0.95)
    assert stopped.low is not None and stopped.high is not None and stopped.low < 1 - 0.2 * 0.85 < stopped.high
    assert score.endings["length"].value == pytest.approx(66.0) and length.value == pytest.approx(66.0)
    assert length.low is not None and length.low < 66.0 and "Student t" in length.method
    record = report_record(results)["groups"][0]["evaluations"][0]["rows"][1]["endings"]  # type: ignore[index]
    assert record["length"]["low"] == length.low and record["capped"]["n"] == PROBLEMS


def test_what_a_training_met_in_its_rows_is_on_the_page(run: SyntheticRun) -> None:
    train = run.stage_of(2, "train")
    inputs = json.loads((run.root / "stages" / train / "manifest.json").read_text())["inputs"]
    note = "chain of thought shorter than k, kept whole"
    rows = {**inputs["data"]["train"], "noted": {note: 12}, "skipped": {"no marker": 3}}
    run.damage(train, inputs={**inputs, "data": {**inputs["data"], "train": rows}})
    page = write_report(run.root, run.experiment)
    remarks = [f"12 of 2,000 rows: {note}", "3 rows left out: no marker"]
    record = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert [row["remarks"] for row in record["trained_rows"]] == [remarks]
    section = page.read_text(encoding="utf-8").partition('<section id="trained-rows"')[2].partition("</section>")[0]
    assert "; ".join(remarks) in section and train in section and section.count('<th scope="row">') == 1
    assert remarks[0] in (page.parent / "report.md").read_text(encoding="utf-8")


def test_records_without_ends_of_each_problem_have_no_interval_and_no_error(run: SyntheticRun) -> None:
    for cell in range(2):
        grade = run.stage_of(cell, "grade")
        results = json.loads((run.root / "stages" / grade / "manifest.json").read_text())["results"]
        earlier = {name: value for name, value in results.items() if name not in ENDING_RESULTS}
        earlier["per_problem"] = [{name: one[name] for name in EARLIER} for one in results["per_problem"]]
        run.damage(grade, results=earlier)
    read_again = read(run)
    pooled = read_again.groups[0].arms[0].pooled[EVALUATION]
    assert pooled.endings == {} and pooled.mean_tokens == pytest.approx(66.0)
    row = ending_rows(read_again, read_again.groups[0], EVALUATION)[1]
    assert row.intervals == {} and row.numbers[ENDING_COLUMNS.index("Mean tokens")] == "66"


def test_energy_is_a_ratio_where_a_driver_tells(run: SyntheticRun) -> None:
    for cell, joules in ((2, 300.0), (3, 300.0), (6, 600.0), (7, 400.0)):
        train = run.stage_of(cell, "train")
        cost = json.loads((run.root / "stages" / train / "manifest.json").read_text())["cost"]
        run.damage(train, cost={**cost, "energy_j": joules})
    half = read(run).groups[0].arms[1]
    assert half.ratio["energy"] == pytest.approx(0.6)
    assert "figures/energy.svg" in files(write_report(run.root, "tiny"))


def test_the_environment_names_inputs_images_software_and_hardware(run: SyntheticRun) -> None:
    grade = run.stage_of(0, "grade")
    hardware = json.loads((run.root / "stages" / grade / "manifest.json").read_text())["hardware"]
    run.damage(grade, hardware={**hardware, "gpus": [{"name": "H100", "memory_gib": 79.6}] * 2, "driver": "570.1"})
    found = {title: {f.name: f.values for f in facts} for title, facts in environment_facts(read(run)).items()}
    assert list(found) == ["Inputs", "Code and images", "Software", "Hardware"]
    assert found["Inputs"]["model tiny-teacher"] == ("made by the kit",)
    assert found["Hardware"]["GPU"] == ("none", "2 × H100, 80 GiB") and found["Software"]["driver"] == ("570.1",)


def test_nothing_is_said_of_the_order_where_nothing_is_solved(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, accuracy=dict.fromkeys((0.25, 0.5, 0.75, 1.0), 0.0), untrained=0.0).write()
    assert "rises" not in sentences(run)


def test_the_table_has_baselines_around_the_arms(run: SyntheticRun) -> None:
    results = read(run)
    rows = arm_rows(results, results.groups[0], EVALUATION)
    assert [row.role for row in rows] == ["student", "arm", "arm", "arm", "arm", "teacher"]
    assert [len(row.grades) for row in rows] == [1, 2, 2, 2, 2, 1]
    assert len(cell_rows(results.groups[0], EVALUATION)) == 8


def test_a_span_without_its_own_full_arm_is_compared_with_the_full_sequence(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, spans=("left", "right"))
    run.write()
    run.plan["cells"] = [c for c in run.plan["cells"] if c["span"] == "left" or c["lsp"] == 0.5]
    run.write_plan()
    left, right = read(run).groups
    assert right.reference == left.key
    assert right.arms[0].pooled[EVALUATION].retention


def test_more_rows_at_half_length_are_compared_with_the_full_sequence(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0)).write()
    for cell in run.plan["cells"]:
        cell["train_rows"] = 4000 if cell["lsp"] == 0.5 else 2000
    run.write_plan()
    doubled, plain = read(run).groups
    assert doubled.reference == plain.key
    assert doubled.arms[0].ratio["tokens"] == pytest.approx(0.5)


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=(0.5,), seeds=(1,)).write()
    arm = read(run).groups[0].arms[0]
    assert arm.pooled[EVALUATION].retention is None
    assert arm.ratio == {}
    assert files(write_report(run.root, "tiny")) >= {"report.html", "report.md", "report.json"}


def test_one_seed_keeps_the_interval_of_its_manifest(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, seeds=(7,)).write()
    pooled = read(run).groups[0].arms[0].pooled[EVALUATION]
    assert pooled.accuracy == pooled.scores[0].accuracy
    html = write_report(run.root, "tiny").read_text()
    assert f"../../stages/{run.stage_of(0, 'grade')}/manifest.json" in html


def test_a_reference_that_solves_nothing_gives_no_retention(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, accuracy=dict.fromkeys((0.25, 0.5, 0.75, 1.0), 0.0)).write()
    retention = read(run).groups[0].arms[1].pooled[EVALUATION].retention
    assert retention and retention.value is None
    assert "cannot be said" in sentences(run)
    made = files(write_report(run.root, "tiny"))
    assert "figures/sums-test-best-accuracy.svg" in made
    assert "figures/sums-test-best-retention.svg" not in made


def test_failed_and_missing_cells_are_listed_plainly(run: SyntheticRun) -> None:
    run.fail(run.stage_of(2, "train"), "Traceback ...\nrows.jsonl: <b>no such file</b>")
    run.leave(run.stage_of(2, "generate"), run.stage_of(2, "grade"))
    run.leave(run.stage_of(5, "grade"))
    (run.root / "stages" / run.stage_of(5, "grade")).rmdir()
    results = read(run)
    assert [cell.state for cell in results.cells].count("done") == 6
    lines = missing_lines(results)
    assert lines[0].endswith("seed-1: train failed: rows.jsonl: <b>no such file</b>")
    assert lines[1].endswith("seed-2: trained, not evaluated")
    page = write_report(run.root, "tiny").read_text()
    assert "&lt;b&gt;no such file" in page and "<b>no such file" not in page


def test_an_unfinished_stage_shows_its_last_words(run: SyntheticRun) -> None:
    train = run.stage_of(0, "train")
    run.leave(train)
    (run.root / "stages" / train / "attempts.jsonl").write_text("{}\n")
    (run.root / "stages" / train / "log.txt").write_text("step 3\nstopped by SIGTERM\n\n")
    assert missing_lines(read(run))[0].endswith("train interrupted: stopped by SIGTERM")


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "damaged"), ("[]", "damaged"), ('{"schema_version": 2}', "newer kit"), ("{}", "identity")],
)
def test_a_manifest_that_cannot_be_read_counts_as_failed(run: SyntheticRun, text: str, problem: str) -> None:
    grade = run.stage_of(0, "grade")
    (run.root / "stages" / grade / "manifest.json").write_text(text)
    line = missing_lines(read(run))[0]
    assert "grade failed" in line and problem in line
    assert write_report(run.root, "tiny").is_file()


def test_a_grade_manifest_with_another_shape_is_named(run: SyntheticRun) -> None:
    grade = run.stage_of(0, "grade")
    run.damage(grade, results={"accuracy": 0.5, "per_problem": [{"problem": "a"}]})
    line = missing_lines(read(run))[0]
    assert "grade failed" in line and f"{grade}/manifest.json: not the manifest of a grade stage of this kit" in line


def test_nothing_done_still_gives_a_page(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, finished=False).write()
    page = write_report(run.root, "tiny").read_text()
    assert "0 of 8 cells done" in page
    assert "Nothing is graded here yet" in page
    assert "<svg" not in page


def test_an_empty_plan_still_gives_a_page(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, lsps=()).write()
    assert "has no cells" in write_report(run.root, "tiny").read_text()


def test_without_a_plan_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"plan\.json: no such file"):
        write_report(tmp_path, "tiny")


def test_a_plan_of_another_shape_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "plan.json").write_text('{"cells": []}')
    with pytest.raises(RecordError, match=r"plan\.json: not a plan"):
        read_results(tmp_path, "tiny")


def test_an_order_that_differs_is_said(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, accuracy={0.25: 0.9, 0.5: 0.3, 0.75: 0.7, 1.0: 0.72}).write()
    assert "Accuracy falls from 0.25 to 0.50. Over all settings" in sentences(run)


def test_an_arm_below_the_untrained_student_is_said(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, accuracy={0.25: 0.0, 0.5: 0.6, 0.75: 0.7, 1.0: 0.72}, untrained=0.4).write()
    assert "At LSP 0.25 it scores below its untrained self" in sentences(run)


def test_two_checkpoints_get_a_table_each(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, checkpoints=("best", "last")).write()
    assert read(run).groups[0].evaluations == (EVALUATION, ("sums-test", "last"))
    assert write_report(run.root, "tiny").read_text().count('<table class="arms">') == 2


def test_the_page_says_how_its_intervals_were_made_and_where_they_are_too_narrow(run: SyntheticRun) -> None:
    page = write_report(run.root, "tiny").read_text().replace(SPACE, " ")
    assert "of 95 % holds the truth in 84 to 93 %, at an accuracy of 2 % in 78 %" in page
    assert "with intervals (Student t over trainings, variance pooled within arms)" in page
    assert "v1 of the paper said about 94 %" in page


def test_the_papers_value_stands_beside_ours_and_only_the_claims_judge(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, accuracy={0.25: 0.15, 0.5: 0.2, 0.75: 0.71, 1.0: 0.72}).write()
    found = sentences(run)
    assert "The paper reports about 91 %, a mean over 30 settings" in found
    assert "no interval published (shown, not judged)." in found and "time 0.67 × (shown, not judged)" in found
    assert "differs, its whole interval" not in found and "includes that value" not in found
