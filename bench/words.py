"""How often each verdict on `retention-half` is wrong: runs are made up, and judged by the kit's own functions.

The runs are those of `essence/report/claims/simulated_runs.py`: thirty problems on each of two benchmarks, 64 samples.
The truth is what the problems as they are keep: in the middle of what is accepted, on its edge, and outside.

    python bench/words.py [--repetitions 1000 1000] > bench/results/words.json
    python bench/words.py --table bench/results/words.json      # the table of docs/claims.md
"""

import argparse
import json
import platform
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from essence.plan.decision_power import Design
from essence.report.claims.definition import load_claims
from essence.report.claims.simulated_runs import Shares, shares

TRUTHS = (0.91, 0.86, 0.80)
"""In the middle of what is accepted, on its edge, outside."""
CLAIM = next(claim for claim in load_claims() if claim.id == "retention-half")
OPEN_REPETITIONS = 20
"""Of one training of each arm in one setting, of which every verdict is the same."""
COLUMNS = {
    "reproduced at 0.91": "reproduced, true 0.91",
    "reproduced at 0.86": "reproduced, edge 0.86",
    "not reproduced at 0.86": "not reproduced, edge 0.86",
    "not reproduced at 0.91": "not reproduced, true 0.91",
    "not reproduced at 0.8": "not reproduced, true 0.80",
    "interval holds 0.91": "interval holds 0.91",
}


def rates(seed: int, repetitions: int, row: tuple[int, int, float, float]) -> dict[str, Any]:
    """Shares of each word at each truth, with their Monte-Carlo errors."""
    settings, seeds, sd, accuracy = row
    found: dict[str, Any] = {"settings": settings, "seeds": seeds, "sd_points": sd, "accuracy": accuracy}
    for kept in TRUTHS:
        rng = np.random.default_rng([seed, settings, seeds, round(10 * sd), round(100 * accuracy)])
        design = Design(settings, seeds, 64, accuracy, sd / 100.0, retention=kept)
        some = shares(design, CLAIM, repetitions if settings * seeds > 1 else OPEN_REPETITIONS, rng)
        for verdict in ("reproduced", "not reproduced", "undecided"):
            found[f"{verdict} at {kept:g}"] = _with_error(some, some.of(verdict))
        found[f"interval holds {kept:g}"] = _with_error(some, some.covered / some.runs)
    print(found, file=sys.stderr, flush=True)
    return found


def _with_error(some: Shares, share: float) -> list[float]:
    return [round(share, 4), round(some.error(share), 4)]


def table(record: dict[str, Any]) -> str:
    """As docs/claims.md has it; what can decide nothing is left out."""
    heads = ("settings", "seeds", "sd, points", "accuracy", *COLUMNS.values())
    lines = [f"| {' | '.join(heads)} |", f"|{'--:|' * len(heads)}"]
    for row in record["rows"]:
        if row["settings"] * row["seeds"] > 1:
            sizes = (row["settings"], row["seeds"], f"{row['sd_points']:g}", f"{100 * row['accuracy']:g} %")
            found = (f"{100 * row[name][0]:.1f} ± {100 * row[name][1]:.1f}" for name in COLUMNS)
            lines.append(f"| {' | '.join(map(str, (*sizes, *found)))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, nargs=2, default=[1000, 1000], help="of one setting, of 15 settings")
    parser.add_argument("--seed", type=int, default=20_251_224)
    parser.add_argument("--table", type=Path)
    told = parser.parse_args()
    if told.table:
        print(table(json.loads(told.table.read_text())))
        return
    designs = product((1, 15), (1, 2, 5), (0.0, 1.0, 2.0), (0.05, 0.2, 0.4))
    rows = [rates(told.seed, told.repetitions[design[0] > 1], design) for design in designs]
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    facts = {"repetitions": told.repetitions, "seed": told.seed, "versions": versions, "accepted": CLAIM.band}
    record = {**facts, "rows": rows}
    json.dump(record, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
