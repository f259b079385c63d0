"""How each claim is measured: formulas on the accuracies of arms; those on trainings are in `trainings.py`.

Each function takes a claim and the evidence of one protocol, and gives what was measured, or a sentence that says which
cells are missing.
"""

from collections.abc import Callable, Sequence

import numpy as np

from essence import text
from essence.evaluation.statistics import Matrix, pooled_accuracy
from essence.report.claims.arm_contrasts import amount_over_share, arm_over_arm
from essence.report.claims.contrast import Contrast, Statistic, contrast
from essence.report.claims.definition import Claim
from essence.report.claims.equal_tokens import matched_pairs
from essence.report.claims.evidence import Evidence, Scored, Setting
from essence.report.claims.families import Joined, largest, largest_distance, least
from essence.report.claims.one_contrast import (
    count_settings,
    difference,
    fewest_samples,
    is_whole_rows,
    measured_on,
    ratio_of_means,
    stages_of,
    trainings_of,
)
from essence.report.claims.outcome import Measured, Outcome, wanted
from essence.report.claims.trace_proxies import counted_proxy
from essence.report.claims.trainings import cost_ratio, fits_only_truncated, loss_of_halves
from essence.report.claims.units import Compared, Unit, by_setting, compared
from essence.report.results.records import FULL

WITH_COT = ("cot", "cot+a", "p+cot", "p+cot+a")
WITHOUT_COT = ("a", "p+a")
NO_RATIO = "there is no ratio: nothing is solved at LSP 1.0"
FLOOR = "floor: {found} solved at LSP 1.0 is not clearly more than the {edge} points that would count as a change"


def retention(claim: Claim, evidence: Evidence) -> Outcome:
    """Mean accuracy at `lsp` over settings / mean accuracy at 1.0."""
    settings = _against_full(claim, evidence)
    if not settings:
        return _no_ratio(claim, evidence)
    note = [*_other_means(settings), *_negative_control(settings, evidence)]
    return measured_on(claim, evidence, settings, ratio_of_means, "; ".join(note))


def best_retention(claim: Claim, evidence: Evidence) -> Outcome:
    """Largest over settings of accuracy at `lsp` / accuracy at 1.0."""
    settings = _against_full(claim, evidence)
    if not settings:
        return _no_ratio(claim, evidence)
    if claim.settings and count_settings(settings) < claim.settings:
        return (
            f"{count_settings(settings)} of {claim.settings} settings are there: the largest of some is not that of all"
        )
    parts = _one_by_one(settings, lambda means: means[:, 0] / means[:, 1])
    return _family(settings, parts, largest(parts, evidence.level, claim.band))


def sections(claim: Claim, evidence: Evidence) -> Outcome:
    """Smallest difference between a supervision with the chain of thought and one without, means over settings."""
    arms = [arm for arm in evidence.of(claim, any_sections=True) if arm.lsp == claim.lsp]
    settings = compared(arms, *(_supervised(name) for name in (*WITH_COT, *WITHOUT_COT)))
    if not settings:
        return wanted(claim, f"the four supervisions with the chain of thought and both without, LSP {claim.lsp:g}")
    pairs = [(a, len(WITH_COT) + b) for a in range(len(WITH_COT)) for b in range(len(WITHOUT_COT))]
    parts = [contrast(settings, difference(a, b)) for a, b in pairs]
    return _family(settings, parts, least(parts, evidence.level, claim.band[0]))


def sections_inside(claim: Claim, evidence: Evidence) -> Outcome:
    """Largest difference between two of the four supervisions with the chain of thought, means over settings."""
    arms = [arm for arm in evidence.of(claim, any_sections=True) if arm.lsp == claim.lsp]
    settings = compared(arms, *(_supervised(name) for name in WITH_COT))
    if not settings:
        return wanted(claim, f"the four supervisions with the chain of thought at LSP {claim.lsp:g}")
    count, edge = len(WITH_COT), claim.band[1]
    parts = [contrast(settings, difference(a, b)) for a in range(count) for b in range(a)]
    joined = largest_distance(parts, evidence.level, edge)
    return _family(settings, parts, joined, _floor([units[-1] for units in settings], edge, evidence.level))


