"""The results as rows: what CSV and Parquet hold, what is empty, and the ten lines of the docs that draw the figure."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest

from essence.errors import KitError
from essence.report.claims.retention_rows import read_with_retention
from essence.report.data_columns import EvaluationRow, Place, SampleRow, columns_of, markdown_of
from essence.report.data_files import without_lines, write_data
from essence.report.results.records import Results
from support.project import INVOKE, PROJECT, invoke
from support.synthetic_run import PROBLEMS, SAMPLES, SyntheticRun

PAGE = PROJECT / "docs" / "results-as-data.md"
KINDS = (Place, EvaluationRow, SampleRow)
RENEW = "ESSENCE_RENEW_GOLDEN=1 .venv/bin/pytest tests/report/test_results_as_data.py -k golden"
WITHOUT_PYARROW = """
import runpy, sys
sys.path.insert(0, ".")
sys.modules["pyarrow"] = None
import importlib.util
sys.argv = ["invoke", *sys.argv[1:]]
runpy.run_path(%r, run_name="__main__")
"""


def table(root: Path, name: str) -> list[dict[str, str]]:
    with (root / "tiny" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    """Two proportions, two seeds, two baselines; one training failed."""
    run = SyntheticRun(tmp_path / "runs", lsps=(0.5, 1.0)).write()
    run.fail(run.stage_of(0, "train"), "no memory")
    run.leave(*(run.stage_of(0, stage) for stage in ("generate", "grade")))
    return run


def written(run: SyntheticRun, *formats: str) -> Results:
    results = read_with_retention(run.root, "tiny")
    files = write_data(results, formats)
    assert [file.name for file in files] == [
        f"{stem}.{name}" for stem in ("evaluations", "samples") for name in formats
    ]
    return results


def test_both_formats_hold_every_evaluation_and_every_sample(run: SyntheticRun) -> None:
    written(run, "csv", "parquet")
    evaluations, samples = table(run.root, "evaluations.csv"), table(run.root, "samples.csv")
    assert Counter(row["role"] for row in evaluations) == {"cell": 4, "student": 1, "teacher": 1}
    assert len(samples) == 5 * PROBLEMS * SAMPLES
    for row in evaluations[1:]:
        mine = [one for one in samples if one["grade_stage"] == row["grade_stage"]]
        right = sum(one["correct"] == "true" for one in mine)
        assert (right, len(mine)) == (int(row["correct"]), int(row["samples"]))
        assert float(row["accuracy"]) == pytest.approx(right / len(mine))
    for name, rows in (("evaluations", evaluations), ("samples", samples)):
        stored = pyarrow.parquet.read_table(run.root / "tiny" / f"{name}.parquet")
        assert stored.num_rows == len(rows) and stored.column_names == list(rows[0])
        shown = [{key: _shown(value) for key, value in row.items()} for row in stored.to_pylist()]
        assert shown == rows
    field = pyarrow.parquet.read_schema(run.root / "tiny" / "evaluations.parquet").field("train_wall_s")
    assert field.metadata[b"unit"] == b"s" and field.metadata[b"meaning"]


def _shown(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_what_is_not_known_is_empty_and_not_0(run: SyntheticRun) -> None:
    written(run, "csv")
    undone, done, *_ = table(run.root, "evaluations.csv")
    assert undone["state"] == "left" and undone["lsp"] == "0.5" and undone["grade_stage"]
    numbers = [column.name for column in columns_of(EvaluationRow) if column.may_be_empty and column.kind is not str]
    assert [name for name in numbers if undone[name]] == ["lsp", "seed"]
    assert done["train_energy_j"] == "" and done["train_peak_gpu_memory_gib"] == "" and done["looped"] == "0"
    student = next(row for row in table(run.root, "evaluations.csv") if row["role"] == "student")
    assert student["lsp"] == "" and student["retention"] == "" and student["train_wall_s"] == ""


def test_they_lie_beside_the_report_which_stays_as_it_is(run: SyntheticRun) -> None:
    done = invoke("report", "--runs", str(run.root), "--csv", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["experiment"] == "tiny" and "evaluations.csv" in done.stderr
    names = {path.name for path in (run.root / "tiny").iterdir()}
    assert {"evaluations.csv", "samples.csv", "report"} <= names and not any(name.startswith(".") for name in names)
    assert not list((run.root / "tiny" / "report").glob("*.csv"))


def test_evaluations_without_their_samples_are_named(run: SyntheticRun) -> None:
    (run.root / "stages" / run.stage_of(3, "grade") / "output" / "verdicts.jsonl").unlink()
    assert without_lines(written(run, "csv")) == [run.stage_of(3, "grade")]
    assert len(table(run.root, "samples.csv")) == 4 * PROBLEMS * SAMPLES


@pytest.mark.parametrize("change", ["turned", "twice", "torn"])
def test_lines_that_are_not_those_of_the_record_are_refused(run: SyntheticRun, change: str) -> None:
    written(run, "csv")
    before = (run.root / "tiny" / "samples.csv").read_bytes()
    file = run.root / "stages" / run.stage_of(2, "grade") / "output" / "verdicts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    changed = {
        "turned": ["".join(lines).replace('"correct": true', '"correct": false', 1)],
        "twice": [*lines, lines[0]],
        "torn": [*lines[:-1], lines[-1][:20]],
    }
    file.write_text("".join(changed[change]))
    with pytest.raises(KitError, match=re.escape(str(file))):
        write_data(read_with_retention(run.root, "tiny"), ["csv"])
    assert (run.root / "tiny" / "samples.csv").read_bytes() == before
    assert not [path for path in (run.root / "tiny").iterdir() if path.name.startswith(".")]


def test_parquet_without_pyarrow_names_the_environments_that_have_it(run: SyntheticRun) -> None:
    command = [sys.executable, "-c", WITHOUT_PYARROW % str(INVOKE), "report", "--runs", str(run.root), "--parquet"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "--parquet needs pyarrow" in done.stderr and "make setup" in done.stderr and "--csv" in done.stderr
    assert not list((run.root / "tiny").glob("*.parquet"))


def test_a_golden_table_of_the_page_is_that_of_the_records() -> None:
    text = PAGE.read_text()
    for kind in KINDS:
        made = f"<!-- columns: {kind.__name__} -->\n" + "\n".join(markdown_of(kind)) + "\n"
        found = re.search(rf"<!-- columns: {kind.__name__} -->\n(?:\|.*\n)*", text)
        assert found
        if os.environ.get("ESSENCE_RENEW_GOLDEN"):
            text = text.replace(found[0], made)
            PAGE.write_text(text)
        assert found[0] == made or os.environ.get("ESSENCE_RENEW_GOLDEN"), f"renew it: {RENEW}"
    names = [column.name for kind in (EvaluationRow, SampleRow) for column in columns_of(kind)]
    assert all(f"`{name}`" in text for name in names)


def test_ten_lines_load_the_rows_and_redraw_the_main_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SyntheticRun(tmp_path / "runs").write()
    written(run, "csv")
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len([line for line in code.splitlines() if line]) == 10
    done = subprocess.run(
        [sys.executable, "-c", code + "print(plt.gca().lines[-3].get_xydata().tolist())"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    (group,) = read_with_retention(run.root, "tiny").groups
    expected = [[arm.lsp, arm.pooled["sums-test", "best"].accuracy.value] for arm in group.arms]
    assert json.loads(done.stdout) == [pytest.approx(point) for point in expected]


def test_a_cell_may_hold_any_line_break_quote_and_comma(run: SyntheticRun) -> None:
    file = run.root / "stages" / run.stage_of(2, "grade") / "output" / "verdicts.jsonl"
    odd = ["a\rb", "a\nb", "a\r\nb", '"a"', "a,b", "=1+1", " a "]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    changed = [{**line, "extracted": odd[place % len(odd)]} for place, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in changed))
    written(run, "csv", "parquet")
    rows = [row for row in table(run.root, "samples.csv") if row["grade_stage"] == run.stage_of(2, "grade")]
    assert {row["extracted"] for row in rows} == set(odd) and len(rows) == PROBLEMS * SAMPLES
    read = pandas.read_csv(run.root / "tiny" / "samples.csv", dtype={"extracted": str}, keep_default_na=False)
    assert read.extracted.tolist() == pandas.read_parquet(run.root / "tiny" / "samples.parquet").extracted.tolist()


def test_a_data_frame_of_samples_keeps_answers_as_text(run: SyntheticRun) -> None:
    written(run, "csv", "parquet")
    told = {"dtype": dict.fromkeys(("gold", "extracted", "answer"), str), "keep_default_na": False, "na_values": [""]}
    read = pandas.read_csv(run.root / "tiny" / "samples.csv", **told)
    stored = pandas.read_parquet(run.root / "tiny" / "samples.parquet")
    assert read.gold.tolist() == stored.gold.tolist() and read.correct.dtype == bool == stored.correct.dtype
