"""Statistics of the rows as people read them: report, Markdown, terminal."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from essence.data.row_records import TokenCounts
from essence.data.selection import SectionBounds
from essence.data.token_statistics import TokenStatistics
from essence.report.page.tokens import histogram_svg, tokens_lines, tokens_view


@pytest.fixture
def statistics() -> TokenCounts:
    counted = TokenStatistics()
    lengths = np.array([100, 200, 300, 1000])
    counted.add(SectionBounds(lengths, lengths // 10, lengths // 2 - 1), np.array([-1, 150, 200, 400]))
    return counted.record()


def test_the_report_tells_sections_lengths_and_what_is_kept(statistics: TokenCounts) -> None:
    view = tokens_view(statistics)
    assert view is not None
    assert view.sections.replace("\u00a0", " ") == "1.6 k tokens: 10.0 % prompt, 40.0 % chain of thought, 50.0 % answer"
    assert (
        view.lengths.replace("\u00a0", " ")
        == "rows have 100 to 1,000 tokens, half of them at most 200, 95 % at most 1,000"
    )
    half = view.by_lsp[4]
    shown = [text.replace("\u00a0", " ") for text in (half.kept_tokens, half.thought_end, half.boxed_answer)]
    assert [half.lsp, *shown] == ["0.50", "800", "100.0 %", "33.3 %"]
    assert view.by_lsp[3].thought_end.startswith("0.0")


def test_the_histogram_has_a_bar_for_every_bin_with_rows(statistics: TokenCounts) -> None:
    root = ET.fromstring(histogram_svg(statistics.row_tokens))
    bars = list(root.iter("rect"))
    assert len(bars) == sum(count > 0 for count in statistics.row_tokens.histogram) == 4
    assert bars[0].find("title").text == "96 to 127 tokens: 1 rows"  # type: ignore[union-attr]


def test_the_terminal_shows_every_second_proportion(statistics: TokenCounts) -> None:
    lines = tokens_lines(statistics)
    assert [line.split()[1] for line in lines[2:]] == ["0.10", "0.30", "0.50", "0.70", "0.90"]
    assert tokens_lines(None) == []
    assert tokens_lines(TokenStatistics().record()) == []
