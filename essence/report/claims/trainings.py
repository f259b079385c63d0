"""How claims on trainings as wholes are measured: what they cost, and their validation losses.

As in `measures.py`, each function takes a claim and the evidence of one protocol.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import Estimate, student_t, student_two_sided
from essence.record.machine_load import mean_load
from essence.report.claims.advice import ONE_PAIR
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Setting, Trained
from essence.report.claims.measurement import Measured, Outcome, Replicates, wanted

GB_IN_GIB = 1e9 / 2**30
Pair = tuple[Trained, Trained]
"""At the claim's proportion, and at 1.0."""
BUSY = "the machine was busy: the trainings of each pair had different shares of the processor"
COUNTED = "counted, so without an error"
SAME_MOMENT = ": what ran at the same moment on the same machine counts as one"
CHUNKED = (
    'this loss (form = "chunked") never holds the logits, of which truncation saves most; train with form = "plain" '
    "([resources.loss]) to measure it, and see the computed costs for the published form"
)


def cost_ratio(claim: Claim, evidence: Evidence) -> Outcome:
    """Mean over settings and seeds of the cost of a training at `lsp` / at 1.0."""
    assert claim.cost is not None
    pairs = [(a, b) for a, b in _cost_pairs(claim, evidence) if claim.cost in a.cost and b.cost.get(claim.cost)]
    if not pairs:
        alike = "" if claim.cost == "flops" else " on the same devices and as many processes,"
        how = f"{alike} both with activations kept, or both with them recomputed ([resources] activation_checkpointing)"
        return wanted(claim, f"trainings at LSP {claim.lsp:g} and 1.0{how}")
    if claim.cost == "time":
        return _time_ratio(claim, evidence, pairs)
    ratios = _ratios(claim.cost, [[pair] for pair in pairs])
    found = _over_runs(ratios, evidence.level, counted=claim.cost == "flops")
    note = COUNTED if claim.cost == "flops" else ""
    return _measured(claim, found, pairs, note, _no_memory(pairs) if claim.cost == "memory" else "")


def _time_ratio(claim: Claim, evidence: Evidence, pairs: Sequence[Pair]) -> Measured:
    """Of pairs whose trainings had the machine alike; those that ran at the same moment are one."""
    quiet = [(a, b) for a, b in pairs if not a.load.differs(b.load)]
    used = quiet or pairs
    starts = _by_start(used)
    note = [_loads(pairs, len(pairs) - len(quiet))]
    if len(starts) < len(used):
        note.append(f"{len(used)} pairs in {len(starts)} start{'s' * (len(starts) > 1)}{SAME_MOMENT}")
    found = _over_runs(_ratios("time", starts), evidence.level, counted=False)
    return _measured(claim, found, used, "; ".join(filter(None, note)), "" if quiet else BUSY)


def _ratios(cost: str, groups: Sequence[Sequence[Pair]]) -> NDArray[np.float64]:
    """A mean for each group."""
    return np.array([np.mean([_ratio(cost, *pair) for pair in group]) for group in groups])


def _ratio(cost: str, short: Trained, full: Trained) -> float:
    """Times by the steps of both, or by the wall of both: never one over the other."""
    if cost == "time" and short.step_time and full.step_time:
        return short.step_time / full.step_time
    return short.cost[cost] / full.cost[cost]


