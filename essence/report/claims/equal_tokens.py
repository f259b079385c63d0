"""Arms that read as many tokens: fewer whole rows against more, shorter ones."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from essence.report.claims.evidence import Scored, Setting

TOKENS_DIFFER = 0.05
"""Two trainings whose tokens differ by a larger share are not matched."""


def matched_pairs(arms: Sequence[Scored]) -> Iterator[list[Scored]]:
    """For each two trained arms that differ in rows and proportion and read as many tokens: both, as one setting."""
    trained: dict[tuple[Setting, float], list[Scored]] = {}
    for arm in arms:
        place = arm.setting._replace(benchmark="", evaluation="")
        trained.setdefault((place, arm.lsp if not arm.whole else 1.0), []).append(arm)
    shorter = [some for some in trained.values() if not some[0].whole]
    whole = [some for some in trained.values() if some[0].whole]
    for some, others in product(shorter, whole):
        if _matched(some[0], others[0]):
            yield from _together(some, others)


def _matched(short: Scored, whole: Scored) -> bool:
    """As many tokens, of rows that were chosen alike: two numbers of rows, or as many as one `token_budget` lets in."""
    alike = short.setting._replace(benchmark="", evaluation="", recipe=short.matched)
    if alike != whole.setting._replace(benchmark="", evaluation="", recipe=whole.matched):
        return False
    by_budget = short.budget and whole.budget and short.setting.recipe == whole.setting.recipe
    by_rows = not short.budget and not whole.budget and short.setting.recipe != whole.setting.recipe
    if not (by_budget or by_rows) or not short.tokens or not whole.tokens:
        return False
    return abs(short.tokens / whole.tokens - 1.0) <= TOKENS_DIFFER


def _together(some: Sequence[Scored], others: Sequence[Scored]) -> Iterator[list[Scored]]:
    """On the benchmarks where both were evaluated alike."""
    recipe = f"{some[0].setting.recipe}+{others[0].setting.recipe}"
    pairs = [
        (short, whole)
        for short, whole in product(some, others)
        if (short.setting.benchmark, short.setting.evaluation) == (whole.setting.benchmark, whole.setting.evaluation)
    ]
    if pairs:
        yield [replace(arm, setting=arm.setting._replace(recipe=recipe)) for pair in pairs for arm in pair]
