"""Rejected and remarkable rows, counted by reason, with a few of each to look at; and how that is shown to people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from essence.data.exchange import NOT_WANTED, Fault

EXAMPLES_KEPT = 5
SEEN_KEPT, SEEN_SHOWN = 50, 3
EXCERPT_CHARACTERS = 300
TEXT_END_CHARACTERS = 40
"""Of each long text in an excerpt, so much of its beginning and of its end: most faults are at one of them."""

Counts = Mapping[str, Mapping[str, Any]]
"""`{reason: {"count": n, "seen": {name: n}, "examples": [{"position", "row"}]}}`, as it lies in a manifest and in
rejections.json; `seen` (roles, fields, types) where the reason has any."""


@dataclass
class Rejections:
    """Rows by reason."""

    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)
    count: int = 0
    faulty: int = 0
    """Of these, rows that were rejected for what they are, not because they are not wanted."""

    def add(self, fault: Fault, position: int, row: object) -> None:
        entry = self.reasons.setdefault(fault.reason.value, {"count": 0, "examples": []})
        entry["count"] += 1
        self.count += 1
        self.faulty += fault.reason not in NOT_WANTED
        if fault.seen:
            seen: dict[str, int] = entry.setdefault("seen", {})
            name = excerpt(fault.seen)[1:-1] if not fault.seen.isprintable() else fault.seen
            if name in seen or len(seen) < SEEN_KEPT:
                seen[name] = seen.get(name, 0) + 1
        if len(entry["examples"]) < EXAMPLES_KEPT:
            entry["examples"].append({"position": position, "row": excerpt(row)})

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The counts with examples, the most frequent reason first."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1]["count"], item[0])))


def excerpt(row: object) -> str:
    """A row on one short line, with the middle of its long texts left out."""
    text = json.dumps(_shortened(row, depth=4), ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 1] + "…"


def _shortened(value: object, depth: int) -> object:
    if isinstance(value, str) and len(value) > 2 * TEXT_END_CHARACTERS:
        return f"{value[:TEXT_END_CHARACTERS]} … {value[-TEXT_END_CHARACTERS:]}"
    if isinstance(value, Mapping | list) and depth == 0:
        return "…"
    if isinstance(value, Mapping):
        # The system text is the same in every row and longer than all that matters.
        return {str(key): _shortened(inner, depth - 1) for key, inner in value.items() if key != "system"}
    if isinstance(value, list):
        return [_shortened(inner, depth - 1) for inner in value[:5]]
    return value


def rejection_table(results: Mapping[str, Any], examples: bool = False) -> list[str]:
    """Lines for people from the results of a tokenize stage: what was read, rejected and remarkable, and why."""
    read, kept = int(results["rows_read"]), int(results["rows_kept"])
    lines = [f"{read:,} rows read, {kept:,} kept, {read - kept:,} rejected ({share(read - kept, read)})"]
    lines += _reason_lines(results["rejections"], "rejected", examples)
    lines += _reason_lines(results.get("remarks", {}), "kept", examples)
    for benchmark, found in results.get("contamination", {}).items():
        if found["exact"] or found["overlap"]:
            what = f"{found['exact']:,} repeat one of its {found['problems']:,} problems, {found['overlap']:,} overlap"
            lines.append(f"  {benchmark}: {what}")
    return lines


def _reason_lines(counts: Counts, fate: str, examples: bool) -> list[str]:
    lines = []
    for reason, entry in counts.items():
        lines.append(f"  {entry['count']:>9,} {fate}: {reason}{seen_words(entry)}")
        if examples:
            lines += [f"            row {e['position']}: {e['row']}" for e in entry["examples"]]
    return lines


def seen_words(entry: Mapping[str, Any]) -> str:
    """` (seen: 'human', 'gpt')`: the names that were found most, or nothing."""
    names = sorted(entry.get("seen", {}).items(), key=lambda item: (-item[1], item[0]))
    more = "; ..." if len(names) > SEEN_SHOWN else ""
    return f" (seen: {'; '.join(name for name, _ in names[:SEEN_SHOWN])}{more})" if names else ""


def share(part: int, whole: int) -> str:
    """`3.1 %`; never 0 % of what is there."""
    if not part or not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"