def _by_start(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs in groups whose trainings shared a machine for a while: what slowed one slowed the others."""
    groups: list[list[Pair]] = []
    for pair in pairs:
        beside = [group for group in groups if any(_beside(pair, other) for other in group)]
        groups = [group for group in groups if group not in beside]
        groups.append([one for group in beside for one in group] + [pair])
    return groups


def _beside(first: Pair, second: Pair) -> bool:
    return any(a.ran is not None and b.ran is not None and a.ran.beside(b.ran) for a in first for b in second)


def fits_only_truncated(claim: Claim, evidence: Evidence) -> Outcome:
    """Smaller of two: GPU memory left at `lsp`, and GPU memory missing at 1.0, as shares of the GPU."""
    assert claim.memory_gb is not None
    room = claim.memory_gb * GB_IN_GIB
    pairs = [(a, b) for a, b in _cost_pairs(claim, evidence) if a.on_gpu and b.on_gpu]
    if not pairs:
        return wanted(claim, f"trainings at LSP {claim.lsp:g} and 1.0 on a GPU")
    margins = np.array([min(room - a.cost["memory"], b.cost["memory"] - room) / room for a, b in pairs])
    return _measured(claim, _over_runs(margins, evidence.level, counted=False), pairs, incomparable=_no_memory(pairs))


def _measured(
    claim: Claim, estimate: Estimate, runs: Sequence[tuple[Trained, ...]], note: str = "", incomparable: str = ""
) -> Measured:
    """A mean over pairs of runs."""
    count, error = estimate.n, estimate.standard_error
    settings = len({run[0].setting for run in runs})
    replicates = Replicates(error * count**0.5, count, count - 1, "pairs of runs") if error and count > 1 else None
    outside = 1.0
    if estimate.value is not None and error is not None:
        distance = max(claim.band[0] - estimate.value, estimate.value - claim.band[1], 0.0)
        outside = student_two_sided(distance / error, count - 1) if error else float(distance == 0.0)
    return Measured(
        estimate, settings, _stages(runs), note, incomparable=incomparable, outside=outside, replicates=replicates,
        rests_on=_stages(runs),
    )  # fmt: skip


def _loads(pairs: Sequence[Pair], left_out: int) -> str:
    """`wall/CPU 1.02 at LSP 0.5, 4.27 at 1.0`, and how many pairs count for nothing."""
    means = [mean_load([pair[side].load for pair in pairs]) for side in (0, 1)]
    short, full = (load.processor_words if left_out else load.words for load in means)
    if not short or not full:
        return ""
    shown = f"{short} at LSP {pairs[0][0].lsp:g}, {full} at 1.0"
    return f"{shown}; {left_out} of {len(pairs)} pairs left out" if 0 < left_out < len(pairs) else shown


def _no_memory(pairs: Sequence[Pair]) -> str:
    """Why the memory of these trainings is not that of which the paper speaks."""
    if not all(cell.on_gpu for pair in pairs for cell in pair):
        return "memory of the process, as no GPU was there"
    return CHUNKED if any(cell.loss_form == "chunked" for pair in pairs for cell in pair) else ""


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
    return _measured(claim, _over_runs(values, evidence.level, counted=False), three, ratios)


def _cost_pairs(claim: Claim, evidence: Evidence) -> list[Pair]:
    """Trainings at the claim's proportion, each with the one at 1.0 of its setting and seed.

    Memory of a GPU is not to be divided by that of a process, nor are times of other devices; what is counted may be,
    but recomputation is counted, too.
    """

    def alike(cell: Trained) -> tuple[Any, ...]:
        devices = () if claim.cost == "flops" else (cell.on_gpu, cell.devices)
        return (cell.setting, cell.seed, cell.recomputed, *devices)

    cells = evidence.trainings_of(claim)
    full = {alike(cell): cell for cell in cells if cell.whole}
    return [(cell, full[alike(cell)]) for cell in cells if cell.lsp == claim.lsp and alike(cell) in full]


def _over_runs(values: NDArray[np.float64], level: float, *, counted: bool) -> Estimate:
    """Mean of a number over pairs of runs; what is counted has no error."""
    count, mean = len(values), float(values.mean())
    if counted:
        return Estimate(mean, 0.0, float(values.min()), float(values.max()), count, "counted: range over runs")
    if count < 2:
        return Estimate(mean, None, None, None, count, ONE_PAIR)
    error = float(values.std(ddof=1)) / count**0.5
    margin = student_t(level, count - 1) * error
    return Estimate(mean, error, mean - margin, mean + margin, count, "Student t over pairs of runs")


def _stages(pairs: Sequence[tuple[Trained, ...]]) -> tuple[str, ...]:
    found: dict[str, None] = defaultdict(None)
    for pair in pairs:
        for cell in pair:
            found.update(dict.fromkeys(cell.stages))
    return tuple(found)
