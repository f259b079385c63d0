"""From a claim and what was measured to one word, and to what would decide where the interval is too wide."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from essence.claims.definition import Claim, load_claims
from essence.claims.evidence import Evidence, gather
from essence.claims.measures import MEASURES, Measured
from essence.report.records import Results

Word = Literal["reproduced", "not reproduced", "undecided", "not run"]
MOST_WORTH_SAYING = 1000.0
"""Beyond this many times as many, no number is given."""


@dataclass(frozen=True)
class Judged:
    """One claim under one protocol."""

    claim: Claim
    protocol: str
    word: Word
    measured: Measured | None
    advice: str
    """What would decide, or which cells are missing; empty where the word stands."""


def judge(results: Iterable[Results]) -> list[Judged]:
    """Every claim under every protocol that anything was run under, in the order of the file."""
    read = list(results)
    evidence = gather(read)
    refused = len({stage.id for one in read for stage in one.refused})
    return [
        _judge(claim, name, evidence.under(name), refused) for claim in load_claims() for name in evidence.protocols
    ]


def _judge(claim: Claim, protocol: str, evidence: Evidence, refused: int) -> Judged:
    outcome = MEASURES[claim.measure](claim, evidence)
    if isinstance(outcome, str):
        note = f" ({refused} records are there but are not counted)" if refused and claim.measure != "none" else ""
        return Judged(claim, protocol, "not run", None, outcome + note)
    word = decide(outcome, claim.band)
    return Judged(claim, protocol, word, outcome, _advice(outcome, claim.band) if word == "undecided" else "")


def decide(measured: Measured, band: tuple[float, float]) -> Word:
    """The word for an interval and the values that count as reproduced."""
    low, high = measured.estimate.low, measured.estimate.high
    if measured.estimate.value is None or (low is None and high is None):
        return "undecided"
    if low is not None and high is not None and band[0] <= low and high <= band[1]:
        return "reproduced"
    if (high is not None and high < band[0]) or (low is not None and low > band[1]):
        return "not reproduced"
    return "undecided"


def _advice(measured: Measured, band: tuple[float, float]) -> str:
    """How many times as many samples, or seeds and problems, would bring the interval to one side."""
    estimate = measured.estimate
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate.method
    shrink = _wanted_shrink(estimate.value, estimate.low, estimate.high, band)
    if shrink <= 1.0 / MOST_WORTH_SAYING:
        return "too near the edge of what is accepted for any number of runs to decide"
    more = f"about {_times(1.0 / shrink)} as many problems or seeds would decide"
    if estimate.standard_error is None or not measured.sampling_variance > 0.0:
        return more
    total = estimate.standard_error**2
    between = max(0.0, total - measured.sampling_variance)
    left_for_samples = shrink * total - between
    if left_for_samples <= 0.0 or measured.sampling_variance / left_for_samples > MOST_WORTH_SAYING:
        return f"{more}; more samples a problem would not"
    factor = max(1.0, measured.sampling_variance / left_for_samples)
    return f"about {_times(factor)} as many samples a problem would decide"


def _wanted_shrink(value: float, low: float, high: float, band: tuple[float, float]) -> float:
    """By what the variance is to be multiplied so that no edge of the band lies inside the interval any more."""
    shrinks = [1.0]
    for edge in band:
        if math.isfinite(edge) and low < edge < high:
            reach = value - low if edge < value else high - value
            shrinks.append(((value - edge) / reach) ** 2 if reach > 0.0 else 0.0)
    return min(shrinks)


def _times(factor: float) -> str:
    return f"{factor:.1f} times" if factor < 10.0 else f"{factor:.0f} times"


def judged_record(judged: Judged) -> dict[str, Any]:
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
        "stages": [] if measured is None else list(measured.stages),
    }
