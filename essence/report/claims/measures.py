"""How each claim is measured: formulas on the accuracies of arms; those on trainings are in `trainings.py`.

Each function takes a claim and the evidence of one protocol, and gives what was measured, or a sentence that says which
cells are missing.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from essence.evaluation.statistics import Matrix
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Scored
from essence.report.claims.measured import Measured, Outcome, wanted
from essence.report.claims.resampling import Statistic, estimate, spread_of
from essence.report.claims.trainings import cost_ratio, fits_only_truncated, loss_of_halves
from essence.report.results.records import FULL

WITH_COT = ("cot", "cot+a", "p+cot", "p+cot+a")
WITHOUT_COT = ("a", "p+a")
NO_RATIO = "there is no ratio: nothing is solved at LSP 1.0"


def retention(claim: Claim, evidence: Evidence) -> Outcome:
    """Mean over settings of accuracy at `lsp` / accuracy at 1.0."""
    pairs = _against_full(claim, evidence)
    return _measure(pairs, _mean_ratio) if pairs else _no_ratio(claim, evidence)


def best_retention(claim: Claim, evidence: Evidence) -> Outcome:
    """Largest over settings of accuracy at `lsp` / accuracy at 1.0."""
    pairs = _against_full(claim, evidence)
    return _measure(pairs, _largest_ratio, extreme=len(pairs) > 2) if pairs else _no_ratio(claim, evidence)


def sections(claim: Claim, evidence: Evidence) -> Outcome:
    """Lowest accuracy of a supervision with the chain of thought minus the highest of one without it, mean."""
    arms = [arm for arm in evidence.of(claim, any_sections=True) if arm.lsp == claim.lsp]
    complete = [group for group in _by_setting(arms) if _has_all(group)]
    if not complete:
        return wanted(claim, f"the four supervisions with the chain of thought and both without, LSP {claim.lsp:g}")

    def contrast(means: Matrix) -> NDArray[np.float64]:
        return _mean_of_groups(complete, means, _least_with_minus_most_without)

    return _measure([arm for group in complete for arm in group], contrast, len(complete), extreme=True)


def sections_inside(claim: Claim, evidence: Evidence) -> Outcome:
    """Highest minus lowest accuracy of the four supervisions with the chain of thought, mean over settings."""
    arms = [a for a in evidence.of(claim, any_sections=True) if a.lsp == claim.lsp and a.sections in WITH_COT]
    complete = [group for group in _by_setting(arms) if {arm.sections for arm in group} == set(WITH_COT)]
    if not complete:
        return wanted(claim, f"the four supervisions with the chain of thought at LSP {claim.lsp:g}")

    def contrast(means: Matrix) -> NDArray[np.float64]:
        return _mean_of_groups(complete, means, lambda _, rows: rows.max(axis=0) - rows.min(axis=0))

    return _measure([arm for group in complete for arm in group], contrast, len(complete), extreme=True, least=0.0)


def left_over_right(claim: Claim, evidence: Evidence) -> Outcome:
    """Accuracy of the left part minus that of the right part, mean over settings."""
    arms = [arm for arm in evidence.of(claim, any_span=True) if arm.lsp == claim.lsp]
    pairs = _pairs(arms, lambda arm: arm.span == "left", lambda arm: arm.span == "right")
    if not pairs:
        return wanted(claim, f"left and right spans at LSP {claim.lsp:g}")
    measured = _measure(pairs, lambda means: (means[::2] - means[1::2]).mean(axis=0))
    ahead = sum(_mean(left) > _mean(right) for left, right in zip(pairs[::2], pairs[1::2], strict=True))
    return _noted(measured, f"left ahead in {ahead} of {len(pairs) // 2}")


def largest_change(claim: Claim, evidence: Evidence) -> Outcome:
    """Largest distance between the accuracy at any proportion and at 1.0, over proportions and settings."""
    arms = evidence.of(claim)
    full = {arm.setting: arm for arm in arms if arm.whole}
    pairs = [x for arm in arms if arm.lsp < FULL and arm.setting in full for x in (arm, full[arm.setting])]
    if not pairs:
        return wanted(claim, "LSP 1.0 and below")
    settings = len({arm.setting for arm in pairs})
    return _measure(pairs, _largest_distance, settings, extreme=len(pairs) > 2, least=0.0)


def rise_and_saturation(claim: Claim, evidence: Evidence) -> Outcome:
    """Smaller of two, mean over settings: loss at the lowest proportion, and what `lsp` keeps beyond `saturated`."""
    assert claim.lsp is not None and claim.saturated is not None
    saturated = claim.saturated
    triples = [three for group in _by_setting(evidence.of(claim)) if (three := _lowest_middle_full(group, claim.lsp))]
    groups = [three for three in triples if _mean(three[2]) > 0]
    if not groups:
        return NO_RATIO if triples else wanted(claim, f"LSP 1.0 and two below it, the larger one at most {claim.lsp:g}")

    def smaller(means: Matrix) -> NDArray[np.float64]:
        lowest, middle, full = means[::3], means[1::3], means[2::3]
        rise = (1.0 - _divide(lowest, full)).mean(axis=0)
        level = (_divide(middle, full) - saturated).mean(axis=0)
        smaller: NDArray[np.float64] = np.minimum(rise, level)
        return smaller

    at = " and ".join(", ".join(f"{lsp:g}" for lsp in sorted({g[place].lsp for g in groups})) for place in (0, 1))
    return _noted(
        _measure([arm for group in groups for arm in group], smaller, len(groups), extreme=True), f"at LSP {at}"
    )


MEASURES: dict[str, Callable[[Claim, Evidence], Outcome]] = {
    "retention": retention,
    "best-retention": best_retention,
    "cost-ratio": cost_ratio,
    "fits-only-truncated": fits_only_truncated,
    "sections": sections,
    "sections-inside": sections_inside,
    "loss-of-halves": loss_of_halves,
    "left-over-right": left_over_right,
    "largest-change": largest_change,
    "rise-and-saturation": rise_and_saturation,
    "none": lambda claim, _: claim.why_not,
}


def _measure(
    arms: Sequence[Scored],
    statistic: Statistic,
    settings: int | None = None,
    *,
    extreme: bool = False,
    least: float = -np.inf,
) -> Measured:
    """As `estimate` tells of `extreme` and `least`."""
    stages = tuple(dict.fromkeys(stage for arm in arms for stage in arm.stages))
    count = len({arm.setting for arm in arms}) if settings is None else settings
    found = estimate(arms, statistic, extreme=extreme, least=least)
    total = None if found.standard_error is None else found.standard_error**2
    return Measured(found, count, stages, spread_of(arms, statistic, total))


def _noted(measured: Measured, note: str) -> Measured:
    return Measured(measured.estimate, measured.settings, measured.stages, measured.spread, note)


def _against_full(claim: Claim, evidence: Evidence) -> list[Scored]:
    """Arms at the claim's proportion, each followed by its arm at 1.0, where that one solves anything."""
    return _pairs(evidence.of(claim), lambda arm: arm.lsp == claim.lsp, lambda arm: arm.whole and _mean(arm) > 0)


