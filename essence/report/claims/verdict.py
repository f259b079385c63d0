"""From a claim and what was measured to one word, and to what would decide where the interval is too wide."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from essence.report.claims.advice import advise
from essence.report.claims.definition import Claim, load_claims
from essence.report.claims.evidence import Evidence
from essence.report.claims.gather import gather
from essence.report.claims.measured import Measured
from essence.report.claims.measures import MEASURES
from essence.report.results.records import Results

Verdict = Literal["reproduced", "not reproduced", "undecided", "not comparable", "not run"]
FAILURES = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What a measure can meet in results that nobody foresaw: its claim is undecided then, and says so."""


@dataclass(frozen=True)
class ClaimVerdict:
    """One claim under one protocol."""

    claim: Claim
    protocol: str
    word: Verdict
    measured: Measured | None
    advice: str
    """What would decide, or which cells are missing; empty where the word stands."""
    would_decide: dict[str, int] = field(default_factory=dict)
    """The same as numbers: `samples` a problem, `seeds`, `problems` or `runs`, each alone."""


def judge(results: Iterable[Results]) -> list[ClaimVerdict]:
    """Every claim under every protocol that anything was run under, in the order of the file."""
    read = list(results)
    evidence = gather(read)
    refused = len({stage.id for one in read for stage in one.refused})
    protocols = dict.fromkeys(group.key.protocol for one in read for group in one.groups)
    return [_judge(claim, name, evidence.under(name), refused) for claim in load_claims() for name in protocols]


def _judge(claim: Claim, protocol: str, evidence: Evidence, refused: int) -> ClaimVerdict:
    """One claim in a guard of its own: where it cannot be judged, the others and the page still stand."""
    try:
        return _judged(claim, protocol, evidence, refused)
    except FAILURES as error:
        return ClaimVerdict(claim, protocol, "undecided", None, f"could not be judged: {error!r}; please report this")


def _judged(claim: Claim, protocol: str, evidence: Evidence, refused: int) -> ClaimVerdict:
    outcome = MEASURES[claim.measure](claim, evidence)
    if isinstance(outcome, str):
        note = f" ({refused} records are there but are not counted)" if refused and claim.measure != "none" else ""
        return ClaimVerdict(claim, protocol, "not run", None, outcome + note)
    word = decide(outcome, claim.band)
    if word != "undecided":
        return ClaimVerdict(claim, protocol, word, outcome, "")
    advice = advise(outcome.estimate, claim.band, outcome.spread)
    return ClaimVerdict(claim, protocol, word, outcome, advice.sentence, advice.wanted)


def decide(measured: Measured, band: tuple[float, float]) -> Verdict:
    """The word for an interval and the values that count as reproduced."""
    low, high = measured.estimate.low, measured.estimate.high
    if measured.estimate.value is None or (low is None and high is None):
        return "undecided"
    if low is not None and high is not None and band[0] <= low and high <= band[1]:
        return "reproduced"
    if (high is not None and high < band[0]) or (low is not None and low > band[1]):
        return "not reproduced"
    return "undecided"


def judged_record(judged: ClaimVerdict) -> dict[str, Any]:
    """A row of the claims table as plain numbers, for report.json."""
    claim, measured = judged.claim, judged.measured
    band = [edge if math.isfinite(edge) else None for edge in claim.band] if claim.measure != "none" else None
    return {
        "id": claim.id,
        "title": claim.title,
        "grade": claim.grade,
        "source": claim.source,
        "protocol": judged.protocol,
        "measure": claim.measure,
        "unit": claim.unit,
        "reported": claim.reported,
        "accepted": band,
        "word": judged.word,
        "ours": None if measured is None else vars(measured.estimate),
        "settings": 0 if measured is None else measured.settings,
        "settings_of_the_paper": claim.settings,
        "note": "" if measured is None else measured.note,
        "advice": judged.advice,
        "would_decide": judged.would_decide,
        "stages": [] if measured is None else list(measured.stages),
    }