def left_over_right(claim: Claim, evidence: Evidence) -> Outcome:
    """Accuracy of the left part minus that of the right part, in every setting; a benchmark is a setting of its own."""
    arms = [arm for arm in evidence.of(claim, any_span=True) if arm.lsp == claim.lsp]
    settings = compared(arms, lambda arm: arm.span == "left", lambda arm: arm.span == "right")
    if not settings:
        return wanted(claim, f"left and right spans at LSP {claim.lsp:g}")
    each = [
        [(left.on(name), right.on(name)) for left, right in settings if name in left.shares]
        for name in _named(settings)
    ]
    singles = [units for some in each for units in some]
    ahead = sum(left.accuracy > right.accuracy for left, right in singles)
    note = f"left ahead in {ahead} of {len(singles)}"
    if len(singles) == 1:
        return measured_on(claim, evidence, settings, difference(0, 1), note)
    parts = [part for some in each for part in _one_by_one(some, lambda means: means[:, 0] - means[:, 1])]
    return _family(settings, parts, least(parts, evidence.level, claim.band[0]), note=note)


def largest_change(claim: Claim, evidence: Evidence) -> Outcome:
    """Largest distance between the accuracy at any proportion and at 1.0, over proportions and settings."""
    arms = [arm for _, group in by_setting(evidence.of(claim)) if _is_curve(claim, group) for arm in group]
    settings: list[Compared] = []
    parts: list[Contrast] = []
    for lsp in sorted({arm.lsp for arm in arms if arm.lsp < FULL}):
        pairs = compared(arms, _at(lsp), is_whole_rows)
        settings += pairs
        parts += _one_by_one(pairs, lambda means: means[:, 0] - means[:, 1]) if pairs else []
    if not parts:
        return wanted(claim, f"LSP 1.0 and at least {claim.proportions or 1} below it in one setting")
    edge = claim.band[1]
    joined = largest_distance(parts, evidence.level, edge)
    full = {units[-1].setting: units[-1] for units in settings}
    references = [(unit,) for unit in full.values()]
    return _family(references, parts, joined, _floor(list(full.values()), edge, evidence.level), settings)


def _is_curve(claim: Claim, arms: Sequence[Scored]) -> bool:
    return len({arm.lsp for arm in arms if not arm.whole}) >= (claim.proportions or 1)


def rise(claim: Claim, evidence: Evidence) -> Outcome:
    """1 - retention at the lowest proportion."""
    lowest, _ = _curve(claim, evidence)
    settings = [units for units in compared(evidence.of(claim), _at_own(lowest), is_whole_rows) if units[1].accuracy]
    if not settings:
        return _no_curve(claim, lowest)
    return measured_on(claim, evidence, settings, lambda means: 1.0 - ratio_of_means(means), _at_words(lowest))


def plateau(claim: Claim, evidence: Evidence) -> Outcome:
    """Retention at the largest proportion up to `lsp`."""
    _, middle = _curve(claim, evidence)
    settings = [units for units in compared(evidence.of(claim), _at_own(middle), is_whole_rows) if units[1].accuracy]
    return (
        measured_on(claim, evidence, settings, ratio_of_means, _at_words(middle))
        if settings
        else _no_curve(claim, middle)
    )


def token_matched(claim: Claim, evidence: Evidence) -> Outcome:
    """Accuracy at `lsp` on more rows minus that at 1.0 on as many tokens, mean over settings."""
    settings = [compared(pair, _at(claim.lsp or 0.0), is_whole_rows) for pair in matched_pairs(evidence.of(claim))]
    found = [units for one in settings for units in one]
    if not found:
        return wanted(claim, f"LSP {claim.lsp:g}, and LSP 1.0 on as many tokens of fewer rows")
    note = f"{found[0][0].arms[0].tokens or 0:,.0f} and {found[0][1].arms[0].tokens or 0:,.0f} tokens"
    return measured_on(claim, evidence, found, difference(0, 1), note if len(found) == 1 else "")


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
    "rise": rise,
    "plateau": plateau,
    "token-matched": token_matched,
    "arm-over-arm": arm_over_arm,
    "amount-over-share": amount_over_share,
    "proxy": counted_proxy,
    "none": lambda claim, _: claim.why_not,
}


def _family(
    settings: Sequence[Compared], parts: Sequence[Contrast], joined: Joined, floor: str = "",
    of: Sequence[Compared] = (), note: str = "",
) -> Measured:  # fmt: skip
    """Several contrasts as one; `of`: the settings that stages and trainings are taken from."""
    used = of or settings
    why_open = next((part.why_open for part in parts if part.why_open), floor)
    return Measured(
        joined[0], count_settings(settings), stages_of(used), note, min(part.trainings for part in parts),
        fewest_samples(used), why_open, outside=1.0 if why_open else joined[1], rests_on=trainings_of(used),
        most_trainings=max(part.most_trainings for part in parts),
    )  # fmt: skip


