"""A claim as `experiments/claims.toml` states it; unknown keys and values that contradict each other are errors."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from essence.errors import ExperimentError
from essence.plan.experiment import EXPERIMENTS
from essence.settings import LSP, Count, Factor, Record, Sections, Share, Span
from essence.settings.toml import read_toml, validate

CLAIMS_FILE = EXPERIMENTS / "claims.toml"
QUESTIONS_FILE = EXPERIMENTS / "questions.toml"

Measure = Literal[
    "retention",
    "best-retention",
    "cost-ratio",
    "fits-only-truncated",
    "sections",
    "sections-inside",
    "loss-of-halves",
    "left-over-right",
    "largest-change",
    "rise",
    "plateau",
    "token-matched",
    "arm-over-arm",
    "amount-over-share",
    "proxy",
    "none",
]
Proxy = Literal["first_answer_place", "cues_before_answer", "same_answer"]
"""What `invoke traces` counts in rows: fields of its record (essence/record/trace_record.py)."""
Quantity = Literal["accuracy", "length", "stopped", "capped"]
"""What two arms are compared in: share correct, tokens of a completion, share that stopped by itself, or at the cap."""
Value = Annotated[float, Field(ge=-1e9, le=1e9)]
Limit = Annotated[float, Field(strict=True, allow_inf_nan=True)]
"""Of an interval, which may be open: `inf` is no upper limit."""


class Claim(Record):
    """One claim of the paper, or one question of the kit's own, and how ours is measured."""

    id: str
    title: str
    grade: Literal["A", "B", "kit"]
    """A: read in the abstract or the released code. B: a second-hand summary of the full paper. kit: a question of the
    kit's own, in a file and a table of its own."""
    source: str
    measure: Measure
    unit: Literal["share", "points", "times", "count"]
    """How values are written: 91.0 %, +12.5 points, 0.50 x, 1.9."""
    checkpoint: Literal["best", "last"]
    span: Span
    sections: Sections
    lsp: LSP | None = None
    reported: Value | None = None
    reported_words: str = ""
    """The reported value as the paper puts it: `about half`."""
    tolerance: Factor | None = None
    accepts: Annotated[tuple[Limit, Limit], Field(strict=False)] | None = None
    """Values of ours that count as reproduced, where nothing is reported that a tolerance could be laid around; of a
    question, those that answer it with yes."""
    also_reported: str = ""
    """What another version of the paper says, as what it is: `v1 said about 94 %`."""
    settings: Count | None = None
    """How many settings the published value is a mean over."""
    cost: Literal["time", "memory", "flops"] | None = None
    memory_gb: Factor | None = None
    training_sd_points: Factor | None = None
    """How far two trainings of one arm differ in accuracy, one standard deviation, where every arm was trained once."""
    training_sd_source: str = ""
    primary: bool = False
    """Judged at its own level; the others allow for their number where they fail."""
    proportions: Count | None = None
    """The fewest proportions below 1.0 that make a curve."""
    proxy: Proxy | None = None
    """Which of the counted quantities stands in for what the paper had judged."""
    against: Span | Literal["whole"] | None = None
    """Span of the other arm of a comparison, at the same `lsp`; `whole`: whole rows."""
    equal: Literal["tokens", "labels", "rows"] | None = None
    """What both arms must have as much of; arms that do not are not compared."""
    quantity: Quantity = "accuracy"
    near: Share | None = None
    """How far, as a share, two losses may lie apart and still be near each other."""
    teachers: list[str] = Field(default_factory=list)
    """Of these and the lists below, empty: all. What is outside is shown and not judged."""
    students: list[str] = Field(default_factory=list)
    pairs: list[str] = Field(default_factory=list)
    """`teacher_student`."""
    datasets: list[str] = Field(default_factory=list)
    benchmarks: list[str] = Field(default_factory=list)
    why_not: str = ""
    """Why nothing is measured."""

    @property
    def band(self) -> tuple[float, float]:
        """Values of ours that count as reproduced; all of them where nothing is judged."""
        if not self.is_judged:
            return -math.inf, math.inf
        if self.accepts:
            return self.accepts
        assert self.reported is not None and self.tolerance is not None
        return self.reported - self.tolerance, self.reported + self.tolerance

    def speaks_of(self, dataset: str, teacher: str, student: str, benchmark: str) -> bool:
        """Whether a setting is one of those that the claim is about; `benchmark` is empty for a training alone."""
        named = (
            (self.teachers, teacher),
            (self.students, student),
            (self.pairs, f"{teacher}_{student}"),
            (self.datasets, dataset),
            (self.benchmarks, benchmark),
        )
        return all(not names or not value or value in names for names, value in named)

    @property
    def anywhere(self) -> "Claim":
        """The same claim about any data, any pair of the named models and any benchmark: shown, not judged."""
        return self.model_copy(update={"pairs": [], "datasets": [], "benchmarks": [], "settings": None})

    @property
    def is_judged(self) -> bool:
        """Whether it gets a verdict: it is measured, and not by a stand-in."""
        return self.measure not in ("none", "proxy")

    @property
    def second_hand(self) -> bool:
        return self.grade == "B"

    @model_validator(mode="after")
    def _says_what_counts(self) -> Self:
        if self.measure == "none":
            if not self.why_not:
                raise ValueError('measure = "none" needs why_not')
            return self
        for field in NEEDS.get(self.measure, ()):
            if not getattr(self, field):
                raise ValueError(f'measure = "{self.measure}" needs {field}')
        if not self.is_judged:
            if self.accepts or self.tolerance:
                raise ValueError("is shown and not judged, so nothing is accepted: leave out accepts and tolerance")
            return self
        if (self.accepts is None) == (self.reported is None or self.tolerance is None):
            raise ValueError("needs either reported and tolerance, or accepts")
        if (self.training_sd_points is None) != (not self.training_sd_source):
            raise ValueError("training_sd_points needs training_sd_source, which says where it was measured")
        low, high = self.band
        if not low < high or math.isnan(low + high if math.isfinite(high) else low):
            raise ValueError(f"accepts nothing: {low} to {high}")
        return self


