"""report.html: one file, no network, one script of its own; every number leads to the manifest it comes from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup, escape

from essence import text
from essence.plan.cost_table import COLUMNS as COST_COLUMNS
from essence.record.machine_load import WALL_OVER_CPU
from essence.report.claims.verdict import ClaimVerdict, judge, judge_questions
from essence.report.page import reported
from essence.report.page.browse import browser_data
from essence.report.page.claims_table import claim_rows, claims_lead, claims_summary, headline
from essence.report.page.cost_claim import claim_tables
from essence.report.page.decoding import DECODING_COLUMNS, decoding_rows
from essence.report.page.endings import ENDING_COLUMNS, EndingRow, ending_rows
from essence.report.page.explore import embedded, explore_data, script, script_hash
from essence.report.page.findings import COST_NAMES, arm_at, findings
from essence.report.page.overview import overview_rows
from essence.report.page.predicted_times import PREDICTED_COLUMNS, predicted_rows
from essence.report.page.questions_table import TITLE, asked, question_rows, questions_lead
from essence.report.page.rows import rows_views, trained_rows
from essence.report.page.samples import PIECE_CHARACTERS, Pieces
from essence.report.page.statement import statement
from essence.report.page.svg import DARK, LIGHT, css_variables, inlined
from essence.report.page.table import COLUMNS, Column, Row, arm_rows, cell_rows, missing_lines
from essence.report.page.tokens import LSP_COLUMNS
from essence.report.results.records import FULL, Arm, Evaluation, Figure, Group, GroupKey, Results
from essence.report.results.run_facts import (
    environment_facts,
    finished_at,
    settings_facts,
    total_load,
    total_wall_s,
)

MOST_INLINED_GROUPS = 6
"""With more, tables stand folded and figures are linked, not inlined: the charts show them all."""
MOST_INLINED_PICTURES = 12
"""Of all arms, which no chart shows in their place; with more, these are linked too."""
MOST_LINKS = 24
"""Manifests that a row of the claims table links to."""
FACETS = (
    ("dataset", "Data set"), ("pair", "Pair"), ("benchmark", "Benchmark"), ("checkpoint", "Checkpoint"),
    ("protocol", "Protocol"), ("span", "Span"), ("sections", "Sections"), ("rows", "Rows"),
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A key figure."""

    name: str
    value: str
    interval: str
    paper: str


@dataclass(frozen=True)
class EvaluationView:
    """One benchmark and checkpoint of a group, as the template shows it."""

    id: str
    title: str
    tiles: list[Tile]
    sentences: list[str]
    rows: list[Row]
    cells: list[Row]
    endings: list[EndingRow]
    figures: list[Figure]


@dataclass(frozen=True)
class GroupView:
    """One group, as the template shows it."""

    id: str
    key: GroupKey
    evaluations: list[EvaluationView]
    costs: list[Figure]
    losses: list[Figure]


