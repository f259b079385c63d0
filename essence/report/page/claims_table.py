"""The claims table as people read it: the verdict first, what it rests on, what would decide."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from essence import text
from essence.report.claims.contrast import DECLARED, OVER_SETTINGS
from essence.report.claims.definition import Claim
from essence.report.claims.interim_looks import level_of
from essence.report.claims.outcome import Measured
from essence.report.claims.verdict import ClaimVerdict, Verdict

STYLES: dict[Verdict, str] = {
    "reproduced": "bold green",
    "not reproduced": "bold red",
    "undecided": "bold yellow",
    "not comparable": "bold magenta",
    "shown, not judged": "dim",
    "not run": "dim",
}
DECIDED = "decided"
PLANNED = "; invoke plan --decide"
"""Where advice is followed by the command that computes a number."""
COUNTED = "counted"
"""As the method of an estimate without an error begins."""
DECIDES: dict[Verdict, str] = {
    "reproduced": DECIDED,
    "not reproduced": DECIDED,
    "shown, not judged": "a run in a setting of the paper",
}
"""Where a verdict has no advice of its own."""
GRADE_WORDS = {"A": "abstract or released code", "B": "second hand", "kit": "not in the paper"}


@dataclass(frozen=True)
class ClaimRow:
    """One claim under one protocol, in text."""

    id: str
    title: str
    protocol: str
    grade: str
    """Where the claim is known from."""
    source: str
    """Its place there."""
    reported: str
    accepted: str
    """Values of ours that count as reproduced."""
    ours: str
    count: str
    """What ours is over: settings, and problems or runs."""
    word: Verdict
    where: str
    """In how many of the paper's settings; empty where in all, or where nothing is judged."""
    verdict: str
    """The word and where."""
    rests: str
    """What is to be known of the trainings, rows or pairs of runs that it rests on."""
    decides: str
    """What would decide, what is missing, or why it is not judged; `decided` where the word stands."""
    stages: tuple[str, ...]

    @property
    def detail(self) -> str:
        """Both in one line, for where there is one place for them."""
        decides = "" if self.decides in DECIDES.values() else self.decides
        return "; ".join(part for part in (decides, self.rests) if part)


def claim_rows(judged: Sequence[ClaimVerdict]) -> list[ClaimRow]:
    """The rows in the order of the claims; those under several protocols stand together."""
    return [_row(one) for one in judged]


def claims_lead(judged: Sequence[ClaimVerdict]) -> str:
    """What the verdicts of this page rest on, in one paragraph."""
    lead = (
        "Reproduced: the whole 95 % interval lies inside what is accepted. Not reproduced: it lies outside, also when "
        "the number of claims is allowed for. Undecided: it lies across an edge, or rests on too little."
    )
    lead += once_trained(judged)
    if judged and all(one.word in ("shown, not judged", "not run") for one in judged):
        lead += " Nothing here was run in a setting of the paper: values are shown, not judged."
    return lead


def once_trained(judged: Sequence[ClaimVerdict]) -> str:
    """What an interval leaves out where every arm was trained once; nothing where one was trained again."""
    measured = [one.measured for one in judged if one.measured and one.measured.trainings]
    if not measured or any(max(one.trainings, one.most_trainings) > 1 for one in measured):
        return ""
    return (
        " Each arm was trained once: an interval over settings has in it how far two trainings differ, one over "
        "problems has not."
    )


def claims_summary(rows: Sequence[ClaimRow]) -> list[tuple[Verdict, int]]:
    """How many claims have which word, in the order of `STYLES`; words that none has are left out."""
    counts = Counter(row.word for row in rows)
    return [(word, counts[word]) for word in STYLES if counts[word]]


def headline(judged: Sequence[ClaimVerdict]) -> list[tuple[Verdict, str]]:
    """The primary claim under each protocol that has it: its word and a sentence, for the top of the page."""
    primary = [one for one in judged if one.claim.primary and one.measured]
    several = len({one.protocol for one in judged}) > 1
    return [
        (row.word, f"{row.title}{f' ({row.protocol})' if several else ''}. {_headline(row, bool(one.would_decide))}")
        for one, row in zip(primary, map(_row, primary), strict=True)
    ]


def _headline(row: ClaimRow, curable: bool) -> str:
    """What was found, what is accepted, on what it rests and, where it is not decided, what would decide or why not."""
    found = f"Ours: {row.ours} (accepted: {row.accepted}), over {row.count}."
    if row.decides == DECIDED:
        return found
    return f"{found} {'What would decide' if curable else 'Not decided'}: {row.decides.partition(PLANNED)[0]}."


def _row(judged: ClaimVerdict) -> ClaimRow:
    claim, measured = judged.claim, judged.measured
    rests = [_rests_on(judged), _look(judged), measured.note if measured else ""]
    return ClaimRow(
        id=claim.id,
        title=claim.title.replace(" %", f"{text.SPACE}%"),
        protocol=judged.protocol,
        grade=GRADE_WORDS[claim.grade],
        source=claim.source,
        reported="; ".join(one for one in (_reported(claim), claim.also_reported) if one),
        accepted=band_text(claim),
        ours=_ours(judged),
        count=_count(judged),
        word=judged.word,
        where=judged.where,
        verdict=f"{judged.where}: {judged.word}" if judged.where else judged.word,
        rests="; ".join(part for part in rests if part),
        decides=_decides(judged),
        stages=measured.stages if measured else (),
    )


def _decides(judged: ClaimVerdict) -> str:
    """The advice; where it has no number of seeds, of a retention the command that computes one."""
    if judged.word == "undecided" and judged.claim.measure == "retention" and not judged.would_decide:
        return f"{judged.advice}{PLANNED} {judged.claim.id} computes it for assumed differences"
    return judged.advice or DECIDES.get(judged.word, "")


