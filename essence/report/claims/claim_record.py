"""A row of the claims table as plain numbers: part of report.json, and what `invoke claims --json` prints."""

import math

from essence.evaluation.statistics import Estimate
from essence.report.claims.interim_looks import level_of
from essence.report.claims.verdict import ClaimVerdict
from essence.settings import Record


class ClaimRecord(Record):
    """One claim under one protocol; of what was not measured, 0 or null."""

    id: str
    title: str
    grade: str
    source: str
    protocol: str
    measure: str
    unit: str
    reported: float | None
    accepted: list[float | None] | None
    """Low, high: null for an end that is open, and for a claim that is not judged."""
    word: str
    where: str
    ours: Estimate | None
    on_other_problems: Estimate | None
    trainings: int
    samples: int
    look: int
    confidence: float
    """Level of the interval at this look."""
    outside_p: float | None
    primary: bool
    settings: int
    settings_of_the_paper: int | None
    note: str
    advice: str
    would_decide: dict[str, int]
    stages: list[str]


def claim_record(judged: ClaimVerdict) -> ClaimRecord:
    """The record of a verdict."""
    claim, measured = judged.claim, judged.measured
    band = [edge if math.isfinite(edge) else None for edge in claim.band] if claim.is_judged else None
    return ClaimRecord(
        id=claim.id,
        title=claim.title,
        grade=claim.grade,
        source=claim.source,
        protocol=judged.protocol,
        measure=claim.measure,
        unit=claim.unit,
        reported=claim.reported,
        accepted=band,
        word=judged.word,
        where=judged.where,
        ours=measured.estimate if measured else None,
        on_other_problems=measured.other_problems if measured else None,
        trainings=measured.trainings if measured else 0,
        samples=measured.samples if measured else 0,
        look=measured.look if measured else 1,
        confidence=level_of(measured.look if measured else 1),
        outside_p=measured.outside if measured else None,
        primary=claim.primary,
        settings=measured.settings if measured else 0,
        settings_of_the_paper=claim.settings,
        note=measured.note if measured else "",
        advice=judged.advice,
        would_decide=judged.would_decide,
        stages=list(measured.stages) if measured else [],
    )
