"""Two runs that differ in one planted cause: the comparison names that cause first."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essence.commands.compare import AMONG_MANY, BEYOND, RETRAINED, Compared, _change, allow_for_number, over_all
from essence.files import sha256_file
from essence.record.comparison import Chain, likely_causes
from essence.record.evaluation_records import GradeResults, ProblemCount
from essence.record.manifest import Manifest
from essence.record.stage_records import MANIFESTS
from essence.settings import StageName
from support.project import MICRO, PROJECT, invoke
from support.synthetic_run import SyntheticRun
from support.synthetic_run import manifest as synthetic

HALF = """
extends = {micro}
title = "One cell that differs in one thing"

[[matrix]]
dataset = ["tiny"]
pair = ["tiny-teacher_tiny-student"]
lsp = [0.5]
seed = [{seed}]

[evaluation]
baselines = []

[grading]
{grading}
"""


@pytest.fixture(scope="module")
def runs(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small matrix, with room for variants beside it."""
    copy = tmp_path_factory.mktemp("compare") / "runs"
    shutil.copytree(micro, copy)
    return copy


def variant(runs: Path, name: str, *, seed: int = 1, grading: str = "", rows: Path | None = None) -> str:
    """Run the cell at LSP 0.5 with one thing changed; what it shares with the matrix is not run again."""
    file = written(runs.parent / f"{name}.toml", seed, grading)
    pins: tuple[str, ...] = ()
    if rows:
        pinned = runs.parent / "pins.toml"
        pinned.write_text(f'[datasets.tiny]\npath = {json.dumps(str(rows))}\nformat = "conversations"\n')
        pins = ("--pins", str(pinned))
    done = invoke("reproduce", str(file), "--runs", str(runs), *pins)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"{runs / name}"


def written(file: Path, seed: int = 1, grading: str = "") -> Path:
    """The experiment of the cell at LSP 0.5 alone."""
    file.write_text(HALF.format(micro=json.dumps(str(MICRO)), seed=seed, grading=grading))
    return file


def compared(first: str, second: str) -> dict[str, Any]:
    done = invoke("compare", first, second, "--json")
    assert done.returncode in (0, 1), done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def half(folder: Path | str) -> str:
    return f"{folder}:lsp-0.50"


def test_equal_runs_have_no_cause(runs: Path) -> None:
    record = compared(str(runs / "micro"), str(runs / "micro"))
    assert record["causes"] == [] and {one["word"] for one in record["results"]} == {"equal"}


def test_the_seconds_of_equal_completions_are_no_cause_and_another_completion_is(runs: Path, tmp_path: Path) -> None:
    """Two runs of equal inputs differ in how long each sample took, and in nothing else; then in one completion."""
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    evaluation = json.loads((copy / "micro/plan.json").read_text())["cells"][0]["evaluations"][0]
    samples = copy / "stages" / evaluation["generate"] / "output" / "samples.jsonl"
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]

    def causes(changed: list[dict[str, Any]]) -> list[tuple[str, str]]:
        samples.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
        file = copy / "stages" / evaluation["grade"] / "manifest.json"
        record = json.loads(file.read_text())
        record["inputs"]["data"]["samples_sha256"] = sha256_file(samples)
        file.write_text(json.dumps(record))
        found = compared(str(runs / "micro"), str(copy / "micro"))["causes"]
        return [(cause["kind"], cause["field"]) for cause in found]

    slower = [{**line, "seconds": line["seconds"] + 1.0} for line in lines]
    assert causes(slower) == []
    assert causes(slower[::-1]) == [], "samples stand as they end"
    other = {**slower[0], "completion": slower[0]["completion"] + " "}
    assert causes([other, *slower[1:]]) == [("unexplained", "samples_sha256")]


def test_completions_that_are_gone_are_compared_by_their_counts() -> None:
    """Of which records have whole numbers alone."""
    counts = {"problem": "1", "correct": 1, "samples": 4, "tokens": 40}
    chains = [
        {"grade": graded_from("ab", counts)},
        {"grade": graded_from("cd", counts)},
        {"grade": graded_from("ef", {**counts, "tokens": 41})},
    ]
    assert likely_causes(chains[0], chains[1]) == []
    (cause,) = likely_causes(chains[0], chains[2])
    assert (cause.kind, cause.field) == ("unexplained", "samples_sha256")


