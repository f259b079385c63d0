"""One thing that a run needs, with what is here and what cures its absence."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

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

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "ok": self.met}


def asked(name: str, ask: Callable[[], object], found: str = "is there") -> Requirement:
    """A check by a call that raises a KitError where something is missing."""
    try:
        ask()
    except KitError as error:
        return unmet(name, error)
    return Requirement(name, found)


def unmet(name: str, error: KitError) -> Requirement:
    """What a failure says is missing."""
    return Requirement(name, error.problem, cure=error.cure or "see docs/troubleshooting.md")