def _one_by_one(settings: Sequence[Compared], each: Callable[[Matrix], Matrix]) -> list[Contrast]:
    """A contrast for each setting; how far trainings differ is pooled over all of them."""

    def of(place: int) -> Statistic:
        return lambda means: each(means)[place]

    return [contrast(settings, of(place), over_settings=False) for place in range(len(settings))]


def _floor(references: Sequence[Unit], edge: float, level: float) -> str:
    """Why a small change shows nothing: a student that solves nothing cannot change."""
    for unit in references:
        shares = np.concatenate(list(unit.shares.values()), axis=1)
        found = pooled_accuracy(shares, level)
        if found.low is None or found.low <= edge:
            return FLOOR.format(found=text.percent(found.value or 0.0), edge=f"{100 * edge:g}")
    return ""


def _other_means(settings: Sequence[Compared]) -> list[str]:
    """Beside the ratio of means: the mean of ratios, which chance drives upwards, and the geometric one."""
    ratios = np.array([half.accuracy / full.accuracy for half, full in settings])
    if len(ratios) < 2:
        return []
    shown = [f"mean of ratios {text.percent(float(ratios.mean()))}"]
    if (ratios > 0.0).all():
        shown.append(f"geometric mean {text.percent(float(np.exp(np.log(ratios).mean())))}")
    return shown


def _negative_control(settings: Sequence[Compared], evidence: Evidence) -> list[str]:
    """What the untrained student keeps of the accuracy at 1.0, and what share of the gain over it is kept."""
    rows = []
    for half, full in settings:
        known = [evidence.untrained.get((full.setting.student, full.setting.protocol, name)) for name in full.shares]
        if any(accuracy is None for accuracy in known):
            return []
        rows.append((half.accuracy, full.accuracy, float(np.mean([accuracy or 0.0 for accuracy in known]))))
    short, whole, untrained = np.mean(rows, axis=0)
    shown = [f"the untrained student has {text.percent(float(untrained / whole))} of what is solved at LSP 1.0"]
    if whole > untrained:
        shown.append(f"share of the gain kept {text.percent(float((short - untrained) / (whole - untrained)))}")
    return shown


def _against_full(claim: Claim, evidence: Evidence) -> list[Compared]:
    """Arms at the claim's proportion beside 1.0, where that one solves anything."""
    assert claim.lsp is not None
    return [units for units in compared(evidence.of(claim), _at(claim.lsp), is_whole_rows) if units[1].accuracy > 0.0]


def _curve(claim: Claim, evidence: Evidence) -> tuple[dict[Setting, float], dict[Setting, float]]:
    """By setting: the lowest proportion, and the largest one up to the claim's, where these are two below 1.0."""
    lowest, middle = {}, {}
    for setting, arms in by_setting(evidence.of(claim)):
        up_to = sorted({arm.lsp for arm in arms if arm.lsp < FULL and arm.lsp <= (claim.lsp or 0.0)})
        if len(up_to) > 1 and any(arm.whole for arm in arms):
            lowest[setting], middle[setting] = up_to[0], up_to[-1]
    return lowest, middle


def _no_curve(claim: Claim, found: dict[Setting, float]) -> str:
    return NO_RATIO if found else wanted(claim, f"LSP 1.0 and two below it, the larger one at most {claim.lsp:g}")


def _at(lsp: float) -> Callable[[Scored], bool]:
    return lambda arm: arm.lsp == lsp and not arm.whole


def _at_own(lsp: dict[Setting, float]) -> Callable[[Scored], bool]:
    return lambda arm: arm.lsp == lsp.get(arm.setting._replace(benchmark="", evaluation=""))


def _at_words(lsp: dict[Setting, float]) -> str:
    return "at LSP " + ", ".join(f"{one:g}" for one in sorted(set(lsp.values())))


def _supervised(name: str) -> Callable[[Scored], bool]:
    return lambda arm: arm.sections == name


def _named(settings: Sequence[Compared]) -> list[str]:
    """The benchmarks of some settings."""
    return sorted({name for units in settings for name in units[0].shares})


def _no_ratio(claim: Claim, evidence: Evidence) -> str:
    """Why there is no retention: nothing is graded at both proportions, or nothing is solved at 1.0."""
    assert claim.lsp is not None
    if compared(evidence.of(claim), _at(claim.lsp), is_whole_rows):
        return NO_RATIO
    return wanted(claim, f"LSP {claim.lsp:g} and 1.0 on the same benchmark")
