"""What a training adds to the groups of its manifest."""

from pydantic import Field

from essence.record.written import Group, Number


class Validation(Group):
    """One look at the validation rows."""

    step: int
    ce: Number
    parts: list[Number] | None = None
    """Of the rows of each rank that chooses; records of an earlier version have none."""


class TrainResults(Group):
    steps: int
    best_step: int | None
    best_validation_ce: Number | None
    lowest_step: int | None = None
    lowest_validation_ce: Number | None = None
    last_loss: Number | None
    validations: list[Validation]


class RowsRecord(Group):
    """Rows as they were read after truncation."""

    rows: int
    tokens: int | None = None
    supervised_tokens: int | None = None
    sha256: str | None = None
    skipped: dict[str, int] = Field(default_factory=dict)
    """Reason -> rows left out; of readings, readings left out."""
    noted: dict[str, int] = Field(default_factory=dict)
    """What is said of rows that are there -> of how many; of readings, of how many readings."""
    readings: int | None = None
    """Of a schedule, which reads another part of a row in every epoch; None where a row is the same in all."""


class TrainData(Group):
    train: RowsRecord | None = None
    validation: RowsRecord | None = None


class ParallelRecord(Group):
    backend: str | None = None
    processes: int | None = None
    nodes: int | None = None
    teacher: str | None = None
    """Placement, or `cached`."""


class ObjectiveFacts(Group):
    form: str | None = None
    """`chunked` or `plain`."""


class Preflight(Group):
    objective: ObjectiveFacts = Field(default_factory=ObjectiveFacts)


class TrainExecuted(Group):
    batch_rows: int | None = None
    batch_tokens: int | None = None
    parallel: ParallelRecord = Field(default_factory=ParallelRecord)
    attention: str | None = None
    dtype: str | None = None
    device: str | None = None
    preflight: Preflight = Field(default_factory=Preflight)


class RowsResolved(Group):
    train_rows: int | None = None
    validation_rows: int | None = None
    token_budget: int | None = None


class ViewResolved(Group):
    lsp: Number | None = None
    span: str | None = None
    sections: str | None = None


class ObjectiveResolved(Group):
    kd_weight: Number = 0.0
    temperature: Number = 1.0
    divergence: str = "divergence"


class OptimizerResolved(Group):
    epochs: int | None = None
    batch_rows: int | None = None
    batch_tokens: int | None = None
    max_lr: Number | None = None


class TrainResolved(Group):
    rows: RowsResolved = Field(default_factory=RowsResolved)
    view: ViewResolved = Field(default_factory=ViewResolved)
    objective: ObjectiveResolved = Field(default_factory=ObjectiveResolved)
    optimizer: OptimizerResolved = Field(default_factory=OptimizerResolved)
    compute_dtype: str | None = None
    parallel: str | None = None
    processes: int | None = None
    seed: int | None = None
