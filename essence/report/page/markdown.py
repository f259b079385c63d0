"""report.md: the same tables and sentences for a terminal pager or a repository's web page."""

from collections.abc import Mapping, Sequence

from essence.plan.cost_table import COLUMNS as COST_COLUMNS
from essence.plan.cost_table import CostTable
from essence.report.claims.verdict import ClaimVerdict
from essence.report.page.claims_table import claim_rows
from essence.report.page.cost_claim import claim_tables
from essence.report.page.decoding import DECODING_COLUMNS, DecodingRow, decoding_rows
from essence.report.page.endings import ENDING_COLUMNS, EndingRow, ending_rows
from essence.report.page.findings import findings
from essence.report.page.predicted_times import PREDICTED_COLUMNS, PredictedRow, predicted_rows
from essence.report.page.questions_table import TITLE, asked, question_rows, questions_lead
from essence.report.page.rows import RowsView, rows_views, trained_rows
from essence.report.page.statement import statement
from essence.report.page.table import COLUMNS, Column, Row, arm_rows, cell_rows, cells_text, missing_lines
from essence.report.page.tokens import LSP_COLUMNS, TokensView
from essence.report.results.records import Evaluation, Figure, Group, GroupKey, Results
from essence.text import NOTHING


def markdown_report(
    results: Results,
    figures: Mapping[GroupKey, Sequence[Figure]],
    verdicts: Sequence[ClaimVerdict],
    questions: Sequence[ClaimVerdict] = (),
    pictures: Sequence[Figure] = (),
) -> str:
    """The whole file; figures are linked as `figures/<name>.png` with their values as alt text."""
    parts = [f"# {markdown_text(results.title)}", markdown_text(results.note), *map(markdown_text, statement(results))]
    parts += ["## Claims of the paper", markdown_claims(verdicts)]
    if asked(questions):
        parts += [f"## {TITLE}", markdown_text(questions_lead(questions)), _markdown_questions(questions)]
    parts += ["## The arms together", *map(_image, pictures)] if pictures else []
    for group in results.groups:
        parts.append(f"## {markdown_text(group.key.label)}")
        for evaluation in group.evaluations:
            parts += _evaluation_parts(results, group, evaluation, verdicts)
        parts += [_image(figure) for figure in figures.get(group.key, [])]
    views = rows_views(results)
    if views:
        parts += ["## Training rows", *map(_markdown_rows, views)]
    met = [
        f"- [{markdown_text(row.title)}]({row.link}): {markdown_text('; '.join(row.remarks))}"
        for row in trained_rows(results)
    ]
    parts += ["## What trainings met in their rows", "\n".join(met)] if met else []
    decoded = decoding_rows(results)
    parts += ["## How completions were decoded", _markdown_decoding(decoded)] if decoded else []
    predicted = predicted_rows(results)
    parts += ["## Steps, measured and predicted", _markdown_predicted(predicted)] if predicted else []
    tables = claim_tables(results)
    if tables:
        parts += ["## What truncation saves, computed", *map(_markdown_costs, tables)]
    missing = missing_lines(results)
    if missing:
        parts += ["## Not done", "\n".join(f"- {markdown_text(line)}" for line in missing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_rows(view: RowsView) -> str:
    reasons = [f"{row.count:,} {row.fate}: {row.reason}" for row in view.reasons]
    lines = [f"{markdown_text(view.title)}: [{markdown_text(view.summary)}]({view.link})"]
    found = [*reasons, *view.contamination]
    if view.tokens:
        found += [view.tokens.sections, view.tokens.lengths]
    lines += [f"- {markdown_text(line)}" for line in found]
    return "\n".join([*lines, *(_markdown_tokens(view.tokens) if view.tokens else [])])


def _markdown_decoding(rows: list[DecodingRow]) -> str:
    """A line for each generation, as a GitHub table."""
    head = [_markdown_line(list(DECODING_COLUMNS)), _markdown_line([":--", *["--:"] * (len(DECODING_COLUMNS) - 1)])]
    lines = [_markdown_line([f"[{markdown_text(row.title)}]({row.link})", *row.line[1:]]) for row in rows]
    return "\n".join([*head, *lines])


def _markdown_predicted(rows: list[PredictedRow]) -> str:
    """A line for each training, as a GitHub table."""
    proofs = "; ".join(dict.fromkeys(row.proof for row in rows))
    head = [_markdown_line(list(PREDICTED_COLUMNS)), _markdown_line([":--", *["--:"] * (len(PREDICTED_COLUMNS) - 1)])]
    lines = [_markdown_line([f"[{markdown_text(row.cell)}]({row.link})", *row.line[1:]]) for row in rows]
    return "\n\n".join([markdown_text(f"Predicted by the proof of {proofs}."), "\n".join([*head, *lines])])


def _markdown_costs(table: CostTable) -> str:
    """Computed costs at each proportion, as a GitHub table."""
    head = [_markdown_line(list(COST_COLUMNS)), _markdown_line(["--:"] * len(COST_COLUMNS))]
    told = [
        markdown_text(table.title),
        markdown_text(table.finding),
        "\n".join([*head, *map(_markdown_line, table.lines)]),
    ]
    return "\n\n".join(told)


def _markdown_tokens(view: TokensView) -> list[str]:
    """What each proportion keeps, as a GitHub table."""
    rows = [(row.lsp, row.kept_tokens, row.thought_end, row.boxed_answer) for row in view.by_lsp]
    head = [_markdown_line(LSP_COLUMNS), _markdown_line(["--:"] * len(LSP_COLUMNS))]
    return ["", *head, *(_markdown_line(row) for row in rows)]


def markdown_claims(verdicts: Sequence[ClaimVerdict]) -> str:
    """The claims as a GitHub table."""
    head = ["Verdict", "Claim", "Protocol", "Reported", "Accepted", "Ours", "Rests on", "What would decide"]
    lines = [_markdown_line(head), _markdown_line([":--"] * len(head))]
    for row in claim_rows(verdicts):
        title = f"{row.title} ({row.grade})"
        rests = "; ".join(part for part in (row.count, row.rests) if part)
        shown = (row.protocol, row.reported, row.accepted, row.ours, rests, row.decides)
        cells = (row.verdict, title, *shown)
        lines.append(_markdown_line([markdown_text(cell) for cell in cells]))
    return "\n".join(lines)


def _markdown_questions(judged: Sequence[ClaimVerdict]) -> str:
    """The kit's own questions as a GitHub table."""
    head = ["Answer", "Question", "Protocol", "Yes if", "Ours", "Measured on", ""]
    lines = [_markdown_line(head), _markdown_line([":--"] * len(head))]
    for row in question_rows(judged):
        cells = (row.verdict, row.title, row.protocol, row.accepted, row.ours, row.count, row.detail)
        lines.append(_markdown_line([markdown_text(cell) for cell in cells]))
    return "\n".join(lines)


def _evaluation_parts(
    results: Results, group: Group, evaluation: Evaluation, verdicts: Sequence[ClaimVerdict]
) -> list[str]:
    benchmark, checkpoint = map(markdown_text, evaluation)
    sentences = "\n".join(f"- {markdown_text(sentence)}" for sentence in findings(results, group, evaluation, verdicts))
    return [
        f"### {benchmark}, {checkpoint} checkpoint",
        sentences,
        markdown_table(arm_rows(results, group, evaluation)),
        _markdown_endings(ending_rows(results, group, evaluation)),
        "Every cell:",
        markdown_table(cell_rows(group, evaluation)),
    ]


def _markdown_endings(rows: Sequence[EndingRow]) -> str:
    """How completions end, as a GitHub table; empty where nothing is graded."""
    if not rows:
        return ""
    lines = [_markdown_line(["LSP", *ENDING_COLUMNS]), _markdown_line([":--", *["--:"] * len(ENDING_COLUMNS)])]
    for row in rows:
        cells = (
            f"{number} {markdown_text(row.intervals.get(name, ''))}".strip()
            for name, number in zip(ENDING_COLUMNS, row.numbers, strict=True)
        )
        lines.append(_markdown_line([markdown_text(row.label), *cells]))
    return "\n".join(["How completions end:", "", *lines])


def _image(figure: Figure) -> str:
    image = f"![{markdown_text(figure.alt)}](figures/{figure.name}.png)"
    return f"{image}\n\n*{markdown_text(figure.caption)}*{_data_link(figure)}"


def _data_link(figure: Figure) -> str:
    return f" [CSV](figures/{figure.name}.csv)" if figure.data else ""


def markdown_table(rows: Sequence[Row]) -> str:
    """A GitHub table in which each number links to its manifest, where it has just one."""
    head = ["LSP", *(column.title for column in COLUMNS), "Cells"]
    lines = [_markdown_line(head), _markdown_line([":--", *["--:"] * (len(head) - 1)])]
    for row in rows:
        cells = [_markdown_number(row, column) for column in COLUMNS]
        lines.append(_markdown_line([markdown_text(row.label), *cells, cells_text(row) or row.state]))
    return "\n".join(lines)


def _markdown_number(row: Row, column: Column) -> str:
    links: tuple[str, ...] = getattr(row, column.source)
    main = column.main(row)
    if main != NOTHING and len(links) == 1:
        main = f"[{main}]({links[0]})"
    beside = [markdown_text(text) for text in (column.small(row), column.load(row)) if text]
    return " ".join([main, *beside])


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text.replace("\n", " "))
