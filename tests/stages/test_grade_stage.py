"""The stage around the graders: results, resumption, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from essence.errors import InputError, StageError
from essence.evaluation.graders_apart import grader_version
from essence.evaluation.sample_lines import SampleLine, text_of
from essence.evaluation.statistics import student_t
from essence.progress import Progress, StageContext, Stopped, StopRequest
from essence.settings import BenchmarkSettings, GradeSettings
from essence.stages import grade
from support.some_resources import some_resources

SAMPLES = [
    ("a", r"\boxed{1}"),
    ("a", r"\boxed{1}"),
    ("b", r"\boxed{1}"),
    ("b", r"\boxed{2}"),
    ("c", "none"),
    ("c", r"\boxed{4}"),
]
ENDS = {1: "loop", 5: "length"}
"""By number of the sample; the others stopped by themselves."""


def inputs(folder: Path, samples: list[tuple[str, str]]) -> dict[str, Path]:
    (folder / "problems" / "problems").mkdir(parents=True)
    rows = [{"id": id, "problem": id, "answer": i + 1} for i, id in enumerate("abc")]
    (folder / "problems" / "problems" / "p.json").write_text(json.dumps(rows))
    (folder / "samples").mkdir()
    records = [
        SampleLine(
            id, i % 2, i, "ef" * 32, text, 10 + i, ENDS.get(i, "stop"), stop_token=None, loop_at=None, seconds=0.1
        )
        for i, (id, text) in enumerate(samples)
    ]
    (folder / "samples" / "samples.jsonl").write_text(text_of(records))
    return {"problems": folder / "problems", "samples": folder / "samples"}


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    resources = some_resources(threads=2, micro_batch_rows=1, micro_batch_tokens=64, checkpoint_every_s=0)
    return StageContext(partial, inputs, resources, Progress(folder / "progress.json"), StopRequest())


def settings(**changes: Any) -> GradeSettings:
    values: dict[str, Any] = {
        "benchmark": BenchmarkSettings(
            name="abc",
            problem_field="problem",
            answer_field="answer",
            answer_type="integer",
            prompt="{problem}",
            problems=None,
        ),
        "grader": "math-verify",
        "math_verify": grader_version(),
        "samples": 2,
        "timeout_s": 6.0,
        "confidence": 0.95,
        "pass_at": [1, 2, 4],
    }
    return GradeSettings(**(values | changes))


def test_stage(tmp_path: Path) -> None:
    outcome = grade.run(settings(), context(tmp_path, inputs(tmp_path, SAMPLES)))
    results = outcome.results
    assert results.metric == "abc avg@2"
    assert results.accuracy == pytest.approx(0.5)
    assert [entry.model_dump() for entry in results.per_problem] == [
        {"problem": "a", "correct": 2, "samples": 2, "tokens": 21, "stopped": 1, "at_cap": 0},
        {"problem": "b", "correct": 1, "samples": 2, "tokens": 25, "stopped": 2, "at_cap": 0},
        {"problem": "c", "correct": 0, "samples": 2, "tokens": 29, "stopped": 1, "at_cap": 1},
    ]
    assert results.stop_rate.value == pytest.approx(4 / 6)
    assert results.cap_rate.value == pytest.approx(1 / 6)
    length = results.completion_tokens
    margin = student_t(0.95, 2) * np.std([10.5, 12.5, 14.5], ddof=1) / 3**0.5
    assert (length.value, length.low, length.high) == pytest.approx((12.5, 12.5 - margin, 12.5 + margin))
    assert results.interval[0] < 0.5 < results.interval[1]
    assert results.statuses == {"graded": 5, "no answer": 1, "timeout": 0}
    assert results.doubts.answers_not_from_a_box == results.doubts.box_in_thought_alone == 0
    assert results.doubts.graders_disagree == 0 and "lighteval-0.10" in results.doubts.disagreeing
    assert results.mean_completion_tokens == 12.5
    assert {name: found.value for name, found in results.pass_at_k.items()} == pytest.approx(
        {"pass@1": 0.5, "pass@2": 2 / 3}
    )
    # b has one vote for each of two answers, one of them right
    assert {name: found.value for name, found in results.majority_at_k.items()} == pytest.approx(
        {"maj@1": 0.5, "maj@2": 0.5}, abs=0.01
    )
    assert outcome.executed.samples_per_problem == 2
    lines = (tmp_path / "partial" / "verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["correct"] for line in lines] == [True, True, False, True, False, False]
    json.dumps(outcome.model_dump(mode="json"), allow_nan=False)


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
    with pytest.raises(InputError, match="1 to 2 samples per problem"):
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


def test_what_was_declared_is_checked_on_what_was_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds 2 samples of each problem of abc, declared: 4"):
        grade.run(settings(samples=4), context(tmp_path, inputs(tmp_path, SAMPLES)))
    with pytest.raises(StageError, match=r"is installed, declared: 0\.9\.0"):
        grade.run(settings(math_verify="0.9.0"), context(tmp_path, {}))


def test_an_unreadable_gold_names_its_problem(tmp_path: Path) -> None:
    given = inputs(tmp_path, SAMPLES)
    rows = json.loads((given["problems"] / "problems" / "p.json").read_text())
    rows[1]["answer"] = "$"
    (given["problems"] / "problems" / "p.json").write_text(json.dumps(rows))
    latex = settings().benchmark.model_copy(update={"answer_type": "latex"})
    with pytest.raises(InputError, match=r"^abc, problem b: the grader math-verify cannot read the gold answer '\$'"):
        grade.run(settings(benchmark=latex), context(tmp_path, given))


def test_the_stage_imports_neither_torch_nor_math_verify() -> None:
    code = (
        "import sys, essence.stages.grade; sys.exit(bool({'torch', 'transformers', 'math_verify'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
