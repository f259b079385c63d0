"""How claims on trainings as wholes are measured: what they cost, and their validation losses.

As in `measures.py`, each function takes a claim and the evidence of one protocol.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import Estimate, student_t
from essence.report.claims.advice import ONE_PAIR
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Setting, Trained
from essence.report.claims.measured import Measured, Outcome, wanted

GB_IN_GIB = 1e9 / 2**30


def cost_ratio(claim: Claim, evidence: Evidence) -> Outcome:
    """Mean over settings and seeds of the cost of a training at `lsp` / at 1.0."""
    assert claim.cost is not None
    pairs = [(a, b) for a, b in _cost_pairs(claim, evidence) if claim.cost in a.cost and b.cost.get(claim.cost)]
    if not pairs:
        alike = "" if claim.cost == "flops" else " on the same devices and as many processes"
        return wanted(claim, f"trainings at LSP {claim.lsp:g} and 1.0{alike}")
    ratios = np.array([short.cost[claim.cost] / full.cost[claim.cost] for short, full in pairs])
    settings = len({short.setting for short, _ in pairs})
    note = "" if claim.cost != "memory" or all(a.on_gpu for a, _ in pairs) else "memory of the process where no GPU is"
    return Measured(_over_runs(ratios, counted=claim.cost == "flops"), settings, _stages(pairs), note=note)


def fits_only_truncated(claim: Claim, evidence: Evidence) -> Outcome:
    """Smaller of two: GPU memory left at `lsp`, and GPU memory missing at 1.0, as shares of the GPU."""
    assert claim.memory_gb is not None
    room = claim.memory_gb * GB_IN_GIB
    pairs = [(a, b) for a, b in _cost_pairs(claim, evidence) if a.on_gpu and b.on_gpu]
    if not pairs:
        return wanted(claim, f"trainings at LSP {claim.lsp:g} and 1.0 on a GPU")
    margins = np.array([min(room - a.cost["memory"], b.cost["memory"] - room) / room for a, b in pairs])
    return Measured(_over_runs(margins, counted=False), len({a.setting for a, _ in pairs}), _stages(pairs))


def loss_of_halves(claim: Claim, evidence: Evidence) -> Outcome:
    """Smaller of two: `near` minus how far the left half's loss lies from the whole's, and the right half's beyond it.

    Losses are the lowest validation cross-entropies, as shares of that at LSP 1.0.
    """
    assert claim.near is not None
    cells: dict[tuple[Setting, int], dict[str, Trained]] = defaultdict(dict)
    for cell in evidence.trainings_of(claim, any_span=True):
        part = "full" if cell.whole else cell.span
        if (cell.whole or cell.lsp == claim.lsp) and cell.validation_ce:
            cells[cell.setting, cell.seed][part] = cell
    found = [parts for parts in cells.values() if {"left", "right", "full"} <= parts.keys()]
    if not found:
        return wanted(claim, f"left and right spans at LSP {claim.lsp:g} beside LSP 1.0")
    losses = [[float(parts[part].validation_ce or 0.0) for part in ("left", "right", "full")] for parts in found]
    left, right, full = np.array(losses).T
    values = np.minimum(claim.near - np.abs(left / full - 1.0), right / full - 1.0 - claim.near)
    three = [tuple(parts[part] for part in ("left", "right", "full")) for parts in found]
    ratios = f"left {np.mean(left / full):.2f}, right {np.mean(right / full):.2f} of the loss at LSP 1.0"
    settings = len({parts["full"].setting for parts in found})
    return Measured(_over_runs(values, counted=False), settings, _stages(three), note=ratios)


def _cost_pairs(claim: Claim, evidence: Evidence) -> list[tuple[Trained, Trained]]:
    """Trainings at the claim's proportion, each with the one at 1.0 of its setting and seed.

    Memory of a GPU is not to be divided by that of a process, nor are times of other devices; what is counted may be.
    """

    def alike(cell: Trained) -> tuple[Any, ...]:
        return (cell.setting, cell.seed, *(() if claim.cost == "flops" else (cell.on_gpu, cell.devices)))

    cells = evidence.trainings_of(claim)
    full = {alike(cell): cell for cell in cells if cell.whole}
    return [(cell, full[alike(cell)]) for cell in cells if cell.lsp == claim.lsp and alike(cell) in full]


def _over_runs(values: NDArray[np.float64], counted: bool) -> Estimate:
    """Mean of a number over pairs of runs; what is counted has no error."""
    count, mean = len(values), float(values.mean())
    if counted:
        return Estimate(mean, 0.0, float(values.min()), float(values.max()), count, "counted: range over runs")
    if count < 2:
        return Estimate(mean, None, None, None, count, ONE_PAIR)
    error = float(values.std(ddof=1)) / count**0.5
    margin = student_t(0.95, count - 1) * error
    return Estimate(mean, error, mean - margin, mean + margin, count, "Student t over pairs of runs")


def _stages(pairs: Sequence[tuple[Trained, ...]]) -> tuple[str, ...]:
    found: dict[str, None] = defaultdict(None)
    for pair in pairs:
        for cell in pair:
            found.update(dict.fromkeys(cell.stages))
    return tuple(found)
