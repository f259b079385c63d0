"""Proxies: what was counted in rows by a stated rule, where the paper asked a judge. Shown, never judged."""

import math

from essence import text
from essence.evaluation.statistics import Estimate, student_t
from essence.record.trace_record import TraceRecord
from essence.report.claims.definition import Claim
from essence.report.claims.evidence import Evidence
from essence.report.claims.outcome import Measured, Outcome

CONFIDENCE = 0.95
NEEDS_COUNT = "needs rows counted: invoke traces --experiment NAME, once the data set is tokenized"


def counted_proxy(claim: Claim, evidence: Evidence) -> Outcome:
    """Mean over data sets of the mean over rows; of a data set that was counted twice, the count of more rows."""
    assert claim.proxy
    most: dict[str, TraceRecord] = {}
    for record in sorted(evidence.traces, key=lambda record: record.rows_counted):
        if claim.speaks_of(record.dataset, "", "", "") and getattr(record, claim.proxy).value is not None:
            most[record.dataset] = record
    if not most:
        return NEEDS_COUNT
    parts = {name: getattr(record, claim.proxy) for name, record in sorted(most.items())}
    rows, count = sum(part.rows for part in parts.values()), len(parts)
    value = sum(part.value for part in parts.values()) / count
    errors = [part.standard_error for part in parts.values()]
    error = None if None in errors else math.sqrt(sum(one**2 for one in errors)) / count
    margin = None if error is None else student_t(CONFIDENCE, max(1, rows - count)) * error
    low, high = (None, None) if margin is None else (value - margin, value + margin)
    estimate = Estimate(value, error, low, high, rows, "Student t over rows")
    shown = ", ".join(f"{name} {_written(claim, part.value)}" for name, part in parts.items())
    return Measured(estimate, count, (), shown, counted=f"{rows:,} rows of {count} data set{'s' * (count != 1)}")


def _written(claim: Claim, value: float) -> str:
    return text.percent(value) if claim.unit == "share" else f"{value:.1f}"
