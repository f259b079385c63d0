"""What claims are measured on: arms with their scores, arms with their costs.

A setting is a pair of models, a data set, a benchmark, a protocol, and how the arms were trained and evaluated: what
must be equal on both sides of a comparison.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from essence.record.machine_load import UNKNOWN_LOAD, MachineLoad
from essence.record.trace_record import TraceRecord
from essence.report.claims.definition import Claim, Quantity
from essence.report.results.cost_forms import UNKNOWN_FORM, TrainingForm
from essence.report.results.records import Ending
from essence.settings import is_whole

LEVEL = 0.95
"""Of the intervals that verdicts go by."""


class Setting(NamedTuple):
    """What both sides of a comparison have in common."""

    dataset: str
    teacher: str
    student: str
    protocol: str
    benchmark: str
    """Empty where the cost of training is compared."""
    recipe: str = ""
    """Hash of objective, optimizer, selection of rows and form of the teacher: others are not compared."""
    evaluation: str = ""
    """Hash of how completions were sampled and graded; empty as the benchmark is."""


@dataclass(frozen=True)
class Scored:
    """One arm on one benchmark: the shares of correct samples by problem, a dictionary for each seed."""

    setting: Setting
    checkpoint: str
    span: str
    sections: str
    lsp: float
    shares: tuple[dict[str, float], ...] = field(repr=False)
    trainings: tuple[str, ...]
    """Which training each of these is; the same one may be graded on several benchmarks."""
    samples: int
    """Of a problem, the fewest of any seed."""
    stages: tuple[str, ...]
    """Ids of the grade stages."""
    matched: str = ""
    """As the setting's recipe, without the number of rows: what two arms of equal tokens have in common."""
    tokens: float | None = None
    """Of the training rows after truncation."""
    labels: float | None = None
    """Of them, the tokens that are supervised."""
    rows: int | None = None
    """Training rows, as its record counted them."""
    budget: bool = False
    """Whether its rows were chosen so that a number of tokens is read (`token_budget`): more of them at a lower LSP."""
    endings: tuple[dict[Ending, dict[str, float]], ...] = field(default=(), repr=False)
    """As `shares`, for each seed: tokens of a completion, shares that stopped or met the cap, by problem."""

    def in_place_of_accuracy(self, quantity: Quantity) -> "Scored | None":
        """The arm with another quantity where its shares stand; None where a record does not have it."""
        if quantity == "accuracy":
            return self
        found = tuple(one[quantity] for one in self.endings if one.get(quantity))
        return replace(self, shares=found) if found and len(found) == len(self.shares) else None

    @property
    def whole(self) -> bool:
        """Whether it was trained on whole rows."""
        return is_whole(self.lsp, self.span)

    @property
    def completions(self) -> int:
        return sum(len(seed) for seed in self.shares) * self.samples


class Ran(NamedTuple):
    """Where and when a training ran, in seconds since 1970."""

    host: str
    started: float
    finished: float

    def beside(self, other: "Ran") -> bool:
        """Whether the two shared a machine for a while."""
        return self.host == other.host and self.started < other.finished and other.started < self.finished


@dataclass(frozen=True)
class Trained:
    """What one training cost."""

    setting: Setting
    span: str
    sections: str
    lsp: float
    seed: int
    cost: dict[str, float]
    """By word of `COST_UNITS`; the time is that of the wall, in seconds."""
    stages: tuple[str, ...]
    form: TrainingForm = UNKNOWN_FORM
    """How it ran: costs are compared with those of the same form only."""
    step_time: float | None = None
    """Median of its steps x their number, in seconds; None where no step tells its time."""
    validation_ce: float | None = None
    """Lowest cross-entropy on the validation rows."""
    load: MachineLoad = UNKNOWN_LOAD
    """What other work on the machine shows in."""
    ran: Ran | None = None
    budget: bool = False
    """As that of a scored arm."""

    @property
    def whole(self) -> bool:
        """Whether it was trained on whole rows."""
        return is_whole(self.lsp, self.span)


@dataclass(frozen=True)
class Evidence:
    """All that claims are measured on."""

    scored: tuple[Scored, ...]
    trained: tuple[Trained, ...]
    untrained: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Accuracy of a student as it comes, by student, protocol and benchmark."""
    level: float = LEVEL
    """Of every interval: higher at a later look."""
    traces: tuple[TraceRecord, ...] = ()
    """What was counted in the rows of data sets, under whatever protocol."""

    def under(self, protocol: str) -> "Evidence":
        """The part of one protocol."""
        return replace(
            self,
            scored=tuple(arm for arm in self.scored if arm.setting.protocol == protocol),
            trained=tuple(cell for cell in self.trained if cell.setting.protocol == protocol),
        )

    def at(self, level: float) -> "Evidence":
        """The same with intervals of another level."""
        return replace(self, level=level)

    @property
    def equal_tokens_alone(self) -> bool:
        """Whether all trainings were given rows by a number of tokens."""
        return bool(self.trained) and all(cell.budget for cell in self.trained)

    def inside(self, claim: Claim) -> bool:
        """Whether anything was run in a setting that the claim is about."""
        return any(_about(cell.setting, claim) for cell in self.trained) or any(
            _about(arm.setting, claim) for arm in self.scored
        )

    def of(self, claim: Claim, *, any_span: bool = False, any_sections: bool = False) -> list[Scored]:
        """The scored arms that a claim speaks of."""
        return [
            arm
            for arm in self.scored
            if arm.checkpoint == claim.checkpoint
            and (any_span or arm.whole or arm.span == claim.span)
            and (any_sections or arm.sections == claim.sections)
            and _of_rows(arm, claim)
            and _about(arm.setting, claim)
        ]

    def trainings_of(self, claim: Claim, *, any_span: bool = False) -> list[Trained]:
        """The trainings that a claim speaks of."""
        return [
            cell
            for cell in self.trained
            if (any_span or cell.whole or cell.span == claim.span)
            and cell.sections == claim.sections
            and _of_rows(cell, claim)
            and _about(cell.setting, claim)
        ]


def _of_rows(one: Scored | Trained, claim: Claim) -> bool:
    """The paper compares arms of the same rows; arms of the same tokens answer the kit's own questions alone."""
    return claim.grade == "kit" or not one.budget


def _about(setting: Setting, claim: Claim) -> bool:
    return claim.speaks_of(setting.dataset, setting.teacher, setting.student, setting.benchmark)
