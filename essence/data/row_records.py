"""What is recorded of the rows of a data set: written by the tokenize stage, read by the report.

`RowCounts` is rejections.json, `TokenCounts` is statistics.json; a manifest holds both. Optional is what records of
earlier code lack.
"""

from typing import Literal

from pydantic import Field

from essence.settings.base import Group, Number

How = Literal["exact", "overlap", "formulaic"]
"""How a question has a problem in common with a benchmark, the most telling first."""


class RowExample(Group):
    """One row that a reason concerns."""

    position: int
    """In its data set, from 0."""
    row: str
    """On one short line."""


class ReasonCount(Group):
    """Rows that one reason concerns."""

    count: int
    examples: list[RowExample] = Field(default_factory=list)
    seen: dict[str, int] = Field(default_factory=dict)
    """Role, field or type -> how many rows have it, where the reason has any."""


class SharedProblem(Group):
    """One row whose question is a problem of a benchmark."""

    position: int
    problem: int
    """Position in its benchmark, from 0."""
    how: How
    shared: str


class Contamination(Group):
    """Rows that share problems with one benchmark."""

    problems: int = 0
    """Of the benchmark."""
    exact: int = 0
    overlap: int = 0
    formulaic: int | None = None
    examples: list[SharedProblem] = Field(default_factory=list)


class RowCounts(Group):
    """rejections.json: what became of the rows."""

    rows_read: int
    rows_kept: int
    rejections: dict[str, ReasonCount] | None = None
    """By reason, the most frequent first."""
    remarks: dict[str, ReasonCount] = Field(default_factory=dict)
    """On rows that were kept."""
    contamination: dict[str, Contamination] = Field(default_factory=dict)
    """By benchmark."""


class LspTokens(Group):
    """What is kept of all rows at one proportion."""

    lsp: Number
    kept_tokens: int
    thought_end_kept: Number | None
    """Share of the rows with a thought; None where no row could have it, as below."""
    boxed_answer_kept: Number | None
    """Share of the rows that state a boxed answer."""


class RowTokens(Group):
    """Lengths of the rows, in tokens."""

    smallest: int | None
    largest: int | None
    quantiles: dict[str, int]
    """`0.95` -> the smallest length that this share of the rows do not exceed."""
    bin_tokens: int
    histogram: list[int]
    """Rows in each bin of `bin_tokens` tokens, from 0."""


class TokenCounts(Group):
    """statistics.json: what the rows are made of, before any length filter."""

    schema_version: int = 1
    rows: int
    tokens: int
    rows_with_thought: int
    rows_with_boxed_answer: int
    rows_with_final_answer: int | None = None
    tokens_to_first_answer: int | None = None
    """Of all rows up to where the answer first stands in the thought; of whole rows where it was not found."""
    section_tokens: dict[str, int]
    """prompt, cot, answer, unknown."""
    by_lsp: list[LspTokens]
    row_tokens: RowTokens
