"""The settings of the five stages, as they stand in a spec, a stage's key and a manifest.

Every field changes a result, so every field is in the key. What only changes speed (threads, where files lie) is not
here but in `Resources`. There are no defaults: values come from `experiments/*.toml` and the protocol table
(`essence/protocol.py`), so that a number can be found in one place.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LSP = Annotated[float, Field(gt=0.0, le=1.0)]
"""Lead-span proportion: the share of a row's tokens that is kept, 0 < p <= 1."""

Span = Literal["left", "middle", "right"]
"""Which tokens a proportion keeps: the first, the middle or the last ones."""

Sections = Literal["a", "p+a", "cot", "cot+a", "p+cot", "p+cot+a"]
"""The sections whose tokens are supervised: prompt (p), chain of thought (cot), answer (a)."""

ProtocolName = Literal["released", "corrected"]
StageName = Literal["download", "tokenize", "train", "generate", "grade"]
RowFormat = Literal["conversations", "synthetic1", "nemotron"]
"""How a data set's rows are read: `conversations` is Bespoke-Stratos, OpenThoughts and Sky-T1."""


class Record(BaseModel):
    """A record that refuses unknown keys and is never changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Source(Record):
    """Where a model, data set or benchmark comes from: a hub repository at a commit, a local path, the kit itself."""

    kind: Literal["model", "dataset", "benchmark"]
    name: str
    """Short name used in cell names: `qwen3-8b`, `bespoke`, `aime25`."""
    repository: str | None = None
    """Hub repository, `owner/name`."""
    commit: str | None = None
    """Full commit of the repository; never a branch."""
    files: list[str] = Field(default_factory=list)
    """Patterns of the files of a repository that are fetched."""
    path: str | None = None
    """Local folder or file instead of a repository."""
    path_state: str | None = None
    """Hash over the names, sizes and modification times under `path`, so that a changed folder is another input."""
    builtin: str | None = None
    """Name of a source made by the kit (`essence/tiny`)."""
    options: dict[str, int | float | str] = Field(default_factory=dict)
    """Options of a built-in source."""


class DownloadSettings(Record):
    """Bring one source into the run directory."""

    source: Source


class TokenizeSettings(Record):
    """Render and tokenise every row of a data set once; spans and sections are views on the result."""

    format: RowFormat
    keep_generation_header: bool
    """Released: a stray `<|im_start|>assistant` header ends every full row (trap 5)."""


class RowsSettings(Record):
    """Which rows a cell trains on and is validated on (PAPER section 3: length filter, split)."""

    max_row_tokens: Annotated[int, Field(gt=0)]
    """Rows of this many tokens or more are left out."""
    train_rows: Annotated[int, Field(gt=0)]
    validation_rows: Annotated[int, Field(gt=0)]
    split_seed: Annotated[int, Field(ge=0)]


class ViewSettings(Record):
    """Which tokens of a row are read and which are supervised."""

    lsp: LSP
    span: Span
    sections: Sections
    cot_includes_next_token: bool
    """Released: CoT and P+CoT supervise one token of the answer too (trap 9)."""
    supervise_end_of_sequence: bool
    """Released: padding is the eos token, so true eos tokens are masked out of the labels (trap 6)."""
    keep_context: bool
    """Corrected: middle and right spans keep everything before them, with the loss on the span only (trap 3)."""


class ObjectiveSettings(Record):
    """`(1 - w) * CE + w * KD` at a temperature."""

    kd_weight: Annotated[float, Field(ge=0.0, le=1.0)]
    temperature: Annotated[float, Field(gt=0.0)]


class OptimizerSettings(Record):
    """AdamW under a one-cycle schedule."""

    epochs: Annotated[int, Field(gt=0)]
    batch_rows: Annotated[int, Field(gt=0)]
    """Effective batch: rows an optimiser step, whatever the number of devices (trap 1)."""
    max_lr: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)]
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)]
    adam_epsilon: Annotated[float, Field(gt=0.0)]
    gradient_clip_norm: Annotated[float, Field(gt=0.0)]
    warmup_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """OneCycleLR's pct_start."""
    start_divisor: Annotated[float, Field(gt=0.0)]
    """The first learning rate is max_lr / start_divisor."""
    end_divisor: Annotated[float, Field(gt=0.0)]
    """The last learning rate is max_lr / start_divisor / end_divisor."""
    beta1_low: Annotated[float, Field(gt=0.0, lt=1.0)]
    beta1_high: Annotated[float, Field(gt=0.0, lt=1.0)]
    """OneCycleLR cycles beta1 from high to low and back (trap 13)."""


