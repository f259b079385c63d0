"""Statistics of a tokenised data set, counted while its rows are read: only one counter per row length is kept.

They are of all rows in `tokens.arrow`, before any length filter.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from essence.data.row_records import LspTokens, RowTokens, TokenCounts
from essence.data.selection import SectionBounds, kept_lengths

LSPS = tuple(k / 10 for k in range(1, 11))
"""Proportions that are counted."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MOST_BINS = 32
Counts = NDArray[np.int64]


def _zeros() -> Counts:
    return np.zeros(len(LSPS), np.int64)


@dataclass
class TokenStatistics:
    """Adds up what is known of each row."""

    rows: int = 0
    rows_with_thought: int = 0
    """Rows with both markers in order; only their sections are known."""
    rows_with_box: int = 0
    rows_with_answer: int = 0
    """Rows whose final answer was found."""
    answer_tokens: int = 0
    """Tokens up to where the final answer is first stated as a result, of whole rows where it is not."""
    section_tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "cot": 0, "answer": 0, "unknown": 0})
    _kept: Counts = field(default_factory=_zeros)
    _thought_ends: Counts = field(default_factory=_zeros)
    _boxes: Counts = field(default_factory=_zeros)
    _lengths: Counts = field(default_factory=lambda: np.zeros(1, np.int64))
    """Rows of each length."""

    def add(self, bounds: SectionBounds, boxed: NDArray[np.int64]) -> None:
        """Some rows; `boxed` is the index of the token that closes the first box with the final answer, or -1."""
        self.rows += bounds.lengths.size
        known = (bounds.think_start >= 0) & (bounds.think_end >= bounds.think_start)
        self.rows_with_thought += int(known.sum())
        self.rows_with_box += int((boxed >= 0).sum())
        stops = bounds.answer_stops()
        self.rows_with_answer += int((bounds.found_answers() >= 0).sum())
        self.answer_tokens += int(stops.sum())
        self._add_sections(bounds, known)
        for place, lsp in enumerate(LSPS):
            kept = kept_lengths(bounds.lengths, lsp)
            self._kept[place] += kept.sum()
            self._thought_ends[place] += (known & (bounds.think_end < kept)).sum()
            self._boxes[place] += ((boxed >= 0) & (boxed < kept)).sum()
        found = np.bincount(bounds.lengths, minlength=self._lengths.size)
        found[: self._lengths.size] += self._lengths
        self._lengths = found

    def _add_sections(self, bounds: SectionBounds, known: NDArray[np.bool_]) -> None:
        prompt, end = bounds.think_start[known].sum(), (bounds.think_end[known] + 1).sum()
        whole = bounds.lengths[known].sum()
        tokens = (prompt, end - prompt, whole - end, bounds.lengths.sum() - whole)
        for name, number in zip(self.section_tokens, tokens, strict=True):
            self.section_tokens[name] += int(number)

    def record(self) -> TokenCounts:
        """`statistics.json`."""
        return TokenCounts(
            schema_version=1,
            rows=self.rows,
            tokens=sum(self.section_tokens.values()),
            rows_with_thought=self.rows_with_thought,
            rows_with_boxed_answer=self.rows_with_box,
            rows_with_final_answer=self.rows_with_answer,
            tokens_to_first_answer=self.answer_tokens,
            section_tokens=dict(self.section_tokens),
            by_lsp=[self._at(place, lsp) for place, lsp in enumerate(LSPS)],
            row_tokens=self._row_tokens(),
        )

    def _at(self, place: int, lsp: float) -> LspTokens:
        return LspTokens(
            lsp=lsp,
            kept_tokens=int(self._kept[place]),
            thought_end_kept=_share(self._thought_ends[place], self.rows_with_thought),
            boxed_answer_kept=_share(self._boxes[place], self.rows_with_box),
        )

    def _row_tokens(self) -> RowTokens:
        """Smallest, largest and quantiles of the row lengths, and their histogram in bins of a power of two tokens."""
        present, cumulated = np.flatnonzero(self._lengths), np.cumsum(self._lengths)
        if present.size == 0:
            return RowTokens(smallest=None, largest=None, quantiles={}, bin_tokens=1, histogram=[])
        largest, width = int(present[-1]), 1
        while largest // width >= MOST_BINS:
            width *= 2
        bins = np.bincount(present // width, weights=self._lengths[present]).astype(np.int64)
        # The smallest length that at least this number of rows do not exceed.
        places = np.searchsorted(cumulated, [max(1, np.ceil(q * self.rows)) for q in QUANTILES])
        return RowTokens(
            smallest=int(present[0]),
            largest=largest,
            quantiles={f"{q:g}": int(place) for q, place in zip(QUANTILES, places, strict=True)},
            bin_tokens=width,
            histogram=bins.tolist(),
        )


def _share(part: np.int64, whole: int) -> float | None:
    return int(part) / whole if whole else None


OPENING = "\\boxed{"
LONGEST_CONTENT = 500
"""Characters; a brace that is not closed within them is not closed."""


def first_in_a_box(text: str, start: int) -> int:
    """Index of the closing brace of the first box at or after `start` that has the final answer, -1 without a box.

    Of three places of an answer this is the latest: `final_answer.first_stated_as_result` needs no box, and
    `trace_counts.first_written` no sign that it is a result. docs/arms.md has the three.

    What comes before `start` (the question, which may ask for a box) is not looked at; empty boxes are no answers.
    """
    found = [(closing, "".join(content.split())) for closing, content in boxes(text, start)]
    return next((closing for closing, content in found if content and content == found[-1][1]), -1)


def boxes(text: str, start: int) -> list[tuple[int, str]]:
    """(index of the closing brace, content) of every box at or after `start` that holds something and is closed."""
    found: list[tuple[int, str]] = []
    place = text.find(OPENING, start)
    while place >= 0:
        opened = place + len(OPENING)
        closing = _closing_brace(text, opened)
        if closing > opened:
            found.append((closing, text[opened:closing]))
        place = text.find(OPENING, opened)
    return found


def _closing_brace(text: str, opened: int) -> int:
    """Index of the brace that closes the one before `opened`, -1 where there is none."""
    depth = 1
    for place in range(opened, min(len(text), opened + LONGEST_CONTENT)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place
    return -1
