"""What each shipped experiment can decide of the headline, as `invoke plan` computes it: the table of docs/claims.md.

Trainings that differ by 1 and 2 points, an accuracy of 20 % at LSP 1.0, 95 % intervals, an assurance of 80 %. Made-up
runs, judged by the report's own functions, stand beside the computed chance.

    python bench/plans.py > bench/results/plans.json
    python bench/plans.py --table bench/results/plans.json      # the table of docs/claims.md
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from essence.commands.decide import ACCURACY, ASSURANCE, OUTSIDE
from essence.commands.options import select
from essence.commands.planned_design import planned_design
from essence.engines.selected_run import Options, Run
from essence.errors import ExperimentError
from essence.plan.decision_power import Design, Hours, chances, cheapest, fewest_seeds
from essence.plan.experiment import available
from essence.plan.fit import activations_of_trainings
from essence.report.claims.decidable_claims import foreseen
from essence.report.claims.definition import load_claims
from essence.report.claims.simulated_runs import shares

CLAIMS = load_claims()
CLAIM = next(claim for claim in CLAIMS if claim.primary)
POINTS = (1, 2)
SIZES = ("settings", "seeds", "samples", "problems", "benchmarks")


def figures(experiment: str, folder: Path) -> dict[str, Any] | None:
    """What `invoke plan` says of an experiment before anything ran; None where it has not both arms of the claim."""
    selection = select(Options(experiment=experiment, engine="local", runs=str(folder)), baselines=False)
    try:
        design, hours = planned_design(selection, CLAIM, ACCURACY)
    except ExperimentError:
        return None
    if not _about(selection):
        return None
    rows = [_row(replace(design, training_sd=points / 100.0), hours) for points in POINTS]
    activations = activations_of_trainings(selection.plan, selection.run_directory)
    note = foreseen(selection.plan.cells, selection.loaded.experiment.resources, CLAIMS, activations)
    sizes = {name: getattr(design, name) for name in SIZES}
    return {"experiment": experiment, **sizes, "decides": note, "rows": rows}


def _about(selection: Run) -> bool:
    cells = [plan.cell for plan in selection.plan.cells]
    return any(CLAIM.speaks_of(cell.dataset, cell.teacher, cell.student, "") for cell in cells)


def _row(design: Design, hours: Hours | None) -> dict[str, Any]:
    band = CLAIM.band
    seeds, best = fewest_seeds(design, band, ASSURANCE), cheapest(design, band, ASSURANCE, hours) if hours else None
    return {
        "training_sd_points": round(100 * design.training_sd, 3),
        "chances": {name: round(one, 3) for name, one in asdict(chances(design, band, band[0] - OUTSIDE)).items()},
        "fewest_seeds": seeds,
        "gpu_hours": round(hours.of(replace(design, seeds=seeds))) if hours and seeds else None,
        "cheapest": {"seeds": best.seeds, "samples": best.samples} if best else None,
        "cheapest_gpu_hours": round(hours.of(best)) if hours and best else None,
    }


def with_simulation(found: dict[str, Any], runs: int, seed: int) -> dict[str, Any]:
    """The chance that a true claim is called reproduced, from made-up runs, beside the computed one."""
    for row in found["rows"]:
        sd = row["training_sd_points"] / 100.0
        design = Design(accuracy=ACCURACY, training_sd=sd, **{name: found[name] for name in SIZES})
        share = 0.0
        if design.degrees:
            share = shares(design, CLAIM, runs, np.random.default_rng(seed)).of("reproduced")
        row["simulated_reproduced"] = share
    return found


def table(record: dict[str, Any]) -> str:
    """As docs/claims.md has it."""
    heads = ("experiment", "settings x seeds x samples", "sd, points", "reproduced if true", "not reproduced if 0.80",
             "fewest seeds (GPU hours)", "cheapest seeds x samples (GPU hours)")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for found in record["experiments"]:
        for row in found["rows"]:
            design = f"{found['settings']} x {found['seeds']} x {found['samples']}"
            chance, best = row["chances"], row["cheapest"]
            cells = (
                f"`{found['experiment']}`",
                design,
                f"{row['training_sd_points']:g}",
                f"{100 * chance['reproduced']:.0f} % ({100 * row['simulated_reproduced']:.0f} %)",
                f"{100 * chance['not_reproduced']:.0f} %",
                f"{row['fewest_seeds']} ({row['gpu_hours']:,})" if row["fewest_seeds"] else "none",
                f"{best['seeds']} x {best['samples']} ({row['cheapest_gpu_hours']:,})" if best else "none",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shipped() -> list[dict[str, Any]]:
    """The computed figures of every experiment that has both arms in a setting of the claim."""
    with tempfile.TemporaryDirectory() as folder:
        return [found for name in available() if (found := figures(name, Path(folder)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=20_251_224)
    parser.add_argument("--table", type=Path)
    told = parser.parse_args()
    if told.table:
        print(table(json.loads(told.table.read_text())))
        return
    found = [with_simulation(one, told.repetitions, told.seed) for one in shipped()]
    record = {"repetitions": told.repetitions, "seed": told.seed, "claim": CLAIM.id, "experiments": found}
    json.dump(record, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
