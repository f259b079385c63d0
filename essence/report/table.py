"""The table: one list of columns, shown in the terminal, in report.md, on the page and, as plain numbers, in JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Group as Renderables
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from essence.report import words
from essence.report.records import Cell, Evaluation, Group, Results, Score
from essence.scoring.statistics import Estimate

Role = Literal["arm", "cell", "student", "teacher"]
ROLE_WORDS = {"student": "untrained student", "teacher": "teacher"}


@dataclass(frozen=True)
class Row:
    """A line of the table: an arm, a cell or a baseline on one benchmark."""

    role: Role
    label: str
    lsp: float | None
    graded: int
    planned: int
    samples: int
    accuracy: Estimate | None
    retention: Estimate | None
    cost: dict[str, float]
    """By word: time in s, memory in GiB, flops, tokens."""
    ratio: dict[str, float]
    """The same against LSP 1.0."""
    capped_share: float | None
    mean_tokens: float | None
    state: str
    grades: tuple[str, ...]
    """Links to the manifests behind accuracy, retention and lengths."""
    trains: tuple[str, ...]
    """Links to the manifests behind the costs."""


@dataclass(frozen=True)
class Column:
    """How one number of a row is shown: the main text, and small print under it."""

    title: str
    source: Literal["grades", "trains"]
    main: Callable[[Row], str]
    small: Callable[[Row], str] = lambda row: ""
    hint: str = ""
    """What the column holds, for a tooltip and the legend."""


def _cost(word: str, show: Callable[[float | None], str]) -> tuple[Callable[[Row], str], Callable[[Row], str]]:
    return lambda row: show(row.cost.get(word)), lambda row: words.times(row.ratio[word]) if word in row.ratio else ""


COLUMNS = (
    Column(
        "Accuracy", "grades", lambda r: words.percent(r.accuracy and r.accuracy.value),
        lambda r: words.interval(r.accuracy), "mean over samples, then over problems, with its interval",
    ),
    Column(
        "Retention", "grades", lambda r: words.percent(r.retention and r.retention.value),
        lambda r: words.interval(r.retention), "share of the accuracy at LSP 1.0, with its interval",
    ),
    Column("Tokens", "trains", *_cost("tokens", words.magnitude), "tokens of the training rows after truncation"),
    Column("Time", "trains", *_cost("time", words.duration), "wall time of the training"),
    Column("Memory", "trains", *_cost("memory", words.memory), "peak memory of the training"),
    Column("FLOPs", "trains", *_cost("flops", words.magnitude), "floating-point operations of the training"),
    Column("At cap", "grades", lambda r: words.percent(r.capped_share), hint="completions cut at the token cap"),
    Column("Length", "grades", lambda r: words.whole(r.mean_tokens), hint="mean tokens a completion"),
)  # fmt: skip


def arm_rows(results: Results, group: Group, evaluation: Evaluation) -> list[Row]:
    """The untrained student, every LSP pooled over seeds, the teacher."""
    baselines = {role: _baseline_row(results, group, evaluation[0], role) for role in ROLE_WORDS}
    rows = [baselines["student"]]
    for arm in group.arms:
        pooled = arm.pooled.get(evaluation)
        scores = pooled.scores if pooled else ()
        rows.append(
            Row(
                role="arm",
                label=words.proportion(arm.lsp),
                lsp=arm.lsp,
                graded=len(scores),
                planned=len(arm.cells),
                samples=sum(score.samples for score in scores),
                accuracy=pooled and pooled.accuracy,
                retention=pooled and pooled.retention,
                cost=arm.cost,
                ratio=arm.ratio,
                capped_share=pooled and pooled.capped_share,
                mean_tokens=pooled and pooled.mean_tokens,
                state=f"{len(scores)} of {len(arm.cells)} graded",
                grades=tuple(score.grade.link for score in scores),
                trains=tuple(cell.train.link for cell in arm.cells if cell.train.state == "done"),
            )
        )
    return [row for row in [*rows, baselines["teacher"]] if row]


def _baseline_row(results: Results, group: Group, benchmark: str, role: str) -> Row | None:
    score = results.baseline(role, group.key, benchmark)
    if score is None:
        return None
    return _score_row("student" if role == "student" else "teacher", ROLE_WORDS[role], score)


def _score_row(role: Role, label: str, score: Score | None, **more: Any) -> Row:
    graded = score is not None and score.accuracy is not None
    values: dict[str, Any] = {"lsp": None, "cost": {}, "ratio": {}, "trains": (), "state": "done", **more}
    return Row(
        role=role,
        label=label,
        graded=int(graded),
        planned=1,
        samples=score.samples if score else 0,
        accuracy=score.accuracy if score else None,
        retention=score.retention if score else None,
        capped_share=score.capped_share if score else None,
        mean_tokens=score.mean_tokens if score else None,
        grades=(score.grade.link,) if score and graded else (),
        **values,
    )


def cell_rows(group: Group, evaluation: Evaluation) -> list[Row]:
    """Every cell of a group on its own, by LSP and seed, whatever its state."""
    return [_cell_row(cell, arm.cost, arm.ratio, evaluation) for arm in group.arms for cell in arm.cells]


def _cell_row(
    cell: Cell, arm_cost: dict[str, float], arm_ratio: dict[str, float], evaluation: Evaluation
) -> Row:
    cost = {word: value for word in arm_cost if (value := cell.cost.of(word)) is not None}
    return _score_row(
        "cell",
        f"{words.proportion(cell.lsp)} · seed {cell.seed}",
        cell.score(evaluation),
        lsp=cell.lsp,
        cost=cost,
        ratio={w: value / arm_cost[w] * arm_ratio[w] for w, value in cost.items() if w in arm_ratio and arm_cost[w]},
        trains=(cell.train.link,) if cell.train.state == "done" else (),
        state=cell.state_words,
    )


def terminal_report(results: Results) -> Renderables:
    """What `invoke report` prints: a table for each group and benchmark, then what is missing."""
    parts: list[Table | Text] = []
    for group in results.groups:
        for evaluation in group.evaluations:
            title = f"{group.key.label}\n{evaluation[0]}, {evaluation[1]} checkpoint"
            parts.append(_terminal_table(title, arm_rows(results, group, evaluation)))
    lines = missing_lines(results)
    if lines:
        parts.append(Text("Not done:\n  " + "\n  ".join(lines)))
    return Renderables(*parts)


def _terminal_table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 1))
    table.add_column("LSP", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    table.add_column("Cells", justify="right", no_wrap=True)
    for row in rows:
        # Where there is a ratio to LSP 1.0 it says more than the absolute cost, which the page has.
        shown = [
            (c.small(row) or c.main(row)) if c.source == "trains" else f"{c.main(row)} {c.small(row)}".strip()
            for c in COLUMNS
        ]
        style = "" if row.role == "arm" else "dim"
        table.add_row(*(escape(text) for text in (row.label, *shown, _cells_text(row))), style=style)
    return table


def _cells_text(row: Row) -> str:
    return f"{row.graded} / {row.planned}" if row.role == "arm" else ""


def missing_lines(results: Results) -> list[str]:
    """One plain line for each cell and baseline that is not done."""
    lines = [f"{cell.name}: {cell.state_words}" for cell in results.cells if cell.state != "done"]
    for baseline in results.baselines:
        for score in baseline.scores:
            if score.grade.state != "done":
                what = ROLE_WORDS.get(baseline.role, baseline.role)
                lines.append(f"{what} {baseline.model} on {score.benchmark}: {score.grade.state_words}")
    return lines


def markdown_table(rows: Sequence[Row]) -> str:
    """A GitHub table in which each number links to its manifest, where it has just one."""
    head = ["LSP", *(column.title for column in COLUMNS), "Cells"]
    lines = [_markdown_line(head), _markdown_line([":--", *["--:"] * (len(head) - 1)])]
    for row in rows:
        cells = [_markdown_number(row, column) for column in COLUMNS]
        lines.append(_markdown_line([markdown_text(row.label), *cells, _cells_text(row) or row.state]))
    return "\n".join(lines)


def _markdown_number(row: Row, column: Column) -> str:
    links: tuple[str, ...] = getattr(row, column.source)
    main = column.main(row)
    if main != words.NOTHING and len(links) == 1:
        main = f"[{main}]({links[0]})"
    small = markdown_text(column.small(row))
    return f"{main} {small}".strip()


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text.replace("\n", " "))


def row_record(row: Row) -> dict[str, Any]:
    """A row as plain JSON: shares as numbers, not as percent."""
    return asdict(row)