def render_page(
    results: Results,
    figures: Mapping[GroupKey, Sequence[Figure]],
    pieces: Pieces | None = None,
    verdicts: Sequence[ClaimVerdict] | None = None,
    questions: Sequence[ClaimVerdict] | None = None,
    pictures: Sequence[Figure] = (),
) -> str:
    """The page as HTML; links lead from `<run_dir>/<experiment>/report/` to `<run_dir>/stages/`.

    Without `pieces` there is no sample browser; without `verdicts` or `questions` they are computed.
    """
    pieces = pieces or Pieces()
    verdicts = judge([results]) if verdicts is None else verdicts
    questions = judge_questions([results]) if questions is None else questions
    views = [
        _group_view(results, g, f"g{i}", figures.get(g.key, []), verdicts) for i, g in enumerate(results.groups, 1)
    ]
    rows = claim_rows(verdicts)
    environment = _environment()
    # Macros see globals alone.
    many, shown = len(results.groups) > MOST_INLINED_GROUPS, len(pictures) <= MOST_INLINED_PICTURES
    environment.globals.update(many=many, pictures_shown=shown or not many, most_links=MOST_LINKS)
    return environment.get_template("template.html").render(
        results=results,
        claims=[row for row in rows if row.word != "not run"],
        claims_not_run=[row for row in rows if row.word == "not run"],
        claims_summary=claims_summary(rows),
        headline=headline(verdicts),
        overview=overview_rows(results) if len(results.groups) > MOST_INLINED_GROUPS else [],
        claims_lead=claims_lead(verdicts),
        questions=question_rows(questions) if asked(questions) else [],
        questions_lead=questions_lead(questions),
        questions_title=TITLE,
        pictures=pictures,
        groups=views,
        statement=statement(results),
        progress=_progress(results),
        columns=COLUMNS,
        missing=missing_lines(results),
        rows=rows_views(results),
        trained_rows=trained_rows(results),
        lsp_columns=LSP_COLUMNS,
        cost_columns=list(COST_COLUMNS),
        claim_tables=claim_tables(results),
        decoded=decoding_rows(results),
        decoding_columns=DECODING_COLUMNS,
        predicted=predicted_rows(results),
        predicted_columns=PREDICTED_COLUMNS,
        settings=settings_facts(results),
        environment=environment_facts(results),
        finished=finished_at(results),
        wall=text.duration(total_wall_s(results)),
        load=total_load(results).words,
        reported_lsp=text.proportion(reported.RETENTION.lsp),
        nothing=text.NOTHING,
        citation=reported.CITATION,
        charts=any(cell.train.state == "done" for cell in results.cells),
        data=embedded(explore_data(results)),
        pieces=pieces,
        browser_data=embedded(browser_data(results, pieces)),
        piece_characters=PIECE_CHARACTERS,
        ending_columns=ENDING_COLUMNS,
        script=script(),
        script_hash=script_hash(script()),
        facets=FACETS,
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("essence.report.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(light=Markup(css_variables(LIGHT)), dark=Markup(css_variables(DARK)))  # noqa: S704
    environment.filters.update(inline_svg=_inline_svg, slug=text.slug, breakable=_breakable, whole=text.whole)
    environment.globals.update(number_link=_number_link)
    return environment


def _inline_svg(figure: Figure) -> Markup:
    """The figure's SVG, which `svg.themed` made with its texts escaped."""
    return Markup(inlined(figure.svg, text.slug(figure.name)))  # noqa: S704


def _breakable(name: str) -> Markup:
    """A dotted name that may break after a dot or an underscore."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name))))  # noqa: S704


def _number_link(row: Row, column: Column, anchor: str) -> str:
    """The manifest behind a number; where several are behind it, their rows in the table of cells; else nothing."""
    links: tuple[str, ...] = getattr(row, column.source)
    if not links or column.main(row) == text.NOTHING:
        return ""
    return links[0] if len(links) == 1 else f"#{anchor}"


def _group_view(
    results: Results, group: Group, id: str, figures: Sequence[Figure], verdicts: Sequence[ClaimVerdict]
) -> GroupView:
    evaluations = group.evaluations
    return GroupView(
        id=id,
        key=group.key,
        evaluations=[
            _evaluation_view(results, group, evaluation, f"{id}-e{index}", figures, verdicts)
            for index, evaluation in enumerate(evaluations, 1)
        ],
        costs=[figure for figure in figures if figure.kind == "cost"],
        losses=[figure for figure in figures if figure.kind == "loss"],
    )


def _evaluation_view(
    results: Results,
    group: Group,
    evaluation: Evaluation,
    id: str,
    figures: Sequence[Figure],
    verdicts: Sequence[ClaimVerdict],
) -> EvaluationView:
    benchmark, checkpoint = evaluation
    return EvaluationView(
        id=id,
        title=f"{benchmark}, {checkpoint} checkpoint",
        tiles=_tiles(group, evaluation),
        sentences=findings(results, group, evaluation, verdicts),
        rows=arm_rows(results, group, evaluation),
        cells=cell_rows(group, evaluation),
        endings=ending_rows(results, group, evaluation),
        figures=[figure for figure in figures if figure.evaluation == evaluation],
    )


def _tiles(group: Group, evaluation: Evaluation) -> list[Tile]:
    """Retention and cost ratios at the proportion for which the paper reports them."""
    arm = arm_at(group, reported.RETENTION.lsp)
    if arm is None:
        return []
    tiles = []
    kept = arm.pooled[evaluation].retention if evaluation in arm.pooled else None
    if kept and kept.value is not None:
        tiles.append(Tile("Accuracy kept", text.percent(kept.value), text.interval(kept), reported.RETENTION.words))
    for word, name in COST_NAMES.items():
        if word in arm.ratio:
            beside = _loads(group, arm) if word == "time" else ""
            tiles.append(Tile(name[0].upper() + name[1:], text.percent(arm.ratio[word]), beside, reported.COST.words))
    return tiles


def _loads(group: Group, arm: Arm) -> str:
    """What the time of an arm, and that at LSP 1.0, are to be read beside: `wall/CPU 1.02, at 1.0 1.03`."""
    full = arm_at(group, FULL)
    short, whole = arm.load.beside(full.load) if full else (arm.load.words, "")
    return f"{short}, at LSP 1.00 {whole.removeprefix(f'{WALL_OVER_CPU} ')}" if short and whole else short


def _progress(results: Results) -> str:
    """`8 of 8 cells done · 4 LSPs · 2 seeds`."""
    cells = results.cells
    done = sum(cell.state == "done" for cell in cells)
    lsps, seeds = len({cell.lsp for cell in cells}), len({cell.seed for cell in cells})
    counts = [f"{lsps} LSP{'s' * (lsps != 1)}", f"{seeds} seed{'s' * (seeds != 1)}"] if cells else []
    return " · ".join([f"{done} of {len(cells)} cells done", *counts])
