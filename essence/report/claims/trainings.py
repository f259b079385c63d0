"""How claims on trainings as wholes are measured: what they cost, and their validation losses.

As in `measures.py`, each function takes a claim and the evidence of one protocol.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import Estimate, student_t, student_two_sided
from essence.record.machine_load import mean_load
from essence.report.claims.advice import ONE_PAIR
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Setting, Trained
from essence.report.claims.outcome import Measured, Outcome, Replicates, wanted
from essence.report.results.cost_forms import unlike

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


@dataclass(frozen=True)
class CostPairs:
    """Trainings at a claim's proportion and at 1.0, of one setting and seed."""

    alike: list[Pair]
    left_out: list[Pair]
    """Of these the one at 1.0 ran in another form, and there is none of the same."""
    cost: str

    @property
    def words(self) -> str:
        """`1 of 15 pairs left out, as they ran unlike: activations kept, at LSP 1.0 recomputed`; empty for none."""
        if not self.left_out:
            return ""
        whys = dict.fromkeys(unlike(self.cost, [short.form], [full.form]) for short, full in self.left_out)
        count = len(self.left_out)
        return f"{count} of {len(self.alike) + count} pairs left out, as they ran unlike: {'; or '.join(whys)}"

    def wanted(self, claim: Claim, cells: str) -> str:
        """The sentence for a claim without a pair: what it needs, and which pairs do not count."""
        return "; ".join(part for part in (wanted(claim, cells), self.words) if part)


def cost_ratio(claim: Claim, evidence: Evidence) -> Outcome:
    """Mean over settings and seeds of the cost of a training at `lsp` / at 1.0."""
    assert claim.cost is not None
    word = claim.cost
    found = _cost_pairs(claim, evidence, word, lambda short, full: word in short.cost and bool(full.cost.get(word)))
    pairs = found.alike
    if not pairs:
        return found.wanted(claim, f"trainings at LSP {claim.lsp:g} and 1.0")
    if word == "time":
        return _time_ratio(claim, evidence, found)
    estimate = _over_runs(_ratios(word, [[pair] for pair in pairs]), evidence.level, counted=word == "flops")
    note = "; ".join(filter(None, (COUNTED if word == "flops" else "", found.words)))
    return _measured(claim, estimate, pairs, note, _no_memory(pairs) if word == "memory" else "")


def _time_ratio(claim: Claim, evidence: Evidence, of: CostPairs) -> Measured:
    """Of pairs whose trainings had the machine alike; those that ran at the same moment are one."""
    pairs = of.alike
    quiet = [(a, b) for a, b in pairs if not a.load.differs(b.load)]
    used = quiet or pairs
    starts = _by_start(used)
    note = [_loads(pairs, len(pairs) - len(quiet))]
    if len(starts) < len(used):
        note.append(f"{len(used)} pairs in {len(starts)} start{'s' * (len(starts) > 1)}{SAME_MOMENT}")
    note.append(of.words)
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
    found = _cost_pairs(claim, evidence, "memory", lambda short, full: short.form.on_gpu and full.form.on_gpu)
    pairs = found.alike
    if not pairs:
        return found.wanted(claim, f"trainings at LSP {claim.lsp:g} and 1.0 on a GPU")
    margins = np.array([min(room - a.cost["memory"], b.cost["memory"] - room) / room for a, b in pairs])
    estimate = _over_runs(margins, evidence.level, counted=False)
    return _measured(claim, estimate, pairs, found.words, incomparable=_no_memory(pairs))


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
    if not all(cell.form.on_gpu for pair in pairs for cell in pair):
        return "memory of the process, as no GPU was there"
    return CHUNKED if any(cell.form.loss == "chunked" for pair in pairs for cell in pair) else ""


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


def _cost_pairs(claim: Claim, evidence: Evidence, cost: str, counts: Callable[[Trained, Trained], bool]) -> CostPairs:
    """Trainings at the claim's proportion, each with the one at 1.0 of its setting, seed and form.

    cost: a word of `COST_UNITS`, which says in what they must be alike.
    counts: whether both records tell what is asked.
    """
    cells, pairs = evidence.trainings_of(claim), CostPairs([], [], cost)
    full: dict[tuple[Setting, int], list[Trained]] = defaultdict(list)
    for cell in cells:
        if cell.whole:
            full[cell.setting, cell.seed].append(cell)
    for short in (cell for cell in cells if cell.lsp == claim.lsp):
        beside = [one for one in full[short.setting, short.seed] if counts(short, one)]
        alike = [one for one in beside if not unlike(cost, [short.form], [one.form])]
        if beside:
            (pairs.alike if alike else pairs.left_out).append((short, (alike or beside)[-1]))
    return pairs


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
