"""The planner's figures: right values from an independent computation, and a simulation of the whole judgement."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essence.evaluation.statistics import student_t
from essence.plan.decision_power import Design, Hours, chances, cheapest, fewest_seeds
from essence.report.build import write_report
from essence.report.claims.definition import load_claims
from essence.report.claims.pilot import CONFIDENCE, chi_square_quantile, pilot_of
from essence.report.claims.simulated_runs import made_up, shares_of
from essence.report.results.read import read_results
from essence.text import SPACE
from support.project import PROJECT, invoke
from support.synthetic_run import REAL, SAMPLES, SyntheticRun

CLAIM = next(claim for claim in load_claims() if claim.id == "retention-half")
BAND = CLAIM.band
TOST = 0.90
"""A 95 % interval is 2.5 % a side; the usual equivalence test has 5 % a side."""
HOURS = Hours(training=1.607, sample=0.08429)


def test_the_standard_error_of_a_design() -> None:
    design = Design(15, 5, 64, 0.2, 0.02)
    assert design.standard_error == pytest.approx(0.0157, abs=0.0003) and design.degrees == 120
    assert Design(15, 1, 64, 0.2, 0.02).degrees == 14 and Design(1, 1, 64, 0.2, 0.02).degrees == 0


def pooled_alone(design: Design) -> float:
    """Chance of "reproduced" where only the variance within arms counts: values and variances are drawn."""
    random, error = np.random.default_rng(1), design.standard_error
    values = design.retention + error * random.standard_normal(40_000)
    scale = np.sqrt(random.chisquare(design.degrees, 40_000) / design.degrees)
    margins = student_t(TOST, design.degrees) * error * scale
    return float(np.mean((values - margins >= BAND[0]) & (values + margins <= BAND[1])))


@pytest.mark.parametrize(("seeds", "sd", "power"), [(5, 0.02, 0.87), (2, 0.01, 0.93)])
def test_the_chance_of_a_true_claim(seeds: int, sd: float, power: float) -> None:
    """The report takes the larger of the variances within arms and between settings, which costs some chance."""
    design = Design(15, seeds, 64, 0.2, sd)
    assert pooled_alone(design) == pytest.approx(power, abs=0.02)
    found, strict = chances(design, BAND, 0.80, TOST), chances(design, BAND, 0.80)
    assert power - 0.05 < found.reproduced < pooled_alone(design) and found.wrong_at_the_edge <= 0.052
    assert strict.reproduced < found.reproduced and strict.wrong_at_the_edge <= 0.026


@pytest.mark.parametrize(
    ("settings", "sd", "seeds", "hours"),
    [(1, 0.01, 22, 308), (1, 0.02, 65, 910), (15, 0.01, 2, 420), (15, 0.02, 5, 1050)],
)
def test_the_fewest_seeds_with_64_samples(settings: int, sd: float, seeds: int, hours: int) -> None:
    design = Design(settings, 1, 64, 0.2, sd)
    found = fewest_seeds(design, BAND, 0.8, TOST)
    assert found == pytest.approx(seeds, abs=1)
    assert HOURS.of(replace(design, seeds=seeds)) == pytest.approx(hours, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "sd", "seeds", "samples", "hours"),
    [(1, 0.01, 34, 16, 201), (1, 0.02, 95, 8, 432), (15, 0.01, 2, 32, 258), (15, 0.02, 7, 8, 478)],
)
def test_the_cheapest_design_takes_fewer_samples(
    settings: int, sd: float, seeds: int, samples: int, hours: int
) -> None:
    found = cheapest(Design(settings, 1, 64, 0.2, sd), BAND, 0.8, HOURS, TOST)
    assert found and found.samples == samples and found.seeds == pytest.approx(seeds, abs=1)
    assert HOURS.of(found) == pytest.approx(hours, rel=0.03)


def test_one_training_of_each_arm_of_one_setting_decides_nothing() -> None:
    assert chances(Design(1, 1, 64, 0.2, 0.01), BAND, 0.80).reproduced == 0.0
    assert fewest_seeds(Design(1, 1, 64, 0.2, 0.5), BAND, 0.8) is None


@pytest.mark.parametrize(("settings", "seeds", "sd"), [(1, 22, 0.01), (1, 65, 0.02), (15, 2, 0.01), (15, 5, 0.02)])
def test_computed_and_simulated_power_agree(settings: int, seeds: int, sd: float) -> None:
    """Made-up runs are judged by the report's own functions; of 600 a share of 80 % is known within 1.6 points."""
    design = Design(settings, seeds, 64, 0.2, sd)
    simulated = shares_of(design, CLAIM, 2000 if settings == 1 else 600, 1, TOST)
    assert chances(design, BAND, 0.80, TOST).reproduced == pytest.approx(simulated.of("reproduced"), abs=0.03)
    assert simulated.of("not reproduced") <= 0.01


