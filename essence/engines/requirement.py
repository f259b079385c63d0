"""One thing that a run needs, with what is here and what cures its absence."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from essence.errors import KitError


@dataclass(frozen=True)
class Requirement:
    """One thing that a run needs."""

    name: str
    found: str
    """What is here, or a whole sentence where nothing is wanted in so many words."""
    wanted: str = ""
    cure: str = ""
    """What to do; empty = nothing is missing."""

    @property
    def met(self) -> bool:
        return not self.cure

    def problem(self) -> str:
        """What is wrong, without its cure."""
        return f"needs {self.wanted} (here: {self.found})" if self.wanted else self.found

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.met}


def asked(name: str, ask: Callable[[], object], found: str = "is there") -> Requirement:
    """A check by a call that raises a KitError where something is missing."""
    try:
        ask()
    except KitError as error:
        return from_sentence(name, str(error))
    return Requirement(name, found)


def from_sentence(name: str, sentence: str) -> Requirement:
    """A message of the kit says what is wrong and, after the last `; `, what cures it."""
    problem, found, cure = sentence.rpartition("; ")
    return Requirement(name, problem if found else cure, cure=cure if found else "see docs/troubleshooting.md")
