"""Statistics of tokenised rows against counts made row by row, and the search for the boxed answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from essence.data.row_records import LspTokens
from essence.data.selection import SectionBounds
from essence.data.token_statistics import LSPS, TokenStatistics, first_in_a_box

Row = tuple[int, int, int, int]


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    """(length, think_start, think_end, boxed), with markers and boxes absent at times."""
    rows = []
    for _ in range(draw(st.integers(1, 30))):
        length = draw(st.integers(1, 3000))
        places = [draw(st.integers(-1, length - 1)) for _ in range(3)]
        rows.append((length, *places))
    return rows


@given(some_rows(), st.integers(1, 7))
def test_counts_equal_those_made_row_by_row(rows: list[Row], batch: int) -> None:
    statistics = TokenStatistics()
    for start in range(0, len(rows), batch):
        length, think_start, think_end, boxed = (np.array(c) for c in zip(*rows[start : start + batch], strict=True))
        statistics.add(SectionBounds(length, think_start, think_end), boxed)
    found = statistics.record()
    whole = [row for row in rows if 0 <= row[1] <= row[2]]
    assert found.rows == len(rows)
    assert found.tokens == sum(row[0] for row in rows)
    assert found.rows_with_thought == len(whole)
    assert found.section_tokens == {
        "prompt": sum(start for _, start, _, _ in whole),
        "cot": sum(end - start + 1 for _, start, end, _ in whole),
        "answer": sum(length - end - 1 for length, _, end, _ in whole),
        "unknown": sum(row[0] for row in rows) - sum(row[0] for row in whole),
    }
    boxed_rows = [row for row in rows if row[3] >= 0]
    for entry, lsp in zip(found.by_lsp, LSPS, strict=True):
        kept = [max(1, int(row[0] * lsp)) for row in rows]
        assert entry.kept_tokens == sum(kept)
        ends = [row[2] < max(1, int(row[0] * lsp)) for row in whole]
        assert entry.thought_end_kept == (sum(ends) / len(ends) if ends else None)
        boxes = [row[3] < max(1, int(row[0] * lsp)) for row in boxed_rows]
        assert entry.boxed_answer_kept == (sum(boxes) / len(boxes) if boxes else None)
    lengths = sorted(row[0] for row in rows)
    told = found.row_tokens
    assert (told.smallest, told.largest) == (lengths[0], lengths[-1])
    assert told.quantiles["0.5"] == lengths[(len(lengths) - 1) // 2]
    width = told.bin_tokens
    assert told.histogram == [
        sum(b * width <= n < (b + 1) * width for n in lengths) for b in range(len(told.histogram))
    ]
    assert sum(told.histogram) == len(rows)
    assert len(told.histogram) <= 32


def test_no_rows_give_no_shares() -> None:
    found = TokenStatistics().record()
    assert found.rows == 0
    assert found.by_lsp[0] == LspTokens(lsp=0.1, kept_tokens=0, thought_end_kept=None, boxed_answer_kept=None)
    assert found.row_tokens.histogram == []


@pytest.mark.parametrize(
    ("text", "closing"),
    [
        ("no box", None),
        (r"put it in \boxed{}. <think> so \boxed{4", None),
        (r"<think> maybe \boxed{3}, no, \boxed{4} </think> It is \boxed{4}.", r"<think> maybe \boxed{3}, no, \boxed{4"),
        (r"<think> \boxed{\frac{1}{2}} </think> \boxed{ \frac{1} {2} }", r"<think> \boxed{\frac{1}{2}"),
        (r"<think> \boxed{1} </think> \boxed{}", r"<think> \boxed{1"),
        (r"<think> \boxed{1} </think> \boxed{2}", r"<think> \boxed{1} </think> \boxed{2"),
        (r"<think> \boxed{" + "x" * 600 + "}", None),
    ],
)
def test_the_first_box_that_has_the_final_answer(text: str, closing: str | None) -> None:
    assert first_in_a_box(text, max(0, text.find("<think>"))) == (-1 if closing is None else len(closing))


@given(st.text(alphabet="\\boxed{}1 ", max_size=80))
def test_any_text_is_searched(text: str) -> None:
    found = first_in_a_box(text, 0)
    assert found == -1 or text[found] == "}"
