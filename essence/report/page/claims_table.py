"""The claims table as people read it: reported, ours, how many, and the word."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence import text
from essence.report.claims.definition import Claim
from essence.report.claims.verdict import ClaimVerdict, Verdict

STYLES: dict[Verdict, str] = {
    "reproduced": "bold green",
    "not reproduced": "bold red",
    "undecided": "bold yellow",
    "not comparable": "bold magenta",
    "not run": "dim",
}
GRADE_WORDS = {"A": "abstract or released code", "B": "second hand"}


@dataclass(frozen=True)
class ClaimRow:
    """One claim under one protocol, in words."""

    id: str
    title: str
    protocol: str
    grade: str
    """Where the claim is known from."""
    reported: str
    accepted: str
    """Values of ours that count as reproduced."""
    ours: str
    count: str
    """What ours is over: settings, and problems or runs."""
    word: Verdict
    detail: str
    """Advice, or what is missing, or a note."""
    stages: tuple[str, ...]


def claim_rows(judged: Sequence[ClaimVerdict]) -> list[ClaimRow]:
    """The rows in the order of the claims; those under several protocols stand together."""
    return [_row(one) for one in judged]


def _row(judged: ClaimVerdict) -> ClaimRow:
    claim, measured = judged.claim, judged.measured
    details = [measured.note if measured else "", judged.advice]
    return ClaimRow(
        id=claim.id,
        title=claim.title,
        protocol=judged.protocol,
        grade=GRADE_WORDS[claim.grade],
        reported=claim.reported_words or value_text(claim, claim.reported),
        accepted=band_text(claim),
        ours=_ours(judged),
        count=_count(judged),
        word=judged.word,
        detail="; ".join(detail for detail in details if detail),
        stages=measured.stages if measured else (),
    )


def value_text(claim: Claim, value: float | None) -> str:
    """A value in the claim's unit: `91.0 %`, `+12.5 points`, `0.50 x`."""
    if value is None:
        return text.NOTHING
    if claim.unit == "points":
        return f"{100 * value:+.1f}{text.SPACE}points"
    return text.times(value) if claim.unit == "times" else text.percent(value)


def band_text(claim: Claim) -> str:
    """What counts as reproduced: `86.0 % to 96.0 %`, `above +0.0 points`."""
    if claim.measure == "none":
        return text.NOTHING
    low, high = claim.band
    if math.isinf(high):
        return f"above {value_text(claim, low)}"
    return f"{value_text(claim, low)} to {value_text(claim, high)}"


def _ours(judged: ClaimVerdict) -> str:
    if judged.measured is None:
        return text.NOTHING
    estimate = judged.measured.estimate
    ends = [value_text(judged.claim, end) for end in (estimate.low, estimate.high)]
    interval = f" [{ends[0]}, {ends[1]}]" if estimate.low is not None or estimate.high is not None else ""
    return value_text(judged.claim, estimate.value) + interval


def _count(judged: ClaimVerdict) -> str:
    measured, claim = judged.measured, judged.claim
    if measured is None:
        return text.NOTHING
    of = f" of {claim.settings}" if claim.settings else ""
    plural = "" if measured.settings == 1 and not of else "s"
    number = measured.estimate.n
    pairs = claim.measure in ("cost-ratio", "fits-only-truncated", "loss-of-halves")
    unit = f"{'pair' if pairs else 'problem'}{'' if number == 1 else 's'}{' of runs' if pairs else ''}"
    return f"{measured.settings}{of} setting{plural}, {number} {unit}"


def print_claims(rows: Sequence[ClaimRow], console: Console) -> None:
    """The claims that were measured as a table, what decides under each; the others with what they need."""
    table = Table(title="Claims of the paper", title_justify="left", title_style="bold", box=None, pad_edge=False)
    several = len({row.protocol for row in rows}) > 1
    for name in ("Claim", "Reported", "Ours", "Over", "Word"):
        table.add_column(name, header_style="dim", vertical="top", overflow="fold")
    for row in (row for row in rows if row.word != "not run"):
        title = Text(f"{row.title} ({row.protocol})" if several else row.title)
        if row.detail:
            title.append(f"\n{row.detail}", style="dim")
        hand = f"{row.reported}\n{row.grade}" if row.grade == GRADE_WORDS["B"] else row.reported
        table.add_row(title, Text(hand), Text(row.ours), Text(row.count), Text(row.word, style=STYLES[row.word]))
    console.print(table)
    left = [row for row in rows if row.word == "not run"]
    for row in left:
        suffix = f" ({row.protocol})" if several else ""
        console.print(Text(f"not run: {row.title}{suffix}: {row.detail}", style="dim"))
