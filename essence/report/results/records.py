"""The records of a report: cells, groups of cells, baselines.

A group holds the cells that differ only in LSP and seed; an arm is a group at one LSP, pooled over seeds. `results.py`
fills these records from a run directory; everything else in this package only shows them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, SkipValidation

from essence.evaluation.statistics import Estimate
from essence.record.machine_load import MachineLoad, mean_load
from essence.record.run_directory import State
from essence.record.trace_record import TraceRecord
from essence.report.results.cost_forms import UNKNOWN_FORM, TrainingForm, form_of
from essence.report.results.stage_reader import StageEvidence
from essence.settings import ProtocolName, Sections, Span
from essence.settings.axes import CellAxes

COST_UNITS = {
    "time": "wall_s", "memory": "peak_memory_gib", "flops": "flops", "energy": "energy_j", "tokens": "kept_tokens",
}  # fmt: skip
"""What a cell's training costs: word in the report -> field of `Cost`."""
FULL = 1.0
"""The proportion that everything is compared with."""
Evaluation = tuple[str, str]
"""(benchmark, checkpoint)."""
Ending = Literal["length", "stopped", "capped"]
"""How completions end, with an interval: mean tokens, share that stopped by itself, share at the token cap."""
ENDINGS: tuple[Ending, ...] = ("length", "stopped", "capped")


@dataclass(frozen=True)
class Cost:
    """What the training of a cell took; None where its manifest does not say."""

    wall_s: float | None = None
    peak_memory_gib: float | None = None
    """Device memory where there is a device, else resident memory of the process."""
    flops: float | None = None
    energy_j: float | None = None
    """Joules, where the driver reports them."""
    kept_tokens: float | None = None
    """Tokens of the training rows after truncation."""

    def of(self, word: str) -> float | None:
        """The value of one of `COST_UNITS`."""
        value: float | None = getattr(self, COST_UNITS[word])
        return value


@dataclass(frozen=True)
class Score:
    """One model on one benchmark, as its grade manifest says."""

    benchmark: str
    checkpoint: str
    generate: StageEvidence
    grade: StageEvidence
    accuracy: Estimate | None = None
    """As graded; None until it is."""
    shares: dict[str, float] = field(default_factory=dict, repr=False)
    """Problem -> share of its samples that are correct."""
    samples: int = 0
    """Completions graded."""
    capped_share: float | None = None
    """Share of completions that ended at the token cap."""
    mean_tokens: float | None = None
    finish_reasons: dict[str, int] = field(default_factory=dict, repr=False)
    """How many completions ended how: `stop`, `length`, `loop`."""
    endings: dict[Ending, Estimate] = field(default_factory=dict)
    """Mean tokens of a completion, share that stopped by itself, share at the cap, as graded; empty in earlier
    records."""
    ending_means: dict[Ending, dict[str, float]] = field(default_factory=dict, repr=False)
    """The same of each problem: a mean over its samples."""
    retention: Estimate | None = None
    """Against the cell of the same seed at LSP 1.0, where `claims/retention_rows.py` computed it."""

    @property
    def evaluation(self) -> Evaluation:
        return self.benchmark, self.checkpoint

    @property
    def confidence(self) -> float | None:
        """Level of the interval, `0.95`."""
        return self.grade.graded.results.confidence if self.grade.graded else None


