"""How often each verdict on `retention-half` is wrong: runs are made up, and judged by the kit's own functions.

Thirty problems on each of two benchmarks, 64 samples, chances of 0.8 x Beta; truncation acts on each problem with a
standard deviation of 20 %; a training lies `sd` points from its arm's mean on both benchmarks alike. The truth is what
the problems as they are keep: in the middle of what is accepted, on its edge, and outside.

    python bench/words.py [--repetitions 300] > bench/results/words.json
"""

import argparse
import json
import sys
from itertools import product
from typing import Any

import numpy as np

from essence.evaluation.statistics import Matrix
from essence.report.claims.contrast import contrast
from essence.report.claims.definition import load_claims
from essence.report.claims.evidence import Setting
from essence.report.claims.measured import Measured
from essence.report.claims.measures import ratio_of_means
from essence.report.claims.units import Compared, Unit
from essence.report.claims.verdict import decide

PROBLEMS, SAMPLES, BENCHMARKS = 30, 64, ("aime24", "aime25")
CONCENTRATION = 1.5
EFFECT_SD = 0.2
TRUTHS = (0.91, 0.86, 0.80)
"""In the middle of what is accepted, on its edge, outside."""
NAMES = tuple(f"p{number}" for number in range(PROBLEMS))
BAND = next(claim.band for claim in load_claims() if claim.id == "retention-half")


def chances(rng: np.random.Generator, accuracy: float, kept: float, settings: int) -> Matrix:
    """Of one arm at 0.5 and one at 1.0, [settings, arms, benchmarks, problems]."""
    share = accuracy / 0.8
    whole = 0.8 * rng.beta(CONCENTRATION * share, CONCENTRATION * (1.0 - share), (len(BENCHMARKS), PROBLEMS))
    whole = np.clip(whole * accuracy / whole.mean(), 0.0, 0.97)
    half = whole * np.clip(1.0 + EFFECT_SD * rng.standard_normal((settings, *whole.shape)), 0.0, None)
    half *= kept * whole.mean() / half.mean(axis=(1, 2), keepdims=True)
    both: Matrix = np.stack([half, np.broadcast_to(whole, half.shape)], axis=1)
    return both


def run(rng: np.random.Generator, accuracy: float, kept: float, settings: int, seeds: int, sd: float) -> list[Compared]:
    """One made-up run."""
    truth = chances(rng, accuracy, kept, settings)
    factor = 1.0 + sd / 100.0 / accuracy * rng.standard_normal((settings, 2, seeds, 1, 1))
    drawn = rng.binomial(SAMPLES, np.clip(truth[:, :, None] * factor, 0.0, 1.0)) / SAMPLES
    problems = dict.fromkeys(BENCHMARKS, NAMES)
    trainings = tuple(str(seed) for seed in range(seeds))

    def unit(place: int, arm: int) -> Unit:
        shares = {name: drawn[place, arm, :, number] for number, name in enumerate(BENCHMARKS)}
        setting = Setting(f"data-{place}", "teacher", "student", "released", "")
        return Unit(setting, (0.5, 1.0)[arm], trainings, problems, shares, SAMPLES, (), ())

    return [(unit(place, 0), unit(place, 1)) for place in range(settings)]


def word(settings: list[Compared], truth: float) -> tuple[str, bool]:
    """The verdict, as the report gives it, and whether the interval holds the truth."""
    found = contrast(settings, ratio_of_means)
    estimate = found.estimate(0.95)
    low, high = estimate.low, estimate.high
    covered = low is not None and high is not None and low <= truth <= high
    return decide(Measured(estimate, len(settings), (), why_open=found.why_open), BAND), covered


def rates(seed: int, repetitions: int, design: tuple[int, int, float, float]) -> dict[str, Any]:
    """Shares of each word at each truth, with their Monte-Carlo errors."""
    settings, seeds, sd, accuracy = design
    row: dict[str, Any] = {"settings": settings, "seeds": seeds, "sd_points": sd, "accuracy": accuracy}
    for kept in TRUTHS:
        rng = np.random.default_rng([seed, settings, seeds, round(10 * sd), round(100 * accuracy)])
        found = [word(run(rng, accuracy, kept, settings, seeds, sd), kept) for _ in range(repetitions)]
        for verdict in ("reproduced", "not reproduced", "undecided"):
            row[f"{verdict} at {kept:g}"] = share([one == verdict for one, _ in found])
        row[f"interval holds {kept:g}"] = share([covered for _, covered in found])
    return row


def share(marks: list[bool]) -> list[float]:
    """With its standard error."""
    value = float(np.mean(marks))
    return [round(value, 4), round((value * (1.0 - value) / len(marks)) ** 0.5, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20_251_224)
    told = parser.parse_args()
    designs = list(product((1, 15), (1, 2, 5), (0.0, 1.0, 2.0), (0.05, 0.2, 0.4)))
    rows = [rates(told.seed, told.repetitions, design) for design in designs]
    record = {"repetitions": told.repetitions, "seed": told.seed, "accepted": BAND, "rows": rows}
    json.dump(record, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