@pytest.mark.parametrize(("settings", "sd"), [(1, 0.01), (15, 0.01), (15, 0.02)])
def test_the_number_of_seeds_that_is_planned_decides_and_rightly(settings: int, sd: float) -> None:
    """Of 100 made-up runs of a true claim, with the fewest seeds and with the cheapest design."""
    planned = Design(settings, 1, 64, 0.2, sd)
    seeds, best = fewest_seeds(planned, BAND, 0.8), cheapest(planned, BAND, 0.8, HOURS)
    assert seeds and best
    for design in (replace(planned, seeds=seeds), best):
        found = shares_of(design, CLAIM, 100, 2)
        assert found.of("reproduced") >= 0.7 and found.of("not reproduced") <= 0.05
    wrong = shares_of(replace(planned, seeds=seeds, retention=BAND[0]), CLAIM, 100, 3)
    assert wrong.of("reproduced") <= 0.05


def test_the_command_shows_a_row_for_each_deviation_that_nobody_measured() -> None:
    done = invoke("plan", "--experiment", "bespoke", "--decide", "retention-half", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["design"]["training_sd"] for row in record["rows"]] == [0.005, 0.01, 0.02, 0.03]
    assert not record["measured_sd"] and all(row["chances"]["reproduced"] == 0.0 for row in record["rows"])
    seeds = [row["fewest_seeds"] for row in record["rows"]]
    assert seeds == sorted(seeds) and record["hours"]["training"] > 0.0
    assert record["pilot"] is None and record["confidence"] == 0.95


def test_the_plan_says_in_one_line_what_it_can_and_cannot_decide() -> None:
    shown = invoke("plan", "--experiment", "bespoke").stdout.replace(SPACE, " ").splitlines()
    line = next(one for one in shown if "it can decide" in one)
    can, cannot = line.split("; it cannot decide: ")
    assert can == "as planned it can decide: flops-half"
    assert (
        "retention-half" in cannot and "one training of each arm" in cannot and "time-half (one pair of runs)" in cannot
    )
    assert "memory-half" in cannot and "never holds the logits" in cannot and "halves" not in cannot
    assert any(one.startswith("retention-half: 0 % that a true claim") and "seeds (" in one for one in shown)


def test_costs_of_trainings_that_will_run_unlike_are_not_said_to_be_decided() -> None:
    """On the GPUs of this experiment activations are kept in whole passes at LSP 0.5, and in shorter ones at 1.0."""
    shown = invoke("plan", "--experiment", "controls").stdout.replace(SPACE, " ").splitlines()
    line = next(one for one in shown if "it can decide" in one)
    can, cannot = line.split("; it cannot decide: ")
    assert "flops-half" in can and "time-half" not in can
    assert re.search(r"time-half[^()]*\(trainings run unlike: passes of at most [\d,]+ tokens.*, at LSP 1.0 of", cannot)


def pilot_run(folder: Path, seeds: tuple[int, ...]) -> SyntheticRun:
    """Of the setting of `bespoke`, trained with some seeds."""
    fields = {**REAL, "protocol": "released", "benchmark": "aime24"}
    return SyntheticRun(folder, experiment="pilot", lsps=(0.5, 1.0), seeds=seeds, texts=False, **fields).write()