def graded_from(sha256: str, counts: dict[str, Any]) -> Manifest:
    """The record of a grade stage that read a file with this hash."""
    return manifest("grade", results={"per_problem": [counts]}, inputs={"data": {"samples_sha256": sha256 * 32}})


def test_another_proportion_is_named_first(runs: Path) -> None:
    record = compared(half(runs / "micro"), f"{runs / 'micro'}:lsp-1.00")
    assert [cause["field"] for cause in record["causes"]] == ["view.lsp"]


@pytest.mark.nightly
@pytest.mark.slow
def test_another_seed_is_named_first(runs: Path) -> None:
    record = compared(half(runs / "micro"), variant(runs, "seed", seed=2))
    assert {cause["kind"] for cause in record["causes"]} == {"seed"}


def test_another_grader_is_named_first(runs: Path) -> None:
    record = compared(half(runs / "micro"), variant(runs, "grader", grading='grader = "math-verify"'))
    assert [(cause["kind"], cause["field"]) for cause in record["causes"]] == [("grader", "grader")]


def test_an_archive_and_an_edited_record(runs: Path, tmp_path: Path) -> None:
    """A run against its archive is equal, and with one number edited it still is, but that is said."""
    archive, copy = tmp_path / "micro.tar.gz", tmp_path / "runs"
    done = invoke("export", "--experiment", "micro", "--runs", str(runs), "--output", str(archive))
    assert done.returncode == 0, done.stderr
    shutil.copytree(runs, copy)
    grade = json.loads((copy / "micro/plan.json").read_text())["cells"][0]["evaluations"][0]["grade"]
    file = copy / "stages" / grade / "manifest.json"
    changed = json.loads(file.read_text())
    changed["cost"]["wall_s"] = 1.0
    file.write_text(json.dumps(changed))
    record = compared(str(archive), str(copy / "micro"))
    assert {one["word"] for one in record["results"]} == {"equal"} and record["causes"] == []
    assert len(record["results"]) == 4 and {"student tiny-student (released)", "teacher tiny-teacher (released)"} <= {
        one["name"] for one in record["results"]
    }
    assert record["edited"] == {"A": [], "B": [grade]}


@pytest.mark.nightly
@pytest.mark.slow
def test_one_changed_training_row_is_named_first(runs: Path) -> None:
    dataset = next(p for p in (runs / "stages").glob("download-*/output/rows/train.jsonl"))
    rows = runs.parent / "rows.jsonl"
    shutil.copyfile(dataset, rows)
    first = variant(runs, "rows", rows=rows)
    lines = rows.read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join([lines[0].replace("+", "plus"), *lines[1:]]) + "\n", encoding="utf-8")
    assert lines[0] != rows.read_text(encoding="utf-8").splitlines()[0]
    record = compared(half(first), variant(runs, "changed-row", rows=rows))
    assert {cause["kind"] for cause in record["causes"]} == {"data"}


@pytest.mark.nightly
@pytest.mark.slow
def test_another_lock_is_named_first(runs: Path, tmp_path: Path) -> None:
    """The same packages from an environment that says it was made from another lock."""
    other = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
    packages = next(other.glob("lib/python*/site-packages"))
    here = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    (packages / "here.pth").write_text(f"{here}\n{PROJECT}\n")
    lock = (Path(sys.prefix) / "essence-lock.txt").read_text(encoding="utf-8")
    (other / "essence-lock.txt").write_text(lock + "# another lock\n")
    line = [str(other / "bin/python"), "-m", "invoke", "run", "--experiment", str(written(tmp_path / "half.toml"))]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*line, "--runs", str(tmp_path / "runs")], cwd=PROJECT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = compared(half(runs / "micro"), half(tmp_path / "runs"))
    assert record["causes"][0]["kind"] == "lock"
    assert {one["word"] for one in record["results"]} == {"equal"}


