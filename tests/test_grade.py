"""Grading: the recorded verdicts of math-verify, a deadline that holds, and the stage around it."""

import ast
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from some_resources import some_resources

from essence.errors import InputError
from essence.scoring.grade import GRADERS, Item, Verdict, grade_all, grader_version
from essence.settings import BenchmarkSettings, GradeSettings
from essence.stages import grade
from essence.stages.context import Progress, StageContext, Stopped, StopRequest

TIMEOUT_S = 6.0
LONG = 160_000


def verdicts_of(items: list[Item], timeout_s: float = TIMEOUT_S, workers: int = 1) -> list[Verdict]:
    with closing(grade_all(items, "math-verify", timeout_s, workers)) as graded:
        return list(graded)


def test_verdicts() -> None:
    items = [
        Item("42", r"so the answer is $\boxed{42}$"),
        Item("42", r"so the answer is $\boxed{43}$"),
        Item("25", r"\boxed{025}"),
        Item("42", "I do not know"),
        Item("42", ""),
        Item(r"\frac{1}{2}", r"thus $\boxed{0.5}$"),
        Item(r"(3, \frac{\pi}{2})", r"$\boxed{\left(3, \frac{\pi}{2}\right)}$"),
    ]
    verdicts = verdicts_of(items)
    assert [v.correct for v in verdicts] == [True, False, True, False, False, True, True]
    assert [v.status for v in verdicts] == ["graded"] * 3 + ["no answer"] * 2 + ["graded"] * 2
    assert (verdicts[1].extracted, verdicts[3].extracted) == ("43", None)


