"""What the paper reports, for the marks in figures and the sentences that compare (arXiv 2512.21002, abstract)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """One published value at one LSP."""

    lsp: float
    value: float
    words: str
    """As the paper puts it."""


RETENTION = Reported(lsp=0.5, value=0.91, words="about 91\u00a0%")
"""Mean share of full-sequence accuracy kept when training on the first half (v2, v3 and the ACL version; v1: 94 %)."""
COST = Reported(lsp=0.5, value=0.5, words="about half")
"""Training time, memory and FLOPs against the full sequence, each."""
SETTING = "Qwen3 students of 0.6B to 8B on AIME 2024 and 2025"
CITATION = "arXiv 2512.21002"
