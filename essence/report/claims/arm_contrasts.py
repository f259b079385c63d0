"""How the kit's own questions are measured: one arm against another, an amount against a share.

As in `measures.py`, each function takes a question and the evidence of one protocol. What both arms must have as much
of (tokens read, labels, rows) is compared by what their records counted, and never by what was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from essence import text
from essence.evaluation.statistics import Matrix
from essence.report.claims.contrast import Statistic
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence, Scored
from essence.report.claims.one_contrast import difference, is_whole_rows, measured_on, ratio_of_means
from essence.report.claims.outcome import Outcome, wanted
from essence.report.claims.units import Compared, Predicate, Unit, by_setting, compared, side_by_side
from essence.settings import first_tokens

APART = 0.01
"""Two arms whose tokens, labels or rows differ by a larger share do not have as many."""
MOST_NAMED = 12
"""Arms that a note names."""


def arm_over_arm(claim: Claim, evidence: Evidence) -> Outcome:
    """A quantity at `span` minus (unit `times`: over) that at `against`, mean over settings; both at `lsp`."""
    arms = [found for arm in evidence.of(claim, any_span=True) if (found := arm.in_place_of_accuracy(claim.quantity))]
    both = compared(arms, _arm(claim.span, claim.lsp), _other(claim))
    equal = [units for units in both if _apart(claim, units) <= APART]
    if not equal:
        other = "whole rows" if claim.against == "whole" else claim.against
        needed = f"{claim.span} at LSP {claim.lsp:g} and {other}" + _equal_words(claim)
        return "; ".join([wanted(claim, needed), *(_unequal(claim, units) for units in both)])
    statistic = ratio_of_means if claim.unit == "times" else difference(0, 1)
    return measured_on(claim, evidence, equal, statistic, _note(claim, equal, arms))


def _arm(span: str, lsp: float | None) -> Predicate:
    return lambda arm: arm.span == span and arm.lsp == lsp and not arm.whole


def _other(claim: Claim) -> Predicate:
    return is_whole_rows if claim.against == "whole" else _arm(claim.against or "", claim.lsp)


def _counted(claim: Claim, unit: Unit) -> float | None:
    """What the records of an arm say of that which both must have as much of; None where they say nothing."""
    arm = unit.arms[0]
    return {"labels": arm.labels, "rows": arm.rows, "tokens": arm.tokens}[claim.equal or "tokens"]


def _apart(claim: Claim, units: Sequence[Unit]) -> float:
    """By what share two arms differ in it; infinite where not known."""
    first, second = (_counted(claim, unit) for unit in units)
    return abs(first / second - 1.0) if first and second else float("inf")


def _equal_words(claim: Claim) -> str:
    return f" with equal {claim.equal} (at most {100 * APART:g} % apart)"


def _unequal(claim: Claim, units: Sequence[Unit]) -> str:
    """`left has 1,000,000 labels, random-span 1,100,000`."""
    first, second = (_counted(claim, unit) for unit in units)
    if not first or not second:
        return f"their records do not say how many {claim.equal} they have"
    return f"{claim.span} has {first:,.0f} {claim.equal}, {claim.against} {second:,.0f}"


def _note(claim: Claim, settings: Sequence[Compared], arms: Sequence[Scored]) -> str:
    """What the two arms counted, or each arm's own value where that is the question."""
    if claim.quantity == "accuracy":
        counted = [_counted(claim, unit) for unit in settings[0]]
        shown = " and ".join(f"{one:,.0f}" for one in counted if one)
        return f"{shown} {claim.equal}" if len(settings) == 1 else ""
    kept = {units[0].setting for units in settings}
    beside = [
        group for setting, group in by_setting(arms) if setting in kept
        for group in _by_arm(group)
    ]  # fmt: skip
    shown = "; ".join(f"{_name(group[0])} {_written(claim, group)}" for group in beside[:MOST_NAMED])
    return shown + (f"; and {len(beside) - MOST_NAMED} more" if len(beside) > MOST_NAMED else "")


def _by_arm(group: Sequence[Scored]) -> list[list[Scored]]:
    """The arms of a setting, each with all its benchmarks."""
    found: dict[tuple[str, float], list[Scored]] = {}
    for arm in group:
        found.setdefault(("whole", 1.0) if arm.whole else (arm.span, arm.lsp), []).append(arm)
    return list(found.values())


