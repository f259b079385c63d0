"""All settings of a large run in one table: what the first half keeps in each, before the tables of every group."""

from dataclasses import dataclass

from essence import text
from essence.report.page import reported
from essence.report.page.findings import arm_at
from essence.report.results.records import FULL, Arm, Evaluation, Results


@dataclass(frozen=True)
class OverviewRow:
    """One benchmark of one group, in text."""

    anchor: str
    """Of its group."""
    setting: str
    details: str
    """What else sets its group apart; empty where that is the same in all."""
    evaluation: str
    half: str
    full: str
    kept: str
    interval: str
    time: str
    load: str
    """What the time was measured beside, or that it has no ratio."""


def overview_rows(results: Results) -> list[OverviewRow]:
    """A row for each evaluation of each group that has an arm at the paper's proportion."""
    differ = len({group.key.details for group in results.groups}) > 1
    return [
        _row(f"g{number}", group.key.title, group.key.details if differ else "", evaluation, half, arm_at(group, FULL))
        for number, group in enumerate(results.groups, 1)
        if (half := arm_at(group, reported.RETENTION.lsp))
        for evaluation in group.evaluations
    ]


def _row(anchor: str, title: str, details: str, evaluation: Evaluation, half: Arm, full: Arm | None) -> OverviewRow:
    kept = half.pooled[evaluation].retention if evaluation in half.pooled else None
    return OverviewRow(
        anchor=anchor,
        setting=title,
        details=details,
        evaluation=f"{evaluation[0]}, {evaluation[1]}",
        half=_accuracy(half, evaluation),
        full=_accuracy(full, evaluation),
        kept=text.percent(kept.value if kept else None),
        interval=text.interval(kept),
        time=text.times(half.ratio.get("time")),
        load="trainings ran unlike" if "time" in half.unlike else half.load.words,
    )


def _accuracy(arm: Arm | None, evaluation: Evaluation) -> str:
    return text.percent(arm.pooled[evaluation].accuracy.value) if arm and evaluation in arm.pooled else text.NOTHING
