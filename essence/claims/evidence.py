"""What the results of runs hold for claims: arms with their scores, arms with their costs.

A setting is a pair of models, a data set, a benchmark, a protocol and a number of rows: what must be equal on both
sides of a comparison.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from essence.claims.definition import Claim
from essence.record.canonical import canonical_json, sha256_text
from essence.report.records import COST_UNITS, Arm, Group, GroupKey, Results, Score

RECIPE = ("rows", "objective", "optimizer", "lora", "compute_dtype")


class Setting(NamedTuple):
    """What both sides of a comparison have in common."""

    dataset: str
    teacher: str
    student: str
    protocol: str
    train_rows: int | None
    benchmark: str
    """Empty where the cost of training is compared."""
    recipe: str = ""
    """Hash of objective, optimizer and selection of rows: arms that were trained otherwise are not compared."""


@dataclass(frozen=True)
class Scored:
    """One arm on one benchmark: the shares of correct samples by problem, a dictionary for each seed."""

    setting: Setting
    checkpoint: str
    span: str
    sections: str
    lsp: float
    shares: tuple[dict[str, float], ...] = field(repr=False)
    samples: int
    """Of a problem, the fewest of any seed."""
    confidence: float
    stages: tuple[str, ...]
    """Ids of the grade stages."""


@dataclass(frozen=True)
class Trained:
    """What one training cost."""

    setting: Setting
    span: str
    sections: str
    lsp: float
    seed: int
    cost: dict[str, float]
    """By word of `COST_UNITS`."""
    on_gpu: bool
    stages: tuple[str, ...]
    validation_ce: float | None = None
    """Lowest cross-entropy on the validation rows."""


@dataclass(frozen=True)
class Evidence:
    """All that claims are measured on."""

    scored: tuple[Scored, ...]
    trained: tuple[Trained, ...]

    def under(self, protocol: str) -> "Evidence":
        """The part of one protocol."""
        return Evidence(
            tuple(arm for arm in self.scored if arm.setting.protocol == protocol),
            tuple(cell for cell in self.trained if cell.setting.protocol == protocol),
        )

    @property
    def protocols(self) -> list[str]:
        """The protocols that anything was run under, in order of appearance."""
        settings = [cell.setting for cell in self.trained] + [arm.setting for arm in self.scored]
        return list(dict.fromkeys(setting.protocol for setting in settings))

    def of(self, claim: Claim, *, any_span: bool = False, any_sections: bool = False) -> list[Scored]:
        """The scored arms that a claim speaks of."""
        return [
            arm
            for arm in self.scored
            if arm.checkpoint == claim.checkpoint
            and (any_span or arm.lsp == 1.0 or arm.span == claim.span)
            and (any_sections or arm.sections == claim.sections)
            and _named(arm.setting, claim)
        ]

    def trainings_of(self, claim: Claim, *, any_span: bool = False) -> list[Trained]:
        """The trainings that a claim speaks of."""
        return [
            cell
            for cell in self.trained
            if (any_span or cell.lsp == 1.0 or cell.span == claim.span)
            and cell.sections == claim.sections
            and _named(cell.setting, claim)
        ]


def _named(setting: Setting, claim: Claim) -> bool:
    """Whether the claim speaks of these models and this benchmark; an empty list means all."""
    named = (
        (claim.teachers, setting.teacher),
        (claim.students, setting.student),
        (claim.benchmarks, setting.benchmark),
    )
    return all(not names or value in names for names, value in named)


def gather(results: Iterable[Results]) -> Evidence:
    """The evidence of some experiments; a stage that two of them share counts once.

    Trainings without a teacher are no distillation, of which alone the paper's claims speak.
    """
    scored: dict[tuple[str, ...], Scored] = {}
    trained: dict[tuple[str, ...], Trained] = {}
    for group in (group for one in results for group in one.groups):
        for arm in (arm for arm in group.arms if _distilled(arm)):
            for found in _scored(group, arm):
                scored.setdefault(found.stages, found)
            for cell in _trained(group, arm):
                trained.setdefault(cell.stages, cell)
    return Evidence(tuple(scored.values()), tuple(trained.values()))


def _setting(key: GroupKey, arm: Arm, benchmark: str) -> Setting:
    return Setting(key.dataset, key.teacher, key.student, key.protocol, key.train_rows, benchmark, _recipe(arm))


def _settings(arm: Arm) -> dict[str, Any]:
    """What the arm's trainings were told; empty where none of their records is here."""
    found = (cell.train.look("settings", "resolved") for cell in arm.cells)
    return next((dict(settings) for settings in found if settings), {})


def _distilled(arm: Arm) -> bool:
    return dict(_settings(arm).get("objective", {})).get("kd_weight") != 0.0


def _recipe(arm: Arm) -> str:
    settings = _settings(arm)
    return sha256_text(canonical_json({name: settings.get(name) for name in RECIPE}))[:16]


def _scored(group: Group, arm: Arm) -> Iterable[Scored]:
    for (benchmark, checkpoint), pooled in arm.pooled.items():
        scores: tuple[Score, ...] = pooled.scores
        yield Scored(
            setting=_setting(group.key, arm, benchmark),
            checkpoint=checkpoint,
            span=group.key.span,
            sections=group.key.sections,
            lsp=arm.lsp,
            shares=tuple(score.shares for score in scores),
            samples=min(score.samples // max(1, len(score.shares)) for score in scores),
            confidence=next((s.confidence for s in scores if s.confidence), 0.95),
            stages=tuple(score.grade.id for score in scores),
        )


def _trained(group: Group, arm: Arm) -> Iterable[Trained]:
    for cell in arm.cells:
        cost = {word: value for word in COST_UNITS if (value := cell.cost.of(word)) is not None}
        ce = cell.train.number("results", "best_validation_ce")
        if cost:
            on_gpu = cell.train.number("cost", "peak_gpu_memory_gib") is not None
            key = group.key
            yield Trained(
                _setting(key, arm, ""), key.span, key.sections, arm.lsp, cell.seed, cost, on_gpu, (cell.train.id,), ce
            )