def test_a_pilot_of_two_seeds_is_read_from_the_run_directory(tmp_path: Path) -> None:
    pilot_run(tmp_path, (1, 2))
    asked = ("plan", "--experiment", "bespoke", "--decide", "retention-half", "--runs", str(tmp_path))
    record = json.loads(invoke(*asked, "--json").stdout)
    arms = {arm.lsp: arm for group in read_results(tmp_path, "pilot").groups for arm in group.arms}
    shares = {lsp: np.array([list(cell.scores[0].shares.values()) for cell in arm.cells]) for lsp, arm in arms.items()}
    means = {lsp: one.mean(axis=1) for lsp, one in shares.items()}
    found = sum(float(((one / one.mean() - 1.0) ** 2).sum()) for one in means.values()) / 2
    sampling = [
        (m * (1 - m)).sum(axis=1).mean() / (SAMPLES - 1) / m.shape[1] ** 2 / m.mean() ** 2 for m in shares.values()
    ]
    upper = max(0.0, found * 2 / 0.446287 - float(np.mean(sampling))) ** 0.5 * float(means[1.0].mean())
    assert record["measured_sd"] and record["pilot"]["degrees"] == 2
    assert record["pilot"]["upper_sd"] == pytest.approx(upper, rel=1e-3) and upper > 0.0
    assert [row["design"]["training_sd"] for row in record["rows"]][1] == record["pilot"]["upper_sd"]
    assert record["rows"][0]["design"]["accuracy"] == pytest.approx(float(means[1.0].mean()))
    shown = invoke(*asked).stdout
    assert "2 degrees of freedom (4 trainings) of bespoke; with 80% confidence at most" in shown
    typed = json.loads(invoke(*asked, "--training-sd", "2", "--accuracy", "0.3", "--json").stdout)
    assert typed["pilot"] is None and typed["rows"][0]["design"]["training_sd"] == 0.02
    assert typed["rows"][0]["design"]["accuracy"] == 0.3


def test_arms_of_equal_tokens_and_other_benchmarks_are_no_part_of_the_design(tmp_path: Path) -> None:
    """`controls` has one setting of equal rows, and four benchmarks; the claim is about two of them."""
    fields = {**REAL, "protocol": "corrected", "benchmark": "gsm8k"}
    SyntheticRun(tmp_path, experiment="pilot", lsps=(0.5, 1.0), seeds=(1, 2), texts=False, **fields).write()
    asked = ("--decide", "retention-half", "--json", "--runs", str(tmp_path))
    record = json.loads(invoke("plan", "--experiment", "controls", *asked).stdout)
    design = record["rows"][0]["design"]
    assert (design["settings"], design["seeds"], design["benchmarks"], design["problems"]) == (1, 3, 2, 30)
    assert record["pilot"] is None  # on a benchmark that the claim is not about
    alone = invoke("plan", "--experiment", "rewritten", *asked)
    assert alone.returncode == 2 and "no setting has cells at LSP 0.5 and 1.0 of the same rows" in alone.stderr


def test_a_pilot_that_was_judged_is_planned_on_at_the_next_looks_level(tmp_path: Path) -> None:
    pilot_run(tmp_path, (1, 2))
    write_report(tmp_path, "pilot")
    asked = ("plan", "--experiment", "bespoke", "--decide", "retention-half", "--runs", str(tmp_path))
    assert json.loads(invoke(*asked, "--json").stdout)["confidence"] == 0.975
    assert "the next look has a 97.5" in invoke(*asked).stdout.replace(SPACE, " ")


def test_one_training_of_each_arm_is_no_pilot(tmp_path: Path) -> None:
    pilot_run(tmp_path, (1,))
    done = invoke("plan", "--experiment", "bespoke", "--decide", "retention-half", "--runs", str(tmp_path))
    assert "not measured" in done.stdout and "Pilot: run two or three seeds" in done.stdout


@pytest.mark.parametrize(
    ("share", "degrees", "x"), [(0.05, 2, 0.10259), (0.2, 10, 6.17908), (0.5, 1, 0.45494), (0.5, 30, 29.33603)]
)
def test_quantiles_of_chi_square(share: float, degrees: int, x: float) -> None:
    """Values of Abramowitz and Stegun, table 26.8."""
    assert chi_square_quantile(share, degrees) == pytest.approx(x, abs=1e-4)