RESULTS: dict[str, Any] = {
    "generate": {"samples": 4, "problems": 1, "finish_reasons": {"stop": 4}, "mean_completion_tokens": 9.0},
    "grade": {
        "benchmark": "b", "metric": "b avg@4", "accuracy": 0.5, "standard_error": None, "interval": [None, None],
        "confidence": 0.95, "method": "none", "per_problem": [], "finish_reasons": {"stop": 4},
        "mean_completion_tokens": 9.0,
    },
}  # fmt: skip


def manifest(stage: StageName, results: dict[str, Any] | None = None, **changes: Any) -> Manifest:
    """A record whose results, and fields of whose other groups, are these."""
    record = synthetic("ab" * 32, stage, stage, {"seed": 1}, {**RESULTS[stage], **(results or {})}, {}, {})
    for group, fields in changes.items():
        record[group] = {**record[group], **fields}
    return MANIFESTS[stage].model_validate(record)


def test_a_sif_without_a_digest_is_named_by_its_base() -> None:
    one, base = manifest("grade"), f"sha256:{'b' * 64}"

    def made_as(**image: str) -> Chain:
        return {"grade": one.model_copy(update={"image": one.image.model_copy(update={"base_digest": base, **image})})}

    sif, again = (made_as(engine="apptainer", sif_sha256=which * 64) for which in "cd")
    (cause,) = likely_causes(made_as(engine="docker", digest=f"sha256:{'1' * 64}"), sif)
    assert f"a SIF straight from base {base}" in str(cause)
    assert likely_causes(sif, again) == [], "no build of the same lock on the same base is another image"


def test_causes_are_ranked_and_consequences_left_out() -> None:
    first = {"grade": manifest("grade"), "grade.samples": manifest("generate")}
    hardware = {"cpu": "d", "driver": "590"}
    second = {
        "grade": manifest("grade", results={"accuracy": 0.1}),
        "grade.samples": manifest(
            "generate", hardware=hardware, image={"digest": "sha256:2", "engine": "docker"},
            software={"lock_sha256": "b", "packages": {"torch": "2.14.0"}}, settings={"resolved": {"seed": 2}},
        ),
    }  # fmt: skip
    causes = likely_causes(first, second)
    assert [cause.kind for cause in causes] == ["image", "lock", "seed", "driver", "hardware"]
    assert "torch 2.13.0 -> 2.14.0" in causes[1].sentence


def test_equal_inputs_with_other_results_are_said_to_be_unexplained() -> None:
    causes = likely_causes({"grade": manifest("grade")}, {"grade": manifest("grade", results={"accuracy": 0.1})})
    assert [(cause.kind, cause.field) for cause in causes] == [("unexplained", "accuracy")]


def test_of_one_problem_nothing_can_be_told() -> None:
    """Without an interval a difference may be chance."""
    first, second = (graded_results([{"problem": "1", "correct": correct, "samples": 4}]) for correct in (1, 2))
    assert _change(first, second)[1] == "cannot be told"
    assert _change(first, first)[1] == "equal"


def test_a_few_problems_that_differ_by_the_same_amount_may_do_so_by_chance() -> None:
    """Their spread is 0, and so is the error: the sign of 2 or 5 problems is no evidence, that of 30 is."""
    found = {}
    for problems in (2, 5, 30):
        first, second = (graded(np.full(problems, correct)) for correct in (31, 32))
        found[problems] = (_change(first, second)[1], words_of(each_alone([(first, second)]))[0])
    assert found == {2: ("cannot be told",) * 2, 5: ("cannot be told",) * 2, 30: (BEYOND,) * 2}


def graded_results(counts: list[dict[str, Any]], accuracy: float = 0.5) -> GradeResults:
    return GradeResults.model_validate({**RESULTS["grade"], "per_problem": counts, "accuracy": accuracy})


NOTHING = graded_results([])
"""Copied, as thousands of checked records take longer than all the comparisons."""


