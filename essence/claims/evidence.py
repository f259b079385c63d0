"""What the results of runs hold for claims: arms with their scores, arms with their costs.

A setting is a pair of models, a data set, a benchmark, a protocol and a number of rows: what must be equal on both
sides of a comparison.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from essence.claims.definition import Claim
from essence.record.canonical import canonical_json, sha256_text
from essence.report.records import COST_UNITS, Arm, Group, GroupKey, Results

RECIPE = ("rows", "objective", "optimizer", "lora", "compute_dtype", "teacher")


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
    """Hash of objective, optimizer, selection of rows and form of the teacher: others are not compared."""


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
    """The evidence of some experiments; an arm has the seeds of all of them, a training that they share once.

    Trainings without a teacher are no distillation, of which alone the paper's claims speak; the stored top-k of a
    teacher only approximates it.
    """
    runs: dict[Hashable, dict[str, Scored]] = {}
    trained: dict[tuple[str, ...], Trained] = {}
    for group in (group for one in results for group in one.groups):
        for arm in (arm for arm in group.arms if _counts(arm)):
            for training, found in _scored(group, arm):
                key = (found.setting, found.checkpoint, found.span, found.sections, found.lsp)
                runs.setdefault(key, {}).setdefault(training, found)
            for cell in _trained(group, arm):
                trained.setdefault(cell.stages, cell)
    scored: dict[tuple[str, ...], Scored] = {}  # two spans may share their arm at LSP 1.0
    for joined in (_joined(list(seeds.values())) for seeds in runs.values()):
        scored.setdefault(joined.stages, joined)
    return Evidence(tuple(scored.values()), tuple(trained.values()))


def _joined(seeds: Sequence[Scored]) -> Scored:
    """One arm of its seeds."""
    return replace(
        seeds[0],
        shares=tuple(shares for one in seeds for shares in one.shares),
        samples=min(one.samples for one in seeds),
        stages=tuple(stage for one in seeds for stage in one.stages),
    )


def _setting(key: GroupKey, arm: Arm, benchmark: str) -> Setting:
    return Setting(key.dataset, key.teacher, key.student, key.protocol, key.train_rows, benchmark, _recipe(arm))


def _settings(arm: Arm) -> dict[str, Any]:
    """What the arm's trainings were told; empty where none of their records is here."""
    found = (cell.train.look("settings", "resolved") for cell in arm.cells)
    return next((dict(settings) for settings in found if settings), {})


def _counts(arm: Arm) -> bool:
    """Whether the arm was distilled, and from the exact teacher."""
    settings = _settings(arm)
    return dict(settings.get("objective", {})).get("kd_weight") != 0.0 and settings.get("teacher") != "top-k"


def _recipe(arm: Arm) -> str:
    settings = _settings(arm)
    return sha256_text(canonical_json({name: settings.get(name) for name in RECIPE}))[:16]


def _scored(group: Group, arm: Arm) -> Iterator[tuple[str, Scored]]:
    """Id of each training with its score on each benchmark."""
    for cell in arm.cells:
        for score in (score for score in cell.scores if score.accuracy):
            yield (
                cell.train.id,
                Scored(
                    setting=_setting(group.key, arm, score.benchmark),
                    checkpoint=score.checkpoint,
                    span=group.key.span,
                    sections=group.key.sections,
                    lsp=arm.lsp,
                    shares=(score.shares,),
                    samples=score.samples // max(1, len(score.shares)),
                    confidence=score.confidence or 0.95,
                    stages=(score.grade.id,),
                ),
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
