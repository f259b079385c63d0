"""What a training adds to the groups of its manifest."""

from pydantic import Field, JsonValue

from essence.record.manifest import CostMore
from essence.record.record_files import Group, Number
from essence.settings import PositionsRecord


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


class OrderRecord(Group):
    """The order of the training rows, epoch by epoch."""

    published: str | None = None
    epochs: list[PositionsRecord] = Field(default_factory=list)
    differs: dict[str, JsonValue] = Field(default_factory=dict)
    """Epoch -> number -> `[ours, published]`."""


class SelectionRecord(Group):
    """Which rows of the data set were selected, beside what is published of them (essence/distill/row_split.py)."""

    published: str | None = None
    """`equal`, `different`, `published, not read by the kit`, or `not published`."""
    kept: PositionsRecord | None = None
    train: PositionsRecord | None = None
    validation: PositionsRecord | None = None
    differs: dict[str, JsonValue] = Field(default_factory=dict)
    """Part -> number -> `[ours, published]`."""
    order: OrderRecord | None = None


class TrainData(Group):
    train: RowsRecord | None = None
    validation: RowsRecord | None = None
    positions: SelectionRecord | None = None


class ParallelRecord(Group):
    backend: str | None = None
    processes: int | None = None
    nodes: int | None = None
    teacher: str | None = None
    """Placement, or `cached`."""
    optimizer: str | None = None
    """Placement of masters and moments; None in records of an earlier version, which had them on the device."""


class ParityFacts(Group):
    """Relative differences of the loss as it ran from the plain one (essence/distill/objective_parity.py)."""

    loss_plain: Number
    loss_fast: Number
    loss_difference: Number
    states_gradient_difference: Number
    head_gradient_difference: Number
    loss_tolerance: Number
    gradient_tolerance: Number
    passed: bool


class ObjectiveFacts(Group):
    """The loss as it ran."""

    form: str | None = None
    """`chunked` or `plain`."""
    compiled: bool | None = None
    fell_back: list[str] = Field(default_factory=list)
    """Why each form that was asked for was left for the next one."""
    parity: ParityFacts | None = None
    """None where the plain form ran."""


class LayerParityFacts(Group):
    """Distances from one layer in a higher precision (essence/distill/compiled_layers.py)."""

    model: str
    graphs: int
    eager_error: Number
    compiled_error: Number
    bound: Number
    passed: bool


class LayersFacts(Group):
    """Whose layers were compiled."""

    student: bool = False
    teacher: bool = False
    fell_back: list[str] = Field(default_factory=list)
    """Why layers ran as they are, where compiled ones were asked for."""
    parity: list[LayerParityFacts] = Field(default_factory=list)


class MemoryEstimate(Group):
    """What one device was to hold, before the first step."""

    static_bytes: int
    dynamic_bytes: int
    device_bytes: int
    usable_bytes: int
    largest_positions: int
    largest_labels: int
    longest_row: int


class RowsUnchanged(Group):
    """Whether an attempt read the rows of the one before."""

    train_sha256: str
    validation_sha256: str
    equals_earlier_attempt: bool | None
    """None of the first attempt."""


class Preflight(Group):
    """What was looked at before the first step."""

    memory: MemoryEstimate | None = None
    teacher_bytes: int | None = None
    """Of stored states."""
    data: RowsUnchanged | None = None
    objective: ObjectiveFacts = Field(default_factory=ObjectiveFacts)
    layers: LayersFacts = Field(default_factory=LayersFacts)


class MicroBatches(Group):
    """How the rows of the steps were shared out among forward passes, and how well they filled them."""

    packed: bool
    most_rows: int | None
    """None where rows are packed."""
    most_tokens: int
    passes: int
    tokens: int
    positions: int
    """Tokens with padding."""
    fill: Number


class ActivationsFacts(Group):
    """Whether activations were recomputed in the backward pass, and why (essence/sizes/recomputation.py)."""

    asked: str
    """`auto`, `on` or `off`: `[resources] activation_checkpointing`."""
    recomputed: bool
    micro_batch_tokens: int
    """Most tokens of a pass: less than `[resources]` has where activations were kept in shorter passes."""
    kept_bytes: int
    """That a device needs for kept activations, in passes of the tokens that `[resources]` has, with some to spare."""
    recomputed_bytes: int
    usable_bytes: int
    because: str


class VocabularySizes(Group):
    tokenizer: int
    student: int
    teacher: int | None


class ParameterCounts(Group):
    trained: int
    all: int


class RolloutFacts(Group):
    """What a student that learns from its own words has said (span `rollout-k`)."""

    most_tokens: int
    """Of one rollout."""
    every_steps: int
    """Steps whose rollouts were drawn together."""
    temperature: Number
    stop_token_ids: list[int]
    rollouts: int
    prompt_tokens: int
    """Of all of them together."""
    tokens: int
    """Of the student's own, all of which are labels."""
    ended: int
    """Rollouts in which the student ended its turn."""
    at_cap: int
    """Those that were stopped at `most_tokens`."""


class TrainExecuted(Group):
    batch_rows: int | None = None
    batch_tokens: int | None = None
    parallel: ParallelRecord = Field(default_factory=ParallelRecord)
    attention: str | None = None
    micro_batches: MicroBatches | None = None
    activations: ActivationsFacts | None = None
    """Records of an earlier version have none: there it is a setting."""
    optimizer_steps: int | None = None
    dtype: str | None = None
    """Of the computation."""
    reduce_dtype: str | None = None
    """Of sums between ranks."""
    weights: str | None = None
    """Dtype of the weights that are computed with."""
    device: str | None = None
    eos_id: int | None = None
    vocabulary: VocabularySizes | None = None
    parameters: ParameterCounts | None = None
    preflight: Preflight = Field(default_factory=Preflight)
    rollouts: RolloutFacts | None = None
    """None where rows were read as they are."""


class TrainMore(CostMore):
    """What a training counts beside the cost of every stage."""

    training_flops: Number
    validation_flops: Number
    validation_tokens: int
    training_s: Number
    tokens_per_s: Number | None
    mfu: Number | None
    """None where the device's peak is not known."""
    mfu_formula: str
    peak_flops: Number | None
    peak_flops_source: str | None
    static_memory_bytes: int
    rollout_flops: Number | None = None
    """Of drawing rollouts; this and the next two are not in those of the training. None where there were none."""
    rollout_s: Number | None = None
    rollout_gpu_hours: Number | None = None
    """None without a GPU, too."""


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
    activation_checkpointing: bool | None = None
    """Of records of an earlier version; now a resource."""
    parallel: str | None = None
    optimizer_placement: str | None = None
    processes: int | None = None
    seed: int | None = None
