"""What a claim is measured to be, or the sentence that says which cells are missing."""

from dataclasses import dataclass

from essence.evaluation.statistics import Estimate
from essence.report.claims.definition import Claim


@dataclass(frozen=True)
class Replicates:
    """What an interval rests on, as far as more of the same would narrow it."""

    standard_deviation: float
    """Of one replicate."""
    count: int
    degrees: int
    unit: str
    """`seeds` of each arm, or `pairs of runs`."""


@dataclass(frozen=True)
class Measured:
    """Ours, beside a claim."""

    estimate: Estimate
    settings: int
    """Pairs of models x data sets x benchmarks that it is over."""
    stages: tuple[str, ...]
    """Ids of the stages whose manifests it comes from."""
    note: str = ""
    trainings: int = 0
    """Of an arm, the fewest; 0 for what is measured on pairs of runs."""
    samples: int = 0
    """Of a problem, the fewest."""
    why_open: str = ""
    """Why its interval, or the lack of one, decides nothing."""
    incomparable: str = ""
    """Why it is no measurement of what the claim speaks of."""
    outside: float = 1.0
    """Two-sided p of the nearest value that counts as reproduced."""
    other_problems: Estimate | None = None
    """The same on other problems like these: wider, and not what the verdict goes by."""
    look: int = 1
    """How often these trainings were judged, this time included: the interval is as wide as that asks for."""
    rests_on: tuple[str, ...] = ()
    """Ids of the trainings."""
    counted: str = ""
    """What it was counted on, where that is no training: `1,000 rows of 1 data set`."""
    most_trainings: int = 0
    """Of an arm."""
    replicates: Replicates | None = None
    """None where it is not known what more of the same would do."""


Outcome = Measured | str
"""What was measured, or why nothing was."""


def wanted(claim: Claim, cells: str) -> str:
    """The sentence for cells that a claim needs and that are not there."""
    named = [" or ".join(names) for names in (claim.teachers, claim.students) if names]
    return f"needs {cells}" + (f", of {', '.join(named)}" if named else "")
