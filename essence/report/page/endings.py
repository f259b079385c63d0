"""How completions end, beside the accuracy: a model that never stops shows here first."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table
from rich.text import Text

from essence import text
from essence.evaluation.statistics import Estimate
from essence.report.page.table import ROLE_WORDS
from essence.report.results.records import Ending, Evaluation, Group, Results, Score

ENDING_COLUMNS = (
    "Accuracy", "Stopped", "At the cap", "Cut: loop", "No answer", "Grader timeout", "Mean tokens", "Median", "Longest",
)  # fmt: skip
REASONS = ("stop", "length", "loop")
MAIN_COLUMNS = ("Stopped", "At the cap", "Mean tokens")
"""Those with an interval: what a terminal shows."""
OF_COLUMN: dict[str, Ending] = {"Stopped": "stopped", "At the cap": "capped", "Mean tokens": "length"}


@dataclass(frozen=True)
class EndingRow:
    """One arm or baseline; numbers by `ENDING_COLUMNS`."""

    label: str
    role: str
    numbers: tuple[str, ...]
    intervals: dict[str, str]
    """By column: over problems, of several trainings over trainings too; empty in earlier records."""


def ending_rows(results: Results, group: Group, evaluation: Evaluation) -> list[EndingRow]:
    """The student as it comes, the arms from the smallest LSP to the largest, the teacher; only what is graded."""
    arms = [
        EndingRow(
            text.proportion(arm.lsp), "arm", _numbers(pooled.scores, pooled.accuracy.value), intervals(pooled.endings)
        )
        for arm in group.arms
        if (pooled := arm.pooled.get(evaluation))
    ]
    ends = {role: results.baseline(role, group.key, evaluation[0]) for role in ROLE_WORDS}
    baselines = {
        role: [EndingRow(ROLE_WORDS[role], role, _numbers([score], _accuracy(score)), intervals(score.endings))]
        for role, score in ends.items()
        if score
    }
    return [*baselines.get("student", []), *arms, *baselines.get("teacher", [])] if arms else []


def _accuracy(score: Score) -> float | None:
    return score.accuracy.value if score.accuracy else None


def intervals(endings: Mapping[Ending, Estimate]) -> dict[str, str]:
    """`[96.1, 99.2]` in percent, `[1,020, 1,310]` in tokens, by column; without those that are not known."""
    shown = {name: ending_interval(of, endings.get(of)) for name, of in OF_COLUMN.items()}
    return {name: one for name, one in shown.items() if one}


def ending_interval(name: Ending, found: Estimate | None) -> str:
    """The interval in the unit of this ending; empty where none is known."""
    if name != "length":
        return text.interval(found)
    if found is None or found.low is None or found.high is None:
        return ""
    return f"[{text.whole(found.low)},{text.SPACE}{text.whole(found.high)}]"


def terminal_endings(rows: Sequence[EndingRow]) -> Table:
    """Stop rate, cap hits and length with their intervals, a line a row."""
    table = Table(header_style="dim", box=None, pad_edge=False)
    table.add_column("How completions end", no_wrap=True)
    for name in MAIN_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{of_column(row, name)} {row.intervals.get(name, '')}".strip() for name in MAIN_COLUMNS]
        table.add_row(*map(Text, (row.label, *cells)), style="" if row.role == "arm" else "dim")
    return table


def of_column(row: EndingRow, name: str) -> str:
    """The number of a row in a column."""
    return row.numbers[ENDING_COLUMNS.index(name)]


def ending_shares(scores: Iterable[Score]) -> dict[str, float]:
    """Finish reason -> share of all completions of these scores."""
    counts: Counter[str] = Counter()
    for score in scores:
        counts.update(score.finish_reasons)
    total = counts.total()
    return {reason: counts[reason] / total for reason in (*REASONS, *sorted(counts.keys() - set(REASONS))) if total}


def _numbers(scores: Sequence[Score], accuracy: float | None) -> tuple[str, ...]:
    """Shares of all completions; mean and median tokens are means over the cells, the longest is of all of them."""
    shares = ending_shares(scores)
    results = [graded.results for score in scores if (graded := score.grade.graded)]
    return (
        text.percent(accuracy),
        *(text.percent(shares.get(reason)) for reason in REASONS),
        *(text.percent(_status_share(scores, status)) for status in ("no answer", "timeout")),
        text.whole(_mean([graded.mean_completion_tokens for graded in results])),
        text.whole(_mean([graded.median_completion_tokens for graded in results])),
        text.whole(max((graded.longest_completion_tokens or 0 for graded in results), default=0) or None),
    )


def _status_share(scores: Sequence[Score], status: str) -> float | None:
    counts = [graded.results.statuses for score in scores if (graded := score.grade.graded)]
    total = sum(sum(one.values()) for one in counts)
    return sum(one.get(status, 0) for one in counts) / total if total else None


def _mean(recorded: Sequence[float | None]) -> float | None:
    """Of the cells whose record has it."""
    found = [value for value in recorded if value is not None]
    return fmean(found) if found else None