class LoopSettings(Record):
    """How the training loop runs."""

    validations_per_epoch: Annotated[int, Field(gt=0)]
    compute_dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool
    pad_to_multiple: Annotated[int, Field(gt=0)]


class TrainSettings(LoopSettings):
    """One cell: a student distilled from a teacher on a view of a tokenised data set."""

    rows: RowsSettings
    view: ViewSettings
    validation_view: Literal["same", "full"]
    """Released: validation rows are truncated like the training rows (trap 8)."""
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    seed: Annotated[int, Field(ge=0)]


class BenchmarkSettings(Record):
    """One benchmark: which fields hold what, and the prompt."""

    name: str
    problem_field: str
    answer_field: str
    prompt: str
    """Text with `{problem}` once; rendered through the model's chat template as the user turn."""
    problems: Annotated[int, Field(gt=0)] | None
    """Take only the first so many problems; None = all."""


class SamplingSettings(Record):
    """How completions are sampled."""

    samples: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(ge=0.0)]
    """0 = greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    max_new_tokens: Annotated[int, Field(gt=0)]
    max_model_tokens: Annotated[int, Field(gt=0)]
    """Prompt and completion together."""
    dtype: Literal["float32", "bfloat16"]
    batch_sequences: Annotated[int, Field(gt=0)]
    """Sequences decoded together; part of the result, since rounding depends on the batch."""


class GenerateSettings(SamplingSettings):
    """Sample completions of every problem of one benchmark from one model."""

    benchmark: BenchmarkSettings
    model_folder: Literal["model", "best", "last"]
    """Folder of the model in the input's output: `model` of a download, `best` or `last` of a training."""
    stop_at_turn_end: bool
    """Corrected: `<|im_end|>` stops generation beside the model's own eos (trap 6)."""
    seed: Annotated[int, Field(ge=0)]


class GradingSettings(Record):
    """How completions are graded."""

    grader: Literal["math-verify"]
    timeout_s: Annotated[float, Field(gt=0.0)]
    """Longest time one completion may take before it is recorded as a grading timeout."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Of the intervals."""


class GradeSettings(GradingSettings):
    """Grade the samples of one generate stage."""

    benchmark: BenchmarkSettings


class Resources(Record):
    """What a stage may use; changes speed only, so it is in no key."""

    threads: Annotated[int, Field(gt=0)]
    gpus: Annotated[int, Field(ge=0)]
    gpu_memory_gib: Annotated[float, Field(ge=0.0)]
    micro_batch_rows: Annotated[int, Field(gt=0)]
    """Rows in one forward pass; the effective batch is reached by accumulation."""
    checkpoint_every_s: Annotated[float, Field(ge=0.0)]
    """Longest training time that a kill can lose; 0 = a checkpoint after every step."""


AnySettings = DownloadSettings | TokenizeSettings | TrainSettings | GenerateSettings | GradeSettings
SETTINGS: dict[StageName, type[AnySettings]] = {
    "download": DownloadSettings,
    "tokenize": TokenizeSettings,
    "train": TrainSettings,
    "generate": GenerateSettings,
    "grade": GradeSettings,
}


class Spec(Record):
    """All that a stage is told. Lies as `spec.json` in the stage's folder; paths are relative to that folder."""

    schema_version: Literal[1] = 1
    stage: StageName
    key: str
    """Hash of what determines the result: settings, input keys, environment, source of the stage."""
    title: str
    """For people: `train bespoke/qwen3-8b_qwen3-4b-base/lsp-0.50/...`."""
    settings: dict[str, object]
    inputs: dict[str, str]
    """Input name -> stage folder, relative: `{"tokens": "../tokenize-3fa9..."}`."""
    environment: dict[str, str]
    """Identity of the environment: lock name and hash, or image digest."""
    source_sha256: str
    """Hash of the modules of the kit that the stage imports."""
    resources: Resources
    code: dict[str, str | bool | None]
    """Version, commit, dirty flag and hash of the uncommitted changes, as the host side sees them."""
    image: dict[str, str | None]
    """Engine, its version and the digests of the image."""
