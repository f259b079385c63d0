"""What the TOML file of an experiment may hold: its tables, their keys and bounds."""

from typing import Annotated, Literal

from pydantic import Field

from essence.settings import (
    LSP,
    ActivationCheckpointing,
    Count,
    GraderName,
    GradingSettings,
    Name,
    ObjectiveSettings,
    OptimizerPlacement,
    OptimizerSettings,
    Parallel,
    ParallelLoopSettings,
    ProtocolName,
    PublishedRows,
    Record,
    Resources,
    RolloutSettings,
    SamplingSettings,
    Sections,
    Seed,
    Span,
    TeacherPlacement,
    TokenBudget,
)
from essence.settings.base import Gib

SeedRule = Seed | Literal["cell"]
"""A fixed seed, or `"cell"`: the seed of the cell."""


class Matrix(Record):
    """One block of the matrix: the product of its axes. Axes that are not given come from `[axes]`."""

    dataset: list[Name]
    pair: list[str]
    """`teacher_student`, both by short name."""
    lsp: list[LSP]
    span: list[Span]
    sections: list[Sections]
    protocol: list[ProtocolName]
    seed: list[Seed]
    train_rows: list[Count]
    """Empty = as the data set says; otherwise an axis of its own (row-matched arms)."""
    token_budget: list[TokenBudget]
    """Empty = all of `train_rows`; otherwise rows, in order, until that many tokens are read (token-matched arms)."""


AXES = tuple(Matrix.model_fields)
OPTIONAL_AXES = ("train_rows", "token_budget")
"""Axes that may be empty."""


class Axes(Record):
    """Values for every block of the matrix that does not give its own."""

    dataset: list[Name] | None = None
    pair: list[str] | None = None
    lsp: list[LSP] | None = None
    span: list[Span] | None = None
    sections: list[Sections] | None = None
    protocol: list[ProtocolName] | None = None
    seed: list[Seed] | None = None
    train_rows: list[Count] | None = None
    token_budget: list[TokenBudget] | None = None


class DataSection(Record):
    """Rows of one data set."""

    max_row_tokens: Count
    train_rows: Count
    validation_rows: Count
    split_seed: SeedRule
    tokenizer: Literal["student", "teacher"]
    """Whose tokenizer and chat template render the rows."""
    published: PublishedRows | Literal["not read"] | None = None
    """Fingerprints of the released rows (experiments/fingerprints.toml), with which the record compares its own; "not
    read" where the list is published and its content was not at hand."""
    max_row_characters: Count
    """Longer rows are rejected unread: a guard against broken files, far above `max_row_tokens`."""
    max_rejected_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """The stage fails where a larger share of the rows is rejected."""
    note: str = ""


class DecontaminationSection(Record):
    """Evaluation problems among the training questions: counted always, removed when asked."""

    benchmarks: list[Name]
    overlap_words: Count
    remove: bool


class TrainingSection(ObjectiveSettings, OptimizerSettings, ParallelLoopSettings):
    """Objective, optimiser and loop; what the protocols decide is not here (essence/settings/protocol.py).

    `batch_rows` is the effective batch as stated, accumulation included.
    """

    gradient_accumulation: Count
    """The part of `batch_rows` that is accumulation; protocol `released` leaves it out (trap 1)."""
    rollouts: RolloutSettings
    """Of cells whose span is `rollout-k`; the others do not read it."""


class EvaluationSection(SamplingSettings):
    """Benchmarks and sampling."""

    benchmarks: Annotated[list[Name], Field(min_length=1)]
    baselines: list[Literal["student", "teacher"]]
    """Models that are evaluated as they come, beside the trained ones."""
    problems: Count | None = None
    """Take only the first so many problems of each benchmark."""
    seed: SeedRule
    expected_tokens: Count
    """Tokens a completion is expected to have; for estimates only."""


class GradingSection(GradingSettings):
    """Who grades, and how."""

    grader: GraderName | Literal["protocol"]
    """`protocol`: the one that the cell's protocol names (essence/settings/protocol.py)."""


class ResourcesSection(Resources):
    parallel_stages: Annotated[int, Field(gt=0, le=1000)]
    """Stages without GPUs that run at the same time; of those with GPUs as many do as find free ones."""
    host_memory_gib: Gib
    """Main memory of the machine that is planned for; a plan marks what needs more. Nothing is limited to it."""


OF_RESOURCES = {"activation_checkpointing", "micro_batch_tokens"}
"""Keys of `[by_pair]` that change `[resources]`; the others change `[training]`."""


class PairSection(Record):
    """What a teacher-student pair changes of `[training]` and `[resources]`, so that all pairs fit one machine."""

    parallel: Parallel | None = None
    teacher_placement: TeacherPlacement | None = None
    optimizer_placement: OptimizerPlacement | None = None
    activation_checkpointing: ActivationCheckpointing | None = None
    micro_batch_tokens: Count | None = None


class ModelSection(Record):
    """What the evaluation of a model changes of `[resources]`."""

    tensor_parallel: Annotated[int, Field(gt=0, le=1024)]


class ExperimentSchema(Record):
    """One experiment file, everything resolved."""

    title: str
    note: str = ""
    """What the reader of the report should know first."""
    extends: str | None = None
    axes: Axes
    matrix: Annotated[list[Matrix], Field(min_length=1)]
    data: dict[Name, DataSection]
    decontamination: DecontaminationSection
    training: TrainingSection
    evaluation: EvaluationSection
    grading: GradingSection
    resources: ResourcesSection
    by_pair: dict[str, PairSection] = Field(default_factory=dict)
    """`teacher_student` -> what its trainings change."""
    by_model: dict[Name, ModelSection] = Field(default_factory=dict)
    """Model -> what its evaluations change; for a trained model that of its student."""