class CellResult(CellAxes):
    """One training, its evaluations, and the stages it consists of."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str
    train: SkipValidation[StageEvidence]
    scores: SkipValidation[tuple[Score, ...]]
    stages: SkipValidation[tuple[StageEvidence, ...]] = Field(repr=False)
    """All stages of the cell, first to last; shared ones too."""

    @property
    def state(self) -> State:
        """Done when every stage is; else the most telling state of its stages."""
        states = {stage.state for stage in self.stages}
        order: tuple[State, ...] = ("failed", "running", "interrupted", "left", "done")
        return next(state for state in order if state in states) if states else "left"

    @property
    def state_words(self) -> str:
        """`done`, or the stage that keeps the cell from it: `grade failed: no such file`."""
        if self.state == "done":
            return "done"
        if self.state == "left" and any(stage.stage == "train" and stage.state == "done" for stage in self.stages):
            return "trained, not evaluated"
        first = next((stage for stage in self.stages if stage.state == self.state), None)
        return f"{first.stage} {first.state_words}" if first and self.state != "left" else "not run"

    @property
    def cost(self) -> Cost:
        manifest = self.train.training
        if manifest is None:
            return Cost()
        cost, rows = manifest.cost, manifest.inputs.data.train
        device = cost.peak_gpu_memory_gib
        return Cost(
            wall_s=cost.wall_s,
            peak_memory_gib=device if device is not None else cost.peak_memory_gib,
            flops=cost.flops,
            energy_j=cost.energy_j,
            kept_tokens=rows.tokens if rows else None,
        )

    @property
    def form(self) -> TrainingForm:
        """How its training ran: costs are divided by those of the same form."""
        return form_of(self.train.training) if self.train.training else UNKNOWN_FORM

    def score(self, evaluation: Evaluation) -> Score | None:
        """One evaluation, if the plan has it."""
        return next((s for s in self.scores if s.evaluation == evaluation), None)


@dataclass(frozen=True)
class GroupKey:
    """What the cells of a group have in common."""

    dataset: str
    teacher: str
    student: str
    span: Span
    sections: Sections
    protocol: ProtocolName
    train_rows: int | None = None
    token_budget: int | None = None

    @property
    def title(self) -> str:
        """`bespoke, qwen3-8b → qwen3-4b-base`."""
        return f"{self.dataset}, {self.teacher} → {self.student}"

    @property
    def details(self) -> str:
        """`p+cot+a supervised, released protocol`, and what else sets it apart."""
        parts = [f"{self.sections} supervised", f"{self.protocol} protocol"]
        parts += [f"{self.span} span"] if self.span != "left" else []
        parts += [f"{self.train_rows:,} rows"] if self.train_rows else []
        parts += [f"rows of {self.token_budget:,} tokens"] if self.token_budget else []
        return ", ".join(parts)

    @property
    def label(self) -> str:
        """Title and details in one line."""
        return f"{self.title}, {self.details}"


@dataclass(frozen=True)
class Pooled:
    """One arm on one benchmark, over its seeds."""

    accuracy: Estimate
    scores: tuple[Score, ...]
    capped_share: float | None
    mean_tokens: float | None
    endings: dict[Ending, Estimate] = field(default_factory=dict)
    """As those of a score, over its seeds."""
    retention: Estimate | None = None
    """Against the pooled LSP 1.0 arm of the reference group, where `claims/retention_rows.py` computed it."""

    @property
    def samples(self) -> int:
        return sum(score.samples for score in self.scores)


@dataclass(frozen=True)
class Arm:
    """A group at one LSP."""

    lsp: float
    cells: tuple[CellResult, ...]
    pooled: dict[Evaluation, Pooled]
    """Only what has at least one graded cell."""
    cost: dict[str, float]
    """Mean over the cells, by word of `COST_UNITS`."""
    ratio: dict[str, float]
    """The same against the LSP 1.0 arm of the reference group."""
    unlike: dict[str, str]
    """Word -> why that cost has no ratio, where both arms have it."""

    @property
    def load(self) -> MachineLoad:
        """Mean over its trainings."""
        return mean_load([cell.train.load for cell in self.cells])


@dataclass(frozen=True)
class Group:
    """Cells that differ only in LSP and seed, by LSP."""

    key: GroupKey
    reference: GroupKey | None
    """The group whose LSP 1.0 arm ratios are taken against; None when no such arm is in the plan."""
    arms: tuple[Arm, ...]

    @property
    def cells(self) -> tuple[CellResult, ...]:
        return tuple(cell for arm in self.arms for cell in arm.cells)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations of the plan, in its order."""
        return tuple(dict.fromkeys(score.evaluation for cell in self.cells for score in cell.scores))


@dataclass(frozen=True)
class Baseline:
    """A model evaluated as it comes: the untrained student, or the teacher."""

    role: str
    model: str
    protocol: str
    scores: tuple[Score, ...]

    def matches(self, key: GroupKey) -> bool:
        """True when this is the group's own student or teacher under its protocol."""
        return self.protocol == key.protocol and self.model == (key.student if self.role == "student" else key.teacher)


@dataclass(frozen=True)
class Results:
    """One experiment."""

    run_dir: Path
    experiment: str
    title: str
    note: str
    groups: tuple[Group, ...]
    baselines: tuple[Baseline, ...]
    stages: tuple[StageEvidence, ...] = field(repr=False)
    accepted: tuple[str, ...] = ()
    """Sentences on what was taken from earlier code, and on counts that cannot be believed."""
    traces: tuple[TraceRecord, ...] = ()
    """What was counted in the rows of its data sets."""

    @property
    def cells(self) -> tuple[CellResult, ...]:
        return tuple(cell for group in self.groups for cell in group.cells)

    @property
    def refused(self) -> tuple[StageEvidence, ...]:
        """Stages whose record is there and counts for nothing: edited, damaged, or of a newer kit."""
        return tuple(stage for stage in self.stages if stage.problem)

    @property
    def done(self) -> bool:
        """True when every stage of the plan is."""
        return all(stage.state == "done" for stage in self.stages)

    def baseline(self, role: str, key: GroupKey, benchmark: str) -> Score | None:
        """The graded score of a group's untrained student or teacher on a benchmark."""
        found = (s for b in self.baselines if b.role == role and b.matches(key) for s in b.scores)
        return next((s for s in found if s.benchmark == benchmark and s.accuracy), None)


FigureKind = Literal["accuracy", "retention", "cost", "loss", "picture"]


@dataclass(frozen=True)
class Figure:
    """One drawn figure."""

    name: str
    """Stem of its files in `figures/`."""
    kind: FigureKind
    title: str
    caption: str
    alt: str
    """The values in words."""
    svg: str = field(repr=False)
    png: bytes = field(repr=False)
    evaluation: Evaluation | None = None
    """What it shows the scores of; None for costs and losses."""
    data: str = field(default="", repr=False)
    """CSV of what it shows, a file beside it; empty where the tables have the same."""

    def with_data(self, text: str) -> "Figure":
        """The figure with its numbers beside it."""
        return replace(self, data=text)