def graded(correct: np.ndarray[Any, Any]) -> GradeResults:
    """Results of a cell: `correct` of 64 samples of each problem."""
    counts = [
        ProblemCount.model_construct(problem=str(i), correct=c, samples=64) for i, c in enumerate(correct.tolist())
    ]
    return NOTHING.model_copy(update={"per_problem": counts, "accuracy": float(correct.mean()) / 64})


def each_alone(pairs: Iterable[tuple[GradeResults, GradeResults]]) -> list[Compared]:
    return [Compared(str(number), "b", (None, None), *_change(*pair)) for number, pair in enumerate(pairs)]


def words_of(alone: list[Compared]) -> list[str]:
    return [one.word for one in allow_for_number(alone)]


def chain_of(results: GradeResults) -> Chain:
    counts = [{"problem": one.problem, "correct": one.correct, "samples": one.samples} for one in results.per_problem]
    return {"grade b best": manifest("grade", results={"per_problem": counts, "accuracy": results.accuracy})}


@pytest.mark.slow
def test_equal_runs_are_rarely_found_different_and_ten_points_are_found() -> None:
    """400 pairs of runs that differ in sampling alone, 24 comparisons each."""
    random = np.random.default_rng(5)
    drawn = random.binomial(64, 0.8 * random.beta(0.5, 1.5, (400, 24, 1, 30)), (400, 24, 2, 30))
    runs = [each_alone((graded(a), graded(b)) for a, b in pairs) for pairs in drawn]
    assert sum(BEYOND in words_of(run) for run in runs) <= 20
    assert sum(any(one.word == BEYOND for one in run) for run in runs) > 200, "each alone, most equal runs differ"
    chances = 0.8 * random.beta(0.5, 1.5, 30)
    chances *= 0.2 / chances.mean()
    pairs = [(graded(random.binomial(64, chances)), graded(random.binomial(64, chances))) for _ in range(23)]
    apart = (graded(random.binomial(64, chances)), graded(random.binomial(64, np.clip(chances + 0.1, 0.0, 1.0))))
    assert words_of(each_alone([*pairs, apart]))[-1] == BEYOND
    first, second = map(chain_of, apart)
    overall = over_all([(first, second)])
    assert overall and overall.p < 0.001 and overall.change.value == pytest.approx(0.1, abs=0.03)


def test_words_of_many_comparisons_and_of_two_trainings() -> None:
    def one(p: float, retrained: bool = False) -> Compared:
        return Compared(f"{p} {retrained}", "b", (None, None), None, BEYOND, p, retrained)

    found = allow_for_number([one(0.001), one(0.04), one(0.03), one(0.002, True)])
    assert [each.word for each in found] == [BEYOND, AMONG_MANY, AMONG_MANY, RETRAINED]


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ("nowhere", "micro", "nowhere: no finished cell is there"),
        ("micro:lsp-0.3", "micro", "no finished cell with 'lsp-0.3' in its name is there"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(runs: Path, first: str, second: str, sentence: str) -> None:
    done = invoke("compare", f"{runs}/{first}", f"{runs}/{second}")
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_experiments_that_name_their_cells_alike_are_all_compared(tmp_path: Path) -> None:
    """Two experiments may have cells of one name with different settings: neither replaces the other."""
    for side, accuracy in (("a", 0.66), ("b", 0.1)):
        SyntheticRun(tmp_path / side, "bespoke", lsps=(0.5,), seeds=(1,), accuracy={0.5: accuracy}).write()
        SyntheticRun(tmp_path / side, "sft", lsps=(0.5,), seeds=(1,), temperature=0.0).write()
    found = compared(str(tmp_path / "a"), str(tmp_path / "b"))
    words = {one["name"]: one["word"] for one in found["results"]}
    cell = "sums/tiny-teacher_tiny-student/lsp-0.50/p+cot+a/corrected/seed-1"
    assert words[f"bespoke: {cell}"] == "beyond sampling error" and words[f"sft: {cell}"] == "equal"
    assert len(words) == 6 and found["only_in"] == {"A": [], "B": []}
    unclear = invoke("compare", str(tmp_path / "a"), str(tmp_path / "b" / "bespoke"))
    assert unclear.returncode == 2 and "no cell in common: name one on each side" in unclear.stderr