def test_the_upper_limit_lies_above_the_truth_as_often_as_it_says() -> None:
    random, design = np.random.default_rng(5), Design(1, 3, 64, 0.2, 0.02, interaction_sd=0.0)
    pilots = [pilot_of([unit for units in made_up(design, random) for unit in units]) for _ in range(300)]
    above = np.mean([pilot is not None and pilot.upper_sd >= design.training_sd for pilot in pilots])
    assert above == pytest.approx(CONFIDENCE, abs=0.07)
    assert np.mean([pilot.training_sd**2 for pilot in pilots if pilot]) ** 0.5 == pytest.approx(0.02, abs=0.002)


def test_a_plan_made_with_a_pilot_of_two_seeds_decides() -> None:
    """One setting with two seeds first; then the 15 settings with as many seeds as the pilot's upper limit asks for."""
    random, words = np.random.default_rng(6), []
    while len(words) < 60:
        pilot = pilot_of([unit for units in made_up(Design(1, 2, 64, 0.2, 0.015), random) for unit in units])
        assert pilot and pilot.degrees == 2
        planned = Design(15, 1, 64, pilot.accuracy, pilot.upper_sd, interaction_sd=0.0)
        if seeds := fewest_seeds(planned, BAND, 0.8):
            words.append(shares_of(Design(15, seeds, 64, 0.2, 0.015), CLAIM, 1, len(words)))
    assert np.mean([one.of("reproduced") for one in words]) >= 0.7
    assert np.mean([one.of("not reproduced") for one in words]) <= 0.05


def test_the_table_of_the_shipped_experiments_is_current() -> None:
    """docs/claims.md has what `bench/plans.py` computes today, and its made-up runs agree with it."""
    record = json.loads((PROJECT / "bench" / "results" / "plans.json").read_text())
    known = [{**one, "rows": [{**row} for row in one["rows"]]} for one in record["experiments"]]
    for row in (row for one in known for row in one["rows"]):
        assert row.pop("simulated_reproduced") == pytest.approx(row["chances"]["reproduced"], abs=0.07)
    program = bench("plans")
    assert program.shipped() == known, "run python bench/plans.py > bench/results/plans.json, and renew the table"
    assert program.table(record) in (PROJECT / "docs" / "claims.md").read_text()


def test_the_table_of_error_rates_is_that_of_its_record() -> None:
    record = json.loads((PROJECT / "bench" / "results" / "words.json").read_text())
    assert bench("words").table(record) in (PROJECT / "docs" / "claims.md").read_text()
    assert tuple(record["accepted"]) == BAND
    for row in (row for row in record["rows"] if row["settings"] * row["seeds"] > 1):
        for false in ("reproduced at 0.86", "not reproduced at 0.86", "not reproduced at 0.91"):
            share, error = row[false]
            assert share - 1.96 * error <= 0.05, (row, false)


def test_the_variance_that_counts_is_right_for_both_questions() -> None:
    """The larger of two variances calls the edge reproduced in at most 5 %, also where settings differ."""
    record = json.loads((PROJECT / "bench" / "results" / "estimands.json").read_text())
    assert bench("estimands").table(record) in (PROJECT / "docs" / "claims.md").read_text()
    strict = [row for row in record["rows"] if row["level"] == 0.95]
    assert all(row["reproduced_on_the_edge"] <= 0.05 for row in strict if row["variance"] == "larger")
    assert any(row["reproduced_on_the_edge"] > 0.05 for row in strict if row["variance"] == "within")


def bench(name: str) -> Any:
    """A program of bench/, as a module."""
    found = importlib.util.spec_from_file_location(name, PROJECT / "bench" / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--decide", "halves"), "no claim that can be planned for"),
        (("--decide", "retention-half", "--training-sd", "x"), "must be a number"),
        (("--decide", "retention-half", "--accuracy", "20"), "is not a number between 0 and 0.8"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    done = invoke("plan", "--experiment", "bespoke", *words)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