def _name(arm: Scored) -> str:
    if arm.whole:
        return "whole rows"
    return arm.span if arm.lsp == 1.0 else f"{arm.span} {text.proportion(arm.lsp)}"


def _written(claim: Claim, arms: Sequence[Scored]) -> str:
    mean = float(np.mean([np.mean(list(seed.values())) for arm in arms for seed in arm.shares]))
    return f"{mean:,.0f} tokens" if claim.quantity == "length" else text.percent(mean)


Arm = Sequence[Scored]
"""One arm of a setting, with all its benchmarks."""


@dataclass(frozen=True)
class Between:
    """An arm of k tokens, and where its tokens lie between two arms of a share."""

    amount: Arm
    below: Arm
    above: Arm
    place: float
    """0 = as many tokens as below, 1 = as above."""

    @property
    def weights(self) -> list[tuple[Arm, float]]:
        """Of each arm in the amount minus the share; an arm that weighs nothing is not used."""
        sides = ((self.amount, 1.0), (self.below, self.place - 1.0), (self.above, -self.place))
        return [(arm, weight) for arm, weight in sides if weight]


def amount_over_share(claim: Claim, evidence: Evidence) -> Outcome:
    """Accuracy of each `first-k` minus that of the left share of as many tokens, mean over k and settings.

    The accuracy of a share between two that were trained is read off the straight line between them. Arms that are not
    needed for it are no part of what is judged.
    """
    settings, weights, notes = [], [], []
    for setting, group in by_setting(evidence.of(claim, any_span=True)):
        arms = _by_arm(group)
        amounts = [one for one in arms if first_tokens(one[0].span)]
        shares = [one for one in arms if one[0].whole or one[0].span == claim.span]
        found = _betweens(amounts, shares)
        used = [one for one in arms if any(one is arm for between in found for arm, _ in between.weights)]
        if found and (units := side_by_side(setting, used)):
            settings.append(units)
            weights.append(_weights(used, found))
            notes += [_between_words(one) for one in found]
    if not settings:
        return wanted(claim, "first-k, and left spans of both fewer and more tokens, on the same rows")
    most = max(len(units) for units in settings)
    sides = [units + units[-1:] * (most - len(units)) for units in settings]  # those that fill up weigh nothing
    each = np.array([np.pad(one, (0, most - len(one))) for one in weights])
    note = "; ".join(dict.fromkeys(notes)) if len(settings) == 1 else ""
    return measured_on(claim, evidence, sides, weighted(each), note)


def _betweens(amounts: Sequence[Arm], shares: Sequence[Arm]) -> list[Between]:
    """Each amount with its two neighbours; those beyond every share are left out."""
    known = sorted((arm for arm in shares if arm[0].tokens), key=_tokens)
    found = []
    for amount in amounts:
        for below, above in pairwise(known):
            low, high = _tokens(below), _tokens(above)
            if low <= _tokens(amount) <= high and low < high:
                found.append(Between(amount, below, above, (_tokens(amount) - low) / (high - low)))
                break
    return found


def _tokens(arm: Arm) -> float:
    return arm[0].tokens or 0.0


def _weights(used: Sequence[Arm], found: Sequence[Between]) -> Matrix:
    """Of each arm in the mean over amounts: a training that two of them share counts once, with the sum."""
    weights = np.zeros(len(used))
    for arm, weight in (one for between in found for one in between.weights):
        weights[next(place for place, one in enumerate(used) if one is arm)] += weight / len(found)
    return weights


def _between_words(one: Between) -> str:
    """`first-512 reads as much as LSP 0.31, between 0.25 and 0.50`."""
    low, high = one.below[0].lsp, one.above[0].lsp
    share = low + one.place * (high - low)
    between = f"between {text.proportion(low)} and {text.proportion(high)}"
    return f"{one.amount[0].span} reads as much as LSP {share:.2f}, {between}"


def weighted(weights: Matrix) -> Statistic:
    """Sum over sides, each with its weight in its setting, mean over settings; weights: [settings, sides]."""

    def statistic(means: Matrix) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = (weights[:, :, None] * means).sum(axis=1).mean(axis=0)
        return mean

    return statistic
