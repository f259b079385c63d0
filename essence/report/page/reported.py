"""What the paper reports, for the marks in figures and the sentences that compare: two rows of the claims file."""

from dataclasses import dataclass

from essence.report.claims.definition import load_claims

SETTING = "Qwen3 students of 0.6B to 8B on AIME 2024 and 2025"
OVER = "a mean over 30 settings (3 pairs, 5 data sets, 2 benchmarks), no interval published"
CITATION = "arXiv 2512.21002"


@dataclass(frozen=True)
class Reported:
    """One published value at one LSP."""

    lsp: float
    value: float
    words: str
    """As the paper puts it."""


def _reported(name: str) -> Reported:
    claim = next(claim for claim in load_claims() if claim.id == name)
    assert claim.lsp is not None and claim.reported is not None
    return Reported(claim.lsp, claim.reported, claim.reported_words)


RETENTION_CLAIM = "retention-half"
RETENTION = _reported(RETENTION_CLAIM)
"""Mean share of full-sequence accuracy kept when training on the first half."""
COST = _reported("flops-half")
"""Training cost against the full sequence; the paper says the same of time, memory and FLOPs."""
