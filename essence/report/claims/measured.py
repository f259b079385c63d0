"""What a claim is measured to be, or the sentence that says which cells are missing."""

from dataclasses import dataclass

from essence.evaluation.statistics import Estimate
from essence.report.claims.advice import VarianceParts
from essence.report.claims.definition import Claim


@dataclass(frozen=True)
class Measured:
    """Ours, beside a claim."""

    estimate: Estimate
    settings: int
    """Pairs of models x data sets x benchmarks that it is over."""
    stages: tuple[str, ...]
    """Ids of the stages whose manifests it comes from."""
    spread: VarianceParts | None = None
    """Where the variance comes from; None for what is measured on runs as wholes."""
    note: str = ""


Outcome = Measured | str
"""What was measured, or why nothing was."""


def wanted(claim: Claim, cells: str) -> str:
    """The sentence for cells that a claim needs and that are not there."""
    named = [" or ".join(names) for names in (claim.teachers, claim.students, claim.benchmarks) if names]
    return f"needs {cells}" + (f", of {', '.join(named)}" if named else "")
