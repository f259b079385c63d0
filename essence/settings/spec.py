"""What a stage is given: its settings, and what only changes speed or where it runs."""

from typing import Annotated, Literal

from pydantic import Field

from essence.settings.base import LARGEST_SEED, Count, CountOrZero, Few, Gib, Record, Seconds, Share
from essence.settings.data import DownloadSettings, TokenizeSettings
from essence.settings.evaluation import GenerateSettings, GradeSettings
from essence.settings.proving import ProveDecodingSettings, ProveTrainingSettings
from essence.settings.training import TeacherSettings, TrainSettings

ProtocolName = Literal["released", "corrected"]
StageName = Literal["download", "tokenize", "teacher", "train", "generate", "grade", "prove_training", "prove_decoding"]
EnvironmentName = Literal["download", "train", "eval"]
"""The three environments that stages run in; each is an image, or all of them the one of `.venv/`."""
STAGES_IN: dict[EnvironmentName, tuple[StageName, ...]] = {
    "download": ("download",),
    "train": ("download", "tokenize", "teacher", "train", "prove_training"),
    "eval": ("generate", "grade", "prove_decoding"),
}
"""Which stages run in an environment."""


ActivationCheckpointing = Literal["auto", "on", "off"]
"""Computed again in the backward pass, kept from the forward pass; or the one of them that memory allows."""


class LossResources(Record):
    """How heads and loss are computed; `essence/distill/chunked.py` says what each costs."""

    form: Literal["chunked", "plain"]
    """`plain` holds all logits, in float32: the reference."""
    chunk_rows: Count
    """Labels whose teacher and student logits are held at a time."""
    gradient_rows: CountOrZero
    """Labels whose gradient of the logits is kept for one product with the states; 0 = as many as take the bytes of the
    head's own gradient in float32: twice the hidden size in bfloat16."""
    compiled: bool
    """Compile the loss of a chunk; needs a C++ compiler, or Triton on a GPU."""
    fallback: bool
    """Where the form differs from `plain` on the device, or nothing can compile it: go on without, and say so in the
    manifest, instead of stopping before the first step."""


class Resources(Record):
    """What a stage may use; changes speed only, so it is in no key."""

    threads: Few
    gpus: Annotated[int, Field(ge=0, le=1024)]
    """Of each machine."""
    nodes: Few
    """Machines that a training runs on; every other stage runs on one."""
    gpu_memory_gib: Gib
    memory_gib: Gib
    """Main memory that a container or job may take; 0 = no limit."""
    shm_gib: Annotated[float, Field(gt=0.0, le=1_000_000.0)]
    """Shared memory of a container, through which processes on one machine exchange gradients and batches."""
    ulimits: dict[Literal["memlock", "nofile", "stack"], Annotated[int, Field(ge=-1, le=LARGEST_SEED)]]
    """Limits that a container is to have, in bytes or files, -1 = none; empty = as the engine has them."""
    micro_batch_rows: Count
    """Rows in one forward pass without packing; the effective batch is reached by accumulation."""
    micro_batch_tokens: Count
    """Tokens, padding included, in one forward pass; a longer row has one for itself."""
    activation_checkpointing: ActivationCheckpointing = "auto"
    """Whether a training recomputes its activations; `auto`: `essence/sizes/recomputation.py` says which."""
    tensor_parallel: Annotated[int, Field(gt=0, le=1024)]
    """GPUs that share one copy of a model when vLLM generates; the stage's other GPUs hold further copies."""
    decoder_memory_share: Share
    """Of a GPU's memory, or of the free main memory without one: what vLLM may take."""
    loss: LossResources
    checkpoint_every_s: Seconds
    """Longest training time that a kill can lose; 0 = a checkpoint after every step."""
    teacher_shard_mib: Annotated[float, Field(ge=0.001, le=1_000_000.0)]
    """Size of the files that a teacher's states are stored in; a kill loses at most one of them."""
    kept_checkpoints: Annotated[int, Field(ge=2, le=1000)]
    """The newest so many are kept while a training runs; where the newest is damaged, the one before is used."""


AnySettings = (
    DownloadSettings
    | TokenizeSettings
    | TeacherSettings
    | TrainSettings
    | GenerateSettings
    | GradeSettings
    | ProveTrainingSettings
    | ProveDecodingSettings
)
SETTINGS: dict[StageName, type[AnySettings]] = {
    "download": DownloadSettings,
    "tokenize": TokenizeSettings,
    "teacher": TeacherSettings,
    "train": TrainSettings,
    "generate": GenerateSettings,
    "grade": GradeSettings,
    "prove_training": ProveTrainingSettings,
    "prove_decoding": ProveDecodingSettings,
}


class Spec(Record):
    """All that a stage is given: `spec.json` in its folder; paths are relative to that folder."""

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
    """Hash of the modules of the kit that can change the result."""
    modules: dict[str, str] = Field(default_factory=dict)
    """Each of these modules -> hash of its syntax tree. Earlier specs have none."""
    accepted: dict[str, list[str]] = Field(default_factory=dict)
    """Stages of earlier code that this one is built on (`--accept-earlier`), by id -> what changed since."""
    resources: Resources
    graders: dict[str, float] = Field(default_factory=dict)
    """Of a generate stage: who will judge its completions -> longest time for one. Their golds are tried first; changes
    no completion, so it is in no key."""
    code: dict[str, str | bool | None]
    """Version, commit, dirty flag and hash of the uncommitted changes, as the host side sees them."""
    image: dict[str, str | None]
    """Engine, its version and the digests of the image."""
