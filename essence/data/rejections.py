"""Rejected rows, by reason."""

import json
from dataclasses import dataclass, field
from typing import Any

from essence.data.exchange import Reason

EXAMPLES_KEPT = 5
EXAMPLE_CHARACTERS = 200


@dataclass
class Rejections:
    """Rejected rows, counted by reason, with a few of each to look at."""

    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, reason: Reason, position: int, row: object) -> None:
        entry = self.reasons.setdefault(reason.value, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES_KEPT:
            text = json.dumps(row, ensure_ascii=False, default=str)
            entry["examples"].append({"position": position, "row": text[:EXAMPLE_CHARACTERS]})

    @property
    def count(self) -> int:
        return sum(entry["count"] for entry in self.reasons.values())

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """`{reason: {"count": n, "examples": [{"position", "row"}]}}`, sorted by reason."""
        return dict(sorted(self.reasons.items()))
