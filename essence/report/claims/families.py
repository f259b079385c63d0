"""Several contrasts that a claim joins into one: all of them, the largest of them.

An end that shows the claim holds on every contrast at once (intersection-union); an end that shows it fails allows for
their number (Bonferroni), since one of many lies far out by chance.
"""

import math
from collections.abc import Sequence

from essence.evaluation.statistics import Estimate
from essence.report.claims.contrast import Contrast

Joined = tuple[Estimate, float]
"""With the two-sided p of the nearest value that counts as reproduced."""


def least(parts: Sequence[Contrast], confidence: float, edge: float) -> Joined:
    """The smallest of some differences: every one of them is to lie above `edge`."""
    value = min(part.value or 0.0 for part in parts)
    method = f"all of {len(parts)} contrasts (intersection-union); against it Bonferroni"
    strict = _allowing_for(len(parts), confidence)
    low = _least([part.estimate(confidence).low for part in parts])
    high = _least([part.estimate(strict).high for part in parts])
    p = min(1.0, len(parts) * min(part.outside((edge, math.inf)) for part in parts))
    return Estimate(value, None, low, high, parts[0].problems, method), p


def largest_distance(parts: Sequence[Contrast], confidence: float, edge: float) -> Joined:
    """The largest distance from 0 of some differences: none of them is to lie beyond `edge`."""
    value = max(abs(part.value or 0.0) for part in parts)
    method = f"all of {len(parts)} contrasts (intersection-union); against it Bonferroni"
    strict = _allowing_for(len(parts), confidence)
    wide, narrow = ([part.estimate(level) for part in parts] for level in (confidence, strict))
    ends = [(one.low, one.high) for one in wide if one.low is not None and one.high is not None]
    high = max(max(abs(a), abs(b)) for a, b in ends) if len(ends) == len(parts) else None
    lows = [max(0.0, one.low, -one.high) for one in narrow if one.low is not None and one.high is not None]
    p = min(1.0, len(parts) * min(part.outside((-edge, edge)) for part in parts))
    return Estimate(value, None, max(lows, default=None), high, parts[0].problems, method), p


def largest(parts: Sequence[Contrast], confidence: float, band: tuple[float, float]) -> Joined:
    """The largest of some values, of which chance alone drives one upwards."""
    value = max(part.value or 0.0 for part in parts)
    method = f"largest of {len(parts)}; its lower end allows for their number (Bonferroni)"
    strict = _allowing_for(len(parts), confidence)
    lows = [end for part in parts if (end := part.estimate(strict).low) is not None]
    highs = [end for part in parts if (end := part.estimate(confidence).high) is not None]
    below = max(part.outside((band[0], math.inf)) for part in parts)
    above = min(1.0, len(parts) * min(part.outside((-math.inf, band[1])) for part in parts))
    low, high = (max(lows), max(highs)) if len(highs) == len(parts) else (None, None)
    return Estimate(value, None, low, high, parts[0].problems, method), min(below, above)


def _allowing_for(count: int, confidence: float) -> float:
    return 1.0 - (1.0 - confidence) / count


def _least(ends: Sequence[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return min(known) if len(known) == len(ends) else None
