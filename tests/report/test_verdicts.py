"""Verdicts on results that are hard to judge: every report ends with a page, and with a word that can be trusted."""

import json
from pathlib import Path

import numpy as np
import pytest

from essence.evaluation.statistics import accuracy
from essence.report.claims.definition import load_claims
from essence.report.claims.verdict import judge
from essence.report.results.read import read_results
from support.project import invoke
from support.synthetic_run import PROBLEMS, SAMPLES, SyntheticRun


def solve(run: SyntheticRun, cell: int, correct: list[int]) -> None:
    """Let a cell solve each problem so many times."""
    stage = run.stage_of(cell, "grade")
    results = json.loads((run.root / "stages" / stage / "manifest.json").read_text())["results"]
    found = accuracy([[n < c for n in range(SAMPLES)] for c in correct], 0.95)
    counted = [{**one, "correct": c} for one, c in zip(results["per_problem"], correct, strict=True)]
    interval = [found.low, found.high]
    changed = {"accuracy": found.value, "standard_error": found.standard_error, "interval": interval}
    run.damage(stage, results={**results, **changed, "per_problem": counted})


def test_a_reference_that_solves_a_handful_of_problems_takes_no_page(tmp_path: Path) -> None:
    """Some resampled references solve nothing: a standard error is then undefined."""
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False).write()
    solve(run, 0, [4, 3, 2, 2, 2, 1] + 34 * [0])
    solve(run, 1, [4, 3, 3, 2, 2, 1] + 34 * [0])
    done = invoke("report", "--experiment", run.experiment, "--runs", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / run.experiment / "report" / "report.html").read_text()
    assert "Claims of the paper" in page
    found = next(one for one in judge([read_results(tmp_path, run.experiment)]) if one.claim.id == "retention-half")
    assert found.word == "undecided" and found.measured is not None


@pytest.mark.parametrize("repetition", range(12))
def test_any_share_solved_and_any_seed_missing_gives_every_claim_a_word(tmp_path: Path, repetition: int) -> None:
    random = np.random.default_rng(repetition)
    seeds = tuple(range(1, int(random.integers(1, 4)) + 1))
    run = SyntheticRun(tmp_path, lsps=(0.25, 0.5, 0.75, 1.0), seeds=seeds, spans=("left", "right"), texts=False).write()
    for cell in range(len(run.plan["cells"])):
        chance = random.choice([0.0, 0.02, 0.1, 0.5, 1.0])
        solve(run, cell, [int(c) for c in random.binomial(SAMPLES, chance, PROBLEMS)])
        if random.random() < 0.25:
            run.leave(run.stage_of(cell, str(random.choice(["train", "grade"]))))
    found = judge([read_results(tmp_path, run.experiment)])
    assert [one.claim.id for one in found] == [claim.id for claim in load_claims()]
    assert not [one.advice for one in found if "could not be judged" in one.advice]