def _pairs(arms: Sequence[Scored], first: Callable[[Scored], bool], second: Callable[[Scored], bool]) -> list[Scored]:
    partners = {arm.setting: arm for arm in arms if second(arm)}
    return [x for arm in arms if first(arm) and arm.setting in partners for x in (arm, partners[arm.setting])]


def _by_setting(arms: Sequence[Scored]) -> list[list[Scored]]:
    ordered = sorted(arms, key=lambda arm: str(arm.setting))
    return [list(group) for _, group in groupby(ordered, key=lambda arm: str(arm.setting))]


def _has_all(group: Sequence[Scored]) -> bool:
    """Whether every supervision is there: the claim speaks of each with the chain of thought and each without."""
    return {*WITH_COT, *WITHOUT_COT} <= {arm.sections for arm in group}


def _least_with_minus_most_without(group: Sequence[Scored], means: Matrix) -> NDArray[np.float64]:
    with_cot = means[[arm.sections in WITH_COT for arm in group]]
    without = means[[arm.sections in WITHOUT_COT for arm in group]]
    contrast: NDArray[np.float64] = with_cot.min(axis=0) - without.max(axis=0)
    return contrast


def _mean_of_groups(
    groups: Sequence[Sequence[Scored]],
    means: Matrix,
    one: Callable[[Sequence[Scored], Matrix], NDArray[np.float64]],
) -> NDArray[np.float64]:
    starts = np.cumsum([0, *(len(group) for group in groups)])
    values = [one(group, means[start : start + len(group)]) for group, start in zip(groups, starts, strict=False)]
    mean: NDArray[np.float64] = np.mean(values, axis=0)
    return mean


def _lowest_middle_full(group: Sequence[Scored], lsp: float) -> list[Scored] | None:
    """Arms at the lowest proportion, at the largest one up to `lsp`, and at 1.0; None when two of them are one."""
    by_lsp = {arm.lsp: arm for arm in group}
    up_to = sorted(p for p in by_lsp if p <= lsp)
    if FULL not in by_lsp or len(up_to) < 2 or lsp == FULL:
        return None
    return [by_lsp[up_to[0]], by_lsp[up_to[-1]], by_lsp[FULL]]


def _ratios(means: Matrix) -> Matrix:
    return _divide(means[::2], means[1::2])


def _largest_ratio(means: Matrix) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = _ratios(means).max(axis=0)
    return largest


def _largest_distance(means: Matrix) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = np.abs(means[::2] - means[1::2]).max(axis=0)
    return largest


def _mean_ratio(means: Matrix) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = _ratios(means).mean(axis=0)
    return mean


def _divide(upper: Matrix, lower: Matrix) -> Matrix:
    """The ratio, infinite where the reference solves nothing."""
    ratio = np.full(np.broadcast(upper, lower).shape, np.inf)
    np.divide(upper, lower, out=ratio, where=lower > 0.0)
    return ratio


def _mean(arm: Scored) -> float:
    return float(np.mean([np.mean(list(shares.values())) for shares in arm.shares]))


def _no_ratio(claim: Claim, evidence: Evidence) -> str:
    """Why there is no retention: nothing is graded at both proportions, or nothing is solved at 1.0."""
    lsps = {arm.lsp for arm in evidence.of(claim)}
    if {claim.lsp, FULL} <= lsps:
        return NO_RATIO
    return wanted(claim, f"LSP {claim.lsp:g} and 1.0 on the same benchmark")
