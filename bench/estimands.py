"""Which variance is right for which question: the settings as they are, or settings like these.

Runs are made up as in bench/words.py, but settings keep different shares: `apart` is the standard deviation of the
retention between settings, in points. Each run gets two intervals: from how far trainings of one arm differ alone
(`within`), and as the report has it, from the larger of that and of how far settings differ (`larger`). Each is judged
against what these settings keep, and against what settings like these keep in the mean.

    python bench/estimands.py [--repetitions 500] > bench/results/estimands.json
    python bench/estimands.py --table bench/results/estimands.json      # the table of docs/claims.md
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from essence.plan.decision_power import Design
from essence.report.claims.contrast import Contrast, contrast
from essence.report.claims.definition import load_claims
from essence.report.claims.one_contrast import ratio_of_means
from essence.report.claims.simulated_runs import made_up
from essence.report.claims.units import Compared

DESIGNS = (Design(15, 5, 64, 0.2, 0.02), Design(15, 2, 64, 0.2, 0.01))
APART = (0.0, 6.0)
LEVELS = (0.90, 0.95)
"""The usual equivalence test of 5 % a side, and the level that verdicts have."""
CLAIM = next(claim for claim in load_claims() if claim.primary)


class Row(TypedDict):
    """Shares of made-up runs."""

    seeds: int
    sd_points: float
    apart_points: float
    variance: str
    level: float
    reproduced_at_091: float
    reproduced_on_the_edge: float
    holds_these_settings: float
    holds_settings_like_these: float


def run(design: Design, kept: Sequence[float], rng: np.random.Generator) -> list[Compared]:
    """One run whose settings keep these shares."""
    return [made_up(replace(design, settings=1, retention=one), rng)[0] for one in kept]


def rows(design: Design, apart: float, repetitions: int, rng: np.random.Generator) -> list[Row]:
    """For both variances and both levels."""
    found: dict[float, list[tuple[float, Contrast, Contrast]]] = {}
    for truth in (CLAIM.reported or 0.0, CLAIM.band[0]):
        kept = truth + apart / 100.0 * rng.standard_normal((repetitions, design.settings))
        found[truth] = [(float(one.mean()), *_both(run(design, one, rng))) for one in kept]
    return [
        _row(design, apart, name, level, found)
        for name, level in product(("within", "larger"), LEVELS)
    ]  # fmt: skip


def _both(settings: list[Compared]) -> tuple[Contrast, Contrast]:
    return contrast(settings, ratio_of_means, over_settings=False), contrast(settings, ratio_of_means)


def _row(
    design: Design, apart: float, name: str, level: float, found: dict[float, list[tuple[float, Contrast, Contrast]]]
) -> Row:
    reproduced, these, others = [], [], []
    for truth, judged in found.items():
        ends = _ends([larger if name == "larger" else within for _, within, larger in judged], level)
        reproduced.append(float(((ends[0] >= CLAIM.band[0]) & (ends[1] <= CLAIM.band[1])).mean()))
        own = np.array([one for one, _, _ in judged])
        these.append(float(((ends[0] <= own) & (own <= ends[1])).mean()))
        others.append(float(((ends[0] <= truth) & (truth <= ends[1])).mean()))
    return {
        "seeds": design.seeds, "sd_points": 100 * design.training_sd, "apart_points": apart, "variance": name,
        "level": level, "reproduced_at_091": round(reproduced[0], 4), "reproduced_on_the_edge": round(reproduced[1], 4),
        "holds_these_settings": round(float(np.mean(these)), 4),
        "holds_settings_like_these": round(float(np.mean(others)), 4),
    }  # fmt: skip


def _ends(found: Sequence[Contrast], level: float) -> NDArray[np.float64]:
    """Ends of the intervals, [2, runs]."""
    estimates = [one.estimate(level) for one in found]
    return np.array([[one.low for one in estimates], [one.high for one in estimates]], dtype=np.float64)


class Record(TypedDict):
    """The file of results."""

    repetitions: int
    seed: int
    versions: dict[str, str]
    rows: list[Row]


COLUMNS = {
    "reproduced_at_091": "reproduced, true 0.91",
    "reproduced_on_the_edge": "reproduced, edge 0.86",
    "holds_these_settings": "holds what these settings keep",
    "holds_settings_like_these": "holds what settings like these keep",
}


def table(record: Record) -> str:
    """As docs/claims.md has it: intervals of 95 %, and the chance of a true claim at 90 % beside them."""
    heads = ("seeds", "sd, points", "settings differ by, points", "variance", "reproduced at 90 %", *COLUMNS.values())
    lines = [f"| {' | '.join(heads)} |", f"|{'--:|' * 3}---|{'--:|' * (len(heads) - 4)}"]
    for loose, strict in batched(record["rows"]):
        sizes = (f"{strict[name]:g}" for name in ("seeds", "sd_points", "apart_points"))  # type: ignore[literal-required]
        found = (f"{100 * strict[name]:.1f} %" for name in COLUMNS)  # type: ignore[literal-required]
        names = {"within": "within arms", "larger": "the larger one"}
        first = f"{100 * loose['reproduced_at_091']:.1f} %"
        lines.append(f"| {' | '.join((*sizes, names[strict['variance']], first, *found))} |")
    return "\n".join(lines)


def batched(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The two levels of each variance."""
    return list(zip(rows[::2], rows[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=20_251_224)
    parser.add_argument("--table", type=Path)
    told = parser.parse_args()
    if told.table:
        print(table(json.loads(told.table.read_text())))
        return
    rng = np.random.default_rng(told.seed)
    all_rows = [row for one, apart in product(DESIGNS, APART) for row in rows(one, apart, told.repetitions, rng)]
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    facts: Record = {"repetitions": told.repetitions, "seed": told.seed, "versions": versions, "rows": all_rows}
    json.dump(facts, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
