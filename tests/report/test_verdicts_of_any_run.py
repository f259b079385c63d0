"""Any run gets its page and its words, and the number of trainings that is advised decides."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from essence.evaluation.statistics import accuracy
from essence.plan.decision_power import Design
from essence.report.claims.advice import advise
from essence.report.claims.definition import load_claims
from essence.report.claims.simulated_runs import judge_made_up, made_up
from essence.report.claims.verdict import judge
from essence.report.results.read import read_results
from support.project import invoke
from support.synthetic_run import PROBLEMS, REAL, SAMPLES, SyntheticRun

CLAIMS = {claim.id: claim for claim in load_claims()}


def solve(run: SyntheticRun, cell: int, correct: list[int]) -> None:
    """Set the number of correct samples of each problem of a cell."""
    stage = run.stage_of(cell, "grade")
    results = json.loads((run.root / "stages" / stage / "manifest.json").read_text())["results"]
    found = accuracy([[n < c for n in range(SAMPLES)] for c in correct], 0.95)
    counted = [{**one, "correct": c} for one, c in zip(results["per_problem"], correct, strict=True)]
    interval = [found.low, found.high]
    changed = {"accuracy": found.value, "standard_error": found.standard_error, "interval": interval}
    run.damage(stage, results={**results, **changed, "per_problem": counted})


def test_a_reference_that_solves_a_handful_of_problems_takes_no_page(tmp_path: Path) -> None:
    """Some resampled references solve nothing: a standard error is then undefined."""
    run = SyntheticRun(tmp_path, lsps=(0.5, 1.0), seeds=(1,), texts=False, **REAL).write()
    solve(run, 0, [4, 3, 2, 2, 2, 1] + 34 * [0])
    solve(run, 1, [4, 3, 3, 2, 2, 1] + 34 * [0])
    done = invoke("report", "--experiment", run.experiment, "--runs", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / run.experiment / "report" / "report.html").read_text()
    assert "Claims of the paper" in page
    found = next(one for one in judge([read_results(tmp_path, run.experiment)]) if one.claim.id == "retention-half")
    assert found.word == "undecided" and found.measured is not None


def spoilt(run: SyntheticRun, random: np.random.Generator) -> None:
    """Any share of problems solved by each cell; some stages missing, failed, or run beside other work."""
    for cell in range(len(run.plan["cells"])):
        chance = random.choice([0.0, 0.02, 0.1, 0.5, 1.0])
        solve(run, cell, [int(c) for c in random.binomial(SAMPLES, chance, PROBLEMS)])
        train, stage = run.stage_of(cell, "train"), run.stage_of(cell, str(random.choice(["train", "grade"])))
        if random.random() < 0.3:
            cost = json.loads((run.root / "stages" / train / "manifest.json").read_text())["cost"]
            run.damage(train, cost={**cost, "cpu_s": cost["cpu_s"] * float(random.uniform(0.1, 1.0))})
        match random.choice(["here", "here", "here", "missing", "failed"]):
            case "missing":
                run.leave(stage)
            case "failed":
                run.fail(stage, "CUDA out of memory")


@pytest.mark.parametrize("repetition", range(5))
def test_a_report_of_whatever_ran_ends_with_0_and_a_page(tmp_path: Path, repetition: int) -> None:
    random = np.random.default_rng(100 + repetition)
    seeds = tuple(range(1, int(random.integers(1, 4)) + 1))
    run = SyntheticRun(tmp_path, lsps=(0.25, 0.5, 1.0), seeds=seeds, texts=False, **REAL).write()
    spoilt(run, random)
    done = invoke("report", "--experiment", run.experiment, "--runs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / run.experiment / "report" / "report.html").read_text()
    assert "Claims of the paper" in page and "could not be judged" not in page


@pytest.mark.parametrize("repetition", range(12))
def test_any_share_solved_and_any_seed_missing_gives_every_claim_a_word(tmp_path: Path, repetition: int) -> None:
    random = np.random.default_rng(repetition)
    seeds = tuple(range(1, int(random.integers(1, 4)) + 1))
    run = SyntheticRun(
        tmp_path, lsps=(0.25, 0.5, 0.75, 1.0), seeds=seeds, spans=("left", "right"), texts=False, **REAL
    ).write()
    spoilt(run, random)
    found = judge([read_results(tmp_path, run.experiment)])
    assert [one.claim.id for one in found] == [claim.id for claim in load_claims()]
    assert not [one.advice for one in found if "could not be judged" in one.advice]


@pytest.mark.slow
def test_the_number_that_is_advised_decides_and_rightly() -> None:
    """Of made-up runs told a number of seeds, as many as said decide when that number is run anew."""
    random, found = np.random.default_rng(11), []
    claim = CLAIMS["retention-half"]
    for _ in range(1_000):
        if len(found) == 100:
            break
        kept = float(random.uniform(0.78, 0.94))
        design = Design(1, 5, 64, 0.2, 0.01, retention=kept)
        word, measured = judge_made_up(claim, made_up(design, random))
        wanted = advise(measured, claim.band).wanted if word == "undecided" else {}
        if "seeds" in wanted:
            word, _ = judge_made_up(claim, made_up(replace(design, seeds=wanted["seeds"]), random))
            right = "reproduced" if claim.band[0] <= kept <= claim.band[1] else "not reproduced"
            found.append("undecided" if word == "undecided" else "right" if word == right else "wrong")
    assert len(found) == 100 and found.count("undecided") <= 30 and found.count("wrong") <= 5
