"""Results that one process of a test run makes for all, whichever needs them first."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class Shared:
    """A folder that all processes of a test run share."""

    folder: Path

    def once(self, name: str, make: Callable[[Path], Any]) -> Any:
        """The result of `make`, which the first caller runs in a separate folder while the others wait.

        It is passed on as JSON. So is a failure: something that takes minutes to fail is tried once.
        """
        told = self.folder / f"{name}.json"
        with FileLock(self.folder / f"{name}.lock"):
            if not told.is_file():
                told.write_text(json.dumps({"failed": "it was tried, and an earlier test says how it failed"}))
                place = self.folder / name
                place.mkdir()
                told.write_text(json.dumps({"made": make(place)}), encoding="utf-8")
        outcome = json.loads(told.read_text(encoding="utf-8"))
        if "failed" in outcome:
            pytest.fail(f"{name}: {outcome['failed']}")
        return outcome["made"]
