"""What the rows of a data set are made of, in tokens, from the statistics of its tokenize stage."""

from dataclasses import dataclass
from html import escape

from essence.data.row_records import LspTokens, RowTokens, TokenCounts
from essence.report.page.svg import LIGHT
from essence.text import SPACE, magnitude, percent, proportion, whole

SECTION_NAMES = {"prompt": "prompt", "cot": "chain of thought", "answer": "answer", "unknown": "rows without markers"}
WIDTH, HEIGHT, BASE, TOP = 640, 170, 140, 12
"""Of the histogram, in SVG units; bars stand on BASE."""


@dataclass(frozen=True)
class LspRow:
    """What a proportion keeps of all rows."""

    lsp: str
    kept_tokens: str
    thought_end: str
    """Share of rows whose kept part still holds `</think>`."""
    boxed_answer: str
    """Share of rows with a boxed answer whose kept part states it."""


@dataclass(frozen=True)
class TokensView:
    """One data set's statistics, as the report shows them."""

    sections: str
    lengths: str
    by_lsp: tuple[LspRow, ...]
    histogram: str
    """SVG of its own, texts escaped."""


LSP_COLUMNS = ("LSP", "Kept tokens", "Rows that keep </think>", "Rows that keep the boxed answer")


def tokens_view(statistics: TokenCounts | None) -> TokensView | None:
    """None where no row was counted."""
    if statistics is None or not statistics.rows:
        return None
    return TokensView(
        sections_sentence(statistics),
        lengths_sentence(statistics.row_tokens),
        tuple(_lsp_row(entry) for entry in statistics.by_lsp),
        histogram_svg(statistics.row_tokens),
    )


def tokens_lines(statistics: TokenCounts | None) -> list[str]:
    """The same for a terminal: sections, lengths, and a line for each of the proportions 0.1, 0.3, 0.5, 0.7, 0.9."""
    view = tokens_view(statistics)
    if view is None:
        return []
    lines = [
        f"  LSP {row.lsp} keeps {row.kept_tokens} tokens, </think> in {row.thought_end} of the rows, the boxed answer "
        f"in {row.boxed_answer}"
        for row in view.by_lsp[::2]
    ]
    return [f"  {view.sections}", f"  {view.lengths}", *lines]


def sections_sentence(statistics: TokenCounts) -> str:
    """`1.25 M tokens: 8.1 % prompt, 80.0 % chain of thought, 11.9 % answer`."""
    total, tokens = statistics.tokens, statistics.section_tokens
    parts = [
        f"{percent(tokens[key] / total)} {name}"
        for key, name in SECTION_NAMES.items()
        if tokens[key] or key != "unknown"
    ]
    return f"{magnitude(total)} tokens: {', '.join(parts)}"


def lengths_sentence(lengths: RowTokens) -> str:
    """`rows have 102 to 3,961 tokens, half of them at most 1,500, 95 % at most 3,020`."""
    half, most = (whole(lengths.quantiles[quantile]) for quantile in ("0.5", "0.95"))
    return (
        f"rows have {whole(lengths.smallest)} to {whole(lengths.largest)} tokens, half of them at "
        f"most {half}, 95{SPACE}% at most {most}"
    )


def _lsp_row(entry: LspTokens) -> LspRow:
    return LspRow(
        lsp=proportion(entry.lsp),
        kept_tokens=magnitude(entry.kept_tokens),
        thought_end=percent(entry.thought_end_kept),
        boxed_answer=percent(entry.boxed_answer_kept),
    )


def histogram_svg(lengths: RowTokens) -> str:
    """Rows by length, one bar a bin; follows the page's colours."""
    counts, width = lengths.histogram, lengths.bin_tokens
    bar, highest = WIDTH / len(counts), max(counts)
    bars = "".join(
        f'<rect x="{place * bar + 1:.1f}" y="{BASE - height:.1f}" width="{max(1.0, bar - 2):.1f}" '
        f'height="{height:.1f}"><title>{place * width:,} to {(place + 1) * width - 1:,} tokens: {count:,} rows</title>'
        "</rect>"
        for place, count in enumerate(counts)
        if (height := (BASE - TOP) * count / highest) or count
    )
    title = f"Rows by number of tokens, {width:,} a bar, at most {highest:,} rows in one"
    ticks = "".join(
        f'<text x="{x}" y="{BASE + 20}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in ((0, "start", "0"), (WIDTH, "end", f"{len(counts) * width:,} tokens"))
    )
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<g fill="{_colour("accent")}">{bars}</g>'
        f'<line x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}" stroke="{_colour("rule")}"/>'
        f'<g fill="{_colour("muted")}" font-size="13">{ticks}</g></svg>'
    )


def _colour(role: str) -> str:
    return f"var(--{role}, {LIGHT[role]})"
