"""The table: one list of columns, shown in the terminal, in report.md, on the page and, as plain numbers, in JSON."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from essence.evaluation.statistics import Estimate
from essence.record.machine_load import UNKNOWN_LOAD, MachineLoad
from essence.report.results.records import CellResult, Ending, Evaluation, Group, Results, Score
from essence.text import duration, interval, magnitude, memory, percent, proportion, times, whole

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
    endings: dict[Ending, Estimate]
    """Length, stop rate and cap hits with their intervals."""
    state: str
    grades: tuple[str, ...]
    """Links to the manifests behind accuracy, retention and lengths."""
    trains: tuple[str, ...]
    """Links to the manifests behind the costs."""
    load: MachineLoad = UNKNOWN_LOAD
    """How much of the machine the trainings had."""

    def as_json(self) -> dict[str, object]:
        """The row of report.json: shares as numbers, not as percent."""
        return asdict(self)


@dataclass(frozen=True)
class Column:
    """How one number of a row is shown: the main text, and small print under it."""

    title: str
    source: Literal["grades", "trains"]
    main: Callable[[Row], str]
    small: Callable[[Row], str] = lambda _: ""
    load: Callable[[Row], str] = lambda _: ""
    """What a measured time is to be read beside."""
    hint: str = ""
    """What the column holds, for a tooltip and the legend."""


def _cost(word: str, show: Callable[[float | None], str]) -> tuple[Callable[[Row], str], Callable[[Row], str]]:
    return lambda row: show(row.cost.get(word)), lambda row: times(row.ratio[word]) if word in row.ratio else ""


ACCURACY_HINT = (
    "Wilson’s interval, problems as clusters: where most problems are never solved it is too narrow, and one of 95 % "
    "holds the truth in 84 to 93 %, at an accuracy of 2 % in 78 %"
)
COLUMNS = (
    Column(
        "Accuracy", "grades", lambda r: percent(r.accuracy.value if r.accuracy else None),
        lambda r: interval(r.accuracy), hint=ACCURACY_HINT,
    ),
    Column(
        "Retention", "grades", lambda r: percent(r.retention.value if r.retention else None),
        lambda r: interval(r.retention), hint="share of the accuracy at LSP 1.0 that is kept",
    ),
    Column("Tokens", "trains", *_cost("tokens", magnitude), hint="training rows after truncation"),
    Column(
        "Time", "trains", *_cost("time", duration), lambda r: r.load.words,
        "wall time, below it wall over processor time (wall/CPU) or how busy the GPUs were: where that "
        "differs between rows, the machine did other work too",
    ),
    Column("Memory", "trains", *_cost("memory", memory)),
    Column("FLOPs", "trains", *_cost("flops", magnitude)),
    Column("At cap", "grades", lambda r: percent(r.capped_share), hint="completions cut off at the token cap"),
    Column("Length", "grades", lambda r: whole(r.mean_tokens), hint="mean tokens a completion"),
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
                label=proportion(arm.lsp),
                lsp=arm.lsp,
                graded=len(scores),
                planned=len(arm.cells),
                samples=sum(score.samples for score in scores),
                accuracy=pooled.accuracy if pooled else None,
                retention=pooled.retention if pooled else None,
                cost=arm.cost,
                ratio=arm.ratio,
                capped_share=pooled.capped_share if pooled else None,
                mean_tokens=pooled.mean_tokens if pooled else None,
                endings=pooled.endings if pooled else {},
                state=f"{len(scores)} of {len(arm.cells)} graded",
                grades=tuple(score.grade.link for score in scores),
                trains=tuple(cell.train.link for cell in arm.cells if cell.train.state == "done"),
                load=arm.load,
            )
        )
    return [row for row in [*rows, baselines["teacher"]] if row]


def _baseline_row(results: Results, group: Group, benchmark: str, role: str) -> Row | None:
    score = results.baseline(role, group.key, benchmark)
    if score is None:
        return None
    return _score_row("student" if role == "student" else "teacher", ROLE_WORDS[role], score, "done")


def _score_row(role: Role, label: str, score: Score | None, state: str) -> Row:
    """One model on one benchmark; what a training adds is `_cell_row`'s."""
    graded = score is not None and score.accuracy is not None
    return Row(
        role=role,
        label=label,
        lsp=None,
        graded=int(graded),
        planned=1,
        samples=score.samples if score else 0,
        accuracy=score.accuracy if score else None,
        retention=score.retention if score else None,
        cost={},
        ratio={},
        capped_share=score.capped_share if score else None,
        mean_tokens=score.mean_tokens if score else None,
        endings=score.endings if score else {},
        state=state,
        grades=(score.grade.link,) if score and graded else (),
        trains=(),
    )


def cell_rows(group: Group, evaluation: Evaluation) -> list[Row]:
    """Every cell of a group on its own, by LSP and seed, whatever its state."""
    return [_cell_row(cell, arm.cost, arm.ratio, evaluation) for arm in group.arms for cell in arm.cells]


def _cell_row(cell: CellResult, arm_cost: dict[str, float], arm_ratio: dict[str, float], evaluation: Evaluation) -> Row:
    cost = {word: value for word in arm_cost if (value := cell.cost.of(word)) is not None}
    label = f"{proportion(cell.lsp)} · seed {cell.seed}"
    return replace(
        _score_row("cell", label, cell.score(evaluation), cell.state_words),
        lsp=cell.lsp,
        cost=cost,
        ratio={w: value / arm_cost[w] * arm_ratio[w] for w, value in cost.items() if w in arm_ratio and arm_cost[w]},
        trains=(cell.train.link,) if cell.train.state == "done" else (),
        load=cell.train.load,
    )


def cells_text(row: Row) -> str:
    """`2 / 2`: graded and planned cells of an arm."""
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
