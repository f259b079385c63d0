"""Numbers as people read them. `NOTHING` marks a value that the manifest lacks."""

import re
from typing import Protocol

NOTHING = "–"
SPACE = "\u00a0"
"""Between a number and its unit: a line never ends there."""
SECONDS_IN_MINUTE, SECONDS_IN_HOUR = 60.0, 3600.0
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Interval(Protocol):
    """A number with the ends of its interval, shares of 1; None = an end that is not known."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def percent(share: float | None, digits: int = 1) -> str:
    """`43.8 %`."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def interval(estimate: Interval | None, digits: int = 1) -> str:
    """`[38.0, 49.6]`, in percent; `?` for an end that is not known, nothing where none is."""
    if estimate is None or (estimate.low is None and estimate.high is None):
        return ""
    low, high = ("?" if end is None else f"{100 * end:.{digits}f}" for end in (estimate.low, estimate.high))
    return f"[{low},{SPACE}{high}]"


def with_interval(estimate: Interval | None, digits: int = 1) -> str:
    """`43.8 % [38.0, 49.6]`."""
    return NOTHING if estimate is None else f"{percent(estimate.value, digits)} {interval(estimate, digits)}".strip()


def times(ratio: float | None) -> str:
    """`0.52 ×`."""
    return NOTHING if ratio is None else f"{ratio:.2f}{SPACE}×"


def proportion(lsp: float) -> str:
    """`0.50`, or as many digits as the proportion has."""
    return f"{lsp:.2f}" if round(lsp, 2) == lsp else repr(lsp)


def duration(seconds: float | None) -> str:
    """`41.2 s`, `3.5 min`, `12.0 h`."""
    if seconds is None:
        return NOTHING
    if seconds < 2 * SECONDS_IN_MINUTE:
        return f"{seconds:.1f}{SPACE}s"
    if seconds < 2 * SECONDS_IN_HOUR:
        return f"{seconds / SECONDS_IN_MINUTE:.1f}{SPACE}min"
    return f"{seconds / SECONDS_IN_HOUR:.1f}{SPACE}h"


def memory(gib: float | None) -> str:
    """`512 MiB`, `38.2 GiB`."""
    if gib is None:
        return NOTHING
    return f"{gib * 1024:.0f}{SPACE}MiB" if gib < 1 else f"{gib:.1f}{SPACE}GiB"


def magnitude(value: float | None, unit: str = "") -> str:
    """`1.25 M`, `3.41 PFLOP`."""
    if value is None:
        return NOTHING
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{SPACE}{prefix}{unit}"
    return f"{value:.3g}{SPACE}{unit}".strip()


def whole(value: float | None) -> str:
    """`1,024`."""
    return NOTHING if value is None else f"{value:,.0f}"


def slug(text: str) -> str:
    """A text as part of a file name or an anchor: letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"