NEEDS: dict[str, tuple[str, ...]] = {
    "retention": ("lsp",),
    "best-retention": ("lsp",),
    "cost-ratio": ("lsp", "cost"),
    "fits-only-truncated": ("lsp", "memory_gb"),
    "sections": ("lsp",),
    "sections-inside": ("lsp",),
    "loss-of-halves": ("lsp", "near"),
    "left-over-right": ("lsp",),
    "largest-change": ("students",),
    "rise": ("lsp",),
    "plateau": ("lsp",),
    "token-matched": ("lsp",),
    "arm-over-arm": ("lsp", "against", "equal"),
    "proxy": ("proxy",),
}


class Rival(Record):
    """A published curve of others, drawn beside ours and no target of ours."""

    title: str
    source: str
    benchmark: str
    student: str
    accuracy: dict[str, Annotated[float, Field(ge=0.0, le=100.0)]]
    """Share of the trace kept -> accuracy in per cent."""


class ClaimsFile(Record):
    """The whole file."""

    defaults: dict[str, object]
    """Fields that every claim has unless it says otherwise."""
    claims: dict[str, dict[str, object]]
    """By id; checked one by one, so that an error names the claim."""
    rivals: list[Rival] = Field(default_factory=list)


class QuestionsFile(Record):
    """The whole file of the kit's own questions."""

    defaults: dict[str, object]
    """Fields that every question has unless it says otherwise."""
    questions: dict[str, dict[str, object]]
    """By id; checked one by one."""


def load_claims(file: Path = CLAIMS_FILE) -> list[Claim]:
    """The claims in the order of the file; ExperimentError names file, claim, key and the nearest known one."""
    document = validate(ClaimsFile, read_toml(file), str(file))
    claims = _checked(file, "claims", document.claims, document.defaults)
    for claim in claims:
        if claim.primary and claim.id != next(one.id for one in claims if one.primary):
            raise ExperimentError(f"{file}: [claims.{claim.id}] is primary, as another claim is: one alone can be")
        if claim.grade == "kit":
            raise ExperimentError(f"{file}: [claims.{claim.id}] is no claim of the paper: it belongs in questions.toml")
    return claims


def load_questions(file: Path = QUESTIONS_FILE) -> list[Claim]:
    """The kit's own questions in the order of the file; ExperimentError as for claims, and for a claim of the paper."""
    document = validate(QuestionsFile, read_toml(file), str(file))
    questions = _checked(file, "questions", document.questions, {"grade": "kit", **document.defaults})
    for question in questions:
        if question.grade != "kit":
            raise ExperimentError(
                f"{file}: [questions.{question.id}] is a claim of the paper: it belongs in claims.toml"
            )
    return questions


def _checked(
    file: Path, table: str, entries: Mapping[str, Mapping[str, object]], defaults: Mapping[str, object]
) -> list[Claim]:
    return [
        validate(Claim, {**defaults, **fields, "id": name}, f"{file}: [{table}.{name}]")
        for name, fields in entries.items()
    ]


def load_rivals(file: Path = CLAIMS_FILE) -> list[Rival]:
    """The published curves of others."""
    return validate(ClaimsFile, read_toml(file), str(file)).rivals