def _reported(claim: Claim) -> str:
    return claim.reported_words or value_text(claim, claim.reported)


def value_text(claim: Claim, value: float | None) -> str:
    """A value in the claim's unit: `91.0 %`, `+12.5 points`, `0.50 x`."""
    if value is None:
        return text.NOTHING
    if claim.unit == "points":
        return f"{100 * value:+.1f}{text.SPACE}points"
    if claim.unit == "count":
        return f"{value:.1f}"
    return text.times(value) if claim.unit == "times" else text.percent(value)


def band_text(claim: Claim) -> str:
    """What counts as reproduced: `86.0 % to 96.0 %`, `more than 0 points`, `at most 5 points`."""
    if not claim.is_judged:
        return text.NOTHING
    low, high = claim.band
    if math.isinf(high):
        return f"{'more than' if low == 0.0 else 'at least'} {_edge_text(claim, low)}"
    if low == 0.0:
        return f"at most {_edge_text(claim, high)}"
    return f"{value_text(claim, low)} to {value_text(claim, high)}"


def _edge_text(claim: Claim, edge: float) -> str:
    if claim.unit == "points":
        return f"{100 * edge:g}{text.SPACE}points"
    return f"{100 * edge:g}{text.SPACE}%" if claim.unit == "share" else text.times(edge)


def _rests_on(judged: ClaimVerdict) -> str:
    """Whose interval it is."""
    measured = judged.measured
    if measured is None or measured.estimate.value is None:
        return ""
    if measured.trainings == 1 and measured.why_open:
        return "the interval is over problems, for these trainings alone" if measured.estimate.low is not None else ""
    return "; ".join(one for one in (_once(judged.claim, measured), _on_other_problems(judged.claim, measured)) if one)


def _once(claim: Claim, measured: Measured) -> str:
    """Where every arm was trained once: what stands in for further trainings."""
    if OVER_SETTINGS in measured.estimate.method:
        return "the interval is over settings"
    if DECLARED in measured.estimate.method:
        declared = f"{claim.training_sd_points:g} points between two trainings"
        return f"{declared} are declared, not measured ({claim.training_sd_source})"
    return ""


def _on_other_problems(claim: Claim, measured: Measured) -> str:
    if not measured.other_problems or measured.other_problems.low is None:
        return ""
    ends = [value_text(claim, end) for end in (measured.other_problems.low, measured.other_problems.high)]
    return f"on other problems like these [{ends[0]}, {ends[1]}]"


def _look(judged: ClaimVerdict) -> str:
    """How often the same trainings were judged before, and the interval that this asks for."""
    measured = judged.measured
    if measured is None or measured.look == 1:
        return ""
    before = "once" if measured.look == 2 else f"{measured.look - 1} times"
    level = text.percent(level_of(measured.look), 2)
    return f"judged {before} before on less or other data, so this is a {level} interval"


def _ours(judged: ClaimVerdict) -> str:
    if judged.measured is None:
        return text.NOTHING
    estimate = judged.measured.estimate
    value, *ends = [value_text(judged.claim, one) for one in (estimate.value, estimate.low, estimate.high)]
    exact = estimate.method.startswith(COUNTED) and {value, *ends} == {value}
    known = estimate.low is not None or estimate.high is not None
    return f"{value} [{ends[0]}, {ends[1]}]" if known and not exact else value


def _count(judged: ClaimVerdict) -> str:
    """`1 setting (not the paper's), 4 trainings (2 of each arm), 60 problems x 4 samples`."""
    measured, claim = judged.measured, judged.claim
    if measured is None:
        return text.NOTHING
    if measured.counted:
        return measured.counted
    outside = judged.word == "shown, not judged" and claim.is_judged
    of = f" of {claim.settings}" if claim.settings and not outside else ""
    settings = f"{measured.settings}{of} setting{'' if measured.settings == 1 and not of else 's'}"
    parts = [settings + (" (not the paper’s)" if outside else "")]
    number = measured.estimate.n
    if not measured.trainings:
        return f"{parts[0]}, {_plural(number, 'pair')} of runs"
    fewest, most = measured.trainings, max(measured.trainings, measured.most_trainings)
    each = f"{fewest} of each arm" if fewest == most else f"{fewest} to {most} of an arm"
    parts.append(f"{_plural(len(measured.rests_on), 'training')} ({each})")
    return ", ".join([*parts, f"{_plural(number, 'problem')} × {_plural(measured.samples, 'sample')}"])


def _plural(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def print_claims(rows: Sequence[ClaimRow], console: Console) -> None:
    """The claims that were measured as a table, what decides under each; the others with what they need."""
    table = Table(title="Claims of the paper", title_justify="left", title_style="bold", box=None, pad_edge=False)
    several = len({row.protocol for row in rows}) > 1
    for name in ("Verdict", "Claim", "Reported", "Ours", "Measured on"):
        table.add_column(name, header_style="dim", vertical="top", overflow="fold")
    for row in (row for row in rows if row.word != "not run"):
        title = Text(f"{row.title} ({row.protocol})" if several else row.title)
        if row.detail:
            title.append(f"\n{row.detail}", style="dim")
        hand = f"{row.reported}\n{row.grade}" if row.grade == GRADE_WORDS["B"] else row.reported
        verdict = Text(row.verdict, style=STYLES[row.word])
        table.add_row(verdict, title, Text(hand), Text(row.ours), Text(row.count))
    console.print(table)
    left = [row for row in rows if row.word == "not run"]
    for row in left:
        suffix = f" ({row.protocol})" if several else ""
        console.print(Text(f"not run: {row.title}{suffix}: {row.decides}", style="dim"))
