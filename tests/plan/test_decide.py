"""The planner's figures: right values from an independent computation, and a simulation of the whole judgement."""

import json
from dataclasses import replace

import numpy as np
import pytest

from essence.evaluation.statistics import student_t
from essence.plan.decision_power import Design, Hours, chances, cheapest, fewest_seeds
from support.project import invoke

BAND = (0.86, 0.96)
TOST = 0.90
"""A 95 % interval is 2.5 % a side; the usual equivalence test has 5 % a side."""
HOURS = Hours(training=1.607, sample=0.08429)


def test_the_standard_error_of_a_design() -> None:
    design = Design(15, 5, 64, 0.2, 0.02)
    assert design.standard_error == pytest.approx(0.0157, abs=0.0003) and design.degrees == 120
    assert Design(15, 1, 64, 0.2, 0.02).degrees == 14 and Design(1, 1, 64, 0.2, 0.02).degrees == 0


@pytest.mark.parametrize(("seeds", "sd", "power"), [(5, 0.02, 0.87), (2, 0.01, 0.93)])
def test_the_chance_of_a_true_claim(seeds: int, sd: float, power: float) -> None:
    found = chances(Design(15, seeds, 64, 0.2, sd), BAND, 0.80, TOST)
    assert found.reproduced == pytest.approx(power, abs=0.02) and found.wrong_at_the_edge <= 0.052
    strict = chances(Design(15, seeds, 64, 0.2, sd), BAND, 0.80)
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
    """Values and variances are drawn, and an interval is laid around each."""
    design, rng = Design(settings, seeds, 64, 0.2, sd), np.random.default_rng(1)
    error = design.standard_error
    value = design.retention + error * rng.standard_normal(20_000)
    margin = student_t(0.95, design.degrees) * error * np.sqrt(rng.chisquare(design.degrees, 20_000) / design.degrees)
    simulated = float(np.mean((value - margin >= BAND[0]) & (value + margin <= BAND[1])))
    assert chances(design, BAND, 0.80).reproduced == pytest.approx(simulated, abs=0.02)


def test_the_command_shows_a_row_for_each_deviation_that_nobody_measured() -> None:
    done = invoke("plan", "--experiment", "bespoke", "--decide", "retention-half", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["design"]["training_sd"] for row in record["rows"]] == [0.005, 0.01, 0.02, 0.03]
    assert not record["measured_sd"] and all(row["chances"]["reproduced"] == 0.0 for row in record["rows"])
    seeds = [row["fewest_seeds"] for row in record["rows"]]
    assert seeds == sorted(seeds) and record["hours"]["training"] > 0.0
    shown = invoke("plan", "--experiment", "bespoke")
    assert "cannot say reproduced or not" in shown.stdout


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