def test_long_and_pathological_completions_stall_nothing() -> None:
    items = [
        Item("42", "$(" * (LONG // 2)),
        Item("42", "1" * LONG),
        Item("42", "wait, " * (LONG // 6) + r"\boxed{42}"),
        Item("42", r"\boxed{9^{9^{9^{9}}}}"),
        Item("42", r"\boxed{42}"),
    ]
    started = time.monotonic()
    verdicts = verdicts_of(items, timeout_s=2.0)
    assert time.monotonic() - started < 30.0
    assert verdicts[0].status == verdicts[3].status == "timeout"
    assert [v.correct for v in verdicts] == [False, False, True, False, True]


def test_nothing_to_grade() -> None:
    assert verdicts_of([]) == []


def test_gold_that_does_not_parse() -> None:
    with pytest.raises(InputError, match="cannot read the gold answer ''"):
        verdicts_of([Item("1", r"\boxed{1}"), Item("", r"\boxed{1}")])


def test_version_is_the_one_installed() -> None:
    assert grader_version("math-verify").startswith("math-verify 0.")


def published_completions(folder: Path) -> Iterator[str]:
    for record in read_gzip(folder / "qwen25math_cot70.jsonl.gz"):
        yield from record["code"]
    for record in read_gzip(folder / "palign_aime24-output.jsonl.gz"):
        yield from ast.literal_eval(record["output"]) if isinstance(record["output"], str) else record["output"]
    for run in (0, 1):
        for record in read_gzip(folder / f"nemo_skills_output-rs{run}.jsonl.gz"):
            yield record["generation"]


def read_gzip(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.assets
def test_agrees_with_the_recorded_verdicts(assets: Path) -> None:
    if grader_version("math-verify") != "math-verify 0.5.2":
        pytest.skip(f"recorded with math-verify 0.5.2, installed: {grader_version('math-verify')}")
    folder = assets / "grading"
    texts = {hashlib.sha256(text.encode()).hexdigest(): text for text in published_completions(folder)}
    rows = [row for row in read_gzip(folder / "verdicts.jsonl.gz") if row["completion_sha256"] in texts][::3]
    assert len(rows) >= 250
    verdicts = verdicts_of([Item(row["gold"], texts[row["completion_sha256"]]) for row in rows], workers=2)
    differing = [
        (row["set"], row["pid"], row["sid"], verdict.status)
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.correct != row["math_verify_0.5.2"]
    ]
    assert differing == []


SAMPLES = [
    ("a", r"\boxed{1}"),
    ("a", r"\boxed{1}"),
    ("b", r"\boxed{1}"),
    ("b", r"\boxed{2}"),
    ("c", "none"),
    ("c", r"\boxed{4}"),
]


def inputs(folder: Path, samples: list[tuple[str, str]]) -> dict[str, Path]:
    (folder / "problems" / "problems").mkdir(parents=True)
    rows = [{"id": id, "problem": id, "answer": i + 1} for i, id in enumerate("abc")]
    (folder / "problems" / "problems" / "p.json").write_text(json.dumps(rows))
    (folder / "samples").mkdir()
    records = [
        {"problem": id, "sample": i % 2, "completion": text, "tokens": 10 + i, "finish_reason": "stop"}
        for i, (id, text) in enumerate(samples)
    ]
    (folder / "samples" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return {"problems": folder / "problems", "samples": folder / "samples"}


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    resources = some_resources(threads=2, micro_batch_rows=1, micro_batch_tokens=64, checkpoint_every_s=0)
    return StageContext(partial, inputs, resources, Progress(folder / "progress.json"), StopRequest())


def settings() -> GradeSettings:
    benchmark = BenchmarkSettings(
        name="abc", problem_field="problem", answer_field="answer", prompt="{problem}", problems=None
    )
    return GradeSettings(benchmark=benchmark, grader="math-verify", timeout_s=TIMEOUT_S, confidence=0.95)


def test_stage(tmp_path: Path) -> None:
    outcome = grade.run(settings(), context(tmp_path, inputs(tmp_path, SAMPLES)))
    results = outcome.results
    assert results["metric"] == "abc avg@2"
    assert results["accuracy"] == pytest.approx(0.5)
    assert results["per_problem"] == [
        {"problem": "a", "correct": 2, "samples": 2},
        {"problem": "b", "correct": 1, "samples": 2},
        {"problem": "c", "correct": 0, "samples": 2},
    ]
    assert results["interval"][0] < 0.5 < results["interval"][1]
    assert results["statuses"] == {"graded": 5, "no answer": 1, "timeout": 0}
    assert results["mean_completion_tokens"] == 12.5
    assert outcome.executed["samples_per_problem"] == 2
    lines = (tmp_path / "partial" / "verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["correct"] for line in lines] == [True, True, False, True, False, False]
    json.dumps(results, allow_nan=False)


def test_stage_goes_on_after_a_kill(tmp_path: Path) -> None:
    surroundings = context(tmp_path, inputs(tmp_path, SAMPLES))
    grade.run(settings(), surroundings)
    file = surroundings.partial / "verdicts.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    grade.run(settings(), surroundings)
    assert file.read_bytes() == whole


def test_stage_stops_when_asked(tmp_path: Path) -> None:
    surroundings = context(tmp_path, inputs(tmp_path, SAMPLES))
    surroundings.stop.signal_name = "SIGTERM"
    with pytest.raises(Stopped):
        grade.run(settings(), surroundings)


def test_refused_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 to 2 samples a problem"):
        grade.run(settings(), context(tmp_path, inputs(tmp_path, SAMPLES[:-1])))
    twice = tmp_path / "twice"
    twice.mkdir()
    with pytest.raises(InputError, match="has 2 samples twice"):
        grade.run(settings(), context(twice, inputs(twice, SAMPLES + SAMPLES[:2])))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match="a problem that the benchmark lacks: 'z'"):
        grade.run(settings(), context(other, inputs(other, [*SAMPLES, ("z", "1")])))
    (other / "samples" / "samples.jsonl").unlink()
    with pytest.raises(InputError, match=r"samples\.jsonl is missing"):
        grade.run(settings(), context(other, {"problems": other / "problems", "samples": other / "samples"}))


def test_the_stage_imports_neither_torch_nor_math_verify() -> None:
    code = (
        "import sys, essence.stages.grade; sys.exit(bool({'torch', 'transformers', 'math_verify'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


def test_graders_are_those_of_the_settings() -> None:
    assert set(GRADERS) == set(GradeSettings.model_fields["grader"].annotation.__args__)
